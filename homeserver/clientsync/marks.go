package clientsync

import (
	"math"
	"slices"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// marks remembers the position of the last change of everything that is not an event, by user, device and room, so
// that a sync asks the database only for what has changed. What lies at or before floor is not known.
type marks struct {
	mu    sync.RWMutex
	floor int64
	users map[id.UserID]*userMarks
	rooms map[int64]*roomMarks
	// lists are changes of device lists in the order of the log, the newest listsKept of them; they are complete after
	// listsFloor.
	lists      []listMark
	listsFloor int64
	// read are the rooms whose receipts changed, in the order of the log, kept like lists.
	read      []readMark
	readFloor int64
}

type readMark struct{ pos, room int64 }

type userMarks struct {
	account int64 // account data, tags and push rules
	session int64 // access tokens, locking
	devices map[id.DeviceID]*deviceMarks
}

type deviceMarks struct {
	toDevice int64 // last to-device message
	cleared  int64 // to-device messages up to here were deleted
}

type roomMarks struct {
	receipt int64 // last receipt
	shown   int64 // last receipt that others were woken for
}

// listMark says that a user's device list changed; where signed is set, that the user signed keys of another one, which
// the user's own devices alone learn of.
type listMark struct {
	pos          int64
	user, signed id.UserID
}

const listsKept = 8192

func newMarks() *marks {
	m := &marks{}
	m.reset(math.MaxInt64)
	return m
}

// reset forgets everything up to a position.
func (m *marks) reset(floor int64) {
	m.floor, m.listsFloor, m.readFloor = floor, floor, floor
	m.users = make(map[id.UserID]*userMarks)
	m.rooms = make(map[int64]*roomMarks)
	m.lists, m.read = nil, nil
}

// apply follows the log.
func (m *marks) apply(entries []store.Entry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.floor == math.MaxInt64 && len(entries) > 0 {
		m.reset(entries[0].Pos - 1)
	}
	for i := range entries {
		e := &entries[i]
		switch e.Kind {
		case store.KindReset:
			m.reset(e.Pos)
		case store.KindReceipt:
			m.room(e.Room).receipt = e.Pos
			m.read = append(m.read, readMark{e.Pos, e.Room})
			if len(m.read) >= 2*listsKept {
				m.readFloor = m.read[len(m.read)-listsKept-1].pos
				m.read = append(make([]readMark, 0, 2*listsKept), m.read[len(m.read)-listsKept:]...)
			}
		case store.KindAccountData:
			m.user(id.UserID(e.User)).account = e.Pos
		case store.KindSession, store.KindUser:
			m.user(id.UserID(e.User)).session = e.Pos
		case store.KindToDevice:
			m.device(id.UserID(e.User), id.DeviceID(e.Key)).toDevice = e.Pos
		case store.KindDeviceList:
			m.lists = append(m.lists, listMark{e.Pos, id.UserID(e.User), id.UserID(e.Key)})
			if len(m.lists) >= 2*listsKept {
				m.listsFloor = m.lists[len(m.lists)-listsKept-1].pos
				m.lists = append(make([]listMark, 0, 2*listsKept), m.lists[len(m.lists)-listsKept:]...)
			}
		}
	}
}

func (m *marks) user(u id.UserID) *userMarks {
	x := m.users[u]
	if x == nil {
		x = &userMarks{}
		m.users[u] = x
	}
	return x
}

func (m *marks) device(u id.UserID, d id.DeviceID) *deviceMarks {
	x := m.user(u)
	if x.devices == nil {
		x.devices = make(map[id.DeviceID]*deviceMarks)
	}
	y := x.devices[d]
	if y == nil {
		y = &deviceMarks{}
		x.devices[d] = y
	}
	return y
}

func (m *marks) room(nid int64) *roomMarks {
	x := m.rooms[nid]
	if x == nil {
		x = &roomMarks{}
		m.rooms[nid] = x
	}
	return x
}

// account tells whether account data of the user may have changed after a position.
func (m *marks) account(u id.UserID, since int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	x := m.users[u]
	return since < m.floor || (x != nil && x.account > since)
}

// session tells whether a session of the user may have ended after a position.
func (m *marks) session(u id.UserID, since int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	x := m.users[u]
	return since < m.floor || (x != nil && x.session > since)
}

// toDevice tells whether the device may have got messages after a position.
func (m *marks) toDevice(u id.UserID, d id.DeviceID, since int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if since < m.floor {
		return true
	}
	x := m.users[u]
	return x != nil && x.devices[d] != nil && x.devices[d].toDevice > since
}

// uncleared tells whether messages that a device has acknowledged may still be stored.
func (m *marks) uncleared(u id.UserID, d id.DeviceID, acknowledged int64) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var x deviceMarks
	if um := m.users[u]; um != nil && um.devices[d] != nil {
		x = *um.devices[d]
	}
	if x.cleared >= acknowledged {
		return false
	}
	// before the floor anything may be stored, but only until the first acknowledgement
	return x.cleared < m.floor || x.toDevice > x.cleared
}

// clearedUpTo is the position up to which a device's messages were acknowledged, as far as this process knows.
func (m *marks) clearedUpTo(u id.UserID, d id.DeviceID) int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if x := m.users[u]; x != nil && x.devices[d] != nil {
		return x.devices[d].cleared
	}
	return 0
}

// clear notes that the messages of a device up to a position were deleted.
func (m *marks) clear(u id.UserID, d id.DeviceID, upto int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	x := m.device(u, d)
	x.cleared = max(x.cleared, upto)
}

// receipts gives the position of the room's last receipt and of the last one that its members were woken for; known is
// false where older ones than since may be missing from that.
func (m *marks) receipts(nid, since int64) (last, shown int64, known bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if x := m.rooms[nid]; x != nil {
		last, shown = x.receipt, x.shown
	}
	return last, shown, since >= m.floor
}

// show notes that the room's members are woken for all receipts up to now.
func (m *marks) show(nid int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if x := m.rooms[nid]; x != nil {
		x.shown = x.receipt
	}
}

// changedLists gives the users of whom a user may know old keys, as far as their own changes go; it does not look at
// who shares rooms with whom. ok is false where so old changes are not known.
func (m *marks) changedLists(of id.UserID, since int64) (users []id.UserID, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if since < m.listsFloor {
		return nil, false
	}
	for i := len(m.lists) - 1; i >= 0 && m.lists[i].pos > since; i-- {
		switch x := &m.lists[i]; {
		case x.signed == "":
			users = append(users, x.user)
		case x.user == of:
			users = append(users, x.signed)
		}
	}
	return users, true
}

// changedReceipts gives the rooms in which receipts changed after a position; ok is false where so old changes are not
// known.
func (m *marks) changedReceipts(since int64) (rooms []int64, ok bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if since < m.readFloor {
		return nil, false
	}
	for i := len(m.read) - 1; i >= 0 && m.read[i].pos > since; i-- {
		if !slices.Contains(rooms, m.read[i].room) {
			rooms = append(rooms, m.read[i].room)
		}
	}
	return rooms, true
}
