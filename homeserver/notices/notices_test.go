package notices_test

import (
	"fmt"
	"log/slog"
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
		joined := alice.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)
		if len(joined) != 1 {
			t.Fatalf("alice is in %v", joined)
		}
		room := id.RoomID(joined[0].(string))
		if tags := alice.Must(t, "GET", "", "/v3/user/%s/rooms/%s/tags", alice.UserID, room); hstest.At(tags, "tags", "m.server_notice") == nil {
			t.Errorf("tags %v", tags)
		}
		if r := alice.Do(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, "/v3/rooms/%s/send/m.room.message/x", room); r.Status != 403 {
			t.Errorf("the reader writes: %d", r.Status)
		}
		alice.Leave(room)
		root.Must(t, "POST", body, "/_synapse/admin/v1/send_server_notice")
		if again := alice.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any); len(again) != 1 || again[0] != string(room) {
			t.Errorf("after leaving: %v", again)
		}
	})
}
