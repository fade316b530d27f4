package api_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// sent is a message and what the specification's rules need to know of its moment.
type sent struct {
	id              id.EventID
	body            string
	visibility      string
	membership      string // of the reader
	joinedLater     bool
	outOfReach      bool // of somebody who left before, in a room that is not world-readable now
	reaction, reply id.EventID
}

// visible applies the rules. Spec: client-server API, "Room history visibility", "Server behaviour".
func (m *sent) visible() bool {
	switch {
	case m.visibility == "world_readable", m.membership == "join", m.visibility == "shared" && m.joinedLater:
		return true
	}
	return m.membership == "invite" && m.visibility == "invited"
}

// visibilityScripts say what happens in a room: alice does all but joining and leaving; "." is a message.
var visibilityScripts = []string{
	"shared . invite . join .",
	"shared . invite . join . leave . invite . join .",
	"shared . join . leave .",
	"invited . invite . join . leave . invite .",
	"invited . invite . leave . invite . join . kick . invite . join .",
	"joined . invite . join . leave . invite . join . leave .",
	"joined . join . ban . unban . invite . join .",
	"world_readable . invite . join . leave . joined . world_readable .",
	"world_readable . shared . invited . joined . join . world_readable . leave .",
	"joined . world_readable . joined . join .",
	"shared . joined . invite . invited . join . shared . leave . shared . joined . world_readable .",
	"unknown . invite . join .",
	"shared . join . ban .",
	"joined . join . kick . join .",
}

// TestHistoryVisibilityEverywhere plays rooms through and asks every endpoint that reads history as somebody whose
// membership changed, and compares with the rules.
func TestHistoryVisibilityEverywhere(t *testing.T) {
	scripts := slices.Clone(visibilityScripts)
	random := rand.New(rand.NewPCG(1, 2))
	steps := []string{"shared", "invited", "joined", "world_readable", "invite", "join", "leave", "kick", "ban", "unban", ".", "."}
	for range 12 {
		script := []string{"join", "."}
		for range 14 {
			script = append(script, steps[random.IntN(len(steps))])
		}
		scripts = append(scripts, strings.Join(script, " "))
	}
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		for i, script := range scripts {
			t.Run(script, func(t *testing.T) {
				play(t, hs, fmt.Sprintf("v%d", i), script)
			})
		}
	})
}

func play(t *testing.T, hs *hstest.Server, name, script string) {
	alice, bob := hs.User("alice."+name), hs.User("bob."+name)
	room := alice.CreateRoom("private_chat")
	visibility, membership, ever := "shared", "", false
	var messages []*sent
	invite := func() {
		if membership != "invite" && membership != "join" && membership != "ban" {
			alice.Invite(room, bob.UserID)
			membership = "invite"
		}
	}
	about := fmt.Sprintf(`{"user_id":%q}`, bob.UserID)
	stayed := 0 // messages before the end of the last stay
	for i, step := range strings.Fields(script) {
		if membership == "join" {
			stayed = len(messages)
		}
		switch step {
		case ".":
			m := &sent{body: fmt.Sprintf("secret-%d-", i), visibility: visibility, membership: membership}
			m.id = alice.Text(room, m.body)
			relation := fmt.Sprintf(`"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"👍"}`, m.id)
			m.reaction = alice.Event(room, "m.reaction", "{"+relation+"}")
			m.reply = alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"%sreply","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, m.body, m.id))
			messages = append(messages, m)
		case "invite":
			invite()
		case "join":
			if membership == "ban" {
				continue
			}
			invite()
			bob.Join(room)
			membership, ever = "join", true
			for _, m := range messages {
				m.joinedLater = true
			}
		case "leave":
			if membership == "join" || membership == "invite" {
				bob.Leave(room)
				membership = "leave"
			}
		case "kick":
			if membership == "join" || membership == "invite" {
				alice.Must(t, "POST", about, "/v3/rooms/%s/kick", room)
				membership = "leave"
			}
		case "ban":
			if membership != "ban" {
				alice.Must(t, "POST", about, "/v3/rooms/%s/ban", room)
				membership = "ban"
			}
		case "unban":
			if membership == "ban" {
				alice.Must(t, "POST", about, "/v3/rooms/%s/unban", room)
				membership = "leave"
			}
		default:
			alice.State(room, "m.room.history_visibility", "", fmt.Sprintf(`{"history_visibility":%q}`, step))
			if visibility = step; step == "unknown" {
				visibility = "shared" // Spec: "if the value is not understood, the visibility is assumed to be shared"
			}
		}
	}
	if membership != "join" && visibility != "world_readable" {
		// The endpoints end where the reader left, also for somebody who is invited again.
		for _, m := range messages[stayed:] {
			m.outOfReach = true
		}
	}
	// Whoever never was in the room may ask at all only while it is world-readable.
	mayAsk := ever || visibility == "world_readable"
	checkPages(t, bob, room, messages, mayAsk)
	for _, m := range messages {
		checkMessage(t, bob, room, m, messages, mayAsk)
	}
	if r := bob.Do(t, "GET", "", "/v3/sync?filter=%s", `{"room":{"include_leave":true,"timeline":{"limit":50}}}`); r.Status != http.StatusOK {
		t.Errorf("sync: %d %s", r.Status, r.Body)
	} else {
		checkLeaks(t, "sync", r, messages)
	}
	for _, path := range []string{"/v3/rooms/%s/initialSync?limit=50", "/v1/rooms/%s/threads?limit=50", "/v1/rooms/%s/timestamp_to_event?ts=0&dir=f",
		"/v1/rooms/%s/timestamp_to_event?ts=9999999999999&dir=b"} {
		checkLeaks(t, path, bob.Do(t, "GET", "", path, room), messages)
	}
}

