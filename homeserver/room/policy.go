package room

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
)

// Policy servers look at each event before it is sent, and sign it. Since what they sign names the events before it, an event
// is built once to be looked at and then once more, the same, to be committed; where the room has moved on meanwhile it is
// asked again. Within a process one request of a room at a time does so.
// Spec: server-server API, "Policy Servers".

const (
	typePolicy  = "m.room.policy"
	policyKeyID = "ed25519:policy_server"
	policyTries = 8
)

// errUnsigned says that a unit has events that the policy server has not signed yet.
var errUnsigned = errors.New("the policy server has to sign this")

// policyCheck is what a unit knows of the room's policy server. A nil one wants nothing.
type policyCheck struct {
	server     string
	key        ed25519.PublicKey
	signatures map[string]*event.Event // by the JSON of the event as this server builds it: the event with both signatures
	unsigned   []*event.Event
	ids        map[int]id.EventID // of drafts in rooms whose ids are drawn: they stay the same
}

// policyOf gives the room's policy server, nil where it has none.
// Spec: "Determining if a Policy Server is enabled in a room".
func (rs *Rooms) policyOf(ctx context.Context, r *Room) (*policyCheck, error) {
	if rs.d.Policy == nil {
		return nil, nil
	}
	e, err := r.StateEvent(ctx, typePolicy, "")
	if err != nil || e == nil {
		return nil, err
	}
	via, key := gjson.GetBytes(e.PDU.Content(), "via"), gjson.GetBytes(e.PDU.Content(), "public_keys.ed25519")
	if via.Type != gjson.String || key.Type != gjson.String || !r.hasServer(via.Str) {
		return nil, nil
	}
	c := &policyCheck{server: via.Str, signatures: map[string]*event.Event{}, ids: map[int]id.EventID{}}
	if c.key, err = event.DecodeBase64(key.Str); err != nil {
		c.key = nil // a key that nothing fits: whoever may set the state can still change it
	}
	return c, nil
}

// hasServer tells whether a user of a server is in the room.
func (r *Room) hasServer(server string) bool {
	h, done := r.view()
	defer done()
	for u, m := range h.members {
		if m.membership == MembershipJoin && strings.HasSuffix(string(u.ID), ":"+server) && u.ID.Homeserver() == server {
			return true
		}
	}
	return false
}

func (c *policyCheck) begin() {
	if c != nil {
		c.unsigned = nil
	}
}

// eventID is the id that a draft was given when it was first built, in room versions where ids are drawn.
func (c *policyCheck) eventID(v *event.Version, draft int) id.EventID {
	if c == nil || !v.EventIDInPDU {
		return ""
	}
	return c.ids[draft]
}

// signed gives the event with the policy server's signature, or remembers that it has none.
func (c *policyCheck) signed(pdu *event.Event, draft int) *event.Event {
	if c == nil {
		return pdu
	}
	if key, ok := pdu.StateKey(); ok && key == "" && pdu.Type() == typePolicy {
		return pdu // so that a room can get rid of a server that does not answer
	}
	c.ids[draft] = pdu.ID()
	if done := c.signatures[string(pdu.JSON())]; done != nil {
		return done
	}
	c.unsigned = append(c.unsigned, pdu)
	return pdu
}

func (c *policyCheck) complete() error {
	if c != nil && len(c.unsigned) > 0 {
		return errUnsigned
	}
	return nil
}

// submitSigned is submit for rooms that have a policy server.
func (rs *Rooms) submitSigned(ctx context.Context, u *unit) ([]id.EventID, error) {
	v, _ := rs.turns.LoadOrStore(u.room.nid, make(chan struct{}, 1))
	turn, _ := v.(chan struct{})
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	for range policyTries {
		u.tries, u.stale = 0, false
		ids, err := rs.submit(ctx, u)
		if !errors.Is(err, errUnsigned) {
			return ids, err
		}
		for _, pdu := range u.policy.unsigned {
			signed, err := rs.askPolicy(ctx, u.policy, pdu)
			if err != nil {
				return nil, err
			}
			u.policy.signatures[string(pdu.JSON())] = signed
		}
	}
	return nil, mxerr.Unavailable("the room is too busy for its policy server, try again soon")
}

// askPolicy asks for the signature of an event and checks it. Spec: "Validating Policy Server signatures".
func (rs *Rooms) askPolicy(ctx context.Context, c *policyCheck, pdu *event.Event) (*event.Event, error) {
	answer, err := rs.d.Policy(ctx, c.server, pdu.JSON())
	if err != nil {
		return nil, err
	}
	var signatures map[string]map[string]string
	if err := json.Unmarshal(answer, &signatures); err != nil || signatures[c.server][policyKeyID] == "" {
		return nil, mxerr.Forbidden("the policy server " + c.server + " has not signed the event")
	}
	signed, err := pdu.WithSignature(c.server, policyKeyID, signatures[c.server][policyKeyID])
	if err != nil {
		return nil, err
	}
	if err := signed.VerifySignature(c.server, policyKeyID, c.key); err != nil {
		return nil, mxerr.Forbidden("the policy server " + c.server + " has signed with another key than the room names")
	}
	return signed, nil
}
