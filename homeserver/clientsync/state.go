package clientsync

import (
	"cmp"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
)

const (
	memberType = "m.room.member"
	heroesMost = 5
)

// appendState writes state, or state_after: all of it where whole is set, else what changed since the client's token, in
// both cases up to the start of the timeline or to its end. It tells whether there was any.
// Spec: client-server API, "Syncing": state and state_after.
func (b *builder) appendState(ur *room.UserRoom, st *stretch, whole bool, heroes []id.UserID) (bool, error) {
	events, err := b.stateEvents(ur, st, whole, heroes)
	if err != nil {
		return false, err
	}
	f := b.req.filter.Room.State
	name := `"state":{"events":[`
	if b.req.stateAfter {
		name = `"state_after":{"events":[`
	}
	mark := len(b.b)
	b.comma()
	b.b = append(b.b, name...)
	start := len(b.b)
	v := room.Viewer{User: b.req.user, Device: b.req.device, NowMS: b.nowMS, OmitRoomID: true}
	roomID := string(st.r.ID())
	for _, e := range events {
		if f != nil && !f.Match(filter.EventMeta{Type: e.PDU.Type(), Sender: string(e.PDU.Sender()), RoomID: roomID, Content: e.PDU.Content()}) {
			continue
		}
		b.comma()
		b.event(e, &v)
	}
	any := len(b.b) > start
	if !any && !b.req.stateAfter {
		b.b = b.b[:mark]
		return false, nil
	}
	b.b = append(b.b, ']', '}')
	return any, nil
}

// emptyStateAfter writes state_after where nothing changed: its presence tells the client that it is supported.
func (b *builder) emptyStateAfter() {
	if b.req.stateAfter {
		b.comma()
		b.b = append(b.b, `"state_after":{"events":[]}`...)
	}
}

// stateEvents gives the state events that the client gets beside the timeline.
func (b *builder) stateEvents(ur *room.UserRoom, st *stretch, whole bool, heroes []id.UserID) ([]*room.Event, error) {
	end := st.start - 1 // the place at which the state is told
	if b.req.stateAfter {
		end = st.upto
	}
	f := b.req.filter.Room.State
	if f.MatchesNothing() || !f.MatchRoom(string(st.r.ID())) {
		return nil, nil
	}
	lazy := f.LazyMembers()
	var nids []int64
	switch {
	case whole:
		state, err := b.stateAt(st, end)
		if err != nil {
			return nil, err
		}
		nids = make([]int64, 0, len(state))
		for t, nid := range state {
			if nid != 0 && f.MatchType(t.Type) && (!lazy || t.Type != memberType) {
				nids = append(nids, nid)
			}
		}
	case !st.partial:
		return b.withMembers(ur, st, end, stateBefore(st.states, end), lazy, whole, heroes)
	default:
		changes, err := b.s.d.Rooms.StateChanges(b.ctx, st.r, st.after, end)
		if err != nil {
			return nil, err
		}
		for _, nid := range changes {
			if nid != 0 {
				nids = append(nids, nid)
			}
		}
	}
	slices.Sort(nids)
	events, err := b.s.d.Rooms.EventsByNID(b.ctx, nids)
	if err != nil {
		return nil, err
	}
	return b.withMembers(ur, st, end, events, lazy, whole, heroes)
}

// stateBefore gives of state events, newest first, the last one for each place up to an ord, oldest first.
func stateBefore(states []*room.Event, end int64) []*room.Event {
	var out []*room.Event
	seen := make(map[event.StateKeyTuple]struct{}, len(states))
	for _, e := range states {
		if e.Ord > end {
			continue
		}
		t := e.PDU.Tuple()
		if _, newer := seen[t]; !newer {
			seen[t] = struct{}{}
			out = append(out, e)
		}
	}
	slices.Reverse(out)
	return out
}

// stateAt is the whole state after an ord that lies in the stretch or at its beginning. The current state is in memory;
// where only the stretch's own events have changed it since, they are taken back one by one.
func (b *builder) stateAt(st *stretch, end int64) (map[event.StateKeyTuple]int64, error) {
	state := st.r.StateNIDs()
	if st.r.LastPos() > st.upto { // the room has moved on, or it goes on without the user
		return b.s.d.Rooms.StateAt(b.ctx, st.r, end)
	}
	if err := b.s.loadPrev(b.ctx, st.states); err != nil {
		return nil, err
	}
	for _, e := range st.states { // newest first
		if e.Ord <= end {
			break
		}
		prev, err := b.s.prevNID(b.ctx, e)
		if err != nil {
			return nil, err
		}
		if prev == 0 {
			delete(state, e.PDU.Tuple())
		} else {
			state[e.PDU.Tuple()] = prev
		}
	}
	return state, nil
}

