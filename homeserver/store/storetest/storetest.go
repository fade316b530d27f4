// Package storetest opens empty databases for tests: SQLite always, PostgreSQL where MOOTHALL_TEST_POSTGRES names a
// server on which databases may be made.
package storetest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"
	"net/url"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/testkit"
)

// PostgresEnv is the environment variable with the address of the tests' PostgreSQL, as a user that may make databases.
const PostgresEnv = "MOOTHALL_TEST_POSTGRES"

// Each runs fn as a subtest on every database there is. In CI a missing PostgreSQL is a failure.
func Each(t *testing.T, fn func(t *testing.T, cfg store.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, store.Config{DataDir: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) { fn(t, store.Config{DataDir: t.TempDir(), URL: Postgres(t)}) })
}

// Postgres makes an empty database and returns its URL. Without a server it skips the test, and fails it in CI.
func Postgres(t testing.TB) string {
	t.Helper()
	admin := testkit.Partner(t, PostgresEnv)
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
	exec("CREATE DATABASE " + name)
	t.Cleanup(func() { exec("DROP DATABASE " + name + " WITH (FORCE)") })
	u, err := url.Parse(admin)
	if err != nil {
		t.Fatalf("%s: %v", PostgresEnv, err)
	}
	u.Path = "/" + name
	return u.String()
}

// Open opens a store that is closed with the test. Its log is followed, as in a running server.
func Open(t testing.TB, cfg store.Config, listeners ...store.Listener) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("open the store: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, listeners, nil) }()
	<-s.Following()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follow the log: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close the store: %v", err)
		}
	})
	return s
}
