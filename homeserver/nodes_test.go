package homeserver_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// timeline lists the events that a sync response brings of a room.
func timeline(sync map[string]any, room id.RoomID) []map[string]any {
	list, _ := hstest.At(sync, "rooms", "join", string(room), "timeline", "events").([]any)
	var out []map[string]any
	for _, e := range list {
		out = append(out, e.(map[string]any))
	}
	return out
}

// awaitMessage syncs until a message with this body arrives, and returns the event and the next token.
func awaitMessage(t *testing.T, c *hstest.Client, since string, room id.RoomID, body string) (map[string]any, string) {
	t.Helper()
	end := time.Now().Add(testkit.Patience)
	for time.Now().Before(end) {
		s := c.Sync("timeout=5000&since=" + url.QueryEscape(since))
		since = s["next_batch"].(string)
		for _, e := range timeline(s, room) {
			if hstest.At(e, "content", "body") == body {
				return e, since
			}
		}
	}
	t.Fatalf("%s never saw %q", c.UserID, body)
	return nil, ""
}

// TestTwoNodes lets two users talk through two processes' worth of servers on one PostgreSQL, and moves one over.
func TestTwoNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hstest.Start(t, db), hstest.Start(t, db)
	alice := a.User("alice")
	bob := b.User("bob")
	room := alice.CreateRoomWith(fmt.Sprintf(`{"preset":"private_chat","name":"Nodes","invite":[%q]}`, bob.UserID))
	// the other node has not heard of the room or the invitation, and must not deny what the database allows
	bob.Join(room)
	sinceA := alice.Sync("")["next_batch"].(string)
	sinceB := bob.Sync("")["next_batch"].(string)
	for i := range 5 {
		body := fmt.Sprintf("to bob %d", i)
		sent := alice.Text(room, body)
		var e map[string]any
		if e, sinceB = awaitMessage(t, bob, sinceB, room, body); e["event_id"] != string(sent) {
			t.Errorf("bob saw %v, alice sent %s", e["event_id"], sent)
		}
		body = fmt.Sprintf("to alice %d", i)
		sent = bob.Text(room, body)
		if e, sinceA = awaitMessage(t, alice, sinceA, room, body); e["event_id"] != string(sent) {
			t.Errorf("alice saw %v, bob sent %s", e["event_id"], sent)
		}
	}
	// typing crosses nodes too
	alice.Must(t, "PUT", `{"typing":true,"timeout":20000}`, "/v3/rooms/%s/typing/%s", room, alice.UserID)
	typing := false
	for end := time.Now().Add(15 * time.Second); !typing && time.Now().Before(end); {
		s := bob.Sync("timeout=1000&since=" + url.QueryEscape(sinceB))
		sinceB = s["next_batch"].(string)
		list, _ := hstest.At(s, "rooms", "join", string(room), "ephemeral", "events").([]any)
		for _, e := range list {
			typing = typing || hstest.At(e, "type") == "m.typing" && hstest.At(e, "content", "user_ids", 0) == string(alice.UserID)
		}
	}
	if !typing {
		t.Error("bob never saw alice typing")
	}
	// a client moves to the other node with its token and misses nothing
	missed := alice.Text(room, "while bob moves")
	moved := bob.On(a)
	if e, _ := awaitMessage(t, moved, sinceB, room, "while bob moves"); e["event_id"] != string(missed) {
		t.Errorf("after the move bob saw %v", e["event_id"])
	}
	// what one node forbids, the other forbids at once
	alice.Must(t, "POST", fmt.Sprintf(`{"user_id":%q}`, bob.UserID), "/v3/rooms/%s/ban", room)
	if r := bob.Do(t, "PUT", `{"msgtype":"m.text","body":"still here"}`, "/v3/rooms/%s/send/m.room.message/%s", room, bob.Txn()); r.Status != 403 || r.Errcode != "M_FORBIDDEN" {
		t.Errorf("a banned user's message: %d %s", r.Status, r.Errcode)
	}
	// both nodes tell the same history
	var pages [2]string
	for i, c := range []*hstest.Client{alice, alice.On(b)} {
		m := c.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=100", room)
		var ids []string
		for _, e := range m["chunk"].([]any) {
			ids = append(ids, e.(map[string]any)["event_id"].(string))
		}
		pages[i] = strings.Join(ids, " ")
	}
	if pages[0] != pages[1] || pages[0] == "" {
		t.Errorf("the nodes tell different histories:\n%s\n%s", pages[0], pages[1])
	}
}

// TestTransactionIDIsPrivate shows that only the device that sent an event ever sees its transaction id: not the sender's
// other device, not another user, by no way of reading.
func TestTransactionIDIsPrivate(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		second := alice.Login()
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		since := map[*hstest.Client]string{}
		for _, c := range []*hstest.Client{alice, second, bob} {
			since[c] = c.Sync("")["next_batch"].(string)
		}
		const txn = "my-secret-transaction"
		sent := alice.Must(t, "PUT", `{"msgtype":"m.text","body":"hi"}`, "/v3/rooms/%s/send/m.room.message/%s", room, txn)["event_id"].(string)
		alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"in a thread","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, sent))
		for name, c := range map[string]*hstest.Client{"the sending device": alice, "the sender's second device": second, "another user": bob} {
			answers := map[string]any{
				"incremental sync": c.Sync("since=" + url.QueryEscape(since[c])),
				"initial sync":     c.Sync(""),
				"/messages":        c.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=50", room),
				"/event":           c.Must(t, "GET", "", "/v3/rooms/%s/event/%s", room, sent),
				"/context":         c.Must(t, "GET", "", "/v3/rooms/%s/context/%s", room, sent),
				"/threads":         c.Must(t, "GET", "", "/v1/rooms/%s/threads", room),
			}
			for how, answer := range answers {
				b, err := json.Marshal(answer)
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(b), sent) {
					t.Errorf("%s, %s: the event is not there", name, how)
				}
				if got := strings.Contains(string(b), txn); got != (c == alice) {
					t.Errorf("%s, %s: sees the transaction id: %v", name, how, got)
				}
			}
		}
	})
}
