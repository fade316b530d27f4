package push

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func TestPusherEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		if n := len(w.do(alice, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 0 {
			t.Errorf("%d pushers", n)
		}
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "key", "event_id_only"), 200, "")
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "key", ""), 200, "")
		list := w.do(alice, "GET", "/pushers", "", 200, "").Get("pushers").Array()
		if len(list) != 1 || list[0].Get("lang").Str != "zh-CN" || list[0].Get("data.format").Exists() || list[0].Get("kind").Str != "http" {
			t.Errorf("pushers: %v", list)
		}
		// The same key for another user replaces, unless append is asked for.
		w.do(bob, "POST", "/pushers/set", pusherBody(g, "app", "key", ""), 200, "")
		if n := len(w.do(alice, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 0 {
			t.Errorf("alice kept %d pushers", n)
		}
		w.do(alice, "POST", "/pushers/set", `{"append":true,`+pusherBody(g, "app", "key", "")[1:], 200, "")
		if n := len(w.do(bob, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 1 {
			t.Errorf("bob kept %d pushers", n)
		}
		w.do(alice, "POST", "/pushers/set", `{"kind":null,"app_id":"app","pushkey":"key"}`, 200, "")
		w.do(alice, "POST", "/pushers/set", `{"kind":null,"app_id":"app","pushkey":"key"}`, 200, "")
		for _, tc := range []struct{ body, errcode string }{
			{`{"app_id":"a","pushkey":"k"}`, "M_MISSING_PARAM"},
			{`{"kind":"http","app_id":"a","pushkey":"k"}`, "M_MISSING_PARAM"},
			{`{"kind":7,"app_id":"a","pushkey":"k"}`, "M_BAD_JSON"},
			{`{"kind":"email","app_id":"m.email","pushkey":"a@b","app_display_name":"","device_display_name":"","lang":"en","data":{}}`, "M_INVALID_PARAM"},
			{`{"kind":"smoke","app_id":"a","pushkey":"k"}`, "M_INVALID_PARAM"},
			{`{"kind":"http","app_id":"a","pushkey":"k","app_display_name":"","device_display_name":"","lang":"en","data":{}}`, "M_MISSING_PARAM"},
			{`{"kind":"http","app_id":"a","pushkey":"k","app_display_name":"","device_display_name":"","lang":"en","data":[]}`, "M_BAD_JSON"},
			{`{"kind":"http","app_id":"a","pushkey":"k","app_display_name":"","device_display_name":"","lang":"en","data":{"url":"https://x/notify"}}`, "M_INVALID_PARAM"},
			{`{"kind":"http","app_id":"a","pushkey":"k","app_display_name":"","device_display_name":"","lang":"en","data":{"url":"file:///_matrix/push/v1/notify"}}`, "M_INVALID_PARAM"},
			{`{"kind":null,"app_id":"` + fmt.Sprintf("%065d", 0) + `","pushkey":"k"}`, "M_INVALID_PARAM"},
			{`{"kind":null,"app_id":"a\u0000","pushkey":"k"}`, "M_INVALID_PARAM"},
		} {
			w.do(alice, "POST", "/pushers/set", tc.body, 400, tc.errcode)
		}
		if err := w.Store.Write(context.Background(), func(tx *store.Tx) error { return tx.DeletePushersOfDevices(bob, []string{"OTHER"}) }); err != nil {
			t.Fatal(err)
		}
		if n := len(w.do(bob, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 1 {
			t.Error("the wrong device's pusher is gone")
		}
		if err := w.Store.Write(context.Background(), func(tx *store.Tx) error { return tx.DeletePushersOfDevices(bob, []string{"DEV"}) }); err != nil {
			t.Fatal(err)
		}
		if n := len(w.do(bob, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 0 {
			t.Error("the device's pusher is still there")
		}
	})
}

func TestDelivery(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		w.run()
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "full", ""), 200, "")
		w.setUnread(alice, Counts{Unread: 2, MissedCalls: 1})

		w.say(1, message("$1", bob, "hello"))
		n := g.next(t)
		for path, want := range map[string]string{
			"event_id": `"$1"`, "room_id": `"!room:example.com"`, "type": `"m.room.message"`, "sender": `"@bob:example.com"`,
			"sender_display_name": `"Bob"`, "room_name": `"会议室"`, "room_alias": `"#room:example.com"`, "prio": `"low"`,
			"content": `{"msgtype":"m.text","body":"hello"}`, "counts": `{"missed_calls":1,"unread":2}`, "user_is_target": ``,
			"devices.0.app_id": `"app"`, "devices.0.pushkey": `"full"`, "devices.0.data": `{"default_payload":{"x":1}}`, "devices.0.tweaks": `{}`,
		} {
			if got := n.Get(path).Raw; got != want {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
		}
		if ts := n.Get("devices.0.pushkey_ts").Int(); ts < time.Now().Unix()-600 || ts > time.Now().Unix() {
			t.Errorf("pushkey_ts %d", ts)
		}

		w.say(2, message("$2", alice, "my own"))
		w.say(3, EventView{ID: "$3", Sender: bob, Type: "m.room.message", Content: []byte(`{"msgtype":"m.notice","body":"beep"}`)})
		w.ignored[alice] = carol
		w.say(4, message("$4", carol, "ignored"))
		w.say(5, EventView{ID: "$5", Sender: bob, Type: "m.room.message", Content: []byte(`{"m.mentions":{"user_ids":["@alice:example.com"]}}`)})
		n = g.next(t)
		if n.Get("event_id").Str != "$5" || n.Get("prio").Str != "high" || n.Get("devices.0.tweaks").Raw != `{"highlight":true,"sound":"default"}` {
			t.Errorf("mention: %s", n.Raw)
		}

		// An invited user is no member yet; the invitation itself is about him.
		w.mu.Lock()
		w.members = []id.UserID{bob}
		w.mu.Unlock()
		target := alice
		w.say(6, EventView{ID: "$6", Sender: bob, Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"invite"}`)})
		if n = g.next(t); n.Get("event_id").Str != "$6" || !n.Get("user_is_target").Bool() {
			t.Errorf("invitation: %s", n.Raw)
		}
		g.none(t)
	})
}

// TestDisabledPusher switches a pusher off and on, as other devices of the user do (MSC3881).
func TestDisabledPusher(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		w.run()
		set := func(more string) {
			t.Helper()
			w.do(alice, "POST", "/pushers/set", "{"+more+pusherBody(g, "app", "key", "")[1:], 200, "")
		}
		shows := func(enabled bool) {
			t.Helper()
			list := w.do(alice, "GET", "/pushers", "", 200, "").Get("pushers").Array()
			if len(list) != 1 || list[0].Get(`org\.matrix\.msc3881\.enabled`).Bool() != enabled || list[0].Get(`org\.matrix\.msc3881\.device_id`).Str != "DEV" {
				t.Errorf("pushers: %v, want one that is enabled: %t", list, enabled)
			}
		}
		set("")
		shows(true)
		w.say(1, message("$1", bob, "one"))
		g.next(t)
		set(`"org.matrix.msc3881.enabled":false,`)
		shows(false)
		w.say(2, message("$2", bob, "two"))
		w.setUnread(alice, Counts{Unread: 1})
		g.none(t)
		set(`"org.matrix.msc3881.enabled":true,`)
		shows(true)
		w.say(3, message("$3", bob, "three"))
		if n := g.next(t); n.Get("event_id").Str != "$3" {
			t.Errorf("switched on again: %s", n.Raw)
		}
		w.do(alice, "POST", "/pushers/set", `{"org.matrix.msc3881.enabled":1,`+pusherBody(g, "app", "key", "")[1:], 400, "M_BAD_JSON")
	})
}

func TestDeliveryEventIDOnly(t *testing.T) {
	w, g := newWorld(t, store.Config{DataDir: t.TempDir()}), newGateway(t)
	w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "k", "event_id_only"), 200, "")
	w.run()
	w.setUnread(alice, Counts{Unread: 1})
	w.say(1, message("$1", bob, "secret"))
	n := g.next(t)
	if n.Get("event_id").Str != "$1" || n.Get("room_id").Str == "" || n.Get("counts.unread").Int() != 1 ||
		n.Get("devices.0.data").Raw != `{"default_payload":{"x":1},"format":"event_id_only"}` {
		t.Errorf("got %s", n.Raw)
	}
	for _, path := range []string{"content", "sender", "type", "sender_display_name", "room_name", "room_alias"} {
		if n.Get(path).Exists() {
			t.Errorf("%s is told", path)
		}
	}
}

func TestBadgeAfterReceipt(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		w.run()
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "k", ""), 200, "")
		w.readers = []id.UserID{alice, bob}
		w.announce(store.Entry{Kind: store.KindReceipt, Room: 1})
		g.none(t) // the gateway knows of no count
		w.setUnread(alice, Counts{Unread: 3})
		w.say(1, message("$1", bob, "x"))
		g.next(t)
		w.announce(store.Entry{Kind: store.KindReceipt, Room: 1})
		g.none(t) // the count is the same
		w.setUnread(alice, Counts{})
		w.announce(store.Entry{Kind: store.KindReceipt, Room: 1})
		n := g.next(t)
		if n.Get("counts").Raw != `{"unread":0}` || n.Get("event_id").Exists() || n.Get("prio").Exists() || n.Get("devices.0.pushkey").Str != "k" {
			t.Errorf("got %s", n.Raw)
		}
		w.announce(store.Entry{Kind: store.KindReceipt, Room: 1})
		g.none(t)
	})
}

func TestRejectedPusherIsRemoved(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		w.run()
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "bad", ""), 200, "")
		w.do(carol, "POST", "/pushers/set", pusherBody(g, "app", "good", ""), 200, "")
		g.set(func() { g.reject = "bad" })
		w.say(1, message("$1", bob, "x"))
		eventually(t, func() bool { return len(w.do(alice, "GET", "/pushers", "", 200, "").Get("pushers").Array()) == 0 })
		if n := len(w.do(carol, "GET", "/pushers", "", 200, "").Get("pushers").Array()); n != 1 {
			t.Error("carol's pusher is gone too")
		}
	})
}

// TestRetries: a gateway that fails gets everything later, in order, also from a process that starts anew.
func TestRetries(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		stop := w.run()
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "k", ""), 200, "")
		g.set(func() { g.status = 502 })
		for i := range 10 {
			w.say(int64(i+1), message(fmt.Sprintf("$%d", i+1), bob, "x"))
		}
		eventually(t, func() bool { g.mu.Lock(); defer g.mu.Unlock(); return g.requests >= 3 })
		stop()
		g.set(func() { g.status = 200 })
		w.run()
		for i := range 10 {
			if got := g.next(t).Get("event_id").Str; got != fmt.Sprintf("$%d", i+1) {
				t.Fatalf("got %s in place %d", got, i+1)
			}
		}
		g.none(t)
	})
}

// TestSlowGateway: it holds up only itself, and takes no more than its share at once.
func TestSlowGateway(t *testing.T) {
	w, slow, quick := newWorld(t, store.Config{DataDir: t.TempDir()}), newGateway(t), newGateway(t)
	w.run()
	slow.set(func() { slow.delay = 700 * time.Millisecond })
	for i := range perGateway + 30 {
		w.do(alice, "POST", "/pushers/set", pusherBody(slow, "app", fmt.Sprint("slow", i), ""), 200, "")
	}
	w.do(carol, "POST", "/pushers/set", pusherBody(quick, "app", "quick", ""), 200, "")
	w.say(1, message("$1", bob, "x"))
	quick.next(t)
	select {
	case <-slow.got:
		t.Error("the quick gateway came after the slow one")
	default:
	}
	for range perGateway + 30 {
		slow.next(t)
	}
	slow.set(func() {
		if slow.most > perGateway {
			t.Errorf("%d deliveries at once", slow.most)
		}
	})
}

func TestQueueKeepsTheNewest(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		w, g := newWorld(t, cfg), newGateway(t)
		w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "k", ""), 200, "")
		err := w.Store.Write(context.Background(), func(tx *store.Tx) error {
			list, err := tx.Pushers(alice)
			if err != nil {
				return err
			}
			var queue []store.Push
			for i := range int64(10) {
				queue = append(queue, store.Push{Pusher: list[0].ID, Pos: 100 + i, Queued: 1000 + i, NID: i + 1, High: i%2 == 0, Tweaks: []byte(`{"a":1}`)})
			}
			if err := tx.QueuePushes(queue); err != nil {
				return err
			}
			if err := tx.QueuePushes(queue); err != nil {
				return fmt.Errorf("again: %w", err)
			}
			if err := tx.PushFailed(list[0].ID, 101, 5, 2000, 3); err != nil {
				return err
			}
			ids := []int64{list[0].ID, 987654321}
			if got, err := tx.ClaimPushers(ids, 1999, 5000, 0, 10); err != nil || len(got) != 0 {
				return fmt.Errorf("claimed before its time: %v %v", got, err)
			}
			got, err := tx.ClaimPushers(ids, 2000, 5000, 1008, 10)
			if err != nil || len(got) != 1 {
				return fmt.Errorf("claim: %v %v", got, err)
			}
			p, waiting := got[list[0].ID].Pusher, got[list[0].ID].Waiting
			if p.Badge != 5 || p.Failures != 1 || len(waiting) != 2 || waiting[0].Pos != 108 || !waiting[0].High || waiting[1].High || string(waiting[0].Tweaks) != `{"a":1}` {
				return fmt.Errorf("claim: %+v %+v", p, waiting)
			}
			if got, err := tx.ClaimPushers(ids, 3000, 5000, 0, 10); err != nil || len(got) != 0 {
				return fmt.Errorf("claimed twice: %v %v", got, err)
			}
			more, err := tx.PushesDone([]store.Delivered{{Pusher: list[0].ID, UpTo: 108, Badge: 2}}, 5000, 10)
			if err != nil || len(more[list[0].ID]) != 1 || more[list[0].ID][0].Pos != 109 {
				return fmt.Errorf("what is left: %+v %v", more, err)
			}
			if more, err = tx.PushesDone([]store.Delivered{{Pusher: list[0].ID, UpTo: 109, Badge: 0}}, 5000, 10); err != nil || len(more) != 0 {
				return fmt.Errorf("nothing is left: %+v %v", more, err)
			}
			if got, err := tx.ClaimPushers(ids, 3000, 5000, 0, 10); err != nil || len(got) != 1 || got[list[0].ID].Pusher.Badge != 0 {
				return fmt.Errorf("the pusher is free again: %v %v", got, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestGoneRoom: events of a room that was purged hold up nothing; without a counter nothing is counted.
func TestGoneRoom(t *testing.T) {
	w, g := newWorld(t, store.Config{DataDir: t.TempDir()}), newGateway(t)
	users := w.RoomUsers
	w.RoomUsers = func(ctx context.Context, room int64) ([]id.UserID, error) {
		if room != 1 {
			return nil, mxerr.NotFound("no such room")
		}
		return users(ctx, room)
	}
	w.Unread, w.ReceiptUsers, w.Ignores = nil, nil, nil
	w.do(alice, "POST", "/pushers/set", pusherBody(g, "app", "k", ""), 200, "")
	w.run()
	w.announce(store.Entry{Kind: store.KindEvent, Room: 7, Ref: 9})
	w.announce(store.Entry{Kind: store.KindReceipt, Room: 1})
	w.say(1, message("$1", bob, "x"))
	if n := g.next(t); n.Get("event_id").Str != "$1" || n.Get("counts").Raw != "{}" {
		t.Errorf("got %s", n.Raw)
	}
	g.none(t)
}

func TestClientRefusesPrivateAddresses(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }))
	defer srv.Close()
	c, err := NewClient(ClientConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{srv.URL, "http://localhost:" + srv.URL[len("http://127.0.0.1:"):], "http://[::1]:1/", "http://[::ffff:127.0.0.1]:1/", "http://0.0.0.0:1/"} {
		resp, err := c.Get(target)
		if err == nil {
			_ = resp.Body.Close()
		}
		if !errors.Is(err, ErrPrivateAddress) {
			t.Errorf("%s: %v", target, err)
		}
	}
	// A proxy may stand on a private address; what lies behind it may not.
	proxied := 0
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { proxied++; w.WriteHeader(204) }))
	defer proxy.Close()
	if c, err = NewClient(ClientConfig{Proxy: proxy.URL}); err != nil {
		t.Fatal(err)
	}
	if resp, err := c.Get("http://gateway.invalid/x"); err != nil || resp.StatusCode != 204 || proxied != 1 {
		t.Errorf("by the proxy: %v, %d requests", err, proxied)
	}
	if _, err := c.Get("http://10.1.2.3/x"); !errors.Is(err, ErrPrivateAddress) || proxied != 1 {
		t.Errorf("private by the proxy: %v", err)
	}
	if _, err := NewClient(ClientConfig{Proxy: "not a url"}); err == nil {
		t.Error("a wrong proxy is accepted")
	}
}

func TestGuardAddresses(t *testing.T) {
	g := guard{allow: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}, proxy: func(*http.Request) (*url.URL, error) { return nil, nil }}
	for addr, want := range map[string]bool{
		"1.1.1.1": true, "2606:4700::1": true, "10.9.1.1": true, "10.8.1.1": false, "172.16.0.1": false, "192.168.1.1": false,
		"169.254.169.254": false, "100.64.1.1": false, "198.18.0.1": false, "224.0.0.1": false, "255.255.255.255": false, "fe80::1": false,
		"fd00::1": false, "::": false, "::1": false, "::ffff:10.8.0.1": false, "64:ff9b::a00:1": false, "64:ff9b::101:101": true,
		"2002:a00:1::1": false, "2001:db8::1": false, "fec0::1": false, "::10.0.0.1": false,
	} {
		if got := g.allowed(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
