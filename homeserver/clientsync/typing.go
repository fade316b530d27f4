package clientsync

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	typingDefault = 30 * time.Second // where a client names no timeout
	typingMost    = 2 * time.Minute
	typingShown   = 100 // users of one room that clients are told of
	// typingRemembered is how long a room in which nobody types any more is remembered: a client that comes over from
	// another process has to be told that it has ended.
	typingRemembered = 2 * time.Minute
	topicTyping      = "typing"
)

// typing holds who types, in this process and in others. It is not in the log and nothing of it is stored.
type typing struct {
	now  func() time.Time
	node string

	serial *atomic.Int64 // counts changes of typing and presence; the tokens of clients hold it

	mu    sync.Mutex
	rooms map[int64]*typingRoom
	dirty map[int64]bool // rooms of which the other processes are to be told
}

type typingRoom struct {
	users   map[id.UserID]typist
	serial  int64
	changed time.Time
}

type typist struct {
	until time.Time
	node  string
}

func newTyping(node string, serial *atomic.Int64, now func() time.Time) *typing {
	return &typing{now: now, node: node, serial: serial, rooms: make(map[int64]*typingRoom), dirty: make(map[int64]bool)}
}

func (t *typing) room(nid int64) *typingRoom {
	r := t.rooms[nid]
	if r == nil {
		r = &typingRoom{users: make(map[id.UserID]typist)}
		t.rooms[nid] = r
	}
	return r
}

func (t *typing) changed(r *typingRoom) {
	r.serial = t.serial.Add(1)
	r.changed = t.now()
}

// set notes what a user of this process does, and tells whether that is news for clients.
func (t *typing) set(nid int64, user id.UserID, types bool, timeout time.Duration) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !types && t.rooms[nid] == nil {
		return false
	}
	r := t.room(nid)
	_, was := r.users[user]
	if types {
		r.users[user] = typist{until: t.now().Add(timeout), node: t.node}
		t.dirty[nid] = true
	} else {
		delete(r.users, user)
	}
	if was == types {
		return false
	}
	t.dirty[nid] = true
	t.changed(r)
	return true
}

// expire ends what nobody renewed. It gives the rooms that changed, and when to call again.
func (t *typing) expire() (rooms []int64, next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	for nid, r := range t.rooms {
		n := len(r.users)
		for u, x := range r.users {
			if !x.until.After(now) {
				delete(r.users, u)
			} else if next.IsZero() || x.until.Before(next) {
				next = x.until
			}
		}
		switch {
		case len(r.users) < n:
			t.changed(r)
			rooms = append(rooms, nid)
		case n == 0 && now.Sub(r.changed) > typingRemembered:
			delete(t.rooms, nid)
		}
	}
	return rooms, next
}

// since tells whether clients that know the typing up to a serial of a process have to be told of the room's, and
// gives the users that type now.
func (t *typing) since(nid int64, node string, serial int64) (users []id.UserID, news bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[nid]
	if r == nil || (node == t.node && r.serial <= serial) || (node == "" && len(r.users) == 0) {
		return nil, false
	}
	for u := range r.users {
		users = append(users, u)
	}
	slices.Sort(users)
	return users[:min(len(users), typingShown)], true
}

// typingCast is what processes tell each other: everyone of theirs who types in a room, with what remains of the time
// in milliseconds.
type typingCast struct {
	Room  int64               `json:"r"`
	Node  string              `json:"n"`
	Users map[id.UserID]int64 `json:"u"`
}

// casts gives what the other processes are to be told.
func (t *typing) casts() (out []typingCast) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for nid := range t.dirty {
		c := typingCast{Room: nid, Node: t.node, Users: map[id.UserID]int64{}}
		if r := t.rooms[nid]; r != nil {
			for u, x := range r.users {
				if x.node == t.node && len(c.Users) < 25 { // what fits into one notification
					c.Users[u] = x.until.Sub(t.now()).Milliseconds()
				}
			}
		}
		out = append(out, c)
	}
	clear(t.dirty)
	return out
}

