package store

import "maunium.net/go/mautrix/id"

// SetUserLimit gives an account limits of its own: how much it may send a second (0: without limit) and at once. nil gives it the
// server's again. false means that there is no such account.
func (tx *Tx) SetUserLimit(user id.UserID, perSecond, burst *int64) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET rate_per_second = $2, rate_burst = $3 WHERE user_id = $1`, user, perSecond, burst)
	return n > 0, err
}

// OpenKeys lets a user replace cross-signing keys until a time (ms) without another authentication; 0 ends that.
func (tx *Tx) OpenKeys(user id.UserID, until int64) error {
	_, err := tx.Exec(`UPDATE users SET keys_open_until = $2 WHERE user_id = $1`, user, until)
	return err
}

// KeysOpenUntil tells until when (ms) a user may replace cross-signing keys without another authentication.
func (tx *Tx) KeysOpenUntil(user id.UserID) (until int64, err error) {
	_, err = tx.Get([]any{&until}, `SELECT keys_open_until FROM users WHERE user_id = $1`, user)
	return until, err
}
