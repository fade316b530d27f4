package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// refresh handles POST /_matrix/client/v3/refresh. Spec: client-server API, "Refreshing access tokens".
func (a *API) refresh(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		RefreshToken *string `json:"refresh_token"`
	}](r)
	if err != nil {
		return err
	}
	if req.RefreshToken == nil {
		return mxerr.MissingParam("'refresh_token' is required")
	}
	if a.SSO != nil {
		if err := a.SSO.LegacyRefresh(r.Context(), *req.RefreshToken); err != nil {
			return err
		}
	}
	t, err := a.Accounts.Refresh(r.Context(), *req.RefreshToken)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresInMS  int64  `json:"expires_in_ms"`
	}{t.AccessToken, t.RefreshToken, t.ExpiresInMS})
}
