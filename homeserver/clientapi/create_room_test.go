package clientapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// refusal is a request and the failure that it must give; status 200 stands for success.
type refusal struct {
	name    string
	who     *hstest.Client
	method  string
	path    string
	args    []any
	body    string
	status  int
	errcode string
}

func checkAll(t *testing.T, cases []refusal) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			r := tc.who.Do(t, tc.method, tc.body, tc.path, tc.args...)
			if r.Status != tc.status || r.Errcode != tc.errcode {
				t.Errorf("got %d %q, want %d %q: %s", r.Status, r.Errcode, tc.status, tc.errcode, r.Body)
			}
		})
	}
}

// history lists a room's events, oldest first, as "type|state_key".
func history(t *testing.T, c *hstest.Client, room id.RoomID) []string {
	t.Helper()
	m := c.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=f&limit=100", room)
	var out []string
	for _, e := range m["chunk"].([]any) {
		line := hstest.At(e, "type").(string)
		if key, ok := hstest.At(e, "state_key").(string); ok {
			line += "|" + key
		}
		out = append(out, line)
	}
	return out
}

func content(t *testing.T, c *hstest.Client, room id.RoomID, evType string) map[string]any {
	t.Helper()
	return c.Must(t, "GET", "", "/v3/rooms/%s/state/%s", room, evType)
}

func TestCreateRoomOrder(t *testing.T) { hstest.Each(t, testCreateRoomOrder) }

func testCreateRoomOrder(t *testing.T, hs *hstest.Server) {
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoomWith(`{"preset":"private_chat","room_alias_name":"pub","name":"The Pub","topic":"Drinks",
		"invite":["@bob:test","@bob:test"],"is_direct":true,"visibility":"public","creation_content":{"type":"org.example.t","creator":"@eve:test","room_version":"1"},
		"initial_state":[{"type":"m.room.guest_access","content":{"guest_access":"forbidden"}},
			{"type":"m.room.encryption","state_key":"","content":{"algorithm":"m.megolm.v1.aes-sha2"}},{"type":"org.example.s","state_key":"k","content":{}}]}`)
	want := []string{"m.room.create|", "m.room.member|@alice:test", "m.room.power_levels|", "m.room.canonical_alias|", "m.room.join_rules|",
		"m.room.history_visibility|", "m.room.guest_access|", "m.room.encryption|", "org.example.s|k", "m.room.name|", "m.room.topic|", "m.room.member|@bob:test"}
	if got := history(t, alice, room); !slices.Equal(got, want) {
		t.Errorf("events are\n%q, want\n%q", got, want)
	}
	create := content(t, alice, room, "m.room.create")
	if create["room_version"] != "12" || create["creator"] != nil || create["type"] != "org.example.t" {
		t.Errorf("m.room.create is %v", create)
	}
	if topic := content(t, alice, room, "m.room.topic"); topic["topic"] != "Drinks" || hstest.At(topic, "m.topic", "m.text", 0, "body") != "Drinks" {
		t.Errorf("m.room.topic is %v", topic)
	}
	if guests := content(t, alice, room, "m.room.guest_access"); guests["guest_access"] != "forbidden" {
		t.Errorf("initial_state does not win over the preset: %v", guests)
	}
	levels := content(t, alice, room, "m.room.power_levels")
	if users := levels["users"].(map[string]any); len(users) != 0 {
		t.Errorf("version 12 lists its creator: %v", users)
	}
	if n := hstest.At(levels, "events", "m.room.tombstone").(float64); n <= levels["state_default"].(float64) {
		t.Errorf("m.room.tombstone needs %v, which is not above state_default", n)
	}
	// Bots from before version 12 give themselves a level and leave the version to the server.
	old := alice.CreateRoomWith(`{"power_level_content_override":{"users":{"@alice:test":100,"@bob:test":50},"invite":50}}`)
	if levels := content(t, alice, old, "m.room.power_levels"); fmt.Sprint(levels["users"]) != "map[@bob:test:50]" || levels["invite"] != 50.0 {
		t.Errorf("an override with its creator gives %v", levels)
	}
	member := alice.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.member/%s", room, bob.UserID)
	if member["is_direct"] != true || member["membership"] != "invite" {
		t.Errorf("the invitation is %v", member)
	}
	if got := alice.Must(t, "GET", "", "/v3/directory/room/%s", "#pub:test")["room_id"]; got != string(room) {
		t.Errorf("the alias points to %v", got)
	}
	if got := alice.Must(t, "GET", "", "/v3/directory/list/room/%s", room)["visibility"]; got != "public" {
		t.Errorf("the room is %v", got)
	}
}

