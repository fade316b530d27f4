package push

import (
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// DeviceDeleted removes what belongs to a device, in the transaction that deletes it: the account data in which clients note that
// the device shall be silent (MSC3890), under either name.
func DeviceDeleted(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	const settings = "local_notification_settings."
	return tx.DeleteAccountData(user, "org.matrix.msc3890."+settings+string(device), "m."+settings+string(device))
}
