package push

import (
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (p *Push) ruleset(r *http.Request) (*Ruleset, error) {
	u, err := p.Rules(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return nil, err
	}
	return u.Ruleset(), nil
}

// getRules handles GET /_matrix/client/v3/pushrules/.
func (p *Push) getRules(w http.ResponseWriter, r *http.Request) error {
	rs, err := p.ruleset(r)
	if err != nil {
		return err
	}
	b, err := rs.JSON()
	if err != nil {
		return err
	}
	return web.WriteRaw(w, b)
}

// getGlobal handles GET /_matrix/client/v3/pushrules/global/.
func (p *Push) getGlobal(w http.ResponseWriter, r *http.Request) error {
	rs, err := p.ruleset(r)
	if err != nil {
		return err
	}
	return writeStrict(w, rs)
}

// writeStrict renders rules, whose marshalers keep conditions as they were sent.
func writeStrict(w http.ResponseWriter, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return web.WriteRaw(w, b)
}

// kind reads the kind that the path names.
func (p *Push) kind(r *http.Request) (Kind, error) {
	k, err := ParseKind(web.PathParam(r, "kind"))
	if err == nil && k == PostContent && !p.Config.ThreadSubscriptions {
		return ParseKind("") // not known here
	}
	return k, err
}

// findRule gives the rule that the path names.
func (p *Push) findRule(r *http.Request) (*Rule, error) {
	kind, err := p.kind(r)
	if err != nil {
		return nil, errNoRule() // Spec: 404 is the one error of looking at a rule
	}
	rs, err := p.ruleset(r)
	if err != nil {
		return nil, err
	}
	rule := rs.Find(kind, web.PathParam(r, "ruleId"))
	if rule == nil {
		return nil, errNoRule()
	}
	return rule, nil
}

// getRule handles GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.
func (p *Push) getRule(w http.ResponseWriter, r *http.Request) error {
	rule, err := p.findRule(r)
	if err != nil {
		return err
	}
	return writeStrict(w, rule)
}

// getEnabled handles GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.
func (p *Push) getEnabled(w http.ResponseWriter, r *http.Request) error {
	rule, err := p.findRule(r)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"enabled": rule.Enabled})
}

// getActions handles GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.
func (p *Push) getActions(w http.ResponseWriter, r *http.Request) error {
	rule, err := p.findRule(r)
	if err != nil {
		return err
	}
	return writeStrict(w, map[string][]Action{"actions": rule.Actions})
}

// change runs one change of the requester's rules and answers {}.
func (p *Push) change(w http.ResponseWriter, r *http.Request, fn func(d *Delta, k Kind, ruleID string) error) error {
	kind, err := p.kind(r)
	if err != nil {
		return err
	}
	user, ruleID := web.Requester(r).UserID, web.PathParam(r, "ruleId")
	err = p.Store.Write(r.Context(), func(tx *store.Tx) error {
		return tx.UpdatePushRules(user, func(b []byte) ([]byte, error) {
			d, err := ParseDelta(b)
			if err != nil {
				return nil, err
			}
			if err := fn(d, kind, ruleID); err != nil {
				return nil, err
			}
			return d.Encode()
		})
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// putRule handles PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.
func (p *Push) putRule(w http.ResponseWriter, r *http.Request) error {
	kind, err := p.kind(r)
	if err != nil {
		return err
	}
	if kind == PostContent {
		return mxerr.InvalidParam("users have no rules of the kind postcontent; its predefined ones can be switched and changed")
	}
	raw, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	body, err := parseRule(kind, raw)
	if err != nil {
		return err
	}
	before, after := web.QueryString(r, "before"), web.QueryString(r, "after")
	return p.change(w, r, func(d *Delta, k Kind, ruleID string) error {
		return d.put(k, ruleID, body, before, after)
	})
}

// deleteRule handles DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}.
func (p *Push) deleteRule(w http.ResponseWriter, r *http.Request) error {
	return p.change(w, r, func(d *Delta, k Kind, ruleID string) error { return d.remove(k, ruleID) })
}

// putEnabled handles PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled.
func (p *Push) putEnabled(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadJSON[struct {
		Enabled *bool `json:"enabled"`
	}](r)
	if err != nil {
		return err
	}
	if body.Enabled == nil {
		return mxerr.MissingParam("enabled is missing: true or false")
	}
	return p.change(w, r, func(d *Delta, k Kind, ruleID string) error { return d.setEnabled(k, ruleID, *body.Enabled) })
}

// putActions handles PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions.
func (p *Push) putActions(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadJSON[struct {
		Actions jsontext.Value `json:"actions"`
	}](r)
	if err != nil {
		return err
	}
	if len(body.Actions) == 0 {
		return mxerr.MissingParam("actions are missing: an array")
	}
	if len(body.Actions) > maxRuleBytes {
		return mxerr.TooLarge("too many actions")
	}
	actions, err := parseActions(body.Actions)
	if err != nil {
		return err
	}
	return p.change(w, r, func(d *Delta, k Kind, ruleID string) error { return d.setActions(k, ruleID, actions) })
}
