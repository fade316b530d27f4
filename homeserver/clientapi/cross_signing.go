package clientapi

import (
	"errors"
	"net/http"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) crossSigningRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/keys/device_signing/upload", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.uploadCrossSigning},
		{Pattern: "POST /_matrix/client/v3/keys/signatures/upload", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.uploadSignatures},
		// matrix-js-sdk still calls these by the paths of the time before they were in the specification.
		{Pattern: "POST /_matrix/client/unstable/keys/device_signing/upload", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.uploadCrossSigning},
		{Pattern: "POST /_matrix/client/unstable/keys/signatures/upload", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.uploadSignatures},
	}
}

// uploadCrossSigning handles POST /_matrix/client/v3/keys/device_signing/upload. Element Web first sends it without keys
// or without a body, to learn from the 401 how its user would have to authenticate.
func (a *API) uploadCrossSigning(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		MasterKey      jsontext.Value `json:"master_key"`
		SelfSigningKey jsontext.Value `json:"self_signing_key"`
		UserSigningKey jsontext.Value `json:"user_signing_key"`
		Auth           *authData      `json:"auth"`
	}](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	keys := account.CrossSigningUpload{Master: req.MasterKey, SelfSigning: req.SelfSigningKey, UserSigning: req.UserSigningKey}
	// What needs no approval, or is refused anyway, does not use one up.
	err = a.Keys.UploadCrossSigning(r.Context(), who.UserID, keys, false)
	if errors.Is(err, account.ErrNeedsApproval) {
		if err := a.requireUIA(r, req.Auth, "upload cross-signing keys"); err != nil {
			return err
		}
		err = a.Keys.UploadCrossSigning(r.Context(), who.UserID, keys, true)
	}
	if err != nil {
		return err
	}
	return empty(w)
}

// uploadSignatures handles POST /_matrix/client/v3/keys/signatures/upload.
func (a *API) uploadSignatures(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[account.SignatureUpload](r)
	if err != nil {
		return err
	}
	failures, err := a.Keys.UploadSignatures(r.Context(), web.Requester(r).UserID, req)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"failures": failures})
}
