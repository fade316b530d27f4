package clientsync

import (
	"slices"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
)

// roomResult is what a response tells of a room, before it is written.
type roomResult struct {
	w        *windowRoom
	r        *room.Room
	old      *roomSent // what the client was told; nil: nothing
	from     int64     // position up to which it was told
	end      int64     // ord up to which the user may know the room
	initial  bool      // the room is told as a whole
	outsider bool      // the user was never in the room: nothing but the own membership is told
	waiting  bool      // invited or knocking

	timeline bool
	expanded bool
	st       *stretch
	state    []*room.Event
	removed  []event.StateKeyTuple
	deltas   map[event.StateKeyTuple]int64 // what changed in the state since from

	members, name, avatar bool // they changed, or the room is told as a whole
	isDM, dm              bool // whether the room is a direct chat, and whether that is told
	read                  bool // receipts of the user's changed
	bump                  int64
}

// room writes what the client has to be told of a room; false where that turns out to be nothing.
func (b *slider) room(w *windowRoom) (bool, error) {
	x := &roomResult{w: w, r: w.ur.Room, old: b.conn.rooms[w.ur.Room.NID()], end: b.upto}
	if err := b.standing(x); err != nil {
		return false, err
	}
	if err := b.roomTimeline(x); err != nil {
		return false, err
	}
	if err := b.roomState(x); err != nil {
		return false, err
	}
	if err := b.roomMeta(x); err != nil {
		return false, err
	}
	b.noteSent(x)
	if x.initial || x.expanded {
		if b.told == nil {
			b.told = make(map[int64]toldRoom)
		}
		b.told[x.r.NID()] = toldRoom{x.st.events}
	}
	if !b.worth(x) {
		return false, nil
	}
	return true, b.writeRoom(x)
}

// standing finds out how the user stands to the room and how much of it the client knows.
func (b *slider) standing(x *roomResult) error {
	ur := x.w.ur
	x.initial = x.old == nil
	if x.old != nil {
		x.from = b.toldUpTo(x.old)
	}
	switch ur.Membership {
	case room.MembershipInvite, room.MembershipKnock:
		x.waiting = true
	case room.MembershipJoin:
		if x.old == nil {
			return nil
		}
		if x.initial = x.old.membership != room.MembershipJoin; x.initial || ur.Pos <= x.from {
			return nil
		}
		// the membership event may be another name, or the user may have gone and come back
		history, err := b.s.d.Rooms.MembershipHistory(b.ctx, ur.Room, b.req.user)
		if err != nil {
			return err
		}
		x.initial = slices.ContainsFunc(history, func(m room.MembershipChange) bool {
			return m.Ord > x.from && m.Membership != room.MembershipJoin
		})
	default:
		x.end = ur.Pos
		if x.old != nil && x.old.membership == room.MembershipJoin {
			return nil
		}
		been, err := b.s.facts.everJoined(b.ctx, ur.Room, b.req.user)
		if err != nil {
			return err
		}
		x.outsider = !been
	}
	return nil
}

// roomTimeline reads the events that the client gets. Where it asks for more than before, older ones come along.
// Spec: MSC4186, "Changes to timeline_limit".
func (b *slider) roomTimeline(x *roomResult) error {
	after := x.from
	if x.initial {
		after = 0
	}
	x.st = &stretch{r: x.r, after: after, upto: x.end, start: x.end + 1}
	limit := x.w.config.limit
	if x.waiting || limit == 0 {
		return nil
	}
	x.timeline = true
	if !x.initial && limit > x.old.limit && !x.outsider {
		x.expanded = true
		after = 0
	}
	var visible func(e *room.Event) bool
	switch ur := x.w.ur; {
	case x.outsider:
		visible = func(e *room.Event) bool {
			k, ok := e.PDU.StateKey()
			return ok && e.PDU.Type() == memberType && k == string(b.req.user)
		}
	case x.initial || x.expanded || ur.Pos > x.from || ur.Membership != room.MembershipJoin:
		var err error
		if visible, err = b.visibility(x.r); err != nil {
			return err
		}
	}
	var err error
	x.st, err = b.readStretch(x.r, after, x.end, limit, visible)
	if x.outsider {
		x.st.limited = false
	}
	return err
}

