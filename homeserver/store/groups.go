package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// CompanyGroup is a group or unit of the company as its source told of it last.
type CompanyGroup struct {
	Source, ID string
	Kind       string // group, unit
	Name       string
	DN         string
	Parent     string // id of the unit that it lies in, "" for none
	Gone       bool   // its source has it no more, and its rooms do not know yet
	Dirty      int64  // changes whose rooms were not looked at yet
}

const companyGroupColumns = `source, id, kind, name, dn, parent, gone, dirty`

func (g *CompanyGroup) dest() []any {
	return []any{&g.Source, &g.ID, &g.Kind, &g.Name, &g.DN, &g.Parent, &g.Gone, &g.Dirty}
}

// CompanyGroups lists the groups of all sources.
func (tx *Tx) CompanyGroups() ([]CompanyGroup, error) {
	var out []CompanyGroup
	err := tx.Each(`SELECT `+companyGroupColumns+` FROM company_groups ORDER BY source, id`, nil, func(r *Row) error {
		var g CompanyGroup
		err := r.Scan(g.dest()...)
		out = append(out, g)
		return err
	})
	return out, err
}

// CompanyGroup reads a group.
func (tx *Tx) CompanyGroup(source, groupID string) (CompanyGroup, bool, error) {
	var g CompanyGroup
	found, err := tx.Get(g.dest(), `SELECT `+companyGroupColumns+` FROM company_groups WHERE source = $1 AND id = $2`, source, groupID)
	return g, found, err
}

// LockCompanyGroup reads a group and holds its row to the end of the transaction.
func (tx *Tx) LockCompanyGroup(source, groupID string) (CompanyGroup, bool, error) {
	var g CompanyGroup
	found, err := tx.Get(g.dest(), `SELECT `+companyGroupColumns+` FROM company_groups WHERE source = $1 AND id = $2 @forupdate`, source, groupID)
	return g, found, err
}

// CompanyGroupMembers reads who is in the groups by name: in one, or in all where source and group id are "".
func (tx *Tx) CompanyGroupMembers(source, groupID string, fn func(source, groupID string, user id.UserID)) error {
	return tx.Each(`SELECT source, id, usr FROM company_group_members WHERE ($1 = '' AND $2 = '') OR (source = $1 AND id = $2)`,
		[]any{source, groupID}, func(r *Row) error {
			var s, g string
			var u id.UserID
			if err := r.Scan(&s, &g, &u); err != nil {
				return err
			}
			fn(s, g, u)
			return nil
		})
}

// CompanyGroupNested reads which groups lie in others: those of one, or of all where source and group id are "".
func (tx *Tx) CompanyGroupNested(source, groupID string, fn func(source, groupID, child string)) error {
	return tx.Each(`SELECT source, id, child FROM company_group_nested WHERE ($1 = '' AND $2 = '') OR (source = $1 AND id = $2)
		ORDER BY source, id, child`, []any{source, groupID}, func(r *Row) error {
		var s, g, c string
		if err := r.Scan(&s, &g, &c); err != nil {
			return err
		}
		fn(s, g, c)
		return nil
	})
}

// SaveCompanyGroup writes a group's own row and marks it as changed.
func (tx *Tx) SaveCompanyGroup(g CompanyGroup) error {
	_, err := tx.Exec(`INSERT INTO company_groups (source, id, kind, name, dn, parent, gone, dirty) VALUES ($1, $2, $3, $4, $5, $6, $7, 1)
		ON CONFLICT (source, id) DO UPDATE SET kind = excluded.kind, name = excluded.name, dn = excluded.dn, parent = excluded.parent,
		gone = excluded.gone, dirty = company_groups.dirty + 1`, g.Source, g.ID, g.Kind, g.Name, g.DN, g.Parent, g.Gone)
	if err != nil {
		return fmt.Errorf("save group %s of %s: %w", g.ID, g.Source, err)
	}
	return nil
}

// TouchCompanyGroup marks a group as changed.
func (tx *Tx) TouchCompanyGroup(source, groupID string) error {
	_, err := tx.Exec(`UPDATE company_groups SET dirty = dirty + 1 WHERE source = $1 AND id = $2`, source, groupID)
	return err
}

// CleanCompanyGroups marks groups as looked at, unless they changed meanwhile; those that are gone are dropped.
func (tx *Tx) CleanCompanyGroups(groups []CompanyGroup) error {
	for _, g := range groups {
		sql := `UPDATE company_groups SET dirty = 0 WHERE source = $1 AND id = $2 AND dirty = $3`
		if g.Gone {
			sql = `DELETE FROM company_groups WHERE source = $1 AND id = $2 AND dirty = $3 AND gone = 1`
		}
		if _, err := tx.Exec(sql, g.Source, g.ID, g.Dirty); err != nil {
			return err
		}
	}
	return nil
}

