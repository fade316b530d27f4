package clientapi

import (
	"context"
	"net/http"

	"golang.org/x/text/language"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// emailRoutes are the endpoints of addresses outside of Matrix.
// Spec: client-server API, "Adding Account Administrative Contact Information", "Account registration", "Password management".
func (a *API) emailRoutes() []web.Route {
	const v3 = "POST /_matrix/client/v3"
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/account/3pid", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.threepids},
		{Pattern: v3 + "/account/3pid", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.postThreepid},
		{Pattern: v3 + "/account/3pid/add", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.addThreepid},
		// Spec, "Account suspension": suspended users may add such addresses, but not remove them.
		{Pattern: v3 + "/account/3pid/delete", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.deleteThreepid},
		{Pattern: v3 + "/account/3pid/bind", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.bindThreepid},
		{Pattern: v3 + "/account/3pid/unbind", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.unbindThreepid},
		// Clients ask for mails without an access token even when they have one.
		{Pattern: v3 + "/register/email/requestToken", Auth: web.Public, Rate: web.RateRegister, Handler: a.requestEmailToRegister},
		{Pattern: v3 + "/account/3pid/email/requestToken", Auth: web.Optional, AllowSuspended: true, Rate: web.RateRegister, Handler: a.requestEmailToAdd},
		{Pattern: v3 + "/account/password/email/requestToken", Auth: web.Optional, AllowSuspended: true, Rate: web.RateRegister, Handler: a.requestEmailToReset},
		{Pattern: v3 + "/register/msisdn/requestToken", Auth: web.Public, Rate: web.RateRegister, Handler: a.requestMessage},
		{Pattern: v3 + "/account/3pid/msisdn/requestToken", Auth: web.Optional, AllowSuspended: true, Rate: web.RateRegister, Handler: a.requestMessage},
		{Pattern: v3 + "/account/password/msisdn/requestToken", Auth: web.Optional, AllowSuspended: true, Rate: web.RateRegister, Handler: a.requestMessage},
	}
}

// Operations that may be allowed by the proof of an e-mail address.
const (
	operationRegister      = "register"
	operationResetPassword = "reset password"
)

// threepidCreds name the session in which an address was proved.
type threepidCreds struct {
	SID          string `json:"sid"`
	ClientSecret string `json:"client_secret"`
}

// tryEmail checks the stage m.login.email.identity: the address is to be proved for just this operation.
func (a *API) tryEmail(r *http.Request, auth *authData, operation string) (account.StageProof, error) {
	c := auth.ThreepidCreds
	if c == nil || c.SID == "" || c.ClientSecret == "" {
		return account.StageProof{}, mxerr.MissingParam("'auth.threepid_creds' must have 'sid' and 'client_secret'")
	}
	purpose := store.EmailForRegistration
	if operation == operationResetPassword {
		purpose = store.EmailForPassword
	}
	err := a.Accounts.CheckEmail(r.Context(), c.SID, c.ClientSecret, purpose)
	if refused := mxerr.As(err); refused != nil && refused.Code == "M_THREEPID_AUTH_FAILED" {
		// Clients ask again until the mail's link was opened.
		return account.StageProof{}, mxerr.New(http.StatusUnauthorized, refused.Code, refused.Message)
	}
	return account.StageProof{EmailSID: c.SID}, err
}

// addressOwner is the user id of the account that has an address, or nobody.
func (a *API) addressOwner(ctx context.Context, medium, address string) (string, error) {
	if medium != store.MediumEmail {
		return nobody, nil
	}
	user, err := a.Accounts.EmailUser(ctx, address)
	if err != nil || user == "" {
		return nobody, err
	}
	return string(user), nil
}

type threepidJSON struct {
	Medium      string `json:"medium"`
	Address     string `json:"address"`
	ValidatedAt int64  `json:"validated_at"`
	AddedAt     int64  `json:"added_at"`
}

