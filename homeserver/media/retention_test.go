package media

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// write runs a transaction.
func (w *world) write(fn func(tx *store.Tx) error) {
	w.t.Helper()
	if err := w.Store.Write(context.Background(), fn); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) clean(at time.Time) {
	w.t.Helper()
	if err := w.Clean(context.Background(), at); err != nil {
		w.t.Fatal(err)
	}
}

// there tells by name which files are served.
func (w *world) there(files map[string]string) map[string]bool {
	w.t.Helper()
	out := map[string]bool{}
	for name, uri := range files {
		out[name] = w.req(bob, "HEAD", v1+"download/"+uri, nil).StatusCode == 200
	}
	return out
}

const month = 30 * 24 * time.Hour

// roomWith makes a room whose state has one event.
func roomWith(tx *store.Tx, nid int64, evType, stateKey, content string) error {
	if _, err := tx.Exec(`INSERT INTO rooms (nid, room_id, version, creator, created, state_version, last_pos, depth, extremities, published)
		VALUES ($1, $2, '12', $3, 1, 1, 1, 1, $4, 0)`, nid, "!"+evType, alice, []byte{}); err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO events (nid, room, ord, event_id, status, ts, is_state, body) VALUES ($1, $1, 1, $2, 0, 1, 1, $3)`,
		nid, "$"+evType, store.Content(`{"content":`+content+`}`)); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO room_state (room, type, state_key, nid) VALUES ($1, $2, $3, $1)`, nid, evType, stateKey)
	return err
}

// TestRetention: files that nobody fetches for longer than they are kept go, with their contents; what somebody fetched, what
// profiles and rooms show, and what administrators hid or protected stays.
func TestRetention(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{Retention: month})
		files := map[string]string{}
		for _, name := range []string{"forgotten", "fetched", "thumbnail", "avatar", "room", "pack", "mypack", "member", "banner", "hidden", "protected", "twin"} {
			files[name] = w.put([]byte(name), "text/plain", "")
		}
		files["thumbnail"] = w.put(encodePNG(t, quadrants(400, 400)), "image/png", "")
		files["again"] = w.put([]byte("twin"), "text/plain", "") // one content, two files
		id := func(name string) string { return strings.TrimPrefix(files[name], "example.com/") }
		w.write(func(tx *store.Tx) error {
			uri := "mxc://" + files["avatar"]
			fields := `{"org.example.banner":"mxc:\/\/` + strings.ReplaceAll(files["banner"], "/", `\/`) + `"}`
			if err := tx.SetProfile(store.Profile{User: bob, AvatarURL: &uri}); err != nil {
				return err
			}
			if err := tx.SetProfile(store.Profile{User: alice, Fields: store.Content(fields)}); err != nil {
				return err
			}
			if _, err := tx.ProtectMedia("example.com", id("protected"), true); err != nil {
				return err
			}
			if _, err := tx.HideMedia("example.com", []string{id("hidden")}, alice.String()); err != nil {
				return err
			}
			for nid, ev := range [][3]string{
				{"m.room.avatar", "", `{"url":"mxc://` + files["room"] + `"}`},
				{"im.ponies.room_emotes", "cats", `{"images":{"cat":{"url":"mxc://` + files["pack"] + `"}}}`},
				{"m.room.member", alice.String(), `{"membership":"join","avatar_url":"mxc://` + files["member"] + `"}`},
				{"m.room.topic", "", `{"topic":"mxc://` + files["forgotten"] + `"}`},
			} {
				if err := roomWith(tx, int64(nid+1), ev[0], ev[1], ev[2]); err != nil {
					return err
				}
			}
			if _, err := tx.Exec(`INSERT INTO memberships (usr, room, membership, nid, pos) VALUES ($1, 3, 2, 3, 1)`, alice); err != nil {
				return err
			}
			_, err := tx.Exec(`INSERT INTO account_data (usr, room, type, pos, body) VALUES ($1, 0, 'im.ponies.user_emotes', 1, $2)`, alice,
				store.Content(`{"images":{"dog":{"url":"mxc://`+files["mypack"]+`"}}}`))
			return err
		})
		now := time.Now()
		w.clean(now.Add(month - time.Hour))
		if got := w.there(files); !got["forgotten"] || !got["twin"] {
			t.Fatalf("deleted before their time: %v", got)
		}

		// All were used long ago, then two are looked at: what that notes counts.
		w.write(func(tx *store.Tx) error {
			_, err := tx.Exec(`UPDATE media SET created = $1, accessed = $1`, now.Add(-2*month).UnixMilli())
			return err
		})
		w.want(200, "", bob, "GET", v1+"download/"+files["fetched"], "")
		w.want(200, "", bob, "GET", v1+"thumbnail/"+files["thumbnail"]+"?width=32&height=32&method=crop", "")
		w.write(func(tx *store.Tx) error { // one of the two files of one content is new
			return tx.NoteMediaUse("example.com", []string{id("again")}, now.UnixMilli())
		})
		before, _ := w.files()
		w.clean(now)
		after, _ := w.files()
		if gone := before - after; gone != 0 { // contents stored just now stay for a day
			t.Errorf("%d new contents went", gone)
		}
		for name, want := range map[string]bool{
			"forgotten": false, "fetched": true, "thumbnail": true, "avatar": true, "room": true, "pack": true, "mypack": true, "member": true,
			"banner": true, "protected": true, "twin": false, "again": true,
		} {
			if got := w.there(map[string]string{name: files[name]})[name]; got != want {
				t.Errorf("%s is there: %v, want %v", name, got, want)
			}
		}
		w.write(func(tx *store.Tx) error {
			m, err := tx.Media("example.com", id("hidden"))
			if m == nil {
				t.Error("a hidden file was deleted")
			}
			return err
		})
		w.clean(now.Add(2 * month)) // the fetched ones too, now
		for name, want := range map[string]bool{"fetched": false, "thumbnail": false, "again": false, "avatar": true, "room": true} {
			if got := w.there(map[string]string{name: files[name]})[name]; got != want {
				t.Errorf("two months later %s is there: %v, want %v", name, got, want)
			}
		}
		// "fetched" and "again" (the content of "twin") went, and the image with its thumbnail; "forgotten" had lost its row before.
		if last, _ := w.files(); last != after-4 {
			t.Errorf("%d contents, %d before", last, after)
		}
	})
}

