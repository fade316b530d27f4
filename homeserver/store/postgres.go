package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// frozenNodeTimeout frees the log's lock when the node that holds it does not go on.
const frozenNodeTimeout = "5s"

// A database that hangs without refusing anything looks like one that is slow: after these times requests are answered with
// 503. A statement may wait for the log's lock as long as a frozen node holds it.
const (
	connectionTime = 5 * time.Second  // for one of the pool's connections
	statementTime  = 8 * time.Second  // for one statement
	commitTime     = 10 * time.Second // for what is sent with COMMIT
)

// pgRetries bounds how often a transaction that lost against another is run again.
const pgRetries = 5

type pgBackend struct {
	pool  *pgxpool.Pool
	first *pgxpool.Pool // of one connection, for the committer of rooms; pool where there is none
	cast  *caster
	log   *slog.Logger

	lineage atomic.Pointer[string] // the history of writes that this process follows; nil before the first connection
	moved   atomic.Bool            // a connection found another one
}

func openPostgres(ctx context.Context, cfg Config, log *slog.Logger) (*pgBackend, error) {
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, errors.New("database.url is no valid PostgreSQL address; it looks like postgres://user:password@host:5432/database")
	}
	pc.MaxConns = 16
	if cfg.MaxConns > 0 {
		pc.MaxConns = int32(min(cfg.MaxConns, 1000))
	}
	pc.ConnConfig.RuntimeParams["application_name"] = "moothall"
	pc.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = frozenNodeTimeout
	pc.ConnConfig.RuntimeParams["timezone"] = "UTC"
	pc.ConnConfig.ConnectTimeout = 5 * time.Second
	b := &pgBackend{log: log}
	pc.AfterConnect = b.checkLineage
	first := committing(pc, cfg.ListenURL)
	pool, err := pgxpool.NewWithConfig(ctx, pc)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	listen := cfg.ListenURL
	if listen == "" {
		listen = cfg.URL
	}
	b.pool, b.first, b.cast = pool, pool, &caster{url: listen, ping: make(chan struct{}, 1)}
	if err := b.ping(ctx); err != nil {
		pool.Close()
		return nil, fmt.Errorf("cannot reach PostgreSQL at %s: %w", pc.ConnConfig.Host, err)
	}
	if first != nil {
		if b.first, err = pgxpool.NewWithConfig(ctx, first); err != nil {
			pool.Close()
			return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
		}
	}
	return b, nil
}

// committing takes a connection for the committer of rooms out of the pool's number; nil where there is none to spare, and behind a
// pooler, whose connections are others' next. Few statements run there, all of them by index and with few rows, again and again: they are planned once.
// PostgreSQL would plan some each time, and keep plans of others that it made while the tables were empty.
func committing(pc *pgxpool.Config, listen string) *pgxpool.Config {
	if listen != "" || pc.MaxConns < 4 {
		return nil
	}
	first := pc.Copy()
	first.MaxConns, first.MinConns = 1, 0
	pc.MaxConns--
	first.ConnConfig.RuntimeParams["plan_cache_mode"] = "force_generic_plan"
	for _, way := range []string{"seqscan", "bitmapscan", "hashjoin", "mergejoin"} {
		first.ConnConfig.RuntimeParams["enable_"+way] = "off"
	}
	return first
}

func (b *pgBackend) sqlite() bool { return false }

func (b *pgBackend) close() error {
	b.pool.Close()
	if b.first != b.pool {
		b.first.Close()
	}
	return nil
}

func (b *pgBackend) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, connectionTime)
	defer cancel()
	return b.pool.Ping(ctx)
}

func acquire(ctx context.Context, pool *pgxpool.Pool) (*pgxpool.Conn, error) {
	actx, cancel := context.WithTimeout(ctx, connectionTime)
	defer cancel()
	c, err := pool.Acquire(actx)
	if err != nil {
		return nil, pgError(ctx, err)
	}
	return c, nil
}

func (b *pgBackend) read(ctx context.Context, fn func(*Tx) error) error {
	return run(ctx, b.pool, "begin isolation level repeatable read, read only", statementTime, fn, func(ctx context.Context, c *pgConn, _ *Tx) error {
		return c.rollback(ctx)
	})
}

