package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// SQLiteFile is the database's name inside the data directory.
const SQLiteFile = "moothall.db"

// sqliteBatchTime bounds how long one commit group may collect, so that no writer waits long behind it.
const sqliteBatchTime = 10 * time.Millisecond

// sqliteBackend has one writer connection and a pool of readers. Writers that wait are committed together.
type sqliteBackend struct {
	path    string
	readers chan *sqlite.Conn
	writer  chan *sqlite.Conn
	log     *slog.Logger

	mu     sync.Mutex
	queue  []*sqliteWrite
	owed   int            // how many at the queue's front were left over from the group before
	riders []*sqliteWrite // see ride
	shm    *os.File       // the WAL's index, see wal
	file   *os.File       // the database, to bring it to the disk

	lull lull
}

// sqliteWrite is one transaction that waits for its group.
type sqliteWrite struct {
	ctx       context.Context
	fn        func(*Tx) error
	committed func([]Entry)
	entries   []Entry
	err       error
	done      chan struct{}
	rides     bool      // nobody waits for it
	came      time.Time // of a rider
}

func openSQLite(ctx context.Context, dir string, log *slog.Logger) (*sqliteBackend, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w", err)
	}
	path := filepath.Join(dir, SQLiteFile)
	n := max(4, 2*runtime.NumCPU())
	b := &sqliteBackend{path: path, readers: make(chan *sqlite.Conn, n), writer: make(chan *sqlite.Conn, 1), log: log}
	w, err := openSQLiteConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w (is data_dir writable by this user?)", path, err)
	}
	b.writer <- w
	// a write shows at once whether the directory can be written to
	for _, pragma := range []string{
		"PRAGMA journal_mode = WAL",
		"PRAGMA synchronous = FULL",
		"PRAGMA wal_autocheckpoint = 0", // checkpoints run beside the commits, see Checkpoint
		"PRAGMA foreign_keys = ON",
		"PRAGMA journal_size_limit = 67108864",
		"BEGIN IMMEDIATE", // a command that opens the database at the same time waits
		"CREATE TABLE IF NOT EXISTS write_check (id INTEGER PRIMARY KEY)",
		"DROP TABLE write_check",
		"COMMIT",
	} {
		if err := sqliteRun(w, pragma); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot write to %s: %w", path, err), b.close())
		}
	}
	if b.file, err = os.Open(path); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", path, err), b.close())
	}
	for range n {
		r, err := openSQLiteConn(path, sqlite.OpenReadOnly)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open %s for reading: %w", path, err), b.close())
		}
		b.readers <- r
	}
	return b, ctx.Err()
}

