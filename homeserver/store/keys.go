package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// DeviceKeys are the identity keys of a device, with what others may know of the device.
type DeviceKeys struct {
	User        id.UserID
	Device      id.DeviceID
	DisplayName *string
	Body        Content // signed JSON as it was uploaded, without "unsigned"
}

// pair names a device in a list of devices: user ids hold no spaces.
func pair(user id.UserID, device id.DeviceID) string { return string(user) + " " + string(device) }

// LockDevice holds a device's row to the end of the transaction, so that uploads of its keys happen one after the other;
// false means that there is no such device.
func (tx *Tx) LockDevice(user id.UserID, device id.DeviceID) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM devices WHERE usr = $1 AND device_id = $2 @forupdate`, user, device)
}

// DeviceKeysOf reads the identity keys of one device; nil if there are none.
func (tx *Tx) DeviceKeysOf(user id.UserID, device id.DeviceID) (Content, error) {
	var body Content
	_, err := tx.Get([]any{&body}, `SELECT body FROM device_keys WHERE usr = $1 AND device_id = $2`, user, device)
	return body, err
}

// SetDeviceKeys stores the identity keys of a device.
func (tx *Tx) SetDeviceKeys(user id.UserID, device id.DeviceID, body Content) error {
	_, err := tx.Exec(`INSERT INTO device_keys (usr, device_id, body) VALUES ($1, $2, $3)
		ON CONFLICT (usr, device_id) DO UPDATE SET body = excluded.body`, user, device, body)
	if err != nil {
		return fmt.Errorf("store keys of device %s of %s: %w", device, user, err)
	}
	return nil
}

// DeviceKeys reads the identity keys of all devices of some users, ordered by user and device.
func (tx *Tx) DeviceKeys(users []string) ([]DeviceKeys, error) {
	var out []DeviceKeys
	err := tx.Each(`SELECT k.usr, k.device_id, d.display_name, k.body FROM device_keys k
		JOIN devices d ON d.usr = k.usr AND d.device_id = k.device_id
		WHERE k.usr IN @text($1) ORDER BY k.usr, k.device_id`, []any{users}, func(r *Row) error {
		var k DeviceKeys
		if err := r.Scan(&k.User, &k.Device, &k.DisplayName, &k.Body); err != nil {
			return err
		}
		out = append(out, k)
		return nil
	})
	return out, err
}

// ExistingUsers returns those of the users that have, or had, an account here.
func (tx *Tx) ExistingUsers(users []string) (map[id.UserID]bool, error) {
	out := make(map[id.UserID]bool, len(users))
	err := tx.Each(`SELECT user_id FROM users WHERE user_id IN @text($1)`, []any{users}, func(r *Row) error {
		var u id.UserID
		if err := r.Scan(&u); err != nil {
			return err
		}
		out[u] = true
		return nil
	})
	return out, err
}

// OneTimeKey is an unclaimed one-time key or a fallback key.
type OneTimeKey struct {
	User      id.UserID
	Device    id.DeviceID
	Algorithm string
	KeyID     string // without the algorithm
	Body      Content
	Used      int64 // of fallback keys: how often it was given out
}

// OneTimeKeys reads the unclaimed one-time keys of a device in upload order, and the serial of the last one.
func (tx *Tx) OneTimeKeys(user id.UserID, device id.DeviceID) (keys []OneTimeKey, last int64, err error) {
	err = tx.Each(`SELECT algorithm, serial, key_id, body FROM one_time_keys WHERE usr = $1 AND device_id = $2
		ORDER BY serial`, []any{user, device}, func(r *Row) error {
		k := OneTimeKey{User: user, Device: device}
		if err := r.Scan(&k.Algorithm, &last, &k.KeyID, &k.Body); err != nil {
			return err
		}
		keys = append(keys, k)
		return nil
	})
	return keys, last, err
}

var oneTimeKeyCols = []Col{{"usr", Text}, {"device_id", Text}, {"algorithm", Text}, {"serial", Int}, {"key_id", Text}, {"body", Bytes}}

// InsertOneTimeKeys adds one-time keys behind the serial of the last one there is.
func (tx *Tx) InsertOneTimeKeys(keys []OneTimeKey, last int64) error {
	err := tx.Insert("one_time_keys", oneTimeKeyCols, len(keys), func(i int) []any {
		k := &keys[i]
		return []any{string(k.User), string(k.Device), k.Algorithm, last + 1 + int64(i), k.KeyID, k.Body}
	}, "")
	if err != nil {
		return fmt.Errorf("insert one-time keys: %w", err)
	}
	return nil
}

// SetFallbackKey stores the fallback key of a device for its algorithm as unused. A key that is there already keeps its
// use: then the row is not touched and the result is false.
func (tx *Tx) SetFallbackKey(k OneTimeKey) (bool, error) {
	n, err := tx.Exec(`INSERT INTO fallback_keys (usr, device_id, algorithm, key_id, used, body) VALUES ($1, $2, $3, $4, 0, $5)
		ON CONFLICT (usr, device_id, algorithm) DO UPDATE SET key_id = excluded.key_id, used = 0, body = excluded.body
		WHERE fallback_keys.key_id <> excluded.key_id OR fallback_keys.body <> excluded.body`,
		k.User, k.Device, k.Algorithm, k.KeyID, k.Body)
	if err != nil {
		return false, fmt.Errorf("store a fallback key: %w", err)
	}
	return n > 0, nil
}

// KeyCounts counts the unclaimed one-time keys of a device by algorithm, and lists the algorithms of its fallback keys
// that were not given out.
func (tx *Tx) KeyCounts(user id.UserID, device id.DeviceID) (counts map[string]int, unusedFallback []string, err error) {
	counts = map[string]int{}
	err = tx.Each(`SELECT algorithm, count(*) FROM one_time_keys WHERE usr = $1 AND device_id = $2 GROUP BY algorithm`,
		[]any{user, device}, func(r *Row) error {
			var algorithm string
			var n int
			if err := r.Scan(&algorithm, &n); err != nil {
				return err
			}
			counts[algorithm] = n
			return nil
		})
	if err != nil {
		return nil, nil, err
	}
	err = tx.Each(`SELECT algorithm FROM fallback_keys WHERE usr = $1 AND device_id = $2 AND used = 0 ORDER BY algorithm`,
		[]any{user, device}, func(r *Row) error {
			var algorithm string
			if err := r.Scan(&algorithm); err != nil {
				return err
			}
			unusedFallback = append(unusedFallback, algorithm)
			return nil
		})
	return counts, unusedFallback, err
}

// DeviceID names a device of a user.
type DeviceID struct {
	User   id.UserID
	Device id.DeviceID
}

func pairLists(devices []DeviceID) (users, pairs []string) {
	seen := make(map[id.UserID]bool, len(devices))
	for _, d := range devices {
		if !seen[d.User] {
			seen[d.User] = true
			users = append(users, string(d.User))
		}
		pairs = append(pairs, pair(d.User, d.Device))
	}
	return users, pairs
}

// ClaimOneTimeKeys takes one one-time key of an algorithm from each of the devices, the oldest that no other transaction
// is taking. Devices without one are missing from the result.
func (tx *Tx) ClaimOneTimeKeys(devices []DeviceID, algorithm string) ([]OneTimeKey, error) {
	users, pairs := pairLists(devices)
	var out []OneTimeKey
	// The picking stands in a materialised query of its own, so that it happens once: done again, it would skip the
	// rows that it has locked itself.
	err := tx.Each(`WITH picked AS MATERIALIZED (
			SELECT d.usr, d.device_id, (SELECT k.serial FROM one_time_keys k
				WHERE k.usr = d.usr AND k.device_id = d.device_id AND k.algorithm = $3
				ORDER BY k.serial LIMIT 1 @skiplocked) AS serial
			FROM devices d WHERE d.usr IN @text($1) AND d.usr || ' ' || d.device_id IN @text($2))
		DELETE FROM one_time_keys WHERE algorithm = $3
			AND (usr, device_id, serial) IN (SELECT usr, device_id, serial FROM picked WHERE serial IS NOT NULL)
		RETURNING usr, device_id, key_id, body`, []any{users, pairs, algorithm}, func(r *Row) error {
		k := OneTimeKey{Algorithm: algorithm}
		if err := r.Scan(&k.User, &k.Device, &k.KeyID, &k.Body); err != nil {
			return err
		}
		out = append(out, k)
		return nil
	})
	return out, err
}

// UseFallbackKeys returns the fallback keys of an algorithm of the devices and notes that they were given out. Used is 1
// where this was the first time.
func (tx *Tx) UseFallbackKeys(devices []DeviceID, algorithm string) ([]OneTimeKey, error) {
	users, pairs := pairLists(devices)
	var out []OneTimeKey
	err := tx.Each(`UPDATE fallback_keys SET used = used + 1
		WHERE usr IN @text($1) AND usr || ' ' || device_id IN @text($2) AND algorithm = $3
		RETURNING usr, device_id, key_id, body, used`, []any{users, pairs, algorithm}, func(r *Row) error {
		k := OneTimeKey{Algorithm: algorithm}
		if err := r.Scan(&k.User, &k.Device, &k.KeyID, &k.Body, &k.Used); err != nil {
			return err
		}
		out = append(out, k)
		return nil
	})
	return out, err
}

// DeleteDeviceKeys removes the keys of a device and the signatures on them. It tells whether others saw any of it, and
// whether there were keys to claim.
func (tx *Tx) DeleteDeviceKeys(user id.UserID, device id.DeviceID) (listed, claimable bool, err error) {
	for _, del := range []struct {
		sql  string
		flag *bool
	}{
		{`DELETE FROM device_keys WHERE usr = $1 AND device_id = $2`, &listed},
		{`DELETE FROM key_signatures WHERE usr = $1 AND target = $2`, &listed},
		{`DELETE FROM one_time_keys WHERE usr = $1 AND device_id = $2`, &claimable},
		{`DELETE FROM fallback_keys WHERE usr = $1 AND device_id = $2`, &claimable},
	} {
		n, err := tx.Exec(del.sql, user, device)
		if err != nil {
			return false, false, fmt.Errorf("delete keys of device %s of %s: %w", device, user, err)
		}
		if n > 0 {
			*del.flag = true
		}
	}
	return listed, claimable, nil
}

// AnnounceKeys announces that the one-time or fallback keys of a device changed in number or use.
func (tx *Tx) AnnounceKeys(user id.UserID, device id.DeviceID) error {
	_, err := tx.Announce(Entry{Kind: KindKeys, User: string(user), Key: string(device)})
	return err
}

// AnnounceDeviceList announces that what others see of a user's devices or cross-signing keys changed.
func (tx *Tx) AnnounceDeviceList(user id.UserID) error {
	pos, err := tx.Announce(Entry{Kind: KindDeviceList, User: string(user)})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO device_lists (usr, pos) VALUES ($1, $2) ON CONFLICT (usr) DO UPDATE SET pos = excluded.pos`, user, pos)
	return err
}

