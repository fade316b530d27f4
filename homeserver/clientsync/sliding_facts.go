package clientsync

import (
	"context"
	"sync"

	"github.com/maypok86/otter/v2"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// facts caches what lists choose rooms by, so that a list over thousands of rooms does not load them.
type facts struct {
	s *Sync

	mu     sync.RWMutex
	rooms  map[int64]*roomFact
	bumps  map[int64]int64 // by room: the last event that bumps it
	serial int64           // counts what was forgotten; what was read before is not kept

	users *otter.Cache[id.UserID, *userFacts]
	left  *otter.Cache[int64, leftKind] // by the number of the member event
}

// roomFact is what lists choose a room by.
type roomFact struct {
	roomType  string
	encrypted bool
	name      string
}

// userFacts is what a user says of rooms. It is shared: nothing in it is changed.
type userFacts struct {
	direct map[id.RoomID]struct{}
	tags   map[int64][]string
}

// leftKind says how a user came to be out of a room.
type leftKind int8

const (
	leftSelf  leftKind = 1 // by leaving
	leftOther leftKind = 2 // by another, after having been in the room
	leftNever leftKind = 3 // by another, without ever having been in it
)

const roomFactsMost = 500_000

func newFacts(s *Sync) *facts {
	return &facts{
		s: s, rooms: make(map[int64]*roomFact), bumps: make(map[int64]int64),
		users: otter.Must(&otter.Options[id.UserID, *userFacts]{MaximumSize: 20_000}),
		left:  otter.Must(&otter.Options[int64, leftKind]{MaximumSize: 500_000}),
	}
}

// isBump tells which events move a room up in the lists of clients.
// Spec: MSC4186, "RoomResult": bump_stamp; the unstable names are those that clients still send.
func isBump(evType string) bool {
	switch evType {
	case "m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start", "m.beacon_info",
		"org.matrix.msc3381.poll.start", "org.matrix.msc3672.beacon_info":
		return true
	}
	return false
}

// apply follows the log.
func (f *facts) apply(entries []store.Entry) {
	for i := range entries {
		switch e := &entries[i]; e.Kind {
		case store.KindReset:
			f.reset()
		case store.KindAccountData:
			if e.Key == "m.direct" || e.Key == "m.tag" {
				f.mu.Lock()
				f.serial++
				f.mu.Unlock()
				f.users.Invalidate(id.UserID(e.User))
			}
		case store.KindEvent:
			if ev, ok := room.EventOf(e); ok {
				f.applyEvent(e.Room, ev)
			}
		}
	}
}

func (f *facts) applyEvent(nid int64, ev *room.Event) {
	switch t := ev.PDU.Type(); {
	case isBump(t):
		f.mu.Lock()
		if at, ok := f.bumps[nid]; ok {
			f.bumps[nid] = max(at, ev.Pos)
		}
		f.mu.Unlock()
	case t == "m.room.encryption" || t == "m.room.name" || t == "m.room.redaction":
		f.mu.Lock()
		if t != "m.room.redaction" || f.rooms[nid] != nil {
			delete(f.rooms, nid)
		}
		f.serial++
		f.mu.Unlock()
	}
}

func (f *facts) reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.rooms)
	clear(f.bumps)
	f.serial++
	f.users.InvalidateAll()
}

// of gives the facts of candidates' rooms.
func (f *facts) of(ctx context.Context, list []slidingRoom) error {
	missing := f.present(list)
	for try := 0; len(missing) > 0; try++ {
		f.mu.RLock()
		serial := f.serial
		f.mu.RUnlock()
		found := make(map[int64]*roomFact, len(missing))
		err := f.s.d.Store.Read(ctx, func(tx *store.Tx) error {
			clear(found)
			return tx.RoomFacts(missing, func(nid int64, evType string, body store.Content) {
				x := found[nid]
				if x == nil {
					x = &roomFact{}
					found[nid] = x
				}
				x.note(evType, gjson.GetBytes(body, "content"))
			})
		})
		if err != nil {
			return err
		}
		f.mu.Lock()
		fresh := serial == f.serial
		if len(f.rooms) > roomFactsMost {
			clear(f.rooms)
		}
		for _, nid := range missing {
			if found[nid] == nil {
				found[nid] = &roomFact{}
			}
			if fresh {
				f.rooms[nid] = found[nid]
			}
		}
		f.mu.Unlock()
		if fresh || try == 2 { // a very busy server: good enough for one response, not for the cache
			for i := range list {
				if list[i].fact == nil {
					list[i].fact = found[list[i].ur.Room.NID()]
				}
			}
			return nil
		}
	}
	return nil
}

// types gives the types of candidates' rooms, which are known of most without a look into them.
func (f *facts) types(ctx context.Context, list []slidingRoom) error {
	var unknown []slidingRoom
	var at []int
	for i := range list {
		t, ok := list[i].ur.Room.KnownType()
		if !ok {
			unknown, at = append(unknown, list[i]), append(at, i)
		}
		list[i].made = t
	}
	if len(unknown) == 0 {
		return nil
	}
	if err := f.of(ctx, unknown); err != nil {
		return err
	}
	found := make(map[*room.Room]string, len(unknown))
	for n, i := range at {
		list[i].made = unknown[n].fact.roomType
		found[list[i].ur.Room] = list[i].made
	}
	if err := f.s.d.Rooms.NoteTypes(ctx, found); err != nil {
		f.s.d.Logger.Warn("types of rooms were not noted; they will be looked for again", "rooms", len(found), "error", err)
	}
	return nil
}

