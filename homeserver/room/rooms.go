// Package room is the only writer of room events. It keeps active rooms in memory, commits events in groups through
// the one log, and reads timelines and state.
package room

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// defaultCacheBytes bounds the cache of events where the configuration does not.
const defaultCacheBytes = 128 << 20

// Deps is what Rooms works with.
type Deps struct {
	Store      *store.Store
	ServerName string
	Key        event.SigningKey
	Logger     *slog.Logger
	Now        func() time.Time // nil means time.Now
	CacheBytes int64            // bound of the event cache; 0 means 128 MiB
	// Features gives the compact push features that are stored with an event; nil stores none. parent gives those of
	// the event that this one relates to, nil where it is not known.
	Features func(evType string, stateKey *string, content []byte, parent func(eventID string) []byte) []byte
	// NewRoom looks at the events of a room that is about to be made, m.room.create first, and returns those that it may begin
	// with, and a func that is called when the room is there, or nil. Check refuses an event that a policy forbids. nil: no policy.
	NewRoom func(ctx context.Context, creator id.UserID, drafts []Draft, meta RoomMeta) ([]Draft, func(context.Context, id.RoomID), error)
	Check   func(ctx context.Context, r *Room, d *Draft) error
	// Policy asks a room's policy server to sign an event and gives the signatures it answers with. nil: none is asked.
	Policy func(ctx context.Context, server string, pdu []byte) ([]byte, error)
}

// Rooms holds the rooms of the server. It is safe for concurrent use.
type Rooms struct {
	d      Deps
	events *otter.Cache[int64, *Event]
	erased erasures

	mu    sync.RWMutex
	byID  map[id.RoomID]*Room
	byNID map[int64]*Room
	users map[id.UserID]*User

	queue committerQueue
	pacer pacer
	// gathers tells that units came along while the last transaction waited for the log's lock; the committer's.
	gathers bool
	turns   sync.Map // room number -> chan struct{}, which holds whose event a policy server looks at
}

// New makes Rooms. Nothing is written before Run.
func New(d Deps) *Rooms {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.CacheBytes <= 0 {
		d.CacheBytes = defaultCacheBytes
	}
	return &Rooms{
		d: d,
		events: otter.Must(&otter.Options[int64, *Event]{
			MaximumWeight: uint64(d.CacheBytes),
			Weigher:       func(_ int64, e *Event) uint32 { return uint32(e.size()) },
		}),
		byID:  make(map[id.RoomID]*Room),
		byNID: make(map[int64]*Room),
		users: make(map[id.UserID]*User),
		queue: committerQueue{wake: make(chan struct{}, 1), rideIn: d.Store.RideIn},
	}
}

// ServerName is the name of this server.
func (rs *Rooms) ServerName() string { return rs.d.ServerName }

// Membership is a user's membership of a room, with the numbers that the database stores.
type Membership int8

// The memberships.
const (
	MembershipNone   Membership = 0
	MembershipInvite Membership = 1
	MembershipJoin   Membership = 2
	MembershipLeave  Membership = 3
	MembershipBan    Membership = 4
	MembershipKnock  Membership = 5
)

// String is the membership as events write it, "" for none.
func (m Membership) String() string {
	return [...]string{"", "invite", "join", "leave", "ban", "knock"}[m]
}

// ParseMembership reads a membership as events write it.
func ParseMembership(s string) Membership {
	switch s {
	case "invite":
		return MembershipInvite
	case "join":
		return MembershipJoin
	case "leave":
		return MembershipLeave
	case "ban":
		return MembershipBan
	case "knock":
		return MembershipKnock
	}
	return MembershipNone
}

// Room is a room of the server. What it is called and how far its log reaches is always in memory; the rest is loaded
// when it is first needed and dropped when it rests.
type Room struct {
	rs      *Rooms
	nid     int64
	id      id.RoomID
	lastPos atomic.Int64
	made    atomic.Pointer[string] // the type of the room; nil: not known yet
	used    atomic.Int64           // unix seconds of the last use

	mu      sync.RWMutex
	hot     *hot          // nil while not loaded
	loading chan struct{} // closed when the load under way ends
	backlog []*Event      // announced while loading
}

// ID is the room id.
func (r *Room) ID() id.RoomID { return r.id }

// NID is the room's number in this database.
func (r *Room) NID() int64 { return r.nid }

// LastPos is the log position of the room's last event.
func (r *Room) LastPos() int64 { return r.lastPos.Load() }

// errNoRoom is what a client hears of a room that is not here.
func errNoRoom(roomID id.RoomID) error {
	return mxerr.NotFound(fmt.Sprintf("this server has no room %s", roomID))
}

// Room finds a room and loads it. An unknown one is M_NOT_FOUND.
func (rs *Rooms) Room(ctx context.Context, roomID id.RoomID) (*Room, error) {
	rs.mu.RLock()
	r := rs.byID[roomID]
	rs.mu.RUnlock()
	if r == nil {
		var row store.Room
		var ok bool
		err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			row, ok, err = tx.RoomByID(string(roomID))
			return err
		})
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, errNoRoom(roomID)
		}
		r = rs.stub(row.NID, roomID, row.LastPos)
	}
	return r, r.ensure(ctx)
}

// RoomByNID finds a room by its number and loads it.
func (rs *Rooms) RoomByNID(ctx context.Context, nid int64) (*Room, error) {
	rs.mu.RLock()
	r := rs.byNID[nid]
	rs.mu.RUnlock()
	if r == nil {
		var rows []store.Room
		err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			rows, err = tx.RoomsByNID([]int64{nid})
			return err
		})
		if err != nil {
			return nil, err
		}
		if len(rows) == 0 {
			return nil, mxerr.NotFound("this server has no such room")
		}
		r = rs.stub(nid, id.RoomID(rows[0].RoomID), rows[0].LastPos)
	}
	return r, r.ensure(ctx)
}

// stub gives the room's place in memory, making it if it is new.
func (rs *Rooms) stub(nid int64, roomID id.RoomID, lastPos int64) *Room {
	rs.mu.RLock()
	r := rs.byNID[nid]
	rs.mu.RUnlock()
	if r != nil {
		return r
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if r := rs.byNID[nid]; r != nil {
		return r
	}
	r = &Room{rs: rs, nid: nid, id: roomID}
	r.lastPos.Store(lastPos)
	rs.byNID[nid] = r
	rs.byID[roomID] = r
	return r
}

// lookup gives the room if it has a place in memory.
func (rs *Rooms) lookup(nid int64) *Room {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.byNID[nid]
}

// intern gives the one User of a user id.
func (rs *Rooms) intern(userID id.UserID) *User {
	rs.mu.RLock()
	u := rs.users[userID]
	rs.mu.RUnlock()
	if u != nil {
		return u
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if u := rs.users[userID]; u != nil {
		return u
	}
	u = &User{ID: userID}
	rs.users[userID] = u
	return u
}

// known gives the User if this process has met the user id.
func (rs *Rooms) known(userID id.UserID) *User {
	rs.mu.RLock()
	defer rs.mu.RUnlock()
	return rs.users[userID]
}
