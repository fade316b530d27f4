package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// ArchiveEntry is an event in the archive.
type ArchiveEntry struct {
	NID        int64
	Room       int64
	Ord        int64
	EventID    string
	Status     int64
	TS         int64 // origin_server_ts, ms since 1970
	Archived   int64 // when it came into the archive, ms since 1970; 0: not yet
	Membership int64 // as in memberships; 0: no m.room.member
	User       string
	Target     string // the event that this one replaces or redacts, "" for none
	Body       Content
}

const archiveColumns = `nid, room, ord, event_id, status, ts, archived, coalesce(membership, 0), coalesce(usr, ''), coalesce(target, ''), body`

func (e *ArchiveEntry) dest() []any {
	return []any{&e.NID, &e.Room, &e.Ord, &e.EventID, &e.Status, &e.TS, &e.Archived, &e.Membership, &e.User, &e.Target, &e.Body}
}

func (tx *Tx) archiveEntries(sql string, args ...any) ([]ArchiveEntry, error) {
	return list(tx, (*ArchiveEntry).dest, sql, args...)
}

// list reads rows; dest says where the columns of one go.
func list[T any](tx *Tx, dest func(*T) []any, sql string, args ...any) ([]T, error) {
	var out []T
	err := tx.Each(sql, args, func(r *Row) error {
		var v T
		if err := r.Scan(dest(&v)...); err != nil {
			return err
		}
		out = append(out, v)
		return nil
	})
	return out, err
}

// ArchiveHead is the state of the archive: see the table.
type ArchiveHead struct {
	Active  bool
	Number  int64
	NID     int64
	Hash    []byte
	Noted   int64
	NotedAt int64
}

const archiveHeadColumns = `active, number, nid, hash, noted, noted_at`

func (h *ArchiveHead) dest() []any {
	return []any{&h.Active, &h.Number, &h.NID, &h.Hash, &h.Noted, &h.NotedAt}
}

// InitArchive makes the archive's one row, or turns the archive on again.
func (tx *Tx) InitArchive(genesis []byte) error {
	_, err := tx.Exec(`INSERT INTO archive_head (id, active, number, nid, hash, noted, noted_at) VALUES (1, 1, 0, 0, $1, 0, 0)
		ON CONFLICT (id) DO UPDATE SET active = 1 WHERE archive_head.active = 0`, genesis)
	return err
}

// StopArchive says that nothing is kept for the archive any more when it is deleted.
func (tx *Tx) StopArchive() (was bool, err error) {
	n, err := tx.Exec(`UPDATE archive_head SET active = 0 WHERE id = 1 AND active = 1`)
	return n > 0, err
}

// ArchiveHead reads the archive's state; false where there never was one.
func (tx *Tx) ArchiveHead() (h ArchiveHead, found bool, err error) {
	found, err = tx.Get(h.dest(), `SELECT `+archiveHeadColumns+` FROM archive_head WHERE id = 1`)
	return h, found, err
}

// LockArchiveHead is ArchiveHead for a transaction that adds to the archive: one at a time, on all nodes.
func (tx *Tx) LockArchiveHead() (h ArchiveHead, err error) {
	found, err := tx.Get(h.dest(), `SELECT `+archiveHeadColumns+` FROM archive_head WHERE id = 1 @forupdate`)
	if err == nil && !found {
		err = errors.New("the archive's head is missing")
	}
	return h, err
}

