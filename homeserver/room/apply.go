package room

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Listener brings announced events into memory. It stands first in the log's list, so that whoever is woken later
// finds the rooms up to date.
func (rs *Rooms) Listener() store.Listener {
	return store.Listener{Hydrate: rs.hydrate, Apply: rs.apply, Wake: rs.wakeMembers}
}

// hydrate loads what other processes announced, and makes their rooms hot: their members may be waiting here.
func (rs *Rooms) hydrate(ctx context.Context, entries []store.Entry) error {
	var nids []int64
	rooms := map[int64]*Room{}
	found := false
	for _, e := range entries {
		if e.Kind != store.KindEvent || e.Payload != nil {
			continue
		}
		found = true
		if e.Row == nil {
			nids = append(nids, e.Ref)
		}
		if rooms[e.Room] == nil {
			r, err := rs.RoomByNID(ctx, e.Room)
			if mxerr.Is(err, "M_NOT_FOUND") {
				continue // deleted since
			}
			if err != nil {
				return err
			}
			rooms[e.Room] = r
		}
	}
	if !found {
		return nil
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	byNID := indexByNID(evs)
	for i := range entries {
		e := &entries[i]
		if e.Kind != store.KindEvent || e.Payload != nil {
			continue
		}
		ev := byNID[e.Ref]
		if r := rooms[e.Room]; r != nil && e.Row != nil {
			if ev, err = fromRow(r.Version(), e.Row); err != nil {
				return err
			}
		}
		if ev == nil || rooms[e.Room] == nil {
			// Events go when their room or its old history is deleted; then there is nothing to tell of them.
			rs.d.Logger.Debug("an announced event is gone", "nid", e.Ref, "pos", e.Pos)
			continue
		}
		p := &applied{ev: ev, roomID: rooms[e.Room].id}
		if target := ev.PDU.Redacts(); target != "" && ev.PDU.Type() == "m.room.redaction" {
			p.redacted, err = rs.reload(ctx, target, ev.NID)
			if err != nil {
				return err
			}
		}
		e.Payload = p
	}
	return nil
}

// reload reads an event that a redaction changed in the database; nil where the redaction did not touch it.
func (rs *Rooms) reload(ctx context.Context, eventID id.EventID, by int64) (*Event, error) {
	var row *store.Event
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		rows, err := tx.EventsByID([]string{string(eventID)})
		if len(rows) > 0 {
			row = rows[0]
		}
		return err
	})
	if err != nil || row == nil || row.RedactedBy != by {
		return nil, err
	}
	r, err := rs.RoomByNID(ctx, row.Room)
	if err != nil {
		return nil, err
	}
	return fromRow(r.Version(), row)
}

// apply moves memory forward by entries of this process and of others.
func (rs *Rooms) apply(entries []store.Entry) {
	for i := range entries {
		e := &entries[i]
		rs.erased.note(e)
		switch e.Kind {
		case store.KindReset:
			rs.reset()
		case store.KindEvent:
			if p, ok := e.Payload.(*applied); ok {
				rs.applyEvent(e, p)
			}
		case store.KindRoomMeta:
			rs.applyMeta(e)
		}
	}
}

func (rs *Rooms) applyEvent(e *store.Entry, p *applied) {
	ev := p.ev
	rs.events.Set(ev.NID, ev)
	r := rs.stub(e.Room, p.roomID, 0)
	if p.redacted != nil {
		rs.events.Set(p.redacted.NID, p.redacted)
	}
	r.mu.Lock()
	switch {
	case r.hot != nil:
		rs.advance(r.hot, ev)
		if p.redacted != nil {
			r.hot.replace(p.redacted)
		}
	case r.loading != nil:
		r.backlog = append(r.backlog, ev)
	case p.create != nil:
		r.hot = p.create
		rs.advance(r.hot, ev)
	}
	r.mu.Unlock()
	if ev.Pos > r.lastPos.Load() {
		r.lastPos.Store(ev.Pos)
	}
	if p.create != nil || ev.PDU.Type() == "m.room.create" {
		r.noteType(createdType(ev.PDU))
	}
	if k, ok := ev.PDU.StateKey(); ok && ev.PDU.Type() == "m.room.member" {
		rs.intern(id.UserID(k)).noteMembership(membershipChange{
			room: r, membership: ParseMembership(ev.PDU.Membership()), nid: ev.NID, pos: ev.Pos})
	}
}

// reset drops everything: this process has lost its place in the log. Rooms are loaded again when they are needed.
func (rs *Rooms) reset() {
	rs.mu.Lock()
	rooms, users := rs.byNID, rs.users
	rs.byNID = make(map[int64]*Room)
	rs.byID = make(map[id.RoomID]*Room)
	rs.mu.Unlock()
	for _, r := range rooms {
		r.mu.Lock()
		r.hot = nil
		r.mu.Unlock()
	}
	for _, u := range users {
		if a := u.active.Load(); a != nil {
			a.mu.Lock()
			a.rooms = nil
			a.mu.Unlock()
			u.Poke()
		}
	}
	rs.events.InvalidateAll()
}

// wakeMembers wakes whoever waits for news of the rooms that have changed, once for each batch.
func (rs *Rooms) wakeMembers(entries []store.Entry) {
	seen := make(map[int64]struct{}, 8)
	for i := range entries {
		e := &entries[i]
		if e.Kind != store.KindEvent {
			continue
		}
		p, ok := e.Payload.(*applied)
		if !ok {
			continue
		}
		// the member whose membership changed may not be joined (any more)
		if k, isState := p.ev.PDU.StateKey(); isState && p.ev.PDU.Type() == "m.room.member" {
			rs.Poke(id.UserID(k))
		}
		if _, twice := seen[e.Room]; twice {
			continue
		}
		seen[e.Room] = struct{}{}
		rs.PokeRoom(e.Room)
	}
}

// EventOf gives the event that an entry of kind KindEvent announces, where the entry carries it; false otherwise.
func EventOf(e *store.Entry) (*Event, bool) {
	p, ok := e.Payload.(*applied)
	if !ok {
		return nil, false
	}
	return p.ev, true
}

// stateTuple is the place in the state that an event fills.
func stateTuple(p *event.Event) (event.StateKeyTuple, bool) {
	k, ok := p.StateKey()
	return event.StateKeyTuple{Type: p.Type(), StateKey: k}, ok
}
