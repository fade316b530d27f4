package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// PushRulesType is the type of the account data under which users' push rules are announced.
const PushRulesType = "m.push_rules"

// PushRules gives what the user changed against the predefined push rules, and at which position; nothing if nothing
// was ever changed.
func (tx *Tx) PushRules(user id.UserID) (delta []byte, pos int64, err error) {
	var c Content
	if _, err := tx.Get([]any{&c, &pos}, `SELECT delta, pos FROM push_rules WHERE usr = $1`, user); err != nil {
		return nil, 0, fmt.Errorf("read push rules: %w", err)
	}
	return c, pos, nil
}

// PushRulesChanged gives the position of the last change of the user's push rules, 0 for none.
func (tx *Tx) PushRulesChanged(user id.UserID) (pos int64, err error) {
	_, err = tx.Get([]any{&pos}, `SELECT pos FROM push_rules WHERE usr = $1`, user)
	return pos, err
}

// UpdatePushRules replaces the user's changes by what fn makes of them and announces it as account data.
func (tx *Tx) UpdatePushRules(user id.UserID, fn func(delta []byte) ([]byte, error)) error {
	// The head's lock comes first here: two first changes of one user have no row yet that could order them.
	if err := tx.LockHead(); err != nil {
		return err
	}
	delta, _, err := tx.PushRules(user)
	if err != nil {
		return err
	}
	if delta, err = fn(delta); err != nil {
		return err
	}
	pos, err := tx.Announce(Entry{Kind: KindAccountData, User: string(user), Key: PushRulesType})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO push_rules (usr, pos, delta) VALUES ($1, $2, $3)
		ON CONFLICT (usr) DO UPDATE SET pos = excluded.pos, delta = excluded.delta`, user, pos, Content(delta))
	if err != nil {
		return fmt.Errorf("write push rules: %w", err)
	}
	return nil
}

// Pusher is a place to which a user's notifications go.
type Pusher struct {
	ID         int64 // log position at which it was made
	User       id.UserID
	AppID      string
	Pushkey    string
	Kind       string
	AppName    string
	DeviceName string
	ProfileTag string
	Lang       string
	Data       []byte      // JSON object
	Device     id.DeviceID // the device that set it, "" for none
	Disabled   bool        // it is kept, and nothing goes there
	Updated    int64       // ms since 1970
	Badge      int64       // last unread count the gateway was told of, -1 for none
	Failures   int64       // attempts that failed since the last success
}

const pusherCols = `id, usr, app_id, pushkey, kind, app_name, device_name, profile_tag, lang, data, device, disabled, updated, badge, failures`

func (p *Pusher) scan(r *Row) error {
	var data Content
	err := r.Scan(&p.ID, &p.User, &p.AppID, &p.Pushkey, &p.Kind, &p.AppName, &p.DeviceName, &p.ProfileTag, &p.Lang, &data,
		&p.Device, &p.Disabled, &p.Updated, &p.Badge, &p.Failures)
	p.Data = data
	return err
}

func (tx *Tx) pushers(where string, args ...any) (out []Pusher, err error) {
	err = tx.Each(`SELECT `+pusherCols+` FROM pushers WHERE `+where, args, func(r *Row) error {
		var p Pusher
		if err := p.scan(r); err != nil {
			return err
		}
		out = append(out, p)
		return nil
	})
	return out, err
}

// Pushers lists the user's pushers, oldest first.
func (tx *Tx) Pushers(user id.UserID) ([]Pusher, error) {
	return tx.pushers(`usr = $1 ORDER BY id`, user)
}

// PushersOf lists the pushers of several users that are not disabled.
func (tx *Tx) PushersOf(users []string) ([]Pusher, error) {
	return tx.pushers(`usr IN @text($1) AND disabled = 0 ORDER BY id`, users)
}

// PushersWithCount lists those pushers of the users whose gateway was told of unread messages, or is about to be.
func (tx *Tx) PushersWithCount(users []string) ([]Pusher, error) {
	return tx.pushers(`usr IN @text($1) AND disabled = 0 AND (badge > 0 OR EXISTS (SELECT 1 FROM push_queue q WHERE q.pusher = pushers.id)) ORDER BY id`, users)
}

// UsersWithPushers lists who has pushers that are not disabled.
func (tx *Tx) UsersWithPushers() (out []string, err error) {
	err = tx.Each(`SELECT DISTINCT usr FROM pushers WHERE disabled = 0`, nil, func(r *Row) error {
		var u string
		if err := r.Scan(&u); err != nil {
			return err
		}
		out = append(out, u)
		return nil
	})
	return out, err
}

// SetPusher makes or replaces the pusher of (User, AppID, Pushkey). Unless keepOthers, pushers of other users with the
// same application and key are deleted.
func (tx *Tx) SetPusher(p Pusher, keepOthers bool) error {
	if !keepOthers {
		others, err := tx.pushers(`pushkey = $1 AND app_id = $2 AND usr <> $3`, p.Pushkey, p.AppID, p.User)
		if err != nil {
			return err
		}
		for _, o := range others {
			if err := tx.deletePusher(o.ID, o.User); err != nil {
				return err
			}
		}
	}
	pos, err := tx.Announce(Entry{Kind: KindPusher, User: string(p.User)})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO pushers (id, usr, app_id, pushkey, kind, app_name, device_name, profile_tag, lang, data, device, disabled, updated)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
		ON CONFLICT (usr, app_id, pushkey) DO UPDATE SET kind = excluded.kind, app_name = excluded.app_name,
		device_name = excluded.device_name, profile_tag = excluded.profile_tag, lang = excluded.lang, data = excluded.data,
		device = excluded.device, disabled = excluded.disabled, updated = excluded.updated, badge = -1, failures = 0, next_try = 0`,
		pos, p.User, p.AppID, p.Pushkey, p.Kind, p.AppName, p.DeviceName, p.ProfileTag, p.Lang, Content(p.Data), p.Device, p.Disabled, p.Updated)
	if err != nil {
		return fmt.Errorf("write pusher: %w", err)
	}
	if p.Disabled {
		_, err = tx.Exec(`DELETE FROM push_queue WHERE pusher IN (SELECT id FROM pushers WHERE usr = $1 AND app_id = $2 AND pushkey = $3)`, p.User, p.AppID, p.Pushkey)
	}
	return err
}

