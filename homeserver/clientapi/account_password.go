package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) accountRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/account/whoami", Auth: web.User, Rate: web.RateRead, Handler: a.whoami},
		{Pattern: "POST /_matrix/client/v3/account/password", Auth: web.Optional, AllowSuspended: true, Rate: web.RateSend, Handler: a.changePassword},
		{Pattern: "POST /_matrix/client/v3/account/deactivate", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.deactivate},
	}
}

type passwordRequest struct {
	Auth          *authData `json:"auth"`
	NewPassword   *string   `json:"new_password"`
	LogoutDevices *bool     `json:"logout_devices"`
}

// ending says which sessions end with the old password.
func (req *passwordRequest) ending(keep id.DeviceID) *account.Ending {
	if req.LogoutDevices != nil && !*req.LogoutDevices {
		return nil
	}
	return &account.Ending{Keep: keep}
}

// changePassword handles POST /_matrix/client/v3/account/password.
// Spec: client-server API, "Password management".
func (a *API) changePassword(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	switch {
	case who == nil && !a.Accounts.Config.Email.Enabled:
		return mxerr.MissingToken()
	case who != nil && who.Guest:
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests have no password")
	}
	req, err := web.ReadOptionalJSON[passwordRequest](r)
	if err != nil {
		return err
	}
	if req.NewPassword != nil {
		var names []string
		if who != nil {
			names = append(names, who.UserID.Localpart())
		}
		if err := a.Accounts.ValidatePasswordFor(*req.NewPassword, names...); err != nil {
			return err
		}
	}
	if who == nil {
		return a.resetPassword(w, r, req)
	}
	if err := a.Accounts.PasswordChangeable(r.Context(), who.UserID); err != nil {
		return err
	}
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
	if err := a.Accounts.SetPassword(r.Context(), who.UserID, *req.NewPassword, req.ending(who.DeviceID)); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// resetFlows is how somebody who cannot sign in proves to be the owner of an account.
var resetFlows = []uiaFlow{{Stages: []string{account.StageEmail}}}

// resetPassword is POST /account/password of somebody who cannot sign in, but reads the mail of the account's address.
func (a *API) resetPassword(w http.ResponseWriter, r *http.Request, req passwordRequest) error {
	flows := resetFlows
	approval, err := a.interact(r, req.Auth, operationResetPassword, "", flows)
	if err != nil {
		return err
	}
	if req.NewPassword == nil {
		return mxerr.MissingParam("'new_password' is required")
	}
	if err := a.spendUIA(r.Context(), approval, flows); err != nil {
		return err
	}
	user, err := a.Accounts.TakeEmailProof(r.Context(), approval.EmailSID)
	if err != nil {
		return err
	}
	if err := a.Accounts.SetPassword(r.Context(), user, *req.NewPassword, req.ending("")); err != nil {
		return err
	}
	a.Logger.Info("password reset by mail", "user_id", user, "ip", web.ClientIP(r))
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
