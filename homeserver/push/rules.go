package push

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Kind is one of the kinds of push rules, named as in the specification.
type Kind string

// The kinds in the order in which they are checked.
const (
	Override    Kind = "override"
	Content     Kind = "content"
	PostContent Kind = "postcontent" // MSC4306: rules of the server alone, see threads.go
	Room        Kind = "room"
	Sender      Kind = "sender"
	Underride   Kind = "underride"
)

// kinds is the order in which rules are checked. Spec: "Push Rules".
func kinds() [6]Kind { return [6]Kind{Override, Content, PostContent, Room, Sender, Underride} }

// Limits of one user's rules: every rule is tried on every message the user could be told of.
const (
	maxRules     = 1000 // user-defined rules of all kinds together
	maxRuleBytes = 8192 // one rule's body
	maxPattern   = 512  // bytes of a glob
	maxRuleID    = 255  // bytes, as other identifiers of the specification
)

// ParseKind reads the path parameter.
func ParseKind(s string) (Kind, error) {
	for _, k := range kinds() {
		if s == string(k) {
			return k, nil
		}
	}
	return "", mxerr.InvalidParam("the kind of a push rule is one of override, content, room, sender and underride")
}

// Rule is one push rule as clients see it.
type Rule struct {
	ID         string      `json:"rule_id"`
	Default    bool        `json:"default"`
	Enabled    bool        `json:"enabled"`
	Actions    []Action    `json:"actions"`
	Conditions []Condition `json:"conditions,omitzero"` // override, postcontent and underride only
	Pattern    *string     `json:"pattern,omitzero"`    // content only
}

// Ruleset is the "global" ruleset of one user, each kind ordered from the most important rule to the least.
type Ruleset struct {
	UserID      string `json:"-"`
	Override    []Rule `json:"override"`
	Content     []Rule `json:"content"`
	PostContent []Rule `json:"postcontent,omitempty"`
	Room        []Rule `json:"room"`
	Sender      []Rule `json:"sender"`
	Underride   []Rule `json:"underride"`
}

// Of gives the rules of a kind.
func (rs *Ruleset) Of(k Kind) []Rule {
	switch k {
	case Override:
		return rs.Override
	case Content:
		return rs.Content
	case PostContent:
		return rs.PostContent
	case Room:
		return rs.Room
	case Sender:
		return rs.Sender
	default:
		return rs.Underride
	}
}

// Find gives a rule, or nil.
func (rs *Ruleset) Find(k Kind, ruleID string) *Rule {
	rules := rs.Of(k)
	for i := range rules {
		if rules[i].ID == ruleID {
			return &rules[i]
		}
	}
	return nil
}

// JSON renders the content of the account data event m.push_rules: {"global": ruleset}.
func (rs *Ruleset) JSON() ([]byte, error) {
	return json.Marshal(struct {
		Global *Ruleset `json:"global"`
	}{rs})
}

// Action is "notify" (Tweak empty) or the setting of a tweak.
type Action struct {
	Tweak string
	Value jsontext.Value // nil when the action has no value
}

// MarshalJSON implements json.Marshaler.
func (a Action) MarshalJSON() ([]byte, error) {
	if a.Tweak == "" {
		return []byte(`"notify"`), nil
	}
	return json.Marshal(struct {
		Tweak string         `json:"set_tweak"`
		Value jsontext.Value `json:"value,omitzero"`
	}{a.Tweak, a.Value})
}

// UnmarshalJSON reads what MarshalJSON writes; actions of requests go through ParseActions.
func (a *Action) UnmarshalJSON(b []byte) error {
	if string(b) == `"notify"` {
		*a = Action{}
		return nil
	}
	var w struct {
		Tweak string         `json:"set_tweak"`
		Value jsontext.Value `json:"value"`
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	if w.Tweak == "" {
		return fmt.Errorf("push action without a tweak: %s", b)
	}
	*a = Action{Tweak: w.Tweak, Value: bytes.Clone(w.Value)}
	return nil
}

// Condition is a condition of an override or underride rule. What a client sent is kept as it is, also fields and kinds
// that this server does not know.
type Condition struct {
	Kind       string
	Key        string
	Pattern    string
	Is         string
	Value      jsontext.Value
	Subscribed *bool
	raw        []byte
}

// MarshalJSON gives the condition as it was read.
func (c Condition) MarshalJSON() ([]byte, error) { return c.raw, nil }

// UnmarshalJSON implements json.Unmarshaler.
func (c *Condition) UnmarshalJSON(b []byte) error {
	// Fields are read one by one: a field of a wrong type makes a condition that never matches, not an error, because
	// conditions of kinds not known here may use the same names for other things.
	var m map[string]jsontext.Value
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("push condition is null")
	}
	str := func(name string) (s string) {
		if v, ok := m[name]; ok && v.Kind() == '"' {
			if json.Unmarshal(v, &s) != nil {
				return ""
			}
		}
		return s
	}
	*c = Condition{Kind: str("kind"), Key: str("key"), Pattern: str("pattern"), Is: str("is"), raw: bytes.Clone(b)}
	if v, ok := m["value"]; ok {
		c.Value = bytes.Clone(v)
	}
	if v := m["subscribed"]; v.Kind() == 't' || v.Kind() == 'f' {
		subscribed := v.Kind() == 't'
		c.Subscribed = &subscribed
	}
	if v, ok := m["pattern"]; c.Kind == "event_match" && (!ok || v.Kind() != '"') {
		c.Kind = "" // without a pattern it must not match as the empty one would
	}
	return nil
}