// deletePusher removes a pusher with what waits for it, and announces that.
func (tx *Tx) deletePusher(pusher int64, user id.UserID) error {
	if _, err := tx.Exec(`DELETE FROM push_queue WHERE pusher = $1`, pusher); err != nil {
		return err
	}
	n, err := tx.Exec(`DELETE FROM pushers WHERE id = $1`, pusher)
	if err != nil || n == 0 {
		return err
	}
	_, err = tx.Announce(Entry{Kind: KindPusher, User: string(user)})
	return err
}

func (tx *Tx) deletePushers(where string, args ...any) error {
	list, err := tx.pushers(where, args...)
	if err != nil {
		return err
	}
	for _, p := range list {
		if err := tx.deletePusher(p.ID, p.User); err != nil {
			return err
		}
	}
	return nil
}

// DeletePusher removes the user's pusher of this application and key, if there is one.
func (tx *Tx) DeletePusher(user id.UserID, appID, pushkey string) error {
	return tx.deletePushers(`usr = $1 AND app_id = $2 AND pushkey = $3`, user, appID, pushkey)
}

// DeletePushersOfDevices removes the pushers that these devices of the user made; for the end of their sessions.
func (tx *Tx) DeletePushersOfDevices(user id.UserID, devices []string) error {
	return tx.deletePushers(`usr = $1 AND device IN @text($2)`, user, devices)
}

// DeletePushersOf removes all pushers of the user.
func (tx *Tx) DeletePushersOf(user id.UserID) error { return tx.deletePushers(`usr = $1`, user) }

// Push is a notification that waits for delivery.
type Push struct {
	Pusher int64
	Pos    int64 // log position of the event, or of what changed the count
	Queued int64 // ms since 1970
	Room   int64
	NID    int64 // the event; 0 where only the count of unread messages changed
	High   bool
	Tweaks []byte // JSON object
}

var pushQueueCols = []Col{{"pusher", Int}, {"pos", Int}, {"queued", Int}, {"room", Int}, {"nid", Int}, {"high", Int}, {"tweaks", Bytes}}

// QueuePushes adds notifications; those that are there already stay.
func (tx *Tx) QueuePushes(list []Push) error {
	return tx.Insert("push_queue", pushQueueCols, len(list), func(i int) []any {
		p := &list[i]
		return []any{p.Pusher, p.Pos, p.Queued, p.Room, p.NID, p.High, Content(p.Tweaks)}
	}, "ON CONFLICT DO NOTHING")
}

// DuePushers lists pushers for which something waits and that may be tried now.
func (tx *Tx) DuePushers(now int64, limit int) (out []Pusher, err error) {
	return tx.pushers(`kind <> 'email' AND id IN (SELECT pusher FROM push_queue) AND busy_until <= $1 AND next_try <= $1 ORDER BY next_try LIMIT $2`, now, limit)
}

// Claimed is a pusher for which the caller alone delivers, and the oldest of what waits for it.
type Claimed struct {
	Pusher  Pusher
	Waiting []Push
}

