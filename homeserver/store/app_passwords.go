package store

import "maunium.net/go/mautrix/id"

// RememberedDevice is a browser that needs no second factor for a while.
type RememberedDevice struct {
	ID      string
	Hash    TokenHash // of the cookie's token
	User    id.UserID
	AMR     string // what was proved, parted by spaces
	Agent   string
	IP      string
	Created int64 // ms
	Used    int64 // ms
	Expires int64 // ms
}

const rememberedColumns = `id, hash, usr, amr, agent, ip, created, used, expires`

func (d *RememberedDevice) scan(r *Row) error {
	var hash []byte
	err := r.Scan(&d.ID, &hash, &d.User, &d.AMR, &d.Agent, &d.IP, &d.Created, &d.Used, &d.Expires)
	copy(d.Hash[:], hash)
	return err
}

// InsertRememberedDevice adds a remembered device.
func (tx *Tx) InsertRememberedDevice(d RememberedDevice) error {
	_, err := tx.Exec(`INSERT INTO remembered_devices (`+rememberedColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		d.ID, d.Hash[:], d.User, d.AMR, d.Agent, d.IP, d.Created, d.Used, d.Expires)
	return err
}

// RememberedDevice finds a user's remembered device by its token; one of another user is none.
func (tx *Tx) RememberedDevice(user id.UserID, hash TokenHash) (RememberedDevice, bool, error) {
	var d RememberedDevice
	found := false
	err := tx.Each(`SELECT `+rememberedColumns+` FROM remembered_devices WHERE hash = $1 AND usr = $2`, []any{hash[:], user}, func(r *Row) error {
		found = true
		return d.scan(r)
	})
	return d, found, err
}

// RememberedDevices lists a user's remembered devices, the newest first.
func (tx *Tx) RememberedDevices(user id.UserID) ([]RememberedDevice, error) {
	var out []RememberedDevice
	err := tx.Each(`SELECT `+rememberedColumns+` FROM remembered_devices WHERE usr = $1 ORDER BY created DESC, id`, []any{user}, func(r *Row) error {
		var d RememberedDevice
		err := d.scan(r)
		out = append(out, d)
		return err
	})
	return out, err
}

// TouchRememberedDevice notes a use.
func (tx *Tx) TouchRememberedDevice(deviceID, ip string, now int64) error {
	_, err := tx.Exec(`UPDATE remembered_devices SET used = $2, ip = $3 WHERE id = $1`, deviceID, now, ip)
	return err
}

// DeleteRememberedDevice forgets a user's remembered device; "" forgets all of them.
func (tx *Tx) DeleteRememberedDevice(user id.UserID, deviceID string) (int64, error) {
	if deviceID == "" {
		return tx.Exec(`DELETE FROM remembered_devices WHERE usr = $1`, user)
	}
	return tx.Exec(`DELETE FROM remembered_devices WHERE usr = $1 AND id = $2`, user, deviceID)
}

// AppPassword is a password for one app that knows no second factor.
type AppPassword struct {
	ID      string
	User    id.UserID
	Name    string
	Hash    TokenHash
	Created int64 // ms
	Used    int64 // ms; 0: never
}

// InsertAppPassword adds an app password.
func (tx *Tx) InsertAppPassword(p AppPassword) error {
	_, err := tx.Exec(`INSERT INTO app_passwords (id, usr, name, hash, created, used) VALUES ($1, $2, $3, $4, $5, $6)`,
		p.ID, p.User, p.Name, p.Hash[:], p.Created, p.Used)
	return err
}

// AppPasswords lists a user's app passwords, the oldest first.
func (tx *Tx) AppPasswords(user id.UserID) ([]AppPassword, error) {
	var out []AppPassword
	err := tx.Each(`SELECT id, usr, name, hash, created, used FROM app_passwords WHERE usr = $1 ORDER BY created, id`, []any{user}, func(r *Row) error {
		var p AppPassword
		var hash []byte
		err := r.Scan(&p.ID, &p.User, &p.Name, &hash, &p.Created, &p.Used)
		copy(p.Hash[:], hash)
		out = append(out, p)
		return err
	})
	return out, err
}

// AppPassword finds a user's app password by its hash.
func (tx *Tx) AppPassword(user id.UserID, hash TokenHash) (AppPassword, bool, error) {
	p := AppPassword{User: user, Hash: hash}
	found, err := tx.Get([]any{&p.ID, &p.Name, &p.Created, &p.Used},
		`SELECT id, name, created, used FROM app_passwords WHERE usr = $1 AND hash = $2`, user, hash[:])
	return p, found, err
}

// TouchAppPassword notes a use.
func (tx *Tx) TouchAppPassword(passwordID string, now int64) error {
	_, err := tx.Exec(`UPDATE app_passwords SET used = $2 WHERE id = $1`, passwordID, now)
	return err
}

// DeleteAppPassword revokes a user's app password; false if there is none of this id.
func (tx *Tx) DeleteAppPassword(user id.UserID, passwordID string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM app_passwords WHERE usr = $1 AND id = $2`, user, passwordID)
	return n > 0, err
}