func TestCreateRoomPresets(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	for _, tc := range []struct{ body, joinRule, guests string }{
		{`{}`, "invite", "can_join"},
		{`{"visibility":"private"}`, "invite", "can_join"},
		{`{"visibility":"public"}`, "public", "forbidden"},
		{`{"visibility":"public","preset":"private_chat"}`, "invite", "can_join"},
		{`{"preset":"public_chat"}`, "public", "forbidden"},
		{`{"preset":"trusted_private_chat"}`, "invite", "can_join"},
	} {
		room := alice.CreateRoomWith(tc.body)
		if got := content(t, alice, room, "m.room.join_rules")["join_rule"]; got != tc.joinRule {
			t.Errorf("%s: join rule %v, want %s", tc.body, got, tc.joinRule)
		}
		if got := content(t, alice, room, "m.room.guest_access")["guest_access"]; got != tc.guests {
			t.Errorf("%s: guest access %v, want %s", tc.body, got, tc.guests)
		}
		if got := content(t, alice, room, "m.room.history_visibility")["history_visibility"]; got != "shared" {
			t.Errorf("%s: history visibility %v", tc.body, got)
		}
	}
	for v := 1; v <= 12; v++ {
		room := alice.CreateRoomWith(fmt.Sprintf(`{"preset":"trusted_private_chat","invite":["@bob:test"],"room_version":"%d"}`, v))
		create, levels := content(t, alice, room, "m.room.create"), content(t, alice, room, "m.room.power_levels")
		if create["room_version"] != fmt.Sprint(v) {
			t.Errorf("version %d: m.room.create is %v", v, create)
		}
		if (create["creator"] == "@alice:test") != (v < 11) {
			t.Errorf("version %d: creator is %v", v, create["creator"])
		}
		if v == 12 {
			if got := hstest.At(create, "additional_creators", 0); got != "@bob:test" {
				t.Errorf("version 12: additional_creators is %v", create["additional_creators"])
			}
		} else if hstest.At(levels, "users", "@bob:test") != 100.0 || hstest.At(levels, "users", "@alice:test") != 100.0 {
			t.Errorf("version %d: users are %v", v, levels["users"])
		}
		bob.Join(room)
		bob.State(room, "m.room.power_levels", "", string(must(json.Marshal(levels))))
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // only for values that always marshal
	}
	return v
}

func TestCreateRoomRefuses(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	alice.CreateRoomWith(`{"room_alias_name":"taken"}`)
	bob.Must(t, "PUT", `{"default_action":"block"}`, "/v3/user/%s/account_data/m.invite_permission_config", bob.UserID)
	var cases []refusal
	for _, tc := range []struct {
		name, body string
		status     int
		errcode    string
	}{
		{"no JSON", `{`, 400, "M_NOT_JSON"},
		{"an array", `[]`, 400, "M_BAD_JSON"},
		{"name is a number", `{"name":1}`, 400, "M_BAD_JSON"},
		{"visibility", `{"visibility":"secret"}`, 400, "M_BAD_JSON"},
		{"preset", `{"preset":"chaos"}`, 400, "M_BAD_JSON"},
		{"version", `{"room_version":"99"}`, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{"version is a number", `{"room_version":12}`, 400, "M_BAD_JSON"},
		{"alias taken", `{"room_alias_name":"taken"}`, 400, "M_ROOM_IN_USE"},
		{"alias with a colon", `{"room_alias_name":"a:b"}`, 400, "M_INVALID_PARAM"},
		{"alias too long", `{"room_alias_name":"` + strings.Repeat("a", 255) + `"}`, 400, "M_INVALID_PARAM"},
		{"invite of no user", `{"invite":["bob"]}`, 400, "M_INVALID_PARAM"},
		{"invite of oneself", `{"invite":["@alice:test"]}`, 400, "M_INVALID_PARAM"},
		{"invite of another server", `{"invite":["@a:elsewhere"]}`, 403, "M_FORBIDDEN"},
		{"invite of who blocks", `{"invite":["@bob:test"]}`, 403, "M_INVITE_BLOCKED"},
		{"third-party invite", `{"invite_3pid":[{"id_server":"x","id_access_token":"y","medium":"email","address":"a@b"}]}`, 400, "M_SERVER_NOT_TRUSTED"},
		{"state without type", `{"initial_state":[{"content":{}}]}`, 400, "M_BAD_JSON"},
		{"state without content", `{"initial_state":[{"type":"x"}]}`, 400, "M_BAD_JSON"},
		{"m.room.create as state", `{"initial_state":[{"type":"m.room.create","content":{}}]}`, 400, "M_BAD_JSON"},
		{"members as state", `{"initial_state":[{"type":"m.room.member","state_key":"@bob:test","content":{"membership":"invite"}}]}`, 400, "M_BAD_JSON"},
		{"type is a number", `{"creation_content":{"type":1}}`, 400, "M_BAD_JSON"},
		{"creators", `{"creation_content":{"additional_creators":["x"]}}`, 400, "M_BAD_JSON"},
		{"creators are an object", `{"creation_content":{"additional_creators":{}}}`, 400, "M_BAD_JSON"},
		{"creator with a level", `{"room_version":"12","power_level_content_override":{"users":{"@alice:test":100}}}`, 400, "M_BAD_JSON"},
		{"further creator with a level", `{"room_version":"12","creation_content":{"additional_creators":["@c:test"]},"power_level_content_override":{"users":{"@c:test":100}}}`, 400, "M_BAD_JSON"},
		{"levels are text", `{"power_level_content_override":{"ban":"much"}}`, 400, "M_BAD_JSON"},
		{"no power to name it", `{"room_version":"11","name":"x","power_level_content_override":{"users":{"@alice:test":0}}}`, 400, "M_INVALID_ROOM_STATE"},
		{"float in state", `{"initial_state":[{"type":"x","content":{"a":1.5}}]}`, 400, "M_BAD_JSON"},
		{"state too large", `{"initial_state":[{"type":"x","content":{"a":"` + strings.Repeat("a", 70000) + `"}}]}`, 413, "M_TOO_LARGE"},
		{"nothing asked for", `{}`, 200, ""},
	} {
		cases = append(cases, refusal{tc.name, alice, "POST", "/v3/createRoom", nil, tc.body, tc.status, tc.errcode})
	}
	cases = append(cases, refusal{"nobody", hs.Anonymous(), "POST", "/v3/createRoom", nil, "{}", 401, "M_MISSING_TOKEN"})
	checkAll(t, cases)
	// A refused room leaves nothing behind.
	if got := len(alice.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)); got != 2 {
		t.Errorf("alice is in %d rooms, want 2", got)
	}
}
