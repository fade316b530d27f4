package groups

import (
	"context"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// SetMemberships says which groups of a source a user is in, where that is all that the source tells of them: an identity
// provider at a sign-in. A group is known by its name; one that is not there is made. The rooms follow in the background.
func (g *Groups) SetMemberships(ctx context.Context, source string, user id.UserID, names []string) error {
	diff := func(tx *store.Tx) (add, remove []string, err error) {
		rows, err := tx.CompanyGroupsOf([]id.UserID{user})
		if err != nil {
			return nil, nil, err
		}
		var have []string
		for _, row := range rows {
			if row.Source == source && !row.Gone {
				have = append(have, row.ID)
			}
		}
		for _, name := range names {
			if !slices.Contains(have, name) && !slices.Contains(add, name) {
				add = append(add, name)
			}
		}
		return add, slices.DeleteFunc(have, func(name string) bool { return slices.Contains(names, name) }), nil
	}
	var add, remove []string
	err := g.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		add, remove, err = diff(tx)
		return err
	})
	if err != nil || len(add)+len(remove) == 0 {
		return err
	}
	err = g.d.Store.Write(ctx, func(tx *store.Tx) error {
		add, remove, err := diff(tx)
		if err != nil {
			return err
		}
		slices.Sort(add) // rows are locked in one order
		for _, name := range add {
			x := Group{Source: source, ExternalID: name, Name: name, Kind: KindGroup}
			if err := g.AddTo(tx, x, []id.UserID{user}); err != nil {
				return err
			}
		}
		for _, name := range remove {
			if err := g.RemoveFrom(tx, source, name, []id.UserID{user}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		g.wake()
	}
	return err
}
