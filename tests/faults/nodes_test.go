package faults_test

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// twoNodes starts two processes on one PostgreSQL.
func twoNodes(t *testing.T) (a, b *node) {
	t.Helper()
	needFaults(t)
	database := storetest.Postgres(t)
	return startNode(t, nodeConfig{name: "A", databaseURL: database}), startNode(t, nodeConfig{name: "B", databaseURL: database})
}

// TestTwoNodes lets users of two nodes talk at a calm pace, then under load, and compares what both nodes show.
func TestTwoNodes(t *testing.T) {
	a, b := twoNodes(t)
	alice, bob := register(t, a, "alice"), register(t, a, "bob")
	bob.move(b)
	room := publicRoom(t, alice, bob)
	calm := newLoad(t, room)
	calm.pace = 50 * time.Millisecond
	atA, atB := newReader(t, alice.login(t, a), room, 50), newReader(t, bob.login(t, b), room, 50)
	measure := func(what string, l *load, from *client) {
		atA.load, atB.load = l, l
		atA.delays, atB.delays = nil, nil // neither runs
		atA.start()
		atB.start()
		l.start(from)
		time.Sleep(2 * time.Second)
		l.stop()
		time.Sleep(200 * time.Millisecond)
		atA.stop()
		atB.stop()
		t.Logf("%s: reader at A %s; at B %s", what, summary(atA.latency()), summary(atB.latency()))
	}
	measure("20 messages/s sent at A, from the PUT to the reader", calm, alice)
	if p := percentile(atB.latency(), 0.5); p > 250*time.Millisecond {
		t.Errorf("a message needs %s from one node to the other at the median", p)
	}
	measure("20 messages/s sent at B, from the PUT to the reader", calm, bob)

	busy := newLoad(t, room)
	senders := registerAll(t, a, "sender", 8)
	for i, s := range senders {
		s.join(t, room)
		if i%2 == 1 {
			s.move(b)
		}
	}
	atA.start()
	atB.start()
	busy.start(senders...)
	time.Sleep(3 * time.Second)
	busy.stop()
	_, requests := busy.snapshot()
	t.Logf("8 senders on two nodes, 3 s: %s", summary(took(requests, func(request) bool { return true })))
	for _, r := range requests {
		if r.status != http.StatusOK {
			t.Errorf("a send was answered %d %s %v", r.status, r.errcode, r.err)
		}
	}
	atA.stop()
	atB.stop()
	sameEnd(t, room, alice, bob)
	one, other := alice.history(t, room, "", ""), bob.history(t, room, "", "")
	if !slices.Equal(one, other) {
		t.Errorf("the nodes show different histories of %d and %d events", len(one), len(other))
	}
	busy.check(one)
	calm.check(one)
	atA.finish(one)
	atB.finish(other)
}

// TestNodeKilled kills one of two nodes under load. Clients of the other notice nothing; those of the killed one move over
// with their tokens and get everything once.
func TestNodeKilled(t *testing.T) {
	a, b := twoNodes(t)
	random := moments(t)
	onA, onB := registerAll(t, a, "a", 8), registerAll(t, a, "b", 8)
	room := publicRoom(t, append(slices.Clone(onA), onB...)...)
	for _, c := range onB {
		c.move(b)
	}
	l := newLoad(t, room)
	moving, staying := newReader(t, onA[0].login(t, a), room, 20), newReader(t, onB[0].login(t, b), room, 20)
	moving.start()
	staying.start()
	l.start(append(slices.Clone(onA), onB...)...)
	time.Sleep(between(random, 1500*time.Millisecond, 2500*time.Millisecond))
	killed := time.Now()
	a.kill()
	time.Sleep(300 * time.Millisecond)
	for _, c := range append(slices.Clone(onA), moving.c) {
		c.move(b)
	}
	time.Sleep(2 * time.Second)
	a.start()
	for _, c := range onA {
		c.move(a)
	}
	time.Sleep(time.Second)
	l.stop()
	moving.stop()
	staying.stop()
	_, requests := l.snapshot()
	stayed := func(r request) bool { return slices.Contains(onB, r.c) }
	for _, r := range requests {
		if stayed(r) && r.status != http.StatusOK {
			t.Errorf("%v after the other node was killed, a send to this one was answered %d %s %v", r.at.Sub(killed), r.status, r.errcode, r.err)
		}
	}
	if n := staying.failures(); n > 0 {
		t.Errorf("%d syncs on the other node failed", n)
	}
	before := took(requests, func(r request) bool { return stayed(r) && r.at.Add(r.took).Before(killed) })
	after := took(requests, func(r request) bool {
		return stayed(r) && r.at.Add(r.took).After(killed) && r.at.Before(killed.Add(3*time.Second))
	})
	t.Logf("sends to the other node: before %s; from the kill on, 3 s: %s", summary(before), summary(after))
	if longest := percentile(after, 1); longest > 6500*time.Millisecond {
		t.Errorf("a send to the other node took %s", longest)
	}
	sameEnd(t, room, onA[0], onB[0])
	history := onB[0].history(t, room, "", "")
	lost, doubled := l.check(history)
	l.repeat(random.IntN, 20)
	moving.finish(history)
	staying.finish(history)
	t.Logf("%d acknowledged, %d lost, %d doubled; the moving reader had %d limited timelines", l.count(), lost, doubled, moving.limited)
}

