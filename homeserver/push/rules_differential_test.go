package push

import (
	stdjson "encoding/json"
	"fmt"
	"testing"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
	"maunium.net/go/mautrix/pushrules"
	"pgregory.net/rapid"
)

// oracleRoom is the room as mautrix wants it.
type oracleRoom struct {
	members int
	levels  *event.PowerLevelsEventContent
}

func (r oracleRoom) GetOwnDisplayname() string                      { return "" }
func (r oracleRoom) GetMemberCount() int                            { return r.members }
func (r oracleRoom) GetPowerLevels() *event.PowerLevelsEventContent { return r.levels }

const bob, carol = "@bob:example.com", "@carol:example.com"

func genContent(t *rapid.T) map[string]any {
	c := map[string]any{}
	opt := func(name string) bool { return rapid.Bool().Draw(t, name) }
	if opt("has body") {
		c["body"] = rapid.StringMatching(`[aAbB _.-]{0,8}`).Draw(t, "body")
	}
	if opt("has msgtype") {
		c["msgtype"] = rapid.SampledFrom([]string{"m.text", "m.notice", "m.image"}).Draw(t, "msgtype")
	}
	if opt("has mentions") {
		m := map[string]any{}
		if opt("has users") {
			m["user_ids"] = rapid.SliceOfN(rapid.SampledFrom([]any{alice, bob, carol, 7, true}), 0, 3).Draw(t, "users")
		}
		if opt("has room") {
			m["room"] = rapid.SampledFrom([]any{true, false, "true", 1}).Draw(t, "room")
		}
		c["m.mentions"] = m
	}
	if opt("has relation") {
		c["m.relates_to"] = map[string]any{
			"rel_type": rapid.SampledFrom([]string{"m.replace", "m.thread", "m.annotation"}).Draw(t, "rel"), "event_id": "$x",
		}
	}
	if opt("has membership") {
		c["membership"] = rapid.SampledFrom([]string{"invite", "join", "leave"}).Draw(t, "membership")
	}
	if opt("has other") {
		c["x.y"] = map[string]any{"z": rapid.SampledFrom([]any{"ab", "", 1, -5, true, false, []any{"ab", 1, true}}).Draw(t, "z")}
	}
	return c
}

func genRuleBody(t *rapid.T, k Kind, i int, oracle bool) (ruleID, body string) {
	actions := rapid.SampledFrom([]string{`[]`, `["notify"]`, `["notify",{"set_tweak":"highlight"}]`,
		`["notify",{"set_tweak":"sound","value":"s"}]`, `["dont_notify"]`,
		`["notify",{"set_tweak":"highlight","value":false}]`}).Draw(t, "actions")
	switch k {
	case Content:
		// mautrix wraps the pattern in \b: the same as ours when it starts and ends with a word character.
		p := rapid.StringMatching(`[ab]([ab*?]{0,3}[ab])?`).Draw(t, "pattern")
		return fmt.Sprintf("c%d", i), fmt.Sprintf(`{"actions":%s,"pattern":%q}`, actions, p)
	case Room:
		return rapid.SampledFrom([]string{"!room:example.com", "!other:example.com"}).Draw(t, "room rule"), `{"actions":` + actions + `}`
	case Sender:
		return rapid.SampledFrom([]string{bob, carol}).Draw(t, "sender rule"), `{"actions":` + actions + `}`
	}
	pool := []string{
		`{"kind":"event_match","key":"content.msgtype","pattern":"m.?o*"}`,
		`{"kind":"event_match","key":"content.msgtype","pattern":"M.N*"}`,
		`{"kind":"event_match","key":"type","pattern":"m.room.*"}`,
		`{"kind":"event_match","key":"type","pattern":"*.encrypted"}`,
		`{"kind":"event_match","key":"sender","pattern":"@b*"}`,
		`{"kind":"event_match","key":"room_id","pattern":"!room*"}`,
		`{"kind":"event_match","key":"state_key","pattern":"*"}`,
		`{"kind":"event_match","key":"content.membership","pattern":"i*e"}`,
		`{"kind":"event_property_is","key":"content.x\\.y.z","value":1}`,
		`{"kind":"event_property_is","key":"content.x\\.y.z","value":true}`,
		`{"kind":"event_property_is","key":"content.x\\.y.z","value":"ab"}`,
		`{"kind":"event_property_is","key":"content.m\\.mentions.room","value":false}`,
		`{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.thread"}`,
		`{"kind":"event_property_contains","key":"content.x\\.y.z","value":"ab"}`,
		`{"kind":"event_property_contains","key":"content.x\\.y.z","value":true}`,
		`{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@carol:example.com"}`,
		`{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":7}`,
		`{"kind":"room_member_count","is":"2"}`,
		`{"kind":"room_member_count","is":"<3"}`,
		`{"kind":"room_member_count","is":">=3"}`,
		`{"kind":"room_member_count","is":"=3"}`,
		`{"kind":"sender_notification_permission","key":"room"}`,
		`{"kind":"com.example.unknown","key":"content.body"}`,
	}
	if !oracle {
		pool = append(pool,
			`{"kind":"event_match","key":"content.body","pattern":"a*b"}`,
			`{"kind":"event_match","key":"content.body","pattern":"b"}`,
			`{"kind":"event_match","key":"state_key","pattern":""}`,
			`{"kind":"event_match","key":"state_key","pattern":"@alice:example.com"}`,
			`{"kind":"event_match","key":"content.msgtype","pattern":"m.notice"}`,
			`{"kind":"event_match","key":"content.membership","pattern":"invite"}`,
			`{"kind":"event_match","key":"content.m\\.relates_to.rel_type","pattern":"m.replace"}`,
			`{"kind":"event_match","key":"content.m\\.mentions.room","pattern":"*"}`,
			`{"kind":"event_match","key":"event_id","pattern":"$*"}`,
			`{"kind":"event_match","key":"origin_server_ts","pattern":"*"}`,
			`{"kind":"event_property_is","key":"origin_server_ts","value":5}`,
			`{"kind":"event_property_is","key":"state_key","value":""}`,
			`{"kind":"event_property_is","key":"type","value":"m.room.message"}`,
			`{"kind":"event_property_is","key":"sender","value":"@bob:example.com"}`,
			`{"kind":"event_match","key":"content.x\\.y.z"}`,
			`{"kind":"contains_display_name"}`)
	}
	conds := rapid.SliceOfN(rapid.SampledFrom(pool), 0, 3).Draw(t, "conditions")
	list := ""
	for j, c := range conds {
		if j > 0 {
			list += ","
		}
		list += c
	}
	return fmt.Sprintf("%s%d", k[:1], i), `{"actions":` + actions + `,"conditions":[` + list + `]}`
}

