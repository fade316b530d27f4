package adminapi_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// admin makes an administrator.
func admin(t *testing.T, hs *hstest.Server) *hstest.Client {
	t.Helper()
	c := hs.Anonymous()
	c.Password = "correct horse battery root"
	var err error
	if c.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "root", c.Password, true); err != nil {
		t.Fatal(err)
	}
	return c.Login()
}

// want sends a request of the admin API and expects a status.
func want(t *testing.T, c *hstest.Client, status int, method, path, body string) map[string]any {
	t.Helper()
	r := c.Do(t, method, body, "/_synapse/admin"+strings.ReplaceAll(path, "%", "%%"))
	if r.Status != status {
		t.Fatalf("%s %s: %d instead of %d: %s", method, path, r.Status, status, r.Body)
	}
	var out map[string]any
	r.JSON(t, &out)
	return out
}

func q(s any) string { return url.PathEscape(fmt.Sprint(s)) }

func TestOnlyAdministrators(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	for _, path := range []string{"/v2/users", "/v1/rooms", "/v1/scheduled_tasks", "/v1/registration_tokens", "/v2/users/" + q(alice.UserID)} {
		if r := alice.Do(t, "GET", "", "/_synapse/admin"+strings.ReplaceAll(path, "%", "%%")); r.Status != http.StatusForbidden {
			t.Errorf("%s as a user: %d", path, r.Status)
		}
		if r := hs.Anonymous().Do(t, "GET", "", "/_synapse/admin"+strings.ReplaceAll(path, "%", "%%")); r.Status != http.StatusUnauthorized {
			t.Errorf("%s without a token: %d", path, r.Status)
		}
	}
}

// TestWebTools has what an administration tool in a browser needs before it signs in.
func TestWebTools(t *testing.T) {
	hs := hstest.Start(t)
	r := hs.Anonymous().Do(t, "GET", "", "/_synapse/admin/v1/server_version")
	if r.Status != http.StatusOK || r.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("the version: %d %v", r.Status, r.Header)
	}
	for _, path := range []string{"/_synapse/admin/v1/server_version", "/_synapse/admin/v2/users", "/_synapse/admin/v1/users/@a:b/override_ratelimit"} {
		r := hs.Anonymous().Do(t, "OPTIONS", "", path)
		if r.Status/100 != 2 || r.Header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(r.Header.Get("Access-Control-Allow-Headers"), "Authorization") {
			t.Errorf("preflight of %s: %d %v", path, r.Status, r.Header)
		}
	}
}

func TestUsers(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root := admin(t, hs)
		name := "@bob:" + root.UserID.Homeserver()
		path := "/v2/users/" + q(name)
		want(t, root, 404, "GET", path, "")
		made := want(t, root, 201, "PUT", path, `{"password":"a long pass phrase","displayname":"Bob 王","threepids":[{"medium":"email","address":"Bob@example.com"}],"user_type":"bot"}`)
		if made["displayname"] != "Bob 王" || made["user_type"] != "bot" || hstest.At(made, "threepids", 0, "address") != "bob@example.com" || made["admin"] != false {
			t.Errorf("made %v", made)
		}
		if r := hs.Anonymous().Do(t, "POST", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"a long pass phrase"}`, "/v3/login"); r.Status != 200 {
			t.Errorf("sign-in: %s", r.Body)
		}
		want(t, root, 200, "PUT", path, `{"displayname":"Robert","user_type":null,"threepids":[],"admin":true}`)
		got := want(t, root, 200, "GET", path, "")
		if got["displayname"] != "Robert" || got["user_type"] != nil || got["admin"] != true || len(got["threepids"].([]any)) != 0 {
			t.Errorf("changed %v", got)
		}
		want(t, root, 200, "PUT", path, `{"admin":false,"locked":true}`)
		if list := want(t, root, 200, "GET", "/v2/users?name=robert", ""); list["total"] != 0.0 {
			t.Errorf("a locked account is listed: %v", list)
		}
		if list := want(t, root, 200, "GET", "/v2/users?name=ROBERT&locked=true", ""); list["total"] != 1.0 {
			t.Errorf("a locked account is not found: %v", list)
		}
		want(t, root, 200, "PUT", path, `{"locked":false}`)
		list := want(t, root, 200, "GET", "/v2/users?limit=1&order_by=name", "")
		if list["total"] != 2.0 || list["next_token"] != "1" || hstest.At(list, "users", 0, "name") != name {
			t.Errorf("first page %v", list)
		}
		list = want(t, root, 200, "GET", "/v2/users?limit=1&from=1&order_by=name", "")
		if hstest.At(list, "users", 0, "name") != string(root.UserID) || list["next_token"] != nil {
			t.Errorf("second page %v", list)
		}
		want(t, root, 400, "GET", "/v2/users?order_by=password", "")
		want(t, root, 400, "GET", "/v2/users?dir=x", "")
		want(t, root, 200, "PUT", path, `{"deactivated":true}`)
		if got := want(t, root, 200, "GET", path, ""); got["deactivated"] != true {
			t.Errorf("deactivated %v", got)
		}
		want(t, root, 200, "PUT", path, `{"deactivated":false,"password":"another long phrase"}`)
		if r := hs.Anonymous().Do(t, "POST", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"another long phrase"}`, "/v3/login"); r.Status != 200 {
			t.Errorf("sign-in after reactivation: %s", r.Body)
		}
		want(t, root, 400, "PUT", "/v2/users/"+q(root.UserID), `{"admin":false}`)
		want(t, root, 400, "PUT", path, `{"user_type":"king"}`)
		want(t, root, 400, "GET", "/v2/users/"+q("@x:elsewhere.example"), "")
	})
}