// threepids handles GET /_matrix/client/v3/account/3pid.
func (a *API) threepids(w http.ResponseWriter, r *http.Request) error {
	all, err := a.Accounts.Threepids(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	out := make([]threepidJSON, len(all))
	for i, t := range all {
		out[i] = threepidJSON{t.Medium, t.Address, t.Validated, t.Added}
	}
	return web.WriteJSON(w, map[string]any{"threepids": out})
}

// emailRequest is the body of the three requestToken endpoints. An identity server that it names is not asked: this
// server proves addresses itself.
type emailRequest struct {
	ClientSecret  *string `json:"client_secret"`
	Email         *string `json:"email"`
	SendAttempt   *int64  `json:"send_attempt"`
	NextLink      string  `json:"next_link"`
	IDServer      string  `json:"id_server"`
	IDAccessToken string  `json:"id_access_token"`
}

// requestEmailToRegister handles POST /_matrix/client/v3/register/email/requestToken.
func (a *API) requestEmailToRegister(w http.ResponseWriter, r *http.Request) error {
	if a.Accounts.Config.Registration.Mode == account.RegistrationClosed {
		return errRegistrationClosed
	}
	return a.requestEmail(w, r, store.EmailForRegistration)
}

// requestEmailToAdd handles POST /_matrix/client/v3/account/3pid/email/requestToken.
func (a *API) requestEmailToAdd(w http.ResponseWriter, r *http.Request) error {
	return a.requestEmail(w, r, store.EmailForAddress)
}

// requestEmailToReset handles POST /_matrix/client/v3/account/password/email/requestToken.
func (a *API) requestEmailToReset(w http.ResponseWriter, r *http.Request) error {
	return a.requestEmail(w, r, store.EmailForPassword)
}

var mailLanguages = language.NewMatcher([]language.Tag{language.English, language.Chinese})

func (a *API) requestEmail(w http.ResponseWriter, r *http.Request, purpose store.EmailPurpose) error {
	req, err := web.ReadJSON[emailRequest](r)
	switch {
	case err != nil:
		return err
	case req.ClientSecret == nil:
		return mxerr.MissingParam("'client_secret' is required")
	case req.Email == nil:
		return mxerr.MissingParam("'email' is required")
	case req.SendAttempt == nil:
		return mxerr.MissingParam("'send_attempt' is required")
	}
	lang := "en"
	if tags, _, err := language.ParseAcceptLanguage(r.Header.Get("Accept-Language")); err == nil && len(tags) > 0 {
		if _, i, _ := mailLanguages.Match(tags...); i == 1 {
			lang = "zh"
		}
	}
	sid, err := a.Accounts.RequestEmail(r.Context(), account.EmailRequest{
		Purpose: purpose, Address: *req.Email, ClientSecret: *req.ClientSecret, SendAttempt: *req.SendAttempt, NextLink: req.NextLink, Lang: lang,
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"sid": sid})
}

// requestMessage handles POST …/msisdn/requestToken. This server sends no text messages.
func (a *API) requestMessage(w http.ResponseWriter, r *http.Request) error {
	if _, err := web.ReadJSON[struct {
		ClientSecret  string `json:"client_secret"`
		Country       string `json:"country"`
		PhoneNumber   string `json:"phone_number"`
		SendAttempt   int64  `json:"send_attempt"`
		NextLink      string `json:"next_link"`
		IDServer      string `json:"id_server"`
		IDAccessToken string `json:"id_access_token"`
	}](r); err != nil {
		return err
	}
	return mxerr.New(http.StatusBadRequest, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "this server sends no text messages: phone numbers cannot be used here")
}

// addThreepid handles POST /_matrix/client/v3/account/3pid/add.
func (a *API) addThreepid(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Auth         *authData `json:"auth"`
		ClientSecret *string   `json:"client_secret"`
		SID          *string   `json:"sid"`
	}](r)
	switch {
	case err != nil:
		return err
	case req.ClientSecret == nil:
		return mxerr.MissingParam("'client_secret' is required")
	case req.SID == nil:
		return mxerr.MissingParam("'sid' is required")
	}
	if err := a.Accounts.CheckEmail(r.Context(), *req.SID, *req.ClientSecret, store.EmailForAddress); err != nil {
		return err
	}
	if err := a.requireUIA(r, req.Auth, "add the address of "+*req.SID); err != nil {
		return err
	}
	if err := a.Accounts.AddEmail(r.Context(), web.Requester(r).UserID, *req.SID); err != nil {
		return err
	}
	return empty(w)
}

