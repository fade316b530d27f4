package event

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// candidate is an event, built or not, as the authorisation rules see it.
type candidate struct {
	v        *Version
	id       id.EventID // known for built events only
	roomID   id.RoomID
	evType   string
	sender   id.UserID
	stateKey string
	isState  bool
	prev     []id.EventID
	redacts  id.EventID
	content  []byte // canonical; nil where the rules for the type never look
	state    State
	create   *Event
	built    *Event // nil for a Proto
}

// Check runs the authorisation rules of the room version on an event against a state: nil, or M_FORBIDDEN with a sentence for people.
// The state must give the room's m.room.create too, which in version 12 is not among the auth events. What the rules say about
// auth_events themselves is CheckAuthEvents; signatures are checked by whoever has the keys (RequiredSigners).
// Spec: room version pages, "Authorisation rules".
func Check(e *Event, state State) error {
	c := candidate{
		v: e.version, id: e.id, roomID: e.roomID, evType: e.evType, sender: e.sender, stateKey: e.stateKey, isState: e.isState,
		prev: e.prev, redacts: e.redacts, content: e.content, state: state, built: e,
	}
	return c.check()
}

// CheckProto is Check for an event that is not built yet, so that a denied request costs no signature.
func (v *Version) CheckProto(p *Proto, state State) error {
	c := candidate{
		v: v, id: p.EventID, roomID: p.RoomID, evType: p.Type, sender: p.Sender, isState: p.StateKey != nil, prev: p.PrevEvents,
		redacts: p.Redacts, state: state,
	}
	if c.isState {
		c.stateKey = *p.StateKey
	}
	switch p.Type {
	case typeCreate, typeMember, typePowerLevels:
		content, err := canonicalObject(p.Content, v.StrictJSON, "the content of an event")
		if err != nil {
			return err
		}
		c.content = content
	}
	return c.check()
}

// CheckAuthEvents runs the rules about the auth_events of an event: no duplicates, nothing that does not belong there, everything of the
// same room, and m.room.create among them before version 12. The events must be those that e.AuthEvents names, in any order; that none of
// them was rejected is for the caller to know. Spec: room version 1 auth rule 2, room version 12 auth rule 3.
func CheckAuthEvents(e *Event, authEvents []*Event) error {
	if e.isCreate() {
		return nil // rule 1 ends before auth_events are looked at
	}
	var key *string
	if e.isState {
		key = &e.stateKey
	}
	wanted := e.version.AuthTypes(e.evType, key, e.sender, e.content)
	var seen [maxAuthEvents]bool
	created := false
	for _, a := range authEvents {
		i := -1
		for j, t := range wanted {
			if a.isState && a.evType == t.Type && a.stateKey == t.StateKey {
				i = j
			}
		}
		switch {
		case i < 0:
			return mxerr.Forbidden(fmt.Sprintf("the event names %s (%s) among its auth_events, where it does not belong", a.id, a.evType))
		case seen[i]:
			return mxerr.Forbidden(fmt.Sprintf("the event names %s twice among its auth_events", a.evType))
		case a.roomID != e.roomID:
			return mxerr.Forbidden(fmt.Sprintf("the event's auth_events hold %s of another room", a.id))
		}
		seen[i] = true
		created = created || a.isCreate()
	}
	if !created && !e.version.RoomIDIsCreateHash {
		return mxerr.Forbidden("the event does not name m.room.create among its auth_events")
	}
	return nil
}

// RedactionApplies tells whether a redaction that the rules have let into the room takes effect on its target: its sender may redact the
// events of others, or is of the same server as the target's sender. The state is that before the redaction. In room versions 1 and 2 the
// auth rules themselves have decided. Spec: room version 3, "Handling redactions".
func RedactionApplies(redaction, target *Event, state State) bool {
	if redaction.evType != typeRedaction || redaction.redacts != target.id || redaction.roomID != target.roomID {
		return false
	}
	if redaction.version.RedactionAuth || domainOf(string(redaction.sender)) == domainOf(string(target.sender)) {
		return true
	}
	levels := PowerLevelsOf(state)
	return levels.User(redaction.sender) >= levels.Redact()
}

