package push

import (
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const alice = "@alice:example.com"

func ids(rules []Rule) (out []string) {
	for _, r := range rules {
		out = append(out, r.ID)
	}
	return out
}

func mustRule(t testing.TB, k Kind, body string) *ruleBody {
	t.Helper()
	r, err := parseRule(k, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPredefinedOrder(t *testing.T) {
	rs := new(Delta).Ruleset(alice)
	if got, want := ids(rs.Override), []string{".m.rule.master", ".m.rule.suppress_notices", ".m.rule.invite_for_me",
		".m.rule.member_event", ".m.rule.is_user_mention", ".m.rule.is_room_mention", ".m.rule.tombstone", ".m.rule.reaction",
		".m.rule.room.server_acl", ".m.rule.suppress_edits"}; !slices.Equal(got, want) {
		t.Errorf("override: %v", got)
	}
	if got, want := ids(rs.Underride), []string{".m.rule.call", ".m.rule.encrypted_room_one_to_one", ".m.rule.room_one_to_one",
		".m.rule.message", ".m.rule.encrypted"}; !slices.Equal(got, want) {
		t.Errorf("underride: %v", got)
	}
	b, err := rs.JSON()
	if err != nil {
		t.Fatal(err)
	}
	j := gjson.ParseBytes(b)
	for path, want := range map[string]string{
		"global.override.0.enabled":              "false",
		"global.override.0.conditions":           "[]",
		"global.override.0.actions":              "[]",
		"global.override.2.conditions.2.pattern": `"@alice:example.com"`,
		"global.override.4.conditions.0":         `{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:example.com"}`,
		"global.override.4.actions":              `["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]`,
		"global.content":                         "[]",
		"global.room":                            "[]",
		"global.sender":                          "[]",
		"global.underride.0.actions.1":           `{"set_tweak":"sound","value":"ring"}`,
	} {
		if got := j.Get(path).Raw; got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestDeltaPlacing(t *testing.T) {
	d := new(Delta)
	put := func(ruleID, before, after, errcode string) {
		t.Helper()
		err := d.put(Override, ruleID, mustRule(t, Override, `{"actions":["notify"]}`), before, after)
		if errcode == "" && err != nil || errcode != "" && !mxerr.Is(err, errcode) {
			t.Fatalf("put %s: %v, want %q", ruleID, err, errcode)
		}
	}
	order := func(want ...string) {
		t.Helper()
		rs := d.Ruleset(alice)
		if rs.Override[0].ID != masterRule {
			t.Error("master is not first")
		}
		if got := ids(rs.Override[1 : 1+len(want)]); !slices.Equal(got, want) {
			t.Fatalf("order %v, want %v", got, want)
		}
		if got := rs.Override[1+len(want)].ID; got != ".m.rule.suppress_notices" {
			t.Fatalf("then %s", got)
		}
	}
	put("a", "", "", "")
	put("b", "", "", "")
	order("b", "a") // a new rule is the most important one
	put("c", "a", "", "")
	order("b", "c", "a")
	put("d", "", "b", "")
	order("b", "d", "c", "a")
	put("a", "b", "d", "") // before wins over after
	order("a", "b", "d", "c")
	put("b", "b", "", "")
	put("b", "", "", "")
	order("a", "b", "d", "c") // an update keeps the place
	put("e", "nope", "", "M_UNKNOWN")
	put("e", ".m.rule.master", "", "M_INVALID_PARAM")
	put(".e", "", "", "M_INVALID_PARAM")
	put("a/b", "", "", "M_INVALID_PARAM")
	put(`a\b`, "", "", "M_INVALID_PARAM")
	order("a", "b", "d", "c")

	if err := d.setEnabled(Override, "b", false); err != nil {
		t.Fatal(err)
	}
	put("b", "", "", "")
	if d.Ruleset(alice).Find(Override, "b").Enabled {
		t.Error("an update enabled the rule")
	}
	if err := d.remove(Override, "b"); err != nil {
		t.Fatal(err)
	}
	order("a", "d", "c")
	if err := d.remove(Override, "b"); !mxerr.Is(err, "M_NOT_FOUND") {
		t.Error(err)
	}
	if err := d.remove(Override, masterRule); !mxerr.Is(err, "M_INVALID_PARAM") {
		t.Error(err)
	}
}

func TestDeltaDefaults(t *testing.T) {
	d := new(Delta)
	if err := d.setEnabled(Override, masterRule, true); err != nil {
		t.Fatal(err)
	}
	if err := d.setActions(Underride, ".m.rule.message", []Action{}); err != nil {
		t.Fatal(err)
	}
	if err := d.put(Content, "cake", mustRule(t, Content, `{"pattern":"ca*ke","actions":["dont_notify","notify",{"set_tweak":"x"}]}`), "", ""); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{d.setEnabled(Underride, masterRule, true), d.setActions(Content, "pie", nil), d.setEnabled(Override, ".m.rule.none", true)} {
		if !mxerr.Is(err, "M_NOT_FOUND") {
			t.Error(err)
		}
	}
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if d, err = ParseDelta(b); err != nil {
		t.Fatal(err)
	}
	rs := d.Ruleset(alice)
	if !rs.Override[0].Enabled || len(rs.Find(Underride, ".m.rule.message").Actions) != 0 || !rs.Find(Underride, ".m.rule.encrypted").Enabled {
		t.Error("changes of predefined rules are lost")
	}
	r := rs.Find(Content, "cake")
	if r == nil || *r.Pattern != "ca*ke" || len(r.Actions) != 2 || r.Actions[1].Tweak != "x" || r.Conditions != nil {
		t.Errorf("content rule: %+v", r)
	}
}

func TestParseRuleErrors(t *testing.T) {
	for _, tc := range []struct {
		kind          Kind
		body, errcode string
	}{
		{Override, `{`, "M_NOT_JSON"},
		{Override, `{}`, "M_MISSING_PARAM"},
		{Override, `{"actions":"notify"}`, "M_BAD_JSON"},
		{Override, `{"actions":["shout"]}`, "M_INVALID_PARAM"},
		{Override, `{"actions":[{"value":1}]}`, "M_INVALID_PARAM"},
		{Override, `{"actions":[1]}`, "M_BAD_JSON"},
		{Override, `{"actions":[],"conditions":{}}`, "M_BAD_JSON"},
		{Override, `{"actions":[],"conditions":[1]}`, "M_BAD_JSON"},
		{Override, `{"actions":[],"conditions":[null]}`, "M_BAD_JSON"},
		{Content, `{"actions":[]}`, "M_MISSING_PARAM"},
		{Content, `{"actions":[],"pattern":3}`, "M_BAD_JSON"},
		{Room, `{"actions":[],"actions":[]}`, "M_NOT_JSON"},
	} {
		if _, err := parseRule(tc.kind, []byte(tc.body)); !mxerr.Is(err, tc.errcode) {
			t.Errorf("%s: %v, want %s", tc.body, err, tc.errcode)
		}
	}
}

// FuzzParseRule: any body gives a rule that renders, parses and compiles again to the same, or an expected error.
func FuzzParseRule(f *testing.F) {
	f.Add("override", `{"actions":["notify",{"set_tweak":"sound","value":"x"}],"conditions":[{"kind":"event_match","key":"content.body","pattern":"a*"}]}`, `{"body":"abc"}`)
	f.Add("underride", `{"actions":[{"set_tweak":"highlight","value":false}],"conditions":[{"kind":"room_member_count","is":"<=3"},{"kind":"event_property_is","key":"content.m\\.x.y","value":9007199254740991}]}`, `{"m.x":{"y":9007199254740991}}`)
	f.Add("content", `{"actions":[],"pattern":"*?x"}`, `{"body":1}`)
	f.Add("override", `{"actions":[],"conditions":[{"kind":"sender_notification_permission","key":"room"},{"kind":"contains_display_name"}]}`, `{"body":"A"}`)
	f.Fuzz(func(t *testing.T, kind, body, content string) {
		k, err := ParseKind(kind)
		if err != nil {
			return
		}
		r, err := parseRule(k, []byte(body))
		if err != nil {
			if mxerr.As(err) == nil {
				t.Fatalf("unexpected kind of error: %v", err)
			}
			return
		}
		d := new(Delta)
		if err := d.put(k, "id", r, "", ""); err != nil {
			t.Fatal(err)
		}
		stored, err := d.Encode()
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		d2, err := ParseDelta(stored)
		if err != nil {
			t.Fatalf("what was stored does not parse: %v\n%s", err, stored)
		}
		a, err := d.Ruleset(alice).JSON()
		if err != nil {
			t.Fatal(err)
		}
		b, err := d2.Ruleset(alice).JSON()
		if err != nil || string(a) != string(b) {
			t.Fatalf("round trip: %v\n%s\n%s", err, a, b)
		}
		if !gjson.Valid(content) {
			return
		}
		ev := EventView{RoomID: "!r:x", Sender: "@bob:x", Type: "m.room.message", Content: []byte(content)}
		ctx := RoomContext{UserID: alice, RoomID: "!r:x", DisplayName: "A", MemberCount: 3, RoomNotifyLevel: 50}
		c := Compile(d.Ruleset(alice))
		want := c.Evaluate(&ev, &ctx)
		if got := Compile(d2.Ruleset(alice)).Evaluate(&ev, &ctx); got.RuleID() != want.RuleID() {
			t.Fatalf("evaluates to %q, stored to %q", want.RuleID(), got.RuleID())
		}
		view := FeatureView{Features: FeaturesOf(ev.Type, nil, ev.Content, nil), Sender: ev.Sender}
		if got, ok := c.EvaluateFeatures(&view, &ctx); ok && got.RuleID() != want.RuleID() {
			t.Fatalf("features say %q, the event %q", got.RuleID(), want.RuleID())
		}
	})
}
