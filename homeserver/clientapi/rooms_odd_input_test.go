package clientapi_test

import (
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
)

// Whatever a client sends gets an answer that the specification knows: hstest fails on 5xx answers, on errors in the log,
// and on bodies that are not of the specification's shape.
func TestOddInput(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	room := alice.CreateRoom("public_chat")
	event := alice.Text(room, "x")
	values := []string{
		`null`, `true`, `1`, `-1`, `1e400`, `""`, `"x"`, `"\u0000"`, `"` + strings.Repeat("y", 300) + `"`, `[]`, `[null]`, `[1]`, `[{}]`, `{}`,
		`{"a":null}`, `{"@alice:test":1}`, `{"users":null}`, `99999999999999999999`, `"\ud800"`,
	}
	bodies := []string{`null`, `1`, `"x"`, `[]`, `{`, `{}x`, "\xff", strings.Repeat("[", 10000), `{"a":1,"a":2}`, strings.Repeat(" ", 100)}
	for _, ep := range []struct {
		method, path string
		args         []any
		fields       []string
	}{
		{"POST", "/v3/createRoom", nil, []string{"visibility", "room_alias_name", "name", "topic", "invite", "invite_3pid", "room_version",
			"creation_content", "initial_state", "preset", "is_direct", "power_level_content_override"}},
		{"POST", "/v3/rooms/%s/join", []any{room}, []string{"reason", "third_party_signed"}},
		{"POST", "/v3/rooms/%s/invite", []any{room}, []string{"user_id", "reason", "id_server"}},
		{"POST", "/v3/rooms/%s/kick", []any{room}, []string{"user_id"}},
		{"POST", "/v3/rooms/%s/ban", []any{room}, []string{"user_id"}},
		{"POST", "/v3/rooms/%s/unban", []any{room}, []string{"user_id"}},
		{"POST", "/v3/knock/%s", []any{room}, []string{"reason"}},
		{"POST", "/v3/rooms/%s/upgrade", []any{room}, []string{"new_version", "additional_creators"}},
		{"PUT", "/v3/rooms/%s/state/m.room.name/", []any{room}, []string{"name"}},
		{"PUT", "/v3/rooms/%s/state/m.room.canonical_alias/", []any{room}, []string{"alias", "alt_aliases"}},
		{"PUT", "/v3/rooms/%s/state/m.room.member/%s", []any{room, alice.UserID}, []string{"membership"}},
		{"PUT", "/v3/rooms/%s/state/m.room.member/%s", []any{room, "@b:test"}, []string{"membership", "third_party_invite"}},
		{"PUT", "/v3/rooms/%s/send/m.room.message/1", []any{room}, []string{"m.relates_to", "body"}},
		{"PUT", "/v3/rooms/%s/send/m.room.redaction/1", []any{room}, []string{"redacts"}},
		{"PUT", "/v3/rooms/%s/redact/%s/1", []any{room, event}, []string{"reason", "redacts"}},
		{"PUT", "/v3/directory/room/%s", []any{"#odd:test"}, []string{"room_id"}},
		{"PUT", "/v3/directory/list/room/%s", []any{room}, []string{"visibility"}},
		{"POST", "/v3/publicRooms", nil, []string{"limit", "since", "filter", "include_all_networks", "third_party_instance_id"}},
		{"POST", "/v3/rooms/%s/report", []any{room}, []string{"reason"}},
		{"POST", "/v3/users/%s/report", []any{"@b:test"}, []string{"reason"}},
	} {
		for _, body := range bodies {
			if r := alice.Do(t, ep.method, body, ep.path, ep.args...); r.Status == 200 && strings.TrimSpace(body) != "" {
				t.Errorf("%s %s takes the body %.40q: %s", ep.method, ep.path, body, r.Body)
			}
		}
		for _, field := range ep.fields {
			for _, value := range values {
				if r := alice.Do(t, ep.method, `{"`+field+`":`+value+`}`, ep.path, ep.args...); r.Status >= 400 && r.Errcode == "" {
					t.Errorf("%s %s with %s=%s: %d without an errcode", ep.method, ep.path, field, value, r.Status)
				}
			}
		}
	}
	for _, path := range []string{
		"/v3/rooms/%s/messages?dir=b&", "/v3/rooms/%s/members?", "/v3/rooms/%s/context/$x?", "/v1/rooms/%s/relations/$x?", "/v1/rooms/%s/threads?",
		"/v1/rooms/%s/hierarchy?", "/v1/rooms/%s/timestamp_to_event?dir=f&ts=1&", "/v3/rooms/%s/initialSync?", "/v3/events?room_id=%s&timeout=0&", "/v3/publicRooms?server=%s&",
	} {
		for _, odd := range []string{
			"limit=x", "limit=-9999999999999999999999", "from=%%00", "from=t", "from=t99999999999999999999", "to=%%ff", "at=s1__", "since=%%E2%%82", "filter=%%7B%%22types%%22:%%5B1%%5D%%7D",
			"recurse=%%", "max_depth=9e9", "ts=-1", "ts=99999999999999999999", "dir=", "membership=%%00", "from=s1_1_-5", "from=h1_1_maybe", "since=n-1", "from=th-1",
		} {
			alice.Do(t, "GET", "", path+odd, room)
		}
	}
	for _, id := range []string{"!", "!\x00", "x", "!" + strings.Repeat("z", 3000), "!a:b:c", "!ä:test", "#", "#:test", "$"} {
		for _, path := range []string{"/v3/rooms/%s/state", "/v3/rooms/%s/messages?dir=b", "/v1/room_summary/%s", "/v3/directory/room/%s", "/v3/directory/list/room/%s", "/v1/rooms/%s/hierarchy"} {
			if r := alice.Do(t, "GET", "", path, id); r.Status == 200 {
				t.Errorf("GET "+path+" is answered: %s", id, r.Body)
			}
		}
		alice.Do(t, "POST", "{}", "/v3/join/%s", id)
		alice.Do(t, "GET", "", "/v3/rooms/%s/event/%s", room, id)
		alice.Do(t, "PUT", "{}", "/v3/rooms/%s/state/m.room.member/%s", room, id)
	}
}
