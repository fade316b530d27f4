package people

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	sweepEvery = time.Minute
	sweepChunk = 20 // accounts that are deactivated in one go
	lease      = "people"
)

// Find tells whose an id of a source is.
func (p *People) Find(ctx context.Context, source, externalID string) (id.UserID, bool, error) {
	e, found, err := p.read(ctx, source, externalID)
	return e.User, found, err
}

// Get reads the link of an id of a source.
func (p *People) Get(ctx context.Context, source, externalID string) (Link, bool, error) {
	e, found, err := p.read(ctx, source, externalID)
	return linkOf(e), found, err
}

// Links lists who an account is for sources.
func (p *People) Links(ctx context.Context, user id.UserID) ([]Link, error) {
	var out []Link
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		list, err := tx.ExternalIDs(user)
		out = make([]Link, len(list))
		for i, e := range list {
			out[i] = linkOf(e)
		}
		return err
	})
	return out, err
}

// Of lists everybody whom a source knows, by the source's ids.
func (p *People) Of(ctx context.Context, source string) (map[string]Link, error) {
	out := map[string]Link{}
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		clear(out)
		return tx.EachExternalID(source, func(e store.ExternalID) { out[e.ID] = linkOf(e) })
	})
	return out, err
}

// Link notes who an existing account is for a source. Errors: M_NOT_FOUND for accounts that do not exist, M_USER_IN_USE
// where the id is another account's.
func (p *People) Link(ctx context.Context, source, externalID string, user id.UserID) error {
	if source == "" || externalID == "" {
		return mxerr.InvalidParam("a link needs a source and an id there")
	}
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		_, found, err := tx.LockUser(user)
		switch {
		case err != nil:
			return err
		case !found:
			return mxerr.NotFound("there is no such user on this server")
		}
		linked, err := tx.InsertExternalID(store.ExternalID{Source: source, ID: externalID, User: user, Created: p.Clock().UnixMilli(), Active: true})
		if err != nil {
			return err
		}
		if !linked {
			e, _, err := tx.ExternalID(source, externalID)
			if err == nil && e.User != user {
				err = mxerr.New(http.StatusBadRequest, "M_USER_IN_USE", fmt.Sprintf("this id is linked to %s", e.User))
			}
			return err
		}
		return p.note(ctx, tx, act{source: source, externalID: externalID, user: user, what: "linked"})
	})
}

// Unlink takes a link away. What the source said of the account stays, but an account that only this source barred can
// be used again.
func (p *People) Unlink(ctx context.Context, source, externalID string) error {
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		e, found, err := tx.ExternalID(source, externalID)
		if err != nil || !found {
			return err
		}
		if _, err := tx.DeleteExternalID(source, externalID); err != nil {
			return err
		}
		if err := p.note(ctx, tx, act{source: source, externalID: externalID, user: e.User, what: "unlinked"}); err != nil {
			return err
		}
		return p.enableIfActive(tx, e.User)
	})
}

// Relink says that an account is somebody else for a source than it was: what the source calls by another id now. What it said
// of the account before stays, and it can be used again. Errors: M_NOT_FOUND, M_USER_DEACTIVATED, M_USER_IN_USE where the id is
// another account's.
func (p *People) Relink(ctx context.Context, source, externalID string, user id.UserID) error {
	return p.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(user)
		switch {
		case err != nil:
			return err
		case !found:
			return mxerr.NotFound("there is no such user on this server")
		case u.Deactivated:
			return mxerr.New(http.StatusForbidden, "M_USER_DEACTIVATED", "this account was deactivated for good: the person needs another one")
		}
		if e, linked, err := tx.ExternalID(source, externalID); err != nil || linked {
			if err == nil && e.User != user {
				err = mxerr.New(http.StatusBadRequest, "M_USER_IN_USE", fmt.Sprintf("this id is linked to %s", e.User))
			}
			return err
		}
		links, err := tx.ExternalIDs(user)
		if err != nil {
			return err
		}
		e := store.ExternalID{Source: source, ID: externalID, User: user, Created: p.Clock().UnixMilli(), Active: true}
		for _, l := range links {
			if l.Source != source {
				continue
			}
			e.Person = l.Person
			if _, err := tx.DeleteExternalID(source, l.ID); err != nil {
				return err
			}
			if err := p.note(ctx, tx, act{source: source, externalID: l.ID, user: user, what: "unlinked"}); err != nil {
				return err
			}
		}
		if _, err := tx.InsertExternalID(e); err != nil {
			return err
		}
		if err := p.note(ctx, tx, act{source: source, externalID: externalID, user: user, what: "linked"}); err != nil {
			return err
		}
		return p.enableIfActive(tx, user)
	})
}

