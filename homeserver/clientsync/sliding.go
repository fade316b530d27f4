package clientsync

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// slidingWire is what differs between the responses of the two wire formats.
type slidingWire struct {
	stripped  string // the member with the stripped state
	expanded  string // the member that says that older events came along
	counts    bool   // rooms have unread counts
	ops       bool   // lists say which rooms their ranges hold
	described bool   // rooms tell the user's membership and their lists; what was removed is told as null or as a stub
	keepsLeft bool   // lists go on to hold rooms that the user has left since they were told of
}

var (
	wire3575 = slidingWire{stripped: "invite_state", expanded: "unstable_expanded_timeline", counts: true, ops: true}
	wire4186 = slidingWire{stripped: "stripped_state", expanded: "expanded_timeline", described: true, keepsLeft: true}
)

// slidingFilter lets everything through: sliding sync has no filters of events.
var slidingFilter = &filter.Filter{}

// slider makes one response of sliding sync. What a room's part holds and what it is called comes from in.wire.
type slider struct {
	builder
	in    *slidingRequest
	conn  *connection // locked
	fresh bool        // the connection begins with this response

	mine     *userFacts
	cands    []slidingRoom
	candBuf  *[]slidingRoom
	window   []windowRoom
	counts   []int     // of the lists
	order    [][]int32 // the candidates of each list
	combined map[[2]*roomConfig]*roomConfig

	changed map[int64]*roomSent // what the connection knows of rooms after this response
	told    map[int64]toldRoom  // the rooms in this response of which receipts are told anew
	read    map[int64]struct{}  // rooms in which receipts changed
}

// toldRoom is a room that is in the response as a whole or with older events.
type toldRoom struct{ events []*room.Event }

// serveSliding answers at once if there is anything to tell, else when there is, or at the end of the time.
// Spec: MSC4186.
func (s *Sync) serveSliding(r *http.Request, w http.ResponseWriter, in *slidingRequest) error {
	ctx := r.Context()
	who := in.who
	req := &request{who: who, user: who.UserID, device: who.DeviceID, initial: in.pos == "", filter: slidingFilter, timeout: in.timeout, presence: in.presence}
	var pos slidingPos
	if !req.initial {
		var err error
		if pos, err = s.arriveSliding(ctx, in.pos); err != nil {
			return err
		}
		req.since = pos.token
	}
	if err := s.acknowledgeSliding(in); err != nil {
		return err
	}
	user, err := s.d.Rooms.User(ctx, req.user)
	if err != nil {
		return err
	}
	s.presence.begin(req.user, req.device, req.presence)
	p := &poll{
		s: s, who: who, user: user, timeout: in.timeout, once: req.initial || in.timeout == 0,
		answer: func(ctx context.Context, w http.ResponseWriter, now bool) (bool, error) {
			return s.answerSliding(ctx, w, in, req, pos, now)
		},
	}
	return p.run(r, w)
}

// arriveSliding reads a pos. It must be of this database as it is now: a connection cannot be cut back.
func (s *Sync) arriveSliding(ctx context.Context, p string) (slidingPos, error) {
	pos, err := parseSlidingPos(p)
	if err != nil {
		return pos, err
	}
	epochs := s.d.Store.Epochs()
	if pos.token.epoch != epochs[len(epochs)-1].Number {
		return pos, errUnknownPos()
	}
	if pos.token.pos > s.d.Store.Applied() {
		if err := s.d.Store.CatchUp(ctx); err != nil {
			return pos, err
		}
		if pos.token.pos > s.d.Store.Applied() {
			return pos, errUnknownPos()
		}
	}
	return pos, nil
}

