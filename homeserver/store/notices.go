package store

import "maunium.net/go/mautrix/id"

// NoticeRoom gives the room in which the server tells a user something.
func (tx *Tx) NoticeRoom(user id.UserID) (roomID id.RoomID, ok bool, err error) {
	ok, err = tx.Get([]any{&roomID}, `SELECT room_id FROM notice_rooms WHERE usr = $1`, user)
	return roomID, ok, err
}

// SetNoticeRoom notes a user's room in the place of one that is gone ("": none was noted). False means that another one has
// been noted meanwhile.
func (tx *Tx) SetNoticeRoom(user id.UserID, roomID, gone id.RoomID, now int64) (bool, error) {
	if gone != "" {
		n, err := tx.Exec(`UPDATE notice_rooms SET room_id = $2, created = $4 WHERE usr = $1 AND room_id = $3`, user, roomID, gone, now)
		return n > 0, err
	}
	n, err := tx.Exec(`INSERT INTO notice_rooms (usr, room_id, created) VALUES ($1, $2, $3) ON CONFLICT (usr) DO NOTHING`, user, roomID, now)
	return n > 0, err
}

// IsNoticeRoom tells whether a room is that of a user's notices.
func (tx *Tx) IsNoticeRoom(user id.UserID, roomID id.RoomID) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM notice_rooms WHERE usr = $1 AND room_id = $2`, user, roomID)
}
