package clientsync_test

import (
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// ext3575 is a request for the newest rooms, as many as most says, and extensions.
func ext3575(most int, extensions string) string {
	return fmt.Sprintf(`{"lists":{"a":{"ranges":[[0,%d]],"timeline_limit":5,"required_state":[]}},"extensions":{%s}}`, most-1, extensions)
}

func extension(m map[string]any, path ...any) any {
	return at(m, append([]any{"extensions"}, path...)...)
}

func TestSlidingToDevice(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		alice.register()
		bob.register()
		body := func(since string, limit int) string {
			if since != "" {
				since = fmt.Sprintf(`,"since":%q`, since)
			}
			return fmt.Sprintf(`{"conn_id":"encryption","extensions":{"to_device":{"enabled":true,"limit":%d%s},"e2ee":{"enabled":true}}}`, limit, since)
		}
		m := bob.next(body("", 100))
		start, _ := extension(m, "to_device", "next_batch").(string)
		if start == "" || len(events(extension(m, "to_device", "events"))) != 0 {
			t.Fatalf("nothing waits: %v", m)
		}
		for i := range 3 {
			alice.toDevice(bob.client, fmt.Sprint("t", i), fmt.Sprintf(`{"n":%d}`, i))
		}
		read := func(m map[string]any) (out string, next string) {
			for _, e := range events(extension(m, "to_device", "events")) {
				out += fmt.Sprint(at(e, "content", "n"), at(e, "sender"), " ")
			}
			next, _ = extension(m, "to_device", "next_batch").(string)
			return out, next
		}
		got, second := read(bob.next(body(start, 2)))
		want(t, "two of three", any(got), "0@alice:test 1@alice:test ")
		got, again := read(bob.next(body(start, 2)))
		want(t, "asked again", any(got), "0@alice:test 1@alice:test ")
		want(t, "asked again", any(again), second)
		got, third := read(bob.next(body(second, 2)))
		want(t, "the third", any(got), "2@alice:test ")
		got, _ = read(bob.next(body(third, 2)))
		want(t, "no more", any(got), "")
		// another connection of the device has got them too
		other := &slide{client: bob.client}
		got, _ = read(other.next(body("", 100)))
		want(t, "acknowledged", any(got), "")
		bob.pos = other.pos
		if m := bob.next(`{"conn_id":"encryption","extensions":{"to_device":{"enabled":false}}}`); extension(m, "to_device") != nil {
			t.Error("an extension that is off answers")
		}
	})
}

func TestSlidingE2EE(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol, eve := &slide{client: n.client("alice", "A")}, n.client("bob", "B"), n.client("carol", "C"), n.client("eve", "E")
		r := alice.room(bob)
		body := `{"extensions":{"e2ee":{"enabled":true}}}`
		m := alice.next(body)
		if extension(m, "e2ee", "device_lists") != nil || extension(m, "e2ee", "device_one_time_keys_count") == nil || extension(m, "e2ee", "device_unused_fallback_key_types") == nil {
			t.Errorf("first: %v", m)
		}
		lists := func(what, changed, left string) {
			t.Helper()
			m := alice.next(body)
			c, _ := extension(m, "e2ee", "device_lists", "changed").([]any)
			l, _ := extension(m, "e2ee", "device_lists", "left").([]any)
			if fmt.Sprint(c) != changed || fmt.Sprint(l) != left {
				t.Errorf("%s: changed %v left %v, want %s %s", what, c, l, changed, left)
			}
		}
		n.listChanged(bob.user, eve.user)
		lists("bob's devices", "[@bob:test]", "[]")
		lists("nothing", "[]", "[]")
		n.listChanged(alice.user)
		lists("own devices", "[@alice:test]", "[]")
		carol.join(r)
		lists("carol came", "[@carol:test]", "[]")
		carol.leave(r)
		lists("carol went", "[]", "[@carol:test]")
	})
}

