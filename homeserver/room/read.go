package room

import (
	"context"
	"fmt"
	"sort"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// EventsByNID gives events in the order asked for, from memory where they are there. Numbers without an event are left out.
func (rs *Rooms) EventsByNID(ctx context.Context, nids []int64) ([]*Event, error) {
	out := make([]*Event, len(nids))
	var missing []int64
	for i, n := range nids {
		if e, ok := rs.events.GetIfPresent(n); ok {
			out[i] = e
		} else {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		var rows []*store.Event
		err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			rows, err = tx.EventsByNID(missing)
			return err
		})
		if err != nil {
			return nil, err
		}
		evs, err := rs.parseRows(ctx, rows)
		if err != nil {
			return nil, err
		}
		byNID := indexByNID(evs)
		for i, n := range nids {
			if out[i] == nil {
				out[i] = byNID[n]
			}
		}
	}
	full := out[:0]
	for _, e := range out {
		if e != nil {
			full = append(full, e)
		}
	}
	return full, nil
}

// indexByNID maps events by their numbers.
func indexByNID(evs []*Event) map[int64]*Event {
	m := make(map[int64]*Event, len(evs))
	for _, e := range evs {
		m[e.NID] = e
	}
	return m
}

// parseRows parses stored events of any rooms.
func (rs *Rooms) parseRows(ctx context.Context, rows []*store.Event) ([]*Event, error) {
	versions := map[int64]*event.Version{}
	out := make([]*Event, 0, len(rows))
	for _, row := range rows {
		v := versions[row.Room]
		if v == nil {
			r, err := rs.RoomByNID(ctx, row.Room)
			if err != nil {
				return nil, err
			}
			v = r.Version()
			versions[row.Room] = v
		}
		e, err := rs.parse(v, row)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// EventByID finds an event; nil when this server does not have it. Rejected and soft-failed events are found too:
// their Status tells.
func (rs *Rooms) EventByID(ctx context.Context, eventID id.EventID) (*Event, error) {
	evs, err := rs.EventsByID(ctx, []id.EventID{eventID})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// EventsByID finds events, in no particular order.
func (rs *Rooms) EventsByID(ctx context.Context, ids []id.EventID) ([]*Event, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	list := make([]string, len(ids))
	for i, x := range ids {
		list[i] = string(x)
	}
	var rows []*store.Event
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.EventsByID(list)
		return err
	})
	if err != nil {
		return nil, err
	}
	return rs.parseRows(ctx, rows)
}

// TimelineQuery asks for a stretch of a room's timeline.
type TimelineQuery struct {
	From      int64 // exclusive; store.MaxOrd with Backwards means the end, -store.MaxOrd the beginning
	To        int64 // exclusive bound; 0 means none
	Backwards bool
	Limit     int
	Match     func(e *Event) bool // nil takes every event
}

// TimelinePage is what was found, in the order of reading.
type TimelinePage struct {
	Events []*Event
	End    int64 // ord of the last event that was looked at: the From to go on with
	More   bool  // there is more to read beyond End
}

// scanBound limits how many events one page looks at when a filter lets few through.
const scanBound = 5000

// Timeline reads a stretch of accepted events; the newest come from memory.
func (rs *Rooms) Timeline(ctx context.Context, r *Room, q TimelineQuery) (TimelinePage, error) {
	page := TimelinePage{End: q.From}
	if q.Limit <= 0 {
		return page, nil
	}
	looked := 0
	for {
		evs, more, err := rs.stretch(ctx, r, page.End, q.To, q.Backwards, min(max(q.Limit-len(page.Events), 50), 500))
		if err != nil {
			return page, err
		}
		for i, e := range evs {
			page.End = e.Ord
			looked++
			if q.Match == nil || q.Match(e) {
				page.Events = append(page.Events, e)
				if len(page.Events) == q.Limit {
					page.More = more || i < len(evs)-1
					return page, nil
				}
			}
		}
		if !more {
			return page, nil
		}
		if looked >= scanBound {
			page.More = true
			return page, nil
		}
	}
}

// stretch reads up to limit events after (or before) an ord, and tells whether there are more.
func (rs *Rooms) stretch(ctx context.Context, r *Room, from, to int64, back bool, limit int) ([]*Event, bool, error) {
	if evs, more, ok := r.fromMemory(from, to, back, limit); ok {
		return evs, more, nil
	}
	var rows []*store.Event
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		if back {
			bound := to
			if bound == 0 {
				bound = -store.MaxOrd
			}
			rows, err = tx.TimelineBack(r.nid, from, bound, limit+1)
		} else {
			bound := to
			if bound == 0 {
				bound = store.MaxOrd
			}
			rows, err = tx.TimelineForward(r.nid, from, bound, limit+1)
		}
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("read the timeline of %s: %w", r.id, err)
	}
	more := len(rows) > limit
	if more {
		rows = rows[:limit]
	}
	evs, err := rs.parseRows(ctx, rows)
	return evs, more, err
}