// Unarchived reads events behind a number as they were sent, in the order of their numbers: also those that were redacted or
// deleted since.
func (tx *Tx) Unarchived(after int64, limit int) ([]ArchiveEntry, error) {
	var out []ArchiveEntry
	for _, sql := range []string{
		`SELECT e.nid, e.room, e.ord, e.event_id, e.status, e.ts, coalesce(x.body, e.body)
			FROM events e LEFT JOIN redacted_events x ON x.nid = e.nid WHERE e.nid > $1 ORDER BY e.nid LIMIT $2`,
		`SELECT nid, room, ord, event_id, status, ts, body FROM archive_pending WHERE nid > $1 ORDER BY nid LIMIT $2`,
	} {
		err := tx.Each(sql, []any{after, limit}, func(r *Row) error {
			var e ArchiveEntry
			err := r.Scan(&e.NID, &e.Room, &e.Ord, &e.EventID, &e.Status, &e.TS, &e.Body)
			out = append(out, e)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(out, func(a, b ArchiveEntry) int { return cmp.Compare(a.NID, b.NID) })
	out = slices.CompactFunc(out, func(a, b ArchiveEntry) bool { return a.NID == b.NID })
	return out[:min(len(out), limit)], nil
}

// CountUnarchived counts the events that are not in the archive yet.
func (tx *Tx) CountUnarchived(after int64) (n int64, err error) {
	_, err = tx.Get([]any{&n}, `SELECT (SELECT count(*) FROM events WHERE nid > $1) + (SELECT count(*) FROM archive_pending WHERE nid > $1)`, after)
	return n, err
}

// ArchiveBatch is a link of the chain.
type ArchiveBatch struct {
	Number            int64
	FirstNID, LastNID int64
	Count             int64
	Created           int64 // ms
	Leaves            []byte
	Prev              []byte
	Hash              []byte
	KeyID             string
	Signature         []byte
}

const archiveBatchColumns = `number, first_nid, last_nid, count, created, leaves, prev, hash, key_id, signature`

func (b *ArchiveBatch) dest() []any {
	return []any{&b.Number, &b.FirstNID, &b.LastNID, &b.Count, &b.Created, &b.Leaves, &b.Prev, &b.Hash, &b.KeyID, &b.Signature}
}

var archiveCols = []Col{{"nid", Int}, {"room", Int}, {"ord", Int}, {"event_id", Text}, {"status", Int}, {"ts", Int}, {"archived", Int},
	{"membership", Int}, {"usr", Text}, {"target", Text}, {"body", Bytes}}

// AddArchiveBatch adds entries to the archive, their rooms, and the batch that names them.
func (tx *Tx) AddArchiveBatch(b ArchiveBatch, entries []ArchiveEntry) error {
	err := tx.Insert("archive_entries", archiveCols, len(entries), func(i int) []any {
		e := &entries[i]
		return []any{e.NID, e.Room, e.Ord, e.EventID, e.Status, e.TS, e.Archived, nonZero(e.Membership), nonEmpty(e.User), nonEmpty(e.Target), e.Body}
	}, "")
	if err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	var rooms []int64
	for i := range entries {
		if !slices.Contains(rooms, entries[i].Room) {
			rooms = append(rooms, entries[i].Room)
		}
	}
	if _, err := tx.Exec(`INSERT INTO archive_rooms (nid, room_id, version, creator, created)
		SELECT nid, room_id, version, creator, created FROM rooms WHERE nid IN @int($1) ON CONFLICT DO NOTHING`, rooms); err != nil {
		return fmt.Errorf("note the rooms of the archive: %w", err)
	}
	if _, err := tx.Exec(`INSERT INTO archive_batches (`+archiveBatchColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		b.Number, b.FirstNID, b.LastNID, b.Count, b.Created, b.Leaves, b.Prev, b.Hash, b.KeyID, b.Signature); err != nil {
		return fmt.Errorf("insert batch %d of the archive: %w", b.Number, err)
	}
	if _, err := tx.Exec(`DELETE FROM archive_pending WHERE nid <= $1`, b.LastNID); err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE archive_head SET number = $1, hash = $2, nid = $3 WHERE id = 1`, b.Number, b.Hash, b.LastNID)
	return err
}

// NoteArchive says which batch is noted in the audit log.
func (tx *Tx) NoteArchive(number, now int64) error {
	_, err := tx.Exec(`UPDATE archive_head SET noted = $1, noted_at = $2 WHERE id = 1`, number, now)
	return err
}

// ArchiveBatches reads up to limit batches behind one, in order.
func (tx *Tx) ArchiveBatches(after int64, limit int) ([]ArchiveBatch, error) {
	return list(tx, (*ArchiveBatch).dest, `SELECT `+archiveBatchColumns+` FROM archive_batches WHERE number > $1 ORDER BY number LIMIT $2`, after, limit)
}

// ArchiveRange reads up to limit entries with after < nid <= upto, in order.
func (tx *Tx) ArchiveRange(after, upto int64, limit int) ([]ArchiveEntry, error) {
	return tx.archiveEntries(`SELECT `+archiveColumns+` FROM archive_entries WHERE nid > $1 AND nid <= $2 ORDER BY nid LIMIT $3`, after, upto, limit)
}

// ArchiveByNID reads entries by their numbers, in that order.
func (tx *Tx) ArchiveByNID(nids []int64) ([]ArchiveEntry, error) {
	return tx.archiveEntries(`SELECT `+archiveColumns+` FROM archive_entries WHERE nid IN @int($1) ORDER BY nid`, nids)
}

// ArchiveVersions reads an event with all that replaced or redacted it, in order.
func (tx *Tx) ArchiveVersions(eventID string, limit int) ([]ArchiveEntry, error) {
	return tx.archiveEntries(`SELECT `+archiveColumns+` FROM archive_entries WHERE event_id = $1 OR target = $1 ORDER BY nid LIMIT $2`, eventID, limit)
}

// ArchiveTargets reads what replaced or redacted any of some events, in order.
func (tx *Tx) ArchiveTargets(eventIDs []string) ([]ArchiveEntry, error) {
	return tx.archiveEntries(`SELECT `+archiveColumns+` FROM archive_entries WHERE target IN @text($1) ORDER BY nid`, eventIDs)
}

// ArchiveAround reads entries of a room with after < ord < before; newest first if back, else oldest first.
func (tx *Tx) ArchiveAround(room, after, before int64, back bool, limit int) ([]ArchiveEntry, error) {
	order := `ASC`
	if back {
		order = `DESC`
	}
	return tx.archiveEntries(`SELECT `+archiveColumns+` FROM archive_entries WHERE room = $1 AND ord > $2 AND ord < $3 AND status = 0
		ORDER BY ord `+order+` LIMIT $4`, room, after, before, limit)
}

// ArchiveMembers tells which membership each user had in a room at a place of its timeline.
func (tx *Tx) ArchiveMembers(room, ord int64, fn func(user string, membership int64)) error {
	return tx.Each(`SELECT a.usr, a.membership FROM archive_entries a
		WHERE a.room = $1 AND a.membership IS NOT NULL AND a.status = 0 AND a.ord = (SELECT max(b.ord) FROM archive_entries b
			WHERE b.room = $1 AND b.usr = a.usr AND b.membership IS NOT NULL AND b.status = 0 AND b.ord <= $2)
		ORDER BY a.usr`, []any{room, ord}, func(r *Row) error {
		var user string
		var membership int64
		if err := r.Scan(&user, &membership); err != nil {
			return err
		}
		fn(user, membership)
		return nil
	})
}

// ArchiveRoom is a room of the archive.
type ArchiveRoom struct {
	NID     int64
	RoomID  string
	Version string
	Creator string
	Created int64
	Deleted bool // it is not on the server any more
}

func (a *ArchiveRoom) dest() []any {
	return []any{&a.NID, &a.RoomID, &a.Version, &a.Creator, &a.Created, &a.Deleted}
}

// ArchiveRooms reads rooms of the archive by their numbers or ids.
func (tx *Tx) ArchiveRooms(nids []int64, ids []string) ([]ArchiveRoom, error) {
	return list(tx, (*ArchiveRoom).dest, `SELECT a.nid, a.room_id, a.version, a.creator, a.created, CASE WHEN r.nid IS NULL THEN 1 ELSE 0 END
		FROM archive_rooms a LEFT JOIN rooms r ON r.nid = a.nid WHERE a.nid IN @int($1) OR a.room_id IN @text($2) ORDER BY a.nid`, nids, ids)
}

// archiveRoom notes a room that is about to be deleted, if there is an archive.
func (tx *Tx) archiveRoom(room int64) error {
	_, err := tx.Exec(`INSERT INTO archive_rooms (nid, room_id, version, creator, created) SELECT nid, room_id, version, creator, created FROM rooms
		WHERE nid = $1 AND EXISTS (SELECT 1 FROM archive_head WHERE id = 1 AND active = 1) ON CONFLICT DO NOTHING`, room)
	if err != nil {
		return fmt.Errorf("note room %d for the archive: %w", room, err)
	}
	return nil
}

// archiveEvents keeps events that are about to be deleted and that the archive has not read.
func (tx *Tx) archiveEvents(nids []int64) error {
	_, err := tx.Exec(`INSERT INTO archive_pending (nid, room, ord, event_id, status, ts, body)
		SELECT e.nid, e.room, e.ord, e.event_id, e.status, e.ts, coalesce(x.body, e.body) FROM events e LEFT JOIN redacted_events x ON x.nid = e.nid
		WHERE e.nid IN @int($1) AND e.nid > (SELECT nid FROM archive_head WHERE id = 1 AND active = 1) ON CONFLICT DO NOTHING`, nids)
	if err != nil {
		return fmt.Errorf("keep events for the archive: %w", err)
	}
	return nil
}