// readOne runs a single statement, which needs no transaction to see one snapshot.
func (b *pgBackend) readOne(ctx context.Context, fn func(*Tx) error) error {
	c, err := acquire(ctx, b.pool)
	if err != nil {
		return err
	}
	defer c.Release()
	return pgError(ctx, fn(&Tx{c: &pgConn{ctx: ctx, c: c.Conn(), limit: statementTime}}))
}

func (b *pgBackend) write(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	return b.writeIn(ctx, b.pool, fn, committed)
}

// writeFirst is write for the committer of rooms.
func (b *pgBackend) writeFirst(ctx context.Context, fn func(*Tx) error, committed func([]Entry)) error {
	return b.writeIn(ctx, b.first, fn, committed)
}

func (b *pgBackend) writeIn(ctx context.Context, pool *pgxpool.Pool, fn func(*Tx) error, committed func([]Entry)) error {
	for try := 0; ; try++ {
		var entries []Entry
		err := run(ctx, pool, "begin", statementTime, fn, func(ctx context.Context, c *pgConn, tx *Tx) error {
			entries = tx.entries
			return b.commit(ctx, c, tx)
		})
		if err == nil {
			committed(entries)
			return nil
		}
		var pe *pgconn.PgError
		if errors.As(err, &pe) && (pe.Code == "40001" || pe.Code == "40P01") && try < pgRetries && ctx.Err() == nil {
			continue
		}
		return err
	}
}

// commit sends what is pending, the log's rows and COMMIT in one pipeline. It is not broken off by the request's end:
// what was begun is finished, so that its outcome is known.
func (b *pgBackend) commit(ctx context.Context, c *pgConn, tx *Tx) error {
	if !c.begun && len(c.pending) == 0 && !tx.locked {
		return nil // nothing was asked of the database
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTime)
	defer cancel()
	batch, before := c.batch()
	if err := tx.queueLog(batch); err != nil {
		return err
	}
	for len(before) < batch.Len() {
		before = append(before, nil)
	}
	batch.Queue("commit")
	args, along := tx.missing()
	if along { // behind COMMIT: nobody waits for the lock meanwhile
		batch.Queue(readAlong, args...)
	}
	res := c.c.SendBatch(ctx, batch)
	if err := answers(res, before); err != nil {
		return commitError(errors.Join(err, res.Close()))
	}
	tag, err := res.Exec()
	if err != nil {
		return commitError(errors.Join(err, res.Close()))
	}
	if along && tag.String() == "COMMIT" {
		tx.takeAlong(res)
	}
	if err := res.Close(); err != nil && !along {
		return commitError(err)
	}
	if tag.String() != "COMMIT" {
		return errors.New("the transaction was rolled back by the database")
	}
	c.begun = false
	return nil
}

// takeAlong reads what came along. It is committed whatever becomes of this: what cannot be read is the tailer's, which will say why.
func (tx *Tx) takeAlong(res pgx.BatchResults) {
	rows, err := res.Query()
	if err != nil {
		return
	}
	err = eachRow(rows, scanAlong(&tx.along))
	rows.Close()
	if err != nil {
		tx.along = nil
	}
}

// commitError tells whether the database refused the pipeline, which ends the transaction, or whether the connection went
// away with the answers, also by a shutdown: then nobody knows.
func commitError(err error) error {
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.SeverityUnlocalized == "ERROR" {
		return err
	}
	if pgconn.SafeToRetry(err) {
		return &unavailable{cause: err} // nothing was sent
	}
	return errors.Join(ErrUnknownOutcome, &unavailable{cause: err})
}

// run begins a transaction, runs fn and ends it by end, or by a roll-back when fn failed.
func run(ctx context.Context, pool *pgxpool.Pool, begin string, limit time.Duration, fn func(*Tx) error, end func(context.Context, *pgConn, *Tx) error) (err error) {
	conn, err := acquire(ctx, pool)
	if err != nil {
		return err
	}
	defer conn.Release()
	c := &pgConn{ctx: ctx, c: conn.Conn(), begin: begin, limit: limit}
	defer func() {
		if !c.begun {
			return
		}
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if e := c.rollback(rctx); e != nil {
			_ = c.c.Close(rctx) // the pool drops it and makes another
		}
	}()
	tx := &Tx{c: c}
	if err := fn(tx); err != nil {
		return pgError(ctx, err)
	}
	return pgError(ctx, end(ctx, c, tx))
}

