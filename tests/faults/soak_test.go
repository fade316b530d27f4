package faults_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/testkit"
)

const soakEnv = "SOAK" // how long the soak takes; 20s if it is not set

// TestSoak keeps a server under mixed load and watches what it holds on to: goroutines, open files, memory. When the first
// half is over they must not grow any more, and when the load ends they must go back.
func TestSoak(t *testing.T) {
	needFaults(t)
	length := 20 * time.Second
	if text := os.Getenv(soakEnv); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil || length < 10*time.Second {
			t.Fatalf("%s must be a duration of at least 10s, not %q", soakEnv, text)
		}
	}
	eachDatabase(t, func(t *testing.T, databaseURL string) { soak(t, databaseURL, length) })
}

func soak(t *testing.T, databaseURL string, length time.Duration) {
	n := startNode(t, nodeConfig{name: "node", databaseURL: databaseURL})
	users := registerAll(t, n, "user", 40)
	rooms := make([]string, 8)
	for i := range rooms {
		members := make([]*client, 0, 20)
		for j := range 20 {
			members = append(members, users[(i*5+j)%len(users)])
		}
		rooms[i] = publicRoom(t, members...)
	}
	s := &soaking{t: t, n: n, users: users, rooms: rooms}
	time.Sleep(time.Second)
	resting := n.gauges()
	ctx, cancel := context.WithTimeout(context.Background(), length)
	defer cancel()
	var wg sync.WaitGroup
	s.start(ctx, &wg)
	every := min(10*time.Second, length/10)
	t.Logf("at rest: %s", resting)
	var seen []gauges
	for began := time.Now(); ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-time.After(every):
			g := n.gauges()
			seen = append(seen, g)
			t.Logf("%5s: %s; %d requests, %d errors", time.Since(began).Round(time.Second), g, s.requests.Load(), s.errors.Load())
		}
	}
	wg.Wait()
	for _, u := range users {
		u.http.CloseIdleConnections()
	}
	if e := s.errors.Load(); e > 0 {
		t.Errorf("%d of %d requests failed, first: %s", e, s.requests.Load(), s.first.Load())
	}
	grows(t, seen)
	var after gauges
	testkit.Within(t, 15*time.Second, "after the load goroutines and files do not go back", func() bool {
		after = n.gauges()
		return after.goroutines <= resting.goroutines+10 && after.files <= resting.files+10
	})
	t.Logf("afterwards: %s", after)
}

// grows compares the second half of a soak with its first. The first fifth is left out: caches fill. Memory may rise a
// little with what the caches learn (rooms' newest events), but not with the number of requests.
func grows(t *testing.T, seen []gauges) {
	t.Helper()
	if len(seen) < 6 {
		t.Fatalf("only %d looks", len(seen))
	}
	first, second := seen[len(seen)/5:len(seen)/2], seen[len(seen)/2:]
	for _, m := range []struct {
		what  string
		value func(gauges) float64
		slack float64 // beside a quarter
	}{
		{"goroutines", func(g gauges) float64 { return g.goroutines }, 40},
		{"open files", func(g gauges) float64 { return g.files }, 20},
		{"memory (MiB)", func(g gauges) float64 { return g.rss / (1 << 20) }, 48},
	} {
		was, is := mean(first, m.value), mean(second, m.value)
		say, verdict := t.Logf, "flat"
		if is > was*1.25+m.slack {
			say, verdict = t.Errorf, "not flat"
		}
		say("%s: %s, %.0f on average in the first half, %.0f in the second", m.what, verdict, was, is)
	}
}

func mean(all []gauges, value func(gauges) float64) float64 {
	sum := 0.0
	for _, g := range all {
		sum += value(g)
	}
	return sum / float64(len(all))
}

// gauges are what a process holds.
type gauges struct{ goroutines, files, rss, heap float64 }

func (g gauges) String() string {
	return fmt.Sprintf("%.0f goroutines, %.0f open files, %.0f MiB resident, %.0f MiB heap", g.goroutines, g.files, g.rss/(1<<20), g.heap/(1<<20))
}

// gauges reads /metrics, and counts the files where the system shows them.
func (n *node) gauges() gauges {
	n.t.Helper()
	resp, err := http.Get(n.url + "/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var g gauges
	for sc := bufio.NewScanner(resp.Body); sc.Scan(); {
		name, value, _ := strings.Cut(sc.Text(), " ")
		into := map[string]*float64{"go_goroutines": &g.goroutines, "process_open_fds": &g.files,
			"process_resident_memory_bytes": &g.rss, "go_memstats_heap_inuse_bytes": &g.heap}[name]
		if into == nil {
			continue
		}
		if *into, err = strconv.ParseFloat(value, 64); err != nil {
			n.t.Fatalf("%s: %v", sc.Text(), err)
		}
	}
	if g.goroutines == 0 || g.files == 0 {
		n.t.Fatalf("/metrics tells nothing: %+v", g)
	}
	return g
}

// soaking is mixed load: long polls, messages, receipts, typing, rooms, sign-ins, uploads, clients that go away in the
// middle of a request.
type soaking struct {
	t        *testing.T
	n        *node
	users    []*client
	rooms    []string
	requests atomic.Int64
	errors   atomic.Int64
	first    atomic.Value
}

// call does a request that has to succeed unless the time is over.
func (s *soaking) call(ctx context.Context, c *client, method, path string, body any) (answer, bool) {
	a, err := c.do(ctx, method, path, body)
	if ctx.Err() != nil {
		return a, false
	}
	s.requests.Add(1)
	if err != nil || a.status != http.StatusOK {
		s.errors.Add(1)
		s.first.CompareAndSwap(nil, fmt.Sprintf("%s %s: %d %s %v", method, path, a.status, a.body, err))
		return a, false
	}
	return a, true
}

// loop repeats fn until the time is over.
func (s *soaking) loop(ctx context.Context, wg *sync.WaitGroup, pause time.Duration, fn func(i int)) {
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			fn(i)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
	})
}

