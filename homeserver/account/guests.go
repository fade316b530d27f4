package account

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// PromoteGuest makes a guest a full user with a password; approval pays for it as for a new account. The rooms stay.
// Errors: M_FORBIDDEN where the account is no guest, ErrApprovalSpent.
func (a *Accounts) PromoteGuest(ctx context.Context, user id.UserID, password string, approval UIA) error {
	h, err := a.hashPassword(ctx, password)
	if err != nil {
		return err
	}
	if err := a.SpendUIA(ctx, approval); err != nil {
		return err
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		ok, err := tx.PromoteGuest(user, h)
		if err != nil {
			return err
		}
		if !ok {
			return mxerr.Forbidden("this account is not that of a guest")
		}
		if err := audit.Append(ctx, tx, audit.Entry{Action: "user.guest.promoted", Target: string(user), Result: audit.OK}); err != nil {
			return err
		}
		return announceUser(tx, user)
	})
}
