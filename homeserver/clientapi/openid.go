package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// openIDRoutes let users prove to other services who they are.
// Spec: client-server API, "OpenID"; server-server API, "OpenID".
func (a *API) openIDRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/user/{userId}/openid/request_token", Auth: web.User, Rate: web.RateSend, Handler: a.openIDToken},
		{Pattern: "GET /_matrix/federation/v1/openid/userinfo", Auth: web.Public, Rate: web.RateRead, Handler: a.openIDUser},
	}
}

// openIDToken handles POST /_matrix/client/v3/user/{userId}/openid/request_token.
func (a *API) openIDToken(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	if _, err := web.ReadOptionalJSON[struct{}](r); err != nil {
		return err
	}
	token, life, err := a.Accounts.OpenIDToken(r.Context(), user, web.Requester(r).DeviceID)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ServerName  string `json:"matrix_server_name"`
		ExpiresIn   int64  `json:"expires_in"`
	}{token, "Bearer", a.ServerName, int64(life.Seconds())})
}

// openIDUser handles GET /_matrix/federation/v1/openid/userinfo. The token in the query is that of openIDToken.
func (a *API) openIDUser(w http.ResponseWriter, r *http.Request) error {
	token := web.QueryString(r, "access_token")
	if token == "" {
		return mxerr.MissingToken()
	}
	user, err := a.Accounts.OpenIDUser(r.Context(), token)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"sub": user})
}
