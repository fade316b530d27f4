package homeserver

import (
	"context"
	"errors"
	"log/slog"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
)

// withAccounts opens the database for a command that runs beside the server or without it, which learns of the change by
// the log.
func withAccounts(ctx context.Context, cfg Config, log *slog.Logger, fn func(context.Context, *account.Accounts) error) error {
	return withAuditLog(ctx, &cfg, log, func(ctx context.Context, o opened) error {
		a := account.New(account.Deps{Store: o.store, ServerName: cfg.ServerName, Logger: log, Config: cfg.AccountConfig(), Audit: o.audit})
		return errors.Join(fn(ctx, a), o.audit.Chain(ctx))
	})
}

// CreateUser makes an account from the command line and returns its Matrix id.
func CreateUser(ctx context.Context, cfg Config, log *slog.Logger, name, password string, admin bool) (id.UserID, error) {
	return createUser(ctx, cfg, log, name, password, admin, false)
}

// CreateInitialUser is CreateUser with a password that the user has to change before the first sign-in.
func CreateInitialUser(ctx context.Context, cfg Config, log *slog.Logger, name, password string, admin bool) (id.UserID, error) {
	return createUser(ctx, cfg, log, name, password, admin, true)
}

func createUser(ctx context.Context, cfg Config, log *slog.Logger, name, password string, admin, mustChange bool) (id.UserID, error) {
	var user account.User
	err := withAccounts(ctx, cfg, log, func(ctx context.Context, a *account.Accounts) error {
		if err := a.ValidatePasswordFor(password, name); err != nil {
			return err
		}
		var err error
		user, err = a.CreateUser(ctx, account.NewUser{Localpart: name, Password: password, Admin: admin, MustChangePassword: mustChange})
		return err
	})
	return user.ID, err
}

// SetPassword gives an account a new password and ends all its sessions; devices and their keys stay.
func SetPassword(ctx context.Context, cfg Config, log *slog.Logger, name, password string) (id.UserID, error) {
	return setPassword(ctx, cfg, log, name, password, false)
}

// SignOut ends all sessions of an account from the command line, those of browsers on the server's own pages too; devices and
// their keys stay.
func SignOut(ctx context.Context, cfg Config, log *slog.Logger, name string) (id.UserID, error) {
	var user id.UserID
	err := withAccounts(ctx, cfg, log, func(ctx context.Context, a *account.Accounts) error {
		local, err := a.Localpart(name)
		if err != nil {
			return err
		}
		user = a.UserID(local)
		if _, err := a.User(ctx, user); err != nil {
			return err
		}
		return a.EndSessions(ctx, user, account.Ending{Soft: true, Reason: "administrator"})
	})
	return user, err
}

// SetInitialPassword is SetPassword with a password that the user has to change at the next sign-in.
func SetInitialPassword(ctx context.Context, cfg Config, log *slog.Logger, name, password string) (id.UserID, error) {
	return setPassword(ctx, cfg, log, name, password, true)
}

func setPassword(ctx context.Context, cfg Config, log *slog.Logger, name, password string, mustChange bool) (id.UserID, error) {
	var user id.UserID
	err := withAccounts(ctx, cfg, log, func(ctx context.Context, a *account.Accounts) error {
		local, err := a.Localpart(name)
		if err != nil {
			return err
		}
		if err := a.ValidatePasswordFor(password, local); err != nil {
			return err
		}
		user = a.UserID(local)
		if mustChange {
			return a.SetInitialPassword(ctx, user, password, &account.Ending{Soft: true})
		}
		return a.SetPassword(ctx, user, password, &account.Ending{Soft: true})
	})
	return user, err
}
