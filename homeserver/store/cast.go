package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	castChannel = "moothall"
	castEvery   = 25 * time.Millisecond // at most one wake-up in this time, or in twice of it where others write as well
	castMax     = 7900                  // PostgreSQL's limit of a notification is 8000 bytes
	castQuiet   = 30 * time.Second      // after so long without a notification the connection is asked whether it lives
)

// caster sends and receives notifications on a session connection of its own, outside the log's transactions.
type caster struct {
	url  string
	mu   sync.Mutex
	out  []string
	pos  int64 // up to where the log has grown; 0: nobody need be told
	ping chan struct{}
}

// caster is nil on SQLite, which one process serves.
func (s *Store) caster() *caster {
	if b, ok := s.backend.(*pgBackend); ok {
		return b.cast
	}
	return nil
}

// Broadcast sends a payload of at most a few kilobytes to every process, this one included, without storing it. It
// may be lost.
func (s *Store) Broadcast(topic, payload string) {
	s.mu.Lock()
	fn := s.onCast
	s.mu.Unlock()
	if fn != nil {
		fn(topic, payload)
	}
	if c := s.caster(); c != nil {
		c.send(s.node + ":" + topic + ":" + payload)
	}
}

// wake tells other processes that the log has grown up to a position.
func (c *caster) wake(pos int64) {
	c.mu.Lock()
	c.pos = max(c.pos, pos)
	c.mu.Unlock()
	c.nudge()
}

func (c *caster) send(msg string) {
	if len(msg) > castMax {
		return
	}
	c.mu.Lock()
	if len(c.out) < 1000 {
		c.out = append(c.out, msg)
	}
	c.mu.Unlock()
	c.nudge()
}

func (c *caster) nudge() {
	select {
	case c.ping <- struct{}{}:
	default:
	}
}

// run keeps the connection up until ctx ends. Without it other processes still see everything by polling.
func (c *caster) run(ctx context.Context, s *Store) error {
	var trouble trouble
	for ctx.Err() == nil {
		if err := c.session(ctx, s); err != nil && ctx.Err() == nil && trouble.worthALine() {
			s.log.Warn("notifications between nodes are down, trying again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return nil
}

// session sends and hears notifications on one connection: another one would be woken for what this process itself has sent.
func (c *caster) session(ctx context.Context, s *Store) error {
	conn, err := pgx.Connect(ctx, c.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	// a notification is a transaction of which nothing needs to be on the disk
	for _, sql := range []string{"SET synchronous_commit = off", "LISTEN " + castChannel} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	var next time.Time // when the next ones may be sent
	var foreign int64
	for ctx.Err() == nil {
		n, due, err := c.hear(ctx, conn, next)
		if n != nil {
			s.heard(n.Payload)
		}
		if err == nil && due {
			err = c.notify(ctx, conn, s.node)
			next = time.Now().Add(castEvery)
			if f := s.Foreign(); f != foreign { // others write too, and read along with their own transactions
				foreign, next = f, next.Add(castEvery)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hear waits for a notification, or until some are to be sent and may be.
func (c *caster) hear(ctx context.Context, conn *pgx.Conn, next time.Time) (n *pgconn.Notification, due bool, err error) {
	if !time.Now().Before(next) {
		select {
		case <-c.ping: // even where notifications come in all the time
			return nil, true, nil
		default:
		}
	}
	wctx, cancel := context.WithTimeout(ctx, castQuiet)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		select {
		case <-wctx.Done():
			return
		case <-time.After(time.Until(next)):
		}
		select {
		case <-wctx.Done():
		case <-c.ping:
			due = true
		}
	}()
	n, err = conn.WaitForNotification(wctx)
	quiet := errors.Is(wctx.Err(), context.DeadlineExceeded)
	cancel()
	<-done
	if err != nil && ctx.Err() == nil && !conn.IsClosed() && (pgconn.Timeout(err) || errors.Is(err, context.Canceled)) { // only the wait has ended
		err = nil
		if quiet && !due {
			err = castPing(ctx, conn)
		}
	}
	return n, due, err
}

// heard takes in what a process has sent.
func (s *Store) heard(msg string) {
	node, rest, _ := strings.Cut(msg, ":")
	if node == s.node {
		return
	}
	topic, payload, ok := strings.Cut(rest, ":")
	if !ok {
		pos, _ := strconv.ParseInt(rest, 10, 64) // without a position it is 0
		s.hint(pos)
		return
	}
	s.mu.Lock()
	fn := s.onCast
	s.mu.Unlock()
	if fn != nil {
		fn(topic, payload)
	}
}

// castPing finds out that the database hangs or is gone without a word.
func castPing(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statementTime)
	defer cancel()
	return conn.Ping(ctx)
}

// notify sends what waits.
func (c *caster) notify(ctx context.Context, conn *pgx.Conn, node string) error {
	c.mu.Lock()
	out, pos := c.out, c.pos
	c.out, c.pos = nil, 0
	c.mu.Unlock()
	b := &pgx.Batch{}
	if pos > 0 {
		b.Queue("SELECT pg_notify($1, $2)", castChannel, node+":"+strconv.FormatInt(pos, 10))
	}
	for _, m := range out {
		b.Queue("SELECT pg_notify($1, $2)", castChannel, m)
	}
	if b.Len() == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statementTime)
	defer cancel()
	return conn.SendBatch(ctx, b).Close()
}
