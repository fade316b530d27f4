package account

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// PutDevice makes a device without a session for a user of an application service, or names the one that there is. It
// tells whether the device is new. Errors: M_INVALID_PARAM, M_FORBIDDEN for the id of a cross-signing key.
// Spec: application service API, "Device management".
func (a *Accounts) PutDevice(ctx context.Context, user id.UserID, device id.DeviceID, name *string) (made bool, err error) {
	if device == "" {
		return false, mxerr.InvalidParam("the device id is empty")
	}
	if err := ValidateDeviceID(device); err != nil {
		return false, err
	}
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(user)
		switch {
		case err != nil:
			return err
		case !found:
			return errNoUser
		case u.Deactivated:
			return errDeactivated
		}
		made, err = tx.InsertDevice(store.Device{User: user, ID: device, DisplayName: cutName(name), Created: a.now()})
		if err != nil {
			return err
		}
		if made {
			return notCrossSigning(tx, user, device)
		}
		if name == nil {
			return nil
		}
		if _, err := tx.SetDeviceName(user, device, *cutName(name)); err != nil {
			return err
		}
		return tx.AnnounceDeviceList(user)
	})
	return made, err
}
