package account

import (
	"context"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	openIDPrefix   = "mho_"
	openIDLifetime = time.Hour
)

// OpenIDToken makes a token by which its user can prove to another service who they are; it opens nothing here. It dies
// with the device that asked for it.
// Spec: client-server API, "OpenID".
func (a *Accounts) OpenIDToken(ctx context.Context, user id.UserID, device id.DeviceID) (token string, life time.Duration, err error) {
	token = newToken(openIDPrefix)
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		return tx.InsertOpenIDToken(store.HashToken(token), user, device, a.now()+openIDLifetime.Milliseconds())
	})
	return token, openIDLifetime, err
}

// OpenIDUser tells who an OpenID token speaks for; M_UNKNOWN_TOKEN if it is none, has expired, or its user was locked,
// deactivated or has signed that device out.
func (a *Accounts) OpenIDUser(ctx context.Context, token string) (id.UserID, error) {
	if !couldBe(token, openIDPrefix) {
		return "", errUnknownOpenID
	}
	var user id.UserID
	var found bool
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		user, found, err = tx.OpenIDUser(store.HashToken(token), a.now())
		return err
	})
	if err == nil && !found {
		err = errUnknownOpenID
	}
	return user, err
}

var errUnknownOpenID = mxerr.New(401, "M_UNKNOWN_TOKEN", "the OpenID token is not known or has expired")
