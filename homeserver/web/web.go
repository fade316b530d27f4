// Package web carries requests to handlers: routes from tables, access tokens, rate limits, strict JSON in and out, the
// Matrix error body, CORS, the client's address behind proxies. It knows nothing of rooms or accounts; who a token
// belongs to is told by the Authenticator it is given.
//
// Patterns are those of net/http ("GET /_matrix/client/v3/rooms/{roomId}/members"), with these rules: {name} matches
// one segment that is not empty, decoded after the path was split (so %2F inside an identifier is part of it);
// {name...} as the last segment matches the rest; a pattern that ends in "/" or "/{$}" matches that path alone; nothing
// is redirected. A GET route also answers HEAD.
package web

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Auth says who may call a route.
type Auth int8

// Who may call a route.
const (
	Public     Auth = iota // no token is read
	Optional               // a token is used when it is there (a wrong one is an error)
	User                   // a valid access token of a full or guest user
	NoGuest                // guests get 403 M_GUEST_ACCESS_FORBIDDEN
	Admin                  // server administrators only (403 M_FORBIDDEN)
	AppService             // an application service's own token
)

// Handler answers a request or returns why it cannot: an *mxerr.Error becomes the standard error body, anything else a
// logged 500.
type Handler func(w http.ResponseWriter, r *http.Request) error

// Route is a row of a package's table.
type Route struct {
	Pattern string // "PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}"
	Auth    Auth
	Rate    Rate
	Handler Handler
	// AllowSuspended lets users of suspended accounts call a route that changes something; reading (GET) they may anyway.
	// The handler then looks at Identity.Suspended where not all that it does is allowed.
	// Spec: client-server API, "Account suspension".
	AllowSuspended bool
}

// Identity is who makes the request; the Authenticator makes it.
type Identity struct {
	UserID     id.UserID
	DeviceID   id.DeviceID
	SessionID  int64 // row of the access token's session
	Admin      bool
	Guest      bool
	AppService string // id of the application service, or ""
	SoftLogout bool   // the session was ended but the device kept: answered with 401 and soft_logout
	Unlimited  bool   // rate limits do not apply
	Sending    Bucket // of what may be sent, instead of the server's; PerSecond 0: the server's
	Suspended  bool   // the account may read but not write: 403 M_USER_SUSPENDED
}

// Authenticator finds out whom an access token belongs to. The request is given for what changes the answer, such as
// an application service's user_id parameter. Errors should be *mxerr.Error values (M_UNKNOWN_TOKEN, M_USER_LOCKED …).
type Authenticator func(r *http.Request, token string) (*Identity, error)

// Config is what a Mux needs from outside.
type Config struct {
	Authenticate   Authenticator  // nil: only Public routes (and Optional ones without a token) can be reached
	Limits         *Limiter       // nil: no rate limits
	TrustedProxies []netip.Prefix // whose X-Forwarded-For is believed
	Logger         *slog.Logger   // nil: slog.Default()
	// Trusted tells whether a request to a Public route comes from whom no rate limits are for: an application service that
	// registers its users. May be nil.
	Trusted func(r *http.Request) bool
	OnPanic func(any) // told of a handler's panic after it was logged; may be nil
	// Observe is told of every answered request; pattern is the route's, or "" where none matched. May be nil.
	Observe func(pattern string, status int, d time.Duration, bytesOut int64)
	// Refused is told when somebody who is signed in is refused (403) what only administrators or application services may
	// call. May be nil.
	Refused func(ctx context.Context, who *Identity, pattern string, err *mxerr.Error)
	// CatchUp brings this process's memory up to what other processes have written, and tells whether there was any. It
	// is asked before a signed-in user is told 403 or 404. nil where one process serves alone.
	CatchUp func(ctx context.Context) (news bool, err error)
	// Writing is told that a request has come that may write. May be nil.
	Writing func()
}
