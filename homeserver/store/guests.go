package store

import "maunium.net/go/mautrix/id"

// GuestsAmong gives those of some users who are guests of this server.
func (tx *Tx) GuestsAmong(users []string) (out []id.UserID, err error) {
	err = tx.Each(`SELECT user_id FROM users WHERE user_id IN @text($1) AND guest = 1`, []any{users}, func(r *Row) error {
		var u id.UserID
		err := r.Scan(&u)
		out = append(out, u)
		return err
	})
	return out, err
}

// PromoteGuest makes a guest a full user with a password; false means that there is no such guest.
func (tx *Tx) PromoteGuest(user id.UserID, password Content) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET guest = 0, password = $2 WHERE user_id = $1 AND guest = 1 AND deactivated = 0`, user, password)
	return n > 0, err
}
