package sso

import (
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
	"github.com/moothall/moothall/sso/upstream"
)

func (s *SSO) signInRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+PathSignIn, s.showSignIn),
		s.form("POST "+PathSignIn+"/password", s.signInByPassword),
		s.page("GET "+PathSignOut, s.showSignOut),
		s.form("POST "+PathSignOut, s.signOut),
	}
}

// signInData is what the sign-in page shows.
type signInData struct {
	Client    string
	Known     id.UserID // who must prove it again
	Username  string
	Problem   string
	Password  bool
	Passkeys  string // address of the page to sign in by a passkey, "" if there is none
	Providers []upstream.Info
	Register  bool
	Recover   bool
}

// showSignIn handles GET /signin.
func (s *SSO) showSignIn(w http.ResponseWriter, r *http.Request) error {
	a, err := s.Attempt(r)
	if err != nil {
		return err
	}
	if a == nil {
		b, err := s.Browser(r)
		if err != nil {
			return err
		}
		if b != nil {
			return goTo(w, r, PathAccount)
		}
		if a, err = s.begin(w, r, Attempt{Return: PathAccount}); err != nil {
			return err
		}
	}
	if a.Create && s.mayRegister() && web.QueryString(r, "signin") == "" {
		return goTo(w, r, PathRegister)
	}
	data := s.signInData(r, a)
	// One way in needs no choice, unless this page was asked for as such (after a problem at the provider, say). A passkey is
	// another way for those who have one, and no reason to stop all others.
	if !data.Password && len(data.Providers) == 1 && web.QueryString(r, "choose") == "" {
		return goTo(w, r, PathSignIn+"/upstream/"+data.Providers[0].ID)
	}
	return s.pages.Render(w, r, http.StatusOK, "signin", data)
}

func (s *SSO) signInData(r *http.Request, a *Attempt) signInData {
	d := signInData{
		Client: a.clientName(), Known: a.Known, Username: a.Hint, Password: s.Config.PasswordLogin,
		Register: s.mayRegister() && a.Known == "", Recover: s.mayRecover(),
	}
	if a.Known != "" {
		d.Username = a.Known.Localpart()
	}
	if s.Providers != nil {
		d.Providers = s.Providers.List(s.Kit.Lang(r))
	}
	if s.Factors != nil && s.Factors.Passkeys() {
		d.Passkeys = factor.PathPasskey
	}
	return d
}

// signInByPassword handles POST /signin/password.
func (s *SSO) signInByPassword(w http.ResponseWriter, r *http.Request) error {
	a, err := s.attempt(r)
	if err != nil {
		return err
	}
	if !s.Config.PasswordLogin {
		return errNoPasswords
	}
	name := strings.TrimSpace(r.PostFormValue("username"))
	if a.Known != "" {
		name = string(a.Known)
	}
	data := s.signInData(r, a)
	data.Username = name
	if a.Known != "" {
		data.Username = a.Known.Localpart()
	}
	refuse := func(status int, problem string) error {
		data.Problem = problem
		return s.pages.Render(w, r, status, "signin", data)
	}
	u, err := s.checkPassword(r, name, r.PostFormValue("password"))
	if mxerr.Is(err, account.CodePasswordExpired) {
		return s.expiredPassword(w, r, a, name)
	}
	if key, status := passwordProblem(err); key != "" {
		return refuse(status, key)
	}
	if err != nil {
		return err
	}
	if u.Locked || u.Disabled != 0 {
		return refuse(http.StatusForbidden, "error_M_USER_LOCKED")
	}
	a.forget(u.ID)
	if err := a.prove(u.ID, "password", factor.AMRPassword); err != nil {
		return err
	}
	return s.Advance(w, r, a)
}

var errNoPasswords = mxerr.Forbidden("on this server people sign in at their identity provider, not with a password")

// checkPassword finds whose a name and a password are; the name may be an e-mail address. Errors: those of
// account.CheckPassword.
func (s *SSO) checkPassword(r *http.Request, name, password string) (account.User, error) {
	return s.withPassword(r, name, func(name string) (account.User, error) { return s.Accounts.CheckPassword(r.Context(), name, password) })
}

// withPassword has a password looked at that belongs to a name as people type it, unless there were too many.
func (s *SSO) withPassword(r *http.Request, name string, check func(name string) (account.User, error)) (account.User, error) {
	if !strings.HasPrefix(name, "@") && strings.Contains(name, "@") {
		if err := s.limit(web.RateLogin, "password "+strings.ToLower(name)); err != nil {
			return account.User{}, err
		}
		user, err := s.Accounts.EmailUser(r.Context(), name)
		if err != nil {
			return account.User{}, err
		}
		if name = string(user); name == "" {
			name = "@" // nobody: refused after the time that a password takes
		}
	}
	key := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "@"), ":"+s.ServerName))
	if err := s.limit(web.RateLogin, "password "+key); err != nil {
		return account.User{}, err
	}
	return check(name)
}

// showSignOut handles GET /signout.
func (s *SSO) showSignOut(w http.ResponseWriter, r *http.Request) error {
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	if b == nil {
		return s.pages.Render(w, r, http.StatusOK, "signedout", nil)
	}
	return s.pages.Render(w, r, http.StatusOK, "signout", struct{ User id.UserID }{b.User})
}

// signOut handles POST /signout. With switch=1 the sign-in goes on with another account.
func (s *SSO) signOut(w http.ResponseWriter, r *http.Request) error {
	b, err := s.Browser(r)
	if err != nil {
		return err
	}
	provider := ""
	if b != nil {
		provider = s.signOutAtProvider(r, b)
		err := s.Store.Write(r.Context(), func(tx *store.Tx) error {
			if _, err := tx.DeleteSSOBrowser(b.ID); err != nil {
				return err
			}
			return audit.Append(source(r.Context(), b.User, b.ID[:8]), tx, audit.Entry{Action: "signout.browser", Target: string(b.User)})
		})
		if err != nil {
			return err
		}
	}
	s.Kit.DeleteCookie(w, browserCookie)
	if back := r.PostFormValue("return"); back != "" && local(back) {
		if _, err := s.begin(w, r, Attempt{Return: back}); err != nil {
			return err
		}
		return goTo(w, r, PathSignIn+"?choose=1")
	}
	if provider != "" {
		return s.pages.Render(w, r, http.StatusOK, "signedout", provider)
	}
	return goTo(w, r, PathSignOut)
}

// signOutAtProvider is where the browser ends the identity provider's session too, which would sign it in again at a click; ""
// where there is none or the provider does not answer.
func (s *SSO) signOutAtProvider(r *http.Request, b *Browser) string {
	if s.Providers == nil {
		return ""
	}
	target, err := s.Providers.LogoutURL(r.Context(), b.ID, s.PublicURL+PathSignOut, "")
	if err != nil {
		s.Logger.Warn("the identity provider's sign-out", "error", err)
	}
	return target
}
