package store

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"zombiezen.com/go/sqlite"
)

// This file is a PostgreSQL for simulations: any number of nodes in one test process, in virtual time, over one SQLite file.
// Modelled is what the engine relies on: READ COMMITTED until a transaction first locks or writes, from then on the log's
// lock until its end; snapshots of readers; a bounded pool of connections; a server that ends sessions which idle in a
// transaction; COMMITs whose answer is lost, also such that the server ends later than the client hears of it.

// SimFaults are the odds of what goes wrong, each for one statement or one transaction.
type SimFaults struct {
	Refuse      float64 // a statement fails and breaks its connection
	Again       float64 // a transaction is rolled back by a deadlock and run again
	LostAnswer  float64 // COMMIT was sent, its answer never comes
	CrashBefore float64 // the node dies before COMMIT
	CrashAfter  float64 // the node dies between COMMIT and its answer
	Freeze      float64 // the node stands still while it holds the log's lock
	Slow        float64 // a statement takes up to 60 ms
}

var errSimulated = errors.New("simulated")

func simUnavailable(what string) error {
	return &unavailable{cause: fmt.Errorf("%w: %s", errSimulated, what)}
}

// SimDB is the database server of one simulation.
type SimDB struct {
	seed   uint64
	path   string
	writer *sqlite.Conn
	lock   chan struct{} // full while a transaction holds the log's lock
	head   atomic.Int64
	faults atomic.Pointer[SimFaults]

	mu      sync.Mutex
	readers []*sqlite.Conn
}

// SimTemplate makes the empty, migrated database that simulations copy; extra are more statements for it. What the codec
// keeps for good is made here, outside of every simulation.
func SimTemplate(t testing.TB, extra ...string) string {
	t.Helper()
	if _, err := decodeContent(encodeContent(Content(strings.Repeat("x", 2*contentMinCompress)))); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := Open(context.Background(), Config{DataDir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	err = s.Exclusive(context.Background(), func(tx *Tx) error {
		for _, sql := range extra {
			if _, err := tx.Exec(sql); err != nil {
				return err
			}
		}
		return nil
	})
	w := s.backend.(*sqliteBackend).writer
	c := <-w
	err = errors.Join(err, sqliteRun(c, "PRAGMA wal_checkpoint(TRUNCATE)")) // the copy has no WAL
	w <- c
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, SQLiteFile)
}

// OpenSimDB copies the template to path and serves it.
func OpenSimDB(template, path string, seed uint64) (*SimDB, error) {
	b, err := os.ReadFile(template)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, err
	}
	db := &SimDB{seed: seed, path: path, lock: make(chan struct{}, 1)}
	db.faults.Store(&SimFaults{})
	if db.writer, err = openSQLiteConn(path, sqlite.OpenReadWrite); err != nil {
		return nil, err
	}
	for _, p := range []string{"PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", "PRAGMA wal_autocheckpoint = 0"} {
		if err := sqliteRun(db.writer, p); err != nil {
			return nil, err
		}
	}
	return db, nil
}

// Close ends the server; no node may use it any more.
func (db *SimDB) Close() error {
	errs := []error{db.writer.Close()}
	for _, c := range db.readers {
		errs = append(errs, c.Close())
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(db.path + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// SetFaults changes the odds from now on.
func (db *SimDB) SetFaults(f SimFaults) { db.faults.Store(&f) }

// Head is the last committed position.
func (db *SimDB) Head() int64 { return db.head.Load() }

// Look reads what is committed, without delay or fault.
func (db *SimDB) Look(fn func(tx *Tx) error) error {
	c, err := db.reader()
	if err != nil {
		return err
	}
	defer db.giveBack(c)
	if err := stepOnce(c, "BEGIN"); err != nil {
		return err
	}
	err = fn(&Tx{c: sqliteConn{c}})
	return errors.Join(err, stepOnce(c, "ROLLBACK"))
}

func (db *SimDB) reader() (*sqlite.Conn, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	if n := len(db.readers); n > 0 {
		c := db.readers[n-1]
		db.readers = db.readers[:n-1]
		return c, nil
	}
	return openSQLiteConn(db.path, sqlite.OpenReadOnly)
}

func (db *SimDB) giveBack(c *sqlite.Conn) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.readers = append(db.readers, c)
}

// simActor is whoever acts by itself: it has chances of its own, so that the order in which actors run does not change
// what each of them meets.
type simActor struct {
	mu  sync.Mutex
	rng *rand.Rand
}

type simActorKey struct{}

// WithActor gives what is done under ctx chances of its own.
func (db *SimDB) WithActor(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, simActorKey{}, db.actor(name))
}

func (db *SimDB) actor(name string) *simActor {
	h := fnv.New64a()
	_, _ = h.Write([]byte(name)) // a hash never fails
	return &simActor{rng: rand.New(rand.NewPCG(db.seed, h.Sum64()))}
}

func (a *simActor) chance(p float64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.rng.Float64() < p
}

// upTo draws a time; that it is hardly ever drawn twice keeps two actors from waking at one moment.
func (a *simActor) upTo(d time.Duration) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return time.Duration(1 + a.rng.Int64N(int64(d)))
}