// AnnounceSigned announces that signer signed a key of another user, which only signer can see: such an entry has the
// other user as its Key.
func (tx *Tx) AnnounceSigned(signer, user id.UserID) error {
	pos, err := tx.Announce(Entry{Kind: KindDeviceList, User: string(signer), Key: string(user)})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO signature_lists (signer, usr, pos) VALUES ($1, $2, $3)
		ON CONFLICT (signer, usr) DO UPDATE SET pos = excluded.pos`, signer, user, pos)
	return err
}

func (tx *Tx) userList(sql string, args ...any) ([]id.UserID, error) {
	var out []id.UserID
	err := tx.Each(sql, args, func(r *Row) error {
		var u id.UserID
		if err := r.Scan(&u); err != nil {
			return err
		}
		out = append(out, u)
		return nil
	})
	return out, err
}

// DeviceListChanges lists the users whose devices or cross-signing keys changed last after since and not after upto.
func (tx *Tx) DeviceListChanges(since, upto int64) ([]id.UserID, error) {
	return tx.userList(`SELECT usr FROM device_lists WHERE pos > $1 AND pos <= $2 ORDER BY pos`, since, upto)
}

// SignedChanges lists the users whose keys signer signed last after since and not after upto. The signer's own clients
// have to learn of these as of changed device lists.
func (tx *Tx) SignedChanges(signer id.UserID, since, upto int64) ([]id.UserID, error) {
	return tx.userList(`SELECT usr FROM signature_lists WHERE signer = $1 AND pos > $2 AND pos <= $3 ORDER BY pos`, signer, since, upto)
}

// SharedDeviceListChanges lists those who share a room with a user now and whose keys the user may not know: theirs
// changed after since, or one of the two came into the room after it.
func (tx *Tx) SharedDeviceListChanges(user id.UserID, since int64) ([]id.UserID, error) {
	return tx.userList(`SELECT DISTINCT o.usr FROM memberships mine
		JOIN memberships o ON o.room = mine.room AND o.membership = 2
		LEFT JOIN device_lists d ON d.usr = o.usr
		WHERE mine.usr = $1 AND mine.membership = 2 AND (mine.pos > $2 OR o.pos > $2 OR d.pos > $2) ORDER BY o.usr`, user, since)
}

// LeftDeviceLists lists those who shared a room with a user at since and share none any more.
func (tx *Tx) LeftDeviceLists(user id.UserID, since int64) ([]id.UserID, error) {
	return tx.userList(`SELECT DISTINCT o.usr FROM memberships mine
		JOIN memberships o ON o.room = mine.room AND o.usr <> $1
		WHERE mine.usr = $1 AND mine.membership IN (2, 3, 4) AND o.membership IN (2, 3, 4)
		AND (mine.membership <> 2 AND mine.pos > $2 OR o.membership <> 2 AND o.pos > $2)
		AND NOT EXISTS (SELECT 1 FROM memberships m JOIN memberships s ON s.room = m.room AND s.membership = 2
			WHERE m.usr = $1 AND m.membership = 2 AND s.usr = o.usr)
		ORDER BY o.usr`, user, since)
}

// DeviceListChangedAfter tells whether a user's devices or cross-signing keys changed after a position.
func (tx *Tx) DeviceListChangedAfter(user id.UserID, since int64) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM device_lists WHERE usr = $1 AND pos > $2`, user, since)
}
