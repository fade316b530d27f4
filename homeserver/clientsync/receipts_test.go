package clientsync_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/testkit"
)

func TestReceipts(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob, phone := n.client("alice", "A"), n.client("bob", "B"), n.client("alice", "PHONE")
		r := alice.room(bob)
		first, second := alice.text(r, "one"), alice.text(r, "two")
		for _, c := range []*client{alice, bob, phone} {
			c.sync()
		}
		bob.receipt(r, "m.read", second, "")
		seen := alice.wait("bob's receipt", func(m map[string]any) bool { return ephemeral(joined(m, r), "m.receipt") != nil })
		c := ephemeral(joined(seen, r), "m.receipt")
		if ts, _ := at(c, string(second), "m.read", "@bob:test", "ts").(float64); ts == 0 {
			t.Errorf("receipt %v", c)
		}
		if at(c, string(second), "m.read", "@bob:test", "thread_id") != nil {
			t.Errorf("an unthreaded receipt has a thread: %v", c)
		}
		// backwards is no news
		bob.receipt(r, "m.read", first, "")
		bob.receipt(r, "m.read", second, "{}")
		if m := alice.sync("timeout", "300"); at(m, "rooms") != nil {
			t.Errorf("a receipt that goes back is told: %v", m)
		}
		// private ones are for their owner
		msg := bob.text(r, "three")
		alice.sync()
		phone.sync()
		alice.receipt(r, "m.read.private", msg, "")
		m := phone.sync()
		if at(ephemeral(joined(m, r), "m.receipt"), string(msg), "m.read.private", "@alice:test") == nil {
			t.Errorf("alice's other device: %v", joined(m, r))
		}
		if at(joined(m, r), "unread_notifications", "notification_count") != 0.0 {
			t.Errorf("a private receipt clears nothing: %v", joined(m, r))
		}
		for what, m := range map[string]map[string]any{"incremental": bob.sync("timeout", "700"), "initial": n.client("bob", "X").sync()} {
			if c := ephemeral(joined(m, r), "m.receipt"); c[string(msg)] != nil {
				t.Errorf("%s sync tells bob of alice's private receipt: %v", what, c)
			}
		}
	})
}

func TestBadReceipts(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()})
	alice, bob, eve := n.client("alice", "A"), n.client("bob", "B"), n.client("eve", "E")
	r, other := alice.room(bob), alice.room()
	msg := alice.text(r, "one")
	elsewhere := alice.text(other, "two")
	reply := alice.send(r, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"x","m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, msg))
	for _, tc := range []struct {
		name    string
		who     *client
		typ     string
		event   id.EventID
		body    string
		status  int
		errcode string
	}{
		{"good", bob, "m.read", msg, "", 200, ""},
		{"main", bob, "m.read", msg, `{"thread_id":"main"}`, 200, ""},
		{"thread", bob, "m.read", reply, fmt.Sprintf(`{"thread_id":%q}`, msg), 200, ""},
		{"root in its thread", bob, "m.read", msg, fmt.Sprintf(`{"thread_id":%q}`, msg), 200, ""},
		{"unknown type", bob, "m.seen", msg, "", 400, "M_INVALID_PARAM"},
		{"not in the room", eve, "m.read", msg, "", 403, "M_FORBIDDEN"},
		{"unknown event", bob, "m.read", "$nothing", "", 400, "M_INVALID_PARAM"},
		{"event of another room", bob, "m.read", elsewhere, "", 400, "M_INVALID_PARAM"},
		{"thread_id is a number", bob, "m.read", msg, `{"thread_id":5}`, 400, "M_INVALID_PARAM"},
		{"thread_id is empty", bob, "m.read", msg, `{"thread_id":""}`, 400, "M_INVALID_PARAM"},
		{"thread_id is null", bob, "m.read", msg, `{"thread_id":null}`, 400, "M_INVALID_PARAM"},
		{"thread_id with U+0000", bob, "m.read", msg, `{"thread_id":"$\u0000"}`, 400, "M_INVALID_PARAM"},
		{"event is not in the thread", bob, "m.read", reply, `{"thread_id":"main"}`, 400, "M_INVALID_PARAM"},
		{"event is in another thread", bob, "m.read", reply, `{"thread_id":"$other"}`, 400, "M_INVALID_PARAM"},
		{"fully read in a thread", bob, "m.fully_read", msg, `{"thread_id":"main"}`, 400, "M_INVALID_PARAM"},
		{"fully read", bob, "m.fully_read", msg, "", 200, ""},
		{"no JSON", bob, "m.read", msg, "{", 400, "M_NOT_JSON"},
		{"not an object", bob, "m.read", msg, "[]", 400, "M_BAD_JSON"},
	} {
		a := tc.who.do("POST", tc.body, "/v3/rooms/%s/receipt/%s/%s", r, tc.typ, tc.event)
		if a.status != tc.status || a.errcode != tc.errcode {
			t.Errorf("%s: %d %s, want %d %s", tc.name, a.status, a.body, tc.status, tc.errcode)
		}
	}
	if a := eve.do("POST", "{}", "/v3/rooms/%s/receipt/m.read/%s", "!none:test", msg); a.status != 403 {
		t.Errorf("unknown room: %d %s", a.status, a.body)
	}
}

