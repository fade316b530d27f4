package push

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestFeaturesAgree: what features decide is what the event says; what the predefined rules leave open is rare; what lacks
// FlagCounts notifies nobody with plain rules.
func TestFeaturesAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rs := genRules(t, false)
		ev, _ := genEvent(t)
		ctx := RoomContext{UserID: alice, RoomID: ev.RoomID, MemberCount: rapid.Int64Range(1, 4).Draw(t, "members"),
			DisplayName:     rapid.SampledFrom([]string{"", "a", "A b"}).Draw(t, "name"),
			SenderLevel:     rapid.SampledFrom([]int64{0, 50}).Draw(t, "level"),
			RoomNotifyLevel: 50}
		f := FeaturesOf(ev.Type, ev.StateKey, ev.Content, nil)
		if f.Thread != "" {
			ctx.Thread = threadState(rapid.Bool().Draw(t, "follows"))
		}
		b := f.AppendBinary(nil)
		parsed, err := ParseFeatures(b)
		if err != nil || !reflect.DeepEqual(f, parsed) || FlagsOf(b) != f.Flags {
			t.Fatalf("stored form: %v\n%+v\n%+v", err, f, parsed)
		}
		view := FeatureView{Features: parsed, Sender: ev.Sender}
		if rapid.Bool().Draw(t, "type known") {
			view.Type = ev.Type
		}
		for name, c := range map[string]*Compiled{"own rules": Compile(rs), "default rules": CompileDefault(), "rendered": Compile(new(Delta).Ruleset(alice)), "threads": Compile(new(Delta).withThreads(alice))} {
			want := c.Evaluate(&ev, &ctx)
			got, decided := c.EvaluateFeatures(&view, &ctx)
			if decided && (got.RuleID() != want.RuleID() || got.Notify != want.Notify || got.Highlight != want.Highlight) {
				t.Fatalf("%s: features say %q, the event %q: %s %s", name, got.RuleID(), want.RuleID(), ev.Type, ev.Content)
			}
			if !decided && !c.NeedsBody() && f.Flags&FlagMore == 0 && (ev.StateKey == nil || *ev.StateKey == "") && view.Type != "" {
				t.Fatalf("%s: undecided without a reason: %s %s", name, ev.Type, ev.Content)
			}
			if want.Notify && c.Skips(f.Flags) {
				t.Fatalf("%s: %q notifies of an event that does not count: %s %s", name, want.RuleID(), ev.Type, ev.Content)
			}
		}
	})
}

