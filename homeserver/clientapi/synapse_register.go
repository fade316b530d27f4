package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// The two handlers below speak what Synapse's admin API calls "shared-secret registration", because tools for it exist.

func (a *API) secretRegistrationEnabled() error {
	if a.Accounts.Config.Registration.SharedSecret == "" {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "Shared secret registration is not enabled")
	}
	return nil
}

// secretRegistrationNonce handles GET /_synapse/admin/v1/register.
func (a *API) secretRegistrationNonce(w http.ResponseWriter, r *http.Request) error {
	if err := a.secretRegistrationEnabled(); err != nil {
		return err
	}
	nonce, err := a.Accounts.NewNonce(r.Context())
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"nonce": nonce})
}

type secretRegistrationRequest struct {
	Nonce        *string `json:"nonce"`
	Username     *string `json:"username"`
	Password     *string `json:"password"`
	MAC          *string `json:"mac"`
	Admin        bool    `json:"admin"`
	UserType     *string `json:"user_type"`
	DisplayName  *string `json:"displayname"`
	InhibitLogin bool    `json:"inhibit_login"`
}

// secretRegistration handles POST /_synapse/admin/v1/register.
func (a *API) secretRegistration(w http.ResponseWriter, r *http.Request) error {
	if err := a.secretRegistrationEnabled(); err != nil {
		return err
	}
	req, err := web.ReadJSON[secretRegistrationRequest](r)
	if err != nil {
		return err
	}
	reg := account.SecretRegistration{Admin: req.Admin}
	for _, field := range []struct {
		name string
		from *string
		to   *string
	}{{"nonce", req.Nonce, &reg.Nonce}, {"username", req.Username, &reg.Username}, {"password", req.Password, &reg.Password}, {"mac", req.MAC, &reg.MAC}} {
		if field.from == nil {
			return mxerr.BadJSON("'" + field.name + "' is required")
		}
		*field.to = *field.from
	}
	if req.UserType != nil {
		if reg.UserType = *req.UserType; reg.UserType != "bot" && reg.UserType != "support" {
			return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "the user_type must be bot or support")
		}
	}
	if req.DisplayName != nil {
		reg.DisplayName = *req.DisplayName
	}
	u, err := a.Accounts.RegisterBySecret(r.Context(), reg)
	if err != nil {
		return err
	}
	out := loginResponse{UserID: u.ID, HomeServer: a.ServerName}
	if !req.InhibitLogin {
		device, tokens, err := a.Accounts.SignIn(r.Context(), u.ID, account.SignIn{Way: account.WayAdmin})
		if err != nil {
			return err
		}
		out = newLoginResponse(u.ID, device, tokens)
	}
	return web.WriteJSON(w, out)
}
