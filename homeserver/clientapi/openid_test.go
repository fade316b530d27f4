package clientapi_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/hstest"
)

func TestOpenID(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := administrator(t, hs, "root"), hs.User("alice"), hs.User("bob")
		const path, info = "/v3/user/%s/openid/request_token", "/_matrix/federation/v1/openid/userinfo?access_token=%s"
		ask := func(c *hstest.Client) string {
			got := c.Must(t, "POST", `{}`, path, c.UserID)
			if got["token_type"] != "Bearer" || got["matrix_server_name"] != hstest.ServerName || got["expires_in"] != 3600.0 {
				t.Errorf("token: %v", got)
			}
			return got["access_token"].(string)
		}
		service := hs.Anonymous()
		token, phone := ask(alice), alice.Login()
		phones, bobs := ask(phone), ask(bob)
		for range 2 { // it may be shown to several services
			if got := service.Must(t, "GET", "", info, token); got["sub"] != string(alice.UserID) {
				t.Errorf("userinfo: %v", got)
			}
		}
		checkAll(t, []refusal{
			{"no token", service, "POST", path, []any{alice.UserID}, `{}`, 401, "M_MISSING_TOKEN"},
			{"another user's", bob, "POST", path, []any{alice.UserID}, `{}`, 403, "M_FORBIDDEN"},
			{"list", bob, "POST", path, []any{bob.UserID}, `[]`, 400, "M_BAD_JSON"},
			{"broken", bob, "POST", path, []any{bob.UserID}, `{`, 400, "M_NOT_JSON"},
			{"info of nothing", service, "GET", "/_matrix/federation/v1/openid/userinfo", nil, "", 401, "M_MISSING_TOKEN"},
			{"info of a wrong one", service, "GET", info, []any{"mho_" + token[4:20]}, "", 401, "M_UNKNOWN_TOKEN"},
			{"info of an access token", service, "GET", info, []any{alice.Token}, "", 401, "M_UNKNOWN_TOKEN"},
		})
		opener := alice.On(hs)
		opener.Token = token
		if r := opener.Do(t, "GET", "", "/v3/account/whoami"); r.Errcode != "M_UNKNOWN_TOKEN" {
			t.Errorf("an OpenID token opens the client API: %d %s", r.Status, r.Body)
		}
		phone.Must(t, "POST", "", "/v3/logout")
		root.Must(t, "PUT", `{"locked":true}`, "/v1/admin/lock/%s", bob.UserID)
		for name, dead := range map[string]string{"of a device that was signed out": phones, "of a locked account": bobs} {
			if r := service.Do(t, "GET", "", info, dead); r.Status != 401 || r.Errcode != "M_UNKNOWN_TOKEN" {
				t.Errorf("%s: %d %s", name, r.Status, r.Body)
			}
		}
		service.Must(t, "GET", "", info, token)
	})
}

func TestMutualRooms(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
		var want []string
		for i := range 3 {
			room := alice.CreateRoom("public_chat")
			if i < 2 {
				bob.Join(room)
				want = append(want, string(room))
			}
		}
		left := alice.CreateRoom("public_chat")
		bob.Join(left)
		bob.Leave(left)
		alice.Invite(alice.CreateRoom("private_chat"), bob.UserID)
		slices.Sort(want)
		const path = "/v1/mutual_rooms?user_id=%s"
		for _, tc := range []struct {
			who  *hstest.Client
			with string
			want []string
		}{{alice, string(bob.UserID), want}, {bob, string(alice.UserID), want}, {eve, string(alice.UserID), nil}, {alice, "@no body\U0001F600:else.where:1", nil}} {
			got := tc.who.Must(t, "GET", "", path, tc.with)
			if fmt.Sprint(got["joined"]) != fmt.Sprint(tc.want) || got["count"] != float64(len(tc.want)) || got["next_batch"] != nil {
				t.Errorf("%s with %s: %v, want %v", tc.who.UserID, tc.with, got, tc.want)
			}
		}
		after := base64.RawURLEncoding.EncodeToString([]byte(want[0]))
		if got := alice.Must(t, "GET", "", path+"&from=%s", bob.UserID, after); fmt.Sprint(got["joined"]) != fmt.Sprint(want[1:]) || got["count"] != 2.0 {
			t.Errorf("from %s: %v", after, got)
		}
		checkAll(t, []refusal{
			{"no token", hs.Anonymous(), "GET", path, []any{alice.UserID}, "", 401, "M_MISSING_TOKEN"},
			{"nobody named", alice, "GET", "/v1/mutual_rooms", nil, "", 400, "M_MISSING_PARAM"},
			{"oneself", alice, "GET", path, []any{alice.UserID}, "", 400, "M_INVALID_PARAM"},
			{"no user id", alice, "GET", path, []any{"bob"}, "", 400, "M_INVALID_PARAM"},
			{"no server", alice, "GET", path, []any{"@bob"}, "", 400, "M_INVALID_PARAM"},
			{"token of nothing", alice, "GET", path + "&from=%s", []any{bob.UserID, "s1_2"}, "", 400, "M_INVALID_PARAM"},
			{"empty token", alice, "GET", path + "&from=", []any{bob.UserID}, "", 400, "M_INVALID_PARAM"},
		})
	})
}