func (s *soaking) start(ctx context.Context, wg *sync.WaitGroup) {
	for u, c := range s.users {
		since := "" // a long poll for everybody
		s.loop(ctx, wg, 0, func(int) {
			q := url.Values{"timeout": {"5000"}}
			if since != "" {
				q.Set("since", since)
			}
			if a, ok := s.call(ctx, c, "GET", "/sync?"+q.Encode(), nil); ok {
				since = a.get("next_batch").Str
			}
		})
		if u%4 != 0 {
			continue
		}
		r := u / 4 % len(s.rooms)
		room := url.PathEscape(s.rooms[r])
		member := s.users[(r*5+u/4)%len(s.users)]
		s.loop(ctx, wg, 100*time.Millisecond, func(i int) {
			a, ok := s.call(ctx, member, "PUT", sendPath(s.rooms[r], fmt.Sprintf("soak-%d-%d", u, i)), text(strings.Repeat("words ", 1+i%40*100)))
			if ok && i%5 == 0 {
				s.call(ctx, member, "POST", "/rooms/"+room+"/receipt/m.read/"+url.PathEscape(a.get("event_id").Str), map[string]any{})
			}
			if i%7 == 0 {
				s.call(ctx, member, "PUT", "/rooms/"+room+"/typing/"+member.user, map[string]any{"typing": i%2 == 0, "timeout": 3000})
			}
			if i%10 == 0 {
				s.call(ctx, member, "GET", "/rooms/"+room+"/messages?dir=b&limit=50", nil)
			}
		})
	}
	s.visitors(ctx, wg)
}

// visitors come and go.
func (s *soaking) visitors(ctx context.Context, wg *sync.WaitGroup) {
	s.loop(ctx, wg, 200*time.Millisecond, func(int) { // a device that signs in and out, on a connection of its own
		d := newClient(s.n, s.users[0].name)
		defer d.http.CloseIdleConnections()
		a, ok := s.call(ctx, d, "POST", "/login", map[string]any{"type": "m.login.password",
			"identifier": map[string]string{"type": "m.id.user", "user": s.users[0].user}, "password": password})
		if !ok {
			return
		}
		d.token, d.user = a.get("access_token").Str, s.users[0].user
		s.call(ctx, d, "GET", "/sync?timeout=0", nil)
		s.call(ctx, d, "POST", "/logout", map[string]any{})
	})
	s.loop(ctx, wg, 50*time.Millisecond, func(i int) { // clients that go away in the middle of a long poll
		c := newClient(s.n, s.users[1].name)
		defer c.http.CloseIdleConnections()
		c.token = s.users[1].token
		short, cancel := context.WithTimeout(ctx, time.Duration(30+i%50)*time.Millisecond)
		defer cancel()
		if a, err := c.do(short, "GET", "/sync?timeout=0", nil); err == nil {
			_, _ = c.do(short, "GET", "/sync?timeout=30000&since="+url.QueryEscape(a.get("next_batch").Str), nil)
		}
	})
	s.loop(ctx, wg, 500*time.Millisecond, func(i int) { // rooms that are made, joined, left and forgotten
		a, ok := s.call(ctx, s.users[2], "POST", "/createRoom", map[string]any{"preset": "public_chat"})
		if !ok {
			return
		}
		room := url.PathEscape(a.get("room_id").Str)
		for _, c := range []*client{s.users[3], s.users[2]} {
			s.call(ctx, c, "POST", "/join/"+room, map[string]any{})
			s.call(ctx, c, "POST", "/rooms/"+room+"/leave", map[string]any{})
			s.call(ctx, c, "POST", "/rooms/"+room+"/forget", map[string]any{})
		}
	})
}

// TestSoakScript wants the nightly form to be there and to run this file's test.
func TestSoakScript(t *testing.T) {
	needFaults(t)
	script, err := os.ReadFile(filepath.Join("..", "..", "scripts", "soak"))
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"TestSoak$", soakEnv, enableEnv} {
		if !strings.Contains(string(script), word) {
			t.Errorf("scripts/soak does not name %s", word)
		}
	}
}
