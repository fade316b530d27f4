package clientapi_test

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

func getEvent(t *testing.T, c *hstest.Client, room id.RoomID, event id.EventID) map[string]any {
	t.Helper()
	return c.Must(t, "GET", "", "/v3/rooms/%s/event/%s", room, event)
}

func TestSend(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	const path = "/v3/rooms/%s/send/%s/%s"
	first := bob.Must(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, path, room, "m.room.message", "same")["event_id"]
	if again := bob.Must(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, path, room, "m.room.message", "same")["event_id"]; again != first {
		t.Errorf("the same transaction sent %v and %v", first, again)
	}
	if other := bob.Must(t, "PUT", `{"body":"hi"}`, path, room, "org.example.m", "same")["event_id"]; other == first {
		t.Error("the same transaction id at another endpoint sent nothing")
	}
	if other := bob.Login().Must(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, path, room, "m.room.message", "same")["event_id"]; other == first {
		t.Error("the same transaction id of another device sent nothing")
	}
	msg := func(name string, who *hstest.Client, room any, evType, body string, status int, errcode string) refusal {
		return refusal{name, who, "PUT", path, []any{room, evType, "t-" + name}, body, status, errcode}
	}
	const text = "m.room.message"
	checkAll(t, []refusal{
		msg("member", bob, room, text, `{"msgtype":"m.text","body":"x"}`, 200, ""),
		msg("empty object", bob, room, text, `{}`, 400, "M_BAD_JSON"),
		msg("stranger", eve, room, text, `{}`, 403, "M_FORBIDDEN"),
		msg("no such room", eve, "!x:test", text, `{}`, 403, "M_FORBIDDEN"),
		msg("no room id", eve, "x", text, `{}`, 403, "M_FORBIDDEN"),
		msg("broken JSON", bob, room, text, `{`, 400, "M_NOT_JSON"),
		msg("no object", bob, room, text, `[]`, 400, "M_BAD_JSON"),
		msg("twice the same key", bob, room, text, `{"a":1,"a":1}`, 400, "M_BAD_JSON"),
		msg("invalid UTF-8", bob, room, text, "{\"a\":\"\xff\"}", 400, "M_NOT_JSON"),
		msg("float", bob, room, text, `{"a":0.5}`, 400, "M_BAD_JSON"),
		msg("deep", bob, room, text, strings.Repeat(`{"a":`, 5000)+`1`+strings.Repeat(`}`, 5000), 400, "M_BAD_JSON"),
		msg("too large", bob, room, text, `{"msgtype":"m.text","body":"","a":"`+strings.Repeat("x", 65536)+`"}`, 413, "M_TOO_LARGE"),
		msg("far too large", bob, room, text, `{"a":"`+strings.Repeat("x", 2<<20)+`"}`, 413, "M_TOO_LARGE"),
		msg("type too long", bob, room, strings.Repeat("t", 256), `{}`, 413, "M_TOO_LARGE"),
		msg("m.room.create", alice, room, "m.room.create", `{}`, 403, "M_FORBIDDEN"),
		msg("m.room.member", alice, room, "m.room.member", `{"membership":"leave"}`, 403, "M_FORBIDDEN"),
		msg("relates to nothing", bob, room, text, `{"msgtype":"m.text","body":"","m.relates_to":{"rel_type":"m.thread","event_id":"$none"}}`, 200, ""),
		msg("relation of a wrong shape", bob, room, text, `{"msgtype":"m.text","body":"","m.relates_to":[1]}`, 200, ""),
	})
}

func TestAnnotationsAndThreads(t *testing.T) { hstest.Each(t, testAnnotationsAndThreads) }