func TestMutualRoomsInBatches(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	const rooms = 103
	for range rooms {
		bob.Join(alice.CreateRoom("public_chat"))
	}
	var got []any
	from := ""
	for range 3 {
		page := bob.Must(t, "GET", "", "/v1/mutual_rooms?user_id=%s"+from, alice.UserID)
		if page["count"] != float64(rooms) {
			t.Errorf("count: %v", page["count"])
		}
		got = append(got, page["joined"].([]any)...)
		next, _ := page["next_batch"].(string)
		if next == "" {
			break
		}
		from = "&from=" + next
	}
	seen := map[any]bool{}
	for _, r := range got {
		seen[r] = true
	}
	if len(got) != rooms || len(seen) != rooms {
		t.Errorf("%d rooms, %d different ones", len(got), len(seen))
	}
}

func publicKey(t *testing.T, key gjson.Result) ed25519.PublicKey {
	t.Helper()
	public, err := base64.RawStdEncoding.DecodeString(key.Get("key").Str)
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestServerFactsForOthers(t *testing.T) {
	hs := hstest.Start(t)
	anyone := hs.Anonymous()
	r := anyone.Do(t, "GET", "", "/_matrix/key/v2/server")
	keys := gjson.GetBytes(r.Body, "verify_keys").Map()
	if r.Status != 200 || gjson.GetBytes(r.Body, "server_name").Str != hstest.ServerName || len(keys) != 1 {
		t.Fatalf("keys: %d %s", r.Status, r.Body)
	}
	for keyID, key := range keys {
		if err := event.VerifyJSON(r.Body, hstest.ServerName, keyID, publicKey(t, key)); err != nil {
			t.Errorf("the signature: %v", err)
		}
	}
	valid := time.UnixMilli(gjson.GetBytes(r.Body, "valid_until_ts").Int())
	if left := time.Until(valid); left < time.Hour || left > 7*24*time.Hour {
		t.Errorf("the keys are valid for %s", left)
	}
	for what, ask := range map[string]func() hstest.Response{
		"GET": func() hstest.Response {
			return anyone.Do(t, "GET", "", "/_matrix/key/v2/query/%s?minimum_valid_until_ts=1", hstest.ServerName)
		},
		"POST": func() hstest.Response {
			return anyone.Do(t, "POST", `{"server_keys":{"elsewhere.example":{},"`+hstest.ServerName+`":{"ed25519:x":{"minimum_valid_until_ts":1}}}}`, "/_matrix/key/v2/query")
		},
	} {
		r := ask()
		list := gjson.GetBytes(r.Body, "server_keys").Array()
		if r.Status != 200 || len(list) != 1 {
			t.Fatalf("%s: %d %s", what, r.Status, r.Body)
		}
		for keyID, key := range keys {
			if err := event.VerifyJSON([]byte(list[0].Raw), hstest.ServerName, keyID, publicKey(t, key)); err != nil {
				t.Errorf("%s: the signature: %v", what, err)
			}
		}
	}
	for what, r := range map[string]hstest.Response{
		"GET":     anyone.Do(t, "GET", "", "/_matrix/key/v2/query/elsewhere.example"),
		"POST":    anyone.Do(t, "POST", `{"server_keys":{"elsewhere.example":{}}}`, "/_matrix/key/v2/query"),
		"nothing": anyone.Do(t, "POST", `{"server_keys":{}}`, "/_matrix/key/v2/query"),
	} {
		if list := gjson.GetBytes(r.Body, "server_keys"); r.Status != 200 || list.Raw != "[]" {
			t.Errorf("%s for another server: %d %s", what, r.Status, r.Body)
		}
	}
	if got := anyone.Must(t, "GET", "", "/_matrix/federation/v1/version"); hstest.At(got, "server", "name") != "Moothall" || hstest.At(got, "server", "version") == "" {
		t.Errorf("version: %v", got)
	}
	checkAll(t, []refusal{
		{"no delegation", anyone, "GET", "/.well-known/matrix/server", nil, "", 404, "M_NOT_FOUND"},
		{"keys until no time", anyone, "GET", "/_matrix/key/v2/query/x?minimum_valid_until_ts=soon", nil, "", 400, "M_INVALID_PARAM"},
		{"keys of nobody", anyone, "POST", "/_matrix/key/v2/query", nil, "{}", 400, "M_MISSING_PARAM"},
		{"keys of a list", anyone, "POST", "/_matrix/key/v2/query", nil, `{"server_keys":[]}`, 400, "M_BAD_JSON"},
		{"keys until a word", anyone, "POST", "/_matrix/key/v2/query", nil, `{"server_keys":{"a":{"b":{"minimum_valid_until_ts":"c"}}}}`, 400, "M_BAD_JSON"},
		{"no policy server", anyone, "GET", "/.well-known/matrix/policy_server", nil, "", 404, "M_NOT_FOUND"},
	})
	delegated := hstest.Start(t, func(c *homeserver.Config) { c.WellKnown.Server = "matrix.example.org:443" })
	if got := delegated.Anonymous().Must(t, "GET", "", "/.well-known/matrix/server"); got["m.server"] != "matrix.example.org:443" {
		t.Errorf("delegation: %v", got)
	}
}

func TestThirdPartyLookups(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	const base = "/v3/thirdparty"
	checkAll(t, []refusal{
		{"protocols", alice, "GET", base + "/protocols", nil, "", 200, ""},
		{"protocol", alice, "GET", base + "/protocol/%s", []any{"irc"}, "", 404, "M_NOT_FOUND"},
		{"locations of a protocol", alice, "GET", base + "/location/irc?channel=x", nil, "", 404, "M_NOT_FOUND"},
		{"users of a protocol", alice, "GET", base + "/user/irc", nil, "", 404, "M_NOT_FOUND"},
		{"locations of an alias", alice, "GET", base + "/location?alias=%s", []any{"#a:test"}, "", 404, "M_NOT_FOUND"},
		{"locations of nothing", alice, "GET", base + "/location", nil, "", 400, "M_MISSING_PARAM"},
		{"users", alice, "GET", base + "/user?userid=%s", []any{"@a:test"}, "", 404, "M_NOT_FOUND"},
		{"users of nothing", alice, "GET", base + "/user", nil, "", 400, "M_MISSING_PARAM"},
		{"no token", hs.Anonymous(), "GET", base + "/user", nil, "", 401, "M_MISSING_TOKEN"},
	})
}

func TestOldSync(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
		room, left, invited := alice.CreateRoom("public_chat"), alice.CreateRoom("public_chat"), alice.CreateRoom("private_chat")
		bob.Join(room)
		bob.Join(left)
		text, before := alice.Text(room, "hello"), alice.Text(left, "before")
		bob.Leave(left)
		after := alice.Text(left, "after")
		alice.Invite(invited, bob.UserID)
		bob.Must(t, "PUT", `{"a":1}`, "/v3/user/%s/account_data/org.example", bob.UserID)

		got := bob.Must(t, "GET", "", "/v3/initialSync?limit=2")
		memberships := map[any]any{}
		for i := range got["rooms"].([]any) {
			entry := hstest.At(got, "rooms", i)
			memberships[hstest.At(entry, "room_id")] = hstest.At(entry, "membership")
			switch hstest.At(entry, "room_id") {
			case string(room):
				if hstest.At(entry, "messages", "chunk", -1, "event_id") != string(text) || hstest.At(entry, "messages", "chunk", 2) != nil || hstest.At(entry, "state", 3) == nil {
					t.Errorf("the room: %v", entry)
				}
			case string(invited):
				if hstest.At(entry, "invite", "content", "membership") != "invite" || hstest.At(entry, "state") != nil {
					t.Errorf("the invite: %v", entry)
				}
			}
		}
		if len(memberships) != 2 || memberships[string(room)] != "join" || memberships[string(invited)] != "invite" {
			t.Errorf("rooms: %v", memberships)
		}
		types := fmt.Sprintf("%v %v", hstest.At(got, "account_data", 0, "type"), hstest.At(got, "account_data", -1, "type"))
		if types != "org.example m.push_rules" {
			t.Errorf("account data: %v", got["account_data"])
		}
		for _, data := range [][2]string{{"m.ignored_user_list", `{"ignored_users":{"@alice:test":{}}}`}, {"m.invite_permission_config", `{"default_action":"block"}`}} {
			bob.Must(t, "PUT", data[1], "/v3/user/%s/account_data/%s", bob.UserID, data[0])
			if rooms := bob.Must(t, "GET", "", "/v3/initialSync?limit=2")["rooms"].([]any); len(rooms) != 1 {
				t.Errorf("%s: the invitation is told of: %v", data[0], rooms)
			}
			bob.Must(t, "PUT", `{}`, "/v3/user/%s/account_data/%s", bob.UserID, data[0])
		}
		archived := bob.Must(t, "GET", "", "/v3/initialSync?archived=true")
		seen := false
		for i := range archived["rooms"].([]any) {
			if entry := hstest.At(archived, "rooms", i); hstest.At(entry, "room_id") == string(left) {
				seen = hstest.At(entry, "membership") == "leave"
			}
		}
		if !seen {
			t.Errorf("the room that was left is not there: %v", archived["rooms"])
		}
		if got := eve.Must(t, "GET", "", "/v3/initialSync"); len(got["rooms"].([]any)) != 0 || hstest.At(got, "account_data", 0, "type") != "m.push_rules" {
			t.Errorf("of a new user: %v", got)
		}
		alice.Text(room, "news")
		if got := bob.Must(t, "GET", "", "/v3/events?timeout=0&from=%s", got["end"]); hstest.At(got, "chunk", 0, "content", "body") != "news" {
			t.Errorf("events behind the end of initialSync: %v", got)
		}
		const one = "/v3/events/%s"
		if got := bob.Must(t, "GET", "", one, text); got["room_id"] != string(room) {
			t.Errorf("the event: %v", got)
		}
		checkAll(t, []refusal{
			{"bad limit", bob, "GET", "/v3/initialSync?limit=-1", nil, "", 400, "M_INVALID_PARAM"},
			{"bad archived", bob, "GET", "/v3/initialSync?archived=yes", nil, "", 400, "M_INVALID_PARAM"},
			{"no token", hs.Anonymous(), "GET", "/v3/initialSync", nil, "", 401, "M_MISSING_TOKEN"},
			{"before leaving", bob, "GET", one, []any{before}, "", 200, ""},
			{"after leaving", bob, "GET", one, []any{after}, "", 404, "M_NOT_FOUND"},
			{"not a member", eve, "GET", one, []any{text}, "", 404, "M_NOT_FOUND"},
			{"no event", bob, "GET", one, []any{"$none"}, "", 404, "M_NOT_FOUND"},
			{"no event id", bob, "GET", one, []any{"x"}, "", 404, "M_NOT_FOUND"},
		})
	})
}
