package clientapi_test

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// list gives the members of an answer that is a JSON array.
func list(t *testing.T, c *hstest.Client, path string, args ...any) []any {
	t.Helper()
	r := c.Do(t, "GET", "", path, args...)
	if r.Status != 200 {
		t.Fatalf("GET %s: %d %s", path, r.Status, r.Body)
	}
	var out []any
	r.JSON(t, &out)
	return out
}

func membersOf(t *testing.T, c *hstest.Client, room id.RoomID, query string) string {
	t.Helper()
	found := map[string]bool{}
	for _, e := range c.Must(t, "GET", "", "/v3/rooms/%s/members"+query, room)["chunk"].([]any) {
		found[strings.TrimSuffix(hstest.At(e, "state_key").(string), ":test")+"="+hstest.At(e, "content", "membership").(string)] = true
	}
	return fmt.Sprint(found)
}

func TestRoomState(t *testing.T) { hstest.Each(t, testRoomState) }

func testRoomState(t *testing.T, hs *hstest.Server) {
	alice, bob, carol, eve := hs.User("alice"), hs.User("bob"), hs.User("carol"), hs.User("eve")
	room := alice.CreateRoomWith(`{"preset":"public_chat","name":"one"}`)
	bob.Join(room)
	before := alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=1", room)["start"].(string)
	bob.Leave(room)
	alice.State(room, "m.room.name", "", `{"name":"two"}`)
	carol.Join(room)
	carol.Leave(room)
	open := alice.CreateRoomWith(`{"initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":"world_readable"}}]}`)
	empty := alice.State(room, "org.example.s", "", `{"a":1}`)
	if again := alice.State(room, "org.example.s", "", ` {"a": 1}`); again != empty {
		t.Errorf("setting the same state again made %s beside %s", again, empty)
	}
	if content(t, alice, room, "m.room.name")["name"] != "two" || content(t, bob, room, "m.room.name")["name"] != "one" {
		t.Error("who has left sees later state, or who is there does not")
	}
	if e := alice.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.name/?format=event", room); hstest.At(e, "content", "name") != "two" ||
		hstest.At(e, "unsigned", "prev_content", "name") != "one" || hstest.At(e, "unsigned", "replaces_state") == nil {
		t.Errorf("the event of the name is %v", e)
	}
	for _, e := range list(t, bob, "/v3/rooms/%s/state", room) {
		if hstest.At(e, "type") == "m.room.name" && hstest.At(e, "content", "name") != "one" {
			t.Errorf("bob sees %v in the whole state", e)
		}
	}
	for query, want := range map[string]string{
		"":                                     "map[@alice=join:true @bob=leave:true @carol=leave:true]",
		"?membership=join":                     "map[@alice=join:true]",
		"?not_membership=join":                 "map[@bob=leave:true @carol=leave:true]",
		"?membership=join&not_membership=join": "map[@alice=join:true @bob=leave:true @carol=leave:true]",
		"?at=" + before:                        "map[@alice=join:true @bob=join:true]",
		"?membership=join&at=" + before:        "map[@alice=join:true @bob=join:true]",
	} {
		if got := membersOf(t, alice, room, query); got != want {
			t.Errorf("members%s: %s, want %s", query, got, want)
		}
	}
	if got := membersOf(t, bob, room, ""); got != "map[@alice=join:true @bob=leave:true]" {
		t.Errorf("bob, who left, sees the members %s", got)
	}
	const base = "/v3/rooms/%s/"
	in := []any{room}
	checkAll(t, []refusal{
		{"stranger", eve, "GET", base + "state", in, "", 403, "M_FORBIDDEN"},
		{"stranger, one", eve, "GET", base + "state/m.room.name", in, "", 403, "M_FORBIDDEN"},
		{"stranger, members", eve, "GET", base + "members", in, "", 403, "M_FORBIDDEN"},
		{"stranger, joined members", eve, "GET", base + "joined_members", in, "", 403, "M_FORBIDDEN"},
		{"left, joined members", bob, "GET", base + "joined_members", in, "", 403, "M_FORBIDDEN"},
		{"joined members", alice, "GET", base + "joined_members", in, "", 200, ""},
		{"no such room", eve, "GET", base + "state", []any{"!x:test"}, "", 403, "M_FORBIDDEN"},
		{"world-readable", eve, "GET", base + "state", []any{open}, "", 200, ""},
		{"world-readable, members", eve, "GET", base + "members", []any{open}, "", 200, ""},
		{"no such state", alice, "GET", base + "state/org.example.none", in, "", 404, "M_NOT_FOUND"},
		{"bad format", alice, "GET", base + "state/m.room.name?format=xml", in, "", 400, "M_INVALID_PARAM"},
		{"bad membership", alice, "GET", base + "members?membership=friend", in, "", 400, "M_INVALID_PARAM"},
		{"bad token", alice, "GET", base + "members?at=yesterday", in, "", 400, "M_INVALID_PARAM"},
		{"key with a slash", alice, "PUT", base + "state/org.example.s/%s", []any{room, "a/b"}, `{}`, 200, ""},
		{"key with a slash, read", alice, "GET", base + "state/org.example.s/%s", []any{room, "a/b"}, ``, 200, ""},
		{"empty key", alice, "PUT", base + "state/org.example.e/", in, `{}`, 200, ""},
		{"no key", alice, "PUT", base + "state/org.example.e", in, `{}`, 200, ""},
		{"someone's key", alice, "PUT", base + "state/org.example.s/%s", []any{room, "@bob:test"}, `{}`, 403, "M_FORBIDDEN"},
		{"stranger writes", eve, "PUT", base + "state/org.example.s/", in, `{}`, 403, "M_FORBIDDEN"},
		{"no such room, write", eve, "PUT", base + "state/org.example.s/", []any{"!x:test"}, `{}`, 403, "M_FORBIDDEN"},
		{"m.room.create", alice, "PUT", base + "state/m.room.create/", in, `{}`, 403, "M_FORBIDDEN"},
		{"no JSON", alice, "PUT", base + "state/x/", in, `{"a":`, 400, "M_NOT_JSON"},
		{"no object", alice, "PUT", base + "state/x/", in, `7`, 400, "M_BAD_JSON"},
		{"twice the same key", alice, "PUT", base + "state/x/", in, `{"a":1,"a":2}`, 400, "M_BAD_JSON"},
		{"float", alice, "PUT", base + "state/x/", in, `{"a":1.5}`, 400, "M_BAD_JSON"},
		{"large number", alice, "PUT", base + "state/x/", in, `{"a":9007199254740993}`, 400, "M_BAD_JSON"},
		{"too large", alice, "PUT", base + "state/x/", in, `{"a":"` + strings.Repeat("x", 66000) + `"}`, 413, "M_TOO_LARGE"},
		{"key too long", alice, "PUT", base + "state/x/%s", []any{room, strings.Repeat("k", 256)}, `{}`, 413, "M_TOO_LARGE"},
		{"levels are text", alice, "PUT", base + "state/m.room.power_levels/", in, `{"ban":"50"}`, 403, "M_FORBIDDEN"},
	})
}