func (c *candidate) check() error {
	if c.evType == typeCreate {
		// The rule goes by type alone: a second m.room.create, with a state key or without, has prev_events and fails by that.
		return c.checkCreate()
	}
	c.create = c.state.Get(typeCreate, "")
	if c.create == nil {
		return mxerr.Forbidden("the room has no m.room.create event")
	}
	if c.v.RoomIDIsCreateHash && c.create.roomID != c.roomID {
		// Spec: room v12 auth rule 2.
		return mxerr.Forbidden("the event is not of the room that the m.room.create event makes")
	}
	if domain := domainOf(string(c.sender)); string(get(c.create.content, "m.federate")) == "false" &&
		domain != domainOf(string(c.create.sender)) {
		return mxerr.Forbidden(fmt.Sprintf("this room is closed to other servers, and %s is on %s", c.sender, domain))
	}
	if c.v.AliasesAuth && c.evType == typeAliases {
		// Spec: room v1 auth rule 4.
		if !c.isState || c.stateKey != domainOf(string(c.sender)) {
			return mxerr.Forbidden("m.room.aliases must have the sender's server name as its state key")
		}
		return nil
	}
	if c.evType == typeMember {
		return c.checkMember()
	}
	if c.membershipOf(string(c.sender)) != join {
		return c.forbidden("%s is not in this room", c.sender)
	}
	levels := NewPowerLevels(c.state.Get(typePowerLevels, ""), c.create)
	own := levels.User(c.sender)
	if c.evType == typeThirdPartyInvite {
		if own < levels.Invite() {
			return needLevel(levels.Invite(), "invite someone to", own)
		}
		return nil
	}
	if need := levels.Event(c.evType, c.isState); need > own {
		return needLevel(need, "send "+printable(c.evType)+" in", own)
	}
	if c.isState && strings.HasPrefix(c.stateKey, "@") && c.stateKey != string(c.sender) {
		return mxerr.Forbidden("a state key that is a user id can only be used by that user: " + printable(c.stateKey))
	}
	switch {
	case c.evType == typePowerLevels:
		return c.checkPowerLevels(levels, own)
	case c.evType == typeRedaction && c.v.RedactionAuth:
		// Spec: room v1 auth rule 11. An event that is to be built will have an id of the sender's server.
		domain := domainOf(string(c.id))
		if c.id == "" {
			domain = domainOf(string(c.sender))
		}
		if own < levels.Redact() && domainOf(string(c.redacts)) != domain {
			return needLevel(levels.Redact(), "redact events of other servers in", own)
		}
	}
	return nil
}

// checkCreate is auth rule 1.
func (c *candidate) checkCreate() error {
	if len(c.prev) > 0 {
		return mxerr.Forbidden("m.room.create must be the first event of its room")
	}
	if c.v.RoomIDIsCreateHash {
		if c.built == nil && c.roomID != "" || c.built != nil && get(c.built.json, "room_id") != nil {
			return mxerr.Forbidden("m.room.create has no room id in this room version: its own id names the room")
		}
	} else if domainOf(string(c.roomID)) != domainOf(string(c.sender)) {
		return mxerr.Forbidden("the room id must be of the sender's server")
	}
	if version := get(c.content, "room_version"); version != nil {
		s, ok := str(version)
		if _, known := LookupVersion(s); !ok || !known {
			return mxerr.Forbidden(fmt.Sprintf("the room version %.100s is not known here", version))
		}
	}
	if !c.v.ImplicitCreator && get(c.content, "creator") == nil {
		return mxerr.Forbidden("m.room.create must name the creator in this room version")
	}
	if more := get(c.content, "additional_creators"); c.v.PrivilegedCreators && more != nil {
		if !isArray(more) {
			return mxerr.Forbidden("additional_creators must be a list of user ids")
		}
		for el := range elements(more) {
			if s, ok := str(el); !ok || !ValidUserID(id.UserID(s)) {
				return mxerr.Forbidden(fmt.Sprintf("additional_creators holds %.100s, which is no user id", el))
			}
		}
	}
	return nil
}

// membershipOf gives the current membership of a user, "" for one who never had any.
func (c *candidate) membershipOf(user string) string {
	if m := c.state.Get(typeMember, user); m != nil {
		return m.membership
	}
	return ""
}

func (c *candidate) forbidden(format string, args ...any) error {
	return mxerr.Forbidden(fmt.Sprintf(format, args...))
}

// needLevel says which level is missing for what.
func needLevel(need int64, what string, own int64) error {
	return mxerr.Forbidden("you need power level " + levelText(need) + " to " + what + " this room; yours is " + levelText(own))
}

func levelText(n int64) string {
	if n == math.MaxInt64 {
		return "∞"
	}
	return strconv.FormatInt(n, 10)
}

// printable keeps long or odd text out of error messages.
func printable(s string) string {
	if len(s) > 100 {
		s = s[:100] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
