package sso

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

const (
	pathRedirect  = "/_matrix/client/v3/login/sso/redirect"
	maxRedirectTo = 4096
)

func (s *SSO) legacyRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+pathRedirect, s.redirect),
		s.page("GET "+pathRedirect+"/{idpId}", s.redirect),
		s.page("GET "+pathApp, s.showApp),
		s.form("POST "+pathApp, s.confirmApp),
		s.page("GET /_matrix/static/client/login", s.loginFallback),
		s.page("GET /_matrix/static/client/login/", s.loginFallback),
		s.page("GET /_matrix/client/v3/auth/{authType}/fallback/web", s.authFallback),
	}
}

// Provider is an identity provider as GET /login names it. Spec: client-server API, "Client login via SSO".
type Provider struct {
	ID, Name, Icon, Brand string
}

// IdentityProviders lists them.
func (s *SSO) IdentityProviders() []Provider {
	if s.Providers == nil {
		return nil
	}
	var out []Provider
	for _, p := range s.Providers.List("en") {
		one := Provider{ID: p.ID, Name: p.Name, Brand: p.Brand}
		if strings.HasPrefix(p.Icon, "mxc://") {
			one.Icon = p.Icon
		}
		out = append(out, one)
	}
	return out
}

// badTarget tells why clients may not be sent to an address, by an error for people. Scripts and documents in an address
// would run as ours in some browsers.
func badTarget(target string) error {
	bad := mxerr.InvalidParam("the app's address (redirectUrl) is missing or cannot be used")
	u, err := url.Parse(target)
	if err != nil || len(target) > maxRedirectTo || u.Scheme == "" || u.User != nil || strings.ContainsAny(target, "\\\r\n\t\x00") {
		return bad
	}
	switch strings.ToLower(u.Scheme) {
	case "javascript", "data", "vbscript", "file", "blob", "about", "filesystem", "view-source":
		return bad
	case "http", "https":
		if u.Host == "" {
			return bad
		}
	}
	return nil
}

// allowed tells whether the operator trusts an address.
func (s *SSO) allowed(target string) bool {
	for _, prefix := range s.Config.RedirectsAllowed {
		if strings.HasPrefix(target, prefix) {
			return true
		}
	}
	return false
}

// redirect handles GET /_matrix/client/v3/login/sso/redirect and …/{idpId}.
// Spec: client-server API, "Client login via SSO".
func (s *SSO) redirect(w http.ResponseWriter, r *http.Request) error {
	target := web.QueryString(r, "redirectUrl")
	if target == "" {
		return mxerr.MissingParam("query parameter 'redirectUrl' is required")
	}
	if err := badTarget(target); err != nil {
		return err
	}
	provider := web.PathParam(r, "idpId")
	if provider != "" {
		known := false
		if s.Providers != nil {
			_, known = s.Providers.Get(provider, "en")
		}
		if !known {
			return mxerr.NotFound("there is no such identity provider here")
		}
	}
	back := pathApp + "?" + url.Values{"redirectUrl": {target}}.Encode()
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	if b != nil && provider == "" {
		return found(w, back)
	}
	a := Attempt{Return: back, Client: redirectName(target), Create: web.QueryString(r, "action") == "register"}
	if _, err := s.begin(w, r, a); err != nil {
		return err
	}
	if provider != "" {
		return found(w, PathSignIn+"/upstream/"+url.PathEscape(provider))
	}
	return found(w, PathSignIn)
}

// found is the redirect that the specification names for these endpoints.
func found(w http.ResponseWriter, path string) error {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Location", path)
	w.WriteHeader(http.StatusFound)
	return nil
}

type appData struct {
	User        id.UserID
	Host        string
	Target      string
	Link        string // with the token; for addresses that are trusted
	RedirectURL string
	Return      string
}

// showApp handles GET /signin/app: whoever is signed in is asked whether the app may have a login token, unless the operator
// trusts its address.
func (s *SSO) showApp(w http.ResponseWriter, r *http.Request) error {
	target := web.QueryString(r, "redirectUrl")
	if err := badTarget(target); err != nil {
		return err
	}
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	d := appData{User: b.User, Host: redirectName(target), RedirectURL: target, Return: r.URL.RequestURI()}
	if !s.allowed(target) {
		return s.pages.RenderTo(w, r, http.StatusOK, "app", d, formTarget(target))
	}
	link, err := s.loginLink(r, b, target)
	if err != nil {
		return err
	}
	d.Link = link
	// A page that goes on by itself: browsers hold redirects that follow a form against the policy of the form's page.
	return s.pages.Render(w, r, http.StatusOK, "app_go", d)
}

// confirmApp handles POST /signin/app.
func (s *SSO) confirmApp(w http.ResponseWriter, r *http.Request) error {
	target := r.PostFormValue("redirectUrl")
	if err := badTarget(target); err != nil {
		return err
	}
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	if b == nil || r.PostFormValue("user") != string(b.User) {
		return goTo(w, r, pathApp+"?"+url.Values{"redirectUrl": {target}}.Encode())
	}
	link, err := s.loginLink(r, b, target)
	if err != nil {
		return err
	}
	return goOut(w, link)
}

