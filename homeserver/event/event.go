package event

import (
	"sync/atomic"

	"maunium.net/go/mautrix/id"
)

// Event types that the rules of this package know.
const (
	typeCreate            = "m.room.create"
	typeMember            = "m.room.member"
	typePowerLevels       = "m.room.power_levels"
	typeJoinRules         = "m.room.join_rules"
	typeThirdPartyInvite  = "m.room.third_party_invite"
	typeAliases           = "m.room.aliases"
	typeRedaction         = "m.room.redaction"
	typeHistoryVisibility = "m.room.history_visibility"
)

// Memberships.
const (
	join   = "join"
	invite = "invite"
	leave  = "leave"
	ban    = "ban"
	knock  = "knock"
)

// StateKeyTuple is a (type, state_key) pair.
type StateKeyTuple struct{ Type, StateKey string }

// Event is an immutable, parsed PDU. It is safe for concurrent use; the slices it gives out must not be written to.
type Event struct {
	version    *Version
	id         id.EventID
	roomID     id.RoomID
	evType     string
	sender     id.UserID
	stateKey   string
	isState    bool
	depth      int64
	ts         int64
	prev, auth []id.EventID
	redacts    id.EventID
	membership string
	creators   []id.UserID // of m.room.create: who the rules of the version call a creator
	json       []byte
	content    []byte // inside json

	powerLevels atomic.Pointer[parsedPowerLevels]
}

// ID is the event id: the event_id property in room versions 1 and 2, later "$" and the reference hash.
func (e *Event) ID() id.EventID { return e.id }

// RoomID is the id of the event's room. That of a version 12 m.room.create is derived from its event id.
func (e *Event) RoomID() id.RoomID { return e.roomID }

// Type is the event type.
func (e *Event) Type() string { return e.evType }

// StateKey gives the state key, and whether the event is a state event at all.
func (e *Event) StateKey() (string, bool) { return e.stateKey, e.isState }

// Tuple is the event's place in the room state; it means nothing unless the event is a state event.
func (e *Event) Tuple() StateKeyTuple { return StateKeyTuple{e.evType, e.stateKey} }

// Sender is the user who sent the event.
func (e *Event) Sender() id.UserID { return e.sender }

// Depth is one more than the greatest depth of the prev_events, as its sender claims.
func (e *Event) Depth() int64 { return e.depth }

// OriginServerTS is the time of sending in milliseconds since 1970, as its sender claims.
func (e *Event) OriginServerTS() int64 { return e.ts }

// PrevEvents lists the events this one follows.
func (e *Event) PrevEvents() []id.EventID { return e.prev }

// AuthEvents lists the auth_events as they stand in the PDU; in version 12 m.room.create is not among them.
func (e *Event) AuthEvents() []id.EventID { return e.auth }

// Content is the content, a JSON object in canonical form.
func (e *Event) Content() []byte { return e.content }

// Redacts is the event that an m.room.redaction names, from the place that the room version says; "" for other events.
func (e *Event) Redacts() id.EventID { return e.redacts }

// JSON is the PDU as canonical JSON, with signatures and hashes and without unsigned.
func (e *Event) JSON() []byte { return e.json }

// Version gives the rules of the event's room version.
func (e *Event) Version() *Version { return e.version }

// Membership is the membership of an m.room.member event, "" for other events.
func (e *Event) Membership() string { return e.membership }

// Creators lists, for an m.room.create event, the users whom the room version calls creators: content.creator up to version 10, the
// sender in 11, the sender and content.additional_creators from 12 on. It is empty for other events.
func (e *Event) Creators() []id.UserID { return e.creators }

// internType saves a copy of the commonest types with every parsed event.
func internType(raw []byte) string {
	switch string(raw) {
	case typeMember:
		return typeMember
	case "m.room.message":
		return "m.room.message"
	case "m.room.encrypted":
		return "m.room.encrypted"
	case "m.reaction":
		return "m.reaction"
	case typeRedaction:
		return typeRedaction
	case typePowerLevels:
		return typePowerLevels
	case typeCreate:
		return typeCreate
	case typeJoinRules:
		return typeJoinRules
	case typeHistoryVisibility:
		return typeHistoryVisibility
	}
	return unescape(raw)
}

// derive fills in what follows from the other fields, once type, sender, content and id are known.
func (e *Event) derive() {
	switch e.evType {
	case typeMember:
		e.membership = getString(e.content, "membership")
	case typeRedaction:
		if e.version.ModernRedaction {
			e.redacts = id.EventID(getString(e.content, "redacts"))
		}
	case typeCreate:
		e.creators = e.version.creatorsOf(e.sender, e.content)
		if e.version.RoomIDIsCreateHash && e.roomID == "" {
			e.roomID = id.RoomID("!" + e.id[1:])
		}
	}
	if e.evType != typeRedaction {
		e.redacts = ""
	}
}

// creatorsOf reads the creators of a room from its m.room.create.
func (v *Version) creatorsOf(sender id.UserID, content []byte) []id.UserID {
	if !v.ImplicitCreator {
		if creator := getString(content, "creator"); creator != "" {
			return []id.UserID{id.UserID(creator)}
		}
		return nil
	}
	creators := []id.UserID{sender}
	if v.PrivilegedCreators {
		for el := range elements(get(content, "additional_creators")) {
			if s, ok := str(el); ok {
				creators = append(creators, id.UserID(s))
			}
		}
	}
	return creators
}
