package room

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	batchMax   = 256   // units in one transaction
	queueMax   = 20000 // units that may wait
	commitTry  = 6     // rebuilds of a unit that lost against another node
	underLock  = 3     // from this try on a stale room is rebuilt inside the lock
	prevEvents = 20    // the most prev_events an event may have
	rideEvents = 8     // the most that riders add to a transaction of others, if it is more than one rider

	settleTime = 5 * time.Second // for finding out how a commit ended whose answer was lost
)

// unit is what one request wants committed: all of its drafts or none.
type unit struct {
	room     *Room // nil while a new room has none
	create   *newRoom
	drafts   []Draft
	txnKey   []int64                  // one for each draft, 0 without
	bodies   map[int64]*event.Event   // state that was read before, by number: the committer needs no database to authorise
	target   map[id.EventID]*Event    // events that drafts redact
	features [][]byte                 // push features, one for each draft
	policy   *policyCheck             // nil: the room has no policy server
	rides    bool                     // nobody waits for it: see store.Riding
	came     time.Time                // of one that rides
	also     func(tx *store.Tx) error // what is written in the same transaction, behind the events; nil: nothing

	ids   []id.EventID
	err   error
	stale bool // lost against another node: to be built again
	again bool // was sent before: ids are those of then
	tries int
	done  chan struct{}
}

// committerQueue holds the units that wait for the next transaction. Riders among them wait for a pause between others (see
// store.Riding), or go along with them when they have waited for long.
type committerQueue struct {
	mu     sync.Mutex
	units  []*unit
	riders []*unit
	rideIn func(came time.Time) (wait time.Duration, due bool)
	wake   chan struct{}
	ended  bool
}

func (q *committerQueue) put(u *unit) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ended {
		return mxerr.Unavailable("the server is shutting down")
	}
	if len(q.units)+len(q.riders) >= queueMax {
		return mxerr.Unavailable("the server is overloaded, try again soon")
	}
	if u.rides {
		u.came = time.Now()
		q.riders = append(q.riders, u)
	} else {
		q.units = append(q.units, u)
	}
	q.kick()
	return nil
}

// kick has the committer look at the queue.
func (q *committerQueue) kick() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take gives the units of the next transaction, and the riders that go along.
func (q *committerQueue) take(most int) []*unit {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.units), most)
	out := q.units[:n:n]
	q.units = q.units[n:]
	if len(q.units) == 0 {
		q.units = nil
	}
	for events := 0; len(q.riders) > 0 && len(out) < most; {
		u := q.riders[0]
		if wait, due := q.rideIn(u.came); !q.ended && (wait > 0 || n > 0 && !due) {
			if n == 0 {
				time.AfterFunc(wait, q.kick)
			}
			break
		}
		if events += len(u.drafts); events > rideEvents && events > len(u.drafts) {
			break // they go with the next transaction
		}
		out = append(out, u)
		q.riders = q.riders[1:]
	}
	if len(q.riders) == 0 {
		q.riders = nil
	}
	return out
}

// waiting is how many units wait.
func (q *committerQueue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.units) + len(q.riders)
}

