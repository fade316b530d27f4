package room

import (
	"context"
	"time"
)

const (
	paceMost = 20 * time.Millisecond // that a batch is held back
	// paceWide makes turns wider than transactions take: those grow with what is in them, so that turns of their width would keep
	// batches at whatever size they have.
	paceWide   = 2
	paceOthers = 8 // the most that others count for: somebody who writes little waits for a few only
)

// pacer keeps the database's transactions as few with several processes as with one: where others write too, this process asks for
// the log's lock only in its turn, unless everybody whom it answered last has come back. A process that writes alone waits
// for nothing. It belongs to the committer's goroutine.
type pacer struct {
	busy    float64   // ns that a transaction takes from its beginning until it is applied, on the average
	own     float64   // entries of a transaction, on the average
	foreign float64   // entries of others between two of this process's transactions, on the average
	applied int64     // how many entries of others were applied when the last one ended
	began   time.Time // when the last one began
	all     int       // units of the last one, and those that waited when it ended
}

// end notes that a transaction is committed and applied. all is how many were answered by it or wait, foreign how many entries of
// others this process has applied up to now.
func (p *pacer) end(all int, entries, foreign int64) {
	drift(&p.busy, float64(time.Since(p.began)))
	drift(&p.own, float64(entries))
	drift(&p.foreign, float64(min(foreign-p.applied, 1000)))
	p.all, p.applied = all, foreign
}

// drift moves an average towards what was seen last.
func drift(average *float64, seen float64) { *average += (seen - *average) / 4 }

// until is when the turn comes.
func (p *pacer) until() time.Time {
	if p.own == 0 || p.foreign < p.own/4 {
		return p.began
	}
	turns := paceWide * (1 + min(p.foreign/p.own, paceOthers))
	return p.began.Add(min(time.Duration(p.busy*turns), paceMost))
}

// pace waits for this process's turn, or until as many wait as were answered or waited when the last transaction ended.
func (rs *Rooms) pace(ctx context.Context) {
	left := time.Until(rs.pacer.until())
	n := rs.queue.waiting()
	if left <= 0 || n == 0 || n >= min(rs.pacer.all, batchMax) {
		return
	}
	defer rs.d.Store.Coming()()
	timer := time.NewTimer(left)
	defer timer.Stop()
	for rs.queue.waiting() < min(rs.pacer.all, batchMax) {
		select {
		case <-rs.queue.wake:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
