package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// forgetSQL removes what belongs to a user alone; the statements take the user and, where a user can have many rows, how
// many of them to remove at once.
var forgetSQL = []struct {
	what, sql string
	bounded   bool
}{
	{"key backups", `DELETE FROM backup_keys WHERE usr = $1 AND (version, room_id, session_id) IN
		(SELECT version, room_id, session_id FROM backup_keys WHERE usr = $1 LIMIT $2)`, true},
	{"key backups", `DELETE FROM backup_versions WHERE usr = $1`, false},
	{"thread subscriptions", `DELETE FROM thread_subscriptions WHERE usr = $1 AND (room, root) IN (SELECT room, root FROM thread_subscriptions WHERE usr = $1 LIMIT $2)`, true},
	{"account data", `DELETE FROM account_data WHERE usr = $1 AND (room, type) IN (SELECT room, type FROM account_data WHERE usr = $1 LIMIT $2)`, true},
	{"filters", `DELETE FROM filters WHERE usr = $1 AND id IN (SELECT id FROM filters WHERE usr = $1 LIMIT $2)`, true},
	{"push rules", `DELETE FROM push_rules WHERE usr = $1`, false},
	{"cross-signing keys", `DELETE FROM cross_signing_keys WHERE usr = $1`, false},
	{"signatures", `DELETE FROM key_signatures WHERE usr = $1`, false},
	{"profile", `DELETE FROM profiles WHERE usr = $1`, false},
}

// ForgetUser removes what a deactivated user kept on the server beside messages: key backups, account data, filters,
// push rules, cross-signing keys, the profile. It removes at most some limit rows at a time and tells whether there may
// be more.
func (tx *Tx) ForgetUser(user id.UserID, limit int) (more bool, err error) {
	total := int64(0)
	for _, f := range forgetSQL {
		args := []any{user}
		if f.bounded {
			args = append(args, limit)
		}
		n, err := tx.Exec(f.sql, args...)
		if err != nil {
			return false, fmt.Errorf("delete %s of %s: %w", f.what, user, err)
		}
		if total += n; f.bounded && n >= int64(limit) {
			more = true
			break // the rest in the next transaction
		}
	}
	if total == 0 {
		return false, nil
	}
	if _, err := tx.Announce(Entry{Kind: KindProfile, User: string(user)}); err != nil {
		return false, err
	}
	return more, tx.AnnounceDeviceList(user)
}
