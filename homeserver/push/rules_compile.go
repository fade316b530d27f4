package push

import (
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Compiled is a ruleset made ready for evaluation. It is immutable and safe for concurrent use. Rules with predefined
// conditions do not hold the user's id, so users who changed nothing share one (CompileDefault).
type Compiled struct {
	byClass   [numClasses][]compiledRule // the enabled rules that can match an event of the class, in order
	needsBody bool
	plain     bool
	threads   bool // some rule asks whether the user follows the event's thread
}

type compiledRule struct {
	rule      *Rule
	conds     []condition
	notify    bool
	highlight bool
}

// Actions is what the most important matching rule asks for. The zero value is "do nothing".
type Actions struct {
	Notify    bool
	Highlight bool
	rule      *Rule
}

// RuleID is the id of the rule that matched, "" if none did.
func (a Actions) RuleID() string {
	if a.rule == nil {
		return ""
	}
	return a.rule.ID
}

// JSON renders the actions of the rule that matched as an array, as GET /notifications gives them.
func (a Actions) JSON() ([]byte, error) {
	if a.rule == nil {
		return []byte("[]"), nil
	}
	return json.Marshal(a.rule.Actions)
}

// Tweaks renders the tweaks as the JSON object that push gateways get.
func (a Actions) Tweaks() ([]byte, error) {
	m := map[string]jsontext.Value{}
	if a.rule != nil {
		for _, act := range a.rule.Actions {
			switch {
			case act.Tweak == "":
			case act.Value != nil:
				m[act.Tweak] = act.Value
			case act.Tweak == "highlight":
				m[act.Tweak] = jsontext.Value("true")
			default:
				m[act.Tweak] = jsontext.Value("null")
			}
		}
	}
	return json.Marshal(m, json.Deterministic(true))
}

// Sound is the value of the sound tweak, "" without one.
func (a Actions) Sound() (s string) {
	if a.rule == nil {
		return ""
	}
	for _, act := range a.rule.Actions {
		if act.Tweak == "sound" && act.Value.Kind() == '"' && json.Unmarshal(act.Value, &s) != nil {
			return ""
		}
	}
	return s
}

// anyone stands for every user who changed nothing.
const anyone = "\x00" // no user id, and no pattern of the predefined rules: becomes "the user" in Compile

// CompileDefault compiles the predefined rules, for every user who changed nothing.
func CompileDefault() *Compiled {
	return Compile(new(Delta).Ruleset(anyone))
}

// Compile compiles a ruleset. Rules that can never match (disabled, conditions that are unknown or malformed) are left
// out. Spec: "Unrecognised conditions MUST NOT match any events".
func Compile(rs *Ruleset) *Compiled {
	c := &Compiled{plain: true}
	for _, k := range kinds() {
		for i := range rs.Of(k) {
			c.add(k, &rs.Of(k)[i], rs.UserID)
		}
	}
	return c
}

func (c *Compiled) add(k Kind, r *Rule, userID string) {
	if r.Default {
		c.plain = c.plain && !changesCounting(r)
	}
	if !r.Enabled {
		return
	}
	conds, ok := compileConditions(k, r, userID)
	if !ok {
		return
	}
	out := compiledRule{rule: r, conds: conds}
	for _, a := range r.Actions {
		switch {
		case a.Tweak == "":
			out.notify = true
		case a.Tweak == "highlight":
			out.highlight = a.Value == nil || string(a.Value) == "true"
		}
	}
	if out.notify && !r.Default {
		c.plain = false
	}
	for i := range conds {
		c.needsBody = c.needsBody || conds[i].needsBody()
		c.threads = c.threads || conds[i].op == opThread
	}
	for class := range c.byClass {
		if rest, ok := forClass(conds, Class(class)); ok {
			out.conds = rest
			c.byClass[class] = append(c.byClass[class], out)
		}
	}
}

// changesCounting tells whether a predefined rule was so changed that an event without FlagCounts could notify.
func changesCounting(r *Rule) bool {
	notify := false
	for _, a := range r.Actions {
		notify = notify || a.Tweak == ""
	}
	switch r.ID {
	case ".m.rule.suppress_notices", ".m.rule.member_event", ".m.rule.reaction", ".m.rule.room.server_acl", ".m.rule.suppress_edits":
		return notify || !r.Enabled
	case masterRule:
		return notify && r.Enabled
	}
	return false
}

// forClass answers the conditions on the type for the class; ok is false if the rule cannot match there. What remains
// has to be tried on the event.
func forClass(conds []condition, class Class) (rest []condition, ok bool) {
	for _, c := range conds {
		if c.op != opMatch || c.top != topType {
			rest = append(rest, c)
			continue
		}
		if class == ClassOther {
			if c.glob.isLit && classOf(c.glob.literal) != ClassOther {
				return nil, false
			}
			rest = append(rest, c)
			continue
		}
		if !c.glob.Match(class.typeName()) {
			return nil, false
		}
	}
	return rest, true
}

// NeedsBody tells whether the user has rules that look into bodies (keywords, own conditions), so that EvaluateFeatures
// may leave events undecided that are neither state events of one user (invitations) nor cut short in their features.
func (c *Compiled) NeedsBody() bool { return c.needsBody }

// Skips tells from the flags of an event that it cannot notify this user, so that a counter may leave it out.
func (c *Compiled) Skips(flags uint16) bool {
	return c.plain && flags&FlagCounts == 0 && !(c.threads && flags&FlagThread != 0)
}

// NeedsThread tells whether RoomContext.Thread has to be filled in.
func (c *Compiled) NeedsThread() bool { return c.threads }

// Evaluate gives the actions of an event for the user of ctx. It does not allocate, except to unescape JSON strings.
func (c *Compiled) Evaluate(ev *EventView, ctx *RoomContext) Actions {
	if ev.Sender == ctx.UserID {
		return Actions{} // Spec: no notification of events that the user sent
	}
	rules := c.byClass[classOf(ev.Type)]
next:
	for i := range rules {
		r := &rules[i]
		for j := range r.conds {
			if !r.conds[j].onEvent(ev, ctx) {
				continue next
			}
		}
		return Actions{Notify: r.notify, Highlight: r.notify && r.highlight, rule: r.rule}
	}
	return Actions{}
}

// compileConditions gives the conditions of a rule, those that its kind implies included. ok is false if it can never match.
func compileConditions(k Kind, r *Rule, userID string) (conds []condition, ok bool) {
	switch k {
	case Content:
		if r.Pattern == nil {
			return nil, false
		}
		return []condition{{op: opWords, top: topContent, path: []string{"body"}, field: fieldBody, glob: CompileGlob(*r.Pattern)}}, true
	case Room:
		return []condition{{op: opRoom, text: r.ID}}, true
	case Sender:
		return []condition{{op: opSender, text: r.ID}}, true
	}
	for _, c := range r.Conditions {
		cond, ok := compileCondition(c, userID)
		if !ok {
			return nil, false
		}
		conds = append(conds, cond)
	}
	return conds, true
}

func compileCondition(c Condition, userID string) (out condition, ok bool) {
	switch c.Kind {
	case "event_match":
		if out, ok = compileKey(c.Key); !ok {
			return out, false
		}
		out.op, out.glob = opMatch, CompileGlob(c.Pattern)
		switch {
		case out.top == topStateKey && userID != "" && c.Pattern == userID:
			out.op = opStateKeyIsUser
		case out.field == fieldBody:
			out.op = opWords
		}
		return out, true
	case "event_property_is", "event_property_contains":
		if out, ok = compileKey(c.Key); !ok {
			return out, false
		}
		if out.value, ok = parseScalar(c.Value); !ok {
			return out, false
		}
		out.op = opIs
		if c.Kind == "event_property_contains" {
			out.op = opContains
			if out.field == fieldMentions && out.value.kind == '"' && out.value.text == userID {
				out.op = opMentionsUser
			}
		}
		return out, true
	case "contains_display_name":
		return condition{op: opDisplayName, top: topContent, path: []string{"body"}, field: fieldBody}, true
	case "room_member_count":
		return compileMemberCount(c.Is)
	case "sender_notification_permission":
		return condition{op: opMayNotify, text: c.Key}, c.Key != ""
	case threadCondition:
		if c.Subscribed == nil {
			return out, false
		}
		return condition{op: opThread, thread: threadState(*c.Subscribed)}, true
	}
	return out, false
}

// compileMemberCount reads "2", "==2", "<10" and so on.
func compileMemberCount(is string) (out condition, ok bool) {
	digits := strings.TrimLeft(is, "<>=")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || digits[0] < '0' || digits[0] > '9' {
		return out, false
	}
	out = condition{op: opMemberCount, number: n, text: is[:len(is)-len(digits)]}
	switch out.text {
	case "", "==", "<", ">", "<=", ">=":
		return out, true
	}
	return out, false
}

// compileKey splits a dotted path with its escapes and says which property of an event it names. Spec: appendices,
// "Dot-separated property paths": only \. and \\ are escapes.
func compileKey(key string) (out condition, ok bool) {
	parts := splitKey(key)
	switch parts[0] {
	case "content":
		out.top, out.path = topContent, parts[1:]
		out.field = fieldOf(out.path)
		return out, len(out.path) > 0
	case "type":
		out.top = topType
	case "sender":
		out.top = topSender
	case "room_id":
		out.top = topRoomID
	case "state_key":
		out.top = topStateKey
	case "event_id":
		out.top = topEventID
	case "origin_server_ts":
		out.top = topTS
	default:
		return out, false
	}
	return out, len(parts) == 1
}

func splitKey(key string) (parts []string) {
	var b strings.Builder
	for i := 0; i < len(key); i++ {
		switch c := key[i]; {
		case c == '.':
			parts = append(parts, b.String())
			b.Reset()
		case c == '\\' && i+1 < len(key) && (key[i+1] == '.' || key[i+1] == '\\'):
			i++
			b.WriteByte(key[i])
		default:
			b.WriteByte(c)
		}
	}
	return append(parts, b.String())
}
