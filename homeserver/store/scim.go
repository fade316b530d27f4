package store

import (
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// SCIMUser is a person as an HR system tells of them.
type SCIMUser struct {
	ID         string
	User       id.UserID
	UserName   string // folded
	ExternalID string
	Doc        Content
	Created    int64 // ms
	Modified   int64
	Version    int64 // counts changes
	Applied    int64 // the version that the account follows
	Active     bool  // what the HR system says
	Start, End int64 // ms, 0: none
	Next       int64 // ms: when something is due, 0: nothing
	Department string
	Greet      int64 // 1: a welcome is due, 2: it was sent
	Deleted    bool
}

const scimUserColumns = `id, usr, user_name, external_id, doc, created, modified, version, applied, active, start_at, end_at, next_at, department, greet, deleted`

func (u *SCIMUser) dest() []any {
	return []any{&u.ID, &u.User, &u.UserName, &u.ExternalID, &u.Doc, &u.Created, &u.Modified, &u.Version, &u.Applied, &u.Active,
		&u.Start, &u.End, &u.Next, &u.Department, &u.Greet, &u.Deleted}
}

func (tx *Tx) scimUsers(sql string, args ...any) ([]SCIMUser, error) {
	var out []SCIMUser
	err := tx.Each(`SELECT `+scimUserColumns+` FROM scim_users `+sql, args, func(r *Row) error {
		var u SCIMUser
		err := r.Scan(u.dest()...)
		out = append(out, u)
		return err
	})
	return out, err
}

// InsertSCIMUser adds a person; false means that the user name is taken.
func (tx *Tx) InsertSCIMUser(u SCIMUser) (bool, error) {
	n, err := tx.Exec(`INSERT INTO scim_users (`+scimUserColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0)
		ON CONFLICT DO NOTHING`, u.ID, u.User, u.UserName, u.ExternalID, u.Doc, u.Created, u.Modified, u.Version, u.Applied, u.Active,
		u.Start, u.End, u.Next, u.Department, u.Greet)
	if err != nil {
		return false, fmt.Errorf("insert SCIM user %s: %w", u.ID, err)
	}
	return n > 0, nil
}

// UpdateSCIMUser writes a person if it still has the version before; false means that it has not, or that the user name is
// another's.
func (tx *Tx) UpdateSCIMUser(u SCIMUser, before int64) (bool, error) {
	n, err := tx.Exec(`UPDATE scim_users SET user_name = $2, external_id = $3, doc = $4, modified = $5, version = $6, active = $7, start_at = $8,
		end_at = $9, next_at = $10, deleted = $11 WHERE id = $1 AND version = $12
		AND NOT EXISTS (SELECT 1 FROM scim_users o WHERE o.user_name = $2 AND o.id <> $1)`,
		u.ID, u.UserName, u.ExternalID, u.Doc, u.Modified, u.Version, u.Active, u.Start, u.End, u.Next, u.Deleted, before)
	return n > 0, err
}

// AppliedSCIMUser notes that the account follows a version, and when something is due next.
func (tx *Tx) AppliedSCIMUser(u SCIMUser, next int64) error {
	_, err := tx.Exec(`UPDATE scim_users SET applied = $2, next_at = $3, department = $4 WHERE id = $1 AND version = $2`, u.ID, u.Version, next, u.Department)
	return err
}

// LaterSCIMUser notes when something is due next for a person who did not change since.
func (tx *Tx) LaterSCIMUser(userID string, version, next int64) error {
	_, err := tx.Exec(`UPDATE scim_users SET next_at = $3 WHERE id = $1 AND version = $2`, userID, version, next)
	return err
}

// GreetedSCIMUser notes that a welcome was sent.
func (tx *Tx) GreetedSCIMUser(userID string) error {
	_, err := tx.Exec(`UPDATE scim_users SET greet = 2 WHERE id = $1`, userID)
	return err
}

// SCIMUser reads a person; deleted ones too.
func (tx *Tx) SCIMUser(userID string) (SCIMUser, bool, error) {
	list, err := tx.scimUsers(`WHERE id = $1`, userID)
	if err != nil || len(list) == 0 {
		return SCIMUser{}, false, err
	}
	return list[0], true, nil
}

// SCIMUserBy finds persons, deleted ones too, by user name (folded) or external id; one of them is "".
func (tx *Tx) SCIMUserBy(userName, externalID string) ([]SCIMUser, error) {
	if userName != "" {
		return tx.scimUsers(`WHERE user_name = $1`, userName)
	}
	return tx.scimUsers(`WHERE external_id = $1 AND external_id <> ''`, externalID)
}

// SCIMUsers lists persons in the order in which they came.
func (tx *Tx) SCIMUsers(offset, limit int64) ([]SCIMUser, error) {
	return tx.scimUsers(`WHERE deleted = 0 ORDER BY created, id LIMIT $2 OFFSET $1`, offset, limit)
}

// CountSCIMUsers counts persons.
func (tx *Tx) CountSCIMUsers() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM scim_users WHERE deleted = 0`)
	return n, err
}

