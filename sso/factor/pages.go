package factor

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Pages of the account.
const (
	PathFactors      = "/account/factors"
	pathAdd          = "/account/factors/add"
	pathProve        = "/account/factors/prove"
	PathAppPasswords = "/account/app-passwords"
	PathBrowsers     = "/account/browsers"
)

// hosted are the pages as part of a sign-in.
type hosted struct {
	*Factors
	host Host
}

// Pages are the routes of the pages; New was given a Kit.
func (f *Factors) Pages(host Host) []web.Route {
	h := &hosted{f, host}
	route := func(pattern string, handler web.Handler) web.Route {
		return web.Route{Pattern: pattern, Rate: web.RateRead, Handler: f.pages.Handler(handler)}
	}
	form := func(pattern string, handler web.Handler) web.Route {
		return web.Route{Pattern: pattern, Rate: web.RateLogin, Handler: f.pages.Handler(func(w http.ResponseWriter, r *http.Request) error {
			if err := f.Kit.Form(w, r); err != nil {
				return err
			}
			return handler(w, r)
		})}
	}
	return []web.Route{
		route("GET "+PathFactor, h.showFactor), form("POST "+PathFactor, h.checkFactor),
		route("GET "+PathEnrol, h.showEnrol), form("POST "+PathEnrol, h.enrol),
		route("GET "+PathPasskey, h.showPasskey), form("POST "+PathPasskey, h.checkPasskey),
		route("GET "+PathFactors, h.showFactors), form("POST "+PathFactors, h.changeFactors),
		route("GET "+pathAdd, h.showAdd), form("POST "+pathAdd, h.add),
		route("GET "+pathProve, h.showProve), form("POST "+pathProve, h.prove),
		route("GET "+PathAppPasswords, h.showAppPasswords), form("POST "+PathAppPasswords, h.changeAppPasswords),
		route("GET "+PathBrowsers, h.showBrowsers), form("POST "+PathBrowsers, h.forgetBrowser),
	}
}

func (f *Factors) from(r *http.Request) From {
	return From{IP: web.ClientIP(r), Agent: r.UserAgent(), Lang: f.Kit.Lang(r)}
}

// seeOther goes on to another of our pages.
func seeOther(w http.ResponseWriter, r *http.Request, to string) error {
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, to, http.StatusSeeOther)
	return nil
}

// problem is the text that a page shows for an error that its visitor can mend by trying again; "" for other errors.
func problem(err error) (key string, status int) {
	e := mxerr.As(err)
	switch {
	case e == nil:
		return "", 0
	case e == errPasskey:
		return "problem_passkey", http.StatusForbidden
	case e == errNumber:
		return "problem_number", http.StatusBadRequest
	case e == errCountry:
		return "problem_country", http.StatusBadRequest
	case e == errSMS:
		return "problem_sms", http.StatusBadGateway
	case e == errName:
		return "problem_name", http.StatusBadRequest
	case e == errLast:
		return "problem_last", http.StatusForbidden
	case e == errTooMany:
		return "problem_many", http.StatusBadRequest
	case e == errWrong:
		return "problem_code", http.StatusForbidden
	case e.Code == "M_LIMIT_EXCEEDED":
		return "problem_wait", http.StatusTooManyRequests
	case e.Code == "M_INVALID_PARAM":
		return "problem_address", http.StatusBadRequest
	}
	return "", 0
}

// choice is a kind that a visitor can take instead.
type choice struct {
	Kind   Kind
	To     string
	URL    string
	Chosen bool
}

// proofPage asks for a second factor.
type proofPage struct {
	User      id.UserID
	Action    string // where the form goes
	Return    string // where a proof on an account page leads
	Kind      Kind
	Factor    string
	Choices   []choice
	Challenge Challenge
	Remember  int // days; 0: not offered
	Problem   string
	SignIn    bool
}

