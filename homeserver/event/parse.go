package event

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// maxPDUInput bounds the work for an event from the network, which may come with white space, escapes and an unsigned of any size.
const maxPDUInput = 8 * maxEventSize

// Parse reads a PDU that this server stored itself: neither its size nor its hashes nor its signatures are checked. The eventID may be
// empty, then it is computed; in room versions 1 and 2 the PDU's own counts.
func (v *Version) Parse(pdu []byte, eventID id.EventID) (*Event, error) {
	js, err := canonicalObject(pdu, v.StrictJSON, "an event")
	if err != nil {
		return nil, err
	}
	return v.fromCanonical(withoutUnsigned(js), eventID)
}

// ParseUntrusted reads a PDU from the network and checks its format and limits by the room version. Where the content hash does not
// match, the event given back is the redacted one and redacted is true. Signatures are not checked: see RequiredSigners.
// Errors are M_NOT_JSON, M_BAD_JSON and M_TOO_LARGE. Spec: server-server API, "Checks performed on receipt of a PDU".
func (v *Version) ParseUntrusted(pdu []byte) (e *Event, redacted bool, err error) {
	if len(pdu) > maxPDUInput {
		return nil, false, errTooLarge(len(pdu))
	}
	js, err := canonicalObject(pdu, v.StrictJSON, "an event")
	if err != nil {
		return nil, false, err
	}
	js = withoutUnsigned(js)
	if len(js) > maxEventSize {
		return nil, false, errTooLarge(len(js))
	}
	e, err = v.fromCanonical(js, "")
	if err != nil {
		return nil, false, err
	}
	if err := e.checkFormat(); err != nil {
		return nil, false, err
	}
	if e.hashMatches() {
		return e, false, nil
	}
	e, err = v.fromCanonical(v.appendRedacted(make([]byte, 0, len(js)), js, ""), e.id)
	if err != nil {
		return nil, false, err
	}
	return e, true, nil
}

// withoutUnsigned drops what other servers may change at will.
func withoutUnsigned(js []byte) []byte {
	if get(js, "unsigned") == nil {
		return js
	}
	return appendWithout(make([]byte, 0, len(js)), js, "unsigned")
}

func (e *Event) hashMatches() bool {
	want, err := DecodeBase64(getString(get(e.json, "hashes"), "sha256"))
	if err != nil {
		return false
	}
	got := contentHash(e.json)
	return bytes.Equal(got[:], want)
}

// checkFormat checks what Parse takes for granted.
func (e *Event) checkFormat() error {
	v := e.version
	switch {
	case !ValidUserID(e.sender):
		return mxerr.BadJSON("the event's sender is not a user id")
	case len(e.evType) > maxIDLength:
		return mxerr.TooLarge(fmt.Sprintf("the event's type is longer than %d bytes", maxIDLength))
	case len(e.stateKey) > maxIDLength:
		return mxerr.TooLarge(fmt.Sprintf("the event's state_key is longer than %d bytes", maxIDLength))
	case strings.IndexByte(e.evType, 0) >= 0 || strings.IndexByte(e.stateKey, 0) >= 0:
		return mxerr.BadJSON("the event's type or state_key holds U+0000")
	case len(e.prev) > maxPrevEvents:
		return mxerr.BadJSON(fmt.Sprintf("the event has %d prev_events, and %d are allowed", len(e.prev), maxPrevEvents))
	case len(e.auth) > maxAuthEvents:
		return mxerr.BadJSON(fmt.Sprintf("the event has %d auth_events, and %d are allowed", len(e.auth), maxAuthEvents))
	case e.depth < 0:
		return mxerr.BadJSON("the event's depth is negative")
	case v.EventIDInPDU && (!validEventID(string(e.id)) || !ValidServerName(domainOf(string(e.id)))):
		return mxerr.BadJSON("the event's event_id is not an event id")
	case !v.validRoomID(e.roomID):
		return mxerr.BadJSON("the event's room_id is not a room id of room version " + v.ID)
	case v.RoomIDIsCreateHash && e.isCreate() && get(e.json, "room_id") != nil:
		return mxerr.BadJSON("m.room.create has no room_id in room version " + v.ID)
	}
	hashes, signatures := get(e.json, "hashes"), get(e.json, "signatures")
	if !isString(get(hashes, "sha256")) {
		return mxerr.BadJSON("the event has no hashes.sha256")
	}
	if !isObject(signatures) {
		return mxerr.BadJSON("the event's signatures must be an object")
	}
	for _, byServer := range members(signatures) {
		if !isObject(byServer) {
			return mxerr.BadJSON("the event's signatures must hold objects")
		}
		for _, sig := range members(byServer) {
			if !isString(sig) {
				return mxerr.BadJSON("the event's signatures must be strings")
			}
		}
	}
	for _, ids := range [2][]id.EventID{e.prev, e.auth} {
		for _, ref := range ids {
			if !validEventID(string(ref)) {
				return mxerr.BadJSON("the event's prev_events or auth_events hold what is no event id")
			}
		}
	}
	return nil
}