// fromMemory answers from the room's newest events; ok is false where they do not reach.
func (r *Room) fromMemory(from, to int64, back bool, limit int) (evs []*Event, more, ok bool) {
	h, done := r.view()
	tl, whole := h.timeline, h.whole
	done()
	if len(tl) == 0 {
		return nil, false, whole
	}
	if !back {
		// everything after from must be in memory
		if !whole && from < tl[0].Ord {
			return nil, false, false
		}
		i := sort.Search(len(tl), func(i int) bool { return tl[i].Ord > from })
		for ; i < len(tl) && (to == 0 || tl[i].Ord < to); i++ {
			if len(evs) == limit {
				return evs, true, true
			}
			evs = append(evs, tl[i])
		}
		return evs, false, true
	}
	i := sort.Search(len(tl), func(i int) bool { return tl[i].Ord >= from })
	for i--; i >= 0 && (to == 0 || tl[i].Ord > to); i-- {
		if len(evs) == limit {
			return evs, true, true
		}
		evs = append(evs, tl[i])
	}
	reached := i >= 0 // stopped at the bound, not at the edge of memory
	if reached || whole || (to != 0 && to >= tl[0].Ord) {
		return evs, false, true
	}
	if len(evs) == limit {
		return evs, true, true
	}
	return nil, false, false
}

// Newest gives the newest events of the room with ord <= upto, oldest first, at most limit, and whether there are older ones.
func (rs *Rooms) Newest(ctx context.Context, r *Room, upto int64, limit int) ([]*Event, bool, error) {
	page, err := rs.Timeline(ctx, r, TimelineQuery{From: upto + 1, Backwards: true, Limit: limit})
	if err != nil {
		return nil, false, err
	}
	out := make([]*Event, len(page.Events))
	for i, e := range page.Events {
		out[len(out)-1-i] = e
	}
	return out, page.More, nil
}

// StateAt gives the state after the event at ord, as numbers of events.
func (rs *Rooms) StateAt(ctx context.Context, r *Room, ord int64) (map[event.StateKeyTuple]int64, error) {
	if r.unchangedSince(ord) {
		return r.StateNIDs(), nil
	}
	out := map[event.StateKeyTuple]int64{}
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.StateAt(r.nid, ord, func(t, k string, nid int64) { out[event.StateKeyTuple{Type: t, StateKey: k}] = nid })
	})
	return out, err
}

// unchangedSince tells from memory whether no state has changed after ord.
func (r *Room) unchangedSince(ord int64) bool {
	h, done := r.view()
	defer done()
	if h.lastPos <= ord {
		return true
	}
	if len(h.timeline) == 0 || (h.timeline[0].Ord > ord && !h.whole) {
		return false
	}
	for i := len(h.timeline) - 1; i >= 0 && h.timeline[i].Ord > ord; i-- {
		if _, ok := h.timeline[i].PDU.StateKey(); ok {
			return false
		}
	}
	return true
}