// showProof renders the page that asks for one of these kinds, beginning with the one that the visitor chose.
func (h *hosted) showProof(w http.ResponseWriter, r *http.Request, v Visitor, kinds []Kind, p proofPage, failed error) error {
	status := http.StatusOK
	if failed != nil {
		if p.Problem, status = problem(failed); p.Problem == "" {
			return failed
		}
	}
	list, _, err := h.List(r.Context(), v.User)
	if err != nil {
		return err
	}
	p.User, p.Kind, p.Factor = v.User, Kind(r.FormValue(FieldKind)), r.FormValue("factor")
	if !slices.Contains(kinds, p.Kind) {
		p.Kind, p.Factor = kinds[0], ""
	}
	for _, k := range kinds {
		for _, c := range choicesOf(k, list) {
			id := c.URL
			c.URL = p.Action + "?" + url.Values{FieldKind: {string(k)}, "factor": {id}, "to": {p.Return}}.Encode()
			if c.Chosen = k == p.Kind && (p.Factor == "" || id == "" || id == p.Factor); c.Chosen {
				p.Factor = id
				if p.Challenge.To == "" {
					p.Challenge.To = c.To
				}
			}
			p.Choices = append(p.Choices, c)
		}
	}
	if p.Kind == WebAuthn {
		c, err := h.Begin(r.Context(), v.User, WebAuthn, "", h.from(r))
		if err != nil {
			return err
		}
		p.Challenge = c
	}
	return h.pages.Render(w, r, status, "factor", p)
}

// choicesOf are the ways to prove a kind: one for each number or address, one in all for other kinds. URL is the factor's id.
func choicesOf(k Kind, list []Info) []choice {
	var out []choice
	for _, i := range list {
		if i.Kind == k && (k == SMS || k == Email) {
			out = append(out, choice{Kind: k, To: i.To, URL: i.ID})
		}
	}
	if out == nil {
		out = []choice{{Kind: k}}
	}
	return out
}

// owed is what the visitor's sign-in still needs; done means that the request was answered.
func (h *hosted) owed(w http.ResponseWriter, r *http.Request) (v Visitor, o Owed, done bool, err error) {
	v, ok := h.host.Attempt(w, r)
	if !ok {
		return v, o, true, nil
	}
	o, err = h.Owes(r.Context(), v.User, v.Passed)
	return v, o, false, err
}

// showFactor handles GET /signin/factor.
func (h *hosted) showFactor(w http.ResponseWriter, r *http.Request) error {
	v, o, done, err := h.owed(w, r)
	switch {
	case err != nil || done:
		return err
	case len(o.Choose) == 0:
		return h.goOn(w, r, o)
	}
	return h.showProof(w, r, v, o.Choose, h.signInProof(o), nil)
}

// goOn leads to the page that the sign-in is at: somebody went back, or has another window.
func (h *hosted) goOn(w http.ResponseWriter, r *http.Request, o Owed) error {
	if next := o.Next(); next != "" {
		return seeOther(w, r, next)
	}
	return h.host.Passed(w, r)
}

func (h *hosted) signInProof(o Owed) proofPage {
	return proofPage{Action: PathFactor, Remember: int(o.RememberFor / day), SignIn: true}
}

// checkFactor handles POST /signin/factor: it sends a code, or checks what was entered.
func (h *hosted) checkFactor(w http.ResponseWriter, r *http.Request) error {
	v, o, done, err := h.owed(w, r)
	switch {
	case err != nil || done:
		return err
	case len(o.Choose) == 0:
		return h.goOn(w, r, o)
	}
	p := h.signInProof(o)
	amr, done, err := h.answer(w, r, v, o.Choose, p)
	if err != nil || done {
		return err
	}
	if o.RememberFor > 0 && r.PostFormValue(FieldRemember) == "1" {
		if err := h.remember(w, r, v.User, amr, o.RememberFor); err != nil {
			return err
		}
	}
	return h.host.Passed(w, r, amr...)
}

// answer deals with the form of a proof page. done means that the page is shown again: a code was sent, or was wrong.
func (h *hosted) answer(w http.ResponseWriter, r *http.Request, v Visitor, kinds []Kind, p proofPage) (amr []string, done bool, err error) {
	k := Kind(r.PostFormValue(FieldKind))
	if !slices.Contains(kinds, k) {
		return nil, false, errNotHere
	}
	if r.PostFormValue("action") == "send" {
		p.Challenge, err = h.Begin(r.Context(), v.User, k, r.PostFormValue("factor"), h.from(r))
		return nil, true, h.showProof(w, r, v, kinds, p, err)
	}
	amr, err = h.Check(r.Context(), v.User, k, r.PostForm)
	if err != nil {
		p.Challenge = Challenge{ID: r.PostFormValue(FieldChallenge), Kind: k}
		return nil, true, h.showProof(w, r, v, kinds, p, err)
	}
	return amr, false, nil
}

