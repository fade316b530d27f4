package ldapsync

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// What is done about a person.
const (
	opCreate  = "create"
	opUpdate  = "update"
	opEnable  = "enable"
	opDisable = "disable"
	opGone    = "gone"
)

// op is one act about one person.
type op struct {
	what string
	e    *entry // nil for who is gone
	id   string
	dn   string
	user id.UserID // "" for who has no account yet
	why  string
}

// bars tells whether the act ends sessions.
func (o *op) bars() bool { return o.what == opDisable || o.what == opGone }

// userOps finds out what is to be done about people: those in entries, and those that are gone.
func (d *directory) userOps(s *state, entries []*entry, gone []string) (ops []op, errs []EntryError) {
	users := make([]*entry, 0, len(entries))
	for _, e := range entries {
		if e.kind == store.DirectoryUser {
			users = append(users, e)
		}
	}
	slices.SortFunc(users, func(a, b *entry) int { return cmp.Compare(a.key, b.key) })
	wanted := map[string][]*entry{}
	for _, e := range users {
		for _, w := range e.warnings {
			errs = append(errs, EntryError{e.dn, w})
		}
		link, linked := s.links[e.id]
		o := op{e: e, id: e.id, dn: e.dn, user: link.User}
		switch {
		case !linked && e.why != "":
			continue // nobody who cannot sign in gets an account
		case !linked && e.localpartErr != nil:
			errs = append(errs, EntryError{e.dn, e.localpartErr.Error()})
			continue
		case !linked:
			wanted[e.person.Localpart] = append(wanted[e.person.Localpart], e)
			o.what, o.user = opCreate, d.Accounts.UserID(e.person.Localpart)
		case e.why != "" && link.Active:
			o.what, o.why = opDisable, e.why
		case e.why != "":
			continue
		case !link.Active:
			o.what = opEnable
		case s.items[e.id] == nil || s.items[e.id].digest != string(e.digest):
			o.what = opUpdate
		default:
			continue
		}
		ops = append(ops, o)
	}
	// Which of two is meant nobody can know but the directory's administrator.
	ops = slices.DeleteFunc(ops, func(o op) bool {
		if o.what != opCreate || len(wanted[o.e.person.Localpart]) == 1 {
			return false
		}
		for _, other := range wanted[o.e.person.Localpart] {
			if other != o.e {
				errs = append(errs, EntryError{o.dn, fmt.Sprintf("the localpart %s is that of %s too: neither gets an account", o.e.person.Localpart, other.dn)})
				break
			}
		}
		return true
	})
	for _, entryID := range gone {
		if link, linked := s.links[entryID]; linked && link.Active {
			o := op{what: opGone, id: entryID, user: link.User, why: "gone from the directory"}
			if it := s.items[entryID]; it != nil {
				o.dn = it.dn
			}
			ops = append(ops, o)
		}
	}
	return ops, errs
}

// work applies acts about people, several at a time, and collects what is to be stored.
type work struct {
	f       *follower
	s       *state
	r       *Report
	touched map[string]bool // keys of users who are to be looked for in groups

	mu    sync.Mutex
	dirty map[string]store.DirectoryItem // by id: one statement writes an entry once
}

// users does the acts. What is wrong with one person is reported and stops nobody else; an error of our own stops all.
func (w *work) users(ctx context.Context, ops []op) error {
	// Whoever leaves is out first.
	slices.SortStableFunc(ops, func(a, b op) int { return boolInt(b.bars()) - boolInt(a.bars()) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(w.workers())
	for i := range ops {
		o := &ops[i]
		g.Go(func() error {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return w.one(ctx, o)
		})
	}
	return g.Wait()
}

func (w *work) workers() int {
	switch n := w.f.cfg.Sync.Workers; {
	case n > 0:
		return n
	case w.f.Store.SQLite():
		return 8
	default:
		return 2
	}
}

func (w *work) one(ctx context.Context, o *op) error {
	var user id.UserID
	var change people.Change
	var err error
	began := time.Now()
	if !o.bars() { // whoever is to be out is not kept waiting for
		ctx = store.Riding(ctx)
	}
	if o.what == opGone || o.what == opDisable {
		err = w.f.People.Disable(ctx, w.f.source, o.id, o.why)
		user, change.Disabled = o.user, true
	} else {
		person := o.e.person
		person.Manager = w.managerName(o.e)
		user, change, err = w.f.People.Upsert(ctx, person)
	}
	if fatal(err) {
		return fmt.Errorf("%s: %w", o.dn, err)
	}
	if !o.bars() {
		groups.Yield(ctx, w.f.Store, time.Since(began))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		w.r.fault(o.dn, plain(err))
		if it := w.s.items[o.id]; it != nil && o.e != nil {
			it.digest = "" // it is tried again
		}
		return nil
	}
	for _, warning := range change.Warnings {
		w.r.fault(o.dn, warning)
	}
	w.r.count(o, change)
	if o.bars() {
		w.f.barred(1)
	}
	l := w.s.links[o.id]
	l.Source, l.ExternalID, l.User, l.Active = w.f.source, o.id, user, !o.bars()
	w.s.links[o.id] = l
	if o.e == nil {
		return nil
	}
	w.touched[o.e.key] = true
	it := w.s.items[o.id]
	if it == nil {
		return nil
	}
	return w.keepLocked(ctx, it)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// managerName is whom the entry names as manager, for people.
func (w *work) managerName(e *entry) string {
	if e.manager == "" {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if it := w.s.find(e.manager); it != nil && it.data.Name != "" {
		return it.data.Name
	}
	return firstRDN(e.manager)
}

// keepLocked collects an item to be stored; what was done is stored soon, so that a killed run does not do it all again.
func (w *work) keepLocked(ctx context.Context, it *item) error {
	row, err := it.row()
	if err != nil {
		return err
	}
	if w.dirty == nil {
		w.dirty = map[string]store.DirectoryItem{}
	}
	w.dirty[row.ID] = row
	if len(w.dirty) < flushSize {
		return nil
	}
	return w.flushLocked(ctx)
}

func (w *work) flushLocked(ctx context.Context) error {
	rows := slices.Collect(maps.Values(w.dirty))
	clear(w.dirty)
	return w.f.Store.Write(ctx, func(tx *store.Tx) error { return tx.PutDirectoryItems(w.f.cfg.ID, rows) })
}

// finish stores what is left, with the rest that belongs to it.
func (w *work) finish(ctx context.Context, rest func(tx *store.Tx) error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.flushLocked(ctx); err != nil {
		return err
	}
	return w.f.Store.Write(ctx, rest)
}

// barred notes that accounts were barred, for the limit by the hour.
func (f *follower) barred(n int) {
	now := f.Clock()
	for range n {
		f.recent = append(f.recent, now)
	}
}

// lately counts the accounts that were barred within the last hour.
func (f *follower) lately() int {
	limit := f.Clock().Add(-time.Hour)
	f.recent = slices.DeleteFunc(f.recent, func(t time.Time) bool { return t.Before(limit) })
	return len(f.recent)
}
