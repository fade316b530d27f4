package room

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// User is what this process keeps of a user id. Most users only stand in rooms' member lists; what a syncing user needs
// is loaded by Rooms.User.
type User struct {
	ID     id.UserID
	active atomic.Pointer[activeUser]
}

// activeUser is the loaded part of a User.
type activeUser struct {
	mu       sync.Mutex
	rooms    map[int64]*UserRoom // nil while not loaded
	loading  chan struct{}
	backlog  []membershipChange
	watchers []*Watch
	used     int64 // unix seconds of the last use
}

// membershipChange is an announced membership.
type membershipChange struct {
	room       *Room
	membership Membership
	nid, pos   int64
	forget     int64 // not a membership: the number of a room that the user forgot; else 0
}

// UserRoom is a user's membership of a room.
type UserRoom struct {
	Room       *Room
	Membership Membership
	MemberNID  int64 // number of the member event
	Pos        int64 // log position of the membership's last change
	Forgotten  bool
}

// Watch hears of news for one user.
type Watch struct {
	u    *activeUser
	ch   chan struct{}
	wake func() // nil: ch is used
}

// C receives whenever something for the user may be new.
func (w *Watch) C() <-chan struct{} { return w.ch }

// Notify has wake called in place of the channel, also for what the channel holds. wake is called under a lock and must not
// wait; after Close it is not called any more.
func (w *Watch) Notify(wake func()) {
	w.u.mu.Lock()
	w.wake = wake
	w.u.mu.Unlock()
	select {
	case <-w.ch:
		wake()
	default:
	}
}

// Close ends the watch.
func (w *Watch) Close() {
	w.u.mu.Lock()
	defer w.u.mu.Unlock()
	for i, x := range w.u.watchers {
		if x == w {
			last := len(w.u.watchers) - 1
			w.u.watchers[i] = w.u.watchers[last]
			w.u.watchers[last] = nil
			w.u.watchers = w.u.watchers[:last]
			return
		}
	}
}

func (u *User) activate() *activeUser {
	if a := u.active.Load(); a != nil {
		return a
	}
	a := &activeUser{}
	if u.active.CompareAndSwap(nil, a) {
		return a
	}
	return u.active.Load()
}

// Watch begins a watch. Its channel holds one wake-up.
func (u *User) Watch() *Watch {
	a := u.activate()
	w := &Watch{u: a, ch: make(chan struct{}, 1)}
	a.mu.Lock()
	a.watchers = append(a.watchers, w)
	a.mu.Unlock()
	return w
}

// Poke wakes the user's watches.
func (u *User) Poke() {
	a := u.active.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	for _, w := range a.watchers {
		if w.wake != nil {
			w.wake()
			continue
		}
		select {
		case w.ch <- struct{}{}:
		default:
		}
	}
	a.mu.Unlock()
}

// Watched tells whether anybody watches for the user in this process.
func (u *User) Watched() bool {
	a := u.active.Load()
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.watchers) > 0
}

// User gives a user with all memberships loaded.
func (rs *Rooms) User(ctx context.Context, userID id.UserID) (*User, error) {
	u := rs.intern(userID)
	a := u.activate()
	for {
		a.mu.Lock()
		a.used = time.Now().Unix()
		if a.rooms != nil {
			a.mu.Unlock()
			return u, nil
		}
		wait := a.loading
		if wait == nil {
			a.loading = make(chan struct{})
			a.mu.Unlock()
			return u, rs.loadUser(ctx, u, a)
		}
		a.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// loadUser reads the memberships in one snapshot; what is announced meanwhile waits in the backlog.
func (rs *Rooms) loadUser(ctx context.Context, u *User, a *activeUser) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
	defer cancel()
	var rows []store.UserRoom
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		rows, err = tx.UserRooms(string(u.ID))
		return err
	})
	var rooms map[int64]*UserRoom
	if err == nil {
		rooms = make(map[int64]*UserRoom, len(rows))
		for _, row := range rows {
			r := rs.stub(row.Room, id.RoomID(row.RoomID), row.LastPos)
			if row.Type != nil {
				r.noteType(*row.Type)
			}
			rooms[row.Room] = &UserRoom{
				Room: r, Membership: Membership(row.Membership.Membership),
				MemberNID: row.NID, Pos: row.Pos, Forgotten: row.Forgotten,
			}
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.loading)
	a.loading = nil
	backlog := a.backlog
	a.backlog = nil
	if err != nil {
		return fmt.Errorf("load the rooms of %s: %w", u.ID, err)
	}
	a.rooms = rooms
	for _, c := range backlog {
		a.setRoom(c)
	}
	return nil
}

// setRoom applies an announced membership; the caller holds the lock.
func (a *activeUser) setRoom(c membershipChange) {
	if c.forget != 0 {
		a.forget(c.forget)
		return
	}
	old := a.rooms[c.room.nid]
	if old != nil && old.Pos >= c.pos {
		return
	}
	// Spec: "Leaving rooms": a forgotten room stays so until its user joins, knocks, or is invited again; to be banned or
	// unbanned is none of these.
	out := c.membership == MembershipLeave || c.membership == MembershipBan
	a.rooms[c.room.nid] = &UserRoom{Room: c.room, Membership: c.membership, MemberNID: c.nid, Pos: c.pos, Forgotten: out && old != nil && old.Forgotten}
}

