package store

import "fmt"

// The types of stored receipts.
const (
	ReceiptRead        = 1 // m.read
	ReceiptReadPrivate = 2 // m.read.private
)

// Receipt says how far a user has read a room, or a thread of it.
type Receipt struct {
	User    string
	Room    int64
	Type    int64
	Thread  string // "" is unthreaded, "main" the main timeline, else the event id of a thread's root
	EventID string
	Ord     int64 // the event's place in its room's timeline
	TS      int64 // milliseconds since 1970
	Pos     int64 // log position of the last change
}

const receiptSelect = `SELECT usr, room, type, thread, event_id, ord, ts, pos FROM receipts `

func (tx *Tx) receipts(sql string, args ...any) ([]*Receipt, error) {
	var out []*Receipt
	err := tx.Each(sql, args, func(r *Row) error {
		x := &Receipt{}
		out = append(out, x)
		return r.Scan(&x.User, &x.Room, &x.Type, &x.Thread, &x.EventID, &x.Ord, &x.TS, &x.Pos)
	})
	if err != nil {
		return nil, fmt.Errorf("read receipts: %w", err)
	}
	return out, nil
}

// RoomReceipts reads all receipts of some rooms, each room's in the order of their last change.
func (tx *Tx) RoomReceipts(rooms []int64) ([]*Receipt, error) {
	return tx.receipts(receiptSelect+`WHERE room IN @int($1) ORDER BY room, pos`, rooms)
}

// ReceiptsAt reads the receipts whose last change was announced at one of the positions.
func (tx *Tx) ReceiptsAt(rooms, positions []int64) ([]*Receipt, error) {
	return tx.receipts(receiptSelect+`WHERE room IN @int($1) AND pos IN @int($2) ORDER BY pos`, rooms, positions)
}

// UserReceipts reads the receipts of some users in some rooms.
func (tx *Tx) UserReceipts(users []string, rooms []int64) ([]*Receipt, error) {
	return tx.receipts(receiptSelect+`WHERE usr IN @text($1) AND room IN @int($2)`, users, rooms)
}

var receiptCols = []Col{{"usr", Text}, {"room", Int}, {"type", Int}, {"thread", Text}, {"event_id", Text}, {"ord", Int}, {"ts", Int}, {"pos", Int}}

// SaveReceipts writes receipts; each (user, room, type, thread) may stand in the list once. A receipt does not go back
// to an earlier event.
func (tx *Tx) SaveReceipts(rs []*Receipt) error {
	err := tx.Insert("receipts", receiptCols, len(rs), func(i int) []any {
		r := rs[i]
		return []any{r.User, r.Room, r.Type, r.Thread, r.EventID, r.Ord, r.TS, r.Pos}
	}, `ON CONFLICT (usr, room, type, thread) DO UPDATE SET event_id = excluded.event_id, ord = excluded.ord, ts = excluded.ts, pos = excluded.pos
		WHERE excluded.ord > receipts.ord`)
	if err != nil {
		return fmt.Errorf("write receipts: %w", err)
	}
	return nil
}