// Run commits what is sent, until ctx ends and the queue is empty.
func (rs *Rooms) Run(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-rs.queue.wake:
		case <-tick.C:
			rs.dropResting()
			continue
		case <-ctx.Done():
			rs.queue.mu.Lock()
			rs.queue.ended = true
			rs.queue.mu.Unlock()
		}
		for {
			rs.pace(ctx)
			units := rs.queue.take(batchMax)
			if len(units) == 0 {
				break
			}
			// what was accepted into the queue is finished even while shutting down
			rs.commit(context.WithoutCancel(ctx), units)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// commit brings units into the log: in one transaction if all goes well. Units that lose against another node are
// built again on what it wrote; a transaction that the database refuses is halved until the guilty unit is alone.
func (rs *Rooms) commit(ctx context.Context, units []*unit) {
	for len(units) > 0 {
		rs.pacer.began = time.Now()
		b := rs.form(units)
		write := ctx
		if !slices.ContainsFunc(units, func(u *unit) bool { return !u.rides }) {
			write = store.Riding(ctx)
		}
		err := rs.d.Store.WriteFirst(write, b.write)
		if errors.Is(err, store.ErrUnknownOutcome) {
			err = rs.settle(ctx, b, err)
		}
		units = b.units
		if err == nil && b.head > b.found {
			rs.pacer.end(len(units)+rs.queue.waiting(), b.head-b.found, rs.d.Store.Foreign())
		}
		if err != nil {
			rs.failed(ctx, b, units, err)
			return
		}
		rs.showRepeated(ctx, units)
		var again []*unit
		for _, u := range units {
			if u.stale && u.tries < commitTry {
				u.stale = false
				u.tries++
				again = append(again, u)
				continue
			}
			if u.stale {
				u.err = mxerr.Unavailable("the room is too busy, try again soon")
			}
			close(u.done)
		}
		if len(again) > 0 {
			if err := rs.d.Store.CatchUp(ctx); err != nil {
				for _, u := range again {
					u.err = err
					close(u.done)
				}
				return
			}
		}
		units = again
	}
}

// showRepeated waits until this process shows what another one has committed and a unit asked for again: what is
// acknowledged here can be read here. If the database is away it is acknowledged all the same, because it is stored.
func (rs *Rooms) showRepeated(ctx context.Context, units []*unit) {
	for _, u := range units {
		if u.again && u.err == nil && !u.stale {
			if err := rs.d.Store.CatchUp(ctx); err != nil {
				rs.d.Logger.Warn("a repeated request is answered before this node shows its events", "error", err)
			}
			return
		}
	}
}

// failed deals with a transaction that was refused whole.
func (rs *Rooms) failed(ctx context.Context, b *commitBatch, units []*unit, err error) {
	var live []*unit
	for _, u := range units {
		if u.err != nil {
			close(u.done) // refused before: that answer stands
		} else {
			live = append(live, u)
		}
	}
	if len(live) == 1 && store.IsEventTwice(err) && live[0].tries < commitTry && rs.d.Store.CatchUp(ctx) == nil {
		// Another process was sent the same words by the same user in the same millisecond, on the same events: behind its event
		// this one is another.
		live[0].ids, live[0].stale = nil, false
		live[0].tries++
		rs.commit(ctx, live)
		return
	}
	if len(live) <= 1 || mxerr.Is(err, "M_UNKNOWN") {
		for _, u := range live {
			u.err = err
			close(u.done)
		}
		return
	}
	if mxerr.As(err) == nil {
		rs.d.Logger.Warn("a transaction was refused; its halves are tried apart", "units", len(live), "error", err)
	}
	for _, u := range live {
		u.ids, u.stale = nil, false
	}
	rs.commit(ctx, live[:len(live)/2])
	rs.commit(ctx, live[len(live)/2:])
}

// settle finds out what became of a transaction whose COMMIT had no answer. The log's lock is free only once the
// database has ended that transaction, one way or the other.
func (rs *Rooms) settle(ctx context.Context, b *commitBatch, cause error) error {
	var ids []string
	for _, rb := range b.rooms {
		for _, e := range rb.events {
			ids = append(ids, string(e.ID()))
		}
	}
	if len(ids) == 0 {
		return cause
	}
	found := 0
	var err error
	for began := time.Now(); ; {
		err = rs.d.Store.Write(ctx, func(tx *store.Tx) error {
			if err := tx.LockHead(); err != nil {
				return err
			}
			rows, err := tx.EventsByID(ids)
			found = len(rows)
			return err
		})
		if err == nil || time.Since(began) > settleTime {
			break
		}
		time.Sleep(500 * time.Millisecond)
	}
	if err != nil || found < len(ids) {
		return cause
	}
	if err := rs.d.Store.CatchUp(ctx); err != nil {
		// it is stored: to try it again would store it twice
		rs.d.Logger.Warn("a commit of unknown outcome is answered before this node shows its events", "error", err)
	}
	return nil
}

// roomBatch is what a transaction adds to one room.
type roomBatch struct {
	room    *Room // nil for a new room until it has a number
	nid     int64
	create  *newRoom
	units   []*unit
	base    baseState
	line    lineState
	events  []*Event
	txnKeys []int64
	owners  []*unit
	keys    map[int64]*unit // who has a transaction id in this batch
}

// baseState is what a roomBatch was built on; the commit checks that it still holds.
type baseState struct {
	stateVersion int64
	lastPos      int64
	ext          []extremity
	depth        int64
}

// lineState is the room as it stands after the events built up to now.
type lineState struct {
	ext     []extremity
	depth   int64
	changes map[event.StateKeyTuple]*event.Event
	states  int64
}

// commitBatch is one transaction in the making.
type commitBatch struct {
	rs     *Rooms
	units  []*unit
	rooms  []*roomBatch
	byRoom map[*Room]*roomBatch
	full   bool // nothing is gathered any more

	found, head int64 // the log's head when it was locked, and behind this batch
}

// form authorises and builds the events of units on the rooms in memory.
func (rs *Rooms) form(units []*unit) *commitBatch {
	b := &commitBatch{rs: rs, byRoom: map[*Room]*roomBatch{}}
	b.add(units)
	return b
}

// add puts units into the batch, behind those of their room that are in it already.
func (b *commitBatch) add(units []*unit) {
	b.units = append(b.units, units...)
	for _, u := range units {
		u.err, u.ids, u.again = nil, nil, false
		rb := b.byRoom[u.room]
		if u.create != nil || rb == nil {
			rb = &roomBatch{create: u.create}
			if u.create == nil {
				rb.room, rb.nid = u.room, u.room.nid
				b.byRoom[u.room] = rb
			}
			b.rooms = append(b.rooms, rb)
			rb.snapshot()
			rb.clear()
		}
		rb.units = append(rb.units, u)
		b.rs.extend(rb, u)
	}
}

// gather takes what comes into the batch while the log's lock is waited for, which other processes may hold: otherwise all of it
// would wait for another turn, and the database would work for twice as many transactions. It ends when stop is called, with what
// waits then.
func (b *commitBatch) gather() (stop func()) {
	if b.full || b.rs.d.Store.SQLite() {
		return func() {}
	}
	b.full = true // what is built behind the lock is not to be added to when the transaction runs again
	locked, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			last := false
			select {
			case <-b.rs.queue.wake:
			case <-locked:
				last = true
			}
			b.add(b.rs.queue.take(batchMax - len(b.units)))
			if last {
				return
			}
		}
	}()
	return func() {
		close(locked)
		<-done
	}
}

