package store

import (
	"context"
	"log/slog"
)

// MakeInOrder brings an empty PostgreSQL database to the program's schema by one migration after the other.
func MakeInOrder(ctx context.Context, cfg Config) error {
	return withMigrations(ctx, cfg, func(b *pgBackend, stmts []step) error {
		return b.exclusive(ctx, func(tx *Tx) error {
			if _, err := tx.Exec(dialectSQL(dialectPostgres, createMigrations)); err != nil {
				return err
			}
			return tx.script(stmts)
		})
	})
}

// MakeOtherHalf leaves a database as a process does that ends between the commits of the two halves.
func MakeOtherHalf(ctx context.Context, cfg Config) error {
	return withMigrations(ctx, cfg, func(b *pgBackend, stmts []step) error {
		_, other, tables, _ := halves(stmts)
		return run(ctx, b.pool, "begin", 0, func(tx *Tx) error { return makeHalf(tx, other, tables) }, b.commit)
	})
}

func withMigrations(ctx context.Context, cfg Config, fn func(*pgBackend, []step) error) error {
	all, err := Migrations()
	if err != nil {
		return err
	}
	b, err := openPostgres(ctx, cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer func() { _ = b.close() }()
	return fn(b, steps(dialectPostgres, all, nil))
}

// Halved tells how many statements the two halves of a new database's schema have.
func Halved() (own, other int, ok bool) {
	all, err := Migrations()
	if err != nil {
		return 0, 0, false
	}
	a, b, _, ok := halves(steps(dialectPostgres, all, nil))
	return len(a), len(b), ok
}
