package clientsync_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/room"
)

const (
	path3575 = "/unstable/org.matrix.simplified_msc3575/sync"
	path4186 = "/v4/sync"
)

// slide is a sliding sync connection of the older form.
type slide struct {
	*client
	pos string
}

func (s *slide) path(timeout string) string {
	q := url.Values{}
	if s.pos != "" {
		q.Set("pos", s.pos)
	}
	if timeout != "" {
		q.Set("timeout", timeout)
	}
	return path3575 + "?" + q.Encode()
}

// try makes a request and stays where it is.
func (s *slide) try(body string) answer {
	s.n.t.Helper()
	return s.request(context.Background(), "POST", body, s.path(""))
}

func (s *slide) peekAt(body, timeout string) map[string]any {
	s.n.t.Helper()
	a := s.request(context.Background(), "POST", body, s.path(timeout))
	if a.status != http.StatusOK {
		s.n.t.Fatalf("sliding sync of %s: %d %s", s.user, a.status, a.body)
	}
	return a.json
}

// next makes a request and goes on from its answer.
func (s *slide) next(body string) map[string]any {
	s.n.t.Helper()
	m := s.peekAt(body, "")
	s.pos, _ = m["pos"].(string)
	return m
}

// on is the same connection of the device at another node.
func (s *slide) at(n *node) *slide { return &slide{client: s.client.on(n), pos: s.pos} }

// slide4186 is a connection of MSC4186; body is what stands in the request beside pos and timeout.
type slide4186 struct {
	*client
	pos string
}

func (s *slide4186) next(body string) map[string]any {
	s.n.t.Helper()
	if s.pos != "" {
		body = strings.TrimSuffix(body, "}") + fmt.Sprintf(`,"pos":%q}`, s.pos)
	}
	m := s.must("POST", body, path4186)
	s.pos, _ = m["pos"].(string)
	return m
}

// list3575 is a request for one list "a".
func list3575(ranges string, limit int, state, filters string) string {
	r, f := "", ""
	if ranges != "" {
		r = `,"ranges":` + ranges
	}
	if filters != "" {
		f = `,"filters":` + filters
	}
	return fmt.Sprintf(`{"lists":{"a":{"timeline_limit":%d,"required_state":%s%s%s}}}`, limit, state, r, f)
}

func roomOf(m map[string]any, r id.RoomID) map[string]any {
	x, _ := at(m, "rooms", string(r)).(map[string]any)
	return x
}

func roomNames(m map[string]any) []string {
	x, _ := m["rooms"].(map[string]any)
	return slices.Sorted(maps.Keys(x))
}

// wantRooms checks which rooms are in a response.
func wantRooms(t *testing.T, what string, m map[string]any, rooms ...id.RoomID) {
	t.Helper()
	var want []string
	for _, r := range rooms {
		want = append(want, string(r))
	}
	slices.Sort(want)
	if got := roomNames(m); !slices.Equal(got, want) {
		t.Errorf("%s: rooms %v, want %v", what, got, want)
	}
}

func slidingIDs(r map[string]any) (out []id.EventID) {
	for _, e := range events(r["timeline"]) {
		s, _ := e["event_id"].(string)
		out = append(out, id.EventID(s))
	}
	return out
}

func wantIDs(t *testing.T, what string, r map[string]any, want ...id.EventID) {
	t.Helper()
	if got := slidingIDs(r); !slices.Equal(got, want) {
		t.Errorf("%s: timeline %v, want %v", what, got, want)
	}
}

func stateNames(r map[string]any) []string {
	return slices.Sorted(maps.Keys(tuples(r["required_state"])))
}

func wantState(t *testing.T, what string, r map[string]any, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := stateNames(r); !slices.Equal(got, want) {
		t.Errorf("%s: state %v, want %v", what, got, want)
	}
}

func want[T comparable](t *testing.T, what string, got any, wanted T) {
	t.Helper()
	if g, ok := got.(T); !ok || g != wanted {
		t.Errorf("%s: got %v, want %v", what, got, wanted)
	}
}

