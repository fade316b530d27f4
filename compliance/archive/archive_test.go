package archive_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/archive"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func on(c *homeserver.Config) { c.Compliance.Archive, c.Compliance.Notice = true, false }

// with opens the archive beside the server, as the command line does.
func with(t *testing.T, hs *hstest.Server, fn func(ctx context.Context, a *archive.Archive)) {
	t.Helper()
	err := homeserver.WithArchive(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "verify", func(ctx context.Context, a *archive.Archive) error {
		fn(ctx, a)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, a *archive.Archive, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := a.Store.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// settle waits until all that is there is in the archive.
func settle(t *testing.T, a *archive.Archive) {
	t.Helper()
	for end := time.Now().Add(testkit.Patience); ; time.Sleep(50 * time.Millisecond) {
		waits := int64(0)
		read(t, a, func(tx *store.Tx) error {
			h, _, err := tx.ArchiveHead()
			if err == nil {
				waits, err = tx.CountUnarchived(h.NID)
			}
			return err
		})
		if waits == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d events are not archived", waits)
		}
	}
}

// TestArchive sends, edits and redacts, has members come and go, deletes the room, and looks at what the archive says of it.
func TestArchive(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		boss := hs.User("boss")
		if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "boss", "admin", true); err != nil {
			t.Fatal(err)
		}
		room := alice.CreateRoom("public_chat")
		before := alice.Text(room, "before bob")
		bob.Join(room)
		said := bob.Text(room, "the first word 第一")
		edit := bob.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"* second","m.new_content":{"msgtype":"m.text","body":"second"},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, said))
		bob.Must(t, "PUT", `{"reason":"oops"}`, "/v3/rooms/%s/redact/%s/%s", room, said, bob.Txn())
		bob.Leave(room)
		after := alice.Text(room, "after bob")
		// The room goes while its last events are new: what the archive had not read is kept for it.
		boss.Must(t, "DELETE", `{"purge":true}`, "/_synapse/admin/v2/rooms/%s", room)
		testkit.Eventually(t, "the room is gone", func() bool {
			return strings.Contains(string(boss.Do(t, "GET", "", "/_synapse/admin/v2/rooms/%s/delete_status", room).Body), `"complete"`)
		})
		with(t, hs, func(ctx context.Context, a *archive.Archive) {
			settle(t, a)
			members := func(e *store.ArchiveEntry) string {
				var in []string
				read(t, a, func(tx *store.Tx) error {
					return tx.ArchiveMembers(e.Room, e.Ord, func(user string, membership int64) {
						if membership == 2 {
							in = append(in, id.UserID(user).Localpart())
						}
					})
				})
				return strings.Join(in, " ")
			}
			for _, tc := range []struct {
				event    id.EventID
				versions int
				body, in string
			}{
				{before, 1, "before bob", "alice"},
				{said, 3, "the first word 第一", "alice bob"},
				{edit, 1, "* second", "alice bob"},
				{after, 1, "after bob", "alice"},
			} {
				var found []store.ArchiveEntry
				read(t, a, func(tx *store.Tx) (err error) {
					found, err = tx.ArchiveVersions(string(tc.event), 10)
					return err
				})
				if len(found) != tc.versions {
					t.Errorf("%s: %d versions, want %d", tc.body, len(found), tc.versions)
					continue
				}
				if !strings.Contains(string(found[0].Body), tc.body) {
					t.Errorf("archived: %s, want %s", found[0].Body, tc.body)
				}
				if got := members(&found[0]); got != tc.in {
					t.Errorf("%s: in the room were %q, want %q", tc.body, got, tc.in)
				}
			}
			read(t, a, func(tx *store.Tx) error {
				rooms, err := tx.ArchiveRooms(nil, []string{string(room)})
				if len(rooms) != 1 || !rooms[0].Deleted {
					t.Errorf("rooms of the archive: %+v", rooms)
				}
				return err
			})
			if err := a.Note(ctx); err != nil {
				t.Fatal(err)
			}
			r, err := a.Verify(ctx, "")
			if err != nil || len(r.Problems) > 0 || r.Noted == 0 || r.Pending != 0 || r.Entries < 12 {
				t.Errorf("verify: %+v, %v", r, err)
			}
		})
	}, on)
}

// TestTwoNodes has two servers on one database, both with the archive on: one of them writes, and when it stops the other goes
// on. The chain has no gap, no fork and nothing twice.
func TestTwoNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	nodes := []*hstest.Server{hstest.Start(t, db, on), hstest.Start(t, db, on)}
	alice, bob := nodes[0].User("alice"), nodes[1].User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	want := map[id.EventID]bool{}
	var mu sync.Mutex
	talk := func(n int, who ...*hstest.Client) {
		var wg sync.WaitGroup
		for _, c := range who {
			wg.Go(func() {
				for i := range n {
					sent := c.Text(room, fmt.Sprint("both talk ", i))
					mu.Lock()
					want[sent] = true
					mu.Unlock()
				}
			})
		}
		wg.Wait()
	}
	talk(30, alice, bob)
	time.Sleep(1500 * time.Millisecond) // so that one of them has begun
	nodes[0].Stop()
	talk(30, bob)
	with(t, nodes[1], func(ctx context.Context, a *archive.Archive) {
		settle(t, a)
		seen := map[string]int{}
		read(t, a, func(tx *store.Tx) error {
			rows, err := tx.ArchiveRange(0, 1<<40, 10_000)
			for i := range rows {
				seen[rows[i].EventID]++
			}
			return err
		})
		for e := range want {
			if seen[string(e)] != 1 {
				t.Errorf("%s is in the archive %d times", e, seen[string(e)])
			}
		}
		if r, err := a.Verify(ctx, ""); err != nil || len(r.Problems) > 0 {
			t.Errorf("verify: %+v, %v", r, err)
		}
	})
}

