package clientsync

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/maypok86/otter/v2"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	slidingConnsMost   = 16  // connections of one device; the least used one goes
	slidingPlacesMost  = 200 // different requested states in one connection
	slidingMembersMost = 200 // lazily sent members remembered of a room
	slidingCacheBytes  = 64 << 20
	slidingKept        = 30 * 24 * time.Hour // without use
	slidingTouchAfter  = 24 * time.Hour
)

// errUnknownPos is what a client hears of a pos that its connection does not have (any more): it starts from scratch.
// Spec: MSC4186, "Connections".
func errUnknownPos() error {
	return mxerr.New(400, "M_UNKNOWN_POS", "this position is not known: leave 'pos' out and begin again")
}

type connKey struct {
	user   id.UserID
	device id.DeviceID
	name   string
}

// connection is what a client was told, by its last two states: base, which the client has, and seq, which is base with
// next over it and which the client may have got. Whoever reads or writes it holds mu.
type connection struct {
	mu        sync.Mutex
	key       connKey
	id        int64 // 0 while it is not stored
	base, seq int64
	used      int64 // ms of the last write
	rooms     map[int64]*roomSent
	next      map[int64]*roomSent
	asked     []*stateRequest // by place
	places    map[string]int32
	saved     int // of asked, how many are in the database
}

// roomSent is what a client was told of a room. It is immutable.
type roomSent struct {
	upto       int64 // position up to which the room was told; 0: up to that of the client
	membership room.Membership
	limit      int  // most events of the timeline that the client has from its end
	dm         bool // whether it was told to be a direct chat
	state      []int32
	receipts   int64   // position up to which they were told; 0: up to the client's; -1: never
	account    int64   // the same of account data
	members    []int64 // member events that were sent lazily, the last ones last
}

const sentForm = 1 // of the stored bytes

func (r *roomSent) encode() []byte {
	b := make([]byte, 0, 24+4*len(r.members))
	b = append(b, sentForm)
	b = binary.AppendVarint(b, r.upto)
	b = binary.AppendUvarint(b, uint64(r.membership))
	b = binary.AppendUvarint(b, uint64(r.limit))
	dm := uint64(0)
	if r.dm {
		dm = 1
	}
	b = binary.AppendUvarint(b, dm)
	b = binary.AppendVarint(b, r.receipts)
	b = binary.AppendVarint(b, r.account)
	b = binary.AppendUvarint(b, uint64(len(r.state)))
	for _, x := range r.state {
		b = binary.AppendUvarint(b, uint64(x))
	}
	last := int64(0)
	for _, x := range r.members {
		b = binary.AppendVarint(b, x-last)
		last = x
	}
	return b
}

var errSent = errors.New("a stored sliding sync connection is damaged")

