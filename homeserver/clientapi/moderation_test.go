package clientapi_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/web"
)

// administrator makes an administrator as the command line does, and signs in.
func administrator(t *testing.T, hs *hstest.Server, localpart string) *hstest.Client {
	t.Helper()
	c := hs.Anonymous()
	c.Password = "correct horse battery " + localpart
	var err error
	if c.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), localpart, c.Password, true); err != nil {
		t.Fatal(err)
	}
	return c.Login()
}

func TestModeration(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, other, alice, gone := administrator(t, hs, "root"), administrator(t, hs, "other"), hs.User("alice"), hs.User("gone")
		gone.Must(t, "POST", `{"auth":`+passwordStage(gone)+`}`, "/v3/account/deactivate")
		for _, tc := range []struct {
			c    *hstest.Client
			want any
		}{{root, true}, {alice, nil}} {
			if got := hstest.At(tc.c.Must(t, "GET", "", "/v3/capabilities"), "capabilities", "m.account_moderation", "suspend"); got != tc.want {
				t.Errorf("m.account_moderation of %s: %v", tc.c.UserID, got)
			}
		}
		for _, what := range []struct{ path, member string }{{"/v1/admin/lock/%s", "locked"}, {"/v1/admin/suspend/%s", "suspended"}} {
			on := fmt.Sprintf(`{%q:true}`, what.member)
			id := []any{alice.UserID}
			checkAll(t, []refusal{
				{"no token", hs.Anonymous(), "PUT", what.path, id, on, 401, "M_MISSING_TOKEN"},
				{"no administrator", alice, "PUT", what.path, id, on, 403, "M_FORBIDDEN"},
				{"no administrator asks", alice, "GET", what.path, id, "", 403, "M_FORBIDDEN"},
				{"no administrator, nobody", alice, "GET", what.path, []any{"@nobody:test"}, "", 403, "M_FORBIDDEN"},
				{"oneself", root, "PUT", what.path, []any{root.UserID}, on, 403, "M_FORBIDDEN"},
				{"another administrator", root, "PUT", what.path, []any{other.UserID}, on, 403, "M_FORBIDDEN"},
				{"asks of another administrator", root, "GET", what.path, []any{other.UserID}, "", 403, "M_FORBIDDEN"},
				{"another server's", root, "PUT", what.path, []any{"@alice:elsewhere"}, on, 400, "M_INVALID_PARAM"},
				{"no user id", root, "GET", what.path, []any{"alice"}, "", 400, "M_INVALID_PARAM"},
				{"nobody", root, "PUT", what.path, []any{"@nobody:test"}, on, 404, "M_NOT_FOUND"},
				{"deactivated", root, "GET", what.path, []any{gone.UserID}, "", 404, "M_NOT_FOUND"},
				{"nothing", root, "PUT", what.path, id, `{}`, 400, "M_MISSING_PARAM"},
				{"text", root, "PUT", what.path, id, strings.Replace(on, "true", `"true"`, 1), 400, "M_BAD_JSON"},
				{"broken", root, "PUT", what.path, id, `{`, 400, "M_NOT_JSON"},
			})
			for _, want := range []bool{true, true, false} {
				body := fmt.Sprintf(`{%q:%v}`, what.member, want)
				if got := root.Must(t, "PUT", body, what.path, alice.UserID); got[what.member] != want {
					t.Errorf("PUT %s: %v", body, got)
				}
				if got := root.Must(t, "GET", "", what.path, alice.UserID); got[what.member] != want {
					t.Errorf("GET after %s: %v", body, got)
				}
			}
			alice.Must(t, "GET", "", "/v3/account/whoami")
		}
		root.Must(t, "PUT", `{"locked":true}`, "/v1/admin/lock/%s", alice.UserID)
		r := alice.Do(t, "GET", "", "/v3/account/whoami")
		if r.Status != 401 || r.Errcode != "M_USER_LOCKED" || !strings.Contains(string(r.Body), `"soft_logout":true`) {
			t.Errorf("a locked account: %d %s", r.Status, r.Body)
		}
	})
}

