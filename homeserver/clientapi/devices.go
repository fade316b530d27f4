package clientapi

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) deviceRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/devices", Auth: web.User, Rate: web.RateRead, Handler: a.devices},
		{Pattern: "GET /_matrix/client/v3/devices/{deviceId}", Auth: web.User, Rate: web.RateRead, Handler: a.device},
		{Pattern: "PUT /_matrix/client/v3/devices/{deviceId}", Auth: web.User, Rate: web.RateSend, Handler: a.renameDevice},
		{Pattern: "DELETE /_matrix/client/v3/devices/{deviceId}", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.deleteDevice},
		{Pattern: "POST /_matrix/client/v3/delete_devices", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.deleteDevices},
	}
}

type deviceJSON struct {
	DeviceID    id.DeviceID `json:"device_id"`
	DisplayName string      `json:"display_name"` // "" if it has none: some clients want it to be there
	LastSeenIP  string      `json:"last_seen_ip,omitempty"`
	LastSeenTS  int64       `json:"last_seen_ts,omitempty"`
}

func newDeviceJSON(d account.Device) deviceJSON {
	out := deviceJSON{DeviceID: d.ID, LastSeenIP: d.LastIP, LastSeenTS: d.LastSeen}
	if d.DisplayName != nil {
		out.DisplayName = *d.DisplayName
	}
	return out
}

// devices handles GET /_matrix/client/v3/devices.
func (a *API) devices(w http.ResponseWriter, r *http.Request) error {
	all, err := a.Accounts.Devices(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	out := make([]deviceJSON, len(all))
	for i, d := range all {
		out[i] = newDeviceJSON(d)
	}
	return web.WriteJSON(w, map[string]any{"devices": out})
}

// device handles GET /_matrix/client/v3/devices/{deviceId}.
func (a *API) device(w http.ResponseWriter, r *http.Request) error {
	d, err := a.Accounts.Device(r.Context(), web.Requester(r).UserID, id.DeviceID(web.PathParam(r, "deviceId")))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newDeviceJSON(d))
}

// renameDevice handles PUT /_matrix/client/v3/devices/{deviceId}.
func (a *API) renameDevice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		DisplayName *string `json:"display_name"`
	}](r)
	if err != nil {
		return err
	}
	user, device := web.Requester(r).UserID, id.DeviceID(web.PathParam(r, "deviceId"))
	if web.Requester(r).AppService != "" {
		return a.putServiceDevice(w, r, user, device, req.DisplayName)
	}
	if req.DisplayName == nil {
		_, err = a.Accounts.Device(r.Context(), user, device)
	} else {
		err = a.Accounts.RenameDevice(r.Context(), user, device, *req.DisplayName)
	}
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// deleteDevice handles DELETE /_matrix/client/v3/devices/{deviceId}.
func (a *API) deleteDevice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Auth *authData `json:"auth"`
	}](r)
	if err != nil {
		return err
	}
	return a.endDevices(w, r, req.Auth, []id.DeviceID{id.DeviceID(web.PathParam(r, "deviceId"))})
}

// maxDeletedDevices bounds one request; nobody has so many.
const maxDeletedDevices = 1000

// deleteDevices handles POST /_matrix/client/v3/delete_devices.
func (a *API) deleteDevices(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Devices *[]id.DeviceID `json:"devices"`
		Auth    *authData      `json:"auth"`
	}](r)
	switch {
	case err != nil:
		return err
	case req.Devices == nil:
		return mxerr.MissingParam("'devices' is required")
	case len(*req.Devices) > maxDeletedDevices:
		return mxerr.InvalidParam("'devices' names too many devices")
	}
	return a.endDevices(w, r, req.Auth, *req.Devices)
}

// endDevices deletes devices after the user has proved to be there, for just these devices.
func (a *API) endDevices(w http.ResponseWriter, r *http.Request, auth *authData, devices []id.DeviceID) error {
	devices = slices.Compact(slices.Sorted(slices.Values(devices)))
	h := sha256.New()
	for _, d := range devices {
		h.Write([]byte(d))
		h.Write([]byte{0})
	}
	if err := a.requireUIA(r, auth, "delete devices "+hex.EncodeToString(h.Sum(nil))); err != nil {
		return err
	}
	if devices == nil {
		devices = []id.DeviceID{} // none, not all
	}
	if err := a.Accounts.EndSessions(r.Context(), web.Requester(r).UserID, account.Ending{Devices: devices}); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}
