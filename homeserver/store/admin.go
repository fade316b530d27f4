package store

import (
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// What follows are the lists of the admin API.

// UserQuery asks for a page of the accounts.
type UserQuery struct {
	Name        string // part of the user id or the display name, in any case; ""
	UserID      string // part of the user id; ""
	Guests      bool
	Deactivated *bool // nil: both
	Admins      *bool
	Locked      *bool
	NotTypes    []string // user types left out; "" stands for people
	Order       string   // one of UserOrders
	Backwards   bool
	From, Limit int64
}

// userOrders are the columns that accounts can be ordered by.
var userOrders = map[string]string{
	"name": "u.user_id", "is_guest": "u.guest", "admin": "u.admin", "user_type": "u.user_type", "deactivated": "u.deactivated",
	"displayname": "p.displayname", "avatar_url": "p.avatar_url", "creation_ts": "u.created", "last_seen_ts": "last_seen", "locked": "u.locked",
	"shadow_banned": "u.user_id",
}

// UserOrder tells whether accounts can be ordered by a name.
func UserOrder(name string) bool { _, ok := userOrders[name]; return ok }

// ListedUser is an account with its profile.
type ListedUser struct {
	User
	DisplayName, AvatarURL *string
	LastSeen               *int64 // ms; nil: never
}

// ListUsers lists accounts, and counts all that the query finds.
func (tx *Tx) ListUsers(q UserQuery) (out []ListedUser, total int64, err error) {
	where, args := q.where()
	from := ` FROM users u LEFT JOIN profiles p ON p.usr = u.user_id` + where
	if _, err := tx.Get([]any{&total}, `SELECT count(*)`+from, args...); err != nil {
		return nil, 0, err
	}
	order, dir := userOrders[q.Order], " ASC"
	if order == "" {
		order = "u.user_id"
	}
	if q.Backwards {
		dir = " DESC"
	}
	n := len(args)
	sql := `SELECT ` + userColumns + `, p.displayname, p.avatar_url, (SELECT max(d.last_seen) FROM devices d WHERE d.usr = u.user_id) AS last_seen` + from +
		` ORDER BY ` + order + dir + ` NULLS LAST, u.user_id LIMIT $` + fmt.Sprint(n+1) + ` OFFSET $` + fmt.Sprint(n+2)
	err = tx.Each(sql, append(args, q.Limit, q.From), func(r *Row) error {
		var u ListedUser
		err := r.Scan(append(u.dest(), &u.DisplayName, &u.AvatarURL, &u.LastSeen)...)
		out = append(out, u)
		return err
	})
	return out, total, err
}

func (q *UserQuery) where() (string, []any) {
	var conds []string
	var args []any
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, strings.ReplaceAll(cond, "?", fmt.Sprintf("$%d", len(args))))
	}
	like := func(s string) string { return "%" + likeSpecial.Replace(strings.ToLower(s)) + "%" }
	if q.Name != "" {
		add(`(lower(u.user_id) LIKE ? ESCAPE '!' OR lower(p.displayname) LIKE ? ESCAPE '!' OR p.folded LIKE ? ESCAPE '!')`, like(q.Name))
	} else if q.UserID != "" {
		add(`lower(u.user_id) LIKE ? ESCAPE '!'`, like(q.UserID))
	}
	if !q.Guests {
		conds = append(conds, `u.guest = 0`)
	}
	for _, f := range []struct {
		col string
		v   *bool
	}{{"u.deactivated", q.Deactivated}, {"u.admin", q.Admins}, {"u.locked", q.Locked}} {
		if f.v != nil {
			add(f.col+` = ?`, *f.v)
		}
	}
	for _, t := range q.NotTypes {
		add(`u.user_type <> ?`, t)
	}
	if len(conds) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(conds, " AND "), args
}

// likeSpecial keeps the special characters of LIKE from their meaning.
var likeSpecial = strings.NewReplacer("!", "!!", "%", "!%", "_", "!_")

