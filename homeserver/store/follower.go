package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	leaseTime     = 15 * time.Second
	followerChunk = 500
)

// errLeaseLost says that another process took a follower over.
var errLeaseLost = errors.New("the follower's lease was lost")

// Now is the database's clock in milliseconds since 1970: one clock for all processes.
func (tx *Tx) Now() (int64, error) {
	if tx.c.dialect() == dialectSQLite {
		return time.Now().UnixMilli(), nil
	}
	var ms int64
	_, err := tx.Get([]any{&ms}, `SELECT (extract(epoch from clock_timestamp()) * 1000)::bigint`)
	return ms, err
}

// RunFollower calls fn with the log's entries in order, from where the follower of this name stopped last, on one
// process at a time, until ctx ends. Progress is stored after fn returns nil; after an error fn gets the same entries
// again. A new follower begins at the current head.
func (s *Store) RunFollower(ctx context.Context, name string, fn func(ctx context.Context, entries []Entry) error) error {
	wait := time.Duration(0)
	var trouble trouble
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		err := s.followLease(ctx, name, fn)
		if ctx.Err() != nil {
			return nil
		}
		wait = 2 * time.Second
		if err == nil {
			trouble.over()
		} else if !errors.Is(err, errLeaseLost) && trouble.worthALine() {
			s.log.Warn("follower stopped, trying again", "follower", name, "error", err)
		}
	}
}

// followLease takes the lease if it is free and works until it is lost.
func (s *Store) followLease(ctx context.Context, name string, fn func(ctx context.Context, entries []Entry) error) error {
	pos, fence, ok, err := s.takeLease(ctx, name)
	if err != nil || !ok {
		return err
	}
	defer s.dropLease(context.WithoutCancel(ctx), name, fence)
	renewed := time.Now()
	for {
		if s.Applied() <= pos {
			wctx, cancel := context.WithTimeout(ctx, leaseTime/3)
			err := s.WaitApplied(wctx, pos+1)
			cancel()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				if err := s.saveFollower(ctx, name, fence, pos); err != nil {
					return err
				}
				renewed = time.Now()
				continue
			}
		}
		var entries []Entry
		head := s.Applied()
		err := s.Read(ctx, func(tx *Tx) error {
			var err error
			entries, err = tx.ReadLog(pos, followerChunk)
			return err
		})
		if err != nil {
			return err
		}
		if len(entries) == 0 {
			pos = head // a restored backup left positions out
			continue
		}
		if err := fn(ctx, entries); err != nil {
			return fmt.Errorf("entries %d to %d: %w", entries[0].Pos, entries[len(entries)-1].Pos, err)
		}
		pos = entries[len(entries)-1].Pos
		// progress in memory is at most a moment ahead of what is stored: a crash repeats that moment
		if len(entries) > 1 || time.Since(renewed) > time.Second || s.Applied() <= pos {
			if err := s.saveFollower(ctx, name, fence, pos); err != nil {
				return err
			}
			renewed = time.Now()
		}
	}
}

func (s *Store) takeLease(ctx context.Context, name string) (pos, fence int64, ok bool, err error) {
	err = s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO followers (name, pos, owner, fence, lease_until)
			SELECT $1, pos, '', 0, 0 FROM log_head WHERE id = 1 ON CONFLICT (name) DO NOTHING`, name); err != nil {
			return err
		}
		ok, err = tx.Get([]any{&pos, &fence}, `UPDATE followers SET owner = $2, fence = fence + 1, lease_until = $3
			WHERE name = $1 AND (owner = $2 OR lease_until < $4) RETURNING pos, fence`, name, s.node, now+leaseTime.Milliseconds(), now)
		return err
	})
	return pos, fence, ok, err
}

func (s *Store) saveFollower(ctx context.Context, name string, fence, pos int64) error {
	return s.Write(ctx, func(tx *Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		n, err := tx.Exec(`UPDATE followers SET pos = $3, lease_until = $4 WHERE name = $1 AND fence = $2`,
			name, fence, pos, now+leaseTime.Milliseconds())
		if err != nil {
			return err
		}
		if n == 0 {
			return errLeaseLost
		}
		return nil
	})
}

// dropLease frees the lease at shutdown, so that another process goes on at once.
func (s *Store) dropLease(ctx context.Context, name string, fence int64) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err := s.Write(ctx, func(tx *Tx) error {
		_, err := tx.Exec(`UPDATE followers SET lease_until = 0 WHERE name = $1 AND fence = $2`, name, fence)
		return err
	})
	if err != nil {
		s.log.Warn("give back a follower's lease", "follower", name, "error", err)
	}
}
