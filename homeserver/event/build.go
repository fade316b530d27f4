package event

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Limits of an event. Spec: client-server API, "Size limits"; PDU format, prev_events and auth_events.
const (
	maxEventSize  = 65536
	maxPrevEvents = 20
	maxAuthEvents = 10
)

// Proto is an event to be built.
type Proto struct {
	RoomID         id.RoomID // empty for m.room.create of version 12
	Sender         id.UserID
	Type           string
	StateKey       *string // nil: not a state event
	Content        []byte  // a JSON object; it will be canonicalised
	PrevEvents     []id.EventID
	AuthEvents     []id.EventID
	Depth          int64
	OriginServerTS int64
	Redacts        id.EventID // for m.room.redaction before version 11; later it belongs in the content

	// EventID is for room versions 1 and 2 only; when empty, one is drawn at random.
	EventID id.EventID
	// ReferenceHash is for room versions 1 and 2 only, where prev_events and auth_events carry hashes beside the ids. It gives
	// Event.ReferenceHash of an event and may be nil: nobody checks these hashes.
	ReferenceHash func(id.EventID) (hash [sha256.Size]byte, ok bool)
}

// scratch is what Build needs only while it runs.
type scratch struct{ content, redacted, buf []byte }

// scratchPool lends buffers to Build.
var scratchPool = sync.Pool{New: func() any { return new(scratch) }}

// Build makes an event of the proto: canonical, hashed and signed. It refuses what no room accepts with M_BAD_JSON or M_TOO_LARGE, but it
// does not run the authorisation rules.
func (v *Version) Build(p *Proto, serverName string, key SigningKey) (*Event, error) {
	if err := key.check(); err != nil {
		return nil, err
	}
	if err := v.validateProto(p); err != nil {
		return nil, err
	}
	if len(p.Content) > 4*maxEventSize { // cannot fit, however much white space there is to drop
		return nil, errTooLarge(len(p.Content))
	}
	sc, _ := scratchPool.Get().(*scratch)
	defer scratchPool.Put(sc)
	content, err := appendCanonical(sc.content[:0], p.Content, v.StrictJSON)
	if err != nil {
		return nil, err
	}
	sc.content = content
	if content[0] != '{' {
		return nil, mxerr.BadJSON("the content of an event must be a JSON object")
	}
	if !v.StrictJSON {
		if err := checkNumbers(content); err != nil {
			return nil, err
		}
	}

	e := &Event{
		version: v, id: p.EventID, roomID: p.RoomID, evType: p.Type, sender: p.Sender, isState: p.StateKey != nil,
		depth: min(p.Depth, v.maxDepth()), ts: p.OriginServerTS, redacts: p.Redacts,
	}
	if e.isState {
		e.stateKey = *p.StateKey
	}
	ids := make([]id.EventID, 0, len(p.PrevEvents)+len(p.AuthEvents))
	ids = append(append(ids, p.PrevEvents...), p.AuthEvents...)
	e.prev, e.auth = ids[:len(p.PrevEvents):len(p.PrevEvents)], ids[len(p.PrevEvents):]
	if v.EventIDInPDU && e.id == "" {
		e.id = id.EventID("$" + rand.Text() + ":" + serverName)
	}

	w := pduWriter{e: e, p: p, content: content, redacts: !v.ModernRedaction && p.Type == typeRedaction && p.Redacts != ""}
	sc.buf, _ = w.append(sc.buf[:0])
	hash := sha256.Sum256(sc.buf)
	w.hash = &hash

	// The redacted event without signatures is both what is signed and what names the event.
	sc.redacted = v.appendRedactedContent(sc.redacted[:0], p.Type, content)
	redacted := w
	redacted.content, redacted.redacts = sc.redacted, false
	sc.buf, _ = redacted.append(sc.buf[:0])
	if !v.EventIDInPDU {
		e.id = v.idFromHash(sha256.Sum256(sc.buf))
	}
	w.sig, w.signer, w.keyID = ed25519.Sign(key.Private, sc.buf), serverName, key.KeyID

	var at int
	sc.buf, at = w.append(sc.buf[:0])
	if len(sc.buf) > maxEventSize {
		return nil, errTooLarge(len(sc.buf))
	}
	e.json = append(make([]byte, 0, len(sc.buf)), sc.buf...)
	e.content = e.json[at : at+len(content) : at+len(content)]
	e.derive()
	return e, nil
}

func errTooLarge(size int) error {
	return mxerr.TooLarge(fmt.Sprintf("the event is too large: %d bytes, and %d are allowed", size, maxEventSize))
}

