package faults_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/store/storetest"
)

// at is the same device asking another node.
func (c *client) at(n *node) *client {
	d := newClient(n, c.name)
	d.user, d.token, d.device = c.user, c.token, c.device
	return d
}

// both sends one request to two nodes at the same time and wants 200 of both.
func both(t *testing.T, one, other *client, method, path string, body any) (x, y answer) {
	t.Helper()
	var wg sync.WaitGroup
	for i, c := range []*client{one, other} {
		wg.Go(func() {
			a, err := c.do(t.Context(), method, path, body)
			if err != nil || a.status != http.StatusOK {
				t.Errorf("%s %s: %d %s %v", method, path, a.status, a.body, err)
			}
			if i == 0 {
				x = a
			} else {
				y = a
			}
		})
	}
	wg.Wait()
	return x, y
}

// TestTransactionsAcrossNodes sends requests to two nodes at once under one transaction id: they make one event, one redaction, one
// message to a device, and the id holds for later repetitions on either node.
func TestTransactionsAcrossNodes(t *testing.T) {
	a, b := twoNodes(t)
	alice, bob := register(t, a, "alice"), register(t, a, "bob")
	room := publicRoom(t, alice, bob)
	onB := alice.at(b)
	since := bob.syncToken(t)
	const times = 30
	for i := range times {
		body := fmt.Sprint("message ", i)
		x, y := both(t, alice, onB, "PUT", sendPath(room, fmt.Sprint("txn", i)), text(body))
		if x.get("event_id").Str == "" || x.get("event_id").Str != y.get("event_id").Str {
			t.Fatalf("one transaction id gave the events %s and %s", x.body, y.body)
		}
		if i%5 == 0 {
			again, later := both(t, alice, onB, "PUT", sendPath(room, fmt.Sprint("txn", i)), text("something else"))
			if again.get("event_id").Str != x.get("event_id").Str || later.get("event_id").Str != x.get("event_id").Str {
				t.Errorf("a repeated transaction id gave %s and %s, the first time it was %s", again.body, later.body, x.body)
			}
			redact := fmt.Sprintf("/rooms/%s/redact/%s/r%d", url.PathEscape(room), url.PathEscape(x.get("event_id").Str), i)
			if r, s := both(t, alice, onB, "PUT", redact, map[string]any{}); r.get("event_id").Str != s.get("event_id").Str {
				t.Errorf("one redaction gave the events %s and %s", r.body, s.body)
			}
		}
		direct := map[string]any{"messages": map[string]any{bob.user: map[string]any{bob.device: map[string]any{"n": i}}}}
		both(t, alice, onB, "PUT", fmt.Sprintf("/sendToDevice/org.example.direct/d%d", i), direct)
	}
	// the same words under transaction ids of their own are two messages, also in the same millisecond
	const twins = 100
	for i := range twins {
		var wg sync.WaitGroup
		for k, c := range []*client{alice, onB} {
			wg.Go(func() {
				got, err := c.do(t.Context(), "PUT", sendPath(room, fmt.Sprintf("twin %d %d", i, k)), text("twin"))
				if err != nil || got.status != http.StatusOK {
					t.Errorf("the same words on two nodes: %d %s %v", got.status, got.body, err)
				}
			})
		}
		wg.Wait()
	}
	sameEnd(t, room, alice, onB)
	messages, redactions := 0, 0
	for _, m := range alice.history(t, room, "", "") {
		switch m.kind {
		case "m.room.message":
			messages++
		case "m.room.redaction":
			redactions++
		}
	}
	if messages != times+2*twins || redactions != times/5 {
		t.Errorf("%d messages and %d redactions stand in the room, want %d and %d", messages, redactions, times+2*twins, times/5)
	}
	got := map[int64]int{}
	for _, e := range bob.must(t, "GET", "/sync?timeout=0&since="+url.QueryEscape(since), nil).get("to_device.events").Array() {
		got[e.Get("content.n").Int()]++
	}
	for i := range int64(times) {
		if got[i] != 1 {
			t.Errorf("message %d reached the device %d times", i, got[i])
		}
	}
}

