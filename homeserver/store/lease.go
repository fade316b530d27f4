package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
)

// leaseTime is how long a lease holds that is not renewed.
const leaseTime = 15 * time.Second

// errLeaseLost says that another process took the work over.
var errLeaseLost = errors.New("the lease was lost")

// leaseTable holds leases: who does something, until when, and a fencing number that grows with each holder.
type leaseTable struct {
	add, take, renew, drop string
	follows                bool // add takes the position too from which a new one goes through the log
}

var (
	// jobs: one holder at a time, also inside a process.
	jobs = leaseTable{
		add: `INSERT INTO leases (name, owner, fence, until) VALUES ($1, '', 0, 0) ON CONFLICT (name) DO NOTHING`,
		take: `UPDATE leases SET owner = $2, fence = fence + 1, until = $3
			WHERE name = $1 AND until < $4 RETURNING fence`,
		renew: `UPDATE leases SET until = $3 WHERE name = $1 AND fence = $2`,
		drop:  `UPDATE leases SET until = 0 WHERE name = $1 AND fence = $2`,
	}
	// followers: a process that could not give its lease back, because the database was away, takes it again at once.
	followers = leaseTable{
		add: `INSERT INTO followers (name, pos, owner, fence, lease_until) VALUES ($1, $2, '', 0, 0) ON CONFLICT (name) DO NOTHING`,
		take: `UPDATE followers SET owner = $2, fence = fence + 1, lease_until = $3
			WHERE name = $1 AND (owner = $2 OR lease_until < $4) RETURNING fence`,
		renew: `UPDATE followers SET lease_until = $3 WHERE name = $1 AND fence = $2`,
		drop:  `UPDATE followers SET lease_until = 0 WHERE name = $1 AND fence = $2`,

		follows: true,
	}
)

// RunLeased runs fn on one process at a time, until ctx ends: fn's context ends when the lease is lost, and fn is called
// again after it returned. Where another process works, this one waits.
func (s *Store) RunLeased(ctx context.Context, name string, fn func(ctx context.Context) error) error {
	return s.runLeased(ctx, jobs, name, func(ctx context.Context, _ int64) error { return fn(ctx) })
}

// TryLeased runs fn once if no other process holds the lease; false where one does.
func (s *Store) TryLeased(ctx context.Context, name string, fn func(ctx context.Context) error) (bool, error) {
	return s.tryLeased(ctx, jobs, name, func(ctx context.Context, _ int64) error { return fn(ctx) })
}

func (s *Store) runLeased(ctx context.Context, table leaseTable, name string, fn func(ctx context.Context, fence int64) error) error {
	wait := time.Duration(0)
	var trouble trouble
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		held, err := s.tryLeased(ctx, table, name, fn)
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

func (s *Store) tryLeased(ctx context.Context, table leaseTable, name string, fn func(ctx context.Context, fence int64) error) (bool, error) {
	fence, ok, err := s.takeLease(ctx, table, name)
	if err != nil || !ok {
		return false, err
	}
	defer s.dropLease(context.WithoutCancel(ctx), table, name, fence)
	done := make(chan struct{})
	g, work := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(done)
		return fn(work, fence)
	})
	g.Go(func() error {
		tick := time.NewTicker(leaseTime / 3)
		defer tick.Stop()
		for held := time.Now(); ; {
			select {
			case <-done:
				return nil
			case <-work.Done():
				return nil
			case <-tick.C:
			}
			err := s.renewLease(work, table, name, fence)
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

func (s *Store) takeLease(ctx context.Context, table leaseTable, name string) (fence int64, ok bool, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		args := []any{name}
		if table.follows {
			from, err := s.followedFrom(tx)
			if err != nil {
				return err
			}
			args = append(args, from)
		}
		if _, err := tx.Exec(table.add, args...); err != nil {
			return err
		}
		ok, err = tx.Get([]any{&fence}, table.take, name, s.node, now+leaseTime.Milliseconds(), now)
		return err
	})
	return fence, ok, err
}

func (s *Store) renewLease(ctx context.Context, table leaseTable, name string, fence int64) error {
	ctx, cancel := context.WithTimeout(ctx, leaseTime/5)
	defer cancel()
	return s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		n, err := tx.Exec(table.renew, name, fence, now+leaseTime.Milliseconds())
		if err != nil {
			return fmt.Errorf("renew the lease of %s: %w", name, err)
		}
		if n == 0 {
			return errLeaseLost
		}
		return nil
	})
}

// dropLease frees the lease, so that another process goes on at once.
func (s *Store) dropLease(ctx context.Context, table leaseTable, name string, fence int64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := s.Write(ctx, func(tx *Tx) error {
		_, err := tx.Exec(table.drop, name, fence)
		return err
	})
	if err != nil {
		s.log.Warn("give back a lease", "lease", name, "error", err)
	}
}