// noteMembership keeps a loaded user's rooms up to date.
func (u *User) noteMembership(c membershipChange) {
	a := u.active.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.rooms != nil:
		a.setRoom(c)
	case a.loading != nil:
		a.backlog = append(a.backlog, c)
	}
}

// Rooms lists the user's memberships, in no particular order. The list is the caller's.
func (u *User) Rooms() []UserRoom {
	a := u.active.Load()
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]UserRoom, 0, len(a.rooms))
	for _, r := range a.rooms {
		out = append(out, *r)
	}
	return out
}

// EachRoom calls fn for every membership while the user is locked, so fn is quick and calls nothing of the user.
func (u *User) EachRoom(fn func(r *UserRoom)) {
	a := u.active.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, r := range a.rooms {
		fn(r)
	}
}

// drop forgets the loaded part if it was not used since limit (unix seconds); it is loaded again when needed.
func (u *User) drop(limit int64) {
	a := u.active.Load()
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.watchers) == 0 && a.loading == nil && a.used < limit {
		a.rooms = nil
	}
}

// Poke wakes the watches of a user.
func (rs *Rooms) Poke(userID id.UserID) {
	if u := rs.known(userID); u != nil {
		u.Poke()
	}
}

// PokeRoom wakes the watches of all joined and invited members of a room that is in memory.
func (rs *Rooms) PokeRoom(nid int64) {
	if r := rs.lookup(nid); r != nil {
		r.pokeMembers()
	}
}

// pokeTurn is how many are woken before others get the processor: who sends a message into a room of thousands shall not
// wait until each of them was answered.
const pokeTurn = 16

func (r *Room) pokeMembers() {
	for i, u := range r.watching() {
		if i%pokeTurn == pokeTurn-1 {
			runtime.Gosched()
		}
		u.Poke()
	}
}

// watching lists the joined members who are in memory.
func (r *Room) watching() []*User {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.hot == nil {
		return nil
	}
	out := make([]*User, 0, min(len(r.hot.members), 64))
	for u, m := range r.hot.members {
		if m.membership == MembershipJoin && u.active.Load() != nil {
			out = append(out, u)
		}
	}
	return out
}

// Watching lists the joined members of a room in memory who wait for news.
func (rs *Rooms) Watching(nid int64) []*User {
	r := rs.lookup(nid)
	if r == nil {
		return nil
	}
	return slices.DeleteFunc(r.watching(), func(u *User) bool { return !u.Watched() })
}

// SharesRoom tells whether two users are joined to a common room.
func (rs *Rooms) SharesRoom(ctx context.Context, a, b id.UserID) (bool, error) {
	if a == b {
		return true, nil
	}
	var n int64
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		_, err := tx.Get([]any{&n}, `SELECT count(*) FROM (SELECT 1 AS one FROM memberships x JOIN memberships y ON y.room = x.room AND y.usr = $2 AND y.membership = 2
			WHERE x.usr = $1 AND x.membership = 2 LIMIT 1) s`, a, b)
		return err
	})
	return n > 0, err
}

// UsersSharingRoom gives the users that are joined to a room with the user, the user included.
func (rs *Rooms) UsersSharingRoom(ctx context.Context, userID id.UserID) (map[id.UserID]struct{}, error) {
	out := map[id.UserID]struct{}{userID: {}}
	u, err := rs.User(ctx, userID)
	if err != nil {
		return nil, err
	}
	for _, ur := range u.Rooms() {
		if ur.Membership != MembershipJoin {
			continue
		}
		if err := ur.Room.ensure(ctx); err != nil {
			return nil, err
		}
		for _, o := range ur.Room.Joined() {
			out[o] = struct{}{}
		}
	}
	return out, nil
}

// Forget takes a room that the user has left out of the user's lists and history.
func (rs *Rooms) Forget(ctx context.Context, roomID id.RoomID, userID id.UserID) error {
	r, err := rs.Room(ctx, roomID)
	if err != nil {
		return err
	}
	switch r.Membership(userID) {
	case MembershipLeave, MembershipBan:
	case MembershipNone:
		return errNoRoom(roomID)
	default:
		return mxerr.New(400, "M_UNKNOWN", "you are still in this room or invited to it: leave it before forgetting it")
	}
	err = rs.d.Store.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.ForgetRoom(string(userID), r.nid); err != nil {
			return err
		}
		_, err := tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: r.nid, User: string(userID), Key: metaForgotten})
		return err
	})
	return err
}

// noteForgotten marks a room as forgotten in a loaded user.
func (u *User) noteForgotten(room int64) { u.noteMembership(membershipChange{forget: room}) }

// forget marks a room that the user has left; the caller holds the lock.
func (a *activeUser) forget(room int64) {
	if r := a.rooms[room]; r != nil && (r.Membership == MembershipLeave || r.Membership == MembershipBan) {
		c := *r
		c.Forgotten = true
		a.rooms[room] = &c
	}
}