func testAnnotationsAndThreads(t *testing.T, hs *hstest.Server) {
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	root := alice.Text(room, "root")
	like := func(key string) string {
		return fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":%q}}`, root, key)
	}
	reply := alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"r","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
	const path = "/v3/rooms/%s/send/%s/%s"
	cases := func(from int) []refusal {
		return []refusal{
			{"first", bob, "PUT", path, []any{room, "m.reaction", "a"}, like("👍"), 200, ""},
			{"the same request again", bob, "PUT", path, []any{room, "m.reaction", "a"}, like("👍"), 200, ""},
			{"a second one", bob, "PUT", path, []any{room, "m.reaction", "b"}, like("👍"), 400, "M_DUPLICATE_ANNOTATION"},
			{"of another key", bob, "PUT", path, []any{room, "m.reaction", "c"}, like("👎"), 200, ""},
			{"of another type", bob, "PUT", path, []any{room, "org.example.r", "d"}, like("👍"), 200, ""},
			{"of another user", alice, "PUT", path, []any{room, "m.reaction", "e"}, like("👍"), 200, ""},
			{"thread of a thread", bob, "PUT", path, []any{room, "m.room.message", "f"},
				fmt.Sprintf(`{"msgtype":"m.text","body":"","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, reply), 400, "M_UNKNOWN"},
		}[from:]
	}
	checkAll(t, cases(0))
	for _, e := range bob.Must(t, "GET", "", "/v1/rooms/%s/relations/%s/m.annotation/m.reaction", room, root)["chunk"].([]any) {
		if hstest.At(e, "sender") == "@bob:test" {
			bob.Must(t, "PUT", "{}", "/v3/rooms/%s/redact/%s/%s", room, hstest.At(e, "event_id"), bob.Txn())
		}
	}
	checkAll(t, []refusal{{"again after a redaction", bob, "PUT", path, []any{room, "m.reaction", "g"}, like("👍"), 200, ""}})
}

func TestRedact(t *testing.T) { hstest.Each(t, testRedact) }

func testRedact(t *testing.T, hs *hstest.Server) {
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	for _, version := range []string{"1", "3", "10", "11", "12"} {
		t.Run("version "+version, func(t *testing.T) {
			room := alice.CreateRoomWith(`{"preset":"public_chat","room_version":"` + version + `"}`)
			other := alice.CreateRoomWith(`{"preset":"public_chat","room_version":"` + version + `"}`)
			bob.Join(room)
			mine, yours, third := bob.Text(room, "mine"), alice.Text(room, "yours"), bob.Text(room, "third")
			create := ""
			for _, e := range list(t, bob, "/v3/rooms/%s/state", room) {
				if hstest.At(e, "type") == "m.room.create" {
					create = hstest.At(e, "event_id").(string)
				}
			}
			const path = "/v3/rooms/%s/redact/%s/%s"
			checkAll(t, []refusal{
				{"somebody else's", bob, "PUT", path, []any{room, yours, "1"}, `{}`, 403, "M_FORBIDDEN"},
				{"somebody else's, as an event", bob, "PUT", "/v3/rooms/%s/send/m.room.redaction/2", []any{room}, fmt.Sprintf(`{"redacts":%q}`, yours), 403, "M_FORBIDDEN"},
				{"from outside", eve, "PUT", path, []any{room, yours, "3"}, `{}`, 403, "M_FORBIDDEN"},
				{"no such event", bob, "PUT", path, []any{room, "$none", "4"}, `{}`, 404, "M_NOT_FOUND"},
				{"another room's event", alice, "PUT", path, []any{other, yours, "5"}, `{}`, 404, "M_NOT_FOUND"},
				{"the room's first event", alice, "PUT", path, []any{room, create, "6"}, `{}`, 403, "M_FORBIDDEN"},
				{"no target", bob, "PUT", "/v3/rooms/%s/send/m.room.redaction/7", []any{room}, `{}`, 400, "M_BAD_JSON"},
				{"reason of a wrong type", bob, "PUT", path, []any{room, mine, "8"}, `{"reason":1}`, 400, "M_BAD_JSON"},
				{"one's own", bob, "PUT", path, []any{room, mine, "9"}, `{"reason":"typo"}`, 200, ""},
				{"by power", alice, "PUT", path, []any{room, third, "10"}, ``, 200, ""},
				{"as an event", alice, "PUT", "/v3/rooms/%s/send/m.room.redaction/11", []any{room}, fmt.Sprintf(`{"redacts":%q,"reason":"r"}`, yours), 200, ""},
			})
			for _, target := range []id.EventID{mine, yours, third} {
				e := getEvent(t, bob, room, target)
				because := hstest.At(e, "unsigned", "redacted_because")
				if len(e["content"].(map[string]any)) != 0 || hstest.At(because, "type") != "m.room.redaction" {
					t.Errorf("after its redaction the event is %v", e)
				}
				redacts := hstest.At(because, "redacts")
				if redacts != string(target) {
					t.Errorf("the redaction names %v", redacts)
				}
			}
			if reason := hstest.At(getEvent(t, bob, room, mine), "unsigned", "redacted_because", "content", "reason"); reason != "typo" {
				t.Errorf("the reason is %v", reason)
			}
		})
	}
}