func openSQLiteConn(path string, flags sqlite.OpenFlags) (*sqlite.Conn, error) {
	c, err := sqlite.OpenConn(path, flags|sqlite.OpenURI)
	if err != nil {
		return nil, err
	}
	c.SetBusyTimeout(10 * time.Second)
	for _, p := range []string{"PRAGMA cache_size = -8000", "PRAGMA temp_store = MEMORY"} {
		if err := sqliteRun(c, p); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func sqliteRun(c *sqlite.Conn, sql string) error {
	stmt, _, err := c.PrepareTransient(sql)
	if err != nil {
		return err
	}
	for {
		more, err := stmt.Step()
		if err != nil || !more {
			return errors.Join(err, stmt.Finalize())
		}
	}
}

func (b *sqliteBackend) sqlite() bool { return true }

func (b *sqliteBackend) close() error {
	var errs []error
	for {
		select {
		case c := <-b.readers:
			errs = append(errs, c.Close())
			continue
		case c := <-b.writer:
			errs = append(errs, c.Close())
			continue
		default:
		}
		b.mu.Lock()
		files := []*os.File{b.shm, b.file}
		b.shm, b.file = nil, nil // whoever closes twice has nothing to close then
		b.mu.Unlock()
		for _, f := range files {
			if f != nil {
				errs = append(errs, f.Close()) // not before: see wal
			}
		}
		return errors.Join(errs...)
	}
}

func (b *sqliteBackend) ping(ctx context.Context) error {
	return b.read(ctx, func(tx *Tx) error {
		var one int64
		_, err := tx.Get([]any{&one}, "SELECT 1")
		return err
	})
}

func (b *sqliteBackend) read(ctx context.Context, fn func(*Tx) error) error {
	var c *sqlite.Conn
	select {
	case c = <-b.readers:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { b.readers <- c }()
	c.SetInterrupt(ctx.Done())
	defer c.SetInterrupt(nil)
	if err := stepOnce(c, "BEGIN"); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return sqliteError(err)
	}
	err := fn(&Tx{c: sqliteConn{c}})
	c.SetInterrupt(nil)
	if e := stepOnce(c, "ROLLBACK"); err == nil {
		err = e
	}
	if ctx.Err() != nil && sqlite.ErrCode(err) == sqlite.ResultInterrupt {
		return ctx.Err()
	}
	return sqliteError(err)
}

func (b *sqliteBackend) readOne(ctx context.Context, fn func(*Tx) error) error {
	return b.read(ctx, fn)
}

// write queues the transaction; whoever gets the writer connection commits all that wait, each under its own
// savepoint, in one COMMIT.
func (b *sqliteBackend) write(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	return b.enqueue(&sqliteWrite{ctx: ctx, fn: fn, committed: committed, done: make(chan struct{})}, false)
}

// writeFirst is write for the transaction that users wait for: it stands before what waits already, unless that was left
// over from the group before, so that nothing waits for ever.
func (b *sqliteBackend) writeFirst(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	return b.enqueue(&sqliteWrite{ctx: ctx, fn: fn, committed: committed, done: make(chan struct{}), rides: riding(ctx)}, true)
}

func (b *sqliteBackend) enqueue(w *sqliteWrite, first bool) error {
	if !w.rides {
		b.lull.seen()
	}
	b.mu.Lock()
	if first {
		b.queue = slices.Insert(b.queue, min(b.owed, len(b.queue)), w)
	} else {
		b.queue = append(b.queue, w)
	}
	b.mu.Unlock()
	for {
		select {
		case <-w.done:
			return w.err
		case c := <-b.writer:
			b.commitNext(c)
		}
		if w.ended() {
			return w.err // the writer is free again, and what waits for it is nothing that w is to wait for
		}
	}
}

// ended tells whether a write was run.
func (w *sqliteWrite) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// commitNext commits what waits, and gives the writer back.
func (b *sqliteBackend) commitNext(c *sqlite.Conn) {
	defer func() { b.writer <- c }()
	b.mu.Lock()
	group := b.takeQueue()
	others := slices.ContainsFunc(group, func(w *sqliteWrite) bool { return !w.rides })
	n := len(b.riders)
	if others {
		n = 0
		for n < len(b.riders) && b.riders[n].due() {
			n++
		}
	}
	riders := b.riders[:n:n]
	b.riders = b.riders[n:]
	b.mu.Unlock()
	if len(group)+len(riders) == 0 {
		return
	}
	if !others {
		b.lull.went() // riders that wait for the writer are not to be the next ones
	}
	g := &sqliteGroup{b: b, c: c, tx: &Tx{c: sqliteConn{c}}, start: time.Now()}
	if g.err = stepOnce(c, "BEGIN IMMEDIATE"); g.err != nil {
		g.ran = append(group, riders...)
	} else {
		g.run(group)
		g.carry(riders)
	}
	g.commit()
	if others || g.joined {
		b.lull.seen()
	} else {
		b.lull.went()
	}
}

// takeQueue empties the queue; b.mu is held.
func (b *sqliteBackend) takeQueue() []*sqliteWrite {
	group := b.queue
	b.queue, b.owed = nil, 0
	return group
}

// sqliteGroup is one transaction, in which several who write are one behind the other.
type sqliteGroup struct {
	b      *sqliteBackend
	c      *sqlite.Conn
	tx     *Tx
	start  time.Time
	ran    []*sqliteWrite
	joined bool // somebody came while riders were at work
	err    error
}

// run runs a list. What there is no time for is left to the next group, before everything that waits.
func (g *sqliteGroup) run(list []*sqliteWrite) {
	for i, w := range list {
		if g.err != nil || len(g.ran) > 0 && time.Since(g.start) > sqliteBatchTime {
			rest := list[i:]
			g.b.mu.Lock()
			g.b.queue = append(rest[:len(rest):len(rest)], g.b.queue...)
			g.b.owed = 1
			g.b.mu.Unlock()
			return
		}
		g.one(w)
	}
}

// carry runs as many riders as there is time for. Who comes meanwhile goes along in their place: the disk is waited for once.
func (g *sqliteGroup) carry(riders []*sqliteWrite) {
	began := time.Now()
	for i, w := range riders {
		late := g.tx.hurried || i > 0 && time.Since(began) > rideTime || time.Since(g.start) > sqliteBatchTime
		g.b.mu.Lock()
		if g.err != nil || late || len(g.b.queue) > 0 {
			g.b.riders = append(riders[i:len(riders):len(riders)], g.b.riders...)
			came := g.b.takeQueue()
			g.b.mu.Unlock()
			g.joined = len(came) > 0
			g.run(came)
			return
		}
		g.b.mu.Unlock()
		g.one(w)
	}
}

func (g *sqliteGroup) one(w *sqliteWrite) {
	g.ran = append(g.ran, w)
	if w.err = w.ctx.Err(); w.err == nil {
		w.err = g.b.runOne(g.c, g.tx, w)
	}
	if g.c.AutocommitEnabled() {
		// a full disk or an I/O error makes SQLite roll back all of it, not only the savepoint; what would run now
		// would be committed by itself
		g.err = errors.Join(errors.New("the database rolled the transaction back"), w.err)
	}
}

// commit ends the transaction and answers those who ran.
func (g *sqliteGroup) commit() {
	if g.err == nil {
		g.err = g.tx.flushLog()
	}
	if g.err == nil {
		g.err = stepOnce(g.c, "COMMIT")
	}
	if g.err != nil {
		if !g.c.AutocommitEnabled() {
			if e := stepOnce(g.c, "ROLLBACK"); e != nil {
				g.b.log.Error("roll back after a failed commit", "error", e)
			}
		}
	}
	for _, w := range g.ran {
		if g.err != nil && w.err == nil {
			w.err = sqliteError(g.err)
		}
	}
	// entries of the whole group are delivered in order before anyone is answered
	for _, w := range g.ran {
		if w.err == nil && w.committed != nil {
			w.committed(w.entries)
		}
	}
	for _, w := range g.ran {
		close(w.done)
	}
}

// runOne runs one member of the group under a savepoint, so that its failure leaves the others alone.
func (b *sqliteBackend) runOne(c *sqlite.Conn, tx *Tx, w *sqliteWrite) (err error) {
	if err := stepOnce(c, "SAVEPOINT w"); err != nil {
		return sqliteError(err)
	}
	mark, head, nid, locked := len(tx.entries), tx.head, tx.nid, tx.locked
	defer func() {
		p := recover()
		if err != nil || p != nil {
			tx.entries, tx.head, tx.nid, tx.locked = tx.entries[:mark], head, nid, locked
			if e := stepOnce(c, "ROLLBACK TO w"); e != nil {
				err = errors.Join(err, e)
			}
		}
		if e := stepOnce(c, "RELEASE w"); e != nil && err == nil {
			err = e
		}
		if p != nil {
			err = fmt.Errorf("panic in a transaction: %v", p)
		}
	}()
	if err := w.fn(tx); err != nil {
		return sqliteError(err)
	}
	w.entries = append([]Entry(nil), tx.entries[mark:]...)
	return nil
}

// exclusive runs one transaction alone, without the time limit of a group.
func (b *sqliteBackend) exclusive(ctx context.Context, fn func(*Tx) error) error {
	var c *sqlite.Conn
	select {
	case c = <-b.writer:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { b.writer <- c }()
	if err := stepOnce(c, "BEGIN IMMEDIATE"); err != nil {
		return sqliteError(err)
	}
	tx := &Tx{c: sqliteConn{c}}
	err := fn(tx)
	if err == nil {
		err = tx.flushLog()
	}
	if err == nil {
		err = stepOnce(c, "COMMIT")
	}
	if err != nil && !c.AutocommitEnabled() {
		err = errors.Join(err, stepOnce(c, "ROLLBACK"))
	}
	return sqliteError(err)
}

// Sizes of the WAL, in bytes: what is moved at once, when the WAL is to begin anew, what writers may wait for then (more where
// it has become twice as long since), and what no reader may make it grow beyond.
const (
	walStep  = 4 << 20
	walLong  = 32 << 20
	walShort = 128 << 10
	walMore  = 1 << 20
	walMost  = 256 << 20

	walRounds = 4 // how often what came meanwhile is moved, until it is short
)

// checkpoint moves the WAL into the database file beside the commits. Under steady writing a checkpoint always leaves what came
// meanwhile, so that the WAL would never begin anew: when it is long, the little that is left is moved while writers wait.
func (b *sqliteBackend) checkpoint(ctx context.Context) error {
	size, left, err := b.wal()
	if err != nil || left < walStep && size < walLong || left == 0 && size < walMost {
		return err // where all is moved, the next writer begins the WAL anew by itself
	}
	c, err := openSQLiteConn(b.path, sqlite.OpenReadWrite)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	c.SetInterrupt(ctx.Done())
	for range walRounds { // each round takes less time than the one before, so that less comes meanwhile
		if err := sqliteRun(c, "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
			return err
		}
		// SQLite does so only with the last piece, while writers wait for all that has gathered
		b.mu.Lock()
		file := b.file
		b.mu.Unlock()
		if err := file.Sync(); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, os.ErrInvalid) {
			return err
		}
		if size, left, err = b.wal(); err != nil || size < walLong {
			return err
		}
		if left <= walShort {
			break
		}
	}
	if left > walMore && size < walMost || left > walShort && size < 2*walLong {
		return nil // by the next look the rest is smaller
	}
	mode := "PASSIVE"
	if size >= walMost {
		mode = "TRUNCATE" // a reader has pinned the WAL for long: reset it, even at the price of a wait
	}
	select {
	case w := <-b.writer:
		defer func() { b.writer <- w }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return sqliteRun(c, "PRAGMA wal_checkpoint("+mode+")")
}

// wal returns how many bytes the WAL holds, and how many of them are not in the database file yet. It reads the WAL's index,
// whose header is documented (https://sqlite.org/walformat.html): page size at 14, frames at 16, frames that were moved at 96. The
// file stays open: to close a file gives up all locks that the process has on it (fcntl(2)), and without them another process
// that opens the database (a command) would take this one for dead and cut the index, which it has mapped.
func (b *sqliteBackend) wal() (size, left int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.file == nil {
		return 0, 0, nil // closed
	}
	if b.shm == nil {
		f, err := os.Open(b.path + "-shm")
		if errors.Is(err, fs.ErrNotExist) {
			return 0, 0, nil
		}
		if err != nil {
			return 0, 0, err
		}
		b.shm = f
	}
	var h [100]byte
	if _, err := b.shm.ReadAt(h[:], 0); errors.Is(err, io.EOF) {
		return 0, 0, nil // nothing was written yet
	} else if err != nil {
		return 0, 0, err
	}
	page := int64(binary.NativeEndian.Uint16(h[14:]))
	if page == 1 {
		page = 65536
	}
	frames, moved := int64(binary.NativeEndian.Uint32(h[16:])), int64(binary.NativeEndian.Uint32(h[96:]))
	return frames * page, (frames - moved) * page, nil
}

func stepOnce(c *sqlite.Conn, sql string) error {
	stmt, err := c.Prepare(sql)
	if err != nil {
		return err
	}
	if _, err := stmt.Step(); err != nil {
		return errors.Join(err, stmt.Reset())
	}
	return stmt.Reset()
}

// sqliteError turns a full disk and a busy database into 503, so that clients try again.
func sqliteError(err error) error {
	if err == nil || mxerr.As(err) != nil {
		return err
	}
	switch sqlite.ErrCode(err).ToPrimary() {
	case sqlite.ResultFull:
		return &unavailable{cause: err, full: true}
	case sqlite.ResultIOErr, sqlite.ResultBusy, sqlite.ResultReadOnly, sqlite.ResultCantOpen:
		return &unavailable{cause: err}
	}
	return err
}

type sqliteConn struct{ c *sqlite.Conn }

func (s sqliteConn) dialect() dialect { return dialectSQLite }

func sqliteBind(stmt *sqlite.Stmt, args []any) error {
	for i, a := range args {
		switch v := a.(type) {
		case nil:
			stmt.BindNull(i + 1)
		case int64:
			stmt.BindInt64(i+1, v)
		case string:
			stmt.BindText(i+1, v)
		case []byte:
			if len(v) == 0 {
				stmt.BindZeroBlob(i+1, 0)
			} else {
				stmt.BindBytes(i+1, v)
			}
		case []string, []int64:
			list, err := jsonList(v)
			if err != nil {
				return err
			}
			stmt.BindText(i+1, list)
		default:
			return fmt.Errorf("store: cannot bind %T", a)
		}
	}
	return nil
}

func (s sqliteConn) exec(sql string, args []any) (int64, error) {
	stmt, err := s.c.Prepare(sql)
	if err != nil {
		return 0, err
	}
	if err := sqliteBind(stmt, args); err != nil {
		return 0, err
	}
	defer func() { _ = stmt.ClearBindings() }()
	for {
		more, err := stmt.Step()
		if err != nil {
			return 0, errors.Join(err, stmt.Reset())
		}
		if !more {
			break
		}
	}
	return int64(s.c.Changes()), stmt.Reset()
}

func (s sqliteConn) query(sql string, args []any, fn func(*Row) error) error {
	stmt, err := s.c.Prepare(sql)
	if err != nil {
		return err
	}
	if err := sqliteBind(stmt, args); err != nil {
		return err
	}
	defer func() { _ = stmt.ClearBindings() }()
	row := &Row{scan: func(dest []any) error {
		for i, d := range dest {
			err := assign(d, stmt.ColumnIsNull(i),
				func() int64 { return stmt.ColumnInt64(i) },
				func() string { return stmt.ColumnText(i) },
				func() []byte {
					b := make([]byte, stmt.ColumnLen(i))
					stmt.ColumnBytes(i, b)
					return b
				})
			if err != nil {
				return err
			}
		}
		return nil
	}}
	for {
		more, err := stmt.Step()
		if err != nil {
			return errors.Join(err, stmt.Reset())
		}
		if !more {
			return stmt.Reset()
		}
		if err := fn(row); err != nil {
			return errors.Join(err, stmt.Reset())
		}
	}
}

func (s sqliteConn) ahead(sql string, args []any, fn func(*Row) error) error {
	return s.query(sql, args, fn)
}

func (s sqliteConn) insert(q *insertSQL, rows int, vals func(int) []any) error {
	stmt, err := s.c.Prepare(q.sql)
	if err != nil {
		return err
	}
	defer func() { _ = stmt.ClearBindings() }()
	for i := range rows {
		args, err := convertArgs(vals(i))
		if err != nil {
			return err
		}
		if err := sqliteBind(stmt, args); err != nil {
			return err
		}
		for {
			more, err := stmt.Step()
			if err != nil {
				return errors.Join(err, stmt.Reset())
			}
			if !more {
				break
			}
		}
		if err := stmt.Reset(); err != nil {
			return err
		}
	}
	return nil
}