func TestSuspended(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := administrator(t, hs, "root"), hs.User("alice"), hs.User("bob")
		room, open, invited := alice.CreateRoom("public_chat"), bob.CreateRoom("public_chat"), bob.CreateRoom("private_chat")
		bob.Join(room)
		mine, bobs, again := alice.Text(room, "mine"), bob.Text(room, "bob's"), alice.Text(room, "again")
		bob.Invite(invited, alice.UserID)
		root.Must(t, "PUT", `{"suspended":true}`, "/v1/admin/suspend/%s", alice.UserID)

		const suspended = "M_USER_SUSPENDED"
		in := []any{room}
		checkAll(t, []refusal{
			{"send", alice, "PUT", "/v3/rooms/%s/send/m.room.message/t1", in, `{"msgtype":"m.text","body":"x"}`, 403, suspended},
			{"react", alice, "PUT", "/v3/rooms/%s/send/m.reaction/t2", in, `{}`, 403, suspended},
			{"state", alice, "PUT", "/v3/rooms/%s/state/m.room.topic/", in, `{"topic":"x"}`, 403, suspended},
			{"redact another's", alice, "PUT", "/v3/rooms/%s/redact/%s/t3", []any{room, bobs}, `{}`, 403, suspended},
			{"redact another's by send", alice, "PUT", "/v3/rooms/%s/send/m.room.redaction/t4", in, fmt.Sprintf(`{"redacts":%q}`, bobs), 403, suspended},
			{"redact one's own", alice, "PUT", "/v3/rooms/%s/redact/%s/t5", []any{room, mine}, `{}`, 200, ""},
			{"redact one's own by send", alice, "PUT", "/v3/rooms/%s/send/m.room.redaction/t6", in, fmt.Sprintf(`{"redacts":%q}`, again), 200, ""},
			{"create", alice, "POST", "/v3/createRoom", nil, `{}`, 403, suspended},
			{"join", alice, "POST", "/v3/rooms/%s/join", []any{open}, `{}`, 403, suspended},
			{"join by alias", alice, "POST", "/v3/join/%s", []any{open}, `{}`, 403, suspended},
			{"knock", alice, "POST", "/v3/knock/%s", []any{open}, `{}`, 403, suspended},
			{"accept an invite", alice, "POST", "/v3/rooms/%s/join", []any{invited}, `{}`, 403, suspended},
			{"invite", alice, "POST", "/v3/rooms/%s/invite", in, `{"user_id":"@root:test"}`, 403, suspended},
			{"kick", alice, "POST", "/v3/rooms/%s/kick", in, `{"user_id":"@bob:test"}`, 403, suspended},
			{"ban", alice, "POST", "/v3/rooms/%s/ban", in, `{"user_id":"@bob:test"}`, 403, suspended},
			{"type", alice, "PUT", "/v3/rooms/%s/typing/%s", []any{room, alice.UserID}, `{"typing":false}`, 403, suspended},
			{"profile", alice, "PUT", "/v3/profile/%s/displayname", []any{alice.UserID}, `{"displayname":"x"}`, 403, suspended},
			{"profile away", alice, "DELETE", "/v3/profile/%s/displayname", []any{alice.UserID}, "", 403, suspended},
			{"alias", alice, "PUT", "/v3/directory/room/%s", []any{"#a:test"}, fmt.Sprintf(`{"room_id":%q}`, room), 403, suspended},
			{"remove an address", alice, "POST", "/v3/account/3pid/delete", nil, `{"medium":"email","address":"a@b.c"}`, 403, suspended},
			{"read", alice, "GET", "/v3/rooms/%s/messages?dir=b", in, "", 200, ""},
			{"receipt", alice, "POST", "/v3/rooms/%s/receipt/m.read/%s", []any{room, bobs}, `{}`, 200, ""},
			{"account data", alice, "PUT", "/v3/user/%s/account_data/org.example", []any{alice.UserID}, `{}`, 200, ""},
			{"keys of others", alice, "POST", "/v3/keys/query", nil, `{"device_keys":{"@bob:test":[]}}`, 200, ""},
			{"to-device", alice, "PUT", "/v3/sendToDevice/m.key.verification.request/t7", nil, `{"messages":{}}`, 200, ""},
			{"filter", alice, "POST", "/v3/user/%s/filter", []any{alice.UserID}, `{}`, 200, ""},
			{"decline an invite", alice, "POST", "/v3/rooms/%s/leave", []any{invited}, `{}`, 200, ""},
		})
		alice.Sync("")
		other := alice.Login() // which is suspended too
		checkAll(t, []refusal{
			{"another session", other, "POST", "/v3/createRoom", nil, `{}`, 403, suspended},
			{"sign it out", other, "POST", "/v3/logout", nil, ``, 200, ""},
			{"leave", alice, "POST", "/v3/rooms/%s/leave", in, `{}`, 200, ""},
		})
		root.Must(t, "PUT", `{"suspended":false}`, "/v1/admin/suspend/%s", alice.UserID)
		alice.Join(open)
		alice.Text(open, "back")
		root.Must(t, "PUT", `{"suspended":true}`, "/v1/admin/suspend/%s", alice.UserID)
		alice.Must(t, "POST", `{"auth":`+passwordStage(alice)+`}`, "/v3/account/deactivate")
	})
}

