package store

import "maunium.net/go/mautrix/id"

// Room is a row of rooms.
type Room struct {
	NID          int64
	RoomID       string
	Version      string
	Creator      string
	Created      int64 // milliseconds since 1970
	StateVersion int64 // counts state changes
	LastPos      int64 // position of the last event
	Depth        int64
	Extremities  []byte
	Published    bool
	Blocked      bool
	Type         *string // set for new rooms alone; reading leaves it out
}

const roomSelect = `SELECT nid, room_id, version, creator, created, state_version, last_pos, depth, extremities, published, blocked FROM rooms `

func scanRoom(r *Row) (Room, error) {
	var m Room
	return m, r.Scan(&m.NID, &m.RoomID, &m.Version, &m.Creator, &m.Created, &m.StateVersion, &m.LastPos, &m.Depth, &m.Extremities, &m.Published, &m.Blocked)
}

func (tx *Tx) rooms(sql string, args ...any) ([]Room, error) {
	var out []Room
	err := tx.Each(sql, args, func(r *Row) error {
		m, err := scanRoom(r)
		out = append(out, m)
		return err
	})
	return out, err
}

// RoomByID finds a room; ok is false when there is none.
func (tx *Tx) RoomByID(roomID string) (Room, bool, error) {
	rooms, err := tx.rooms(roomSelect+`WHERE room_id = $1`, roomID)
	if err != nil || len(rooms) == 0 {
		return Room{}, false, err
	}
	return rooms[0], true, nil
}

// RoomsByNID reads rooms by number.
func (tx *Tx) RoomsByNID(nids []int64) ([]Room, error) {
	return tx.rooms(roomSelect+`WHERE nid IN @int($1)`, nids)
}

