package store

import "math"

// RelatedEvent is an event that relates to another one, with its place in the timeline.
type RelatedEvent struct {
	Parent  string // event id of what it relates to
	NID     int64
	Ord     int64
	TS      int64 // origin_server_ts
	EventID string
	RelType string
	Type    string
	Sender  string
}

// RelationsOf reads what relates to any of some events of a room, by some of the relation types, up to an ord, in the
// order of the timeline.
func (tx *Tx) RelationsOf(room int64, parents, relTypes []string, upto int64, fn func(RelatedEvent)) error {
	return tx.Each(`SELECT r.parent, r.nid, e.ord, e.ts, e.event_id, r.rel_type, r.type, r.sender
		FROM relations r JOIN events e ON e.nid = r.nid
		WHERE r.parent IN @text($1) AND r.room = $2 AND r.rel_type IN @text($3) AND e.ord <= $4 ORDER BY e.ord`,
		[]any{parents, room, relTypes, upto}, func(r *Row) error {
			var e RelatedEvent
			if err := r.Scan(&e.Parent, &e.NID, &e.Ord, &e.TS, &e.EventID, &e.RelType, &e.Type, &e.Sender); err != nil {
				return err
			}
			fn(e)
			return nil
		})
}

// ThreadSummary is what a reader is told of a thread.
type ThreadSummary struct {
	Root         string // event id
	Count        int64  // replies
	Latest       int64  // nid of the last reply
	Participated bool   // the reader sent one of the replies
}

// ThreadSummaries sums up threads for a reader: replies of the ignored are left out, and those behind the ord upto.
func (tx *Tx) ThreadSummaries(room int64, roots []string, user string, ignored []string, upto int64, fn func(ThreadSummary)) error {
	sql := `SELECT r.parent, count(*), max(r.nid), max(CASE WHEN r.sender = $3 THEN 1 ELSE 0 END) FROM relations r
		WHERE r.parent IN @text($1) AND r.room = $2 AND r.rel_type = 'm.thread' AND NOT (r.sender IN @text($4))`
	args := []any{roots, room, user, ignored}
	if upto != math.MaxInt64 {
		sql += ` AND (SELECT e.ord FROM events e WHERE e.nid = r.nid) <= $5`
		args = append(args, upto)
	}
	return tx.Each(sql+` GROUP BY r.parent`, args, func(r *Row) error {
		var t ThreadSummary
		if err := r.Scan(&t.Root, &t.Count, &t.Latest, &t.Participated); err != nil {
			return err
		}
		fn(t)
		return nil
	})
}

// RelatedQuery asks for a page of what relates to an event.
type RelatedQuery struct {
	Room          int64
	Parent        string   // event id
	RelType       string   // "" for any
	Type          string   // event type, "" for any
	Recurse       bool     // also what relates to what relates to it, up to RelationDepth steps
	After, Before int64    // bounds of ord, exclusive
	Backwards     bool     // newest first
	Without       []string // senders that are left out
	Limit         int
}

// RelationDepth is how many steps a recursive query goes.
// Spec: client-server API, "Relationships API": at least 3.
const RelationDepth = 3

// RelatedPage reads the numbers of the events that a query asks for, in order.
func (tx *Tx) RelatedPage(q RelatedQuery) ([]int64, error) {
	const (
		match = ` AND r.room = $2 AND (r.rel_type = $3 OR $3 = '') AND (r.type = $4 OR $4 = '') AND NOT (r.sender IN @text($5))`
		page  = ` WHERE e.ord > $6 AND e.ord < $7 ORDER BY e.ord`
	)
	from := `(SELECT r.nid FROM relations r WHERE r.parent = $1` + match + `) t`
	with := ``
	if q.Recurse {
		with = `WITH RECURSIVE tree (nid, event_id, depth) AS (
			SELECT r.nid, e.event_id, 1 FROM relations r JOIN events e ON e.nid = r.nid WHERE r.parent = $1` + match + `
			UNION SELECT r.nid, e.event_id, tree.depth + 1 FROM tree JOIN relations r ON r.parent = tree.event_id
			JOIN events e ON e.nid = r.nid WHERE tree.depth < 3` + match + `) `
		from = `(SELECT DISTINCT tree.nid FROM tree) t`
	}
	sql := with + `SELECT t.nid FROM ` + from + ` JOIN events e ON e.nid = t.nid` + page
	if q.Backwards {
		sql += ` DESC`
	}
	var out []int64
	err := tx.Each(sql+` LIMIT $8`, []any{q.Parent, q.Room, q.RelType, q.Type, q.Without, q.After, q.Before, q.Limit}, func(r *Row) error {
		var nid int64
		err := r.Scan(&nid)
		out = append(out, nid)
		return err
	})
	return out, err
}

