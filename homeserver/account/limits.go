package account

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// keysOpen is for how long OpenKeys holds: long enough for a client that is asked to reset.
const keysOpen = 10 * time.Minute

// RateLimit is what one account may send instead of what everybody may.
type RateLimit struct {
	PerSecond int64 // 0: no request of the account is limited
	Burst     int64
}

// SetRateLimit gives an account a limit of its own; nil gives it the server's again. M_NOT_FOUND: there is no such account.
func (a *Accounts) SetRateLimit(ctx context.Context, user id.UserID, limit *RateLimit) error {
	e := audit.Entry{Action: "user.rate_limit", Target: string(user)}
	var perSecond, burst *int64
	if limit != nil {
		perSecond, burst = &limit.PerSecond, &limit.Burst
		e.Details = map[string]any{"per_second": limit.PerSecond, "burst": limit.Burst}
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.SetUserLimit(user, perSecond, burst)
		if err == nil && !found {
			err = errNoUser
		}
		if err != nil {
			return err
		}
		if err := audit.Append(ctx, tx, e); err != nil {
			return err
		}
		return announceUser(tx, user)
	})
}

// OpenKeys lets a user replace cross-signing keys once without another authentication, until the time (ms) that it gives: for whoever
// cannot authenticate where the client asks for it. M_NOT_FOUND: the user has no such keys.
func (a *Accounts) OpenKeys(ctx context.Context, user id.UserID) (until int64, err error) {
	until = a.now() + keysOpen.Milliseconds()
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		keys, err := tx.CrossSigningKeys([]string{string(user)})
		if err != nil {
			return err
		}
		master := false
		for _, k := range keys {
			master = master || k.Usage == usageMaster
		}
		if !master {
			return mxerr.NotFound("this user has no cross-signing keys: the first ones need no permission")
		}
		if err := tx.OpenKeys(user, until); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "keys.cross_signing.opened", Target: string(user), Details: map[string]any{"until": until}})
	})
	return until, err
}
