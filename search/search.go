package search

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what search works with.
type Deps struct {
	Store      *store.Store
	Rooms      *room.Rooms
	Log        *slog.Logger
	ServerName string
	Index      Index

	// Private says that the index belongs to this process alone: only the process that indexes can search.
	Private bool
	// Readable tells of files whose text can be found, and Extract finds it; nil: files are not looked into. An error that
	// is an *mxerr.Error is final, any other is tried again.
	Readable func(contentType, filename string) bool
	Extract  func(ctx context.Context, media string) (text string, err error)
	Workers  int // files that are read at once
}

// Search indexes events and answers queries.
type Search struct {
	d       Deps
	builder builder

	leads atomic.Bool  // this process indexes
	ready atomic.Bool  // the engine was opened
	pos   atomic.Int64 // position that is indexed
	write sync.Mutex   // what was read from the database reaches the engine before anything that is read later
	gens  atomic.Pointer[[]Generation]
	kick  chan struct{} // files are wanted
}

// New makes search; nothing runs before Run.
func New(d Deps) *Search {
	s := &Search{d: d, kick: make(chan struct{}, 1)}
	s.builder = builder{serverName: d.ServerName, now: func() int64 { return time.Now().UnixMilli() }}
	if d.Extract != nil {
		s.builder.readable = d.Readable
	}
	return s
}

// follower is the name under which the log is kept for the index.
const follower = "search"

// Run indexes what is said, on one process at a time, until ctx ends.
func (s *Search) Run(ctx context.Context) error {
	defer func() {
		if err := s.d.Index.Close(); err != nil {
			s.d.Log.Warn("close the search index", "error", err)
		}
	}()
	if s.d.Store.SQLite() { // there are no other processes
		return s.work(ctx)
	}
	if !s.d.Private {
		if err := s.open(ctx); err != nil {
			return nil // ctx has ended
		}
	}
	return s.d.Store.RunLeased(ctx, "search", s.work)
}

// open opens the engine, for as long as it takes.
func (s *Search) open(ctx context.Context) error {
	wait := pause{}
	for {
		err := s.d.Index.Open(ctx)
		if err == nil {
			s.ready.Store(true)
			return nil
		}
		if wait.first() {
			s.d.Log.Warn("the search engine cannot be opened, trying again", "engine", s.d.Index.Name(), "error", err)
		}
		if err := wait.sleep(ctx); err != nil {
			return err
		}
	}
}

// work indexes while this process has the right to.
func (s *Search) work(ctx context.Context) error {
	if err := s.open(ctx); err != nil {
		return nil
	}
	s.leads.Store(true)
	defer s.leads.Store(false)
	if s.d.Private {
		defer func() {
			s.ready.Store(false)
			if err := s.d.Index.Close(); err != nil {
				s.d.Log.Warn("close the search index", "error", err)
			}
		}()
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.index(ctx) })
	if s.d.Extract != nil {
		g.Go(func() error { return s.files(ctx) })
	}
	return g.Wait()
}

// Lag is how many positions of the log are not indexed yet; -1 while another process indexes.
func (s *Search) Lag() int64 {
	if !s.leads.Load() {
		return -1
	}
	return max(s.d.Store.Applied()-s.pos.Load(), 0)
}

// Forget lets go of the log, for a server without search.
func Forget(ctx context.Context, st *store.Store) error {
	return st.Write(ctx, func(tx *store.Tx) error { return tx.LeaveLog(follower) })
}

// pause waits longer from time to time.
type pause struct{ d time.Duration }

const longestPause = 5 * time.Second

// first tells whether there was no wait yet, or a long one.
func (p *pause) first() bool { return p.d == 0 || p.d >= longestPause }

func (p *pause) sleep(ctx context.Context) error {
	p.d = min(max(2*p.d, 200*time.Millisecond), longestPause)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(p.d):
		return nil
	}
}
