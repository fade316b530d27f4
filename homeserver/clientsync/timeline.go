package clientsync

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const timelineDefault = 10 // events where the filter names no limit

// stretch is a room's timeline between two places, as the client gets it.
type stretch struct {
	r      *room.Room
	after  int64 // exclusive; 0: from the beginning
	upto   int64 // inclusive
	events []*room.Event
	// limited says that there are events between after and the first one of events that were not looked at.
	limited bool
	// states are the state events that were looked at, newest first, whether the filter let them through or not. Unless
	// partial is set these are all between after and upto.
	states  []*room.Event
	partial bool
	// start is the ord of the first event: the state before it is what the client needs. Without events it lies behind
	// upto.
	start   int64
	related map[id.EventID]struct{} // what later events of the stretch relate to
}

// readTimeline reads the newest events with after < ord <= upto that the client may and wants to see.
func (b *builder) readTimeline(r *room.Room, after, upto int64, visible func(e *room.Event) bool) (*stretch, error) {
	return b.readStretch(r, after, upto, b.req.filter.Room.Timeline.LimitOr(timelineDefault), visible)
}

// readStretch is readTimeline with a limit that is not the filter's.
func (b *builder) readStretch(r *room.Room, after, upto int64, limit int, visible func(e *room.Event) bool) (*stretch, error) {
	st := &stretch{r: r, after: after, upto: upto, start: upto + 1}
	f := b.req.filter.Room.Timeline
	roomID := string(r.ID())
	switch {
	case f.MatchesNothing() || !f.MatchRoom(roomID):
		return st, b.readStates(st)
	case f.NoEvents():
		st.limited = true
		return st, b.readStates(st)
	}
	var failed error
	match := func(e *room.Event) bool {
		_, isState := e.PDU.StateKey()
		if isState {
			st.states = append(st.states, e)
		} else {
			st.noteRelation(e)
		}
		if visible != nil && !visible(e) {
			return false
		}
		sender := e.PDU.Sender()
		if !isState && len(b.ignored) > 0 {
			if _, skip := b.ignored[sender]; skip {
				return false
			}
		}
		if f == nil {
			return true
		}
		meta := filter.EventMeta{Type: e.PDU.Type(), Sender: string(sender), RoomID: roomID, Content: e.PDU.Content()}
		if f.NeedsRelations() && f.MatchType(meta.Type) && f.MatchSender(meta.Sender) {
			if meta.Relations, failed = b.s.d.Rooms.Relating(b.ctx, r, e.ID(), b.ignored, visible); failed != nil {
				return false
			}
		}
		return f.Match(meta)
	}
	page, err := b.s.d.Rooms.Timeline(b.ctx, r, room.TimelineQuery{
		From: upto + 1, To: after, Backwards: true, Limit: limit, Match: match,
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, err
	}
	slices.Reverse(page.Events)
	st.events = page.Events
	st.limited, st.partial = page.More, page.More
	if len(st.events) > 0 {
		st.start = st.events[0].Ord
	}
	return st, nil
}

// readStates stands in for readTimeline where the client wants no timeline at all.
func (b *builder) readStates(st *stretch) error {
	if st.after == 0 {
		st.partial = true // the whole state is told anyway
		return nil
	}
	changes, err := b.s.d.Rooms.StateChanges(b.ctx, st.r, st.after, st.upto)
	if err != nil {
		return err
	}
	nids := make([]int64, 0, len(changes))
	for _, nid := range changes {
		if nid != 0 {
			nids = append(nids, nid)
		}
	}
	st.states, err = b.s.d.Rooms.EventsByNID(b.ctx, nids)
	slices.SortFunc(st.states, func(x, y *room.Event) int { return cmp.Compare(y.Ord, x.Ord) })
	return err
}

// noteRelation remembers what an event relates to: only such events can have bundled aggregations.
func (st *stretch) noteRelation(e *room.Event) {
	content := e.PDU.Content()
	if !bytes.Contains(content, []byte(`"m.relates_to"`)) {
		return
	}
	if parent := gjson.GetBytes(content, `m\.relates_to.event_id`); parent.Type == gjson.String {
		if st.related == nil {
			st.related = make(map[id.EventID]struct{})
		}
		st.related[id.EventID(parent.String())] = struct{}{}
	}
}

// prevBatch is the pagination token from which /messages goes on backwards.
func (st *stretch) prevBatch() room.Token {
	if len(st.events) == 0 {
		return room.Token(st.upto)
	}
	return room.Token(st.start - 1)
}

// appendTimeline writes the timeline's member of a room.
func (b *builder) appendTimeline(st *stretch, membership func(e *room.Event) string) error {
	b.comma()
	b.b = append(b.b, `"timeline":{"events":[`...)
	if err := b.appendStretch(st, membership); err != nil {
		return err
	}
	b.b = append(b.b, `],"limited":`...)
	if st.limited {
		b.b = append(b.b, "true"...)
	} else {
		b.b = append(b.b, "false"...)
	}
	b.b = append(b.b, `,"prev_batch":"`...)
	b.b = append(b.b, st.prevBatch().String()...)
	b.b = append(b.b, '"', '}')
	return nil
}

// appendStretch writes the events of a stretch.
func (b *builder) appendStretch(st *stretch, membership func(e *room.Event) string) error {
	v := room.Viewer{User: b.req.user, Device: b.req.device, NowMS: b.nowMS, OmitRoomID: true}
	if err := b.prepareViewer(st, &v); err != nil {
		return err
	}
	var err error
	if v.Erased, err = b.s.d.Rooms.Erased(b.ctx); err != nil {
		return err
	}
	for _, e := range st.events {
		v.Membership = membership(e)
		v.PrevContent, v.ReplacesState = nil, ""
		if _, isState := e.PDU.StateKey(); isState {
			prev, err := b.s.prevOf(b.ctx, e)
			if err != nil {
				return err
			}
			if prev != nil {
				v.PrevContent, v.ReplacesState = prev.PDU.Content(), prev.ID()
			}
		}
		b.comma()
		b.event(e, &v)
	}
	return nil
}

// prepareViewer loads what all events of a stretch need: what they replaced, redactions, aggregations.
func (b *builder) prepareViewer(st *stretch, v *room.Viewer) error {
	var states, related []*room.Event
	var redactions []int64
	for _, e := range st.events {
		if _, isState := e.PDU.StateKey(); isState {
			states = append(states, e)
		}
		if e.RedactedBy != 0 {
			redactions = append(redactions, e.RedactedBy)
		} else if _, ok := st.related[e.ID()]; ok {
			related = append(related, e)
		}
	}
	if len(states) > 0 {
		if err := b.s.loadPrev(b.ctx, states); err != nil {
			return err
		}
	}
	if len(redactions) > 0 {
		list, err := b.s.d.Rooms.EventsByNID(b.ctx, redactions)
		if err != nil {
			return err
		}
		v.RedactedBecause = func(e *room.Event) *room.Event {
			if i := slices.IndexFunc(list, func(r *room.Event) bool { return r.NID == e.RedactedBy }); i >= 0 {
				return list[i]
			}
			return nil
		}
	}
	if len(related) > 0 && b.s.d.Bundle != nil {
		var err error
		if v.Bundle, err = b.s.d.Bundle(b.ctx, b.req.user, st.r, related); err != nil {
			return err
		}
	}
	return nil
}

// event appends one event in the form that the filter asks for.
func (b *builder) event(e *room.Event, v *room.Viewer) {
	f := b.req.filter
	switch {
	case f.Federation && !v.Erases(e):
		b.b = append(b.b, e.PDU.JSON()...)
	case f.Fields.All():
		b.b = e.AppendClient(b.b, v)
	default:
		b.scratch = e.AppendClient(b.scratch[:0], v)
		b.b = append(b.b, f.Fields.Apply(b.scratch)...)
	}
}

// memberships tells a user's membership at the time of each event of a stretch, the event itself included: for
// unsigned.membership.
func (b *builder) memberships(ur *room.UserRoom, st *stretch) (func(e *room.Event) string, error) {
	now := ur.Membership.String()
	if ur.Pos <= st.after || st.start >= ur.Pos {
		return func(*room.Event) string { return now }, nil
	}
	evs, err := b.s.d.Rooms.EventsByNID(b.ctx, []int64{ur.MemberNID})
	if err != nil || len(evs) == 0 {
		return func(*room.Event) string { return now }, err
	}
	chain := []*room.Event{evs[0]} // the user's member events, newest first, back to the start of the stretch
	for last := evs[0]; last.Ord > st.start; chain = append(chain, last) {
		if last, err = b.s.prevOf(b.ctx, last); err != nil {
			return nil, err
		}
		if last == nil {
			break
		}
	}
	return func(e *room.Event) string {
		for _, m := range chain {
			if m.Ord <= e.Ord {
				return m.PDU.Membership()
			}
		}
		return "leave" // who never was in the room is as if he had left it
	}, nil
}

// membershipAt is the user's membership after an ord.
func (b *builder) membershipAt(r *room.Room, ord int64) (room.Membership, error) {
	if ord <= 0 {
		return room.MembershipNone, nil
	}
	e, err := b.s.d.Rooms.StateAtOne(b.ctx, r, ord, "m.room.member", string(b.req.user))
	if err != nil || e == nil {
		return room.MembershipNone, err
	}
	return room.ParseMembership(e.PDU.Membership()), nil
}

// visibility gives the test whether the user may see an event, nil where all are visible.
func (b *builder) visibility(r *room.Room) (func(e *room.Event) bool, error) {
	v, err := b.s.d.Rooms.Visibility(b.ctx, r, b.req.user)
	if err != nil || v.All() {
		return nil, err
	}
	return func(e *room.Event) bool { return v.Allows(e.Ord) }, nil
}

// joinedRoom writes a room that the user is in.
func (b *builder) joinedRoom(ur *room.UserRoom) (bool, error) {
	r, since := ur.Room, b.req.since.pos
	fresh := b.req.initial // the client knows nothing of the room
	var visible func(e *room.Event) bool
	if !fresh && ur.Pos > since {
		was, err := b.membershipAt(r, since)
		if err != nil {
			return false, err
		}
		fresh = was != room.MembershipJoin
	}
	if fresh || ur.Pos > since {
		var err error
		if visible, err = b.visibility(r); err != nil {
			return false, err
		}
	}
	after := since
	if fresh {
		after = 0
	}
	any, told := false, false
	if fresh || b.req.fullState || r.LastPos() > since {
		st, err := b.readTimeline(r, after, b.upto, visible)
		if err != nil {
			return false, err
		}
		if fresh && !b.req.initial {
			// A client may hold an older stretch of a room that its user comes back to, which does not end where this one begins.
			st.limited = true
		}
		whole := fresh || b.req.fullState
		if told, err = b.timelineAndState(ur, st, whole); err != nil {
			return false, err
		}
		any = told
		b.urgent = b.urgent || told
		if err := b.notePeers(ur, st, fresh); err != nil {
			return false, err
		}
	}
	more, err := b.ephemeral(ur)
	if err != nil {
		return false, err
	}
	any = any || more
	if more, err = b.roomAccountData(r, fresh && !b.req.initial); err != nil {
		return false, err
	}
	if any = any || more; !any {
		return false, nil
	}
	if !told {
		b.emptyStateAfter()
	}
	return true, b.appendUnread(ur)
}

// timelineAndState writes timeline, state and summary of a joined room, and tells whether there was anything to write.
func (b *builder) timelineAndState(ur *room.UserRoom, st *stretch, whole bool) (bool, error) {
	members := whole || st.partial
	for _, e := range st.states {
		members = members || e.PDU.Type() == "m.room.member"
	}
	mark := len(b.b)
	var heroes []id.UserID
	if members {
		var err error
		if heroes, err = b.summary(ur.Room); err != nil {
			return false, err
		}
	}
	wrote, err := b.appendState(ur, st, whole, heroes)
	if err != nil {
		return false, err
	}
	if !wrote && !whole && !members && len(st.events) == 0 {
		b.b = b.b[:mark] // everything was filtered out
		return false, nil
	}
	at, err := b.memberships(ur, st)
	if err != nil {
		return false, err
	}
	return true, b.appendTimeline(st, at)
}

// leftRoom writes a room that the user has left, was banned from, or whose invitation is no longer.
func (b *builder) leftRoom(ur *room.UserRoom) (bool, error) {
	r := ur.Room
	was := room.MembershipNone
	if !b.req.initial {
		var err error
		if was, err = b.membershipAt(r, b.req.since.pos); err != nil {
			return false, err
		}
		// Spec, "Leaving rooms": a forgotten room stays away until its user joins, knocks or is invited; a ban is none of these.
		if ur.Forgotten && (was == room.MembershipNone || was == room.MembershipLeave || was == room.MembershipBan) {
			return false, nil
		}
		b.lists.left = true
	}
	visible, err := b.visibility(r)
	if err != nil {
		return false, err
	}
	b.urgent = true
	after, whole := int64(0), true
	if was == room.MembershipJoin {
		after, whole = b.req.since.pos, false
	} else {
		history, err := b.s.d.Rooms.MembershipHistory(b.ctx, r, b.req.user)
		if err != nil {
			return false, err
		}
		been := slices.ContainsFunc(history, func(m room.MembershipChange) bool {
			return m.Membership == room.MembershipJoin && m.Ord > b.req.since.pos && m.Ord <= ur.Pos
		})
		if !been { // an invitation or a knock that came to nothing, or a ban of one who was out: the client sees that alone
			after, whole = b.req.since.pos, false
			visible = func(e *room.Event) bool {
				k, ok := e.PDU.StateKey()
				return ok && e.PDU.Type() == "m.room.member" && k == string(b.req.user)
			}
		}
	}
	st, err := b.readTimeline(r, after, ur.Pos, visible)
	if err != nil {
		return false, err
	}
	if was == room.MembershipJoin || whole {
		if _, err := b.appendState(ur, st, whole, nil); err != nil {
			return false, err
		}
	} else {
		st.limited = false
		b.emptyStateAfter()
	}
	at, err := b.memberships(ur, st)
	if err != nil {
		return false, err
	}
	if err := b.appendTimeline(st, at); err != nil {
		return false, err
	}
	_, err = b.roomAccountData(r, false)
	return true, err
}

// roomAccountData writes the user's data for a room: what changed, or all of it.
func (b *builder) roomAccountData(r *room.Room, all bool) (bool, error) {
	list := b.accountData[r.NID()]
	if all {
		err := b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
			var err error
			list, err = tx.RoomAccountData(b.req.user, r.NID())
			return err
		})
		if err != nil {
			return false, err
		}
	}
	if len(list) == 0 {
		return false, nil
	}
	mark := len(b.b)
	b.comma()
	b.b = append(b.b, `"account_data":{"events":[`...)
	start := len(b.b)
	b.accountEvents(list, b.req.filter.Room.AccountData, r.ID())
	if len(b.b) == start {
		b.b = b.b[:mark]
		return false, nil
	}
	b.b = append(b.b, ']', '}')
	return true, nil
}
