package store

import (
	"context"
	"time"
)

const (
	alongMax = 1000 // entries of others that a transaction reads along; more are left to the tailer
	// alongWait is how long the tailer leaves entries of others to a transaction of this process that waits for the log's
	// lock, and will read them along.
	alongWait = 15 * time.Millisecond
)

// readAlong reads entries with the events that they announce.
const readAlong = `SELECT l.pos, l.kind, coalesce(l.room, 0), coalesce(l.usr, ''), coalesce(l.key, ''), coalesce(l.ref, 0),
	coalesce(e.nid, 0), coalesce(e.room, 0), coalesce(e.ord, 0), coalesce(e.pos, 0), coalesce(e.event_id, ''), coalesce(e.status, 0),
	coalesce(e.ts, 0), coalesce(e.is_state, 0), coalesce(e.redacted_by, 0), coalesce(e.device, ''), coalesce(e.txn, ''),
	coalesce(e.txn_key, 0), e.features, e.body
	FROM log l LEFT JOIN events e ON l.kind = 1 AND e.nid = l.ref WHERE l.pos > $1 AND l.pos <= $2 ORDER BY l.pos LIMIT $3`

// scanAlong appends the rows of readAlong to out.
func scanAlong(out *[]Entry) func(*Row) error {
	return func(r *Row) error {
		var l Entry
		e := &Event{}
		err := r.Scan(&l.Pos, &l.Kind, &l.Room, &l.User, &l.Key, &l.Ref, &e.NID, &e.Room, &e.Ord, &e.Pos, &e.EventID, &e.Status, &e.TS,
			&e.IsState, &e.RedactedBy, &e.Device, &e.Txn, &e.TxnKey, &e.Features, &e.Body)
		if e.NID != 0 {
			l.Row = e
		}
		*out = append(*out, l)
		return err
	}
}

// missing tells which entries of the log this process lacks when the transaction takes the lock. They are read along with its
// COMMIT: the transaction's own entries can be applied at once then, without another way to the database.
func (tx *Tx) missing() (args []any, ok bool) {
	if tx.s == nil || !tx.locked {
		return nil, false
	}
	tx.s.mu.Lock()
	from, follows := tx.s.applied, tx.s.follows
	tx.s.mu.Unlock()
	n := tx.found - from
	return []any{from, tx.found, int64(alongMax)}, follows && n > 0 && n <= alongMax
}

// bring applies entries of other processes that a transaction of this one read along. What it cannot apply is the tailer's.
func (s *Store) bring(ctx context.Context, entries []Entry) {
	strange := s.strange(entries)
	if len(strange) == 0 {
		return
	}
	if err := s.hydrateAll(ctx, strange); err != nil {
		s.wakeTailer()
		return
	}
	s.applyForeign(strange)
}

// Foreign is how many entries of other processes this one has applied.
func (s *Store) Foreign() int64 { return s.foreign.Load() }

// hint tells the tailer that another process has committed up to a position; 0 if it did not say which.
func (s *Store) hint(pos int64) {
	for {
		select {
		case s.hints <- pos:
			return
		case before := <-s.hints: // the newest one counts
			pos = max(pos, before)
		}
	}
}

// comesAlong tells that nothing need be read for a hint: the position was applied, or a transaction that waits for the log's
// lock has brought it.
func (s *Store) comesAlong(ctx context.Context, pos int64) bool {
	if pos > s.Applied() && s.inLine.Load() > 0 {
		ctx, cancel := context.WithTimeout(ctx, alongWait)
		defer cancel()
		_ = s.WaitApplied(ctx, pos) // else the tailer reads it
	}
	return pos > 0 && pos <= s.Applied()
}

// sinceConfirmed is how long ago this process's memory was last known to hold all that was committed then.
func (s *Store) sinceConfirmed() time.Duration {
	return time.Since(s.born) - time.Duration(s.confirmed.Load())
}