// TestRetentionPages: a page full of what must stay keeps nothing behind it; 0 keeps everything; the archive
// keeps what is deleted.
func TestRetentionPages(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w := newWorld(t, cfg, Config{})
		hash, size, err := w.keep(context.Background(), strings.NewReader("content"), 100)
		if err != nil {
			t.Fatal(err)
		}
		var first, last, pack string
		w.write(func(tx *store.Tx) error {
			for i := range cleanChunk + 10 {
				last = newMediaID()
				if err := tx.InsertMedia(store.Media{Origin: "example.com", ID: last, User: alice, Created: int64(i), Type: "a/b", Size: size, SHA256: hash}); err != nil {
					return err
				}
				if i == 0 {
					first, pack = last, `"mxc://example.com/`+last+`"`
				} else if i < cleanChunk {
					pack += `,"mxc://example.com/` + last + `"`
				}
			}
			if err := roomWith(tx, 1, "m.room.image_pack", "", `{"x":[`+pack+`]}`); err != nil {
				return err
			}
			_, err := tx.Exec(`INSERT INTO archive_head (id, active, number, nid, hash, noted, noted_at) VALUES (1, 1, 0, 0, $1, 0, 0)`, hash)
			return err
		})
		rows := func() (n int64) {
			w.write(func(tx *store.Tx) error {
				_, err := tx.Get([]any{&n}, `SELECT count(*) FROM media`)
				return err
			})
			return n
		}
		w.clean(time.Now().Add(100 * month))
		if n := rows(); n != cleanChunk+10 {
			t.Errorf("%d files are left by a server that keeps them for ever", n)
		}
		w.Config.Retention = month
		w.clean(time.Now())
		if n := rows(); n != cleanChunk {
			t.Errorf("%d files are left", n)
		}
		if a := w.req(bob, "GET", v1+"download/example.com/"+first, nil); a.StatusCode != 200 {
			t.Errorf("one of the pack: %d", a.StatusCode)
		}
		blob, _, err := w.OpenArchived(context.Background(), "example.com", last)
		if err != nil {
			t.Fatalf("the archive: %v", err)
		}
		_ = blob.Close()
	})
}

// TestUsesAreNoted: a use is noted once in half a day.
func TestUsesAreNoted(t *testing.T) {
	w := newWorld(t, store.Config{DataDir: t.TempDir()}, Config{})
	uri := w.put([]byte("x"), "text/plain", "")
	at := func(when time.Time) *store.Media {
		var f *store.Media
		if err := w.writeUses(context.Background(), when); err != nil {
			t.Fatal(err)
		}
		w.write(func(tx *store.Tx) (err error) {
			f, err = tx.Media("example.com", strings.TrimPrefix(uri, "example.com/"))
			return err
		})
		return f
	}
	w.want(200, "", bob, "GET", v1+"download/"+uri, "")
	later := time.Now().Add(time.Hour)
	if f := at(later); f.Accessed != f.Created {
		t.Error("a use right after the upload was written")
	}
	f := at(later)
	w.noteUse(f, time.UnixMilli(f.Created).Add(noteUseAfter))
	if f = at(later); f.Accessed != later.UnixMilli() {
		t.Errorf("noted %d, want %d", f.Accessed, later.UnixMilli())
	}
	if len(w.used.files) != 0 {
		t.Error("what was written is kept")
	}
}
