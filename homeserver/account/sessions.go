package account

import (
	"context"
	"fmt"
	"unicode"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Session is an access token and the refresh token beside it, as they are stored.
type Session = store.Session

// Tokens are what a client gets when it signs in or refreshes. RefreshToken and ExpiresInMS are set together or not at
// all.
type Tokens struct {
	AccessToken  string
	RefreshToken string
	ExpiresInMS  int64
}

// SignIn describes a sign-in of a user whose identity was proved.
type SignIn struct {
	Device            id.DeviceID // "": a new one
	DeviceDisplayName *string     // for a new device
	Refreshable       bool        // the client can refresh its token

	// Way is how the user came in: a Way… constant, for an identity provider followed by ":" and its name.
	Way string
	// AMR is what was proved, in the words of RFC 8176: pwd, otp, hwk, sms, mfa …
	AMR []string
	// IP and Agent are where the user was; those of the request are taken if they are empty.
	IP, Agent string
	// OAuthClient is the client that the tokens are for, "" outside of OAuth 2.0.
	OAuthClient string
}

// Ways to come in (SignIn.Way).
const (
	WayPassword     = "password"
	WaySSO          = "sso" // sso:keycloak
	WayOAuth        = "oauth"
	WayToken        = "token" // m.login.token
	WayAppService   = "appservice"
	WayAppPassword  = "app_password"
	WayRegistration = "registration"
	WayAdmin        = "admin" // an administrator got the session
)

// Ending says which sessions of a user end. The zero value ends all, with their devices, and those of browsers on our own pages.
type Ending struct {
	Devices []id.DeviceID // nil: all
	Keep    id.DeviceID   // one that stays: the one that asks
	// KeepBrowser is the browser on our own pages that stays where all devices end; those of all others end with them.
	KeepBrowser string
	// Soft keeps the devices and their keys: the clients are told to sign in again with the same device.
	// Spec: client-server API, "Soft logout".
	Soft bool
	// Reason is why, for the audit log: "signed_out" if it is empty.
	Reason string
}

const (
	maxDeviceID   = 255 // bytes
	maxDeviceName = 255 // characters, longer ones are cut
)

// SignIn makes a session. A device of that id keeps its keys and name but loses its older sessions. Errors:
// M_INVALID_PARAM for an impossible device id, M_FORBIDDEN for that of a cross-signing key, M_USER_DEACTIVATED,
// M_USER_LOCKED.
// Spec: client-server API, "Relationship between access tokens and devices".
func (a *Accounts) SignIn(ctx context.Context, user id.UserID, in SignIn) (id.DeviceID, Tokens, error) {
	if err := ValidateDeviceID(in.Device); err != nil {
		return "", Tokens{}, err
	}
	device := in.Device
	if device == "" {
		device = newDeviceID()
	}
	tokens, session := a.newSession(user, device, in.Refreshable)
	mailed := false
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		u, found, err := tx.LockUser(user)
		switch {
		case err != nil:
			return err
		case !found:
			return errNoUser
		case u.Deactivated:
			return errDeactivated
		case u.Locked || u.Disabled != 0:
			return errLocked
		}
		isNew, err := tx.InsertDevice(store.Device{User: user, ID: device, DisplayName: cutName(in.DeviceDisplayName), Created: session.Created})
		if err != nil {
			return err
		}
		ended := int64(0)
		if isNew {
			err = notCrossSigning(tx, user, in.Device)
		} else {
			ended, err = a.reuseDevice(tx, user, device)
		}
		if err != nil {
			return err
		}
		if _, err := tx.InsertSession(session); err != nil {
			return err
		}
		facts, err := a.noteSignIn(ctx, tx, in, session, isNew)
		if err != nil {
			return err
		}
		if isNew {
			if mailed, err = a.tellOfDevice(tx, user, device, in.DeviceDisplayName, facts); err != nil {
				return err
			}
		}
		if ended > 0 {
			return announceSessions(tx, user, device)
		}
		return nil
	})
	if err != nil {
		return "", Tokens{}, a.refuseSignIn(ctx, user, in.Way, err)
	}
	if mailed && a.MailQueued != nil {
		a.MailQueued()
	}
	return device, tokens, nil
}

