package push_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// phone is a push gateway that counts how often it was told of events.
type phone struct {
	url string
	mu  sync.Mutex
	got []id.EventID
}

func startPhone(t *testing.T) *phone {
	p := &phone{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if e := gjson.GetBytes(b, "notification.event_id").Str; e != "" {
			p.mu.Lock()
			p.got = append(p.got, id.EventID(e))
			p.mu.Unlock()
		}
		_, _ = fmt.Fprint(w, `{"rejected":[]}`)
	}))
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

func (p *phone) rang(e id.EventID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.got, e)
}

// TestThreadRules tells users of what is said in the threads that they follow, whatever they set for the room, and in others of
// mentions alone: by push and in the counts of both ways to sync.
func TestThreadRules(t *testing.T) {
	hstest.Each(t, testThreadRules, func(c *homeserver.Config) {
		c.Push.ThreadSubscriptions, c.Push.AllowPrivateAddresses = true, true
	})
}

func testThreadRules(t *testing.T, hs *hstest.Server) {
	alice, bob, carol := hs.User("alice"), hs.User("bob"), hs.User("carol")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	carol.Join(room)
	p := startPhone(t)
	bob.Must(t, "POST", fmt.Sprintf(`{"kind":"http","app_id":"a","pushkey":"k","app_display_name":"A","device_display_name":"P","lang":"en","data":{"url":"%s/_matrix/push/v1/notify"}}`, p.url), "/v3/pushers/set")
	followed, other := alice.Text(room, "followed"), alice.Text(room, "other")
	await(t, "the first messages", func() bool { return p.rang(followed) && p.rang(other) })
	since, _ := bob.Sync("")["next_batch"].(string)
	say := func(evType, root, more string) id.EventID {
		return alice.Event(room, evType, fmt.Sprintf(`{"msgtype":"m.text","body":"x","m.relates_to":{"rel_type":"m.thread","event_id":%q}%s}`, root, more))
	}
	const subscription = "/unstable/io.element.msc4306/rooms/%s/thread/%s/subscription"
	count := func(what string, notifications, highlights float64) {
		t.Helper()
		m := bob.Sync("since=" + since)
		u := hstest.At(m, "rooms", "join", string(room), "unread_notifications")
		if hstest.At(u, "notification_count") != notifications || hstest.At(u, "highlight_count") != highlights {
			t.Errorf("%s: unread %v, not %v and %v", what, u, notifications, highlights)
		}
		s := bob.Must(t, "POST", `{"lists":{"a":{"ranges":[[0,9]],"timeline_limit":1,"required_state":[]}}}`, "/unstable/org.matrix.simplified_msc3575/sync")
		if r := hstest.At(s, "rooms", string(room)); hstest.At(r, "notification_count") != notifications || hstest.At(r, "highlight_count") != highlights {
			t.Errorf("%s: in sliding sync %v", what, r)
		}
	}
	mention := fmt.Sprintf(`,"m.mentions":{"user_ids":[%q]}`, bob.UserID)

	// The phone is told a moment later: what is to be judged by the rules as they are now comes before this mention.
	mentions := 0.0
	var silent []id.EventID
	check := func(what string, notifications float64) {
		t.Helper()
		e := say("m.room.message", string(other), mention)
		mentions++
		count(what, notifications+mentions, mentions)
		await(t, "the phone to hear of a mention", func() bool { return p.rang(e) })
		for _, e := range silent {
			if p.rang(e) {
				t.Errorf("%s: the phone heard of %s", what, e)
			}
		}
	}
	loud := func(e id.EventID) {
		t.Helper()
		await(t, "the phone to hear of "+string(e), func() bool { return p.rang(e) })
	}

	silent = append(silent, say("m.room.message", string(followed), ""), say("m.room.encrypted", string(followed), ""))
	check("nobody follows", 2)
	bob.Must(t, "PUT", "{}", subscription, room, followed)
	carol.Must(t, "PUT", "{}", subscription, room, other) // somebody else's changes nothing
	loud(say("m.room.message", string(followed), ""))
	check("a message", 3)
	loud(say("m.sticker", string(followed), `,"url":"mxc://x/y","info":{}`)) // of which no rule tells elsewhere
	silent = append(silent, say("m.sticker", string(other), `,"url":"mxc://x/y","info":{}`), say("m.room.message", string(other), ""))
	check("a sticker", 4)

	bob.Must(t, "PUT", `{"actions":[]}`, "/v3/pushrules/global/room/%s", room)
	silent = append(silent, alice.Text(room, "in the muted room"))
	loud(say("m.room.message", string(followed), ""))
	check("a muted room", 5)
	bob.Must(t, "DELETE", "", subscription, room, followed)
	silent = append(silent, say("m.room.message", string(followed), ""))
	check("followed no more", 5)
	bob.Must(t, "DELETE", "", "/v3/pushrules/global/room/%s", room)

	// Who switches the rule off hears of all threads again.
	bob.Must(t, "PUT", `{"enabled":false}`, "/v3/pushrules/global/postcontent/.io.element.msc4306.rule.unsubscribed_thread/enabled")
	loud(say("m.room.message", string(other), ""))
	check("the rule is off", 6)
}

