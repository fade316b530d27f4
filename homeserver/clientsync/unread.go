package clientsync

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	unreadMost       = 10_000 // of a room's newest events are counted
	unreadInMemory   = 64     // are looked for in the room's memory first
	unreadCacheBytes = 32 << 20
	unreadSaveEvery  = 30 * time.Second
	unreadSaveAfter  = 500 // events read from the database are worth a row
)

// Counts are a user's unread notifications in a room or a thread.
type Counts struct{ Notifications, Highlights int64 }

func (c Counts) plus(d Counts) Counts {
	return Counts{c.Notifications + d.Notifications, c.Highlights + d.Highlights}
}

// Unread is what a user has not read of a room.
type Unread struct {
	Main    Counts            // the main timeline
	Threads map[string]Counts // by the event id of the thread's root
}

// Total is the sum over the main timeline and all threads.
func (u Unread) Total() Counts {
	sum := u.Main
	for _, c := range u.Threads {
		sum = sum.plus(c)
	}
	return sum
}

// unreadCounts counts unread events when they are asked for; sending a message writes nothing. A memo for each user and
// room moves forward, so that an event is looked at once.
type unreadCounts struct {
	s     *Sync
	memos *otter.Cache[unreadKey, *unreadMemo]

	mu    sync.Mutex
	dirty map[unreadKey]*unreadMemo // to be saved
}

type unreadKey struct {
	user id.UserID
	room int64
}

func newUnreadCounts(s *Sync) *unreadCounts {
	return &unreadCounts{s: s, dirty: make(map[unreadKey]*unreadMemo), memos: otter.Must(&otter.Options[unreadKey, *unreadMemo]{
		MaximumWeight: unreadCacheBytes,
		Weigher:       func(_ unreadKey, m *unreadMemo) uint32 { return 200 + m.bytes },
	})}
}

// reset forgets all memos: this process lost its place in the log.
func (u *unreadCounts) reset() { u.memos.InvalidateAll() }

// prepare loads in one query what was saved of rooms whose memos are not in memory.
func (u *unreadCounts) prepare(ctx context.Context, user id.UserID, nids []int64) error {
	var missing []int64
	for _, nid := range nids {
		if _, ok := u.memos.GetIfPresent(unreadKey{user, nid}); !ok {
			missing = append(missing, nid)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var saved []store.Unread
	err := u.s.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		saved, err = tx.UserUnread(string(user), missing)
		return err
	})
	if err != nil {
		return err
	}
	for _, nid := range missing {
		m := &unreadMemo{}
		if i := slices.IndexFunc(saved, func(x store.Unread) bool { return x.Room == nid }); i >= 0 {
			if err := m.decode(saved[i].Counted); err == nil { // a damaged row is counted again
				m.upto, m.bytes = saved[i].Ord, m.size()
			}
		}
		u.memos.SetIfAbsent(unreadKey{user, nid}, m)
	}
	return nil
}

func (u *unreadCounts) memo(ctx context.Context, key unreadKey) (*unreadMemo, error) {
	if m, ok := u.memos.GetIfPresent(key); ok {
		return m, nil
	}
	if err := u.prepare(ctx, key.user, []int64{key.room}); err != nil {
		return nil, err
	}
	if m, ok := u.memos.GetIfPresent(key); ok {
		return m, nil
	}
	return &unreadMemo{}, nil // dropped again at once: the cache is full
}

