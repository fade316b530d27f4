package account

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// ExpireSession lets the tokens of a device's session end at a time.
func (a *Accounts) ExpireSession(ctx context.Context, user id.UserID, device id.DeviceID, at time.Time) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.LimitDeviceSessions(user, device, at.UnixMilli()); err != nil {
			return err
		}
		return announceSessions(tx, user, device)
	})
}