func TestFeaturesOf(t *testing.T) {
	root := "$" + strings.Repeat("A", 43)
	parent := func(eventID string) string {
		if eventID == "$inthread" {
			return root
		}
		return ""
	}
	empty := ""
	for _, tc := range []struct {
		name, evType, content string
		stateKey              *string
		flags                 uint16
		thread                string
		size                  int
	}{
		{"message", "m.room.message", `{"msgtype":"m.text","body":"x"}`, nil, uint16(ClassMessage) | FlagCounts | FlagBody, "", 2},
		{"notice", "m.room.message", `{"msgtype":"m.notice","body":"x"}`, nil, uint16(ClassMessage) | FlagNotice | FlagBody, "", 2},
		{"edit", "m.room.message", `{"body":"* x","m.relates_to":{"rel_type":"m.replace","event_id":"$a"}}`, nil, uint16(ClassMessage) | FlagEdit | FlagBody, "", 2},
		{"edit in a thread", "m.room.message", `{"m.relates_to":{"event_id":"$inthread","rel_type":"m.replace"}}`, nil, uint16(ClassMessage) | FlagEdit | FlagThread, root, 35},
		{"thread", "m.room.encrypted", `{"m.relates_to":{"rel_type":"m.thread","event_id":"` + root + `"}}`, nil, uint16(ClassEncrypted) | FlagCounts | FlagThread, root, 35},
		{"old thread", "m.room.message", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$a:x"}}`, nil, uint16(ClassMessage) | FlagCounts | FlagThread, "$a:x", 7},
		{"reply", "m.room.message", `{"m.relates_to":{"m.in_reply_to":{"event_id":"$inthread"}}}`, nil, uint16(ClassMessage) | FlagCounts, "", 2},
		{"reaction", "m.reaction", `{"m.relates_to":{"rel_type":"m.annotation","event_id":"$inthread","key":"x"}}`, nil, uint16(ClassReaction) | FlagThread, root, 35},
		{"room mention", "m.room.message", `{"m.mentions":{"room":true}}`, nil, uint16(ClassMessage) | FlagCounts | FlagRoomMention, "", 2},
		{"no room mention", "m.room.message", `{"m.mentions":{"room":"true"}}`, nil, uint16(ClassMessage) | FlagCounts, "", 2},
		{"mention", "com.example", `{"m.mentions":{"user_ids":["@a:b",1]}}`, nil, uint16(ClassOther) | FlagCounts | FlagMentions, "", 8},
		{"join", "m.room.member", `{"membership":"join"}`, &empty, uint16(ClassMember) | FlagState | FlagEmptyKey, "", 2},
		{"invite", "m.room.member", `{"membership":"invite"}`, &root, uint16(ClassMember) | FlagState | FlagInvite | FlagCounts, "", 2},
		{"tombstone", "m.room.tombstone", `{}`, &empty, uint16(ClassTombstone) | FlagState | FlagEmptyKey | FlagCounts, "", 2},
		{"topic", "m.room.topic", ``, &empty, FlagState | FlagEmptyKey, "", 2},
	} {
		f := FeaturesOf(tc.evType, tc.stateKey, []byte(tc.content), parent)
		if f.Flags != tc.flags || f.Thread != tc.thread {
			t.Errorf("%s: %016b %q, want %016b %q", tc.name, f.Flags, f.Thread, tc.flags, tc.thread)
		}
		if b := f.AppendBinary(nil); len(b) != tc.size {
			t.Errorf("%s: stored in %d bytes, want %d", tc.name, len(b), tc.size)
		}
	}
}

func TestFeaturesManyMentions(t *testing.T) {
	var users []string
	for i := range maxMentions + 3 {
		users = append(users, fmt.Sprintf(`"@u%d:x"`, i))
	}
	f := FeaturesOf("m.room.message", nil, []byte(`{"m.mentions":{"user_ids":[`+strings.Join(users, ",")+`]}}`), nil)
	if len(f.Mentions) != maxMentions || f.Flags&FlagMore == 0 {
		t.Fatalf("%d mentions, flags %b", len(f.Mentions), f.Flags)
	}
	c := CompileDefault()
	for user, want := range map[string]bool{"@u0:x": true, "@u34:x": false} {
		if _, decided := c.EvaluateFeatures(&FeatureView{Features: f, Sender: bob}, &RoomContext{UserID: user}); decided != want {
			t.Errorf("%s: decided %v", user, decided)
		}
	}
}

func FuzzParseFeatures(f *testing.F) {
	for _, x := range []Features{{Flags: 1}, {Flags: 1, Thread: "$x"}, {Flags: 3, Mentions: []string{alice, bob}, Thread: "$" + strings.Repeat("A", 43)}} {
		f.Add(x.AppendBinary(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := ParseFeatures(b)
		if err != nil {
			return
		}
		y, err := ParseFeatures(x.AppendBinary(nil))
		if err != nil || !reflect.DeepEqual(x, y) {
			t.Fatalf("%v: %+v and %+v", err, x, y)
		}
	})
}

func benchView() (EventView, RoomContext) {
	return EventView{ID: "$e", RoomID: "!r:x", Sender: bob, Type: "m.room.message",
			Content: []byte(`{"body":"Good morning, shall we meet at ten? The usual place.","msgtype":"m.text","m.mentions":{}}`)},
		RoomContext{UserID: alice, RoomID: "!r:x", DisplayName: "Alice", MemberCount: 12, RoomNotifyLevel: 50}
}

func keywordRules(t testing.TB) *Compiled {
	d := new(Delta)
	for i, p := range []string{"cake", "deploy*", "会议"} {
		if err := d.put(Content, fmt.Sprint(i), mustRule(t, Content, fmt.Sprintf(`{"actions":["notify"],"pattern":%q}`, p)), "", ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.put(Override, "name", mustRule(t, Override, `{"actions":[],"conditions":[{"kind":"contains_display_name"}]}`), "", ""); err != nil {
		t.Fatal(err)
	}
	return Compile(d.Ruleset(alice))
}

func TestEvaluateAllocatesNothing(t *testing.T) {
	ev, ctx := benchView()
	view := FeatureView{Features: FeaturesOf(ev.Type, nil, ev.Content, nil), Sender: ev.Sender}
	other := ev
	other.Type = "m.room.topic"
	for name, c := range map[string]*Compiled{"default": CompileDefault(), "keywords": keywordRules(t)} {
		if n := testing.AllocsPerRun(100, func() {
			c.Evaluate(&ev, &ctx)
			c.Evaluate(&other, &ctx)
			c.EvaluateFeatures(&view, &ctx)
		}); n != 0 {
			t.Errorf("%s rules: %v allocations", name, n)
		}
	}
}

func BenchmarkEvaluateDefault(b *testing.B) {
	ev, ctx := benchView()
	c := CompileDefault()
	for b.Loop() {
		c.Evaluate(&ev, &ctx)
	}
}

func BenchmarkEvaluateKeywords(b *testing.B) {
	ev, ctx := benchView()
	c := keywordRules(b)
	for b.Loop() {
		c.Evaluate(&ev, &ctx)
	}
}

func BenchmarkEvaluateFeatures(b *testing.B) {
	ev, ctx := benchView()
	c := CompileDefault()
	view := FeatureView{Features: FeaturesOf(ev.Type, nil, ev.Content, nil), Sender: ev.Sender}
	for b.Loop() {
		c.EvaluateFeatures(&view, &ctx)
	}
}

func BenchmarkFeaturesOf(b *testing.B) {
	ev, _ := benchView()
	for b.Loop() {
		FeaturesOf(ev.Type, nil, ev.Content, nil)
	}
}
