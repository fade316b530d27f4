package clientsync_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestRelatedByFilters asks for the events alone that others relate to, by type and sender of the relation.
// Spec: client-server API, "Filtering by relation".
func TestRelatedByFilters(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		r := alice.CreateRoom("public_chat")
		bob.Join(r)
		since, _ := alice.Sync("")["next_batch"].(string)
		loved, discussed, plain := alice.Text(r, "loved"), alice.Text(r, "discussed"), alice.Text(r, "plain")
		bob.Event(r, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"❤"}}`, loved))
		alice.Event(r, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"hm","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, discussed))
		for _, tc := range []struct {
			filter string
			want   []id.EventID
		}{
			{`"types":["m.room.message"],"related_by_rel_types":["m.annotation"]`, []id.EventID{loved}},
			{`"related_by_rel_types":["m.thread","m.annotation"]`, []id.EventID{loved, discussed}},
			{`"related_by_senders":["@alice:` + hstest.ServerName + `"]`, []id.EventID{discussed}},
			{`"related_by_senders":["@alice:` + hstest.ServerName + `"],"related_by_rel_types":["m.annotation"]`, nil},
			{`"related_by_rel_types":["m.reference"]`, nil},
			{`"not_senders":["@alice:` + hstest.ServerName + `"],"related_by_rel_types":["m.thread"]`, nil},
		} {
			for _, from := range []string{"", "&since=" + since} {
				m := bob.Sync("filter=" + url.QueryEscape(`{"room":{"timeline":{`+tc.filter+`}}}`) + from)
				list, _ := at(joined(m, r), "timeline", "events").([]any)
				var got []id.EventID
				for _, e := range list {
					got = append(got, id.EventID(at(e, "event_id").(string)))
				}
				if !slices.Equal(got, tc.want) {
					t.Errorf("%s %s: %v, not %v (plain is %s)", tc.filter, from, got, tc.want, plain)
				}
			}
		}
	})
}

// TestThroughTheServer goes the way of a client through the whole server: what the other tests replace is in its place.
func TestThroughTheServer(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		r := alice.CreateRoom("private_chat")
		next := func(m map[string]any) string { s, _ := m["next_batch"].(string); return s }
		since := next(bob.Sync(""))
		alice.Invite(r, bob.UserID)
		m := bob.Sync("timeout=5000&since=" + since)
		if at(m, "rooms", "invite", string(r), "invite_state", "events", 0) == nil {
			t.Fatalf("no invitation: %v", m)
		}
		bob.Join(r)
		since = next(bob.Sync(""))
		root := alice.Text(r, "root")
		alice.Event(r, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"hey bob","m.mentions":{"user_ids":[%q]},"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, bob.UserID, root))
		m = bob.Sync("since=" + since)
		j := joined(m, r)
		if at(j, "unread_notifications", "notification_count") != 2.0 || at(j, "unread_notifications", "highlight_count") != 1.0 {
			t.Errorf("unread %v", at(j, "unread_notifications"))
		}
		if at(j, "timeline", "events", 0, "unsigned", "m.relations", "m.thread", "count") != 1.0 {
			t.Errorf("aggregations of the root: %v", at(j, "timeline", "events", 0, "unsigned"))
		}
		m = bob.Sync(`since=` + since + `&filter={"room":{"timeline":{"unread_thread_notifications":true}}}`)
		if at(joined(m, r), "unread_thread_notifications", string(root), "highlight_count") != 1.0 || at(joined(m, r), "unread_notifications", "notification_count") != 1.0 {
			t.Errorf("thread counts: %v", joined(m, r))
		}
		since = next(m)
		bob.Must(t, "POST", "{}", "/v3/rooms/%s/receipt/m.read/%s", r, root)
		m = bob.Sync("since=" + since)
		if at(joined(m, r), "unread_notifications", "notification_count") != 1.0 {
			t.Errorf("after the receipt: %v", joined(m, r))
		}
		since = next(m)
		// signing out ends the poll that is waiting
		phone := bob.Login()
		done := make(chan hstest.Response, 1)
		go func() {
			for {
				req, err := http.NewRequest("GET", hs.URL+"/_matrix/client/v3/sync?timeout=60000&set_presence=offline&since="+since, nil)
				if err != nil {
					t.Error(err)
					return
				}
				x := phone.Send(t, req)
				if x.Status != http.StatusOK {
					done <- x
					return
				}
				var m map[string]any
				x.JSON(t, &m)
				since = next(m) // the new device itself was news
			}
		}()
		deadline := time.After(10 * time.Second)
		time.Sleep(100 * time.Millisecond)
		phone.Must(t, "POST", "{}", "/v3/logout")
		select {
		case x := <-done:
			if x.Status != http.StatusUnauthorized {
				t.Errorf("the poll of a device that signed out: %d %s", x.Status, x.Body)
			}
		case <-deadline:
			t.Error("the poll of a device that signed out goes on")
		}
	})
}