// roomMeta finds out what else is told of the room.
func (b *slider) roomMeta(x *roomResult) error {
	_, x.isDM = b.mine.direct[x.r.ID()]
	x.dm = x.isDM
	if x.old != nil && !x.initial {
		x.dm = x.isDM != x.old.dm || (x.isDM && !b.in.wire.described)
	}
	if !x.waiting && !x.outsider {
		x.members, x.name, x.avatar = x.initial, x.initial, x.initial
		for t := range x.deltas {
			switch {
			case t.Type == memberType:
				x.members = true
			case t.StateKey != "":
			case t.Type == "m.room.name":
				x.name = true
			case t.Type == "m.room.avatar":
				x.avatar = true
			}
		}
	}
	if _, read := b.read[x.r.NID()]; read && b.in.wire.counts && x.w.ur.Membership == room.MembershipJoin {
		rr, err := b.s.receipts.one(b.ctx, x.r.NID())
		if err != nil {
			return err
		}
		_, x.read = rr.since(b.req.user, x.from, nil)
	}
	return b.roomBump(x)
}

// roomBump finds the bump stamp: the last activity worth a new place in the list, or for rooms that the user is not in
// the membership.
// Spec: MSC4186, "RoomResult": bump_stamp.
func (b *slider) roomBump(x *roomResult) error {
	if x.w.ur.Membership != room.MembershipJoin {
		x.bump = x.w.ur.Pos
		return nil
	}
	at, err := b.s.facts.bump(b.ctx, x.r, b.upto)
	if err != nil {
		return err
	}
	if at == 0 {
		at = x.w.ur.Pos
	}
	if x.initial || x.st.limited || !x.timeline || at > x.from {
		x.bump = at
	}
	return nil
}

// worth tells whether there is anything in a room's part.
func (b *slider) worth(x *roomResult) bool {
	switch {
	case x.initial, len(x.st.events) > 0, len(x.state) > 0, x.name, x.avatar, x.members, x.expanded, x.read:
		return true
	case x.waiting && (x.old.membership != x.w.ur.Membership || x.w.ur.Pos > x.from):
		return true
	case len(x.removed) > 0 && b.in.wire.described, x.old.dm != x.isDM:
		return true
	}
	return x.old.membership != x.w.ur.Membership || x.bump > x.from
}

// noteSent remembers what the client knows of the room after this response.
func (b *slider) noteSent(x *roomResult) {
	nid := x.r.NID()
	limit := x.w.config.limit
	if x.old != nil && !x.initial {
		// without a gap the client still has the events that it got under a greater limit
		if limit = x.old.limit; x.expanded || (x.st.limited && x.old.limit > x.w.config.limit) {
			limit = x.w.config.limit
		}
	}
	if x.waiting {
		limit = 0
	}
	if old := x.old; old != nil && old.upto == 0 && old.membership == x.w.ur.Membership && old.limit == limit && old.dm == x.isDM && !x.initial {
		return // state and members were noted where they changed
	}
	n := b.edit(nid)
	n.upto, n.membership, n.limit, n.dm = 0, x.w.ur.Membership, limit, x.isDM
}

// writeRoom writes a room's part.
func (b *slider) writeRoom(x *roomResult) error {
	wire := &b.in.wire
	if x.initial {
		b.comma()
		b.b = append(b.b, `"initial":true`...)
	}
	if x.expanded {
		b.member(wire.expanded)
		b.b = append(b.b, "true"...)
	}
	if x.bump > 0 {
		b.member("bump_stamp")
		b.b = appendInt(b.b, x.bump)
	}
	if wire.described {
		b.member("membership")
		b.b = event.AppendCanonicalString(b.b, x.w.ur.Membership.String())
		if len(x.w.lists) > 0 {
			b.member("lists")
			b.strings(x.w.lists)
		}
	}
	if x.dm {
		b.member("is_dm")
		b.b = appendBool(b.b, x.isDM)
	}
	if err := b.writeCounts(x); err != nil {
		return err
	}
	if x.waiting || (x.outsider && wire.described) {
		if err := b.writeStripped(x); err != nil {
			return err
		}
	}
	if x.waiting {
		return nil
	}
	if err := b.writeSummary(x); err != nil {
		return err
	}
	b.writeState(x)
	if !x.timeline {
		return nil
	}
	return b.writeTimeline(x)
}

func (b *slider) member(name string) {
	b.comma()
	b.b = append(b.b, '"')
	b.b = append(b.b, name...)
	b.b = append(b.b, '"', ':')
}

func (b *slider) strings(list []string) {
	b.b = append(b.b, '[')
	for _, s := range list {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, s)
	}
	b.b = append(b.b, ']')
}

func (b *slider) writeCounts(x *roomResult) error {
	if !b.in.wire.counts {
		return nil
	}
	var c Counts
	if x.w.ur.Membership == room.MembershipJoin {
		u, err := b.s.unread.count(b.ctx, b.req.user, x.w.ur, b.upto, b.ignored)
		if err != nil {
			return err
		}
		c = u.Total()
	}
	b.member("notification_count")
	b.b = appendInt(b.b, c.Notifications)
	b.member("highlight_count")
	b.b = appendInt(b.b, c.Highlights)
	return nil
}

