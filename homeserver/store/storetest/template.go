package storetest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/testkit"
)

// Making the tables of a database takes many times as long as copying one that has them: so it is done once, on each PostgreSQL and,
// for SQLite, in each process.

// Postgres makes a database that has the program's tables and nothing in them, and returns its URL. Without a server it skips the
// test, and fails it in CI.
func Postgres(t testing.TB) string {
	t.Helper()
	admin := testkit.Partner(t, PostgresEnv)
	template, err := templateOn(context.Background(), admin)
	if err != nil {
		t.Fatalf("make the template of the tests' databases: %v", err)
	}
	return create(t, admin, " TEMPLATE "+template+" STRATEGY FILE_COPY")
}

// EmptyPostgres is Postgres without the tables.
func EmptyPostgres(t testing.TB) string {
	t.Helper()
	return create(t, testkit.Partner(t, PostgresEnv), "")
}

// create makes a database that is dropped after the test.
func create(t testing.TB, admin, how string) string {
	t.Helper()
	var b [6]byte
	_, _ = rand.Read(b[:])
	name := "moothall_test_" + hex.EncodeToString(b[:])
	exec := func(sql string) {
		ctx := context.Background()
		c, err := pgx.Connect(ctx, admin)
		if err != nil {
			t.Fatalf("connect to the tests' PostgreSQL: %v", err)
		}
		defer func() { _ = c.Close(ctx) }()
		if _, err := c.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("CREATE DATABASE " + name + how)
	t.Cleanup(func() { exec("DROP DATABASE " + name + " WITH (FORCE)") })
	at, err := within(admin, name)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// within is the URL of another database on the same server.
func within(admin, name string) (string, error) {
	u, err := url.Parse(admin)
	if err != nil {
		return "", fmt.Errorf("%s: %w", PostgresEnv, err)
	}
	u.Path = "/" + name
	return u.String(), nil
}

// templates are the servers whose template this process has seen.
var templates struct {
	sync.Mutex
	seen map[string]string
}

// templateOn finds the template for this program's migrations on a server, or makes it.
func templateOn(ctx context.Context, admin string) (string, error) {
	templates.Lock()
	defer templates.Unlock()
	if name := templates.seen[admin]; name != "" {
		return name, nil
	}
	all, err := store.Migrations()
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	for _, m := range all {
		_, _ = fmt.Fprintf(hash, "%s\n%s\n", m.Name, m.SQL)
	}
	name := "moothall_template_" + hex.EncodeToString(hash.Sum(nil)[:8])
	c, err := pgx.Connect(ctx, admin)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close(ctx) }() // which gives the lock back, too
	// one process makes it, the others wait
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock(7305825)`); err != nil {
		return "", err
	}
	var there bool
	if err := c.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)`, name).Scan(&there); err != nil {
		return "", err
	}
	if !there {
		if err := makeTemplate(ctx, c, admin, name); err != nil {
			return "", err
		}
	}
	if templates.seen == nil {
		templates.seen = map[string]string{}
	}
	templates.seen[admin] = name
	return name, nil
}

// makeTemplate makes a database under another name first: one that somebody was interrupted at is made anew.
func makeTemplate(ctx context.Context, c *pgx.Conn, admin, name string) error {
	draft := name + "_draft"
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + draft + " WITH (FORCE)", "CREATE DATABASE " + draft} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	at, err := within(admin, draft)
	if err != nil {
		return err
	}
	s, err := store.Open(ctx, store.Config{URL: at}, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	// the server may not have noticed yet that everybody has gone
	for end := time.Now().Add(testkit.Patience); ; time.Sleep(10 * time.Millisecond) {
		_, err := c.Exec(ctx, "ALTER DATABASE "+draft+" ALLOW_CONNECTIONS false")
		if err == nil {
			_, err = c.Exec(ctx, "ALTER DATABASE "+draft+" RENAME TO "+name)
		}
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}

// sqliteTemplate is a database with the program's tables: its file, and its log where closing leaves one.
var sqliteTemplate = sync.OnceValues(func() (files map[string][]byte, err error) {
	dir, err := os.MkdirTemp("", "moothall-template")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := store.Open(context.Background(), store.Config{DataDir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	files = map[string][]byte{}
	for _, name := range []string{store.SQLiteFile, store.SQLiteFile + "-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) && name != store.SQLiteFile {
			continue
		}
		if err != nil {
			return nil, err
		}
		files[name] = b
	}
	return files, nil
})

// Furnish puts a SQLite database with the program's tables into an empty data directory; one that is not empty, or not there, stays
// as it is.
func Furnish(t testing.TB, dir string) {
	t.Helper()
	if list, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(list) > 0 {
		return
	} else if err != nil {
		t.Fatal(err)
	}
	files, err := sqliteTemplate()
	if err != nil {
		t.Fatalf("make a database: %v", err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