// enrolPage asks for a choice, a name, or a proof.
type enrolPage struct {
	User    id.UserID
	Action  string
	Account bool // a page of the account, not of a sign-in
	Kinds   []Kind
	Kind    Kind
	Grace   int64  // ms until when this may be put off; 0: it may not
	Rule    bool   // a policy asks for it
	Name    string // of the factor
	To      string // what was entered
	E       *Enrolling
	Problem string
}

// showEnrol handles GET /signin/factor/enrol.
func (h *hosted) showEnrol(w http.ResponseWriter, r *http.Request) error {
	v, o, done, err := h.owed(w, r)
	switch {
	case err != nil || done:
		return err
	case len(o.Enrol) == 0:
		return h.goOn(w, r, o)
	}
	return h.showStart(w, r, v, h.signInEnrol(o), nil)
}

func (h *hosted) signInEnrol(o Owed) enrolPage {
	p := enrolPage{Action: PathEnrol, Kinds: o.Enrol, Rule: true}
	if !o.GraceUntil.IsZero() {
		p.Grace = o.GraceUntil.UnixMilli()
	}
	return p
}

// showStart renders the page on which somebody chooses a kind and names what is to be enrolled.
func (h *hosted) showStart(w http.ResponseWriter, r *http.Request, v Visitor, p enrolPage, failed error) error {
	status := http.StatusOK
	if failed != nil {
		if p.Problem, status = problem(failed); p.Problem == "" {
			return failed
		}
	}
	p.User, p.Kind = v.User, Kind(r.FormValue(FieldKind))
	p.Name, p.To = r.PostFormValue("name"), r.PostFormValue("to")
	if !slices.Contains(p.Kinds, p.Kind) {
		p.Kind = ""
		if len(p.Kinds) == 1 {
			p.Kind = p.Kinds[0]
		}
	}
	return h.pages.Render(w, r, status, "enrol", p)
}

// enrol handles POST /signin/factor/enrol.
func (h *hosted) enrol(w http.ResponseWriter, r *http.Request) error {
	switch r.PostFormValue("action") {
	case "done":
		v, ok := h.host.Attempt(w, r)
		if !ok {
			return nil
		}
		amr, err := h.takeTicket(r.Context(), v.User, r.PostFormValue("ticket"))
		if err != nil {
			return err
		}
		return h.host.Passed(w, r, amr...)
	case "later":
		_, o, done, err := h.owed(w, r)
		if err != nil || done {
			return err
		}
		if !o.MayPass() {
			return seeOther(w, r, PathEnrol)
		}
		return h.host.Passed(w, r)
	}
	v, o, done, err := h.owed(w, r)
	switch {
	case err != nil || done:
		return err
	case len(o.Enrol) == 0:
		return h.goOn(w, r, o)
	}
	out, done, err := h.enrolStep(w, r, v, h.signInEnrol(o))
	if err != nil || done {
		return err
	}
	if out.Recovery == nil {
		return h.host.Passed(w, r, out.AMR...)
	}
	// The recovery codes are shown first; the ticket stands for what was proved meanwhile.
	ticket, err := h.giveTicket(r.Context(), v.User, out.AMR)
	if err != nil {
		return err
	}
	return h.pages.Render(w, r, http.StatusOK, "recovery", recoveryPage{Codes: out.Recovery, User: v.User, Action: PathEnrol, Ticket: ticket})
}

type recoveryPage struct {
	User   id.UserID
	Codes  []string
	Action string
	Ticket string
}

