package groups

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Plan is what applying the groups of a source would do. It marshals to JSON, and String is for people.
type Plan struct {
	Source  string     `json:"source"`
	New     []string   `json:"new_groups,omitempty"` // names
	Changed []string   `json:"changed_groups,omitempty"`
	Gone    []string   `json:"gone_groups,omitempty"`
	Rooms   []RoomPlan `json:"rooms,omitempty"` // only those that change
	Counts  Counts     `json:"counts"`

	write []Group // what is to be stored
}

// Counts sums a plan or a report up.
type Counts struct {
	Groups  int `json:"groups"`  // that are new, changed or gone
	Create  int `json:"create"`  // rooms and spaces
	Rename  int `json:"rename"`  // rooms and spaces
	Move    int `json:"move"`    // into another space
	Join    int `json:"join"`    // memberships
	Invite  int `json:"invite"`  // memberships
	Leave   int `json:"leave"`   // memberships
	Levels  int `json:"levels"`  // power levels of users
	Skipped int `json:"skipped"` // users who are picked up later
}

func (c *Counts) add(o Counts) {
	c.Groups += o.Groups
	c.Create += o.Create
	c.Rename += o.Rename
	c.Move += o.Move
	c.Join += o.Join
	c.Invite += o.Invite
	c.Leave += o.Leave
	c.Levels += o.Levels
	c.Skipped += o.Skipped
}

// Skip is a user who is not put into a room now.
type Skip struct {
	User id.UserID `json:"user_id"`
	Why  string    `json:"why"`
}

// RoomPlan is what would change in one room or space.
type RoomPlan struct {
	Target  string              `json:"target"`
	RoomID  id.RoomID           `json:"room_id,omitempty"` // "": it is to be made
	Name    string              `json:"name"`
	Space   bool                `json:"space,omitempty"`
	OldName string              `json:"old_name,omitempty"`
	Parent  string              `json:"parent,omitempty"` // target of the space that it is put into
	Join    []id.UserID         `json:"join,omitempty"`
	Invite  []id.UserID         `json:"invite,omitempty"`
	Leave   []id.UserID         `json:"leave,omitempty"`
	Levels  map[id.UserID]int64 `json:"levels,omitempty"`
	Skipped []Skip              `json:"skipped,omitempty"`
	Fault   string              `json:"fault,omitempty"` // why nothing can be done

	t       *target
	row     store.GroupRoom
	lost    store.GroupRoom // the room was deleted: another one is made
	move    bool
	place   []store.Placement // who is in already, but was not noted
	unplace []id.UserID       // who is noted, but neither in nor wanted
}

func (p *RoomPlan) counts() Counts {
	c := Counts{Join: len(p.Join), Invite: len(p.Invite), Leave: len(p.Leave), Levels: len(p.Levels), Skipped: len(p.Skipped)}
	if p.RoomID == "" {
		c.Create = 1
	}
	if p.OldName != "" {
		c.Rename = 1
	}
	if p.move {
		c.Move = 1
	}
	return c
}

// visible tells whether the plan does anything that people would see.
func (p *RoomPlan) visible() bool {
	c := p.counts()
	c.Skipped = 0
	return c != Counts{} || p.Fault != ""
}

// Plan works out what it would mean if these were all groups of a source. It has no effect.
func (g *Groups) Plan(ctx context.Context, source string, all []Group) (Plan, error) {
	p := Plan{Source: source}
	gr, err := g.load(ctx)
	if err != nil {
		return p, err
	}
	before := maps.Clone(gr.groups)
	gone := gr.replace(source, all)
	for _, r := range gr.sorted() {
		x := gr.groups[r]
		old := before[r]
		switch {
		case r.source != source:
		case slices.Contains(gone, r):
			p.Gone = append(p.Gone, x.Name)
			p.write = append(p.write, *x)
		case old == nil || old.Gone:
			p.New = append(p.New, x.Name)
			p.write = append(p.write, *x)
		default:
			add, remove := difference(old.Members, x.Members)
			if len(add)+len(remove) > 0 || !sameGroup(old, x) {
				p.Changed = append(p.Changed, x.Name)
				p.write = append(p.write, *x)
			}
		}
	}
	p.Counts.Groups = len(p.write)
	rooms, err := g.compare(ctx, g.targets(gr))
	if err != nil {
		return p, err
	}
	for _, r := range rooms {
		p.Counts.add(r.counts())
		if r.visible() {
			p.Rooms = append(p.Rooms, *r)
		}
	}
	return p, nil
}

