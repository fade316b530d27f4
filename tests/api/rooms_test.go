package api_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// refuses asks for an error and finds out that it is one of these.
func refuses(t *testing.T, c *hstest.Client, statuses []int, method, body, path string, args ...any) {
	t.Helper()
	if r := c.Do(t, method, body, path, args...); !slices.Contains(statuses, r.Status) {
		t.Errorf("%s %s %s by %s: %d %s, want %v", method, fmt.Sprintf(path, args...), body, c.UserID, r.Status, r.Body, statuses)
	}
}

// TestForgedMembership sets members' state by hand, with what only a server may vouch for.
// Spec: "Restricted rooms" (the server must verify the conditions), "Third-party invites", room v10 auth rule 4.
func TestForgedMembership(t *testing.T) {
	forbidden := []int{http.StatusForbidden}
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
		for _, version := range []string{"8", "10", "11", "12"} {
			allowed := alice.CreateRoomWith(`{"preset":"public_chat","room_version":"` + version + `"}`)
			room := alice.CreateRoomWith(fmt.Sprintf(`{"room_version":%q,"initial_state":[{"type":"m.room.join_rules","content":
				{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q},{"type":"org.example.other"},{"type":"m.room_membership"}]}}]}`, version, allowed))
			own := func(c *hstest.Client, content string, statuses []int) {
				t.Helper()
				refuses(t, c, statuses, "PUT", content, "/v3/rooms/%s/state/m.room.member/%s", room, c.UserID)
			}
			forged := fmt.Sprintf(`{"membership":"join","join_authorised_via_users_server":%q}`, alice.UserID)
			own(eve, forged, forbidden)
			own(eve, `{"membership":"join"}`, forbidden)
			own(eve, `{"membership":"invite"}`, forbidden)
			own(eve, `{"membership":"knock"}`, forbidden)
			own(eve, `{"membership":"join","third_party_invite":{"signed":{"mxid":"@eve:test","token":"t","signatures":{}}}}`, forbidden)
			own(eve, `{"membership":"dance"}`, []int{400, 403})
			own(eve, `{"membership":7}`, []int{400, 403})
			own(eve, `{}`, []int{400, 403})
			// joining by hand is joining: the conditions hold, whatever the client claims about them
			bob.Join(allowed)
			own(bob, forged, []int{http.StatusOK})
			member := bob.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.member/%s", room, bob.UserID)
			if via := member["join_authorised_via_users_server"]; via != string(alice.UserID) {
				t.Errorf("version %s: joined by the word of %v", version, via)
			}
			// the conditions are for joining, not for staying
			bob.Leave(allowed)
			bob.Text(room, "still here")
			bob.Leave(room)
			refuses(t, bob, forbidden, "POST", "{}", "/v3/rooms/%s/join", room)
			alice.Invite(room, bob.UserID)
			bob.Join(room)
			refuses(t, bob, forbidden, "PUT", `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"mxid":"@eve:test","token":"t","signatures":{"x":{"y":"z"}}}}}`,
				"/v3/rooms/%s/state/m.room.member/%s", room, eve.UserID)
			refuses(t, bob, forbidden, "PUT", `{"membership":"ban"}`, "/v3/rooms/%s/state/m.room.member/%s", room, alice.UserID)
			refuses(t, bob, forbidden, "PUT", `{"membership":"leave"}`, "/v3/rooms/%s/state/m.room.member/%s", room, alice.UserID)
			refuses(t, bob, forbidden, "PUT", `{"users":{"@bob:test":100}}`, "/v3/rooms/%s/state/m.room.power_levels/", room)
			for _, eventType := range []string{"m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules"} {
				// As messages these are nothing that the room's state knows.
				if r := bob.Do(t, "PUT", `{"membership":"join","join_rule":"public"}`, "/v3/rooms/%s/send/%s/%s", room, eventType, bob.Txn()); r.Status == http.StatusOK {
					refuses(t, eve, forbidden, "POST", "{}", "/v3/rooms/%s/join", room)
				}
			}
		}
	})
}

