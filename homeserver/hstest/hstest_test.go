package hstest_test

import (
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestStart signs a user in on a real server, on both databases.
func TestStart(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		if got := alice.Must(t, "GET", "", "/v3/account/whoami")["user_id"]; got != "@alice:test" {
			t.Errorf("whoami: %v", got)
		}
		again := alice.Login()
		if again.DeviceID == alice.DeviceID {
			t.Error("a second sign-in took the first one's device")
		}
		if r := hs.Anonymous().Do(t, "GET", "", "/v3/account/whoami"); r.Status != 401 || r.Errcode != "M_MISSING_TOKEN" {
			t.Errorf("without a token: %d %s", r.Status, r.Errcode)
		}
		if r := alice.Do(t, "GET", "", "/v3/no/such/endpoint"); r.Status != 404 || r.Errcode != "M_UNRECOGNIZED" {
			t.Errorf("unknown endpoint: %d %s", r.Status, r.Errcode)
		}
	})
}