// reuseDevice ends what was signed in on a device before, and forgets how that was: the new session's client and identity
// provider are other ones, or none. It returns how many sessions ended.
func (a *Accounts) reuseDevice(tx *store.Tx, user id.UserID, device id.DeviceID) (int64, error) {
	for _, hook := range a.OnDeviceReused {
		if err := hook(tx, user, device); err != nil {
			return 0, fmt.Errorf("forget how device %s of %s was signed in: %w", device, user, err)
		}
	}
	return tx.DeleteDeviceSessions(user, device)
}

// notCrossSigning refuses a device id that is that of a cross-signing key: the two share a space of names in signatures.
func notCrossSigning(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	if device == "" {
		return nil
	}
	taken, err := tx.IsCrossSigningKey(user, string(device))
	if err == nil && taken {
		err = mxerr.Forbidden("the device id is that of a cross-signing key")
	}
	return err
}

// ValidateDeviceID tells what is wrong with a device id that a client chose, as M_INVALID_PARAM.
func ValidateDeviceID(device id.DeviceID) error {
	if len(device) > maxDeviceID || !utf8.ValidString(string(device)) {
		return mxerr.InvalidParam(fmt.Sprintf("a device id may have at most %d bytes", maxDeviceID))
	}
	for _, c := range device {
		if unicode.IsControl(c) {
			return mxerr.InvalidParam("a device id may have no control characters")
		}
	}
	return nil
}

// cutName bounds a display name that a client chose.
func cutName(name *string) *string {
	if name == nil {
		return nil
	}
	out := make([]rune, 0, min(len(*name), maxDeviceName))
	for _, c := range *name {
		if c == 0 {
			continue
		}
		if len(out) == maxDeviceName {
			break
		}
		out = append(out, c)
	}
	s := string(out)
	return &s
}

func (a *Accounts) newSession(user id.UserID, device id.DeviceID, refreshable bool) (Tokens, Session) {
	t := Tokens{AccessToken: newToken(accessPrefix)}
	s := Session{Hash: store.HashToken(t.AccessToken), User: user, Device: device, Created: a.now()}
	if refreshable {
		life := a.Config.Sessions.AccessTokenLifetime.Milliseconds()
		t.RefreshToken, t.ExpiresInMS = newToken(refreshPrefix), life
		h := store.HashToken(t.RefreshToken)
		s.Refresh, s.Expires = &h, s.Created+life
	}
	return t, s
}

func announceSessions(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	_, err := tx.Announce(store.Entry{Kind: store.KindSession, User: string(user), Key: string(device)})
	return err
}

var errSoftlyEnded = mxerr.UnknownToken("this session was ended: sign in again", true)

var errUnknownRefresh = mxerr.UnknownToken("the refresh token is not known or was used already", false)

// Refresh makes new tokens from a refresh token. The old ones stay good until one of the new ones is used, so that a
// client that never got the answer can ask again. Errors: M_UNKNOWN_TOKEN, with soft_logout where the session was ended
// softly; M_USER_LOCKED.
// Spec: client-server API, "Refreshing access tokens".
func (a *Accounts) Refresh(ctx context.Context, refreshToken string) (Tokens, error) {
	if !couldBe(refreshToken, refreshPrefix) {
		return Tokens{}, errUnknownRefresh
	}
	var tokens Tokens
	over := ""
	hash := store.HashToken(refreshToken)
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		old, found, err := tx.SessionByRefresh(hash)
		if err != nil || !found {
			return orUnknown(err)
		}
		u, found, err := tx.LockUser(old.User)
		switch {
		case err != nil || !found || u.Deactivated:
			return orUnknown(err)
		case u.Locked:
			return errLocked
		}
		// It may have ended while this transaction waited for the user's row.
		if old, found, err = tx.SessionByRefresh(hash); err != nil || !found {
			return orUnknown(err)
		}
		if old.Ended {
			return errSoftlyEnded
		}
		over = ""
		if a.Config.Sessions.limited() {
			signedIn, used, err := tx.DeviceTimes(old.User, old.Device)
			if err != nil {
				return err
			}
			if over = a.Config.Sessions.overLimit(signedIn, max(used, old.Created), a.now()); over != "" {
				return a.endSessions(ctx, tx, old.User, Ending{Devices: []id.DeviceID{old.Device}, Soft: true, Reason: over})
			}
		}
		if old.Replaces != 0 {
			if err := tx.ConfirmSession(old); err != nil {
				return err
			}
		}
		var session Session
		tokens, session = a.newSession(old.User, old.Device, true)
		session.Replaces = old.ID
		if _, err := tx.InsertSession(session); err != nil {
			return err
		}
		if old.Replaces != 0 {
			return announceSessions(tx, old.User, old.Device)
		}
		return nil
	})
	if err == nil && over != "" {
		return Tokens{}, errSoftlyEnded
	}
	return tokens, err
}

