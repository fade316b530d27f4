package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// ToDeviceMessage waits for a device. Body is the whole event; Pos is given when it is sent.
type ToDeviceMessage struct {
	DeviceID
	Pos  int64
	Body Content
}

// NoteToDeviceTxn notes a request's transaction id; false means that the device made this request before.
func (tx *Tx) NoteToDeviceTxn(user id.UserID, device id.DeviceID, eventType, txn string, now int64) (bool, error) {
	n, err := tx.Exec(`INSERT INTO to_device_txns (usr, device_id, type, txn, created) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (usr, device_id, type, txn) DO NOTHING`, user, device, eventType, txn, now)
	return n > 0, err
}

// PruneToDeviceTxns forgets up to limit transaction ids noted before a time in ms, and returns how many.
func (tx *Tx) PruneToDeviceTxns(before int64, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM to_device_txns WHERE (usr, device_id, type, txn) IN (SELECT usr, device_id, type, txn
		FROM to_device_txns WHERE created < $1 ORDER BY created LIMIT $2)`, before, limit)
}

// DevicesOf lists the ids of all devices of some users.
func (tx *Tx) DevicesOf(users []string) ([]DeviceID, error) {
	var out []DeviceID
	err := tx.Each(`SELECT usr, device_id FROM devices WHERE usr IN @text($1) ORDER BY usr, device_id`, []any{users}, func(r *Row) error {
		var d DeviceID
		if err := r.Scan(&d.User, &d.Device); err != nil {
			return err
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

var toDeviceCols = []Col{{"usr", Text}, {"device_id", Text}, {"pos", Int}, {"body", Bytes}}

// SendToDevice stores messages for devices and announces them. The log's head must be locked since before the devices
// were looked up, so that a device's deletion cannot miss a message.
func (tx *Tx) SendToDevice(messages []ToDeviceMessage) error {
	for i := range messages {
		m := &messages[i]
		var err error
		if m.Pos, err = tx.Announce(Entry{Kind: KindToDevice, User: string(m.User), Key: string(m.Device)}); err != nil {
			return err
		}
	}
	err := tx.Insert("to_device", toDeviceCols, len(messages), func(i int) []any {
		m := &messages[i]
		return []any{string(m.User), string(m.Device), m.Pos, m.Body}
	}, "")
	if err != nil {
		return fmt.Errorf("insert to-device messages: %w", err)
	}
	return nil
}

// ToDevice reads up to limit messages that wait for a device, after one position and up to another, in order.
func (tx *Tx) ToDevice(user id.UserID, device id.DeviceID, after, upto int64, limit int) ([]ToDeviceMessage, error) {
	var out []ToDeviceMessage
	err := tx.Each(`SELECT pos, body FROM to_device WHERE usr = $1 AND device_id = $2 AND pos > $3 AND pos <= $4
		ORDER BY pos LIMIT $5`, []any{user, device, after, upto, limit}, func(r *Row) error {
		m := ToDeviceMessage{DeviceID: DeviceID{user, device}}
		if err := r.Scan(&m.Pos, &m.Body); err != nil {
			return err
		}
		out = append(out, m)
		return nil
	})
	return out, err
}

// AnyToDevice tells whether a message up to a position waits for a device.
func (tx *Tx) AnyToDevice(user id.UserID, device id.DeviceID, upto int64) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM to_device WHERE usr = $1 AND device_id = $2 AND pos <= $3 LIMIT 1`, user, device, upto)
}

// DeleteToDevice removes the messages of a device up to a position.
func (tx *Tx) DeleteToDevice(user id.UserID, device id.DeviceID, upto int64) error {
	_, err := tx.Exec(`DELETE FROM to_device WHERE usr = $1 AND device_id = $2 AND pos <= $3`, user, device, upto)
	return err
}

// DropToDevice removes all of a device that is being deleted: its messages and its transaction ids.
func (tx *Tx) DropToDevice(user id.UserID, device id.DeviceID) error {
	if _, err := tx.Exec(`DELETE FROM to_device WHERE usr = $1 AND device_id = $2`, user, device); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM to_device_txns WHERE usr = $1 AND device_id = $2`, user, device)
	return err
}