// identityRequest is what the endpoints take that speak to an identity server.
type identityRequest struct {
	ClientSecret  *string `json:"client_secret"`
	IDServer      *string `json:"id_server"`
	IDAccessToken *string `json:"id_access_token"`
	SID           *string `json:"sid"`
}

func (req *identityRequest) check() error {
	switch {
	case req.ClientSecret == nil:
		return mxerr.MissingParam("'client_secret' is required")
	case req.IDServer == nil:
		return mxerr.MissingParam("'id_server' is required")
	case req.IDAccessToken == nil:
		return mxerr.MissingParam("'id_access_token' is required")
	case req.SID == nil:
		return mxerr.MissingParam("'sid' is required")
	}
	return nil
}

// postThreepid handles the deprecated POST /_matrix/client/v3/account/3pid: it takes an identity server's word for an
// address, and asks for no password. This server takes no other server's word.
func (a *API) postThreepid(_ http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Creds *identityRequest `json:"three_pid_creds"`
	}](r)
	switch {
	case err != nil:
		return err
	case req.Creds == nil:
		return mxerr.MissingParam("'three_pid_creds' is required")
	}
	if err := req.Creds.check(); err != nil {
		return err
	}
	return mxerr.New(http.StatusForbidden, "M_THREEPID_AUTH_FAILED", "this server trusts no identity server; use /account/3pid/add")
}

// bindThreepid handles POST /_matrix/client/v3/account/3pid/bind.
func (a *API) bindThreepid(_ http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[identityRequest](r)
	if err != nil {
		return err
	}
	if err := req.check(); err != nil {
		return err
	}
	return mxerr.New(http.StatusBadRequest, "M_SERVER_NOT_TRUSTED", "this server trusts no identity server")
}

type threepidAddress struct {
	Medium   *string `json:"medium"`
	Address  *string `json:"address"`
	IDServer string  `json:"id_server"` // nothing was bound there by this server
}

func readThreepidAddress(r *http.Request) (threepidAddress, error) {
	req, err := web.ReadJSON[threepidAddress](r)
	switch {
	case err != nil:
	case req.Medium == nil:
		err = mxerr.MissingParam("'medium' is required")
	case req.Address == nil:
		err = mxerr.MissingParam("'address' is required")
	case *req.Medium != store.MediumEmail && *req.Medium != "msisdn":
		err = mxerr.InvalidParam("'medium' must be email or msisdn")
	}
	return req, err
}

// Spec: "no-support" also says that the homeserver knows no identity server to unbind from.
var notUnbound = map[string]string{"id_server_unbind_result": "no-support"}

// deleteThreepid handles POST /_matrix/client/v3/account/3pid/delete.
func (a *API) deleteThreepid(w http.ResponseWriter, r *http.Request) error {
	req, err := readThreepidAddress(r)
	if err != nil {
		return err
	}
	if err := a.Accounts.DeleteThreepid(r.Context(), web.Requester(r).UserID, *req.Medium, *req.Address); err != nil {
		return err
	}
	return web.WriteJSON(w, notUnbound)
}

// unbindThreepid handles POST /_matrix/client/v3/account/3pid/unbind. Nothing was bound by this server.
func (a *API) unbindThreepid(w http.ResponseWriter, r *http.Request) error {
	if _, err := readThreepidAddress(r); err != nil {
		return err
	}
	return web.WriteJSON(w, notUnbound)
}
