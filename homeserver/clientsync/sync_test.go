package clientsync_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func TestInitialAndIncremental(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		first := alice.text(r, "one")
		m := alice.sync()
		j := joined(m, r)
		if got := ids(j); len(got) == 0 || got[len(got)-1] != first {
			t.Errorf("timeline %v does not end with %s", got, first)
		}
		if at(j, "timeline", "limited") != false {
			t.Errorf("limited is %v for a room that fits", at(j, "timeline", "limited"))
		}
		if n := len(events(at(j, "state", "events"))); n != 0 {
			t.Errorf("%d events of state before the room's first event", n)
		}
		if at(j, "summary", "m.joined_member_count") != 2.0 || at(j, "summary", "m.heroes", 0) != "@bob:test" {
			t.Errorf("summary %v", at(j, "summary"))
		}
		if at(m, "device_one_time_keys_count", "signed_curve25519") != 0.0 {
			t.Errorf("key counts %v", at(m, "device_one_time_keys_count"))
		}
		if at(m, "account_data", "events", 0, "type") != "m.push_rules" {
			t.Errorf("account data %v", at(m, "account_data"))
		}
		if m = alice.sync(); at(m, "rooms") != nil || at(m, "account_data") != nil {
			t.Errorf("nothing changed, but %v", m)
		}
		second := bob.text(r, "two")
		m = alice.sync()
		if got := ids(joined(m, r)); !slices.Equal(got, []id.EventID{second}) {
			t.Errorf("timeline %v, want %s alone", got, second)
		}
		if at(joined(m, r), "state") != nil || at(joined(m, r), "summary") != nil {
			t.Errorf("a message came with state or summary: %v", joined(m, r))
		}
		if at(joined(m, r), "unread_notifications", "notification_count") != 1.0 {
			t.Errorf("unread %v, want 1 in the response that brings the event", at(joined(m, r), "unread_notifications"))
		}
		if e := at(joined(m, r), "timeline", "events", 0, "unsigned", "membership"); e != "join" {
			t.Errorf("unsigned.membership is %v", e)
		}
	})
}

func TestTransactionIDOfOwnDeviceOnly(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		phone, laptop, bob := n.client("alice", "PHONE"), n.client("alice", "LAPTOP"), n.client("bob", "B")
		r := phone.room(bob)
		for _, c := range []*client{phone, laptop, bob} {
			c.sync()
		}
		phone.text(r, "mine")
		for c, want := range map[*client]bool{phone: true, laptop: false, bob: false} {
			for what, m := range map[string]map[string]any{"incremental": c.sync(), "initial": n.client(string(c.user[1:strings.Index(string(c.user), ":")]), string(c.device)).sync()} {
				txn := at(joined(m, r), "timeline", "events", -1, "unsigned", "transaction_id")
				if (txn != nil) != want {
					t.Errorf("%s sync of %s on %s shows transaction_id %v", what, c.user, c.device, txn)
				}
			}
		}
	})
}

