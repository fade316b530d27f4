package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// Kind says what an entry of the log announces.
type Kind int8

// The kinds of entries. Their numbers are stored: new ones are added at the end.
const (
	KindReset       Kind = iota // never stored: this process lost its place in the log and must drop what it caches
	KindEvent                   // Room, Ref: the event's nid
	KindReceipt                 // Room: receipts of the room changed
	KindAccountData             // User, Key: the type; Room: 0 for global account data
	KindToDevice                // User, Key: the device
	KindDeviceList              // User: devices or cross-signing keys changed
	KindKeys                    // User, Key: the device; one-time or fallback key counts changed
	KindSession                 // User, Key: the device or "" for all; access tokens were revoked or changed
	KindProfile                 // User: display name, avatar or another profile field
	KindPusher                  // User: pushers changed
	KindRoomMeta                // Room: what is not an event changed (published, alias, blocked, purged)
	KindUser                    // User: the account was made, locked, suspended, deactivated
)

// Entry announces one change. Values lie in their own tables with the position of their last change.
type Entry struct {
	Pos  int64
	Kind Kind
	Room int64  // rooms.nid or 0
	User string // Matrix user id or ""
	Key  string
	Ref  int64
	// Payload is what the writer attached for listeners in its own process; it is not stored. Entries of other
	// processes get theirs from a listener's Hydrate.
	Payload any
	// Row is the announced event of a KindEvent entry of another process, where it was read along with the entry.
	Row *Event
}

// Epoch is a stretch of the log between restores: positions of different epochs may name different entries.
type Epoch struct{ Number, First int64 }

// Listener follows the log inside this process.
type Listener struct {
	// Hydrate loads payloads of entries that other processes wrote; it may read the store. Optional.
	Hydrate func(ctx context.Context, entries []Entry) error
	// Apply gets every entry once, in order. It is quick and calls nothing of the store. Optional.
	Apply func(entries []Entry)
	// Wake is called after all listeners have applied the entries and Applied has moved: the place to wake readers. It is
	// called in the order of the log by a goroutine of its own, so that whoever wrote the entries is answered meanwhile.
	// Optional.
	Wake func(entries []Entry)
}

const (
	pollBusy  = 50 * time.Millisecond  // between looks at the head while other processes write
	pollIdle  = 700 * time.Millisecond // shorter than what caches of sessions trust, so that an idle process reads nothing for them
	tailChunk = 2000
	logKeep   = 100_000 // entries kept for processes that lag, however far the followers are
)

func newNodeID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on supported systems
	return hex.EncodeToString(b[:])
}

// LockHead takes the log's head row: from here to COMMIT nobody else gives positions. It comes as late as possible.
func (tx *Tx) LockHead() error {
	if tx.locked {
		return nil
	}
	tx.asked = time.Now()
	if err := tx.c.query(rewrite(tx.c.dialect(), lockHead), nil, tx.holdHead); err != nil {
		return fmt.Errorf("lock the log's head: %w", err)
	}
	return tx.headIsThere()
}

const lockHead = `SELECT pos, event_nid FROM log_head WHERE id = 1 @forupdate`

// holdHead notes the answer of lockHead.
func (tx *Tx) holdHead(r *Row) error {
	if err := r.Scan(&tx.head, &tx.nid); err != nil {
		return err
	}
	tx.locked, tx.found, tx.foundNID = true, tx.head, tx.nid
	return nil
}

func (tx *Tx) headIsThere() error {
	if !tx.locked {
		return errors.New("the log has no head row; the database is damaged")
	}
	return nil
}

// Announce gives the entry its position, which is final if the transaction commits.
func (tx *Tx) Announce(e Entry) (int64, error) {
	if err := tx.LockHead(); err != nil {
		return 0, err
	}
	tx.head++
	e.Pos = tx.head
	tx.entries = append(tx.entries, e)
	return e.Pos, nil
}