// Empty tells whether the plan changes nothing.
func (p Plan) Empty() bool {
	c := p.Counts
	c.Skipped = 0
	return c == Counts{}
}

// String is the plan for people.
func (p Plan) String() string {
	var b strings.Builder
	list := func(what string, names []string) {
		if len(names) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", what, strings.Join(names, ", "))
		}
	}
	list("new groups", p.New)
	list("changed groups", p.Changed)
	list("groups that are gone", p.Gone)
	users := func(what string, list []id.UserID) {
		for _, u := range list {
			fmt.Fprintf(&b, "    %s %s\n", what, u)
		}
	}
	for _, r := range p.Rooms {
		kind := "room"
		if r.Space {
			kind = "space"
		}
		switch {
		case r.Fault != "":
			fmt.Fprintf(&b, "%s %q (%s): %s\n", kind, r.Name, r.Target, r.Fault)
			continue
		case r.RoomID == "":
			fmt.Fprintf(&b, "make the %s %q\n", kind, r.Name)
		case r.OldName != "":
			fmt.Fprintf(&b, "%s %q is called %q from now on (%s)\n", kind, r.OldName, r.Name, r.RoomID)
		default:
			fmt.Fprintf(&b, "%s %q (%s)\n", kind, r.Name, r.RoomID)
		}
		if r.move {
			fmt.Fprintf(&b, "    is put into the space of %s\n", r.Parent)
		}
		users("joins", r.Join)
		users("is invited", r.Invite)
		users("leaves", r.Leave)
		for _, u := range slices.Sorted(maps.Keys(r.Levels)) {
			fmt.Fprintf(&b, "    gets the power level %d: %s\n", r.Levels[u], u)
		}
		for _, s := range r.Skipped {
			fmt.Fprintf(&b, "    not yet %s: %s\n", s.User, s.Why)
		}
	}
	c := p.Counts
	fmt.Fprintf(&b, "%d groups change; %d rooms and spaces are made, %d renamed, %d moved; %d joins, %d invitations, %d leave; %d power levels; %d users are skipped for now\n",
		c.Groups, c.Create, c.Rename, c.Move, c.Join, c.Invite, c.Leave, c.Levels, c.Skipped)
	return b.String()
}

// facts of the database that targets are compared with.
type actual struct {
	rooms    map[string]store.GroupRoom
	members  map[int64]map[id.UserID]room.Membership // by number of the group's room
	placed   map[int64]map[id.UserID]int64
	accounts map[id.UserID]store.AccountState
}

const accountChunk = 5000