func TestSessionsOfUsers(t *testing.T) {
	hs := hstest.Start(t)
	root, alice := admin(t, hs), hs.User("alice")
	user := q(alice.UserID)
	devices := want(t, root, 200, "GET", "/v2/users/"+user+"/devices", "")
	if devices["total"] != 1.0 || hstest.At(devices, "devices", 0, "device_id") != string(alice.DeviceID) {
		t.Fatalf("devices %v", devices)
	}
	device := "/v2/users/" + user + "/devices/" + q(alice.DeviceID)
	want(t, root, 200, "PUT", device, `{"display_name":"a phone"}`)
	if d := want(t, root, 200, "GET", device, ""); d["display_name"] != "a phone" {
		t.Errorf("device %v", d)
	}
	token := want(t, root, 200, "POST", "/v1/users/"+user+"/login", `{}`)["access_token"].(string)
	if token == "" {
		t.Fatal("no token")
	}
	want(t, root, 400, "POST", "/v1/users/"+user+"/login", `{"valid_until_ms":1}`)
	want(t, root, 200, "DELETE", device, "")
	if r := alice.Do(t, "GET", "", "/v3/account/whoami"); r.Status != 401 {
		t.Errorf("a deleted device works: %d", r.Status)
	}
	want(t, root, 404, "GET", device, "")
	want(t, root, 200, "POST", "/v1/reset_password/"+user, `{"new_password":"quite a new phrase"}`)
	if r := hs.Anonymous().Do(t, "POST", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"quite a new phrase"}`, "/v3/login"); r.Status != 200 {
		t.Errorf("sign-in: %s", r.Body)
	}
}

func TestRooms(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := admin(t, hs), hs.User("alice"), hs.User("bob")
		small := alice.CreateRoomWith(`{"name":"Zeta","preset":"private_chat"}`)
		large := alice.CreateRoomWith(`{"name":"alpha","preset":"public_chat","room_alias_name":"alpha","visibility":"public"}`)
		bob.Join(large)
		first := alice.Text(large, "first")
		alice.Text(large, "second")
		list := want(t, root, 200, "GET", "/v1/rooms", "")
		if list["total_rooms"] != 2.0 || hstest.At(list, "rooms", 0, "name") != "alpha" || hstest.At(list, "rooms", 0, "joined_members") != 2.0 || hstest.At(list, "rooms", 0, "public") != true {
			t.Errorf("by name: %v", list)
		}
		if l := want(t, root, 200, "GET", "/v1/rooms?order_by=joined_members&dir=b", ""); hstest.At(l, "rooms", 0, "room_id") != string(small) {
			t.Errorf("smallest first: %v", l)
		}
		if l := want(t, root, 200, "GET", "/v1/rooms?search_term=ALP", ""); l["total_rooms"] != 1.0 {
			t.Errorf("search: %v", l)
		}
		if l := want(t, root, 200, "GET", "/v1/rooms?limit=1&from=1", ""); hstest.At(l, "rooms", 0, "name") != "Zeta" || l["prev_batch"] != 0.0 {
			t.Errorf("second page: %v", l)
		}
		room := "/v1/rooms/" + q(large)
		d := want(t, root, 200, "GET", room, "")
		if d["name"] != "alpha" || d["joined_local_devices"] != 2.0 || d["join_rules"] != "public" || d["creator"] != string(alice.UserID) {
			t.Errorf("detail %v", d)
		}
		if m := want(t, root, 200, "GET", room+"/members", ""); m["total"] != 2.0 {
			t.Errorf("members %v", m)
		}
		if s := want(t, root, 200, "GET", room+"/state?type=m.room.name", ""); hstest.At(s, "state", 0, "content", "name") != "alpha" || len(s["state"].([]any)) != 1 {
			t.Errorf("state %v", s)
		}
		m := want(t, root, 200, "GET", room+"/messages?dir=b&limit=2", "")
		if hstest.At(m, "chunk", 0, "content", "body") != "second" || hstest.At(m, "chunk", 1, "content", "body") != "first" {
			t.Errorf("messages %v", m)
		}
		if n := want(t, root, 200, "GET", room+"/messages?dir=b&limit=1&from="+m["end"].(string), ""); hstest.At(n, "chunk", 0, "type") != "m.room.member" {
			t.Errorf("older messages %v", n)
		}
		c := want(t, root, 200, "GET", room+"/context/"+q(first)+"?limit=2", "")
		if hstest.At(c, "event", "content", "body") != "first" || hstest.At(c, "events_after", 0, "content", "body") != "second" {
			t.Errorf("context %v", c)
		}
		if e := want(t, root, 200, "GET", "/v1/fetch_event/"+q(first), ""); hstest.At(e, "event", "event_id") != string(first) {
			t.Errorf("event %v", e)
		}
		want(t, root, 200, "POST", "/v1/join/"+q(small), fmt.Sprintf(`{"user_id":%q}`, bob.UserID))
		if got := want(t, root, 200, "GET", "/v1/users/"+q(bob.UserID)+"/joined_rooms", ""); got["total"] != 2.0 {
			t.Errorf("joined rooms %v", got)
		}
		want(t, root, 200, "POST", room+"/make_room_admin", fmt.Sprintf(`{"user_id":%q}`, bob.UserID))
		bob.State(large, "m.room.name", "", `{"name":"taken over"}`)
	})
}

func TestBlockedRoom(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := admin(t, hs), hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		path := "/v1/rooms/" + q(room) + "/block"
		want(t, root, 200, "PUT", path, `{"block":true}`)
		if got := want(t, root, 200, "GET", path, ""); got["block"] != true || got["user_id"] != string(root.UserID) {
			t.Errorf("blocked %v", got)
		}
		if r := bob.Do(t, "POST", `{}`, "/v3/join/%s", room); r.Status != 403 {
			t.Errorf("a blocked room was joined: %d", r.Status)
		}
		if r := alice.Do(t, "POST", fmt.Sprintf(`{"user_id":%q}`, bob.UserID), "/v3/rooms/%s/invite", room); r.Status != 403 {
			t.Errorf("an invitation to a blocked room: %d", r.Status)
		}
		want(t, root, 200, "PUT", path, `{"block":false}`)
		bob.Join(room)
	})
}

func TestDeleteRoom(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := admin(t, hs), hs.User("alice"), hs.User("bob")
		room := alice.CreateRoomWith(`{"preset":"public_chat","room_alias_name":"gone"}`)
		bob.Join(room)
		for i := range 30 {
			alice.Text(room, fmt.Sprint("message ", i))
		}
		event := alice.Text(room, "last")
		since := bob.Sync("")["next_batch"].(string)
		started := want(t, root, 200, "DELETE", "/v2/rooms/"+q(room), fmt.Sprintf(`{"new_room_user_id":%q,"room_name":"Why","message":"closed by law","block":true}`, root.UserID))
		job := started["delete_id"].(string)
		var status map[string]any
		testkit.Eventually(t, "the room is deleted", func() bool {
			status = want(t, root, 200, "GET", "/v2/rooms/delete_status/"+job, "")
			return status["status"] == "complete"
		})
		if len(hstest.At(status, "shutdown_room", "kicked_users").([]any)) != 2 || !strings.HasPrefix(hstest.At(status, "shutdown_room", "local_aliases", 0).(string), "#gone:") {
			t.Errorf("status %v", status)
		}
		next := hstest.At(status, "shutdown_room", "new_room_id").(string)
		rooms := bob.Sync("?since=" + since)
		if hstest.At(rooms, "rooms", "join", next) == nil {
			t.Errorf("bob is not in the new room: %v", rooms)
		}
		if r := alice.Do(t, "PUT", `{"msgtype":"m.text","body":"x"}`, "/v3/rooms/%s/send/m.room.message/late", room); r.Status != 403 && r.Status != 404 {
			t.Errorf("a message to a deleted room: %d", r.Status)
		}
		if r := alice.Do(t, "GET", "", "/v3/rooms/%s/event/%s", room, event); r.Status != 404 && r.Status != 403 {
			t.Errorf("an event of a deleted room: %d", r.Status)
		}
		want(t, root, 404, "GET", "/v1/rooms/"+q(room), "")
		want(t, root, 404, "GET", "/v1/fetch_event/"+q(event), "")
		if got := want(t, root, 200, "GET", "/v1/rooms/"+q(room)+"/block", ""); got["block"] != true {
			t.Errorf("the deleted room is not blocked: %v", got)
		}
		again := alice.CreateRoom("private_chat") // gets a number of its own
		alice.Text(again, "hello")
		if got := want(t, root, 200, "GET", "/v1/rooms/"+q(again)+"/messages?dir=b&limit=100", ""); len(got["chunk"].([]any)) > 12 {
			t.Errorf("the new room has the old one's messages: %v", got)
		}
		want(t, root, 404, "DELETE", "/v2/rooms/"+q("!nowhere:example.org"), `{}`)
		want(t, root, 404, "GET", "/v2/rooms/delete_status/none", "")
		if got := want(t, root, 200, "DELETE", "/v1/rooms/"+q(again), `{}`); len(got["kicked_users"].([]any)) != 1 {
			t.Errorf("deleted at once: %v", got)
		}
	})
}

func TestPurgeHistory(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice := admin(t, hs), hs.User("alice")
		room := alice.CreateRoom("private_chat")
		var ids []id.EventID
		for i := range 10 {
			ids = append(ids, alice.Text(room, fmt.Sprint(i)))
		}
		purge := func(body string) {
			job := want(t, root, 200, "POST", "/v1/purge_history/"+q(room)+"/"+q(ids[7]), body)["purge_id"].(string)
			testkit.Eventually(t, "the purge ends", func() bool {
				return want(t, root, 200, "GET", "/v1/purge_history_status/"+job, "")["status"] == "complete"
			})
		}
		count := func() (n int) {
			got := alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=100", room)
			for _, e := range got["chunk"].([]any) {
				if hstest.At(e, "type") == "m.room.message" {
					n++
				}
			}
			return n
		}
		purge(`{}`)
		if n := count(); n != 10 {
			t.Errorf("local messages went without delete_local_events: %d are left", n)
		}
		purge(`{"delete_local_events":true}`)
		if n := count(); n != 3 {
			t.Errorf("%d messages are left of 3", n)
		}
		alice.Text(room, "and on")
		want(t, root, 400, "POST", "/v1/purge_history/"+q(room), `{}`)
		want(t, root, 404, "POST", "/v1/purge_history/"+q(room)+"/"+q("$none"), `{}`)
	})
}

func TestRedactUser(t *testing.T) {
	hs := hstest.Start(t)
	root, alice, spam := admin(t, hs), hs.User("alice"), hs.User("spam")
	room := alice.CreateRoom("public_chat")
	spam.Join(room)
	kept := alice.Text(room, "hello")
	bad, worse := spam.Text(room, "buy"), spam.Text(room, "buy more")
	redact := func(body string) map[string]any {
		t.Helper()
		job := want(t, root, 200, "POST", "/v1/user/"+q(spam.UserID)+"/redact", body)["redact_id"].(string)
		var status map[string]any
		testkit.Eventually(t, "the redaction ends", func() bool {
			status = want(t, root, 200, "GET", "/v1/user/redact_status/"+job, "")
			return status["status"] == "complete"
		})
		if got := want(t, root, 200, "GET", "/v1/scheduled_tasks?action_name=redact_all_events&status=complete&resource_id="+q(spam.UserID), ""); !slices.ContainsFunc(got["scheduled_tasks"].([]any), func(task any) bool { return hstest.At(task, "id") == job }) {
			t.Errorf("the redaction is no task: %v", got)
		}
		return status
	}
	says := func(e id.EventID) any {
		return hstest.At(want(t, root, 200, "GET", "/v1/fetch_event/"+q(e), ""), "event", "content", "body")
	}
	// an administrator who is not in the room may not redact there
	if failed := redact(`{"rooms":[],"use_admin":true}`)["failed_redactions"].(map[string]any); len(failed) != 2 || says(bad) != "buy" {
		t.Errorf("redacted from outside: %v", failed)
	}
	redact(`{"rooms":[],"before_ts":1000}`)
	redact(`{"rooms":[],"after_ts":99999999999999}`)
	redact(`{"rooms":["!another:test"]}`)
	if says(bad) != "buy" || says(worse) != "buy more" {
		t.Error("redacted what was sent at another time, or elsewhere")
	}
	root.Join(room)
	alice.State(room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:50}}`, root.UserID))
	redact(`{"rooms":[],"use_admin":true,"limit":1,"reason":"spam"}`)
	if says(worse) != nil || says(bad) != "buy" {
		t.Error("not the newest message was redacted")
	}
	e := want(t, root, 200, "GET", "/v1/fetch_event/"+q(worse), "")
	if hstest.At(e, "event", "unsigned", "redacted_because", "sender") != string(root.UserID) || hstest.At(e, "event", "unsigned", "redacted_because", "content", "reason") != "spam" {
		t.Errorf("redacted by another, or without the reason: %v", e)
	}
	redact(`{"rooms":[]}`)
	if says(bad) != nil {
		t.Error("not redacted")
	}
	if e := want(t, root, 200, "GET", "/v1/fetch_event/"+q(bad), ""); hstest.At(e, "event", "unsigned", "redacted_because", "sender") != string(spam.UserID) || hstest.At(e, "event", "unsigned", "redacted_because", "content", "reason") != nil {
		t.Errorf("redacted by another, or with a reason: %v", e)
	}
	if e := want(t, root, 200, "GET", "/v1/fetch_event/"+q(kept), ""); hstest.At(e, "event", "content", "body") != "hello" {
		t.Errorf("another's message: %v", e)
	}
}

