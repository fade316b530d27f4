package clientsync_test

import (
	"fmt"
	"testing"
)

func TestSlidingRequiredState(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol := n.client("alice", "A"), n.client("bob", "B"), n.client("carol", "C")
		r := alice.room(bob, carol)
		alice.state(r, "m.room.topic", "", `{"topic":"x"}`)
		alice.state(r, "x.y", "k", `{}`)
		alice.state(r, "m.room.power_levels", "", `{"users":{"@alice:test":100},"events":{"x.y":0}}`)
		bob.state(r, "x.y", "@bob:test", `{}`)
		alice.text(r, "hello")
		members := []string{"m.room.member|@alice:test", "m.room.member|@bob:test", "m.room.member|@carol:test"}
		rest := []string{"m.room.create|", "m.room.power_levels|", "m.room.join_rules|", "m.room.topic|", "x.y|k", "x.y|@bob:test"}
		both := func(more ...string) []string { return append(append([]string{}, rest...), more...) }
		for _, tc := range []struct {
			old, accepted string
			want          []string
		}{
			{`[]`, `{}`, nil},
			{`[["m.room.topic",""],["no.such",""]]`, `{"include":[{"type":"m.room.topic","state_key":""},{"type":"no.such","state_key":""}]}`, []string{"m.room.topic|"}},
			{`[["x.y","*"]]`, `{"include":[{"type":"x.y"}]}`, []string{"x.y|k", "x.y|@bob:test"}},
			{`[["*","*"]]`, `{"include":[{}]}`, both(members...)},
			{`[["m.room.member","*"]]`, `{"include":[{"type":"m.room.member"}]}`, members},
			{`[["m.room.member","$ME"]]`, `{"include":[{"type":"m.room.member","state_key":"@bob:test"}]}`, members[1:2]},
			{`[["*","$ME"]]`, `{"include":[{"state_key":"@bob:test"}]}`, []string{"x.y|@bob:test", members[1]}},
			{`[["m.room.member","$LAZY"]]`, `{"lazy_members":true}`, members[:1]},
			{`[["m.room.member","$LAZY"],["m.room.member","$ME"]]`, `{"lazy_members":true,"include":[{"type":"m.room.member","state_key":"@bob:test"}]}`, members[:2]},
			{`[["*","*"],["m.room.member","$LAZY"]]`, `{"include":[{}],"lazy_members":true}`, both(members[0])},
			{"", `{"include":[{}],"exclude":[{"type":"m.room.member"},{"type":"x.y","state_key":"k"}]}`,
				[]string{"m.room.create|", "m.room.power_levels|", "m.room.join_rules|", "m.room.topic|", "x.y|@bob:test"}},
			{"", `{"exclude":[{}],"lazy_members":true}`, members[:1]},
		} {
			if tc.old != "" {
				s := &slide{client: bob}
				wantState(t, tc.old, roomOf(s.next(list3575(`[[0,9]]`, 1, tc.old, "")), r), tc.want...)
			}
			s := &slide4186{client: bob}
			wantState(t, tc.accepted, roomOf(s.next(`{"lists":{"a":{"range":[0,9],"timeline_limit":1,"required_state":`+tc.accepted+`}}}`), r), tc.want...)
		}

		// several rules: what any of them asks for
		s := &slide4186{client: bob}
		m := s.next(fmt.Sprintf(`{"lists":{"a":{"timeline_limit":1,"required_state":{"lazy_members":true}},"b":{"timeline_limit":2,"required_state":{"include":[{"type":"m.room.member"}]}}},
			"room_subscriptions":{%q:{"timeline_limit":0,"required_state":{"include":[{"type":"x.y"}]}}}}`, r))
		wantState(t, "combined", roomOf(m, r), append([]string{"x.y|k", "x.y|@bob:test"}, members...)...)
		if got := len(slidingIDs(roomOf(m, r))); got != 2 {
			t.Errorf("combined: %d events", got)
		}
	})
}

func TestSlidingStateChanges(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide{client: n.client("bob", "B")}
		r := alice.room(bob.client)
		alice.state(r, "m.room.topic", "", `{"topic":"x"}`)
		topic, rules := list3575("", 1, `[["m.room.topic",""]]`, ""), list3575("", 1, `[["m.room.topic",""],["m.room.join_rules",""]]`, "")
		wantState(t, "first", roomOf(bob.next(topic), r), "m.room.topic|")
		alice.state(r, "m.room.join_rules", "", `{"join_rule":"invite"}`)
		m := bob.next(topic)
		wantState(t, "not asked for", roomOf(m, r))
		m = bob.next(rules)
		wantState(t, "more is asked for", roomOf(m, r), "m.room.join_rules|")
		if roomOf(m, r)["timeline"] != nil {
			t.Error("state that is asked for brings the timeline again")
		}
		wantRooms(t, "less is asked for", bob.next(topic))
		wantRooms(t, "more again, nothing changed", bob.next(rules))
		bob.next(topic)
		alice.state(r, "m.room.join_rules", "", `{"join_rule":"public"}`)
		wantState(t, "changed while not asked for", roomOf(bob.next(topic), r))
		wantState(t, "then asked for", roomOf(bob.next(rules), r), "m.room.join_rules|")
		alice.state(r, "m.room.topic", "", `{"topic":"y"}`)
		wantState(t, "changed", roomOf(bob.next(rules), r), "m.room.topic|")
	})
}