func TestGap(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol := n.client("alice", "A"), n.client("bob", "B"), n.client("carol", "C")
		r := alice.room(bob)
		alice.sync()
		alice.state(r, "m.room.topic", "", `{"topic":"in the gap"}`)
		carol.join(r)
		var last []id.EventID
		for i := range 25 {
			last = append(last, bob.text(r, fmt.Sprint(i)))
		}
		alice.state(r, "m.room.name", "", `{"name":"in the timeline"}`)
		for _, tc := range []struct {
			name   string
			params []string
			where  string
			state  []string
			not    []string
		}{
			{"state", []string{"filter", `{"room":{"timeline":{"limit":5}}}`}, "state", []string{"m.room.topic|", "m.room.member|@carol:test"}, []string{"m.room.name|", "m.room.create|"}},
			{"state_after", []string{"filter", `{"room":{"timeline":{"limit":5}}}`, "use_state_after", "true"}, "state_after", []string{"m.room.topic|", "m.room.member|@carol:test", "m.room.name|"}, []string{"m.room.create|"}},
			{"full_state", []string{"filter", `{"room":{"timeline":{"limit":5}}}`, "full_state", "true"}, "state", []string{"m.room.topic|", "m.room.create|", "m.room.member|@alice:test"}, []string{"m.room.name|"}},
			{"lazy", []string{"filter", `{"room":{"timeline":{"limit":5},"state":{"lazy_load_members":true}}}`}, "state", []string{"m.room.topic|", "m.room.member|@carol:test", "m.room.member|@bob:test"}, []string{"m.room.name|"}},
		} {
			m := alice.peek(tc.params...)
			j := joined(m, r)
			if at(j, "timeline", "limited") != true {
				t.Errorf("%s: limited is %v", tc.name, at(j, "timeline", "limited"))
			}
			got := ids(j)
			if len(got) != 5 || got[3] != last[24] {
				t.Errorf("%s: timeline %v", tc.name, got)
			}
			other := map[string]string{"state": "state_after", "state_after": "state"}[tc.where]
			if at(j, other) != nil {
				t.Errorf("%s: there is %s too", tc.name, other)
			}
			have := tuples(at(j, tc.where, "events"))
			for _, k := range tc.state {
				if have[k] == nil {
					t.Errorf("%s: %s lacks %s: %v", tc.name, tc.where, k, have)
				}
			}
			for _, k := range tc.not {
				if have[k] != nil {
					t.Errorf("%s: %s has %s", tc.name, tc.where, k)
				}
			}
			if p, _ := at(j, "timeline", "prev_batch").(string); !strings.HasPrefix(p, "t") {
				t.Errorf("%s: prev_batch %q", tc.name, p)
			}
			if at(j, "summary", "m.joined_member_count") != 3.0 {
				t.Errorf("%s: summary %v", tc.name, at(j, "summary"))
			}
		}
	})
}

// TestStateAtStart takes state back by the timeline's own events: those that set something first, and those that replace it.
func TestStateAtStart(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		alice.state(r, "m.room.topic", "", `{"topic":"old"}`)
		for i := range 15 {
			alice.text(r, fmt.Sprint(i))
		}
		alice.state(r, "m.room.topic", "", `{"topic":"newer"}`)
		alice.state(r, "m.room.topic", "", `{"topic":"newest"}`)
		alice.state(r, "m.room.name", "", `{"name":"first"}`)
		j := joined(n.client("bob", "X").sync("filter", `{"room":{"timeline":{"limit":4}}}`), r)
		have := tuples(at(j, "state", "events"))
		if at(have["m.room.topic|"], "content", "topic") != "old" || have["m.room.name|"] != nil {
			t.Errorf("state at the start: %v", have)
		}
		tl := events(at(j, "timeline", "events"))
		if at(tl[1], "unsigned", "prev_content", "topic") != "old" || at(tl[2], "unsigned", "prev_content", "topic") != "newer" || at(tl[3], "unsigned", "prev_content") != nil {
			t.Errorf("prev_content of the timeline: %v", tl)
		}
		if at(tl[2], "unsigned", "replaces_state") != tl[1]["event_id"] {
			t.Errorf("replaces_state %v, want %v", at(tl[2], "unsigned", "replaces_state"), tl[1]["event_id"])
		}
		j = joined(n.client("bob", "X").sync("filter", `{"room":{"timeline":{"limit":4}}}`, "use_state_after", "true"), r)
		have = tuples(at(j, "state_after", "events"))
		if at(have["m.room.topic|"], "content", "topic") != "newest" || have["m.room.name|"] == nil || at(j, "state") != nil {
			t.Errorf("state at the end: %v", have)
		}
	})
}