// checkLeaks finds what the reader must not see in a response: bodies, and ids of whole events.
func checkLeaks(t *testing.T, what string, r hstest.Response, messages []*sent) {
	t.Helper()
	for _, m := range messages {
		if m.visible() {
			continue
		}
		for _, secret := range []string{m.body, `"event_id":"` + string(m.id), `"event_id":"` + string(m.reply), `"event_id":"` + string(m.reaction)} {
			if strings.Contains(string(r.Body), secret) {
				t.Errorf("%s shows %s, sent while %s and the reader %q: %d %.1000s", what, m.body, m.visibility, m.membership, r.Status, r.Body)
			}
		}
	}
}

func checkPages(t *testing.T, bob *hstest.Client, room id.RoomID, messages []*sent, mayAsk bool) {
	t.Helper()
	var want []string
	for _, m := range messages {
		if m.visible() && !m.outOfReach && mayAsk {
			want = append(want, m.body)
		}
	}
	for _, dir := range []string{"b", "f"} {
		var got []string
		from := ""
		for range 100 {
			r := bob.Do(t, "GET", "", "/v3/rooms/%s/messages?limit=3&dir="+dir+from, room)
			checkLeaks(t, "messages "+dir, r, messages)
			if r.Status != http.StatusOK {
				if mayAsk || r.Status != http.StatusForbidden {
					t.Errorf("messages: %d %s", r.Status, r.Body)
				}
				break
			}
			var page struct {
				End   string `json:"end"`
				Chunk []struct {
					Content struct {
						Body string `json:"body"`
					} `json:"content"`
				} `json:"chunk"`
			}
			r.JSON(t, &page)
			for _, e := range page.Chunk {
				if strings.HasSuffix(e.Content.Body, "-") {
					got = append(got, e.Content.Body)
				}
			}
			if page.End == "" {
				break
			}
			from = "&from=" + page.End
		}
		if dir == "b" {
			slices.Reverse(got)
		}
		if !slices.Equal(got, want) {
			t.Errorf("messages %s: got %v, want %v", dir, got, want)
		}
	}
}

func checkMessage(t *testing.T, bob *hstest.Client, room id.RoomID, m *sent, messages []*sent, mayAsk bool) {
	t.Helper()
	for _, path := range []string{
		"/v3/rooms/%s/event/%s", "/v3/rooms/%s/context/%s?limit=20", "/v1/rooms/%s/relations/%s", "/v1/rooms/%s/relations/%s/m.thread?limit=20",
	} {
		r := bob.Do(t, "GET", "", path, room, m.id)
		checkLeaks(t, path, r, messages)
		want := []int{http.StatusNotFound, http.StatusForbidden}
		if m.visible() && !m.outOfReach && mayAsk {
			want = []int{http.StatusOK}
		}
		if !slices.Contains(want, r.Status) {
			t.Errorf("%s of %s, sent while %s and the reader %q: %d %.300s", path, m.body, m.visibility, m.membership, r.Status, r.Body)
		}
		if r.Status == http.StatusOK && !json.Valid(r.Body) {
			t.Errorf("%s: no JSON: %s", path, r.Body)
		}
	}
}
