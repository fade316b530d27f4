package account

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Device is one client of a user.
type Device = store.Device

var errNoDevice = mxerr.NotFound("there is no such device")

// Devices lists a user's devices by id.
func (a *Accounts) Devices(ctx context.Context, user id.UserID) ([]Device, error) {
	var out []Device
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		out, err = tx.Devices(user)
		return err
	})
	return out, err
}

// Device reads a device; an unknown one is 404 M_NOT_FOUND.
func (a *Accounts) Device(ctx context.Context, user id.UserID, device id.DeviceID) (Device, error) {
	var d Device
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		if d, found, err = tx.Device(user, device); err == nil && !found {
			return errNoDevice
		}
		return err
	})
	return d, err
}

// RenameDevice gives a device a display name; an unknown one is 404 M_NOT_FOUND.
func (a *Accounts) RenameDevice(ctx context.Context, user id.UserID, device id.DeviceID, name string) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.SetDeviceName(user, device, *cutName(&name))
		if err != nil {
			return err
		}
		if !found {
			return errNoDevice
		}
		return tx.AnnounceDeviceList(user) // others see the name beside the device's keys
	})
}