// TestRelationsAcrossRooms points relations at events they may not change.
// Spec: "Validity of replacement events", "Aggregations of child events".
func TestRelationsAcrossRooms(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room, other := alice.CreateRoom("public_chat"), bob.CreateRoom("public_chat")
		bob.Join(room)
		target := alice.Text(room, "original")
		topic := alice.State(room, "m.room.topic", "", `{"topic":"original"}`)
		replace := func(event id.EventID, rest string) string {
			return fmt.Sprintf(`{"msgtype":"m.text","body":"* changed",%s"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, rest, event)
		}
		const content = `"m.new_content":{"msgtype":"m.text","body":"changed"},`
		send := func(c *hstest.Client, in id.RoomID, eventType, body string) id.EventID {
			r := c.Do(t, "PUT", body, "/v3/rooms/%s/send/%s/%s", in, eventType, c.Txn())
			if r.Status != http.StatusOK && r.Status != http.StatusBadRequest && r.Status != http.StatusNotFound {
				t.Errorf("a relation is answered with %d %s", r.Status, r.Body)
			}
			var out struct {
				ID id.EventID `json:"event_id"`
			}
			r.JSON(t, &out)
			return out.ID
		}
		send(bob, other, "m.room.message", replace(target, content)) // another room
		send(bob, room, "m.room.message", replace(target, content))  // somebody else's
		send(alice, room, "m.sticker", replace(target, content))     // another type
		send(alice, room, "m.room.message", replace(target, ""))     // nothing new
		send(alice, room, "m.room.topic", replace(topic, content))   // state
		send(bob, other, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"k"}}`, target))
		send(bob, other, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, target))
		check := func(event id.EventID, want any) {
			t.Helper()
			for _, path := range []string{"/v3/rooms/%s/event/%s", "/v3/rooms/%s/context/%s"} {
				m := alice.Must(t, "GET", "", path, room, event)
				if whole, ok := m["event"]; ok {
					m = whole.(map[string]any)
				}
				if got := hstest.At(m, "unsigned", "m.relations", "m.replace", "event_id"); got != want {
					t.Errorf(path+" bundles %v, want %v", room, event, got, want)
				}
				if thread := hstest.At(m, "unsigned", "m.relations", "m.thread"); thread != nil {
					t.Errorf("another room's thread is bundled: %v", thread)
				}
			}
		}
		check(target, nil)
		check(topic, nil)
		first := send(alice, room, "m.room.message", replace(target, content))
		check(target, string(first))
		second := send(alice, room, "m.room.message", replace(target, content))
		send(alice, room, "m.room.message", replace(second, content)) // an edit of an edit
		check(target, string(second))
		check(second, nil)
		alice.Must(t, "PUT", "{}", "/v3/rooms/%s/redact/%s/r", room, second)
		check(target, string(first))
		children := alice.Must(t, "GET", "", "/v1/rooms/%s/relations/%s/m.annotation", room, target)
		if list, _ := children["chunk"].([]any); len(list) != 0 {
			t.Errorf("another room's reaction is listed: %v", list)
		}
	})
}

