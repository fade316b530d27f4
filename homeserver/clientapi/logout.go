package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// logout handles POST /_matrix/client/v3/logout: the token, its device and the device's keys go.
func (a *API) logout(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	if who.DeviceID == "" {
		return mxerr.Forbidden("an application service's token cannot be signed out")
	}
	if err := a.Accounts.EndSessions(r.Context(), who.UserID, account.Ending{Devices: []id.DeviceID{who.DeviceID}}); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// logoutAll handles POST /_matrix/client/v3/logout/all.
func (a *API) logoutAll(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	if err := a.Accounts.EndSessions(r.Context(), who.UserID, account.Ending{}); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}
