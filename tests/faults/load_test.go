package faults_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// sent is a message that was answered with an event id.
type sent struct {
	c         *client
	txn, body string
	id        string
}

// request is one attempt to send.
type request struct {
	c       *client
	at      time.Time
	took    time.Duration
	status  int // 0: no answer
	errcode string
	err     error
}

// load is senders that write into a room, each one message after the other. A message without an answer is repeated
// with its transaction id until it has one.
type load struct {
	t       testing.TB
	room    string
	refusal bool // 403 is an answer to a message: the sender goes on with the next
	pace    time.Duration

	mu       sync.Mutex
	acked    []sent
	requests []request
	begun    map[string]time.Time // by body: when the first attempt began
	numbers  map[*client]int

	stopping chan struct{}
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

func newLoad(t testing.TB, room string) *load {
	return &load{t: t, room: room, begun: map[string]time.Time{}, numbers: map[*client]int{}}
}

// start lets the clients send until stop.
func (l *load) start(clients ...*client) {
	ctx, cancel := context.WithCancel(context.Background())
	l.stopping, l.cancel = make(chan struct{}), cancel
	for _, c := range clients {
		l.wg.Go(func() { l.sender(ctx, c) })
	}
}

// stop lets every sender get the answer it still waits for, and gives up after a while.
func (l *load) stop() {
	l.t.Helper()
	close(l.stopping)
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(60 * time.Second):
		l.t.Errorf("some senders have no answer 60 s after the load ended")
	}
	l.cancel()
	<-done
}

func (l *load) sender(ctx context.Context, c *client) {
	for {
		select {
		case <-l.stopping:
			return
		case <-time.After(l.pace):
		}
		l.mu.Lock()
		l.numbers[c]++
		n := l.numbers[c]
		l.mu.Unlock()
		body, txn := fmt.Sprintf("%s/%s %d", c.name, c.device, n), fmt.Sprintf("%s-%d", c.device, n)
		l.mu.Lock()
		l.begun[body] = time.Now()
		l.mu.Unlock()
		if !l.deliver(ctx, c, txn, body) {
			return
		}
	}
}

// deliver repeats a message until it is answered; false ends the sender.
func (l *load) deliver(ctx context.Context, c *client, txn, body string) bool {
	for {
		at := time.Now()
		a, err := c.do(ctx, "PUT", sendPath(l.room, txn), text(body))
		if ctx.Err() != nil {
			return false
		}
		l.mu.Lock()
		r := request{c: c, at: at, took: time.Since(at), err: err}
		if err == nil {
			r.status, r.errcode = a.status, a.errcode()
		}
		l.requests = append(l.requests, r)
		if r.status == http.StatusOK {
			l.acked = append(l.acked, sent{c: c, txn: txn, body: body, id: a.get("event_id").Str})
		}
		l.mu.Unlock()
		switch {
		case r.status == http.StatusOK:
			return true
		case r.status == http.StatusForbidden && l.refusal:
			return true
		case r.status != 0 && r.status < 500:
			l.t.Errorf("%s: %s answers %d %s", c.name, body, a.status, a.body)
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// snapshot copies what was noted up to now.
func (l *load) snapshot() ([]sent, []request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.acked), slices.Clone(l.requests)
}

// count is the number of acknowledged messages.
func (l *load) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// firstTry is when a message was sent first.
func (l *load) firstTry(body string) (time.Time, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.begun[body]
	return at, ok
}

// check compares everything acknowledged with the room's history: each is there under its id, once, and no message is
// there twice. It returns how many were lost and doubled.
func (l *load) check(history []message) (lost, doubled int) {
	l.t.Helper()
	byID, byBody := map[string]message{}, map[string]string{}
	for _, m := range history {
		if _, ok := byID[m.id]; ok {
			l.t.Errorf("paging shows %s twice", m.id)
		}
		byID[m.id] = m
		if m.kind != "m.room.message" {
			continue
		}
		if first, ok := byBody[m.body]; ok {
			doubled++
			l.t.Errorf("%q is in the room twice: %s and %s", m.body, first, m.id)
		}
		byBody[m.body] = m.id
	}
	acked, _ := l.snapshot()
	for _, s := range acked {
		if m, ok := byID[s.id]; !ok || m.body != s.body {
			lost++
			if lost <= 5 {
				l.t.Errorf("%q was acknowledged as %s and is not there (the room has it as %q)", s.body, s.id, byBody[s.body])
			}
		}
	}
	return lost, doubled
}

// repeat sends some acknowledged messages once more under their transaction ids: each gets its first event id.
func (l *load) repeat(pick func(n int) int, count int) {
	l.t.Helper()
	acked, _ := l.snapshot()
	for range min(count, len(acked)) {
		s := acked[pick(len(acked))]
		if again := s.c.send(l.t, l.room, s.txn, s.body); again != s.id {
			l.t.Errorf("%q got %s first and %s when it was repeated", s.body, s.id, again)
		}
	}
}

// took gives the durations of answered requests that keep is true for, shortest first.
func took(requests []request, keep func(request) bool) []time.Duration {
	var out []time.Duration
	for _, r := range requests {
		if r.status == http.StatusOK && keep(r) {
			out = append(out, r.took)
		}
	}
	slices.Sort(out)
	return out
}

// percentile of sorted durations.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

// summary is p50, p99 and the longest of sorted durations.
func summary(sorted []time.Duration) string {
	round := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %s, p99 %s, longest %s of %d", round(percentile(sorted, 0.5)), round(percentile(sorted, 0.99)),
		round(percentile(sorted, 1)), len(sorted))
}
