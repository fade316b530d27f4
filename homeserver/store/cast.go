package store

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	castChannel = "moothall"
	castEvery   = 25 * time.Millisecond // at most one wake-up in this time
	castMax     = 7900                  // PostgreSQL's limit of a notification is 8000 bytes
	castQuiet   = 30 * time.Second      // after so long without a notification the connection is asked whether it lives
)

// caster sends and receives notifications on session connections of its own, outside the log's transactions.
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

// run keeps both connections up until ctx ends. Without them other processes still see everything by polling.
func (c *caster) run(ctx context.Context, s *Store) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.retry(ctx, s, "listen", c.listen)
	}()
	c.retry(ctx, s, "notify", c.notify)
	<-done
	return nil
}

func (c *caster) retry(ctx context.Context, s *Store, what string, fn func(context.Context, *Store) error) {
	var trouble trouble
	for ctx.Err() == nil {
		if err := fn(ctx, s); err != nil && ctx.Err() == nil && trouble.worthALine() {
			s.log.Warn("notifications between nodes are down, trying again", "part", what, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (c *caster) listen(ctx context.Context, s *Store) error {
	conn, err := pgx.Connect(ctx, c.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, "LISTEN "+castChannel); err != nil {
		return err
	}
	for {
		wctx, cancel := context.WithTimeout(ctx, castQuiet)
		n, err := conn.WaitForNotification(wctx)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) && !conn.IsClosed() {
			if err := castPing(ctx, conn); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		node, rest, _ := strings.Cut(n.Payload, ":")
		if node == s.node {
			continue
		}
		topic, payload, ok := strings.Cut(rest, ":")
		if !ok {
			pos, _ := strconv.ParseInt(rest, 10, 64) // without a position it is 0
			s.hint(pos)
			continue
		}
		s.mu.Lock()
		fn := s.onCast
		s.mu.Unlock()
		if fn != nil {
			fn(topic, payload)
		}
	}
}

// castPing finds out that the database hangs or is gone without a word.
func castPing(ctx context.Context, conn *pgx.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, statementTime)
	defer cancel()
	return conn.Ping(ctx)
}

func (c *caster) notify(ctx context.Context, s *Store) error {
	conn, err := pgx.Connect(ctx, c.url)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.ping:
		}
		c.mu.Lock()
		out, pos := c.out, c.pos
		c.out, c.pos = nil, 0
		c.mu.Unlock()
		b := &pgx.Batch{}
		if pos > 0 {
			b.Queue("SELECT pg_notify($1, $2)", castChannel, s.node+":"+strconv.FormatInt(pos, 10))
		}
		for _, m := range out {
			b.Queue("SELECT pg_notify($1, $2)", castChannel, m)
		}
		if b.Len() > 0 {
			sctx, cancel := context.WithTimeout(ctx, statementTime)
			err := conn.SendBatch(sctx, b).Close()
			cancel()
			if err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(castEvery):
		}
	}
}