func genRules(t *rapid.T, oracle bool) *Ruleset {
	d := new(Delta)
	for i := range rapid.IntRange(0, 5).Draw(t, "rules") {
		k := rapid.SampledFrom([]Kind{Override, Content, Room, Sender, Underride}).Draw(t, "kind")
		ruleID, body := genRuleBody(t, k, i, oracle)
		r, err := parseRule(k, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.put(k, ruleID, r, "", ""); err != nil {
			t.Fatal(err)
		}
		if rapid.IntRange(0, 5).Draw(t, "off") == 0 {
			if err := d.setEnabled(k, ruleID, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	if rapid.Bool().Draw(t, "change a default") {
		rs := new(Delta).Ruleset(alice)
		k := rapid.SampledFrom([]Kind{Override, Underride}).Draw(t, "of")
		r := rapid.SampledFrom(rs.Of(k)).Draw(t, "default")
		var err error
		if rapid.Bool().Draw(t, "switch") {
			err = d.setEnabled(k, r.ID, !r.Enabled)
		} else {
			err = d.setActions(k, r.ID, rapid.SampledFrom([][]Action{{}, {{}}, {{}, {Tweak: "highlight"}}}).Draw(t, "new actions"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return d.Ruleset(alice)
}

func genEvent(t *rapid.T) (EventView, map[string]any) {
	c := genContent(t)
	raw, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	ev := EventView{ID: "$e", RoomID: "!room:example.com", OriginServerTS: 5, Content: raw,
		Sender: rapid.SampledFrom([]string{bob, carol}).Draw(t, "sender"),
		Type: rapid.SampledFrom([]string{"m.room.message", "m.room.encrypted", "m.room.member", "m.reaction", "m.room.tombstone",
			"m.call.invite", "m.room.server_acl", "m.room.name", "com.example"}).Draw(t, "type")}
	if rapid.Bool().Draw(t, "state") {
		key := rapid.SampledFrom([]string{"", alice, bob}).Draw(t, "state key")
		ev.StateKey = &key
	}
	return ev, c
}

// TestAgainstMautrix compares with an independent evaluator, where it follows the specification: it takes patterns without
// wildcards as "contains", so those of the predefined rules are only met by values for which that makes no difference.
func TestAgainstMautrix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := genRules(t, true)
		ev, content := genEvent(t)
		if ev.StateKey != nil && *ev.StateKey != "" && ev.Type != "m.room.member" {
			t.Skip("the empty pattern is contained in every state key")
		}
		members := rapid.IntRange(1, 4).Draw(t, "members")
		level := rapid.SampledFrom([]int{0, 50, 100}).Draw(t, "level")

		rendered, err := json.Marshal(rs)
		if err != nil {
			t.Fatal(err)
		}
		oracle := new(pushrules.PushRuleset)
		if err := stdjson.Unmarshal(rendered, oracle); err != nil {
			t.Fatal(err)
		}
		want := oracle.GetMatchingRule(
			oracleRoom{members, &event.PowerLevelsEventContent{Users: map[id.UserID]int{id.UserID(ev.Sender): level}}},
			&event.Event{Type: event.Type{Type: ev.Type}, Sender: id.UserID(ev.Sender), RoomID: id.RoomID(ev.RoomID), ID: id.EventID(ev.ID),
				StateKey: ev.StateKey, Content: event.Content{Raw: roundTrip(t, content)}})
		got := Compile(rs).Evaluate(&ev, &RoomContext{UserID: alice, RoomID: ev.RoomID, MemberCount: int64(members),
			SenderLevel: int64(level), RoomNotifyLevel: 50})
		wantID := ""
		if want != nil {
			wantID = want.RuleID
		}
		should := want.GetActions().Should()
		if got.RuleID() != wantID || got.Notify != should.Notify || got.Highlight != (should.Notify && should.Highlight) || got.Sound() != should.SoundName {
			t.Fatalf("%s %s\nrule %q %+v\nwant %q %+v\n%s", ev.Type, ev.Content, got.RuleID(), got, wantID, should, rendered)
		}
	})
}

func roundTrip(t *rapid.T, v map[string]any) (out map[string]any) {
	b, err := stdjson.Marshal(v)
	if err == nil {
		err = stdjson.Unmarshal(b, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}