// DueSCIMUsers lists for whom something is due.
func (tx *Tx) DueSCIMUsers(now int64, limit int) ([]SCIMUser, error) {
	return tx.scimUsers(`WHERE next_at <> 0 AND next_at <= $1 ORDER BY next_at LIMIT $2`, now, limit)
}

// NextSCIMUser is when something is due next for anybody (ms), 0 for never.
func (tx *Tx) NextSCIMUser() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT coalesce(min(next_at), 0) FROM scim_users WHERE next_at <> 0`)
	return n, err
}

// SCIMUserIDs finds the ids of persons by their accounts.
func (tx *Tx) SCIMUserIDs(users []id.UserID) (map[id.UserID]string, error) {
	out := make(map[id.UserID]string, len(users))
	err := tx.Each(`SELECT usr, id FROM scim_users WHERE usr IN @text($1) AND deleted = 0`, []any{users}, func(r *Row) error {
		var u id.UserID
		var s string
		err := r.Scan(&u, &s)
		out[u] = s
		return err
	})
	return out, err
}

// SCIMAccounts finds the accounts of persons by their ids.
func (tx *Tx) SCIMAccounts(ids []string) (map[string]id.UserID, error) {
	out := make(map[string]id.UserID, len(ids))
	err := tx.Each(`SELECT id, usr FROM scim_users WHERE id IN @text($1) AND deleted = 0`, []any{ids}, func(r *Row) error {
		var u id.UserID
		var s string
		err := r.Scan(&s, &u)
		out[s] = u
		return err
	})
	return out, err
}

// ActiveSCIMAccounts lists the accounts of persons that can be used now: of all, or of a department.
func (tx *Tx) ActiveSCIMAccounts(now int64, department string) ([]id.UserID, error) {
	var out []id.UserID
	err := tx.Each(`SELECT usr FROM scim_users WHERE deleted = 0 AND active = 1 AND start_at <= $1 AND (end_at = 0 OR end_at > $1)
		AND ($2 = '' OR department = $2) ORDER BY usr`, []any{now, department}, func(r *Row) error {
		var u id.UserID
		err := r.Scan(&u)
		out = append(out, u)
		return err
	})
	return out, err
}

// SCIMGroup is a group as an HR system tells of it, without its members.
type SCIMGroup struct {
	ID         string
	Name       string // folded
	ExternalID string
	Doc        Content
	Created    int64 // ms
	Modified   int64
	Version    int64
}

const scimGroupColumns = `id, name, external_id, doc, created, modified, version`

func (tx *Tx) scimGroups(sql string, args ...any) ([]SCIMGroup, error) {
	var out []SCIMGroup
	err := tx.Each(`SELECT `+scimGroupColumns+` FROM scim_groups `+sql, args, func(r *Row) error {
		var g SCIMGroup
		err := r.Scan(&g.ID, &g.Name, &g.ExternalID, &g.Doc, &g.Created, &g.Modified, &g.Version)
		out = append(out, g)
		return err
	})
	return out, err
}

// SCIMGroup reads a group.
func (tx *Tx) SCIMGroup(groupID string) (SCIMGroup, bool, error) {
	list, err := tx.scimGroups(`WHERE id = $1`, groupID)
	if err != nil || len(list) == 0 {
		return SCIMGroup{}, false, err
	}
	return list[0], true, nil
}

// SCIMGroupBy finds groups by name (folded) or external id; one of them is "".
func (tx *Tx) SCIMGroupBy(name, externalID string) ([]SCIMGroup, error) {
	if name != "" {
		return tx.scimGroups(`WHERE name = $1`, name)
	}
	return tx.scimGroups(`WHERE external_id = $1 AND external_id <> ''`, externalID)
}

// SCIMGroups lists groups in the order in which they came.
func (tx *Tx) SCIMGroups(offset, limit int64) ([]SCIMGroup, error) {
	return tx.scimGroups(`ORDER BY created, id LIMIT $2 OFFSET $1`, offset, limit)
}

// SCIMGroupsByID reads some groups.
func (tx *Tx) SCIMGroupsByID(ids []string) ([]SCIMGroup, error) {
	return tx.scimGroups(`WHERE id IN @text($1) ORDER BY id`, ids)
}

// CountSCIMGroups counts groups.
func (tx *Tx) CountSCIMGroups() (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM scim_groups`)
	return n, err
}

