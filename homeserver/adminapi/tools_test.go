package adminapi_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestRateLimitOfUser gives an account limits of its own, lifts them and takes that back, all of which holds at once.
func TestRateLimitOfUser(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice := admin(t, hs), hs.User("alice")
		room := alice.CreateRoom("private_chat")
		path := "/v1/users/" + q(alice.UserID) + "/override_ratelimit"
		sent := 0
		// sends counts how many of n messages are taken
		sends := func(n int) (taken int) {
			for range n {
				sent++
				if r := alice.Do(t, "PUT", `{"msgtype":"m.text","body":"x"}`, "/v3/rooms/%s/send/m.room.message/%s", room, fmt.Sprint("r", sent)); r.Status == 200 {
					taken++
				}
			}
			return taken
		}
		if got := want(t, root, 200, "GET", path, ""); len(got) != 0 {
			t.Errorf("at first %v", got)
		}
		if taken := sends(10); taken > 5 {
			t.Errorf("%d of 10 messages are taken with the server's limits", taken)
		}
		if got := want(t, root, 200, "POST", path, `{"messages_per_second":0,"burst_count":0}`); got["messages_per_second"] != 0.0 || got["burst_count"] != 0.0 {
			t.Errorf("lifted %v", got)
		}
		if taken := sends(20); taken != 20 {
			t.Errorf("%d of 20 messages are taken without limits", taken)
		}
		want(t, root, 200, "DELETE", path, "")
		if taken := sends(10); taken > 5 {
			t.Errorf("%d of 10 messages are taken with the server's limits again", taken)
		}
		want(t, root, 200, "POST", path, `{"messages_per_second":1000,"burst_count":1000}`)
		if got := want(t, root, 200, "GET", path, ""); got["messages_per_second"] != 1000.0 || got["burst_count"] != 1000.0 {
			t.Errorf("set %v", got)
		}
		testkit.Eventually(t, "the account's own limit holds", func() bool { return sends(1) == 1 })
		if taken := sends(20); taken != 20 {
			t.Errorf("%d of 20 messages are taken with a limit of 1,000 a second", taken)
		}
		want(t, root, 400, "POST", path, `{"messages_per_second":-1}`)
		want(t, root, 404, "GET", "/v1/users/"+q("@none:"+root.UserID.Homeserver())+"/override_ratelimit", "")
		want(t, root, 200, "POST", "/v1/deactivate/"+q(alice.UserID), "{}")
		if got := want(t, root, 200, "GET", path, ""); len(got) != 0 {
			t.Errorf("after the account's end %v", got)
		}
	}, func(c *homeserver.Config) {
		c.RateLimits.Enabled = true
		c.RateLimits.Send = homeserver.RateLimit{PerSecond: 0.01, Burst: 5}
	})
}

// TestUserReports lists reports of users, apart from those of events.
func TestUserReports(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice, bob := admin(t, hs), hs.User("alice"), hs.User("bob")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		bob.Must(t, "POST", `{"reason":"rude"}`, "/v3/rooms/%s/report/%s", room, alice.Text(room, "rude"))
		bob.Must(t, "POST", `{"reason":"rude room"}`, "/v3/rooms/%s/report", room)
		bob.Must(t, "POST", `{"reason":"rude person"}`, "/v3/users/%s/report", alice.UserID)
		time.Sleep(2 * time.Millisecond) // reports of one millisecond have no order
		alice.Must(t, "POST", `{"reason":"told on me"}`, "/v3/users/%s/report", bob.UserID)
		list := want(t, root, 200, "GET", "/v1/user_reports?limit=1", "")
		if list["total"] != 2.0 || list["next_token"] != 1.0 || hstest.At(list, "user_reports", 0, "reason") != "told on me" {
			t.Fatalf("the newest of all %v", list)
		}
		list = want(t, root, 200, "GET", "/v1/user_reports?dir=f&user_id="+q(bob.UserID)+"&target_user_id="+q(alice.UserID), "")
		if list["total"] != 1.0 || hstest.At(list, "user_reports", 0, "target_user_id") != string(alice.UserID) || hstest.At(list, "user_reports", 0, "user_id") != string(bob.UserID) {
			t.Fatalf("bob's of alice %v", list)
		}
		number := func(id any) string { return fmt.Sprintf("/%.0f", id) }
		one := number(hstest.At(list, "user_reports", 0, "id"))
		if got := want(t, root, 200, "GET", "/v1/user_reports"+one, ""); got["reason"] != "rude person" {
			t.Errorf("one %v", got)
		}
		want(t, root, 404, "GET", "/v1/event_reports"+one, "")
		want(t, root, 404, "DELETE", "/v1/event_reports"+one, "")
		events := want(t, root, 200, "GET", "/v1/event_reports", "")
		if events["total"] != 1.0 {
			t.Errorf("of events %v", events)
		}
		want(t, root, 404, "GET", "/v1/user_reports"+number(hstest.At(events, "event_reports", 0, "id")), "")
		want(t, root, 200, "DELETE", "/v1/user_reports"+one, "")
		want(t, root, 404, "GET", "/v1/user_reports"+one, "")
		want(t, root, 400, "GET", "/v1/user_reports/x", "")
	})
}