// DirtyCompanyGroups tells whether the rooms of a group wait to be looked at.
func (tx *Tx) DirtyCompanyGroups() (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM company_groups WHERE dirty > 0 LIMIT 1`)
}

var groupMemberCols = []Col{{"source", Text}, {"id", Text}, {"usr", Text}}

// AddCompanyGroupMembers puts users into a group; who is in it stays.
func (tx *Tx) AddCompanyGroupMembers(source, groupID string, users []id.UserID) error {
	return tx.Insert("company_group_members", groupMemberCols, len(users), func(i int) []any {
		return []any{source, groupID, string(users[i])}
	}, "ON CONFLICT (source, id, usr) DO NOTHING")
}

// RemoveCompanyGroupMembers takes users out of a group.
func (tx *Tx) RemoveCompanyGroupMembers(source, groupID string, users []id.UserID) error {
	if len(users) == 0 {
		return nil
	}
	_, err := tx.Exec(`DELETE FROM company_group_members WHERE source = $1 AND id = $2 AND usr IN @text($3)`, source, groupID, users)
	return err
}

var groupNestedCols = []Col{{"source", Text}, {"id", Text}, {"child", Text}}

// SetCompanyGroupNested says which groups lie in one.
func (tx *Tx) SetCompanyGroupNested(source, groupID string, children []string) error {
	if _, err := tx.Exec(`DELETE FROM company_group_nested WHERE source = $1 AND id = $2`, source, groupID); err != nil {
		return err
	}
	return tx.Insert("company_group_nested", groupNestedCols, len(children), func(i int) []any {
		return []any{source, groupID, children[i]}
	}, "ON CONFLICT (source, id, child) DO NOTHING")
}

// CompanyGroupsOf lists the groups that users are in by name.
func (tx *Tx) CompanyGroupsOf(users []id.UserID) ([]CompanyGroup, error) {
	var out []CompanyGroup
	seen := map[[2]string]bool{}
	err := tx.CompanyGroupsByUser(users, func(_ id.UserID, g CompanyGroup) {
		if k := [2]string{g.Source, g.ID}; !seen[k] {
			seen[k] = true
			out = append(out, g)
		}
	})
	return out, err
}

// CompanyGroupsByUser reads which groups users are in by name.
func (tx *Tx) CompanyGroupsByUser(users []id.UserID, fn func(user id.UserID, g CompanyGroup)) error {
	return tx.Each(`SELECT m.usr, g.source, g.id, g.kind, g.name, g.dn, g.parent, g.gone, g.dirty
		FROM company_group_members m JOIN company_groups g ON g.source = m.source AND g.id = m.id
		WHERE m.usr IN @text($1) ORDER BY g.source, g.id`, []any{users}, func(r *Row) error {
		var u id.UserID
		var g CompanyGroup
		if err := r.Scan(append([]any{&u}, g.dest()...)...); err != nil {
			return err
		}
		fn(u, g)
		return nil
	})
}

// GroupRoom is the room or space of a group.
type GroupRoom struct {
	Target     string // what it is for
	NID        int64  // its number here
	Source, ID string // the group; "" where several share it
	RoomID     id.RoomID
	Name       string
	Alias      string
	Parent     id.RoomID // the space that it was put into
}

const groupRoomColumns = `target, nid, source, id, room_id, name, alias, parent`

func (g *GroupRoom) dest() []any {
	return []any{&g.Target, &g.NID, &g.Source, &g.ID, &g.RoomID, &g.Name, &g.Alias, &g.Parent}
}

// GroupRooms lists the rooms of groups.
func (tx *Tx) GroupRooms() ([]GroupRoom, error) {
	var out []GroupRoom
	err := tx.Each(`SELECT `+groupRoomColumns+` FROM group_rooms ORDER BY nid`, nil, func(r *Row) error {
		var g GroupRoom
		err := r.Scan(g.dest()...)
		out = append(out, g)
		return err
	})
	return out, err
}

// BeginGroupRoom notes that a room is about to be made, and gives it its number. Repeating it changes nothing.
func (tx *Tx) BeginGroupRoom(g GroupRoom) (GroupRoom, error) {
	_, err := tx.Exec(`INSERT INTO group_rooms (target, nid, source, id, room_id, name, alias, parent)
		SELECT $1, coalesce(max(nid), 0) + 1, $2, $3, '', '', '', '' FROM group_rooms WHERE true
		ON CONFLICT (target) DO NOTHING`, g.Target, g.Source, g.ID)
	if err != nil {
		return g, fmt.Errorf("begin the room of %s: %w", g.Target, err)
	}
	_, err = tx.Get(g.dest(), `SELECT `+groupRoomColumns+` FROM group_rooms WHERE target = $1`, g.Target)
	return g, err
}

// SaveGroupRoom stores what a room is now.
func (tx *Tx) SaveGroupRoom(g GroupRoom) error {
	_, err := tx.Exec(`UPDATE group_rooms SET room_id = $2, name = $3, alias = $4, parent = $5 WHERE target = $1`,
		g.Target, g.RoomID, g.Name, g.Alias, g.Parent)
	if err != nil {
		return fmt.Errorf("save the room of %s: %w", g.Target, err)
	}
	return nil
}

// DropGroupRoom forgets which room a target has.
func (tx *Tx) DropGroupRoom(g GroupRoom) error {
	if _, err := tx.Exec(`DELETE FROM group_placed WHERE room = $1`, g.NID); err != nil {
		return err
	}
	_, err := tx.Exec(`DELETE FROM group_rooms WHERE target = $1`, g.Target)
	return err
}

// GroupRoomMembers reads who is or was in the rooms of groups, by the number of the group's room.
func (tx *Tx) GroupRoomMembers(fn func(nid int64, user id.UserID, membership int64)) error {
	return tx.Each(`SELECT g.nid, m.usr, m.membership FROM group_rooms g JOIN rooms r ON r.room_id = g.room_id
		JOIN memberships m ON m.room = r.nid`, nil, func(r *Row) error {
		var n, m int64
		var u id.UserID
		if err := r.Scan(&n, &u, &m); err != nil {
			return err
		}
		fn(n, u, m)
		return nil
	})
}

// GroupPlaced reads who is in the rooms of groups because of them, and with which power level: in one room, or in all for 0.
func (tx *Tx) GroupPlaced(room int64, fn func(room int64, user id.UserID, level int64)) error {
	return tx.Each(`SELECT room, usr, level FROM group_placed WHERE $1 = 0 OR room = $1`, []any{room}, func(r *Row) error {
		var n, level int64
		var u id.UserID
		if err := r.Scan(&n, &u, &level); err != nil {
			return err
		}
		fn(n, u, level)
		return nil
	})
}

// Placement is one user's place in the room of a group.
type Placement struct {
	Room  int64
	User  id.UserID
	Level int64
}

var placedCols = []Col{{"room", Int}, {"usr", Text}, {"level", Int}}

// PlaceInGroupRooms notes who is in rooms because of a group.
func (tx *Tx) PlaceInGroupRooms(list []Placement) error {
	return tx.Insert("group_placed", placedCols, len(list), func(i int) []any {
		return []any{list[i].Room, string(list[i].User), list[i].Level}
	}, "ON CONFLICT (room, usr) DO UPDATE SET level = excluded.level")
}

// UnplaceInGroupRoom notes who is in a room because of a group no more.
func (tx *Tx) UnplaceInGroupRoom(room int64, users []id.UserID) error {
	_, err := tx.Exec(`DELETE FROM group_placed WHERE room = $1 AND usr IN @text($2)`, room, users)
	return err
}

// GroupRoomsOf lists the rooms that a user is in because of groups.
func (tx *Tx) GroupRoomsOf(user id.UserID) ([]GroupRoom, error) {
	var out []GroupRoom
	err := tx.Each(`SELECT r.target, r.nid, r.source, r.id, r.room_id, r.name, r.alias, r.parent
		FROM group_placed p JOIN group_rooms r ON r.nid = p.room WHERE p.usr = $1 AND r.room_id <> '' ORDER BY r.nid`, []any{user}, func(r *Row) error {
		var g GroupRoom
		err := r.Scan(g.dest()...)
		out = append(out, g)
		return err
	})
	return out, err
}

// AccountState says whether an account can be used; Locked is also who is barred by their source.
type AccountState struct{ Deactivated, Locked bool }

// AccountStates reads the states of the accounts that exist.
func (tx *Tx) AccountStates(users []id.UserID) (map[id.UserID]AccountState, error) {
	out := make(map[id.UserID]AccountState, len(users))
	err := tx.Each(`SELECT user_id, deactivated, CASE WHEN locked = 1 OR disabled <> 0 THEN 1 ELSE 0 END FROM users WHERE user_id IN @text($1)`, []any{users}, func(r *Row) error {
		var u id.UserID
		var s AccountState
		if err := r.Scan(&u, &s.Deactivated, &s.Locked); err != nil {
			return err
		}
		out[u] = s
		return nil
	})
	return out, err
}