func (b *pgBackend) exclusive(ctx context.Context, fn func(*Tx) error) error {
	return run(ctx, b.pool, "begin", 0, func(tx *Tx) error {
		if _, err := tx.Exec("SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
			return err
		}
		// one number for the product: nodes that start together migrate one after the other
		if _, err := tx.Exec("SELECT pg_advisory_xact_lock(7236832094711)"); err != nil {
			return err
		}
		return fn(tx)
	}, b.commit)
}

// IsEventTwice tells that a transaction was refused because an event with the same id stands there already.
func IsEventTwice(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "23505" && pe.ConstraintName == "events_event_id_key"
}

// pgError turns a lost or refused connection into 503.
func pgError(ctx context.Context, err error) error {
	if err == nil || mxerr.As(err) != nil {
		return err
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		switch pe.Code[:2] {
		case "57", "53", "08", "25": // shut down, out of resources, connection, frozen transaction ended
			return &unavailable{cause: err}
		}
		return err
	}
	var ne net.Error
	var ce *pgconn.ConnectError
	if errors.As(err, &ne) || errors.As(err, &ce) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || pgconn.SafeToRetry(err) {
		return &unavailable{cause: err}
	}
	return err
}

// pgConn lives as long as its transaction, which alone is why it holds a context. BEGIN and bulk inserts wait and travel
// with the next statement that has an answer, or with COMMIT: each round trip that is saved shortens the time for which
// the log's lock is held.
type pgConn struct {
	ctx     context.Context
	c       *pgx.Conn
	limit   time.Duration // for each statement; 0: none
	begin   string        // how the transaction begins; "" for none
	begun   bool          // the database has been asked to begin
	pending []pgStatement
}

type pgStatement struct {
	sql  string
	args []any
	fn   func(*Row) error // gets the rows of the answer; nil: none are expected
}

func (p *pgConn) dialect() dialect { return dialectPostgres }

// batch takes what is pending into a pipeline, and tells who gets the answers.
func (p *pgConn) batch() (b *pgx.Batch, fns []func(*Row) error) {
	b = &pgx.Batch{}
	if p.begin != "" && !p.begun {
		b.Queue(p.begin)
		fns = append(fns, nil)
		p.begun = true
	}
	for _, s := range p.pending {
		b.Queue(s.sql, s.args...)
		fns = append(fns, s.fn)
	}
	p.pending = p.pending[:0]
	return b, fns
}

// answers gives the next answers of a pipeline to those who wait for them.
func answers(res pgx.BatchResults, fns []func(*Row) error) error {
	for _, fn := range fns {
		if fn == nil {
			if _, err := res.Exec(); err != nil {
				return err
			}
			continue
		}
		rows, err := res.Query()
		if err != nil {
			return err
		}
		err = eachRow(rows, fn)
		rows.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// rollback ends the transaction, if it has begun.
func (p *pgConn) rollback(ctx context.Context) error {
	p.pending = nil
	if !p.begun {
		return nil
	}
	if p.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.limit)
		defer cancel()
	}
	if _, err := p.c.Exec(ctx, "rollback"); err != nil {
		return err
	}
	p.begun = false
	return nil
}

// send sends a statement behind what is pending and gives its answer to fn.
func (p *pgConn) send(sql string, args []any, fn func(pgx.Rows) error) error {
	ctx := p.ctx
	if p.limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.limit)
		defer cancel()
	}
	if (p.begin == "" || p.begun) && len(p.pending) == 0 {
		rows, err := p.c.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		return fn(rows)
	}
	b, before := p.batch()
	b.Queue(sql, args...)
	res := p.c.SendBatch(ctx, b)
	if err := answers(res, before); err != nil {
		return errors.Join(err, res.Close())
	}
	rows, err := res.Query()
	if err != nil {
		return errors.Join(err, res.Close())
	}
	err = fn(rows)
	rows.Close()
	return errors.Join(err, res.Close())
}

