package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Hook is a named address that a system posts messages to.
type Hook struct {
	ID          string
	Format      string
	Auth        string
	SecretHash  []byte  // SHA-256, where a token is shown
	Secret      Content // where requests are signed
	Target      string  // room id, alias or user id
	RoomID      id.RoomID
	Creator     id.UserID // "" where it was made from the command line
	DisplayName string
	AvatarURL   string
	Options     Content // JSON
	Created     int64   // ms
	Used        int64   // ms, to some minutes; 0: never
	Revoked     int64   // ms; 0: it works
	TestHash    []byte
	TestUntil   int64
}

const hookColumns = `id, format, auth, secret_hash, secret, target, room_id, creator, display_name, avatar_url, options, created, used, revoked, test_hash, test_until`

func (tx *Tx) hooks(sql string, args ...any) ([]Hook, error) {
	var out []Hook
	err := tx.Each(`SELECT `+hookColumns+` FROM hooks `+sql, args, func(r *Row) error {
		var h Hook
		var secret []byte
		if err := r.Scan(&h.ID, &h.Format, &h.Auth, &h.SecretHash, &secret, &h.Target, &h.RoomID, &h.Creator, &h.DisplayName, &h.AvatarURL,
			&h.Options, &h.Created, &h.Used, &h.Revoked, &h.TestHash, &h.TestUntil); err != nil {
			return err
		}
		if len(secret) > 0 {
			var err error
			if h.Secret, err = decodeContent(secret); err != nil {
				return err
			}
		}
		out = append(out, h)
		return nil
	})
	return out, err
}

// Hooks lists all hooks, revoked ones too.
func (tx *Tx) Hooks() ([]Hook, error) { return tx.hooks(`ORDER BY id`) }

// Hook reads a hook, a revoked one too.
func (tx *Tx) Hook(hookID string) (Hook, bool, error) {
	list, err := tx.hooks(`WHERE id = $1`, hookID)
	if err != nil || len(list) == 0 {
		return Hook{}, false, err
	}
	return list[0], true, nil
}

// PutHook writes a hook in the place of a revoked one of its name; false means that one of that name works.
func (tx *Tx) PutHook(h Hook) (bool, error) {
	var hash, secret any
	if len(h.SecretHash) > 0 {
		hash = h.SecretHash
	}
	if len(h.Secret) > 0 {
		secret = h.Secret
	}
	n, err := tx.Exec(`INSERT INTO hooks (id, format, auth, secret_hash, secret, target, creator, display_name, avatar_url, options, created)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (id) DO UPDATE SET format = $2, auth = $3, secret_hash = $4, secret = $5, target = $6, room_id = '', creator = $7, display_name = $8,
		avatar_url = $9, options = $10, created = $11, used = 0, revoked = 0, test_hash = NULL, test_until = 0 WHERE hooks.revoked <> 0`,
		h.ID, h.Format, h.Auth, hash, secret, h.Target, h.Creator, h.DisplayName, h.AvatarURL, h.Options, h.Created)
	if err != nil {
		return false, fmt.Errorf("write hook %s: %w", h.ID, err)
	}
	if n > 0 { // what a hook of that name said before is not this one's
		_, err = tx.Exec(`DELETE FROM hook_keys WHERE hook = $1`, h.ID)
	}
	return n > 0, err
}

