package homeserver

import (
	"context"
	"errors"
	"log/slog"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/ldapsync"
)

// WithDirectory opens the database for a command about the company's directories, which runs beside the server: it reads,
// and leaves requests to the server.
func WithDirectory(ctx context.Context, cfg Config, log *slog.Logger, fn func(ctx context.Context, s *ldapsync.Sync) error) error {
	cfg.complete()
	if len(cfg.Directories) == 0 {
		return errors.New("the configuration has no directories")
	}
	configs, err := cfg.DirectoryConfigs()
	if err != nil {
		return err
	}
	return withStore(ctx, &cfg, log, func(ctx context.Context, st *store.Store) error {
		s, err := directoryBeside(ctx, &cfg, st, log, configs)
		if err != nil {
			return err
		}
		return fn(ctx, s)
	})
}

func directoryBeside(ctx context.Context, cfg *Config, st *store.Store, log *slog.Logger, configs []ldapsync.Config) (*ldapsync.Sync, error) {
	key, err := loadIdentity(ctx, st, cfg.ServerName)
	if err != nil {
		return nil, err
	}
	accounts := account.New(account.Deps{Store: st, ServerName: cfg.ServerName, Logger: log, Config: cfg.AccountConfig()})
	profiles := account.NewProfiles(account.ProfilesDeps{Store: st, ServerName: cfg.ServerName, Logger: log})
	rooms := room.New(room.Deps{Store: st, ServerName: cfg.ServerName, Key: key, Logger: log, Features: pushFeatures})
	g, err := groups.New(groups.Deps{Store: st, Rooms: rooms, Accounts: accounts, ServerName: cfg.ServerName, Config: cfg.GroupsConfig(), Logger: log})
	if err != nil {
		return nil, groupsFault(err)
	}
	return ldapsync.New(ldapsync.Deps{
		Store: st, Accounts: accounts, Groups: g, Audit: accounts.Audit, Logger: log,
		People: people.New(people.Deps{Store: st, Accounts: accounts, Profiles: profiles, Logger: log}),
	}, configs)
}
