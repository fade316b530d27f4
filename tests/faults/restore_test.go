package faults_test

import (
	"net/http"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestRestore brings a backup back, of a time before clients' newest tokens. What was lost stays lost, but no token of that
// time hides anything of what comes after.
func TestRestore(t *testing.T) {
	eachDatabase(t, func(t *testing.T, databaseURL string) {
		old := startNode(t, nodeConfig{name: "before", databaseURL: databaseURL})
		alice, bob := register(t, old, "alice"), register(t, old, "bob")
		room := publicRoom(t, alice, bob)
		for i := range 20 {
			alice.send(t, room, "kept"+strconv.Itoa(i), "kept "+strconv.Itoa(i))
		}
		atBackup, deviceAtBackup := bob.syncToken(t), newReader(t, bob, room, 30)
		backup := filepath.Join(t.TempDir(), "backup")
		began := time.Now()
		old.command("backup", backup) // while the server runs
		backedUp := time.Since(began)

		// the tail that will be lost: more positions than what follows the restore at first
		bob.send(t, room, "first-lost", "lost at once")
		justAfter := bob.syncToken(t)
		for i := range 60 {
			alice.send(t, room, "lost"+strconv.Itoa(i), "lost "+strconv.Itoa(i))
		}
		future := bob.syncToken(t)
		if old.drain(); t.Failed() {
			return
		}

		database := ""
		if databaseURL != "" {
			database = storetest.EmptyPostgres(t)
		}
		restored := newNode(t, nodeConfig{name: "after", databaseURL: database})
		began = time.Now()
		restored.command("restore", backup)
		t.Logf("backup in %s, restore in %s", backedUp.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		t.Cleanup(restored.end)
		restored.start()
		alice.move(restored)
		bob.move(restored)

		// tokens of the lost tail, used before anything is sent, while positions are behind them, and when they are beyond
		readers := map[string]*reader{"at the backup": {since: atBackup}, "just behind it": {since: justAfter}, "far behind it": {since: future}, "at the backup, too": {since: deviceAtBackup.since}}
		late := map[string]*reader{"just behind it, used late": {since: justAfter}, "far behind it, used late": {since: future}}
		for _, r := range readers {
			r.t, r.c, r.room, r.limit, r.seen = t, bob, room, 30, map[string]bool{}
			if err := r.step(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if n := len(r.messages()); n > 0 {
				t.Errorf("right after the restore a sync brings %d events that were there before: first %q", n, r.messages()[0].body)
			}
		}
		var want []string
		for round := range 2 { // in the second one positions pass those of the lost tokens
			for i := range 50 {
				n := strconv.Itoa(100*round + i)
				want = append(want, alice.send(t, room, "new"+n, "new "+n))
			}
			for _, r := range readers {
				for range 3 {
					if err := r.step(t.Context(), 0); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		for name, r := range late {
			r.t, r.c, r.room, r.limit, r.seen = t, bob, room, 30, map[string]bool{}
			if err := r.step(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			readers[name] = r
		}
		for name, r := range readers {
			got := r.messages()
			if len(got) != len(want) {
				t.Errorf("a token of %s: %d events after the restore, want %d", name, len(got), len(want))
				continue
			}
			for i := range want {
				if got[i].id != want[i] {
					t.Errorf("a token of %s: event %d is %q", name, i, got[i].body)
					break
				}
			}
		}
		// what was lost is not shown, and its transaction ids are free for new messages
		for _, m := range bob.history(t, room, "", "") {
			if m.body == "lost at once" || m.body == "lost 3" {
				t.Errorf("%q is in the restored room", m.body)
			}
		}
		alice.send(t, room, "lost3", "lost 3, said again")
	})
}

// TestPostgresRewound brings PostgreSQL back at an earlier point in time below two running nodes, as a recovery does, or a
// standby that had not got everything. The nodes find out by themselves; tokens of the lost tail hide nothing.
func TestPostgresRewound(t *testing.T) {
	needFaults(t)
	dir, database := ownPostgres(t)
	a, b := startNode(t, nodeConfig{name: "A", databaseURL: database}), startNode(t, nodeConfig{name: "B", databaseURL: database})
	alice, bob := register(t, a, "alice"), register(t, a, "bob")
	bob.move(b)
	room := publicRoom(t, alice, bob)
	for i := range 20 {
		alice.send(t, room, "kept"+strconv.Itoa(i), "kept "+strconv.Itoa(i))
	}
	partner(t, "save", dir)
	kept := len(alice.history(t, room, "", ""))
	for i := range 60 {
		alice.send(t, room, "lost"+strconv.Itoa(i), "lost "+strconv.Itoa(i))
	}
	sameEnd(t, room, alice, bob)
	futureA, futureB := alice.syncToken(t), bob.syncToken(t)
	partner(t, "rewind", dir)
	began := time.Now()
	for _, c := range []*client{alice, bob} {
		testkit.Within(t, 20*time.Second, c.name+" cannot send after PostgreSQL came back", func() bool {
			got, err := c.do(t.Context(), "PUT", sendPath(room, "first"), text("first of "+c.name))
			return err == nil && got.status == http.StatusOK
		})
	}
	t.Logf("both nodes took messages %s after PostgreSQL was back at an earlier point", time.Since(began).Round(time.Millisecond))
	var want []string
	for i := range 100 {
		want = append(want, alice.send(t, room, "new"+strconv.Itoa(i), "new "+strconv.Itoa(i)))
	}
	sameEnd(t, room, alice, bob)
	c := startNode(t, nodeConfig{name: "C", databaseURL: database})
	third := newClient(c, "alice")
	third.user, third.token, third.device = alice.user, alice.token, alice.device
	for name, r := range map[string]*reader{
		"A's token on A": {c: alice, since: futureA}, "B's token on B": {c: bob, since: futureB}, "A's token on C": {c: third, since: futureA},
	} {
		r.t, r.room, r.limit, r.seen = t, room, 30, map[string]bool{}
		for range 3 {
			if err := r.step(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
		}
		got := r.messages()
		if len(got) != len(want)+2 {
			t.Errorf("%s: %d events after PostgreSQL was back, want %d", name, len(got), len(want)+2)
			continue
		}
		for i, id := range want {
			if got[i+2].id != id {
				t.Errorf("%s: event %d is %q", name, i, got[i+2].body)
				break
			}
		}
	}
	for _, who := range []*client{alice, bob, third} {
		history := who.history(t, room, "", "")
		if len(history) != kept+len(want)+2 {
			t.Errorf("%s sees %d events in the room, want %d", *who.base.Load(), len(history), kept+len(want)+2)
		}
	}
}
