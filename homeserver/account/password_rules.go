package account

import (
	"context"
	"fmt"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account/guess"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// maxJudged is how many characters of a password its strength is judged by: judging long ones takes long.
const maxJudged = 48

// ValidatePassword tells what is wrong with a password that a user wants to have, as M_WEAK_PASSWORD or M_INVALID_PARAM.
// Spec: client-server API, "Password management".
func (a *Accounts) ValidatePassword(password string) error { return a.ValidatePasswordFor(password) }

// ValidatePasswordFor is ValidatePassword where it is known what others would try first: the user's names.
func (a *Accounts) ValidatePasswordFor(password string, names ...string) error {
	if err := passwordStorable(password); err != nil {
		return err
	}
	c := &a.Config.Passwords
	if utf8.RuneCountInString(password) < c.MinLength {
		return weakPassword(fmt.Sprintf("the password must have at least %d characters", c.MinLength))
	}
	if c.MinStrength <= 0 {
		return nil
	}
	judged := password
	if runes := []rune(password); len(runes) > maxJudged {
		judged = string(runes[:maxJudged])
	}
	if guess.Score(judged, append(names, a.ServerName)) < c.MinStrength {
		return weakPassword("this password is too easy to guess: use a longer one, or several words that do not belong together")
	}
	return nil
}

func weakPassword(why string) *mxerr.Error { return mxerr.New(400, "M_WEAK_PASSWORD", why) }

var errPasswordUsed = weakPassword("this password was used before: choose another one")

// SetPassword gives an account a new password. ending says which of its sessions end with it; nil: none. Errors:
// M_WEAK_PASSWORD for one of its last passwords.
func (a *Accounts) SetPassword(ctx context.Context, user id.UserID, password string, ending *Ending) error {
	return a.setPassword(ctx, user, password, ending, false)
}

// SetInitialPassword is SetPassword for a password that the user has to change before it signs in.
func (a *Accounts) SetInitialPassword(ctx context.Context, user id.UserID, password string, ending *Ending) error {
	return a.setPassword(ctx, user, password, ending, true)
}

func (a *Accounts) setPassword(ctx context.Context, user id.UserID, password string, ending *Ending, mustChange bool) error {
	if err := a.PasswordChangeable(ctx, user); err != nil {
		return err
	}
	if err := a.checkHistory(ctx, user, password); err != nil {
		return err
	}
	h, err := a.hashPassword(ctx, password)
	if err != nil {
		return err
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(user)
		switch {
		case err != nil:
			return err
		case !found:
			return errNoUser
		case u.Deactivated:
			return errDeactivated
		}
		if keep := a.Config.Passwords.History - 1; keep > 0 && u.Password != nil {
			if err := tx.AddPasswordHistory(user, u.Password, a.now(), keep); err != nil {
				return err
			}
		}
		if _, err := tx.SetUserPassword(user, h); err != nil {
			return err
		}
		if err := tx.SetPasswordFacts(user, store.PasswordFacts{Set: a.now(), MustChange: mustChange}); err != nil {
			return err
		}
		if err := tx.ForgetSignInFailures([]string{failureKey("account", string(user))}); err != nil {
			return err
		}
		if err := tx.DeleteLoginTokens(user); err != nil {
			return err
		}
		// A browser that needs no second factor was remembered for whoever knew the old password.
		forgotten, err := tx.DeleteRememberedDevice(user, "")
		if err != nil {
			return err
		}
		details := map[string]any{"had_one": u.Password != nil, "must_change": mustChange, "browsers_forgotten": forgotten}
		if err := audit.Append(ctx, tx, audit.Entry{Action: "user.password", Target: string(user), Details: details}); err != nil {
			return err
		}
		if ending != nil {
			ends := *ending
			if ends.Reason == "" {
				ends.Reason = "password_changed"
			}
			if err := a.endSessions(ctx, tx, user, ends); err != nil {
				return err
			}
		}
		return announceUser(tx, user)
	})
}

// checkHistory refuses one of an account's last passwords.
func (a *Accounts) checkHistory(ctx context.Context, user id.UserID, password string) error {
	n := a.Config.Passwords.History
	if n <= 0 {
		return nil
	}
	var hashes []store.Content
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		u, found, err := tx.User(user)
		if err != nil || !found {
			return err
		}
		hashes, err = tx.PasswordHistory(user, n-1)
		if u.Password != nil {
			hashes = append(hashes, u.Password)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, h := range hashes {
		same, _, err := a.hashes.check(ctx, h, password)
		if err != nil {
			return err
		}
		if same {
			return errPasswordUsed
		}
	}
	return nil
}
