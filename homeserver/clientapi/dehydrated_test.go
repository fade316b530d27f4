package clientapi_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"testing"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/hstest"
)

func TestDehydratedDevice(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		const path = "/unstable/org.matrix.msc3814.v1/dehydrated_device"
		alice, bob := hs.User("alice"), hs.User("bob")
		if r := alice.Do(t, "GET", "", path); r.Status != 404 {
			t.Fatalf("before there is one: %d", r.Status)
		}
		put := func(device string) hstest.Response {
			public, private, err := ed25519.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			key := base64.RawStdEncoding.EncodeToString(public)
			object := fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"curve25519:%s":%q,"ed25519:%[2]s":%[4]q},"dehydrated":true}`, alice.UserID, device, device, key)
			signed, err := event.CanonicalJSON([]byte(object))
			if err != nil {
				t.Fatal(err)
			}
			keys := fmt.Sprintf(`%s,"signatures":{%q:{"ed25519:%s":%q}}}`, object[:len(object)-1], alice.UserID, device, base64.RawStdEncoding.EncodeToString(ed25519.Sign(private, signed)))
			return alice.Do(t, "PUT", `{"device_id":"`+device+`","device_data":{"algorithm":"x"},"initial_device_display_name":"Asleep","device_keys":`+keys+`}`, path)
		}
		if r := put("SLEEPER"); r.Status != 200 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		if got := alice.Must(t, "GET", "", path); got["device_id"] != "SLEEPER" || hstest.At(got, "device_data", "algorithm") != "x" {
			t.Errorf("stored %v", got)
		}
		keys := bob.Must(t, "POST", fmt.Sprintf(`{"device_keys":{%q:[]}}`, alice.UserID), "/v3/keys/query")
		if hstest.At(keys, "device_keys", string(alice.UserID), "SLEEPER", "dehydrated") != true {
			t.Errorf("others see %v", keys)
		}
		bob.Must(t, "PUT", fmt.Sprintf(`{"messages":{%q:{"SLEEPER":{"n":1}}}}`, alice.UserID), "/v3/sendToDevice/org.example.key/t1")
		first := alice.Must(t, "POST", `{}`, path+"/SLEEPER/events")
		if hstest.At(first, "events", 0, "content", "n") != 1.0 {
			t.Errorf("received %v", first)
		}
		next := first["next_batch"].(string)
		if more := alice.Must(t, "GET", "", path+"/SLEEPER/events?from=%s", next); len(more["events"].([]any)) != 0 {
			t.Errorf("twice: %v", more)
		}
		if r := alice.Do(t, "POST", `{"next_batch":"x"}`, path+"/SLEEPER/events"); r.Status != 400 {
			t.Errorf("a wrong token: %d", r.Status)
		}
		if r := bob.Do(t, "POST", `{}`, path+"/SLEEPER/events"); r.Status != 404 {
			t.Errorf("another user's: %d", r.Status)
		}
		if r := put("SECOND"); r.Status != 200 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		if r := alice.Do(t, "POST", `{}`, path+"/SLEEPER/events"); r.Status != 403 {
			t.Errorf("the one that was replaced: %d", r.Status)
		}
		if r := alice.Do(t, "GET", "", "/v3/devices/SLEEPER"); r.Status != 404 {
			t.Errorf("the one that was replaced is still there: %d", r.Status)
		}
		alice.Must(t, "DELETE", "", path)
		if r := alice.Do(t, "DELETE", "", path); r.Status != 404 {
			t.Errorf("deleted twice: %d", r.Status)
		}
	})
}