// snapshot takes the base from memory.
func (rb *roomBatch) snapshot() {
	if rb.create != nil {
		rb.base = baseState{}
		return
	}
	h, done := rb.room.view()
	defer done()
	rb.base = baseState{stateVersion: h.stateVersion, lastPos: h.lastPos, ext: h.ext, depth: h.depth}
}

// clear brings a room's batch back to its base.
func (rb *roomBatch) clear() {
	rb.events, rb.txnKeys, rb.owners = nil, nil, nil
	if rb.create != nil && rb.create.version.RoomIDIsCreateHash {
		rb.create.roomID = ""
	}
	rb.line = lineState{ext: rb.base.ext, depth: rb.base.depth, changes: map[event.StateKeyTuple]*event.Event{}}
	rb.keys = map[int64]*unit{}
}

// build authorises and builds the events of all units of a room, in order, on its base. skip names units that are
// answered already.
func (rs *Rooms) build(rb *roomBatch, skip map[*unit]bool) {
	rb.clear()
	for _, u := range rb.units {
		if !skip[u] && u.err == nil {
			rs.extend(rb, u)
		}
	}
}

// extend builds a unit's events behind what the batch has for the room. A unit that is refused leaves no trace; those behind
// it go on without it.
func (rs *Rooms) extend(rb *roomBatch, u *unit) {
	if first := repeated(rb.keys, u); first != nil {
		// the same request twice in one batch: it gets the first one's answer after the next look at the database
		u.stale = true
		return
	}
	mark, line := len(rb.events), rb.line
	saved := make(map[event.StateKeyTuple]*event.Event, len(line.changes))
	for k, v := range line.changes {
		saved[k] = v
	}
	if err := rs.buildUnit(rb, u); err != nil {
		u.err = err
		rb.events, rb.txnKeys, rb.owners = rb.events[:mark], rb.txnKeys[:mark], rb.owners[:mark]
		rb.line = line
		rb.line.changes = saved
		return
	}
	for _, k := range u.txnKey {
		if k != 0 {
			rb.keys[k] = u
		}
	}
}

func repeated(seen map[int64]*unit, u *unit) *unit {
	for _, k := range u.txnKey {
		if k != 0 && seen[k] != nil {
			return seen[k]
		}
	}
	return nil
}

// buildUnit builds one unit's events.
func (rs *Rooms) buildUnit(rb *roomBatch, u *unit) error {
	u.ids = u.ids[:0]
	u.policy.begin()
	for i := range u.drafts {
		e, err := rs.buildEvent(rb, u, i)
		if err != nil {
			return err
		}
		rb.events = append(rb.events, e)
		rb.txnKeys = append(rb.txnKeys, u.txnKey[i])
		rb.owners = append(rb.owners, u)
		u.ids = append(u.ids, e.ID())
	}
	return u.policy.complete()
}

