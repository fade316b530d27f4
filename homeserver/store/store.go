// Package store holds all SQL: one schema in two dialects (SQLite in the process, PostgreSQL outside), transactions,
// migrations, and the one log in which every change that a client, a follower or another node can learn of is announced.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Config says where the data lie.
type Config struct {
	// URL is empty for SQLite under DataDir, or postgres://user:password@host/database.
	URL string
	// DataDir holds moothall.db; it is made when it is missing.
	DataDir string
	// MaxConns bounds the PostgreSQL pool; 0 means 16.
	MaxConns int
	// ListenURL is a session connection for LISTEN where URL points to a transaction pooler; empty means URL.
	ListenURL string
}

// Store is an open database. It is safe for concurrent use.
type Store struct {
	cfg     Config
	log     *slog.Logger
	backend backend
	node    string

	epochs     atomic.Pointer[[]Epoch]
	appliedNow atomic.Int64 // applied, for readers without the lock

	mu         sync.Mutex
	applied    int64           // log position this process's memory has reached
	appliedNID int64           // the newest event that was announced up to there; 0: not known
	pending    map[int64]batch // committed here, waiting for earlier positions; by first position
	changed    chan struct{}   // closed and replaced whenever applied moves
	hydrate    []func(context.Context, []Entry) error
	apply      []func([]Entry) // in order; nil until Follow
	wakers     []func([]Entry)
	recent     []Entry              // the newest that were applied, without a gap
	toWake     [][]Entry            // applied, not given to wakers yet
	wakeKick   chan struct{}        // something is in toWake
	follows    bool                 // Follow runs
	ended      bool                 // it ran, and ended
	from       int64                // what was applied when it began
	started    chan struct{}        // closed when Follow has begun
	onCast     func(string, string) // broadcasts received
	kick       chan struct{}        // asks the tailer to look at the head now
	foreign    atomic.Int64         // entries of other processes that were applied
	hints      chan int64           // tells the tailer up to where other processes have committed
	inLine     atomic.Int64         // transactions of the committer that are about to begin, wait for the log's lock or hold it

	born       time.Time
	behind     atomic.Int64 // when a look at the head began with which this process did not catch up; 0: never
	confirmed  atomic.Int64 // when a look at the head began behind which this process is not, in ns since born; 0: never
	confirming sync.Mutex   // guards flight
	flight     *flight      // a look at the head under way for all who wait in Confirm

	tailFailures int64 // how often the log could not be read
	tailErr      error // the last time's error
}

// batch is one transaction's entries.
type batch struct{ entries []Entry }

// backend is one dialect's way to run transactions.
type backend interface {
	read(ctx context.Context, fn func(*Tx) error) error
	readOne(ctx context.Context, fn func(*Tx) error) error
	write(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error
	exclusive(ctx context.Context, fn func(*Tx) error) error // for migrations
	ping(ctx context.Context) error
	sqlite() bool
	close() error
}

// ErrUnknownOutcome is in the chain of an error when COMMIT was sent and its answer never came.
var ErrUnknownOutcome = errors.New("the outcome of the commit is not known")

// newStore makes a Store that has no backend yet.
func newStore(cfg Config, log *slog.Logger) *Store {
	return &Store{
		born:     time.Now(),
		cfg:      cfg,
		log:      log,
		pending:  make(map[int64]batch),
		changed:  make(chan struct{}),
		kick:     make(chan struct{}, 1),
		hints:    make(chan int64, 1),
		wakeKick: make(chan struct{}, 1),
		started:  make(chan struct{}),
		node:     newNodeID(),
	}
}

// Open opens the database, making it or migrating it where needed.
func Open(ctx context.Context, cfg Config, log *slog.Logger) (*Store, error) {
	s := newStore(cfg, log)
	var err error
	switch {
	case cfg.URL == "":
		s.backend, err = openSQLite(ctx, cfg.DataDir, log)
	case strings.HasPrefix(cfg.URL, "postgres://"), strings.HasPrefix(cfg.URL, "postgresql://"):
		s.backend, err = openPostgres(ctx, cfg, log)
	default:
		return nil, errors.New("database.url must be empty (SQLite) or start with postgres://")
	}
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		if s.SQLite() {
			err = fmt.Errorf("the database in %s: %w", cfg.DataDir, err)
		}
		return nil, errors.Join(err, s.backend.close())
	}
	if err := s.startLineage(ctx); err != nil {
		return nil, errors.Join(err, s.backend.close())
	}
	if err := s.loadHead(ctx); err != nil {
		return nil, errors.Join(err, s.backend.close())
	}
	return s, nil
}

// Close ends all connections. Transactions under way must have ended.
func (s *Store) Close() error { return s.backend.close() }