// NextEventNID gives the number of a new event.
func (tx *Tx) NextEventNID() (int64, error) {
	if err := tx.LockHead(); err != nil {
		return 0, err
	}
	tx.nid++
	return tx.nid, nil
}

// Head is the last position, this transaction's own included; the head must be locked.
func (tx *Tx) Head() int64 { return tx.head }

var logCols = []Col{{"pos", Int}, {"kind", Int}, {"room", Int}, {"usr", Text}, {"key", Text}, {"ref", Int}}

const updateHead = `UPDATE log_head SET pos = $1, event_nid = $2 WHERE id = 1`

func (tx *Tx) logRow(i int) []any {
	e := &tx.entries[i]
	row := []any{e.Pos, int64(e.Kind), nil, nil, nil, nil}
	if e.Room != 0 {
		row[2] = e.Room
	}
	if e.User != "" {
		row[3] = e.User
	}
	if e.Key != "" {
		row[4] = e.Key
	}
	if e.Ref != 0 {
		row[5] = e.Ref
	}
	return row
}

// flushLog writes the announced entries; SQLite's way.
func (tx *Tx) flushLog() error {
	if !tx.locked {
		return nil
	}
	if err := tx.Insert("log", logCols, len(tx.entries), tx.logRow, ""); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	_, err := tx.Exec(updateHead, tx.head, tx.nid)
	return err
}

// queueLog writes the announced entries in the pipeline that ends with COMMIT; PostgreSQL's way.
func (tx *Tx) queueLog(b *pgx.Batch) error {
	if !tx.locked {
		return nil
	}
	if len(tx.entries) > 0 {
		q := &insertSQL{cols: logCols}
		arrays, err := pgArrays(q, len(tx.entries), tx.logRow)
		if err != nil {
			return err
		}
		b.Queue(insertStatement(insertKey{d: dialectPostgres, table: "log", cols: "pos, kind, room, usr, key, ref"}, logCols), arrays...)
	}
	b.Queue(updateHead, tx.head, tx.nid)
	return nil
}

// Applied is the position up to which this process's memory is.
func (s *Store) Applied() int64 { return s.appliedNow.Load() }

// Epochs lists the log's epochs, oldest first; the last one is current.
func (s *Store) Epochs() []Epoch { return *s.epochs.Load() }

// errNotFollowed is in the chain of WaitApplied's error when the log could not be read meanwhile.
var errNotFollowed = errors.New("this process cannot follow the log at the moment")