func TestLazyMembers(t *testing.T) {
	const lazy = `{"room":{"timeline":{"limit":3},"state":{"lazy_load_members":true}}}`
	const redundant = `{"room":{"state":{"lazy_load_members":true,"include_redundant_members":true}}}`
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol := n.client("alice", "A"), n.client("bob", "B"), n.client("carol", "C")
		dave, eve := n.client("dave", "D"), n.client("eve", "E")
		r := alice.room(bob, carol, dave, eve)
		alice.state(r, "m.room.name", "", `{"name":"no heroes"}`)
		for i := range 5 {
			bob.text(r, fmt.Sprint(i))
		}
		have := tuples(at(joined(alice.sync("filter", lazy), r), "state", "events"))
		for k, want := range map[string]bool{"m.room.member|@alice:test": true, "m.room.member|@bob:test": true,
			"m.room.member|@carol:test": false, "m.room.create|": true} {
			if (have[k] != nil) != want {
				t.Errorf("initial: %s there: %v, want %v", k, have[k] != nil, want)
			}
		}
		carol.text(r, "hi")
		bob.text(r, "hi")
		old := *alice
		have = tuples(at(joined(alice.sync("filter", lazy), r), "state", "events"))
		if have["m.room.member|@carol:test"] == nil || have["m.room.member|@bob:test"] != nil {
			t.Errorf("incremental: want carol's member event alone, have %v", have)
		}
		// the response was lost: the client asks again from its old token
		have = tuples(at(joined(old.peek("filter", lazy), r), "state", "events"))
		if have["m.room.member|@carol:test"] == nil {
			t.Errorf("asked again: carol's member event is missing: %v", have)
		}
		carol.text(r, "again")
		if j := joined(alice.peek("filter", lazy), r); at(j, "state") != nil {
			t.Errorf("carol's member event is redundant: %v", at(j, "state"))
		}
		have = tuples(at(joined(alice.peek("filter", redundant), r), "state", "events"))
		if have["m.room.member|@carol:test"] == nil {
			t.Errorf("include_redundant_members: %v", have)
		}
	})
}

func TestHeroesAreInLazyState(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice := n.client("alice", "A")
		var others []*client
		for i := range 8 {
			others = append(others, n.client(fmt.Sprintf("u%d", i), "U"))
		}
		r := alice.room(others...)
		for i := range 12 {
			alice.text(r, fmt.Sprint(i))
		}
		j := joined(alice.sync("filter", `{"room":{"timeline":{"limit":3},"state":{"lazy_load_members":true}}}`), r)
		heroes, _ := at(j, "summary", "m.heroes").([]any)
		if fmt.Sprint(heroes) != "[@u0:test @u1:test @u2:test @u3:test @u4:test]" {
			t.Errorf("heroes %v", heroes)
		}
		have := tuples(at(j, "state", "events"))
		for _, h := range heroes {
			if have["m.room.member|"+h.(string)] == nil {
				t.Errorf("the member event of hero %v is missing", h)
			}
		}
		if have["m.room.member|@u7:test"] != nil {
			t.Error("u7 is nobody's hero, but came")
		}
	})
}

