package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) thirdPartyRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/thirdparty/protocols", Auth: web.User, Rate: web.RateRead, Handler: a.thirdPartyProtocols},
	}
}

// thirdPartyProtocols handles GET /_matrix/client/v3/thirdparty/protocols. No application service offers any protocol.
func (a *API) thirdPartyProtocols(w http.ResponseWriter, _ *http.Request) error {
	return empty(w)
}
