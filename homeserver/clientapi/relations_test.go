package clientapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// relate sends a message that relates to another event.
func relate(c *hstest.Client, room id.RoomID, parent id.EventID, relType, body string) id.EventID {
	return c.Event(room, "m.room.message", fmt.Sprintf(
		`{"msgtype":"m.text","body":%q,"m.new_content":{"body":%q},"m.relates_to":{"rel_type":%q,"event_id":%q}}`, body, body, relType, parent))
}

func TestBundledAggregations(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, carol := hs.User("alice"), hs.User("bob"), hs.User("carol")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		carol.Join(room)
		root := alice.Text(room, "root")
		relate(alice, room, root, "m.replace", "first edit")
		edit := relate(alice, room, root, "m.replace", "second edit")
		relate(bob, room, root, "m.replace", "not bob's to edit")
		alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"no new content","m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, root))
		alice.Event(room, "org.example.m", fmt.Sprintf(`{"m.new_content":{},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, root))
		ref := relate(bob, room, root, "m.reference", "reference")
		relate(bob, room, root, "m.thread", "reply one")
		last := relate(bob, room, root, "m.thread", "reply two")
		relate(bob, room, last, "m.replace", "reply two, edited")
		relate(alice, room, edit, "m.replace", "edit of an edit")
		relations := func(c *hstest.Client, event id.EventID) any {
			return hstest.At(getEvent(t, c, room, event), "unsigned", "m.relations")
		}
		got := relations(alice, root)
		if e := hstest.At(got, "m.replace"); hstest.At(e, "event_id") != string(edit) || hstest.At(e, "content", "m.new_content", "body") != "second edit" {
			t.Errorf("the edit is %v", e)
		}
		if chunk := hstest.At(got, "m.reference", "chunk"); len(chunk.([]any)) != 1 || hstest.At(chunk, 0, "event_id") != string(ref) {
			t.Errorf("the references are %v", chunk)
		}
		thread := hstest.At(got, "m.thread")
		if hstest.At(thread, "count") != 2.0 || hstest.At(thread, "current_user_participated") != true || hstest.At(thread, "latest_event", "event_id") != string(last) {
			t.Errorf("the thread is %v", thread)
		}
		if body := hstest.At(thread, "latest_event", "unsigned", "m.relations", "m.replace", "content", "m.new_content", "body"); body != "reply two, edited" {
			t.Errorf("the latest event's own edit is %v", body)
		}
		if hstest.At(relations(carol, root), "m.thread", "current_user_participated") != false ||
			hstest.At(relations(bob, root), "m.thread", "current_user_participated") != true {
			t.Error("participation is not told right")
		}
		if rel := relations(alice, edit); rel != nil {
			t.Errorf("an edit has its own edits: %v", rel)
		}
		// The same in a page of messages.
		for _, e := range messages(t, carol, room, "dir=b&limit=50")["chunk"].([]any) {
			if hstest.At(e, "event_id") == string(root) && hstest.At(e, "unsigned", "m.relations", "m.thread", "count") != 2.0 {
				t.Errorf("in /messages the root is %v", e)
			}
		}
		redact := func(event id.EventID) {
			alice.Must(t, "PUT", "{}", "/v3/rooms/%s/redact/%s/%s", room, event, alice.Txn())
		}
		redact(edit)
		if body := hstest.At(relations(alice, root), "m.replace", "content", "m.new_content", "body"); body != "first edit" {
			t.Errorf("after the redaction of the last edit the edit is %v", body)
		}
		redact(last)
		if thread := hstest.At(relations(alice, root), "m.thread"); hstest.At(thread, "count") != 1.0 || hstest.At(thread, "latest_event", "content", "body") != "reply one" {
			t.Errorf("after a redaction the thread is %v", thread)
		}
		// Who has left hears nothing of what came later.
		carol.Leave(room)
		relate(bob, room, root, "m.thread", "secret")
		relate(alice, room, root, "m.replace", "secret edit")
		if rel := relations(carol, root); hstest.At(rel, "m.thread", "count") != 1.0 || hstest.At(rel, "m.replace", "content", "body") != "first edit" {
			t.Errorf("carol, who left, sees %v", rel)
		}
		redact(root)
		if rel := relations(alice, root); hstest.At(rel, "m.replace") != nil || hstest.At(rel, "m.thread", "count") != 2.0 {
			t.Errorf("of a redacted event remain %v", rel)
		}
	})
}

func TestRelations(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		root := alice.Text(room, "root")
		a := relate(bob, room, root, "m.thread", "a")
		relate(alice, room, root, "m.thread", "b")
		bob.Event(room, "m.reaction", fmt.Sprintf(`{"msgtype":"m.text","body":"r","m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"k"}}`, root))
		c := relate(alice, room, a, "m.reference", "c")
		d := relate(alice, room, c, "m.reference", "d")
		relate(alice, room, d, "m.reference", "too deep")
		get := func(query string, args ...any) map[string]any {
			return alice.Must(t, "GET", "", "/v1/rooms/%s/relations/%s"+query, append([]any{room, root}, args...)...)
		}
		for query, want := range map[string]string{
			"":                             "r b a",
			"?dir=f":                       "a b r",
			"/m.thread":                    "b a",
			"/m.annotation":                "r",
			"/m.annotation/m.reaction":     "r",
			"/m.annotation/m.room.message": "",
			"?recurse=true":                "d c r b a",
			"?recurse=true&dir=f":          "a b r c d",
			"/m.thread?recurse=true":       "b a",
			"?limit=2":                     "r b",
			"?recurse=true&limit=2":        "d c",
		} {
			m := get(query)
			if got := strings.Join(bodies(m, "chunk"), " "); got != want {
				t.Errorf("relations%s: %q, want %q", query, got, want)
			}
			if depth := m["recursion_depth"]; (depth != nil) != strings.Contains(query, "recurse") {
				t.Errorf("relations%s: recursion_depth is %v", query, depth)
			}
		}
		for _, dir := range []string{"b", "f"} {
			var got []string
			from := ""
			for range 9 {
				m := get("?limit=1&recurse=true&dir=" + dir + from)
				got = append(got, bodies(m, "chunk")...)
				next, ok := m["next_batch"].(string)
				if !ok {
					break
				}
				from = "&from=" + next
			}
			if dir == "f" {
				slices.Reverse(got)
			}
			if strings.Join(got, " ") != "d c r b a" {
				t.Errorf("page by page with dir=%s come %v", dir, got)
			}
		}
		const path = "/v1/rooms/%s/relations/%s"
		checkAll(t, []refusal{
			{"no such event", alice, "GET", path, []any{room, "$none"}, "", 404, "M_NOT_FOUND"},
			{"stranger", hs.User("eve"), "GET", path, []any{room, root}, "", 404, "M_NOT_FOUND"},
			{"direction", alice, "GET", path + "?dir=x", []any{room, root}, "", 400, "M_INVALID_PARAM"},
			{"token", alice, "GET", path + "?from=x", []any{room, root}, "", 400, "M_INVALID_PARAM"},
			{"limit", alice, "GET", path + "?limit=0", []any{room, root}, "", 400, "M_INVALID_PARAM"},
			{"recurse", alice, "GET", path + "?recurse=maybe", []any{room, root}, "", 400, "M_INVALID_PARAM"},
		})
	})
}

func TestThreads(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		var roots []id.EventID
		for i := range 5 {
			roots = append(roots, alice.Text(room, fmt.Sprint("root ", i)))
			relate(alice, room, roots[i], "m.thread", "reply")
		}
		bobs := bob.Text(room, "bob's root")
		relate(alice, room, bobs, "m.thread", "reply")
		relate(bob, room, roots[1], "m.thread", "the latest reply of all")
		all := func(c *hstest.Client, query string) (got []string) {
			from := ""
			for range 9 {
				m := c.Must(t, "GET", "", "/v1/rooms/%s/threads?limit=2"+query+from, room)
				got = append(got, bodies(m, "chunk")...)
				next, ok := m["next_batch"].(string)
				if !ok {
					return got
				}
				from = "&from=" + next
			}
			return got
		}
		if got, want := all(bob, ""), []string{"root 1", "bob's root", "root 4", "root 3", "root 2", "root 0"}; !slices.Equal(got, want) {
			t.Errorf("threads are %q, want %q", got, want)
		}
		if got, want := all(bob, "&include=participated"), []string{"root 1", "bob's root"}; !slices.Equal(got, want) {
			t.Errorf("threads that bob takes part in are %q, want %q", got, want)
		}
		const path = "/v1/rooms/%s/threads"
		checkAll(t, []refusal{
			{"include", bob, "GET", path + "?include=some", []any{room}, "", 400, "M_INVALID_PARAM"},
			{"limit", bob, "GET", path + "?limit=0", []any{room}, "", 400, "M_INVALID_PARAM"},
			{"token", bob, "GET", path + "?from=t5", []any{room}, "", 400, "M_INVALID_PARAM"},
			{"stranger", hs.User("eve"), "GET", path, []any{room}, "", 403, "M_FORBIDDEN"},
			{"no such room", bob, "GET", path, []any{"!x:test"}, "", 403, "M_FORBIDDEN"},
		})
	})
}
