package account

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// CodePasswordExpired is the errcode of a right password that has to be changed before it signs in: ChangeExpiredPassword.
const CodePasswordExpired = "ORG.MOOTHALL.PASSWORD_EXPIRED"

// ReasonField is the member of an error that tells why a right password is of no use: password_expired, password_must_change,
// locked_out, not_now.
const ReasonField = "org.moothall.reason"

var (
	errPasswordExpired = mxerr.New(http.StatusForbidden, CodePasswordExpired, "this password has expired: choose another one by signing in on the server's own page")
	errPasswordInitial = mxerr.New(http.StatusForbidden, CodePasswordExpired, "this password has to be changed first: choose another one by signing in on the server's own page")
)

// what a password is checked for, as the audit log names it.
const (
	forSignIn  = "signin"
	forConfirm = "confirm" // by somebody who is signed in
)

// CheckPassword finds the account that a name and a password belong to. Errors: M_FORBIDDEN, the same and after the
// same time for unknown names and wrong passwords; M_LIMIT_EXCEEDED after too many wrong ones; CodePasswordExpired;
// M_USER_DEACTIVATED; 503 when too many passwords wait to be checked. A hash of another cost than the configured one is
// renewed.
func (a *Accounts) CheckPassword(ctx context.Context, name, password string) (User, error) {
	t := attempt{what: forSignIn, name: name, password: password}
	u, err := a.tryPassword(ctx, &t)
	if err == nil {
		err = a.passwordDue(ctx, u, &t)
	}
	return u, err
}

// ConfirmPassword is CheckPassword for a user who is signed in and proves to be there: a password that has expired is good
// for that.
func (a *Accounts) ConfirmPassword(ctx context.Context, user id.UserID, password string) error {
	_, err := a.tryPassword(ctx, &attempt{what: forConfirm, name: string(user), password: password})
	return err
}

// PasswordSignIn is the whole check of a client that signs in with a name and a password: besides the account's password
// those for single apps are looked at, and the Gate is asked. way and amr are for SignIn. Errors: those of CheckPassword and
// of the Gate.
func (a *Accounts) PasswordSignIn(ctx context.Context, name, password string) (u User, way string, amr []string, err error) {
	t := attempt{what: forSignIn, name: name, password: password, apps: true}
	if u, err = a.tryPassword(ctx, &t); err != nil {
		return u, WayPassword, nil, err
	}
	way, amr = WayPassword, []string{"pwd"}
	if t.app {
		way = WayAppPassword
	} else if err := a.passwordDue(ctx, u, &t); err != nil {
		return u, way, nil, err
	}
	if a.Gate != nil {
		if err := a.Gate(ctx, u.ID, way, amr, audit.SourceOf(ctx).IP); err != nil {
			return u, way, nil, a.refuseSignIn(ctx, u.ID, way, err)
		}
	}
	return u, way, amr, nil
}

// ChangeExpiredPassword gives an account another password whose old one is known but may have expired, or has to be changed.
// Errors: those of CheckPassword and of SetPassword.
func (a *Accounts) ChangeExpiredPassword(ctx context.Context, name, password, wanted string) (User, error) {
	u, err := a.tryPassword(ctx, &attempt{what: forSignIn, name: name, password: password})
	if err != nil {
		return User{}, err
	}
	if err := a.ValidatePasswordFor(wanted, u.Localpart); err != nil {
		return User{}, err
	}
	if wanted == password {
		return User{}, errPasswordUsed
	}
	ctx = audit.WithSource(ctx, audit.Source{Actor: u.ID, Kind: audit.KindUser})
	return u, a.SetPassword(ctx, u.ID, wanted, nil)
}

// attempt is one password that is tried.
type attempt struct {
	what           string
	name, password string
	apps           bool // passwords for single apps count too

	app       bool // it was one of these
	directory bool // the company's directory knows it
	facts     store.PasswordFacts
}

// tryPassword checks a password, counts a wrong one, and tells of it in the audit log.
func (a *Accounts) tryPassword(ctx context.Context, t *attempt) (User, error) {
	begun := time.Now()
	u, found, err := a.resolve(ctx, t.name)
	if err != nil {
		return User{}, err
	}
	ip := audit.SourceOf(ctx).IP
	keys, err := a.failureKeys(ctx, u, found, t.name, ip)
	if err != nil {
		return User{}, err
	}
	// One attempt at a time for an account: many at once would all be looked at before the first wrong one counts.
	done, err := a.tries.begin(ctx, keys.account)
	if err != nil {
		return User{}, err
	}
	defer done()
	failures, err := a.failures(ctx, keys, t, u.ID)
	if err != nil {
		return User{}, err
	}
	if wait := failures.wait(a.now()); wait > 0 {
		return User{}, a.refusePassword(ctx, t, u, found, mxerr.LimitExceeded(wait))
	}
	stale, err := a.prove(ctx, t, &u, found)
	refused := mxerr.As(err)
	switch {
	case refused == nil && err != nil:
		return User{}, err
	case refused != nil && refused.Code == "M_FORBIDDEN":
		if err := a.countFailure(ctx, keys, u.ID); err != nil {
			return User{}, err
		}
		err := a.refusePassword(ctx, t, u, found, refused)
		a.roundUp(ctx, begun)
		return User{}, err
	case refused != nil && refused.Status < 500:
		return User{}, a.refusePassword(ctx, t, u, found, refused)
	case err != nil:
		return User{}, err
	}
	if failures.account.Count > 0 {
		if err := a.Store.Write(ctx, func(tx *store.Tx) error { return tx.ForgetSignInFailures([]string{keys.account}) }); err != nil {
			return User{}, err
		}
	}
	if stale {
		if err := a.rehash(ctx, &u, t.password); err != nil {
			a.Logger.Warn("a password's hash could not be renewed", "user_id", u.ID, "error", err)
		}
	}
	return u, nil
}

