package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"sort"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Migration is one numbered SQL file.
type Migration struct {
	Number int64
	Name   string
	SQL    string
}

// Migrations lists the program's migrations in order.
func Migrations() ([]Migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	sort.Strings(names)
	out := make([]Migration, 0, len(names))
	for _, n := range names {
		base := strings.TrimPrefix(n, "migrations/")
		num, err := strconv.ParseInt(base[:4], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("migration %s: its name must begin with four digits", base)
		}
		b, err := migrationFiles.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out = append(out, Migration{num, base, string(b)})
	}
	return out, nil
}

const createMigrations = `CREATE TABLE IF NOT EXISTS schema_migrations (number BIGINT PRIMARY KEY, name TEXTC NOT NULL)`

// dialectSQL expands the schema's macros.
func dialectSQL(d dialect, sql string) string {
	if d == dialectPostgres {
		return strings.NewReplacer("TEXTC", `TEXT COLLATE "C"`, "BLOB", "BYTEA", "WITHOUT_ROWID", "").Replace(sql)
	}
	return strings.NewReplacer("TEXTC", "TEXT", "WITHOUT_ROWID", "WITHOUT ROWID").Replace(sql)
}

// statements splits a migration at semicolons that end a line.
func statements(sql string) []string {
	var out []string
	var cur strings.Builder
	for line := range strings.Lines(sql) {
		trimmed := strings.TrimSpace(line)
		if trimmed == "" || strings.HasPrefix(trimmed, "--") {
			continue
		}
		if i := strings.Index(trimmed, " --"); i >= 0 {
			trimmed = strings.TrimSpace(trimmed[:i])
		}
		cur.WriteString(strings.TrimSuffix(trimmed, ";"))
		cur.WriteByte('\n')
		if strings.HasSuffix(trimmed, ";") {
			out = append(out, cur.String())
			cur.Reset()
		}
	}
	if s := strings.TrimSpace(cur.String()); s != "" {
		out = append(out, s)
	}
	return out
}

// migrate brings the database up to this program's schema, in one transaction.
func (s *Store) migrate(ctx context.Context) error {
	all, err := Migrations()
	if err != nil {
		return err
	}
	done, err := s.appliedMigrations(ctx)
	if err != nil {
		return err
	}
	newest := all[len(all)-1].Number
	missing := 0
	for _, m := range all {
		if !done[m.Number] {
			missing++
		}
	}
	for n := range done {
		if n > newest {
			return fmt.Errorf("the database was written by a newer version of moothall (schema %d, this program knows %d): use the newer program, or restore a backup", n, newest)
		}
	}
	if missing == 0 {
		return nil
	}
	if len(done) > 0 {
		if err := s.backupBeforeMigration(ctx); err != nil {
			return fmt.Errorf("back up before migrating: %w", err)
		}
	}
	return s.backend.exclusive(ctx, func(tx *Tx) error {
		d := tx.c.dialect()
		if _, err := tx.Exec(dialectSQL(d, createMigrations)); err != nil {
			return err
		}
		done := map[int64]bool{} // read again: another node may have been quicker
		if err := tx.Each(`SELECT number FROM schema_migrations`, nil, scanInto(done)); err != nil {
			return err
		}
		stmts := steps(d, all, done)
		if b, ok := s.backend.(*pgBackend); ok && len(done) == 0 {
			return b.makeTables(ctx, tx, stmts)
		}
		return tx.script(stmts)
	})
}

// step is a statement of a migration.
type step struct{ sql, migration string }

// steps lists the statements that a database lacks, those among them that note what is done.
func steps(d dialect, all []Migration, done map[int64]bool) []step {
	var out []step
	for _, m := range all {
		if done[m.Number] {
			continue
		}
		for _, sql := range statements(dialectSQL(d, m.SQL)) {
			out = append(out, step{sql, m.Name})
		}
		out = append(out, step{fmt.Sprintf("INSERT INTO schema_migrations (number, name) VALUES (%d, '%s')", m.Number, m.Name), m.Name})
	}
	return out
}

// script runs statements without arguments. PostgreSQL gets all of them in one round trip, and none is prepared.
func (tx *Tx) script(stmts []step) error {
	all := make([]string, len(stmts))
	for i, s := range stmts {
		all[i] = s.sql
	}
	var failed int
	var err error
	if p, ok := tx.c.(*pgConn); ok {
		failed, err = p.script(all)
	} else {
		for failed < len(all) && err == nil {
			if _, err = tx.c.exec(all[failed], nil); err == nil {
				failed++
			}
		}
	}
	if err != nil {
		return fmt.Errorf("migration %s: %w\n%s", stmts[failed].migration, err, stmts[failed].sql)
	}
	return nil
}

func scanInto(set map[int64]bool) func(*Row) error {
	return func(r *Row) error {
		var n int64
		if err := r.Scan(&n); err != nil {
			return err
		}
		set[n] = true
		return nil
	}
}

// appliedMigrations reads which migrations the database has; none for an empty one.
func (s *Store) appliedMigrations(ctx context.Context) (map[int64]bool, error) {
	done := map[int64]bool{}
	err := s.backend.read(ctx, func(tx *Tx) error {
		q := `SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_migrations'`
		if tx.c.dialect() == dialectPostgres {
			q = `SELECT count(*) FROM pg_tables WHERE schemaname = ANY (current_schemas(false)) AND tablename = 'schema_migrations'`
		}
		var n int64
		if _, err := tx.Get([]any{&n}, q); err != nil || n == 0 {
			return err
		}
		return tx.Each(`SELECT number FROM schema_migrations`, nil, scanInto(done))
	})
	return done, err
}

// backupBeforeMigration copies a SQLite database beside itself before its schema changes.
func (s *Store) backupBeforeMigration(ctx context.Context) error {
	b, ok := s.backend.(*sqliteBackend)
	if !ok {
		return nil // PostgreSQL is backed up by its own means
	}
	return copySQLite(ctx, b.path, fmt.Sprintf("%s.before-migration-%s", b.path, time.Now().UTC().Format("20060102-150405")))
}
