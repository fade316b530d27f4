package store

// RoomPublished tells whether a room stands in the published room directory.
func (tx *Tx) RoomPublished(room int64) (bool, error) {
	var published bool
	_, err := tx.Get([]any{&published}, `SELECT published FROM rooms WHERE nid = $1`, room)
	return published, err
}

// SetRoomPublished puts a room into the published room directory or takes it out. It tells whether that changed anything.
func (tx *Tx) SetRoomPublished(room int64, published bool) (bool, error) {
	n, err := tx.Exec(`UPDATE rooms SET published = $2 WHERE nid = $1 AND published <> $2`, room, published)
	return n > 0, err
}

// DirectoryRoom is a published room.
type DirectoryRoom struct {
	NID    int64
	RoomID string
	Joined int64 // members
}

// PublishedRooms lists the published room directory: the rooms with the most joined members first, then by age.
func (tx *Tx) PublishedRooms() ([]DirectoryRoom, error) {
	var out []DirectoryRoom
	err := tx.Each(`SELECT r.nid, r.room_id, (SELECT count(*) FROM memberships m WHERE m.room = r.nid AND m.membership = 2) AS joined
		FROM rooms r WHERE r.published = 1 AND r.blocked = 0 ORDER BY joined DESC, r.nid`, nil, func(r *Row) error {
		var d DirectoryRoom
		err := r.Scan(&d.NID, &d.RoomID, &d.Joined)
		out = append(out, d)
		return err
	})
	return out, err
}

// DirectoryState reads the bodies of what a directory shows of rooms: their state events of some types with an empty
// state key.
func (tx *Tx) DirectoryState(rooms []int64, types []string, fn func(room int64, evType string, pdu []byte)) error {
	return tx.Each(`SELECT s.room, s.type, e.body FROM room_state s JOIN events e ON e.nid = s.nid
		WHERE s.room IN @int($1) AND s.type IN @text($2) AND s.state_key = ''`, []any{rooms, types}, func(r *Row) error {
		var room int64
		var evType string
		var body Content
		if err := r.Scan(&room, &evType, &body); err != nil {
			return err
		}
		fn(room, evType, body)
		return nil
	})
}
