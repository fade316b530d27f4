package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// SlidingConn is a connection of sliding sync. Base and Seq number the two states of it that a client may come with.
type SlidingConn struct {
	ID        int64
	User      id.UserID
	Device    id.DeviceID
	Name      string // conn_id
	Base, Seq int64
	Used      int64 // ms of the last write
	Configs   []byte
}

// SlidingRoom is what a client was told of a room, from one state of its connection on.
type SlidingRoom struct {
	Room, Seq int64
	Sent      []byte
}

var slidingRoomCols = []Col{{"conn", Int}, {"room", Int}, {"seq", Int}, {"sent", Bytes}}

// CreateSliding stores a new connection in its first state. It takes the place of one with the same name, and of the
// device's least used ones where there would be more than most.
func (tx *Tx) CreateSliding(c *SlidingConn, rooms []SlidingRoom, most int) error {
	var gone []int64
	n := 0
	err := tx.Each(`SELECT id, conn_id FROM sliding_conns WHERE usr = $1 AND device_id = $2 ORDER BY used DESC, id`,
		[]any{c.User, c.Device}, func(r *Row) error {
			var cid int64
			var name string
			if err := r.Scan(&cid, &name); err != nil {
				return err
			}
			if n++; name == c.Name || n >= most {
				gone = append(gone, cid)
			}
			return nil
		})
	if err == nil {
		err = tx.dropSliding(gone)
	}
	if err != nil {
		return fmt.Errorf("make room for a sliding sync connection: %w", err)
	}
	_, err = tx.Exec(`INSERT INTO sliding_conns (id, usr, device_id, conn_id, base, seq, used, configs) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		c.ID, c.User, c.Device, c.Name, c.Base, c.Seq, c.Used, c.Configs)
	if err != nil {
		return fmt.Errorf("insert a sliding sync connection: %w", err)
	}
	return tx.saveSlidingRooms(c.ID, c.Seq, rooms)
}

func (tx *Tx) saveSlidingRooms(conn, seq int64, rooms []SlidingRoom) error {
	err := tx.Insert("sliding_rooms", slidingRoomCols, len(rooms), func(i int) []any {
		return []any{conn, rooms[i].Room, seq, rooms[i].Sent}
	}, "")
	if err != nil {
		return fmt.Errorf("insert the rooms of a sliding sync connection: %w", err)
	}
	return nil
}

// ReadSliding reads a connection and all of its rows of rooms; ok is false where there is none of this name.
func (tx *Tx) ReadSliding(user id.UserID, device id.DeviceID, name string) (c SlidingConn, rooms []SlidingRoom, ok bool, err error) {
	c = SlidingConn{User: user, Device: device, Name: name}
	ok, err = tx.Get([]any{&c.ID, &c.Base, &c.Seq, &c.Used, &c.Configs}, `SELECT id, base, seq, used, configs FROM sliding_conns
		WHERE usr = $1 AND device_id = $2 AND conn_id = $3`, user, device, name)
	if err != nil || !ok {
		return c, nil, false, err
	}
	err = tx.Each(`SELECT room, seq, sent FROM sliding_rooms WHERE conn = $1 ORDER BY seq`, []any{c.ID}, func(r *Row) error {
		var x SlidingRoom
		err := r.Scan(&x.Room, &x.Seq, &x.Sent)
		rooms = append(rooms, x)
		return err
	})
	return c, rooms, true, err
}

// AdvanceSliding stores a new state of a connection: the one numbered from with these rooms in their new form. It gives
// the new state's number; 0 where the connection is no more or has no state from. configs is nil where they stay.
func (tx *Tx) AdvanceSliding(conn, from, now int64, configs []byte, rooms []SlidingRoom) (int64, error) {
	var base, seq int64
	ok, err := tx.Get([]any{&base, &seq}, `SELECT base, seq FROM sliding_conns WHERE id = $1 @forupdate`, conn)
	if err != nil || !ok || (from != base && from != seq) {
		return 0, err
	}
	if from == seq {
		_, err = tx.Exec(`DELETE FROM sliding_rooms WHERE conn = $1 AND seq < $2
			AND room IN (SELECT room FROM sliding_rooms WHERE conn = $1 AND seq = $2)`, conn, from)
	} else { // the client never got the newest state
		_, err = tx.Exec(`DELETE FROM sliding_rooms WHERE conn = $1 AND seq > $2`, conn, from)
	}
	if err != nil {
		return 0, fmt.Errorf("drop a state of a sliding sync connection: %w", err)
	}
	seq++
	if err := tx.saveSlidingRooms(conn, seq, rooms); err != nil {
		return 0, err
	}
	if configs == nil {
		_, err = tx.Exec(`UPDATE sliding_conns SET base = $2, seq = $3, used = $4 WHERE id = $1`, conn, from, seq, now)
	} else {
		_, err = tx.Exec(`UPDATE sliding_conns SET base = $2, seq = $3, used = $4, configs = $5 WHERE id = $1`, conn, from, seq, now, configs)
	}
	return seq, err
}

// TouchSliding notes that a connection is in use.
func (tx *Tx) TouchSliding(conn, now int64) error {
	_, err := tx.Exec(`UPDATE sliding_conns SET used = $2 WHERE id = $1`, conn, now)
	return err
}

func (tx *Tx) dropSliding(conns []int64) error {
	if len(conns) == 0 {
		return nil
	}
	if _, err := tx.Exec(`DELETE FROM sliding_rooms WHERE conn IN @int($1)`, conns); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM sliding_conns WHERE id IN @int($1)`, conns)
	return err
}

