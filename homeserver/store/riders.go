package store

import (
	"context"
	"sync"
	"time"
)

// Riders are writes that nobody waits for, such as those of a directory's first comparison (decision 0483). SQLite has one writer,
// whose every commit waits for the disk, and a message that meets one waits for both: riders go together, a little at a time, in
// the pauses between what others write, and with the commits of others where there are no pauses. PostgreSQL has no such queue;
// there the mark means nothing.
const (
	rideLull  = 4 * time.Millisecond  // without anybody else: the answer to the last one is out, and riders go
	ridePause = 20 * time.Millisecond // from one transaction of riders to the next, where nobody else has written since
	rideWait  = 45 * time.Millisecond // how long a rider waits for a lull, before it goes along with others or without one
	rideAlone = time.Second           // without anybody else, after which riders need not wait
	rideTime  = time.Millisecond      // for which riders may hold the writer at a time; one is always taken
	// rideRest is how much later than others riders are answered: what they do next would take the CPU from those others' answers.
	rideRest = 5 * time.Millisecond
)

type ridingKey struct{}

// Riding marks what is written with this context as something that nobody waits for.
func Riding(ctx context.Context) context.Context { return context.WithValue(ctx, ridingKey{}, true) }

// Hurried takes the mark of Riding off.
func Hurried(ctx context.Context) context.Context { return context.WithValue(ctx, ridingKey{}, false) }

// Rides tells whether the mark is on and means something on this database.
func (s *Store) Rides(ctx context.Context) bool {
	return riding(ctx) && s.SQLite()
}

func riding(ctx context.Context) bool {
	on, _ := ctx.Value(ridingKey{}).(bool)
	return on
}

// Hurry keeps riders from being put behind this write into one transaction: somebody waits for it.
func (tx *Tx) Hurry() { tx.hurried = true }

// lull knows when somebody was seen who is no rider, and when riders went last.
type lull struct {
	mu         sync.Mutex
	last, rode time.Time
}

func (l *lull) seen() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
}

func (l *lull) went() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rode = time.Now()
}

// wait is how long a rider that came at a time is to wait still, if nobody is seen meanwhile.
func (l *lull) wait(came time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	alone := time.Since(l.last)
	if alone > rideAlone {
		return 0
	}
	pause := ridePause
	if l.last.After(l.rode) {
		pause = rideLull // whoever has just written is the least likely to write again
	}
	return max(0, min(max(rideLull-alone, pause-time.Since(l.rode)), rideWait-time.Since(came)))
}

// RideIn is how long a rider that came at a time is to wait still, and whether it is due: whether it goes along with others rather
// than wait for a lull.
func (s *Store) RideIn(came time.Time) (wait time.Duration, due bool) {
	b, ok := s.backend.(*sqliteBackend)
	if !ok {
		return 0, true
	}
	return b.lull.wait(came), time.Since(came) >= rideWait
}

// Expect says that somebody is about to write for whom riders are to wait.
func (s *Store) Expect() {
	if b, ok := s.backend.(*sqliteBackend); ok {
		b.lull.seen()
	}
}

// due tells whether a rider goes along with others. One whose time is over has to be run to be out of the queue.
func (w *sqliteWrite) due() bool { return time.Since(w.came) >= rideWait || w.ctx.Err() != nil }

// Alight lets those whose commit was shared go first.
func Alight() { time.Sleep(rideRest) }

// ride is write for what nobody waits for.
func (b *sqliteBackend) ride(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	w := &sqliteWrite{ctx: ctx, fn: fn, committed: committed, done: make(chan struct{}), came: time.Now(), rides: true}
	b.mu.Lock()
	b.riders = append(b.riders, w)
	b.mu.Unlock()
	defer Alight()
	for {
		writer, later := b.writer, (<-chan time.Time)(nil)
		if wait := b.lull.wait(w.came); wait > 0 && ctx.Err() == nil {
			writer, later = nil, time.After(wait)
		}
		select {
		case <-w.done:
			return w.err
		case c := <-writer:
			b.commitNext(c)
		case <-later:
		}
		if w.ended() {
			return w.err
		}
	}
}
