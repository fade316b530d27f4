package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// DelayedEvent is an event that is sent later.
type DelayedEvent struct {
	ID       string
	User     id.UserID
	Device   id.DeviceID
	Room     id.RoomID
	Type     string
	StateKey *string // nil: a message
	Content  Content
	Delay    int64  // ms
	Started  int64  // ms: when the delay began to run
	Due      int64  // ms
	Since    int64  // log position when it was scheduled
	Txn      string // "" for none

	Finished int64  // ms; 0 while it waits
	Outcome  string // send or cancel
	Reason   string // error, action or delay
	EventID  id.EventID
	Error    Content // a Matrix error as JSON; nil: none
}

const delayedColumns = `id, usr, device_id, room, type, state_key, content, delay, started, due, since, coalesce(txn, ''), finished, outcome, reason, event_id, error`

func (d *DelayedEvent) dest() []any {
	return []any{&d.ID, &d.User, &d.Device, &d.Room, &d.Type, &d.StateKey, &d.Content, &d.Delay, &d.Started, &d.Due, &d.Since, &d.Txn,
		&d.Finished, &d.Outcome, &d.Reason, &d.EventID, &d.Error}
}

// InsertDelayedEvent schedules an event. A transaction id that the device has used gives the event of then: its id is
// returned.
func (tx *Tx) InsertDelayedEvent(d DelayedEvent) (string, error) {
	n, err := tx.Exec(`INSERT INTO delayed_events (id, usr, device_id, room, type, state_key, content, delay, started, due, since, txn)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING`,
		d.ID, d.User, d.Device, d.Room, d.Type, d.StateKey, d.Content, d.Delay, d.Started, d.Due, d.Since, nonEmpty(d.Txn))
	if err != nil {
		return "", fmt.Errorf("schedule an event: %w", err)
	}
	if n > 0 {
		return d.ID, nil
	}
	var first string
	_, err = tx.Get([]any{&first}, `SELECT id FROM delayed_events WHERE usr = $1 AND device_id = $2 AND txn = $3`, d.User, d.Device, d.Txn)
	return first, err
}

// CountDelayedEvents counts the events of a user that wait.
func (tx *Tx) CountDelayedEvents(user id.UserID) (n int64, err error) {
	_, err = tx.Get([]any{&n}, `SELECT count(*) FROM delayed_events WHERE usr = $1 AND finished = 0`, user)
	return n, err
}

// DelayedEvent reads a scheduled event.
func (tx *Tx) DelayedEvent(delayID string) (d DelayedEvent, ok bool, err error) {
	ok, err = tx.Get(d.dest(), `SELECT `+delayedColumns+` FROM delayed_events WHERE id = $1`, delayID)
	return d, ok, err
}

// LockDelayedEvent reads a scheduled event that still waits and holds its row to the end of the transaction.
func (tx *Tx) LockDelayedEvent(delayID string) (d DelayedEvent, ok bool, err error) {
	ok, err = tx.Get(d.dest(), `SELECT `+delayedColumns+` FROM delayed_events WHERE id = $1 AND finished = 0 @forupdate`, delayID)
	return d, ok, err
}

// DueDelayedEvents lists events whose time has come, the oldest first, and tells when the next one is due (0: none waits).
func (tx *Tx) DueDelayedEvents(now int64, limit int) (due []DelayedEvent, next int64, err error) {
	due, err = tx.delayedEvents(`SELECT `+delayedColumns+` FROM delayed_events WHERE finished = 0 AND due <= $1 ORDER BY due LIMIT $2`, now, limit)
	if err != nil {
		return nil, 0, err
	}
	_, err = tx.Get([]any{&next}, `SELECT coalesce(min(due), 0) FROM delayed_events WHERE finished = 0 AND due > $1`, now)
	return due, next, err
}

// DelayedEventsOf lists a user's events: those that wait by when they are due, or those that are finished, the newest
// first.
func (tx *Tx) DelayedEventsOf(user id.UserID, finished bool, limit int) ([]DelayedEvent, error) {
	if finished {
		return tx.delayedEvents(`SELECT `+delayedColumns+` FROM delayed_events WHERE usr = $1 AND finished > 0 ORDER BY finished DESC, id LIMIT $2`, user, limit)
	}
	return tx.delayedEvents(`SELECT `+delayedColumns+` FROM delayed_events WHERE usr = $1 AND finished = 0 ORDER BY due, id LIMIT $2`, user, limit)
}

func (tx *Tx) delayedEvents(sql string, args ...any) (out []DelayedEvent, err error) {
	err = tx.Each(sql, args, func(r *Row) error {
		var d DelayedEvent
		err := r.Scan(d.dest()...)
		out = append(out, d)
		return err
	})
	return out, err
}

// RestartDelayedEvent lets the delay run anew.
func (tx *Tx) RestartDelayedEvent(delayID string, now int64) error {
	_, err := tx.Exec(`UPDATE delayed_events SET started = $2, due = $2 + delay WHERE id = $1 AND finished = 0`, delayID, now)
	return err
}

// FinishDelayedEvent notes what became of an event; false means that it was finished before.
func (tx *Tx) FinishDelayedEvent(d DelayedEvent) (bool, error) {
	n, err := tx.Exec(`UPDATE delayed_events SET finished = $2, outcome = $3, reason = $4, event_id = $5, error = $6 WHERE id = $1 AND finished = 0`,
		d.ID, d.Finished, d.Outcome, d.Reason, d.EventID, d.Error)
	return n > 0, err
}

// SweepDelayedEvents forgets events that were finished before a time.
func (tx *Tx) SweepDelayedEvents(before int64) error {
	_, err := tx.Exec(`DELETE FROM delayed_events WHERE finished > 0 AND finished < $1`, before)
	return err
}