func TestSlidingRoom(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r := alice.room(bob.client)
		alice.state(r, "m.room.name", "", `{"name":"Tea"}`)
		alice.state(r, "m.room.avatar", "", `{"url":"mxc://test/a"}`)
		e1, e2 := alice.text(r, "one"), alice.text(r, "two")
		body := list3575(`[[0,19]]`, 2, `[["m.room.create",""],["m.room.member","$ME"]]`, "")

		m := bob.next(body)
		wantRooms(t, "first", m, r)
		x := roomOf(m, r)
		want(t, "initial", x["initial"], true)
		want(t, "name", x["name"], "Tea")
		want(t, "avatar", x["avatar"], "mxc://test/a")
		want(t, "joined_count", x["joined_count"], 2.0)
		want(t, "invited_count", x["invited_count"], 0.0)
		want(t, "limited", x["limited"], true)
		want(t, "num_live", x["num_live"], 0.0)
		want(t, "notification_count", x["notification_count"], 2.0)
		want(t, "count", at(m, "lists", "a", "count"), 1.0)
		want(t, "ops", at(m, "lists", "a", "ops", 0, "room_ids", 0), any(string(r)).(string))
		wantIDs(t, "first", x, e1, e2)
		wantState(t, "first", x, "m.room.create|", "m.room.member|@bob:test")
		if x["heroes"] != nil || x["is_dm"] != nil || x["membership"] != nil {
			t.Errorf("a room with a name has %v", x)
		}
		prev, _ := x["prev_batch"].(string)
		if _, err := room.ParseToken(prev); err != nil {
			t.Errorf("prev_batch %q: %v", prev, err)
		}
		if tok, err := room.ParseToken(bob.pos); err != nil || tok <= 0 {
			t.Errorf("pos %q as a pagination token: %v", bob.pos, err)
		}
		stamp, _ := x["bump_stamp"].(float64)

		m = bob.next(body)
		wantRooms(t, "nothing new", m)

		e3 := alice.text(r, "three")
		m = bob.next(body)
		x = roomOf(m, r)
		wantIDs(t, "one more", x, e3)
		want(t, "num_live", x["num_live"], 1.0)
		want(t, "limited", x["limited"], false)
		if x["initial"] != nil || x["name"] != nil || x["required_state"] != nil || x["joined_count"] != nil {
			t.Errorf("an update tells what did not change: %v", x)
		}
		if now, _ := x["bump_stamp"].(float64); now <= stamp {
			t.Errorf("bump_stamp %v is not above %v", now, stamp)
		}

		alice.send(r, "m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"`+string(e3)+`","key":"x"}}`)
		x = roomOf(bob.next(body), r)
		if x == nil || x["bump_stamp"] != nil {
			t.Errorf("a reaction bumps a room: %v", x)
		}

		alice.state(r, "m.room.name", "", `{}`)
		carol := n.client("carol", "C")
		carol.join(r)
		x = roomOf(bob.next(body), r)
		want(t, "joined_count", x["joined_count"], 3.0)
		heroes := events(x["heroes"])
		if len(heroes) != 2 || heroes[0]["user_id"] != "@alice:test" {
			t.Errorf("heroes %v", heroes)
		}
		for i := range 5 {
			alice.text(r, fmt.Sprint("gap ", i))
		}
		x = roomOf(bob.next(body), r)
		want(t, "limited", x["limited"], true)
		if got := len(slidingIDs(x)); got != 2 {
			t.Errorf("%d events, want 2", got)
		}
		want(t, "num_live", x["num_live"], 2.0)
	})
}

func TestSlidingOrderAndRanges(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		var rooms []id.RoomID
		for range 5 {
			rooms = append(rooms, alice.room(bob.client))
		}
		body := list3575(`[[0,1]]`, 1, `[]`, "")
		m := bob.next(body)
		wantRooms(t, "the top two", m, rooms[4], rooms[3])
		want(t, "count", at(m, "lists", "a", "count"), 5.0)
		want(t, "order", at(m, "lists", "a", "ops", 0, "room_ids", 0), string(rooms[4]))

		// activity that is no bump moves a room too; spec: MSC4186, "Activity ordering"
		alice.state(rooms[0], "m.room.topic", "", `{"topic":"x"}`)
		m = bob.next(body)
		wantRooms(t, "one moved up", m, rooms[0])
		want(t, "initial", roomOf(m, rooms[0])["initial"], true)

		// rooms[3] is out of the range; what happens there is told when it is back
		e := alice.text(rooms[3], "while away")
		alice.text(rooms[1], "x")
		alice.text(rooms[2], "x")
		wantRooms(t, "others", bob.next(body), rooms[1], rooms[2])
		e2 := alice.text(rooms[3], "again")
		body3 := list3575(`[[0,1]]`, 10, `[]`, "")
		x := roomOf(bob.peekAt(body, ""), rooms[3])
		want(t, "limited", x["limited"], true)
		wantIDs(t, "with a limit of one", x, e2)
		x = roomOf(bob.next(body3), rooms[3])
		if ids := slidingIDs(x); len(ids) < 2 || ids[len(ids)-2] != e || x["initial"] != nil {
			t.Errorf("back in the range: %v", x)
		}
		wantRooms(t, "two ranges", bob.next(list3575(`[[0,0],[4,4]]`, 10, `[]`, "")), rooms[4])
		bob.next(list3575("", 10, `[]`, ""))
		if m := bob.next(list3575("", 10, `[]`, "")); len(roomNames(m)) != 0 {
			t.Errorf("all rooms were told: %v", roomNames(m))
		}
	})
}