// receive takes in what another process tells, and gives whether it is news.
func (t *typing) receive(payload string) (nid int64, news bool, err error) {
	var c typingCast
	if err := json.Unmarshal([]byte(payload), &c); err != nil {
		return 0, false, fmt.Errorf("typing of another node: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.Node == t.node {
		return 0, false, nil
	}
	r := t.room(c.Room)
	for u, x := range r.users {
		if _, still := c.Users[u]; x.node == c.Node && !still {
			delete(r.users, u)
			news = true
		}
	}
	for u, ms := range c.Users {
		if _, was := r.users[u]; !was {
			news = true
		}
		r.users[u] = typist{until: t.now().Add(min(time.Duration(ms)*time.Millisecond, typingMost)), node: c.Node}
	}
	if news {
		t.changed(r)
	}
	return c.Room, news, nil
}

// tellTyping tells whoever wants to know it who types in a room.
func (s *Sync) tellTyping(nid int64) {
	if s.d.Typing != nil {
		s.d.Typing(nid, s.typing.who(nid))
	}
}

// who lists the users who type in a room.
func (t *typing) who(nid int64) []id.UserID {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[nid]
	if r == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(r.users))
}

// appendTyping appends the event m.typing.
func appendTyping(b []byte, users []id.UserID) []byte {
	b = append(b, `{"content":{"user_ids":[`...)
	for i, u := range users {
		if i > 0 {
			b = append(b, ',')
		}
		b = event.AppendCanonicalString(b, string(u))
	}
	return append(b, `]},"type":"m.typing"}`...)
}

// putTyping handles PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}.
// Spec: client-server API, "Typing Notifications".
func (s *Sync) putTyping(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	if id.UserID(web.PathParam(r, "userId")) != who.UserID {
		return mxerr.Forbidden("you can tell of your own typing only")
	}
	body, err := web.ReadJSON[struct {
		Typing  *bool  `json:"typing"`
		Timeout *int64 `json:"timeout"`
	}](r)
	if err != nil {
		return err
	}
	if body.Typing == nil {
		return mxerr.BadJSON("'typing' must be true or false")
	}
	timeout := typingDefault
	if body.Timeout != nil {
		if *body.Timeout < 0 {
			return mxerr.InvalidParam("'timeout' must be a number of milliseconds of at least 0")
		}
		timeout = time.Duration(min(*body.Timeout, typingMost.Milliseconds())) * time.Millisecond
	}
	rm, err := s.joinedRoom(r, who.UserID)
	if err != nil {
		return err
	}
	if s.typing.set(rm.NID(), who.UserID, *body.Typing && timeout > 0, timeout) {
		s.tellTyping(rm.NID())
		s.waker.schedule(rm.NID(), typingEvery)
	}
	nudge(s.waker.kick) // the end of the time may be nearer now
	s.presence.active(who.UserID)
	return web.WriteRaw(w, []byte("{}"))
}

// joinedRoom gives the room of the path, in which the user must be joined.
func (s *Sync) joinedRoom(r *http.Request, user id.UserID) (*room.Room, error) {
	rm, err := s.d.Rooms.Room(r.Context(), id.RoomID(web.PathParam(r, "roomId")))
	if mxerr.Is(err, "M_NOT_FOUND") {
		return nil, mxerr.Forbidden("you are not in this room") // whether it exists is nobody's business
	}
	if err != nil {
		return nil, err
	}
	if rm.Membership(user) != room.MembershipJoin {
		// another process may know better; before denying, the log's head decides
		if err := s.d.Store.CatchUp(r.Context()); err != nil {
			return nil, err
		}
		if rm.Membership(user) != room.MembershipJoin {
			return nil, mxerr.Forbidden("you are not in this room")
		}
	}
	return rm, nil
}