// buildEvent authorises a draft against the room as it stands in the batch, and makes it an event.
func (rs *Rooms) buildEvent(rb *roomBatch, u *unit, i int) (*Event, error) {
	d := &u.drafts[i]
	var v *event.Version
	p := &event.Proto{Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content, OriginServerTS: d.TS, Redacts: d.Redacts}
	if rb.create != nil {
		v = rb.create.version
		p.RoomID = rb.create.roomID
	} else {
		v = rb.room.Version()
		p.RoomID = rb.room.id
	}
	p.Depth = rb.line.depth + 1
	ext := rb.line.ext
	if len(ext) > prevEvents {
		ext = ext[len(ext)-prevEvents:]
	}
	p.PrevEvents = make([]id.EventID, len(ext))
	for i, x := range ext {
		p.PrevEvents[i] = x.id
	}
	st := &buildState{rs: rs, rb: rb, u: u}
	if err := v.CheckProto(p, st); err != nil {
		if st.err != nil {
			return nil, st.err
		}
		return nil, err
	}
	for _, t := range v.AuthTypes(d.Type, d.StateKey, d.Sender, d.Content) {
		if a := st.Get(t.Type, t.StateKey); a != nil {
			p.AuthEvents = append(p.AuthEvents, a.ID())
		}
	}
	if st.err != nil {
		return nil, st.err
	}
	p.EventID = u.policy.eventID(v, i)
	pdu, err := v.Build(p, rs.d.ServerName, rs.d.Key)
	if err != nil {
		return nil, err
	}
	pdu = u.policy.signed(pdu, i)
	if rb.create != nil && rb.create.roomID == "" {
		rb.create.roomID = pdu.RoomID()
	}
	e := &Event{PDU: pdu, Device: d.Device, Txn: d.Txn, Status: store.StatusAccepted, Features: u.features[i]}
	rb.line.depth = pdu.Depth()
	rb.line.ext = follow(rb.line.ext, pdu)
	if t, ok := stateTuple(pdu); ok {
		rb.line.changes[t] = pdu
		rb.line.states++
	}
	return e, nil
}

// buildState is the room's state inside a batch: what the batch has changed, then what is in memory, then what the unit
// has read before, and the database last.
type buildState struct {
	rs  *Rooms
	rb  *roomBatch
	u   *unit
	err error
}

func (s *buildState) Get(evType, stateKey string) *event.Event {
	t := event.StateKeyTuple{Type: evType, StateKey: stateKey}
	if e := s.rb.line.changes[t]; e != nil {
		return e
	}
	if s.rb.create != nil {
		return nil
	}
	h, done := s.rb.room.view()
	nid, e := h.stateNID(s.rs, t)
	done()
	if e != nil {
		return e.PDU
	}
	if nid == 0 {
		return nil
	}
	if p := s.u.bodies[nid]; p != nil {
		return p
	}
	evs, err := s.rs.EventsByNID(context.Background(), []int64{nid})
	if err != nil || len(evs) == 0 {
		s.err = err
		return nil
	}
	return evs[0].PDU
}

// refresh moves a room's base to what the locked database says. It tells whether the events must be built again, which
// fewer says already, and whether the room in memory is behind.
func (rb *roomBatch) refresh(row *store.Room, fewer bool) (rebuild, behind bool, err error) {
	if row.StateVersion != rb.base.stateVersion {
		return false, true, nil
	}
	if row.LastPos == rb.base.lastPos {
		return fewer, false, nil
	}
	// others sent messages meanwhile. Messages may fork; a state event must follow everything
	ext, err := unpackExtremities(row.Extremities)
	if err != nil {
		return false, false, err
	}
	if fewer || rb.line.states > 0 || len(ext) > prevEvents/2 {
		rb.base = baseState{stateVersion: row.StateVersion, lastPos: row.LastPos, ext: ext, depth: row.Depth}
		return true, false, nil
	}
	line := ext
	for _, e := range rb.events {
		line = follow(line, e.PDU)
	}
	rb.line.ext = line
	rb.line.depth = max(rb.line.depth, row.Depth)
	return false, false, nil
}

