package ldapsync

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/store"
)

// batch is what changed since the last look.
type batch struct {
	search  string // of syncrepl: whose cookie it is
	kind    int64  // of syncrepl: what the search finds, which is all that gone and present speak of; 0: of all kinds
	entries []*entry
	gone    []string // ids
	// present are, in a batch that tells of everything, all entries that there still are; nil: gone says which are not.
	present  map[string]bool
	nameless []EntryError
	cookie   []byte // where to go on from; nil: it stays
	caughtUp bool   // what was missed is read: from here on changes are pushed
	err      error  // the search ended
}

// missingFrom returns what is gone: what the batch says, and what a batch that tells of everything does not name. A search tells
// of its own kind alone: to the one of groups every person who changed is somebody whom it does not find (slapd names them so
// after a break).
func (b *batch) missingFrom(s *state) []string {
	gone := slices.Clone(b.gone)
	if b.kind != 0 {
		gone = slices.DeleteFunc(gone, func(entryID string) bool {
			it := s.items[entryID]
			return it == nil || it.kind != b.kind
		})
	}
	for entryID, it := range s.items {
		if b.present != nil && it.kind == b.kind && !b.present[entryID] {
			gone = append(gone, entryID)
		}
	}
	slices.Sort(gone)
	return slices.Compact(gone) // a person who has an account, but was never read, stays as they are until everything is compared
}

// applyBatch takes over what changed, and notes how far that is.
func (f *follower) applyBatch(ctx context.Context, b batch) error {
	r := f.begin("changes", "pushed by the directory", "")
	if b.search == "" {
		r.Why = "looked for changes"
	}
	r.Read = len(b.entries) + len(b.gone)
	b.entries = slices.DeleteFunc(b.entries, func(e *entry) bool {
		it := f.s.items[e.id]
		return it != nil && it.digest == string(e.digest) && !f.odd(e)
	})
	gone := b.missingFrom(f.s)
	ops, faults := f.userOps(f.s, b.entries, gone)
	for _, e := range slices.Concat(faults, b.nameless) {
		r.fault(e.DN, e.Error)
	}
	if stop := f.judgeChanges(ops); stop != nil {
		f.s.Pending, r.Stopped = stop, stop
		f.numbers.waiting.Store(true)
		return f.end(ctx, r, true)
	}
	w := &work{f: f, s: f.s, r: r, touched: map[string]bool{}}
	units := f.s.units(f.directory)
	removed, moved := f.enter(w, b.entries, gone)
	if err := w.users(ctx, ops); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if err := f.changeGroups(ctx, w, b.entries, removed, units, r); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for _, e := range b.entries {
		moved = append(moved, f.s.items[e.id])
	}
	for _, it := range moved {
		if it != nil && f.s.items[it.id] == it {
			w.mu.Lock()
			err := w.keepLocked(ctx, it)
			w.mu.Unlock()
			if err != nil {
				return err
			}
		}
	}
	if b.cookie != nil {
		f.s.Cookies = maps.Clone(f.s.Cookies)
		if f.s.Cookies == nil {
			f.s.Cookies = map[string][]byte{}
		}
		f.s.Cookies[b.search] = b.cookie
	}
	f.s.Following = f.s.Following || b.caughtUp
	f.succeeded()
	err := w.finish(ctx, func(tx *store.Tx) error {
		for _, it := range removed {
			if err := tx.DeleteDirectoryItem(f.cfg.ID, it.id); err != nil {
				return err
			}
		}
		return f.put(tx)
	})
	if err != nil {
		return err
	}
	return f.end(ctx, r, false)
}

// enter notes the entries as they are now. It returns those that are gone, and those that moved along with others.
func (f *follower) enter(w *work, entries []*entry, gone []string) (removed, moved []*item) {
	for _, e := range entries {
		if old := f.s.items[e.id]; old != nil {
			w.touch(old)
		}
		now, also := f.s.put(e)
		w.touch(now)
		for _, it := range also {
			w.touch(it)
		}
		moved = append(moved, also...)
	}
	for _, entryID := range gone {
		if it := f.s.items[entryID]; it != nil {
			w.touch(it)
			f.s.remove(entryID)
			removed = append(removed, it)
		}
	}
	return removed, moved
}

