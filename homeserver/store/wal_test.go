package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// TestWALStaysShort writes without a pause, with a reader that begins anew all the time: the WAL begins anew all the same, so that
// nobody ever waits for the whole of it, and all that was written is there.
func TestWALStaysShort(t *testing.T) {
	b, err := openSQLite(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.close() }()
	write := func(fn func(tx *Tx) (int64, error)) {
		t.Helper()
		if err := b.write(t.Context(), func(tx *Tx) error { _, err := fn(tx); return err }, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(func(tx *Tx) (int64, error) { return tx.Exec("CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)") })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := b.checkpoint(ctx); err != nil {
				ended <- err
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		ended <- nil
	}()
	longest, most := time.Duration(0), int64(0)
	const n = 1600 // 160 MB
	for i := range n {
		began := time.Now()
		write(func(tx *Tx) (int64, error) {
			return tx.Exec("INSERT INTO t (x) VALUES (?)", bytes.Repeat([]byte{byte(i)}, 100_000))
		})
		longest = max(longest, time.Since(began))
		size, _, err := b.wal()
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, size)
	}
	cancel()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		t.Fatal(err)
	}
	if most > 3*walLong {
		t.Errorf("the WAL grew to %d MiB of %d written", most>>20, n*100_000>>20)
	}
	t.Logf("the WAL grew to %d MiB; the longest write took %v", most>>20, longest)
	err = b.read(t.Context(), func(tx *Tx) error {
		got := int64(0)
		_, err := tx.Get([]any{&got}, "SELECT count(*) FROM t")
		if got != n {
			t.Errorf("%d rows, %d were written", got, n)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
