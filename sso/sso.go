// Package sso is where people prove who they are in a browser, whichever client they use: sign-in pages, the OAuth 2.0
// authorization server that the Matrix specification asks for, m.login.sso for older clients, and the account pages.
package sso

import (
	"context"
	"embed"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
	"github.com/moothall/moothall/sso/upstream"
)

//go:embed pages
var pageFiles embed.FS

// Deps is what SSO works with.
type Deps struct {
	Store      *store.Store
	Accounts   *account.Accounts
	Profiles   *account.Profiles
	Logger     *slog.Logger
	Kit        *page.Kit
	Limits     *web.Limiter // nil: no rate limits
	ServerName string
	PublicURL  string // without a slash at its end
	Config     Config
	Clock      func() time.Time // nil: time.Now

	Providers *upstream.Providers // nil: there are no identity providers
	Factors   *factor.Factors     // nil: there are no second factors
	Audit     *audit.Log

	// Passable tells whether a stage is one that the client API waits for in an authentication under way; nil: none is.
	Passable func(u account.UIA, stage string) bool
}

// Config is how people sign in.
type Config struct {
	// PasswordLogin says that people can sign in with a password that this server checks.
	PasswordLogin bool
	// RedirectsAllowed are beginnings of addresses that older clients are sent back to without asking.
	RedirectsAllowed []string
	// IdleTimeout and Lifetime bound the sessions of browsers; 0: 8 hours and 7 days.
	IdleTimeout, Lifetime time.Duration
	// BindAddress ends a browser's session when its cookie comes from elsewhere: "off", "network" or "exact".
	BindAddress string
	// OAuth turns the authorization server on.
	OAuth bool
	// InsecureClientURIs lets clients register with http addresses.
	InsecureClientURIs bool
	// KeyLifetime is how long a key signs ID tokens; 0: 90 days.
	KeyLifetime time.Duration
}

// SSO is the sign-in of browsers and clients.
type SSO struct {
	Deps
	pages *page.Set
}

// New makes SSO.
func New(d Deps) (*SSO, error) {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Config.IdleTimeout == 0 {
		d.Config.IdleTimeout = 8 * time.Hour
	}
	if d.Config.Lifetime == 0 {
		d.Config.Lifetime = 7 * 24 * time.Hour
	}
	if d.Config.KeyLifetime == 0 {
		d.Config.KeyLifetime = 90 * 24 * time.Hour
	}
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		return nil, err
	}
	s := &SSO{Deps: d}
	s.pages, err = d.Kit.Set(files)
	return s, err
}

// Paths of the pages.
const (
	PathSignIn   = "/signin"
	PathSignOut  = "/signout"
	PathRegister = "/register"
	PathRecover  = "/recover"
	PathAccount  = "/account"
	PathSessions = "/account/sessions"
	PathFactors  = "/account/factors"
	PathPassword = "/account/password"
	pathConsent  = "/consent"
	pathDevice   = "/device"
	pathApprove  = "/account/approve"
	pathApp      = "/signin/app"
	pathOAuth    = "/oauth2"
)

// Routes is the table of all routes of the package, those of the second factors and the identity providers among them.
func (s *SSO) Routes() []web.Route {
	var all []web.Route
	for _, t := range [][]web.Route{
		s.signInRoutes(), s.expiredRoutes(), s.registerRoutes(), s.recoverRoutes(), s.accountRoutes(), s.sessionRoutes(), s.approveRoutes(), s.legacyRoutes(), s.stageRoutes(),
		s.upstreamRoutes(), s.factorRoutes(),
	} {
		all = append(all, t...)
	}
	if s.Config.OAuth {
		for _, t := range [][]web.Route{s.metadataRoutes(), s.clientRoutes(), s.authorizeRoutes(), s.tokenRoutes(), s.deviceRoutes(), s.keyRoutes()} {
			all = append(all, t...)
		}
	}
	return all
}

// page makes the row of a page. Pages limit by themselves what costs something, so that who is limited sees a page.
func (s *SSO) page(pattern string, h web.Handler) web.Route {
	return web.Route{Pattern: pattern, Auth: web.Public, Handler: s.pages.Handler(h)}
}

// form is page for a posted form.
func (s *SSO) form(pattern string, h web.Handler) web.Route {
	return s.page(pattern, func(w http.ResponseWriter, r *http.Request) error {
		if err := s.limit(web.RateLogin, "form "+web.ClientIP(r).String()); err != nil {
			return err
		}
		if err := s.Kit.Form(w, r); err != nil {
			return err
		}
		return h(w, r)
	})
}

func (s *SSO) limit(rate web.Rate, name string) error {
	if wait := s.Limits.Allow(rate, "sso "+name); wait > 0 {
		return mxerr.LimitExceeded(wait)
	}
	return nil
}

func (s *SSO) now() int64 { return s.Clock().UnixMilli() }

// goTo sends the browser to a page of ours by GET.
func goTo(w http.ResponseWriter, r *http.Request, path string) error {
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, path, http.StatusSeeOther)
	return nil
}

// goOut sends the browser elsewhere.
func goOut(w http.ResponseWriter, target string) error {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Location", target)
	w.WriteHeader(http.StatusSeeOther)
	return nil
}

// local tells whether a text is a path of this server, which no browser takes for another one's address.
func local(path string) bool {
	if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t\x00") {
		return false
	}
	u, err := url.Parse(path)
	return err == nil && u.Scheme == "" && u.Host == "" && u.User == nil && strings.HasPrefix(u.Path, "/") && !strings.HasPrefix(u.Path, "//")
}

// source tells the audit log who acts on a page.
func source(ctx context.Context, user id.UserID, session string) context.Context {
	return audit.WithSource(ctx, audit.Source{Actor: user, Kind: audit.KindUser, Session: session})
}

// Times between two sweeps, and after which a client that nobody used is forgotten.
const (
	sweepEvery   = 10 * time.Minute
	clientUnused = 30 * 24 * time.Hour
)

// Run removes what has expired and rotates keys, until ctx ends.
func (s *SSO) Run(ctx context.Context) error {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.Logger.Warn("sweep sign-ins that have expired", "error", err)
		}
	}
}

func (s *SSO) sweep(ctx context.Context) error {
	now := s.now()
	for more := true; more; {
		err := s.Store.Write(ctx, func(tx *store.Tx) error {
			var err error
			more, err = tx.SweepSSO(now, now-clientUnused.Milliseconds())
			return err
		})
		if err != nil {
			return err
		}
	}
	if !s.Config.OAuth {
		return nil
	}
	_, err := s.signingKeys(ctx)
	return err
}

// DeviceDeleted forgets what belongs to a device, in the transaction that deletes it.
func DeviceDeleted(tx *store.Tx, user id.UserID, device id.DeviceID) error {
	return tx.DeleteOAuthGrant(user, device)
}
