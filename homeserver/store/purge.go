package store

import "fmt"

// BlockRoom keeps users of this server out of a room, which need not be known here, or lets them in again. It tells
// whether that changed anything.
func (tx *Tx) BlockRoom(roomID, by string, now int64, on bool) (bool, error) {
	sql, args := `DELETE FROM blocked_rooms WHERE room_id = $1`, []any{roomID}
	if on {
		sql, args = `INSERT INTO blocked_rooms (room_id, usr, created) VALUES ($1, $2, $3) ON CONFLICT (room_id) DO NOTHING`, []any{roomID, by, now}
	}
	n, err := tx.Exec(sql, args...)
	if err != nil || n == 0 {
		return false, err
	}
	_, err = tx.Exec(`UPDATE rooms SET blocked = $2 WHERE room_id = $1`, roomID, on)
	return true, err
}

// RoomBlocked tells who blocked a room; ok is false where nobody did.
func (tx *Tx) RoomBlocked(roomID string) (by string, ok bool, err error) {
	ok, err = tx.Get([]any{&by}, `SELECT usr FROM blocked_rooms WHERE room_id = $1`, roomID)
	return by, ok, err
}

// DropRoom removes a room's row with its aliases and memberships: from then on it is not there. What else belongs to it
// PurgeRoom removes.
func (tx *Tx) DropRoom(room int64) error {
	if err := tx.archiveRoom(room); err != nil {
		return err
	}
	for _, sql := range []string{
		`DELETE FROM room_aliases WHERE room = $1`,
		`DELETE FROM appservice_rooms WHERE room = $1`,
		`DELETE FROM memberships WHERE room = $1`,
		`DELETE FROM rooms WHERE nid = $1`,
	} {
		if _, err := tx.Exec(sql, room); err != nil {
			return fmt.Errorf("drop room %d: %w", room, err)
		}
	}
	return nil
}

// purgeSQL removes what belongs to a room that was dropped; the statements take the room and how many rows at once.
var purgeSQL = []string{
	`DELETE FROM room_state WHERE room = $1 AND (type, state_key) IN (SELECT type, state_key FROM room_state WHERE room = $1 LIMIT $2)`,
	`DELETE FROM state_changes WHERE room = $1 AND (type, state_key, ord) IN (SELECT type, state_key, ord FROM state_changes WHERE room = $1 LIMIT $2)`,
	`DELETE FROM threads WHERE room = $1 AND root IN (SELECT root FROM threads WHERE room = $1 LIMIT $2)`,
	`DELETE FROM receipts WHERE room = $1 AND (usr, type, thread) IN (SELECT usr, type, thread FROM receipts WHERE room = $1 LIMIT $2)`,
	`DELETE FROM unread WHERE room = $1 AND usr IN (SELECT usr FROM unread WHERE room = $1 LIMIT $2)`,
	`DELETE FROM thread_subscriptions WHERE room = $1 AND (usr, root) IN (SELECT usr, root FROM thread_subscriptions WHERE room = $1 LIMIT $2)`,
	`DELETE FROM account_data WHERE room = $1 AND (usr, type) IN (SELECT usr, type FROM account_data WHERE room = $1 LIMIT $2)`,
	`DELETE FROM push_queue WHERE room = $1 AND (pusher, pos) IN (SELECT pusher, pos FROM push_queue WHERE room = $1 LIMIT $2)`,
	`DELETE FROM sliding_rooms WHERE room = $1 AND (conn, seq) IN (SELECT conn, seq FROM sliding_rooms WHERE room = $1 LIMIT $2)`,
}

// PurgeRoom removes up to some limit rows of a room that was dropped, and tells whether there may be more.
func (tx *Tx) PurgeRoom(room int64, limit int) (more bool, err error) {
	for _, sql := range purgeSQL {
		n, err := tx.Exec(sql, room, limit)
		if err != nil {
			return false, fmt.Errorf("purge room %d: %w", room, err)
		}
		if n >= int64(limit) {
			return true, nil
		}
	}
	n, err := tx.purgeEvents(`SELECT nid FROM events WHERE room = $1 ORDER BY ord LIMIT $2`, room, limit)
	return n >= limit, err
}

// PurgeHistory removes up to some limit events of a room that lie before ord and are not state, and tells whether there
// may be more.
func (tx *Tx) PurgeHistory(room, ord int64, limit int) (removed int, err error) {
	return tx.purgeEvents(`SELECT nid FROM events WHERE room = $1 AND is_state = 0 AND ord < $3 ORDER BY ord LIMIT $2`, room, limit, ord)
}