// validateProto checks the limits and forms of everything but the content.
func (v *Version) validateProto(p *Proto) error {
	switch {
	case !utf8.ValidString(p.Type) || strings.IndexByte(p.Type, 0) >= 0:
		return mxerr.BadJSON("the event type is not valid text")
	case len(p.Type) > maxIDLength:
		return mxerr.TooLarge(fmt.Sprintf("the event type is longer than %d bytes", maxIDLength))
	case p.StateKey != nil && (!utf8.ValidString(*p.StateKey) || strings.IndexByte(*p.StateKey, 0) >= 0):
		return mxerr.BadJSON("the state key is not valid text")
	case p.StateKey != nil && len(*p.StateKey) > maxIDLength:
		return mxerr.TooLarge(fmt.Sprintf("the state key is longer than %d bytes", maxIDLength))
	case !utf8.ValidString(string(p.Sender)) || !ValidUserID(p.Sender):
		return mxerr.BadJSON(fmt.Sprintf("the sender %.300q is not a user id", string(p.Sender)))
	case p.Depth < 0:
		return mxerr.BadJSON("the depth of an event cannot be negative")
	case p.OriginServerTS < 0 || p.OriginServerTS > maxCanonicalInt:
		return mxerr.BadJSON("the timestamp of the event is out of range")
	case len(p.PrevEvents) > maxPrevEvents:
		return mxerr.TooLarge(fmt.Sprintf("the event has more than %d prev_events", maxPrevEvents))
	case len(p.AuthEvents) > maxAuthEvents:
		return mxerr.TooLarge(fmt.Sprintf("the event has more than %d auth_events", maxAuthEvents))
	case len(p.Redacts) > maxIDLength || !utf8.ValidString(string(p.Redacts)):
		return mxerr.BadJSON("what is to be redacted is not an event id")
	}
	if v.RoomIDIsCreateHash && p.isCreate() {
		if p.RoomID != "" {
			return mxerr.BadJSON("m.room.create has no room id in this room version: its own id names the room")
		}
	} else if !utf8.ValidString(string(p.RoomID)) || !v.validRoomID(p.RoomID) {
		return mxerr.BadJSON(fmt.Sprintf("%.300q is not a room id of room version %s", string(p.RoomID), v.ID))
	}
	if p.EventID != "" && (!v.EventIDInPDU || !utf8.ValidString(string(p.EventID)) || !validEventID(string(p.EventID))) {
		return mxerr.BadJSON("the event cannot be given this id")
	}
	for _, ids := range [2][]id.EventID{p.PrevEvents, p.AuthEvents} {
		for _, e := range ids {
			if !utf8.ValidString(string(e)) || !validEventID(string(e)) {
				return mxerr.BadJSON(fmt.Sprintf("%.300q is not an event id", string(e)))
			}
		}
	}
	return nil
}

// isCreate tells whether this is the event that makes the room.
func (p *Proto) isCreate() bool {
	return p.Type == typeCreate && p.StateKey != nil && *p.StateKey == ""
}

// pduWriter writes an event's canonical JSON; hashes and signatures are left out where they are not there yet.
type pduWriter struct {
	e       *Event
	p       *Proto
	content []byte
	redacts bool
	hash    *[sha256.Size]byte
	sig     []byte
	signer  string
	keyID   string
}

// append writes the event and tells where its content starts. The properties come in the order of canonical JSON.
func (w *pduWriter) append(dst []byte) (out []byte, contentAt int) {
	e := w.e
	dst = append(dst, `{"auth_events":`...)
	dst = w.appendIDs(dst, e.auth)
	dst = append(dst, `,"content":`...)
	contentAt = len(dst)
	dst = append(dst, w.content...)
	dst = append(dst, `,"depth":`...)
	dst = strconv.AppendInt(dst, e.depth, 10)
	if e.version.EventIDInPDU {
		dst = append(dst, `,"event_id":`...)
		dst = AppendCanonicalString(dst, string(e.id))
	}
	if w.hash != nil {
		dst = append(dst, `,"hashes":{"sha256":"`...)
		dst = base64.RawStdEncoding.AppendEncode(dst, w.hash[:])
		dst = append(dst, '"', '}')
	}
	dst = append(dst, `,"origin_server_ts":`...)
	dst = strconv.AppendInt(dst, e.ts, 10)
	dst = append(dst, `,"prev_events":`...)
	dst = w.appendIDs(dst, e.prev)
	if w.redacts {
		dst = append(dst, `,"redacts":`...)
		dst = AppendCanonicalString(dst, string(w.p.Redacts))
	}
	if w.p.RoomID != "" {
		dst = append(dst, `,"room_id":`...)
		dst = AppendCanonicalString(dst, string(w.p.RoomID))
	}
	dst = append(dst, `,"sender":`...)
	dst = AppendCanonicalString(dst, string(e.sender))
	if w.sig != nil {
		dst = append(dst, `,"signatures":{`...)
		dst = AppendCanonicalString(dst, w.signer)
		dst = append(dst, ':', '{')
		dst = AppendCanonicalString(dst, w.keyID)
		dst = append(dst, ':', '"')
		dst = base64.RawStdEncoding.AppendEncode(dst, w.sig)
		dst = append(dst, '"', '}', '}')
	}
	if e.isState {
		dst = append(dst, `,"state_key":`...)
		dst = AppendCanonicalString(dst, e.stateKey)
	}
	dst = append(dst, `,"type":`...)
	dst = AppendCanonicalString(dst, e.evType)
	return append(dst, '}'), contentAt
}

// appendIDs writes prev_events or auth_events: ids, or in versions 1 and 2 pairs of id and hashes.
func (w *pduWriter) appendIDs(dst []byte, ids []id.EventID) []byte {
	dst = append(dst, '[')
	for i, e := range ids {
		if i > 0 {
			dst = append(dst, ',')
		}
		if !w.e.version.EventIDInPDU {
			dst = AppendCanonicalString(dst, string(e))
			continue
		}
		dst = append(dst, '[')
		dst = AppendCanonicalString(dst, string(e))
		dst = append(dst, `,{`...)
		if w.p.ReferenceHash != nil {
			if hash, ok := w.p.ReferenceHash(e); ok {
				dst = append(dst, `"sha256":"`...)
				dst = base64.RawStdEncoding.AppendEncode(dst, hash[:])
				dst = append(dst, '"')
			}
		}
		dst = append(dst, '}', ']')
	}
	return append(dst, ']')
}
