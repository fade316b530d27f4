package room

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	timelineLoad = 20 // events that come with a room when it is loaded
	timelineKeep = 50 // events that a room keeps in memory
	loadTimeout  = 20 * time.Second
)

// extremity is a forward extremity: an event that no other follows yet.
type extremity struct {
	id    id.EventID
	depth int64
}

// member is what a room keeps of each user who ever had a membership.
type member struct {
	nid        int64 // of the member event
	membership Membership
}

// hot is what is in memory of an active room.
type hot struct {
	version       *event.Version
	creator       id.UserID
	created       int64
	stateVersion  int64
	lastPos       int64
	depth         int64
	ext           []extremity
	state         map[event.StateKeyTuple]int64 // everything but members
	members       map[*User]member
	joined        int
	invited       int
	core          map[event.StateKeyTuple]*Event // bodies of the state that most requests need
	timeline      []*Event                       // the newest accepted events, without gaps, oldest first
	blocked       bool                           // nobody may enter
	whole         bool                           // timeline begins with the room's first event
	oneVisibility int8                           // 1: the visibility was set once at most; 2: more often; 0: not looked up
}

// isCore tells which state events' bodies stay in memory with the room.
func isCore(evType string) bool {
	switch evType {
	case "m.room.create", "m.room.power_levels", "m.room.join_rules", "m.room.history_visibility", "m.room.name",
		"m.room.canonical_alias", "m.room.encryption", "m.room.avatar", "m.room.topic", "m.room.guest_access":
		return true
	}
	return false
}

// packExtremities writes extremities for the rooms table.
func packExtremities(ext []extremity) []byte {
	var b []byte
	for _, e := range ext {
		b = binary.AppendUvarint(b, uint64(len(e.id)))
		b = append(b, e.id...)
		b = binary.AppendVarint(b, e.depth)
	}
	return b
}

func unpackExtremities(b []byte) ([]extremity, error) {
	var out []extremity
	for len(b) > 0 {
		n, k := binary.Uvarint(b)
		if k <= 0 || uint64(len(b)-k) < n {
			return nil, errors.New("stored extremities are damaged")
		}
		e := extremity{id: id.EventID(b[k : k+int(n)])}
		b = b[k+int(n):]
		if e.depth, k = binary.Varint(b); k <= 0 {
			return nil, errors.New("stored extremities are damaged")
		}
		b = b[k:]
		out = append(out, e)
	}
	return out, nil
}