// StateAtOne gives one entry of the state after the event at ord, nil when there was none.
func (rs *Rooms) StateAtOne(ctx context.Context, r *Room, ord int64, evType, stateKey string) (*Event, error) {
	if r.unchangedSince(ord) {
		return r.StateEvent(ctx, evType, stateKey)
	}
	var nid int64
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		nid, err = tx.StateAtOne(r.nid, ord, evType, stateKey)
		return err
	})
	if err != nil || nid == 0 {
		return nil, err
	}
	evs, err := rs.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// StateChanges gives what changed in the state with after < ord <= upto; the value is the number at upto, 0 for what a
// resolution removed. Recent stretches come from memory.
func (rs *Rooms) StateChanges(ctx context.Context, r *Room, after, upto int64) (map[event.StateKeyTuple]int64, error) {
	out := map[event.StateKeyTuple]int64{}
	if after >= upto {
		return out, nil
	}
	h, done := r.view()
	tl, whole := h.timeline, h.whole
	done()
	if whole || (len(tl) > 0 && tl[0].Ord <= after) {
		for i := sort.Search(len(tl), func(i int) bool { return tl[i].Ord > after }); i < len(tl) && tl[i].Ord <= upto; i++ {
			if t, ok := stateTuple(tl[i].PDU); ok {
				out[t] = tl[i].NID
			}
		}
		return out, nil
	}
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.StateChanges(r.nid, after, upto, func(t, k string, nid int64) { out[event.StateKeyTuple{Type: t, StateKey: k}] = nid })
	})
	return out, err
}

// PrevState gives the event that stood at a state event's place before it, nil when there was none.
func (rs *Rooms) PrevState(ctx context.Context, r *Room, e *Event) (*Event, error) {
	t, ok := stateTuple(e.PDU)
	if !ok {
		return nil, nil
	}
	var nid int64
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		nid, err = tx.StateAtOne(r.nid, e.Ord-1, t.Type, t.StateKey)
		return err
	})
	if err != nil || nid == 0 {
		return nil, err
	}
	evs, err := rs.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// MembershipChange is a membership that a user had from an ord on.
type MembershipChange struct {
	Ord        int64
	Membership Membership
	NID        int64
}

// MembershipHistory gives all memberships that a user has had in a room, oldest first.
func (rs *Rooms) MembershipHistory(ctx context.Context, r *Room, user id.UserID) ([]MembershipChange, error) {
	var out []MembershipChange
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.StateHistory(r.nid, "m.room.member", string(user), func(ord, nid int64) {
			out = append(out, MembershipChange{Ord: ord, NID: nid})
		})
	})
	if err != nil {
		return nil, err
	}
	nids := make([]int64, 0, len(out))
	for _, c := range out {
		if c.NID != 0 {
			nids = append(nids, c.NID)
		}
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	byNID := indexByNID(evs)
	for i := range out {
		if e := byNID[out[i].NID]; e != nil {
			out[i].Membership = ParseMembership(e.PDU.Membership())
		}
	}
	return out, nil
}

// Visibility decides which events of a room a user may see, by the history visibility and the user's membership at the
// time of each event. Spec: client-server API, "Room History Visibility".
type Visibility struct {
	all         bool // nothing to decide: every event is visible
	memberships []MembershipChange
	rules       []visibilityRule
	everJoined  bool
	lastJoin    int64 // ord of the last join, for "shared"
	leftAt      int64 // the ord at which the user was last in the room and then left; 0 while joined
}

type visibilityRule struct {
	ord  int64
	rule string
}

