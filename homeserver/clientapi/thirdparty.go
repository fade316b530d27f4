package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// thirdPartyRoutes look up what bridges offer. While no application service offers any protocol there is nothing to
// find, which the specification answers by 404.
// Spec: client-server API, "Third-party Lookups".
func (a *API) thirdPartyRoutes() []web.Route {
	const base = "GET /_matrix/client/v3/thirdparty"
	return []web.Route{
		{Pattern: base + "/protocols", Auth: web.User, Rate: web.RateRead, Handler: a.thirdPartyProtocols},
		{Pattern: base + "/protocol/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.thirdPartyProtocol},
		{Pattern: base + "/location/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.thirdPartyProtocol},
		{Pattern: base + "/user/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.thirdPartyProtocol},
		{Pattern: base + "/location", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.thirdPartyLocations},
		{Pattern: base + "/user", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.thirdPartyUsers},
	}
}

// thirdPartyProtocols handles GET /_matrix/client/v3/thirdparty/protocols.
func (a *API) thirdPartyProtocols(w http.ResponseWriter, _ *http.Request) error {
	return empty(w)
}

// thirdPartyProtocol handles GET /_matrix/client/v3/thirdparty/protocol, …/location and …/user, each of one protocol.
func (a *API) thirdPartyProtocol(http.ResponseWriter, *http.Request) error {
	return mxerr.NotFound("this server has no bridge that speaks this protocol")
}

// thirdPartyLocations handles GET /_matrix/client/v3/thirdparty/location.
func (a *API) thirdPartyLocations(_ http.ResponseWriter, r *http.Request) error {
	if web.QueryString(r, "alias") == "" {
		return mxerr.MissingParam("query parameter 'alias' is required")
	}
	return mxerr.NotFound("no bridge knows this room alias")
}

// thirdPartyUsers handles GET /_matrix/client/v3/thirdparty/user.
func (a *API) thirdPartyUsers(_ http.ResponseWriter, r *http.Request) error {
	if web.QueryString(r, "userid") == "" {
		return mxerr.MissingParam("query parameter 'userid' is required")
	}
	return mxerr.NotFound("no bridge knows this user")
}
