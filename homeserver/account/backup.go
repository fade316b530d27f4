package account

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// BackupAlgorithm is the one algorithm of the specification for backups of room keys.
const BackupAlgorithm = "m.megolm_backup.v1.curve25519-aes-sha2"

const (
	backupPage  = 1000 // keys read in one transaction
	backupChunk = 500  // keys deleted in one transaction
)

var (
	errNoBackup    = mxerr.NotFound("there is no backup of this version")
	errNoBackupKey = mxerr.NotFound("the backup has no such key")
)

// Backup describes a backup of room keys.
type Backup = store.BackupVersion

// BackupKey is a backed-up session.
type BackupKey = store.BackupKey

// parseVersion reads a version as it was given out; anything else was never given out.
func parseVersion(version string) (int64, error) {
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != version {
		return 0, errNoBackup
	}
	return n, nil
}

// CreateBackup makes a new backup, which becomes the current one, and returns its version. Errors: M_INVALID_PARAM for an
// algorithm without a name. Spec: client-server API, "Server-side key backups".
func (k *Keys) CreateBackup(ctx context.Context, user id.UserID, algorithm string, authData []byte) (string, error) {
	// The server understands nothing of what is backed up, so that newer algorithms than BackupAlgorithm work too.
	if algorithm == "" || len(algorithm) > 255 {
		return "", mxerr.InvalidParam("'algorithm' must be a name of 1 to 255 bytes")
	}
	var version int64
	err := k.Store.Write(ctx, func(tx *store.Tx) error {
		if _, _, err := tx.LockUser(user); err != nil {
			return err
		}
		var err error
		if version, err = tx.InsertBackup(user, algorithm, authData); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "keys.backup.created", Target: string(user), Details: map[string]any{"version": version}})
	})
	return strconv.FormatInt(version, 10), err
}

// Backup reads a backup's description, of the current one where version is "". Errors: M_NOT_FOUND.
func (k *Keys) Backup(ctx context.Context, user id.UserID, version string) (Backup, error) {
	var out Backup
	err := k.Store.Read(ctx, func(tx *store.Tx) error {
		if version == "" {
			var found bool
			var err error
			if out, found, err = tx.LatestBackup(user); err == nil && !found {
				err = mxerr.NotFound("there is no backup")
			}
			return err
		}
		var err error
		out, err = liveBackup(version, func(n int64) (Backup, bool, error) { return tx.Backup(user, n) })
		return err
	})
	return out, err
}

// liveBackup gets a version that is not deleted.
func liveBackup(version string, get func(n int64) (Backup, bool, error)) (Backup, error) {
	n, err := parseVersion(version)
	if err != nil {
		return Backup{}, err
	}
	b, found, err := get(n)
	if err == nil && (!found || b.Deleted) {
		err = errNoBackup
	}
	return b, err
}

// SetBackupAuthData changes a backup's auth data. algorithm must be the backup's, bodyVersion the version or "". Errors:
// M_NOT_FOUND, M_INVALID_PARAM.
func (k *Keys) SetBackupAuthData(ctx context.Context, user id.UserID, version, bodyVersion, algorithm string, authData []byte) error {
	if bodyVersion != "" && bodyVersion != version {
		return mxerr.InvalidParam("'version' must be the version of the path")
	}
	return k.Store.Write(ctx, func(tx *store.Tx) error {
		b, err := liveBackup(version, func(n int64) (Backup, bool, error) { return tx.LockBackup(user, n) })
		if err != nil {
			return err
		}
		if b.Algorithm != algorithm {
			return mxerr.InvalidParam("'algorithm' must be the backup's: " + b.Algorithm)
		}
		b.AuthData = authData
		return tx.UpdateBackup(user, b)
	})
}

// DeleteBackup deletes a backup with its keys. One that was deleted before is fine, one that never was is M_NOT_FOUND.
func (k *Keys) DeleteBackup(ctx context.Context, user id.UserID, version string) error {
	n, err := parseVersion(version)
	if err != nil {
		return err
	}
	err = k.Store.Write(ctx, func(tx *store.Tx) error {
		b, found, err := tx.LockBackup(user, n)
		if err != nil {
			return err
		}
		if !found {
			return errNoBackup
		}
		if !b.Deleted {
			e := audit.Entry{Action: "keys.backup.deleted", Target: string(user), Details: map[string]any{"version": version, "keys": b.Count}}
			if err := audit.Append(ctx, tx, e); err != nil {
				return err
			}
		}
		b.Deleted, b.Count, b.AuthData = true, 0, []byte("{}")
		return tx.UpdateBackup(user, b)
	})
	if err != nil {
		return err
	}
	// The backup is gone for everybody. Its keys go in pieces, to let the chat's own writes through; a repeated call
	// finishes what was interrupted.
	for {
		var deleted int64
		err := k.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			deleted, err = tx.DeleteBackupKeys(user, n, "", "", backupChunk)
			return err
		})
		if err != nil || deleted < backupChunk {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// PutBackupKeys stores keys in the current backup, where the server's key of the same session is not better. It returns
// the backup afterwards. Errors: M_NOT_FOUND; M_WRONG_ROOM_KEYS_VERSION with current_version for an older backup.
func (k *Keys) PutBackupKeys(ctx context.Context, user id.UserID, version string, keys []BackupKey) (Backup, error) {
	byRoom := map[string][]BackupKey{}
	for _, key := range keys {
		if key.RoomID == "" || key.RoomID[0] != '!' || len(key.RoomID) > maxIdentifier || key.SessionID == "" || len(key.SessionID) > maxIdentifier {
			return Backup{}, mxerr.InvalidParam(fmt.Sprintf("keys belong to room ids, and session ids have 1 to %d bytes", maxIdentifier))
		}
		byRoom[key.RoomID] = append(byRoom[key.RoomID], key)
	}
	var out Backup
	err := k.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		if out, err = currentBackup(tx, user, version); err != nil {
			return err
		}
		changed := false
		for _, room := range slices.Sorted(maps.Keys(byRoom)) {
			better, added, err := betterKeys(tx, user, out.Version, room, byRoom[room])
			if err != nil {
				return err
			}
			if err := tx.SaveBackupKeys(user, out.Version, better); err != nil {
				return err
			}
			out.Count += added
			changed = changed || len(better) > 0
		}
		if !changed {
			return nil
		}
		out.ETag++
		return tx.UpdateBackup(user, out)
	})
	return out, err
}

