package clientapi_test

import (
	"fmt"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func TestGuests(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		open := alice.CreateRoomWith(`{"preset":"public_chat","initial_state":[{"type":"m.room.guest_access","state_key":"","content":{"guest_access":"can_join"}}]}`)
		closed := alice.CreateRoom("public_chat")
		guest := hs.Anonymous()
		var in struct {
			UserID      string `json:"user_id"`
			AccessToken string `json:"access_token"`
		}
		r := guest.Do(t, "POST", `{"username":5,"initial_device_display_name":"Browser"}`, "/v3/register?kind=guest") // the rest is ignored
		r.JSON(t, &in)
		if r.Status != 200 || in.AccessToken == "" {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		guest.Token = in.AccessToken
		if who := guest.Must(t, "GET", "", "/v3/account/whoami"); who["is_guest"] != true {
			t.Errorf("whoami %v", who)
		}
		if r := guest.Do(t, "POST", `{}`, "/v3/join/%s", closed); r.Status != 403 || r.Errcode != "M_GUEST_ACCESS_FORBIDDEN" {
			t.Errorf("a closed room: %d %s", r.Status, r.Body)
		}
		if r := guest.Do(t, "POST", `{}`, "/v3/createRoom"); r.Status != 403 || r.Errcode != "M_GUEST_ACCESS_FORBIDDEN" {
			t.Errorf("createRoom: %d %s", r.Status, r.Body)
		}
		guest.Must(t, "POST", `{}`, "/v3/rooms/%s/join", open)
		guest.Must(t, "PUT", `{"msgtype":"m.text","body":"hello"}`, "/v3/rooms/%s/send/m.room.message/t", open)
		guest.Must(t, "PUT", `{"displayname":"A visitor"}`, "/v3/profile/%s/displayname", in.UserID)
		for _, how := range []string{"PUT", "DELETE"} {
			if r := guest.Do(t, how, `{"avatar_url":"mxc://test/a"}`, "/v3/profile/%s/avatar_url", in.UserID); r.Status != 403 || r.Errcode != "M_GUEST_ACCESS_FORBIDDEN" {
				t.Errorf("%s of a guest's avatar: %d %s", how, r.Status, r.Body)
			}
		}
		can := guest.Must(t, "GET", "", "/v3/capabilities")["capabilities"]
		if fmt.Sprint(hstest.At(can, "m.profile_fields", "allowed"), hstest.At(can, "m.set_displayname", "enabled"), hstest.At(can, "m.set_avatar_url", "enabled"),
			hstest.At(can, "m.change_password", "enabled")) != "[displayname] true false false" {
			t.Errorf("capabilities of a guest: %v", can)
		}
		// The setting can lose its content too.
		other := alice.CreateRoom("public_chat")
		set := alice.State(other, "m.room.guest_access", "", `{"guest_access":"can_join"}`)
		guest.Must(t, "POST", `{}`, "/v3/rooms/%s/join", other)
		alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/t1", other, set)
		if r := alice.Do(t, "GET", "", "/v3/rooms/%s/joined_members", other); hstest.At(mapOf(t, r), "joined", in.UserID) != nil {
			t.Errorf("a guest stays where guest access was redacted: %s", r.Body)
		}
		// It can end by itself, by a delayed event.
		later := alice.CreateRoomWith(`{"preset":"public_chat","initial_state":[{"type":"m.room.guest_access","state_key":"","content":{"guest_access":"can_join"}}]}`)
		guest.Must(t, "POST", `{}`, "/v3/rooms/%s/join", later)
		alice.Must(t, "PUT", `{"guest_access":"forbidden"}`, "/v3/rooms/%s/state/m.room.guest_access/?org.matrix.msc4140.delay=50", later)
		testkit.Eventually(t, "the guest to be out by a delayed event", func() bool {
			r := alice.Do(t, "GET", "", "/v3/rooms/%s/joined_members", later)
			return hstest.At(mapOf(t, r), "joined", in.UserID) == nil
		})
		alice.State(open, "m.room.guest_access", "", `{"guest_access":"forbidden"}`)
		if r := guest.Do(t, "PUT", `{"msgtype":"m.text","body":"still here"}`, "/v3/rooms/%s/send/m.room.message/u", open); r.Status != 403 {
			t.Errorf("a guest stays: %d", r.Status)
		}
		if r := alice.Do(t, "GET", "", "/v3/rooms/%s/joined_members", open); hstest.At(mapOf(t, r), "joined", in.UserID) != nil {
			t.Errorf("a guest is a member: %s", r.Body)
		}
		local := in.UserID[1 : len(in.UserID)-len(":"+alice.UserID.Homeserver())]
		full := fmt.Sprintf(`{"username":%q,"password":"a pass phrase of its own","guest_access_token":%q,"auth":{"type":"m.login.dummy"}}`, local, in.AccessToken)
		guest.Token = ""
		if r := guest.Do(t, "POST", full, "/v3/register"); r.Status != 200 || mapOf(t, r)["user_id"] != in.UserID {
			t.Fatalf("becoming a user: %d %s", r.Status, r.Body)
		}
		if r := guest.Do(t, "POST", full, "/v3/register"); r.Status == 200 {
			t.Error("a full user became one again")
		}
	}, func(c *homeserver.Config) { c.Registration.Guests = true })
}

func mapOf(t *testing.T, r hstest.Response) map[string]any {
	t.Helper()
	var m map[string]any
	r.JSON(t, &m)
	return m
}

func TestNoGuests(t *testing.T) {
	hs := hstest.Start(t)
	if r := hs.Anonymous().Do(t, "POST", `{}`, "/v3/register?kind=guest"); r.Status != 403 || r.Errcode != "M_GUEST_ACCESS_FORBIDDEN" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}
