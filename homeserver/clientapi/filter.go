package clientapi

import (
	"net/http"

	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) filterRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/user/{userId}/filter", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.createFilter},
		{Pattern: "GET /_matrix/client/v3/user/{userId}/filter/{filterId}", Auth: web.User, Rate: web.RateRead, Handler: a.filter},
	}
}

// createFilter handles POST /_matrix/client/v3/user/{userId}/filter.
func (a *API) createFilter(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	definition, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	filterID, err := a.Data.CreateFilter(r.Context(), user, definition)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"filter_id": filterID})
}

// filter handles GET /_matrix/client/v3/user/{userId}/filter/{filterId}.
func (a *API) filter(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	definition, err := a.Data.FilterDefinition(r.Context(), user, web.PathParam(r, "filterId"))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, definition)
}