// currentBackup locks the version, which must be the current one.
func currentBackup(tx *store.Tx, user id.UserID, version string) (Backup, error) {
	b, err := liveBackup(version, func(n int64) (Backup, bool, error) { return tx.LockBackup(user, n) })
	if err != nil {
		return Backup{}, err
	}
	latest, _, err := tx.LatestBackup(user)
	if err == nil && latest.Version != b.Version {
		err = mxerr.New(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION", "keys can be stored in the current backup only").
			With("current_version", strconv.FormatInt(latest.Version, 10))
	}
	return b, err
}

// betterKeys returns those keys of a room that are to be stored, and how many of them are new.
func betterKeys(tx *store.Tx, user id.UserID, version int64, room string, keys []BackupKey) (better []BackupKey, added int64, err error) {
	sessions := make([]string, len(keys))
	for i, key := range keys {
		sessions[i] = key.SessionID
	}
	stored, err := tx.BackupKeysOfSessions(user, version, room, sessions)
	if err != nil {
		return nil, 0, err
	}
	for _, key := range keys {
		old, there := stored[key.SessionID]
		if !there {
			added++
		} else if !replaces(key, old) {
			continue
		}
		better = append(better, key)
	}
	return better, added, nil
}

// replaces tells whether a key is better than the one that the backup has.
// Spec: client-server API, "Server-side key backups".
func replaces(key, old BackupKey) bool {
	switch {
	case key.IsVerified != old.IsVerified:
		return key.IsVerified
	case key.FirstMessageIndex != old.FirstMessageIndex:
		return key.FirstMessageIndex < old.FirstMessageIndex
	}
	return key.ForwardedCount < old.ForwardedCount
}

// BackupKey reads one key. Errors: M_NOT_FOUND.
func (k *Keys) BackupKey(ctx context.Context, user id.UserID, version, roomID, sessionID string) (BackupKey, error) {
	var out BackupKey
	err := k.Store.Read(ctx, func(tx *store.Tx) error {
		b, err := liveBackup(version, func(n int64) (Backup, bool, error) { return tx.Backup(user, n) })
		if err != nil {
			return err
		}
		var found bool
		if out, found, err = tx.BackupKey(user, b.Version, roomID, sessionID); err == nil && !found {
			err = errNoBackupKey
		}
		return err
	})
	return out, err
}

// BackupKeys reads the keys of a backup, of one room where roomID is given, ordered by room and session. fn gets them in
// pieces, so that no transaction is long; it is called at least once. Errors: M_NOT_FOUND before the first call.
func (k *Keys) BackupKeys(ctx context.Context, user id.UserID, version, roomID string, fn func([]BackupKey) error) error {
	room, session := roomID, ""
	for {
		var page []BackupKey
		err := k.Store.Read(ctx, func(tx *store.Tx) error {
			b, err := liveBackup(version, func(n int64) (Backup, bool, error) { return tx.Backup(user, n) })
			if err != nil {
				return err
			}
			if roomID != "" {
				page, err = tx.BackupKeysOfRoomAfter(user, b.Version, roomID, session, backupPage)
			} else {
				page, err = tx.BackupKeysAfter(user, b.Version, room, session, backupPage)
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := fn(page); err != nil || len(page) < backupPage {
			return err
		}
		last := page[len(page)-1]
		room, session = last.RoomID, last.SessionID
	}
}

// DeleteBackupKeys deletes keys of a backup: all, those of a room, or that of one session. It returns the backup
// afterwards. Errors: M_NOT_FOUND for the backup; keys that are not there are fine.
func (k *Keys) DeleteBackupKeys(ctx context.Context, user id.UserID, version, roomID, sessionID string) (Backup, error) {
	for {
		var out Backup
		var deleted int64
		err := k.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			if out, err = liveBackup(version, func(n int64) (Backup, bool, error) { return tx.LockBackup(user, n) }); err != nil {
				return err
			}
			if deleted, err = tx.DeleteBackupKeys(user, out.Version, roomID, sessionID, backupChunk); err != nil || deleted == 0 {
				return err
			}
			out.Count -= deleted
			out.ETag++
			return tx.UpdateBackup(user, out)
		})
		if err != nil || deleted < backupChunk {
			return out, err
		}
	}
}
