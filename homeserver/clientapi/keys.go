package clientapi

import (
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// Clients call these endpoints by themselves, many times while they set up encryption: they draw from the larger bucket
// of reads, also where they write.
func (a *API) keyRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/keys/upload", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.uploadKeys},
		{Pattern: "POST /_matrix/client/v3/keys/query", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.queryKeys},
		{Pattern: "POST /_matrix/client/v3/keys/claim", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.claimKeys},
		{Pattern: "GET /_matrix/client/v3/keys/changes", Auth: web.User, Rate: web.RateRead, Handler: a.keyChanges},
	}
}

// maxKeyBody is the most bytes of requests about the keys of many devices.
const maxKeyBody = 4 << 20

// uploadKeys handles POST /_matrix/client/v3/keys/upload.
func (a *API) uploadKeys(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		DeviceKeys   jsontext.Value            `json:"device_keys"`
		OneTimeKeys  map[string]jsontext.Value `json:"one_time_keys"`
		FallbackKeys map[string]jsontext.Value `json:"fallback_keys"`
	}](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	counts, err := a.Keys.Upload(r.Context(), who.UserID, who.DeviceID, account.KeyUpload(req))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"one_time_key_counts": counts})
}

// queryKeys handles POST /_matrix/client/v3/keys/query.
func (a *API) queryKeys(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSONLimit[struct {
		Timeout    int64                       `json:"timeout"` // for other servers
		DeviceKeys map[id.UserID][]id.DeviceID `json:"device_keys"`
	}](r, maxKeyBody)
	if err != nil {
		return err
	}
	if req.DeviceKeys == nil {
		return errMissing("device_keys")
	}
	out, err := a.Keys.Query(r.Context(), web.Requester(r).UserID, req.DeviceKeys)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// claimKeys handles POST /_matrix/client/v3/keys/claim.
func (a *API) claimKeys(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSONLimit[struct {
		Timeout     int64                                `json:"timeout"` // for other servers
		OneTimeKeys map[id.UserID]map[id.DeviceID]string `json:"one_time_keys"`
	}](r, maxKeyBody)
	if err != nil {
		return err
	}
	if req.OneTimeKeys == nil {
		return errMissing("one_time_keys")
	}
	out, err := a.Keys.Claim(r.Context(), req.OneTimeKeys)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// keyChanges handles GET /_matrix/client/v3/keys/changes. "to" is a hint that the database is not in need of.
func (a *API) keyChanges(w http.ResponseWriter, r *http.Request) error {
	var from int64
	for _, name := range []string{"from", "to"} {
		token := web.QueryString(r, name)
		if token == "" {
			return mxerr.MissingParam("query parameter '" + name + "' is required")
		}
		pos, err := a.ParseSyncToken(token)
		if err != nil {
			return err
		}
		if name == "from" {
			from = pos
		}
	}
	changed, left, err := a.Keys.Changes(r.Context(), web.Requester(r).UserID, from)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"changed": changed, "left": left})
}
