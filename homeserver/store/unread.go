package store

import "fmt"

// ScanEvent is what counting unread events reads of an event.
type ScanEvent struct {
	NID, Ord int64
	Features []byte
	body     []byte
}

// Body is the event, decoded only for who looks at it.
func (e *ScanEvent) Body() (Content, error) { return decodeContent(e.body) }

// ScanTimeline reads accepted events of a room with after < ord < before, newest first. The event
// given to fn is reused for the next one.
func (tx *Tx) ScanTimeline(room, before, after int64, limit int, fn func(e *ScanEvent) error) error {
	var e ScanEvent
	return tx.Each(`SELECT nid, ord, features, body FROM events WHERE room = $1 AND ord < $2 AND ord > $3 AND status = 0 ORDER BY ord DESC LIMIT $4`,
		[]any{room, before, after, limit}, func(r *Row) error {
			e = ScanEvent{}
			if err := r.Scan(&e.NID, &e.Ord, &e.Features, &e.body); err != nil {
				return err
			}
			return fn(&e)
		})
}

// Unread is how far a user's unread events of a room were counted, and what was found.
type Unread struct {
	User    string
	Room    int64
	Ord     int64
	Counted []byte
}

// UserUnread reads all that was counted for a user.
func (tx *Tx) UserUnread(user string, rooms []int64) ([]Unread, error) {
	var out []Unread
	err := tx.Each(`SELECT room, ord, counted FROM unread WHERE usr = $1 AND room IN @int($2)`, []any{user, rooms}, func(r *Row) error {
		u := Unread{User: user}
		err := r.Scan(&u.Room, &u.Ord, &u.Counted)
		out = append(out, u)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read unread counts: %w", err)
	}
	return out, nil
}

var unreadCols = []Col{{"usr", Text}, {"room", Int}, {"ord", Int}, {"counted", Bytes}}

// SaveUnread writes what was counted; it never goes back.
func (tx *Tx) SaveUnread(us []Unread) error {
	err := tx.Insert("unread", unreadCols, len(us), func(i int) []any {
		u := &us[i]
		return []any{u.User, u.Room, u.Ord, u.Counted}
	}, `ON CONFLICT (usr, room) DO UPDATE SET ord = excluded.ord, counted = excluded.counted WHERE excluded.ord > unread.ord`)
	if err != nil {
		return fmt.Errorf("write unread counts: %w", err)
	}
	return nil
}

// PrevState gives for state events the number of the event that stood at the same place before; those without one are
// left out.
func (tx *Tx) PrevState(nids []int64, fn func(nid, prev int64)) error {
	err := tx.Each(`SELECT c.nid, (SELECT p.nid FROM state_changes p WHERE p.room = c.room AND p.type = c.type AND p.state_key = c.state_key
			AND p.ord < c.ord ORDER BY p.ord DESC LIMIT 1)
		FROM events e JOIN state_changes c ON c.room = e.room AND c.ord = e.ord AND c.nid = e.nid
		WHERE e.nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var nid int64
		var prev *int64
		if err := r.Scan(&nid, &prev); err != nil {
			return err
		}
		if prev != nil {
			fn(nid, *prev)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read replaced state: %w", err)
	}
	return nil
}

// PresenceStatus reads what all users say of themselves.
func (tx *Tx) PresenceStatus(fn func(user, status string)) error {
	return tx.Each(`SELECT usr, status FROM presence_status`, nil, func(r *Row) error {
		var u string
		var c Content
		if err := r.Scan(&u, &c); err != nil {
			return err
		}
		fn(u, string(c))
		return nil
	})
}

// SetPresenceStatus writes what a user says; "" removes it.
func (tx *Tx) SetPresenceStatus(user, status string) error {
	if status == "" {
		_, err := tx.Exec(`DELETE FROM presence_status WHERE usr = $1`, user)
		return err
	}
	_, err := tx.Exec(`INSERT INTO presence_status (usr, status) VALUES ($1, $2) ON CONFLICT (usr) DO UPDATE SET status = excluded.status`, user, Content(status))
	return err
}