func (s *Sync) answerSliding(ctx context.Context, w http.ResponseWriter, in *slidingRequest, req *request, pos slidingPos, now bool) (done bool, err error) {
	key := connKey{req.user, req.device, in.connID}
	var conn *connection
	if req.initial {
		conn = newConnection(key)
		conn.mu.Lock()
	} else if conn, err = s.connections.find(ctx, key, pos); err != nil {
		return false, err
	}
	defer conn.mu.Unlock()
	buf := buffers.Get().(*[]byte)
	defer release(buf)
	cands := slidingRooms.Get().(*[]slidingRoom)
	defer func() {
		clear(*cands)
		slidingRooms.Put(cands)
	}()
	b := slider{builder: builder{s: s, ctx: ctx, req: req, b: (*buf)[:0]}, in: in, conn: conn, fresh: req.initial, candBuf: cands}
	err = b.build()
	*buf = b.b
	if err != nil || (!now && !b.urgent) {
		return false, err
	}
	if err := s.connections.save(ctx, conn, b.changed); err != nil {
		return false, err
	}
	b.b = append(b.b, `,"pos":"`...)
	b.b = slidingPos{token: b.next, conn: conn.id, seq: conn.seq}.append(b.b)
	b.b = append(b.b, '"', '}')
	*buf = b.b
	return true, web.WriteRaw(w, b.b)
}

// build makes the response up to its pos.
func (b *slider) build() error {
	s := b.s
	b.next = token{node: s.d.Store.Node(), serial: s.serial.Load()} // the serial first, as for GET /sync
	epochs := s.d.Store.Epochs()
	b.next.epoch = epochs[len(epochs)-1].Number
	b.upto = s.d.Store.Applied()
	b.next.pos, b.next.toDevice = b.upto, b.upto
	b.nowMS = s.d.Now().UnixMilli()
	var err error
	if b.ignored, err = s.d.Data.Ignored(b.ctx, b.req.user); err != nil {
		return err
	}
	if err := b.places(); err != nil {
		return err
	}
	if !b.req.initial {
		if err := b.loadAccountData(); err != nil {
			return err
		}
	}
	if len(b.in.lists) > 0 || len(b.in.subs) > 0 || len(b.conn.rooms) > 0 {
		if b.mine, err = s.facts.user(b.ctx, b.req.user); err != nil {
			return err
		}
		user, err := s.d.Rooms.User(b.ctx, b.req.user)
		if err != nil {
			return err
		}
		if err := b.gather(user); err != nil {
			return err
		}
		if err := b.choose(); err != nil {
			return err
		}
	}
	if err := b.findReceipts(); err != nil {
		return err
	}
	b.b = append(b.b, `{"lists":{`...)
	b.appendLists()
	b.b = append(b.b, `},"rooms":{`...)
	if err := b.appendWindow(); err != nil {
		return err
	}
	b.b = append(b.b, `},"extensions":{`...)
	if err := b.appendExtensions(); err != nil {
		return err
	}
	b.b = append(b.b, '}')
	b.noteUnsent()
	return nil
}

// places looks the requested states up in the connection's table.
func (b *slider) places() error {
	fill := func(c *roomConfig) error {
		c.places = c.places[:0]
		for i, q := range c.asked {
			n, err := b.conn.place(q)
			if err != nil {
				return err
			}
			c.asked[i] = b.conn.asked[n]
			c.places = append(c.places, n)
		}
		c.settle()
		return nil
	}
	for i := range b.in.lists {
		if err := fill(b.in.lists[i].config); err != nil {
			return err
		}
	}
	for _, c := range b.in.subs {
		if err := fill(c); err != nil {
			return err
		}
	}
	return nil
}

// edit gives a copy of what the client was told of a room, which counts after this response.
func (b *slider) edit(nid int64) *roomSent {
	if r := b.changed[nid]; r != nil {
		return r
	}
	r := &roomSent{receipts: -1, account: -1}
	if old := b.conn.rooms[nid]; old != nil {
		*r = *old
	}
	b.put(nid, r)
	return r
}

func (b *slider) put(nid int64, r *roomSent) {
	if b.changed == nil {
		b.changed = make(map[int64]*roomSent)
	}
	b.changed[nid] = r
}

func (b *slider) appendLists() {
	for i := range b.in.lists {
		l := &b.in.lists[i]
		b.comma()
		b.b = event.AppendCanonicalString(b.b, l.name)
		b.b = append(b.b, `:{"count":`...)
		b.b = appendInt(b.b, int64(b.counts[i]))
		if b.in.wire.ops {
			b.appendOps(l, b.order[i])
		}
		b.b = append(b.b, '}')
	}
}