// loginLink is the app's address with a new login token.
func (s *SSO) loginLink(r *http.Request, b *Browser, target string) (string, error) {
	ctx := source(r.Context(), b.User, b.ID[:8])
	if err := s.Audit.Record(ctx, audit.Entry{Action: "signin.app", Target: string(b.User), Details: map[string]any{"app": redirectName(target)}}); err != nil {
		return "", err
	}
	token, _, err := s.Accounts.LoginToken(ctx, b.User)
	if err != nil {
		return "", err
	}
	if s.Providers != nil {
		if err := s.Providers.RememberToken(ctx, b.ID, b.User, token); err != nil {
			return "", err
		}
	}
	u, err := url.Parse(target)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Del("loginToken") // the app must find ours
	extra := url.Values{"loginToken": {token}}.Encode()
	if u.RawQuery = q.Encode(); u.RawQuery != "" {
		extra = "&" + extra
	}
	u.RawQuery += extra
	return u.String(), nil
}

// loginFallback handles GET /_matrix/static/client/login: for clients without a sign-in of their own. Spec: client-server API,
// "Login Fallback". What it wants (a page that calls window.onLogin with an access token) would hand tokens to any page
// that embeds it; people sign in to their account page here, and are told which apps can sign in.
func (s *SSO) loginFallback(w http.ResponseWriter, r *http.Request) error {
	return s.pages.Render(w, r, http.StatusOK, "login_fallback", nil)
}

// authFallback handles GET /_matrix/client/v3/auth/{authType}/fallback/web.
// Spec: client-server API, "Fallback".
func (s *SSO) authFallback(w http.ResponseWriter, r *http.Request) error {
	stage, session := web.PathParam(r, "authType"), web.QueryString(r, "session")
	ours := slices.Contains(stages, stage)
	switch stage {
	case StageSSO, StageOAuth, StageCrossSigningReset:
	default:
		if !ours {
			return mxerr.New(http.StatusNotFound, "M_UNRECOGNIZED", "there is no page for this authentication type")
		}
	}
	if session == "" {
		return mxerr.MissingParam("query parameter 'session' is required")
	}
	if ours {
		return s.showStage(w, r, session, stage)
	}
	return found(w, approvalPath(session, stage))
}

func approvalPath(session, stage string) string {
	return pathApprove + "?" + url.Values{"session": {session}, "stage": {stage}}.Encode()
}

// Operations by their names in package clientapi.
const (
	OperationCrossSigning  = "upload cross-signing keys"
	OperationResetPassword = "reset password"
)

// LegacyRefresh refuses refresh tokens that OAuth 2.0 gave at POST /refresh: what is exchanged there is not remembered as
// spent, and no client has to say which it is. Errors: M_UNKNOWN_TOKEN.
func (s *SSO) LegacyRefresh(ctx context.Context, token string) error {
	oauth := false
	err := s.Store.Read(ctx, func(tx *store.Tx) error {
		session, found, err := tx.SessionByRefresh(store.HashToken(token))
		if err != nil || !found {
			return err
		}
		_, oauth, err = tx.OAuthGrant(session.User, session.Device)
		return err
	})
	if err == nil && oauth {
		err = mxerr.UnknownToken("this refresh token is for the OAuth 2.0 token endpoint", false)
	}
	return err
}

// ApprovalURL is where a person confirms what an authentication session is about.
// Spec: client-server API, "OAuth authentication".
func (s *SSO) ApprovalURL(session string) string {
	return s.PublicURL + PathAccount + "?" + url.Values{"action": {actionReset}, "session": {session}}.Encode()
}

// Proofs lists the stages of which one confirms an operation. A session that was opened by OAuth 2.0 sees no password: it goes to
// our pages, and so does whoever has no password or owes a second factor.
// Spec: client-server API, "OAuth authentication", "Single Sign-On".
func (s *SSO) Proofs(ctx context.Context, user id.UserID, device id.DeviceID, operation string) ([]string, error) {
	oauth, password := false, false
	err := s.Store.Read(ctx, func(tx *store.Tx) error {
		u, found, err := tx.User(user)
		if err != nil {
			return err
		}
		password = found && len(u.Password) > 0 && s.Config.PasswordLogin
		_, oauth, err = tx.OAuthGrant(user, device)
		return err
	})
	if err == nil && !password && s.Config.PasswordLogin && s.Accounts.PasswordElsewhere != nil {
		password, err = s.Accounts.PasswordElsewhere(ctx, user) // the company's directory checks it
	}
	switch {
	case err != nil:
		return nil, err
	case oauth && operation == OperationCrossSigning:
		return []string{StageOAuth, StageCrossSigningReset}, nil
	case oauth || !password:
		return []string{StageSSO}, nil
	}
	if s.Factors != nil {
		p := factor.Passed{Way: "password", AMR: []string{factor.AMRPassword}}
		if o, ok := web.OriginOf(ctx); ok {
			p.IP = o.IP
		}
		if err := s.Factors.Gate(ctx, user, p); err != nil {
			if mxerr.As(err) == nil {
				return nil, err
			}
			return []string{StageSSO}, nil
		}
	}
	return []string{"m.login.password"}, nil
}