// Visibility gives the user's view of the room.
func (rs *Rooms) Visibility(ctx context.Context, r *Room, user id.UserID) (*Visibility, error) {
	now := r.Membership(user)
	rule := r.HistoryVisibility()
	if rule == "world_readable" || (rule == "shared" && now == MembershipJoin) {
		one, err := rs.singleVisibility(ctx, r)
		if err != nil {
			return nil, err
		}
		if one {
			return &Visibility{all: true}, nil
		}
	}
	v := &Visibility{}
	var err error
	if v.memberships, err = rs.MembershipHistory(ctx, r, user); err != nil {
		return nil, err
	}
	var nids []int64
	err = rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.StateHistory(r.nid, "m.room.history_visibility", "", func(ord, nid int64) {
			v.rules = append(v.rules, visibilityRule{ord: ord})
			nids = append(nids, nid)
		})
	})
	if err != nil {
		return nil, err
	}
	evs, err := rs.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	byNID := indexByNID(evs)
	for i, n := range nids {
		v.rules[i].rule = "shared"
		if e := byNID[n]; e != nil {
			v.rules[i].rule = visibilityValue(e.PDU)
		}
	}
	for _, m := range v.memberships {
		if m.Membership == MembershipJoin {
			v.everJoined = true
			v.lastJoin = m.Ord
			v.leftAt = 0
		} else if v.everJoined && v.leftAt == 0 && (m.Membership == MembershipLeave || m.Membership == MembershipBan) {
			v.leftAt = m.Ord
		}
	}
	return v, nil
}

func visibilityValue(p *event.Event) string {
	switch s := gjson.GetBytes(p.Content(), "history_visibility").Str; s {
	case "invited", "joined", "world_readable":
		return s
	}
	return "shared"
}

// singleVisibility tells whether the room has had one visibility setting at most, so that the current one holds for all
// of its history.
func (rs *Rooms) singleVisibility(ctx context.Context, r *Room) (bool, error) {
	h, done := r.view()
	known := h.oneVisibility
	done()
	if known != 0 {
		return known == 1, nil
	}
	n := 0
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.StateHistory(r.nid, "m.room.history_visibility", "", func(int64, int64) { n++ })
	})
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	if r.hot != nil && r.hot.oneVisibility == 0 {
		r.hot.oneVisibility = 2
		if n <= 1 {
			r.hot.oneVisibility = 1
		}
	}
	r.mu.Unlock()
	return n <= 1, nil
}

// All tells whether every event of the room is visible.
func (v *Visibility) All() bool { return v.all }

// Allows tells whether the event at ord is visible.
func (v *Visibility) Allows(ord int64) bool {
	if v.all {
		return true
	}
	rule := "shared"
	for _, x := range v.rules {
		if x.ord > ord {
			break
		}
		rule = x.rule
	}
	at := MembershipNone
	for _, m := range v.memberships {
		if m.Ord > ord {
			break
		}
		at = m.Membership
	}
	for i := range v.memberships {
		if v.memberships[i].Ord == ord {
			return true // a user always sees what happened to the own membership
		}
	}
	// the event that changes the setting is judged by the more open of before and after
	beforeRule := rule
	for i := range v.rules {
		if v.rules[i].ord == ord {
			beforeRule = "shared"
			if i > 0 {
				beforeRule = v.rules[i-1].rule
			}
		}
	}
	return v.allowed(rule, at, ord) || v.allowed(beforeRule, at, ord)
}

func (v *Visibility) allowed(rule string, at Membership, ord int64) bool {
	switch {
	case rule == "world_readable", at == MembershipJoin:
		return true
	case rule == "shared":
		// visible to whoever joined at any point after the event was sent
		return v.everJoined && v.lastJoin > ord
	case rule == "invited":
		return at == MembershipInvite && v.everJoined && v.lastJoin > ord
	}
	return false
}

// Recent finds an event among the room's newest, which are in memory; nil where it is older or not there.
func (r *Room) Recent(eventID id.EventID) *Event {
	h, done := r.view()
	tl := h.timeline
	done()
	for i := len(tl) - 1; i >= 0; i-- {
		if tl[i].ID() == eventID {
			return tl[i]
		}
	}
	return nil
}
