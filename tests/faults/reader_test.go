package faults_test

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"
)

// reader follows a room by incremental syncs, as a client does: a limited timeline is completed by /messages. Across
// faults it goes on from its last token.
type reader struct {
	t     testing.TB
	c     *client
	room  string
	limit int   // events of a timeline
	load  *load // to measure the time from the PUT to here; may be nil

	mu      sync.Mutex
	since   string
	got     []message
	seen    map[string]bool
	delays  []time.Duration
	failed  int
	limited int

	cancel context.CancelFunc
	done   chan struct{}
}

// newReader begins at what is there now.
func newReader(t testing.TB, c *client, room string, limit int) *reader {
	t.Helper()
	return &reader{t: t, c: c, room: room, limit: limit, since: c.syncToken(t), seen: map[string]bool{}}
}

// start follows by long polls until stop.
func (r *reader) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	go func() {
		defer close(r.done)
		for ctx.Err() == nil {
			if err := r.step(ctx, 2*time.Second); err != nil && ctx.Err() == nil {
				r.mu.Lock()
				r.failed++
				r.mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
			}
		}
	}()
}

// stop ends the long polls.
func (r *reader) stop() {
	r.cancel()
	<-r.done
}

// token is where the reader is.
func (r *reader) token() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// failures is how many syncs failed.
func (r *reader) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

var errStatus = errors.New("the sync was not answered with 200")

// step is one sync. Its token moves only if the whole of it came through.
func (r *reader) step(ctx context.Context, timeout time.Duration) error {
	since := r.token()
	a, err := r.c.sync(ctx, since, timeout, r.limit)
	if err != nil {
		return err
	}
	if a.status != http.StatusOK {
		if a.status < 500 {
			r.t.Errorf("%s: a sync from %s answers %d %s", r.c.name, since, a.status, a.body)
		}
		return errStatus
	}
	now := time.Now()
	timeline := a.get("rooms.join." + roomKey(r.room) + ".timeline")
	var fresh []message
	for _, e := range timeline.Get("events").Array() {
		fresh = append(fresh, toMessage(e))
	}
	if timeline.Get("limited").Bool() {
		gap, err := r.fill(ctx, timeline.Get("prev_batch").Str, since)
		if err != nil {
			return err
		}
		fresh = append(gap, fresh...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if timeline.Get("limited").Bool() {
		r.limited++
	}
	for _, m := range fresh {
		if r.seen[m.id] {
			r.t.Errorf("%s gets %s (%q) twice, the second time after %s", r.c.name, m.id, m.body, since)
		}
		r.seen[m.id] = true
		if r.load != nil {
			if at, ok := r.load.firstTry(m.body); ok {
				r.delays = append(r.delays, now.Sub(at))
			}
		}
	}
	r.got = append(r.got, fresh...)
	r.since = a.get("next_batch").Str
	return nil
}

// fill reads what a limited timeline left out, back to the token that was given.
func (r *reader) fill(ctx context.Context, from, to string) ([]message, error) {
	var out []message
	for from != "" {
		q := url.Values{"dir": {"b"}, "limit": {"500"}, "from": {from}, "to": {to}}
		a, err := r.c.do(ctx, "GET", "/rooms/"+url.PathEscape(r.room)+"/messages?"+q.Encode(), nil)
		if err != nil {
			return nil, err
		}
		if a.status != http.StatusOK {
			if a.status < 500 {
				r.t.Errorf("%s: /messages from %s to %s answers %d %s", r.c.name, from, to, a.status, a.body)
			}
			return nil, errStatus
		}
		for _, e := range a.get("chunk").Array() {
			out = append(out, toMessage(e))
		}
		from = a.get("end").Str
	}
	slices.Reverse(out)
	return out, nil
}

// finish syncs until there is no more, and compares everything the reader got with the room's history behind the place
// where it began: the same events in the same order, none missing, none twice.
func (r *reader) finish(history []message) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for quiet := 0; quiet < 2; {
		before := len(r.messages())
		if err := r.step(ctx, 0); err != nil {
			r.t.Errorf("%s: the last sync: %v", r.c.name, err)
			return
		}
		if len(r.messages()) == before {
			quiet++
		}
	}
	r.compare(history)
}

// messages is a copy of what came up to now.
func (r *reader) messages() []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// compare wants got to be the end of the history.
func (r *reader) compare(history []message) {
	r.t.Helper()
	got := r.messages()
	if len(got) > len(history) {
		r.t.Errorf("%s got %d events by sync, the room has %d", r.c.name, len(got), len(history))
		return
	}
	if len(got) == 0 {
		return
	}
	begin := slices.IndexFunc(history, func(m message) bool { return m.id == got[0].id })
	if begin < 0 {
		r.t.Errorf("%s got %s by sync, which /messages does not show", r.c.name, got[0].id)
		return
	}
	want := history[begin:]
	for i := range want {
		if i >= len(got) {
			r.t.Errorf("%s misses the last %d events, first %q", r.c.name, len(want)-i, want[i].body)
			return
		}
		if got[i].id != want[i].id {
			r.t.Errorf("%s: event %d by sync is %q, by /messages %q", r.c.name, i, got[i].body, want[i].body)
			return
		}
	}
}

// latency is the time from the first PUT of a message to its arrival here.
func (r *reader) latency() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := slices.Clone(r.delays)
	slices.Sort(out)
	return out
}