// isCreate tells whether this is the event that made the room.
func (e *Event) isCreate() bool { return e.evType == typeCreate && e.isState && e.stateKey == "" }

// fromCanonical reads the properties of an event from canonical JSON, which it keeps.
func (v *Version) fromCanonical(js []byte, eventID id.EventID) (*Event, error) {
	e := &Event{version: v, json: js}
	var seen int
	for key, value := range members(js) {
		ok, required := true, true
		switch string(key) {
		case "auth_events":
			e.auth, ok = v.eventIDs(value)
		case "content":
			e.content, ok = value[:len(value):len(value)], isObject(value)
		case "depth":
			e.depth, ok = integer(value)
		case "origin_server_ts":
			e.ts, ok = integer(value)
		case "prev_events":
			e.prev, ok = v.eventIDs(value)
		case "sender":
			var s string
			s, ok = str(value)
			e.sender = id.UserID(s)
		case "type":
			if ok = isString(value); ok {
				e.evType = internType(value[1 : len(value)-1])
			}
		default:
			required = false
			ok = e.readOptional(key, value)
		}
		if !ok {
			return nil, mxerr.BadJSON(fmt.Sprintf("the event's %s is of the wrong kind", key))
		}
		if required {
			seen++
		}
	}
	const requiredCount = 7
	if seen != requiredCount {
		return nil, v.missing(js)
	}
	switch {
	case v.EventIDInPDU && e.id == "":
		return nil, mxerr.BadJSON("the event has no event_id")
	case !v.EventIDInPDU && eventID != "":
		e.id = eventID
	case !v.EventIDInPDU:
		e.id = v.computeID(js)
	}
	if e.roomID == "" && (!v.RoomIDIsCreateHash || !e.isCreate()) {
		return nil, mxerr.BadJSON("the event has no room_id")
	}
	e.derive()
	return e, nil
}

// readOptional reads the properties that not every event has.
func (e *Event) readOptional(key, value []byte) (ok bool) {
	var s string
	switch string(key) {
	case "event_id":
		if !e.version.EventIDInPDU {
			return true
		}
		s, ok = str(value)
		e.id = id.EventID(s)
	case "redacts":
		if e.version.ModernRedaction || !isString(value) {
			return true // a value that means nothing
		}
		s, ok = str(value)
		e.redacts = id.EventID(s)
	case "room_id":
		s, ok = str(value)
		e.roomID = id.RoomID(s)
	case "state_key":
		e.stateKey, ok = str(value)
		e.isState = true
	default:
		return true
	}
	return ok
}

// missing names the first required property that an event lacks.
func (v *Version) missing(js []byte) error {
	for _, key := range [...]string{"type", "sender", "content", "depth", "origin_server_ts", "prev_events", "auth_events"} {
		if get(js, key) == nil {
			return mxerr.BadJSON("the event has no " + key)
		}
	}
	return mxerr.BadJSON("the event lacks a required property")
}

// computeID derives the id of a canonical event from its reference hash.
func (v *Version) computeID(js []byte) id.EventID {
	sc, _ := scratchPool.Get().(*scratch)
	defer scratchPool.Put(sc)
	sc.redacted = v.appendRedacted(sc.redacted[:0], js, "signatures")
	return v.idFromHash(sha256.Sum256(sc.redacted))
}

// eventIDs reads prev_events or auth_events: ids, or in versions 1 and 2 pairs of id and hashes.
func (v *Version) eventIDs(value []byte) ([]id.EventID, bool) {
	if !isArray(value) {
		return nil, false
	}
	n := 0
	for range elements(value) {
		n++
	}
	if n == 0 {
		return nil, true
	}
	ids := make([]id.EventID, 0, n)
	for el := range elements(value) {
		if v.EventIDInPDU {
			if !isArray(el) {
				return nil, false
			}
			var first []byte
			for part := range elements(el) {
				first = part
				break
			}
			el = first
		}
		s, ok := str(el)
		if !ok {
			return nil, false
		}
		ids = append(ids, id.EventID(s))
	}
	return ids, true
}
