package rtc_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

const delayedPath = "/unstable/org.matrix.msc4140/delayed_events"

func messages(t *testing.T, c *hstest.Client, room id.RoomID) (out []string) {
	t.Helper()
	got := c.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=100", room)
	for _, e := range got["chunk"].([]any) {
		if hstest.At(e, "type") == "m.room.message" {
			out = append(out, hstest.At(e, "content", "body").(string))
		}
	}
	return out
}

func TestDelayedEvents(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		schedule := func(body, txn string, ms int) string {
			return alice.Must(t, "PUT", `{"msgtype":"m.text","body":"`+body+`"}`, "/v3/rooms/%s/send/m.room.message/%s?org.matrix.msc4140.delay=%s", room, txn, fmt.Sprint(ms))["delay_id"].(string)
		}
		soon := schedule("soon", "t1", 300)
		if again := schedule("soon", "t1", 300); again != soon {
			t.Errorf("a repeated request scheduled another event: %s and %s", soon, again)
		}
		later := schedule("later", "t2", 3_600_000)
		never := schedule("never", "t3", 3_600_000)
		list := alice.Must(t, "GET", "", delayedPath)
		if n := len(list["scheduled"].([]any)); n != 3 {
			t.Errorf("%d events wait, not 3: %v", n, list)
		}
		if n := len(bob.Must(t, "GET", "", delayedPath)["scheduled"].([]any)); n != 0 {
			t.Errorf("another user sees %d", n)
		}
		testkit.Eventually(t, "the first is sent", func() bool { return len(messages(t, bob, room)) == 1 })
		hs.Anonymous().Must(t, "POST", "", delayedPath+"/%s/restart", later)
		hs.Anonymous().Must(t, "POST", "", delayedPath+"/%s/cancel", never)
		alice.Must(t, "POST", `{"action":"send"}`, delayedPath+"/%s", later)
		if got := messages(t, bob, room); len(got) != 2 || got[0] != "later" || got[1] != "soon" {
			t.Errorf("messages %v", got)
		}
		if r := alice.Do(t, "POST", "", delayedPath+"/%s/send", never); r.Status != 404 {
			t.Errorf("a cancelled event was sent: %d", r.Status)
		}
		if r := alice.Do(t, "POST", "", delayedPath+"/%s/jump", never); r.Status != 404 {
			t.Errorf("an unknown action: %d", r.Status)
		}
		done := alice.Must(t, "GET", "", delayedPath+"?status=finalised")["finalised"].([]any)
		if len(done) != 3 {
			t.Fatalf("finished %v", done)
		}
		outcomes := map[any]any{}
		for _, d := range done {
			outcomes[hstest.At(d, "delayed_event", "content", "body")] = fmt.Sprint(hstest.At(d, "outcome"), " ", hstest.At(d, "reason"))
		}
		if outcomes["soon"] != "send delay" || outcomes["later"] != "send action" || outcomes["never"] != "cancel action" {
			t.Errorf("outcomes %v", outcomes)
		}
		for _, delay := range []string{"x", "0", "-5", "99999999999"} {
			if r := alice.Do(t, "PUT", `{}`, "/v3/rooms/%s/send/m.room.message/bad?org.matrix.msc4140.delay=%s", room, delay); r.Status != 400 {
				t.Errorf("delay %s: %d", delay, r.Status)
			}
		}
	})
}

func TestDelayedState(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	alice.State(room, "m.room.power_levels", "", fmt.Sprintf(`{"state_default":0,"users":{%q:100}}`, bob.UserID))
	put := func(key string) {
		alice.Must(t, "PUT", `{"left":true}`, "/v3/rooms/%s/state/org.example.call/%s?org.matrix.msc4140.delay=400", room, key)
	}
	put("mine")
	put("taken")
	bob.State(room, "org.example.call", "taken", `{"by":"bob"}`)
	testkit.Eventually(t, "the state is set", func() bool {
		return alice.Do(t, "GET", "", "/v3/rooms/%s/state/org.example.call/mine", room).Status == 200
	})
	testkit.Eventually(t, "both are finished", func() bool {
		return len(alice.Must(t, "GET", "", delayedPath+"?status=finalised")["finalised"].([]any)) == 2
	})
	if got := alice.Must(t, "GET", "", "/v3/rooms/%s/state/org.example.call/taken", room); got["by"] != "bob" {
		t.Errorf("the state that another user set was overwritten: %v", got)
	}
}

