package store

// Setting reads a value of the deployment: its name, its signing key. found is false where it was never set.
func (tx *Tx) Setting(key string) (value []byte, found bool, err error) {
	var c Content
	found, err = tx.Get([]any{&c}, `SELECT value FROM server_settings WHERE key = $1`, key)
	return c, found, err
}

// LockSetting is Setting for a value that this transaction is about to change.
func (tx *Tx) LockSetting(key string) (value []byte, found bool, err error) {
	var c Content
	found, err = tx.Get([]any{&c}, `SELECT value FROM server_settings WHERE key = $1 @forupdate`, key)
	return c, found, err
}

// InitSetting sets a value if there is none yet and returns the one that holds now, which may be another process's.
func (tx *Tx) InitSetting(key string, value []byte) ([]byte, error) {
	if _, err := tx.Exec(`INSERT INTO server_settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING`, key, Content(value)); err != nil {
		return nil, err
	}
	now, _, err := tx.Setting(key)
	return now, err
}

// PutSetting sets a value.
func (tx *Tx) PutSetting(key string, value []byte) error {
	_, err := tx.Exec(`INSERT INTO server_settings (key, value) VALUES ($1, $2)
		ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, Content(value))
	return err
}

// DeleteSetting removes a value and tells whether there was one: of several callers only one is told so.
func (tx *Tx) DeleteSetting(key string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM server_settings WHERE key = $1`, key)
	return n > 0, err
}

// HasAdministrator tells whether any account can administer the server.
func (tx *Tx) HasAdministrator() (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM users WHERE admin = 1 AND deactivated = 0 LIMIT 1`)
}
