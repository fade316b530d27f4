package clientsync_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/clientsync"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// slidingRows counts what is stored of connections; writes tells whether anything was written in between.
func (n *node) slidingRows() (conns, rooms, seqs int64) {
	n.t.Helper()
	err := n.store.Read(context.Background(), func(tx *store.Tx) error {
		if _, err := tx.Get([]any{&conns, &seqs}, `SELECT count(*), coalesce(sum(seq), 0) FROM sliding_conns`); err != nil {
			return err
		}
		_, err := tx.Get([]any{&rooms}, `SELECT count(*) FROM sliding_rooms`)
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return conns, rooms, seqs
}

func wantUnknown(t *testing.T, what string, a answer) {
	t.Helper()
	if a.status != http.StatusBadRequest || a.errcode != "M_UNKNOWN_POS" {
		t.Errorf("%s: %d %s, want 400 M_UNKNOWN_POS", what, a.status, a.body)
	}
}

func TestSlidingPos(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r1 := alice.room(bob.client)
		body := list3575(`[[0,9]]`, 5, `[["m.room.member","$LAZY"]]`, "")
		bob.next(body)
		first := bob.pos
		r2 := alice.room(bob.client)
		e := alice.text(r1, "x")

		// a retry gives the same again
		for range 3 {
			m := bob.peekAt(body, "")
			wantRooms(t, "retry", m, r1, r2)
			wantIDs(t, "retry", roomOf(m, r1), e)
			want(t, "retry: initial", roomOf(m, r2)["initial"], true)
		}
		bob.next(body)
		second := bob.pos
		wantRooms(t, "the new pos", bob.next(body))
		wantUnknown(t, "a pos whose successor was used", (&slide{client: bob.client, pos: first}).try(body))

		// new events alone write nothing
		_, _, before := n.slidingRows()
		for i := range 3 {
			e := alice.text(r1, fmt.Sprint("y", i))
			wantIDs(t, "an event", roomOf(bob.next(body), r1), e)
		}
		if _, _, after := n.slidingRows(); after != before {
			t.Errorf("responses with new events alone wrote %d states", after-before)
		}

		for what, s := range map[string]*slide{
			"another device":     {client: n.client("bob", "B2"), pos: bob.pos},
			"another user":       {client: n.client("alice", "B"), pos: bob.pos},
			"a sync token":       {client: bob.client, pos: strings.Split(bob.pos, "~")[0]},
			"no token":           {client: bob.client, pos: "5"},
			"no numbers":         {client: bob.client, pos: second + "x"},
			"another connection": {client: bob.client, pos: strings.Split(bob.pos, "~")[0] + "~77.1"},
			"a later state":      {client: bob.client, pos: strings.Split(bob.pos, ".")[0] + "." + strings.Split(bob.pos, ".")[1] + ".99"},
			"another epoch":      {client: bob.client, pos: strings.Replace(bob.pos, "s1_1_", "s1_2_", 1)},
			"the future":         {client: bob.client, pos: strings.Replace(bob.pos, "s1_1_", "s1_1_9", 1)},
		} {
			wantUnknown(t, what, s.try(body))
		}
		wantUnknown(t, "another conn_id", bob.try(strings.Replace(body, "{", `{"conn_id":"x",`, 1)))

		// a new connection takes the place of the one of the same name
		old := bob.pos
		bob.pos = ""
		bob.next(body)
		wantUnknown(t, "replaced", (&slide{client: bob.client, pos: old}).try(body))
		// others stand beside it, and the oldest go when there are too many
		for i := range 20 {
			s := &slide{client: bob.client}
			s.next(strings.Replace(body, "{", fmt.Sprintf(`{"conn_id":"c%d",`, i), 1))
			n.pass(time.Second)
		}
		if conns, _, _ := n.slidingRows(); conns != 16 {
			t.Errorf("%d connections of a device", conns)
		}

		// a device that is deleted takes them along
		err := n.store.Write(context.Background(), func(tx *store.Tx) error { return clientsync.DeviceDeleted(tx, bob.user, bob.device) })
		if err != nil {
			t.Fatal(err)
		}
		if conns, rooms, _ := n.slidingRows(); conns+rooms != 0 {
			t.Errorf("of a deleted device %d connections and %d rooms are left", conns, rooms)
		}
	})
}

func TestSlidingRestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r1, r2 := alice.room(bob.client), alice.room(bob.client)
		body := list3575(`[[0,0]]`, 3, `[["m.room.member","$LAZY"],["m.room.topic",""]]`, "")
		bob.next(body)
		bob.next(list3575(`[[0,9]]`, 3, `[["m.room.member","$LAZY"],["m.room.topic",""]]`, ""))
		alice.text(r1, "x")
		bob.next(body)
		missed := alice.text(r2, "missed")
		alice.text(r1, "y")
		bob.next(body)
		retry := *bob
		e := alice.text(r1, "z")
		bob.next(body)
		n.stop()
		n = start(t, cfg)
		alice, bob, again := alice.on(n), bob.at(n), retry.at(n)
		wantIDs(t, "the pos before", roomOf(again.peekAt(body, ""), r1), e)
		wantRooms(t, "nothing new", bob.next(body))
		e2 := alice.text(r2, "now")
		m := bob.next(body)
		wantIDs(t, "what was missed", roomOf(m, r2), missed, e2)
		if x := roomOf(m, r2); x["initial"] != nil || x["required_state"] != nil {
			t.Errorf("told again after the restart: %v", x)
		}
	})
}

func TestSlidingTwoNodes(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	n1, n2 := start(t, cfg), start(t, cfg)
	alice, bob := n1.client("alice", "A"), &slide{client: n1.client("bob", "B")}
	body := list3575(`[[0,9]]`, 3, `[["m.room.member","$LAZY"]]`, "")
	r := alice.room(bob.client)
	wantRooms(t, "first", bob.next(body), r)
	for i := range 12 {
		n := n1
		if i%2 == 0 {
			n = n2
		}
		e := alice.on(n1).text(r, fmt.Sprint(i))
		made := alice.on(n2).room(bob.client.on(n2))
		bob = bob.at(n)
		var m map[string]any
		for range 100 { // the other node's events may take a moment
			if m = bob.peekAt(body, ""); roomOf(m, made)["joined_count"] == 2.0 && roomOf(m, r) != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		m = bob.next(body)
		wantRooms(t, fmt.Sprint("round ", i), m, r, made)
		wantIDs(t, fmt.Sprint("round ", i), roomOf(m, r), e)
	}
	// a response that got lost, and the retry lands elsewhere
	e := alice.text(r, "last")
	lost := *bob
	lost.at(n1).next(body)
	made := alice.room(bob.client.on(n1))
	bob.at(n1).peekAt(body, "")
	bob = bob.at(n2)
	var m map[string]any
	for range 100 {
		if m = bob.peekAt(body, ""); roomOf(m, made)["joined_count"] == 2.0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	wantRooms(t, "retry", m, r, made)
	wantIDs(t, "retry", roomOf(m, r), e)
	bob.next(body)
	wantRooms(t, "after the retry", bob.at(n1).next(body))
}

func TestSlidingLongPoll(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r1, r2 := alice.room(bob.client), alice.room(bob.client)
		body := ext3575(1, `"typing":{"enabled":true},"receipts":{"enabled":true},"account_data":{"enabled":true},"to_device":{"enabled":true},"e2ee":{"enabled":true}`)
		bob.register()
		bob.next(body)
		began := time.Now()
		bob.peekAt(body, "100")
		if d := time.Since(began); d < 90*time.Millisecond {
			t.Errorf("an answer without news after %v", d)
		}
		e := alice.text(r2, "before")
		last := bob.pos
		bob.next(body)
		_ = last
		for what, act := range map[string]func(){
			"a message":     func() { alice.text(r2, "x") },
			"another room":  func() { alice.text(r1, "x"); alice.text(r2, "x") },
			"typing":        func() { alice.must("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r2, alice.user) },
			"a receipt":     func() { alice.receipt(r2, "m.read", e, `{}`) },
			"account data":  func() { bob.accountData("x.y", `{}`) },
			"to-device":     func() { alice.toDevice(bob.client, "t1", `{}`) },
			"device lists":  func() { n.listChanged(alice.user) },
			"an invitation": func() { alice.member(alice.room(), bob.user, "invite") },
		} {
			done := make(chan map[string]any)
			began := time.Now()
			go func() { done <- bob.peekAt(body, "30000") }()
			time.Sleep(30 * time.Millisecond)
			act()
			m := <-done
			if d := time.Since(began); d > 25*time.Second {
				t.Errorf("%s woke nobody", what)
			}
			bob.pos, _ = m["pos"].(string)
			bob.next(ext3575(1, ``)) // the acts stand for themselves
			alice.text(r2, "top")
			bob.next(body)
		}
	})
}
