package sso

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Actions of deep links to the account pages, and the older names of some.
// Spec: client-server API, "Account management URL actions".
const (
	actionProfile    = "org.matrix.profile"
	actionDevices    = "org.matrix.devices_list"
	actionView       = "org.matrix.device_view"
	actionDelete     = "org.matrix.device_delete"
	actionDeactivate = "org.matrix.account_deactivate"
	actionReset      = "org.matrix.cross_signing_reset"
)

func accountActions() []string {
	return []string{actionProfile, actionDevices, actionView, actionDelete, actionDeactivate, actionReset}
}

// sensitiveAge is how long ago a sign-in may be for what cannot be taken back.
const sensitiveAge = 15 * time.Minute

func (s *SSO) accountRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+PathAccount, s.showAccount),
		s.page("GET "+PathAccount+"/", s.showAccount),
		s.form("POST "+PathAccount+"/profile", s.changeProfile),
		s.page("GET "+PathPassword, s.showPassword),
		s.form("POST "+PathPassword, s.changePassword),
		s.page("GET "+PathAccount+"/deactivate", s.showDeactivate),
		s.form("POST "+PathAccount+"/deactivate", s.deactivate),
	}
}

// accountData is what the account pages share.
type accountData struct {
	Tab         string
	User        id.UserID
	DisplayName string
	Emails      []string
	Done        string
	Problem     string
	HasPassword bool
	Factors     bool
	MinLength   int
}

// showAccount handles GET /account, the account management URL: deep links go to the page of their action.
// Spec: client-server API, "Account management".
func (s *SSO) showAccount(w http.ResponseWriter, r *http.Request) error {
	device := url.Values{"device_id": {web.QueryString(r, "device_id")}}.Encode()
	switch web.QueryString(r, "action") {
	case actionDevices, "org.matrix.sessions_list":
		return goTo(w, r, PathSessions)
	case actionView, "org.matrix.session_view":
		return goTo(w, r, PathSessions+"/device?"+device)
	case actionDelete, "org.matrix.session_end":
		return goTo(w, r, PathSessions+"/device?"+device+"&end=1")
	case actionDeactivate:
		return goTo(w, r, PathAccount+"/deactivate")
	case actionReset:
		return goTo(w, r, approvalPath(web.QueryString(r, "session"), StageOAuth))
	}
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	d, err := s.accountData(r, b, "account")
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "account", d)
}

// accountDone are the texts of what was done that an address may name.
var accountDone = []string{"done_profile", "done_password", "done_session", "done_all"}

func (s *SSO) accountData(r *http.Request, b *Browser, tab string) (accountData, error) {
	d := accountData{
		Tab: tab, User: b.User, HasPassword: len(b.Account.Password) > 0 && s.Config.PasswordLogin, Factors: s.Factors != nil,
		MinLength: s.Accounts.Config.Passwords.MinLength,
	}
	if done := web.QueryString(r, "done"); slices.Contains(accountDone, done) {
		d.Done = done
	}
	p, err := s.Profiles.Get(r.Context(), b.User)
	if err != nil && mxerr.As(err) == nil {
		return d, err
	}
	d.DisplayName = p.DisplayName
	addresses, err := s.Accounts.Threepids(r.Context(), b.User)
	if err != nil {
		return d, err
	}
	for _, t := range addresses {
		if t.Medium == store.MediumEmail {
			d.Emails = append(d.Emails, t.Address)
		}
	}
	return d, nil
}

// changeProfile handles POST /account/profile.
func (s *SSO) changeProfile(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	name := strings.TrimSpace(r.PostFormValue("displayname"))
	ctx := source(r.Context(), b.User, b.ID[:8])
	value, err := jsontext.AppendQuote(nil, name)
	if err == nil {
		err = s.Profiles.Set(ctx, b.User, "displayname", value)
	}
	if err != nil {
		e := mxerr.As(err)
		if e == nil || e.Status >= 500 {
			return err
		}
		d, err := s.accountData(r, b, "account")
		if err != nil {
			return err
		}
		d.DisplayName, d.Problem = name, "profile_refused"
		return s.pages.Render(w, r, http.StatusBadRequest, "account", d)
	}
	return goTo(w, r, PathAccount+"?done=done_profile")
}

// showPassword handles GET /account/password.
func (s *SSO) showPassword(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	d, err := s.accountData(r, b, "password")
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "password", d)
}

// changePassword handles POST /account/password. The other browsers' sessions end; those of clients too, if that is wished.
func (s *SSO) changePassword(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{})
	if !ok {
		return nil
	}
	d, err := s.accountData(r, b, "password")
	if err != nil {
		return err
	}
	refuse := func(status int, problem string) error {
		d.Problem = problem
		return s.pages.Render(w, r, status, "password", d)
	}
	if !d.HasPassword {
		return refuse(http.StatusForbidden, "password_none")
	}
	password := r.PostFormValue("password")
	if password != r.PostFormValue("password2") {
		return refuse(http.StatusBadRequest, "password_differs")
	}
	ctx := source(r.Context(), b.User, b.ID[:8])
	r = r.WithContext(ctx)
	_, err = s.withPassword(r, string(b.User), func(string) (account.User, error) {
		return b.Account, s.Accounts.ConfirmPassword(r.Context(), b.User, r.PostFormValue("current"))
	})
	if err != nil {
		if mxerr.Is(err, "M_FORBIDDEN") {
			return refuse(http.StatusForbidden, "password_wrong")
		}
		if key, status := problem(err); key != "" {
			return refuse(status, key)
		}
		return err
	}
	if err := s.Accounts.ValidatePasswordFor(password, b.User.Localpart()); err != nil {
		if key, status := problem(err); key != "" {
			return refuse(status, key)
		}
		return err
	}
	var ending *account.Ending
	if r.PostFormValue("end") != "" {
		ending = &account.Ending{Soft: true, KeepBrowser: b.ID}
	}
	if err := s.Accounts.SetPassword(ctx, b.User, password, ending); err != nil {
		if key, status := problem(err); key != "" {
			return refuse(status, key)
		}
		return err
	}
	u, err := s.Accounts.User(ctx, b.User)
	if err != nil {
		return err
	}
	b.Mark = passwordMark(u)
	if err := s.update(ctx, b); err != nil {
		return err
	}
	err = s.Store.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.DeleteSSOBrowsers(b.User, b.ID)
		return err
	})
	if err != nil {
		return err
	}
	return goTo(w, r, PathAccount+"?done=done_password")
}

// showDeactivate handles GET /account/deactivate.
func (s *SSO) showDeactivate(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{MaxAge: sensitiveAge})
	if !ok {
		return nil
	}
	d, err := s.accountData(r, b, "account")
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "deactivate", d)
}

// deactivate handles POST /account/deactivate.
func (s *SSO) deactivate(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{MaxAge: sensitiveAge})
	if !ok {
		return nil
	}
	if typed := strings.TrimSpace(r.PostFormValue("confirm")); typed != string(b.User) && typed != b.User.Localpart() {
		d, err := s.accountData(r, b, "account")
		if err != nil {
			return err
		}
		d.Problem = "deactivate_name"
		return s.pages.Render(w, r, http.StatusBadRequest, "deactivate", d)
	}
	ctx := source(r.Context(), b.User, b.ID[:8])
	if err := s.Accounts.Deactivate(ctx, b.User, r.PostFormValue("erase") != ""); err != nil {
		return err
	}
	s.Kit.DeleteCookie(w, browserCookie)
	return s.pages.Render(w, r, http.StatusOK, "deactivated", struct{ User id.UserID }{b.User})
}
