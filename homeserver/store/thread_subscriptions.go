package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// ThreadSubscriptionsKey is the Key of the KindAccountData entries that announce thread subscriptions.
const ThreadSubscriptionsKey = "io.element.msc4308.thread_subscriptions"

// ThreadSubscription says whether a user follows a thread.
type ThreadSubscription struct {
	Room       int64
	RoomID     id.RoomID // read only
	Root       id.EventID
	Subscribed bool
	Automatic  bool
	Ended      int64 // log position of the last unsubscription, 0 for none
	Pos        int64 // of the last change
}

// ThreadSubscription reads one subscription, also one that has ended.
func (tx *Tx) ThreadSubscription(user id.UserID, room int64, root id.EventID) (t ThreadSubscription, ok bool, err error) {
	t.Room, t.Root = room, root
	ok, err = tx.Get([]any{&t.Subscribed, &t.Automatic, &t.Ended, &t.Pos}, `SELECT subscribed, automatic, ended, pos FROM thread_subscriptions
		WHERE usr = $1 AND room = $2 AND root = $3`, user, room, root)
	return t, ok, err
}

// SetThreadSubscription stores and announces a subscription. Where it ends, the end is the position of the announcement.
func (tx *Tx) SetThreadSubscription(user id.UserID, t ThreadSubscription) error {
	pos, err := tx.Announce(Entry{Kind: KindAccountData, User: string(user), Room: t.Room, Key: ThreadSubscriptionsKey})
	if err != nil {
		return err
	}
	if !t.Subscribed {
		t.Ended = pos
	}
	_, err = tx.Exec(`INSERT INTO thread_subscriptions (usr, room, root, subscribed, automatic, ended, pos) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (usr, room, root) DO UPDATE SET subscribed = excluded.subscribed, automatic = excluded.automatic, ended = excluded.ended, pos = excluded.pos`,
		user, t.Room, t.Root, t.Subscribed, t.Automatic, t.Ended, pos)
	if err != nil {
		return fmt.Errorf("store a thread subscription of %s: %w", user, err)
	}
	return nil
}

// ThreadSubscribers reads who follows a thread.
func (tx *Tx) ThreadSubscribers(room int64, root id.EventID) (map[id.UserID]struct{}, error) {
	out := make(map[id.UserID]struct{})
	err := tx.Each(`SELECT usr FROM thread_subscriptions WHERE room = $1 AND root = $2 AND subscribed = 1`, []any{room, root}, func(r *Row) error {
		var u id.UserID
		err := r.Scan(&u)
		out[u] = struct{}{}
		return err
	})
	return out, err
}

// ThreadSubscriptions reads the subscriptions that changed last after one position and before another, the latest changes
// first. ended tells whether those that have ended are wanted too.
func (tx *Tx) ThreadSubscriptions(user id.UserID, after, before int64, ended bool, limit int) ([]ThreadSubscription, error) {
	var out []ThreadSubscription
	err := tx.Each(`SELECT s.room, r.room_id, s.root, s.subscribed, s.automatic, s.ended, s.pos
		FROM thread_subscriptions s JOIN rooms r ON r.nid = s.room
		WHERE s.usr = $1 AND s.pos > $2 AND s.pos < $3 AND (s.subscribed = 1 OR $4 = 1) ORDER BY s.pos DESC LIMIT $5`,
		[]any{user, after, before, ended, limit}, func(r *Row) error {
			var t ThreadSubscription
			if err := r.Scan(&t.Room, &t.RoomID, &t.Root, &t.Subscribed, &t.Automatic, &t.Ended, &t.Pos); err != nil {
				return err
			}
			out = append(out, t)
			return nil
		})
	return out, err
}