func TestReadMarkers(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		msg := bob.text(r, "one")
		alice.sync()
		bob.sync()
		alice.must("POST", fmt.Sprintf(`{"m.fully_read":%q,"m.read":%q}`, msg, msg), "/v3/rooms/%s/read_markers", r)
		j := joined(alice.sync(), r)
		marker := events(at(j, "account_data", "events"))
		if len(marker) != 1 || marker[0]["type"] != "m.fully_read" || at(marker[0], "content", "event_id") != string(msg) {
			t.Errorf("account data %v", marker)
		}
		if at(ephemeral(j, "m.receipt"), string(msg), "m.read", "@alice:test") == nil || at(j, "unread_notifications", "notification_count") != 0.0 {
			t.Errorf("receipt %v", j)
		}
		if a := alice.do("POST", `{"m.fully_read":"$none"}`, "/v3/rooms/%s/read_markers", r); a.status != 400 {
			t.Errorf("unknown event: %d %s", a.status, a.body)
		}
		if a := alice.do("POST", `{"m.read":7}`, "/v3/rooms/%s/read_markers", r); a.errcode != "M_BAD_JSON" {
			t.Errorf("a number: %d %s", a.status, a.body)
		}
		alice.must("POST", `{}`, "/v3/rooms/%s/read_markers", r)
	})
}

