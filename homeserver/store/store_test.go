package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestLogOrder writes from many goroutines, some of which fail, and checks that listeners see every position once and in order.
func TestLogOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		var mu sync.Mutex
		var seen []int64
		s := storetest.Open(t, cfg, store.Listener{Apply: func(es []store.Entry) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range es {
				seen = append(seen, e.Pos)
			}
		}})
		ctx := context.Background()
		errRefused := errors.New("refused")
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 25 {
					err := s.Write(ctx, func(tx *store.Tx) error {
						for range 1 + i%3 {
							if _, err := tx.Announce(store.Entry{Kind: store.KindUser, User: fmt.Sprint(w)}); err != nil {
								return err
							}
						}
						if i%5 == 4 {
							return errRefused
						}
						return nil
					})
					if (i%5 == 4) != errors.Is(err, errRefused) || (i%5 != 4 && err != nil) {
						t.Errorf("write %d: %v", i, err)
					}
				}
			})
		}
		wg.Wait()
		mu.Lock()
		defer mu.Unlock()
		if int64(len(seen)) != s.Applied() {
			t.Fatalf("%d entries seen, applied is %d", len(seen), s.Applied())
		}
		for i, p := range seen {
			if p != int64(i+1) {
				t.Fatalf("entry %d has position %d", i, p)
			}
		}
		err := s.Read(ctx, func(tx *store.Tx) error {
			es, err := tx.ReadLog(0, 10_000)
			if err != nil {
				return err
			}
			if len(es) != len(seen) {
				t.Errorf("%d rows in the log, %d seen", len(es), len(seen))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestTwoProcesses lets one process see what another commits.
func TestTwoProcesses(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		got := make(chan store.Entry, 100)
		a := storetest.Open(t, cfg)
		storetest.Open(t, cfg, store.Listener{
			Hydrate: func(_ context.Context, es []store.Entry) error {
				for i := range es {
					es[i].Payload = "loaded"
				}
				return nil
			},
			Apply: func(es []store.Entry) {
				for _, e := range es {
					got <- e
				}
			}})
		for i := range 3 {
			err := a.Write(context.Background(), func(tx *store.Tx) error {
				_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: fmt.Sprint("@u", i)})
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			select {
			case e := <-got:
				if e.User != fmt.Sprint("@u", i) || e.Payload != "loaded" || e.Pos != int64(i+1) {
					t.Errorf("entry %d: %+v", i, e)
				}
			case <-time.After(testkit.Patience):
				t.Fatal("the other process saw nothing in 5 s")
			}
		}
	})
}

// TestOddStrings sends U+0000, broken UTF-8, odd Unicode and case twins through both databases.
func TestOddStrings(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := storetest.Open(t, cfg)
		ctx := context.Background()
		put := func(k string, v []byte) error {
			return s.Write(ctx, func(tx *store.Tx) error {
				_, err := tx.Exec(`INSERT INTO server_settings (key, value) VALUES ($1, $2)`, k, store.Content(v))
				return err
			})
		}
		for _, bad := range []string{"a\x00b", "a\xffb"} {
			if err := put(bad, []byte("x")); !mxerr.Is(err, "M_INVALID_PARAM") {
				t.Errorf("key %q: got %v, want M_INVALID_PARAM", bad, err)
			}
		}
		good := []string{"", "Key", "key", "ключ", "密钥", "e\u0301", "é", "😀", "\ufffd", "\u202e"}
		for _, k := range good {
			if err := put(k, []byte("\x00"+k+"\xff")); err != nil {
				t.Fatalf("key %q: %v", k, err)
			}
		}
		err := s.Read(ctx, func(tx *store.Tx) error {
			for _, k := range good {
				var v store.Content
				found, err := tx.Get([]any{&v}, `SELECT value FROM server_settings WHERE key = $1`, k)
				if err != nil || !found || string(v) != "\x00"+k+"\xff" {
					t.Errorf("key %q: found %v, value %q, %v", k, found, v, err)
				}
			}
			var n int64
			if _, err := tx.Get([]any{&n}, `SELECT count(*) FROM server_settings WHERE key IN @text($1)`, good); err != nil || n != int64(len(good)) {
				t.Errorf("list: %d, %v", n, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestFollower keeps its progress, repeats after an error and runs on one process at a time.
func TestFollower(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := storetest.Open(t, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		got := make(chan store.Entry, 100)
		fail := true
		done := make(chan error, 1)
		go func() {
			done <- s.RunFollower(ctx, "f", func(_ context.Context, es []store.Entry) error {
				if fail {
					fail = false
					return errors.New("first try fails")
				}
				for _, e := range es {
					got <- e
				}
				return nil
			})
		}()
		time.Sleep(300 * time.Millisecond) // a new follower begins at the head: let it take its lease first
		err := s.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: "@a"})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case e := <-got:
			if e.User != "@a" {
				t.Errorf("got %+v", e)
			}
		case <-time.After(testkit.Patience):
			t.Fatal("nothing in 10 s")
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
