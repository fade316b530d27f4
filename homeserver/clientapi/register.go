package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) registerRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/register", Auth: web.Public, Rate: web.RateRegister, Handler: a.register},
		{Pattern: "GET /_matrix/client/v3/register/available", Auth: web.Public, Rate: web.RateRegister, Handler: a.registerAvailable},
		{Pattern: "GET /_matrix/client/v1/register/m.login.registration_token/validity", Auth: web.Public, Rate: web.RateRegister, Handler: a.registrationTokenValidity},
		{Pattern: "GET /_synapse/admin/v1/register", Auth: web.Public, Rate: web.RateRegister, Handler: a.secretRegistrationNonce},
		{Pattern: "POST /_synapse/admin/v1/register", Auth: web.Public, Rate: web.RateRegister, Handler: a.secretRegistration},
	}
}

type registerRequest struct {
	Type          string      `json:"type"`
	Auth          *authData   `json:"auth"`
	Username      *string     `json:"username"`
	Password      *string     `json:"password"`
	DeviceID      id.DeviceID `json:"device_id"`
	DeviceName    *string     `json:"initial_device_display_name"`
	InhibitLogin  *bool       `json:"inhibit_login"`
	RefreshTokens *bool       `json:"refresh_token"`
	GuestToken    string      `json:"guest_access_token"`
}

var errRegistrationClosed = mxerr.Forbidden("registration is closed on this server: ask an administrator for an account")

// register handles POST /_matrix/client/v3/register. Spec: client-server API, "Account registration".
func (a *API) register(w http.ResponseWriter, r *http.Request) error {
	switch kind := web.QueryString(r, "kind"); kind {
	case "", "user":
	case "guest":
		return a.registerGuest(w, r)
	default:
		return mxerr.InvalidParam("query parameter 'kind' must be user or guest")
	}
	req, err := web.ReadOptionalJSON[registerRequest](r)
	if err != nil {
		return err
	}
	if req.Type == loginAppService {
		return a.registerByService(w, r, req)
	}
	flows := a.registrationFlows()
	if flows == nil {
		return errRegistrationClosed
	}
	guest, err := a.guestOf(r.Context(), req)
	if err != nil {
		return err
	}
	before, err := a.recallRegistration(r.Context(), req.Auth)
	if err != nil {
		return err
	}
	now := before.complete(&req)
	// Spec: these are checked before user-interactive authentication.
	localpart, err := a.checkRegistration(r, req, guest != "")
	if err != nil {
		return err
	}
	approval, err := a.interact(r, req.Auth, operationRegister, "", flows)
	if err != nil {
		return a.keepRegistration(r.Context(), approval, req, before, now, err)
	}
	if req.Password == nil && (now.PasswordHash == "" || guest != "") {
		return mxerr.MissingParam("'password' is required")
	}
	if a.Accounts.Gate != nil && !is(req.InhibitLogin) {
		// Whoever would owe a second factor registers in the browser, where it can be enrolled.
		if err := a.Accounts.Gate(r.Context(), a.Accounts.UserID(localpart), account.WayRegistration, nil, web.ClientIP(r).String()); err != nil {
			return err
		}
	}
	var u account.User
	if guest == "" {
		n := account.NewUser{Localpart: localpart, Approval: &approval}
		if req.Password != nil {
			n.Password = *req.Password
		} else {
			n.PasswordHash = now.PasswordHash
		}
		u, err = a.Accounts.CreateUser(r.Context(), n)
	} else {
		u.ID, err = guest, a.Accounts.PromoteGuest(r.Context(), guest, *req.Password, approval)
	}
	if err != nil {
		again, err := a.beginAgain(r.Context(), approval, flows, err)
		return a.keepRegistration(r.Context(), again, req, before, now, err)
	}
	if is(req.InhibitLogin) {
		return web.WriteJSON(w, loginResponse{UserID: u.ID, HomeServer: u.ID.Homeserver()})
	}
	return a.signIn(w, r, u.ID, account.SignIn{Way: account.WayRegistration, Device: req.DeviceID, DeviceDisplayName: req.DeviceName, Refreshable: is(req.RefreshTokens)})
}

// registrationFlows are the ways to register; nil while registration is closed. An e-mail address comes before the
// registration token, because the token alone completes a flow of its own.
func (a *API) registrationFlows() []uiaFlow {
	var flow, withEmail uiaFlow
	switch c := a.Accounts.Config; {
	case c.Registration.Mode == account.RegistrationOpen:
		flow = uiaFlow{Stages: []string{account.StageDummy}}
		withEmail = uiaFlow{Stages: []string{account.StageEmail}}
	case c.Registration.Mode == account.RegistrationToken:
		flow = uiaFlow{Stages: []string{account.StageRegistrationToken}}
		withEmail = uiaFlow{Stages: []string{account.StageEmail, account.StageRegistrationToken}}
	default:
		return nil
	}
	switch c := a.Accounts.Config.Email; {
	case !c.Enabled:
		return []uiaFlow{flow}
	case c.Required:
		return []uiaFlow{withEmail}
	}
	return []uiaFlow{flow, withEmail}
}

// checkRegistration refuses what could not be registered whoever asks, and returns the localpart.
func (a *API) checkRegistration(r *http.Request, req registerRequest, guest bool) (string, error) {
	if err := account.ValidateDeviceID(req.DeviceID); err != nil {
		return "", err
	}
	if req.Password != nil {
		var names []string
		if req.Username != nil {
			names = append(names, *req.Username)
		}
		if err := a.Accounts.ValidatePasswordFor(*req.Password, names...); err != nil {
			return "", err
		}
	}
	if req.Username == nil {
		return account.SpareLocalpart(), nil
	}
	localpart, err := a.Accounts.Localpart(*req.Username)
	if err != nil || guest {
		return localpart, err
	}
	return localpart, a.Accounts.Available(r.Context(), localpart)
}

// registerAvailable handles GET /_matrix/client/v3/register/available. While registration is closed it answers nothing,
// so that it cannot be used to find out who has an account.
func (a *API) registerAvailable(w http.ResponseWriter, r *http.Request) error {
	if a.Accounts.Config.Registration.Mode == account.RegistrationClosed {
		return errRegistrationClosed
	}
	name, given := web.QueryLookup(r, "username")
	if !given {
		return mxerr.MissingParam("query parameter 'username' is required")
	}
	localpart, err := a.Accounts.Localpart(name)
	if err != nil {
		return err
	}
	if err := a.Accounts.Available(r.Context(), localpart); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"available": true})
}

// registrationTokenValidity handles GET /_matrix/client/v1/register/m.login.registration_token/validity.
func (a *API) registrationTokenValidity(w http.ResponseWriter, r *http.Request) error {
	if a.Accounts.Config.Registration.Mode == account.RegistrationClosed {
		return errRegistrationClosed
	}
	token, given := web.QueryLookup(r, "token")
	if !given {
		return mxerr.MissingParam("query parameter 'token' is required")
	}
	valid, err := a.Accounts.RegistrationTokenValid(r.Context(), token)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"valid": valid})
}
