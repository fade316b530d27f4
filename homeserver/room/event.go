package room

import (
	"sync/atomic"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// Event is a stored event. It is immutable: a redaction makes another one.
type Event struct {
	NID        int64
	Room       int64 // the room's number
	Ord        int64 // order in the room's timeline; equal to Pos for what was sent here
	Pos        int64 // position in the log; 0 when it was never announced
	PDU        *event.Event
	Status     int64
	Device     id.DeviceID
	Txn        string // scope and transaction id of the request that sent it, "" without
	RedactedBy int64  // nid of the redaction, 0 when there is none
	Features   []byte // compact push features

	rendered atomic.Pointer[[]byte]
}

// ID is the event id.
func (e *Event) ID() id.EventID { return e.PDU.ID() }

// size estimates the memory that an event holds, in bytes.
func (e *Event) size() int { return 600 + 2*len(e.PDU.JSON()) + len(e.Features) }

// row is the event as the database has it.
func (e *Event) row(txnKey int64) *store.Event {
	_, isState := e.PDU.StateKey()
	return &store.Event{
		NID: e.NID, Room: e.Room, Ord: e.Ord, Pos: e.Pos, EventID: string(e.PDU.ID()), Status: e.Status,
		TS: e.PDU.OriginServerTS(), IsState: isState, RedactedBy: e.RedactedBy, Device: string(e.Device), Txn: e.Txn,
		TxnKey: txnKey, Features: e.Features, Body: store.Content(e.PDU.JSON()),
	}
}

// fromRow parses a stored event. The event id is known from its column, so that it is not hashed again.
func fromRow(v *event.Version, row *store.Event) (*Event, error) {
	pdu, err := v.Parse(row.Body, id.EventID(row.EventID))
	if err != nil {
		return nil, err
	}
	return &Event{
		NID: row.NID, Room: row.Room, Ord: row.Ord, Pos: row.Pos, PDU: pdu, Status: row.Status,
		Device: id.DeviceID(row.Device), Txn: row.Txn, RedactedBy: row.RedactedBy, Features: row.Features,
	}, nil
}

// applied is the payload of an announced event.
type applied struct {
	ev       *Event
	redacted *Event // the event that ev redacts, in its new form; nil when there is none here
	create   *hot   // for the first event of a new room: the room as it stands after its creation
	roomID   id.RoomID
}
