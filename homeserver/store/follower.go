package store

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	followerChunk = 500
	// followerPace is the least time between two rounds of a follower that is busy: what came meanwhile is one round.
	followerPace = 20 * time.Millisecond
	// followerSave is how far what is stored of a follower's progress may be behind. A crash repeats that moment.
	followerSave = 200 * time.Millisecond
	// recentEntries is how many entries a process keeps, so that followers that are not behind need no database.
	recentEntries = 2000
)

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
// process at a time, until ctx ends. Progress is stored after fn returned nil; after an error, and after a crash, fn gets
// entries again. A new follower begins where this process began to follow the log: before the first request that it answers.
func (s *Store) RunFollower(ctx context.Context, name string, fn func(ctx context.Context, entries []Entry) error) error {
	return s.runLeased(ctx, followers, name, func(ctx context.Context, fence int64) error {
		f := &follower{s: s, name: name, fence: fence, fn: fn}
		return f.run(ctx)
	})
}

// followedFrom is the position from which this process has followed the log, or the present head if it does not.
func (s *Store) followedFrom(tx *Tx) (pos int64, err error) {
	s.mu.Lock()
	follows, pos := s.follows, s.from
	s.mu.Unlock()
	if !follows {
		_, err = tx.Get([]any{&pos}, `SELECT pos FROM log_head WHERE id = 1`)
	}
	return pos, err
}

// follower is one that works.
type follower struct {
	s     *Store
	name  string
	fence int64
	fn    func(ctx context.Context, entries []Entry) error

	pos   int64     // up to where fn has worked
	saved int64     // what of it is stored
	at    time.Time // when it was stored
}

// run works until the lease is lost, fn fails or ctx ends.
func (f *follower) run(ctx context.Context) error {
	err := f.s.ReadOne(ctx, func(tx *Tx) error {
		_, err := tx.Get([]any{&f.pos}, `SELECT pos FROM followers WHERE name = $1`, f.name)
		return err
	})
	if err != nil {
		return err
	}
	f.saved, f.at = f.pos, time.Now()
	defer func() {
		if f.pos != f.saved {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_ = f.save(end) // else what was done since is done again
		}
	}()
	for ctx.Err() == nil {
		began := time.Now()
		if f.s.Applied() <= f.pos {
			if err := f.idle(ctx); err != nil {
				return err
			}
			continue
		}
		if err := f.step(ctx); err != nil {
			return err
		}
		if time.Since(f.at) >= followerSave {
			if err := f.save(ctx); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(followerPace - time.Since(began)):
		}
	}
	return nil
}

// idle waits for something to do and stores, when nothing comes, what was done.
func (f *follower) idle(ctx context.Context) error {
	wait := leaseTime
	if f.pos != f.saved {
		wait = followerSave - time.Since(f.at)
	}
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	err := f.s.WaitApplied(wctx, f.pos+1)
	if errors.Is(err, errNotFollowed) {
		select { // it comes back, or this process ends
		case <-ctx.Done():
		case <-time.After(followerPace):
		}
	}
	if err == nil || ctx.Err() != nil || f.pos == f.saved {
		return nil
	}
	return f.save(ctx)
}

// step lets fn do the next entries.
func (f *follower) step(ctx context.Context) error {
	head := f.s.Applied()
	entries, ok := f.s.recentAfter(f.pos, followerChunk)
	if !ok {
		err := f.s.ReadOne(ctx, func(tx *Tx) error {
			var err error
			entries, err = tx.ReadLog(f.pos, followerChunk)
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(entries) == 0 {
		f.pos = head // a restored backup left positions out
		return nil
	}
	if err := f.fn(ctx, entries); err != nil {
		return fmt.Errorf("entries %d to %d: %w", entries[0].Pos, entries[len(entries)-1].Pos, err)
	}
	f.pos = entries[len(entries)-1].Pos
	return nil
}

// save stores the progress, if nobody else has taken the follower over.
func (f *follower) save(ctx context.Context) error {
	pos := f.pos
	err := f.s.Write(Riding(ctx), func(tx *Tx) error {
		n, err := tx.Exec(`UPDATE followers SET pos = $3 WHERE name = $1 AND fence = $2`, f.name, f.fence, pos)
		if err == nil && n == 0 {
			err = errLeaseLost
		}
		return err
	})
	if err == nil {
		f.saved, f.at = pos, time.Now()
	}
	return err
}

// keepRecent notes entries that were applied, for the followers of this process; s.mu is held.
func (s *Store) keepRecent(entries []Entry) {
	if entries[0].Kind == KindReset {
		s.recent = s.recent[:0]
		return
	}
	if n := len(s.recent); n > 0 && s.recent[n-1].Pos+1 != entries[0].Pos {
		s.recent = s.recent[:0]
	}
	if len(s.recent)+len(entries) > 2*recentEntries {
		s.recent = s.recent[:copy(s.recent, s.recent[max(0, len(s.recent)-recentEntries):])]
	}
	for _, e := range entries {
		e.Payload, e.Row = nil, nil
		s.recent = append(s.recent, e)
	}
}

// recentAfter gives up to limit entries after a position, if all of them are at hand.
func (s *Store) recentAfter(pos int64, limit int) ([]Entry, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.recent) == 0 || s.recent[0].Pos > pos+1 || s.recent[len(s.recent)-1].Pos <= pos {
		return nil, false
	}
	rest := s.recent[pos+1-s.recent[0].Pos:]
	return append([]Entry(nil), rest[:min(limit, len(rest))]...), true
}
