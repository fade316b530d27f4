package clientsync_test

import (
	"context"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// space makes a space and joins others to it.
func (c *client) space(members ...*client) id.RoomID {
	c.n.t.Helper()
	v, _ := event.LookupVersion("11")
	r, err := c.n.rooms.CreateRoom(context.Background(), v, c.user, []byte(`{"room_version":"11","type":"m.space"}`), []room.Draft{
		{Type: "m.room.member", StateKey: key(string(c.user)), Content: []byte(`{"membership":"join"}`), Sender: c.user},
		{Type: "m.room.join_rules", StateKey: key(""), Content: []byte(`{"join_rule":"public"}`), Sender: c.user},
	}, room.RoomMeta{})
	if err != nil {
		c.n.t.Fatal(err)
	}
	for _, m := range members {
		m.join(r)
	}
	return r
}

func (c *client) accountData(typ, content string) {
	c.n.t.Helper()
	if err := c.n.data.SetAccountData(context.Background(), c.user, typ, []byte(content)); err != nil {
		c.n.t.Fatal(err)
	}
}

func (c *client) roomData(r id.RoomID, typ, content string) {
	c.n.t.Helper()
	if err := c.n.data.SetAccountDataByRoomID(context.Background(), c.user, r, typ, []byte(content)); err != nil {
		c.n.t.Fatal(err)
	}
}

func TestSlidingFilters(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		dm, secret, plain := alice.room(bob.client), alice.room(bob.client), alice.room(bob.client)
		alice.state(secret, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
		alice.state(plain, "m.room.name", "", `{"name":"Tea Party"}`)
		invited := alice.room()
		alice.member(invited, bob.user, "invite")
		space, foreign := alice.space(bob.client), alice.space()
		alice.state(space, "m.space.child", string(plain), `{"via":["test"]}`)
		alice.state(space, "m.space.child", string(secret), `{}`)
		alice.state(foreign, "m.space.child", string(dm), `{"via":["test"]}`)
		bob.accountData("m.direct", `{"@alice:test":["`+string(dm)+`"],"@x:test":5}`)
		bob.roomData(dm, "m.tag", `{"tags":{"m.favourite":{},"u.x":{}}}`)
		bob.roomData(secret, "m.tag", `{"tags":{"m.favourite":{}}}`)
		all := []id.RoomID{dm, secret, plain, invited, space}
		but := func(out ...id.RoomID) []id.RoomID {
			return slices.DeleteFunc(slices.Clone(all), func(r id.RoomID) bool { return slices.Contains(out, r) })
		}
		for filters, want := range map[string][]id.RoomID{
			`{}`:                              all,
			`{"is_dm":true}`:                  {dm},
			`{"is_dm":false}`:                 but(dm),
			`{"is_encrypted":true}`:           {secret},
			`{"is_encrypted":false}`:          but(secret),
			`{"is_invite":true}`:              {invited},
			`{"is_invite":false}`:             but(invited),
			`{"is_invited":true}`:             {invited},
			`{"room_types":["m.space"]}`:      {space},
			`{"room_types":[null]}`:           but(space),
			`{"room_types":[null,"m.space"]}`: all,
			`{"room_types":[]}`:               {},
			`{"not_room_types":["m.space"]}`:  but(space),
			`{"not_room_types":[null]}`:       {space},
			`{"room_types":["m.space"],"not_room_types":["m.space"]}`: {},
			`{"spaces":["` + string(space) + `"]}`:                    {plain},
			`{"spaces":["` + string(foreign) + `","!no:test"]}`:       {},
			`{"spaces":[]}`:                               {},
			`{"tags":["m.favourite"]}`:                    {dm, secret},
			`{"tags":["m.favourite"],"not_tags":["u.x"]}`: {secret},
			`{"not_tags":["m.favourite"]}`:                but(dm, secret),
			`{"room_name_like":"tea"}`:                    {plain},
			`{"is_dm":false,"is_encrypted":false,"not_room_types":["m.space"],"is_invite":false}`: {plain},
		} {
			bob.pos = ""
			m := bob.next(list3575(`[[0,99]]`, 1, `[]`, filters))
			wantRooms(t, filters, m, want...)
			if got, _ := at(m, "lists", "a", "count").(float64); int(got) != len(want) {
				t.Errorf("%s: count %v, want %d", filters, got, len(want))
			}
		}

		// what lists choose by changes
		bob.pos = ""
		favourites := list3575(`[[0,99]]`, 1, `[]`, `{"tags":["m.favourite"]}`)
		bob.next(favourites)
		bob.roomData(plain, "m.tag", `{"tags":{"m.favourite":{}}}`)
		wantRooms(t, "a new favourite", bob.next(favourites), plain)
		bob.pos = ""
		named := list3575(`[[0,99]]`, 1, `[]`, `{"room_name_like":"coffee"}`)
		bob.next(named)
		alice.state(plain, "m.room.name", "", `{"name":"Coffee Party"}`)
		wantRooms(t, "a new name", bob.next(named), plain)
		bob.pos = ""
		m := bob.next(list3575(`[[0,99]]`, 1, `[]`, ""))
		want(t, "is_dm", roomOf(m, dm)["is_dm"], true)
		if roomOf(m, plain)["is_dm"] != nil {
			t.Error("a room is a direct chat")
		}
		bob.accountData("m.direct", `{"@alice:test":["`+string(plain)+`"]}`)
		m = bob.next(list3575(`[[0,99]]`, 1, `[]`, ""))
		wantRooms(t, "direct chats changed", m, dm, plain)
		want(t, "is_dm", roomOf(m, dm)["is_dm"], false)
		want(t, "is_dm", roomOf(m, plain)["is_dm"], true)
	})
}

