package homeserver

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/moothall/moothall/appservices/hr"
	"github.com/moothall/moothall/homeserver/store"
)

// newHR makes the bridge to the HR system.
func (s *Server) newHR() (*hr.HR, error) {
	return hr.New(hr.Deps{
		Store: s.store, Rooms: s.rooms, Accounts: s.accounts, Data: s.data, People: s.people, Groups: s.groups, Audit: s.audit,
		ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Config: s.cfg.HRConfig(), Logger: s.log,
	})
}

// HRTokenInfo is a token of an HR system, without its secret.
type HRTokenInfo struct {
	ID, Name      string
	Created, Used time.Time // Used is zero while it was not used
}

// CreateHRToken makes a token for an HR system from the command line. Its secret is shown this once.
func CreateHRToken(ctx context.Context, cfg Config, log *slog.Logger, name string) (tokenID, secret string, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		tokenID, secret, err = hr.CreateToken(ctx, s, name, time.Now().UnixMilli())
		return err
	})
	return tokenID, secret, err
}

// HRTokens lists the tokens that were made from the command line.
func HRTokens(ctx context.Context, cfg Config, log *slog.Logger) ([]HRTokenInfo, error) {
	var out []HRTokenInfo
	err := withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		return s.Read(ctx, func(tx *store.Tx) error {
			list, err := tx.HRTokens()
			for _, t := range list {
				info := HRTokenInfo{ID: t.ID, Name: t.Name, Created: time.UnixMilli(t.Created)}
				if t.Used != 0 {
					info.Used = time.UnixMilli(t.Used)
				}
				out = append(out, info)
			}
			return err
		})
	})
	return out, err
}

// RevokeHRToken ends a token.
func RevokeHRToken(ctx context.Context, cfg Config, log *slog.Logger, tokenID string) error {
	return withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		found, err := hr.RevokeToken(ctx, s, tokenID)
		if err == nil && !found {
			err = errors.New("there is no token of this id; moothall hr token list shows them")
		}
		return err
	})
}
