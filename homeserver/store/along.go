package store

import (
	"cmp"
	"context"
	"slices"
	"time"
)

const (
	alongMax = 1000 // entries of others that a transaction reads along; more are left to the tailer
	// alongWait is how long the tailer leaves entries of others to a transaction of this process that waits for the log's
	// lock, and will read them along.
	alongWait = 30 * time.Millisecond
)

// readTail reads entries with the events that they announce.
const readTail = `SELECT l.pos, l.kind, coalesce(l.room, 0), coalesce(l.usr, ''), coalesce(l.key, ''), coalesce(l.ref, 0),
	coalesce(e.nid, 0), coalesce(e.ord, 0), coalesce(e.event_id, ''), coalesce(e.status, 0), coalesce(e.redacted_by, 0),
	coalesce(e.device, ''), coalesce(e.txn, ''), e.features, e.body
	FROM log l LEFT JOIN events e ON l.kind = 1 AND e.nid = l.ref WHERE l.pos > $1 AND l.pos <= $2 ORDER BY l.pos LIMIT $3`

// readAlong reads the same without a look at two tables for each message: the events with numbers from here to there, which say what
// their entries would, and the entries that announce something else; in no particular order. Entries of events that are gone are
// missing in it, which the tailer finds.
const readAlong = `SELECT coalesce(pos, 0), CAST(1 AS BIGINT), room, coalesce(device, ''), coalesce(txn, ''), nid, ord, event_id, status, coalesce(redacted_by, 0),
	features, body FROM events WHERE nid > $1 AND nid <= $2
	UNION ALL SELECT pos, kind, coalesce(room, 0), coalesce(usr, ''), coalesce(key, ''), coalesce(ref, 0), CAST(0 AS BIGINT), '', CAST(0 AS BIGINT), CAST(0 AS BIGINT),
	NULL, NULL FROM log WHERE pos > $3 AND pos <= $4 AND kind <> 1`

// scanTail appends the rows of readTail to out.
func scanTail(out *[]Entry) func(*Row) error {
	return func(r *Row) error {
		var l Entry
		e := &Event{}
		err := r.Scan(&l.Pos, &l.Kind, &l.Room, &l.User, &l.Key, &l.Ref, &e.NID, &e.Ord, &e.EventID, &e.Status, &e.RedactedBy,
			&e.Device, &e.Txn, &e.Features, &e.Body)
		if e.NID != 0 {
			e.Room, e.Pos = l.Room, l.Pos
			l.Row = e
		}
		*out = append(*out, l)
		return err
	}
}

// scanAlong appends the rows of readAlong to out.
func scanAlong(out *[]Entry) func(*Row) error {
	return func(r *Row) error {
		var l Entry
		e := &Event{}
		err := r.Scan(&l.Pos, &l.Kind, &l.Room, &l.User, &l.Key, &l.Ref, &e.Ord, &e.EventID, &e.Status, &e.RedactedBy, &e.Features, &e.Body)
		if l.Kind == KindEvent {
			e.NID, e.Room, e.Pos, e.Device, e.Txn = l.Ref, l.Room, l.Pos, l.User, l.Key
			l.User, l.Key, l.Row = "", "", e
		}
		*out = append(*out, l)
		return err
	}
}

// missing tells which entries of the log this process lacks when the transaction takes the lock. They are read behind its
// COMMIT, in the same way to the database: the transaction's own entries can be applied at once then.
func (tx *Tx) missing() (args []any, ok bool) {
	if tx.s == nil || !tx.locked {
		return nil, false
	}
	tx.s.mu.Lock()
	from, nid, follows := tx.s.applied, tx.s.appliedNID, tx.s.follows
	tx.s.mu.Unlock()
	n, events := tx.found-from, tx.foundNID-nid
	return []any{nid, tx.foundNID, from, tx.found}, follows && n > 0 && n <= alongMax && nid > 0 && events <= alongMax
}

// bring applies entries of other processes that a transaction of this one read along. What it cannot apply is the tailer's.
func (s *Store) bring(ctx context.Context, entries []Entry) {
	slices.SortFunc(entries, func(a, b Entry) int { return cmp.Compare(a.Pos, b.Pos) })
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

// Coming tells that a transaction of the committer will come soon, until began is called: entries of others are left to it.
func (s *Store) Coming() (began func()) {
	s.inLine.Add(1)
	return func() { s.inLine.Add(-1) }
}

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