func TestSlidingSubscriptions(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		first, second, foreign := alice.room(bob.client), alice.room(bob.client), alice.room()
		sub := func(limit string, r ...id.RoomID) string {
			out := ""
			for _, x := range r {
				if out != "" {
					out += ","
				}
				out += `"` + string(x) + `":{"timeline_limit":` + limit + `,"required_state":[["m.room.join_rules",""]]}`
			}
			return `{"lists":{"a":{"ranges":[[0,0]],"timeline_limit":1,"required_state":[["m.room.create",""]]}},"room_subscriptions":{` + out + `}}`
		}
		m := bob.next(sub("3", first, foreign, "!nothing:test"))
		wantRooms(t, "a list and a subscription", m, first, second)
		wantState(t, "subscribed", roomOf(m, first), "m.room.join_rules|")
		wantState(t, "listed", roomOf(m, second), "m.room.create|")
		// both rules match: what any of them asks for
		m = bob.next(sub("3", first, second))
		wantRooms(t, "more is asked for", m, second)
		x := roomOf(m, second)
		wantState(t, "both", x, "m.room.join_rules|")
		want(t, "unstable_expanded_timeline", x["unstable_expanded_timeline"], true)
		if len(slidingIDs(x)) != 3 || x["initial"] != nil {
			t.Errorf("expanded: %v", x)
		}
		// a room that is closed and opened again is not told again
		bob.next(sub("3", first))
		wantRooms(t, "opened again", bob.next(sub("3", first, second)))
		// unless it moved on meanwhile, further than the client was told
		bob.next(sub("3", first))
		alice.text(second, "1")
		alice.text(second, "2")
		want(t, "limited", roomOf(bob.next(sub("3", first)), second)["limited"], true)
		want(t, "expanded", roomOf(bob.next(sub("3", first, second)), second)["unstable_expanded_timeline"], true)

		// one who was in a room sees it up to the end
		bob.leave(first)
		alice.text(first, "secret")
		bob.pos = ""
		m = bob.next(sub("20", first))
		ids := slidingIDs(roomOf(m, first))
		if len(ids) == 0 || events(roomOf(m, first)["timeline"])[len(ids)-1]["type"] != "m.room.member" {
			t.Errorf("a room that was left: %v", roomOf(m, first))
		}
	})
}

