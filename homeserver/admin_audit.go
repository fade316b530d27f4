package homeserver

import (
	"context"
	"fmt"
	"log/slog"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
)

// SetRole gives an account a role on the server or takes it away, from the command line.
func SetRole(ctx context.Context, cfg Config, log *slog.Logger, name, role string, on bool) (id.UserID, []account.Role, error) {
	var user id.UserID
	var roles []account.Role
	err := withAccounts(ctx, cfg, log, func(ctx context.Context, a *account.Accounts) error {
		local, err := a.Localpart(name)
		if err != nil {
			return err
		}
		user = a.UserID(local)
		if role != "" {
			if err := a.SetRole(ctx, user, account.Role(role), on); err != nil {
				return err
			}
		} else if _, err := a.User(ctx, user); err != nil {
			return err
		}
		roles, err = a.Roles(ctx, user)
		return err
	})
	return user, roles, err
}

// WithAudit opens the audit log for a command that runs beside the server or without it. Looking at the log is noted in it.
func WithAudit(ctx context.Context, cfg Config, log *slog.Logger, what string, fn func(context.Context, *audit.Log) error) error {
	return withAuditLog(ctx, &cfg, log, func(ctx context.Context, o opened) error {
		if err := o.audit.Record(ctx, audit.Entry{Action: "audit.read", Details: map[string]any{"what": what}}); err != nil {
			return fmt.Errorf("the audit log cannot be written, so it is not shown: %w", err)
		}
		return fn(ctx, o.audit)
	})
}

// recordCommand notes what a command did with the whole server.
func recordCommand(ctx context.Context, cfg *Config, st *store.Store, log *slog.Logger, e audit.Entry) error {
	key, err := loadIdentity(ctx, st, cfg.ServerName)
	if err != nil {
		return err
	}
	l := newAuditLog(cfg, st, key, log)
	if err := l.Record(fromCommandLine(ctx), e); err != nil {
		return err
	}
	return l.Chain(ctx)
}
