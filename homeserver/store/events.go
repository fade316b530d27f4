package store

import (
	"fmt"
	"math"
	"time"
)

// The statuses of stored events.
const (
	StatusAccepted   = 0
	StatusSoftFailed = 1
	StatusRejected   = 2
	StatusOutlier    = 3
)

// Event is a row of events: a PDU and its place in the log and in its room's timeline.
type Event struct {
	NID        int64
	Room       int64
	Ord        int64  // order in the room's timeline; equal to Pos for what was sent here
	Pos        int64  // position in the log; 0 when the event was never announced
	EventID    string // as in the PDU or hashed from it
	Status     int64
	TS         int64 // origin_server_ts, milliseconds since 1970
	IsState    bool
	RedactedBy int64 // nid of the redaction, 0 when there is none
	Device     string
	Txn        string // scope and transaction id of the request, "" without
	TxnKey     int64  // hash of user, device, room and Txn; 0 without
	Features   []byte // compact push features
	Body       Content
}

var eventCols = []Col{{"nid", Int}, {"room", Int}, {"ord", Int}, {"pos", Int}, {"event_id", Text}, {"status", Int}, {"ts", Int},
	{"is_state", Int}, {"device", Text}, {"txn", Text}, {"txn_key", Int}, {"features", Bytes}, {"body", Bytes}}

// InsertEvents adds events.
func (tx *Tx) InsertEvents(evs []*Event) error {
	return tx.Insert("events", eventCols, len(evs), func(i int) []any {
		e := evs[i]
		return []any{e.NID, e.Room, e.Ord, nonZero(e.Pos), e.EventID, e.Status, e.TS, e.IsState,
			nonEmpty(e.Device), nonEmpty(e.Txn), nonZero(e.TxnKey), e.Features, e.Body}
	}, "")
}

func nonZero(n int64) any {
	if n == 0 {
		return nil
	}
	return n
}

func nonEmpty(s string) any {
	if s == "" {
		return nil
	}
	return s
}

const eventSelect = `SELECT nid, room, ord, coalesce(pos, 0), event_id, status, ts, is_state, coalesce(redacted_by, 0),
	coalesce(device, ''), coalesce(txn, ''), coalesce(txn_key, 0), features, body FROM events `

func scanEvent(r *Row) (*Event, error) {
	e := &Event{}
	return e, r.Scan(&e.NID, &e.Room, &e.Ord, &e.Pos, &e.EventID, &e.Status, &e.TS, &e.IsState, &e.RedactedBy, &e.Device, &e.Txn, &e.TxnKey, &e.Features, &e.Body)
}

func (tx *Tx) events(sql string, args ...any) ([]*Event, error) {
	var out []*Event
	err := tx.Each(sql, args, func(r *Row) error {
		e, err := scanEvent(r)
		out = append(out, e)
		return err
	})
	return out, err
}

// EventsByNID reads events; those that do not exist are left out, and the order is that of the numbers.
func (tx *Tx) EventsByNID(nids []int64) ([]*Event, error) {
	if len(nids) == 1 {
		return tx.events(eventSelect+`WHERE nid = $1`, nids[0])
	}
	return tx.events(eventSelect+`WHERE nid IN @int($1) ORDER BY nid`, nids)
}

// EventsByID reads events by event id, in no particular order.
func (tx *Tx) EventsByID(ids []string) ([]*Event, error) {
	if len(ids) == 1 {
		return tx.events(eventSelect+`WHERE event_id = $1`, ids[0])
	}
	return tx.events(eventSelect+`WHERE event_id IN @text($1)`, ids)
}

// TimelineBack reads accepted events of a room with after < ord < before, newest first.
func (tx *Tx) TimelineBack(room, before, after int64, limit int) ([]*Event, error) {
	return tx.events(eventSelect+`WHERE room = $1 AND ord < $2 AND ord > $3 AND status = 0 ORDER BY ord DESC LIMIT $4`, room, before, after, limit)
}

// TimelineForward reads accepted events of a room with after < ord < before, oldest first.
func (tx *Tx) TimelineForward(room, after, before int64, limit int) ([]*Event, error) {
	return tx.events(eventSelect+`WHERE room = $1 AND ord > $2 AND ord < $3 AND status = 0 ORDER BY ord LIMIT $4`, room, after, before, limit)
}

// TxnHit is an event that was sent under a transaction id before.
type TxnHit struct {
	TxnKey              int64
	NID, Room           int64
	EventID, Device, ID string
}

// Standing is what a batch is compared with behind the log's lock. Its zero value holds nothing yet.
type Standing struct {
	Rooms map[int64]*Room    // how rooms stand; nil: there is no such room
	Hits  []TxnHit           // events that were sent under transaction ids with the hashes asked for
	asked map[int64]struct{} // hashes
}

const stand = `SELECT CAST(0 AS BIGINT), nid, state_version, last_pos, depth, extremities, '', '', '' FROM rooms WHERE nid @isint($1)
	UNION ALL SELECT txn_key, nid, room, CAST(0 AS BIGINT), CAST(0 AS BIGINT), NULL, event_id, coalesce(device, ''), txn FROM events WHERE txn_key @isint($2)`

