package account

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/hex"
	"net/http"
	"time"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const maxRegistrationToken = 64 // characters; spec: client-server API, "Token-authenticated registration"

// NewRegistrationToken describes a registration token to be made.
type NewRegistrationToken struct {
	Token       string    // "": a random one
	UsesAllowed *int64    // nil: any number
	Expires     time.Time // zero: never
}

// CreateRegistrationToken makes a token. Errors: M_INVALID_PARAM.
func (a *Accounts) CreateRegistrationToken(ctx context.Context, n NewRegistrationToken) (store.RegistrationToken, error) {
	t := store.RegistrationToken{Token: n.Token, Created: a.now(), UsesAllowed: n.UsesAllowed}
	if t.Token == "" {
		t.Token = randomLetters(16)
	}
	if !validRegistrationToken(t.Token) {
		return t, mxerr.InvalidParam("a registration token has up to 64 characters: letters, digits and . _ ~ -")
	}
	if n.UsesAllowed != nil && *n.UsesAllowed < 0 {
		return t, mxerr.InvalidParam("a registration token cannot be used less than 0 times")
	}
	if !n.Expires.IsZero() {
		ms := n.Expires.UnixMilli()
		t.Expires = &ms
		if ms <= t.Created {
			return t, mxerr.InvalidParam("the registration token would have expired already")
		}
	}
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		inserted, err := tx.InsertRegistrationToken(t)
		if err == nil && !inserted {
			err = mxerr.InvalidParam("there is a registration token of this name")
		}
		return err
	})
	return t, err
}

// validRegistrationToken checks the grammar. Spec: appendices, "Opaque Identifiers".
func validRegistrationToken(s string) bool {
	if s == "" || len(s) > maxRegistrationToken {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '.', c == '_', c == '~', c == '-':
		default:
			return false
		}
	}
	return true
}

// RegistrationTokenValid tells whether a token can be used once more.
func (a *Accounts) RegistrationTokenValid(ctx context.Context, token string) (bool, error) {
	if !validRegistrationToken(token) {
		return false, nil
	}
	var usable bool
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		usable, err = tx.RegistrationTokenUsable(token, a.now())
		return err
	})
	return usable, err
}

// NewNonce makes a nonce for a registration by shared secret; it is good for a minute, once, at any node.
func (a *Accounts) NewNonce(ctx context.Context) (string, error) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	nonce := hex.EncodeToString(b[:])
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.InsertNonce(nonce, a.now()+nonceLifetime.Milliseconds())
	})
	return nonce, err
}

// SecretRegistration is a registration by shared secret.
type SecretRegistration struct {
	Nonce, Username, Password, UserType, MAC string
	DisplayName                              string // not part of the MAC
	Admin                                    bool
}

// RegisterBySecret makes an account for whoever knows the shared secret. The MAC is HMAC-SHA1, in hexadecimal, over
// nonce, username, password and "admin" or "notadmin" (and the user type, if there is one), with a NUL between two.
// Errors: 400 M_UNKNOWN for an unknown nonce, 403 M_UNKNOWN for a wrong MAC (as Synapse's tools expect), and those of CreateUser.
func (a *Accounts) RegisterBySecret(ctx context.Context, reg SecretRegistration) (User, error) {
	var known bool
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		known, err = tx.TakeNonce(reg.Nonce, a.now())
		return err
	})
	if err != nil {
		return User{}, err
	}
	if !known {
		return User{}, mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "unrecognised nonce")
	}
	mac := hmac.New(sha1.New, []byte(a.Config.Registration.SharedSecret))
	role := "notadmin"
	if reg.Admin {
		role = "admin"
	}
	for _, part := range []string{reg.Nonce, reg.Username, reg.Password} {
		mac.Write([]byte(part))
		mac.Write([]byte{0})
	}
	mac.Write([]byte(role))
	if reg.UserType != "" {
		mac.Write([]byte{0})
		mac.Write([]byte(reg.UserType))
	}
	got, err := hex.DecodeString(reg.MAC)
	if err != nil || a.Config.Registration.SharedSecret == "" || !hmac.Equal(got, mac.Sum(nil)) {
		refused := audit.Entry{Action: "user.created", Result: audit.Refused, Reason: "M_UNKNOWN", Details: map[string]any{"way": "shared_secret"}}
		if err := a.Audit.Refusal(ctx, refused); err != nil {
			return User{}, err
		}
		return User{}, mxerr.New(http.StatusForbidden, "M_UNKNOWN", "HMAC incorrect")
	}
	if err := passwordStorable(reg.Password); err != nil {
		return User{}, err
	}
	return a.CreateUser(ctx, NewUser{Localpart: reg.Username, Password: reg.Password, DisplayName: reg.DisplayName, Admin: reg.Admin, Type: reg.UserType})
}

// SpareLocalpart makes a localpart for somebody who names none.
// Spec: POST /register, "username".
func SpareLocalpart() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails
	return "u" + hex.EncodeToString(b[:])
}