// ClaimPushers takes the right to deliver for pushers until the given time. Those for which another process delivers, and
// those whose next attempt is not due, are left out. What waits since before oldest is dropped.
func (tx *Tx) ClaimPushers(ids []int64, now, until, oldest int64, limit int) (map[int64]*Claimed, error) {
	out := make(map[int64]*Claimed, len(ids))
	var got []int64
	err := tx.Each(`UPDATE pushers SET busy_until = $3 WHERE id IN @int($1) AND busy_until <= $2 AND next_try <= $2 RETURNING `+pusherCols,
		[]any{ids, now, until}, func(r *Row) error {
			c := &Claimed{}
			err := c.Pusher.scan(r)
			out[c.Pusher.ID] = c
			got = append(got, c.Pusher.ID)
			return err
		})
	if err != nil || len(got) == 0 {
		return nil, err
	}
	if _, err := tx.Exec(`DELETE FROM push_queue WHERE pusher IN @int($1) AND queued < $2`, got, oldest); err != nil {
		return nil, err
	}
	return out, tx.waiting(got, limit, func(q Push) { out[q.Pusher].Waiting = append(out[q.Pusher].Waiting, q) })
}

// waiting reads the oldest notifications of each pusher, at most limit.
func (tx *Tx) waiting(pushers []int64, limit int, fn func(Push)) error {
	return tx.Each(`SELECT pusher, pos, queued, room, nid, high, tweaks FROM (SELECT pusher, pos, queued, room, nid, high, tweaks,
		row_number() OVER (PARTITION BY pusher ORDER BY pos) AS n FROM push_queue WHERE pusher IN @int($1)) q WHERE n <= $2 ORDER BY pusher, pos`,
		[]any{pushers, limit}, func(r *Row) error {
			var q Push
			var tweaks Content
			if err := r.Scan(&q.Pusher, &q.Pos, &q.Queued, &q.Room, &q.NID, &q.High, &tweaks); err != nil {
				return err
			}
			q.Tweaks = tweaks
			fn(q)
			return nil
		})
}

// Delivered says how far a pusher's notifications were delivered, and what its gateway was told last.
type Delivered struct {
	Pusher, UpTo, Badge int64
}

// PushesDone removes what was delivered and gives what came in the meantime. Pushers with nothing left are free again;
// the others are claimed until the given time.
func (tx *Tx) PushesDone(done []Delivered, until int64, limit int) (map[int64][]Push, error) {
	ids := make([]int64, len(done))
	upTo, badges := map[int64][]int64{}, map[[2]int64][]int64{}
	for i, d := range done {
		ids[i] = d.Pusher
		upTo[d.UpTo] = append(upTo[d.UpTo], d.Pusher)
	}
	for pos, list := range upTo {
		if _, err := tx.Exec(`DELETE FROM push_queue WHERE pusher IN @int($1) AND pos <= $2`, list, pos); err != nil {
			return nil, err
		}
	}
	more := map[int64][]Push{}
	if err := tx.waiting(ids, limit, func(q Push) { more[q.Pusher] = append(more[q.Pusher], q) }); err != nil {
		return nil, err
	}
	for _, d := range done {
		key := [2]int64{d.Badge, 0}
		if len(more[d.Pusher]) > 0 {
			key[1] = until
		}
		badges[key] = append(badges[key], d.Pusher)
	}
	for key, list := range badges {
		if _, err := tx.Exec(`UPDATE pushers SET badge = $2, failures = 0, next_try = 0, busy_until = $3 WHERE id IN @int($1)`, list, key[0], key[1]); err != nil {
			return nil, err
		}
	}
	return more, nil
}

// PushFailed removes what was delivered before the failure, frees the pusher, sets the time of the next attempt and
// keeps only the newest of what waits.
func (tx *Tx) PushFailed(pusher, upTo, badge, nextTry int64, keep int) error {
	if _, err := tx.Exec(`DELETE FROM push_queue WHERE pusher = $1 AND (pos <= $2 OR pos <= coalesce((SELECT pos FROM push_queue
		WHERE pusher = $1 ORDER BY pos DESC LIMIT 1 OFFSET $3), 0))`, pusher, upTo, keep); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE pushers SET badge = $2, failures = failures + 1, next_try = $3, busy_until = 0 WHERE id = $1`, pusher, badge, nextTry)
	return err
}

// ReleasePusher frees a claimed pusher, as when the process stops.
func (tx *Tx) ReleasePusher(pusher int64) error {
	_, err := tx.Exec(`UPDATE pushers SET busy_until = 0 WHERE id = $1`, pusher)
	return err
}
