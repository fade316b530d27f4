package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// User is an account of this server.
type User struct {
	ID         id.UserID
	Localpart  string
	Created    int64 // ms
	Type       string
	AppService string // id of the application service that owns it, or ""

	Admin       bool
	Guest       bool
	Locked      bool
	Suspended   bool
	Deactivated bool
	Erased      bool
	Disabled    int64 // ms: since when the source that the account comes from says that its person is gone; 0: it does not

	// RatePerSecond and RateBurst are limits of the account's own, nil: the server's; 0 per second: none.
	RatePerSecond, RateBurst *int64

	Password Content // hash, nil where the account has no password of ours
}

// UserFlag names a flag of an account that is switched on and off.
type UserFlag int

// The flags.
const (
	UserAdmin UserFlag = iota
	UserLocked
	UserSuspended
)

var setFlagSQL = map[UserFlag]string{
	UserAdmin:     `UPDATE users SET admin = $2 WHERE user_id = $1`,
	UserLocked:    `UPDATE users SET locked = $2 WHERE user_id = $1`,
	UserSuspended: `UPDATE users SET suspended = $2 WHERE user_id = $1`,
}

const userColumns = `u.user_id, u.localpart, u.created, u.user_type, u.appservice, u.admin, u.guest, u.locked, u.suspended, u.deactivated, u.erased, u.disabled, u.rate_per_second, u.rate_burst, u.password`

func (u *User) dest() []any {
	return []any{&u.ID, &u.Localpart, &u.Created, &u.Type, &u.AppService,
		&u.Admin, &u.Guest, &u.Locked, &u.Suspended, &u.Deactivated, &u.Erased, &u.Disabled, &u.RatePerSecond, &u.RateBurst, &u.Password}
}

// InsertUser adds an account; false means that its id is taken.
func (tx *Tx) InsertUser(u User) (bool, error) {
	n, err := tx.Exec(`INSERT INTO users (user_id, localpart, created, user_type, appservice, admin, guest, locked, suspended, password)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (user_id) DO NOTHING`,
		u.ID, u.Localpart, u.Created, u.Type, u.AppService, u.Admin, u.Guest, u.Locked, u.Suspended, u.Password)
	if err != nil {
		return false, fmt.Errorf("insert user %s: %w", u.ID, err)
	}
	return n > 0, nil
}

// User reads an account.
func (tx *Tx) User(user id.UserID) (User, bool, error) {
	var u User
	found, err := tx.Get(u.dest(), `SELECT `+userColumns+` FROM users u WHERE u.user_id = $1`, user)
	return u, found, err
}

// LockUser reads an account and holds its row to the end of the transaction: sign-ins, refreshes and the ending of
// sessions of one user happen one after the other.
func (tx *Tx) LockUser(user id.UserID) (User, bool, error) {
	var u User
	found, err := tx.Get(u.dest(), `SELECT `+userColumns+` FROM users u WHERE u.user_id = $1 @forupdate`, user)
	return u, found, err
}

// UserExists tells whether there is or was an account of this id.
func (tx *Tx) UserExists(user id.UserID) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM users WHERE user_id = $1`, user)
}

// CountUsers counts the accounts of people that can be used: neither guests nor deactivated nor an application service's.
func (tx *Tx) CountUsers() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM users WHERE guest = 0 AND deactivated = 0 AND appservice = ''`)
	return n, err
}

// SetUserFlag switches a flag; false means that there is no such account.
func (tx *Tx) SetUserFlag(user id.UserID, flag UserFlag, on bool) (bool, error) {
	n, err := tx.Exec(setFlagSQL[flag], user, on)
	return n > 0, err
}

