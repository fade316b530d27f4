package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) accountDataRoutes() []web.Route {
	const (
		global = " /_matrix/client/v3/user/{userId}/account_data/{type}"
		room   = " /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}"
	)
	return []web.Route{
		{Pattern: "PUT" + global, Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.setAccountData},
		{Pattern: "GET" + global, Auth: web.User, Rate: web.RateRead, Handler: a.accountData},
		{Pattern: "PUT" + room, Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.setAccountData},
		{Pattern: "GET" + room, Auth: web.User, Rate: web.RateRead, Handler: a.accountData},
	}
}

// setAccountData handles PUT /_matrix/client/v3/user/{userId}/account_data/{type} and the same for a room.
func (a *API) setAccountData(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	dataType, roomID := web.PathParam(r, "type"), id.RoomID(web.PathParam(r, "roomId"))
	if err := account.CheckAccountDataType(dataType); err != nil {
		return err
	}
	content, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	if roomID == "" {
		err = a.Data.SetAccountData(r.Context(), user, dataType, content)
	} else {
		err = a.Data.SetAccountDataByRoomID(r.Context(), user, roomID, dataType, content)
	}
	if err != nil {
		return err
	}
	return empty(w)
}

// accountData handles GET /_matrix/client/v3/user/{userId}/account_data/{type} and the same for a room.
func (a *API) accountData(w http.ResponseWriter, r *http.Request) error {
	user, err := ownPath(r)
	if err != nil {
		return err
	}
	dataType, roomID := web.PathParam(r, "type"), id.RoomID(web.PathParam(r, "roomId"))
	var content []byte
	if dataType == "m.push_rules" && roomID == "" {
		content, err = a.PushRules(r.Context(), user)
	} else {
		content, err = a.Data.AccountData(r.Context(), user, roomID, dataType)
	}
	if err != nil {
		return err
	}
	return web.WriteRaw(w, content)
}
