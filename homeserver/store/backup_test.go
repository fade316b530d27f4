package store_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestBackupUnderWrites backs up a database that is larger than one step of the copy while every moment brings a commit: the
// copy ends nevertheless and is one state.
func TestBackupUnderWrites(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := storetest.Open(t, cfg)
		write := func(i, size int) {
			err := s.Write(context.Background(), func(tx *store.Tx) error {
				for _, half := range []string{"a", "b"} {
					if err := tx.PutSetting(fmt.Sprintf("%s %d", half, i), make([]byte, size+i%7)); err != nil {
						return err
					}
					key := fmt.Sprintf("filler %s %d", half, i)
					if _, err := tx.Exec(`INSERT INTO server_settings (key, value) VALUES ($1, $2)`, key, make([]byte, size)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Errorf("write %d: %v", i, err)
			}
		}
		for i := range 100 {
			write(i, 60_000) // zeros that are stored as they are: some 12 MB
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := 100; ctx.Err() == nil; i++ {
				write(i, 100)
			}
		})
		dir := t.TempDir()
		info, err := store.Backup(t.Context(), cfg, dir)
		cancel()
		wg.Wait()
		if err != nil {
			t.Fatal(err)
		}
		target := store.Config{DataDir: t.TempDir()}
		if !s.SQLite() {
			target.URL = storetest.EmptyPostgres(t)
		}
		if err := store.Restore(t.Context(), target, dir, info); err != nil {
			t.Fatal(err)
		}
		var a, b int64
		err = storetest.Open(t, target).Read(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&a, &b}, `SELECT count(CASE WHEN key LIKE 'a %' THEN 1 END), count(CASE WHEN key LIKE 'filler b %' THEN 1 END) FROM server_settings`)
			return err
		})
		if err != nil || a != b || a < 100 {
			t.Errorf("%d and %d rows came back, %v", a, b, err)
		}
	})
}

// TestBackupCanBeStopped cancels a backup.
func TestBackupCanBeStopped(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		storetest.Open(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := store.Backup(ctx, cfg, t.TempDir()); err == nil {
			t.Error("a cancelled backup was finished")
		}
	})
}

// TestBackupBeforeMigration opens a database that lacks a migration: a copy of it is left beside it.
func TestBackupBeforeMigration(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir()}
	all, err := store.Migrations()
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, cfg)
	last := all[len(all)-1]
	if err := s.Write(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Exec(`DELETE FROM schema_migrations WHERE number = $1`, last.Number)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// Its tables exist, so the migration itself fails; the copy was made before.
	if _, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("the migration ran twice")
	}
	copies, err := filepath.Glob(filepath.Join(cfg.DataDir, "*.before-migration-*"))
	if err != nil || len(copies) != 1 {
		t.Fatalf("copies: %v, %v", copies, err)
	}
	if err := os.Rename(copies[0], filepath.Join(t.TempDir(), store.SQLiteFile)); err != nil {
		t.Fatal(err)
	}
}
