package clientapi

import (
	"math"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// dehydratedRoutes are the endpoints of dehydrated devices (MSC3814).
func (a *API) dehydratedRoutes() []web.Route {
	const path = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
	return []web.Route{
		{Pattern: "GET " + path, Auth: web.NoGuest, Rate: web.RateRead, Handler: a.dehydratedDevice},
		{Pattern: "PUT " + path, Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateRead, Handler: a.dehydrate},
		{Pattern: "DELETE " + path, Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateRead, Handler: a.deleteDehydrated},
		{Pattern: "GET " + path + "/{deviceId}/events", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.getDehydratedEvents},
		{Pattern: "POST " + path + "/{deviceId}/events", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateRead, Handler: a.postDehydratedEvents},
	}
}

// dehydratedDevice handles GET …/dehydrated_device.
func (a *API) dehydratedDevice(w http.ResponseWriter, r *http.Request) error {
	d, err := a.Accounts.DehydratedDevice(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"device_id": d.ID, "device_data": d.Data})
}

// dehydrate handles PUT …/dehydrated_device.
func (a *API) dehydrate(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		DeviceID     id.DeviceID               `json:"device_id"`
		Data         jsontext.Value            `json:"device_data"`
		DisplayName  *string                   `json:"initial_device_display_name"`
		DeviceKeys   jsontext.Value            `json:"device_keys"`
		OneTimeKeys  map[string]jsontext.Value `json:"one_time_keys"`
		FallbackKeys map[string]jsontext.Value `json:"fallback_keys"`
	}](r)
	if err != nil {
		return err
	}
	switch {
	case req.DeviceID == "":
		return mxerr.MissingParam("'device_id' is required")
	case req.Data.Kind() != '{':
		return mxerr.BadJSON("'device_data' must be an object")
	case req.DeviceKeys.Kind() != '{':
		return mxerr.BadJSON("'device_keys' must be an object")
	}
	user := web.Requester(r).UserID
	if req.DeviceID == web.Requester(r).DeviceID {
		return mxerr.InvalidParam("the device that asks cannot be dehydrated itself")
	}
	if err := a.Accounts.Dehydrate(r.Context(), user, account.Dehydrated{ID: req.DeviceID, Data: req.Data, DisplayName: req.DisplayName}); err != nil {
		return err
	}
	_, err = a.Keys.Upload(r.Context(), user, req.DeviceID, account.KeyUpload{DeviceKeys: req.DeviceKeys, OneTimeKeys: req.OneTimeKeys, FallbackKeys: req.FallbackKeys})
	if err != nil {
		// A device without keys serves nobody.
		if e := a.Accounts.DropDehydrated(r.Context(), user, req.DeviceID); e != nil {
			a.Logger.Warn("a dehydrated device without keys stays", "user_id", user, "error", e)
		}
		return err
	}
	return web.WriteJSON(w, map[string]id.DeviceID{"device_id": req.DeviceID})
}

// deleteDehydrated handles DELETE …/dehydrated_device.
func (a *API) deleteDehydrated(w http.ResponseWriter, r *http.Request) error {
	user := web.Requester(r).UserID
	d, err := a.Accounts.DehydratedDevice(r.Context(), user)
	if err != nil {
		return err
	}
	if err := a.Accounts.DropDehydrated(r.Context(), user, d.ID); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]id.DeviceID{"device_id": d.ID})
}

// getDehydratedEvents handles GET …/dehydrated_device/{deviceId}/events, with the token in the query.
func (a *API) getDehydratedEvents(w http.ResponseWriter, r *http.Request) error {
	from := web.QueryString(r, "from")
	if from == "" {
		from = web.QueryString(r, "next_batch")
	}
	return a.dehydratedEvents(w, r, from)
}

// postDehydratedEvents handles POST …/dehydrated_device/{deviceId}/events, with the token in the body.
func (a *API) postDehydratedEvents(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		NextBatch string `json:"next_batch"`
	}](r)
	if err != nil {
		return err
	}
	return a.dehydratedEvents(w, r, req.NextBatch)
}

// dehydratedEvents answers with what the device has received; it stays there until the device is deleted.
func (a *API) dehydratedEvents(w http.ResponseWriter, r *http.Request, from string) error {
	const most = 100
	after := int64(0)
	if from != "" {
		var err error
		if after, err = strconv.ParseInt(from, 10, 64); err != nil || after < 0 {
			return mxerr.InvalidParam("this server gave out no such token for a dehydrated device")
		}
	}
	user, device := web.Requester(r).UserID, id.DeviceID(web.PathParam(r, "deviceId"))
	d, err := a.Accounts.DehydratedDevice(r.Context(), user)
	if err != nil {
		return err
	}
	if d.ID != device {
		return mxerr.Forbidden("this is not your dehydrated device")
	}
	events, last, err := a.Keys.ToDeviceMessages(r.Context(), user, device, after, math.MaxInt64, most)
	if err != nil {
		return err
	}
	if events == nil {
		events, last = []jsontext.Value{}, after
	}
	return web.WriteJSON(w, map[string]any{"events": events, "next_batch": strconv.FormatInt(last, 10)})
}