// writeStripped writes the state of a room that the user is not in; of one whose invitation is no longer only the own
// membership.
func (b *slider) writeStripped(x *roomResult) error {
	events, err := b.s.d.Rooms.EventsByNID(b.ctx, []int64{x.w.ur.MemberNID})
	if err != nil || len(events) == 0 {
		return err
	}
	b.member(b.in.wire.stripped)
	b.b = append(b.b, '[')
	if x.waiting {
		err = b.appendStripped(x.r, events[0])
	} else {
		b.b = events[0].AppendStripped(b.b)
	}
	b.b = append(b.b, ']')
	return err
}

// writeSummary writes name, avatar, heroes and counts of members, as far as they changed.
func (b *slider) writeSummary(x *roomResult) error {
	name, err := b.textAt(x, "m.room.name", "name", x.name || x.members)
	if err != nil {
		return err
	}
	if x.name {
		b.textOrNull("name", name, x.initial)
	}
	if x.avatar {
		avatar, err := b.textAt(x, "m.room.avatar", "url", true)
		if err != nil {
			return err
		}
		b.textOrNull("avatar", avatar, x.initial)
	}
	if x.w.ur.Membership != room.MembershipJoin {
		return nil // who is in the room now is no longer the user's business
	}
	if name == "" && (x.members || x.name) {
		if err := b.writeHeroes(x); err != nil {
			return err
		}
	}
	if x.members {
		b.member("joined_count")
		b.b = appendInt(b.b, int64(x.r.JoinedCount()))
		b.member("invited_count")
		b.b = appendInt(b.b, int64(x.r.InvitedCount()))
	}
	return nil
}

// textAt reads a string of a state event's content, at the end of what the user may know.
func (b *slider) textAt(x *roomResult, evType, field string, wanted bool) (string, error) {
	if !wanted {
		return "", nil
	}
	var e *room.Event
	var err error
	if x.w.ur.Membership == room.MembershipJoin {
		e, err = x.r.StateEvent(b.ctx, evType, "")
	} else {
		e, err = b.s.d.Rooms.StateAtOne(b.ctx, x.r, x.end, evType, "")
	}
	if err != nil || e == nil {
		return "", err
	}
	if v := gjson.GetBytes(e.PDU.Content(), field); v.Type == gjson.String {
		return v.Str, nil
	}
	return "", nil
}

// textOrNull writes a text; MSC4186 has null for one that was removed.
func (b *slider) textOrNull(name, text string, initial bool) {
	switch {
	case text != "":
		b.member(name)
		b.b = event.AppendCanonicalString(b.b, text)
	case b.in.wire.described && !initial:
		b.member(name)
		b.b = append(b.b, "null"...)
	}
}

// writeHeroes writes the members by whom a room without a name is called.
// Spec: MSC4186, "Hero type".
func (b *slider) writeHeroes(x *roomResult) error {
	heroes := b.heroes(x.r)
	if len(heroes) == 0 {
		return nil
	}
	b.member("heroes")
	b.b = append(b.b, '[')
	for _, u := range heroes {
		e, err := x.r.MemberEvent(b.ctx, u)
		if err != nil {
			return err
		}
		b.comma()
		b.b = append(b.b, `{"user_id":`...)
		b.b = event.AppendCanonicalString(b.b, string(u))
		if e != nil {
			for _, field := range []string{"displayname", "avatar_url"} {
				if v := gjson.GetBytes(e.PDU.Content(), field); v.Type == gjson.String {
					b.member(field)
					b.b = event.AppendCanonicalString(b.b, v.Str)
				}
			}
		}
		b.b = append(b.b, '}')
	}
	b.b = append(b.b, ']')
	return nil
}

func (b *slider) writeTimeline(x *roomResult) error {
	if len(x.st.events) > 0 {
		at, err := b.memberships(x.w.ur, x.st)
		if err != nil {
			return err
		}
		b.member("timeline")
		b.b = append(b.b, '[')
		if err := b.appendStretch(x.st, at); err != nil {
			return err
		}
		b.b = append(b.b, ']')
	}
	live := 0
	if !b.req.initial {
		for i := len(x.st.events) - 1; i >= 0 && x.st.events[i].Pos > b.req.since.pos; i-- {
			live++
		}
	}
	b.member("limited")
	b.b = appendBool(b.b, x.st.limited)
	b.member("prev_batch")
	b.b = append(b.b, '"')
	b.b = append(b.b, x.st.prevBatch().String()...)
	b.b = append(b.b, '"')
	b.member("num_live")
	b.b = appendInt(b.b, int64(live))
	return nil
}
