package homeserver

import (
	"context"
	"errors"
	"log/slog"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// withStore opens the database for a command that runs beside the server or without it: a running server learns by the log
// what the command changed. cfg is completed.
func withStore(ctx context.Context, cfg *Config, log *slog.Logger, fn func(context.Context, *store.Store) error) error {
	cfg.complete()
	if err := checkDataDir(cfg.DataDir); err != nil {
		return err
	}
	st, err := store.Open(ctx, cfg.StoreConfig(), log)
	if err != nil {
		return err
	}
	return errors.Join(fn(fromCommandLine(ctx), st), st.Close())
}

// opened is what a command works with that is on record.
type opened struct {
	store *store.Store
	key   event.SigningKey
	audit *audit.Log
}

// withAuditLog is withStore with the audit log.
func withAuditLog(ctx context.Context, cfg *Config, log *slog.Logger, fn func(context.Context, opened) error) error {
	return withStore(ctx, cfg, log, func(ctx context.Context, st *store.Store) error {
		key, err := loadIdentity(ctx, st, cfg.ServerName)
		if err != nil {
			return err
		}
		return fn(ctx, opened{st, key, newAuditLog(cfg, st, key, log)})
	})
}
