package sso

import (
	"cmp"
	"net/http"
	"strings"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

func (s *SSO) registerRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+PathRegister, s.showRegister),
		s.form("POST "+PathRegister, s.register),
		s.form("POST "+PathRegister+"/email", s.registerEmail),
	}
}

// mayRegister tells whether people make accounts of their own.
func (s *SSO) mayRegister() bool {
	return s.Config.PasswordLogin && s.Accounts.Config.Registration.Mode != account.RegistrationClosed
}

var errClosed = mxerr.Forbidden("registration is closed on this server: ask an administrator for an account")

type registerData struct {
	Client, Username, Token, Problem string
	NeedsToken, NeedsEmail           bool
	Email                            string // that was asked to be proved
	Proved                           bool
	MinLength                        int
}

// registering reads the attempt that an account is made in, beginning one where there is none.
func (s *SSO) registering(w http.ResponseWriter, r *http.Request) (*Attempt, registerData, error) {
	if !s.mayRegister() {
		return nil, registerData{}, errClosed
	}
	a, err := s.Attempt(r)
	if err == nil && a == nil {
		a, err = s.begin(w, r, Attempt{Return: PathAccount, Create: true})
	}
	if err != nil {
		return nil, registerData{}, err
	}
	c := s.Accounts.Config
	d := registerData{
		Client: a.clientName(), NeedsToken: c.Registration.Mode == account.RegistrationToken,
		NeedsEmail: c.Email.Enabled && c.Email.Required, MinLength: c.Passwords.MinLength,
	}
	if a.Email != nil {
		d.Email = a.Email.Address
		err := s.Accounts.CheckEmail(r.Context(), a.Email.SID, a.Email.Secret, store.EmailForRegistration)
		d.Proved = err == nil
		if err != nil && mxerr.As(err) == nil {
			return nil, d, err
		}
	}
	return a, d, nil
}

// showRegister handles GET /register.
func (s *SSO) showRegister(w http.ResponseWriter, r *http.Request) error {
	_, d, err := s.registering(w, r)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, registerPage(d), d)
}

// registerPage is the page that comes next: where an address is needed it is proved before anything else.
func registerPage(d registerData) string {
	if d.NeedsEmail && !d.Proved {
		return "register_email"
	}
	return "register"
}

// registerEmail handles POST /register/email: it sends the mail.
func (s *SSO) registerEmail(w http.ResponseWriter, r *http.Request) error {
	a, d, err := s.registering(w, r)
	if err != nil {
		return err
	}
	if !d.NeedsEmail {
		return goTo(w, r, PathRegister)
	}
	if err := s.sendProof(r, a, store.EmailForRegistration, r.PostFormValue("email"), PathRegister); err != nil {
		if e := mxerr.As(err); e != nil && e.Status < 500 {
			d.Problem = "email_refused"
			return s.pages.Render(w, r, e.Status, "register_email", d)
		}
		return err
	}
	return goTo(w, r, PathRegister)
}

// register handles POST /register.
func (s *SSO) register(w http.ResponseWriter, r *http.Request) error {
	a, d, err := s.registering(w, r)
	if err != nil {
		return err
	}
	if err := s.limit(web.RateRegister, "register "+web.ClientIP(r).String()); err != nil {
		return err
	}
	if page := registerPage(d); page != "register" {
		return s.pages.Render(w, r, http.StatusBadRequest, page, d)
	}
	d.Username, d.Token = strings.TrimSpace(r.PostFormValue("username")), strings.TrimSpace(r.PostFormValue("token"))
	password := r.PostFormValue("password")
	refuse := func(problem string) error {
		d.Problem = problem
		return s.pages.Render(w, r, http.StatusBadRequest, "register", d)
	}
	if password != r.PostFormValue("password2") {
		return refuse("password_differs")
	}
	local, err := s.Accounts.Localpart(d.Username)
	if err == nil {
		err = s.Accounts.Available(r.Context(), local)
	}
	if err == nil {
		err = s.Accounts.ValidatePassword(password)
	}
	approval := account.NewUIA("register", "")
	if d.NeedsToken {
		approval.RegistrationToken = d.Token
		if ok, checkErr := s.Accounts.RegistrationTokenValid(r.Context(), d.Token); err == nil && (checkErr != nil || !ok) {
			if checkErr != nil {
				return checkErr
			}
			return refuse("register_token")
		}
	}
	if d.Proved {
		approval.EmailSID = a.Email.SID
	}
	var u account.User
	if err == nil {
		u, err = s.Accounts.CreateUser(r.Context(), account.NewUser{Localpart: local, Password: password, Approval: &approval})
	}
	if mxerr.As(err) != nil {
		key, _ := problem(err)
		return refuse(cmp.Or(key, "register_failed"))
	}
	if err != nil {
		return err
	}
	a.User, a.AMR, a.Create = "", nil, false
	if err := a.prove(u.ID, "registration", factor.AMRPassword); err != nil {
		return err
	}
	return s.Advance(w, r, a)
}
