package clientsync

import (
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
)

// statePlaces bounds of how many requests the state is kept up to date for a room at once.
const statePlaces = 8

// roomState reads the state that the client gets: of a room that is told as a whole all that it asks for; else what
// changed of that, and what it did not ask for before.
// Spec: MSC4186, "Changes to required_state".
func (b *slider) roomState(x *roomResult) error {
	if x.waiting {
		return nil
	}
	if err := b.stateDeltas(x); err != nil {
		return err
	}
	config := x.w.config
	wanted := make(map[event.StateKeyTuple]int64)
	places := config.places
	switch {
	case x.outsider:
		t := event.StateKeyTuple{Type: memberType, StateKey: string(b.req.user)}
		if config.matches(t.Type, t.StateKey) {
			wanted[t] = x.w.ur.MemberNID
		}
	case x.initial:
		if err := b.collect(x, config.asked, nil, wanted); err != nil {
			return err
		}
	default:
		var err error
		if places, err = b.changedState(x, wanted); err != nil {
			return err
		}
	}
	nids := make([]int64, 0, len(wanted))
	for t, nid := range wanted {
		if nid == 0 {
			x.removed = append(x.removed, t)
		} else {
			nids = append(nids, nid)
		}
	}
	slices.Sort(nids)
	var err error
	if x.state, err = b.s.d.Rooms.EventsByNID(b.ctx, nids); err != nil {
		return err
	}
	var known []int64
	if !x.initial {
		known = x.old.members
	}
	now := known
	if config.lazy && !x.outsider {
		if now, err = b.lazyMembers(x, known); err != nil {
			return err
		}
	}
	if x.old == nil || x.initial || !slices.Equal(places, x.old.state) || len(now) != len(known) {
		n := b.edit(x.r.NID())
		n.state, n.members = places, now
	}
	return nil
}

// stateDeltas reads what changed in the state since the client was told of the room.
func (b *slider) stateDeltas(x *roomResult) error {
	switch {
	case x.initial:
		return nil
	case x.outsider:
		if x.w.ur.Pos > x.from {
			x.deltas = map[event.StateKeyTuple]int64{{Type: memberType, StateKey: string(b.req.user)}: x.w.ur.MemberNID}
		}
		return nil
	case x.end <= x.from:
		return nil
	}
	var err error
	x.deltas, err = b.s.d.Rooms.StateChanges(b.ctx, x.r, x.from, x.end)
	return err
}

// changedState adds what the client lacks of the state that it asks for. It gives the requests for which it has the
// state from now on: what it asked for earlier stays among them as long as nothing of it changes, so that rooms that are
// opened and closed are not told again and again.
func (b *slider) changedState(x *roomResult, wanted map[event.StateKeyTuple]int64) ([]int32, error) {
	config := x.w.config
	before := make([]*stateRequest, len(x.old.state))
	for i, n := range x.old.state {
		before[i] = b.conn.asked[n]
	}
	stale := false
	for t, nid := range x.deltas {
		if config.matches(t.Type, t.StateKey) {
			wanted[t] = nid
		} else if !stale {
			stale = anyMatches(before, t.Type, t.StateKey)
		}
	}
	more := !subset(config.places, x.old.state)
	if more {
		if err := b.collect(x, config.asked, before, wanted); err != nil {
			return nil, err
		}
	}
	switch {
	case stale:
		return config.places, nil
	case !more:
		return x.old.state, nil
	}
	places := slices.Concat(x.old.state, config.places)
	slices.Sort(places)
	if places = slices.Compact(places); len(places) > statePlaces {
		return config.places, nil
	}
	return places, nil
}

