package account

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// User is an account of this server.
type User = store.User

// forgetChunk is how many rows of one kind are deleted in one transaction.
const forgetChunk = 500

// maxUserID is the most bytes a Matrix user id may have, sigil and server name included.
const maxUserID = 255

// NewUser describes an account to be made.
type NewUser struct {
	// Localpart is taken as it is given; see Localpart for what people type.
	Localpart string
	// Password may be empty: the account then has none of ours.
	Password string
	// PasswordHash is used in place of Password: argon2id in PHC form or bcrypt, from another server.
	PasswordHash string
	// MustChangePassword makes the user choose another password before the first sign-in.
	MustChangePassword bool
	DisplayName        string
	// Fields are further profile fields, all of them text; see Profiles.SetAll.
	Fields     map[string]string
	Type       string // user_type of the admin API, "" for people
	AppService string
	Admin      bool
	Guest      bool
	// Approval is the completed user-interactive authentication that pays for the account; nil where an
	// administrator makes it.
	Approval *UIA
	// Unreserved allows names that application services claim: their own users.
	Unreserved bool
	// With is called in the transaction that makes the account, for what is to come with it; it announces nothing.
	With func(tx *store.Tx, user id.UserID) error
}

// Localpart brings a wished name into the form of a localpart: lower case, without sigil and server name if they are ours.
// Errors are M_INVALID_USERNAME. Spec: appendices, "User Identifiers".
func (a *Accounts) Localpart(name string) (string, error) {
	if rest, full := strings.CutPrefix(name, "@"); full {
		local, ours := strings.CutSuffix(rest, ":"+a.ServerName)
		if !ours {
			return "", invalidUsername("this server's users end with :" + a.ServerName)
		}
		name = local
	}
	local := lower(name)
	if local == "" {
		return "", invalidUsername("the username is empty")
	}
	for _, c := range []byte(local) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.IndexByte("._=-/+", c) >= 0:
		default:
			return "", invalidUsername("a username may have the letters a to z, digits and . _ = - / + only")
		}
	}
	if len(a.UserID(local)) > maxUserID {
		return "", invalidUsername(fmt.Sprintf("the user id would have more than %d bytes", maxUserID))
	}
	return local, nil
}

// lower is strings.ToLower for ASCII alone: other letters do not become those of a localpart (U+0130, U+212A).
func lower(s string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}, s)
}

func invalidUsername(msg string) error {
	return mxerr.New(http.StatusBadRequest, "M_INVALID_USERNAME", msg)
}

func userInUse() error {
	return mxerr.New(http.StatusBadRequest, "M_USER_IN_USE", "this username is taken")
}

// Available tells whether a localpart can be registered: nil, M_EXCLUSIVE or M_USER_IN_USE.
func (a *Accounts) Available(ctx context.Context, localpart string) error {
	user := a.UserID(localpart)
	if a.Exclusive != nil && a.Exclusive(user) {
		return mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this username is reserved by an application service")
	}
	taken, err := a.Exists(ctx, user)
	if err == nil && taken {
		return userInUse()
	}
	return err
}

