package sso

import (
	"net/http"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/upstream"
)

func (s *SSO) upstreamRoutes() []web.Route {
	if s.Providers == nil {
		return nil
	}
	return []web.Route{
		s.page("GET "+PathSignIn+"/upstream/{provider}", s.beginUpstream),
		s.page("GET /_moothall/signin/callback/{provider}", s.finishUpstream),
		s.page("GET "+pathChoose, s.showChoose),
		s.form("POST "+pathChoose, s.choose),
	}
}

// beginUpstream handles GET /signin/upstream/{provider}: it sends the browser to the identity provider.
func (s *SSO) beginUpstream(w http.ResponseWriter, r *http.Request) error {
	if err := s.limit(web.RateLogin, "upstream "+web.ClientIP(r).String()); err != nil {
		return err
	}
	a, err := s.Attempt(r)
	if err == nil && a == nil {
		a, err = s.begin(w, r, Attempt{Return: PathAccount})
	}
	if err != nil {
		return err
	}
	p := upstream.BeginParams{State: newSecret(), Lang: s.Kit.Lang(r), LoginHint: a.Hint}
	if a.Need.MaxAge > 0 {
		p.MaxAge = max(a.Need.MaxAge, time.Minute)
		if a.StepUp != stepUpWanted { // else the sign-in is fresh enough, and only a factor is missing
			p.Prompt = "login"
		}
	}
	p.MFA = a.Need.Factor || a.StepUp == stepUpWanted
	if a.StepUp == stepUpWanted {
		a.StepUp = stepUpAsked
	}
	provider := web.PathParam(r, "provider")
	target, kept, err := s.Providers.Begin(r.Context(), provider, p)
	if err != nil {
		return s.upstreamFailed(w, r, provider, err)
	}
	a.Provider, a.State, a.Kept = provider, p.State, kept
	if err := s.save(r, a); err != nil {
		return err
	}
	return goOut(w, target)
}

// finishUpstream handles GET /_moothall/signin/callback/{provider}: the person comes back from the identity provider.
func (s *SSO) finishUpstream(w http.ResponseWriter, r *http.Request) error {
	a, err := s.attempt(r)
	if err != nil {
		return err
	}
	provider := web.PathParam(r, "provider")
	if a.Provider != provider || a.State == "" {
		return errNoAttempt
	}
	ident, err := s.Providers.Finish(r.Context(), provider, r, a.State, a.Kept)
	a.State, a.Kept = "", nil
	if saveErr := s.save(r, a); saveErr != nil {
		return saveErr
	}
	if err != nil {
		return s.upstreamFailed(w, r, provider, s.Accounts.RefuseSignIn(r.Context(), "", "sso:"+provider, err))
	}
	return s.signInByProvider(w, r, a, ident)
}

// upstreamFailed shows what went wrong at the provider, and the other ways to sign in.
func (s *SSO) upstreamFailed(w http.ResponseWriter, r *http.Request, provider string, err error) error {
	e := mxerr.As(err)
	if e == nil {
		return err
	}
	info, _ := s.Providers.Get(provider, s.Kit.Lang(r))
	return s.pages.Render(w, r, e.Status, "upstream_failed", struct{ Provider, Name, Reason, Message string }{
		provider, info.Name, string(upstream.ReasonOf(err)), e.Message,
	})
}

// signInByProvider goes on with who the provider says it is: an account that exists, one that is made now, or one whose
// name the person chooses first.
func (s *SSO) signInByProvider(w http.ResponseWriter, r *http.Request, a *Attempt, ident upstream.Identity) error {
	res, err := s.Providers.Resolve(r.Context(), ident)
	if err != nil {
		return s.upstreamFailed(w, r, ident.Provider, s.Accounts.RefuseSignIn(r.Context(), res.User, "sso:"+ident.Provider, err))
	}
	a.User, a.AMR, a.Factor, a.Grace = "", nil, false, false
	a.Upstream = &ident
	if res.Choose && a.Known == "" {
		if err := s.save(r, a); err != nil {
			return err
		}
		return goTo(w, r, pathChoose)
	}
	return s.acceptProvider(w, r, a, res, upstream.Choice{Localpart: res.Localpart, DisplayName: res.DisplayName})
}

const pathChoose = PathSignIn + "/name"

func (s *SSO) acceptProvider(w http.ResponseWriter, r *http.Request, a *Attempt, res upstream.Resolution, c upstream.Choice) error {
	if a.Known != "" && res.User != a.Known {
		return errOther
	}
	user, err := s.Providers.Accept(r.Context(), *a.Upstream, res, c)
	if err != nil {
		return err
	}
	amr := append([]string{"ext:" + a.Upstream.Provider}, a.Upstream.AMR...)
	if a.Upstream.MFA {
		amr = append(amr, "mfa")
		a.Factor = true
	}
	if err := a.prove(user, "sso:"+a.Upstream.Provider, amr...); err != nil {
		return err
	}
	return s.Advance(w, r, a)
}

type chooseData struct {
	Localpart, DisplayName, Problem string
	NameFixed                       bool
}

// choosing reads the attempt of somebody who comes from a provider for the first time.
func (s *SSO) choosing(r *http.Request) (*Attempt, upstream.Resolution, error) {
	a, err := s.attempt(r)
	if err != nil {
		return nil, upstream.Resolution{}, err
	}
	if a.Upstream == nil || a.User != "" {
		return nil, upstream.Resolution{}, errNoAttempt
	}
	res, err := s.Providers.Resolve(r.Context(), *a.Upstream)
	return a, res, err
}

// showChoose handles GET /signin/name.
func (s *SSO) showChoose(w http.ResponseWriter, r *http.Request) error {
	_, res, err := s.choosing(r)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "choose", chooseData{Localpart: res.Localpart, DisplayName: res.DisplayName, NameFixed: res.DisplayNameFixed})
}

// choose handles POST /signin/name.
func (s *SSO) choose(w http.ResponseWriter, r *http.Request) error {
	a, res, err := s.choosing(r)
	if err != nil {
		return err
	}
	c := upstream.Choice{Localpart: strings.TrimSpace(r.PostFormValue("username")), DisplayName: strings.TrimSpace(r.PostFormValue("displayname"))}
	if res.DisplayNameFixed {
		c.DisplayName = res.DisplayName
	}
	err = s.acceptProvider(w, r, a, res, c)
	if key, status := problem(err); status == http.StatusBadRequest {
		return s.pages.Render(w, r, status, "choose", chooseData{
			Localpart: c.Localpart, DisplayName: c.DisplayName, NameFixed: res.DisplayNameFixed, Problem: key,
		})
	}
	return err
}

// rememberUpstream notes which provider's session a browser's session hangs on.
func (s *SSO) rememberUpstream(r *http.Request, a *Attempt, b *Browser) error {
	if s.Providers == nil || a.Upstream == nil {
		return nil
	}
	return s.Providers.RememberBrowser(r.Context(), *a.Upstream, b.User, b.ID)
}

// rememberDevice notes the same for a client that was let in from a browser.
func (s *SSO) rememberDevice(r *http.Request, data codeData, user id.UserID, device id.DeviceID) error {
	if s.Providers == nil || data.Browser == "" {
		return nil
	}
	return s.Providers.RememberDevice(r.Context(), data.Browser, user, device)
}
