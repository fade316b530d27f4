package room_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

const (
	alice = id.UserID("@alice:test")
	bob   = id.UserID("@bob:test")
	eve   = id.UserID("@eve:test")
)

// node is one process's rooms on a database.
type node struct {
	*room.Rooms
	s *store.Store
}

func start(t testing.TB, cfg store.Config) node {
	t.Helper()
	s, err := store.Open(context.Background(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	rs := room.New(room.Deps{Store: s, ServerName: "test", Logger: slog.New(slog.DiscardHandler),
		Key: event.SigningKey{KeyID: "ed25519:a", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	followCtx, stopFollow := context.WithCancel(context.Background())
	follow := make(chan error, 1)
	go func() { follow <- s.Follow(followCtx, []store.Listener{rs.Listener()}, nil) }()
	<-s.Following()
	wg.Go(func() {
		if err := rs.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		stopFollow()
		if err := <-follow; err != nil {
			t.Errorf("follow: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return node{rs, s}
}

func key(s string) *string { return &s }

func state(typ, stateKey, content string, sender id.UserID) room.Draft {
	return room.Draft{Type: typ, StateKey: key(stateKey), Content: []byte(content), Sender: sender}
}

func message(sender id.UserID, body, txn string) room.Draft {
	d := room.Draft{Type: "m.room.message", Content: []byte(fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, body)), Sender: sender, Device: "DEV"}
	if txn != "" {
		d.Txn = "send/m.room.message/" + txn
	}
	return d
}

// publicRoom makes a room of alice's that anybody may join.
func publicRoom(t testing.TB, n node, version string) id.RoomID {
	t.Helper()
	v, ok := event.LookupVersion(version)
	if !ok {
		t.Fatalf("no room version %s", version)
	}
	create := `{"room_version":"` + version + `"}`
	levels := `{"users":{"@alice:test":100}}`
	switch version {
	case "12":
		levels = `{}`
	case "11":
	default:
		create = `{"room_version":"` + version + `","creator":"@alice:test"}`
	}
	roomID, err := n.CreateRoom(context.Background(), v, alice, []byte(create), []room.Draft{
		state("m.room.member", string(alice), `{"membership":"join"}`, alice),
		state("m.room.power_levels", "", levels, alice),
		state("m.room.join_rules", "", `{"join_rule":"public"}`, alice),
	}, room.RoomMeta{})
	if err != nil {
		t.Fatalf("create room of version %s: %v", version, err)
	}
	return roomID
}

func send(t testing.TB, n node, roomID id.RoomID, d room.Draft) id.EventID {
	t.Helper()
	eventID, err := n.Send(context.Background(), roomID, d)
	if err != nil {
		t.Fatalf("send %s by %s: %v", d.Type, d.Sender, err)
	}
	return eventID
}

// TestEveryVersion makes a room, joins, sends, redacts and reads it back after a restart, in every room version.
func TestEveryVersion(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		n := start(t, cfg)
		for _, v := range event.Versions() {
			roomID := publicRoom(t, n, v.ID)
			if _, err := n.Send(ctx, roomID, message(eve, "no", "")); !mxerr.Is(err, "M_FORBIDDEN") {
				t.Errorf("version %s: a stranger's message: %v, want M_FORBIDDEN", v.ID, err)
			}
			send(t, n, roomID, state("m.room.member", string(bob), `{"membership":"join"}`, bob))
			first := send(t, n, roomID, message(bob, "你好", "t1"))
			if again := send(t, n, roomID, message(bob, "你好", "t1")); again != first {
				t.Errorf("version %s: the repeated transaction id gave %s, want %s", v.ID, again, first)
			}
			send(t, n, roomID, room.Draft{Type: "m.room.redaction", Content: []byte(`{"reason":"x"}`), Redacts: first, Sender: bob})
			for what, reader := range map[string]node{"live": n, "fresh": start(t, cfg)} {
				r, err := reader.Room(ctx, roomID)
				if err != nil {
					t.Fatal(err)
				}
				if r.JoinedCount() != 2 || r.Membership(bob) != room.MembershipJoin || r.JoinRule() != "public" {
					t.Errorf("version %s, %s: joined %d, bob %s, rule %s", v.ID, what, r.JoinedCount(), r.Membership(bob), r.JoinRule())
				}
				e, err := reader.EventByID(ctx, first)
				if err != nil || e == nil {
					t.Fatalf("version %s, %s: %v", v.ID, what, err)
				}
				if string(e.PDU.Content()) != "{}" || e.RedactedBy == 0 || e.TxnID(bob, "DEV") != "t1" || e.TxnID(bob, "OTHER") != "" || e.TxnID(alice, "DEV") != "" {
					t.Errorf("version %s, %s: redacted event %s, by %d", v.ID, what, e.PDU.JSON(), e.RedactedBy)
				}
				evs, more, err := reader.Newest(ctx, r, store.MaxOrd-1, 100)
				if err != nil || more || len(evs) != 7 {
					t.Errorf("version %s, %s: %d events, more %v, %v", v.ID, what, len(evs), more, err)
				}
				for i := 1; i < len(evs); i++ {
					if evs[i].Ord <= evs[i-1].Ord || len(evs[i].PDU.PrevEvents()) != 1 || evs[i].PDU.PrevEvents()[0] != evs[i-1].ID() {
						t.Errorf("version %s, %s: event %d does not follow event %d", v.ID, what, i, i-1)
					}
				}
			}
		}
	})
}

// TestConcurrentSend lets many senders write at once on two processes and checks that every acknowledged event is there
// once, in one order, on both.
func TestConcurrentSend(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		a := start(t, cfg)
		b := a
		if cfg.URL != "" {
			b = start(t, cfg) // SQLite is served by one process
		}
		roomID := publicRoom(t, a, "12")
		const senders, each = 8, 20
		users := make([]id.UserID, senders)
		for i := range users {
			users[i] = id.UserID(fmt.Sprintf("@u%d:test", i))
			send(t, a, roomID, state("m.room.member", string(users[i]), `{"membership":"join"}`, users[i]))
		}
		var mu sync.Mutex
		sent := map[id.EventID]bool{}
		var wg sync.WaitGroup
		for i, u := range users {
			wg.Go(func() {
				n := a
				if i%2 == 1 {
					n = b
				}
				for j := range each {
					d := message(u, "x", fmt.Sprint(j))
					if j%7 == 3 {
						d = state("m.room.member", string(u), fmt.Sprintf(`{"membership":"join","displayname":"n%d"}`, j), u)
					}
					eventID, err := n.Send(ctx, roomID, d)
					if err != nil {
						t.Errorf("send: %v", err)
						continue
					}
					mu.Lock()
					if sent[eventID] {
						t.Errorf("%s was given out twice", eventID)
					}
					sent[eventID] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		var orders [][]id.EventID
		for _, n := range []node{a, b, start(t, cfg)} {
			if err := n.s.CatchUp(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := n.Room(ctx, roomID)
			if err != nil {
				t.Fatal(err)
			}
			page, err := n.Timeline(ctx, r, room.TimelineQuery{From: -store.MaxOrd, Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			var ids []id.EventID
			for _, e := range page.Events {
				ids = append(ids, e.ID())
			}
			orders = append(orders, ids)
		}
		if want := 4 + senders + senders*each; len(orders[0]) != want {
			t.Errorf("%d events, want %d", len(orders[0]), want)
		}
		seen := map[id.EventID]bool{}
		for _, x := range orders[0] {
			seen[x] = true
		}
		for x := range sent {
			if !seen[x] {
				t.Errorf("%s was acknowledged and is not there", x)
			}
		}
		for i := 1; i < len(orders); i++ {
			if fmt.Sprint(orders[i]) != fmt.Sprint(orders[0]) {
				t.Errorf("reader %d sees another order", i)
			}
		}
	})
}

// TestBanWhileOthersWrite bans a user on one process while the user writes on another: nothing is accepted after the ban.
func TestBanWhileOthersWrite(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		a := start(t, cfg)
		b := a
		if cfg.URL != "" {
			b = start(t, cfg)
		}
		roomID := publicRoom(t, a, "11")
		send(t, b, roomID, state("m.room.member", string(bob), `{"membership":"join"}`, bob))
		done := make(chan struct{})
		go func() {
			defer close(done)
			for i := range 2000 {
				if _, err := b.Send(ctx, roomID, message(bob, fmt.Sprint(i), "")); err != nil {
					if !mxerr.Is(err, "M_FORBIDDEN") {
						t.Errorf("message %d: %v", i, err)
					}
					return
				}
			}
		}()
		for range 20 {
			send(t, a, roomID, message(alice, "hello", ""))
		}
		ban := send(t, a, roomID, state("m.room.member", string(bob), `{"membership":"ban"}`, alice))
		<-done
		r, err := a.Room(ctx, roomID)
		if err != nil {
			t.Fatal(err)
		}
		page, err := a.Timeline(ctx, r, room.TimelineQuery{From: -store.MaxOrd, Limit: 10000})
		if err != nil {
			t.Fatal(err)
		}
		banned := false
		for _, e := range page.Events {
			if e.ID() == ban {
				banned = true
			} else if banned && e.PDU.Sender() == bob {
				t.Fatalf("an event of bob's after his ban: %s", e.PDU.JSON())
			}
		}
		if !banned {
			t.Fatal("the ban is not there")
		}
	})
}

// TestAliasTaken refuses the second room with an alias, and neither the room nor its neighbours in the batch suffer.
func TestAliasTaken(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		ctx := context.Background()
		n := start(t, cfg)
		v, _ := event.LookupVersion("12")
		var mu sync.Mutex
		made, taken := 0, 0
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				_, err := n.CreateRoom(ctx, v, alice, []byte(`{"room_version":"12"}`), []room.Draft{
					state("m.room.member", string(alice), `{"membership":"join"}`, alice),
				}, room.RoomMeta{Aliases: []id.RoomAlias{"#one:test"}})
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil:
					made++
				case mxerr.Is(err, "M_ROOM_IN_USE"):
					taken++
				default:
					t.Errorf("create: %v", err)
				}
			})
		}
		wg.Wait()
		if made != 1 || taken != 7 {
			t.Errorf("made %d, taken %d", made, taken)
		}
		u, err := n.User(ctx, alice)
		if err != nil || len(u.Rooms()) != 1 {
			t.Errorf("alice is in %d rooms, %v", len(u.Rooms()), err)
		}
	})
}

func BenchmarkSend(b *testing.B) {
	n := start(b, store.Config{DataDir: b.TempDir()})
	roomID := publicRoom(b, n, "12")
	b.ReportAllocs()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := n.Send(context.Background(), roomID, message(alice, "hello world", "")); err != nil && !errors.Is(err, context.Canceled) {
				b.Error(err)
			}
		}
	})
}
