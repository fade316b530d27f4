package clientsync_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func TestTyping(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		alice.sync()
		bob.must("PUT", `{"typing":true,"timeout":300}`, "/v3/rooms/%s/typing/%s", r, bob.user)
		m := alice.sync("timeout", "3000")
		if got := ephemeral(joined(m, r), "m.typing"); at(got, "user_ids", 0) != "@bob:test" {
			t.Errorf("typing: %v", joined(m, r))
		}
		if m := n.client("alice", "X").sync(); at(ephemeral(joined(m, r), "m.typing"), "user_ids", 0) != "@bob:test" {
			t.Errorf("initial sync: %v", joined(m, r))
		}
		// nobody renews it
		m = alice.sync("timeout", "3000")
		if got := ephemeral(joined(m, r), "m.typing"); got == nil || at(got, "user_ids", 0) != nil {
			t.Errorf("after the time: %v", joined(m, r))
		}
		bob.must("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r, bob.user)
		bob.must("PUT", `{"typing":false}`, "/v3/rooms/%s/typing/%s", r, bob.user)
		m = alice.sync("timeout", "3000")
		if got := ephemeral(joined(m, r), "m.typing"); got == nil || at(got, "user_ids", 0) != nil {
			t.Errorf("stopped: %v", joined(m, r))
		}
		if m := alice.sync("timeout", "200"); at(m, "rooms") != nil {
			t.Errorf("nothing changed: %v", m)
		}
		eve := n.client("eve", "E")
		for what, a := range map[string]answer{
			"not in the room": eve.do("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r, eve.user),
			"another user":    alice.do("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r, bob.user),
		} {
			if a.status != 403 || a.errcode != "M_FORBIDDEN" {
				t.Errorf("%s: %d %s", what, a.status, a.body)
			}
		}
		for body, code := range map[string]string{`{}`: "M_BAD_JSON", `{"typing":"yes"}`: "M_BAD_JSON", `{"typing":true,"timeout":-5}`: "M_INVALID_PARAM", `{"typing":true,"timeout":"1"}`: "M_BAD_JSON"} {
			if a := bob.do("PUT", body, "/v3/rooms/%s/typing/%s", r, bob.user); a.status != 400 || a.errcode != code {
				t.Errorf("%s: %d %s, want %s", body, a.status, a.body, code)
			}
		}
	})
}

func presenceOf(m map[string]any, user id.UserID) map[string]any {
	for _, e := range events(at(m, "presence", "events")) {
		if e["sender"] == string(user) {
			c, _ := e["content"].(map[string]any)
			return c
		}
	}
	return nil
}

func TestPresence(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, eve := n.client("alice", "A"), n.client("bob", "B"), n.client("eve", "E")
		alice.room(bob)
		alice.sync()
		bob.sync()
		alice.wait("bob online", func(m map[string]any) bool { return at(presenceOf(m, bob.user), "presence") == "online" })
		bob.must("PUT", `{"presence":"unavailable","status_msg":"at lunch"}`, "/v3/presence/%s/status", bob.user)
		m := alice.wait("bob at lunch", func(m map[string]any) bool { return at(presenceOf(m, bob.user), "presence") == "unavailable" })
		if at(presenceOf(m, bob.user), "status_msg") != "at lunch" {
			t.Errorf("presence %v", presenceOf(m, bob.user))
		}
		if m := n.client("alice", "X").sync("set_presence", "offline"); at(presenceOf(m, bob.user), "status_msg") != "at lunch" {
			t.Errorf("initial sync: %v", m["presence"])
		}
		got := alice.must("GET", "", "/v3/presence/%s/status", bob.user)
		if got["presence"] != "unavailable" || got["status_msg"] != "at lunch" || got["last_active_ago"] == nil {
			t.Errorf("GET: %v", got)
		}
		if m := eve.sync(); presenceOf(m, bob.user) != nil {
			t.Error("a stranger is told of bob")
		}
		if a := eve.do("GET", "", "/v3/presence/%s/status", bob.user); a.status != 403 {
			t.Errorf("a stranger asks: %d %s", a.status, a.body)
		}
		if a := eve.do("PUT", `{"presence":"online"}`, "/v3/presence/%s/status", bob.user); a.status != 403 {
			t.Errorf("a stranger sets: %d %s", a.status, a.body)
		}
		for body, code := range map[string]string{`{}`: "M_MISSING_PARAM", `{"presence":"busy"}`: "M_INVALID_PARAM", `{"presence":3}`: "M_BAD_JSON"} {
			if a := bob.do("PUT", body, "/v3/presence/%s/status", bob.user); a.status != 400 || a.errcode != code {
				t.Errorf("%s: %d %s, want %s", body, a.status, a.body, code)
			}
		}
		name, avatar := "鲍勃", "mxc://test/bob"
		err := n.store.Write(t.Context(), func(tx *store.Tx) error {
			return tx.SetProfile(store.Profile{User: bob.user, DisplayName: &name, AvatarURL: &avatar})
		})
		if err != nil {
			t.Fatal(err)
		}
		m = alice.wait("bob's new name", func(m map[string]any) bool { return at(presenceOf(m, bob.user), "displayname") == name })
		if p := presenceOf(m, bob.user); p["avatar_url"] != avatar || p["presence"] != "unavailable" {
			t.Errorf("presence %v", p)
		}
		// bob is gone
		n.pass(2 * time.Minute)
		alice.wait("bob offline", func(m map[string]any) bool { return at(presenceOf(m, bob.user), "presence") == "offline" })
		// alice goes on polling, but does nothing
		n.pass(10 * time.Minute)
		alice.wait("alice idle", func(m map[string]any) bool { return at(presenceOf(m, alice.user), "presence") == "unavailable" })
	})
}