// touch marks an entry that groups may name.
func (w *work) touch(it *item) {
	w.touched[it.key] = true
	if it.data.UID != "" {
		w.touched["uid:"+it.data.UID] = true
	}
}

// judgeChanges tells whether changes, with those of the last hour, bar too many accounts to be done unasked.
func (f *follower) judgeChanges(ops []op) *Pending {
	n, active := 0, 0
	for i := range ops {
		n += boolInt(ops[i].bars())
	}
	if n == 0 {
		return nil
	}
	for _, l := range f.s.links {
		active += boolInt(l.Active)
	}
	before := f.lately()
	total, of := n+before, active+before
	if total <= f.cfg.Safety.MinCount || float64(total)/float64(max(of, 1)) <= f.cfg.Safety.MaxShare {
		return nil
	}
	share := float64(total) / float64(max(of, 1))
	return &Pending{Digest: "changes", Since: f.Clock().UnixMilli(), Disable: n, Accounts: active, Share: share,
		Why: fmt.Sprintf("%d accounts would be disabled within an hour, of %d (%.0f %%; safety.max_share allows %.0f %%)", total, of, 100*share, 100*f.cfg.Safety.MaxShare)}
}

// changeGroups stores the groups and units that changes touch, and brings their rooms up to date.
func (f *follower) changeGroups(ctx context.Context, w *work, entries []*entry, removed []*item, before map[string]*groups.Group, r *Report) error {
	if f.Groups == nil || !f.Groups.Active() {
		return nil
	}
	affected := map[string]bool{}
	for _, e := range entries {
		if e.kind == store.DirectoryGroup {
			affected[e.id] = true
		}
	}
	for key := range w.touched {
		for _, g := range f.s.groups[key] {
			affected[g] = true
		}
	}
	var list []groups.Group
	for _, entryID := range slices.Sorted(maps.Keys(affected)) {
		it := f.s.items[entryID]
		if it == nil || it.kind != store.DirectoryGroup {
			continue
		}
		g := f.s.group(f.cfg.ID, it)
		it.data.Users = g.Members
		w.mu.Lock()
		err := w.keepLocked(ctx, it)
		w.mu.Unlock()
		if err != nil {
			return err
		}
		list = append(list, g)
	}
	for _, it := range removed {
		if it.kind != store.DirectoryUser {
			list = append(list, groups.Group{Source: f.cfg.ID, ExternalID: it.id, Name: it.data.Name, DN: it.dn, Gone: true})
		}
	}
	list = append(list, changedUnits(before, f.s.units(f.directory))...)
	if len(list) == 0 {
		return nil
	}
	for _, g := range list {
		if err := f.Groups.Put(ctx, f.cfg.ID, g); err != nil {
			return fmt.Errorf("store the group %s: %w", g.Name, err)
		}
	}
	report, err := f.Groups.Settle(ctx)
	r.Groups = report.Counts
	for _, text := range report.Errors {
		r.fault("", text)
	}
	if err != nil {
		return fmt.Errorf("bring the rooms of groups up to date: %w", err)
	}
	return nil
}

// changedUnits are the units that differ.
func changedUnits(before, now map[string]*groups.Group) []groups.Group {
	var out []groups.Group
	for _, unitID := range slices.Sorted(maps.Keys(now)) {
		old, g := before[unitID], now[unitID]
		if old == nil || old.Name != g.Name || old.ParentID != g.ParentID || old.DN != g.DN || !slices.Equal(old.Members, g.Members) {
			out = append(out, *g)
		}
	}
	for _, unitID := range slices.Sorted(maps.Keys(before)) {
		if now[unitID] == nil {
			g := *before[unitID]
			g.Gone = true
			out = append(out, g)
		}
	}
	return out
}
