package store

import (
	"context"
	"regexp"

	"golang.org/x/sync/errgroup"
)

// aboutTable finds the table that a statement of a migration is about.
var aboutTable = regexp.MustCompile(`^(CREATE TABLE|ALTER TABLE|INSERT INTO|UPDATE|DELETE FROM|DROP TABLE|CREATE (?:UNIQUE )?INDEX \w+\s+ON) (\w+)`)

// halves divides the statements of all migrations into two lists that take about as long as each other, with all that is about a
// table in one of them, and names the second one's tables. ok is false if a statement is of a kind that cannot be told.
func halves(stmts []step) (own, other []step, tables []string, ok bool) {
	of := map[string]bool{} // table: in the other half
	ownLen, otherLen := 0, 0
	for _, s := range stmts {
		m := aboutTable.FindStringSubmatch(s.sql)
		if m == nil {
			return nil, nil, nil, false
		}
		second, known := of[m[2]]
		if !known {
			second = otherLen < ownLen && m[1] == "CREATE TABLE"
			of[m[2]] = second
			if second {
				tables = append(tables, m[2])
			}
		}
		n := 1
		if m[1] == "CREATE TABLE" {
			n = 3 // with its TOAST table and that one's index
		}
		if second {
			other, otherLen = append(other, s), otherLen+n
		} else {
			own, ownLen = append(own, s), ownLen+n
		}
	}
	return own, other, tables, true
}

// makeTables makes the tables of an empty PostgreSQL database: half of them in tx, the others at the same time on another connection,
// since PostgreSQL makes the hundreds of files of one transaction one after the other, which is most of a first start. The
// other half is committed first. If the process ends in between, it stands there whole and empty, and the next start takes it.
func (b *pgBackend) makeTables(ctx context.Context, tx *Tx, stmts []step) error {
	own, other, tables, ok := halves(stmts)
	if !ok {
		return tx.script(stmts)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return tx.script(own) })
	g.Go(func() error {
		return run(ctx, b.pool, "begin", 0, func(tx *Tx) error { return makeHalf(tx, other, tables) }, b.commit)
	})
	return g.Wait()
}

// makeHalf makes the tables of the other half unless they all stand there.
func makeHalf(tx *Tx, stmts []step, tables []string) error {
	if _, err := tx.Exec("SET LOCAL idle_in_transaction_session_timeout = 0"); err != nil {
		return err
	}
	var n int
	if _, err := tx.Get([]any{&n}, `SELECT count(*) FROM pg_tables WHERE schemaname = ANY (current_schemas(false)) AND tablename IN @text($1)`, tables); err != nil {
		return err
	}
	if n == len(tables) {
		return nil
	}
	return tx.script(stmts)
}