func TestMembershipTransitions(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.emptyRoom("11")
		alice.state(r, "m.room.name", "", `{"name":"club"}`)
		alice.state(r, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
		secret := alice.text(r, "before bob")
		bob.sync()
		sections := func(m map[string]any) string {
			var out []string
			for _, s := range []string{"join", "invite", "knock", "leave"} {
				if at(m, "rooms", s, string(r)) != nil {
					out = append(out, s)
				}
			}
			return strings.Join(out, "+")
		}
		// invited
		alice.member(r, bob.user, "invite")
		m := bob.sync()
		if sections(m) != "invite" {
			t.Fatalf("invited: sections %q", sections(m))
		}
		have := tuples(at(m, "rooms", "invite", string(r), "invite_state", "events"))
		for _, k := range []string{"m.room.create|", "m.room.name|", "m.room.join_rules|", "m.room.member|@bob:test", "m.room.member|@alice:test"} {
			if have[k] == nil {
				t.Errorf("invite_state lacks %s", k)
			}
		}
		if have["m.room.member|@bob:test"]["event_id"] != nil {
			t.Error("invite_state is not stripped")
		}
		if got := sections(bob.peek()); got != "" {
			t.Errorf("the invitation comes twice: %q", got)
		}
		if got := sections(n.client("bob", "X").sync()); got != "invite" {
			t.Errorf("initial sync of the invited: %q", got)
		}
		// declined
		bob.leave(r)
		m = bob.sync()
		left := at(m, "rooms", "leave", string(r))
		if sections(m) != "leave" || len(events(at(left, "timeline", "events"))) != 1 {
			t.Errorf("declined: %q %v", sections(m), left)
		}
		if at(left, "state") != nil {
			t.Errorf("who was never in learns the state: %v", at(left, "state"))
		}
		// joined
		between := alice.text(r, "while bob was out")
		bob.join(r)
		in := alice.text(r, "bob is in")
		m = bob.sync()
		j := joined(m, r)
		if sections(m) != "join" {
			t.Fatalf("joined: %q", sections(m))
		}
		if got := ids(j); slices.Contains(got, between) || slices.Contains(got, secret) || !slices.Contains(got, in) {
			t.Errorf("joined: timeline %v shows what bob may not see", got)
		}
		if have := known(j); have["m.room.create|"] == nil || have["m.room.name|"] == nil {
			t.Errorf("joined: state is not whole: %v", have)
		}
		// kicked, and talked about afterwards
		last := alice.text(r, "bye")
		alice.member(r, bob.user, "leave")
		after := alice.text(r, "he is gone")
		m = bob.sync()
		left = at(m, "rooms", "leave", string(r))
		got := ids(left)
		if sections(m) != "leave" || len(got) != 2 || got[0] != last || slices.Contains(got, after) {
			t.Errorf("kicked: %q %v", sections(m), got)
		}
		if got := sections(bob.sync()); got != "" {
			t.Errorf("the room that was left comes again: %q", got)
		}
		if got := sections(n.client("bob", "X").sync()); got != "" {
			t.Errorf("initial sync shows a room that was left: %q", got)
		}
		m = n.client("bob", "X").sync("filter", `{"room":{"include_leave":true}}`)
		left = at(m, "rooms", "leave", string(r))
		if got := ids(left); slices.Contains(got, after) || !slices.Contains(got, last) || slices.Contains(got, secret) {
			t.Errorf("include_leave: timeline %v", got)
		}
		// in and out between two syncs
		bob.join(r)
		seen := alice.text(r, "a short visit")
		bob.leave(r)
		m = bob.sync()
		left = at(m, "rooms", "leave", string(r))
		if got := ids(left); sections(m) != "leave" || !slices.Contains(got, seen) || slices.Contains(got, after) {
			t.Errorf("a short visit: %q %v", sections(m), got)
		}
		// banned from outside, then let in again
		alice.member(r, bob.user, "ban")
		if m = bob.sync(); sections(m) != "leave" || at(m, "rooms", "leave", string(r), "timeline", "events", -1, "content", "membership") != "ban" {
			t.Errorf("banned: %v", m)
		}
		alice.member(r, bob.user, "leave")
		bob.join(r)
		if m = bob.sync(); sections(m) != "join" || known(joined(m, r))["m.room.create|"] == nil {
			t.Errorf("let in again: %q", sections(m))
		}
		// out and in again between two syncs
		bob.leave(r)
		away := alice.text(r, "while bob was away")
		bob.join(r)
		m = bob.sync()
		if got := ids(joined(m, r)); sections(m) != "join" || slices.Contains(got, away) {
			t.Errorf("out and in: %q %v", sections(m), got)
		}
	})
}

func TestKnock(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.emptyRoom("11")
		alice.state(r, "m.room.join_rules", "", `{"join_rule":"knock"}`)
		bob.sync()
		bob.member(r, bob.user, "knock")
		have := tuples(at(bob.sync(), "rooms", "knock", string(r), "knock_state", "events"))
		if have["m.room.member|@bob:test"] == nil || have["m.room.create|"] == nil {
			t.Errorf("knock_state %v", have)
		}
	})
}