func (x *roomFact) note(evType string, content gjson.Result) {
	text := func(name string) string {
		if v := content.Get(name); v.Type == gjson.String {
			return v.Str
		}
		return ""
	}
	switch evType {
	case "m.room.create":
		x.roomType = text("type")
	case "m.room.encryption":
		x.encrypted = text("algorithm") != ""
	case "m.room.name":
		x.name = text("name")
	}
}

func (f *facts) present(list []slidingRoom) (missing []int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for i := range list {
		nid := list[i].ur.Room.NID()
		if list[i].fact = f.rooms[nid]; list[i].fact == nil {
			missing = append(missing, nid)
		}
	}
	return missing
}

// user gives what a user says of rooms.
func (f *facts) user(ctx context.Context, user id.UserID) (*userFacts, error) {
	if u, ok := f.users.GetIfPresent(user); ok {
		return u, nil
	}
	f.mu.RLock()
	serial := f.serial
	f.mu.RUnlock()
	var direct store.Content
	var tags []store.AccountData
	err := f.s.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if direct, err = tx.AccountData(user, 0, "m.direct"); err != nil {
			return err
		}
		tags, err = tx.RoomTags(user)
		return err
	})
	if err != nil {
		return nil, err
	}
	u := &userFacts{direct: make(map[id.RoomID]struct{}), tags: make(map[int64][]string, len(tags))}
	// clients write m.direct unchecked: what has another shape says nothing
	gjson.ParseBytes(direct).ForEach(func(_, rooms gjson.Result) bool {
		if rooms.IsArray() {
			rooms.ForEach(func(_, r gjson.Result) bool {
				if r.Type == gjson.String {
					u.direct[id.RoomID(r.Str)] = struct{}{}
				}
				return true
			})
		}
		return true
	})
	for i := range tags {
		if list := gjson.GetBytes(tags[i].Body, "tags"); list.IsObject() {
			list.ForEach(func(tag, _ gjson.Result) bool {
				u.tags[tags[i].Room] = append(u.tags[tags[i].Room], tag.String())
				return true
			})
		}
	}
	f.mu.RLock()
	if serial == f.serial {
		f.users.Set(user, u)
	}
	f.mu.RUnlock()
	return u, nil
}

// bump is the position of the last event up to a place that bumps the room; 0 where there is none.
func (f *facts) bump(ctx context.Context, r *room.Room, upto int64) (int64, error) {
	nid := r.NID()
	f.mu.RLock()
	at, ok := f.bumps[nid]
	f.mu.RUnlock()
	if ok && at <= upto {
		return at, nil
	}
	before := r.LastPos()
	page, err := f.s.d.Rooms.Timeline(ctx, r, room.TimelineQuery{
		From: upto + 1, Backwards: true, Limit: 1, Match: func(e *room.Event) bool { return isBump(e.PDU.Type()) },
	})
	if err != nil {
		return 0, err
	}
	at = 0
	if len(page.Events) > 0 {
		at = page.Events[0].Pos
	}
	if before <= upto {
		f.mu.Lock()
		if r.LastPos() == before { // else an event may have passed by unseen
			if len(f.bumps) > roomFactsMost {
				clear(f.bumps)
			}
			f.bumps[nid] = at
		}
		f.mu.Unlock()
	}
	return at, nil
}

// howLeft finds out how a user came to be out of rooms.
func (f *facts) howLeft(ctx context.Context, user id.UserID, list []*room.UserRoom) error {
	var nids []int64
	rooms := make(map[int64]*room.UserRoom)
	for _, ur := range list {
		if _, ok := f.left.GetIfPresent(ur.MemberNID); !ok {
			nids = append(nids, ur.MemberNID)
			rooms[ur.MemberNID] = ur
		}
	}
	if len(nids) == 0 {
		return nil
	}
	events, err := f.s.d.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	for _, e := range events {
		kind := leftSelf
		if e.PDU.Sender() != user {
			been, err := f.everJoined(ctx, rooms[e.NID].Room, user)
			if err != nil {
				return err
			}
			kind = leftNever
			if been {
				kind = leftOther
			}
		}
		f.left.Set(e.NID, kind)
	}
	return nil
}

func (f *facts) everJoined(ctx context.Context, r *room.Room, user id.UserID) (bool, error) {
	history, err := f.s.d.Rooms.MembershipHistory(ctx, r, user)
	for _, m := range history {
		if m.Membership == room.MembershipJoin {
			return true, err
		}
	}
	return false, err
}

// children gives the rooms that spaces name as theirs, of those spaces that the user is in.
// Spec: MSC4186, "SlidingRoomFilter": spaces.
func (f *facts) children(ctx context.Context, spaces []*room.Room) (map[id.RoomID]struct{}, error) {
	out := make(map[id.RoomID]struct{})
	for _, r := range spaces {
		var nids []int64
		r.EachState(func(t event.StateKeyTuple, nid int64) {
			if t.Type == "m.space.child" {
				nids = append(nids, nid)
			}
		})
		events, err := f.s.d.Rooms.EventsByNID(ctx, nids)
		if err != nil {
			return nil, err
		}
		for _, e := range events {
			// without via a child is none any more; spec: client-server API, "Managing rooms within spaces"
			if via := gjson.GetBytes(e.PDU.Content(), "via"); via.IsArray() && len(via.Array()) > 0 {
				k, _ := e.PDU.StateKey()
				out[id.RoomID(k)] = struct{}{}
			}
		}
	}
	return out, nil
}