// TestThreadRulesAsRules reads and changes the rules on threads as any others; users add none of their own.
func TestThreadRulesAsRules(t *testing.T) {
	hs := hstest.Start(t, func(c *homeserver.Config) { c.Push.ThreadSubscriptions = true })
	alice := hs.User("alice")
	if v := alice.Must(t, "GET", "", "/versions"); hstest.At(v, "unstable_features", "org.matrix.msc4306") != true {
		t.Errorf("not advertised: %v", v)
	}
	const one = "/v3/pushrules/global/postcontent/.io.element.msc4306.rule.%s_thread"
	rules := hstest.At(alice.Must(t, "GET", "", "/v3/pushrules/"), "global", "postcontent")
	for i, subscribed := range []bool{false, true} {
		r := hstest.At(rules, i)
		if hstest.At(r, "conditions", 0, "kind") != "io.element.msc4306.thread_subscription" || hstest.At(r, "conditions", 0, "subscribed") != subscribed ||
			hstest.At(r, "default") != true || hstest.At(r, "enabled") != true || len(hstest.At(r, "actions").([]any)) != 2*i {
			t.Errorf("rule %d is %v", i, r)
		}
	}
	alice.Must(t, "PUT", `{"actions":["notify"]}`, one+"/actions", "subscribed")
	if r := alice.Must(t, "GET", "", one, "subscribed"); len(r["actions"].([]any)) != 1 {
		t.Errorf("changed is %v", r)
	}
	refused := func(c *hstest.Client, method, body, path string, status int, errcode string) {
		t.Helper()
		if r := c.Do(t, method, body, path); r.Status != status || r.Errcode != errcode {
			t.Errorf("%s %s: %d %s", method, path, r.Status, r.Body)
		}
	}
	refused(alice, "PUT", `{"actions":[],"conditions":[]}`, "/v3/pushrules/global/postcontent/mine", 400, "M_INVALID_PARAM")
	refused(alice, "DELETE", "", fmt.Sprintf(one, "subscribed"), 400, "M_INVALID_PARAM")

	// Elsewhere there are none.
	off := hstest.Start(t).User("alice")
	if v := off.Must(t, "GET", "", "/versions"); hstest.At(v, "unstable_features", "org.matrix.msc4306") != nil {
		t.Errorf("advertised: %v", v)
	}
	if r := hstest.At(off.Must(t, "GET", "", "/v3/pushrules/"), "global", "postcontent"); r != nil {
		t.Errorf("there are %v", r)
	}
	refused(off, "GET", "", fmt.Sprintf(one, "subscribed"), 404, "M_NOT_FOUND")
	refused(off, "PUT", `{"enabled":false}`, fmt.Sprintf(one, "subscribed")+"/enabled", 400, "M_INVALID_PARAM")
}
