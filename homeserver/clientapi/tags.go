package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) tagRoutes() []web.Route {
	const tags = " /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags"
	return []web.Route{
		{Pattern: "GET" + tags, Auth: web.User, Rate: web.RateRead, Handler: a.tags},
		{Pattern: "PUT" + tags + "/{tag}", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.setTag},
		{Pattern: "DELETE" + tags + "/{tag}", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.deleteTag},
	}
}

// tags handles GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags.
func (a *API) tags(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	tags, err := a.Data.Tags(r.Context(), user, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"tags": tags})
}

// setTag handles PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}. All members of the body are kept; only
// the type of "order" is known.
func (a *API) setTag(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	content, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	if _, err := web.DecodeObject[struct {
		Order *float64 `json:"order"`
	}](content); err != nil {
		return err
	}
	if err := a.Data.SetTag(r.Context(), user, id.RoomID(web.PathParam(r, "roomId")), web.PathParam(r, "tag"), content); err != nil {
		return err
	}
	return empty(w)
}

// deleteTag handles DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}.
func (a *API) deleteTag(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	if err := a.Data.DeleteTag(r.Context(), user, id.RoomID(web.PathParam(r, "roomId")), web.PathParam(r, "tag")); err != nil {
		return err
	}
	return empty(w)
}
