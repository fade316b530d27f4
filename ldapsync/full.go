package ldapsync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// planned is what a complete comparison would do.
type planned struct {
	snap   *snapshot
	next   *state // what is known afterwards
	ops    []op
	faults []EntryError
	groups *groups.Plan // nil: groups are not read
	active int          // accounts of the directory that can be used now
}

// compare reads everything and works out what is to be done. It has no effect.
func (d *directory) compare(ctx context.Context, s *state, r *Report) (*planned, error) {
	done := r.step("read")
	snap, err := d.read(ctx)
	done()
	if err != nil {
		return nil, err
	}
	defer r.step("compare")()
	p := &planned{snap: snap}
	r.Read, r.Warnings = len(snap.entries)+len(snap.nameless), snap.warnings
	if s.links, err = d.People.Of(ctx, d.source); err != nil {
		return nil, err
	}
	p.next = s.after(snap)
	var gone []string
	if len(snap.nameless) == 0 { // else nobody knows who these are: they may be those that are missing
		gone = s.missing(snap)
	}
	p.ops, p.faults = d.userOps(s, snap.entries, gone)
	p.faults = append(p.faults, snap.nameless...)
	for _, l := range s.links {
		p.active += boolInt(l.Active)
	}
	if p.groups, err = d.groupPlan(ctx, p.next); err != nil {
		return nil, err
	}
	return p, nil
}

// groupPlan compares groups and units with what is stored.
func (d *directory) groupPlan(ctx context.Context, s *state) (*groups.Plan, error) {
	if d.Groups == nil || !d.Groups.Active() {
		return nil, nil
	}
	p, err := d.Groups.Plan(ctx, d.cfg.ID, s.allGroups(d))
	if err != nil {
		return nil, fmt.Errorf("compare the groups: %w", err)
	}
	return &p, nil
}

// after is what is known when a snapshot was taken over.
func (s *state) after(snap *snapshot) *state {
	next := &state{saved: s.saved, items: make(map[string]*item, len(snap.entries)), links: maps.Clone(s.links)}
	for _, e := range snap.entries {
		it := &item{id: e.id, dn: e.dn, key: e.key, kind: e.kind, digest: string(e.digest),
			data: itemData{Name: e.name, UID: e.uid, Unit: e.unit, Members: e.members}}
		if old := s.items[e.id]; old != nil {
			it.data.Users = old.data.Users
		}
		next.items[e.id] = it
	}
	next.index()
	return next
}

// missing lists the entries and persons that are known and are not in a snapshot.
func (s *state) missing(snap *snapshot) []string {
	there := make(map[string]bool, len(snap.entries))
	for _, e := range snap.entries {
		there[e.id] = true
	}
	out := map[string]bool{}
	for entryID := range s.items {
		if !there[entryID] {
			out[entryID] = true
		}
	}
	for entryID := range s.links {
		if !there[entryID] {
			out[entryID] = true
		}
	}
	return slices.Sorted(maps.Keys(out))
}

// allGroups are all groups and units as their rooms are to follow them.
func (s *state) allGroups(d *directory) []groups.Group {
	var out []groups.Group
	for _, entryID := range slices.Sorted(maps.Keys(s.items)) {
		if it := s.items[entryID]; it.kind == store.DirectoryGroup {
			out = append(out, s.group(d.cfg.ID, it))
		}
	}
	units := s.units(d)
	for _, entryID := range slices.Sorted(maps.Keys(units)) {
		out = append(out, *units[entryID])
	}
	return out
}

// judge tells whether a run does too much to be done unasked.
// lately is how many accounts were barred within the last hour.
func (d *directory) judge(p *planned, lately int) *Pending {
	out := &Pending{Since: d.Clock().UnixMilli(), Accounts: p.active}
	h := sha256.New()
	for i := range p.ops {
		if p.ops[i].bars() {
			out.Disable++
			h.Write([]byte(p.ops[i].id + "\n"))
		}
	}
	members := 0
	if p.groups != nil {
		out.Leave = p.groups.Counts.Leave
		for _, it := range p.next.items {
			members += len(it.data.Users)
		}
		for i := range p.groups.Rooms {
			for _, u := range p.groups.Rooms[i].Leave {
				h.Write([]byte(p.groups.Rooms[i].Target + " " + string(u) + "\n"))
			}
		}
	}
	limit := d.cfg.Safety
	share := func(n, of int) float64 { return float64(n) / float64(max(of, n, 1)) }
	barred := out.Disable + lately
	switch {
	case out.Disable > 0 && barred > limit.MinCount && share(barred, p.active+lately) > limit.MaxShare:
		out.Share = share(barred, p.active+lately)
		out.Why = fmt.Sprintf("%d of %d accounts would be disabled, with those of the last hour (%.0f %%; safety.max_share allows %.0f %%)",
			barred, p.active+lately, 100*out.Share, 100*limit.MaxShare)
	case out.Leave > limit.MinCount && share(out.Leave, members) > limit.MaxShare:
		out.Share = share(out.Leave, members)
		out.Why = fmt.Sprintf("%d of %d memberships would end (%.0f %%; safety.max_share allows %.0f %%)", out.Leave, members, 100*out.Share, 100*limit.MaxShare)
	default:
		return nil
	}
	out.Digest = hex.EncodeToString(h.Sum(nil)[:6])
	return out
}

