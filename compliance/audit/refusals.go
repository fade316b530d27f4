package audit

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

const (
	refusalWindow  = time.Minute
	maxRefusals    = 10_000 // keys that are counted at the same time
	refusalsOfIP   = 20     // written for one address in a window; the rest is counted together
	refusalsAtOnce = 200    // written in a window for all; the rest is counted together
)

// refusalKey is what refusals have in common that become one entry.
type refusalKey struct {
	action, ip, target, reason string
	actor                      id.UserID
}

type refusal struct {
	entry       Entry
	count       int64
	first, last int64
}

// refusals bounds what somebody can make the server write by being refused.
type refusals struct {
	mu      sync.Mutex
	since   time.Time
	waiting map[refusalKey]*refusal // in this window; count 0: the entry that was written at once
	byIP    map[string]int
	written int
}

// Refusal notes that something was refused. The first one of an account from an address is written at once, those that
// follow within a minute become one entry with their number, and so does what one address or all together do too much of.
func (l *Log) Refusal(ctx context.Context, e Entry) error {
	now := l.Clock()
	if e.Result == "" {
		e.Result = Refused
	}
	if e.Time == 0 {
		e.Time = now.UnixMilli()
	}
	e.Source.complete(SourceOf(ctx))
	var err error
	if l.refusals.over(now) {
		err = l.flushRefusals(ctx)
	}
	if !l.refusals.note(&e) {
		return err
	}
	return errors.Join(err, l.Record(ctx, e))
}

// over tells whether a window has passed.
func (r *refusals) over(now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.since.IsZero() {
		r.since = now
	}
	return now.Sub(r.since) >= refusalWindow
}

// note counts a refusal and tells whether it is to be written now.
func (r *refusals) note(e *Entry) bool {
	ip := network(e.IP)
	key := refusalKey{e.Action, ip, e.Target, e.Reason, e.Actor}
	r.mu.Lock()
	defer r.mu.Unlock()
	if have := r.waiting[key]; have != nil {
		have.add(e)
		return false
	}
	switch {
	case r.byIP[ip] >= refusalsOfIP:
		key = refusalKey{action: e.Action, ip: ip}
	case r.written >= refusalsAtOnce || len(r.waiting) >= maxRefusals:
		key = refusalKey{action: e.Action}
	default:
		r.byIP[ip]++
		r.written++
		r.waiting[key] = &refusal{entry: *e}
		return true
	}
	have := r.waiting[key]
	if have == nil {
		have = &refusal{entry: Entry{Source: Source{Kind: e.Kind}, Action: e.Action, Result: e.Result, Reason: "various"}}
		if key.ip != "" {
			have.entry.IP, have.entry.Agent = e.IP, e.Agent
		}
		r.waiting[key] = have
	}
	have.add(e)
	return false
}

func (r *refusal) add(e *Entry) {
	if r.count == 0 {
		r.first = e.Time
	}
	r.count++
	r.last = e.Time
}

// network is the address that refusals are counted by: one household or host has a whole /64.
func network(ip string) string {
	addr, err := netip.ParseAddr(ip)
	if err != nil || !addr.Is6() {
		return ip
	}
	p, err := addr.Prefix(64)
	if err != nil {
		return ip
	}
	return p.Addr().String()
}

// take begins a new window and returns what was counted in the old one.
func (r *refusals) take(now time.Time) []Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Entry
	for _, c := range r.waiting {
		if c.count == 0 {
			continue
		}
		e := c.entry
		e.Time = c.last
		details := map[string]any{"count": c.count, "first": c.first, "last": c.last}
		for k, v := range e.Details {
			details[k] = v
		}
		e.Details = details
		out = append(out, e)
	}
	clear(r.waiting)
	clear(r.byIP)
	r.written = 0
	r.since = now
	return out
}

// flushRefusals writes what was counted.
func (l *Log) flushRefusals(ctx context.Context) error {
	var errs []error
	for _, e := range l.refusals.take(l.Clock()) {
		if err := l.Record(withoutRequest(ctx), e); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// withoutRequest keeps what one request is from what is written of others.
func withoutRequest(ctx context.Context) context.Context {
	return detached{context.WithoutCancel(ctx)}
}

type detached struct{ context.Context }

// Value implements context.Context: it hides all values.
func (detached) Value(any) any { return nil }
