// Package storetest opens databases without content for tests: SQLite always, PostgreSQL where MOOTHALL_TEST_POSTGRES names a
// server on which databases may be made.
package storetest

import (
	"context"
	"log/slog"
	"testing"

	"github.com/moothall/moothall/homeserver/store"
)

// PostgresEnv is the environment variable with the address of the tests' PostgreSQL, as a user that may make databases.
const PostgresEnv = "MOOTHALL_TEST_POSTGRES"

// Each runs fn as a subtest on every database there is. In CI a missing PostgreSQL is a failure.
func Each(t *testing.T, fn func(t *testing.T, cfg store.Config)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, store.Config{DataDir: t.TempDir()}) })
	t.Run("postgres", func(t *testing.T) { fn(t, store.Config{DataDir: t.TempDir(), URL: Postgres(t)}) })
}

// Open opens a store that is closed with the test. Its log is followed, as in a running server.
func Open(t testing.TB, cfg store.Config, listeners ...store.Listener) *store.Store {
	t.Helper()
	if cfg.URL == "" {
		Furnish(t, cfg.DataDir)
	}
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