// CreateUser makes an account. Errors: M_INVALID_USERNAME, M_USER_IN_USE, M_EXCLUSIVE, ErrApprovalSpent; where the
// approval names an e-mail address, M_THREEPID_AUTH_FAILED and M_THREEPID_IN_USE.
func (a *Accounts) CreateUser(ctx context.Context, n NewUser) (User, error) {
	local, err := a.Localpart(n.Localpart)
	if err != nil {
		return User{}, err
	}
	u := User{ID: a.UserID(local), Localpart: local, Created: a.now(), Type: n.Type, AppService: n.AppService, Admin: n.Admin, Guest: n.Guest}
	if !n.Unreserved && a.Exclusive != nil && a.Exclusive(u.ID) {
		return User{}, mxerr.New(http.StatusBadRequest, "M_EXCLUSIVE", "this username is reserved by an application service")
	}
	profile := Profile{DisplayName: n.DisplayName}
	if err := checkFieldText(fieldDisplayName, n.DisplayName); err != nil {
		return User{}, err
	}
	for name, text := range n.Fields {
		if err := CheckFieldName(name); err != nil {
			return User{}, err
		}
		profile.setField(name, quote(text))
	}
	switch {
	case n.PasswordHash != "":
		if !storableHash(n.PasswordHash) {
			return User{}, mxerr.InvalidParam("the password hash must be argon2id in PHC form or bcrypt")
		}
		u.Password = store.Content(n.PasswordHash)
	case n.Password != "":
		if u.Password, err = a.hashPassword(ctx, n.Password); err != nil {
			return User{}, err
		}
	}
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		if n.Approval != nil {
			if err := a.spend(tx, n.Approval); err != nil {
				return err
			}
		}
		inserted, err := tx.InsertUser(u)
		if err != nil {
			return err
		}
		if !inserted {
			return userInUse()
		}
		if u.Password != nil {
			if err := tx.SetPasswordFacts(u.ID, store.PasswordFacts{Set: u.Created, MustChange: n.MustChangePassword}); err != nil {
				return err
			}
		}
		if n.With != nil {
			if err := n.With(tx, u.ID); err != nil {
				return err
			}
		}
		if n.Approval != nil && n.Approval.EmailSID != "" {
			if err := a.attachEmail(ctx, tx, u.ID, n.Approval.EmailSID, store.EmailForRegistration); err != nil {
				return err
			}
		}
		if n.DisplayName != "" || len(n.Fields) > 0 {
			p, err := profile.stored(u.ID)
			if err != nil {
				return err
			}
			if err := tx.SetProfile(p); err != nil {
				return err
			}
		}
		if err := auditCreation(ctx, tx, &u, n.Approval != nil); err != nil {
			return err
		}
		return announceUser(tx, u.ID)
	})
	if err != nil {
		return User{}, err
	}
	a.Logger.Info("account made", "user_id", u.ID, "admin", u.Admin)
	return u, nil
}

// auditCreation writes that an account was made. Who registers is the account itself.
func auditCreation(ctx context.Context, tx *store.Tx, u *User, registered bool) error {
	e := audit.Entry{Action: "user.created", Target: string(u.ID), Details: map[string]any{"admin": u.Admin, "registered": registered, "password": u.Password != nil}}
	if registered {
		e.Actor = u.ID
	}
	if u.Type != "" {
		e.Details["type"] = u.Type
	}
	if u.AppService != "" {
		e.Details["appservice"] = u.AppService
	}
	return audit.Append(ctx, tx, e)
}

func announceUser(tx *store.Tx, user id.UserID) error {
	_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: string(user)})
	return err
}

func (a *Accounts) hashPassword(ctx context.Context, password string) (store.Content, error) {
	if err := passwordStorable(password); err != nil {
		return nil, err
	}
	h, err := a.hashes.hash(ctx, password)
	return store.Content(h), err
}

// User reads an account; an unknown one is 404 M_NOT_FOUND.
func (a *Accounts) User(ctx context.Context, user id.UserID) (User, error) {
	var u User
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		if u, found, err = tx.User(user); err == nil && !found {
			return errNoUser
		}
		return err
	})
	return u, err
}

// Usable is User for who wants to act as the account: 403 M_USER_DEACTIVATED or M_USER_LOCKED where nobody may.
func (a *Accounts) Usable(ctx context.Context, user id.UserID) (User, error) {
	u, err := a.User(ctx, user)
	switch {
	case err != nil:
		return User{}, err
	case u.Deactivated:
		return User{}, mxerr.New(http.StatusForbidden, "M_USER_DEACTIVATED", "this account was deactivated")
	case u.Locked, u.Disabled != 0:
		return User{}, mxerr.New(http.StatusForbidden, "M_USER_LOCKED", "this account is locked")
	}
	return u, nil
}

var errNoUser = mxerr.NotFound("there is no such user on this server")

// Exists tells whether there is an account of this id, be it deactivated.
func (a *Accounts) Exists(ctx context.Context, user id.UserID) (bool, error) {
	var found bool
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		found, err = tx.UserExists(user)
		return err
	})
	return found, err
}

// LocalUsers counts the accounts of people that can be used.
func (a *Accounts) LocalUsers(ctx context.Context) (int64, error) {
	var n int64
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		n, err = tx.CountUsers()
		return err
	})
	return n, err
}