// SetUserType changes the user type of an account; false means that there is no such account.
func (tx *Tx) SetUserType(user id.UserID, userType string) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET user_type = $2 WHERE user_id = $1`, user, userType)
	return n > 0, err
}

// ReactivateUser gives an account that was deactivated back; false means that it was not.
func (tx *Tx) ReactivateUser(user id.UserID) (bool, error) {
	n, err := tx.Exec(`UPDATE users SET deactivated = 0, erased = 0 WHERE user_id = $1 AND deactivated = 1`, user)
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.announceErased(user)
}

// UserMemberships lists the rooms of a user with the membership, by room id; forgotten rooms are left out.
func (tx *Tx) UserMemberships(user id.UserID, fn func(roomID string, membership int64)) error {
	return tx.Each(`SELECT r.room_id, m.membership FROM memberships m JOIN rooms r ON r.nid = m.room
		WHERE m.usr = $1 AND m.forgotten = 0 ORDER BY r.room_id`, []any{user}, func(r *Row) error {
		var roomID string
		var m int64
		if err := r.Scan(&roomID, &m); err != nil {
			return err
		}
		fn(roomID, m)
		return nil
	})
}

// UserAccountData reads all account data of a user; roomID is "" for that of no room.
func (tx *Tx) UserAccountData(user id.UserID, fn func(roomID, dataType string, body []byte)) error {
	return tx.Each(`SELECT coalesce(r.room_id, ''), d.type, d.body FROM account_data d LEFT JOIN rooms r ON r.nid = d.room
		WHERE d.usr = $1 AND (d.room = 0 OR r.nid IS NOT NULL)`, []any{user}, func(r *Row) error {
		var roomID, dataType string
		var body Content
		if err := r.Scan(&roomID, &dataType, &body); err != nil {
			return err
		}
		fn(roomID, dataType, body)
		return nil
	})
}

// ListedRoom is a room with what the database can count of it.
type ListedRoom struct {
	Room
	Joined, JoinedLocal, State int64
}

// ListRooms lists all rooms. ours is the end of local user ids, with the colon.
func (tx *Tx) ListRooms(ours string) ([]ListedRoom, error) {
	var out []ListedRoom
	err := tx.Each(`SELECT r.nid, r.room_id, r.version, r.creator, r.created, r.published, r.blocked,
			coalesce(m.joined, 0), coalesce(m.local, 0), coalesce(s.entries, 0)
		FROM rooms r
		LEFT JOIN (SELECT room, count(*) AS joined, sum(CASE WHEN usr LIKE $1 ESCAPE '!' THEN 1 ELSE 0 END) AS local FROM memberships
			WHERE membership = 2 GROUP BY room) m ON m.room = r.nid
		LEFT JOIN (SELECT room, count(*) AS entries FROM room_state GROUP BY room) s ON s.room = r.nid
		ORDER BY r.nid`, []any{"%" + likeSpecial.Replace(ours)}, func(r *Row) error {
		var l ListedRoom
		err := r.Scan(&l.NID, &l.RoomID, &l.Version, &l.Creator, &l.Created, &l.Published, &l.Blocked, &l.Joined, &l.JoinedLocal, &l.State)
		out = append(out, l)
		return err
	})
	return out, err
}

const mediaColumns = `origin, media_id, usr, created, expires, type, filename, size, sha256, public, quarantined, quarantined_by, protected, accessed`

// ListedMedia is a file as administrators see it.
type ListedMedia struct {
	Media
	QuarantinedBy string
	Protected     bool
}

func (m *ListedMedia) dest() []any {
	return []any{&m.Origin, &m.ID, &m.User, &m.Created, &m.Expires, &m.Type, &m.Filename, &m.Size, &m.SHA256, &m.Public, &m.Quarantined, &m.QuarantinedBy, &m.Protected, &m.Accessed}
}

// mediaOrders are the columns that a user's files can be ordered by.
var mediaOrders = map[string]string{
	"media_id": "media_id", "upload_name": "filename", "created_ts": "created", "last_access_ts": "accessed", "media_length": "size",
	"media_type": "type", "quarantined_by": "quarantined_by", "safe_from_quarantine": "protected",
}

// MediaOrder tells whether files can be ordered by a name.
func MediaOrder(name string) bool { _, ok := mediaOrders[name]; return ok }

// MediaOfUser lists the files of a user, and counts all.
func (tx *Tx) MediaOfUser(user id.UserID, order string, backwards bool, from, limit int64) (out []ListedMedia, total int64, err error) {
	if _, err := tx.Get([]any{&total}, `SELECT count(*) FROM media WHERE usr = $1 AND usr <> '' AND expires IS NULL`, user); err != nil {
		return nil, 0, err
	}
	col, dir := mediaOrders[order], " ASC"
	if col == "" {
		col = "created"
	}
	if backwards {
		dir = " DESC"
	}
	err = tx.Each(`SELECT `+mediaColumns+` FROM media WHERE usr = $1 AND usr <> '' AND expires IS NULL ORDER BY `+col+dir+`, media_id LIMIT $2 OFFSET $3`,
		[]any{user, limit, from}, func(r *Row) error {
			var m ListedMedia
			err := r.Scan(m.dest()...)
			out = append(out, m)
			return err
		})
	return out, total, err
}

// MediaInfo reads a file with what administrators noted of it.
func (tx *Tx) MediaInfo(origin, mediaID string) (m ListedMedia, ok bool, err error) {
	ok, err = tx.Get(m.dest(), `SELECT `+mediaColumns+` FROM media WHERE origin = $1 AND media_id = $2`, origin, mediaID)
	return m, ok, err
}

// HideMedia hides files from everybody (by is who does) or shows them again (by is ""); protected ones are not hidden. It
// returns how many it changed.
func (tx *Tx) HideMedia(origin string, mediaIDs []string, by string) (int64, error) {
	if by == "" {
		return tx.Exec(`UPDATE media SET quarantined = 0, quarantined_by = '' WHERE origin = $1 AND media_id IN @text($2) AND quarantined = 1`, origin, mediaIDs)
	}
	return tx.Exec(`UPDATE media SET quarantined = 1, quarantined_by = $3 WHERE origin = $1 AND media_id IN @text($2) AND quarantined = 0 AND protected = 0`,
		origin, mediaIDs, by)
}

// HideMediaOf hides all files of a user; protected ones are passed over.
func (tx *Tx) HideMediaOf(user id.UserID, by string) (int64, error) {
	return tx.Exec(`UPDATE media SET quarantined = 1, quarantined_by = $2 WHERE usr = $1 AND usr <> '' AND quarantined = 0 AND protected = 0`, user, by)
}

// ProtectMedia keeps a file from being hidden with all files of a room or user; false means that there is no such file.
func (tx *Tx) ProtectMedia(origin, mediaID string, on bool) (bool, error) {
	n, err := tx.Exec(`UPDATE media SET protected = $3 WHERE origin = $1 AND media_id = $2`, origin, mediaID, on)
	return n > 0, err
}

// DeleteMedia removes files and gives the hashes of their contents, which may still be those of others. Where there is an
// archive, it keeps them.
func (tx *Tx) DeleteMedia(origin string, mediaIDs []string) (deleted []string, hashes [][]byte, err error) {
	if err := tx.archiveMedia(origin, mediaIDs); err != nil {
		return nil, nil, err
	}
	err = tx.Each(`DELETE FROM media WHERE origin = $1 AND media_id IN @text($2) AND usr <> '' RETURNING media_id, sha256`,
		[]any{origin, mediaIDs}, func(r *Row) error {
			var mediaID string
			var hash []byte
			if err := r.Scan(&mediaID, &hash); err != nil {
				return err
			}
			deleted = append(deleted, mediaID)
			if hash != nil {
				hashes = append(hashes, hash)
			}
			return nil
		})
	return deleted, hashes, err
}

// MediaUse is how much a user has uploaded.
type MediaUse struct {
	User        id.UserID
	DisplayName *string
	Count, Size int64
}

// MediaStatistics sums uploads by user. order is media_length, media_count, user_id or displayname.
func (tx *Tx) MediaStatistics(term string, fromTS, untilTS int64, order string, backwards bool, from, limit int64) (out []MediaUse, total int64, err error) {
	col := map[string]string{"media_length": "size", "media_count": "n", "user_id": "usr", "displayname": "displayname"}[order]
	if col == "" {
		col = "usr"
	}
	if backwards {
		col += " DESC"
	}
	const sums = ` FROM (SELECT m.usr, p.displayname, count(*) AS n, coalesce(sum(m.size), 0) AS size FROM media m LEFT JOIN profiles p ON p.usr = m.usr
		WHERE m.usr <> '' AND m.expires IS NULL AND m.created >= $1 AND m.created <= $2
		AND ($3 = '' OR lower(m.usr) LIKE $3 ESCAPE '!' OR lower(p.displayname) LIKE $3 ESCAPE '!') GROUP BY m.usr, p.displayname) s`
	pattern := ""
	if term != "" {
		pattern = "%" + likeSpecial.Replace(strings.ToLower(term)) + "%"
	}
	if _, err := tx.Get([]any{&total}, `SELECT count(*)`+sums, fromTS, untilTS, pattern); err != nil {
		return nil, 0, err
	}
	err = tx.Each(`SELECT usr, displayname, n, size`+sums+` ORDER BY `+col+`, usr LIMIT $4 OFFSET $5`, []any{fromTS, untilTS, pattern, limit, from}, func(r *Row) error {
		var u MediaUse
		err := r.Scan(&u.User, &u.DisplayName, &u.Count, &u.Size)
		out = append(out, u)
		return err
	})
	return out, total, err
}

// LargestRooms gives the rooms whose events take most room in the database, by the bytes of their bodies.
func (tx *Tx) LargestRooms(limit int, fn func(roomID string, size int64)) error {
	return tx.Each(`SELECT r.room_id, sum(length(e.body)) AS size FROM events e JOIN rooms r ON r.nid = e.room GROUP BY r.room_id ORDER BY size DESC LIMIT $1`,
		[]any{limit}, func(r *Row) error {
			var roomID string
			var size int64
			if err := r.Scan(&roomID, &size); err != nil {
				return err
			}
			fn(roomID, size)
			return nil
		})
}

// ReportQuery asks for a page of reports.
type ReportQuery struct {
	Users        bool // reports of users, not of events
	Backwards    bool // newest first
	UserID       string
	RoomID       string
	SenderUserID string // who is reported
	From, Limit  int64
}

const reportWhere = ` FROM reports WHERE (event_id <> '' AND $4 = 0 OR event_id = '' AND room_id = '' AND $4 = 1)
	AND ($1 = '' OR reporter LIKE $1 ESCAPE '!') AND ($2 = '' OR room_id LIKE $2 ESCAPE '!') AND ($3 = '' OR usr LIKE $3 ESCAPE '!')`

// ListReports lists reports of events or of users, and counts all that the query finds.
func (tx *Tx) ListReports(q ReportQuery) (out []Report, total int64, err error) {
	like := func(s string) string {
		if s == "" {
			return ""
		}
		return "%" + likeSpecial.Replace(s) + "%"
	}
	args := []any{like(q.UserID), like(q.RoomID), like(q.SenderUserID), q.Users}
	if _, err := tx.Get([]any{&total}, `SELECT count(*)`+reportWhere, args...); err != nil {
		return nil, 0, err
	}
	dir := " ASC"
	if q.Backwards {
		dir = " DESC"
	}
	err = tx.Each(`SELECT id, created, reporter, room_id, event_id, usr, reason, resolved`+reportWhere+` ORDER BY created`+dir+`, id LIMIT $5 OFFSET $6`,
		append(args, q.Limit, q.From), func(row *Row) error {
			var r Report
			err := row.Scan(&r.ID, &r.Created, &r.Reporter, &r.Room, &r.Event, &r.User, &r.Reason, &r.Resolved)
			out = append(out, r)
			return err
		})
	return out, total, err
}

// Report reads one report.
func (tx *Tx) Report(reportID int64) (r Report, ok bool, err error) {
	ok, err = tx.Get([]any{&r.ID, &r.Created, &r.Reporter, &r.Room, &r.Event, &r.User, &r.Reason, &r.Resolved},
		`SELECT id, created, reporter, room_id, event_id, usr, reason, resolved FROM reports WHERE id = $1`, reportID)
	return r, ok, err
}

// DeleteReport removes a report; false means that there was none.
func (tx *Tx) DeleteReport(reportID int64) (bool, error) {
	n, err := tx.Exec(`DELETE FROM reports WHERE id = $1`, reportID)
	return n > 0, err
}

// RegistrationTokens lists registration tokens by token; valid nil means all.
func (tx *Tx) RegistrationTokens(valid *bool, now int64) (out []RegistrationToken, err error) {
	sql, args := `SELECT token, created, expires, uses_allowed, pending, completed FROM registration_tokens`, []any(nil)
	if valid != nil {
		sql += ` WHERE (CASE WHEN ` + tokenUsable + ` THEN 1 ELSE 0 END) = $1`
		args = []any{*valid, now}
	}
	err = tx.Each(sql+` ORDER BY token`, args, func(r *Row) error {
		var t RegistrationToken
		err := r.Scan(&t.Token, &t.Created, &t.Expires, &t.UsesAllowed, &t.Pending, &t.Completed)
		out = append(out, t)
		return err
	})
	return out, err
}

// UpdateRegistrationToken changes the limits of a token; false means that there is none.
func (tx *Tx) UpdateRegistrationToken(t RegistrationToken) (bool, error) {
	n, err := tx.Exec(`UPDATE registration_tokens SET expires = $2, uses_allowed = $3 WHERE token = $1`, t.Token, t.Expires, t.UsesAllowed)
	return n > 0, err
}

// DeleteRegistrationToken removes a token; false means that there was none.
func (tx *Tx) DeleteRegistrationToken(token string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM registration_tokens WHERE token = $1`, token)
	return n > 0, err
}

// LimitDeviceSessions sets when the tokens of a device end.
func (tx *Tx) LimitDeviceSessions(user id.UserID, device id.DeviceID, at int64) error {
	_, err := tx.Exec(`UPDATE sessions SET expires = $3 WHERE usr = $1 AND device_id = $2 AND (expires IS NULL OR expires > $3)`, user, device, at)
	return err
}

// CountDevices counts the devices of some users.
func (tx *Tx) CountDevices(users []string) (n int64, err error) {
	_, err = tx.Get([]any{&n}, `SELECT count(*) FROM devices WHERE usr IN @text($1)`, users)
	return n, err
}