// DropSlidingDevice removes the connections of a device.
func (tx *Tx) DropSlidingDevice(user id.UserID, device id.DeviceID) error {
	conns, err := tx.slidingIDs(`SELECT id FROM sliding_conns WHERE usr = $1 AND device_id = $2`, user, device)
	if err != nil {
		return err
	}
	return tx.dropSliding(conns)
}

// PruneSliding removes up to limit connections that were used last before a time in ms, and tells how many.
func (tx *Tx) PruneSliding(before int64, limit int) (int, error) {
	conns, err := tx.slidingIDs(`SELECT id FROM sliding_conns WHERE used < $1 ORDER BY used LIMIT $2`, before, limit)
	if err != nil {
		return 0, err
	}
	return len(conns), tx.dropSliding(conns)
}

func (tx *Tx) slidingIDs(sql string, args ...any) ([]int64, error) {
	var out []int64
	err := tx.Each(sql, args, func(r *Row) error {
		var n int64
		err := r.Scan(&n)
		out = append(out, n)
		return err
	})
	return out, err
}

// RoomsAccountData reads the account data of a user for some rooms, in no particular order.
func (tx *Tx) RoomsAccountData(user id.UserID, rooms []int64) ([]AccountData, error) {
	return tx.accountData(accountDataColumns+`WHERE a.usr = $1 AND a.room IN @int($2)`, user, rooms)
}

// RoomTags reads the tags of all rooms that a user has tagged.
func (tx *Tx) RoomTags(user id.UserID) ([]AccountData, error) {
	return tx.accountData(accountDataColumns+`WHERE a.usr = $1 AND a.type = 'm.tag' AND a.room <> 0`, user)
}

// RoomFacts reads the current create, encryption and name events of some rooms.
func (tx *Tx) RoomFacts(rooms []int64, fn func(room int64, evType string, body Content)) error {
	return tx.Each(`SELECT s.room, s.type, e.body FROM room_state s JOIN events e ON e.nid = s.nid
		WHERE s.room IN @int($1) AND s.state_key = '' AND s.type IN ('m.room.create', 'm.room.encryption', 'm.room.name')`, []any{rooms}, func(r *Row) error {
		var room int64
		var t string
		var body Content
		if err := r.Scan(&room, &t, &body); err != nil {
			return err
		}
		fn(room, t, body)
		return nil
	})
}

// ReceiptRooms gives those of some rooms in which a receipt changed after a position.
func (tx *Tx) ReceiptRooms(rooms []int64, since int64) ([]int64, error) {
	return tx.slidingIDs(`SELECT nid FROM rooms WHERE nid IN @int($1) AND EXISTS (SELECT 1 FROM receipts WHERE room = rooms.nid AND pos > $2)`, rooms, since)
}
