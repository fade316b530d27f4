package store_test

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestFullDiskInAGroup lets SQLite run out of pages in the middle of a commit group. It rolls back the whole transaction
// then, not only the savepoint: nobody else's rows may be committed by themselves, and no row may be there without its entry.
func TestFullDiskInAGroup(t *testing.T) {
	s := storetest.Open(t, store.Config{DataDir: t.TempDir()})
	var pages int64
	err := s.Write(t.Context(), func(tx *store.Tx) error {
		if _, err := tx.Get([]any{&pages}, "PRAGMA page_count"); err != nil {
			return err
		}
		var limit int64
		_, err := tx.Get([]any{&limit}, fmt.Sprintf("PRAGMA max_page_count = %d", pages+8))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const writers = 12
	var wg sync.WaitGroup
	errs := make([]error, writers)
	insert := func(tx *store.Tx, key string, size int) error {
		_, err := tx.Exec(`INSERT INTO server_settings (key, value) VALUES ($1, $2)`, key, bytes.Repeat([]byte{7}, size))
		return err
	}
	wg.Go(func() { // holds the writer, so that the others become one group
		err := s.Write(t.Context(), func(*store.Tx) error { time.Sleep(100 * time.Millisecond); return nil })
		if err != nil {
			t.Error(err)
		}
	})
	time.Sleep(20 * time.Millisecond)
	for i := range writers {
		wg.Go(func() {
			errs[i] = s.Write(t.Context(), func(tx *store.Tx) error {
				if _, err := tx.Announce(store.Entry{Kind: store.KindUser, User: fmt.Sprint(i)}); err != nil {
					return err
				}
				if err := insert(tx, fmt.Sprint("first ", i), 10); err != nil {
					return err
				}
				size := 10
				if i%4 == 1 {
					size = 400_000 // more than there is room for
				}
				return insert(tx, fmt.Sprint("second ", i), size)
			})
		})
		time.Sleep(2 * time.Millisecond) // in this order
	}
	wg.Wait()
	rows := map[string]int64{}
	err = s.Read(t.Context(), func(tx *store.Tx) error {
		for i := range writers {
			for _, q := range []string{
				fmt.Sprintf(`SELECT count(*) FROM server_settings WHERE key = 'first %d'`, i),
				fmt.Sprintf(`SELECT count(*) FROM server_settings WHERE key = 'second %d'`, i),
				fmt.Sprintf(`SELECT count(*) FROM log WHERE usr = '%d'`, i),
			} {
				var n int64
				if _, err := tx.Get([]any{&n}, q); err != nil {
					return err
				}
				rows[q] = n
				if (n == 1) != (errs[i] == nil) {
					t.Errorf("write %d: %v, but %s gives %d", i, errs[i], q, n)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i, err := range errs {
		if err == nil {
			continue
		}
		refused++
		if e := mxerr.As(err); e == nil || e.Status != 503 {
			t.Errorf("write %d: %v, want 503", i, err)
		}
	}
	if refused < 3 || refused == writers {
		t.Errorf("%d of %d were refused: the test shows nothing", refused, writers)
	}
	var head, last int64
	if err := s.Read(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Get([]any{&head, &last}, `SELECT (SELECT pos FROM log_head), (SELECT max(pos) FROM log)`)
		return err
	}); err != nil || head != last || head != s.Applied() {
		t.Errorf("the head is %d, the last entry %d, applied %d: %v", head, last, s.Applied(), err)
	}
}