// RevokeHook ends a hook; false means that there is none.
func (tx *Tx) RevokeHook(hookID string, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE hooks SET revoked = $2, secret = NULL, secret_hash = NULL, test_hash = NULL WHERE id = $1 AND revoked = 0`, hookID, now)
	return n > 0, err
}

// UsedHook notes that a hook is in use.
func (tx *Tx) UsedHook(hookID string, now int64) error {
	_, err := tx.Exec(`UPDATE hooks SET used = $2 WHERE id = $1`, hookID, now)
	return err
}

// SetHookRoom notes the room in which a hook writes to its user, in the place of one that is gone; false means that
// another one has been noted meanwhile.
func (tx *Tx) SetHookRoom(hookID string, roomID, gone id.RoomID) (bool, error) {
	n, err := tx.Exec(`UPDATE hooks SET room_id = $2 WHERE id = $1 AND room_id = $3`, hookID, roomID, gone)
	return n > 0, err
}

// SetHookTest lets whoever shows a token post until a time; false means that there is no such hook.
func (tx *Tx) SetHookTest(hookID string, hash []byte, until int64) (bool, error) {
	n, err := tx.Exec(`UPDATE hooks SET test_hash = $2, test_until = $3 WHERE id = $1 AND revoked = 0`, hookID, hash, until)
	return n > 0, err
}

// Kinds of hook keys.
const (
	HookKeyMessage int64 = 1 // later posts change the message
	HookKeyThread  int64 = 2 // later posts answer it
)

// HookKey is a message that later posts change or answer.
type HookKey struct {
	Hook    string
	Kind    int64
	Key     string
	RoomID  id.RoomID
	EventID id.EventID
	First   string // idempotency key of the post that made it
	Created int64  // ms
}

// HookKey reads what a key of a hook stands for.
func (tx *Tx) HookKey(hookID string, kind int64, key string) (HookKey, bool, error) {
	k := HookKey{Hook: hookID, Kind: kind, Key: key}
	found, err := tx.Get([]any{&k.RoomID, &k.EventID, &k.First, &k.Created},
		`SELECT room_id, event_id, first, created FROM hook_keys WHERE hook = $1 AND kind = $2 AND key = $3`, hookID, kind, key)
	return k, found, err
}

// SetHookKey notes what a key stands for.
func (tx *Tx) SetHookKey(k HookKey) error {
	_, err := tx.Exec(`INSERT INTO hook_keys (hook, kind, key, room_id, event_id, first, created) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (hook, kind, key) DO UPDATE SET room_id = $4, event_id = $5, first = $6, created = $7`,
		k.Hook, k.Kind, k.Key, k.RoomID, k.EventID, k.First, k.Created)
	return err
}

// HookSubscription is an endpoint that events are delivered to.
type HookSubscription struct {
	ID           string
	URL          string
	Secret       Content
	Filter       Content // JSON
	Creator      id.UserID
	Created      int64 // ms
	Paused       bool
	Config       bool  // it stands in the configuration
	FailingSince int64 // ms; 0: it works
	Failures     int64 // in a row
	NextAt       int64 // ms: nothing is tried before
	LastError    string
	Delivered    int64 // how many
	Waiting      int64 // how many; set by HookSubscriptions
	Dead         int64 // how many; set by HookSubscriptions
}

// HookSubscriptions lists the subscriptions, with the lengths of their queues where counted.
func (tx *Tx) HookSubscriptions(counted bool) ([]HookSubscription, error) {
	var out []HookSubscription
	err := tx.Each(`SELECT id, url, secret, filter, creator, created, paused, config, failing_since, failures, next_at, last_error, delivered
		FROM hook_subscriptions ORDER BY id`, nil, func(r *Row) error {
		var s HookSubscription
		err := r.Scan(&s.ID, &s.URL, &s.Secret, &s.Filter, &s.Creator, &s.Created, &s.Paused, &s.Config, &s.FailingSince, &s.Failures, &s.NextAt, &s.LastError, &s.Delivered)
		out = append(out, s)
		return err
	})
	if err != nil || !counted {
		return out, err
	}
	for i := range out {
		if _, err := tx.Get([]any{&out[i].Waiting, &out[i].Dead}, `SELECT count(*), coalesce(sum(CASE WHEN dead <> 0 THEN 1 ELSE 0 END), 0)
			FROM hook_deliveries WHERE subscription = $1`, out[i].ID); err != nil {
			return nil, err
		}
		out[i].Waiting -= out[i].Dead
	}
	return out, nil
}

// InsertHookSubscription adds a subscription; false means that there is one of that name.
func (tx *Tx) InsertHookSubscription(s HookSubscription) (bool, error) {
	n, err := tx.Exec(`INSERT INTO hook_subscriptions (id, url, secret, filter, creator, created) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT DO NOTHING`, s.ID, s.URL, s.Secret, s.Filter, s.Creator, s.Created)
	return n > 0, err
}

// PutConfiguredSubscription writes a subscription that stands in the configuration. What waits for it goes on waiting.
func (tx *Tx) PutConfiguredSubscription(s HookSubscription) error {
	_, err := tx.Exec(`INSERT INTO hook_subscriptions (id, url, secret, filter, creator, created, config) VALUES ($1, $2, $3, $4, '', $5, 1)
		ON CONFLICT (id) DO UPDATE SET url = $2, secret = $3, filter = $4, config = 1, next_at = 0, failures = 0, failing_since = 0`,
		s.ID, s.URL, s.Secret, s.Filter, s.Created)
	return err
}

// DeleteHookSubscription removes a subscription and what waits for it; false means that there is none.
func (tx *Tx) DeleteHookSubscription(name string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM hook_subscriptions WHERE id = $1`, name)
	if err == nil {
		_, err = tx.Exec(`DELETE FROM hook_deliveries WHERE subscription = $1`, name)
	}
	return n > 0, err
}