// NextRoomNID is the number a new room gets; the log's head must be locked.
func (tx *Tx) NextRoomNID() (int64, error) {
	if err := tx.LockHead(); err != nil {
		return 0, err
	}
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT coalesce(max(nid), 0) + 1 FROM
		(SELECT max(nid) AS nid FROM rooms UNION ALL SELECT max(nid) AS nid FROM room_deletions) n`)
	return n, err
}

var roomCols = []Col{{"nid", Int}, {"room_id", Text}, {"version", Text}, {"creator", Text}, {"created", Int}, {"state_version", Int},
	{"last_pos", Int}, {"depth", Int}, {"extremities", Bytes}, {"published", Int}, {"room_type", Text}}

var moveCols = []Col{{"nid", Int}, {"state_version", Int}, {"last_pos", Int}, {"depth", Int}, {"extremities", Bytes}}

var moveRooms = [...]*insertSQL{
	dialectSQLite: {cols: moveCols, sql: `UPDATE rooms SET state_version = ?2, last_pos = ?3, depth = ?4, extremities = ?5 WHERE nid = ?1`},
	dialectPostgres: {cols: moveCols, sql: `UPDATE rooms AS r SET state_version = v.state_version, last_pos = v.last_pos, depth = v.depth, extremities = v.extremities
		FROM (SELECT unnest($1::bigint[]) AS nid, unnest($2::bigint[]) AS state_version, unnest($3::bigint[]) AS last_pos, unnest($4::bigint[]) AS depth,
		unnest($5::bytea[]) AS extremities) AS v WHERE r.nid = v.nid`},
}

// MoveRooms moves the heads of rooms that exist: those that Stand has read.
func (tx *Tx) MoveRooms(rooms []Room) error {
	if len(rooms) == 0 {
		return nil
	}
	return tx.c.insert(moveRooms[tx.c.dialect()], len(rooms), func(i int) []any {
		r := &rooms[i]
		return []any{r.NID, r.StateVersion, r.LastPos, r.Depth, r.Extremities}
	})
}

// SaveRooms adds new rooms.
func (tx *Tx) SaveRooms(rooms []Room) error {
	return tx.Insert("rooms", roomCols, len(rooms), func(i int) []any {
		r := &rooms[i]
		return []any{r.NID, r.RoomID, r.Version, r.Creator, r.Created, r.StateVersion, r.LastPos, r.Depth, r.Extremities, r.Published, r.Type}
	}, "")
}

// StateRow is one entry of a room's state.
type StateRow struct {
	Room           int64
	Type, StateKey string
	Ord            int64
	NID            int64 // 0 where a resolution removed the entry
}

var (
	stateCols  = []Col{{"room", Int}, {"type", Text}, {"state_key", Text}, {"nid", Int}}
	changeCols = []Col{{"room", Int}, {"type", Text}, {"state_key", Text}, {"ord", Int}, {"nid", Int}}
)

// SaveState writes state changes: all of them into the history, the last of each place into the current state.
func (tx *Tx) SaveState(changes []StateRow) error {
	err := tx.Insert("state_changes", changeCols, len(changes), func(i int) []any {
		c := &changes[i]
		return []any{c.Room, c.Type, c.StateKey, c.Ord, nonZero(c.NID)}
	}, "")
	if err != nil {
		return err
	}
	type place struct {
		room      int64
		typ, skey string
	}
	last := make(map[place]int, len(changes))
	for i, c := range changes {
		last[place{c.Room, c.Type, c.StateKey}] = i
	}
	now := make([]*StateRow, 0, len(last))
	for i := range changes {
		c := &changes[i]
		if last[place{c.Room, c.Type, c.StateKey}] == i {
			now = append(now, c)
		}
	}
	return tx.Insert("room_state", stateCols, len(now), func(i int) []any {
		return []any{now[i].Room, now[i].Type, now[i].StateKey, now[i].NID}
	}, "ON CONFLICT (room, type, state_key) DO UPDATE SET nid = excluded.nid")
}

// CurrentState reads the numbers of a room's current state events.
func (tx *Tx) CurrentState(room int64, fn func(evType, stateKey string, nid int64)) error {
	return tx.Each(`SELECT type, state_key, nid FROM room_state WHERE room = $1 AND type <> 'm.room.member'`, []any{room}, stateFn(fn))
}

func stateFn(fn func(evType, stateKey string, nid int64)) func(*Row) error {
	return func(r *Row) error {
		var t, k string
		var n *int64
		if err := r.Scan(&t, &k, &n); err != nil {
			return err
		}
		if n == nil {
			fn(t, k, 0)
		} else {
			fn(t, k, *n)
		}
		return nil
	}
}

// StateAt reads the state of a room after the event at ord. Entries that a resolution removed are left out.
func (tx *Tx) StateAt(room, ord int64, fn func(evType, stateKey string, nid int64)) error {
	return tx.Each(`SELECT c.type, c.state_key, c.nid FROM state_changes c
		JOIN (SELECT type, state_key, max(ord) AS ord FROM state_changes WHERE room = $1 AND ord <= $2 GROUP BY type, state_key) m
		ON c.type = m.type AND c.state_key = m.state_key AND c.ord = m.ord
		WHERE c.room = $1 AND c.nid IS NOT NULL`, []any{room, ord}, stateFn(fn))
}

// StateAtOne reads one entry of the state after the event at ord; 0 when there was none.
func (tx *Tx) StateAtOne(room, ord int64, evType, stateKey string) (int64, error) {
	var n *int64
	found, err := tx.Get([]any{&n}, `SELECT nid FROM state_changes WHERE room = $1 AND type = $2 AND state_key = $3 AND ord <= $4
		ORDER BY ord DESC LIMIT 1`, room, evType, stateKey, ord)
	if err != nil || !found || n == nil {
		return 0, err
	}
	return *n, nil
}

// StateChanges reads what changed in a room's state with after < ord <= upto, in order; nid is 0 for what was removed.
func (tx *Tx) StateChanges(room, after, upto int64, fn func(evType, stateKey string, nid int64)) error {
	return tx.Each(`SELECT type, state_key, nid FROM state_changes WHERE room = $1 AND ord > $2 AND ord <= $3 ORDER BY ord`,
		[]any{room, after, upto}, stateFn(fn))
}

// StateHistory reads all values that one entry of a room's state has had, oldest first.
func (tx *Tx) StateHistory(room int64, evType, stateKey string, fn func(ord, nid int64)) error {
	return tx.Each(`SELECT ord, coalesce(nid, 0) FROM state_changes WHERE room = $1 AND type = $2 AND state_key = $3 ORDER BY ord`,
		[]any{room, evType, stateKey}, func(r *Row) error {
			var o, n int64
			if err := r.Scan(&o, &n); err != nil {
				return err
			}
			fn(o, n)
			return nil
		})
}

// Membership is a row of memberships.
type Membership struct {
	User       string
	Room       int64
	Membership int64
	NID        int64
	Pos        int64
	Forgotten  bool
}

var membershipCols = []Col{{"usr", Text}, {"room", Int}, {"membership", Int}, {"nid", Int}, {"pos", Int}, {"forgotten", Int}}

// SaveMemberships writes memberships; each (user, room) may stand in the list once. A forgotten room stays forgotten when
// its user is banned (3) or unbanned (4).
func (tx *Tx) SaveMemberships(ms []Membership) error {
	return tx.Insert("memberships", membershipCols, len(ms), func(i int) []any {
		m := &ms[i]
		return []any{m.User, m.Room, m.Membership, m.NID, m.Pos, m.Forgotten}
	}, `ON CONFLICT (usr, room) DO UPDATE SET membership = excluded.membership, nid = excluded.nid, pos = excluded.pos,
		forgotten = CASE WHEN excluded.membership IN (3, 4) THEN memberships.forgotten ELSE excluded.forgotten END`)
}

// RoomMembers reads all memberships of a room.
func (tx *Tx) RoomMembers(room int64, fn func(user string, membership, nid int64)) error {
	return tx.Each(`SELECT usr, membership, nid FROM memberships WHERE room = $1`, []any{room}, func(r *Row) error {
		var u string
		var m, n int64
		if err := r.Scan(&u, &m, &n); err != nil {
			return err
		}
		fn(u, m, n)
		return nil
	})
}

// UserRoom is a membership with what is known of its room.
type UserRoom struct {
	Membership
	RoomID  string
	LastPos int64
	Type    *string // nil: nobody has looked yet
}

// UserRooms reads all memberships of a user.
func (tx *Tx) UserRooms(user string) ([]UserRoom, error) {
	var out []UserRoom
	err := tx.Each(`SELECT m.room, m.membership, m.nid, m.pos, m.forgotten, r.room_id, r.last_pos, r.room_type
		FROM memberships m JOIN rooms r ON r.nid = m.room WHERE m.usr = $1`, []any{user}, func(r *Row) error {
		u := UserRoom{Membership: Membership{User: user}}
		err := r.Scan(&u.Room, &u.Membership.Membership, &u.NID, &u.Pos, &u.Forgotten, &u.RoomID, &u.LastPos, &u.Type)
		out = append(out, u)
		return err
	})
	return out, err
}

// RoomsWithoutType gives those of some rooms whose type nobody has looked at.
func (tx *Tx) RoomsWithoutType(rooms []int64) (out []int64, err error) {
	return tx.slidingIDs(`SELECT nid FROM rooms WHERE nid IN @int($1) AND room_type IS NULL`, rooms)
}

// SetRoomType notes the type that a room was made with.
func (tx *Tx) SetRoomType(room int64, roomType string) error {
	_, err := tx.Exec(`UPDATE rooms SET room_type = $2 WHERE nid = $1`, room, roomType)
	return err
}

// ForgetRoom marks a membership as forgotten, and removes what the user keeps for the room. It tells whether there was
// one that may be.
func (tx *Tx) ForgetRoom(user string, room int64) (bool, error) {
	n, err := tx.Exec(`UPDATE memberships SET forgotten = 1 WHERE usr = $1 AND room = $2 AND membership IN (3, 4)`, user, room)
	if err != nil || n == 0 {
		return false, err
	}
	return true, tx.ForgetRoomAccountData(id.UserID(user), room)
}

// SharedUsers lists the users that are joined to a room with this one.
func (tx *Tx) SharedUsers(user string, fn func(other string)) error {
	return tx.Each(`SELECT DISTINCT o.usr FROM memberships m JOIN memberships o ON o.room = m.room AND o.membership = 2
		WHERE m.usr = $1 AND m.membership = 2`, []any{user}, func(r *Row) error {
		var o string
		if err := r.Scan(&o); err != nil {
			return err
		}
		fn(o)
		return nil
	})
}

// Alias is a row of room_aliases.
type Alias struct {
	Alias   string
	Room    int64
	Creator string
	Created int64
}

// InsertAlias claims an alias; false means that it is taken.
func (tx *Tx) InsertAlias(a Alias) (bool, error) {
	n, err := tx.Exec(`INSERT INTO room_aliases (alias, room, creator, created) VALUES ($1, $2, $3, $4) ON CONFLICT (alias) DO NOTHING`,
		a.Alias, a.Room, a.Creator, a.Created)
	return n > 0, err
}