// appendOps writes which rooms the ranges of a list hold.
func (b *slider) appendOps(l *slidingList, list []int32) {
	b.b = append(b.b, `,"ops":[`...)
	ranges := l.ranges
	if ranges == nil {
		ranges = [][2]int64{{0, max(0, int64(len(list))-1)}}
	}
	for _, x := range ranges {
		b.comma()
		b.b = append(b.b, `{"op":"SYNC","range":[`...)
		b.b = appendInt(b.b, x[0])
		b.b = append(b.b, ',')
		b.b = appendInt(b.b, x[1])
		b.b = append(b.b, `],"room_ids":[`...)
		for n := x[0]; n <= x[1] && n < int64(len(list)); n++ {
			b.comma()
			b.b = event.AppendCanonicalString(b.b, string(b.cands[list[n]].ur.Room.ID()))
		}
		b.b = append(b.b, ']', '}')
	}
	b.b = append(b.b, ']')
}

// appendWindow writes the rooms of the window that the client has to be told of.
func (b *slider) appendWindow() error {
	send := make([]int, 0, min(len(b.window), 32))
	for i := range b.window {
		if b.hasNews(&b.window[i]) {
			send = append(send, i)
		}
	}
	for _, i := range send {
		if w := &b.window[i]; w.ur.Membership == room.MembershipJoin && b.in.wire.counts {
			b.rooms.join = append(b.rooms.join, *w.ur)
		}
	}
	if err := b.prefetch(); err != nil {
		return err
	}
	for _, i := range send {
		w := &b.window[i]
		mark := len(b.b)
		b.comma()
		b.b = event.AppendCanonicalString(b.b, string(w.ur.Room.ID()))
		b.b = append(b.b, ':', '{')
		ok, err := b.room(w)
		if err != nil {
			return err
		}
		if !ok {
			b.b = b.b[:mark]
			continue
		}
		b.b = append(b.b, '}')
		b.urgent = true
	}
	return nil
}

// hasNews tells whether there may be something of a room that the client was not told.
func (b *slider) hasNews(w *windowRoom) bool {
	nid := w.ur.Room.NID()
	sent := b.conn.rooms[nid]
	if sent == nil {
		return true
	}
	since := b.toldUpTo(sent)
	if w.at > since || w.ur.Pos > since || sent.membership != w.ur.Membership {
		return true
	}
	switch w.ur.Membership {
	case room.MembershipInvite, room.MembershipKnock:
		return false
	}
	if w.config.limit > sent.limit || !subset(w.config.places, sent.state) {
		return true
	}
	if _, dm := b.mine.direct[w.ur.Room.ID()]; dm != sent.dm {
		return true
	}
	_, read := b.read[nid]
	return read && b.in.wire.counts && w.ur.Membership == room.MembershipJoin
}

// subset tells whether all of a are in b.
func subset(a, b []int32) bool {
	return !slices.ContainsFunc(a, func(x int32) bool { return !slices.Contains(b, x) })
}

// noteUnsent remembers of the rooms outside the window that the client misses something from now on.
func (b *slider) noteUnsent() {
	if b.fresh {
		return
	}
	since := b.req.since.pos
	for i := range b.cands {
		c := &b.cands[i]
		if c.window != 0 || (c.at <= since && c.ur.Pos <= since) {
			continue
		}
		if sent := b.conn.rooms[c.ur.Room.NID()]; sent != nil && sent.upto == 0 {
			b.edit(c.ur.Room.NID()).upto = since
		}
	}
}

// windowOf finds a room in the window.
func (b *slider) windowOf(nid int64) *windowRoom {
	for i := range b.window {
		if b.window[i].ur.Room.NID() == nid {
			return &b.window[i]
		}
	}
	return nil
}

// appendRoomKey begins the member of an object that is named by a room.
func (b *slider) appendRoomKey(roomID id.RoomID) {
	b.comma()
	b.b = event.AppendCanonicalString(b.b, string(roomID))
	b.b = append(b.b, ':')
}

func appendBool(b []byte, v bool) []byte { return strconv.AppendBool(b, v) }

// slidingToken is the since of the to-device extension: the epoch and the position of the log.
type slidingToken struct{ epoch, pos int64 }

func (t slidingToken) append(b []byte) []byte {
	b = strconv.AppendInt(b, t.epoch, 10)
	b = append(b, '_')
	return strconv.AppendInt(b, t.pos, 10)
}
