package appservices

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// following decides who hears of what. It goes through the log in order and knows who is where at that place of the log.
type following struct {
	s *Services

	mu    sync.Mutex
	set   *set
	to    []*Service // those of the set that want traffic
	pos   []int64    // the entries up to which each of them has in its transactions
	last  int64      // position of the last entry
	rooms map[int64]*roomInterest
}

func newFollowing(s *Services) *following { return &following{s: s} }

// keptRooms bounds what is remembered of rooms.
const keptRooms = 20_000

// prepare makes sure that what is remembered is of the present registrations and of the place before pos.
func (f *following) prepare(ctx context.Context, pos int64) error {
	set := f.s.current()
	if f.set == set && f.rooms != nil && pos == f.last+1 {
		return nil
	}
	f.set, f.rooms, f.to, f.pos = set, nil, nil, nil
	var states map[string]store.ServiceState
	err := f.s.Store.Write(ctx, func(tx *store.Tx) (err error) {
		if err = tx.AddServices(set.receivers()); err == nil {
			states, err = tx.ServiceStates()
		}
		return err
	})
	if err != nil {
		return err
	}
	f.rooms = map[int64]*roomInterest{}
	for _, x := range set.all {
		if x.url != "" {
			f.to = append(f.to, x)
			f.pos = append(f.pos, states[x.ID].Pos)
		}
	}
	return nil
}

// entries takes a part of the log; it may get the same entries again.
func (f *following) entries(ctx context.Context, entries []store.Entry) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.prepare(ctx, entries[0].Pos); err != nil {
		return err
	}
	last := entries[len(entries)-1].Pos
	if len(f.to) == 0 {
		f.last = last
		return nil
	}
	err := f.take(ctx, entries)
	if f.last = last; err != nil {
		f.rooms = nil // it is ahead of what is to come again
	}
	return err
}

func (f *following) take(ctx context.Context, entries []store.Entry) error {
	b := f.newBuilder()
	events, err := f.eventsOf(ctx, entries)
	if err != nil {
		return err
	}
	receipts, err := f.receiptsOf(ctx, entries)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		b.at = e.Pos
		var err error
		switch e.Kind {
		case store.KindEvent:
			if ev := events[e.Ref]; ev != nil && ev.Status == store.StatusAccepted {
				err = f.event(ctx, b, e, ev)
			}
		case store.KindReceipt:
			err = f.receipts(ctx, b, e, receipts[e.Pos])
		case store.KindToDevice:
			err = f.toDevice(ctx, b, e)
		case store.KindDeviceList:
			err = f.deviceList(ctx, b, e.Pos, id.UserID(e.User))
		case store.KindKeys:
			err = f.keys(ctx, b, e)
		case store.KindRoomMeta:
			delete(f.rooms, e.Room) // an alias more or less
		}
		if err != nil && !isGone(err) {
			return fmt.Errorf("entry %d of the log: %w", e.Pos, err)
		}
	}
	return f.queue(ctx, b, entries[len(entries)-1].Pos)
}

// isGone tells whether an error says that a room or a device does not exist (any more).
func isGone(err error) bool {
	e := mxerr.As(err)
	return e != nil && e.Status == http.StatusNotFound
}

func (f *following) eventsOf(ctx context.Context, entries []store.Entry) (map[int64]*room.Event, error) {
	var nids []int64
	for i := range entries {
		if entries[i].Kind == store.KindEvent {
			nids = append(nids, entries[i].Ref)
		}
	}
	if len(nids) == 0 {
		return nil, nil
	}
	found, err := f.s.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	out := make(map[int64]*room.Event, len(found))
	for _, e := range found {
		if e != nil {
			out[e.NID] = e
		}
	}
	return out, nil
}

// event gives a room's event to the services that it concerns.
// Spec: application service API, "Registration": what a service is interested in.
func (f *following) event(ctx context.Context, b *builder, e *store.Entry, ev *room.Event) error {
	rm, err := f.s.Rooms.RoomByNID(ctx, e.Room)
	if err != nil {
		return err
	}
	ri, err := f.room(ctx, rm, e.Pos)
	if err != nil {
		return err
	}
	sender := ev.PDU.Sender()
	key, isState := ev.PDU.StateKey()
	member := isState && ev.PDU.Type() == "m.room.member"
	for i, x := range f.to {
		if ri.wants(i) || x.Covers(sender) || member && x.Covers(id.UserID(key)) {
			b.of[i].event(ev)
		}
	}
	if member {
		return f.member(ctx, b, e.Pos, rm, ri, id.UserID(key), room.ParseMembership(ev.PDU.Membership()) == room.MembershipJoin)
	}
	return nil
}