// SaveSCIMGroup adds a group (before is 0) or writes it if it still has the version before; false means that it has not.
func (tx *Tx) SaveSCIMGroup(g SCIMGroup, before int64) (bool, error) {
	sql := `UPDATE scim_groups SET name = $2, external_id = $3, doc = $4, modified = $6, version = $7 WHERE id = $1 AND version = $8 AND created = $5`
	args := []any{g.ID, g.Name, g.ExternalID, g.Doc, g.Created, g.Modified, g.Version, before}
	if before == 0 {
		sql = `INSERT INTO scim_groups (` + scimGroupColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING`
		args = args[:7]
	}
	n, err := tx.Exec(sql, args...)
	if err != nil {
		return false, fmt.Errorf("save SCIM group %s: %w", g.ID, err)
	}
	return n > 0, nil
}

// DeleteSCIMGroup removes a group if it has the version (0: any); false means that it has not.
func (tx *Tx) DeleteSCIMGroup(groupID string, version int64) (bool, error) {
	n, err := tx.Exec(`DELETE FROM scim_groups WHERE id = $1 AND ($2 = 0 OR version = $2)`, groupID, version)
	return n > 0, err
}

// HRToken is the secret of an HR system.
type HRToken struct {
	ID, Name      string
	Hash          []byte
	Created, Used int64 // ms
}

// InsertHRToken adds a token.
func (tx *Tx) InsertHRToken(t HRToken) error {
	_, err := tx.Exec(`INSERT INTO hr_tokens (id, name, hash, created) VALUES ($1, $2, $3, $4)`, t.ID, t.Name, t.Hash, t.Created)
	return err
}

// HRTokens lists the tokens.
func (tx *Tx) HRTokens() ([]HRToken, error) {
	var out []HRToken
	err := tx.Each(`SELECT id, name, hash, created, used FROM hr_tokens ORDER BY created, id`, nil, func(r *Row) error {
		var t HRToken
		err := r.Scan(&t.ID, &t.Name, &t.Hash, &t.Created, &t.Used)
		out = append(out, t)
		return err
	})
	return out, err
}

// UsedHRToken notes when a token was used.
func (tx *Tx) UsedHRToken(tokenID string, now int64) error {
	_, err := tx.Exec(`UPDATE hr_tokens SET used = $2 WHERE id = $1 AND used < $2`, tokenID, now)
	return err
}

// DeleteHRToken revokes a token; false means that there is none.
func (tx *Tx) DeleteHRToken(tokenID string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM hr_tokens WHERE id = $1`, tokenID)
	return n > 0, err
}

// ServiceRoom is the room in which the service account writes to a person, "" for none.
func (tx *Tx) ServiceRoom(user id.UserID) (id.RoomID, error) {
	var r id.RoomID
	_, err := tx.Get([]any{&r}, `SELECT room_id FROM service_rooms WHERE usr = $1`, user)
	return r, err
}

// SetServiceRoom notes the room in which the service account writes to a person.
func (tx *Tx) SetServiceRoom(user id.UserID, room id.RoomID) error {
	_, err := tx.Exec(`INSERT INTO service_rooms (usr, room_id) VALUES ($1, $2) ON CONFLICT (usr) DO UPDATE SET room_id = excluded.room_id`, user, room)
	return err
}

// Announcement is what HR announces.
type Announcement struct {
	ID      string
	Created int64 // ms
	Creator string
	Content Content // the message's content, JSON
	Done    bool    // everything was sent
}