// resolve finds the account that somebody names at sign-in: a localpart or a full user id, in any case. An account that
// has exactly this name (from a time when capitals were allowed) goes first. found is false for names of nobody.
func (a *Accounts) resolve(ctx context.Context, name string) (u User, found bool, err error) {
	local, full := strings.CutPrefix(name, "@")
	if full {
		var ours bool
		if local, ours = strings.CutSuffix(local, ":"+a.ServerName); !ours {
			return User{}, false, nil
		}
	}
	if len(local) > maxUserID || strings.ContainsRune(local, 0) {
		return User{}, false, nil
	}
	err = a.Store.Read(ctx, func(tx *store.Tx) error {
		if u, found, err = tx.User(a.UserID(local)); err != nil || found {
			return err
		}
		u, found, err = tx.User(a.UserID(lower(local)))
		return err
	})
	return u, found, err
}

var (
	errBadLogin    = mxerr.Forbidden("the username or password is wrong")
	errDeactivated = mxerr.New(http.StatusForbidden, "M_USER_DEACTIVATED", "this account was deactivated")
	errLocked      = mxerr.New(http.StatusUnauthorized, "M_USER_LOCKED", "this account is locked").With("soft_logout", true)
)

// SetAdmin makes a user a server administrator, or no longer one.
func (a *Accounts) SetAdmin(ctx context.Context, user id.UserID, on bool) error {
	return a.SetRole(ctx, user, RoleAdmin, on)
}

// Lock locks an account or unlocks it: its sessions stay but answer M_USER_LOCKED.
// Spec: client-server API, "Account locking".
func (a *Accounts) Lock(ctx context.Context, user id.UserID, on bool) error {
	return a.setFlag(ctx, user, store.UserLocked, on)
}

// Suspend suspends an account or lifts that: it can read, but not write.
// Spec: client-server API, "Account suspension".
func (a *Accounts) Suspend(ctx context.Context, user id.UserID, on bool) error {
	return a.setFlag(ctx, user, store.UserSuspended, on)
}

// flagActions are the entries of the audit log for switching a flag.
var flagActions = map[store.UserFlag]map[bool]string{
	store.UserLocked:    {true: "user.locked", false: "user.unlocked"},
	store.UserSuspended: {true: "user.suspended", false: "user.unsuspended"},
}

func (a *Accounts) setFlag(ctx context.Context, user id.UserID, flag store.UserFlag, on bool) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		found, err := tx.SetUserFlag(user, flag, on)
		if err != nil {
			return err
		}
		if !found {
			return errNoUser
		}
		if err := audit.Append(ctx, tx, audit.Entry{Action: flagActions[flag][on], Target: string(user)}); err != nil {
			return err
		}
		return announceUser(tx, user)
	})
}

// Deactivate ends an account for good: its sessions end, its devices, password, keys, account data and profile go, and
// it leaves its rooms. erase also marks what it wrote as not to be shown to those who join later. It may be called
// again, to finish what was interrupted.
func (a *Accounts) Deactivate(ctx context.Context, user id.UserID, erase bool) error {
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(user)
		if err != nil {
			return err
		}
		if !found {
			return errNoUser
		}
		if err := tx.DeactivateUser(user, erase); err != nil {
			return err
		}
		if err := tx.DeleteThreepids(user); err != nil {
			return err
		}
		if err := tx.DeleteRoles(user); err != nil {
			return err
		}
		if err := tx.DeletePasswordHistory(user); err != nil {
			return err
		}
		if !u.Deactivated {
			err := audit.Append(ctx, tx, audit.Entry{Action: "user.deactivated", Target: string(user), Details: map[string]any{"erase": erase}})
			if err != nil {
				return err
			}
		}
		if err := tx.DeleteLoginTokens(user); err != nil {
			return err
		}
		if err := a.endSessions(ctx, tx, user, Ending{Reason: "deactivated"}); err != nil {
			return err
		}
		return announceUser(tx, user)
	})
	if err != nil {
		return err
	}
	a.Logger.Info("account deactivated", "user_id", user, "erase", erase)
	// The client's connection has no say in whether the rest is done.
	ctx = context.WithoutCancel(ctx)
	if a.LeaveAllRooms != nil {
		if err := a.LeaveAllRooms(ctx, user); err != nil {
			return fmt.Errorf("leave the rooms of %s: %w", user, err)
		}
	}
	for more := true; more; {
		err := a.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			more, err = tx.ForgetUser(user, forgetChunk)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