// Disable bars the account of a person who is gone: its sessions end softly, its devices and keys stay, its pushers go,
// and nobody can sign in. Nobody knowing the person is fine.
func (p *People) Disable(ctx context.Context, source, externalID, reason string) error {
	e, found, err := p.read(ctx, source, externalID)
	if err != nil || !found {
		return err
	}
	_, err = p.disable(ctx, e, reason, nil)
	return err
}

func (p *People) disable(ctx context.Context, e store.ExternalID, reason string, person *Person) (changed bool, err error) {
	if !e.Active {
		return false, nil
	}
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SetExternalActive(e.Source, e.ID, false, reason); err != nil {
			return err
		}
		if err := p.note(ctx, tx, act{source: e.Source, externalID: e.ID, person: person, user: e.User, what: "disabled", reason: reason}); err != nil {
			return err
		}
		_, err := p.Accounts.Disable(tx, e.User)
		return err
	})
	if err == nil {
		p.Logger.Info("account disabled by its source", "user_id", e.User, "source", e.Source, "reason", reason)
	}
	return err == nil, err
}

// Enable takes back what Disable did: the person signs in again, with the same user id, rooms and devices. An account
// that another source bars too stays barred. Nobody knowing the person is fine.
func (p *People) Enable(ctx context.Context, source, externalID string) error {
	e, found, err := p.read(ctx, source, externalID)
	if err != nil || !found {
		return err
	}
	_, err = p.enable(ctx, e, nil)
	return err
}

func (p *People) enable(ctx context.Context, e store.ExternalID, person *Person) (changed bool, err error) {
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(e.User)
		if changed = err == nil && found && (u.Disabled != 0 || !e.Active); !changed {
			return err
		}
		if err := tx.SetExternalActive(e.Source, e.ID, true, ""); err != nil {
			return err
		}
		if err := p.note(ctx, tx, act{source: e.Source, externalID: e.ID, person: person, user: e.User, what: "enabled"}); err != nil {
			return err
		}
		return p.enableIfActive(tx, e.User)
	})
	return changed, err
}

// enableIfActive lets an account be used that no source bars any more.
func (p *People) enableIfActive(tx *store.Tx, user id.UserID) error {
	links, err := tx.ExternalIDs(user)
	if err != nil {
		return err
	}
	for _, l := range links {
		if !l.Active {
			return nil
		}
	}
	_, err = p.Accounts.Enable(tx, user)
	return err
}

// Run deactivates accounts that have been barred for the configured time, until ctx ends.
func (p *People) Run(ctx context.Context) error {
	if p.DeactivateAfter == 0 {
		<-ctx.Done()
		return nil
	}
	return p.Store.RunLeased(ctx, lease, func(ctx context.Context) error {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := p.Sweep(ctx); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
	})
}

// Sweep deactivates whoever has been barred for long enough.
func (p *People) Sweep(ctx context.Context) error {
	before := p.Clock().Add(-p.DeactivateAfter).UnixMilli()
	for {
		var due []id.UserID
		err := p.Store.Read(ctx, func(tx *store.Tx) error {
			var err error
			due, err = tx.DisabledBefore(before, sweepChunk)
			return err
		})
		if err != nil || len(due) == 0 {
			return err
		}
		for _, user := range due {
			if err := p.Accounts.Deactivate(ctx, user, false); err != nil {
				return fmt.Errorf("deactivate %s: %w", user, err)
			}
			err := p.Store.Write(ctx, func(tx *store.Tx) error {
				return p.note(ctx, tx, act{user: user, what: "deactivated", reason: "barred for " + p.DeactivateAfter.String()})
			})
			if err != nil {
				return err
			}
		}
	}
}
