package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// AccountData is something that a user's clients keep on the server.
type AccountData struct {
	Room   int64  // rooms.nid; 0: it belongs to no room
	RoomID string // "" where Room is 0
	Type   string
	Pos    int64
	Body   Content // a JSON object
}

// SetAccountData stores and announces account data. room is 0 for what belongs to none.
func (tx *Tx) SetAccountData(user id.UserID, room int64, dataType string, body Content) error {
	pos, err := tx.Announce(Entry{Kind: KindAccountData, User: string(user), Room: room, Key: dataType})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO account_data (usr, room, type, pos, body) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (usr, room, type) DO UPDATE SET pos = excluded.pos, body = excluded.body`, user, room, dataType, pos, body)
	if err != nil {
		return fmt.Errorf("store account data of %s: %w", user, err)
	}
	return nil
}

// AccountData reads one piece of account data; nil if there is none.
func (tx *Tx) AccountData(user id.UserID, room int64, dataType string) (Content, error) {
	var body Content
	_, err := tx.Get([]any{&body}, `SELECT body FROM account_data WHERE usr = $1 AND room = $2 AND type = $3`, user, room, dataType)
	return body, err
}

const accountDataColumns = `SELECT a.room, coalesce(r.room_id, ''), a.type, a.pos, a.body
	FROM account_data a LEFT JOIN rooms r ON r.nid = a.room `

func (tx *Tx) accountData(sql string, args ...any) ([]AccountData, error) {
	var out []AccountData
	err := tx.Each(sql, args, func(r *Row) error {
		var a AccountData
		if err := r.Scan(&a.Room, &a.RoomID, &a.Type, &a.Pos, &a.Body); err != nil {
			return err
		}
		out = append(out, a)
		return nil
	})
	return out, err
}

// AccountDataSince reads the account data of a user, of all rooms and of none, that changed last after since and not
// after upto, in the order of the changes.
func (tx *Tx) AccountDataSince(user id.UserID, since, upto int64) ([]AccountData, error) {
	return tx.accountData(accountDataColumns+`WHERE a.usr = $1 AND a.pos > $2 AND a.pos <= $3 ORDER BY a.pos`, user, since, upto)
}

// RoomAccountData reads all account data of a user for one room, or for none where room is 0.
func (tx *Tx) RoomAccountData(user id.UserID, room int64) ([]AccountData, error) {
	return tx.accountData(accountDataColumns+`WHERE a.usr = $1 AND a.room = $2 ORDER BY a.type`, user, room)
}

// ForgetRoomAccountData removes what a user keeps for a room that the user forgets.
func (tx *Tx) ForgetRoomAccountData(user id.UserID, room int64) error {
	_, err := tx.Exec(`DELETE FROM account_data WHERE usr = $1 AND room = $2`, user, room)
	return err
}

// DeleteAccountData removes account data that belongs to no room, without a word to the user's clients.
func (tx *Tx) DeleteAccountData(user id.UserID, dataTypes ...string) error {
	_, err := tx.Exec(`DELETE FROM account_data WHERE usr = $1 AND room = 0 AND type IN @text($2)`, user, dataTypes)
	return err
}