// AnnotationsBy reads the numbers of the annotations of one type that a user has put on an event.
func (tx *Tx) AnnotationsBy(parent, evType, sender string) ([]int64, error) {
	var out []int64
	err := tx.Each(`SELECT nid FROM relations WHERE parent = $1 AND rel_type = 'm.annotation' AND type = $2 AND sender = $3 ORDER BY nid`,
		[]any{parent, evType, sender}, func(r *Row) error {
			var nid int64
			err := r.Scan(&nid)
			out = append(out, nid)
			return err
		})
	return out, err
}

// Thread is a row of threads.
type Thread struct {
	Root   string // event id of the first message
	Latest int64  // nid of the last reply
}

// Threads reads the threads of a room whose last reply has a smaller number than before, the latest first.
func (tx *Tx) Threads(room, before int64, limit int) ([]Thread, error) {
	var out []Thread
	err := tx.Each(`SELECT root, latest FROM threads WHERE room = $1 AND latest < $2 ORDER BY latest DESC LIMIT $3`,
		[]any{room, before, limit}, func(r *Row) error {
			var t Thread
			err := r.Scan(&t.Root, &t.Latest)
			out = append(out, t)
			return err
		})
	return out, err
}

// ReplacedState finds, for state events by their ords, the state event that each took the place of; those that were the
// first of their place are left out.
func (tx *Tx) ReplacedState(room int64, ords []int64, fn func(ord, replaced int64)) error {
	return tx.Each(`SELECT c.ord, (SELECT p.nid FROM state_changes p WHERE p.room = c.room AND p.type = c.type
			AND p.state_key = c.state_key AND p.ord < c.ord ORDER BY p.ord DESC LIMIT 1)
		FROM state_changes c WHERE c.room = $1 AND c.ord IN @int($2)`, []any{room, ords}, func(r *Row) error {
		var ord int64
		var replaced *int64
		if err := r.Scan(&ord, &replaced); err != nil {
			return err
		}
		if replaced != nil {
			fn(ord, *replaced)
		}
		return nil
	})
}

// OrdAtTime finds where in a room's timeline a time falls: the ord of the first accepted event that was sent at or after
// ts, or MaxOrd. It takes times to rise with ords and needs as many look-ups as the timeline has binary digits.
func (tx *Tx) OrdAtTime(room, ts int64) (int64, error) {
	var low, high int64 // the answer lies in [low, high]
	found, err := tx.Get([]any{&low}, `SELECT ord FROM events WHERE room = $1 AND status = 0 ORDER BY ord LIMIT 1`, room)
	if err != nil || !found {
		return MaxOrd, err
	}
	if _, err := tx.Get([]any{&high}, `SELECT ord FROM events WHERE room = $1 AND status = 0 ORDER BY ord DESC LIMIT 1`, room); err != nil {
		return 0, err
	}
	high++
	end := high
	for low < high {
		mid := low + (high-low)/2
		var ord, at int64
		found, err := tx.Get([]any{&ord, &at}, `SELECT ord, ts FROM events WHERE room = $1 AND status = 0 AND ord >= $2 ORDER BY ord LIMIT 1`, room, mid)
		switch {
		case err != nil:
			return 0, err
		case !found || at >= ts:
			high = mid
		default:
			low = ord + 1
		}
	}
	if low >= end {
		return MaxOrd, nil
	}
	return low, nil
}
