package factor

import (
	"context"
	"net/netip"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	appPasswordLength = 20 // letters, 100 bits
	wayAppPassword    = "app_password"
)

var errNoApps = mxerr.Forbidden("your organisation does not allow app passwords for this account")

func appHash(user id.UserID, password string) store.TokenHash {
	return store.HashToken("app " + string(user) + " " + password)
}

// AppPasswordsAllowed tells whether the policies let a user have passwords for single apps.
func (f *Factors) AppPasswordsAllowed(ctx context.Context, user id.UserID, ip netip.Addr) (bool, error) {
	r, err := f.rule(ctx, user, Passed{Way: wayAppPassword, IP: ip})
	if err != nil {
		return false, err
	}
	return r.AppPasswords, nil
}

// NewAppPassword makes a password for one app. It is shown once: only its hash is kept. Errors: M_FORBIDDEN where no policy
// allows it.
func (f *Factors) NewAppPassword(ctx context.Context, user id.UserID, name string, ip netip.Addr) (string, error) {
	name, err := cleanName(name)
	if err != nil {
		return "", err
	}
	allowed, err := f.AppPasswordsAllowed(ctx, user, ip)
	if err != nil {
		return "", err
	}
	if !allowed {
		return "", errNoApps
	}
	password := letters(appPasswordLength)
	p := store.AppPassword{ID: newID(), User: user, Name: name, Hash: appHash(user, password)}
	err = f.Store.Write(ctx, func(tx *store.Tx) error {
		p.Created = f.now()
		if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
			return err
		}
		there, err := tx.AppPasswords(user)
		if err != nil {
			return err
		}
		if len(there) >= maxApps {
			return errTooMany
		}
		if err := tx.InsertAppPassword(p); err != nil {
			return err
		}
		return f.audit(ctx, tx, user, "factor.app_password.made", audit.OK, "", map[string]any{"app_password": p.ID, "name": name})
	})
	if err != nil {
		return "", err
	}
	return password[:4] + "-" + password[4:8] + "-" + password[8:12] + "-" + password[12:16] + "-" + password[16:], nil
}

// AppPasswords lists a user's app passwords.
func (f *Factors) AppPasswords(ctx context.Context, user id.UserID) ([]store.AppPassword, error) {
	var out []store.AppPassword
	err := f.Store.Read(ctx, func(tx *store.Tx) (err error) {
		out, err = tx.AppPasswords(user)
		return err
	})
	return out, err
}

// RevokeAppPassword removes an app password.
func (f *Factors) RevokeAppPassword(ctx context.Context, user id.UserID, passwordID string) error {
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		removed, err := tx.DeleteAppPassword(user, passwordID)
		if err != nil {
			return err
		}
		if !removed {
			return mxerr.NotFound("there is no such app password")
		}
		return f.audit(ctx, tx, user, "factor.app_password.revoked", audit.OK, "", map[string]any{"app_password": passwordID})
	})
}

// AppPassword tells whether a password is one that the user made for an app and that the policies (still) allow. It is for
// m.login.password only: it proves nothing else, in particular not that its owner is there.
func (f *Factors) AppPassword(ctx context.Context, user id.UserID, password string, ip netip.Addr) (bool, error) {
	if password = plain(password); len(password) != appPasswordLength {
		return false, nil // which spares the database what cannot be one
	}
	var p store.AppPassword
	var found bool
	err := f.Store.Read(ctx, func(tx *store.Tx) (err error) {
		p, found, err = tx.AppPassword(user, appHash(user, password))
		return err
	})
	if err != nil || !found {
		return false, err
	}
	allowed, err := f.AppPasswordsAllowed(ctx, user, ip)
	if err != nil {
		return false, err
	}
	if !allowed {
		return false, f.recordRefusal(ctx, user, "factor.app_password.used", errNoApps.Message)
	}
	now := f.now()
	return true, f.Store.Write(ctx, func(tx *store.Tx) error { return tx.TouchAppPassword(p.ID, now) })
}
