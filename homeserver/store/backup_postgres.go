package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/klauspost/compress/zstd"
)

// plainName is what tables and columns of ours are called; names come out of a backup's manifest, too.
var plainName = regexp.MustCompile(`^[a-z][a-z0-9_]*$`)

// tableFile is where a table's rows lie in a backup.
func tableFile(dir, table string) string { return filepath.Join(dir, "tables", table+".copy.zst") }

// backupPostgres copies all tables out of one snapshot.
func backupPostgres(ctx context.Context, cfg Config, dir string) (info BackupInfo, err error) {
	info.Database = BackupPostgres
	c, err := pgx.Connect(ctx, cfg.URL)
	if err != nil {
		return info, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return info, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := liftTimeouts(ctx, tx); err != nil {
		return info, err
	}
	q := &pgConn{ctx: ctx, c: c}
	tables, err := pgTables(q)
	if err != nil {
		return info, err
	}
	if !slices.Contains(tables, "schema_migrations") {
		return info, errors.New("there is no database to back up: it is empty")
	}
	if err := describe(q, &info); err != nil {
		return info, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "tables"), 0o700); err != nil {
		return info, err
	}
	for _, name := range tables {
		if slices.Contains(leftOut, name) || !plainName.MatchString(name) {
			continue
		}
		t, err := copyTableOut(ctx, q, name, tableFile(dir, name))
		if err != nil {
			return info, fmt.Errorf("back up table %s: %w", name, err)
		}
		info.Tables = append(info.Tables, t)
	}
	return info, nil
}

func liftTimeouts(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
	return err
}

func pgTables(q *pgConn) ([]string, error) {
	return texts(q, `SELECT tablename::text FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename`)
}

func copyTableOut(ctx context.Context, q *pgConn, name, file string) (BackupTable, error) {
	t := BackupTable{Name: name}
	var err error
	t.Columns, err = texts(q, `SELECT column_name::text FROM information_schema.columns
		WHERE table_schema = current_schema() AND table_name = '`+name+`' ORDER BY ordinal_position`)
	if err != nil {
		return t, err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return t, err
	}
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return t, errors.Join(err, f.Close())
	}
	tag, err := q.c.PgConn().CopyTo(ctx, z, "COPY "+columnsOf(t)+" TO STDOUT")
	t.Rows = tag.RowsAffected()
	return t, errors.Join(err, z.Close(), f.Sync(), f.Close())
}

func columnsOf(t BackupTable) string {
	return `"` + t.Name + `" ("` + strings.Join(t.Columns, `", "`) + `")`
}

// restorePostgres makes the schema that the backup has and loads the tables, in one transaction.
func restorePostgres(ctx context.Context, cfg Config, dir string, info BackupInfo, known []Migration) error {
	c, err := pgx.Connect(ctx, cfg.URL)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	defer func() { _ = c.Close(context.WithoutCancel(ctx)) }()
	tx, err := c.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := liftTimeouts(ctx, tx); err != nil {
		return err
	}
	q := &pgConn{ctx: ctx, c: c}
	tables, err := pgTables(q)
	if err != nil {
		return err
	}
	if len(tables) > 0 {
		return fmt.Errorf("the database is not empty (it has a table %s): a backup is restored into an empty one only", tables[0])
	}
	if err := makeSchema(q, info.Migrations, known); err != nil {
		return err
	}
	for _, t := range info.Tables {
		if err := copyTableIn(ctx, q, t, tableFile(dir, t.Name)); err != nil {
			return fmt.Errorf("restore table %s: %w", t.Name, err)
		}
	}
	for _, stmt := range statements(fmt.Sprintf(afterRestore, time.Now().UnixMilli())) {
		if _, err := q.exec(stmt, nil); err != nil {
			return err
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return err
	}
	_, err = c.Exec(ctx, "ANALYZE")
	return err
}

func makeSchema(q *pgConn, numbers []int64, known []Migration) error {
	if _, err := q.exec(dialectSQL(dialectPostgres, createMigrations), nil); err != nil {
		return err
	}
	for _, m := range known {
		if !slices.Contains(numbers, m.Number) {
			continue
		}
		for _, stmt := range statements(dialectSQL(dialectPostgres, m.SQL)) {
			if _, err := q.exec(stmt, nil); err != nil {
				return fmt.Errorf("migration %s: %w", m.Name, err)
			}
		}
	}
	return nil
}

func copyTableIn(ctx context.Context, q *pgConn, t BackupTable, file string) error {
	for _, name := range append([]string{t.Name}, t.Columns...) {
		if !plainName.MatchString(name) {
			return fmt.Errorf("the backup's manifest has a strange name %q", name)
		}
	}
	// migrations put first rows into some tables
	if _, err := q.exec(`DELETE FROM "`+t.Name+`"`, nil); err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	z, err := zstd.NewReader(f, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer z.Close()
	tag, err := q.c.PgConn().CopyFrom(ctx, z, "COPY "+columnsOf(t)+" FROM STDIN")
	if err != nil {
		return err
	}
	if tag.RowsAffected() != t.Rows {
		return fmt.Errorf("%d rows were loaded, the manifest says %d", tag.RowsAffected(), t.Rows)
	}
	return nil
}