// TestSuspendedRoutes holds the table to its rule: what acts in rooms or is seen by others is not open to suspended users.
func TestSuspendedRoutes(t *testing.T) {
	hs := hstest.Start(t)
	allowed := map[string]bool{}
	for _, rt := range hs.Instance.Routes() {
		if rt.AllowSuspended && (rt.Auth == web.Public || rt.Auth == web.Admin || rt.Auth == web.AppService) {
			t.Errorf("%s: the mark has no meaning there", rt.Pattern)
		}
		allowed[rt.Pattern] = rt.AllowSuspended
	}
	for _, pattern := range []string{
		"POST /_matrix/client/v3/createRoom", "POST /_matrix/client/v3/join/{roomIdOrAlias}", "POST /_matrix/client/v3/knock/{roomIdOrAlias}",
		"POST /_matrix/client/v3/rooms/{roomId}/invite", "PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}",
		"POST /_matrix/client/v3/rooms/{roomId}/upgrade", "PUT /_matrix/client/v3/profile/{userId}/{keyName}", "POST /_matrix/media/v3/upload",
	} {
		if open, known := allowed[pattern]; open || !known {
			t.Errorf("%s: open to suspended users: %v, known: %v", pattern, open, known)
		}
	}
}

func TestWhois(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := administrator(t, hs, "root"), hs.User("alice"), hs.User("bob")
		const path = "/v3/admin/whois/%s"
		for _, c := range []*hstest.Client{alice, root} {
			got := c.Must(t, "GET", "", path, alice.UserID)
			if got["user_id"] != string(alice.UserID) || hstest.At(got, "devices", string(alice.DeviceID), "sessions", 0) == nil {
				t.Errorf("whois by %s: %v", c.UserID, got)
			}
		}
		checkAll(t, []refusal{
			{"no token", hs.Anonymous(), "GET", path, []any{alice.UserID}, "", 401, "M_MISSING_TOKEN"},
			{"another user", bob, "GET", path, []any{alice.UserID}, "", 403, "M_FORBIDDEN"},
			{"another user who is nobody", bob, "GET", path, []any{"@nobody:test"}, "", 403, "M_FORBIDDEN"},
			{"nobody", root, "GET", path, []any{"@nobody:test"}, "", 404, "M_NOT_FOUND"},
			{"elsewhere", root, "GET", path, []any{"@alice:elsewhere"}, "", 400, "M_INVALID_PARAM"},
		})
	})
}
