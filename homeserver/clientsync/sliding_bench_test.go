package clientsync_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// smallRooms gives alice rooms of three members with a few messages each.
func smallRooms(b *testing.B, n *node, alice *client, rooms int) []id.RoomID {
	b.Helper()
	v, _ := event.LookupVersion(event.DefaultVersion)
	out := make([]id.RoomID, 0, rooms)
	for i := range rooms {
		member := func(u id.UserID) room.Draft {
			return room.Draft{Type: "m.room.member", StateKey: key(string(u)), Content: []byte(`{"membership":"join","displayname":"Some User"}`), Sender: u}
		}
		r, err := n.rooms.CreateRoom(context.Background(), v, alice.user, []byte(fmt.Sprintf(`{"room_version":"12","number":%d}`, i)), []room.Draft{
			member(alice.user),
			{Type: "m.room.join_rules", StateKey: key(""), Content: []byte(`{"join_rule":"public"}`), Sender: alice.user},
			{Type: "m.room.name", StateKey: key(""), Content: []byte(fmt.Sprintf(`{"name":"Room %d"}`, i)), Sender: alice.user},
			{Type: "m.room.encryption", StateKey: key(""), Content: []byte(`{"algorithm":"m.megolm.v1.aes-sha2"}`), Sender: alice.user},
			member("@user1:test"), member("@user2:test"),
			{Type: "m.room.message", Sender: "@user1:test", Content: []byte(`{"msgtype":"m.text","body":"Some words of an ordinary message."}`)},
			{Type: "m.room.message", Sender: "@user2:test", Content: []byte(`{"msgtype":"m.text","body":"Some words of an ordinary message."}`)},
		}, room.RoomMeta{})
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// elementX is a request as Element X makes it for its list of rooms.
const elementX = `{"conn_id":"room-list","lists":{"all_rooms":{"ranges":[[0,19]],"timeline_limit":1,"required_state":[["m.room.name",""],
	["m.room.encryption",""],["m.room.member","$LAZY"],["m.room.member","$ME"],["m.room.topic",""],["m.room.canonical_alias",""],
	["m.room.power_levels",""],["org.matrix.msc3401.call.member","*"],["m.room.join_rules",""],["m.room.tombstone",""],["m.room.create",""],
	["m.room.history_visibility",""]],"filters":{"not_room_types":["m.space"]}}},
	"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true,"rooms":["*"]},"typing":{"enabled":true}}}`

func (c *client) slideOn(b *testing.B, pos, body string) {
	b.Helper()
	target := "/_matrix/client" + path3575
	if pos != "" {
		target += "?pos=" + pos
	}
	b.ReportAllocs()
	var bytes int
	for b.Loop() {
		req := httptest.NewRequest("POST", target, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+string(c.user)+"|"+string(c.device))
		w := &discard{header: http.Header{}}
		c.n.mux.ServeHTTP(w, req)
		if w.status != http.StatusOK {
			b.Fatalf("%s: %d", target, w.status)
		}
		bytes += w.bytes
	}
	b.ReportMetric(float64(bytes)/float64(b.N), "bytes/response")
}

// BenchmarkSliding5000Rooms is an account in 5,000 rooms of which a client shows the newest 20: the first response, which
// also stores the connection, one after a restart of the server, and later ones with nothing new and one new message.
func BenchmarkSliding5000Rooms(b *testing.B) {
	cfg := store.Config{DataDir: b.TempDir()}
	n := start(b, cfg)
	alice, bob := n.client("alice", "A"), n.client("user1", "B")
	rooms := smallRooms(b, n, alice, 5000)
	b.Run("after-a-restart", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			n.stop()
			n = start(b, cfg)
			alice, bob = alice.on(n), bob.on(n)
			b.StartTimer()
			(&slide{client: alice}).next(elementX)
		}
	})
	n.stop() // the last one ended with its benchmark
	n = start(b, cfg)
	alice, bob = alice.on(n), bob.on(n)
	b.Run("initial", func(b *testing.B) { alice.slideOn(b, "", elementX) })
	s := &slide{client: alice}
	s.next(elementX)
	b.Run("nothing-new", func(b *testing.B) { alice.slideOn(b, s.pos, elementX) })
	s.next(elementX)
	bob.text(rooms[4999], "news")
	s.next(elementX) // the sender's membership is known from here on
	bob.text(rooms[4999], "more news")
	b.Run("one-message", func(b *testing.B) { alice.slideOn(b, s.pos, elementX) })
	encryption := `{"conn_id":"encryption","extensions":{"to_device":{"enabled":true},"e2ee":{"enabled":true}}}`
	e := &slide{client: alice}
	e.next(encryption)
	b.Run("encryption", func(b *testing.B) { alice.slideOn(b, e.pos, encryption) })
}
