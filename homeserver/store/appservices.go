package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// ServiceTxn is a transaction that waits for an application service.
type ServiceTxn struct {
	Service string
	Txn     int64
	Created int64 // ms since 1970
	Tried   bool  // it was sent at least once: it does not change any more
	Events  int64 // how much it holds
	Body    []byte
}

// ServiceState is how far the delivery to a service is.
type ServiceState struct {
	Pos      int64 // of the log, up to which transactions are made
	LastTxn  int64
	Failures int64
	NextTry  int64 // ms since 1970
}

// AddServices notes services; those that are new hear of what comes from now on.
func (tx *Tx) AddServices(ids []string) error {
	for _, service := range ids {
		_, err := tx.Exec(`INSERT INTO appservices (id, pos, last_txn, failures, next_try)
			SELECT $1, pos, 0, 0, 0 FROM log_head WHERE id = 1 ON CONFLICT (id) DO NOTHING`, service)
		if err != nil {
			return fmt.Errorf("note application service %s: %w", service, err)
		}
	}
	return nil
}

// ServiceStates reads how far the delivery to all services is, by id.
func (tx *Tx) ServiceStates() (map[string]ServiceState, error) {
	out := map[string]ServiceState{}
	err := tx.Each(`SELECT id, pos, last_txn, failures, next_try FROM appservices`, nil, func(r *Row) error {
		var service string
		var s ServiceState
		err := r.Scan(&service, &s.Pos, &s.LastTxn, &s.Failures, &s.NextTry)
		out[service] = s
		return err
	})
	return out, err
}

var serviceTxnCols = []Col{{"service", Text}, {"txn", Int}, {"created", Int}, {"tried", Int}, {"events", Int}, {"body", Bytes}}

// QueueService stores transactions of one service, gives them their numbers, and moves the service's position from one
// place to another. Where it was not there, nothing happens and the answer is false.
func (tx *Tx) QueueService(service string, from, pos int64, list []ServiceTxn) (bool, error) {
	var last int64
	found, err := tx.Get([]any{&last}, `UPDATE appservices SET pos = $2, last_txn = last_txn + $3 WHERE id = $1 AND pos = $4 RETURNING last_txn`,
		service, pos, len(list), from)
	if err != nil || !found || len(list) == 0 {
		return found, err
	}
	return true, tx.insertServiceTxns(service, last, list)
}

// AppendService stores transactions that come from beside the log.
func (tx *Tx) AppendService(service string, list []ServiceTxn) error {
	var last int64
	found, err := tx.Get([]any{&last}, `UPDATE appservices SET last_txn = last_txn + $2 WHERE id = $1 RETURNING last_txn`, service, len(list))
	if err != nil || !found {
		return err
	}
	return tx.insertServiceTxns(service, last, list)
}

func (tx *Tx) insertServiceTxns(service string, last int64, list []ServiceTxn) error {
	first := last - int64(len(list)) + 1
	err := tx.Insert("appservice_txns", serviceTxnCols, len(list), func(i int) []any {
		t := &list[i]
		return []any{service, first + int64(i), t.Created, false, t.Events, Content(t.Body)}
	}, "")
	if err != nil {
		return fmt.Errorf("queue transactions of application service %s: %w", service, err)
	}
	return nil
}

// ServiceTxns reads the oldest transactions that wait for a service.
func (tx *Tx) ServiceTxns(service string, limit int) (out []ServiceTxn, err error) {
	err = tx.Each(`SELECT txn, created, tried, events, body FROM appservice_txns WHERE service = $1 ORDER BY txn LIMIT $2`,
		[]any{service, limit}, func(r *Row) error {
			t := ServiceTxn{Service: service}
			var body Content
			err := r.Scan(&t.Txn, &t.Created, &t.Tried, &t.Events, &body)
			t.Body = body
			out = append(out, t)
			return err
		})
	return out, err
}