// SQLite tells whether the database is the embedded one, which one process serves.
func (s *Store) SQLite() bool { return s.backend.sqlite() }

// Node is a random name of this process, for leases.
func (s *Store) Node() string { return s.node }

// DataDir is the configured data directory.
func (s *Store) DataDir() string { return s.cfg.DataDir }

// Ping tells whether the database answers.
func (s *Store) Ping(ctx context.Context) error { return s.backend.ping(ctx) }

// Read runs fn on one consistent snapshot. No network call belongs inside: an open snapshot pins old rows.
func (s *Store) Read(ctx context.Context, fn func(tx *Tx) error) error {
	return s.backend.read(ctx, fn)
}

// ReadOne runs fn, which sends one statement only: on PostgreSQL that spares the round trips of a transaction.
func (s *Store) ReadOne(ctx context.Context, fn func(tx *Tx) error) error {
	return s.backend.readOne(ctx, fn)
}

// Write runs fn in one transaction and returns after its COMMIT and after this process has applied the entries that
// fn announced (or cannot, because the database went away after the COMMIT). fn may run more than once, so it has no effects outside tx, and it makes no network calls.
func (s *Store) Write(ctx context.Context, fn func(tx *Tx) error) error {
	write := s.backend.write
	if b, ok := s.backend.(*sqliteBackend); ok && s.Rides(ctx) {
		write = b.ride
	}
	return s.writeBy(ctx, write, fn)
}

// WriteFirst is Write for the one writer that most users wait for, the committer of rooms: where writes queue for one
// connection (SQLite), it does not wait behind bookkeeping.
func (s *Store) WriteFirst(ctx context.Context, fn func(tx *Tx) error) error {
	write := s.backend.write
	switch b := s.backend.(type) {
	case *sqliteBackend:
		write = b.writeFirst
	case *pgBackend:
		write = b.writeFirst
	}
	s.inLine.Add(1)
	defer s.inLine.Add(-1)
	return s.writeBy(ctx, write, fn)
}

func (s *Store) writeBy(ctx context.Context, write func(context.Context, func(*Tx) error, func([]Entry)) error, fn func(tx *Tx) error) error {
	var last int64
	var ran *Tx
	err := write(ctx, func(tx *Tx) error {
		ran, tx.s, tx.along = tx, s, nil
		return fn(tx)
	}, func(entries []Entry) {
		if n := len(entries); n > 0 {
			last = entries[n-1].Pos
			s.bring(ctx, ran.along)
			s.deliver(entries)
		}
	})
	if err != nil {
		return err
	}
	if last == 0 {
		return nil
	}
	err = s.WaitApplied(ctx, last)
	if err == nil {
		s.confirm(ran.asked) // nobody else can have committed before the lock was given back
	}
	if errors.Is(err, errNotFollowed) {
		// It is committed, only entries of other processes before it cannot be read now. Everything that is decided by
		// memory is checked behind the log's lock anyway.
		return nil
	}
	return err
}

// Exclusive runs fn in one transaction while no other process of ours migrates; it takes any time it needs.
func (s *Store) Exclusive(ctx context.Context, fn func(tx *Tx) error) error {
	return s.backend.exclusive(ctx, fn)
}

// unavailable marks an error of the database's connection as 503 for the client while its cause stays for the log.
type unavailable struct {
	cause error
	full  bool // the disk is
}

func (e *unavailable) Error() string { return "database unavailable: " + e.cause.Error() }
func (e *unavailable) Unwrap() []error {
	if e.full {
		return []error{mxerr.Unavailable("the server's disk is full, nothing can be stored at the moment"), e.cause}
	}
	return []error{mxerr.Unavailable("the database cannot be reached at the moment, try again soon"), e.cause}
}

func (s *Store) loadHead(ctx context.Context) error {
	return s.Read(ctx, func(tx *Tx) error {
		head, nid, epochs, err := tx.place()
		if err != nil {
			return err
		}
		s.applied, s.appliedNID = head, nid
		s.appliedNow.Store(head)
		s.confirm(time.Now())
		s.epochs.Store(&epochs)
		return nil
	})
}

// place reads where the log is.
func (tx *Tx) place() (head, nid int64, epochs []Epoch, err error) {
	if _, err := tx.Get([]any{&head, &nid}, `SELECT pos, event_nid FROM log_head WHERE id = 1`); err != nil {
		return 0, 0, nil, fmt.Errorf("read the log's head: %w", err)
	}
	err = tx.Each(`SELECT epoch, first_pos FROM log_epochs ORDER BY epoch`, nil, func(r *Row) error {
		var e Epoch
		err := r.Scan(&e.Number, &e.First)
		epochs = append(epochs, e)
		return err
	})
	return head, nid, epochs, err
}