func TestStatusOutlivesRestart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice := n.client("alice", "A")
		alice.must("PUT", `{"presence":"online","status_msg":"Grüße 👋"}`, "/v3/presence/%s/status", alice.user)
		n.stop()
		n = start(t, cfg)
		alice = alice.on(n)
		for range 100 {
			if got := alice.must("GET", "", "/v3/presence/%s/status", alice.user); got["status_msg"] == "Grüße 👋" {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Error("the status message is gone")
	})
}

func (c *client) toDevice(to *client, txn, content string) {
	c.n.t.Helper()
	err := c.n.keys.SendToDevice(context.Background(), account.ToDevice{Sender: c.user, Device: c.device, Type: "m.test", TxnID: txn,
		Messages: map[id.UserID]map[id.DeviceID]jsontext.Value{to.user: {to.device: jsontext.Value(content)}}})
	if err != nil {
		c.n.t.Fatal(err)
	}
}

// device makes a row for the client's device.
func (c *client) register() {
	c.n.t.Helper()
	err := c.n.store.Write(context.Background(), func(tx *store.Tx) error {
		_, err := tx.Exec(`INSERT INTO devices (usr, device_id, created) VALUES ($1, $2, 1)`, c.user, c.device)
		return err
	})
	if err != nil {
		c.n.t.Fatal(err)
	}
}

