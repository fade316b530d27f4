package store

import (
	"context"
	"time"
)

// Riders are writes that nobody waits for, such as those of a directory's first comparison (decision 0483). SQLite has one writer,
// whose every commit waits for the disk, and a message that meets one waits for both: riders share the commits of others
// instead of making their own. PostgreSQL has no such queue; there the mark means nothing.
const (
	rideWait = 12 * time.Millisecond  // how long a rider waits for somebody else's commit
	rideTime = time.Millisecond       // for which riders may hold up the commit that they share; one is always taken
	rideLull = 100 * time.Millisecond // without anybody else, after which nobody is expected and riders go at once
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
	on, _ := ctx.Value(ridingKey{}).(bool)
	return on && s.SQLite()
}

// RideAfter is how long a rider waits for company at the most; last is when somebody was seen last.
func RideAfter(last time.Time) time.Duration {
	if time.Since(last) > rideLull {
		return 0
	}
	return rideWait
}

// Alight lets those whose commit was shared go first.
func Alight() { time.Sleep(rideRest) }

// ride is write for what nobody waits for: it shares the next commit of somebody else, or is committed without one when none comes.
func (b *sqliteBackend) ride(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	w := &sqliteWrite{ctx: ctx, fn: fn, committed: committed, done: make(chan struct{})}
	b.mu.Lock()
	b.riders = append(b.riders, w)
	wait := RideAfter(b.company)
	b.mu.Unlock()
	defer Alight()
	alone := time.NewTimer(wait)
	defer alone.Stop()
	select {
	case <-w.done:
		return w.err
	case <-alone.C:
	case <-ctx.Done(): // it is taken out of the queue by being run
	}
	return b.await(w)
}
