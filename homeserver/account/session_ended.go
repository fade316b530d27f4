package account

import (
	"context"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// SessionEnded looks again at who makes a request that has waited: nil while the session goes on, else the error that a
// new request would get. A session that was replaced by a refresh has ended too.
func (a *Accounts) SessionEnded(ctx context.Context, who *web.Identity) error {
	if who.SessionID == 0 {
		return nil // not by an access token of a device
	}
	var row Session
	var u User
	var found bool
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if row, found, err = tx.Session(who.SessionID); err != nil || !found {
			return err
		}
		u, found, err = tx.User(who.UserID)
		return err
	})
	switch {
	case err != nil:
		return err
	case !found || u.Deactivated:
		return errUnknownToken
	case row.Expires != 0 && row.Expires <= a.now():
		return errExpired
	case u.Locked:
		return errLocked
	}
	return nil
}
