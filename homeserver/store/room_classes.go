package store

import "maunium.net/go/mautrix/id"

// RoomClass reads a room's class; "" where it has none yet.
func (tx *Tx) RoomClass(roomID id.RoomID) (class string, err error) {
	_, err = tx.Get([]any{&class}, `SELECT class FROM room_classes WHERE room_id = $1`, roomID)
	return class, err
}

// SetRoomClass gives a room its class, unless it has one, and returns the one that it has.
func (tx *Tx) SetRoomClass(roomID id.RoomID, class string, now int64) (string, error) {
	if _, err := tx.Exec(`INSERT INTO room_classes (room_id, class, since) VALUES ($1, $2, $3) ON CONFLICT (room_id) DO NOTHING`, roomID, class, now); err != nil {
		return "", err
	}
	return tx.RoomClass(roomID)
}

// UsersNotTold lists people with an account in use, behind one of them, who were not told a version of the notice.
func (tx *Tx) UsersNotTold(version string, after id.UserID, limit int) ([]id.UserID, error) {
	var out []id.UserID
	err := tx.Each(`SELECT u.user_id FROM users u WHERE u.user_id > $2 AND u.deactivated = 0 AND u.guest = 0 AND u.locked = 0 AND u.disabled = 0
		AND u.appservice = '' AND u.user_type = '' AND NOT EXISTS (SELECT 1 FROM compliance_told t WHERE t.usr = u.user_id AND t.version = $1)
		ORDER BY u.user_id LIMIT $3`, []any{version, after, limit}, func(r *Row) error {
		var u id.UserID
		err := r.Scan(&u)
		out = append(out, u)
		return err
	})
	return out, err
}

// ToldUser notes which version of the notice a user was told.
func (tx *Tx) ToldUser(user id.UserID, version string, now int64) error {
	_, err := tx.Exec(`INSERT INTO compliance_told (usr, version, told) VALUES ($1, $2, $3)
		ON CONFLICT (usr) DO UPDATE SET version = excluded.version, told = excluded.told`, user, version, now)
	return err
}