// TestPurgedBeforeRead deletes a room while nobody archives, between two runs of the server.
func TestPurgedBeforeRead(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("private_chat")
		said := alice.Text(room, "soon gone")
		alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, said, alice.Txn())
		hs.Stop()
		with(t, hs, func(ctx context.Context, a *archive.Archive) {
			if _, err := a.Step(ctx); err != nil { // turns it on, archives nothing
				t.Fatal(err)
			}
			nid := int64(0)
			read(t, a, func(tx *store.Tx) error {
				r, _, err := tx.RoomByID(string(room))
				nid = r.NID
				return err
			})
			err := a.Store.Write(ctx, func(tx *store.Tx) error {
				if err := tx.DropRoom(nid); err != nil {
					return err
				}
				_, err := tx.PurgeRoom(nid, 1000)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := a.All(ctx); err != nil {
				t.Fatal(err)
			}
			read(t, a, func(tx *store.Tx) error {
				found, err := tx.ArchiveVersions(string(said), 10)
				if len(found) != 2 || !strings.Contains(string(found[0].Body), "soon gone") {
					t.Errorf("archived: %d versions", len(found))
				}
				return err
			})
			if r, err := a.Verify(ctx, ""); err != nil || len(r.Problems) > 0 {
				t.Errorf("verify: %+v, %v", r, err)
			}
		})
	})
}

// TestVerify breaks the archive in every way and looks whether the first broken entry is named.
func TestVerify(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("private_chat")
		for i := range 20 {
			alice.Text(room, fmt.Sprint("message ", i))
		}
		hs.Stop()
		with(t, hs, func(ctx context.Context, a *archive.Archive) {
			if err := a.All(ctx); err != nil {
				t.Fatal(err)
			}
			if err := a.Note(ctx); err != nil {
				t.Fatal(err)
			}
			report, err := a.Verify(ctx, "")
			if err != nil || len(report.Problems) > 0 || report.Noted == 0 {
				t.Fatalf("verify: %+v, %v", report, err)
			}
			if r, err := a.Verify(ctx, "1:"+strings.Repeat("ab", 32)); err != nil || len(r.Problems) != 1 {
				t.Errorf("another head: %+v, %v", r, err)
			}
			var e store.ArchiveEntry
			read(t, a, func(tx *store.Tx) error {
				rows, err := tx.ArchiveRange(10, 1<<40, 1)
				e = rows[0]
				return err
			})
			for _, tc := range []struct {
				name, spoil, mend, says string
				nid                     int64
			}{
				{"time", `UPDATE archive_entries SET ts = ts + 1 WHERE nid = $1`, `UPDATE archive_entries SET ts = ts - 1 WHERE nid = $1`, "changed", e.NID},
				{"target", `UPDATE archive_entries SET target = 'x' WHERE nid = $1`, `UPDATE archive_entries SET target = NULL WHERE nid = $1`, "changed", e.NID},
				{"moved", `UPDATE archive_entries SET room = room + 100 WHERE nid = $1`, `UPDATE archive_entries SET room = room - 100 WHERE nid = $1`, "changed", e.NID},
				{"removed", `UPDATE archive_entries SET nid = nid + 1000000 WHERE nid = $1`, `UPDATE archive_entries SET nid = nid - 1000000 WHERE nid = $1 + 1000000`, "removed", e.NID},
				{"inserted", `INSERT INTO archive_entries SELECT -1, room, ord, event_id, status, ts, archived, membership, usr, target, body FROM archive_entries WHERE nid = $1`,
					`DELETE FROM archive_entries WHERE nid = -1 AND $1 > 0`, "", 0},
				{"batch", `UPDATE archive_batches SET created = created + 1 WHERE number = 1 AND $1 > 0`, `UPDATE archive_batches SET created = created - 1 WHERE number = 1 AND $1 > 0`, "batch was changed", 0},
				{"head", `UPDATE archive_head SET number = 0 WHERE $1 > 0`, `UPDATE archive_head SET number = (SELECT max(number) FROM archive_batches) WHERE $1 > 0`, "not in the chain", 0},
			} {
				exec := func(sql string) {
					t.Helper()
					err := a.Store.Write(ctx, func(tx *store.Tx) error {
						n, err := tx.Exec(sql, e.NID)
						if err == nil && n == 0 {
							err = fmt.Errorf("nothing was changed")
						}
						return err
					})
					if err != nil {
						t.Fatal(tc.name, err)
					}
				}
				exec(tc.spoil)
				r, err := a.Verify(ctx, "")
				if err != nil || len(r.Problems) == 0 {
					t.Errorf("%s: found nothing: %v", tc.name, err)
				} else if p := r.Problems[0]; tc.nid != 0 && p.NID != tc.nid || !strings.Contains(fmt.Sprint(r.Problems), tc.says) {
					t.Errorf("%s: found %v", tc.name, r.Problems)
				}
				exec(tc.mend)
			}
			if r, err := a.Verify(ctx, report.Head); err != nil || len(r.Problems) > 0 {
				t.Errorf("mended: %+v, %v", r, err)
			}
		})
	}, on)
}
