package notices_test

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

func TestNotices(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		root := hs.Anonymous()
		root.Password = "correct horse battery root"
		var err error
		if root.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "root", root.Password, true); err != nil {
			t.Fatal(err)
		}
		root = root.Login()
		body := fmt.Sprintf(`{"user_id":%q,"content":{"msgtype":"m.text","body":"maintenance at noon"}}`, alice.UserID)
		if r := alice.Do(t, "POST", body, "/_synapse/admin/v1/send_server_notice"); r.Status != 403 {
			t.Errorf("a user sends notices: %d", r.Status)
		}
		// Several at once make one room.
		events := make([]any, 4)
		var g sync.WaitGroup
		for i := range events {
			g.Go(func() {
				events[i] = root.Must(t, "PUT", body, "/_synapse/admin/v1/send_server_notice/%s", fmt.Sprint("t", i/2))["event_id"]
			})
		}
		g.Wait()
		if events[0] != events[1] || events[2] != events[3] || events[0] == events[2] {
			t.Errorf("transaction ids: %v", events)
		}
		// She is invited, and cannot turn that down.
		if joined := alice.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any); len(joined) != 0 {
			t.Fatalf("alice is in %v", joined)
		}
		room := invitation(t, alice)
		for _, how := range [][2]string{{"POST", "/v3/rooms/%s/leave"}, {"PUT", "/v3/rooms/%s/state/m.room.member/@alice:test"}} {
			if r := alice.Do(t, how[0], `{"membership":"leave"}`, how[1], room); r.Status != 403 || r.Errcode != "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM" {
				t.Errorf("turning the invitation down by %s: %d %s", how[0], r.Status, r.Body)
			}
		}
		alice.Join(room)
		if page := alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b", room); !strings.Contains(fmt.Sprint(page["chunk"]), "maintenance at noon") {
			t.Errorf("alice reads %v", page["chunk"])
		}
		if tags := alice.Must(t, "GET", "", "/v3/user/%s/rooms/%s/tags", alice.UserID, room); hstest.At(tags, "tags", "m.server_notice") == nil {
			t.Errorf("tags %v", tags)
		}
		if r := alice.Do(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, "/v3/rooms/%s/send/m.room.message/x", room); r.Status != 403 {
			t.Errorf("the reader writes: %d", r.Status)
		}
		alice.Leave(room)
		root.Must(t, "POST", body, "/_synapse/admin/v1/send_server_notice")
		if again := invitation(t, alice); again != room {
			t.Errorf("after leaving she is invited to %s", again)
		}
	})
}

// invitation is the one room that a user is invited to.
func invitation(t *testing.T, user *hstest.Client) (room id.RoomID) {
	t.Helper()
	invited, _ := hstest.At(user.Must(t, "GET", "", "/v3/sync"), "rooms", "invite").(map[string]any)
	for r := range invited {
		room = id.RoomID(r)
	}
	if len(invited) != 1 {
		t.Fatalf("invitations: %v", invited)
	}
	return room
}

// TestAutoJoin puts users into their rooms at once, also those who were invited before that was configured.
func TestAutoJoin(t *testing.T) {
	c := hstest.Config(t)
	hs := hstest.StartWith(t, c)
	alice, bob := hs.User("alice"), hs.User("bob")
	root := hs.Anonymous()
	root.Password = "correct horse battery root"
	var err error
	if root.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "root", root.Password, true); err != nil {
		t.Fatal(err)
	}
	root = root.Login()
	tell := func(u *hstest.Client) {
		root.Must(t, "POST", fmt.Sprintf(`{"user_id":%q,"content":{"msgtype":"m.text","body":"hello"}}`, u.UserID), "/_synapse/admin/v1/send_server_notice")
	}
	tell(alice)
	room := invitation(t, alice)
	hs.Stop()
	c.Notices.AutoJoin = true
	hs = hstest.StartWith(t, c)
	alice, bob, root = alice.On(hs), bob.On(hs), root.On(hs)
	tell(alice)
	tell(bob)
	if in := alice.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any); len(in) != 1 || in[0] != string(room) {
		t.Errorf("alice is in %v, want %s", in, room)
	}
	if in := bob.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any); len(in) != 1 {
		t.Errorf("bob is in %v", in)
	}
}
