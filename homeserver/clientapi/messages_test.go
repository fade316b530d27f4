package clientapi_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// bodies lists the message bodies of a chunk.
func bodies(m map[string]any, key string) []string {
	out := []string{}
	chunk, _ := m[key].([]any)
	for _, e := range chunk {
		if b, ok := hstest.At(e, "content", "body").(string); ok {
			out = append(out, b)
		}
	}
	return out
}

func messages(t *testing.T, c *hstest.Client, room id.RoomID, query string) map[string]any {
	t.Helper()
	return c.Must(t, "GET", "", "/v3/rooms/%s/messages?"+strings.ReplaceAll(query, "%", "%%"), room)
}

// texts sends n messages: 1, 2, 3 …
func texts(c *hstest.Client, room id.RoomID, n int) (ids []id.EventID) {
	for i := range n {
		ids = append(ids, c.Text(room, fmt.Sprint(i+1)))
	}
	return ids
}

func TestMessagesPages(t *testing.T) { hstest.Each(t, testMessagesPages) }

func testMessagesPages(t *testing.T, hs *hstest.Server) {
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	const count = 130 // more than a room keeps in memory
	texts(alice, room, count)
	for _, dir := range []string{"b", "f"} {
		var got []string
		from, pages := "", 0
		for {
			m := messages(t, alice, room, "dir="+dir+"&limit=17"+from)
			got = append(got, bodies(m, "chunk")...)
			pages++
			end, more := m["end"].(string)
			if !more {
				break
			}
			from = "&from=" + end
		}
		if dir == "b" {
			slices.Reverse(got)
		}
		if len(got) != count || got[0] != "1" || got[count-1] != fmt.Sprint(count) || pages != 8 {
			t.Errorf("dir=%s: %d messages on %d pages: %v", dir, len(got), pages, got)
		}
	}
	// Backwards and then forwards again over the same stretch, with a bound.
	m := messages(t, alice, room, "dir=b&limit=10")
	back := messages(t, alice, room, "dir=b&limit=10&from="+m["end"].(string))
	again := messages(t, alice, room, "dir=f&limit=100&from="+back["end"].(string)+"&to="+m["end"].(string))
	if want := []string{"111", "112", "113", "114", "115", "116", "117", "118", "119", "120"}; !slices.Equal(bodies(again, "chunk"), want) {
		t.Errorf("between two tokens lie %v, want %v", bodies(again, "chunk"), want)
	}
	if again["end"] != nil {
		t.Error("a page that reached its bound offers more")
	}
	bound := messages(t, alice, room, "dir=b&limit=100&from="+m["end"].(string)+"&to="+back["end"].(string))
	if got := bodies(bound, "chunk"); len(got) != 10 || got[0] != "120" || got[9] != "111" {
		t.Errorf("backwards between the tokens lie %v", got)
	}
	// A sync token names a place too.
	since := alice.Sync("")["next_batch"].(string)
	alice.Text(room, "later")
	if got := bodies(messages(t, alice, room, "dir=f&from="+since), "chunk"); !slices.Equal(got, []string{"later"}) {
		t.Errorf("after the sync token come %v", got)
	}
	if got := bodies(messages(t, alice, room, "dir=b&limit=1&from="+since), "chunk"); !slices.Equal(got, []string{fmt.Sprint(count)}) {
		t.Errorf("before the sync token come %v", got)
	}
}

