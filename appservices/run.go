package appservices

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	follower   = "appservices" // the name of the position in the log, and of the lease
	topicRetry = "appservice"  // a service that was away is back: its id

	pollFiles  = 2 * time.Second
	keptAbsent = 30 * 24 * time.Hour // what waits for a service that is not registered any more
)

// delivery is what the process that delivers keeps.
type delivery struct {
	active  atomic.Bool   // this process delivers
	changed chan struct{} // the registrations were read again
	beside  chan besideLog

	mu      sync.Mutex
	workers map[string]*worker

	follow *following // what the follower knows; made anew when this process takes over
}

// Prepare makes what the services need before the first request: their own accounts, and their places in the log.
func (s *Services) Prepare(ctx context.Context) error {
	if !s.Any() {
		return nil
	}
	if err := s.makeSenders(ctx); err != nil {
		return err
	}
	return s.Store.Write(ctx, func(tx *store.Tx) error { return tx.AddServices(s.current().receivers()) })
}

// receivers are the ids of the services that want traffic.
func (c *set) receivers() []string {
	var out []string
	for _, x := range c.all {
		if x.url != "" {
			out = append(out, x.ID)
		}
	}
	return out
}

// Run reads registrations again when their files change or something comes from hangup, and delivers to the services,
// until ctx ends. One process at a time delivers.
func (s *Services) Run(ctx context.Context, hangup <-chan os.Signal) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.watchFiles(ctx, hangup) })
	g.Go(func() error {
		if len(s.Paths) == 0 {
			// the log must not be kept for nobody
			if err := s.Store.Write(ctx, func(tx *store.Tx) error { return tx.LeaveLog(follower) }); err != nil && ctx.Err() == nil {
				s.Logger.Warn("forget the position of application services", "error", err)
			}
			return nil
		}
		return s.Store.RunLeased(ctx, follower, s.deliver)
	})
	return g.Wait()
}

// watchFiles keeps the registrations true to their files.
func (s *Services) watchFiles(ctx context.Context, hangup <-chan os.Signal) error {
	tick := time.NewTicker(pollFiles)
	defer tick.Stop()
	unprepared := false
	for {
		force := false
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
			force = true
		case <-tick.C:
		}
		if !s.reload(force) && !unprepared {
			continue
		}
		err := s.Prepare(ctx)
		if unprepared = err != nil; unprepared && ctx.Err() == nil {
			s.Logger.Warn("prepare application services, trying again", "error", err)
		}
		select {
		case s.line.changed <- struct{}{}:
		default:
		}
	}
}

// deliver follows the log and delivers, while this process holds the lease.
func (s *Services) deliver(ctx context.Context) error {
	s.line.mu.Lock()
	s.line.follow = newFollowing(s)
	s.line.workers = map[string]*worker{}
	s.line.mu.Unlock()
	s.line.active.Store(true)
	defer s.line.active.Store(false)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Store.RunFollower(ctx, follower, s.line.follow.entries) })
	g.Go(func() error { return s.runBeside(ctx) })
	g.Go(func() error { return s.forgetAbsent(ctx) })
	g.Go(func() error {
		for {
			for _, id := range s.current().receivers() {
				if w := s.line.start(id); w != nil {
					g.Go(func() error {
						defer s.line.stop(id)
						return s.work(ctx, id, w)
					})
				}
			}
			select {
			case <-ctx.Done():
				return nil
			case <-s.line.changed:
			}
		}
	})
	return g.Wait()
}

// start gives the worker of a service that has none yet.
func (d *delivery) start(id string) *worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.workers[id] != nil {
		return nil
	}
	w := &worker{kick: make(chan struct{}, 1), retry: make(chan struct{}, 1)}
	d.workers[id] = w
	return w
}

func (d *delivery) stop(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.workers, id)
}

// kick tells a service's worker that something waits; retry, that it need not wait for the end of its pause.
func (d *delivery) kick(id string, retry bool) {
	d.mu.Lock()
	w := d.workers[id]
	d.mu.Unlock()
	if w == nil {
		return
	}
	ch := w.kick
	if retry {
		ch = w.retry
	}
	select {
	case ch <- struct{}{}:
	default:
	}
}

// OnBroadcast takes what processes tell each other: that a service can be reached again.
func (s *Services) OnBroadcast(topic, payload string) {
	if topic == topicRetry && s.line.active.Load() {
		s.line.kick(payload, true)
	}
}

// forgetAbsent drops what has waited for too long for services that are not registered any more.
func (s *Services) forgetAbsent(ctx context.Context) error {
	const chunk = 500
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for n := int64(chunk); n == chunk; {
			err := s.Store.Write(ctx, func(tx *store.Tx) (err error) {
				n, err = tx.DropServiceTxns(s.current().receivers(), s.Now().Add(-keptAbsent).UnixMilli(), chunk)
				return err
			})
			if err != nil {
				if ctx.Err() == nil {
					s.Logger.Warn("drop transactions of absent application services", "error", err)
				}
				break
			}
		}
	}
}