// collect finds the state that is asked for and was not before.
func (b *slider) collect(x *roomResult, asked, before []*stateRequest, wanted map[event.StateKeyTuple]int64) error {
	take := func(t event.StateKeyTuple, nid int64) {
		if _, have := wanted[t]; !have && nid != 0 && anyMatches(asked, t.Type, t.StateKey) && !anyMatches(before, t.Type, t.StateKey) {
			wanted[t] = nid
		}
	}
	if x.w.ur.Membership != room.MembershipJoin {
		state, err := b.s.d.Rooms.StateAt(b.ctx, x.r, x.end)
		for t, nid := range state {
			take(t, nid)
		}
		return err
	}
	any, members := false, false
	for _, q := range asked {
		members = members || q.allMembers()
		for _, e := range q.Include {
			switch {
			case e.Key == nil || e.Type == nil:
				any = any || e.Type == nil || *e.Type != memberType
			}
			if e.Key == nil {
				continue
			}
			evType := memberType // an element without a type means members too
			if e.Type != nil {
				evType = *e.Type
			}
			ev, err := x.r.StateEvent(b.ctx, evType, *e.Key)
			if err != nil {
				return err
			}
			if ev != nil {
				take(event.StateKeyTuple{Type: evType, StateKey: *e.Key}, ev.NID)
			}
		}
	}
	switch {
	case members:
		for t, nid := range x.r.StateNIDs() {
			take(t, nid)
		}
	case any:
		x.r.EachState(take)
	}
	return nil
}

// lazyMembers adds the members that appear in the timeline and, where nothing of the timeline is left out, those whose
// membership changed. It gives the member events that the client has then.
// Spec: MSC4186, "Lazy loaded memberships".
func (b *slider) lazyMembers(x *roomResult, known []int64) ([]int64, error) {
	users := make([]id.UserID, 0, 8)
	add := func(u id.UserID) {
		if !slices.Contains(users, u) && !x.w.config.matches(memberType, string(u)) {
			users = append(users, u)
		}
	}
	for _, e := range x.st.events {
		add(e.PDU.Sender())
		if e.PDU.Type() == memberType {
			if k, ok := e.PDU.StateKey(); ok {
				add(id.UserID(k))
			}
		}
	}
	if !x.initial && !x.st.limited {
		for t, nid := range x.deltas {
			if t.Type == memberType && nid != 0 {
				add(id.UserID(t.StateKey))
			}
		}
	}
	now := known
	for _, u := range users {
		e, err := b.memberNow(x, u)
		if err != nil {
			return nil, err
		}
		if e == nil || slices.Contains(known, e.NID) {
			continue
		}
		x.state = append(x.state, e)
		now = append(slices.Clip(now), e.NID)
	}
	if len(now) > slidingMembersMost { // the oldest are sent again when they appear again
		now = slices.Clone(now[len(now)-slidingMembersMost:])
	}
	return now, nil
}

func (b *slider) memberNow(x *roomResult, u id.UserID) (*room.Event, error) {
	if x.w.ur.Membership == room.MembershipJoin {
		return x.r.MemberEvent(b.ctx, u)
	}
	return b.s.d.Rooms.StateAtOne(b.ctx, x.r, x.end, memberType, string(u))
}

// writeState writes required_state. MSC4186 has stubs for what was removed.
func (b *slider) writeState(x *roomResult) {
	stubs := b.in.wire.described && len(x.removed) > 0
	if len(x.state) == 0 && !stubs {
		return
	}
	b.member("required_state")
	b.b = append(b.b, '[')
	v := room.Viewer{User: b.req.user, Device: b.req.device, NowMS: b.nowMS, OmitRoomID: true}
	for _, e := range x.state {
		b.comma()
		b.event(e, &v)
	}
	if stubs {
		for _, t := range x.removed {
			b.comma()
			b.b = append(b.b, `{"state_key":`...)
			b.b = event.AppendCanonicalString(b.b, t.StateKey)
			b.b = append(b.b, `,"type":`...)
			b.b = event.AppendCanonicalString(b.b, t.Type)
			b.b = append(b.b, '}')
		}
	}
	b.b = append(b.b, ']')
}
