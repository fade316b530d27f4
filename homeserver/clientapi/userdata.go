package clientapi

import (
	"context"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// UserDataDeps is what the endpoints of keys, account data, profiles and calls work with.
type UserDataDeps struct {
	Keys     *account.Keys
	Data     *account.Data
	Profiles *account.Profiles
	Turn     TurnConfig

	// ParseSyncToken gives the log position of a /sync token. Errors: M_INVALID_PARAM.
	ParseSyncToken func(token string) (int64, error)
	// PushRules gives the content of a user's m.push_rules, which is kept apart from other account data.
	PushRules func(ctx context.Context, user id.UserID) ([]byte, error)
}

// ownPath is the {userId} of the path, which must be the requester.
func ownPath(r *http.Request) (id.UserID, error) {
	user := id.UserID(web.PathParam(r, "userId"))
	if user != web.Requester(r).UserID {
		return "", mxerr.Forbidden("this belongs to another user")
	}
	return user, nil
}

// errMissing says that a required member of the body is absent. Spec: "M_BAD_JSON … missing required keys".
func errMissing(name string) error { return mxerr.BadJSON("'" + name + "' is required") }

// empty is the answer of endpoints that have nothing to tell.
func empty(w http.ResponseWriter) error { return web.WriteJSON(w, struct{}{}) }
