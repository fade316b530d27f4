package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// RunLeased runs fn on one process at a time, until ctx ends: fn's context ends when the lease is lost, and fn is called
// again after it returned. Where another process works, this one waits.
func (s *Store) RunLeased(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	wait := time.Duration(0)
	var trouble trouble
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		held, err := s.TryLeased(ctx, name, fn)
		if ctx.Err() != nil {
			return nil
		}
		wait = 2 * time.Second
		switch {
		case err == nil && held:
			trouble.over()
		case err != nil && !errors.Is(err, errLeaseLost) && trouble.worthALine():
			s.log.Warn("leased work stopped, trying again", "lease", name, "error", err)
		}
	}
}

// TryLeased runs fn once if no other process holds the lease; false where one does.
func (s *Store) TryLeased(ctx context.Context, name string, fn func(ctx context.Context) error) (bool, error) {
	fence, ok, err := s.lease(ctx, name)
	if err != nil || !ok {
		return false, err
	}
	defer s.unlease(context.WithoutCancel(ctx), name, fence)
	done := make(chan struct{})
	g, work := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(done)
		return fn(work)
	})
	g.Go(func() error {
		tick := time.NewTicker(leaseTime / 5)
		defer tick.Stop()
		for held := time.Now(); ; {
			select {
			case <-done:
				return nil
			case <-work.Done():
				return nil
			case <-tick.C:
			}
			err := s.renewLease(work, name, fence)
			switch {
			case err == nil:
				held = time.Now()
			case errors.Is(err, errLeaseLost) || time.Since(held) > leaseTime*3/4:
				return errLeaseLost // another process may take it from here on
			}
		}
	})
	return true, g.Wait()
}

func (s *Store) lease(ctx context.Context, name string) (fence int64, ok bool, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO leases (name, owner, fence, until) VALUES ($1, '', 0, 0) ON CONFLICT (name) DO NOTHING`, name); err != nil {
			return err
		}
		ok, err = tx.Get([]any{&fence}, `UPDATE leases SET owner = $2, fence = fence + 1, until = $3
			WHERE name = $1 AND until < $4 RETURNING fence`, name, s.node, now+leaseTime.Milliseconds(), now)
		return err
	})
	return fence, ok, err
}

func (s *Store) renewLease(ctx context.Context, name string, fence int64) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTime/5)
	defer cancel()
	return s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE leases SET until = $3 WHERE name = $1 AND fence = $2`, name, fence, now+leaseTime.Milliseconds())
		if err != nil {
			return fmt.Errorf("renew the lease of %s: %w", name, err)
		}
		if n == 0 {
			return errLeaseLost
		}
		return nil
	})
}

func (s *Store) unlease(ctx context.Context, name string, fence int64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := s.Write(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE leases SET until = 0 WHERE name = $1 AND fence = $2`, name, fence)
		return err
	})
	if err != nil {
		s.log.Warn("give back a lease", "lease", name, "error", err)
	}
}