func TestToDevice(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		alice.register()
		bob.register()
		alice.sync()
		for i := range 130 {
			bob.toDevice(alice, fmt.Sprint(i), fmt.Sprintf(`{"n":%d}`, i))
		}
		list := func(m map[string]any) []map[string]any { return events(at(m, "to_device", "events")) }
		if got := list(n.client("alice", "OTHER").sync()); len(got) != 0 {
			t.Errorf("another device got %d messages", len(got))
		}
		again := *alice
		m := alice.sync()
		if got := list(m); len(got) != 100 || at(got[0], "content", "n") != 0.0 || at(got[99], "content", "n") != 99.0 || got[0]["sender"] != "@bob:test" {
			t.Fatalf("first response: %d messages", len(got))
		}
		if got := list(again.peek()); len(got) != 100 {
			t.Errorf("the response was lost and asked for again: %d messages", len(got))
		}
		if got := list(alice.sync("timeout", "5000")); len(got) != 30 || at(got[29], "content", "n") != 129.0 {
			t.Errorf("second response: %d messages", len(got))
		}
		if got := list(alice.sync()); len(got) != 0 {
			t.Errorf("third response: %d messages", len(got))
		}
		// acknowledged messages are gone, also for a fresh sync
		if got := list(n.client("alice", "A").sync()); len(got) != 0 {
			t.Errorf("fresh sync: %d messages", len(got))
		}
		for i := 0; ; i++ {
			var left int64
			err := n.store.Read(context.Background(), func(tx *store.Tx) error {
				_, err := tx.Get([]any{&left}, `SELECT count(*) FROM to_device`)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if left == 0 {
				break
			}
			if i == 100 {
				t.Fatalf("%d acknowledged messages are still stored", left)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

func (n *node) listChanged(users ...id.UserID) {
	n.t.Helper()
	err := n.store.Write(context.Background(), func(tx *store.Tx) error {
		for _, u := range users {
			if err := tx.AnnounceDeviceList(u); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func TestDeviceLists(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, carol, eve := n.client("alice", "A"), n.client("bob", "B"), n.client("carol", "C"), n.client("eve", "E")
		r := alice.room(bob)
		if m := alice.sync(); m["device_lists"] != nil {
			t.Errorf("initial sync: %v", m["device_lists"])
		}
		want := func(what, changed, left string) {
			t.Helper()
			m := alice.sync("timeout", "300")
			c, _ := at(m, "device_lists", "changed").([]any)
			l, _ := at(m, "device_lists", "left").([]any)
			if fmt.Sprint(c) != changed || fmt.Sprint(l) != left {
				t.Errorf("%s: changed %v left %v, want %s %s", what, c, l, changed, left)
			}
		}
		n.listChanged(bob.user, eve.user)
		want("bob's devices changed", "[@bob:test]", "[]")
		want("nothing", "[]", "[]")
		n.listChanged(alice.user)
		want("own devices changed", "[@alice:test]", "[]")
		carol.join(r)
		want("carol came", "[@carol:test]", "[]")
		carol.state(r, "m.room.member", "@carol:test", `{"membership":"join","displayname":"C"}`)
		want("carol has a name", "[]", "[]")
		carol.leave(r)
		want("carol went", "[]", "[@carol:test]")
		other := eve.room(carol)
		alice.join(other)
		want("came into a room", "[@alice:test @carol:test @eve:test]", "[]")
		alice.leave(other)
		want("left a room", "[]", "[@carol:test @eve:test]")
	})
}

func TestAccountData(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice := n.client("alice", "A")
		r := alice.room()
		ctx := context.Background()
		rm, err := n.rooms.Room(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		alice.sync()
		if err := n.data.SetAccountData(ctx, alice.user, "x.y", []byte(`{"a":1}`)); err != nil {
			t.Fatal(err)
		}
		if err := n.data.SetRoomAccountData(ctx, alice.user, rm.NID(), "m.tag", []byte(`{"tags":{"m.favourite":{}}}`)); err != nil {
			t.Fatal(err)
		}
		m := alice.sync()
		if e := events(at(m, "account_data", "events")); len(e) != 1 || e[0]["type"] != "x.y" || at(e[0], "content", "a") != 1.0 {
			t.Errorf("global: %v", m["account_data"])
		}
		if e := events(at(joined(m, r), "account_data", "events")); len(e) != 1 || e[0]["type"] != "m.tag" {
			t.Errorf("room: %v", joined(m, r))
		}
		if at(joined(m, r), "timeline") != nil {
			t.Errorf("a timeline without events: %v", joined(m, r))
		}
		if m = alice.sync(); m["account_data"] != nil || m["rooms"] != nil {
			t.Errorf("again: %v", m)
		}
		err = n.store.Write(ctx, func(tx *store.Tx) error {
			return tx.UpdatePushRules(alice.user, func(b []byte) ([]byte, error) { return []byte(`{}`), nil })
		})
		if err != nil {
			t.Fatal(err)
		}
		m = alice.sync()
		if e := events(at(m, "account_data", "events")); len(e) != 1 || e[0]["type"] != "m.push_rules" || at(e[0], "content", "global", "override") == nil {
			t.Errorf("push rules: %v", m["account_data"])
		}
		m = n.client("alice", "X").sync("use_state_after", "true")
		if e := events(at(joined(m, r), "account_data", "events")); len(e) != 1 || e[0]["type"] != "m.tag" {
			t.Errorf("initial sync: %v", joined(m, r))
		}
	})
}

// TestStateAfterIsAlwaysThere: a client takes its absence for a server that does not know it.
func TestStateAfterIsAlwaysThere(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()})
	alice, bob := n.client("alice", "A"), n.client("bob", "B")
	r := alice.room(bob)
	alice.sync()
	check := func(what string) {
		t.Helper()
		j := joined(alice.sync("use_state_after", "true", "timeout", "1000"), r)
		if j == nil || at(j, "state_after", "events") == nil || at(j, "state") != nil {
			t.Errorf("%s: %v", what, j)
		}
	}
	bob.text(r, "x")
	check("message")
	bob.must("PUT", `{"typing":true}`, "/v3/rooms/%s/typing/%s", r, bob.user)
	check("typing")
}

// TestTwoNodes lets two users on different nodes of one database talk.
func TestTwoNodes(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	n1, n2 := start(t, cfg), start(t, cfg)
	alice, bob := n1.client("alice", "A"), n2.client("bob", "B")
	r := alice.room()
	bob.sync()
	bob.join(r)
	alice.sync()
	bob.sync()
	type result struct {
		took time.Duration
		m    map[string]any
	}
	exchange := func(what string, reader *client, do func(), check func(m map[string]any) bool) {
		t.Helper()
		done := make(chan result, 1)
		began := time.Now()
		go func() {
			for time.Since(began) < testkit.Patience {
				if m := reader.sync("timeout", "3000"); check(m) {
					done <- result{time.Since(began), m}
					return
				}
			}
			done <- result{}
		}()
		time.Sleep(30 * time.Millisecond)
		do()
		if x := <-done; x.m == nil {
			t.Errorf("%s never came", what)
		} else if x.took > 10*time.Second {
			t.Errorf("%s took %s", what, x.took)
		}
	}
	for i := range 5 {
		var e id.EventID
		from, to := alice, bob
		if i%2 == 1 {
			from, to = bob, alice
		}
		exchange("message", to, func() { e = from.text(r, fmt.Sprint(i)) }, func(m map[string]any) bool {
			got := ids(joined(m, r))
			return len(got) > 0 && at(joined(m, r), "timeline", "events", -1, "content", "body") == fmt.Sprint(i)
		})
		exchange("receipt", from, func() { to.receipt(r, "m.read", e, "") }, func(m map[string]any) bool {
			return ephemeral(joined(m, r), "m.receipt")[string(e)] != nil
		})
	}
	exchange("typing", bob, func() { alice.must("PUT", `{"typing":true,"timeout":60000}`, "/v3/rooms/%s/typing/%s", r, alice.user) },
		func(m map[string]any) bool {
			return at(ephemeral(joined(m, r), "m.typing"), "user_ids", 0) == "@alice:test"
		})
	// a client that comes over from the other node is told who types now
	moved := alice.on(n2)
	if m := moved.sync(); at(ephemeral(joined(m, r), "m.typing"), "user_ids", 0) != "@alice:test" {
		t.Errorf("moved to the other node: %v", m)
	}
	if m := moved.sync(); ephemeral(joined(m, r), "m.typing") != nil {
		t.Errorf("told twice: %v", m)
	}
	exchange("end of typing", bob, func() { alice.must("PUT", `{"typing":false}`, "/v3/rooms/%s/typing/%s", r, alice.user) },
		func(m map[string]any) bool {
			got := ephemeral(joined(m, r), "m.typing")
			return got != nil && at(got, "user_ids", 0) == nil
		})
	exchange("presence", bob, func() {
		alice.must("PUT", `{"presence":"online","status_msg":"here"}`, "/v3/presence/%s/status", alice.user)
	}, func(m map[string]any) bool {
		p := presenceOf(m, alice.user)
		return p["presence"] == "online" && p["status_msg"] == "here"
	})
	// a token that is ahead of the node that gets it
	e := alice.text(r, "ahead")
	alice.sync()
	moved = alice.on(n2)
	m := moved.sync()
	if at(m, "rooms", "join", string(r), "timeline") != nil {
		t.Errorf("the message came again on the other node: %v", m)
	}
	if got := ids(joined(bob.sync("timeout", "2000"), r)); len(got) == 0 || got[len(got)-1] != e {
		t.Errorf("bob got %v, want %s", got, e)
	}
}
