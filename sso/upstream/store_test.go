package upstream_test

import (
	"testing"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestUpstreamStore: what is kept between two requests is found once, and goes when its time has come.
func TestUpstreamStore(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		h := open(t, cfg)
		write := func(fn func(tx *store.Tx) error) {
			t.Helper()
			if err := h.store.Write(t.Context(), fn); err != nil {
				t.Fatal(err)
			}
		}
		take := func(name, provider string, now int64) (data []byte, found bool) {
			t.Helper()
			write(func(tx *store.Tx) error {
				var err error
				data, found, err = tx.TakeHandover(store.HashToken(name), provider, now)
				return err
			})
			return data, found
		}
		for _, name := range []string{"a", "b", "c"} {
			write(func(tx *store.Tx) error {
				return tx.InsertHandover(store.HashToken(name), "kc", []byte("data "+name), 100)
			})
		}
		if _, found := take("a", "other", 50); found {
			t.Error("another provider took it")
		}
		if data, found := take("a", "kc", 50); !found || string(data) != "data a" {
			t.Errorf("taken: %q %v", data, found)
		}
		if _, found := take("a", "kc", 50); found {
			t.Error("it was taken twice")
		}
		if _, found := take("b", "kc", 100); found {
			t.Error("it was taken too late")
		}
		user := h.user("alice")
		write(func(tx *store.Tx) error {
			for _, u := range []store.UpstreamSession{
				{User: user, Browser: "old", Provider: "kc", Subject: "s", Created: 10}, {User: user, Browser: "new", Provider: "kc", Subject: "s", Created: 90},
				{User: user, Device: "D", Provider: "kc", Subject: "s", Created: 10},
			} {
				if err := tx.PutUpstreamSession(u); err != nil {
					return err
				}
			}
			for what, expires := range map[string]int64{"x": 40, "y": 60} {
				if fresh, err := tx.MarkSeen(what, expires); err != nil || !fresh {
					t.Errorf("%s: %v %v", what, fresh, err)
				}
			}
			return tx.SweepUpstream(50, 80)
		})
		err := h.store.Read(t.Context(), func(tx *store.Tx) error {
			list, err := tx.UpstreamSessions("kc", "s", "")
			if err != nil || len(list) != 2 {
				t.Errorf("after the sweep: %+v", list)
			}
			x, err := tx.WasSeen("x")
			if err != nil {
				return err
			}
			y, err := tx.WasSeen("y")
			if x || !y {
				t.Errorf("seen: %v %v", x, y)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
