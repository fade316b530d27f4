package room

import (
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// writer collects the rows of one transaction, so that each table is written once.
type writer struct {
	rs  *Rooms
	tx  *store.Tx
	now int64

	events    []*store.Event
	rooms     []store.Room // new ones
	moved     []store.Room
	state     []store.StateRow
	members   map[memberKey]store.Membership
	relations []store.Relation
	redact    []redaction
	nextRoom  int64
}

type memberKey struct {
	user string
	room int64
}

// redaction is an event whose body changes with the transaction.
type redaction struct {
	target, by *Event
	body       []byte
	room       int64
	now        int64
}

// addRoom gives the events of a room their numbers and positions and collects their rows.
func (w *writer) addRoom(rb *roomBatch) error {
	row := store.Room{NID: rb.nid, Depth: rb.line.depth, Extremities: packExtremities(rb.line.ext), StateVersion: rb.base.stateVersion + rb.line.states}
	if rb.create != nil {
		if err := w.newRoom(rb, &row); err != nil {
			return err
		}
	} else {
		row.RoomID = string(rb.room.id)
	}
	for i, e := range rb.events {
		if err := w.addEvent(rb, &row, e, rb.txnKeys[i], rb.owners[i], i == 0); err != nil {
			return err
		}
	}
	if rb.create != nil {
		w.rooms = append(w.rooms, row)
	} else {
		w.moved = append(w.moved, row)
	}
	return nil
}

// newRoom numbers a new room and claims its aliases.
func (w *writer) newRoom(rb *roomBatch, row *store.Room) error {
	if w.nextRoom == 0 {
		n, err := w.tx.NextRoomNID()
		if err != nil {
			return err
		}
		w.nextRoom = n
	}
	rb.nid, row.NID = w.nextRoom, w.nextRoom
	w.nextRoom++
	c := rb.create
	row.RoomID, row.Version, row.Creator, row.Created = string(c.roomID), c.version.ID, string(c.creator), w.now
	row.Published = c.meta.Published
	if made := createdType(rb.events[0].PDU); !strings.Contains(made, "\x00") { // which PostgreSQL's texts cannot hold
		row.Type = &made
	}
	for _, a := range c.meta.Aliases {
		ok, err := w.tx.InsertAlias(store.Alias{Alias: string(a), Room: row.NID, Creator: string(c.creator), Created: w.now})
		if err != nil {
			return err
		}
		if !ok {
			return mxerr.New(400, "M_ROOM_IN_USE", fmt.Sprintf("the alias %s is taken by another room", a))
		}
	}
	return nil
}

// addEvent announces one event and collects its rows.
func (w *writer) addEvent(rb *roomBatch, row *store.Room, e *Event, txnKey int64, u *unit, first bool) error {
	nid, err := w.tx.NextEventNID()
	if err != nil {
		return err
	}
	// the transaction may run again: what an earlier run gave away is not written to
	c := &Event{NID: nid, Room: rb.nid, PDU: e.PDU, Status: e.Status, Device: e.Device, Txn: e.Txn, Features: e.Features}
	p := &applied{ev: c, roomID: id.RoomID(row.RoomID)}
	if first && rb.create != nil {
		p.create = &hot{
			version: rb.create.version, creator: rb.create.creator, created: w.now, whole: true,
			state: make(map[event.StateKeyTuple]int64), members: make(map[*User]member), core: make(map[event.StateKeyTuple]*Event),
		}
	}
	if err := w.redaction(rb, c, u, p); err != nil {
		return err
	}
	pos, err := w.tx.Announce(store.Entry{Kind: store.KindEvent, Room: rb.nid, Ref: nid, Payload: p})
	if err != nil {
		return err
	}
	c.Pos, c.Ord = pos, pos
	row.LastPos = pos
	w.events = append(w.events, c.row(txnKey))
	if t, ok := stateTuple(c.PDU); ok {
		w.state = append(w.state, store.StateRow{Room: rb.nid, Type: t.Type, StateKey: t.StateKey, Ord: pos, NID: nid})
		if t.Type == "m.room.member" {
			if w.members == nil {
				w.members = map[memberKey]store.Membership{}
			}
			w.members[memberKey{t.StateKey, rb.nid}] = store.Membership{User: t.StateKey, Room: rb.nid,
				Membership: int64(ParseMembership(c.PDU.Membership())), NID: nid, Pos: pos}
		}
	}
	if rel, ok := relationOf(c.PDU); ok {
		w.relations = append(w.relations, store.Relation{Parent: rel.parent, NID: nid, Room: rb.nid, RelType: rel.relType,
			Type: c.PDU.Type(), Sender: string(c.PDU.Sender())})
	}
	return nil
}

// redaction applies an m.room.redaction to its target, where the sender may redact it. Spec: room version pages,
// "Handling redactions".
func (w *writer) redaction(rb *roomBatch, c *Event, u *unit, p *applied) error {
	targetID := c.PDU.Redacts()
	if c.PDU.Type() != "m.room.redaction" || targetID == "" {
		return nil
	}
	t := u.target[targetID]
	if t == nil || t.Room != rb.nid || t.RedactedBy != 0 || t.PDU.Type() == "m.room.create" {
		return nil
	}
	if t.PDU.Sender() != c.PDU.Sender() {
		levels := event.PowerLevelsOf(&buildState{rs: w.rs, rb: rb, u: u})
		if levels.User(c.PDU.Sender()) < levels.Redact() {
			return nil
		}
	}
	body, err := t.PDU.Version().Redact(t.PDU.JSON())
	if err != nil {
		return fmt.Errorf("redact %s: %w", targetID, err)
	}
	pdu, err := t.PDU.Version().Parse(body, t.ID())
	if err != nil {
		return fmt.Errorf("redact %s: %w", targetID, err)
	}
	p.redacted = &Event{NID: t.NID, Room: t.Room, Ord: t.Ord, Pos: t.Pos, PDU: pdu, Status: t.Status, Device: t.Device, Txn: t.Txn, RedactedBy: c.NID}
	w.redact = append(w.redact, redaction{target: t, by: c, body: body, room: rb.nid, now: w.now})
	return nil
}

// flush writes the collected rows.
func (w *writer) flush() error {
	if err := w.tx.InsertEvents(w.events); err != nil {
		return fmt.Errorf("insert %d events: %w", len(w.events), err)
	}
	if err := w.tx.SaveRooms(w.rooms); err != nil {
		return fmt.Errorf("save rooms: %w", err)
	}
	if err := w.tx.MoveRooms(w.moved); err != nil {
		return fmt.Errorf("move rooms: %w", err)
	}
	if err := w.tx.SaveState(w.state); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	members := make([]store.Membership, 0, len(w.members))
	for _, m := range w.members {
		members = append(members, m)
	}
	if err := w.tx.SaveMemberships(members); err != nil {
		return fmt.Errorf("save memberships: %w", err)
	}
	if err := w.tx.InsertRelations(w.relations); err != nil {
		return fmt.Errorf("save relations: %w", err)
	}
	for _, r := range w.redact {
		if err := w.tx.RedactEvent(r.target.NID, r.by.NID, r.now, store.Content(r.target.PDU.JSON()), r.body); err != nil {
			return err
		}
		if _, ok := relationOf(r.target.PDU); ok {
			if err := w.tx.DropRelation(r.room, r.target.NID); err != nil {
				return fmt.Errorf("drop the relation of a redacted event: %w", err)
			}
		}
	}
	return nil
}