func TestFilters(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r, other := alice.room(bob), alice.room(bob)
		stored, err := n.data.CreateFilter(context.Background(), alice.user, []byte(`{"room":{"timeline":{"types":["m.room.message"]}}}`))
		if err != nil {
			t.Fatal(err)
		}
		alice.sync()
		alice.state(r, "m.room.topic", "", `{"topic":"t1"}`)
		msg := bob.text(r, "hello")
		alice.state(r, "m.room.name", "", `{"name":"n"}`)
		bob.text(other, "elsewhere")
		for _, tc := range []struct {
			name, filter string
			check        func(m map[string]any) bool
		}{
			{"stored filter", stored, func(m map[string]any) bool { return slices.Equal(ids(joined(m, r)), []id.EventID{msg}) }},
			{"state before the first event that was let through", stored, func(m map[string]any) bool {
				have := tuples(at(joined(m, r), "state", "events"))
				return have["m.room.topic|"] != nil && have["m.room.name|"] == nil
			}},
			{"rooms", fmt.Sprintf(`{"room":{"rooms":[%q]}}`, other), func(m map[string]any) bool { return joined(m, r) == nil && joined(m, other) != nil }},
			{"not_rooms", fmt.Sprintf(`{"room":{"not_rooms":[%q]}}`, other), func(m map[string]any) bool { return joined(m, r) != nil && joined(m, other) == nil }},
			{"not_senders", `{"room":{"timeline":{"not_senders":["@bob:test"]}}}`, func(m map[string]any) bool { return !slices.Contains(ids(joined(m, r)), msg) }},
			{"event_fields", `{"event_fields":["content.body","event_id"]}`, func(m map[string]any) bool {
				e := events(at(joined(m, other), "timeline", "events"))
				return len(e) == 1 && len(e[0]) == 2 && at(e[0], "content", "body") == "elsewhere" && at(e[0], "content", "msgtype") == nil
			}},
			{"no timeline", `{"room":{"timeline":{"types":[]}}}`, func(m map[string]any) bool {
				return len(ids(joined(m, r))) == 0 && tuples(at(joined(m, r), "state", "events"))["m.room.name|"] != nil
			}},
		} {
			alice.odd = tc.name == "event_fields"
			a := alice.get("filter", tc.filter)
			if a.status != 200 {
				t.Errorf("%s: %d %s", tc.name, a.status, a.body)
			}
			if !tc.check(a.json) {
				t.Errorf("%s: %s", tc.name, a.body)
			}
		}
		alice.odd = false
		for param, code := range map[string]string{"nope": "M_INVALID_PARAM", `{"room":7}`: "M_BAD_JSON", `{`: "M_NOT_JSON"} {
			if a := alice.get("filter", param); a.status != 400 || a.errcode != code {
				t.Errorf("filter %s: %d %s, want %s", param, a.status, a.errcode, code)
			}
		}
	})
}

func TestBadParameters(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()})
	alice := n.client("alice", "A")
	for _, q := range []string{"since=x", "since=t5", "timeout=-1", "timeout=soon", "full_state=maybe", "set_presence=away", "use_state_after=1"} {
		if a := alice.request(context.Background(), "GET", "", "/v3/sync?"+q); a.status != 400 || a.errcode != "M_INVALID_PARAM" {
			t.Errorf("%s: %d %s, want 400 M_INVALID_PARAM", q, a.status, a.errcode)
		}
	}
}

func TestIgnoredUsers(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, eve := n.client("alice", "A"), n.client("bob", "B"), n.client("eve", "E")
		r := alice.room(bob, eve)
		ctx := context.Background()
		if err := n.data.SetAccountData(ctx, alice.user, "m.ignored_user_list", []byte(`{"ignored_users":{"@eve:test":{}}}`)); err != nil {
			t.Fatal(err)
		}
		alice.sync()
		spam := eve.text(r, "buy")
		eve.state(r, "m.room.member", "@eve:test", `{"membership":"join","displayname":"Eve"}`)
		good := bob.text(r, "hi")
		eveRoom := eve.emptyRoom("11")
		eve.member(eveRoom, alice.user, "invite")
		m := alice.sync()
		got := ids(joined(m, r))
		if slices.Contains(got, spam) || !slices.Contains(got, good) || len(got) != 2 {
			t.Errorf("timeline %v: want eve's state and bob's message", got)
		}
		if at(joined(m, r), "unread_notifications", "notification_count") != 1.0 {
			t.Errorf("unread %v", at(joined(m, r), "unread_notifications"))
		}
		if at(m, "rooms", "invite") != nil {
			t.Error("the invitation of an ignored user came through")
		}
	})
}