func TestMedia(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice := admin(t, hs), hs.User("alice")
		upload := func(body string) string {
			uri := alice.Must(t, "POST", body, "/_matrix/media/v3/upload?filename=a.txt")["content_uri"].(string)
			return strings.TrimPrefix(uri, "mxc://")
		}
		one, two := upload("one"), upload("two")
		room := alice.CreateRoom("private_chat")
		alice.Event(room, "m.room.message", `{"msgtype":"m.file","body":"a","url":"mxc://`+one+`"}`)
		if got := want(t, root, 200, "GET", "/v1/room/"+q(room)+"/media", ""); hstest.At(got, "local", 0) != "mxc://"+one {
			t.Errorf("media of the room %v", got)
		}
		if got := want(t, root, 200, "GET", "/v1/users/"+q(alice.UserID)+"/media?limit=1", ""); got["total"] != 2.0 || got["next_token"] != 1.0 {
			t.Errorf("media of the user %v", got)
		}
		download := func(file string) int { return alice.Do(t, "GET", "", "/v1/media/download/"+file).Status }
		want(t, root, 200, "POST", "/v1/media/quarantine/"+one, `{}`)
		if download(one) != 404 || download(two) != 200 {
			t.Errorf("quarantined: %d, another: %d", download(one), download(two))
		}
		want(t, root, 200, "POST", "/v1/media/unquarantine/"+one, `{}`)
		if download(one) != 200 {
			t.Error("it stays hidden")
		}
		want(t, root, 200, "POST", "/v1/media/protect/"+two[strings.Index(two, "/")+1:], `{}`)
		if got := want(t, root, 200, "POST", "/v1/user/"+q(alice.UserID)+"/media/quarantine", `{}`); got["num_quarantined"] != 1.0 {
			t.Errorf("quarantined of the user: %v", got)
		}
		if got := want(t, root, 200, "GET", "/v1/statistics/users/media?order_by=media_length&dir=b", ""); hstest.At(got, "users", 0, "media_count") != 2.0 {
			t.Errorf("statistics %v", got)
		}
		if got := want(t, root, 200, "DELETE", "/v1/media/"+one, ""); got["total"] != 1.0 {
			t.Errorf("deleted %v", got)
		}
		want(t, root, 404, "DELETE", "/v1/media/"+one, "")
		want(t, root, 400, "POST", "/v1/media/delete?before_ts=1000", "")
		future := fmt.Sprint(time.Now().Add(time.Hour).UnixMilli())
		if got := want(t, root, 200, "POST", "/v1/media/delete?before_ts="+future, ""); got["total"] != 1.0 {
			t.Errorf("deleted by age %v", got)
		}
		if download(two) != 404 {
			t.Error("a deleted file is served")
		}
	})
}

