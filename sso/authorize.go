package sso

import (
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) authorizeRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+pathOAuth+"/authorize", s.authorize),
		s.form("POST "+pathConsent, s.consent),
	}
}

const (
	scopeOpenID         = "openid"
	scopeAPI            = "urn:matrix:client:api:*"
	scopeDevice         = "urn:matrix:client:device:*"
	devicePrefix        = "urn:matrix:client:device:"
	unstableScopeAPI    = "urn:matrix:org.matrix.msc2967.client:api:*"
	unstableDevice      = "urn:matrix:org.matrix.msc2967.client:device:"
	codeLifetime        = time.Minute
	maxState, maxScopes = 2048, 16
)

// request is an authorization request that can be answered at its redirect URI.
type request struct {
	client    *client
	redirect  string
	mode      string // query or fragment
	state     string
	scope     string // as it is granted
	device    id.DeviceID
	openID    bool
	challenge string
	nonce     string
	create    bool
	hint      string
}

// scopes are what a client may do, as it asked for it.
type scopes struct {
	granted string
	device  id.DeviceID
	openID  bool
}

// parseScope reads a scope. What is not known is not granted; there must be the client-server API and one device.
// Spec: client-server API, "Scope".
func parseScope(text string) (scopes, *oauthError) {
	var out scopes
	var granted []string
	api, devices := false, 0
	tokens := strings.Fields(text)
	if len(tokens) > maxScopes {
		return out, badRequest("invalid_scope", "the scope has too many parts")
	}
	for _, t := range tokens {
		device, isDevice := strings.CutPrefix(t, devicePrefix)
		if !isDevice {
			device, isDevice = strings.CutPrefix(t, unstableDevice)
		}
		switch {
		case t == scopeAPI || t == unstableScopeAPI:
			api = true
		case isDevice:
			devices++
			out.device = id.DeviceID(device)
		case t == scopeOpenID:
			out.openID = true
		default:
			continue
		}
		if !slices.Contains(granted, t) {
			granted = append(granted, t)
		}
	}
	switch {
	case !api:
		return out, badRequest("invalid_scope", "the scope must hold "+scopeAPI)
	case devices != 1:
		return out, badRequest("invalid_scope", "the scope must hold one "+devicePrefix+"<device id>")
	case !validDevice(out.device):
		return out, badRequest("invalid_scope", "the device id must have 1 to 255 characters that a scope may have")
	}
	out.granted = strings.Join(granted, " ")
	return out, nil
}

// validDevice checks a device id. Spec: client-server API, "Device ID allocation"; RFC 6749, section 3.3.
func validDevice(device id.DeviceID) bool {
	if device == "" || account.ValidateDeviceID(device) != nil {
		return false
	}
	for _, c := range []byte(device) {
		if c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

var challengeForm = regexp.MustCompile(`^[A-Za-z0-9_-]{43}$`)

// parseRequest reads an authorization request. Errors that must not be sent to the redirect URI, because it is not known to
// be the client's, are err; refused is sent there. RFC 6749, section 4.1.2.1.
func (s *SSO) parseRequest(r *http.Request) (q *request, refused *oauthError, err error) {
	form := r.URL.Query()
	for name, values := range form {
		if len(values) > 1 {
			return nil, nil, mxerr.InvalidParam("the parameter " + name + " is there twice") // RFC 6749, section 3.1
		}
	}
	c, err := s.client(r, form.Get("client_id"))
	if err != nil {
		return nil, nil, err
	}
	if c == nil {
		return nil, nil, errNoClient
	}
	q = &request{
		client: c, redirect: form.Get("redirect_uri"), mode: form.Get("response_mode"), state: form.Get("state"), challenge: form.Get("code_challenge"),
		nonce: form.Get("nonce"), create: form.Get("prompt") == "create", hint: form.Get("login_hint"),
	}
	if !c.redirects(q.redirect) {
		return nil, nil, errForeignRedirect
	}
	if q.mode == "" {
		q.mode = "query"
	}
	if q.mode != "query" && q.mode != "fragment" {
		return nil, nil, mxerr.InvalidParam("response_mode must be query or fragment")
	}
	switch {
	case len(q.state) > maxState || len(q.nonce) > maxState:
		q.state = ""
		return q, badRequest("invalid_request", "state or nonce is too long"), nil
	case form.Get("response_type") != "code":
		return q, badRequest("unsupported_response_type", "response_type must be code"), nil
	case !c.allows(grantCode):
		return q, badRequest("unauthorized_client", "the client did not register for this grant"), nil
	case form.Get("request") != "":
		return q, badRequest("request_not_supported", ""), nil
	case form.Get("request_uri") != "":
		return q, badRequest("request_uri_not_supported", ""), nil
	case form.Get("code_challenge_method") != "S256" || !challengeForm.MatchString(q.challenge):
		return q, badRequest("invalid_request", "a code_challenge of method S256 is required"), nil
	}
	sc, refused := parseScope(form.Get("scope"))
	q.scope, q.device, q.openID = sc.granted, sc.device, sc.openID
	return q, refused, nil
}

var errForeignRedirect = mxerr.New(http.StatusBadRequest, "M_INVALID_PARAM", "the address that the app wants you to be sent back to is not one that it has registered")

// answer is the redirect URI with an answer. RFC 9207: iss tells the client who answers.
func (s *SSO) answer(q *request, params url.Values) string {
	if q.state != "" {
		params.Set("state", q.state)
	}
	params.Set("iss", s.issuer())
	if q.mode == "fragment" {
		return q.redirect + "#" + params.Encode()
	}
	sep := "?"
	if strings.Contains(q.redirect, "?") {
		sep = "&"
	}
	return q.redirect + sep + params.Encode()
}

func (s *SSO) refuse(w http.ResponseWriter, q *request, e *oauthError) error {
	params := url.Values{"error": {e.Code}}
	if e.Description != "" {
		params.Set("error_description", e.Description)
	}
	return goOut(w, s.answer(q, params))
}

// consentData is what the consent page shows.
type consentData struct {
	Client, Host, Redirect string
	Policy, TOS            string
	User                   id.UserID
	Device                 id.DeviceID
	Known                  bool   // the user has a device of this id
	Action                 string // of the form, with the request
	Return                 string // the request as a path of ours
}

// authorize handles GET /oauth2/authorize. The request lies in the address alone and is read again when the person agrees.
// Spec: client-server API, "Authorisation code flow"; RFC 6749, section 4.1.1.
func (s *SSO) authorize(w http.ResponseWriter, r *http.Request) error {
	q, refused, err := s.parseRequest(r)
	if err != nil {
		return err
	}
	if refused != nil {
		return s.refuse(w, q, refused)
	}
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	if b == nil {
		return s.signInFor(w, r, q)
	}
	known := false
	err = s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		_, known, err = tx.Device(b.User, q.device)
		return err
	})
	if err != nil {
		return err
	}
	query := r.URL.RawQuery
	return s.pages.RenderTo(w, r, http.StatusOK, "consent", consentData{
		Client: q.client.name(s.Kit.Lang(r)), Host: q.client.host(), Redirect: redirectName(q.redirect), Policy: q.client.PolicyURI, TOS: q.client.TOSURI,
		User: b.User, Device: q.device, Known: known, Action: pathConsent + "?" + query, Return: pathOAuth + "/authorize?" + query,
	}, formTarget(q.redirect))
}

