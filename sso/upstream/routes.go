package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Routes are what providers call, and what browsers bring from them.
func (p *Providers) Routes() []web.Route {
	const base = "/_moothall/upstream/{id}/"
	// Sign-outs of a whole company come from one address, and so do the people of an office: the limit is that of reading.
	return []web.Route{
		{Pattern: "POST " + base + "backchannel-logout", Rate: web.RateRead, Handler: p.backChannel},
		{Pattern: "GET " + base + "frontchannel-logout", Rate: web.RateRead, Handler: p.frontChannel},
		{Pattern: "GET " + base + "saml/metadata", Rate: web.RateRead, Handler: p.saml((*samlProvider).ownMetadata)},
		{Pattern: "POST " + base + "saml/acs", Rate: web.RateRead, Handler: p.saml((*samlProvider).acs)},
		{Pattern: "GET " + base + "saml/slo", Rate: web.RateRead, Handler: p.saml((*samlProvider).slo)},
		{Pattern: "POST " + base + "saml/slo", Rate: web.RateRead, Handler: p.saml((*samlProvider).slo)},
	}
}

func (p *Providers) saml(h func(*samlProvider, http.ResponseWriter, *http.Request) error) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		e := p.byID[web.PathParam(r, "id")]
		if e == nil || e.saml == nil {
			return errUnknownProvider
		}
		return h(e.saml, w, r)
	}
}

const maxLogoutToken = 64 << 10

// backChannel handles POST /_moothall/upstream/{id}/backchannel-logout.
// Spec: OpenID Connect Back-Channel Logout 1.0, sections 2.5 to 2.8.
func (p *Providers) backChannel(w http.ResponseWriter, r *http.Request) error {
	w.Header().Set("Cache-Control", "no-store")
	e := p.byID[web.PathParam(r, "id")]
	if e == nil || e.oidc == nil {
		return errUnknownProvider
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxLogoutToken)
	if err := r.ParseForm(); err != nil {
		return refuseLogout(w, "the form cannot be read")
	}
	tokens := r.PostForm["logout_token"]
	if len(tokens) != 1 || tokens[0] == "" {
		return refuseLogout(w, "logout_token is missing")
	}
	// The provider may close the connection early; what it asked for is done all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 2*e.cfg.Timeout)
	defer cancel()
	t, err := e.oidc.logoutToken(ctx, tokens[0])
	if err != nil {
		p.Logger.Warn("logout token refused", "provider", e.cfg.ID, "error", cut(err.Error(), 400))
		if errors.Is(err, errAway) {
			return errUnavailable // the provider asks again
		}
		return refuseLogout(w, "the logout_token is not valid")
	}
	key := seenKey("logout", e.cfg.ID, t.id)
	seen := false
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		seen, err = tx.WasSeen(key)
		return err
	})
	if err != nil {
		return err
	}
	if seen {
		return refuseLogout(w, "the logout_token was used before")
	}
	if err := p.endUpstream(ctx, e, t.subject, t.sid); err != nil {
		return err
	}
	// Noted last: if ending failed, the provider's second try must count.
	err = p.Store.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.MarkSeen(key, t.expires.Add(e.cfg.ClockSkew).UnixMilli())
		return err
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func refuseLogout(w http.ResponseWriter, why string) error {
	return web.WriteJSONStatus(w, http.StatusBadRequest, struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}{"invalid_request", why})
}

// logout is what a logout token says.
type logout struct {
	id, subject, sid string
	expires          time.Time
}

// maxLogoutLife bounds how long a logout token may be good: its id has to be remembered for so long.
const maxLogoutLife = 24 * time.Hour

// logoutToken validates a logout token. Spec: OpenID Connect Back-Channel Logout 1.0, section 2.6. What the library does not
// look at: the type, the time of issue, a life without end, the form of the event.
func (o *oidcProvider) logoutToken(ctx context.Context, raw string) (logout, error) {
	d, err := o.doc.get(ctx)
	if err != nil {
		return logout{}, err
	}
	t, err := o.verifier(d).VerifyLogout(ctx, raw)
	if err != nil {
		return logout{}, err
	}
	var body rawJSON
	if err := t.Claims(&body); err != nil {
		return logout{}, err
	}
	c, err := parseClaims(body)
	if err != nil {
		return logout{}, fmt.Errorf("the logout token's claims: %w", err)
	}
	events, _ := c["events"].(map[string]any)
	if _, ok := events["http://schemas.openid.net/event/backchannel-logout"].(map[string]any); !ok {
		return logout{}, errors.New("the logout token has no logout event")
	}
	if _, has := c["nonce"]; has {
		return logout{}, errors.New("the logout token has a nonce")
	}
	now := o.now()
	switch {
	case t.IssuedAt.IsZero() || t.IssuedAt.After(now.Add(o.cfg.ClockSkew)):
		return logout{}, fmt.Errorf("the logout token was issued at %s", t.IssuedAt)
	case t.Expiry.After(now.Add(maxLogoutLife)):
		return logout{}, fmt.Errorf("the logout token is good until %s", t.Expiry)
	}
	return logout{id: t.TokenID, subject: t.Subject, sid: t.SessionID, expires: t.Expiry}, nil
}

// frontChannel handles GET /_moothall/upstream/{id}/frontchannel-logout, which the provider loads in a frame. The name of its
// session is what shows that it is the provider: nobody else knows it.
// Spec: OpenID Connect Front-Channel Logout 1.0, section 2.
func (p *Providers) frontChannel(w http.ResponseWriter, r *http.Request) error {
	e := p.byID[web.PathParam(r, "id")]
	if e == nil || e.oidc == nil {
		return errUnknownProvider
	}
	q := r.URL.Query()
	if q.Get("iss") != e.cfg.Issuer || q.Get("sid") == "" {
		return mxerr.InvalidParam("iss and sid must name a session of the identity provider")
	}
	if err := p.endUpstream(r.Context(), e, "", q.Get("sid")); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'")
	_, _ = w.Write([]byte("<!doctype html><title>OK</title>"))
	return nil
}