// WaitApplied waits until this process has applied the position. It does not wait for a database that is away: when the
// log cannot be read it returns that error.
func (s *Store) WaitApplied(ctx context.Context, pos int64) error {
	s.mu.Lock()
	failures := s.tailFailures
	s.mu.Unlock()
	for {
		s.mu.Lock()
		if s.applied >= pos {
			s.mu.Unlock()
			return nil
		}
		if s.tailFailures != failures {
			err := s.tailErr
			s.mu.Unlock()
			return errors.Join(errNotFollowed, err)
		}
		if s.ended {
			s.mu.Unlock()
			return errNotFollowed
		}
		ch := s.changed
		s.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// CatchUp reads the head from the database and waits until this process has applied it.
func (s *Store) CatchUp(ctx context.Context) error {
	begun := time.Now()
	head, err := s.readHead(ctx)
	if err != nil {
		return err
	}
	return s.catchUpWith(ctx, head, begun)
}

// readHead reads the log's head.
func (s *Store) readHead(ctx context.Context) (head int64, err error) {
	err = s.ReadOne(ctx, func(tx *Tx) error {
		_, err := tx.Get([]any{&head}, `SELECT pos FROM log_head WHERE id = 1`)
		return err
	})
	return head, err
}

// catchUpWith waits until this process has applied a head that was read after begun.
func (s *Store) catchUpWith(ctx context.Context, head int64, begun time.Time) error {
	if s.Applied() < head {
		s.wakeTailer()
		if err := s.WaitApplied(ctx, head); err != nil {
			return err
		}
	}
	s.confirm(begun)
	return nil
}

func (s *Store) wakeTailer() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// deliver takes the entries of a transaction of this process to the listeners, in order.
func (s *Store) deliver(entries []Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first, last := entries[0].Pos, entries[len(entries)-1].Pos
	switch {
	case s.ended: // what others wrote before is not in memory and will not be: nobody may be told that it is
	case !s.follows:
		s.moveTo(max(s.applied, last))
	case last <= s.applied: // the tailer was quicker
	case first <= s.applied+1:
		s.applyLocked(entries[s.applied+1-first:]) // the tailer may have been quicker with the first ones
		s.applyPending()
	default:
		s.pending[first] = batch{entries}
		s.wakeTailer()
	}
	if c := s.caster(); c != nil {
		c.wake(last)
	}
}

// applyPending applies what waits and is next. The tailer may have applied the first entries of a batch already.
func (s *Store) applyPending() {
	for again := true; again; {
		again = false
		for first, b := range s.pending {
			last := b.entries[len(b.entries)-1].Pos
			if first > s.applied+1 {
				continue
			}
			delete(s.pending, first)
			if last > s.applied {
				s.applyLocked(b.entries[s.applied+1-first:])
				again = true
			}
		}
	}
}

func (s *Store) applyLocked(entries []Entry) {
	for _, fn := range s.apply {
		fn(entries)
	}
	s.keepRecent(entries)
	for i := range entries {
		switch e := &entries[i]; e.Kind {
		case KindReset:
			s.appliedNID = 0
		case KindEvent:
			s.appliedNID = max(s.appliedNID, e.Ref)
		}
	}
	s.moveTo(entries[len(entries)-1].Pos)
	if len(s.wakers) > 0 {
		s.toWake = append(s.toWake, entries) // the committer does not wait for readers
		select {
		case s.wakeKick <- struct{}{}:
		default:
		}
	}
}

// wake calls the listeners' Wake until ctx ends.
func (s *Store) wake(ctx context.Context, wakers []func([]Entry)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wakeKick:
		}
		s.mu.Lock()
		entries := slices.Concat(s.toWake...) // what came meanwhile wakes each reader once
		s.toWake = nil
		s.mu.Unlock()
		for _, fn := range wakers {
			fn(entries)
		}
	}
}

func (s *Store) moveTo(pos int64) {
	s.applied = pos
	s.appliedNow.Store(pos)
	s.lookAgain()
}

// lookAgain wakes everybody in WaitApplied.
func (s *Store) lookAgain() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// tailFailed lets those go who wait for entries that cannot be read now.
func (s *Store) tailFailed(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tailFailures++
	s.tailErr = err
	s.lookAgain()
}

// Following is closed once Follow has begun: what is committed from then on reaches the listeners. Whoever keeps in memory
// what the log changes waits for it before the first request.
func (s *Store) Following() <-chan struct{} { return s.started }

