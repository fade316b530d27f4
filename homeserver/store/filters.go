package store

import "maunium.net/go/mautrix/id"

// InsertFilter stores a filter under an id made of its hash.
func (tx *Tx) InsertFilter(user id.UserID, filterID string, body Content) error {
	_, err := tx.Exec(`INSERT INTO filters (usr, id, body) VALUES ($1, $2, $3) ON CONFLICT (usr, id) DO NOTHING`, user, filterID, body)
	return err
}

// Filter reads a filter; nil if there is none of this id.
func (tx *Tx) Filter(user id.UserID, filterID string) (Content, error) {
	var body Content
	_, err := tx.Get([]any{&body}, `SELECT body FROM filters WHERE usr = $1 AND id = $2`, user, filterID)
	return body, err
}
