package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"zombiezen.com/go/sqlite"
)

// leftOut are tables whose rows are in no backup: a one-time key that comes back with a restore would be handed out twice.
// Clients upload new ones when they see that none are left.
var leftOut = []string{"one_time_keys"}

// Kinds of databases in a backup.
const (
	BackupSQLite   = "sqlite"
	BackupPostgres = "postgres"
)

// BackupInfo describes the database's part of a backup; Restore needs it again.
type BackupInfo struct {
	Database   string        `json:"database"`
	ServerName string        `json:"server_name"`
	Migrations []int64       `json:"migrations"` // what the schema was made by
	Tables     []BackupTable `json:"tables,omitempty"`
}

// BackupTable is one table of a PostgreSQL backup, a file in COPY's text format.
type BackupTable struct {
	Name    string   `json:"name"`
	Columns []string `json:"columns"`
	Rows    int64    `json:"rows"`
}

// afterRestore is run on restored data, in both dialects. Clients hold tokens of positions that were given after the backup
// was made. The log gets a new epoch, and goes on so far behind that none of those positions is given again: whatever a
// token of the lost tail is used for, everything that comes now lies behind it. Nobody holds a follower's lease.
const afterRestore = `INSERT INTO log_epochs (epoch, first_pos, created)
	SELECT (SELECT max(epoch) + 1 FROM log_epochs), pos + 1, %d FROM log_head WHERE id = 1;
UPDATE log_head SET pos = pos + 1000000000 WHERE id = 1;
DELETE FROM server_settings WHERE key = 'log_lineage';
UPDATE followers SET owner = '', lease_until = 0;`

// Backup writes one consistent state of the database into a directory, while servers go on working on it. The database is not
// migrated for that.
func Backup(ctx context.Context, cfg Config, dir string) (BackupInfo, error) {
	if cfg.URL != "" {
		return backupPostgres(ctx, cfg, dir)
	}
	return backupSQLite(ctx, filepath.Join(cfg.DataDir, SQLiteFile), filepath.Join(dir, SQLiteFile))
}

// Restore brings a backup's database into an empty one. What it holds is migrated when it is opened.
func Restore(ctx context.Context, cfg Config, dir string, info BackupInfo) error {
	known, err := Migrations()
	if err != nil {
		return err
	}
	for _, n := range info.Migrations {
		if !slices.ContainsFunc(known, func(m Migration) bool { return m.Number == n }) {
			return fmt.Errorf("the backup was made by a newer version of moothall (schema %d): use that version", n)
		}
	}
	switch {
	case info.Database == BackupPostgres && cfg.URL != "":
		return restorePostgres(ctx, cfg, dir, info, known)
	case info.Database == BackupSQLite && cfg.URL == "":
		return restoreSQLite(filepath.Join(dir, SQLiteFile), cfg.DataDir)
	case info.Database == BackupPostgres:
		return errors.New("this is a backup of PostgreSQL: set database.url to an empty PostgreSQL database")
	}
	return errors.New("this is a backup of SQLite: leave database.url empty")
}

const (
	backupPages    = 256 // pages copied at a time
	backupRestarts = 3   // begun anew so often, the copy holds its snapshot
)

// copySQLite copies a database page by page while others write to it. A write begins the copy anew; under steady writes
// it therefore pins one snapshot after a few attempts, and the WAL grows until it is done.
func copySQLite(ctx context.Context, from, to string) error {
	src, err := openSQLiteConn(from, sqlite.OpenReadWrite)
	if err != nil {
		return fmt.Errorf("open %s: %w", from, err)
	}
	defer func() { _ = src.Close() }()
	dst, err := openSQLiteConn(to, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		return fmt.Errorf("make %s: %w", to, err)
	}
	err = copyPages(ctx, src, dst)
	return errors.Join(err, dst.Close())
}

func copyPages(ctx context.Context, src, dst *sqlite.Conn) (err error) {
	b, err := sqlite.NewBackup(dst, "main", src, "main")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	pinned := false
	defer func() {
		if pinned {
			err = errors.Join(err, sqliteRun(src, "ROLLBACK"))
		}
	}()
	restarts, left := 0, int(^uint(0)>>1)
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		more, err = b.Step(backupPages)
		if err != nil && !more {
			return err
		}
		if err != nil { // busy for the moment
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if now := b.Remaining(); now > left {
			if restarts++; restarts == backupRestarts {
				if err := pinSnapshot(src); err != nil {
					return err
				}
				pinned = true
			}
		}
		left = b.Remaining()
	}
	return nil
}