// Follow brings this process the entries of all processes until ctx ends. Listeners are called in the order given.
// broadcast gets what Broadcast sends, from every process.
func (s *Store) Follow(ctx context.Context, listeners []Listener, broadcast func(topic, payload string)) error {
	s.mu.Lock()
	for _, l := range listeners {
		if l.Hydrate != nil {
			s.hydrate = append(s.hydrate, l.Hydrate)
		}
		if l.Apply != nil {
			s.apply = append(s.apply, l.Apply)
		}
		if l.Wake != nil {
			s.wakers = append(s.wakers, l.Wake)
		}
	}
	s.follows, s.ended, s.from = true, false, s.applied
	select {
	case <-s.started:
	default:
		close(s.started)
	}
	s.onCast = broadcast
	wakers := s.wakers
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.follows, s.ended = false, true
		s.hydrate, s.apply, s.wakers, s.toWake = nil, nil, nil, nil
		if n := len(s.pending); n > 0 {
			s.log.Warn("the log's follower ends while entries wait", "transactions", n)
		}
		s.lookAgain()
		s.mu.Unlock()
	}()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.tail(ctx) })
	g.Go(func() error { return s.maintain(ctx) })
	g.Go(func() error { return s.wake(ctx, wakers) })
	if c := s.caster(); c != nil {
		g.Go(func() error { return c.run(ctx, s) })
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// tail polls the head and applies what other processes wrote. The polled head is the truth; notifications only
// shorten the wait.
func (s *Store) tail(ctx context.Context) error {
	wait := pollIdle
	timer := time.NewTimer(wait)
	defer timer.Stop()
	lastForeign := time.Time{}
	var trouble trouble
	for {
		hint := int64(0)
		select {
		case <-ctx.Done():
			return nil
		case <-s.kick:
		case hint = <-s.hints:
			if s.comesAlong(ctx, hint) {
				continue
			}
		case <-timer.C:
			age := s.sinceConfirmed()
			if age < wait { // a transaction of this process saw the head meanwhile
				timer.Reset(wait - age)
				continue
			}
			if age < 4*pollBusy && s.inLine.Load() > 0 { // one is about to
				timer.Reset(pollBusy)
				continue
			}
		}
		n := 0
		err := s.relocate(ctx)
		if err == nil {
			n, err = s.tailOnce(ctx, hint)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			if trouble.worthALine() {
				s.log.Warn("the log cannot be read, trying again", "error", err)
			}
			s.tailFailed(err)
		case n > 0:
			lastForeign = time.Now()
		}
		if err == nil && trouble.over() {
			s.log.Info("the log can be read again")
		}
		wait = pollIdle
		if err == nil && time.Since(lastForeign) < 2*time.Second {
			wait = pollBusy
		}
		timer.Reset(wait)
	}
}

// trouble keeps what lasts from filling the operator's log: a line when it begins and one every half minute.
type trouble struct{ said time.Time }

func (t *trouble) worthALine() bool {
	if time.Since(t.said) < 30*time.Second {
		return false
	}
	t.said = time.Now()
	return true
}

// over tells whether there was trouble up to now.
func (t *trouble) over() bool {
	was := !t.said.IsZero()
	t.said = time.Time{}
	return was
}

// tailOnce applies everything up to the head and returns how many entries of others there were. hint is a position that
// is known to be committed, so that the head need not be asked for first; 0 for none.
func (s *Store) tailOnce(ctx context.Context, hint int64) (int, error) {
	foreign := 0
	for {
		begun := time.Now()
		from, head := s.Applied(), hint
		var entries []Entry
		var err error
		if head <= from {
			head, err = s.readHead(ctx)
		}
		if err == nil && head > from {
			// what was committed since the look at the head comes along: the log only grows
			err = s.ReadOne(ctx, func(tx *Tx) error {
				entries = nil
				return tx.Each(readTail, []any{from, int64(math.MaxInt64), tailChunk}, scanTail(&entries))
			})
		}
		if err != nil {
			return foreign, err
		}
		if head <= from {
			s.confirm(begun)
			return foreign, nil
		}
		if len(entries) == 0 || entries[0].Pos != from+1 {
			if head == hint {
				hint = 0 // a hint is not the truth
				continue
			}
			entries = append([]Entry{{Pos: head, Kind: KindReset}}, entries[:0]...)
		}
		hint = 0
		strange := s.strange(entries)
		if err := s.hydrateAll(ctx, strange); err != nil {
			return foreign, err
		}
		foreign += s.applyForeign(strange)
		if len(entries) < tailChunk {
			if s.Applied() >= head {
				s.confirm(begun)
				return foreign, nil
			}
			if len(strange) == 0 {
				return foreign, nil // what is missing is in a commit of this process that is about to be delivered
			}
		}
	}
}

// strange picks the entries that this process has not delivered up to now.
func (s *Store) strange(entries []Entry) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Entry
	for _, e := range entries {
		if e.Kind == KindReset || e.Pos > s.applied && !s.isPendingLocked(e.Pos) {
			out = append(out, e)
		}
	}
	return out
}