// enrolStep begins to enrol, or checks the proof. done means that a page was shown.
func (h *hosted) enrolStep(w http.ResponseWriter, r *http.Request, v Visitor, p enrolPage) (out Enrolled, done bool, err error) {
	k := Kind(r.PostFormValue(FieldKind))
	if !slices.Contains(p.Kinds, k) {
		return out, false, errNotHere
	}
	name := strings.TrimSpace(r.PostFormValue("name"))
	if name == "" {
		if name, err = h.pages.Text(h.Kit.Lang(r), "name_"+string(k)); err != nil {
			return out, false, err
		}
	}
	p.User, p.Kind, p.Name = v.User, k, name
	if r.PostFormValue("action") != "confirm" {
		e, err := h.BeginEnrol(r.Context(), v.User, k, name, r.PostFormValue("to"), h.from(r))
		if err != nil {
			return out, true, h.showStart(w, r, v, p, err)
		}
		p.E = &e
		return out, true, h.pages.Render(w, r, http.StatusOK, "confirm", p)
	}
	factorID := r.PostFormValue("factor")
	out, err = h.Confirm(r.Context(), v.User, k, factorID, name, r.PostForm)
	if err == nil {
		return out, false, nil
	}
	if k == WebAuthn || mxerr.Is(err, "M_NOT_FOUND") {
		// A ceremony is answered once; what is gone begins again too.
		if mxerr.Is(err, "M_NOT_FOUND") {
			err = errWrong
		}
		return out, true, h.showStart(w, r, v, p, err)
	}
	var status int
	if p.Problem, status = problem(err); p.Problem == "" {
		return out, false, err
	}
	if p.E, err = h.enrolling(r.Context(), v.User, factorID, r.PostFormValue(FieldChallenge)); err != nil {
		return out, false, err
	}
	return out, true, h.pages.Render(w, r, status, "confirm", p)
}

// enrolling reads a factor that is being enrolled, to show its page again.
func (f *Factors) enrolling(ctx context.Context, user id.UserID, factorID, challenge string) (*Enrolling, error) {
	var x store.Factor
	err := f.Store.Read(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		x, found, err = tx.Factor(user, factorID)
		if err == nil && (!found || x.Active) {
			err = errNoFactor
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	e := &Enrolling{ID: x.ID, Kind: Kind(x.Kind), Name: x.Name, Challenge: Challenge{ID: challenge, Kind: Kind(x.Kind), To: infoOf(x).To}}
	if e.Kind == TOTP {
		e.Secret = string(x.Secret)
		e.URL = totpURL(f.Config.Issuer, string(user), e.Secret)
		e.QR, err = qrCode(e.URL)
	}
	return e, err
}

const ticketKind = "ticket"

// giveTicket notes what somebody has proved who has still to look at a page.
func (f *Factors) giveTicket(ctx context.Context, user id.UserID, amr []string) (string, error) {
	c := store.FactorChallenge{ID: newID(), User: user, Kind: ticketKind, Data: store.Content(strings.Join(amr, " ")), Expires: f.now() + enrolLifetime.Milliseconds()}
	return c.ID, f.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertFactorChallenge(c) })
}

func (f *Factors) takeTicket(ctx context.Context, user id.UserID, ticket string) ([]string, error) {
	var amr []string
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		c, found, err := tx.TakeFactorChallenge(ticket)
		if err == nil && (!found || c.User != user || c.Kind != ticketKind || c.Expires <= f.now()) {
			err = errNotProved
		}
		amr = strings.Fields(string(c.Data))
		return err
	})
	return amr, err
}

type passkeyPage struct {
	Challenge Challenge
	Problem   string
}

// showPasskey handles GET /signin/passkey: signing in without a name or a password.
func (h *hosted) showPasskey(w http.ResponseWriter, r *http.Request) error {
	return h.askPasskey(w, r, nil)
}

func (h *hosted) askPasskey(w http.ResponseWriter, r *http.Request, failed error) error {
	status, p := http.StatusOK, passkeyPage{}
	if failed != nil {
		if p.Problem, status = problem(failed); p.Problem == "" {
			return failed
		}
	}
	var err error
	if p.Challenge, err = h.BeginPasskey(r.Context()); err != nil {
		return err
	}
	return h.pages.Render(w, r, status, "passkey", p)
}

// checkPasskey handles POST /signin/passkey.
func (h *hosted) checkPasskey(w http.ResponseWriter, r *http.Request) error {
	user, amr, err := h.CheckPasskey(r.Context(), r.PostFormValue(FieldChallenge), r.PostFormValue(FieldCredential))
	if err != nil {
		return h.askPasskey(w, r, err)
	}
	return h.host.PassedAs(w, r, user, amr...)
}

// localPath keeps a parameter from leading to another site.
func localPath(to string) string {
	if strings.HasPrefix(to, "/account") && !strings.ContainsAny(to, "\\\r\n") && !strings.HasPrefix(to, "//") {
		return to
	}
	return PathFactors
}