// awaitIn syncs until a part of the response says what is wanted, and returns how long that took.
func awaitIn(t *testing.T, c *client, since *string, what string, ok func(gjson.Result) bool) time.Duration {
	t.Helper()
	for began := time.Now(); ; {
		a := c.must(t, "GET", "/sync?timeout=1000&since="+url.QueryEscape(*since), nil)
		*since = a.get("next_batch").Str
		if ok(gjson.ParseBytes(a.body)) {
			return time.Since(began)
		}
		if time.Since(began) > 30*time.Second {
			t.Fatalf("after 30 s: %s", what)
		}
	}
}

// TestTypingAndPresenceAcrossNodes: what is told beside the log crosses nodes, both ways and to its end.
func TestTypingAndPresenceAcrossNodes(t *testing.T) {
	a, b := twoNodes(t)
	alice, bob := register(t, a, "alice"), register(t, a, "bob")
	room := publicRoom(t, alice, bob)
	bob.move(b)
	for _, pair := range [][2]*client{{alice, bob}, {bob, alice}} {
		from, to := pair[0], pair[1]
		since := to.must(t, "GET", "/sync?timeout=0", nil).get("next_batch").Str
		path := "/rooms/" + url.PathEscape(room) + "/typing/" + url.PathEscape(from.user)
		typing := func(want bool) func(gjson.Result) bool {
			return func(s gjson.Result) bool {
				list := s.Get("rooms.join." + roomKey(room) + `.ephemeral.events.#(type=="m.typing").content.user_ids`)
				return list.Exists() && slices.ContainsFunc(list.Array(), func(u gjson.Result) bool { return u.Str == from.user }) == want
			}
		}
		from.must(t, "PUT", path, map[string]any{"typing": true, "timeout": 20000})
		began := awaitIn(t, to, &since, "the other node does not tell of the typing", typing(true))
		from.must(t, "PUT", path, map[string]any{"typing": false})
		ended := awaitIn(t, to, &since, "the other node does not tell that the typing ended", typing(false))
		words := "at my desk, " + from.name
		from.must(t, "PUT", "/presence/"+url.PathEscape(from.user)+"/status", map[string]any{"presence": "unavailable", "status_msg": words})
		present := awaitIn(t, to, &since, "the other node does not tell of the presence", func(s gjson.Result) bool {
			for _, e := range s.Get("presence.events").Array() {
				if e.Get("sender").Str == from.user && e.Get("content.status_msg").Str == words && e.Get("content.presence").Str == "unavailable" {
					return true
				}
			}
			return false
		})
		t.Logf("%s to %s: typing after %s, its end after %s, presence after %s", from.name, to.name, began.Round(time.Millisecond),
			ended.Round(time.Millisecond), present.Round(time.Millisecond))
	}
}