// Invitations from before they were blocked are told to no client, and again when they are no longer.
func TestBlockedInvitations(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		bob3575, bob4186 := &slide{client: n.client("bob", "S")}, &slide4186{client: n.client("bob", "T")}
		r := alice.emptyRoom("11")
		alice.member(r, bob.user, "invite")
		ctx := context.Background()
		for _, tc := range []struct {
			config string
			want   bool
		}{{`{}`, true}, {`{"default_action":"block"}`, false}, {`{"default_action":"other"}`, true}} {
			if err := n.data.SetAccountData(ctx, bob.user, "m.invite_permission_config", []byte(tc.config)); err != nil {
				t.Fatal(err)
			}
			bob.since, bob3575.pos, bob4186.pos = "", "", ""
			if got := at(bob.sync(), "rooms", "invite", string(r)) != nil; got != tc.want {
				t.Errorf("%s: sync tells of the invitation: %v", tc.config, got)
			}
			if got := roomOf(bob3575.next(list3575(`[[0,9]]`, 1, `[]`, "")), r) != nil; got != tc.want {
				t.Errorf("%s: sliding sync tells of the invitation: %v", tc.config, got)
			}
			if got := roomOf(bob4186.next(fmt.Sprintf(`{"room_subscriptions":{%q:{"timeline_limit":1,"required_state":{"include":[]}}}}`, r)), r) != nil; got != tc.want {
				t.Errorf("%s: a subscription tells of the invitation: %v", tc.config, got)
			}
		}
	})
}

// A room that was forgotten does not come back by a ban, but by an invitation.
func TestForgottenAndBanned(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		bob.leave(r)
		bob.sync()
		if err := n.rooms.Forget(context.Background(), r, bob.user); err != nil {
			t.Fatal(err)
		}
		alice.member(r, bob.user, "ban")
		if m := bob.sync(); at(m, "rooms", "leave", string(r)) != nil {
			t.Errorf("a ban brings a forgotten room back: %v", m)
		}
		alice.member(r, bob.user, "leave")
		if m := bob.sync(); at(m, "rooms", "leave", string(r)) != nil {
			t.Errorf("the end of a ban brings a forgotten room back: %v", m)
		}
		alice.member(r, bob.user, "invite")
		if m := bob.sync(); at(m, "rooms", "invite", string(r)) == nil {
			t.Errorf("the invitation is missing: %v", m)
		}
	})
}

func TestRedactedEvents(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		bad := bob.text(r, "oops")
		alice.sync()
		bob.send(r, "m.room.redaction", fmt.Sprintf(`{"redacts":%q,"reason":"typo"}`, bad))
		m := alice.sync()
		if e := at(joined(m, r), "timeline", "events", 0); at(e, "type") != "m.room.redaction" || at(e, "redacts") != string(bad) {
			t.Errorf("redaction %v", e)
		}
		if at(joined(m, r), "unread_notifications", "notification_count") != 0.0 {
			t.Errorf("a redacted message counts: %v", at(joined(m, r), "unread_notifications"))
		}
		for _, e := range events(at(joined(n.client("alice", "X").sync(), r), "timeline", "events")) {
			if e["event_id"] == string(bad) {
				if at(e, "content", "body") != nil || at(e, "unsigned", "redacted_because", "content", "reason") != "typo" {
					t.Errorf("redacted event %v", e)
				}
			}
		}
	})
}

