package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/event"
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
	mine := enabled{!who.Guest}
	all := map[string]any{
		"m.change_password": mine,
		"m.room_versions":   roomVersions{event.DefaultVersion, available},
		"m.set_displayname": mine,
		"m.set_avatar_url":  mine,
		"m.profile_fields":  mine,
		"m.3pid_changes":    enabled{a.Accounts.Config.Email.Enabled && !who.Guest},
		"m.get_login_token": enabled{a.Accounts.Config.Sessions.LoginTokens && !who.Guest},
	}
	if who.Admin {
		all["m.account_moderation"] = map[string]bool{"lock": true, "suspend": true} // left out where both are false
	}
	return web.WriteJSON(w, map[string]any{"capabilities": all})
}