// ServiceBacklog counts the transactions that wait for a service and what they hold.
func (tx *Tx) ServiceBacklog(service string) (txns, events int64, err error) {
	_, err = tx.Get([]any{&txns, &events}, `SELECT count(*), coalesce(sum(events), 0) FROM appservice_txns WHERE service = $1`, service)
	return txns, events, err
}

// BeginServiceTxn makes a transaction final before its first attempt; those up to last are part of it.
func (tx *Tx) BeginServiceTxn(t ServiceTxn, last int64) error {
	if _, err := tx.Exec(`UPDATE appservice_txns SET tried = 1, events = $3, body = $4 WHERE service = $1 AND txn = $2`,
		t.Service, t.Txn, t.Events, Content(t.Body)); err != nil {
		return err
	}
	if last == t.Txn {
		return nil
	}
	_, err := tx.Exec(`DELETE FROM appservice_txns WHERE service = $1 AND txn > $2 AND txn <= $3`, t.Service, t.Txn, last)
	return err
}

// ServiceTxnDone removes a transaction that the service took; failed says that attempts in vain were noted before.
func (tx *Tx) ServiceTxnDone(service string, txn int64, failed bool) error {
	if _, err := tx.Exec(`DELETE FROM appservice_txns WHERE service = $1 AND txn = $2`, service, txn); err != nil || !failed {
		return err
	}
	_, err := tx.Exec(`UPDATE appservices SET failures = 0, next_try = 0 WHERE id = $1`, service)
	return err
}

// ServiceFailed notes an attempt in vain.
func (tx *Tx) ServiceFailed(service string, failures, nextTry int64) error {
	_, err := tx.Exec(`UPDATE appservices SET failures = $2, next_try = $3 WHERE id = $1`, service, failures, nextTry)
	return err
}

// DropServiceTxns removes transactions of services that are not registered any more, made before a time, up to limit.
func (tx *Tx) DropServiceTxns(registered []string, before int64, limit int) (int64, error) {
	return tx.Exec(`DELETE FROM appservice_txns WHERE (service, txn) IN (SELECT service, txn FROM appservice_txns
		WHERE service NOT IN @text($1) AND created < $2 LIMIT $3)`, registered, before, limit)
}

// SetNetworkRoom puts a room into the directory of a service's network or takes it out.
func (tx *Tx) SetNetworkRoom(service, network string, room int64, public bool) error {
	if !public {
		_, err := tx.Exec(`DELETE FROM appservice_rooms WHERE service = $1 AND network = $2 AND room = $3`, service, network, room)
		return err
	}
	_, err := tx.Exec(`INSERT INTO appservice_rooms (service, network, room) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, service, network, room)
	return err
}

// NetworkRooms lists the rooms of one network of a service like PublishedRooms; with both empty, the published rooms and
// those of all networks.
func (tx *Tx) NetworkRooms(service, network string) ([]DirectoryRoom, error) {
	where := `r.nid IN (SELECT room FROM appservice_rooms WHERE service = $1 AND network = $2)`
	args := []any{service, network}
	if service == "" && network == "" {
		where, args = `(r.published = 1 OR r.nid IN (SELECT room FROM appservice_rooms))`, nil
	}
	var out []DirectoryRoom
	err := tx.Each(`SELECT r.nid, r.room_id, (SELECT count(*) FROM memberships m WHERE m.room = r.nid AND m.membership = 2) AS joined
		FROM rooms r WHERE `+where+` AND r.blocked = 0 ORDER BY joined DESC, r.nid`, args, func(r *Row) error {
		var d DirectoryRoom
		err := r.Scan(&d.NID, &d.RoomID, &d.Joined)
		out = append(out, d)
		return err
	})
	return out, err
}

// TakeToDevice removes one message that waited for a device.
func (tx *Tx) TakeToDevice(user id.UserID, device id.DeviceID, pos int64) error {
	_, err := tx.Exec(`DELETE FROM to_device WHERE usr = $1 AND device_id = $2 AND pos = $3`, user, device, pos)
	return err
}