// withMembers adds, where members are sent as they are needed, those of the timeline's senders, of the user and of the
// heroes, unless the client has them.
// Spec: client-server API, "Lazy-loading room members".
func (b *builder) withMembers(ur *room.UserRoom, st *stretch, end int64, events []*room.Event, lazy, whole bool, heroes []id.UserID) ([]*room.Event, error) {
	if !lazy {
		return events, nil
	}
	f := b.req.filter.Room.State
	wanted := make(map[id.UserID]struct{}, len(st.events)+len(heroes)+1)
	for _, e := range st.events {
		wanted[e.PDU.Sender()] = struct{}{}
	}
	if whole {
		wanted[b.req.user] = struct{}{}
	}
	for _, u := range heroes {
		wanted[u] = struct{}{}
	}
	for _, e := range events {
		if e.PDU.Type() == memberType {
			k, _ := e.PDU.StateKey()
			delete(wanted, id.UserID(k)) // sent already, as a change
		}
	}
	key := lazyKey{b.req.user, b.req.device, ur.Room.NID()}
	if whole {
		b.s.caches.lazy.Invalidate(key) // the client begins anew
	}
	for u := range wanted {
		e, err := b.memberAt(st, u, end)
		if err != nil {
			return nil, err
		}
		if e == nil {
			continue
		}
		if !f.IncludeRedundantMembers && !whole && b.s.knows(key, e.NID, b.req.since.pos) {
			continue
		}
		events = append(events, e)
	}
	if b.req.device != "" {
		for _, e := range events {
			if e.PDU.Type() == memberType {
				b.s.sent(key, e.NID, b.upto)
			}
		}
	}
	return events, nil
}

// memberAt gives a user's member event after an ord that lies in the stretch or at its beginning; nil where there was
// none.
func (b *builder) memberAt(st *stretch, u id.UserID, end int64) (*room.Event, error) {
	if st.r.LastPos() > st.upto {
		return b.s.d.Rooms.StateAtOne(b.ctx, st.r, end, memberType, string(u))
	}
	var first *room.Event // the first change after the place
	for _, e := range st.states {
		if e.Ord <= end {
			break
		}
		if k, _ := e.PDU.StateKey(); k == string(u) && e.PDU.Type() == memberType {
			first = e
		}
	}
	if first != nil {
		return b.s.prevOf(b.ctx, first)
	}
	return st.r.MemberEvent(b.ctx, u)
}

// summary writes a room's summary and gives its heroes.
// Spec: client-server API, "Syncing": RoomSummary; "Calculating the display name for a room".
func (b *builder) summary(r *room.Room) ([]id.UserID, error) {
	b.comma()
	b.b = append(b.b, `"summary":{`...)
	var heroes []id.UserID
	if r.Name() == "" && r.CanonicalAlias() == "" {
		heroes = b.heroes(r)
		b.b = append(b.b, `"m.heroes":[`...)
		for _, u := range heroes {
			b.comma()
			b.b = event.AppendCanonicalString(b.b, string(u))
		}
		b.b = append(b.b, ']', ',')
	}
	b.b = append(b.b, `"m.joined_member_count":`...)
	b.b = appendInt(b.b, int64(r.JoinedCount()))
	b.b = append(b.b, `,"m.invited_member_count":`...)
	b.b = appendInt(b.b, int64(r.InvitedCount()))
	b.b = append(b.b, '}')
	return heroes, nil
}

// heroes are the first members beside the user, in the order of their member events: joined and invited ones, or where
// nobody is left, those who were.
func (b *builder) heroes(r *room.Room) []id.UserID {
	type member struct {
		nid  int64
		user id.UserID
	}
	pick := func(memberships ...room.Membership) []id.UserID {
		var best []member
		state := r.StateNIDs()
		for _, m := range memberships {
			for _, u := range r.MembersBy(m) {
				if u != b.req.user {
					best = append(best, member{state[event.StateKeyTuple{Type: memberType, StateKey: string(u)}], u})
				}
			}
		}
		slices.SortFunc(best, func(x, y member) int { return cmp.Compare(x.nid, y.nid) })
		var out []id.UserID
		for _, m := range best[:min(len(best), heroesMost)] {
			out = append(out, m.user)
		}
		return out
	}
	if out := pick(room.MembershipJoin, room.MembershipInvite); len(out) > 0 {
		return out
	}
	return pick(room.MembershipLeave, room.MembershipBan)
}

// notePeers finds out who came into the user's rooms, or went.
func (b *builder) notePeers(ur *room.UserRoom, st *stretch, fresh bool) error {
	if b.req.initial {
		return nil
	}
	if fresh {
		for _, u := range ur.Room.Joined() {
			b.lists.join(u)
			b.peer(u)
		}
		return nil
	}
	states := st.states
	if st.partial {
		changes, err := b.s.d.Rooms.StateChanges(b.ctx, st.r, st.after, st.upto)
		if err != nil {
			return err
		}
		var nids []int64
		for t, nid := range changes {
			if t.Type == memberType && nid != 0 {
				nids = append(nids, nid)
			}
		}
		if states, err = b.s.d.Rooms.EventsByNID(b.ctx, nids); err != nil {
			return err
		}
	}
	for _, e := range states {
		if e.PDU.Type() != memberType {
			continue
		}
		k, _ := e.PDU.StateKey()
		u := id.UserID(k)
		switch prev, err := b.s.prevOf(b.ctx, e); {
		case err != nil:
			return err
		case u == b.req.user:
		case e.PDU.Membership() != "join":
			b.lists.left = b.lists.left || st.partial || (prev != nil && prev.PDU.Membership() == "join")
		case st.partial || prev == nil || prev.PDU.Membership() != "join":
			b.lists.join(u)
			b.peer(u)
		}
	}
	return nil
}

func (b *builder) peer(u id.UserID) {
	if b.newPeers == nil {
		b.newPeers = make(map[id.UserID]struct{})
	}
	b.newPeers[u] = struct{}{}
}
