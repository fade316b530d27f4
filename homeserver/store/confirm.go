package store

import (
	"context"
	"time"
)

// confirmTime bounds one look at the head.
const confirmTime = 10 * time.Second

// flight is a look at the head that many wait for.
type flight struct {
	done chan struct{}
	err  error
}

// confirm notes that this process's memory holds all that was committed when a look at the head began.
func (s *Store) confirm(begun time.Time) {
	at := max(int64(begun.Sub(s.born)), 1)
	for {
		old := s.confirmed.Load()
		if old >= at || s.confirmed.CompareAndSwap(old, at) {
			return
		}
	}
}

// Confirm returns at once while this process's memory is known to hold all that was committed up to some time ago. Else it
// looks at the log's head in the database, once for all who ask meanwhile, and waits until this process has caught up. A
// process that does not follow the log keeps nothing that could be old.
func (s *Store) Confirm(ctx context.Context, within time.Duration) error {
	need := int64(time.Since(s.born) - within)
	for {
		if at := s.confirmed.Load(); at != 0 && at > need {
			return nil
		}
		s.mu.Lock()
		follows := s.follows
		s.mu.Unlock()
		if !follows {
			return nil
		}
		s.confirming.Lock()
		f := s.flight
		if f != nil {
			s.confirming.Unlock()
			select {
			case <-f.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if f.err != nil {
				return f.err
			}
			continue
		}
		f = &flight{done: make(chan struct{})}
		s.flight = f
		s.confirming.Unlock()
		// The one who happens to look does so for all: its client may hang up.
		look, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTime)
		f.err = s.CatchUp(look)
		cancel()
		s.confirming.Lock()
		s.flight = nil
		s.confirming.Unlock()
		close(f.done)
		if f.err != nil {
			return f.err
		}
	}
}
