package store

import (
	"context"
	"errors"
	"time"
)

const (
	// confirmTime bounds one look at the head.
	confirmTime = 10 * time.Second
	// confirmWait is how long a look waits for this process to catch up with the head that it saw. One that follows does so
	// within milliseconds; what it keeps is not worth more waiting than reading the database takes.
	confirmWait = 300 * time.Millisecond
)

// ErrBehind says that this process is behind the log and does not catch up: what it keeps in memory may be old, and is to be
// read from the database.
var ErrBehind = errors.New("this process is behind the log")

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
// looks at the log's head in the database, once for all who ask meanwhile, and waits until this process has caught up; if it
// does not soon, that is ErrBehind, for as long as within without another look. A process that does not follow the log keeps
// nothing that could be old.
func (s *Store) Confirm(ctx context.Context, within time.Duration) error {
	need := int64(time.Since(s.born) - within)
	for {
		if at := s.confirmed.Load(); at != 0 && at > need {
			return nil
		}
		if at := s.behind.Load(); at != 0 && at > need {
			return ErrBehind
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
		f.err = s.look(context.WithoutCancel(ctx))
		s.confirming.Lock()
		s.flight = nil
		s.confirming.Unlock()
		close(f.done)
		if f.err != nil {
			return f.err
		}
	}
}

// look compares this process with the log's head.
func (s *Store) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTime)
	defer cancel()
	begun := time.Now()
	head, err := s.readHead(ctx)
	if err != nil {
		return err
	}
	ctx, cancel = context.WithTimeout(ctx, confirmWait)
	defer cancel()
	switch err := s.catchUpWith(ctx, head, begun); {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errNotFollowed):
		s.behind.Store(max(int64(begun.Sub(s.born)), 1))
		return ErrBehind
	default:
		return err
	}
}
