package store

import "maunium.net/go/mautrix/id"

// DehydratedDevice gives a user's dehydrated device and what its client stored with it.
func (tx *Tx) DehydratedDevice(user id.UserID) (device id.DeviceID, data Content, ok bool, err error) {
	ok, err = tx.Get([]any{&device, &data}, `SELECT device_id, data FROM dehydrated_devices WHERE usr = $1`, user)
	return device, data, ok, err
}

// SetDehydratedDevice makes a device the dehydrated one of its user.
func (tx *Tx) SetDehydratedDevice(user id.UserID, device id.DeviceID, data Content) error {
	_, err := tx.Exec(`INSERT INTO dehydrated_devices (usr, device_id, data) VALUES ($1, $2, $3)
		ON CONFLICT (usr) DO UPDATE SET device_id = excluded.device_id, data = excluded.data`, user, device, data)
	return err
}

// DropDehydratedDevice forgets that a device is dehydrated; false means that it was not.
func (tx *Tx) DropDehydratedDevice(user id.UserID, device id.DeviceID) (bool, error) {
	n, err := tx.Exec(`DELETE FROM dehydrated_devices WHERE usr = $1 AND device_id = $2`, user, device)
	return n > 0, err
}
