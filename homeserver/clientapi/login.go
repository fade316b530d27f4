package clientapi

import (
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	loginPassword = "m.login.password"
	loginToken    = "m.login.token"
)

func (a *API) loginRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/login", Auth: web.Public, Rate: web.RateRead, Handler: a.loginFlows},
		{Pattern: "POST /_matrix/client/v3/login", Auth: web.Public, Rate: web.RateLogin, Handler: a.login},
		{Pattern: "POST /_matrix/client/v1/login/get_token", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateLogin, Handler: a.getLoginToken},
		{Pattern: "POST /_matrix/client/v3/refresh", Auth: web.Public, Rate: web.RateRead, Handler: a.refresh},
		{Pattern: "POST /_matrix/client/v3/logout", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: a.logout},
		{Pattern: "POST /_matrix/client/v3/logout/all", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: a.logoutAll},
	}
}

type loginFlow struct {
	Type          string `json:"type"`
	GetLoginToken bool   `json:"get_login_token,omitempty"`
}

// loginFlows handles GET /_matrix/client/v3/login.
func (a *API) loginFlows(w http.ResponseWriter, _ *http.Request) error {
	var flows []any
	if a.passwords() {
		flows = append(flows, loginFlow{Type: loginPassword})
	}
	if f := a.ssoFlow(); f != nil {
		flows = append(flows, f)
	}
	if a.loginTokens() {
		flows = append(flows, loginFlow{Type: loginToken, GetLoginToken: a.Accounts.Config.Sessions.LoginTokens})
	}
	if a.AppServices != nil && a.AppServices.Any() {
		flows = append(flows, loginFlow{Type: loginAppService})
	}
	return web.WriteJSON(w, map[string]any{"flows": flows})
}

// loginTokens tells whether m.login.token is taken: single sign-on ends with it.
func (a *API) loginTokens() bool { return a.SSO != nil || a.Accounts.Config.Sessions.LoginTokens }

type loginRequest struct {
	Type          string          `json:"type"`
	Identifier    *userIdentifier `json:"identifier"`
	User          string          `json:"user"`
	Medium        string          `json:"medium"`
	Address       string          `json:"address"`
	Password      *string         `json:"password"`
	Token         *string         `json:"token"`
	DeviceID      id.DeviceID     `json:"device_id"`
	DeviceName    *string         `json:"initial_device_display_name"`
	RefreshTokens bool            `json:"refresh_token"`
}

type loginResponse struct {
	UserID       id.UserID   `json:"user_id"`
	AccessToken  string      `json:"access_token,omitempty"`
	RefreshToken string      `json:"refresh_token,omitempty"`
	ExpiresInMS  int64       `json:"expires_in_ms,omitempty"`
	DeviceID     id.DeviceID `json:"device_id,omitempty"`
	// HomeServer is deprecated, and what administration tools name this server by.
	HomeServer string `json:"home_server"`
}

// login handles POST /_matrix/client/v3/login. Spec: client-server API, "Login".
func (a *API) login(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[loginRequest](r)
	if err != nil {
		return err
	}
	var user id.UserID
	in := account.SignIn{Device: req.DeviceID, DeviceDisplayName: req.DeviceName, Refreshable: req.RefreshTokens}
	switch {
	case req.Type == "":
		return mxerr.MissingParam("'type' is required")
	case req.Type == loginAppService && a.AppServices != nil:
		user, err = a.serviceLogin(r, req, &in)
	case req.Type == loginPassword && a.passwords():
		user, err = a.passwordLogin(r, req, &in)
	case req.Type == loginToken && a.loginTokens():
		if req.Token == nil {
			return mxerr.MissingParam("'token' is required")
		}
		in.Way = account.WayToken
		if user, err = a.Accounts.UseLoginToken(r.Context(), *req.Token); err != nil {
			err = a.Accounts.RefuseSignIn(r.Context(), "", in.Way, err)
			break
		}
		return a.signInByToken(w, r, user, in, *req.Token)
	default:
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "this login type is not known; GET this path lists those that are")
	}
	if err != nil {
		return err
	}
	return a.signIn(w, r, user, in)
}

func (a *API) passwordLogin(r *http.Request, req loginRequest, in *account.SignIn) (id.UserID, error) {
	if req.Identifier == nil && req.User == "" && req.Medium != "" {
		// The deprecated way to name a third-party identifier.
		req.Identifier = &userIdentifier{Type: "m.id.thirdparty", Medium: req.Medium, Address: req.Address}
	}
	name, err := a.loginName(r.Context(), req.Identifier, req.User)
	if err != nil {
		return "", err
	}
	if req.Password == nil {
		return "", mxerr.MissingParam("'password' is required")
	}
	if req.Identifier != nil && req.Identifier.Address != "" {
		if err := a.passwordAttempt(strings.ToLower(req.Identifier.Address)); err != nil {
			return "", err
		}
	}
	if name != nobody {
		// One bucket for all ways to write a name.
		key := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "@"), ":"+a.ServerName))
		if err := a.passwordAttempt(string(a.Accounts.UserID(key))); err != nil {
			return "", err
		}
	}
	u, way, amr, err := a.Accounts.PasswordSignIn(r.Context(), name, *req.Password)
	in.Way, in.AMR = way, amr
	if mxerr.As(err) != nil {
		// The name itself is not logged: people type passwords into the wrong field.
		a.Logger.Info("sign-in refused", "user_id", u.ID, "ip", web.ClientIP(r), "reason", mxerr.As(err).Code)
	}
	return u.ID, err
}

// signIn answers with the tokens of a new session.
func (a *API) signIn(w http.ResponseWriter, r *http.Request, user id.UserID, in account.SignIn) error {
	device, tokens, err := a.Accounts.SignIn(r.Context(), user, in)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newLoginResponse(user, device, tokens))
}

func newLoginResponse(user id.UserID, device id.DeviceID, t account.Tokens) loginResponse {
	return loginResponse{
		UserID: user, AccessToken: t.AccessToken, RefreshToken: t.RefreshToken, ExpiresInMS: t.ExpiresInMS, DeviceID: device, HomeServer: user.Homeserver(),
	}
}

// getLoginToken handles POST /_matrix/client/v1/login/get_token.
func (a *API) getLoginToken(w http.ResponseWriter, r *http.Request) error {
	if !a.Accounts.Config.Sessions.LoginTokens {
		return mxerr.Unrecognized()
	}
	req, err := web.ReadOptionalJSON[struct {
		Auth *authData `json:"auth"`
	}](r)
	if err != nil {
		return err
	}
	// Spec: the user is asked anew for every token; a proof is good once, whatever it was for.
	if err := a.requireUIA(r, req.Auth, "get a login token"); err != nil {
		return err
	}
	token, life, err := a.Accounts.LoginToken(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct {
		LoginToken  string `json:"login_token"`
		ExpiresInMS int64  `json:"expires_in_ms"`
	}{token, life})
}
