package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// restoreJump is how far the log goes on behind a place where its newest part may have been lost, so that no position that
// a client may have seen is given again.
const restoreJump = 1_000_000_000

// lineageSetting is the history of writes in which the log's positions were given.
const lineageSetting = "log_lineage"

// lineageSQL names the history of writes that a PostgreSQL server is on: its cluster and its timeline. The timeline changes
// when a server comes back at an earlier point in time, and when a standby takes over, which may not have got everything.
const lineageSQL = `SELECT (SELECT system_identifier FROM pg_control_system())::text || '/' ||
	substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)`

// errOtherLineage refuses connections to a server whose log may lack what this process knows, until it has found its place.
var errOtherLineage = errors.New("PostgreSQL came back with another history; finding the place in its log")

// readLineage is "" where the server does not tell its name.
func readLineage(ctx context.Context, c *pgx.Conn) (string, error) {
	var name string
	err := c.QueryRow(ctx, lineageSQL).Scan(&name)
	var pe *pgconn.PgError
	if errors.As(err, &pe) && (pe.Code == "42501" || pe.Code == "42883") { // no right to ask; no such function
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask PostgreSQL for its timeline: %w", err)
	}
	return name, nil
}

// checkLineage is called for each new connection.
func (b *pgBackend) checkLineage(ctx context.Context, c *pgx.Conn) error {
	name, err := readLineage(ctx, c)
	if err != nil {
		return &unavailable{cause: err}
	}
	if b.lineage.CompareAndSwap(nil, &name) || *b.lineage.Load() == name {
		return nil
	}
	b.moved.Store(true)
	return &unavailable{cause: errOtherLineage}
}

// settleLineage begins a new epoch of the log if the positions up to now were given in another history.
func (s *Store) settleLineage(tx *Tx, name string) error {
	if name == "" {
		return nil
	}
	if err := tx.LockHead(); err != nil {
		return err
	}
	was, found, err := tx.Setting(lineageSetting)
	if err != nil || string(was) == name {
		return err
	}
	if found {
		if _, err := tx.Exec(`INSERT INTO log_epochs (epoch, first_pos, created)
			SELECT max(epoch) + 1, $1::bigint, $2::bigint FROM log_epochs`, tx.head+1, time.Now().UnixMilli()); err != nil {
			return fmt.Errorf("begin an epoch of the log: %w", err)
		}
		tx.head += restoreJump
		s.log.Warn("PostgreSQL was restored to an earlier point, or a standby took over: the log begins a new epoch", "position", tx.head)
	}
	return tx.PutSetting(lineageSetting, []byte(name))
}

// startLineage is settleLineage for a process that starts.
func (s *Store) startLineage(ctx context.Context) error {
	b, ok := s.backend.(*pgBackend)
	if !ok {
		return nil
	}
	name := b.lineage.Load() // of the first connection
	return s.Exclusive(ctx, func(tx *Tx) error { return s.settleLineage(tx, *name) })
}

// relocate finds this process's place in the log of a server that came back with another history. What memory holds may
// have been lost, so that all of it is dropped. Until then no connection to that server is used for anything else.
func (s *Store) relocate(ctx context.Context) error {
	b, ok := s.backend.(*pgBackend)
	if !ok || !b.moved.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	c, err := pgx.ConnectConfig(ctx, b.pool.Config().ConnConfig)
	if err != nil {
		return pgError(ctx, err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	name, err := readLineage(ctx, c)
	if err != nil {
		return pgError(ctx, err)
	}
	var head int64
	var epochs []Epoch
	err = pgx.BeginFunc(ctx, c, func(pgx.Tx) error {
		tx := &Tx{c: &pgConn{ctx: ctx, c: c}}
		if err := s.settleLineage(tx, name); err != nil {
			return err
		}
		if tx.locked {
			if _, err := tx.Exec(updateHead, tx.head, tx.nid); err != nil {
				return err
			}
		}
		head, _, epochs, err = tx.place()
		return err
	})
	if err != nil {
		return pgError(ctx, err)
	}
	s.mu.Lock()
	s.epochs.Store(&epochs)
	clear(s.pending)
	s.applyLocked([]Entry{{Pos: head, Kind: KindReset}})
	s.mu.Unlock()
	b.lineage.Store(&name)
	b.moved.Store(false)
	return nil
}