// A restart forgets nothing that is scheduled.
func TestDelayedAcrossRestart(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	alice.Must(t, "PUT", `{"msgtype":"m.text","body":"after the restart"}`, "/v3/rooms/%s/send/m.room.message/t?org.matrix.msc4140.delay=1000", room)
	config := hs.Config
	hs.Stop()
	again := hstest.StartWith(t, config)
	alice = alice.On(again)
	testkit.Eventually(t, "it is sent", func() bool { return len(messages(t, alice, room)) == 1 })
}

func TestLiveKit(t *testing.T) {
	const secret = "a secret of at least thirty-two characters"
	hs := hstest.Start(t, func(c *homeserver.Config) {
		c.RTC.LiveKit = homeserver.LiveKit{URL: "wss://livekit.test", APIKey: "key1", APISecret: secret}
	})
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("private_chat")
	service := hstest.At(alice.Must(t, "GET", "", "/unstable/org.matrix.msc4143/rtc/transports"), "rtc_transports", 0)
	if hstest.At(service, "type") != "livekit" || hstest.At(service, "livekit_service_url") != "https://"+alice.UserID.Homeserver()+"/_moothall/livekit" {
		t.Errorf("transports %v", service)
	}
	if focus := hstest.At(alice.Must(t, "GET", "", "/.well-known/matrix/client"), "org.matrix.msc4143.rtc_foci", 0, "type"); focus != "livekit" {
		t.Errorf("well-known %v", focus)
	}
	token := func(c *hstest.Client) string {
		return fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","matrix_server_name":%q,"expires_in":3600}`,
			c.Must(t, "POST", `{}`, "/v3/user/%s/openid/request_token", c.UserID)["access_token"], c.UserID.Homeserver())
	}
	ask := func(openID string) hstest.Response {
		return hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"room":%q,"device_id":"DEV","openid_token":%s}`, room, openID), "/_moothall/livekit/sfu/get")
	}
	r := ask(token(alice))
	var out struct{ URL, JWT string }
	r.JSON(t, &out)
	if r.Status != 200 || out.URL != "wss://livekit.test" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	parsed, err := jwt.ParseSigned(out.JWT, []jose.SignatureAlgorithm{jose.HS256})
	if err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	var video struct {
		Video struct {
			Room     string `json:"room"`
			RoomJoin bool   `json:"roomJoin"`
		} `json:"video"`
	}
	if err := parsed.Claims([]byte(secret), &claims, &video); err != nil {
		t.Fatal(err)
	}
	if claims.Issuer != "key1" || claims.Subject != string(alice.UserID)+":DEV" || !video.Video.RoomJoin || video.Video.Room == "" || claims.Validate(jwt.Expected{Time: time.Now()}) != nil {
		t.Errorf("claims %+v %+v", claims, video)
	}
	if r := ask(token(bob)); r.Status != 403 {
		t.Errorf("a token for somebody who is not in the room: %d", r.Status)
	}
	if r := ask(`{"access_token":"wrong","matrix_server_name":"` + alice.UserID.Homeserver() + `"}`); r.Status != 401 {
		t.Errorf("a wrong OpenID token: %d", r.Status)
	}
	member := fmt.Sprintf(`{"room_id":%q,"slot_id":"m.call#ROOM","openid_token":%s,"member":{"id":"m1","claimed_user_id":%q,"claimed_device_id":"DEV"}}`, room, token(alice), bob.UserID)
	if r := hs.Anonymous().Do(t, "POST", member, "/_moothall/livekit/get_token"); r.Status != 401 {
		t.Errorf("a claim to be somebody else: %d", r.Status)
	}
}
