package store_test

import (
	"context"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// catalog lists what a database's tables, columns and indexes are, and what the migrations put into them.
const catalog = `SELECT 'column ' || c.relname || ' ' || a.attnum || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull || ' ' ||
		a.attcollation::regcollation || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
	LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum WHERE a.attnum > 0
	UNION ALL SELECT 'index ' || indexdef FROM pg_indexes WHERE schemaname = 'public'
	UNION ALL SELECT 'constraint ' || conrelid::regclass || ' ' || pg_get_constraintdef(oid) FROM pg_constraint WHERE connamespace = 'public'::regnamespace
	UNION ALL SELECT 'migration ' || number || ' ' || name FROM schema_migrations
	UNION ALL SELECT 'head ' || id || ' ' || pos || ' ' || event_nid FROM log_head
	UNION ALL SELECT 'epoch ' || epoch || ' ' || first_pos || ' ' || created FROM log_epochs
	UNION ALL SELECT 'oa ' || id || ' ' || n FROM oa_counter`

// TestNewDatabase makes the tables of an empty PostgreSQL in two halves at the same time, also where one of them stands there since a
// process ended in the middle, and compares with one migration after the other.
func TestNewDatabase(t *testing.T) {
	own, other, ok := store.Halved()
	if !ok || own > 2*other || other > 2*own {
		t.Fatalf("halves of %d and %d statements, %v: no migration can be told apart by its tables any more", own, other, ok)
	}
	ctx := context.Background()
	describe := func(url string) []string {
		c, err := pgx.Connect(ctx, url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close(ctx) }()
		rows, err := c.Query(ctx, catalog)
		if err != nil {
			t.Fatal(err)
		}
		out, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(out)
		return out
	}
	inOrder := storetest.EmptyPostgres(t)
	if err := store.MakeInOrder(ctx, store.Config{URL: inOrder}); err != nil {
		t.Fatal(err)
	}
	want := describe(inOrder)
	if len(want) < 500 {
		t.Fatalf("only %d lines describe the schema", len(want))
	}
	for _, name := range []string{"at once", "after an end in the middle"} {
		url := storetest.EmptyPostgres(t)
		if name != "at once" {
			if err := store.MakeOtherHalf(ctx, store.Config{URL: url}); err != nil {
				t.Fatal(err)
			}
		}
		storetest.Open(t, store.Config{URL: url})
		got := describe(url)
		for _, line := range got {
			if !slices.Contains(want, line) {
				t.Errorf("%s: not in the order's schema: %s", name, line)
			}
		}
		for _, line := range want {
			if !slices.Contains(got, line) {
				t.Errorf("%s: missing: %s", name, line)
			}
		}
	}
}
