package account

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// TestSessionCache checks that nothing that was read before a change is kept after it.
func TestSessionCache(t *testing.T) {
	const alice, bob = "@alice:x", "@bob:x"
	session := func(user id.UserID) *cachedSession { return &cachedSession{identity: web.Identity{UserID: user}} }
	a1, a2, b := store.HashToken("a1"), store.HashToken("a2"), store.HashToken("b")
	c := newSessionCache()
	c.put(a1, session(alice), 5)
	c.put(a2, session(alice), 5)
	c.put(b, session(bob), 5)
	c.apply([]store.Entry{{Pos: 6, Kind: store.KindEvent, User: alice}})
	if c.get(a1) == nil {
		t.Error("an event dropped a session")
	}
	c.apply([]store.Entry{{Pos: 7, Kind: store.KindSession, User: alice, Key: "PHONE"}})
	if c.get(a1) != nil || c.get(a2) != nil || c.get(b) == nil {
		t.Error("alice's sessions alone should be gone")
	}
	c.put(a1, session(alice), 6)
	if c.get(a1) != nil {
		t.Error("a session was kept that was read before the change")
	}
	c.put(a1, session(alice), 7)
	if c.get(a1) == nil {
		t.Error("a session was not kept that was read after the change")
	}
	c.apply([]store.Entry{{Pos: 9, Kind: store.KindReset}})
	c.put(b, session(bob), 8)
	if c.get(a1) != nil || c.get(b) != nil || len(c.byHash) != 0 || len(c.byUser) != 0 {
		t.Error("the log's place was lost, and something is still kept")
	}
}

func TestSessionCacheBound(t *testing.T) {
	c := newSessionCache()
	for i := range maxCached + 10 {
		c.put(store.HashToken(fmt.Sprint(i)), &cachedSession{identity: web.Identity{UserID: id.UserID(fmt.Sprint("@", i%1000))}}, 1)
	}
	if len(c.byHash) > maxCached || len(c.byHash) < maxCached/2 {
		t.Errorf("%d sessions are kept", len(c.byHash))
	}
	n := 0
	for _, of := range c.byUser {
		n += len(of)
	}
	if n != len(c.byHash) {
		t.Errorf("%d sessions by user, %d by token", n, len(c.byHash))
	}
}

func BenchmarkAuthenticate(b *testing.B) {
	a := New(Deps{ServerName: "x"})
	token := newToken(accessPrefix)
	a.cache.put(store.HashToken(token), &cachedSession{identity: web.Identity{UserID: "@alice:x"}}, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Authenticate(b.Context(), token); err != nil {
			b.Fatal(err)
		}
	}
}