// prove finds out whether the password is the account's: one for a single app, that of the company's directory, which may
// bring the account with it, or that which is kept here. stale: its hash is to be made anew. The error of a wrong one is
// M_FORBIDDEN.
func (a *Accounts) prove(ctx context.Context, t *attempt, u *User, found bool) (stale bool, err error) {
	if found && !u.Deactivated && t.apps && a.AppPassword != nil {
		// Before the directory, which counts wrong passwords itself.
		if t.app, err = a.AppPassword(ctx, u.ID, t.password); err != nil || t.app {
			return false, err
		}
	}
	user, handled, err := a.checkDirectory(ctx, t.name, *u, found, t.password)
	if err != nil {
		return false, err
	}
	if handled {
		*u, t.directory = user, true
		return false, nil
	}
	ok, stale, err := a.hashes.check(ctx, u.Password, t.password)
	switch {
	case err != nil && mxerr.As(err) == nil:
		return false, fmt.Errorf("check the password of %s: %w", u.ID, err)
	case err != nil:
		return false, err
	case found && u.Deactivated:
		return false, errDeactivated
	case !ok || !found:
		return false, errBadLogin
	}
	return stale, nil
}

// checkDirectory asks the company's directories; handled false means that they have no say.
func (a *Accounts) checkDirectory(ctx context.Context, name string, u User, found bool, password string) (User, bool, error) {
	if a.Directory == nil {
		return User{}, false, nil
	}
	var known *User
	if found {
		known = &u
	}
	user, handled, err := a.Directory(ctx, name, known, password)
	if err != nil || !handled {
		return User{}, handled, err
	}
	out, err := a.User(ctx, user)
	if err == nil && out.Deactivated {
		err = errDeactivated
	}
	return out, true, err
}

// PasswordChangeable is nil if a user's password can be changed here, else M_FORBIDDEN with what to do instead.
func (a *Accounts) PasswordChangeable(ctx context.Context, user id.UserID) error {
	if a.PasswordElsewhere == nil {
		return nil
	}
	elsewhere, err := a.PasswordElsewhere(ctx, user)
	if err == nil && elsewhere {
		err = mxerr.Forbidden("your password is kept by the company's directory: change it where you sign in to the company's network")
	}
	return err
}

// roundUp waits until a refusal has taken a multiple of the configured step: hashes of different kinds, and none at all, take
// different times.
func (a *Accounts) roundUp(ctx context.Context, begun time.Time) {
	step := a.Config.Passwords.RefusalTime
	if step <= 0 {
		return
	}
	wait := time.NewTimer(step - time.Since(begun)%step)
	defer wait.Stop()
	select {
	case <-wait.C:
	case <-ctx.Done():
	}
}

// refusePassword notes in the audit log that a password was not taken. What was typed as a name is not noted: it may be a
// password.
func (a *Accounts) refusePassword(ctx context.Context, t *attempt, u User, found bool, refused *mxerr.Error) error {
	e := audit.Entry{Action: t.what + ".refused", Reason: refused.Code, Details: map[string]any{"way": WayPassword}}
	if found {
		e.Target = string(u.ID)
	} else {
		e.Details["unknown_user"] = true
	}
	if err := a.Audit.Refusal(ctx, e); err != nil {
		return fmt.Errorf("note a refused password: %w", err)
	}
	return refused
}

// passwordDue refuses a right password that has to be changed first.
func (a *Accounts) passwordDue(ctx context.Context, u User, t *attempt) error {
	maxAge, f := a.Config.Passwords.MaxAge, t.facts
	switch {
	case t.directory:
		return nil
	case f.MustChange:
		return a.refuseSignIn(ctx, u.ID, WayPassword, errPasswordInitial)
	case maxAge > 0 && f.Set == 0:
		// It was set before this was noted: its time begins now.
		return a.Store.Write(ctx, func(tx *store.Tx) error {
			return tx.SetPasswordFacts(u.ID, store.PasswordFacts{Set: a.now()})
		})
	case maxAge > 0 && a.now() >= f.Set+maxAge.Milliseconds():
		return a.refuseSignIn(ctx, u.ID, WayPassword, errPasswordExpired)
	}
	return nil
}

func (a *Accounts) rehash(ctx context.Context, u *User, password string) error {
	h, err := a.hashPassword(ctx, password)
	if err != nil {
		return err
	}
	old := u.Password
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		now, found, err := tx.LockUser(u.ID)
		if err != nil || !found || !bytes.Equal(now.Password, old) {
			return err // it was changed meanwhile
		}
		_, err = tx.SetUserPassword(u.ID, h)
		return err
	})
	if err == nil {
		u.Password = h
	}
	return err
}