func TestSlidingLazyMembers(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol, dave := n.client("alice", "A"), &slide{client: n.client("bob", "B")}, n.client("carol", "C"), n.client("dave", "D")
		r := alice.room(bob.client, carol, dave)
		alice.text(r, "hello")
		body := list3575("", 2, `[["m.room.member","$LAZY"]]`, "")
		bob.next(body)
		next := func() map[string]any { t.Helper(); return roomOf(bob.next(body), r) }
		alice.text(r, "again")
		wantState(t, "known", next())
		carol.text(r, "me too")
		wantState(t, "new", next(), "m.room.member|@carol:test")
		carol.text(r, "and again")
		wantState(t, "known now", next())
		carol.state(r, "m.room.member", "@carol:test", `{"membership":"join","displayname":"C"}`)
		x := next()
		wantState(t, "changed", x, "m.room.member|@carol:test")
		if got := at(tuples(x["required_state"])["m.room.member|@carol:test"], "content", "displayname"); got != "C" {
			t.Errorf("displayname %v", got)
		}
		carol.text(r, "hi")
		wantState(t, "known as changed", next())
		// without a gap all changes of members come, also of those who are not in the timeline
		eve := n.client("eve", "E")
		alice.member(r, eve.user, "invite")
		wantState(t, "a target", next(), "m.room.member|@eve:test")
		// with a gap only those in the timeline
		dave.state(r, "m.room.member", "@dave:test", `{"membership":"join","displayname":"D"}`)
		for range 3 {
			alice.text(r, "x")
		}
		wantState(t, "a gap", next())
		dave.text(r, "x")
		wantState(t, "after the gap", next(), "m.room.member|@dave:test")
		bob.pos = ""
		wantState(t, "a new connection", next(), "m.room.member|@alice:test", "m.room.member|@dave:test")
	})
}

func TestSlidingNullsAndHeroes(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), &slide4186{client: n.client("bob", "B")}
		r := alice.room(bob.client)
		alice.state(r, "m.room.member", "@alice:test", `{"membership":"join","displayname":"Al","avatar_url":"mxc://test/x"}`)
		body := `{"lists":{"a":{"timeline_limit":5,"required_state":{}}}}`
		x := roomOf(bob.next(body), r)
		hero := at(x, "heroes", 0)
		want(t, "user_id", at(hero, "user_id"), "@alice:test")
		want(t, "displayname", at(hero, "displayname"), "Al")
		want(t, "avatar_url", at(hero, "avatar_url"), "mxc://test/x")
		if _, has := x["name"]; has || x["notification_count"] != nil || at(x, "ops") != nil {
			t.Errorf("MSC4186: %v", x)
		}
		alice.state(r, "m.room.name", "", `{"name":"Tea"}`)
		alice.state(r, "m.room.avatar", "", `{"url":"mxc://test/r"}`)
		x = roomOf(bob.next(body), r)
		want(t, "name", x["name"], "Tea")
		want(t, "avatar", x["avatar"], "mxc://test/r")
		if x["heroes"] != nil {
			t.Error("a room with a name has heroes")
		}
		alice.state(r, "m.room.name", "", `{}`)
		alice.state(r, "m.room.avatar", "", `{"url":""}`)
		x = roomOf(bob.next(body), r)
		for _, name := range []string{"name", "avatar"} {
			if v, has := x[name]; !has || v != nil {
				t.Errorf("%s is %v, want null", name, v)
			}
		}
		if len(events(x["heroes"])) != 1 {
			t.Errorf("heroes %v", x["heroes"])
		}
		// growing timelines
		alice.text(r, "x")
		x = roomOf(bob.next(`{"lists":{"a":{"timeline_limit":20,"required_state":{}}}}`), r)
		want(t, "expanded_timeline", x["expanded_timeline"], true)
		want(t, "num_live", x["num_live"], 1.0)
		if ids := slidingIDs(x); len(ids) < 8 {
			t.Errorf("%d events", len(ids))
		}
	})
}
