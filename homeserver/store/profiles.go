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
	_, err = tx.Exec(`INSERT INTO profiles (usr, displayname, avatar_url, folded, pos, fields) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (usr) DO UPDATE SET displayname = excluded.displayname, avatar_url = excluded.avatar_url,
		folded = excluded.folded, pos = excluded.pos, fields = excluded.fields`,
		p.User, p.DisplayName, p.AvatarURL, p.Folded, pos, p.Fields)
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
}

// DirectoryQuery says whom to look for. Patterns are those of LIKE with ! as the escape character.
type DirectoryQuery struct {
	Searcher    id.UserID
	Name        string  // pattern for local parts and folded display names
	UserID      string  // pattern for whole user ids
	PublicRooms []int64 // rooms whose members everybody may find, beside the published ones
	Everyone    bool    // all users of this server may be found
	Limit       int
}

// SearchDirectory finds users that the searcher may know of: they share a room, or the user is in a public one.
func (tx *Tx) SearchDirectory(q DirectoryQuery) ([]DirectoryEntry, error) {
	var out []DirectoryEntry
	err := tx.Each(`SELECT u.user_id, u.localpart, p.displayname, p.avatar_url, coalesce(p.folded, '')
		FROM users u LEFT JOIN profiles p ON p.usr = u.user_id
		WHERE u.deactivated = 0 AND u.user_id <> $1
		AND (u.localpart LIKE $2 ESCAPE '!' OR p.folded LIKE $2 ESCAPE '!' OR u.user_id LIKE $3 ESCAPE '!')
		AND ($5 = 1 OR EXISTS (SELECT 1 FROM memberships m JOIN rooms r ON r.nid = m.room
				WHERE m.usr = u.user_id AND m.membership = 2 AND (r.published = 1 OR r.nid IN @int($4)))
			OR EXISTS (SELECT 1 FROM memberships m JOIN memberships mine ON mine.room = m.room
				WHERE m.usr = u.user_id AND m.membership = 2 AND mine.usr = $1 AND mine.membership = 2))
		ORDER BY length(coalesce(p.folded, u.localpart)), u.user_id LIMIT $6`,
		[]any{q.Searcher, q.Name, q.UserID, q.PublicRooms, q.Everyone, q.Limit}, func(r *Row) error {
			var e DirectoryEntry
			if err := r.Scan(&e.User, &e.Localpart, &e.DisplayName, &e.AvatarURL, &e.Folded); err != nil {
				return err
			}
			out = append(out, e)
			return nil
		})
	return out, err
}
