package push

import (
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Delta is what a user changed against the predefined rules; it is what the store keeps of the user's rules, as JSON.
// The zero value is a user who changed nothing.
type Delta struct {
	Rules    map[Kind][]Rule    `json:"rules,omitempty"`    // the user's own, most important first
	Defaults map[string]Changed `json:"defaults,omitempty"` // by rule id of the predefined rule
}

// Changed is the user's change of a predefined rule.
type Changed struct {
	Enabled *bool     `json:"enabled,omitzero"`
	Actions *[]Action `json:"actions,omitzero"`
}

// ParseDelta reads the stored form; no bytes are the empty delta.
func ParseDelta(b []byte) (*Delta, error) {
	d := new(Delta)
	if len(b) == 0 {
		return d, nil
	}
	if err := json.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("parse stored push rules: %w", err)
	}
	return d, nil
}

// Encode gives the stored form.
func (d *Delta) Encode() ([]byte, error) { return json.Marshal(d) }

// Empty tells whether the user's rules are the predefined ones.
func (d *Delta) Empty() bool {
	for _, rules := range d.Rules {
		if len(rules) > 0 {
			return false
		}
	}
	return len(d.Defaults) == 0
}

// Ruleset gives the user's rules in full.
func (d *Delta) Ruleset(userID string) *Ruleset {
	override, underride := predefined(userID)
	d.adjust(override)
	d.adjust(underride)
	of := func(k Kind) []Rule { return slices.Concat([]Rule{}, d.Rules[k]) }
	return &Ruleset{
		UserID:    userID,
		Override:  slices.Concat(override[:1], d.Rules[Override], override[1:]), // master stands first
		Content:   of(Content),
		Room:      of(Room),
		Sender:    of(Sender),
		Underride: slices.Concat(d.Rules[Underride], underride),
	}
}

// adjust applies the user's changes to predefined rules.
func (d *Delta) adjust(rules []Rule) {
	for i := range rules {
		c, ok := d.Defaults[rules[i].ID]
		if !ok {
			continue
		}
		if c.Enabled != nil {
			rules[i].Enabled = *c.Enabled
		}
		if c.Actions != nil {
			rules[i].Actions = *c.Actions
		}
	}
}

// isPredefined tells whether the kind has a predefined rule of this id.
func isPredefined(k Kind, ruleID string) bool {
	override, underride := predefined("")
	rules := underride
	switch k {
	case Override:
		rules = override
	case PostContent:
		rules = threadRules()
	case Underride:
	default:
		return false
	}
	return slices.ContainsFunc(rules, func(r Rule) bool { return r.ID == ruleID })
}

func (d *Delta) index(k Kind, ruleID string) int {
	return slices.IndexFunc(d.Rules[k], func(r Rule) bool { return r.ID == ruleID })
}

func errNoRule() error { return mxerr.NotFound("there is no such push rule") }

// put makes or changes a user's rule. before and after are "" when the request has none. A rule that exists keeps its place
// (unless one is given) and whether it is enabled.
func (d *Delta) put(k Kind, ruleID string, body *ruleBody, before, after string) error {
	if err := checkNewRuleID(ruleID); err != nil {
		return err
	}
	rule := Rule{ID: ruleID, Enabled: true, Actions: body.actions, Conditions: body.conditions, Pattern: body.pattern}
	old := d.index(k, ruleID)
	ref, offset := before, 0
	if before == "" {
		ref, offset = after, 1
	}
	if ref != "" {
		if ref[0] == '.' {
			return mxerr.InvalidParam("a rule cannot be placed relative to a rule of the server")
		}
		if d.index(k, ref) < 0 {
			return mxerr.New(400, "M_UNKNOWN", "before/after rule not found: "+ref)
		}
	}
	if d.Rules == nil {
		d.Rules = make(map[Kind][]Rule)
	}
	rules := d.Rules[k]
	if old >= 0 {
		rule.Enabled = rules[old].Enabled
		if ref == "" || ref == ruleID {
			rules[old] = rule
			return nil
		}
		rules = slices.Delete(rules, old, old+1)
	} else if d.count() >= maxRules {
		return mxerr.InvalidParam(fmt.Sprintf("a user has at most %d push rules", maxRules))
	}
	at := 0
	if ref != "" {
		at = slices.IndexFunc(rules, func(r Rule) bool { return r.ID == ref }) + offset
	}
	d.Rules[k] = slices.Insert(rules, at, rule)
	return nil
}

func (d *Delta) count() (n int) {
	for _, rules := range d.Rules {
		n += len(rules)
	}
	return n
}

// remove deletes a user's rule.
func (d *Delta) remove(k Kind, ruleID string) error {
	if isPredefined(k, ruleID) {
		return mxerr.InvalidParam("a rule of the server cannot be deleted; it can be disabled")
	}
	i := d.index(k, ruleID)
	if i < 0 {
		return errNoRule()
	}
	d.Rules[k] = slices.Delete(d.Rules[k], i, i+1)
	return nil
}

// setEnabled switches a rule of the user or of the server.
func (d *Delta) setEnabled(k Kind, ruleID string, enabled bool) error {
	if i := d.index(k, ruleID); i >= 0 {
		d.Rules[k][i].Enabled = enabled
		return nil
	}
	return d.change(k, ruleID, func(c *Changed) { c.Enabled = &enabled })
}

// setActions changes the actions of a rule of the user or of the server.
func (d *Delta) setActions(k Kind, ruleID string, actions []Action) error {
	if i := d.index(k, ruleID); i >= 0 {
		d.Rules[k][i].Actions = actions
		return nil
	}
	return d.change(k, ruleID, func(c *Changed) { c.Actions = &actions })
}

func (d *Delta) change(k Kind, ruleID string, fn func(*Changed)) error {
	if !isPredefined(k, ruleID) {
		return errNoRule()
	}
	if d.Defaults == nil {
		d.Defaults = make(map[string]Changed)
	}
	c := d.Defaults[ruleID]
	fn(&c)
	d.Defaults[ruleID] = c
	return nil
}