// count gives what a user who is joined to the room has not read of it, up to a place in the timeline.
// Spec: client-server API, "Receiving notifications".
func (u *unreadCounts) count(ctx context.Context, user id.UserID, ur *room.UserRoom, upto int64, ignored map[id.UserID]struct{}) (Unread, error) {
	if u.s.d.Rules == nil {
		return Unread{}, nil
	}
	rr, err := u.s.receipts.one(ctx, ur.Room.NID())
	if err != nil {
		return Unread{}, err
	}
	read := rr.readBy(user)
	key := unreadKey{user, ur.Room.NID()}
	m, err := u.memo(ctx, key)
	if err != nil {
		return Unread{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen(&read)
	c := scan{u: u, user: user, ur: ur, read: &read, ignored: ignored, memo: m}
	if m.upto < upto {
		from := max(m.upto, read.all)
		if from < ur.Pos {
			// the membership changed behind what was counted: what came before the user's (last) join does not count
			joined, err := u.s.joinedAt(ctx, user, ur)
			if err != nil {
				return Unread{}, err
			}
			if joined > from {
				from = joined
				m.forget()
			}
		}
		if from < upto {
			if err := c.run(ctx, from, upto); err != nil {
				m.items = slices.DeleteFunc(m.items, func(x unreadItem) bool { return x.ord > m.upto }) // they are looked at again
				return Unread{}, err
			}
			m.settle()
		}
		m.upto = upto
	}
	if err := c.again(ctx); err != nil {
		return Unread{}, err
	}
	u.note(key, m)
	return m.sum(), nil
}

// note keeps the cache's idea of a memo's size, and remembers memos that are worth saving.
func (u *unreadCounts) note(key unreadKey, m *unreadMemo) {
	if n := m.size(); n > 2*m.bytes+1024 || n < m.bytes/2 {
		m.bytes = n
		u.memos.Set(key, m)
	}
	if m.work >= unreadSaveAfter {
		m.work = 0
		u.mu.Lock()
		u.dirty[key] = m
		u.mu.Unlock()
	}
}

// joinedAt is the place in the timeline at which the user came into the room.
func (s *Sync) joinedAt(ctx context.Context, user id.UserID, ur *room.UserRoom) (int64, error) {
	evs, err := s.d.Rooms.EventsByNID(ctx, []int64{ur.MemberNID})
	if err != nil || len(evs) == 0 {
		return ur.Pos, err
	}
	prev, err := s.prevOf(ctx, evs[0])
	if err != nil {
		return 0, err
	}
	if prev == nil || prev.PDU.Membership() != "join" {
		return evs[0].Ord, nil
	}
	history, err := s.d.Rooms.MembershipHistory(ctx, ur.Room, user)
	if err != nil {
		return 0, err
	}
	at := evs[0].Ord
	for i := len(history) - 1; i >= 0 && history[i].Membership == room.MembershipJoin; i-- {
		at = min(at, history[i].Ord)
	}
	return at, nil
}

// scan looks at events for one memo.
type scan struct {
	u       *unreadCounts
	user    id.UserID
	ur      *room.UserRoom
	read    *readUpTo
	ignored map[id.UserID]struct{}
	memo    *unreadMemo
	rules   *Rules
	counted bool // the memo held something before: what is redacted now may be in it
}

// run adds the events with from < ord <= upto.
func (c *scan) run(ctx context.Context, from, upto int64) error {
	c.counted = !c.memo.empty()
	page, err := c.u.s.d.Rooms.Timeline(ctx, c.ur.Room, room.TimelineQuery{From: upto + 1, To: from, Backwards: true, Limit: unreadInMemory})
	if err != nil {
		return err
	}
	for _, e := range page.Events {
		if e.RedactedBy != 0 {
			continue
		}
		if c.counted && e.PDU.Type() == "m.room.redaction" {
			if err := c.redact(ctx, e.PDU.Redacts()); err != nil {
				return err
			}
		}
		if err := c.look(ctx, e.Ord, e.NID, e.Features, e.PDU.Sender(), e); err != nil {
			return err
		}
	}
	if !page.More {
		return nil
	}
	return c.stored(ctx, from, page.End)
}

// again counts sums that do not hold any more.
func (c *scan) again(ctx context.Context) error {
	for i := range c.memo.older {
		x := &c.memo.older[i]
		if !x.stale {
			continue
		}
		first, last, _ := x.span()
		part := *c
		part.memo, part.counted = &unreadMemo{}, false
		if err := part.stored(ctx, first-1, last+1); err != nil {
			return err
		}
		c.rules = part.rules
		c.memo.work += part.memo.work
		*x = sumOf(part.memo.items)
	}
	c.memo.tidy()
	return nil
}

// stored scans what is too old for the room's memory.
func (c *scan) stored(ctx context.Context, from, before int64) error {
	type found struct {
		ord, nid int64
		features []byte
		sender   id.UserID
	}
	var list []found
	var redacted []id.EventID
	n := 0
	if err := c.loadRules(ctx); err != nil {
		return err
	}
	skips := c.rules.Skips
	if c.counted {
		skips = nil // a redaction notifies nobody, but may take something out of the count
	}
	err := c.u.s.d.Store.Read(ctx, func(tx *store.Tx) error {
		list, redacted, n = nil, nil, 0
		return tx.ScanTimeline(c.ur.Room.NID(), before, from, unreadMost-unreadInMemory, func(e *store.ScanEvent) error {
			n++
			if len(e.Features) == 0 || (skips != nil && skips(e.Features)) {
				return nil // the first: redacted
			}
			body, err := e.Body()
			if err != nil {
				return err
			}
			v := gjson.GetManyBytes(body, "sender", "type")
			if c.counted && v[1].Str == "m.room.redaction" {
				for _, path := range []string{"content.redacts", "redacts"} {
					if t := gjson.GetBytes(body, path); t.Type == gjson.String {
						redacted = append(redacted, id.EventID(t.String()))
						break
					}
				}
			}
			list = append(list, found{e.Ord, e.NID, slices.Clone(e.Features), id.UserID(v[0].String())})
			return nil
		})
	})
	if err != nil {
		return err
	}
	c.memo.work += n
	for _, target := range redacted {
		if err := c.redact(ctx, target); err != nil {
			return err
		}
	}
	for i := range list {
		x := &list[i]
		if err := c.look(ctx, x.ord, x.nid, x.features, x.sender, nil); err != nil {
			return err
		}
	}
	return nil
}

// redact takes an event that was redacted meanwhile out of the count.
func (c *scan) redact(ctx context.Context, target id.EventID) error {
	if target == "" {
		return nil
	}
	e, err := c.u.s.d.Rooms.EventByID(ctx, target)
	if err != nil || e == nil || e.RedactedBy == 0 {
		return err
	}
	c.memo.redacted(e.NID, e.Ord)
	return nil
}

func (c *scan) loadRules(ctx context.Context) error {
	if c.rules != nil {
		return nil
	}
	r, err := c.u.s.d.Rules(ctx, c.user, c.ur.Room)
	c.rules = &r
	return err
}

// look adds one event if it notifies and is not read. e may be nil; then it is read where it is needed.
func (c *scan) look(ctx context.Context, ord, nid int64, features []byte, sender id.UserID, e *room.Event) error {
	if sender == c.user || len(features) == 0 {
		return nil
	}
	if _, skip := c.ignored[sender]; skip {
		return nil
	}
	thread := ""
	if c.u.s.d.Thread != nil {
		thread = c.u.s.d.Thread(features)
	}
	if ord <= c.read.thread(thread) {
		return nil
	}
	if err := c.loadRules(ctx); err != nil {
		return err
	}
	if c.rules.Skips != nil && c.rules.Skips(features) {
		return nil
	}
	v, decided := c.rules.Quick(features, sender)
	if !decided {
		if e == nil {
			evs, err := c.u.s.d.Rooms.EventsByNID(ctx, []int64{nid})
			if err != nil || len(evs) == 0 {
				return err
			}
			e = evs[0]
		}
		var err error
		if v, err = c.rules.Full(e); err != nil {
			return err
		}
	}
	if v.Notify {
		c.memo.items = append(c.memo.items, unreadItem{ord, nid, thread, v.Highlight})
	}
	return nil
}

// run saves memos that cost many reads, until ctx ends.
func (u *unreadCounts) run(ctx context.Context) error {
	tick := time.NewTicker(unreadSaveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			u.save(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			u.save(ctx)
		}
	}
}

func (u *unreadCounts) save(ctx context.Context) {
	u.mu.Lock()
	dirty := u.dirty
	u.dirty = make(map[unreadKey]*unreadMemo)
	u.mu.Unlock()
	rows := make([]store.Unread, 0, len(dirty))
	for k, m := range dirty {
		m.mu.Lock()
		rows = append(rows, store.Unread{User: string(k.user), Room: k.room, Ord: m.upto, Counted: m.encode()})
		m.mu.Unlock()
	}
	for chunk := range slices.Chunk(rows, 100) {
		if err := u.s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SaveUnread(chunk) }); err != nil {
			u.s.d.Logger.Warn("unread counts were not saved; they will be counted again", "error", err)
			return
		}
	}
}