func TestMessagesFilter(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	alice.Text(room, "one")
	bob.Event(room, "m.room.message", `{"msgtype":"m.text","body":"two","url":"mxc://a/b"}`)
	liked := alice.Text(room, "three")
	bob.Event(room, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"x"}}`, liked))
	for _, tc := range []struct {
		filter string
		want   []string
	}{
		{`{"senders":["@bob:test"]}`, []string{"two"}},
		{`{"not_senders":["@bob:test"]}`, []string{"one", "three"}},
		{`{"types":["m.room.mess*"]}`, []string{"one", "two", "three"}},
		{`{"not_types":["m.room.message"]}`, []string{}},
		{`{"types":[]}`, []string{}},
		{`{"contains_url":true}`, []string{"two"}},
		{`{"rooms":["!other:test"]}`, []string{}},
		{`{"related_by_rel_types":["m.annotation"]}`, []string{"three"}},
		{`{"related_by_senders":["@alice:test"]}`, []string{}},
	} {
		m := messages(t, alice, room, "dir=f&limit=50&filter="+url.QueryEscape(tc.filter))
		if got := bodies(m, "chunk"); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.filter, got, tc.want)
		}
	}
	lazy := messages(t, alice, room, "dir=b&limit=2&filter="+url.QueryEscape(`{"lazy_load_members":true,"types":["m.room.message"]}`))
	var users []string
	for _, e := range lazy["state"].([]any) {
		users = append(users, hstest.At(e, "state_key").(string))
	}
	if slices.Sort(users); !slices.Equal(users, []string{"@alice:test", "@bob:test"}) {
		t.Errorf("the members beside the page are %v", users)
	}
	const path = "/v3/rooms/%s/messages"
	in := []any{room}
	checkAll(t, []refusal{
		{"no direction", alice, "GET", path, in, "", 400, "M_MISSING_PARAM"},
		{"another direction", alice, "GET", path + "?dir=up", in, "", 400, "M_INVALID_PARAM"},
		{"bad token", alice, "GET", path + "?dir=b&from=x", in, "", 400, "M_INVALID_PARAM"},
		{"bad bound", alice, "GET", path + "?dir=b&to=s1_1", in, "", 400, "M_INVALID_PARAM"},
		{"negative limit", alice, "GET", path + "?dir=b&limit=-1", in, "", 400, "M_INVALID_PARAM"},
		{"limit is text", alice, "GET", path + "?dir=b&limit=all", in, "", 400, "M_INVALID_PARAM"},
		{"huge limit", alice, "GET", path + "?dir=b&limit=99999999999999999999", in, "", 200, ""},
		{"no limit at all", alice, "GET", path + "?dir=b&limit=0", in, "", 200, ""},
		{"huge token", alice, "GET", path + "?dir=b&from=t9223372036854775807", in, "", 200, ""},
		{"huge token forwards", alice, "GET", path + "?dir=f&from=t9223372036854775807", in, "", 200, ""},
		{"least token", alice, "GET", path + "?dir=b&from=t-9223372036854775808", in, "", 200, ""},
		{"filter is no JSON", alice, "GET", path + "?dir=b&filter=x", in, "", 400, "M_NOT_JSON"},
		{"filter of a wrong shape", alice, "GET", path + "?dir=b&filter=%%7B%%22types%%22:1%%7D", in, "", 400, "M_BAD_JSON"},
		{"stranger", hs.User("eve"), "GET", path + "?dir=b", in, "", 403, "M_FORBIDDEN"},
	})
}

func TestHistoryVisibility(t *testing.T) { hstest.Each(t, testHistoryVisibility) }

func testHistoryVisibility(t *testing.T, hs *hstest.Server) {
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	for visibility, want := range map[string]string{
		"joined": "joined-time back", "invited": "invited joined-time back", "shared": "before invited joined-time away back",
		"world_readable": "before invited joined-time away back",
	} {
		room := alice.CreateRoomWith(fmt.Sprintf(`{"initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":%q}}]}`, visibility))
		before := alice.Text(room, "before")
		alice.Invite(room, bob.UserID)
		alice.Text(room, "invited")
		bob.Join(room)
		alice.Text(room, "joined-time")
		bob.Leave(room)
		away := alice.Text(room, "away")
		seen := strings.Join(bodies(messages(t, bob, room, "dir=f&limit=50"), "chunk"), " ")
		left, _, _ := strings.Cut(want, " away")
		if left = strings.TrimSuffix(left, " back"); seen != left && visibility != "world_readable" {
			t.Errorf("%s: after leaving bob sees %q, want %q", visibility, seen, left)
		}
		hidden := bob.Do(t, "GET", "", "/v3/rooms/%s/event/%s", room, away)
		if hidden.Status != 404 && visibility != "world_readable" {
			t.Errorf("%s: after leaving bob reads a later event: %d", visibility, hidden.Status)
		}
		alice.Invite(room, bob.UserID)
		bob.Join(room)
		alice.Text(room, "back")
		if seen := strings.Join(bodies(messages(t, bob, room, "dir=f&limit=50"), "chunk"), " "); seen != want {
			t.Errorf("%s: bob sees %q, want %q", visibility, seen, want)
		}
		for _, path := range []string{"/v3/rooms/%s/event/%s", "/v3/rooms/%s/context/%s", "/v1/rooms/%s/relations/%s"} {
			status := bob.Do(t, "GET", "", path, room, before).Status
			if visible := strings.Contains(want, "before"); visible != (status == 200) || !visible && status != 404 {
				t.Errorf("%s: %s of an event before bob's time: %d", visibility, path, status)
			}
		}
		peek := eve.Do(t, "GET", "", "/v3/rooms/%s/messages?dir=b", room)
		if (peek.Status == 200) != (visibility == "world_readable") {
			t.Errorf("%s: a stranger's look: %d", visibility, peek.Status)
		}
	}
}

func TestIgnoredUsers(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	root := bob.Text(room, "bob's")
	mine := alice.Text(room, "mine")
	thread := func(c *hstest.Client, root id.EventID, body string) {
		c.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q,"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, body, root))
	}
	thread(alice, mine, "a1")
	thread(bob, mine, "b1")
	thread(alice, root, "a2")
	alice.Must(t, "PUT", `{"ignored_users":{"@bob:test":{}}}`, "/v3/user/%s/account_data/m.ignored_user_list", alice.UserID)
	m := messages(t, alice, room, "dir=f&limit=50")
	if got := bodies(m, "chunk"); !slices.Equal(got, []string{"mine", "a1", "a2"}) {
		t.Errorf("alice, who ignores bob, sees %v", got)
	}
	joins := 0
	for _, e := range m["chunk"].([]any) {
		if hstest.At(e, "state_key") == "@bob:test" {
			joins++
		}
	}
	if joins != 1 {
		t.Errorf("alice sees %d member events of bob, want 1: state stays", joins)
	}
	summary := hstest.At(getEvent(t, alice, room, mine), "unsigned", "m.relations", "m.thread")
	if hstest.At(summary, "count") != 1.0 || hstest.At(summary, "latest_event", "content", "body") != "a1" {
		t.Errorf("the thread's summary counts the ignored: %v", summary)
	}
	for _, e := range alice.Must(t, "GET", "", "/v1/rooms/%s/threads", room)["chunk"].([]any) {
		if hstest.At(e, "event_id") == string(root) && len(hstest.At(e, "content").(map[string]any)) != 0 {
			t.Errorf("the root by an ignored user is not redacted: %v", e)
		}
	}
	if got := bodies(alice.Must(t, "GET", "", "/v1/rooms/%s/relations/%s", room, mine), "chunk"); !slices.Equal(got, []string{"a1"}) {
		t.Errorf("relations hold %v", got)
	}
}

func TestContext(t *testing.T) { hstest.Each(t, testContext) }

func testContext(t *testing.T, hs *hstest.Server) {
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	ids := texts(alice, room, 30)
	alice.State(room, "m.room.name", "", `{"name":"late"}`)
	m := alice.Must(t, "GET", "", "/v3/rooms/%s/context/%s?limit=6", room, ids[14])
	if before, after := bodies(m, "events_before"), bodies(m, "events_after"); !slices.Equal(before, []string{"14", "13", "12"}) || !slices.Equal(after, []string{"16", "17", "18"}) {
		t.Errorf("before lie %v, after %v", before, after)
	}
	if hstest.At(m, "event", "event_id") != string(ids[14]) {
		t.Errorf("the event is %v", m["event"])
	}
	for _, e := range m["state"].([]any) {
		if hstest.At(e, "type") == "m.room.name" {
			t.Error("the state is not that at the last event")
		}
	}
	if got := bodies(messages(t, alice, room, "dir=b&limit=1&from="+m["start"].(string)), "chunk"); !slices.Equal(got, []string{"11"}) {
		t.Errorf("from the start token backwards comes %v", got)
	}
	if got := bodies(messages(t, alice, room, "dir=f&limit=1&from="+m["end"].(string)), "chunk"); !slices.Equal(got, []string{"19"}) {
		t.Errorf("from the end token forwards comes %v", got)
	}
	lazy := alice.Must(t, "GET", "", "/v3/rooms/%s/context/%s?limit=0&filter=%%7B%%22lazy_load_members%%22%%3Atrue%%7D", room, ids[14])
	members := 0
	for _, e := range lazy["state"].([]any) {
		if hstest.At(e, "type") == "m.room.member" {
			members++
		}
	}
	if members != 1 || len(bodies(lazy, "events_before"))+len(bodies(lazy, "events_after")) != 0 {
		t.Errorf("limit=0 with lazy members: %d members, %v", members, lazy)
	}
	if got := bodies(messages(t, alice, room, "dir=f&limit=1&from="+lazy["end"].(string)), "chunk"); !slices.Equal(got, []string{"16"}) {
		t.Errorf("after limit=0 comes %v", got)
	}
	checkAll(t, []refusal{
		{"no such event", alice, "GET", "/v3/rooms/%s/context/%s", []any{room, "$none"}, "", 404, "M_NOT_FOUND"},
		{"event of another room", alice, "GET", "/v3/rooms/%s/context/%s", []any{alice.CreateRoom("public_chat"), ids[0]}, "", 404, "M_NOT_FOUND"},
		{"stranger", hs.User("eve"), "GET", "/v3/rooms/%s/context/%s", []any{room, ids[0]}, "", 403, "M_FORBIDDEN"},
		{"stranger, event", hs.User("dave"), "GET", "/v3/rooms/%s/event/%s", []any{room, ids[0]}, "", 404, "M_NOT_FOUND"},
		{"no such room, event", alice, "GET", "/v3/rooms/%s/event/%s", []any{"!x:test", ids[0]}, "", 404, "M_NOT_FOUND"},
	})
}

func TestTimestampToEvent(t *testing.T) { hstest.Each(t, testTimestampToEvent) }

func testTimestampToEvent(t *testing.T, hs *hstest.Server) {
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	var ids []id.EventID
	var times []float64
	for _, event := range texts(alice, room, 5) {
		ids = append(ids, event)
		times = append(times, getEvent(t, alice, room, event)["origin_server_ts"].(float64))
		time.Sleep(3 * time.Millisecond) // so that the times differ
	}
	times = times[:0]
	ids = ids[:0]
	for i := range 5 {
		e := alice.Text(room, fmt.Sprint("late ", i))
		ids = append(ids, e)
		times = append(times, getEvent(t, alice, room, e)["origin_server_ts"].(float64))
		time.Sleep(5 * time.Millisecond)
	}
	const path = "/v1/rooms/%s/timestamp_to_event?dir=%s&ts=%s"
	for _, tc := range []struct {
		dir  string
		ts   float64
		want id.EventID
	}{
		{"f", times[2], ids[2]}, {"b", times[2], ids[2]},
		{"f", times[1] + 1, ids[2]}, {"b", times[3] - 1, ids[2]},
		{"b", times[4] + 1e9, ids[4]}, {"f", times[0] - 1, ids[0]},
	} {
		m := alice.Must(t, "GET", "", path, room, tc.dir, fmt.Sprintf("%.0f", tc.ts))
		if m["event_id"] != string(tc.want) {
			t.Errorf("dir=%s ts=%.0f: %v, want %s", tc.dir, tc.ts, m, tc.want)
		}
	}
	checkAll(t, []refusal{
		{"after the end", alice, "GET", path, []any{room, "f", "9007199254740990"}, "", 404, "M_NOT_FOUND"},
		{"before the beginning", alice, "GET", path, []any{room, "b", "1"}, "", 404, "M_NOT_FOUND"},
		{"at the beginning of time", alice, "GET", path, []any{room, "f", "0"}, "", 200, ""},
		{"no time", alice, "GET", "/v1/rooms/%s/timestamp_to_event?dir=f", []any{room}, "", 400, "M_MISSING_PARAM"},
		{"no direction", alice, "GET", "/v1/rooms/%s/timestamp_to_event?ts=1", []any{room}, "", 400, "M_MISSING_PARAM"},
		{"text", alice, "GET", path, []any{room, "f", "noon"}, "", 400, "M_INVALID_PARAM"},
		{"stranger", hs.User("eve"), "GET", path, []any{room, "f", "1"}, "", 403, "M_FORBIDDEN"},
	})
}

// BenchmarkMessages reads 100 events of a room that is in memory.
func BenchmarkMessages(b *testing.B) {
	hs := hstest.Start(b)
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	texts(alice, room, 300)
	for b.Loop() {
		alice.Must(b, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=100", room)
	}
}