// TestLimitsAcrossNodes lets one user send to two nodes as fast as they answer: both together give at most twice what one gives.
func TestLimitsAcrossNodes(t *testing.T) {
	needFaults(t)
	const perSecond, burst = 5, 10
	database := storetest.Postgres(t)
	limits := fmt.Sprintf("{enabled: true, send: {per_second: %d, burst: %d}}", perSecond, burst)
	a := startNode(t, nodeConfig{name: "A", databaseURL: database, limits: limits})
	b := startNode(t, nodeConfig{name: "B", databaseURL: database, limits: limits})
	taken := func(name string, nodes ...*node) (int, time.Duration) {
		alice := register(t, a, name)
		room := publicRoom(t, alice)
		began, sent := time.Now(), 0
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i, n := range nodes {
			c := alice.at(n)
			wg.Go(func() {
				for k := 0; time.Since(began) < 6*time.Second; k++ {
					got, err := c.do(t.Context(), "PUT", sendPath(room, fmt.Sprintf("%d-%d", i, k)), text("again"))
					switch {
					case err == nil && got.status == http.StatusOK:
						mu.Lock()
						sent++
						mu.Unlock()
					case err == nil && got.status == http.StatusTooManyRequests && got.errcode() == "M_LIMIT_EXCEEDED":
						time.Sleep(10 * time.Millisecond)
					default:
						t.Errorf("a send was answered %d %s %v", got.status, got.body, err)
						return
					}
				}
			})
		}
		wg.Wait()
		return sent, time.Since(began)
	}
	one, took := taken("one", a)
	two, tookTwo := taken("two", a, b)
	t.Logf("one node took %d messages in %s, two took %d in %s", one, took.Round(time.Millisecond), two, tookTwo.Round(time.Millisecond))
	allowed := func(d time.Duration) float64 { return burst + perSecond*d.Seconds() }
	if float64(one) > allowed(took)+2 || float64(one) < allowed(took)/2 {
		t.Errorf("one node took %d messages, its limit is %.0f", one, allowed(took))
	}
	if float64(two) > 2*allowed(tookTwo)+2 {
		t.Errorf("two nodes took %d messages, twice the limit is %.0f", two, 2*allowed(tookTwo))
	}
}

// TestNodeJoins starts a second and a third node under load. Clients of the first notice nothing, and those that go over at once
// neither; then the first is drained and its clients go on where they were.
func TestNodeJoins(t *testing.T) {
	needFaults(t)
	database := storetest.Postgres(t)
	a := startNode(t, nodeConfig{name: "A", databaseURL: database})
	staying, moving := registerAll(t, a, "staying", 6), registerAll(t, a, "moving", 6)
	room := publicRoom(t, append(slices.Clone(staying), moving...)...)
	l := newLoad(t, room)
	still, goes := newReader(t, staying[0].login(t, a), room, 30), newReader(t, moving[0].login(t, a), room, 30)
	still.start()
	goes.start()
	l.start(append(slices.Clone(staying), moving...)...)
	time.Sleep(time.Second)
	began := time.Now()
	b := startNode(t, nodeConfig{name: "B", databaseURL: database})
	for _, c := range append(slices.Clone(moving), goes.c) {
		c.move(b)
	}
	c := startNode(t, nodeConfig{name: "C", databaseURL: database})
	for _, m := range moving[:3] {
		m.move(c)
	}
	joined := time.Now()
	time.Sleep(time.Second)
	_, requests := l.snapshot()
	for _, r := range requests {
		if r.status != http.StatusOK {
			t.Errorf("%s after a node began to start, a send was answered %d %s %v", r.at.Sub(began), r.status, r.errcode, r.err)
		}
	}
	stayed := func(r request) bool { return slices.Contains(staying, r.c) }
	before := took(requests, func(r request) bool { return stayed(r) && r.at.Add(r.took).Before(began) })
	during := took(requests, func(r request) bool { return stayed(r) && r.at.Add(r.took).After(began) && r.at.Before(joined) })
	t.Logf("sends to A: before %s; while two nodes started %s", summary(before), summary(during))
	if longest := percentile(during, 1); longest > 3*time.Second {
		t.Errorf("a send to A took %s while a node started", longest)
	}
	done := make(chan struct{})
	go func() { a.drain(); close(done) }()
	time.Sleep(50 * time.Millisecond)
	for _, s := range append(slices.Clone(staying), still.c) {
		s.move(c)
	}
	<-done
	time.Sleep(time.Second)
	l.stop()
	still.stop()
	goes.stop()
	sameEnd(t, room, moving[5], staying[0])
	atB, atC := moving[5].history(t, room, "", ""), staying[0].history(t, room, "", "")
	if !slices.Equal(atB, atC) {
		t.Errorf("the nodes show different histories of %d and %d events", len(atB), len(atC))
	}
	lost, doubled := l.check(atB)
	still.finish(atC)
	goes.finish(atB)
	t.Logf("%d acknowledged, %d lost, %d doubled", l.count(), lost, doubled)
}
