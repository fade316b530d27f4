package clientapi

import (
	"context"
	"net/http"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) serverRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/versions", Auth: web.Public, Rate: web.RateNone, Handler: a.versions},
		{Pattern: "GET /_matrix/client/v3/capabilities", Auth: web.User, Rate: web.RateRead, Handler: a.capabilities},
	}
}

type enabled struct {
	Enabled bool `json:"enabled"`
}

type roomVersions struct {
	Default   string            `json:"default"`
	Available map[string]string `json:"available"`
}

// capabilities handles GET /_matrix/client/v3/capabilities. Spec: client-server API, "Capabilities negotiation".
func (a *API) capabilities(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	available := map[string]string{}
	for _, v := range event.Versions() {
		available[v.ID] = "unstable"
		if v.Stable {
			available[v.ID] = "stable"
		}
	}
	password, err := a.changesPassword(r.Context(), who)
	if err != nil {
		return err
	}
	profile := map[string]any{"enabled": true}
	if who.Guest { // Spec: "Guest Access": a display name and no other field
		profile["allowed"] = []string{"displayname"}
	}
	all := map[string]any{
		"m.change_password": enabled{password},
		"m.room_versions":   roomVersions{event.DefaultVersion, available},
		"m.set_displayname": enabled{true},
		"m.set_avatar_url":  enabled{!who.Guest},
		"m.profile_fields":  profile,
		"m.3pid_changes":    enabled{a.Accounts.Config.Email.Enabled && !who.Guest},
		"m.get_login_token": enabled{a.Accounts.Config.Sessions.LoginTokens && !who.Guest},
	}
	if who.Admin {
		all["m.account_moderation"] = map[string]bool{"lock": true, "suspend": true} // left out where both are false
	}
	return web.WriteJSON(w, map[string]any{"capabilities": all})
}

// changesPassword tells whether a user has a password that POST /account/password changes.
func (a *API) changesPassword(ctx context.Context, who *web.Identity) (bool, error) {
	if who.Guest || who.AppService != "" || !a.passwords() {
		return false, nil
	}
	err := a.Accounts.PasswordChangeable(ctx, who.UserID)
	if mxerr.Is(err, "M_FORBIDDEN") {
		return false, nil // the company's directory keeps it
	}
	return err == nil, err
}
