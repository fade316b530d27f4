package account

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/moothall/moothall/homeserver/account/guess"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	seenEvery  = 5 * time.Minute // how exact "last seen" is: idle clients ask twice a minute each
	seenChunk  = 100             // devices written in one transaction
	sweepEvery = time.Minute
	maxAgent   = 200 // bytes of a User-Agent that are kept
)

// seenDevices collects where and when devices were seen, to be written in batches: a request must not cost a write.
type seenDevices struct {
	mu      sync.Mutex
	waiting map[deviceKey]store.Device
}

type deviceKey struct{ user, device string }

// note is called with every request and does nothing most of the time.
func (d *seenDevices) note(s *cachedSession, r *http.Request, now int64) {
	last := s.seen.Load()
	if now-last < seenEvery.Milliseconds() || s.identity.DeviceID == "" || !s.seen.CompareAndSwap(last, now) {
		return
	}
	ip := ""
	if addr := web.ClientIP(r); addr.IsValid() {
		ip = addr.String()
	}
	seen := store.Device{User: s.identity.UserID, ID: s.identity.DeviceID, LastSeen: now, LastIP: ip, LastAgent: cutAgent(r.UserAgent())}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.waiting[deviceKey{string(seen.User), string(seen.ID)}] = seen
}

func (d *seenDevices) take() []store.Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]store.Device, 0, len(d.waiting))
	for _, s := range d.waiting {
		out = append(out, s)
	}
	clear(d.waiting)
	return out
}

// Run does what accounts need done in the background, until ctx ends: it writes down which devices were seen and removes
// what has expired.
func (a *Accounts) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			a.flushSeen(ctx)
			a.hashes.work.close()
			return nil
		case <-tick.C:
		}
		a.flushSeen(ctx)
		guess.Forget()
		if err := a.Sweep(ctx); err != nil && ctx.Err() == nil {
			a.Logger.Warn("remove expired authentication sessions and tokens", "error", err)
		}
		if err := a.sweepOverdue(ctx); err != nil && ctx.Err() == nil {
			a.Logger.Warn("end sessions that are over their limits", "error", err)
		}
	}
}

// flushSeen writes what was noted. What cannot be written is lost: the next request of the device notes it anew.
func (a *Accounts) flushSeen(ctx context.Context) {
	seen := a.seen.take()
	for len(seen) > 0 {
		n := min(seenChunk, len(seen))
		chunk := seen[:n]
		seen = seen[n:]
		err := a.Store.Write(ctx, func(tx *store.Tx) error { return tx.SawDevices(chunk) })
		if err != nil {
			a.Logger.Warn("store when devices were seen", "error", err)
			return
		}
	}
}

// Sweep removes what has expired.
func (a *Accounts) Sweep(ctx context.Context) error {
	now := a.now()
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		for _, sweep := range []func(int64) error{tx.SweepRegistration, tx.SweepEmail, tx.SweepOpenID,
			func(now int64) error { return tx.SweepSignInFailures(now - accountForget.Milliseconds()) }} {
			if err := sweep(now); err != nil {
				return err
			}
		}
		return nil
	})
}
