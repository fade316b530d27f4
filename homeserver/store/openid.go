package store

import "maunium.net/go/mautrix/id"

// InsertOpenIDToken stores a token that proves who a user is.
func (tx *Tx) InsertOpenIDToken(h TokenHash, user id.UserID, device id.DeviceID, expires int64) error {
	_, err := tx.Exec(`INSERT INTO openid_tokens (hash, usr, device_id, expires) VALUES ($1, $2, $3, $4)`, h[:], user, device, expires)
	return err
}

// OpenIDUser finds who a token speaks for; false where it is not known, has expired, or its user or device may not sign in
// any more. An application service's token has no device.
func (tx *Tx) OpenIDUser(h TokenHash, now int64) (id.UserID, bool, error) {
	var user id.UserID
	found, err := tx.Get([]any{&user}, `SELECT t.usr FROM openid_tokens t JOIN users u ON u.user_id = t.usr
		WHERE t.hash = $1 AND t.expires > $2 AND u.deactivated = 0 AND u.locked = 0
		AND (t.device_id = '' OR EXISTS (SELECT 1 FROM devices d WHERE d.usr = t.usr AND d.device_id = t.device_id))`, h[:], now)
	return user, found, err
}

// SweepOpenID removes tokens that have expired.
func (tx *Tx) SweepOpenID(now int64) error {
	_, err := tx.Exec(`DELETE FROM openid_tokens WHERE expires <= $1`, now)
	return err
}

// MutualRooms lists the ids of rooms that both users have joined, in order, behind `after` ("" for the first ones), and
// counts all of them.
func (tx *Tx) MutualRooms(a, b id.UserID, after id.RoomID, limit int) (rooms []id.RoomID, total int64, err error) {
	const mutual = ` FROM memberships x JOIN memberships y ON y.room = x.room AND y.usr = $2 AND y.membership = 2
		JOIN rooms r ON r.nid = x.room WHERE x.usr = $1 AND x.membership = 2`
	if _, err := tx.Get([]any{&total}, `SELECT count(*)`+mutual, a, b); err != nil {
		return nil, 0, err
	}
	err = tx.Each(`SELECT r.room_id`+mutual+` AND r.room_id > $3 ORDER BY r.room_id LIMIT $4`, []any{a, b, after, limit}, func(r *Row) error {
		var room id.RoomID
		if err := r.Scan(&room); err != nil {
			return err
		}
		rooms = append(rooms, room)
		return nil
	})
	return rooms, total, err
}