// SetUserPassword stores a password's hash; false means that there is no such account.
func (tx *Tx) SetUserPassword(user id.UserID, hash Content) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET password = $2 WHERE user_id = $1`, user, hash)
	return n > 0, err
}

// DeactivateUser marks an account as gone for good and drops its password.
func (tx *Tx) DeactivateUser(user id.UserID, erase bool) error {
	_, err := tx.Exec(`UPDATE users SET deactivated = 1, admin = 0, password = NULL, rate_per_second = NULL, rate_burst = NULL, erased = CASE WHEN $2 = 1 THEN 1 ELSE erased END
		WHERE user_id = $1`, user, erase)
	if err != nil || !erase {
		return err
	}
	return tx.announceErased(user)
}

// KeyErased is the Key of entries of KindUser that say that a user is erased, or no longer.
const KeyErased = "erased"

func (tx *Tx) announceErased(user id.UserID) error {
	_, err := tx.Announce(Entry{Kind: KindUser, User: string(user), Key: KeyErased})
	return err
}

// ErasedUsers gives the users who wanted to be erased when their account ended.
func (tx *Tx) ErasedUsers(fn func(user string)) error {
	return tx.Each(`SELECT user_id FROM users WHERE erased = 1`, nil, func(r *Row) error {
		var user string
		if err := r.Scan(&user); err != nil {
			return err
		}
		fn(user)
		return nil
	})
}

// Device is one client of a user.
type Device struct {
	User        id.UserID
	ID          id.DeviceID
	DisplayName *string // nil: none was set
	Created     int64   // ms
	LastSeen    int64   // ms; 0: not yet
	LastIP      string
	LastAgent   string
}

const deviceColumns = `usr, device_id, display_name, created, coalesce(last_seen, 0), coalesce(last_ip, ''), coalesce(last_agent, '')`

func (d *Device) dest() []any {
	return []any{&d.User, &d.ID, &d.DisplayName, &d.Created, &d.LastSeen, &d.LastIP, &d.LastAgent}
}

// InsertDevice adds a device; false means that the user has one of this id.
func (tx *Tx) InsertDevice(d Device) (bool, error) {
	n, err := tx.Exec(`INSERT INTO devices (usr, device_id, display_name, created) VALUES ($1, $2, $3, $4)
		ON CONFLICT (usr, device_id) DO NOTHING`, d.User, d.ID, d.DisplayName, d.Created)
	if err != nil {
		return false, fmt.Errorf("insert device %s of %s: %w", d.ID, d.User, err)
	}
	return n > 0, nil
}

// Device reads a device.
func (tx *Tx) Device(user id.UserID, device id.DeviceID) (Device, bool, error) {
	var d Device
	found, err := tx.Get(d.dest(), `SELECT `+deviceColumns+` FROM devices WHERE usr = $1 AND device_id = $2`, user, device)
	return d, found, err
}

// Devices lists a user's devices by id.
func (tx *Tx) Devices(user id.UserID) ([]Device, error) {
	var out []Device
	err := tx.Each(`SELECT `+deviceColumns+` FROM devices WHERE usr = $1 ORDER BY device_id`, []any{user}, func(r *Row) error {
		var d Device
		if err := r.Scan(d.dest()...); err != nil {
			return err
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

// SetDeviceName renames a device; false means that there is no such device.
func (tx *Tx) SetDeviceName(user id.UserID, device id.DeviceID, name string) (bool, error) {
	n, err := tx.Exec(`UPDATE devices SET display_name = $3 WHERE usr = $1 AND device_id = $2`, user, device, name)
	return n > 0, err
}

// DeleteDevice removes a device; false means that there was none. What belongs to it is not touched.
func (tx *Tx) DeleteDevice(user id.UserID, device id.DeviceID) (bool, error) {
	n, err := tx.Exec(`DELETE FROM devices WHERE usr = $1 AND device_id = $2`, user, device)
	return n > 0, err
}

// SawDevices stores when and where devices were seen last; devices that are gone are passed over.
func (tx *Tx) SawDevices(seen []Device) error {
	for _, d := range seen {
		_, err := tx.Exec(`UPDATE devices SET last_seen = $3, last_ip = $4, last_agent = $5
			WHERE usr = $1 AND device_id = $2 AND coalesce(last_seen, 0) <= $3`, d.User, d.ID, d.LastSeen, d.LastIP, d.LastAgent)
		if err != nil {
			return fmt.Errorf("store when device %s of %s was seen: %w", d.ID, d.User, err)
		}
	}
	return nil
}