// member notes who came or went, for what comes later in the log, and tells end-to-end bridges whose devices concern them.
func (f *following) member(ctx context.Context, b *builder, pos int64, rm *room.Room, ri *roomInterest, user id.UserID, joined bool) error {
	for i, x := range f.to {
		covered := x.Covers(user)
		was := len(ri.members[i]) > 0
		if covered && joined {
			ri.members[i][user] = true
		} else if covered {
			delete(ri.members[i], user)
		}
		if !x.DeviceLists {
			continue
		}
		switch {
		case covered && joined && !was:
			for _, u := range rm.Joined() {
				b.of[i].changed(u)
			}
		case joined && was:
			b.of[i].changed(user)
		case !joined && was && !covered:
			shares, err := f.shares(ctx, pos, i, user)
			if err != nil {
				return err
			}
			if !shares {
				b.of[i].left(user)
			}
		}
	}
	return nil
}

// roomInterest is what the services have to do with a room, by their place in following.to.
type roomInterest struct {
	named   []bool // the room's id or one of its aliases is in a namespace
	members []map[id.UserID]bool
}

func (ri *roomInterest) wants(i int) bool { return ri.named[i] || len(ri.members[i]) > 0 }

// room gives the interest in a room as it was before an entry of the log.
func (f *following) room(ctx context.Context, rm *room.Room, pos int64) (*roomInterest, error) {
	if f.rooms == nil {
		f.rooms = map[int64]*roomInterest{}
	}
	if ri := f.rooms[rm.NID()]; ri != nil {
		return ri, nil
	}
	ri := &roomInterest{named: make([]bool, len(f.to)), members: make([]map[id.UserID]bool, len(f.to))}
	withAliases := false
	for i, x := range f.to {
		ri.members[i] = map[id.UserID]bool{}
		ri.named[i] = x.rooms.match(string(rm.ID()))
		withAliases = withAliases || len(x.aliases) > 0
	}
	if withAliases {
		var aliases []string
		err := f.s.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			aliases, err = tx.RoomAliases(rm.NID())
			return err
		})
		if err != nil {
			return nil, err
		}
		for i, x := range f.to {
			for _, a := range aliases {
				ri.named[i] = ri.named[i] || x.aliases.match(a)
			}
		}
	}
	if err := f.membersBefore(ctx, rm, ri, pos); err != nil {
		return nil, err
	}
	for nid := range f.rooms {
		if len(f.rooms) < keptRooms {
			break
		}
		delete(f.rooms, nid) // any one: maps are walked in random order
	}
	f.rooms[rm.NID()] = ri
	return ri, nil
}

// membersBefore finds the services' users who were in a room before an entry of the log. Memory is that far or further.
func (f *following) membersBefore(ctx context.Context, rm *room.Room, ri *roomInterest, pos int64) error {
	ahead := rm.LastPos() >= pos
	for _, m := range []room.Membership{room.MembershipJoin, room.MembershipLeave, room.MembershipBan, room.MembershipInvite, room.MembershipKnock} {
		if m != room.MembershipJoin && !ahead {
			continue
		}
		for _, u := range rm.MembersBy(m) {
			joined, looked := m == room.MembershipJoin, !ahead
			for i, x := range f.to {
				if !x.Covers(u) {
					continue
				}
				if !looked {
					var err error
					if joined, err = f.joinedBefore(ctx, rm, u, joined, pos); err != nil {
						return err
					}
					looked = true
				}
				if joined {
					ri.members[i][u] = true
				}
			}
		}
	}
	return nil
}

// joinedBefore tells whether somebody was in a room before an entry of the log.
func (f *following) joinedBefore(ctx context.Context, rm *room.Room, u id.UserID, now bool, pos int64) (bool, error) {
	last, err := rm.MemberEvent(ctx, u)
	if err != nil || last == nil || last.Pos < pos {
		return now, err
	}
	history, err := f.s.Rooms.MembershipHistory(ctx, rm, u)
	if err != nil {
		return false, err
	}
	joined := false
	for _, c := range history {
		if c.Ord >= pos {
			break
		}
		joined = c.Membership == room.MembershipJoin
	}
	return joined, nil
}