// SimNode is one process: its connections to the server.
type SimNode struct {
	db    *SimDB
	conns chan struct{} // the pool
	dead  chan struct{}
	other *simActor
	store *Store

	mu       sync.Mutex
	over     bool
	lingers  bool // the server does not notice the death: sessions end when they have idled too long
	frozen   time.Time
	atLock   time.Duration // how long to stand still when the node next has the lock
	sessions map[*simSession]bool
}

// OpenSimNode starts a process on the database. The Store is one of several on a shared database.
func OpenSimNode(ctx context.Context, db *SimDB, name string, log *slog.Logger) (*Store, *SimNode, error) {
	n := &SimNode{db: db, conns: make(chan struct{}, 4), dead: make(chan struct{}), other: db.actor(name), sessions: map[*simSession]bool{}}
	s := newStore(Config{}, log)
	s.backend, s.node = n, name
	n.store = s
	return s, n, s.loadHead(ctx)
}

// Crash ends the process: nothing of it reaches the server any more. With linger the server learns of it only by its
// time limit for idle sessions.
func (n *SimNode) Crash(linger bool) {
	n.mu.Lock()
	if n.over {
		n.mu.Unlock()
		return
	}
	n.over, n.lingers = true, linger
	close(n.dead)
	var open []*simSession
	for s := range n.sessions {
		open = append(open, s)
	}
	n.mu.Unlock()
	if !linger {
		for _, s := range open {
			_ = s.end("ROLLBACK", nil) // whether it was open still does not matter
		}
	}
}

// Dead tells whether the process has ended.
func (n *SimNode) Dead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.over
}

// Freeze makes the process stand still.
func (n *SimNode) Freeze(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen = time.Now().Add(d)
}

// FreezeAtLock makes the process stand still when it next holds the log's lock.
func (n *SimNode) FreezeAtLock(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.atLock = d
}

// Thaw lets the process go on.
func (n *SimNode) Thaw() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen, n.atLock = time.Time{}, 0
}

// Kick is a notification that the log has grown up to a position, or that it has grown (0).
func (n *SimNode) Kick(pos int64) { n.store.hint(pos) }

func (n *SimNode) actor(ctx context.Context) *simActor {
	if a, ok := ctx.Value(simActorKey{}).(*simActor); ok {
		return a
	}
	return n.other
}

