package homeserver_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// dump shows the rows of a query as text.
func dump(t *testing.T, st *store.Store, sql string) string {
	t.Helper()
	var out strings.Builder
	err := st.Read(t.Context(), func(tx *store.Tx) error {
		return tx.Each(sql, nil, func(r *store.Row) error {
			var a, b string
			err := r.Scan(&a, &b)
			fmt.Fprintf(&out, "%q=%q;", a, b)
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func exec(t *testing.T, st *store.Store, sql string, args ...any) {
	t.Helper()
	if err := st.Write(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(sql, args...)
		return err
	}); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// strange are texts and bytes that a dump could trip over.
var strange = []string{"tab\there", "new\nline", `back\slash`, `\N`, `\.`, "quote\"'", "", "会议室 🏛️", "\u2028", strings.Repeat("long ", 5000)}

// TestBackup backs a server up while it is being written to, and restores it into an empty place.
func TestBackup(t *testing.T) {
	storetest.Each(t, func(t *testing.T, db store.Config) {
		cfg := settings(db)
		log := slog.New(slog.DiscardHandler)
		start(t, cfg)
		if _, err := homeserver.CreateUser(t.Context(), cfg, log, "alice", "long enough", true); err != nil {
			t.Fatal(err)
		}
		st := storetest.Open(t, db)
		for i, s := range strange {
			exec(t, st, `INSERT INTO server_settings (key, value) VALUES ($1, $2)`, fmt.Sprintf("strange %d %.100s", i, s), store.Content(s+"\x00\xff"))
			exec(t, st, `INSERT INTO devices (usr, device_id, display_name, created) VALUES ($1, $2, $3, $4)`, "@alice:shell.test", fmt.Sprint(i), s, i)
		}
		exec(t, st, `INSERT INTO devices (usr, device_id, display_name, created) VALUES ('@alice:shell.test', 'null', NULL, 1)`)
		exec(t, st, `INSERT INTO one_time_keys (usr, device_id, algorithm, serial, key_id, body) VALUES ('@alice:shell.test', '0', 'signed_curve25519', 1, 'AAAA', $1)`, []byte("{}"))
		exec(t, st, `UPDATE followers SET lease_until = 9223372036854775807`)
		media := filepath.Join(cfg.DataDir, "media", "ab")
		if err := errors.Join(os.MkdirAll(media, 0o700), os.WriteFile(filepath.Join(media, "cd"), []byte("a picture"), 0o600)); err != nil {
			t.Fatal(err)
		}

		stopWriting := keepWriting(t, st)
		dir := filepath.Join(t.TempDir(), "backup")
		err := homeserver.Backup(t.Context(), cfg, log, dir)
		written := stopWriting()
		if err != nil {
			t.Fatal(err)
		}
		if err := homeserver.Backup(t.Context(), cfg, log, dir); err == nil || !strings.Contains(err.Error(), "is not empty") {
			t.Errorf("a second backup into the same directory: %v", err)
		}
		if err := homeserver.Backup(t.Context(), cfg, log, filepath.Join(media, "x")); err == nil {
			t.Error("a backup into the media directory was made")
		}

		target := store.Config{DataDir: filepath.Join(t.TempDir(), "data")}
		if db.URL != "" {
			target.URL = storetest.EmptyPostgres(t)
		}
		to := settings(target)
		if err := homeserver.Restore(t.Context(), to, log, dir); err != nil {
			t.Fatal(err)
		}
		if err := homeserver.Restore(t.Context(), to, log, dir); err == nil || !strings.Contains(err.Error(), "empty") {
			t.Errorf("a second restore: %v", err)
		}
		if b, err := os.ReadFile(filepath.Join(to.DataDir, "media", "ab", "cd")); err != nil || string(b) != "a picture" {
			t.Errorf("the media file is %q, %v", b, err)
		}
		restored := storetest.Open(t, target)
		compare(t, st, restored, written)
		// The restored server runs and knows its users.
		start(t, to)
		if _, err := homeserver.CreateUser(t.Context(), to, log, "alice", "long enough", false); err == nil || !strings.Contains(err.Error(), "taken") {
			t.Errorf("alice is not there after the restore: %v", err)
		}
	})
}

// keepWriting writes pairs of rows until it is stopped, and returns how many.
func keepWriting(t *testing.T, st *store.Store) (stop func() int) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	n := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			n++
			err := st.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error {
				for _, table := range []string{"nonces (nonce, expires)", "login_tokens (usr, expires, hash)"} {
					sql := `INSERT INTO ` + table + ` VALUES ($1, $2)`
					args := []any{fmt.Sprint("n", n), n}
					if strings.HasPrefix(table, "login") {
						sql = `INSERT INTO ` + table + ` VALUES ($1, $2, $3)`
						args = append(args, []byte(fmt.Sprint("n", n)))
					}
					if _, err := tx.Exec(sql, args...); err != nil {
						return err
					}
				}
				_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: "@alice:shell.test"})
				return err
			})
			if err != nil {
				t.Errorf("write during the backup: %v", err)
				return
			}
			time.Sleep(10 * time.Millisecond) // SQLite is not fair to who waits
		}
	})
	return func() int {
		cancel()
		wg.Wait()
		return n
	}
}

