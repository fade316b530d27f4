package clientapi

import (
	"net/http"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/web"
)

// Clients send messages to devices by themselves, some for each message that people write: these draw from the larger
// bucket of reads.
func (a *API) toDeviceRoutes() []web.Route {
	return []web.Route{
		{Pattern: "PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.sendToDevice},
	}
}

// sendToDevice handles PUT /_matrix/client/v3/sendToDevice/{eventType}/{txnId}.
func (a *API) sendToDevice(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSONLimit[struct {
		Messages map[id.UserID]map[id.DeviceID]jsontext.Value `json:"messages"`
	}](r, maxKeyBody)
	if err != nil {
		return err
	}
	if req.Messages == nil {
		return errMissing("messages")
	}
	who := web.Requester(r)
	err = a.Keys.SendToDevice(r.Context(), account.ToDevice{
		Sender:   who.UserID,
		Device:   who.DeviceID,
		Type:     web.PathParam(r, "eventType"),
		TxnID:    web.PathParam(r, "txnId"),
		Messages: req.Messages,
	})
	if err != nil {
		return err
	}
	return empty(w)
}
