package ldapsync

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what Sync works with.
type Deps struct {
	Store    *store.Store
	Accounts *account.Accounts
	People   *people.People
	Groups   *groups.Groups // nil: groups are not read
	Audit    *audit.Log     // nil: there is no history
	Logger   *slog.Logger
	Clock    func() time.Time // nil: time.Now
}

// Sync follows directories.
type Sync struct {
	Deps
	dirs []*directory
}

// New makes a Sync. Its errors are *ConfigError values.
func New(d Deps, configs []Config) (*Sync, error) {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Clock == nil {
		d.Clock = time.Now
	}
	s := &Sync{Deps: d}
	for _, c := range configs {
		if err := c.Check(); err != nil {
			return nil, err
		}
		c = c.withDefaults()
		dir := &directory{Deps: &s.Deps, cfg: c, source: people.DirectorySource(c.ID), dialer: newDialer(c), signIns: make(chan struct{}, maxSignIns)}
		var err error
		if dir.mapper, err = newMapper(c, d.Clock); err != nil {
			return nil, err
		}
		s.dirs = append(s.dirs, dir)
	}
	return s, nil
}

// Run follows all directories until ctx ends.
func (s *Sync) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, d := range s.dirs {
		if d.cfg.Sync.Enabled {
			g.Go(func() error { return d.Store.RunLeased(ctx, leaseOf(d.cfg.ID), d.follow) })
		}
	}
	return g.Wait()
}

func leaseOf(directory string) string { return "directory/" + directory }

func (s *Sync) find(directory string) (*directory, error) {
	for _, d := range s.dirs {
		if d.cfg.ID == directory {
			return d, nil
		}
	}
	return nil, mxerr.NotFound("there is no such directory in the configuration")
}

// directory is one of them.
type directory struct {
	*Deps
	cfg     Config
	source  string // of its persons
	dialer  *dialer
	mapper  *mapper
	signIns chan struct{} // bounds sign-ins under way
	numbers numbers
}

const (
	pollEvery = 500 * time.Millisecond // for requests by command or API
	retryMin  = 2 * time.Second
	retryMax  = time.Minute
	keepRuns  = 200
	flushSize = 200 // entries written in one transaction
	// settleFor is how long pushed changes are collected, so that a move and the groups that it touches are one step.
	settleFor = 150 * time.Millisecond
)

// follower is the process that follows a directory now; only one goroutine uses it.
type follower struct {
	*directory
	s       *state
	log     *slog.Logger
	batches chan batch
	streams *streams    // nil: none are held open
	recent  []time.Time // when accounts were barred, within the last hour
	seeing  bool        // the last look at the directory succeeded
}

// follow works on one process at a time, until ctx ends.
func (d *directory) follow(ctx context.Context) error {
	ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindDirectory, Session: d.cfg.ID})
	s, err := d.load(ctx)
	if err != nil {
		return err
	}
	f := &follower{directory: d, s: s, log: d.Logger.With("directory", d.cfg.ID), batches: make(chan batch), seeing: true}
	defer func() { f.streams.stop() }()
	d.numbers.waiting.Store(s.Pending != nil)
	s.Following = false
	d.numbers.following.Store(true)
	defer d.numbers.following.Store(false)
	return f.run(ctx)
}

// run looks at the directory when it is time to, takes what is pushed, and does what is asked.
func (f *follower) run(ctx context.Context) error {
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	var wait time.Duration // before the next try, after a failure
	look := time.NewTimer(0)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-f.batches:
			if err := f.take(ctx, b); err != nil {
				return err
			}
			if err := f.hold(ctx); err != nil {
				return err
			}
			if b.err == nil && f.s.Pending != nil {
				look.Reset(time.Millisecond) // how much it really is
			}
			continue
		case <-poll.C:
			asked, err := f.asked(ctx)
			if err != nil {
				return err
			}
			if asked == nil {
				continue
			}
			if err := f.full(ctx, asked.Why, asked.Run); err != nil {
				return err
			}
		case <-look.C:
			if err := f.look(ctx); err != nil {
				return err
			}
		}
		if f.s.Error == "" {
			wait = 0
		} else {
			wait = min(max(2*wait, retryMin), retryMax)
		}
		look.Reset(cmp.Or(wait, f.nextLook()))
		if err := f.hold(ctx); err != nil {
			return err
		}
	}
}

// nextLook is how long nothing needs to be read.
func (f *follower) nextLook() time.Duration {
	now := f.Clock()
	full := time.UnixMilli(f.s.FullAt).Add(f.cfg.Sync.Reconcile).Sub(now)
	if f.cfg.Sync.Mode == ModeSyncrepl && f.s.Pending == nil {
		return max(full, 0)
	}
	return max(min(full, f.cfg.Sync.Interval), time.Millisecond)
}

// look reads what is due: everything, or what changed since.
func (f *follower) look(ctx context.Context) error {
	now := f.Clock()
	due := f.s.FullAt == 0 || now.Sub(time.UnixMilli(f.s.FullAt)) >= f.cfg.Sync.Reconcile
	switch {
	case f.s.Pending != nil:
		return f.full(ctx, "a run waits for a confirmation: looking again", "")
	case f.s.FullAt == 0:
		return f.full(ctx, "first complete comparison", "")
	case due:
		return f.full(ctx, "scheduled complete comparison", "")
	case f.cfg.Sync.Mode == ModeScan:
		return f.full(ctx, "scheduled", "")
	case f.cfg.Sync.Mode == ModeUSN || f.cfg.Sync.Mode == ModeDirSync:
		return f.changes(ctx)
	}
	return nil
}

// hold keeps searches open where the directory can push, and lets them go while a run waits for a confirmation.
func (f *follower) hold(ctx context.Context) error {
	if f.cfg.Sync.Mode != ModeSyncrepl {
		return nil
	}
	switch {
	case f.s.Pending != nil && f.streams != nil:
		f.streams.stop()
		f.streams = nil
		f.s.Following = false
		return f.save(ctx)
	case f.s.Pending == nil && f.s.FullAt != 0 && f.streams == nil:
		f.streams = f.openStreams(ctx)
	}
	return nil
}

// take applies what was pushed.
func (f *follower) take(ctx context.Context, b batch) error {
	if b.err != nil {
		f.s.Following = false
		return f.failed(ctx, b.err)
	}
	if f.s.Pending != nil {
		return nil // it comes again: the cookie stays where it was
	}
	return f.applyBatch(ctx, b)
}

// failed notes that the directory could not be read. What is known stays as it is.
func (f *follower) failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if f.seeing || f.s.Error != err.Error() {
		f.log.Warn("the directory cannot be followed", "error", err)
	}
	f.seeing = false
	f.numbers.failures.Add(1)
	f.s.Error = err.Error()
	return f.save(ctx)
}

func (f *follower) succeeded() {
	if !f.seeing {
		f.log.Info("the directory is followed again")
	}
	f.seeing = true
	f.s.Error, f.s.SeenAt = "", f.Clock().UnixMilli()
	f.numbers.seen.Store(f.s.SeenAt)
}

// newRunID names a run.
func newRunID() string { return rand.Text()[:12] }

// fatal tells whether an error about one person stops a run: what is wrong with the person does not.
func fatal(err error) bool {
	e := mxerr.As(err)
	return err != nil && (e == nil || e.Status >= 500)
}

// plain is an error's text for people.
func plain(err error) string {
	if e := mxerr.As(err); e != nil {
		return e.Message
	}
	return err.Error()
}