func orUnknown(err error) error {
	if err != nil {
		return err
	}
	return errUnknownRefresh
}

// EndSessions ends sessions of a user. There is no other way: sign-out, deleting devices, a new password and
// deactivation all come here.
func (a *Accounts) EndSessions(ctx context.Context, user id.UserID, ending Ending) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if _, found, err := tx.LockUser(user); err != nil || !found {
			return err
		}
		return a.endSessions(ctx, tx, user, ending)
	})
}

// endSessions works in a transaction that holds the user's row.
func (a *Accounts) endSessions(ctx context.Context, tx *store.Tx, user id.UserID, ending Ending) error {
	devices := ending.Devices
	if devices == nil {
		all, err := tx.Devices(user)
		if err != nil {
			return err
		}
		for _, d := range all {
			devices = append(devices, d.ID)
		}
	}
	var ended []id.DeviceID
	var deleted []string
	for _, d := range devices {
		if d == ending.Keep {
			continue
		}
		hadSessions, existed, err := a.endDevice(tx, user, d, ending.Soft)
		if err != nil {
			return err
		}
		if hadSessions || existed {
			ended = append(ended, d)
		}
		if existed {
			deleted = append(deleted, string(d))
		}
	}
	browsers := int64(0)
	if ending.Devices == nil {
		var err error
		if browsers, err = tx.DeleteSSOBrowsers(user, ending.KeepBrowser); err != nil {
			return err
		}
	}
	if err := auditEnding(ctx, tx, user, ending, ended, len(deleted), browsers); err != nil {
		return err
	}
	// What announces something comes last: it takes the log's lock.
	if len(deleted) > 0 {
		if err := tx.DeletePushersOfDevices(user, deleted); err != nil {
			return err
		}
	}
	for _, d := range deleted {
		for _, hook := range a.OnDeviceDeleted {
			if err := hook(tx, user, id.DeviceID(d)); err != nil {
				return fmt.Errorf("delete what belongs to device %s of %s: %w", d, user, err)
			}
		}
	}
	for _, d := range ended {
		if err := announceSessions(tx, user, d); err != nil {
			return err
		}
	}
	return nil
}

func (a *Accounts) endDevice(tx *store.Tx, user id.UserID, device id.DeviceID, soft bool) (hadSessions, deleted bool, err error) {
	if soft {
		n, err := tx.ExpireDeviceSessions(user, device, a.now())
		return n > 0, false, err
	}
	n, err := tx.DeleteDeviceSessions(user, device)
	if err != nil {
		return false, false, err
	}
	deleted, err = tx.DeleteDevice(user, device)
	return n > 0, deleted, err
}

// LoginToken makes a token that signs the user in once, elsewhere. It returns its lifetime in milliseconds.
func (a *Accounts) LoginToken(ctx context.Context, user id.UserID) (token string, expiresInMS int64, err error) {
	token, expiresInMS = newToken(loginPrefix), loginTokenLifetime.Milliseconds()
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.InsertLoginToken(store.HashToken(token), user, a.now()+expiresInMS); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "signin.token_issued", Target: string(user)})
	})
	return token, expiresInMS, err
}

// UseLoginToken takes a login token and returns whose it was; M_FORBIDDEN if it is none or was used.
func (a *Accounts) UseLoginToken(ctx context.Context, token string) (id.UserID, error) {
	if !couldBe(token, loginPrefix) {
		return "", errBadLoginToken
	}
	var user id.UserID
	var found bool
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		user, found, err = tx.TakeLoginToken(store.HashToken(token), a.now())
		return err
	})
	if err == nil && !found {
		err = errBadLoginToken
	}
	return user, err
}

var errBadLoginToken = mxerr.Forbidden("the login token is not valid, or it was used or has expired")