func TestTokensAndReports(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice := admin(t, hs), hs.User("alice")
		made := want(t, root, 200, "POST", "/v1/registration_tokens/new", `{"token":"abc","uses_allowed":1}`)
		if made["token"] != "abc" || made["uses_allowed"] != 1.0 || made["expiry_time"] != nil {
			t.Errorf("made %v", made)
		}
		random := want(t, root, 200, "POST", "/v1/registration_tokens/new", `{"length":40}`)["token"].(string)
		if len(random) != 40 {
			t.Errorf("random %q", random)
		}
		want(t, root, 400, "POST", "/v1/registration_tokens/new", `{"token":"abc"}`)
		want(t, root, 400, "POST", "/v1/registration_tokens/new", `{"uses_allowed":"many"}`)
		want(t, root, 200, "PUT", "/v1/registration_tokens/abc", `{"uses_allowed":0}`)
		if got := want(t, root, 200, "GET", "/v1/registration_tokens?valid=true", ""); len(got["registration_tokens"].([]any)) != 1 {
			t.Errorf("valid %v", got)
		}
		if got := want(t, root, 200, "GET", "/v1/registration_tokens?valid=false", ""); hstest.At(got, "registration_tokens", 0, "token") != "abc" {
			t.Errorf("not valid %v", got)
		}
		want(t, root, 200, "DELETE", "/v1/registration_tokens/abc", "")
		want(t, root, 404, "GET", "/v1/registration_tokens/abc", "")

		room := alice.CreateRoom("private_chat")
		event := alice.Text(room, "rude")
		alice.Must(t, "POST", `{"reason":"rude"}`, "/v3/rooms/%s/report/%s", room, event)
		list := want(t, root, 200, "GET", "/v1/event_reports", "")
		if list["total"] != 1.0 || hstest.At(list, "event_reports", 0, "reason") != "rude" {
			t.Fatalf("reports %v", list)
		}
		one := fmt.Sprintf("/v1/event_reports/%.0f", hstest.At(list, "event_reports", 0, "id"))
		if got := want(t, root, 200, "GET", one, ""); hstest.At(got, "event_json", "content", "body") != "rude" {
			t.Errorf("report %v", got)
		}
		want(t, root, 200, "DELETE", one, "")
		want(t, root, 404, "GET", one, "")
		if got := want(t, root, 200, "GET", "/v1/server_version", ""); got["server_version"] == "" {
			t.Errorf("version %v", got)
		}
		if got := want(t, root, 200, "GET", "/v1/statistics/database/rooms", ""); hstest.At(got, "rooms", 0, "room_id") != string(room) {
			t.Errorf("largest rooms %v", got)
		}
		space := alice.CreateRoomWith(`{"creation_content":{"type":"m.space"}}`)
		alice.State(space, "m.space.child", string(room), `{"via":["test"]}`)
		if got := want(t, root, 200, "GET", "/v1/rooms/"+q(space)+"/hierarchy", ""); hstest.At(got, "rooms", 1, "room_id") != string(room) {
			t.Errorf("hierarchy %v", got)
		}
		want(t, root, 404, "GET", "/v1/rooms/!none:test/hierarchy", "")
		want(t, root, 404, "GET", "/v1/auth_providers/corp/users/nobody", "")
	})
}