func decodeSent(b []byte, places int) (*roomSent, error) {
	if len(b) == 0 || b[0] != sentForm {
		return nil, errSent
	}
	b = b[1:]
	bad := false
	signed := func() int64 {
		v, n := binary.Varint(b)
		if n <= 0 {
			bad, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	unsigned := func(below uint64) uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 || v >= below {
			bad, b = true, nil
			return 0
		}
		b = b[n:]
		return v
	}
	r := &roomSent{upto: signed(), membership: room.Membership(unsigned(6)), limit: int(unsigned(slidingTimelineMost + 1)), dm: unsigned(2) == 1}
	r.receipts, r.account = signed(), signed()
	for n := unsigned(slidingPlacesMost + 1); n > 0 && !bad; n-- {
		r.state = append(r.state, int32(unsigned(uint64(places))))
	}
	for last := int64(0); len(b) > 0 && !bad; {
		last += signed()
		r.members = append(r.members, last)
	}
	if bad {
		return nil, errSent
	}
	return r, nil
}

// place gives a requested state's place in the connection's table.
func (c *connection) place(q *stateRequest) (int32, error) {
	s, err := q.encode()
	if err != nil {
		return 0, err
	}
	if n, ok := c.places[s]; ok {
		return n, nil
	}
	if len(c.asked) >= slidingPlacesMost {
		return 0, errUnknownPos() // what a client asks for anew each time is forgotten by a new connection
	}
	n := int32(len(c.asked))
	c.asked = append(c.asked, q)
	c.places[s] = n
	return n, nil
}

// use makes the state numbered seq the one that the client has.
func (c *connection) use(seq int64) bool {
	switch seq {
	case c.base:
		return true
	case c.seq:
		for nid, r := range c.next {
			c.rooms[nid] = r
		}
		c.next, c.base = nil, seq
		return true
	}
	return false
}

func newConnection(key connKey) *connection {
	return &connection{key: key, rooms: make(map[int64]*roomSent), places: make(map[string]int32)}
}

// connections caches those of the database; nothing is lost with it.
type connections struct {
	store *store.Store
	now   func() time.Time
	cache *otter.Cache[connKey, *connection]
}

func newConnections(s *store.Store, now func() time.Time) *connections {
	return &connections{store: s, now: now, cache: otter.Must(&otter.Options[connKey, *connection]{
		MaximumWeight: slidingCacheBytes,
		Weigher:       func(_ connKey, c *connection) uint32 { return uint32(1000 + 200*(len(c.rooms)+len(c.next))) },
	})}
}

// slidingPos is a place in a connection: a sync token, the connection and the number of its state.
type slidingPos struct {
	token     token
	conn, seq int64
}

// String is the pos as clients get it: the sync token comes first, so that it can be used as a pagination token.
// Spec: MSC4186, "Connections".
func (p slidingPos) append(b []byte) []byte {
	b = p.token.append(b)
	b = append(b, '~')
	b = strconv.AppendInt(b, p.conn, 10)
	b = append(b, '.')
	return strconv.AppendInt(b, p.seq, 10)
}

func parseSlidingPos(s string) (p slidingPos, err error) {
	first, rest, ok := strings.Cut(s, "~")
	if !ok {
		return p, errUnknownPos()
	}
	conn, seq, ok := strings.Cut(rest, ".")
	if !ok || !parseNumber(conn, &p.conn) || !parseNumber(seq, &p.seq) {
		return p, errUnknownPos()
	}
	if p.token, err = parseToken(first); err != nil {
		return p, errUnknownPos()
	}
	return p, nil
}

// find gives the locked connection of a pos, in the state that the pos names.
func (cs *connections) find(ctx context.Context, key connKey, p slidingPos) (*connection, error) {
	if c, ok := cs.cache.GetIfPresent(key); ok && c.id == p.conn {
		c.mu.Lock()
		if c.use(p.seq) {
			return c, nil
		}
		used := p.seq < c.base
		c.mu.Unlock()
		if used { // the client has shown that it got the state that followed
			return nil, errUnknownPos()
		} // else another process may have written a newer one
	}
	c, err := cs.read(ctx, key)
	if err != nil {
		return nil, err
	}
	if c == nil || c.id != p.conn || !c.use(p.seq) {
		return nil, errUnknownPos()
	}
	c.mu.Lock()
	cs.cache.Set(key, c)
	return c, nil
}

// read loads a connection; nil where there is none.
func (cs *connections) read(ctx context.Context, key connKey) (*connection, error) {
	var row store.SlidingConn
	var rooms []store.SlidingRoom
	var ok bool
	err := cs.store.Read(ctx, func(tx *store.Tx) error {
		var err error
		row, rooms, ok, err = tx.ReadSliding(key.user, key.device, key.name)
		return err
	})
	if err != nil || !ok {
		return nil, err
	}
	c := newConnection(key)
	c.id, c.base, c.seq, c.used = row.ID, row.Base, row.Seq, row.Used
	var asked []*stateRequest
	if err := json.Unmarshal(row.Configs, &asked); err != nil {
		return nil, errUnknownPos() // of another program's form: the client begins again
	}
	for _, q := range asked {
		if _, err := c.place(q); err != nil {
			return nil, err
		}
	}
	c.saved = len(c.asked)
	for _, x := range rooms {
		r, err := decodeSent(x.Sent, len(c.asked))
		if err != nil {
			return nil, errUnknownPos()
		}
		if x.Seq <= c.base {
			c.rooms[x.Room] = r
			continue
		}
		if c.next == nil {
			c.next = make(map[int64]*roomSent)
		}
		c.next[x.Room] = r
	}
	return c, nil
}

// save stores what a response tells of rooms that was not told before. It makes the connection where it is new. Without
// changes it writes nothing.
func (cs *connections) save(ctx context.Context, c *connection, changed map[int64]*roomSent) error {
	now := cs.now().UnixMilli()
	if c.id != 0 && len(changed) == 0 {
		if now-c.used < slidingTouchAfter.Milliseconds() {
			return nil
		}
		c.used = now
		return cs.store.Write(ctx, func(tx *store.Tx) error { return tx.TouchSliding(c.id, now) })
	}
	rows := make([]store.SlidingRoom, 0, len(changed))
	for nid, r := range changed {
		rows = append(rows, store.SlidingRoom{Room: nid, Sent: r.encode()})
	}
	slices.SortFunc(rows, func(a, b store.SlidingRoom) int { return int(min(max(a.Room-b.Room, -1), 1)) })
	var configs []byte
	if c.id == 0 || c.saved < len(c.asked) {
		var err error
		if configs, err = json.Marshal(c.asked); err != nil {
			return err
		}
	}
	if c.id == 0 {
		row := store.SlidingConn{ID: newConnID(), User: c.key.user, Device: c.key.device, Name: c.key.name, Base: 1, Seq: 1, Used: now, Configs: configs}
		err := cs.store.Write(ctx, func(tx *store.Tx) error { return tx.CreateSliding(&row, rows, slidingConnsMost) })
		if err != nil {
			return err
		}
		c.id, c.base, c.seq, c.rooms = row.ID, 1, 1, changed
		if c.rooms == nil {
			c.rooms = make(map[int64]*roomSent)
		}
	} else {
		var seq int64
		err := cs.store.Write(ctx, func(tx *store.Tx) error {
			var err error
			seq, err = tx.AdvanceSliding(c.id, c.base, now, configs, rows)
			return err
		})
		if err != nil {
			return err
		}
		if seq == 0 {
			return errUnknownPos()
		}
		c.seq, c.next = seq, changed
	}
	c.used = now
	c.saved = len(c.asked)
	cs.cache.Set(c.key, c)
	return nil
}

// newConnID is a number that no other connection has, and that nobody guesses.
func newConnID() int64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return int64(binary.BigEndian.Uint64(b[:])>>1) | 1
}

// run forgets connections that nobody uses any more, until ctx ends.
func (cs *connections) run(ctx context.Context, s *Sync) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := cs.prune(ctx); err != nil && ctx.Err() == nil {
			s.d.Logger.Warn("old sliding sync connections were not removed", "error", err)
		}
	}
}

const pruneStep = 100 // connections in one transaction

func (cs *connections) prune(ctx context.Context) error {
	before := cs.now().Add(-slidingKept).UnixMilli()
	for {
		n := 0
		err := cs.store.Write(ctx, func(tx *store.Tx) error {
			var err error
			n, err = tx.PruneSliding(before, pruneStep)
			return err
		})
		if err != nil || n < pruneStep {
			return err
		}
	}
}

// DeviceDeleted removes what belongs to a device, in the transaction that deletes it.
func DeviceDeleted(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	return tx.DropSlidingDevice(user, device)
}
