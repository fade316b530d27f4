package adminapi

import (
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) deviceRoutes() []web.Route {
	const user = v2 + "/users/{userId}"
	return []web.Route{
		{Pattern: "GET " + user + "/devices", Handler: a.devices},
		{Pattern: "POST " + user + "/devices", Rate: web.RateSend, Handler: a.makeDevice},
		{Pattern: "POST " + user + "/delete_devices", Rate: web.RateSend, Handler: a.deleteDevices},
		{Pattern: "GET " + user + "/devices/{deviceId}", Handler: a.device},
		{Pattern: "PUT " + user + "/devices/{deviceId}", Rate: web.RateSend, Handler: a.renameDevice},
		{Pattern: "DELETE " + user + "/devices/{deviceId}", Rate: web.RateSend, Handler: a.deleteDevice},
	}
}

type deviceJSON struct {
	DeviceID    id.DeviceID `json:"device_id"`
	DisplayName *string     `json:"display_name"`
	LastIP      *string     `json:"last_seen_ip"`
	LastAgent   *string     `json:"last_seen_user_agent"`
	LastSeen    *int64      `json:"last_seen_ts"`
	UserID      id.UserID   `json:"user_id"`
}

func newDeviceJSON(d store.Device) deviceJSON {
	out := deviceJSON{DeviceID: d.ID, DisplayName: d.DisplayName, UserID: d.User, LastIP: optional(d.LastIP), LastAgent: optional(d.LastAgent)}
	if d.LastSeen != 0 {
		out.LastSeen = &d.LastSeen
	}
	return out
}

// devices handles GET /_synapse/admin/v2/users/{userId}/devices.
func (a *API) devices(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	list, err := a.Accounts.Devices(r.Context(), u.ID)
	if err != nil {
		return err
	}
	out := make([]deviceJSON, 0, len(list))
	for _, d := range list {
		out = append(out, newDeviceJSON(d))
	}
	return web.WriteJSON(w, map[string]any{"devices": out, "total": len(out)})
}

// makeDevice handles POST /_synapse/admin/v2/users/{userId}/devices: a device without a session, for application services.
func (a *API) makeDevice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		DeviceID id.DeviceID `json:"device_id"`
	}](r)
	if err != nil {
		return err
	}
	if req.DeviceID == "" {
		return mxerr.MissingParam("'device_id' is required")
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if err := account.ValidateDeviceID(req.DeviceID); err != nil {
		return err
	}
	err = a.Store.Write(r.Context(), func(tx *store.Tx) error {
		if _, err := tx.InsertDevice(store.Device{User: u.ID, ID: req.DeviceID, Created: a.nowMS()}); err != nil {
			return err
		}
		return tx.AnnounceDeviceList(u.ID)
	})
	if err != nil {
		return err
	}
	return web.WriteJSONStatus(w, http.StatusCreated, struct{}{})
}

// deleteDevices handles POST /_synapse/admin/v2/users/{userId}/delete_devices.
func (a *API) deleteDevices(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Devices []id.DeviceID `json:"devices"`
	}](r)
	if err != nil {
		return err
	}
	if req.Devices == nil {
		return mxerr.MissingParam("'devices' is required")
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	if len(req.Devices) == 0 {
		return empty(w)
	}
	all, err := a.Accounts.Devices(r.Context(), u.ID)
	if err != nil {
		return err
	}
	ending := account.Ending{Devices: req.Devices}
	if !slices.ContainsFunc(all, func(d store.Device) bool { return !slices.Contains(req.Devices, d.ID) }) {
		ending.Devices = nil // whoever ends all sessions of somebody means those of browsers too
	}
	if err := a.Accounts.EndSessions(r.Context(), u.ID, ending); err != nil {
		return err
	}
	return empty(w)
}

// device handles GET /_synapse/admin/v2/users/{userId}/devices/{deviceId}.
func (a *API) device(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	d, err := a.Accounts.Device(r.Context(), u.ID, id.DeviceID(web.PathParam(r, "deviceId")))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newDeviceJSON(d))
}

// renameDevice handles PUT /_synapse/admin/v2/users/{userId}/devices/{deviceId}.
func (a *API) renameDevice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		DisplayName *string `json:"display_name"`
	}](r)
	if err != nil {
		return err
	}
	u, err := a.account(r)
	if err != nil {
		return err
	}
	device := id.DeviceID(web.PathParam(r, "deviceId"))
	if req.DisplayName == nil {
		if _, err := a.Accounts.Device(r.Context(), u.ID, device); err != nil {
			return err
		}
		return empty(w)
	}
	if err := a.Accounts.RenameDevice(r.Context(), u.ID, device, *req.DisplayName); err != nil {
		return err
	}
	return empty(w)
}

// deleteDevice handles DELETE /_synapse/admin/v2/users/{userId}/devices/{deviceId}.
func (a *API) deleteDevice(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	device := id.DeviceID(web.PathParam(r, "deviceId"))
	if err := a.Accounts.EndSessions(r.Context(), u.ID, account.Ending{Devices: []id.DeviceID{device}}); err != nil {
		return err
	}
	return empty(w)
}
