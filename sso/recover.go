package sso

import (
	"net/http"
	"strings"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) recoverRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+PathRecover, s.showRecover),
		s.form("POST "+PathRecover, s.recoverMail),
		s.form("POST "+PathRecover+"/password", s.recoverPassword),
	}
}

// mayRecover tells whether a forgotten password can be replaced by mail.
func (s *SSO) mayRecover() bool { return s.Config.PasswordLogin && s.Accounts.Config.Email.Enabled }

var errNoRecovery = mxerr.Forbidden("passwords cannot be reset here: ask an administrator")

type recoverData struct {
	Email, Problem string
	MinLength      int
}

// sendProof sends a mail with a link by which the owner of an address proves to be that, and remembers it in the attempt.
// Whether an account has the address shows in nothing but the mail.
func (s *SSO) sendProof(r *http.Request, a *Attempt, purpose store.EmailPurpose, address, back string) error {
	address = strings.TrimSpace(address)
	p := emailProof{Secret: newSecret(), Address: address, Sent: 1}
	if a.Email != nil && a.Email.Address == address {
		p = *a.Email
		p.Sent++
	}
	sid, err := s.Accounts.RequestEmail(r.Context(), account.EmailRequest{
		Purpose: purpose, Address: address, ClientSecret: p.Secret, SendAttempt: p.Sent, NextLink: s.PublicURL + back, Lang: s.Kit.Lang(r),
	})
	if err != nil {
		return err
	}
	p.SID = sid
	a.Email = &p
	return s.save(r, a)
}

// showRecover handles GET /recover: it asks for the address, waits for the link in the mail to be opened, or asks for the
// new password, as far as things are.
func (s *SSO) showRecover(w http.ResponseWriter, r *http.Request) error {
	if !s.mayRecover() {
		return errNoRecovery
	}
	a, err := s.Attempt(r)
	if err != nil {
		return err
	}
	d := recoverData{MinLength: s.Accounts.Config.Passwords.MinLength}
	if a == nil || a.Email == nil || web.QueryString(r, "again") != "" {
		return s.pages.Render(w, r, http.StatusOK, "recover", d)
	}
	d.Email = a.Email.Address
	err = s.Accounts.CheckEmail(r.Context(), a.Email.SID, a.Email.Secret, store.EmailForPassword)
	switch {
	case err == nil:
		return s.pages.Render(w, r, http.StatusOK, "recover_password", d)
	case mxerr.As(err) != nil:
		if web.QueryString(r, "check") != "" {
			d.Problem = "recover_not_yet"
		}
		return s.pages.Render(w, r, http.StatusOK, "recover_sent", d)
	}
	return err
}

// recoverMail handles POST /recover.
func (s *SSO) recoverMail(w http.ResponseWriter, r *http.Request) error {
	if !s.mayRecover() {
		return errNoRecovery
	}
	a, err := s.Attempt(r)
	if err == nil && a == nil {
		a, err = s.begin(w, r, Attempt{Return: PathAccount})
	}
	if err != nil {
		return err
	}
	if err := s.sendProof(r, a, store.EmailForPassword, r.PostFormValue("email"), PathRecover); err != nil {
		if e := mxerr.As(err); e != nil && e.Status < 500 {
			key := "email_refused"
			if e.Code == "M_LIMIT_EXCEEDED" {
				key, _ = problem(err)
			}
			return s.pages.Render(w, r, e.Status, "recover", recoverData{Email: r.PostFormValue("email"), Problem: key})
		}
		return err
	}
	return goTo(w, r, PathRecover)
}

// recoverPassword handles POST /recover/password: the new password ends every session but keeps the devices, whose owner may
// need their keys. A second factor is still asked for at the sign-in that follows.
func (s *SSO) recoverPassword(w http.ResponseWriter, r *http.Request) error {
	if !s.mayRecover() {
		return errNoRecovery
	}
	a, err := s.attempt(r)
	if err != nil {
		return err
	}
	if a.Email == nil {
		return errNoAttempt
	}
	d := recoverData{Email: a.Email.Address, MinLength: s.Accounts.Config.Passwords.MinLength}
	refuse := func(problem string) error {
		d.Problem = problem
		return s.pages.Render(w, r, http.StatusBadRequest, "recover_password", d)
	}
	password := r.PostFormValue("password")
	if password != r.PostFormValue("password2") {
		return refuse("password_differs")
	}
	if err := s.Accounts.ValidatePassword(password); err != nil {
		if key, _ := problem(err); key != "" {
			return refuse(key)
		}
		return err
	}
	if err := s.Accounts.CheckEmail(r.Context(), a.Email.SID, a.Email.Secret, store.EmailForPassword); err != nil {
		return err
	}
	user, err := s.Accounts.TakeEmailProof(r.Context(), a.Email.SID)
	if err != nil {
		return err
	}
	ctx := source(r.Context(), user, "")
	if err := s.Accounts.SetPassword(ctx, user, password, &account.Ending{Soft: true}); err != nil {
		if key, _ := problem(err); key != "" {
			return refuse(key)
		}
		return err
	}
	a.Email, a.Hint = nil, user.Localpart()
	if err := s.save(r, a); err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "recover_done", nil)
}