// shares tells whether somebody is in a room with users of a service.
func (f *following) shares(ctx context.Context, pos int64, i int, user id.UserID) (bool, error) {
	u, err := f.s.Rooms.User(ctx, user)
	if err != nil {
		return false, err
	}
	var rooms []*room.Room
	u.EachRoom(func(ur *room.UserRoom) {
		if ur.Membership == room.MembershipJoin {
			rooms = append(rooms, ur.Room)
		}
	})
	for _, stub := range rooms {
		rm, err := f.s.Rooms.RoomByNID(ctx, stub.NID())
		if isGone(err) {
			continue
		}
		if err != nil {
			return false, err
		}
		ri, err := f.room(ctx, rm, pos)
		if err != nil {
			return false, err
		}
		if len(ri.members[i]) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// owns tells whether a user is a service's alone: what is for its devices goes to the service.
func (x *Service) owns(user id.UserID) bool {
	return user == x.sender || x.users.exclusive(string(user))
}

// toDevice moves a message to a device of a service's user into the service's transaction (docs/decisions/0381).
func (f *following) toDevice(ctx context.Context, b *builder, e *store.Entry) error {
	user, device := id.UserID(e.User), id.DeviceID(e.Key)
	for i, x := range f.to {
		if !x.DeviceLists || !x.owns(user) || e.Pos <= f.pos[i] {
			continue
		}
		var list []store.ToDeviceMessage
		err := f.s.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			list, err = tx.ToDevice(user, device, e.Pos-1, e.Pos, 1)
			return err
		})
		if err != nil || len(list) == 0 {
			return err
		}
		if err := f.addKeys(ctx, b, i, user, device); err != nil {
			return err
		}
		b.of[i].toDevice(user, device, jsontext.Value(list[0].Body))
		b.moved = append(b.moved, movedMessage{i, list[0].DeviceID, e.Pos})
		return nil
	}
	return nil
}

// keys tells a service that keys of one of its users' devices were used up or added.
func (f *following) keys(ctx context.Context, b *builder, e *store.Entry) error {
	for i, x := range f.to {
		if x.DeviceLists && x.owns(id.UserID(e.User)) && e.Key != "" {
			return f.addKeys(ctx, b, i, id.UserID(e.User), id.DeviceID(e.Key))
		}
	}
	return nil
}

func (f *following) addKeys(ctx context.Context, b *builder, i int, user id.UserID, device id.DeviceID) error {
	counts, fallback, err := f.s.Keys.OTKCounts(ctx, user, device)
	if err != nil {
		return err
	}
	b.of[i].keys(user, device, counts, fallback)
	return nil
}

// deviceList tells the end-to-end bridges that share rooms with a user that the user's devices changed.
func (f *following) deviceList(ctx context.Context, b *builder, pos int64, user id.UserID) error {
	for i, x := range f.to {
		if !x.DeviceLists {
			continue
		}
		concerned := x.Covers(user)
		if !concerned {
			var err error
			if concerned, err = f.shares(ctx, pos, i, user); err != nil {
				return err
			}
		}
		if concerned {
			b.of[i].changed(user)
		}
	}
	return nil
}

// errOvertaken says that another process has made these transactions.
var errOvertaken = errors.New("another process has taken the delivery over")

// queue stores what came together, with the place in the log that it is of, and sends the workers after it.
func (f *following) queue(ctx context.Context, b *builder, pos int64) error {
	now := f.s.Now().UnixMilli()
	rows := make([][]store.ServiceTxn, len(f.to))
	any := false
	for i := range f.to {
		var err error
		if rows[i], err = b.of[i].rows(now); err != nil {
			return err
		}
		any = any || len(rows[i]) > 0
	}
	if !any {
		return nil // the positions are moved with the next transactions; what lies between has nothing to tell
	}
	err := f.s.Store.Write(ctx, func(tx *store.Tx) error {
		for i, x := range f.to {
			if len(rows[i]) == 0 {
				continue
			}
			fresh, err := tx.QueueService(x.ID, f.pos[i], pos, rows[i])
			if err != nil {
				return err
			}
			if !fresh {
				return errOvertaken
			}
			for _, m := range b.moved {
				if m.service != i {
					continue
				}
				if err := tx.TakeToDevice(m.device.User, m.device.Device, m.pos); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("queue for application services: %w", err)
	}
	for i, x := range f.to {
		if len(rows[i]) > 0 {
			f.pos[i] = pos
			f.s.line.kick(x.ID, false)
		}
	}
	return nil
}
