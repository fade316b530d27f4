package store

import (
	"crypto/rand"
	"encoding/binary"
)

// Report says that a user finds an event, a room or another user inappropriate.
type Report struct {
	ID       int64
	Created  int64 // milliseconds since 1970
	Reporter string
	Room     string // room id, "" for a report about a user
	Event    string // event id, "" where the report is about more
	User     string // who is reported: for an event its sender, "" for a room
	Reason   string
	Resolved bool
}

// InsertReport keeps a report. Its ID is drawn here; as JSON has it, it has 53 bits.
func (tx *Tx) InsertReport(r Report) error {
	var b [8]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on supported systems
	_, err := tx.Exec(`INSERT INTO reports (id, created, reporter, room_id, event_id, usr, reason, resolved) VALUES ($1, $2, $3, $4, $5, $6, $7, 0)`,
		int64(binary.BigEndian.Uint64(b[:])>>11), r.Created, r.Reporter, r.Room, r.Event, r.User, r.Reason)
	return err
}

// Reports lists reports that were made before a time, the newest first.
func (tx *Tx) Reports(before int64, limit int) ([]Report, error) {
	var out []Report
	err := tx.Each(`SELECT id, created, reporter, room_id, event_id, usr, reason, resolved FROM reports WHERE created < $1 ORDER BY created DESC, id LIMIT $2`,
		[]any{before, limit}, func(row *Row) error {
			var r Report
			err := row.Scan(&r.ID, &r.Created, &r.Reporter, &r.Room, &r.Event, &r.User, &r.Reason, &r.Resolved)
			out = append(out, r)
			return err
		})
	return out, err
}