// pause is the way to the server or back; the process may be frozen or dead meanwhile.
func (n *SimNode) pause(ctx context.Context) error {
	a := n.actor(ctx)
	d := a.upTo(300 * time.Microsecond)
	switch {
	case a.chance(n.db.faults.Load().Slow):
		d = a.upTo(60 * time.Millisecond)
	case a.chance(0.2):
		d = a.upTo(5 * time.Millisecond)
	}
	for {
		timer := time.NewTimer(d)
		select {
		case <-timer.C:
		case <-n.dead:
			timer.Stop()
			return simUnavailable("the process is dead")
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		n.mu.Lock()
		left := time.Until(n.frozen)
		n.mu.Unlock()
		if left <= 0 {
			return nil
		}
		d = left + a.upTo(time.Millisecond)
	}
}

// connect takes a connection of the pool.
func (n *SimNode) connect(ctx context.Context) error {
	select {
	case n.conns <- struct{}{}:
		return nil
	case <-n.dead:
		return simUnavailable("the process is dead")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *SimNode) release() { <-n.conns }

func (n *SimNode) sqlite() bool                                     { return false }
func (n *SimNode) close() error                                     { return nil }
func (n *SimNode) ping(ctx context.Context) error                   { return n.pause(ctx) }
func (n *SimNode) exclusive(context.Context, func(*Tx) error) error { return errSimulated }

func (n *SimNode) read(ctx context.Context, fn func(*Tx) error) error { return n.look(ctx, fn, true) }

func (n *SimNode) readOne(ctx context.Context, fn func(*Tx) error) error {
	return n.look(ctx, fn, false)
}

func (n *SimNode) look(ctx context.Context, fn func(*Tx) error, snapshot bool) error {
	if err := n.connect(ctx); err != nil {
		return err
	}
	defer n.release()
	r, err := n.db.reader()
	if err != nil {
		return err
	}
	defer n.db.giveBack(r)
	if snapshot {
		if err := stepOnce(r, "BEGIN"); err != nil {
			return err
		}
	}
	err = fn(&Tx{c: &simConn{n: n, ctx: ctx, reader: r}})
	if snapshot {
		err = errors.Join(err, stepOnce(r, "ROLLBACK"))
	}
	return err
}

func (n *SimNode) write(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	for try := 0; ; try++ {
		entries, again, err := n.tryWrite(ctx, fn)
		if again && try < pgRetries {
			continue
		}
		if err != nil {
			return err
		}
		if err := n.pause(context.WithoutCancel(ctx)); err != nil {
			return err
		}
		committed(entries)
		return nil
	}
}

func (n *SimNode) tryWrite(ctx context.Context, fn func(*Tx) error) (entries []Entry, again bool, err error) {
	if err := n.connect(ctx); err != nil {
		return nil, false, err
	}
	defer n.release()
	c := &simConn{n: n, ctx: ctx}
	tx := &Tx{c: c}
	defer func() {
		if c.session != nil && !n.lingering() {
			_ = c.session.end("ROLLBACK", nil) // it has ended already where all went well
		}
	}()
	if err := fn(tx); err != nil {
		return nil, false, err
	}
	if n.actor(ctx).chance(n.db.faults.Load().Again) {
		return nil, true, errSimulated
	}
	return tx.entries, false, n.commit(c, tx)
}

func (n *SimNode) lingering() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.over && n.lingers
}

// commit sends the log's rows and COMMIT.
func (n *SimNode) commit(c *simConn, tx *Tx) error {
	if c.session == nil {
		return nil // nothing was locked or written
	}
	c.ctx = context.WithoutCancel(c.ctx)
	a, f := n.actor(c.ctx), n.db.faults.Load()
	if err := n.pause(c.ctx); err != nil {
		return err
	}
	if c.broken {
		return simUnavailable("the connection is broken")
	}
	c.pipeline = true
	if err := tx.flushLog(); err != nil {
		return err
	}
	args, along := tx.missing()
	moved := func() {
		if tx.locked {
			n.db.head.Store(tx.head)
		}
	}
	switch {
	case a.chance(f.CrashBefore):
		n.Crash(a.chance(0.5))
		return simUnavailable("died before COMMIT")
	case a.chance(f.LostAnswer):
		sql := "COMMIT"
		if a.chance(0.5) {
			sql, moved = "ROLLBACK", nil
		}
		c.session.endLater(a.upTo(300*time.Millisecond), sql, moved)
		return errors.Join(ErrUnknownOutcome, simUnavailable("the answer of COMMIT was lost"))
	}
	if err := c.session.end("COMMIT", moved); err != nil {
		if errors.Is(err, errSimulated) { // the session was gone: the client cannot know since when
			return errors.Join(ErrUnknownOutcome, err)
		}
		return err
	}
	if along {
		r, err := n.db.reader()
		if err != nil {
			return err
		}
		defer n.db.giveBack(r)
		if err := (sqliteConn{r}).query(rewrite(dialectSQLite, readAlong), args, scanAlong(&tx.along)); err != nil {
			return err
		}
	}
	if a.chance(f.CrashAfter) {
		n.Crash(false)
	}
	return nil
}

// simSession is a transaction that holds the log's lock, as the server has it.
type simSession struct {
	n     *SimNode
	mu    sync.Mutex
	open  bool
	later bool
	idle  *time.Timer
}

// simIdle is frozenNodeTimeout.
const simIdle = 5 * time.Second

func (n *SimNode) newSession(ctx context.Context) (*simSession, error) {
	select {
	case n.db.lock <- struct{}{}:
	case <-n.dead:
		return nil, simUnavailable("the process is dead")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err := stepOnce(n.db.writer, "BEGIN IMMEDIATE"); err != nil {
		<-n.db.lock
		return nil, err
	}
	s := &simSession{n: n, open: true}
	s.idle = time.AfterFunc(simIdle, func() { _ = s.end("ROLLBACK", nil) })
	n.mu.Lock()
	defer n.mu.Unlock()
	n.sessions[s] = true
	d := n.atLock
	n.atLock = 0
	if a := n.actor(ctx); d == 0 && a.chance(n.db.faults.Load().Freeze) {
		d = a.upTo(15 * time.Second)
	}
	if d > 0 {
		n.frozen = time.Now().Add(d)
	}
	return s, nil
}

// end ends the transaction and frees the lock.
func (s *simSession) end(sql string, moved func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.later {
		return simUnavailable("the server has ended the session")
	}
	return s.finish(sql, moved)
}

func (s *simSession) finish(sql string, moved func()) error {
	s.open = false
	s.idle.Stop()
	s.n.mu.Lock()
	delete(s.n.sessions, s)
	s.n.mu.Unlock()
	err := stepOnce(s.n.db.writer, sql)
	if err != nil {
		err = errors.Join(err, stepOnce(s.n.db.writer, "ROLLBACK"))
	} else if moved != nil {
		moved()
	}
	<-s.n.db.lock
	return err
}

// endLater lets the server end the transaction when the client is not listening any more.
func (s *simSession) endLater(d time.Duration, sql string, moved func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return
	}
	s.later = true
	time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.finish(sql, moved); err != nil {
			panic(err)
		}
	})
}

