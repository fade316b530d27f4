package account

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Dehydrated is a device without a client: it receives keys of messages while its user is signed in nowhere, until another
// device takes them over (MSC3814).
type Dehydrated struct {
	ID          id.DeviceID
	Data        jsontext.Value // what the client needs to wake it up; encrypted by the client
	DisplayName *string
}

var errNoDehydrated = mxerr.NotFound("you have no dehydrated device")

// DehydratedDevice reads a user's dehydrated device. M_NOT_FOUND where there is none.
func (a *Accounts) DehydratedDevice(ctx context.Context, user id.UserID) (Dehydrated, error) {
	var out Dehydrated
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) error {
		device, data, ok, err := tx.DehydratedDevice(user)
		if err == nil && !ok {
			err = errNoDehydrated
		}
		out.ID, out.Data = device, jsontext.Value(data)
		return err
	})
	return out, err
}

// Dehydrate makes a device that is dehydrated; an earlier one goes. Its keys are uploaded afterwards.
func (a *Accounts) Dehydrate(ctx context.Context, user id.UserID, d Dehydrated) error {
	if err := ValidateDeviceID(d.ID); err != nil {
		return err
	}
	if d.ID == "" {
		return mxerr.MissingParam("'device_id' is required")
	}
	old, err := a.DehydratedDevice(ctx, user)
	if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	if err == nil && old.ID != d.ID {
		if err := a.DropDehydrated(ctx, user, old.ID); err != nil {
			return err
		}
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if _, _, err := tx.LockUser(user); err != nil {
			return err
		}
		isNew, err := tx.InsertDevice(store.Device{User: user, ID: d.ID, DisplayName: cutName(d.DisplayName), Created: a.now()})
		if err != nil {
			return err
		}
		if !isNew && old.ID != d.ID {
			return mxerr.InvalidParam("you have another device of this id")
		}
		if err := notCrossSigning(tx, user, d.ID); err != nil {
			return err
		}
		return tx.SetDehydratedDevice(user, d.ID, store.Content(d.Data))
	})
}

// DropDehydrated deletes a dehydrated device with its keys and messages.
func (a *Accounts) DropDehydrated(ctx context.Context, user id.UserID, device id.DeviceID) error {
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		ok, err := tx.DropDehydratedDevice(user, device)
		if err == nil && !ok {
			err = errNoDehydrated
		}
		return err
	})
	if err != nil {
		return err
	}
	return a.EndSessions(ctx, user, Ending{Devices: []id.DeviceID{device}})
}