// signInFor begins the sign-in that a request needs first.
func (s *SSO) signInFor(w http.ResponseWriter, r *http.Request, q *request) error {
	hint := strings.TrimPrefix(q.hint, "mxid:")
	if hint != "" {
		hint = id.UserID(hint).Localpart()
	}
	_, err := s.begin(w, r, Attempt{Return: r.URL.RequestURI(), Client: q.client.name(s.Kit.Lang(r)), Create: q.create, Hint: cut(hint, 255)})
	if err != nil {
		return err
	}
	return goTo(w, r, PathSignIn)
}

// redirectName is what people see of where they are sent.
func redirectName(uri string) string {
	u, err := url.Parse(uri)
	if err != nil || u.Host == "" {
		return strings.SplitN(uri, ":", 2)[0] + ":"
	}
	return u.Host
}

// formTarget is the source expression of a redirect URI for the page's policy.
func formTarget(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	if u.Host == "" {
		return u.Scheme + ":"
	}
	return u.Scheme + "://" + u.Host
}

// consent handles POST /consent?QUERY, where QUERY is the authorization request.
func (s *SSO) consent(w http.ResponseWriter, r *http.Request) error {
	q, refused, err := s.parseRequest(r)
	if err != nil {
		return err
	}
	if refused != nil {
		return s.refuse(w, q, refused)
	}
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	if b == nil {
		r.URL.Path = pathOAuth + "/authorize"
		return s.signInFor(w, r, q)
	}
	// Who was shown on the page must be who agrees: another tab may have signed in somebody else.
	if r.PostFormValue("user") != string(b.User) {
		return goTo(w, r, pathOAuth+"/authorize?"+r.URL.RawQuery)
	}
	if r.PostFormValue("answer") != "allow" {
		return s.refuse(w, q, badRequest("access_denied", "the user did not agree"))
	}
	code := newSecret()
	data, err := json.Marshal(codeData{
		Client: q.client.ID, Redirect: q.redirect, Challenge: q.challenge, Scope: q.scope, Device: q.device, OpenID: q.openID, Nonce: q.nonce,
		proof: proof{AMR: b.AMR, Way: b.Way, AuthTime: b.AuthTime, Browser: b.ID, Factor: b.FactorTime},
	})
	if err != nil {
		return err
	}
	now := s.now()
	err = s.Store.Write(r.Context(), func(tx *store.Tx) error {
		if err := tx.InsertOAuthCode(store.HashID(code), b.User, data, now+codeLifetime.Milliseconds()); err != nil {
			return err
		}
		if err := tx.UseOAuthClient(q.client.ID, now); err != nil {
			return err
		}
		return audit.Append(source(r.Context(), b.User, b.ID[:8]), tx, audit.Entry{
			Action: "oauth.consent", Target: string(q.device), Details: map[string]any{"client": q.client.ID, "name": q.client.Name, "uri": q.client.URI},
		})
	})
	if err != nil {
		return err
	}
	return goOut(w, s.answer(q, url.Values{"code": {code}}))
}

// proof is how the person behind a code had signed in.
type proof struct {
	AMR      []string  `json:"amr"`
	Way      string    `json:"way"`
	AuthTime time.Time `json:"auth_time"`
	Factor   time.Time `json:"factor,omitzero"`
	Browser  string    `json:"browser"`
}

// codeData is what an authorization code stands for.
type codeData struct {
	Client    string      `json:"client"`
	Redirect  string      `json:"redirect,omitzero"`
	Challenge string      `json:"challenge,omitzero"`
	Scope     string      `json:"scope"`
	Device    id.DeviceID `json:"device"`
	OpenID    bool        `json:"openid,omitzero"`
	Nonce     string      `json:"nonce,omitzero"`
	proof     `json:",inline"`
}
