// Package groups gives the groups and units of the company (from a directory, SCIM or single sign-on) their rooms and
// spaces: made once, renamed along, joined by who is in the group and left by who leaves it. A service account makes and
// owns them, so that no leaver does. What the groups are lies in the database; the rooms follow it, and work that was
// interrupted is taken up again.
package groups

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// The kinds of groups.
const (
	KindGroup = "group"
	KindUnit  = "unit" // a place in the company's tree: its ParentID is the unit above
)

// Group is a group or unit of the company.
type Group struct {
	Source     string // who tells of it: the id of a directory or provider, scim
	ExternalID string // immutable
	Name       string
	DN         string      // its place in a directory's tree, "" where it has none
	ParentID   string      // ExternalID of the unit that it lies in
	Kind       string      // group or unit; "": group
	Members    []id.UserID // by name
	Nested     []string    // ExternalIDs of groups of the same source whose members are members too
	Gone       bool        // the source has it no more
}

// Deps is what Groups works with.
type Deps struct {
	Store      *store.Store
	Rooms      *room.Rooms
	Accounts   *account.Accounts
	ServerName string
	Config     Config
	Logger     *slog.Logger
}

// Groups keeps rooms and spaces as the groups of the company are.
type Groups struct {
	d       Deps
	rules   []*compiled
	kick    chan struct{} // wakes Run
	pace    pace
	numbers sync.Mutex    // see begin
	work    chan struct{} // full while somebody in this process changes rooms

	serviceMu sync.Mutex
	service   id.UserID // "" until it was seen that the account is there
}

// New makes Groups. Its error names the key of the configuration that is wrong.
func New(d Deps) (*Groups, error) {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	rules, path, err := d.Config.compile()
	if err != nil {
		return nil, &ConfigError{Path: path, Err: err}
	}
	pace := usualPace
	if d.Store.SQLite() {
		pace = ridingPace
	}
	return &Groups{d: d, rules: rules, pace: pace, kick: make(chan struct{}, 1), work: make(chan struct{}, 1)}, nil
}

// ConfigError is a fault of the configuration.
type ConfigError struct {
	Path string // below the section
	Err  error
}

// Error implements error.
func (e *ConfigError) Error() string { return "groups." + e.Path + " " + e.Err.Error() }

// Unwrap gives the fault itself.
func (e *ConfigError) Unwrap() error { return e.Err }

// Active tells whether any group has a room.
func (g *Groups) Active() bool { return len(g.rules) > 0 }

const (
	memberChunk = 100 // members of a group written in one transaction
	runEvery    = time.Minute
)

// Put stores one group as it is now; its rooms follow in the background. A group that is Gone loses its members, and
// its rooms are emptied.
func (g *Groups) Put(ctx context.Context, source string, changed Group) error {
	changed.Source = source
	if err := g.store(ctx, &changed); err != nil {
		return err
	}
	g.wake()
	return nil
}

// Change stores one group as it is now and brings its rooms up to date before it returns.
func (g *Groups) Change(ctx context.Context, source string, changed Group) error {
	changed.Source = source
	if err := g.store(ctx, &changed); err != nil {
		return err
	}
	_, err := g.Settle(ctx)
	return err
}

func (g *Groups) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// Edit changes one group inside a transaction: fn gets it as it is (found tells whether it is there) and says whether
// anything is to be stored. fn may run more than once. The rooms follow in the background.
func (g *Groups) Edit(ctx context.Context, source, externalID string, fn func(tx *store.Tx, now *Group, found bool) (bool, error)) error {
	err := g.d.Store.Write(ctx, func(tx *store.Tx) error {
		row, found, err := tx.LockCompanyGroup(source, externalID)
		if err != nil {
			return err
		}
		found = found && !row.Gone
		now := &Group{Source: source, ExternalID: externalID, Kind: KindGroup}
		if found {
			if now, err = groupOf(tx, row); err != nil {
				return err
			}
		}
		before := map[id.UserID]struct{}{}
		for _, u := range now.Members {
			before[u] = struct{}{}
		}
		changed, err := fn(tx, now, found)
		if err != nil || !changed {
			return err
		}
		now.Source, now.ExternalID = source, externalID
		return write(tx, now, row, before)
	})
	if err == nil {
		g.wake()
	}
	return err
}

// AddTo puts users into a group in the caller's transaction; a group that is not there is made. Wake comes after it.
func (g *Groups) AddTo(tx *store.Tx, x Group, users []id.UserID) error {
	row, found, err := tx.LockCompanyGroup(x.Source, x.ExternalID)
	switch {
	case err != nil:
		return err
	case found && !row.Gone:
		err = tx.TouchCompanyGroup(x.Source, x.ExternalID)
	default:
		x.Nested = nil
		err = writeOwn(tx, &x, row)
	}
	if err != nil {
		return err
	}
	return tx.AddCompanyGroupMembers(x.Source, x.ExternalID, users)
}

// Write stores a group as it is now in the caller's transaction. Wake comes after it.
func (g *Groups) Write(tx *store.Tx, x Group) error {
	row, found, err := tx.LockCompanyGroup(x.Source, x.ExternalID)
	if err != nil {
		return err
	}
	before := map[id.UserID]struct{}{}
	if found {
		old, err := groupOf(tx, row)
		if err != nil {
			return err
		}
		for _, u := range old.Members {
			before[u] = struct{}{}
		}
	}
	if x.Kind == "" {
		x.Kind = KindGroup
	}
	return write(tx, &x, row, before)
}