// Unread gives what a user has not read of a room; nothing where the user is not joined.
func (s *Sync) Unread(ctx context.Context, user id.UserID, roomID id.RoomID) (Unread, error) {
	r, err := s.d.Rooms.Room(ctx, roomID)
	if err != nil {
		return Unread{}, err
	}
	u, err := s.d.Rooms.User(ctx, user)
	if err != nil {
		return Unread{}, err
	}
	var ur *room.UserRoom
	u.EachRoom(func(x *room.UserRoom) {
		if x.Room == r && x.Membership == room.MembershipJoin {
			c := *x
			ur = &c
		}
	})
	if ur == nil {
		return Unread{}, nil
	}
	ignored, err := s.d.Data.Ignored(ctx, user)
	if err != nil {
		return Unread{}, err
	}
	return s.unread.count(ctx, user, ur, r.LastPos(), ignored)
}

// UnreadTotal counts a user's unread notifications over all joined rooms, for the badges of pushers.
func (s *Sync) UnreadTotal(ctx context.Context, user id.UserID) (Counts, error) {
	u, err := s.d.Rooms.User(ctx, user)
	if err != nil {
		return Counts{}, err
	}
	ignored, err := s.d.Data.Ignored(ctx, user)
	if err != nil {
		return Counts{}, err
	}
	var rooms []room.UserRoom
	var nids []int64
	for _, ur := range u.Rooms() {
		if ur.Membership == room.MembershipJoin {
			rooms = append(rooms, ur)
			nids = append(nids, ur.Room.NID())
		}
	}
	if _, err := s.receipts.of(ctx, nids...); err != nil {
		return Counts{}, err
	}
	if err := s.unread.prepare(ctx, user, nids); err != nil {
		return Counts{}, err
	}
	var sum Counts
	for i := range rooms {
		x, err := s.unread.count(ctx, user, &rooms[i], rooms[i].Room.LastPos(), ignored)
		if err != nil {
			return Counts{}, err
		}
		sum = sum.plus(x.Total())
	}
	return sum, nil
}

// ReceiptUsers lists the users whose receipts in a room changed at a position of the log or later.
func (s *Sync) ReceiptUsers(ctx context.Context, room, pos int64) ([]id.UserID, error) {
	rr, err := s.receipts.one(ctx, room)
	if err != nil {
		return nil, err
	}
	rr.mu.RLock()
	defer rr.mu.RUnlock()
	var out []id.UserID
	for i := len(rr.list) - 1; i >= 0 && rr.list[i].Pos >= pos; i-- {
		if u := id.UserID(rr.list[i].User); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out, nil
}
