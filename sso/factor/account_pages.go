package factor

import (
	"context"
	"net/http"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// fresh lets somebody pass who is signed in and has proved a second factor within the last minutes; who has none must have
// signed in within them. Everybody else is sent to do so and comes back. done means that the request was answered.
func (h *hosted) fresh(w http.ResponseWriter, r *http.Request) (v Visitor, done bool, err error) {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return v, true, nil
	}
	kinds, err := h.provable(r.Context(), v.User)
	if err != nil {
		return v, false, err
	}
	if len(kinds) == 0 {
		v, ok = h.host.Signed(w, r, proofFreshness)
		return v, !ok, nil
	}
	if h.Clock().Sub(v.ProvedAt) <= proofFreshness {
		return v, false, nil
	}
	to := r.URL.Path
	if r.Method == http.MethodGet {
		to = r.URL.RequestURI()
	}
	return v, true, seeOther(w, r, pathProve+"?"+url.Values{"to": {to}}.Encode())
}

// provable are the kinds by which a user can prove to be there.
func (h *hosted) provable(ctx context.Context, user id.UserID) ([]Kind, error) {
	list, recovery, err := h.List(ctx, user)
	if err != nil {
		return nil, err
	}
	there := map[Kind]bool{}
	for _, i := range list {
		there[i.Kind] = true
	}
	var out []Kind
	for _, k := range Kinds {
		if there[k] {
			out = append(out, k)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	return withRecovery(out, recovery), nil
}

// showProve handles GET /account/factors/prove.
func (h *hosted) showProve(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	kinds, err := h.provable(r.Context(), v.User)
	if err != nil {
		return err
	}
	if len(kinds) == 0 {
		return seeOther(w, r, PathFactors)
	}
	return h.showProof(w, r, v, kinds, proofPage{Action: pathProve, Return: localPath(web.QueryString(r, "to"))}, nil)
}

// prove handles POST /account/factors/prove.
func (h *hosted) prove(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	kinds, err := h.provable(r.Context(), v.User)
	if err != nil {
		return err
	}
	if len(kinds) == 0 {
		return seeOther(w, r, PathFactors)
	}
	to := localPath(r.PostFormValue("to"))
	amr, done, err := h.answer(w, r, v, kinds, proofPage{Action: pathProve, Return: to})
	if err != nil || done {
		return err
	}
	if err := h.host.Raise(w, r, amr...); err != nil {
		return err
	}
	return seeOther(w, r, to)
}

// factorsPage lists what an account has.
type factorsPage struct {
	User     id.UserID
	Factors  []Info
	Recovery int64
	Add      []Kind
	Apps     bool
	Problem  string
	Confirm  *Info // about to be removed
	Rename   *Info
}

// showFactors handles GET /account/factors.
func (h *hosted) showFactors(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	return h.listFactors(w, r, v, nil)
}

func (h *hosted) listFactors(w http.ResponseWriter, r *http.Request, v Visitor, failed error) error {
	status, p := http.StatusOK, factorsPage{User: v.User}
	if failed != nil {
		if p.Problem, status = problem(failed); p.Problem == "" {
			return failed
		}
	}
	var err error
	if p.Factors, p.Recovery, err = h.List(r.Context(), v.User); err != nil {
		return err
	}
	for _, k := range Kinds {
		if h.Offered(k) {
			p.Add = append(p.Add, k)
		}
	}
	if p.Apps, err = h.appsShown(r.Context(), v); err != nil {
		return err
	}
	for i := range p.Factors {
		switch p.Factors[i].ID {
		case web.QueryString(r, "remove"):
			p.Confirm = &p.Factors[i]
		case web.QueryString(r, "rename"):
			p.Rename = &p.Factors[i]
		}
	}
	return h.pages.Render(w, r, status, "factors", p)
}

// appsShown tells whether the page of app passwords concerns a visitor: they are allowed, or there are some.
func (h *hosted) appsShown(ctx context.Context, v Visitor) (bool, error) {
	allowed, err := h.AppPasswordsAllowed(ctx, v.User, v.Passed.IP)
	if err != nil || allowed {
		return allowed, err
	}
	there, err := h.AppPasswords(ctx, v.User)
	return len(there) > 0, err
}

// changeFactors handles POST /account/factors.
func (h *hosted) changeFactors(w http.ResponseWriter, r *http.Request) error {
	v, done, err := h.fresh(w, r)
	if err != nil || done {
		return err
	}
	factorID := r.PostFormValue("factor")
	switch r.PostFormValue("action") {
	case "rename":
		err = h.Rename(r.Context(), v.User, factorID, r.PostFormValue("name"))
	case "remove":
		err = h.Remove(r.Context(), v.User, factorID, v.Passed)
	case "recovery":
		codes, err := h.NewRecoveryCodes(r.Context(), v.User)
		if err != nil {
			return err
		}
		return h.pages.Render(w, r, http.StatusOK, "recovery", recoveryPage{Codes: codes, User: v.User, Action: PathFactors})
	default:
		return seeOther(w, r, PathFactors)
	}
	if err != nil {
		return h.listFactors(w, r, v, err)
	}
	return seeOther(w, r, PathFactors)
}

// showAdd handles GET /account/factors/add.
func (h *hosted) showAdd(w http.ResponseWriter, r *http.Request) error {
	v, done, err := h.fresh(w, r)
	if err != nil || done {
		return err
	}
	return h.showStart(w, r, v, h.accountEnrol(), nil)
}

func (h *hosted) accountEnrol() enrolPage {
	p := enrolPage{Action: pathAdd, Account: true}
	for _, k := range Kinds {
		if h.Offered(k) {
			p.Kinds = append(p.Kinds, k)
		}
	}
	return p
}

// add handles POST /account/factors/add.
func (h *hosted) add(w http.ResponseWriter, r *http.Request) error {
	v, done, err := h.fresh(w, r)
	if err != nil || done {
		return err
	}
	out, done, err := h.enrolStep(w, r, v, h.accountEnrol())
	if err != nil || done {
		return err
	}
	if err := h.host.Raise(w, r, out.AMR...); err != nil {
		return err
	}
	if out.Recovery == nil {
		return seeOther(w, r, PathFactors)
	}
	return h.pages.Render(w, r, http.StatusOK, "recovery", recoveryPage{Codes: out.Recovery, User: v.User, Action: PathFactors})
}

type appsPage struct {
	User    id.UserID
	Allowed bool
	Apps    bool // the tab is shown
	List    []store.AppPassword
	Made    string // shown once
	Name    string
	Problem string
}

// showAppPasswords handles GET /account/app-passwords.
func (h *hosted) showAppPasswords(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	return h.listApps(w, r, v, appsPage{}, nil)
}

func (h *hosted) listApps(w http.ResponseWriter, r *http.Request, v Visitor, p appsPage, failed error) error {
	status := http.StatusOK
	if failed != nil {
		if p.Problem, status = problem(failed); p.Problem == "" {
			return failed
		}
	}
	var err error
	if p.Allowed, err = h.AppPasswordsAllowed(r.Context(), v.User, v.Passed.IP); err != nil {
		return err
	}
	if p.List, err = h.AppPasswords(r.Context(), v.User); err != nil {
		return err
	}
	p.User, p.Apps = v.User, true
	return h.pages.Render(w, r, status, "apps", p)
}

// changeAppPasswords handles POST /account/app-passwords.
func (h *hosted) changeAppPasswords(w http.ResponseWriter, r *http.Request) error {
	v, done, err := h.fresh(w, r)
	if err != nil || done {
		return err
	}
	if r.PostFormValue("action") == "revoke" {
		if err := h.RevokeAppPassword(r.Context(), v.User, r.PostFormValue("password")); err != nil {
			return err
		}
		return seeOther(w, r, PathAppPasswords)
	}
	name := r.PostFormValue("name")
	made, err := h.NewAppPassword(r.Context(), v.User, name, v.Passed.IP)
	return h.listApps(w, r, v, appsPage{Made: made, Name: name}, err)
}

type browsersPage struct {
	User     id.UserID
	Browsers []store.RememberedDevice
	Apps     bool
}

// showBrowsers handles GET /account/browsers.
func (h *hosted) showBrowsers(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	p := browsersPage{User: v.User}
	var err error
	if p.Browsers, err = h.Remembered(r.Context(), v.User); err != nil {
		return err
	}
	if p.Apps, err = h.appsShown(r.Context(), v); err != nil {
		return err
	}
	return h.pages.Render(w, r, http.StatusOK, "browsers", p)
}

// forgetBrowser handles POST /account/browsers. It takes something away only, so that it asks for no proof.
func (h *hosted) forgetBrowser(w http.ResponseWriter, r *http.Request) error {
	v, ok := h.host.Signed(w, r, 0)
	if !ok {
		return nil
	}
	if err := h.Forget(r.Context(), v.User, r.PostFormValue("browser")); err != nil {
		return err
	}
	return seeOther(w, r, PathBrowsers)
}