// TestDrain stops one of two nodes by SIGTERM under load: what was under way is answered, long polls too.
func TestDrain(t *testing.T) {
	a, b := twoNodes(t)
	onA := registerAll(t, a, "a", 8)
	room := publicRoom(t, onA...)
	l := newLoad(t, room)
	r := newReader(t, onA[0].login(t, a), room, 20)
	r.start()
	// an idle account's long poll is under way for seconds
	lonely := register(t, a, "lonely")
	poll := make(chan error, 1)
	since := lonely.syncToken(t)
	go func() {
		got, err := lonely.sync(context.Background(), since, 30*time.Second, 10)
		if err == nil && got.status != http.StatusOK {
			err = fmt.Errorf("%d %s", got.status, got.body)
		}
		poll <- err
	}()
	l.start(onA...)
	time.Sleep(time.Second)
	var drained time.Duration
	var terminated atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		terminated.Store(time.Now().UnixNano())
		drained = a.drain()
	}()
	time.Sleep(50 * time.Millisecond)
	for _, c := range append(slices.Clone(onA), r.c) {
		c.move(b)
	}
	<-done
	if err := <-poll; err != nil {
		t.Errorf("the long poll under way at SIGTERM: %v", err)
	}
	time.Sleep(500 * time.Millisecond)
	l.stop()
	r.stop()
	_, requests := l.snapshot()
	at := time.Unix(0, terminated.Load())
	under, refused := 0, 0
	for _, q := range requests {
		if q.at.Before(at) && q.at.Add(q.took).After(at) {
			under++
		}
		if q.status == http.StatusOK {
			continue
		}
		if q.at.Before(at) {
			t.Errorf("a send that was under way for %s at SIGTERM got %d %s %v", at.Sub(q.at), q.status, q.errcode, q.err)
		}
		refused++
	}
	t.Logf("SIGTERM: gone after %s; %d sends were under way; %d later ones had to go to the other node", drained.Round(time.Millisecond), under, refused)
	history := onA[0].history(t, room, "", "")
	l.check(history)
	r.finish(history)
	if drained > 5*time.Second {
		t.Errorf("it took %s to drain", drained)
	}
}