// ensure loads the room if it is not in memory. Concurrent callers share one load.
func (r *Room) ensure(ctx context.Context) error {
	r.used.Store(time.Now().Unix())
	for {
		r.mu.RLock()
		ready, wait := r.hot != nil, r.loading
		r.mu.RUnlock()
		if ready {
			return nil
		}
		if wait == nil {
			r.mu.Lock()
			if r.hot == nil && r.loading == nil {
				r.loading = make(chan struct{})
				r.mu.Unlock()
				return r.load(ctx)
			}
			r.mu.Unlock()
			continue
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// load reads the room in one snapshot. Events that are announced meanwhile wait in the backlog.
func (r *Room) load(ctx context.Context) error {
	// others wait for this load too: one impatient client must not spoil it
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	var h *hot
	err := r.rs.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		h, err = r.rs.readHot(tx, r.nid)
		return err
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.loading)
	r.loading = nil
	if err != nil {
		r.backlog = nil
		return fmt.Errorf("load room %s: %w", r.id, err)
	}
	r.hot = h
	if h.lastPos > r.lastPos.Load() {
		r.lastPos.Store(h.lastPos)
	}
	for _, e := range r.backlog {
		r.rs.advance(h, e)
	}
	r.backlog = nil
	return nil
}

// readHot reads a room as the transaction sees it.
func (rs *Rooms) readHot(tx *store.Tx, nid int64) (*hot, error) {
	rows, err := tx.RoomsByNID([]int64{nid})
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, mxerr.NotFound("this server has no such room")
	}
	row := rows[0]
	v, ok := event.LookupVersion(row.Version)
	if !ok {
		return nil, fmt.Errorf("room %s has the version %q, which this program does not know", row.RoomID, row.Version)
	}
	h := &hot{
		version: v, creator: id.UserID(row.Creator), created: row.Created, stateVersion: row.StateVersion, lastPos: row.LastPos, depth: row.Depth, blocked: row.Blocked,
		state: make(map[event.StateKeyTuple]int64), members: make(map[*User]member), core: make(map[event.StateKeyTuple]*Event),
	}
	if h.ext, err = unpackExtremities(row.Extremities); err != nil {
		return nil, err
	}
	var coreNIDs []int64
	err = tx.CurrentState(nid, func(evType, stateKey string, n int64) {
		h.state[event.StateKeyTuple{Type: evType, StateKey: stateKey}] = n
		if isCore(evType) && stateKey == "" {
			coreNIDs = append(coreNIDs, n)
		}
	})
	if err != nil {
		return nil, err
	}
	core, err := tx.EventsByNID(coreNIDs)
	if err != nil {
		return nil, err
	}
	for _, c := range core {
		e, err := rs.parse(v, c)
		if err != nil {
			return nil, err
		}
		h.core[e.PDU.Tuple()] = e
	}
	err = tx.RoomMembers(nid, func(user string, m, n int64) {
		h.setMember(rs.intern(id.UserID(user)), member{nid: n, membership: Membership(m)})
	})
	if err != nil {
		return nil, err
	}
	tail, err := tx.TimelineBack(nid, store.MaxOrd, -store.MaxOrd, timelineLoad)
	if err != nil {
		return nil, err
	}
	h.whole = len(tail) < timelineLoad
	for i := len(tail) - 1; i >= 0; i-- {
		e, err := rs.parse(v, tail[i])
		if err != nil {
			return nil, err
		}
		h.timeline = append(h.timeline, e)
	}
	return h, nil
}

// parse gives the cached event of a row, or parses and caches it.
func (rs *Rooms) parse(v *event.Version, row *store.Event) (*Event, error) {
	if e, ok := rs.events.GetIfPresent(row.NID); ok && e.RedactedBy == row.RedactedBy {
		return e, nil
	}
	e, err := fromRow(v, row)
	if err != nil {
		return nil, fmt.Errorf("stored event %s: %w", row.EventID, err)
	}
	rs.events.Set(row.NID, e)
	return e, nil
}

// setMember writes a membership and keeps the counts.
func (h *hot) setMember(u *User, m member) {
	old := h.members[u]
	switch old.membership {
	case MembershipJoin:
		h.joined--
	case MembershipInvite:
		h.invited--
	}
	switch m.membership {
	case MembershipJoin:
		h.joined++
	case MembershipInvite:
		h.invited++
	}
	h.members[u] = m
}

// follow moves the extremities past an event.
func follow(ext []extremity, e *event.Event) []extremity {
	out := make([]extremity, 0, len(ext)+1)
	prev := e.PrevEvents()
next:
	for _, x := range ext {
		for _, p := range prev {
			if p == x.id {
				continue next
			}
		}
		out = append(out, x)
	}
	return append(out, extremity{e.ID(), e.Depth()})
}

// advance applies an accepted event to the room in memory.
func (rs *Rooms) advance(h *hot, e *Event) {
	if e.Pos <= h.lastPos {
		return
	}
	h.lastPos = e.Pos
	h.depth = max(h.depth, e.PDU.Depth())
	h.ext = follow(h.ext, e.PDU)
	if stateKey, ok := e.PDU.StateKey(); ok {
		h.stateVersion++
		t := event.StateKeyTuple{Type: e.PDU.Type(), StateKey: stateKey}
		if t.Type == "m.room.member" {
			h.setMember(rs.intern(id.UserID(stateKey)), member{nid: e.NID, membership: ParseMembership(e.PDU.Membership())})
		} else {
			h.state[t] = e.NID
			if stateKey == "" && isCore(t.Type) {
				h.core[t] = e
			}
			if t.Type == "m.room.history_visibility" {
				h.oneVisibility = 0
			}
		}
	}
	h.timeline = append(h.timeline, e)
	if len(h.timeline) > timelineKeep+timelineKeep/2 {
		h.timeline = append(make([]*Event, 0, 2*timelineKeep), h.timeline[len(h.timeline)-timelineKeep:]...)
		h.whole = false
	}
}

// replace puts the redacted form of an event where the event was.
func (h *hot) replace(e *Event) {
	for i := len(h.timeline) - 1; i >= 0; i-- {
		if h.timeline[i].NID == e.NID {
			// readers may hold the old slice: it is not written to
			h.timeline = append([]*Event(nil), h.timeline...)
			h.timeline[i] = e
			break
		}
	}
	if _, ok := e.PDU.StateKey(); ok {
		if c := h.core[e.PDU.Tuple()]; c != nil && c.NID == e.NID {
			h.core[e.PDU.Tuple()] = e
		}
	}
}

// view gives the room's memory under the read lock; done must be called. A room that was dropped meanwhile is loaded again.
func (r *Room) view() (h *hot, done func()) {
	for range 3 {
		r.mu.RLock()
		if r.hot != nil {
			return r.hot, r.mu.RUnlock
		}
		r.mu.RUnlock()
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		err := r.ensure(ctx)
		cancel()
		if mxerr.Is(err, "M_NOT_FOUND") {
			break // it was deleted while somebody held it
		}
		if err != nil {
			r.rs.d.Logger.Error("load a room again", "room_id", r.id, "error", err)
		}
	}
	// the room is gone or the database is away: nobody is a member of a room that cannot be read, so that everything is refused
	v, _ := event.LookupVersion(event.DefaultVersion)
	return &hot{version: v}, func() {}
}

// Version is the room version.
func (r *Room) Version() *event.Version {
	h, done := r.view()
	defer done()
	return h.version
}

// Creator is the sender of m.room.create.
func (r *Room) Creator() id.UserID {
	h, done := r.view()
	defer done()
	return h.creator
}

// Created is when the room was made, in milliseconds since 1970.
func (r *Room) Created() int64 {
	h, done := r.view()
	defer done()
	return h.created
}

// Membership is the current membership of a user.
func (r *Room) Membership(u id.UserID) Membership {
	usr := r.rs.known(u)
	if usr == nil {
		// the room's members are interned when it is loaded: one that is not known is none
		if err := r.ensure(context.Background()); err != nil {
			return MembershipNone
		}
		if usr = r.rs.known(u); usr == nil {
			return MembershipNone
		}
	}
	h, done := r.view()
	defer done()
	return h.members[usr].membership
}

// MembersBy lists the users of one membership, in no particular order.
func (r *Room) MembersBy(m Membership) []id.UserID {
	h, done := r.view()
	defer done()
	var out []id.UserID
	for u, x := range h.members {
		if x.membership == m {
			out = append(out, u.ID)
		}
	}
	return out
}

// Joined lists the joined users, in no particular order.
func (r *Room) Joined() []id.UserID { return r.MembersBy(MembershipJoin) }

// Invited lists the invited users, in no particular order.
func (r *Room) Invited() []id.UserID { return r.MembersBy(MembershipInvite) }

// JoinedCount is the number of joined users.
func (r *Room) JoinedCount() int {
	h, done := r.view()
	defer done()
	return h.joined
}

// InvitedCount is the number of invited users.
func (r *Room) InvitedCount() int {
	h, done := r.view()
	defer done()
	return h.invited
}

// StateNIDs copies the current state, members included, as numbers of events.
func (r *Room) StateNIDs() map[event.StateKeyTuple]int64 {
	h, done := r.view()
	defer done()
	out := make(map[event.StateKeyTuple]int64, len(h.state)+len(h.members))
	for t, n := range h.state {
		out[t] = n
	}
	for u, m := range h.members {
		out[event.StateKeyTuple{Type: "m.room.member", StateKey: string(u.ID)}] = m.nid
	}
	return out
}

// EachState calls fn for the entries of the current state, those of members left out, while the room is locked: fn is
// quick and calls nothing of the room.
func (r *Room) EachState(fn func(t event.StateKeyTuple, nid int64)) {
	h, done := r.view()
	defer done()
	for t, n := range h.state {
		fn(t, n)
	}
}

// stateNID gives the number and, where it is in memory, the body of a current state event.
func (h *hot) stateNID(rs *Rooms, t event.StateKeyTuple) (int64, *Event) {
	if e := h.core[t]; e != nil {
		return e.NID, e
	}
	if t.Type == "m.room.member" {
		u := rs.known(id.UserID(t.StateKey))
		if u == nil {
			return 0, nil
		}
		return h.members[u].nid, nil
	}
	return h.state[t], nil
}

// StateEvent gives a current state event, nil when there is none.
func (r *Room) StateEvent(ctx context.Context, evType, stateKey string) (*Event, error) {
	h, done := r.view()
	nid, e := h.stateNID(r.rs, event.StateKeyTuple{Type: evType, StateKey: stateKey})
	done()
	if e != nil || nid == 0 {
		return e, nil
	}
	evs, err := r.rs.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

// MemberEvent gives the current m.room.member event of a user, nil when there is none.
func (r *Room) MemberEvent(ctx context.Context, u id.UserID) (*Event, error) {
	return r.StateEvent(ctx, "m.room.member", string(u))
}

// State gives the whole current state.
func (r *Room) State(ctx context.Context) ([]*Event, error) {
	h, done := r.view()
	nids := make([]int64, 0, len(h.state)+len(h.members))
	for _, n := range h.state {
		nids = append(nids, n)
	}
	for _, m := range h.members {
		nids = append(nids, m.nid)
	}
	done()
	return r.rs.EventsByNID(ctx, nids)
}

// AuthState gives the authorisation rules the current state. Bodies that are not in memory are read on demand; where
// the database fails they count as absent, and authorisation denies.
func (r *Room) AuthState(ctx context.Context) event.State { return liveState{ctx, r} }

type liveState struct {
	ctx context.Context
	r   *Room
}

func (s liveState) Get(evType, stateKey string) *event.Event {
	e, err := s.r.StateEvent(s.ctx, evType, stateKey)
	if err != nil || e == nil {
		return nil
	}
	return e.PDU
}

// PowerLevels are the levels that hold now.
func (r *Room) PowerLevels() *event.PowerLevels {
	h, done := r.view()
	defer done()
	return event.PowerLevelsOf(coreState(h.core))
}

type coreState map[event.StateKeyTuple]*Event

func (s coreState) Get(evType, stateKey string) *event.Event {
	if e := s[event.StateKeyTuple{Type: evType, StateKey: stateKey}]; e != nil {
		return e.PDU
	}
	return nil
}

// coreField reads a string of a core state event's content, "" where there is none.
func (r *Room) coreField(evType, field string) string {
	h, done := r.view()
	e := h.core[event.StateKeyTuple{Type: evType}]
	done()
	if e == nil {
		return ""
	}
	v := gjson.GetBytes(e.PDU.Content(), field)
	if v.Type != gjson.String {
		return ""
	}
	return v.Str
}

// HistoryVisibility is the current history visibility; "shared" where the room does not say.
func (r *Room) HistoryVisibility() string {
	switch v := r.coreField("m.room.history_visibility", "history_visibility"); v {
	case "invited", "joined", "world_readable":
		return v
	}
	return "shared"
}

// JoinRule is the current join rule; "invite" where the room does not say.
func (r *Room) JoinRule() string {
	if v := r.coreField("m.room.join_rules", "join_rule"); v != "" {
		return v
	}
	return "invite"
}

// Encrypted tells whether the room has an encryption algorithm.
func (r *Room) Encrypted() bool { return r.coreField("m.room.encryption", "algorithm") != "" }

// Name is the room's name, "" where it has none.
func (r *Room) Name() string { return r.coreField("m.room.name", "name") }

// Topic is the room's topic, "" where it has none.
func (r *Room) Topic() string { return r.coreField("m.room.topic", "topic") }

// AvatarURL is the room's avatar, "" where it has none.
func (r *Room) AvatarURL() string { return r.coreField("m.room.avatar", "url") }

// CanonicalAlias is the room's main alias, "" where it has none.
func (r *Room) CanonicalAlias() string { return r.coreField("m.room.canonical_alias", "alias") }

// Type is the room type of m.room.create, "" for an ordinary room.
func (r *Room) Type() string { return r.coreField("m.room.create", "type") }

// GuestsMayJoin tells whether the room is open to guests.
func (r *Room) GuestsMayJoin() bool {
	return r.coreField("m.room.guest_access", "guest_access") == "can_join"
}