func TestSlidingMemberships(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		b4 := &slide4186{client: n.client("bob", "B4")}
		body := list3575(`[[0,99]]`, 10, `[["m.room.member","$ME"],["m.room.member","$LAZY"]]`, "")
		body4 := `{"lists":{"a":{"timeline_limit":10,"required_state":{"include":[{"type":"m.room.member","state_key":"@bob:test"}],"lazy_members":true}}}}`
		next := func() (map[string]any, map[string]any) { return bob.next(body), b4.next(body4) }
		next()
		r := alice.room()
		alice.state(r, "m.room.name", "", `{"name":"Tea"}`)
		alice.member(r, bob.user, "invite")
		m, m4 := next()
		x, x4 := roomOf(m, r), roomOf(m4, r)
		if s := tuples(x["invite_state"]); s["m.room.name|"] == nil || s["m.room.member|@bob:test"] == nil || s["m.room.create|"] == nil {
			t.Errorf("invite_state %v", s)
		}
		if s := tuples(x4["stripped_state"]); s["m.room.name|"] == nil || s["m.room.member|@bob:test"] == nil {
			t.Errorf("stripped_state %v", s)
		}
		for _, name := range []string{"timeline", "required_state", "joined_count", "name", "heroes", "prev_batch"} {
			if x[name] != nil || x4[name] != nil {
				t.Errorf("who is invited sees %s", name)
			}
		}
		want(t, "membership", x4["membership"], "invite")
		want(t, "initial", x["initial"], true)
		if lists := x4["lists"].([]any); len(lists) != 1 || lists[0] != "a" {
			t.Errorf("lists %v", lists)
		}
		m, m4 = next()
		wantRooms(t, "invited, again", m)
		wantRooms(t, "invited, again", m4)

		bob.join(r)
		m, m4 = next()
		want(t, "joined: initial", roomOf(m, r)["initial"], true)
		want(t, "joined: name", roomOf(m4, r)["name"], "Tea")
		want(t, "joined: membership", roomOf(m4, r)["membership"], "join")
		want(t, "num_live", roomOf(m, r)["num_live"], 1.0)

		// a new name is not a new membership
		bob.state(r, "m.room.member", string(bob.user), `{"membership":"join","displayname":"B"}`)
		m, _ = next()
		if x := roomOf(m, r); x == nil || x["initial"] != nil {
			t.Errorf("a new display name: %v", x)
		}

		bob.leave(r)
		alice.text(r, "not for bob")
		m, m4 = next()
		x = roomOf(m, r)
		wantState(t, "left", x, "m.room.member|@bob:test")
		if ids := slidingIDs(x); len(ids) != 1 || x["initial"] != nil {
			t.Errorf("left: %v", x)
		}
		want(t, "left", roomOf(m4, r)["membership"], "leave")
		want(t, "count of a room that was left", at(m, "lists", "a", "count"), 1.0)
		m, m4 = next()
		wantRooms(t, "left, again", m)
		wantRooms(t, "left, again", m4)
		want(t, "later", at(m, "lists", "a", "count"), 0.0)
		want(t, "MSC4186 keeps it", at(m4, "lists", "a", "count"), 1.0)

		// gone and back again between two requests
		bob.join(r)
		next()
		bob.leave(r)
		bob.join(r)
		m, m4 = next()
		want(t, "back: initial", roomOf(m, r)["initial"], true)
		want(t, "back: initial", roomOf(m4, r)["initial"], true)

		// kicked: listed also for a client that knows nothing
		alice.member(r, bob.user, "leave")
		alice.state(r, "m.room.name", "", `{"name":"Without bob"}`)
		next()
		bob.pos, b4.pos = "", ""
		m, m4 = next()
		want(t, "kicked: name", roomOf(m, r)["name"], "Tea")
		want(t, "kicked: membership", roomOf(m4, r)["membership"], "leave")
		if x := roomOf(m, r); x["joined_count"] != nil {
			t.Errorf("kicked: %v", x)
		}

		// an invitation that was taken back, and a ban without ever having been in: only for those who knew
		other, banned := alice.room(), alice.room()
		alice.member(other, bob.user, "invite")
		next()
		alice.member(other, bob.user, "leave")
		alice.member(banned, bob.user, "ban")
		alice.text(other, "secret")
		m, m4 = next()
		wantRooms(t, "an invitation that is no longer", m, other)
		x = roomOf(m, other)
		if len(slidingIDs(x)) != 1 || x["name"] != nil {
			t.Errorf("an invitation that is no longer: %v", x)
		}
		wantState(t, "an invitation that is no longer", x, "m.room.member|@bob:test")
		if s := tuples(roomOf(m4, other)["stripped_state"]); len(s) != 1 || s["m.room.member|@bob:test"] == nil {
			t.Errorf("an invitation that is no longer: %v", s)
		}
		bob.pos = ""
		wantRooms(t, "from scratch", bob.next(body), r)

		// invitations by ignored users
		bob.accountData("m.ignored_user_list", `{"ignored_users":{"@alice:test":{}}}`)
		alice.member(alice.room(), bob.user, "invite")
		wantRooms(t, "ignored", bob.next(body))
	})
}

// TestSlidingRoomTypes lists rooms by their types after a restart, also in a database from before types were noted with rooms.
func TestSlidingRoomTypes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice := n.client("alice", "A")
		plain, space := alice.room(), alice.space()
		noted := func(want int64) {
			t.Helper()
			var got int64
			err := n.store.Read(t.Context(), func(tx *store.Tx) error {
				_, err := tx.Get([]any{&got}, `SELECT count(*) FROM rooms WHERE room_type IN ('', 'm.space')`)
				return err
			})
			if err != nil || got != want {
				t.Errorf("the types of %d rooms are noted, not of %d, %v", got, want, err)
			}
		}
		noted(2)
		for _, old := range []bool{false, true} {
			if old {
				err := n.store.Write(t.Context(), func(tx *store.Tx) error {
					_, err := tx.Exec(`UPDATE rooms SET room_type = NULL`)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			n.stop()
			n = start(t, cfg)
			s := &slide{client: alice.on(n)}
			wantRooms(t, "rooms", s.peekAt(list3575(`[[0,9]]`, 1, `[]`, `{"not_room_types":["m.space"]}`), ""), plain)
			wantRooms(t, "spaces", s.peekAt(list3575(`[[0,9]]`, 1, `[]`, `{"room_types":["m.space"]}`), ""), space)
			noted(2)
		}
	})
}
