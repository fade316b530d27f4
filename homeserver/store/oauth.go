package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// PutOAuthClient stores a client, or notes that it was used.
func (tx *Tx) PutOAuthClient(client string, metadata []byte, now int64) error {
	_, err := tx.Exec(`INSERT INTO oauth_clients (client_id, metadata, created, used) VALUES ($1, $2, $3, $3)
		ON CONFLICT (client_id) DO UPDATE SET used = excluded.used`, client, Content(metadata), now)
	return err
}

// UseOAuthClient notes that a client takes part in a sign-in.
func (tx *Tx) UseOAuthClient(client string, now int64) error {
	_, err := tx.Exec(`UPDATE oauth_clients SET used = $2 WHERE client_id = $1`, client, now)
	return err
}

// OAuthClient reads a client's metadata.
func (tx *Tx) OAuthClient(client string) ([]byte, bool, error) {
	var metadata Content
	found, err := tx.Get([]any{&metadata}, `SELECT metadata FROM oauth_clients WHERE client_id = $1`, client)
	return metadata, found, err
}

// InsertOAuthCode stores an authorization code by its hash.
func (tx *Tx) InsertOAuthCode(code string, user id.UserID, data []byte, expires int64) error {
	_, err := tx.Exec(`INSERT INTO oauth_codes (id, usr, data, expires) VALUES ($1, $2, $3, $4)`, code, user, Content(data), expires)
	return err
}

// OAuthCode is an authorization code.
type OAuthCode struct {
	User    id.UserID
	Data    Content
	Used    bool
	Expires int64 // ms
}

// LockOAuthCode reads a code by its hash and holds it to the end of the transaction.
func (tx *Tx) LockOAuthCode(code string) (OAuthCode, bool, error) {
	var c OAuthCode
	found, err := tx.Get([]any{&c.User, &c.Data, &c.Used, &c.Expires}, `SELECT usr, data, used, expires FROM oauth_codes WHERE id = $1 @forupdate`, code)
	return c, found, err
}

// UseOAuthCode marks a code as used; it stays for ten minutes more, to find out that it is used again.
func (tx *Tx) UseOAuthCode(code string) error {
	_, err := tx.Exec(`UPDATE oauth_codes SET used = 1, expires = expires + 600000 WHERE id = $1`, code)
	return err
}

// States of a device authorization.
const (
	OAuthDeviceWaits int64 = iota
	OAuthDeviceAllowed
	OAuthDeviceRefused
	OAuthDeviceDone
)

// OAuthDeviceCode is a device authorization (RFC 8628).
type OAuthDeviceCode struct {
	ID       string // hash of the device code
	UserCode string
	Data     Content
	Status   int64
	Polled   int64 // ms
	Gap      int64 // ms between two polls
	Expires  int64 // ms
}

const deviceCodeColumns = `id, user_code, data, status, polled, gap, expires`

func (c *OAuthDeviceCode) dest() []any {
	return []any{&c.ID, &c.UserCode, &c.Data, &c.Status, &c.Polled, &c.Gap, &c.Expires}
}

// InsertOAuthDeviceCode stores a device authorization; false means that its user code is taken.
func (tx *Tx) InsertOAuthDeviceCode(c OAuthDeviceCode) (bool, error) {
	n, err := tx.Exec(`INSERT INTO oauth_device_codes (id, user_code, data, gap, expires) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING`,
		c.ID, c.UserCode, c.Data, c.Gap, c.Expires)
	return n > 0, err
}

// LockOAuthDeviceCode reads one by the hash of its device code and holds it.
func (tx *Tx) LockOAuthDeviceCode(code string) (OAuthDeviceCode, bool, error) {
	var c OAuthDeviceCode
	found, err := tx.Get(c.dest(), `SELECT `+deviceCodeColumns+` FROM oauth_device_codes WHERE id = $1 @forupdate`, code)
	return c, found, err
}

// LockOAuthUserCode reads one by its user code and holds it.
func (tx *Tx) LockOAuthUserCode(userCode string) (OAuthDeviceCode, bool, error) {
	var c OAuthDeviceCode
	found, err := tx.Get(c.dest(), `SELECT `+deviceCodeColumns+` FROM oauth_device_codes WHERE user_code = $1 @forupdate`, userCode)
	return c, found, err
}

// OAuthUserCode reads one by its user code.
func (tx *Tx) OAuthUserCode(userCode string) (OAuthDeviceCode, bool, error) {
	var c OAuthDeviceCode
	found, err := tx.Get(c.dest(), `SELECT `+deviceCodeColumns+` FROM oauth_device_codes WHERE user_code = $1`, userCode)
	return c, found, err
}