// purgeEvents removes the events that a query names, with what was kept of them.
func (tx *Tx) purgeEvents(sql string, args ...any) (int, error) {
	var nids []int64
	var ids []string
	err := tx.Each(sql, args, func(r *Row) error {
		var nid int64
		err := r.Scan(&nid)
		nids = append(nids, nid)
		return err
	})
	if err != nil || len(nids) == 0 {
		return 0, err
	}
	if err := tx.archiveEvents(nids); err != nil {
		return 0, err
	}
	err = tx.Each(`DELETE FROM events WHERE nid IN @int($1) RETURNING event_id`, []any{nids}, func(r *Row) error {
		var eventID string
		err := r.Scan(&eventID)
		ids = append(ids, eventID)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("purge events: %w", err)
	}
	if _, err := tx.Exec(`DELETE FROM redacted_events WHERE nid IN @int($1)`, nids); err != nil {
		return 0, fmt.Errorf("purge redacted events: %w", err)
	}
	if _, err := tx.Exec(`DELETE FROM relations WHERE parent IN @text($1)`, ids); err != nil {
		return 0, fmt.Errorf("purge relations: %w", err)
	}
	return len(nids), nil
}

// RoomDeletion is a room whose deletion was asked for.
type RoomDeletion struct {
	ID        string
	NID       int64 // 0 where the room was not known
	RoomID    string
	Requester string
	Requested int64 // ms
	Finished  int64 // ms; 0: not yet
	Status    int64 // one of the Deletion constants
	Stage     int64 // 0: members leave; 1: rows are removed
	Purge     bool
	Params    Content // JSON
	Result    Content // JSON
}

// The statuses of deletions.
const (
	DeletionOpen int64 = iota
	DeletionDone
	DeletionFailed
)

const deletionColumns = `id, nid, room_id, requester, requested, finished, status, stage, purge, params, result`

func (d *RoomDeletion) dest() []any {
	return []any{&d.ID, &d.NID, &d.RoomID, &d.Requester, &d.Requested, &d.Finished, &d.Status, &d.Stage, &d.Purge, &d.Params, &d.Result}
}

// InsertRoomDeletion notes that a room is to be deleted.
func (tx *Tx) InsertRoomDeletion(d RoomDeletion) error {
	_, err := tx.Exec(`INSERT INTO room_deletions (`+deletionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
		d.ID, d.NID, d.RoomID, d.Requester, d.Requested, d.Finished, d.Status, d.Stage, d.Purge, d.Params, d.Result)
	return err
}

// SaveRoomDeletion stores how far a deletion has come and lets go of it.
func (tx *Tx) SaveRoomDeletion(d RoomDeletion) error {
	_, err := tx.Exec(`UPDATE room_deletions SET finished = $2, status = $3, stage = $4, result = $5, busy_until = 0 WHERE id = $1`,
		d.ID, d.Finished, d.Status, d.Stage, d.Result)
	return err
}

// TakeRoomDeletion gives the oldest open deletion that no process works on, and claims it until a time.
func (tx *Tx) TakeRoomDeletion(now, until int64) (d RoomDeletion, ok bool, err error) {
	ok, err = tx.Get(d.dest(), `SELECT `+deletionColumns+` FROM room_deletions WHERE status = 0 AND busy_until < $1
		ORDER BY requested LIMIT 1 @skiplocked`, now)
	if err != nil || !ok {
		return d, false, err
	}
	_, err = tx.Exec(`UPDATE room_deletions SET busy_until = $2 WHERE id = $1`, d.ID, until)
	return d, true, err
}

// HoldRoomDeletion prolongs the claim on a deletion.
func (tx *Tx) HoldRoomDeletion(deletionID string, until int64) error {
	_, err := tx.Exec(`UPDATE room_deletions SET busy_until = $2 WHERE id = $1`, deletionID, until)
	return err
}

// RoomDeletions lists deletions by id, or where that is "" those of a room, or where both are "" all, the newest first.
func (tx *Tx) RoomDeletions(deletionID, roomID string) ([]RoomDeletion, error) {
	var out []RoomDeletion
	err := tx.Each(`SELECT `+deletionColumns+` FROM room_deletions WHERE ($1 = '' OR id = $1) AND ($2 = '' OR room_id = $2)
		ORDER BY requested DESC, id LIMIT 1000`, []any{deletionID, roomID}, func(r *Row) error {
		var d RoomDeletion
		err := r.Scan(d.dest()...)
		out = append(out, d)
		return err
	})
	return out, err
}