// simConn is a connection inside a transaction.
type simConn struct {
	n        *SimNode
	ctx      context.Context
	reader   *sqlite.Conn // of a reading transaction
	session  *simSession  // from the first statement that locks or writes
	broken   bool
	pipeline bool // statements travel together
}

func (c *simConn) dialect() dialect { return dialectSQLite }

// run sends a statement. locks tells that it locks or writes.
func (c *simConn) run(locks bool, fn func(sqliteConn) error) error {
	if c.broken {
		return simUnavailable("the connection is broken")
	}
	if !c.pipeline {
		err := c.n.pause(c.ctx)
		if err == nil && c.n.actor(c.ctx).chance(c.n.db.faults.Load().Refuse) {
			err = simUnavailable("the statement's connection was lost")
		}
		if err != nil {
			c.broken = true
			return err
		}
	}
	if c.reader != nil {
		return fn(sqliteConn{c.reader})
	}
	if c.session == nil && !locks {
		r, err := c.n.db.reader()
		if err != nil {
			return err
		}
		defer c.n.db.giveBack(r)
		return fn(sqliteConn{r})
	}
	first := c.session == nil
	if first {
		var err error
		if c.session, err = c.n.newSession(c.ctx); err != nil {
			c.broken = true
			return err
		}
	}
	if err := c.session.run(fn); err != nil {
		return err
	}
	if first { // the answer's way back: the lock is held meanwhile
		return c.n.pause(c.ctx)
	}
	return nil
}

func (s *simSession) run(fn func(sqliteConn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open || s.later {
		return simUnavailable("the server has ended the session")
	}
	s.idle.Reset(simIdle)
	return fn(sqliteConn{s.n.db.writer})
}

func (c *simConn) exec(sql string, args []any) (n int64, err error) {
	err = c.run(true, func(s sqliteConn) error {
		n, err = s.exec(sql, args)
		return err
	})
	return n, err
}

func (c *simConn) query(sql string, args []any, fn func(*Row) error) error {
	locks := !strings.HasPrefix(sql, "SELECT") || strings.HasPrefix(sql, "SELECT pos, event_nid FROM log_head")
	return c.run(locks, func(s sqliteConn) error { return s.query(sql, args, fn) })
}

func (c *simConn) ahead(sql string, args []any, fn func(*Row) error) error {
	return c.query(sql, args, fn)
}

func (c *simConn) insert(q *insertSQL, rows int, vals func(int) []any) error {
	pipeline := c.pipeline
	c.pipeline = true // bulk inserts wait for the next statement
	defer func() { c.pipeline = pipeline }()
	return c.run(true, func(s sqliteConn) error { return s.insert(q, rows, vals) })
}