// UpdateOAuthDeviceCode stores what became of a device authorization.
func (tx *Tx) UpdateOAuthDeviceCode(c OAuthDeviceCode) error {
	_, err := tx.Exec(`UPDATE oauth_device_codes SET data = $2, status = $3, polled = $4, gap = $5 WHERE id = $1`, c.ID, c.Data, c.Status, c.Polled, c.Gap)
	return err
}

// OAuthGrant says that a device's sessions were opened by a client through OAuth 2.0.
type OAuthGrant struct {
	User    id.UserID
	Device  id.DeviceID
	Client  string
	Scope   string
	Created int64 // ms
}

// PutOAuthGrant stores a grant in place of the device's earlier one.
func (tx *Tx) PutOAuthGrant(g OAuthGrant) error {
	_, err := tx.Exec(`INSERT INTO oauth_grants (usr, device_id, client_id, scope, created) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (usr, device_id) DO UPDATE SET client_id = excluded.client_id, scope = excluded.scope, created = excluded.created`,
		g.User, g.Device, g.Client, g.Scope, g.Created)
	if err != nil {
		return fmt.Errorf("store the grant of device %s of %s: %w", g.Device, g.User, err)
	}
	return nil
}

// OAuthGrant reads the grant of a device.
func (tx *Tx) OAuthGrant(user id.UserID, device id.DeviceID) (OAuthGrant, bool, error) {
	var g OAuthGrant
	found, err := tx.Get([]any{&g.User, &g.Device, &g.Client, &g.Scope, &g.Created},
		`SELECT usr, device_id, client_id, scope, created FROM oauth_grants WHERE usr = $1 AND device_id = $2`, user, device)
	return g, found, err
}

// OAuthGrants lists the grants of a user.
func (tx *Tx) OAuthGrants(user id.UserID) ([]OAuthGrant, error) {
	var out []OAuthGrant
	err := tx.Each(`SELECT usr, device_id, client_id, scope, created FROM oauth_grants WHERE usr = $1`, []any{user}, func(r *Row) error {
		var g OAuthGrant
		if err := r.Scan(&g.User, &g.Device, &g.Client, &g.Scope, &g.Created); err != nil {
			return err
		}
		out = append(out, g)
		return nil
	})
	return out, err
}

// DeleteOAuthGrant forgets that a device was opened by OAuth 2.0, and the refresh tokens that it used.
func (tx *Tx) DeleteOAuthGrant(user id.UserID, device id.DeviceID) error {
	if _, err := tx.Exec(`DELETE FROM oauth_spent WHERE usr = $1 AND device_id = $2`, user, device); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM oauth_grants WHERE usr = $1 AND device_id = $2`, user, device)
	return err
}

// SpendOAuthRefresh remembers a refresh token that was used.
func (tx *Tx) SpendOAuthRefresh(token string, user id.UserID, device id.DeviceID, expires int64) error {
	_, err := tx.Exec(`INSERT INTO oauth_spent (id, usr, device_id, expires) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`, token, user, device, expires)
	return err
}

// SpentOAuthRefresh tells whose a refresh token was that was used before.
func (tx *Tx) SpentOAuthRefresh(token string) (id.UserID, id.DeviceID, bool, error) {
	var user id.UserID
	var device id.DeviceID
	found, err := tx.Get([]any{&user, &device}, `SELECT usr, device_id FROM oauth_spent WHERE id = $1`, token)
	return user, device, found, err
}

// OAuthKey is a key that signs ID tokens.
type OAuthKey struct {
	ID      string
	Private Content
	Created int64 // ms
}

// OAuthKeys lists the keys, the youngest first.
func (tx *Tx) OAuthKeys() ([]OAuthKey, error) {
	var out []OAuthKey
	err := tx.Each(`SELECT id, private, created FROM oauth_keys ORDER BY created DESC, id`, nil, func(r *Row) error {
		var k OAuthKey
		if err := r.Scan(&k.ID, &k.Private, &k.Created); err != nil {
			return err
		}
		out = append(out, k)
		return nil
	})
	return out, err
}

// RotateOAuthKeys adds a key unless there is one younger than since, and removes those older than forget. It reports whether
// it added the key: of several processes one does.
func (tx *Tx) RotateOAuthKeys(k OAuthKey, since, forget int64) (bool, error) {
	if _, err := tx.Exec(`DELETE FROM oauth_keys WHERE created < $1`, forget); err != nil {
		return false, err
	}
	n, err := tx.Exec(`INSERT INTO oauth_keys (id, private, created) SELECT $1, $2, $3
		WHERE NOT EXISTS (SELECT 1 FROM oauth_keys WHERE created > $4)`, k.ID, k.Private, k.Created, since)
	return n > 0, err
}