func TestCanonicalAlias(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	room := alice.CreateRoomWith(`{"preset":"public_chat","room_alias_name":"mine"}`)
	alice.CreateRoomWith(`{"room_alias_name":"other"}`)
	alice.Must(t, "PUT", fmt.Sprintf(`{"room_id":%q}`, room), "/v3/directory/room/%s", "#second:test")
	var cases []refusal
	for _, tc := range []struct {
		name, body string
		status     int
		errcode    string
	}{
		{"mine", `{"alias":"#mine:test","alt_aliases":["#second:test"]}`, 200, ""},
		{"another room's", `{"alias":"#other:test"}`, 400, "M_BAD_ALIAS"},
		{"another room's beside mine", `{"alias":"#mine:test","alt_aliases":["#other:test"]}`, 400, "M_BAD_ALIAS"},
		{"nobody's", `{"alt_aliases":["#none:test"]}`, 400, "M_BAD_ALIAS"},
		{"of another server", `{"alias":"#mine:elsewhere"}`, 400, "M_BAD_ALIAS"},
		{"no alias", `{"alias":"mine"}`, 400, "M_INVALID_PARAM"},
		{"a number", `{"alias":5}`, 400, "M_INVALID_PARAM"},
		{"no list", `{"alt_aliases":"#mine:test"}`, 400, "M_INVALID_PARAM"},
		{"list of numbers", `{"alt_aliases":[5]}`, 400, "M_INVALID_PARAM"},
		{"none", `{}`, 200, ""},
		{"null", `{"alias":null}`, 200, ""},
	} {
		cases = append(cases, refusal{tc.name, alice, "PUT", "/v3/rooms/%s/state/m.room.canonical_alias/", []any{room}, tc.body, tc.status, tc.errcode})
	}
	checkAll(t, cases)
}