// write is the transaction. It may run again, so it starts from the units each time.
func (b *commitBatch) write(tx *store.Tx) error {
	if b.rs.d.Store.SQLite() && !b.full {
		// what came while the writer was waited for goes along
		b.full = true
		late := b.rs.queue.take(batchMax - len(b.units))
		if slices.ContainsFunc(late, func(u *unit) bool { return !u.rides }) {
			tx.Hurry()
		}
		b.add(late)
	}
	// Where units came along while the lock was waited for, so they will now: all is asked for behind it, together.
	var rooms, keys []int64
	if !b.rs.gathers {
		rooms, keys = b.compared()
	}
	before := len(b.units)
	stop := b.gather()
	st, err := tx.LockStanding(rooms, keys)
	stop()
	b.rs.gathers = len(b.units) > before
	if err != nil {
		return err
	}
	b.found = tx.Head()
	if err := b.check(tx, st); err != nil {
		return err
	}
	w := &writer{rs: b.rs, tx: tx, now: b.rs.d.Now().UnixMilli()}
	for _, rb := range b.rooms {
		if len(rb.events) == 0 {
			continue
		}
		if err := w.addRoom(rb); err != nil {
			return err
		}
	}
	b.head = tx.Head()
	if err := w.flush(); err != nil {
		return err
	}
	for _, u := range b.units {
		if u.also == nil || u.err != nil || u.stale || u.again {
			continue
		}
		if err := u.also(tx); err != nil {
			return err
		}
	}
	return nil
}

// compared tells which rooms and hashes of transaction ids check needs from the database.
func (b *commitBatch) compared() (rooms, keys []int64) {
	for _, rb := range b.rooms {
		if rb.create == nil && len(rb.events) > 0 {
			rooms = append(rooms, rb.nid)
		}
		for _, k := range rb.txnKeys {
			if k != 0 {
				keys = append(keys, k)
			}
		}
	}
	return rooms, keys
}

// check compares the batch with the locked database: what was sent before is answered, what is stale leaves the batch. What was gathered
// meanwhile is asked for behind the rest.
func (b *commitBatch) check(tx *store.Tx, st *store.Standing) error {
	rooms, keys := b.compared()
	if err := tx.Stand(st, rooms, keys); err != nil {
		return err
	}
	for _, rb := range b.rooms {
		if rb.create != nil || len(rb.events) == 0 {
			continue
		}
		if err := b.checkRoom(tx, rb, st.Rooms[rb.nid], st.Hits); err != nil {
			return err
		}
	}
	return nil
}

func (b *commitBatch) checkRoom(tx *store.Tx, rb *roomBatch, row *store.Room, hits []store.TxnHit) error {
	if row == nil {
		return mxerr.NotFound("the room was deleted")
	}
	answered := map[*unit]bool{}
	for _, u := range rb.units {
		if ids := u.sentBefore(hits, rb.nid); ids != nil {
			u.ids, u.again = ids, true
			answered[u] = true
		}
	}
	rebuild, behind, err := rb.refresh(row, len(answered) > 0)
	if err != nil {
		return err
	}
	if behind {
		tries := 0
		for _, u := range rb.units {
			tries = max(tries, u.tries)
		}
		if tries < underLock {
			for _, u := range rb.units {
				if !answered[u] {
					// A denial does not stand either: what stood before it in this batch will perhaps never be.
					u.err, u.stale = nil, true
				}
			}
			rb.events, rb.txnKeys, rb.owners = nil, nil, nil
			return nil
		}
		// lost three times: read the room inside the lock, where nobody can be quicker
		if err := b.rs.reread(tx, rb); err != nil {
			return err
		}
		for _, u := range rb.units {
			u.err = nil
		}
		rebuild = true
	}
	if rebuild {
		keep := make([][]id.EventID, len(rb.units))
		for i, u := range rb.units {
			if answered[u] {
				keep[i] = u.ids
			}
		}
		b.rs.build(rb, answered)
		for i, u := range rb.units {
			if answered[u] {
				u.ids = keep[i]
			}
		}
	}
	return nil
}

// reread puts the room as the transaction sees it into memory and into the batch's base.
func (rs *Rooms) reread(tx *store.Tx, rb *roomBatch) error {
	h, err := rs.readHot(tx, rb.nid)
	if err != nil {
		return err
	}
	rb.base = baseState{stateVersion: h.stateVersion, lastPos: h.lastPos, ext: h.ext, depth: h.depth}
	private := &Room{rs: rs, nid: rb.nid, id: rb.room.id, hot: h}
	private.lastPos.Store(h.lastPos)
	rb.room = private
	return nil
}

// sentBefore gives the event ids of a unit whose transaction ids are in the database already.
func (u *unit) sentBefore(hits []store.TxnHit, room int64) []id.EventID {
	var ids []id.EventID
	for i, k := range u.txnKey {
		if k == 0 {
			continue
		}
		for _, h := range hits {
			if h.TxnKey == k && h.Room == room && h.ID == u.drafts[i].Txn && h.Device == string(u.drafts[i].Device) {
				ids = append(ids, id.EventID(h.EventID))
			}
		}
	}
	return ids
}