// TestKeysOpened lets a user replace cross-signing keys once without another authentication.
func TestKeysOpened(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		root, alice := admin(t, hs), hs.User("alice")
		path := "/v1/users/" + q(alice.UserID) + "/_allow_cross_signing_replacement_without_uia"
		upload := func(key string) int {
			body := fmt.Sprintf(`{"master_key":{"user_id":%q,"usage":["master"],"keys":{"ed25519:%[2]s":%[2]q}}}`, alice.UserID, key)
			return alice.Do(t, "POST", body, "/v3/keys/device_signing/upload").Status
		}
		const first, second, third = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA", "CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCA"
		want(t, root, 404, "POST", path, "{}")
		if status := upload(first); status != 200 {
			t.Fatalf("the first keys: %d", status)
		}
		if status := upload(second); status != 401 {
			t.Errorf("other keys without authentication: %d", status)
		}
		if got := want(t, root, 200, "POST", path, "{}"); got["updatable_without_uia_before_ms"].(float64) < 1.5e12 {
			t.Errorf("opened %v", got)
		}
		if status := upload(second); status != 200 {
			t.Errorf("other keys when that was allowed: %d", status)
		}
		if status := upload(third); status != 401 {
			t.Errorf("once more without authentication: %d", status)
		}
	})
}

// TestTasks lists background work, and that no feature is for single users.
func TestTasks(t *testing.T) {
	hs := hstest.Start(t)
	root, alice := admin(t, hs), hs.User("alice")
	room := alice.CreateRoom("private_chat")
	if got := want(t, root, 200, "GET", "/v1/scheduled_tasks", ""); len(got["scheduled_tasks"].([]any)) != 0 {
		t.Errorf("at first %v", got)
	}
	purge := want(t, root, 200, "POST", "/v1/purge_history/"+q(room)+"/"+q(alice.Text(room, "x")), `{"delete_local_events":true}`)["purge_id"]
	testkit.Eventually(t, "the purge is complete", func() bool {
		got := want(t, root, 200, "GET", "/v1/scheduled_tasks?action_name=purge_history&status=complete", "")
		return hstest.At(got, "scheduled_tasks", 0, "id") == purge && hstest.At(got, "scheduled_tasks", 0, "resource_id") == string(room)
	})
	deletion := want(t, root, 200, "DELETE", "/v2/rooms/"+q(room), `{"new_room_user_id":"`+string(root.UserID)+`"}`)["delete_id"]
	testkit.Eventually(t, "the deletion is complete", func() bool {
		got := want(t, root, 200, "GET", "/v1/scheduled_tasks?action_name=shutdown_and_purge_room&job_status=complete", "")
		return hstest.At(got, "scheduled_tasks", 0, "id") == deletion && hstest.At(got, "scheduled_tasks", 0, "result", "kicked_users", 0) == string(alice.UserID)
	})
	if got := want(t, root, 200, "GET", "/v1/scheduled_tasks", ""); len(got["scheduled_tasks"].([]any)) != 2 {
		t.Errorf("all %v", got)
	}
	if got := want(t, root, 200, "GET", "/v1/scheduled_tasks?max_timestamp=1000", ""); len(got["scheduled_tasks"].([]any)) != 0 {
		t.Errorf("of 1970 %v", got)
	}
	want(t, root, 400, "GET", "/v1/scheduled_tasks?status=lost", "")

	features := "/v1/experimental_features/" + q(alice.UserID)
	if got := want(t, root, 200, "GET", features, ""); len(got["features"].(map[string]any)) != 0 {
		t.Errorf("features %v", got)
	}
	want(t, root, 200, "PUT", features, `{"features":{}}`)
	want(t, root, 400, "PUT", features, `{"features":{"msc3881":true}}`)
	want(t, root, 404, "GET", "/v1/experimental_features/"+q("@none:"+root.UserID.Homeserver()), "")
}