func pinSnapshot(c *sqlite.Conn) error {
	if err := sqliteRun(c, "BEGIN"); err != nil {
		return err
	}
	return sqliteRun(c, "SELECT count(*) FROM schema_migrations") // the first read takes the snapshot
}

func backupSQLite(ctx context.Context, from, to string) (BackupInfo, error) {
	info := BackupInfo{Database: BackupSQLite}
	if _, err := os.Stat(from); err != nil {
		return info, fmt.Errorf("there is no database to back up: %w", err)
	}
	if err := copySQLite(ctx, from, to); err != nil {
		return info, fmt.Errorf("copy %s: %w", from, err)
	}
	c, err := openSQLiteConn(to, sqlite.OpenReadWrite)
	if err != nil {
		return info, err
	}
	err = errors.Join(finishSQLiteBackup(c, &info), c.Close())
	if err != nil {
		return info, err
	}
	return info, syncFile(to)
}

// finishSQLiteBackup makes the copy a single file, takes out what does not belong into it, checks it, and reads what is to be
// known of it.
func finishSQLiteBackup(c *sqlite.Conn, info *BackupInfo) error {
	for _, pragma := range []string{"PRAGMA journal_mode = DELETE", "PRAGMA secure_delete = ON"} {
		if err := sqliteRun(c, pragma); err != nil {
			return err
		}
	}
	q := sqliteConn{c}
	tables, err := texts(q, `SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		return err
	}
	if !slices.Contains(tables, "schema_migrations") {
		return errors.New("the database is empty")
	}
	for _, t := range leftOut {
		if slices.Contains(tables, t) {
			if err := sqliteRun(c, "DELETE FROM "+t); err != nil {
				return err
			}
		}
	}
	problems, err := texts(q, "PRAGMA quick_check(1)")
	if err != nil || len(problems) != 1 || problems[0] != "ok" {
		return errors.Join(fmt.Errorf("the database is damaged: %s", strings.Join(problems, "; ")), err)
	}
	return describe(q, info)
}

// describe reads the migrations and the server's name.
func describe(q conn, info *BackupInfo) error {
	err := q.query(`SELECT number FROM schema_migrations ORDER BY number`, nil, func(r *Row) error {
		var n int64
		err := r.Scan(&n)
		info.Migrations = append(info.Migrations, n)
		return err
	})
	if err != nil {
		return err
	}
	return q.query(`SELECT value FROM server_settings WHERE key = 'server_name'`, nil, func(r *Row) error {
		var name Content
		err := r.Scan(&name)
		info.ServerName = string(name)
		return err
	})
}

func texts(q conn, sql string) ([]string, error) {
	var out []string
	err := q.query(sql, nil, func(r *Row) error {
		var s string
		err := r.Scan(&s)
		out = append(out, s)
		return err
	})
	return out, err
}

// restoreSQLite copies the backup's file beside its place, finishes it there and then renames it, so that a half restored
// database is never taken for one.
func restoreSQLite(from, dataDir string) (err error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	to := filepath.Join(dataDir, SQLiteFile)
	for _, f := range []string{to, to + "-wal"} {
		if _, err := os.Stat(f); err == nil {
			return fmt.Errorf("%s exists: a backup is restored into an empty data_dir only", f)
		}
	}
	half := to + ".restoring"
	defer func() {
		if err != nil {
			_ = os.Remove(half)
		}
	}()
	if err := copyFile(from, half); err != nil {
		return err
	}
	c, err := openSQLiteConn(half, sqlite.OpenReadWrite)
	if err != nil {
		return err
	}
	var errs []error
	for _, stmt := range statements(fmt.Sprintf(afterRestore, time.Now().UnixMilli())) {
		errs = append(errs, sqliteRun(c, stmt))
	}
	if err := errors.Join(append(errs, c.Close())...); err != nil {
		return err
	}
	if err := syncFile(half); err != nil {
		return err
	}
	return os.Rename(half, to)
}

func copyFile(from, to string) error {
	b, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = b.Close() }()
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(b)
	return errors.Join(err, f.Close())
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