// AnnouncementPlace is where an announcement goes to.
type AnnouncementPlace struct {
	Place   string // room id, or the user id of whose room with the service account is meant
	Room    int64  // number of the room, 0 before it was sent
	EventID id.EventID
	Ord     int64
	Failed  string // why it could not be sent
}

var placeCols = []Col{{"announcement", Text}, {"place", Text}}

// InsertAnnouncement adds an announcement; false means that there is one of this id.
func (tx *Tx) InsertAnnouncement(a Announcement, places []string) (bool, error) {
	n, err := tx.Exec(`INSERT INTO announcements (id, created, creator, content) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING`,
		a.ID, a.Created, a.Creator, a.Content)
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.Insert("announcement_places", placeCols, len(places), func(i int) []any { return []any{a.ID, places[i]} }, "ON CONFLICT DO NOTHING")
}

// Announcement reads an announcement.
func (tx *Tx) Announcement(announcement string) (Announcement, bool, error) {
	a := Announcement{ID: announcement}
	found, err := tx.Get([]any{&a.Created, &a.Creator, &a.Content, &a.Done},
		`SELECT created, creator, content, done FROM announcements WHERE id = $1`, announcement)
	return a, found, err
}

// OpenAnnouncements lists announcements that are not sent to everybody yet.
func (tx *Tx) OpenAnnouncements() ([]string, error) {
	var out []string
	err := tx.Each(`SELECT id FROM announcements WHERE done = 0 ORDER BY created, id`, nil, func(r *Row) error {
		var s string
		err := r.Scan(&s)
		out = append(out, s)
		return err
	})
	return out, err
}

// DoneAnnouncement notes that everything was sent.
func (tx *Tx) DoneAnnouncement(announcement string) error {
	_, err := tx.Exec(`UPDATE announcements SET done = 1 WHERE id = $1`, announcement)
	return err
}

// OpenPlaces lists where an announcement was not sent to yet.
func (tx *Tx) OpenPlaces(announcement string, limit int) ([]string, error) {
	var out []string
	err := tx.Each(`SELECT place FROM announcement_places WHERE announcement = $1 AND room = 0 AND failed = '' ORDER BY place LIMIT $2`,
		[]any{announcement, limit}, func(r *Row) error {
			var s string
			err := r.Scan(&s)
			out = append(out, s)
			return err
		})
	return out, err
}

// SentPlace notes what became of an announcement at a place.
func (tx *Tx) SentPlace(announcement string, p AnnouncementPlace) error {
	_, err := tx.Exec(`UPDATE announcement_places SET room = $3, event_id = $4, ord = $5, failed = $6 WHERE announcement = $1 AND place = $2`,
		announcement, p.Place, p.Room, p.EventID, p.Ord, p.Failed)
	return err
}

// AnnouncementPlaces lists where an announcement goes to.
func (tx *Tx) AnnouncementPlaces(announcement string) ([]AnnouncementPlace, error) {
	var out []AnnouncementPlace
	err := tx.Each(`SELECT place, room, event_id, ord, failed FROM announcement_places WHERE announcement = $1 ORDER BY place`,
		[]any{announcement}, func(r *Row) error {
			var p AnnouncementPlace
			err := r.Scan(&p.Place, &p.Room, &p.EventID, &p.Ord, &p.Failed)
			out = append(out, p)
			return err
		})
	return out, err
}

// AnnouncementReaders counts who is to read an announcement (members of its rooms, but for the service account) and who has, by public read
// receipts on it or on what came later.
func (tx *Tx) AnnouncementReaders(announcement string, service id.UserID) (recipients, read int64, err error) {
	const members = `FROM announcement_places p JOIN memberships m ON m.room = p.room AND m.membership IN (1, 2) AND m.usr <> $2
		WHERE p.announcement = $1 AND p.room <> 0`
	if _, err := tx.Get([]any{&recipients}, `SELECT count(DISTINCT m.usr) `+members, announcement, service); err != nil {
		return 0, 0, err
	}
	_, err = tx.Get([]any{&read}, `SELECT count(DISTINCT m.usr) `+members+` AND EXISTS
		(SELECT 1 FROM receipts r WHERE r.usr = m.usr AND r.room = p.room AND r.type = 1 AND r.ord >= p.ord)`, announcement, service)
	return recipients, read, err
}

// FoldName brings a name into the form in which such names are compared.
func FoldName(s string) string { return strings.ToLower(strings.TrimSpace(s)) }