// TestRedactedEverywhere takes messages and names back and looks for them wherever they could still be read.
// Spec: "Redactions".
func TestRedactedEverywhere(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		since := fmt.Sprint(bob.Sync("")["next_batch"])
		root := alice.Text(room, "secret root")
		reply := alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"secret reply","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, root))
		edit := alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"* secret edit @bob:test","m.mentions":{"user_ids":["@bob:test"]},"m.new_content":
			{"msgtype":"m.text","body":"secret edit"},"m.relates_to":{"rel_type":"m.replace","event_id":%q}}`, root))
		topic := alice.State(room, "m.room.topic", "", `{"topic":"secret topic"}`)
		member := alice.State(room, "m.room.member", string(alice.UserID), `{"membership":"join","displayname":"secret name"}`)
		before := fmt.Sprint(bob.Sync("")["next_batch"])
		for i, event := range []id.EventID{root, reply, edit, topic, member} {
			alice.Must(t, "PUT", "{}", "/v3/rooms/%s/redact/%s/%v", room, event, i)
		}
		paths := []string{
			"/v3/rooms/%s/messages?dir=b&limit=50", "/v3/rooms/%s/messages?dir=f&limit=50", "/v3/rooms/%s/state", "/v3/rooms/%s/members", "/v3/rooms/%s/joined_members",
			"/v3/rooms/%s/initialSync", "/v1/rooms/%s/threads", "/v1/room_summary/%s", "/v1/rooms/%s/hierarchy", "/v3/rooms/%s/context/" + string(root),
			"/v3/rooms/%s/context/" + string(topic), "/v1/rooms/%s/relations/" + string(root), "/v1/rooms/%s/relations/" + string(root) + "?recurse=true",
			"/v3/notifications?x=%s", "/v3/publicRooms?x=%s", "/v3/sync?x=%s", "/v3/sync?full_state=true&x=%s", "/v3/sync?since=" + since + "&x=%s", "/v3/sync?since=" + before + "&x=%s",
			"/v3/rooms/%s/state/m.room.topic", "/v3/rooms/%s/state/m.room.member/@alice:test", "/v3/events?room_id=%s&timeout=0&from=t1",
		}
		for _, event := range []id.EventID{root, reply, edit, topic, member} {
			paths = append(paths, "/v3/rooms/%s/event/"+string(event))
		}
		for _, reader := range []*hstest.Client{alice, bob} {
			for _, path := range paths {
				if r := reader.Do(t, "GET", "", path, room); r.Status != http.StatusOK || strings.Contains(string(r.Body), "secret") {
					t.Errorf("%s asks %s: %d %s", reader.UserID, path, r.Status, r.Body)
				}
			}
		}
		if r := bob.Do(t, "GET", "", "/v3/rooms/%s/state/m.room.member/%s", room, alice.UserID); !strings.Contains(string(r.Body), `"join"`) {
			t.Errorf("the redaction of a name took the membership along: %s", r.Body)
		}
	})
}

// TestOddNumbers sends content that canonical JSON does not have to rooms of all versions: refused from version 6 on,
// kept before. Spec: appendices, "Canonical JSON"; rooms v6, "Canonical JSON".
func TestOddNumbers(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		for version := 1; version <= 12; version++ {
			room := alice.CreateRoomWith(fmt.Sprintf(`{"room_version":"%d"}`, version))
			for _, number := range []string{"1.5", "1e2", "1e400", "-0", "9007199254740992", "99999999999999999999", "-9007199254740991", "1.0", "-1e-400"} {
				content := `{"msgtype":"m.text","body":"x","n":` + number + `}`
				for _, r := range []hstest.Response{
					alice.Do(t, "PUT", content, "/v3/rooms/%s/send/m.room.message/%s", room, number),
					alice.Do(t, "PUT", content, "/v3/rooms/%s/state/org.example.n/%s", room, number),
				} {
					if number == "1e400" && r.Status == http.StatusOK || version >= 6 && number != "-9007199254740991" && number != "-0" && r.Status != http.StatusBadRequest ||
						r.Status != http.StatusOK && r.Errcode != "M_BAD_JSON" {
						t.Errorf("version %d, %s: %d %s", version, number, r.Status, r.Body)
					}
				}
			}
			alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=50", room)
			if r := alice.Do(t, "GET", "", "/v3/rooms/%s/state", room); r.Status != http.StatusOK {
				t.Errorf("version %d: state: %d %s", version, r.Status, r.Body)
			}
		}
		alice.Sync("full_state=true")
	})
}

// TestTransactionScope repeats transaction ids. Spec: "Transaction identifiers": the scope is one device and one endpoint.
func TestTransactionScope(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		phone := alice.Login()
		room, other := alice.CreateRoom("public_chat"), alice.CreateRoom("public_chat")
		send := func(c *hstest.Client, path string, args ...any) string {
			t.Helper()
			return fmt.Sprint(c.Must(t, "PUT", `{"msgtype":"m.text","body":"x"}`, path, args...)["event_id"])
		}
		const message = "/v3/rooms/%s/send/m.room.message/t"
		first := send(alice, message, room)
		seen := map[string]string{first: "first"}
		for name, id := range map[string]string{
			"another room":   send(alice, message, other),
			"another device": send(phone, message, room),
			"another type":   send(alice, "/v3/rooms/%s/send/m.sticker/t", room),
			"a redaction":    send(alice, "/v3/rooms/%s/redact/%s/t", room, first),
		} {
			if seen[id] != "" {
				t.Errorf("%s got the event of %s", name, seen[id])
			}
			seen[id] = name
		}
		if again := send(alice, message, room); again != first {
			t.Errorf("repeated, the message is %s, before %s", again, first)
		}
		count := 0
		for _, e := range alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=50", room)["chunk"].([]any) {
			if hstest.At(e, "type") == "m.room.message" {
				count++
			}
		}
		if count != 2 {
			t.Errorf("%d messages in the room, want 2", count)
		}
	})
}

// TestForgottenRooms leaves rooms and forgets them. Spec: "Leaving rooms": forgotten rooms never appear in /sync until the
// user joins again, is invited again, or knocks.
func TestForgottenRooms(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("private_chat")
		sections := func(what string, want string) {
			t.Helper()
			m := bob.Sync(`filter={"room":{"include_leave":true}}`)
			got := ""
			for _, section := range []string{"join", "invite", "leave", "knock"} {
				if hstest.At(m, "rooms", section, string(room)) != nil {
					got += section
				}
			}
			if got != want {
				t.Errorf("%s: the room is in %q, want %q", what, got, want)
			}
		}
		alice.Invite(room, bob.UserID)
		sections("invited", "invite")
		bob.Leave(room)
		sections("rejected", "leave")
		bob.Must(t, "POST", "{}", "/v3/rooms/%s/forget", room)
		sections("forgotten", "")
		alice.Text(room, "nobody hears")
		sections("forgotten, with news", "")
		alice.Invite(room, bob.UserID)
		sections("invited again", "invite")
		bob.Join(room)
		sections("joined", "join")
		alice.Must(t, "POST", fmt.Sprintf(`{"user_id":%q}`, bob.UserID), "/v3/rooms/%s/ban", room)
		sections("banned", "leave")
		bob.Must(t, "POST", "{}", "/v3/rooms/%s/forget", room)
		alice.Must(t, "POST", fmt.Sprintf(`{"user_id":%q}`, bob.UserID), "/v3/rooms/%s/unban", room)
		sections("banned, forgotten, unbanned", "")
		refuses(t, bob, []int{http.StatusForbidden}, "GET", "", "/v3/rooms/%s/messages?dir=b", room)
		alice.State(room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
		bob.Must(t, "POST", "{}", "/v3/knock/%s", room)
		sections("knocked", "knock")
		bob.Leave(room)
		sections("knock taken back", "leave")
	})
}