func (g *Groups) actual(ctx context.Context, targets map[string]*target) (*actual, error) {
	a := &actual{accounts: map[id.UserID]store.AccountState{}}
	err := g.d.Store.Read(ctx, func(tx *store.Tx) error {
		a.rooms, a.members, a.placed = map[string]store.GroupRoom{}, map[int64]map[id.UserID]room.Membership{}, map[int64]map[id.UserID]int64{}
		rows, err := tx.GroupRooms()
		if err != nil {
			return err
		}
		for _, r := range rows {
			a.rooms[r.Target] = r
		}
		err = tx.GroupRoomMembers(func(nid int64, u id.UserID, m int64) {
			if a.members[nid] == nil {
				a.members[nid] = map[id.UserID]room.Membership{}
			}
			a.members[nid][u] = room.Membership(m)
		})
		if err != nil {
			return err
		}
		return tx.GroupPlaced(0, func(nid int64, u id.UserID, level int64) {
			if a.placed[nid] == nil {
				a.placed[nid] = map[id.UserID]int64{}
			}
			a.placed[nid][u] = level
		})
	})
	if err != nil {
		return nil, err
	}
	wanted := map[id.UserID]struct{}{}
	for _, t := range targets {
		for u := range t.members {
			wanted[u] = struct{}{}
		}
	}
	for list := range chunks(slices.Collect(maps.Keys(wanted)), accountChunk) {
		err := g.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			found, err := tx.AccountStates(list)
			maps.Copy(a.accounts, found)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return a, nil
}

// compare finds what has to be done for targets to be as they shall. Spaces come before what lies in them.
func (g *Groups) compare(ctx context.Context, targets map[string]*target) ([]*RoomPlan, error) {
	a, err := g.actual(ctx, targets)
	if err != nil {
		return nil, err
	}
	var out []*RoomPlan
	for _, key := range slices.Sorted(maps.Keys(targets)) {
		t := targets[key]
		row, known := a.rooms[key]
		if !known {
			row = store.GroupRoom{Target: key, Source: t.source, ID: t.id}
		}
		var lost store.GroupRoom
		if row.RoomID != "" && a.members[row.NID] == nil { // at least the service account was in it once
			lost, row = row, store.GroupRoom{Target: key, Source: t.source, ID: t.id}
		}
		if row.RoomID == "" && len(t.members) == 0 && t.children == 0 {
			continue // a room for nobody is not made
		}
		p, err := g.compareOne(ctx, t, row, a)
		if err != nil {
			return nil, err
		}
		p.lost = lost
		if parent := a.rooms[t.parent]; t.parent == "" {
			p.move = row.Parent != ""
		} else if targets[t.parent] != nil {
			p.move = row.Parent == "" || row.Parent != parent.RoomID
		}
		if p.move {
			p.Parent = t.parent
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(x, y *RoomPlan) int { return x.t.depth - y.t.depth })
	return out, nil
}

func (g *Groups) compareOne(ctx context.Context, t *target, row store.GroupRoom, a *actual) (*RoomPlan, error) {
	p := &RoomPlan{Target: t.key, RoomID: row.RoomID, Name: t.name, Space: t.space, t: t, row: row}
	if t.fault != nil {
		p.Fault = t.fault.Error()
		return p, nil
	}
	if row.RoomID != "" && row.Name != t.name {
		p.OldName = row.Name
	}
	members, placed := a.members[row.NID], a.placed[row.NID]
	if row.NID == 0 {
		members, placed = nil, nil
	}
	levels := 0
	for _, u := range slices.Sorted(maps.Keys(t.members)) {
		usable, err := g.compareMember(ctx, p, u, members[u], placed, a.accounts)
		if err != nil {
			return nil, err
		}
		level := t.members[u]
		if usable && placed[u] != level {
			p.level(u, level)
		}
		if level != 0 {
			levels++
		}
	}
	if levels > maxLevels {
		p.Fault = fmt.Sprintf("%d members would get a power level of their own, and a room holds %d at most", levels, maxLevels)
		return p, nil
	}
	service := g.d.Accounts.UserID(g.d.Config.ServiceAccount)
	for _, u := range slices.Sorted(maps.Keys(members)) {
		_, wanted := t.members[u]
		m := members[u]
		level, was := placed[u]
		if wanted || u == service {
			continue
		}
		in := m == room.MembershipJoin || m == room.MembershipInvite
		if in && (was || !t.rule.KeepExtra) && !t.rule.allows(u) {
			p.Leave = append(p.Leave, u)
		} else if was {
			p.unplace = append(p.unplace, u)
		}
		if was && level != 0 {
			p.level(u, 0)
		}
	}
	return p, nil
}

func (p *RoomPlan) level(u id.UserID, level int64) {
	if p.Levels == nil {
		p.Levels = map[id.UserID]int64{}
	}
	p.Levels[u] = level
}

// compareMember decides what becomes of somebody who shall be in the room, and tells whether they are in it then.
func (g *Groups) compareMember(ctx context.Context, p *RoomPlan, u id.UserID, m room.Membership, placed map[id.UserID]int64, accounts map[id.UserID]store.AccountState) (bool, error) {
	level, was := placed[u]
	if m == room.MembershipJoin {
		if !was {
			p.place = append(p.place, store.Placement{Room: p.row.NID, User: u, Level: level})
		}
		return true, nil
	}
	state, exists := accounts[u]
	invites := p.t.rule.Join == JoinInvite
	why := ""
	switch {
	case !exists:
		why = "there is no such account yet"
	case state.Deactivated:
		why = "the account is deactivated"
	case state.Locked:
		why = "the account is locked"
	case m == room.MembershipBan:
		why = "is banned from the room"
	case invites && m == room.MembershipInvite:
		return true, nil
	case invites && m == room.MembershipLeave && was:
		own, err := g.leftBySelf(ctx, p.row.RoomID, u)
		if err != nil {
			return false, err
		}
		if own {
			why = "has left the room or declined the invitation"
		}
	}
	switch {
	case why != "":
		p.Skipped = append(p.Skipped, Skip{u, why})
		return false, nil
	case invites:
		p.Invite = append(p.Invite, u)
	default:
		p.Join = append(p.Join, u)
	}
	return true, nil
}

// leftBySelf tells whether somebody left a room, and was not taken out of it.
func (g *Groups) leftBySelf(ctx context.Context, roomID id.RoomID, u id.UserID) (bool, error) {
	rm, err := g.d.Rooms.Room(ctx, roomID)
	if err != nil {
		return false, err
	}
	e, err := rm.MemberEvent(ctx, u)
	return err == nil && e != nil && e.PDU.Sender() == u, err
}
