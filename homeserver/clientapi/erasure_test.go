package clientapi_test

import (
	"fmt"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestErasure is about whom the messages of an erased user are shown to: those who were there when they were sent.
func TestErasure(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, carol := hs.User("alice"), hs.User("bob"), hs.User("carol")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		said := alice.Text(room, "secret plan")
		alice.Must(t, "PUT", `{"m.relates_to":{"rel_type":"m.thread","event_id":"`+string(said)+`"},"msgtype":"m.text","body":"secret detail"}`,
			"/v3/rooms/%s/send/m.room.message/detail", room)
		answer := bob.Text(room, "agreed")
		carol.Join(room)
		read := func(c *hstest.Client, event id.EventID) any {
			return hstest.At(c.Must(t, "GET", "", "/v3/rooms/%s/event/%s", room, event), "content", "body")
		}
		for _, c := range []*hstest.Client{bob, carol} {
			if read(c, said) != "secret plan" {
				t.Errorf("before: %s reads %v", c.UserID, read(c, said))
			}
		}
		gone := fmt.Sprintf(`{"erase":true,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":%q}}`, alice.Password)
		alice.Must(t, "POST", gone, "/v3/account/deactivate")
		dave := hs.User("dave")
		dave.Join(room)
		for c, want := range map[*hstest.Client]any{bob: "secret plan", carol: nil, dave: nil} {
			if read(c, said) != want {
				t.Errorf("/event shows %s %v, want %v", c.UserID, read(c, said), want)
			}
			in := map[string]any{
				"/messages": c.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=50", room)["chunk"],
				"/sync":     hstest.At(c.Must(t, "GET", "", "/v3/sync?filter=%s", `{"room":{"timeline":{"limit":50}}}`), "rooms", "join", string(room), "timeline", "events"),
				"/context":  c.Must(t, "GET", "", "/v3/rooms/%s/context/%s?limit=0", room, said)["event"],
			}
			for where, shown := range in {
				text := fmt.Sprint(shown)
				if got := strings.Contains(text, "secret plan"); got != (want != nil) {
					t.Errorf("%s shows %s the message: %t", where, c.UserID, got)
				}
				if got := strings.Contains(text, "secret detail"); where != "/context" && got != (want != nil) {
					t.Errorf("%s shows %s the thread: %t", where, c.UserID, got)
				}
			}
			if read(c, answer) != "agreed" {
				t.Errorf("%s does not read what others wrote", c.UserID)
			}
		}
	})
}