func (p *pgConn) exec(sql string, args []any) (int64, error) {
	var n int64
	err := p.send(sql, args, func(rows pgx.Rows) error {
		for rows.Next() {
		}
		n = rows.CommandTag().RowsAffected()
		return rows.Err()
	})
	return n, err
}

// script runs statements without arguments in one round trip, in a transaction that has begun. It tells which one failed.
func (p *pgConn) script(stmts []string) (failed int, err error) {
	if !p.begun || len(p.pending) > 0 {
		return 0, errors.New("a script needs a transaction that has begun")
	}
	results, err := p.c.PgConn().Exec(p.ctx, strings.Join(stmts, ";\n")).ReadAll()
	return min(len(results), len(stmts)-1), err
}

func (p *pgConn) query(sql string, args []any, fn func(*Row) error) error {
	return p.send(sql, args, func(rows pgx.Rows) error { return eachRow(rows, fn) })
}

// ahead keeps a query for the next statement that has an answer, or for COMMIT; fn gets its rows then.
func (p *pgConn) ahead(sql string, args []any, fn func(*Row) error) error {
	p.pending = append(p.pending, pgStatement{sql, args, fn})
	return nil
}

func eachRow(rows pgx.Rows, fn func(*Row) error) error {
	var raw []any
	row := &Row{scan: func(dest []any) error {
		if raw == nil {
			raw = make([]any, len(dest))
		}
		return pgScan(rows, dest, raw)
	}}
	for rows.Next() {
		if err := fn(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

// pgScan scans by pgx where it knows the type; bools (0 and 1 in the schema) and Content go by way of a temporary.
func pgScan(rows pgx.Rows, dest, raw []any) error {
	for i, d := range dest {
		switch d.(type) {
		case *bool, *int:
			raw[i] = new(int64)
		case *Content:
			raw[i] = new([]byte)
		default:
			raw[i] = d
		}
	}
	if err := rows.Scan(raw...); err != nil {
		return err
	}
	for i, d := range dest {
		switch d := d.(type) {
		case *bool:
			*d = *raw[i].(*int64) != 0
		case *int:
			*d = int(*raw[i].(*int64))
		case *Content:
			b := *raw[i].(*[]byte)
			if b == nil {
				*d = nil
				continue
			}
			c, err := decodeContent(b)
			if err != nil {
				return err
			}
			*d = c
		}
	}
	return nil
}

// pgArrays turns rows into one array a column.
func pgArrays(q *insertSQL, rows int, vals func(int) []any) ([]any, error) {
	ints := make([][]*int64, len(q.cols))
	texts := make([][]*string, len(q.cols))
	blobs := make([][][]byte, len(q.cols))
	for i := range rows {
		args, err := convertArgs(vals(i))
		if err != nil {
			return nil, err
		}
		for c, col := range q.cols {
			switch v := args[c].(type) {
			case nil:
				switch col.Type {
				case Int:
					ints[c] = append(ints[c], nil)
				case Text:
					texts[c] = append(texts[c], nil)
				case Bytes:
					blobs[c] = append(blobs[c], nil)
				}
			case int64:
				ints[c] = append(ints[c], &v)
			case string:
				texts[c] = append(texts[c], &v)
			case []byte:
				blobs[c] = append(blobs[c], v)
			default:
				return nil, fmt.Errorf("store: column %s cannot take %T", col.Name, v)
			}
		}
	}
	out := make([]any, len(q.cols))
	for c, col := range q.cols {
		switch col.Type {
		case Int:
			out[c] = ints[c]
		case Text:
			out[c] = texts[c]
		case Bytes:
			out[c] = blobs[c]
		}
	}
	return out, nil
}

func (p *pgConn) insert(q *insertSQL, rows int, vals func(int) []any) error {
	arrays, err := pgArrays(q, rows, vals)
	if err != nil {
		return err
	}
	p.pending = append(p.pending, pgStatement{sql: q.sql, args: arrays})
	return nil
}
