package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// BackupVersion is a backup of a user's room keys.
type BackupVersion struct {
	Version   int64
	Algorithm string
	AuthData  Content // a JSON object
	ETag      int64   // moves with every change of the keys
	Count     int64   // keys stored
	Deleted   bool
}

const backupColumns = `SELECT version, algorithm, auth_data, etag, key_count, deleted FROM backup_versions WHERE usr = $1 `

func (tx *Tx) backupVersion(sql string, args ...any) (BackupVersion, bool, error) {
	var v BackupVersion
	found, err := tx.Get([]any{&v.Version, &v.Algorithm, &v.AuthData, &v.ETag, &v.Count, &v.Deleted}, sql, args...)
	return v, found, err
}

// Backup reads a version, be it deleted.
func (tx *Tx) Backup(user id.UserID, version int64) (BackupVersion, bool, error) {
	return tx.backupVersion(backupColumns+`AND version = $2`, user, version)
}

// LockBackup reads a version and holds its row to the end of the transaction.
func (tx *Tx) LockBackup(user id.UserID, version int64) (BackupVersion, bool, error) {
	return tx.backupVersion(backupColumns+`AND version = $2 @forupdate`, user, version)
}

// LatestBackup reads the newest version that is not deleted.
func (tx *Tx) LatestBackup(user id.UserID) (BackupVersion, bool, error) {
	return tx.backupVersion(backupColumns+`AND deleted = 0 ORDER BY version DESC LIMIT 1`, user)
}

// InsertBackup adds a version and returns its number. The user's row must be locked.
func (tx *Tx) InsertBackup(user id.UserID, algorithm string, authData Content) (int64, error) {
	var version int64
	_, err := tx.Get([]any{&version}, `INSERT INTO backup_versions (usr, version, algorithm, auth_data, etag, key_count, deleted)
		VALUES ($1, coalesce((SELECT max(version) FROM backup_versions WHERE usr = $1), 0) + 1, $2, $3, 0, 0, 0)
		RETURNING version`, user, algorithm, authData)
	return version, err
}

// UpdateBackup stores a version's auth data, etag, count and deletion.
func (tx *Tx) UpdateBackup(user id.UserID, v BackupVersion) error {
	_, err := tx.Exec(`UPDATE backup_versions SET auth_data = $3, etag = $4, key_count = $5, deleted = $6 WHERE usr = $1 AND version = $2`,
		user, v.Version, v.AuthData, v.ETag, v.Count, v.Deleted)
	return err
}

// BackupKey is one backed-up session of a room.
type BackupKey struct {
	RoomID            string
	SessionID         string
	FirstMessageIndex int64
	ForwardedCount    int64
	IsVerified        bool
	SessionData       Content // a JSON object
}

const backupKeyColumns = `SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
	FROM backup_keys WHERE usr = $1 AND version = $2 `

func (tx *Tx) backupKeys(sql string, args ...any) ([]BackupKey, error) {
	var out []BackupKey
	err := tx.Each(sql, args, func(r *Row) error {
		var k BackupKey
		if err := r.Scan(&k.RoomID, &k.SessionID, &k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, &k.SessionData); err != nil {
			return err
		}
		out = append(out, k)
		return nil
	})
	return out, err
}

// BackupKeysAfter reads up to limit keys in the order of rooms and sessions, after one of them.
func (tx *Tx) BackupKeysAfter(user id.UserID, version int64, roomID, sessionID string, limit int) ([]BackupKey, error) {
	return tx.backupKeys(backupKeyColumns+`AND (room_id, session_id) > ($3, $4) ORDER BY room_id, session_id LIMIT $5`,
		user, version, roomID, sessionID, limit)
}

// BackupKeysOfRoomAfter is BackupKeysAfter within one room.
func (tx *Tx) BackupKeysOfRoomAfter(user id.UserID, version int64, roomID, sessionID string, limit int) ([]BackupKey, error) {
	return tx.backupKeys(backupKeyColumns+`AND room_id = $3 AND session_id > $4 ORDER BY session_id LIMIT $5`,
		user, version, roomID, sessionID, limit)
}

// BackupKey reads one key.
func (tx *Tx) BackupKey(user id.UserID, version int64, roomID, sessionID string) (BackupKey, bool, error) {
	keys, err := tx.backupKeys(backupKeyColumns+`AND room_id = $3 AND session_id = $4`, user, version, roomID, sessionID)
	if err != nil || len(keys) == 0 {
		return BackupKey{}, false, err
	}
	return keys[0], true, nil
}

// BackupKeysOfSessions reads the keys of one room for some sessions, without their data.
func (tx *Tx) BackupKeysOfSessions(user id.UserID, version int64, roomID string, sessions []string) (map[string]BackupKey, error) {
	out := make(map[string]BackupKey, len(sessions))
	err := tx.Each(`SELECT session_id, first_message_index, forwarded_count, is_verified FROM backup_keys
		WHERE usr = $1 AND version = $2 AND room_id = $3 AND session_id IN @text($4)`, []any{user, version, roomID, sessions}, func(r *Row) error {
		k := BackupKey{RoomID: roomID}
		if err := r.Scan(&k.SessionID, &k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified); err != nil {
			return err
		}
		out[k.SessionID] = k
		return nil
	})
	return out, err
}

var backupKeyCols = []Col{
	{"usr", Text}, {"version", Int}, {"room_id", Text}, {"session_id", Text}, {"first_message_index", Int},
	{"forwarded_count", Int}, {"is_verified", Int}, {"session_data", Bytes},
}

// SaveBackupKeys stores keys in place of those of the same sessions.
func (tx *Tx) SaveBackupKeys(user id.UserID, version int64, keys []BackupKey) error {
	err := tx.Insert("backup_keys", backupKeyCols, len(keys), func(i int) []any {
		k := &keys[i]
		return []any{string(user), version, k.RoomID, k.SessionID, k.FirstMessageIndex, k.ForwardedCount, k.IsVerified, k.SessionData}
	}, `ON CONFLICT (usr, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index,
		forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data`)
	if err != nil {
		return fmt.Errorf("store backed-up keys: %w", err)
	}
	return nil
}

// DeleteBackupKeys removes up to limit keys of a version: of one room if roomID is given, of one session of it if
// sessionID is given too. It returns how many there were.
func (tx *Tx) DeleteBackupKeys(user id.UserID, version int64, roomID, sessionID string, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM backup_keys WHERE usr = $1 AND version = $2 AND (room_id, session_id) IN (SELECT room_id, session_id
		FROM backup_keys WHERE usr = $1 AND version = $2 AND ($3 = '' OR room_id = $3) AND ($4 = '' OR session_id = $4) LIMIT $5)`,
		user, version, roomID, sessionID, limit)
}
