package sso

import (
	"net/http"
	"strings"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

const pathExpired = PathSignIn + "/expired"

func (s *SSO) expiredRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+pathExpired, s.showExpired),
		s.form("POST "+pathExpired, s.replaceExpired),
	}
}

// expiredData is what the page shows on which a password is replaced that was right but may not be used any more.
type expiredData struct {
	Username, Problem string
	MinLength         int
}

// expiredPassword leads somebody whose right password has expired to the page for another one.
func (s *SSO) expiredPassword(w http.ResponseWriter, r *http.Request, a *Attempt, name string) error {
	a.Hint = cut(name, 320)
	if err := s.save(r, a); err != nil {
		return err
	}
	return goTo(w, r, pathExpired)
}

func (s *SSO) expiring(r *http.Request) (*Attempt, expiredData, error) {
	a, err := s.attempt(r)
	switch {
	case err != nil:
		return nil, expiredData{}, err
	case !s.Config.PasswordLogin:
		return nil, expiredData{}, errNoPasswords
	case a.Hint == "":
		return nil, expiredData{}, errNoAttempt
	}
	return a, expiredData{Username: a.Hint, MinLength: s.Accounts.Config.Passwords.MinLength}, nil
}

// showExpired handles GET /signin/expired.
func (s *SSO) showExpired(w http.ResponseWriter, r *http.Request) error {
	_, d, err := s.expiring(r)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "expired", d)
}

// replaceExpired handles POST /signin/expired: the old password, which proves who it is, and the new one; the sign-in goes on.
func (s *SSO) replaceExpired(w http.ResponseWriter, r *http.Request) error {
	a, d, err := s.expiring(r)
	if err != nil {
		return err
	}
	refuse := func(key string, status int) error {
		d.Problem = key
		return s.pages.Render(w, r, status, "expired", d)
	}
	wanted := r.PostFormValue("password")
	if wanted != r.PostFormValue("password2") {
		return refuse("password_differs", http.StatusBadRequest)
	}
	u, err := s.withPassword(r, strings.TrimSpace(a.Hint), func(name string) (account.User, error) {
		return s.Accounts.ChangeExpiredPassword(r.Context(), name, r.PostFormValue("current"), wanted)
	})
	if mxerr.Is(err, "M_FORBIDDEN") {
		return refuse("password_wrong", http.StatusForbidden)
	}
	if key, status := passwordProblem(err); key != "" {
		return refuse(key, status)
	}
	if err != nil {
		return err
	}
	a.forget(u.ID)
	if err := a.prove(u.ID, "password", factor.AMRPassword); err != nil {
		return err
	}
	return s.Advance(w, r, a)
}