// hydrateAll lets the listeners load what belongs to entries of other processes.
func (s *Store) hydrateAll(ctx context.Context, entries []Entry) error {
	if len(entries) == 0 {
		return nil
	}
	s.mu.Lock()
	hydrate := s.hydrate
	s.mu.Unlock()
	for _, fn := range hydrate {
		if err := fn(ctx, entries); err != nil {
			return fmt.Errorf("load entries of the log: %w", err)
		}
	}
	return nil
}

func (s *Store) isPendingLocked(pos int64) bool {
	for _, b := range s.pending {
		if pos >= b.entries[0].Pos && pos <= b.entries[len(b.entries)-1].Pos {
			return true
		}
	}
	return false
}

func (s *Store) applyForeign(strange []Entry) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for len(strange) > 0 {
		if strange[0].Pos <= s.applied {
			strange = strange[1:]
			continue
		}
		if strange[0].Kind == KindReset {
			for first, b := range s.pending {
				if b.entries[len(b.entries)-1].Pos <= strange[0].Pos {
					delete(s.pending, first)
				}
			}
			s.applyLocked(strange[:1])
			return n + 1
		}
		s.applyPending()
		if strange[0].Pos != s.applied+1 {
			if strange[0].Pos > s.applied+1 {
				return n // a commit of ours in between is about to be delivered
			}
			continue
		}
		// one run of consecutive positions at once
		end := 1
		for end < len(strange) && strange[end].Pos == strange[end-1].Pos+1 {
			end++
		}
		s.applyLocked(strange[:end])
		s.foreign.Add(int64(end))
		n += end
		strange = strange[end:]
	}
	s.applyPending()
	return n
}

// ReadLog reads up to limit entries after a position.
func (tx *Tx) ReadLog(after int64, limit int) ([]Entry, error) {
	var out []Entry
	err := tx.Each(`SELECT pos, kind, coalesce(room, 0), coalesce(usr, ''), coalesce(key, ''), coalesce(ref, 0)
		FROM log WHERE pos > $1 ORDER BY pos LIMIT $2`, []any{after, limit}, func(r *Row) error {
		var e Entry
		if err := r.Scan(&e.Pos, &e.Kind, &e.Room, &e.User, &e.Key, &e.Ref); err != nil {
			return err
		}
		out = append(out, e)
		return nil
	})
	return out, err
}

// maintain drops entries that all followers have passed, and moves SQLite's WAL into its file.
func (s *Store) maintain(ctx context.Context) error {
	tick := time.NewTicker(250 * time.Millisecond) // small checkpoints: a large one keeps the disk from the commits
	defer tick.Stop()
	lastPrune := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if b, ok := s.backend.(*sqliteBackend); ok {
			if err := b.checkpoint(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("checkpoint", "error", err)
			}
		}
		if time.Since(lastPrune) < time.Minute {
			continue
		}
		lastPrune = time.Now()
		if err := s.pruneLog(ctx, logKeep); err != nil && ctx.Err() == nil {
			s.log.Warn("drop old entries of the log", "error", err)
		}
	}
}

func (s *Store) pruneLog(ctx context.Context, keep int64) error {
	for {
		var n int64
		err := s.Write(ctx, func(tx *Tx) error {
			var err error
			n, err = tx.Exec(`DELETE FROM log WHERE pos IN (SELECT pos FROM log
				WHERE pos <= (SELECT pos FROM log_head WHERE id = 1) - $1
				AND pos <= coalesce((SELECT min(pos) FROM followers), 9223372036854775807) ORDER BY pos LIMIT 1000)`, keep)
			return err
		})
		if err != nil || n < 1000 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond): // let the chat's own writes through
		}
	}
}