// LockStanding locks the log's head and reads, in the same way to the database, how rooms stand then and which events were sent
// under transaction ids with these hashes.
func (tx *Tx) LockStanding(rooms, txnKeys []int64) (*Standing, error) {
	st := &Standing{}
	if tx.locked || len(rooms)+len(txnKeys) == 0 {
		return st, tx.LockHead()
	}
	tx.asked = time.Now()
	if err := tx.c.ahead(rewrite(tx.c.dialect(), lockHead), nil, tx.holdHead); err != nil {
		return nil, fmt.Errorf("lock the log's head: %w", err)
	}
	if err := tx.Stand(st, rooms, txnKeys); err != nil {
		return nil, fmt.Errorf("lock the log's head: %w", err)
	}
	return st, tx.headIsThere()
}

// Stand adds what was not asked for yet. The head is locked.
func (tx *Tx) Stand(st *Standing, rooms, txnKeys []int64) error {
	if st.Rooms == nil {
		st.Rooms, st.asked = make(map[int64]*Room, len(rooms)), make(map[int64]struct{}, len(txnKeys))
	}
	var nids, keys []int64
	for _, nid := range rooms {
		if _, ok := st.Rooms[nid]; !ok {
			nids = append(nids, nid)
			st.Rooms[nid] = nil
		}
	}
	for _, k := range txnKeys {
		if _, ok := st.asked[k]; !ok {
			keys = append(keys, k)
			st.asked[k] = struct{}{}
		}
	}
	if len(nids)+len(keys) == 0 {
		return nil
	}
	return tx.Each(stand, []any{nids, keys}, func(r *Row) error {
		m, h := &Room{}, TxnHit{}
		if err := r.Scan(&h.TxnKey, &m.NID, &m.StateVersion, &m.LastPos, &m.Depth, &m.Extremities, &h.EventID, &h.Device, &h.ID); err != nil {
			return err
		}
		if h.TxnKey == 0 {
			st.Rooms[m.NID] = m
			return nil
		}
		h.NID, h.Room = m.NID, m.StateVersion
		st.Hits = append(st.Hits, h)
		return nil
	})
}

// RedactEvent replaces the body of an event by its redacted form and keeps the original apart.
func (tx *Tx) RedactEvent(nid, by, now int64, original, redacted Content) error {
	if _, err := tx.Exec(`INSERT INTO redacted_events (nid, redacted_at, body) VALUES ($1, $2, $3) ON CONFLICT (nid) DO NOTHING`, nid, now, original); err != nil {
		return fmt.Errorf("keep the original of event %d: %w", nid, err)
	}
	if _, err := tx.Exec(`UPDATE events SET body = $2, redacted_by = $3, features = NULL WHERE nid = $1 AND redacted_by IS NULL`, nid, redacted, by); err != nil {
		return fmt.Errorf("redact event %d: %w", nid, err)
	}
	return nil
}

// Relation says that an event relates to another.
type Relation struct {
	Parent  string // event id
	NID     int64
	Room    int64
	RelType string
	Type    string
	Sender  string
}

var relationCols = []Col{{"parent", Text}, {"nid", Int}, {"room", Int}, {"rel_type", Text}, {"type", Text}, {"sender", Text}}

// InsertRelations adds relations; thread replies move their thread's row.
func (tx *Tx) InsertRelations(rels []Relation) error {
	err := tx.Insert("relations", relationCols, len(rels), func(i int) []any {
		r := &rels[i]
		return []any{r.Parent, r.NID, r.Room, r.RelType, r.Type, r.Sender}
	}, "ON CONFLICT DO NOTHING")
	if err != nil {
		return err
	}
	for _, r := range rels {
		if r.RelType != "m.thread" {
			continue
		}
		if _, err := tx.Exec(`INSERT INTO threads (room, root, latest, count) VALUES ($1, $2, $3, 1)
			ON CONFLICT (room, root) DO UPDATE SET latest = excluded.latest, count = threads.count + 1`, r.Room, r.Parent, r.NID); err != nil {
			return err
		}
	}
	return nil
}

// DropRelation forgets what a redacted event related to.
func (tx *Tx) DropRelation(room, nid int64) error {
	var parent, rel string
	found, err := tx.Get([]any{&parent, &rel}, `DELETE FROM relations WHERE nid = $1 AND room = $2 AND parent IN (SELECT parent FROM relations WHERE nid = $1 AND room = $2) RETURNING parent, rel_type`, nid, room)
	if err != nil || !found || rel != "m.thread" {
		return err
	}
	_, err = tx.Exec(`UPDATE threads SET count = count - 1,
		latest = coalesce((SELECT max(nid) FROM relations WHERE parent = $2 AND rel_type = 'm.thread'), 0) WHERE room = $1 AND root = $2`, room, parent)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM threads WHERE room = $1 AND root = $2 AND count <= 0`, room, parent)
	return err
}

// MaxOrd stands for the end of a timeline.
const MaxOrd = math.MaxInt64
