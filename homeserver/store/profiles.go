package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Profile is what a user shows of themselves. Fields is a JSON object of all fields but display name and avatar; nil: none.
type Profile struct {
	User        id.UserID
	DisplayName *string
	AvatarURL   *string
	Fields      Content
	Folded      string // the display name as the directory compares it
	Latin       string // and its readings in Latin letters, "" for none
}

// Profile reads a profile; a user without one has an empty one.
func (tx *Tx) Profile(user id.UserID) (Profile, error) {
	p := Profile{User: user}
	_, err := tx.Get([]any{&p.DisplayName, &p.AvatarURL, &p.Fields, &p.Folded},
		`SELECT displayname, avatar_url, fields, folded FROM profiles WHERE usr = $1`, user)
	return p, err
}

// SetProfile stores and announces a profile.
func (tx *Tx) SetProfile(p Profile) error {
	pos, err := tx.Announce(Entry{Kind: KindProfile, User: string(p.User)})
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO profiles (usr, displayname, avatar_url, folded, pos, fields, latin) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (usr) DO UPDATE SET displayname = excluded.displayname, avatar_url = excluded.avatar_url,
		folded = excluded.folded, pos = excluded.pos, fields = excluded.fields, latin = excluded.latin`,
		p.User, p.DisplayName, p.AvatarURL, p.Folded, pos, p.Fields, p.Latin)
	if err != nil {
		return fmt.Errorf("store the profile of %s: %w", p.User, err)
	}
	return nil
}

// Profiles reads the display names and avatars of some users; those who have neither are missing.
func (tx *Tx) Profiles(users []string) (map[id.UserID]Profile, error) {
	out := make(map[id.UserID]Profile, len(users))
	err := tx.Each(`SELECT usr, displayname, avatar_url FROM profiles WHERE usr IN @text($1)`, []any{users}, func(r *Row) error {
		var p Profile
		if err := r.Scan(&p.User, &p.DisplayName, &p.AvatarURL); err != nil {
			return err
		}
		out[p.User] = p
		return nil
	})
	return out, err
}

// DirectoryEntry is a user whom a search of the directory found.
type DirectoryEntry struct {
	User        id.UserID
	Localpart   string
	DisplayName *string
	AvatarURL   *string
	Folded      string
	Latin       string
	Known       bool // the user shares a room with the searcher, or is in a published one
}

// SearchDirectory finds users of this server by a pattern for local parts and folded display names, or one for whole user
// ids. The patterns are those of LIKE with ! as the escape character. Known users come first, then short names.
func (tx *Tx) SearchDirectory(searcher id.UserID, name, userID string, limit int) ([]DirectoryEntry, error) {
	var out []DirectoryEntry
	err := tx.Each(`SELECT u.user_id, u.localpart, p.displayname, p.avatar_url, coalesce(p.folded, ''), coalesce(p.latin, ''),
			CASE WHEN EXISTS (SELECT 1 FROM memberships m JOIN rooms r ON r.nid = m.room
					WHERE m.usr = u.user_id AND m.membership = 2 AND r.published = 1)
				OR EXISTS (SELECT 1 FROM memberships m JOIN memberships mine ON mine.room = m.room
					WHERE m.usr = u.user_id AND m.membership = 2 AND mine.usr = $1 AND mine.membership = 2)
				THEN 1 ELSE 0 END AS known
		FROM users u LEFT JOIN profiles p ON p.usr = u.user_id
		WHERE u.deactivated = 0 AND u.user_id <> $1
		AND (u.localpart LIKE $2 ESCAPE '!' OR p.folded LIKE $2 ESCAPE '!' OR p.latin LIKE $2 ESCAPE '!' OR u.user_id LIKE $3 ESCAPE '!')
		ORDER BY known DESC, length(coalesce(p.folded, u.localpart)), u.user_id LIMIT $4`,
		[]any{searcher, name, userID, limit}, func(r *Row) error {
			var e DirectoryEntry
			if err := r.Scan(&e.User, &e.Localpart, &e.DisplayName, &e.AvatarURL, &e.Folded, &e.Latin, &e.Known); err != nil {
				return err
			}
			out = append(out, e)
			return nil
		})
	return out, err
}

// OpennessOf finds, for each of some users, the events that say who may enter and read the rooms that the user is in:
// join rules and history visibility.
func (tx *Tx) OpennessOf(users []string) (map[id.UserID][]int64, error) {
	out := make(map[id.UserID][]int64, len(users))
	err := tx.Each(`SELECT m.usr, s.nid FROM memberships m JOIN room_state s ON s.room = m.room
			AND s.type IN ('m.room.join_rules', 'm.room.history_visibility') AND s.state_key = ''
		WHERE m.usr IN @text($1) AND m.membership = 2`, []any{users}, func(r *Row) error {
		var user id.UserID
		var nid int64
		if err := r.Scan(&user, &nid); err != nil {
			return err
		}
		out[user] = append(out[user], nid)
		return nil
	})
	return out, err
}

// EventBodies reads the bodies of events.
func (tx *Tx) EventBodies(nids []int64, fn func(nid int64, body []byte)) error {
	return tx.Each(`SELECT nid, body FROM events WHERE nid IN @int($1)`, []any{nids}, func(r *Row) error {
		var nid int64
		var body Content
		if err := r.Scan(&nid, &body); err != nil {
			return err
		}
		fn(nid, body)
		return nil
	})
}

// NamesWithoutLatin gives display names whose readings in Latin letters were not looked for yet.
func (tx *Tx) NamesWithoutLatin(limit int) (map[id.UserID]string, error) {
	out := map[id.UserID]string{}
	err := tx.Each(`SELECT usr, coalesce(displayname, '') FROM profiles WHERE latin IS NULL LIMIT $1`, []any{limit}, func(r *Row) error {
		var user id.UserID
		var name string
		if err := r.Scan(&user, &name); err != nil {
			return err
		}
		out[user] = name
		return nil
	})
	return out, err
}

// SetLatin stores the readings of a display name in Latin letters.
func (tx *Tx) SetLatin(user id.UserID, latin string) error {
	_, err := tx.Exec(`UPDATE profiles SET latin = $2 WHERE usr = $1 AND latin IS NULL`, user, latin)
	return err
}
