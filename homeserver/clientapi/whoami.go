package clientapi

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/web"
)

// whoami handles GET /_matrix/client/v3/account/whoami.
func (a *API) whoami(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	return web.WriteJSON(w, struct {
		UserID   id.UserID   `json:"user_id"`
		DeviceID id.DeviceID `json:"device_id,omitempty"`
		IsGuest  bool        `json:"is_guest"`
	}{who.UserID, who.DeviceID, who.Guest})
}