// PauseHookSubscription stops the deliveries of a subscription, or lets them go on at once; false means that there is none.
func (tx *Tx) PauseHookSubscription(name string, on bool) (bool, error) {
	n, err := tx.Exec(`UPDATE hook_subscriptions SET paused = $2, next_at = 0, failures = 0, failing_since = 0 WHERE id = $1`, name, on)
	return n > 0, err
}

// HookDelivery is an event that waits for an endpoint.
type HookDelivery struct {
	Subscription string
	Pos          int64 // of the event in the log
	NID          int64 // of the event
	Attempts     int64
	Dead         int64 // ms; 0: it waits
	Error        string
}

var hookDeliveryCols = []Col{{"subscription", Text}, {"pos", Int}, {"nid", Int}}

// InsertHookDeliveries queues events. Those that are queued already stay as they are.
func (tx *Tx) InsertHookDeliveries(list []HookDelivery) error {
	return tx.Insert("hook_deliveries", hookDeliveryCols, len(list), func(i int) []any {
		return []any{list[i].Subscription, list[i].Pos, list[i].NID}
	}, "ON CONFLICT DO NOTHING")
}

func (tx *Tx) hookDeliveries(sql string, args ...any) ([]HookDelivery, error) {
	var out []HookDelivery
	err := tx.Each(`SELECT subscription, pos, nid, attempts, dead, error FROM hook_deliveries `+sql, args, func(r *Row) error {
		var d HookDelivery
		err := r.Scan(&d.Subscription, &d.Pos, &d.NID, &d.Attempts, &d.Dead, &d.Error)
		out = append(out, d)
		return err
	})
	return out, err
}

// WaitingHookDeliveries lists what waits for an endpoint, the oldest first.
func (tx *Tx) WaitingHookDeliveries(subscription string, limit int) ([]HookDelivery, error) {
	return tx.hookDeliveries(`WHERE subscription = $1 AND dead = 0 ORDER BY pos LIMIT $2`, subscription, limit)
}

// DeadHookDeliveries lists what was given up after a position, the oldest first.
func (tx *Tx) DeadHookDeliveries(subscription string, after int64, limit int) ([]HookDelivery, error) {
	return tx.hookDeliveries(`WHERE subscription = $1 AND dead <> 0 AND pos > $2 ORDER BY pos LIMIT $3`, subscription, after, limit)
}

// HookDelivered takes an event out of a queue and notes that the endpoint works.
func (tx *Tx) HookDelivered(subscription string, pos int64) error {
	if _, err := tx.Exec(`DELETE FROM hook_deliveries WHERE subscription = $1 AND pos = $2`, subscription, pos); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE hook_subscriptions SET delivered = delivered + 1, failures = 0, failing_since = 0, next_at = 0, last_error = '' WHERE id = $1`, subscription)
	return err
}

// DropHookDelivery takes an event out of a queue that there is nothing to tell of.
func (tx *Tx) DropHookDelivery(subscription string, pos int64) error {
	_, err := tx.Exec(`DELETE FROM hook_deliveries WHERE subscription = $1 AND pos = $2`, subscription, pos)
	return err
}

// HookFailed notes a failed attempt: d's Attempts, Dead and Error are the new ones, and s's Failures, FailingSince and NextAt.
func (tx *Tx) HookFailed(d HookDelivery, s HookSubscription) error {
	if _, err := tx.Exec(`UPDATE hook_deliveries SET attempts = $3, dead = $4, error = $5 WHERE subscription = $1 AND pos = $2`,
		d.Subscription, d.Pos, d.Attempts, d.Dead, d.Error); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE hook_subscriptions SET failures = $2, failing_since = $3, next_at = $4, last_error = $5 WHERE id = $1`,
		d.Subscription, s.Failures, s.FailingSince, s.NextAt, d.Error)
	return err
}

// ReplayHookDeliveries lets what was given up wait again: one event, or all for pos 0. It tells how many.
func (tx *Tx) ReplayHookDeliveries(subscription string, pos int64) (int64, error) {
	n, err := tx.Exec(`UPDATE hook_deliveries SET dead = 0, attempts = 0, error = '' WHERE subscription = $1 AND dead <> 0 AND (pos = $2 OR $2 = 0)`, subscription, pos)
	if err == nil && n > 0 {
		_, err = tx.Exec(`UPDATE hook_subscriptions SET next_at = 0, failures = 0, failing_since = 0 WHERE id = $1`, subscription)
	}
	return n, err
}
