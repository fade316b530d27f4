package push_test

import (
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestSilentDeviceDeleted: what clients note of a device's notifications goes with the device, and nothing else does.
func TestSilentDeviceDeleted(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		phone := alice.Login()
		const path = "/v3/user/%s/account_data/org.matrix.msc3890.local_notification_settings.%s"
		for _, c := range []*hstest.Client{phone, alice} {
			alice.Must(t, "PUT", `{"is_silenced":true}`, path, alice.UserID, c.DeviceID)
		}
		phone.Must(t, "POST", `{}`, "/v3/logout")
		if r := alice.Do(t, "GET", "", path, alice.UserID, phone.DeviceID); r.Status != 404 {
			t.Errorf("of the device that is gone: %d %s", r.Status, r.Body)
		}
		alice.Must(t, "GET", "", path, alice.UserID, alice.DeviceID)
	})
}