func compare(t *testing.T, from, to *store.Store, written int) {
	t.Helper()
	for _, sql := range []string{
		`SELECT key, CASE WHEN key = 'server_name' THEN 'x' ELSE 'y' END FROM server_settings ORDER BY key`,
		`SELECT user_id, localpart FROM users ORDER BY user_id`,
		`SELECT device_id, coalesce(display_name, '(none)') FROM devices ORDER BY device_id`,
	} {
		if a, b := dump(t, from, sql), dump(t, to, sql); a != b {
			t.Errorf("%s:\n%s\n%s", sql, a, b)
		}
	}
	read := func(st *store.Store, sql string) (n int64) {
		if err := st.Read(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&n}, sql)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for i, s := range strange {
		var value store.Content
		if err := to.Read(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&value}, `SELECT value FROM server_settings WHERE key = $1`, fmt.Sprintf("strange %d %.100s", i, s))
			return err
		}); err != nil || string(value) != s+"\x00\xff" {
			t.Errorf("value %d came back as %.50q, %v", i, value, err)
		}
	}
	// One state: what was written together is there together, and the head is the last entry's position.
	nonces, tokens := read(to, `SELECT count(*) FROM nonces`), read(to, `SELECT count(*) FROM login_tokens`)
	if nonces != tokens || nonces > int64(written) {
		t.Errorf("%d nonces and %d tokens of %d", nonces, tokens, written)
	}
	// positions that clients saw after the backup are not given again
	head, last := read(to, `SELECT pos FROM log_head`), read(to, `SELECT max(pos) FROM log`)
	if head != last+1_000_000_000 {
		t.Errorf("the head is %d, the last entry %d", head, last)
	}
	if n := read(to, `SELECT count(*) FROM one_time_keys`); n != 0 {
		t.Errorf("%d one-time keys were restored", n)
	}
	if n := read(to, `SELECT count(*) FROM followers WHERE lease_until <> 0`); n != 0 {
		t.Errorf("%d leases were restored", n)
	}
	epochs := to.Epochs()
	if old := from.Epochs(); len(epochs) != len(old)+1 || epochs[len(epochs)-1].First != last+1 {
		t.Errorf("epochs were %v and are %v", old, epochs)
	}
}

// TestRestoreRefuses damages backups.
func TestRestoreRefuses(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	cfg := settings(store.Config{DataDir: t.TempDir()})
	s, err := homeserver.New(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	media := filepath.Join(cfg.DataDir, "media")
	if err := errors.Join(os.MkdirAll(media, 0o700), os.WriteFile(filepath.Join(media, "file"), []byte("content"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name   string
		damage func(dir string) error
		want   string
	}{
		{"whole", func(string) error { return nil }, ""},
		{"no manifest", func(dir string) error { return os.Remove(filepath.Join(dir, "manifest.json")) }, "it is no backup"},
		{"broken manifest", func(dir string) error { return os.Truncate(filepath.Join(dir, "manifest.json"), 20) }, "manifest.json is damaged"},
		{"file missing", func(dir string) error { return os.Remove(filepath.Join(dir, "media", "file")) }, "not complete"},
		{"file changed", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "media", "file"), []byte("CONTENT"), 0o600)
		}, "media/file was changed"},
		{"file added", func(dir string) error { return os.WriteFile(filepath.Join(dir, "media", "more"), nil, 0o600) }, "media/more is not part"},
		{"database cut", func(dir string) error { return os.Truncate(filepath.Join(dir, "database", "moothall.db"), 4096) }, "was changed"},
		{"newer", func(dir string) error {
			return replace(filepath.Join(dir, "manifest.json"), `"migrations": [`, `"migrations": [ 9999, `)
		}, "newer version"},
		{"other format", func(dir string) error {
			return replace(filepath.Join(dir, "manifest.json"), `"format": 1`, `"format": 2`)
		}, "format 2"},
		{"outside", func(dir string) error {
			return replace(filepath.Join(dir, "manifest.json"), `"path": "media/file"`, `"path": "../../etc/passwd"`)
		}, "outside of the backup"},
		{"other server", func(dir string) error {
			return replace(filepath.Join(dir, "manifest.json"), `shell.test`, `other.test`)
		}, `backup of "other.test"`},
		{"other database", func(dir string) error { return replace(filepath.Join(dir, "manifest.json"), `"sqlite"`, `"postgres"`) }, "backup of PostgreSQL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "backup")
			if err := homeserver.Backup(t.Context(), cfg, log, dir); err != nil {
				t.Fatal(err)
			}
			if err := tc.damage(dir); err != nil {
				t.Fatal(err)
			}
			to := settings(store.Config{DataDir: filepath.Join(t.TempDir(), "data")})
			err := homeserver.Restore(t.Context(), to, log, dir)
			if tc.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if _, err := os.Stat(filepath.Join(to.DataDir, "moothall.db")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("a database was made: %v", err)
			}
		})
	}
}

func replace(file, old, with string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if !strings.Contains(string(b), old) {
		return fmt.Errorf("%s has no %s", file, old)
	}
	return os.WriteFile(file, []byte(strings.ReplaceAll(string(b), old, with)), 0o600)
}