// full compares everything with the directory and applies what differs. Its error is one of ours; what is wrong with the
// directory is noted.
func (f *follower) full(ctx context.Context, why, runID string) error {
	r := f.begin("full", why, runID)
	keep := runID != "" || f.s.FullAt == 0
	p, err := f.compare(ctx, f.s, r)
	if err == nil {
		err = f.applyAll(ctx, p, r)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		r.Error = err.Error()
		if err := f.failed(ctx, err); err != nil {
			return err
		}
		return f.end(ctx, r, keep)
	}
	f.succeeded()
	return f.end(ctx, r, keep)
}

func (f *follower) applyAll(ctx context.Context, p *planned, r *Report) error {
	for _, e := range p.faults {
		r.fault(e.DN, e.Error)
	}
	if stop := f.judge(p, f.lately()); stop != nil {
		if c := f.s.Pending; c == nil || !c.Confirmed || c.Digest != stop.Digest {
			if c != nil && c.Digest == stop.Digest {
				stop.Since = c.Since
			}
			f.s.Pending, r.Stopped = stop, stop
			f.numbers.waiting.Store(true)
			return nil
		}
		f.recent = nil // those were looked at now
	}
	f.s.Pending = nil
	f.numbers.waiting.Store(false)
	p.next.saved = f.s.saved
	w := &work{f: f, s: p.next, r: r, touched: map[string]bool{}}
	done := r.step("users")
	err := w.users(ctx, p.ops)
	done()
	if err != nil {
		return err
	}
	done = r.step("groups")
	err = f.applyGroups(ctx, p, r)
	done()
	if err != nil {
		return err
	}
	defer r.step("store")()
	old := f.s.items
	units := map[string]*groups.Group{}
	if p.groups != nil {
		units = p.next.units(f.directory)
	}
	for entryID, it := range p.next.items {
		before := old[entryID]
		changed := before == nil || before.digest != it.digest
		if it.kind == store.DirectoryGroup && p.groups != nil {
			now := p.next.group(f.cfg.ID, it).Members
			changed = changed || !slices.Equal(now, it.data.Users)
			it.data.Users = now
		}
		if u := units[entryID]; u != nil && it.kind == store.DirectoryUnit {
			changed = changed || !slices.Equal(u.Members, it.data.Users)
			it.data.Users = u.Members
		}
		if changed {
			w.mu.Lock()
			err := w.keepLocked(ctx, it)
			w.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
	f.s = p.next
	err = w.finish(ctx, func(tx *store.Tx) error {
		for entryID := range old {
			if p.next.items[entryID] == nil {
				if err := tx.DeleteDirectoryItem(f.cfg.ID, entryID); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	// stored with the report of the run: who sees that the comparison is complete sees what it did
	f.s.FullAt = f.Clock().UnixMilli()
	if p.snap.server.invocation != "" {
		f.s.Server, f.s.USN = p.snap.server.invocation, p.snap.server.usn
	}
	return nil
}

// applyGroups brings rooms and spaces to what the groups are now that all accounts are there.
func (f *follower) applyGroups(ctx context.Context, p *planned, r *Report) error {
	if p.groups == nil {
		return nil
	}
	if len(p.ops) > 0 {
		var err error
		if p.groups, err = f.groupPlan(ctx, p.next); err != nil {
			return err
		}
	}
	if p.groups.Empty() {
		return nil
	}
	report, err := f.Groups.Apply(ctx, *p.groups, nil)
	r.Groups = report.Counts
	for _, text := range report.Errors {
		r.fault("", text)
	}
	if err != nil {
		return fmt.Errorf("bring the rooms of groups up to date: %w", err)
	}
	return nil
}

// linkOf is whom an entry is.
func (s *state) linkOf(entryID string) (people.Link, bool) {
	l, ok := s.links[entryID]
	return l, ok
}
