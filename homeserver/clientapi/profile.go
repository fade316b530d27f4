package clientapi

import (
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) profileRoutes() []web.Route {
	const (
		profile = " /_matrix/client/v3/profile/{userId}"
		field   = profile + "/{keyName}"
	)
	return []web.Route{
		{Pattern: "GET" + profile, Auth: web.Public, Rate: web.RateRead, Handler: a.profile},
		{Pattern: "GET" + field, Auth: web.Public, Rate: web.RateRead, Handler: a.profileField},
		{Pattern: "PUT" + field, Auth: web.User, Rate: web.RateSend, Handler: a.setProfileField},
		{Pattern: "DELETE" + field, Auth: web.User, Rate: web.RateSend, Handler: a.deleteProfileField},
		{Pattern: "POST /_matrix/client/v3/user_directory/search", Auth: web.User, AllowSuspended: true, Rate: web.RateUserDirectory, Handler: a.searchUsers},
	}
}

// profile handles GET /_matrix/client/v3/profile/{userId}.
func (a *API) profile(w http.ResponseWriter, r *http.Request) error {
	p, err := a.profileOf(r.Context(), id.UserID(web.PathParam(r, "userId")))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, p.All())
}

// profileField handles GET /_matrix/client/v3/profile/{userId}/{keyName}.
func (a *API) profileField(w http.ResponseWriter, r *http.Request) error {
	name := web.PathParam(r, "keyName")
	value, err := a.Profiles.Field(r.Context(), id.UserID(web.PathParam(r, "userId")), name)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]jsontext.Value{name: value})
}

// setProfileField handles PUT /_matrix/client/v3/profile/{userId}/{keyName}.
func (a *API) setProfileField(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	name := web.PathParam(r, "keyName")
	if err := account.CheckFieldName(name); err != nil {
		return err
	}
	if err := guestField(r, name); err != nil {
		return err
	}
	req, err := web.ReadJSON[map[string]jsontext.Value](r)
	if err != nil {
		return err
	}
	value, ok := req[name]
	if !ok {
		return mxerr.MissingParam("'" + name + "' is required")
	}
	if err := a.Profiles.Set(r.Context(), user, name, value); err != nil {
		return err
	}
	return empty(w)
}

// guestField lets guests change no field but their display name. Spec: client-server API, "Guest Access", client behaviour.
func guestField(r *http.Request, name string) error {
	if web.Requester(r).Guest && name != "displayname" {
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests have a display name alone")
	}
	return nil
}

// deleteProfileField handles DELETE /_matrix/client/v3/profile/{userId}/{keyName}.
func (a *API) deleteProfileField(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	name := web.PathParam(r, "keyName")
	if err := guestField(r, name); err != nil {
		return err
	}
	if err := a.Profiles.Delete(r.Context(), user, name); err != nil {
		return err
	}
	return empty(w)
}

// searchUsers handles POST /_matrix/client/v3/user_directory/search.
func (a *API) searchUsers(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		SearchTerm *string `json:"search_term"`
		Limit      *int    `json:"limit"`
	}](r)
	if err != nil {
		return err
	}
	limit := 0 // the default
	switch {
	case req.SearchTerm == nil:
		return errMissing("search_term")
	case req.Limit != nil && *req.Limit <= 0:
		return mxerr.InvalidParam("'limit' must be greater than 0")
	case req.Limit != nil:
		limit = *req.Limit
	}
	results, limited, err := a.Profiles.Search(r.Context(), web.Requester(r).UserID, *req.SearchTerm, limit)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"results": results, "limited": limited})
}
