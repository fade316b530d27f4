package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) accountRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/account/whoami", Auth: web.User, Rate: web.RateRead, Handler: a.whoami},
		{Pattern: "POST /_matrix/client/v3/account/password", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.changePassword},
		{Pattern: "POST /_matrix/client/v3/account/deactivate", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.deactivate},
		{Pattern: "GET /_matrix/client/v3/account/3pid", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.threepids},
	}
}

// changePassword handles POST /_matrix/client/v3/account/password.
// Spec: client-server API, "Password management".
func (a *API) changePassword(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Auth          *authData `json:"auth"`
		NewPassword   *string   `json:"new_password"`
		LogoutDevices *bool     `json:"logout_devices"`
	}](r)
	if err != nil {
		return err
	}
	if req.NewPassword != nil {
		if err := a.Accounts.ValidatePassword(*req.NewPassword); err != nil {
			return err
		}
	}
	who := web.Requester(r)
	approval, err := a.interact(r, req.Auth, "change password", who.UserID, passwordFlow)
	if err != nil {
		return err
	}
	if req.NewPassword == nil {
		return mxerr.MissingParam("'new_password' is required")
	}
	if err := a.spendUIA(r.Context(), approval, passwordFlow); err != nil {
		return err
	}
	var ending *account.Ending
	if req.LogoutDevices == nil || *req.LogoutDevices {
		ending = &account.Ending{Keep: who.DeviceID}
	}
	if err := a.Accounts.SetPassword(r.Context(), who.UserID, *req.NewPassword, ending); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// deactivate handles POST /_matrix/client/v3/account/deactivate.
func (a *API) deactivate(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Auth     *authData `json:"auth"`
		Erase    bool      `json:"erase"`
		IDServer string    `json:"id_server"` // there is nothing to unbind
	}](r)
	if err != nil {
		return err
	}
	if err := a.requireUIA(r, req.Auth, "deactivate account"); err != nil {
		return err
	}
	if err := a.Accounts.Deactivate(r.Context(), web.Requester(r).UserID, req.Erase); err != nil {
		return err
	}
	// Spec: it "must be success if the homeserver has no identifiers to unbind".
	return web.WriteJSON(w, map[string]string{"id_server_unbind_result": "success"})
}

// threepids handles GET /_matrix/client/v3/account/3pid. This server keeps no third-party identifiers, and says so by
// the capability m.3pid_changes.
func (a *API) threepids(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string][]struct{}{"threepids": {}})
}