func TestThreadCounts(t *testing.T) {
	const threads = `{"room":{"timeline":{"unread_thread_notifications":true}}}`
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		alice.sync()
		root := bob.text(r, "root")
		inThread := func(body string) id.EventID {
			return bob.send(r, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q,"m.mentions":{"user_ids":["@alice:test"]},"m.relates_to":{"rel_type":"m.thread","event_id":%q}}`, body, root))
		}
		t1 := inThread("t1")
		main2 := bob.text(r, "main")
		t2 := inThread("t2")
		alice.text(r, "my own")
		want := func(what string, main, thread, threadHighlight, all float64) {
			t.Helper()
			j := joined(alice.sync("filter", threads, "full_state", "true"), r)
			if got := at(j, "unread_notifications", "notification_count"); got != main {
				t.Errorf("%s: %v unread in the main timeline, want %v", what, got, main)
			}
			got, _ := at(j, "unread_thread_notifications", string(root), "notification_count").(float64)
			high, _ := at(j, "unread_thread_notifications", string(root), "highlight_count").(float64)
			if got != thread || high != threadHighlight {
				t.Errorf("%s: %v unread in the thread, %v highlights, want %v, %v", what, got, high, thread, threadHighlight)
			}
			j = joined(alice.peek("full_state", "true"), r)
			if got := at(j, "unread_notifications", "notification_count"); got != all || at(j, "unread_thread_notifications") != nil {
				t.Errorf("%s: without threads %v, want %v", what, at(j, "unread_notifications"), all)
			}
		}
		want("nothing read", 2, 2, 2, 4)
		alice.receipt(r, "m.read", root, `{"thread_id":"main"}`)
		want("root read in main", 1, 2, 2, 3)
		alice.receipt(r, "m.read", t1, fmt.Sprintf(`{"thread_id":%q}`, root))
		want("one of the thread read", 1, 1, 1, 2)
		alice.receipt(r, "m.read", main2, "")
		want("unthreaded up to the main message", 0, 1, 1, 1)
		alice.receipt(r, "m.read.private", t2, "")
		want("all read privately", 0, 0, 0, 0)
		bob.text(r, "new")
		want("a new one", 1, 0, 0, 1)
		u, err := n.sync.UnreadTotal(context.Background(), alice.user)
		if err != nil || u.Notifications != 1 {
			t.Errorf("total %+v, %v", u, err)
		}
	})
}

// TestUnreadOfLongRoom counts what is not in memory any more, and goes on from what was counted.
func TestUnreadOfLongRoom(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		var bad id.EventID
		for i := range 150 {
			e := bob.text(r, fmt.Sprint(i))
			if i == 20 {
				bad = e
			}
		}
		count := func() any {
			return at(joined(alice.sync("full_state", "true"), r), "unread_notifications", "notification_count")
		}
		if got := count(); got != 150.0 {
			t.Errorf("%v unread, want 150", got)
		}
		bob.send(r, "m.room.redaction", fmt.Sprintf(`{"redacts":%q}`, bad))
		bob.send(r, "m.room.message", `{"msgtype":"m.notice","body":"a bot"}`)
		if got := count(); got != 149.0 {
			t.Errorf("%v unread after a redaction, want 149", got)
		}
		if err := n.data.SetAccountData(context.Background(), alice.user, "m.ignored_user_list", []byte(`{"ignored_users":{"@bob:test":{}}}`)); err != nil {
			t.Fatal(err)
		}
		bob.text(r, "ignored")
		if got := count(); got != 149.0 {
			t.Errorf("%v unread after a message of an ignored user, want 149", got)
		}
		alice.leave(r)
		alice.join(r)
		if got := count(); got != 0.0 {
			t.Errorf("%v unread after leaving and coming back, want 0", got)
		}
	})
}

// TestReadInTheMiddle reads a long room bit by bit: what is left is counted exactly, however old it is.
func TestReadInTheMiddle(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r := alice.room(bob)
		var sent []id.EventID
		for i := range 300 {
			sent = append(sent, bob.text(r, fmt.Sprint(i)))
		}
		count := func() any {
			return at(joined(alice.sync("full_state", "true"), r), "unread_notifications", "notification_count")
		}
		left := 300.0
		check := func(what string) {
			t.Helper()
			if got := count(); got != left {
				t.Errorf("%s: %v unread, want %v", what, got, left)
			}
		}
		check("all")
		bob.send(r, "m.room.redaction", fmt.Sprintf(`{"redacts":%q}`, sent[70]))
		left--
		check("one of the old is redacted")
		for _, upto := range []int{4, 40, 41, 150, 291} {
			alice.receipt(r, "m.read", sent[upto], "")
			left = float64(299 - upto)
			if upto < 70 {
				left--
			}
			check(fmt.Sprint("read up to ", upto))
		}
		bob.text(r, "one more")
		left++
		check("one more")
	})
}

// TestManyReceipts lets everyone read at once: all are answered, come under few positions, and wake others at most
// twice a second.
func TestManyReceipts(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice := n.client("alice", "A")
		var readers []*client
		for i := range 40 {
			readers = append(readers, n.client(fmt.Sprintf("u%d", i), "U"))
		}
		r := alice.room(readers...)
		msg := alice.text(r, "read me")
		alice.sync()
		head := n.store.Applied()
		var wg sync.WaitGroup
		for i, c := range readers {
			wg.Go(func() {
				time.Sleep(time.Duration(max(0, i-20)) * 60 * time.Millisecond) // many at once, then one after another
				c.receipt(r, "m.read", msg, "")
			})
		}
		began := time.Now()
		wakes, got := 0, map[string]any{}
		for len(got) < len(readers) && time.Since(began) < testkit.Patience {
			m := alice.sync("timeout", "2000")
			wakes++
			time.Sleep(80 * time.Millisecond) // so that a receipt is there already when the next poll begins
			users, _ := at(ephemeral(joined(m, r), "m.receipt"), string(msg), "m.read").(map[string]any)
			for u := range users {
				got[u] = true
			}
		}
		wg.Wait()
		if len(got) != len(readers) {
			t.Errorf("%d receipts came, want %d", len(got), len(readers))
		}
		if most := 2 + int(time.Since(began)/(500*time.Millisecond)); wakes > most {
			t.Errorf("%d responses in %s, want at most %d", wakes, time.Since(began), most)
		}
		if n := n.store.Applied() - head; n >= int64(len(readers)) {
			t.Errorf("%d entries in the log for %d receipts", n, len(readers))
		}
		var rows []*store.Receipt
		err := n.store.Read(context.Background(), func(tx *store.Tx) error {
			var err error
			rows, err = tx.RoomReceipts([]int64{1})
			return err
		})
		if err != nil || len(rows) != len(readers) {
			t.Errorf("%d rows, %v", len(rows), err)
		}
	})
}

func TestNotifications(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		alice, bob := n.client("alice", "A"), n.client("bob", "B")
		r, other := alice.room(bob), alice.room(bob)
		var want []id.EventID
		for i := range 7 {
			in := r
			if i%2 == 1 {
				in = other
			}
			want = append(want, bob.text(in, fmt.Sprint(i)))
			alice.text(in, "own")
			bob.send(in, "m.room.message", `{"msgtype":"m.notice","body":"quiet"}`)
		}
		want = append(want, bob.send(r, "m.room.message", `{"msgtype":"m.text","body":"you","m.mentions":{"user_ids":["@alice:test"]}}`))
		alice.receipt(r, "m.read", want[2], "")
		slices.Reverse(want)
		var got []id.EventID
		from := ""
		for page := 0; page < 10; page++ {
			m := alice.request(context.Background(), "GET", "", "/v3/notifications?limit=3"+from).json
			list := events(at(m, "notifications"))
			for _, x := range list {
				e := id.EventID(at(x, "event", "event_id").(string))
				got = append(got, e)
				read := e == want[len(want)-1] || e == want[len(want)-3]
				if x["read"] != read {
					t.Errorf("%s: read is %v", e, x["read"])
				}
			}
			next, ok := m["next_token"].(string)
			if !ok {
				break
			}
			from = "&from=" + next
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v\nwant %v", got, want)
		}
		list := events(at(alice.must("GET", "", "/v3/notifications?only=highlight"), "notifications"))
		if len(list) != 1 || at(list[0], "event", "event_id") != string(want[0]) {
			t.Errorf("highlights: %v", list)
		}
		if a := alice.do("GET", "", "/v3/notifications?from=nonsense"); a.errcode != "M_INVALID_PARAM" {
			t.Errorf("broken token: %d %s", a.status, a.body)
		}
	})
}