// RemoveFrom takes users out of a group in the caller's transaction. Wake comes after it.
func (g *Groups) RemoveFrom(tx *store.Tx, source, externalID string, users []id.UserID) error {
	if err := tx.TouchCompanyGroup(source, externalID); err != nil {
		return err
	}
	return tx.RemoveCompanyGroupMembers(source, externalID, users)
}

// Wake makes rooms follow what was written by AddTo and RemoveFrom.
func (g *Groups) Wake() { g.wake() }

// Members lists who is in a group: by name, by nested groups, by units below.
func (g *Groups) Members(ctx context.Context, source, externalID string) ([]id.UserID, bool, error) {
	gr, err := g.load(ctx)
	r := ref{source, externalID}
	if err != nil || gr.groups[r] == nil || gr.groups[r].Gone {
		return nil, false, err
	}
	return slices.Sorted(maps.Keys(gr.members(r, false))), true, nil
}

// RoomsOf lists the rooms and spaces of one group.
func (g *Groups) RoomsOf(ctx context.Context, source, externalID string) ([]id.RoomID, error) {
	var out []id.RoomID
	err := g.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		out = nil
		rows, err := tx.GroupRooms()
		for _, r := range rows {
			if r.Source == source && r.ID == externalID && r.RoomID != "" {
				out = append(out, r.RoomID)
			}
		}
		return err
	})
	return out, err
}

// Find reads one group, as its source told of it last.
func (g *Groups) Find(ctx context.Context, source, externalID string) (Group, bool, error) {
	var out Group
	var found bool
	err := g.d.Store.Read(ctx, func(tx *store.Tx) error {
		row, ok, err := tx.CompanyGroup(source, externalID)
		if err != nil || !ok || row.Gone {
			return err
		}
		x, err := groupOf(tx, row)
		if err != nil {
			return err
		}
		out, found = *x, true
		return nil
	})
	return out, found, err
}

func groupOf(tx *store.Tx, row store.CompanyGroup) (*Group, error) {
	x := &Group{Source: row.Source, ExternalID: row.ID, Kind: row.Kind, Name: row.Name, DN: row.DN, ParentID: row.Parent, Gone: row.Gone}
	err := tx.CompanyGroupMembers(row.Source, row.ID, func(_, _ string, u id.UserID) { x.Members = append(x.Members, u) })
	if err != nil {
		return nil, err
	}
	return x, tx.CompanyGroupNested(row.Source, row.ID, func(_, _, child string) { x.Nested = append(x.Nested, child) })
}

// phase is a part of storing a group.
type phase int

const (
	additions phase = iota // the group itself and who is new in it
	removals               // who is out; a group that is gone
)

// store writes a group: who is new first, then who is out.
func (g *Groups) store(ctx context.Context, x *Group) error {
	if err := g.storePhase(ctx, x, additions); err != nil {
		return err
	}
	return g.storePhase(ctx, x, removals)
}

// storePhase writes one part of a group in chunks. Each marks the group as changed, so that after an interruption its
// rooms are looked at.
func (g *Groups) storePhase(ctx context.Context, x *Group, what phase) error {
	if x.Kind == "" {
		x.Kind = KindGroup
	}
	if x.Gone && what == additions {
		return nil
	}
	var change []id.UserID
	err := g.d.Store.Write(ctx, func(tx *store.Tx) error {
		change = nil
		row, found, err := tx.LockCompanyGroup(x.Source, x.ExternalID)
		if err != nil || x.Gone && !found {
			return err
		}
		old := &Group{}
		if found {
			if old, err = groupOf(tx, row); err != nil {
				return err
			}
		}
		members := x.Members
		if x.Gone {
			members = nil
		}
		add, remove := difference(old.Members, members)
		change = remove
		if what == additions {
			change = add
		}
		if (what == additions || x.Gone) && (!found || !sameGroup(old, x)) {
			return writeOwn(tx, x, row)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for list := range chunks(change, memberChunk) {
		err := g.d.Store.Write(ctx, func(tx *store.Tx) error {
			if err := tx.TouchCompanyGroup(x.Source, x.ExternalID); err != nil {
				return err
			}
			if what == additions {
				return tx.AddCompanyGroupMembers(x.Source, x.ExternalID, list)
			}
			return tx.RemoveCompanyGroupMembers(x.Source, x.ExternalID, list)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// write stores a group in the transaction.
func write(tx *store.Tx, x *Group, row store.CompanyGroup, before map[id.UserID]struct{}) error {
	if err := writeOwn(tx, x, row); err != nil {
		return err
	}
	var old []id.UserID
	for u := range before {
		old = append(old, u)
	}
	if x.Gone {
		x.Members = nil
	}
	add, remove := difference(old, x.Members)
	if err := tx.AddCompanyGroupMembers(x.Source, x.ExternalID, add); err != nil {
		return err
	}
	return tx.RemoveCompanyGroupMembers(x.Source, x.ExternalID, remove)
}

// writeOwn stores what a group has beside its members. The unit that it lay in before is to be looked at too.
func writeOwn(tx *store.Tx, x *Group, row store.CompanyGroup) error {
	err := tx.SaveCompanyGroup(store.CompanyGroup{Source: x.Source, ID: x.ExternalID, Kind: x.Kind, Name: x.Name, DN: x.DN, Parent: x.ParentID, Gone: x.Gone})
	if err != nil {
		return err
	}
	if row.Parent != "" && row.Parent != x.ParentID {
		if err := tx.TouchCompanyGroup(x.Source, row.Parent); err != nil {
			return err
		}
	}
	nested := x.Nested
	if x.Gone {
		nested = nil
	}
	return tx.SetCompanyGroupNested(x.Source, x.ExternalID, nested)
}