// TestReadYourWrites does one thing on a node and the next at once on the other.
func TestReadYourWrites(t *testing.T) {
	a, b := twoNodes(t)
	alice, bob := register(t, a, "alice"), register(t, a, "bob")
	bob.move(b)
	began := time.Now()
	const times = 40
	for i := range times {
		room := alice.createRoom(t, map[string]any{"preset": "private_chat", "invite": []string{bob.user}})
		bob.join(t, room)
		id := bob.send(t, room, fmt.Sprint("b", i), "hello")
		if got := alice.must(t, "GET", "/rooms/"+url.PathEscape(room)+"/event/"+url.PathEscape(id), nil).get("event_id").Str; got != id {
			t.Fatalf("A shows %q, want %q", got, id)
		}
		alice.send(t, room, fmt.Sprint("a", i), "hello yourself")
		// a token of B on A at once: nothing of before comes again, and what follows comes
		since := bob.must(t, "GET", "/sync?timeout=0", nil).get("next_batch").Str
		moved := newReader(t, bob.login(t, a), room, 20)
		moved.since = since
		next := bob.send(t, room, fmt.Sprint("c", i), "next")
		stepUntil(t, moved, next)
		got := moved.messages()
		if len(got) > 1 && got[0].sender == alice.user {
			got = got[1:] // B may not have had it yet when it gave the token out
		}
		if len(got) != 1 || got[0].id != next {
			t.Fatalf("a sync on A from a token of B shows %v, want only %s", got, next)
		}
	}
	carol := register(t, b, "carol")
	carol.move(a)
	carol.must(t, "POST", "/logout", map[string]any{})
	carol.move(b)
	logged := time.Now()
	for {
		got, err := carol.do(t.Context(), "GET", "/account/whoami", nil)
		if err == nil && got.status == http.StatusUnauthorized {
			break
		}
		if time.Since(logged) > 2*time.Second {
			t.Fatalf("B still takes a token 2 s after A ended its session: %d %v", got.status, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("%d rounds in %s; a session that A ended was known to B after %s", times, time.Since(began).Round(time.Millisecond), time.Since(logged).Round(time.Millisecond))
}

// stepUntil syncs until an event has come.
func stepUntil(t *testing.T, r *reader, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !r.hasSeen(id) {
		if err := r.step(ctx, 5*time.Second); err != nil {
			t.Fatalf("%s waits for %s: %v", r.c.name, id, err)
		}
	}
}

func (r *reader) hasSeen(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen[id]
}

// TestBanAcrossNodes bans on A, and takes the right to speak away on A, while the user writes on B from 16 devices.
func TestBanAcrossNodes(t *testing.T) {
	a, b := twoNodes(t)
	alice, eve := register(t, a, "alice"), register(t, a, "eve")
	others := registerAll(t, a, "other", 4)
	room := publicRoom(t, append([]*client{alice, eve}, others...)...)
	devices := make([]*client, 16)
	for i := range devices {
		devices[i] = eve.login(t, b)
	}
	for _, c := range others {
		c.move(b)
	}
	state := "/rooms/" + url.PathEscape(room) + "/state/m.room.power_levels/"
	for i, step := range []struct {
		name string
		do   func()
		undo func()
		kind string
	}{
		{"power levels", func() {
			levels := alice.must(t, "GET", state, nil).get("@this").Value().(map[string]any)
			levels["users"] = merge(levels["users"], map[string]any{eve.user: -1})
			alice.must(t, "PUT", state, levels)
		}, func() {
			levels := alice.must(t, "GET", state, nil).get("@this").Value().(map[string]any)
			levels["users"] = merge(levels["users"], map[string]any{eve.user: 0})
			alice.must(t, "PUT", state, levels)
			eve.must(t, "POST", "/join/"+url.PathEscape(room), map[string]any{})
		}, "m.room.power_levels"},
		{"ban", func() {
			alice.must(t, "POST", "/rooms/"+url.PathEscape(room)+"/ban", map[string]any{"user_id": eve.user})
		}, func() {
			alice.must(t, "POST", "/rooms/"+url.PathEscape(room)+"/unban", map[string]any{"user_id": eve.user})
			eve.must(t, "POST", "/join/"+url.PathEscape(room), map[string]any{})
		}, "m.room.member"},
		{"kick", func() {
			alice.must(t, "POST", "/rooms/"+url.PathEscape(room)+"/kick", map[string]any{"user_id": eve.user})
		}, func() {}, "m.room.member"},
	} {
		l, calm := newLoad(t, room), newLoad(t, room)
		l.refusal = true
		// an old refused transaction id is no new request
		l.numbers, calm.numbers = map[*client]int{}, map[*client]int{}
		for _, c := range append(slices.Clone(devices), others...) {
			l.numbers[c], calm.numbers[c] = 1000_000*(i+1), 1000_000*(i+1)
		}
		mark := alice.send(t, room, fmt.Sprint("mark", i), fmt.Sprint("mark ", i))
		calm.start(others...)
		l.start(devices...)
		time.Sleep(700 * time.Millisecond)
		asked := time.Now()
		step.do()
		answered := time.Now()
		time.Sleep(300 * time.Millisecond)
		l.stop()
		calm.stop()
		_, requests := l.snapshot()
		late := 0
		for _, r := range requests {
			if r.at.After(answered) && r.status != http.StatusForbidden {
				t.Errorf("%s: a send that began %s after the answer got %d %s %v", step.name, r.at.Sub(answered), r.status, r.errcode, r.err)
			}
			if r.at.After(answered) {
				late++
			}
			if r.status != http.StatusOK && r.status != http.StatusForbidden {
				t.Errorf("%s: a send got %d %s %v", step.name, r.status, r.errcode, r.err)
			}
		}
		_, calmRequests := calm.snapshot()
		for _, r := range calmRequests {
			if r.status != http.StatusOK {
				t.Errorf("%s: a send of somebody else got %d %s %v", step.name, r.status, r.errcode, r.err)
			}
		}
		sameEnd(t, room, alice, others[0])
		history := alice.history(t, room, "", "")
		history = history[slices.IndexFunc(history, func(m message) bool { return m.id == mark }):]
		fence := slices.IndexFunc(history, func(m message) bool { return m.kind == step.kind })
		if fence < 0 {
			t.Fatalf("%s: there is no %s behind the mark", step.name, step.kind)
		}
		after := 0
		for _, m := range history[fence:] {
			if m.sender == eve.user && m.kind == "m.room.message" {
				after++
			}
		}
		if after > 0 {
			t.Errorf("%s: %d messages of the user stand behind the event", step.name, after)
		}
		l.check(history)
		calm.check(history)
		t.Logf("%s: answered in %s; %d messages of the user were taken before, %d requests began after the answer; sends of others %s", step.name,
			answered.Sub(asked).Round(time.Millisecond), l.count(), late, summary(took(calmRequests, func(request) bool { return true })))
		if late < len(devices) {
			t.Errorf("%s: only %d requests began after the answer: the test shows nothing", step.name, late)
		}
		step.undo()
	}
}

func merge(base any, more map[string]any) map[string]any {
	out := map[string]any{}
	if m, ok := base.(map[string]any); ok {
		for k, v := range m {
			out[k] = v
		}
	}
	for k, v := range more {
		out[k] = v
	}
	return out
}

// TestFrozenNode freezes one of two nodes at random moments under load. It may hold the log's lock then: the other's sends
// wait 5 s at most, until the database ends that transaction. After it thawed, the frozen node goes on.
func TestFrozenNode(t *testing.T) {
	a, b := twoNodes(t)
	random := moments(t)
	onA, onB := registerAll(t, a, "a", 12), registerAll(t, a, "b", 4)
	room := publicRoom(t, append(slices.Clone(onA), onB...)...)
	for _, c := range onB {
		c.move(b)
	}
	l := newLoad(t, room)
	atA, atB := newReader(t, onA[0].login(t, a), room, 30), newReader(t, onB[0].login(t, b), room, 30)
	atA.start()
	atB.start()
	l.start(append(slices.Clone(onA), onB...)...)
	blocked := 0
	var worst time.Duration
	for try := 0; try < 12 && blocked < 2; try++ {
		time.Sleep(between(random, 150*time.Millisecond, 450*time.Millisecond))
		l.mu.Lock()
		l.requests = nil
		l.mu.Unlock()
		a.signal(syscall.SIGSTOP)
		stopped := time.Now()
		// B is stuck as long as no request of its clients is answered
		stuck := time.Duration(0)
		for last := time.Now(); time.Since(stopped) < 8*time.Second; time.Sleep(20 * time.Millisecond) {
			if at, ok := l.lastAnswer(onB); ok && at.After(last) {
				last = at
			}
			stuck = max(stuck, time.Since(last))
			if time.Since(stopped) > 700*time.Millisecond && time.Since(last) < 100*time.Millisecond {
				break
			}
		}
		worst = max(worst, stuck)
		if stuck > time.Second {
			blocked++
			t.Logf("frozen in mid-commit: the other node's sends waited %s", stuck.Round(10*time.Millisecond))
		}
		a.signal(syscall.SIGCONT)
		before := l.count()
		testkit.Within(t, 10*time.Second, "nobody can send after the node has thawed", func() bool { return l.count() > before+50 })
	}
	time.Sleep(500 * time.Millisecond)
	l.stop()
	atA.stop()
	atB.stop()
	t.Logf("the longest wait was %s; %d of the freezes were in mid-commit", worst.Round(10*time.Millisecond), blocked)
	if worst > 6500*time.Millisecond {
		t.Errorf("a frozen node blocked the other for %s", worst)
	}
	if blocked == 0 {
		t.Error("no freeze met a commit: the test shows nothing")
	}
	if n := atB.failures(); n > 0 {
		t.Errorf("%d syncs on the node that was not frozen failed", n)
	}
	sameEnd(t, room, onA[0], onB[0])
	one, other := onA[0].history(t, room, "", ""), onB[0].history(t, room, "", "")
	if !slices.Equal(one, other) {
		t.Errorf("the nodes show different histories of %d and %d events", len(one), len(other))
	}
	lost, doubled := l.check(one)
	l.repeat(random.IntN, 20)
	atA.finish(one)
	atB.finish(other)
	t.Logf("%d acknowledged, %d lost, %d doubled", l.count(), lost, doubled)
}

// lastAnswer is when one of these clients was last answered with 200.
func (l *load) lastAnswer(clients []*client) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.requests) - 1; i >= 0; i-- {
		r := l.requests[i]
		if r.status == http.StatusOK && slices.Contains(clients, r.c) {
			return r.at.Add(r.took), true
		}
	}
	return time.Time{}, false
}
