package sso

import (
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

// host gives the pages of second factors the sign-in that they are part of.
type host struct{ s *SSO }

func (s *SSO) factorRoutes() []web.Route {
	if s.Factors == nil {
		return nil
	}
	return s.Factors.Pages(host{s})
}

// Signed implements factor.Host.
func (h host) Signed(w http.ResponseWriter, r *http.Request, maxAge time.Duration) (factor.Visitor, bool) {
	b, ok := h.s.RequireBrowser(w, r, Need{MaxAge: maxAge})
	if !ok {
		return factor.Visitor{}, false
	}
	return factor.Visitor{
		User: b.User, Passed: factor.Passed{Way: b.Way, AMR: b.AMR, IP: clientIP(r)}, ProvedAt: b.FactorTime,
	}, true
}

// Raise implements factor.Host.
func (h host) Raise(_ http.ResponseWriter, r *http.Request, amr ...string) error {
	b, err := h.s.Browser(r)
	if err != nil || b == nil {
		return err
	}
	b.AMR = union(b.AMR, amr)
	if hasFactor(amr) {
		b.FactorTime = h.s.Clock()
	}
	return h.s.update(r.Context(), b)
}

// Attempt implements factor.Host.
func (h host) Attempt(w http.ResponseWriter, r *http.Request) (factor.Visitor, bool) {
	a, err := h.s.Attempt(r)
	if err == nil && (a == nil || a.User == "") {
		if err = goTo(w, r, PathSignIn); err == nil {
			return factor.Visitor{}, false
		}
	}
	if err != nil {
		h.s.pages.Error(w, r, err)
		return factor.Visitor{}, false
	}
	return factor.Visitor{User: a.User, Passed: h.s.passed(r, a)}, true
}

// Passed implements factor.Host.
func (h host) Passed(w http.ResponseWriter, r *http.Request, amr ...string) error {
	a, err := h.s.attempt(r)
	if err != nil {
		return err
	}
	if a.User == "" {
		return errNoAttempt
	}
	a.AMR = union(a.AMR, amr)
	a.Factor = a.Factor || hasFactor(amr)
	a.Grace = a.Grace || len(amr) == 0
	return h.s.Advance(w, r, a)
}

// PassedAs implements factor.Host.
func (h host) PassedAs(w http.ResponseWriter, r *http.Request, user id.UserID, amr ...string) error {
	a, err := h.s.Attempt(r)
	if err == nil && a == nil {
		a, err = h.s.begin(w, r, Attempt{Return: PathAccount})
	}
	if err != nil {
		return err
	}
	a.forget(user)
	if err := a.prove(user, "passkey", amr...); err != nil {
		return err
	}
	a.Factor = hasFactor(amr)
	return h.s.Advance(w, r, a)
}

func union(a, b []string) []string {
	out := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out
}