// knownKinds are the kinds of conditions whose members have the types that the specification says.
var knownKinds = map[string]bool{
	"event_match": true, "event_property_is": true, "event_property_contains": true, "contains_display_name": true,
	"room_member_count": true, "sender_notification_permission": true,
}

// check refuses a condition of a request whose members are of wrong types. What a kind that is not known here holds is
// its own affair.
func (c Condition) check() error {
	var m map[string]jsontext.Value
	if err := json.Unmarshal(c.raw, &m); err != nil {
		return err
	}
	kind, ok := m["kind"]
	if !ok {
		return mxerr.MissingParam("a condition needs a kind")
	}
	var name string
	if kind.Kind() != '"' || json.Unmarshal(kind, &name) != nil {
		return mxerr.BadJSON("the kind of a condition must be a string")
	}
	if !knownKinds[name] {
		return nil
	}
	for _, member := range []string{"key", "pattern", "is"} {
		if v, ok := m[member]; ok && v.Kind() != '"' && v.Kind() != 'n' {
			return mxerr.BadJSON(member + " of a condition must be a string")
		}
	}
	switch v := m["value"]; v.Kind() {
	case '{', '[':
		return mxerr.BadJSON("value of a condition must not be an object or array")
	case '0':
		var n int64
		if json.Unmarshal(v, &n) != nil {
			return mxerr.BadJSON("value of a condition must be an integer, if it is a number")
		}
	}
	return nil
}

// ruleBody is a PUT of a rule, checked.
type ruleBody struct {
	actions    []Action
	conditions []Condition
	pattern    *string
}

// parseRule reads the body of PUT /pushrules/global/{kind}/{ruleId}.
func parseRule(kind Kind, body []byte) (*ruleBody, error) {
	if len(body) > maxRuleBytes {
		return nil, mxerr.TooLarge(fmt.Sprintf("a push rule has at most %d bytes", maxRuleBytes))
	}
	var m map[string]jsontext.Value
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, mxerr.NotJSON("the body is not a valid JSON object")
	}
	acts, ok := m["actions"]
	if !ok {
		return nil, mxerr.MissingParam("a push rule needs actions")
	}
	var out ruleBody
	var err error
	if out.actions, err = parseActions(acts); err != nil {
		return nil, err
	}
	p, ok := m["pattern"]
	if ok && p.Kind() != '"' && p.Kind() != 'n' {
		return nil, mxerr.BadJSON("pattern must be a string")
	}
	switch kind {
	case Content:
		if !ok {
			return nil, mxerr.MissingParam("a content rule needs a pattern")
		}
		var s string
		if p.Kind() != '"' || json.Unmarshal(p, &s) != nil {
			return nil, mxerr.BadJSON("pattern must be a string")
		}
		if len(s) > maxPattern {
			return nil, mxerr.InvalidParam(fmt.Sprintf("a pattern has at most %d bytes", maxPattern))
		}
		out.pattern = &s
	case Override, Underride:
		out.conditions = []Condition{}
		if c, ok := m["conditions"]; ok {
			if c.Kind() != '[' || json.Unmarshal(c, &out.conditions) != nil {
				return nil, mxerr.BadJSON("conditions must be an array of objects")
			}
		}
		for _, c := range out.conditions {
			if err := c.check(); err != nil {
				return nil, err
			}
			if len(c.Pattern) > maxPattern {
				return nil, mxerr.InvalidParam(fmt.Sprintf("a pattern has at most %d bytes", maxPattern))
			}
		}
	}
	return &out, nil
}

// parseActions reads an array of actions. The historical ones are dropped. Spec: "Historical Actions".
func parseActions(b jsontext.Value) ([]Action, error) {
	var list []jsontext.Value
	if b.Kind() != '[' || json.Unmarshal(b, &list) != nil {
		return nil, mxerr.BadJSON("actions must be an array")
	}
	out := make([]Action, 0, len(list))
	for _, v := range list {
		switch v.Kind() {
		case '"':
			var s string
			if err := json.Unmarshal(v, &s); err != nil {
				return nil, mxerr.BadJSON("an action is not a valid string")
			}
			switch s {
			case "notify":
				out = append(out, Action{})
			case "dont_notify", "coalesce":
			default:
				return nil, mxerr.InvalidParam(fmt.Sprintf("unknown action %q", s))
			}
		case '{':
			var a Action
			if err := a.UnmarshalJSON(v); err != nil {
				return nil, mxerr.InvalidParam("an action that is an object needs set_tweak, a string that is not empty")
			}
			out = append(out, a)
		default:
			return nil, mxerr.BadJSON("an action is a string or an object")
		}
	}
	return out, nil
}

// checkNewRuleID refuses what the specification forbids for rules of users.
func checkNewRuleID(ruleID string) error {
	switch {
	case ruleID == "" || len(ruleID) > maxRuleID || !utf8.ValidString(ruleID):
		return mxerr.InvalidParam(fmt.Sprintf("a rule id has 1 to %d bytes", maxRuleID))
	case strings.HasPrefix(ruleID, "."):
		return mxerr.InvalidParam("rule ids that start with a dot belong to the server's own rules")
	case strings.ContainsAny(ruleID, `/\`+"\x00"):
		return mxerr.InvalidParam("a rule id holds no slash, backslash or null character")
	}
	return nil
}