func TestAggregationsAreAskedForRelatedEventsOnly(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()})
	alice := n.client("alice", "A")
	r := alice.room()
	alice.sync()
	first := alice.text(r, "one")
	alice.text(r, "two")
	alice.send(r, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"x"}}`, first))
	tl := events(at(joined(alice.sync(), r), "timeline", "events"))
	for i, want := range []bool{true, false, false} {
		if got := at(tl[i], "unsigned", "m.relations") != nil; got != want {
			t.Errorf("event %d has aggregations: %v, want %v", i, got, want)
		}
	}
}

func TestLongPoll(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		alice.sync()
		began := time.Now()
		if m := alice.sync("timeout", "200"); at(m, "rooms") != nil {
			t.Errorf("nothing happened, but %v", m)
		}
		if d := time.Since(began); d < 190*time.Millisecond || d > 10*time.Second {
			t.Errorf("a poll of 200 ms took %s", d)
		}
		for what, do := range map[string]func(){
			"message":      func() { bob.text(r, "wake up") },
			"invitation":   func() { x := bob.emptyRoom("11"); bob.member(x, alice.user, "invite") },
			"account data": func() { _ = n.data.SetAccountData(context.Background(), alice.user, "a.b", []byte(`{}`)) },
			"typing":       func() { bob.must("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r, bob.user) },
			"own receipt":  func() { alice.receipt(r, "m.read", bob.text(r, "read this"), "") },
		} {
			done := make(chan map[string]any, 1)
			go func() { done <- alice.peek("timeout", "10000") }()
			time.Sleep(50 * time.Millisecond)
			began := time.Now()
			do()
			select {
			case <-done:
				if d := time.Since(began); d > 8*time.Second { // it would end by itself after 10 s
					t.Errorf("%s: woken after %s", what, d)
				}
			case <-time.After(testkit.Patience):
				t.Errorf("%s: never woken", what)
			}
			time.Sleep(150 * time.Millisecond)
			alice.sync()
		}
		// the client goes away
		ctx, cancel := context.WithCancel(context.Background())
		gone := make(chan struct{})
		go func() { alice.request(ctx, "GET", "", alice.query("timeout", "60000")); close(gone) }()
		time.Sleep(30 * time.Millisecond)
		cancel()
		select {
		case <-gone:
		case <-time.After(testkit.Patience):
			t.Error("the poll of a client that went away goes on")
		}
		// the session ends
		done := make(chan answer, 1)
		go func() { done <- alice.get("timeout", "60000") }()
		time.Sleep(30 * time.Millisecond)
		n.mu.Lock()
		n.ended["A"] = true
		n.mu.Unlock()
		err := n.store.Write(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Announce(store.Entry{Kind: store.KindSession, User: string(alice.user)})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		select {
		case a := <-done:
			if a.status != 401 || a.errcode != "M_UNKNOWN_TOKEN" {
				t.Errorf("ended session: %d %s", a.status, a.body)
			}
		case <-time.After(testkit.Patience):
			t.Error("the poll of an ended session goes on")
		}
		// shutdown
		polls := make(chan answer, 1)
		go func() { polls <- bob.get("timeout", "60000", "since", alice.since) }()
		time.Sleep(30 * time.Millisecond)
		n.sync.Drain()
		select {
		case a := <-polls:
			if a.status != 200 || a.json["next_batch"] == nil {
				t.Errorf("at shutdown: %d %s", a.status, a.body)
			}
		case <-time.After(testkit.Patience):
			t.Error("a poll outlives the shutdown")
		}
	})
}

func TestRestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		alice.sync()
		first := bob.text(r, "before")
		bob.receipt(r, "m.read", first, "")
		n.stop()
		n = start(t, cfg)
		alice = alice.on(n)
		m := alice.sync()
		if got := ids(joined(m, r)); !slices.Equal(got, []id.EventID{first}) {
			t.Errorf("after the restart: timeline %v, want %s", got, first)
		}
		if ephemeral(joined(m, r), "m.receipt")[string(first)] == nil {
			t.Errorf("after the restart: the receipt is missing: %v", joined(m, r))
		}
		if at(joined(m, r), "unread_notifications", "notification_count") != 1.0 {
			t.Errorf("after the restart: unread %v", at(joined(m, r), "unread_notifications"))
		}
		if m = alice.sync(); at(m, "rooms") != nil {
			t.Errorf("nothing changed, but %v", m)
		}
	})
}
