package groups

import (
	"context"
	"fmt"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// serviceType is the user_type of the service account: it belongs to no person.
const serviceType = "bot"

// Service is the account that makes and owns the rooms of groups. It is made when it is first needed; it has no
// password, so nobody signs in as it. A person's account of that name is not taken.
func (g *Groups) Service(ctx context.Context) (id.UserID, error) {
	g.serviceMu.Lock()
	defer g.serviceMu.Unlock()
	if g.service != "" {
		return g.service, nil
	}
	user := g.d.Accounts.UserID(g.d.Config.ServiceAccount)
	u, err := g.d.Accounts.User(ctx, user)
	if mxerr.Is(err, "M_NOT_FOUND") {
		u, err = g.d.Accounts.CreateUser(ctx, account.NewUser{
			Localpart: g.d.Config.ServiceAccount, DisplayName: g.d.Config.ServiceName, Type: serviceType, Unreserved: true,
		})
		if mxerr.Is(err, "M_USER_IN_USE") { // another process was quicker
			u, err = g.d.Accounts.User(ctx, user)
		}
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("the service account %s: %w", user, err)
	case u.Type != serviceType:
		return "", mxerr.Forbidden(fmt.Sprintf("the account %s belongs to a person: groups.service_account must name another", user))
	case u.Deactivated || u.Locked:
		return "", mxerr.Forbidden(fmt.Sprintf("the service account %s is locked or deactivated, so it can make no rooms", user))
	}
	g.service = u.ID
	return u.ID, nil
}

// profiles reads what users are called, for their member events.
func (g *Groups) profiles(ctx context.Context, users []id.UserID) (map[id.UserID]store.Profile, error) {
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = string(u)
	}
	var out map[id.UserID]store.Profile
	err := g.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		out, err = tx.Profiles(names)
		return err
	})
	return out, err
}