func TestSlidingAccountData(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r1, r2 := alice.room(bob.client), alice.room(bob.client)
		bob.accountData("x.global", `{"a":1}`)
		bob.roomData(r1, "x.room", `{"r":1}`)
		bob.roomData(r2, "x.room", `{"r":2}`)
		body := ext3575(1, `"account_data":{"enabled":true}`)
		types := func(m map[string]any, r id.RoomID) (out string) {
			v := extension(m, "account_data", "global")
			if r != "" {
				v = extension(m, "account_data", "rooms", string(r))
			}
			for _, e := range events(v) {
				if e["type"] != "m.push_rules" {
					out += fmt.Sprint(e["type"], e["content"], " ")
				}
			}
			return out
		}
		m := bob.next(body)
		want(t, "global", any(types(m, "")), "x.globalmap[a:1] ")
		want(t, "room in range", any(types(m, r2)), "x.roommap[r:2] ")
		want(t, "room out of range", any(types(m, r1)), "")
		rules := false
		for _, e := range events(extension(m, "account_data", "global")) {
			rules = rules || e["type"] == "m.push_rules"
		}
		if !rules {
			t.Error("the push rules are missing")
		}
		m = bob.next(body)
		want(t, "nothing new", any(types(m, "")+types(m, r2)), "")
		bob.accountData("x.global", `{"a":2}`)
		bob.roomData(r2, "x.more", `{}`)
		bob.roomData(r1, "x.more", `{}`)
		m = bob.next(body)
		want(t, "global changed", any(types(m, "")), "x.globalmap[a:2] ")
		want(t, "room changed", any(types(m, r2)), "x.moremap[] ")
		want(t, "out of range", any(types(m, r1)), "")
		// into the range, and the other one out of it
		alice.text(r1, "x")
		m = bob.next(body)
		if got := types(m, r1); got != "x.moremap[] x.roommap[r:1] " && got != "x.roommap[r:1] x.moremap[] " {
			t.Errorf("all of a room that is new: %q", got)
		}
		bob.roomData(r2, "x.missed", `{}`)
		want(t, "missed", any(types(bob.next(body), r2)), "")
		alice.text(r2, "x")
		want(t, "what was missed", any(types(bob.next(body), r2)), "x.missedmap[] ")
		// chosen lists and rooms
		bob.pos = ""
		m = bob.next(ext3575(2, `"account_data":{"enabled":true,"lists":[],"rooms":["`+string(r1)+`"]}`))
		if types(m, r1) == "" || types(m, r2) != "" {
			t.Errorf("chosen: %v", extension(m, "account_data"))
		}
		// while the extension is off
		bob.next(ext3575(2, ``))
		bob.roomData(r1, "x.off", `{}`)
		bob.next(ext3575(2, ``))
		want(t, "what came while it was off", any(types(bob.next(ext3575(2, `"account_data":{"enabled":true}`)), r1)), "x.offmap[] ")
	})
}

func TestSlidingReceipts(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol := n.client("alice", "A"), &slide{client: n.client("bob", "B")}, n.client("carol", "C")
		r1, r2 := alice.room(bob.client, carol), alice.room(bob.client, carol)
		old := alice.text(r2, "old")
		for range 6 {
			alice.text(r2, "x")
		}
		e := alice.text(r2, "new")
		alice.receipt(r2, "m.read", old, `{}`)
		carol.receipt(r2, "m.read", e, `{}`)
		carol.receipt(r2, "m.read.private", e, `{}`)
		bob.receipt(r2, "m.read.private", old, `{}`)
		body := ext3575(1, `"receipts":{"enabled":true}`)
		content := func(m map[string]any, r id.RoomID) string {
			c, _ := extension(m, "receipts", "rooms", string(r), "content").(map[string]any)
			out := ""
			for _, ev := range []id.EventID{old, e} {
				for _, typ := range []string{"m.read", "m.read.private"} {
					users, _ := at(c, string(ev), typ).(map[string]any)
					for _, u := range []string{"@alice:test", "@bob:test", "@carol:test"} {
						if users[u] != nil {
							out += map[id.EventID]string{old: "old", e: "new"}[ev] + " " + typ + " " + u + ";"
						}
					}
				}
			}
			return out
		}
		var m map[string]any
		for range 100 { // receipts are written a little later
			bob.pos = ""
			if m = bob.next(body); content(m, r2) == "old m.read.private @bob:test;new m.read @carol:test;" {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		want(t, "first", any(content(m, r2)), "old m.read.private @bob:test;new m.read @carol:test;")
		want(t, "nothing new", any(content(bob.next(body), r2)), "")
		next := func(what, wanted string) {
			t.Helper()
			got := ""
			for range 100 {
				if got += content(bob.next(body), r2); got != "" {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			want(t, what, any(got), wanted)
		}
		alice.receipt(r2, "m.read", e, `{}`)
		next("alice read", "new m.read @alice:test;")
		// the user's own receipt changes the counts
		alice.text(r2, "unread")
		bob.next(body)
		bob.receipt(r2, "m.read", e, `{}`)
		var x map[string]any
		for range 100 {
			m = bob.next(body)
			if x = roomOf(m, r2); x != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		want(t, "notification_count", x["notification_count"], 1.0)
		// out of the range and back
		alice.text(r1, "x")
		bob.next(body)
		last := alice.text(r1, "y")
		carol.receipt(r2, "m.read", e, `{"thread_id":"main"}`)
		time.Sleep(200 * time.Millisecond)
		want(t, "out of the range", any(content(bob.next(body), r2)), "")
		alice.text(r2, "x")
		want(t, "back", any(content(bob.next(body), r2)), "new m.read @carol:test;")
		_ = last
	})
}

func TestSlidingTyping(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r := alice.room(bob.client)
		body := ext3575(1, `"typing":{"enabled":true}`)
		who := func(m map[string]any) string {
			return fmt.Sprint(extension(m, "typing", "rooms", string(r), "content", "user_ids"))
		}
		types := func(yes bool) {
			alice.must("PUT", fmt.Sprintf(`{"typing":%v}`, yes), "/v3/rooms/%s/typing/%s", r, alice.user)
		}
		types(true)
		want(t, "first", any(who(bob.next(body))), "[@alice:test]")
		want(t, "nothing new", any(who(bob.next(body))), "<nil>")
		types(false)
		want(t, "ended", any(who(bob.next(body))), "[]")
		bob.pos = ""
		want(t, "nobody types", any(who(bob.next(body))), "<nil>")
		types(true)
		if m := bob.next(ext3575(1, `"typing":{"enabled":true,"lists":["other"],"rooms":["!other:test"]}`)); who(m) != "<nil>" {
			t.Errorf("not for this room: %v", who(m))
		}
	})
}
