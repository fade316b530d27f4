package sso

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
	"github.com/moothall/moothall/sso/upstream"
)

const attemptLifetime = 15 * time.Minute

// Attempt is a sign-in under way in one browser, named by its cookie.
type Attempt struct {
	ID     string `json:"-"`
	Return string `json:"return"` // path of ours at which it goes on
	Client string `json:"client,omitzero"`
	Create bool   `json:"create,omitzero"` // the person wants an account
	Hint   string `json:"hint,omitzero"`   // who it may be

	User   id.UserID `json:"user,omitzero"`  // who it is, once that was proved
	Known  id.UserID `json:"known,omitzero"` // who it must be: somebody who is signed in proves it again
	Need   Need      `json:"need,omitzero"`
	Way    string    `json:"way,omitzero"`
	AMR    []string  `json:"amr,omitzero"`
	Factor bool      `json:"factor,omitzero"` // a second factor was proved
	Grace  bool      `json:"grace,omitzero"`  // enrolment was put off

	Provider string             `json:"provider,omitzero"` // at which the person is
	State    string             `json:"state,omitzero"`
	Kept     []byte             `json:"kept,omitzero"`
	Upstream *upstream.Identity `json:"upstream,omitzero"`
	StepUp   string             `json:"step_up,omitzero"` // stepUpWanted, stepUpAsked: of the provider, once

	Email *emailProof `json:"email,omitzero"` // an address that is being proved, for a new password or account
}

// emailProof is a mail that was sent; see account.EmailRequest.
type emailProof struct {
	SID, Secret, Address string
	Sent                 int64
}

var errNoAttempt = mxerr.New(http.StatusBadRequest, "M_UNKNOWN_SIGNIN", "this sign-in has expired or was finished: begin again in your app, or open the sign-in page")

// begin stores a new attempt in place of the browser's earlier one.
func (s *SSO) begin(w http.ResponseWriter, r *http.Request, a Attempt) (*Attempt, error) {
	if !local(a.Return) {
		a.Return = PathAccount
	}
	secret := newSecret()
	a.ID = store.HashID(secret)
	if err := s.save(r, &a); err != nil {
		return nil, err
	}
	s.Kit.SetCookie(w, &http.Cookie{Name: attemptCookie, Value: secret, MaxAge: int(attemptLifetime / time.Second)})
	return &a, nil
}

func (s *SSO) save(r *http.Request, a *Attempt) error {
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return s.Store.Write(r.Context(), func(tx *store.Tx) error {
		return tx.PutSSOAttempt(a.ID, data, s.now()+attemptLifetime.Milliseconds())
	})
}

// Attempt is the sign-in under way in this browser; nil where there is none.
func (s *SSO) Attempt(r *http.Request) (*Attempt, error) {
	secret := s.Kit.Cookie(r, attemptCookie)
	if secret == "" {
		return nil, nil
	}
	hash := store.HashID(secret)
	var data []byte
	found := false
	err := s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		data, found, err = tx.SSOAttempt(hash, s.now())
		return err
	})
	if err != nil || !found {
		return nil, err
	}
	a := &Attempt{ID: hash}
	return a, json.Unmarshal(data, a)
}

// attempt is Attempt for handlers that need one.
func (s *SSO) attempt(r *http.Request) (*Attempt, error) {
	a, err := s.Attempt(r)
	if err == nil && a == nil {
		err = errNoAttempt
	}
	return a, err
}

// forget drops what was proved where it is another person who proves something now: nothing of the one who had begun counts.
func (a *Attempt) forget(now id.UserID) {
	if a.User != now {
		a.User, a.AMR, a.Upstream, a.Factor, a.Grace = "", nil, nil, false, false
	}
}

// prove notes what a person has proved, and that it is who it must be.
func (a *Attempt) prove(user id.UserID, way string, amr ...string) error {
	if a.Known != "" && a.Known != user || a.User != "" && a.User != user {
		return errOther
	}
	a.User = user
	if way != "" {
		a.Way = way
	}
	for _, m := range amr {
		if !slices.Contains(a.AMR, m) {
			a.AMR = append(a.AMR, m)
		}
	}
	return nil
}

var errOther = mxerr.Forbidden("this is another account than the one you are signed in with: sign out first")

// passed is what the attempt tells the policies about second factors.
func (s *SSO) passed(r *http.Request, a *Attempt) factor.Passed {
	p := factor.Passed{
		Way: a.Way, AMR: a.AMR, IP: clientIP(r), Fresh: a.Need.Factor,
	}
	if s.Factors != nil && a.User != "" {
		p.Remembered = s.Factors.RememberedCookie(r, a.User)
	}
	if up := a.Upstream; up != nil {
		p.Upstream = &factor.Upstream{Provider: up.Provider, ACR: up.ACR, AMR: up.AMR, MFA: up.MFA}
	}
	return p
}

func clientIP(r *http.Request) netip.Addr { return web.ClientIP(r) }

// Advance takes an attempt to what comes next: the choice of a way to sign in, a second factor, its enrolment, or the end,
// where the browser gets its session and goes back to where it came from. It answers the request.
func (s *SSO) Advance(w http.ResponseWriter, r *http.Request, a *Attempt) error {
	if a.User == "" {
		if err := s.save(r, a); err != nil {
			return err
		}
		return goTo(w, r, PathSignIn)
	}
	u, err := s.Accounts.Usable(r.Context(), a.User)
	if err != nil {
		return err
	}
	if s.Factors != nil {
		owed, err := s.Factors.Owes(r.Context(), a.User, s.passed(r, a))
		if err != nil {
			return err
		}
		if next := owed.Next(); next != "" && !(a.Grace && owed.MayPass()) {
			helps, err := s.providerHelps(r, a)
			if err != nil {
				return err
			}
			if helps {
				a.StepUp, next = stepUpWanted, PathSignIn+"/upstream/"+a.Upstream.Provider
			}
			if err := s.save(r, a); err != nil {
				return err
			}
			return goTo(w, r, next)
		}
	}
	// An attempt that was never stored cannot be finished twice either.
	if err := s.save(r, a); err != nil {
		return err
	}
	b, err := s.create(w, r, a, u)
	if err != nil {
		return err
	}
	if err := s.rememberUpstream(r, a, b); err != nil {
		return err
	}
	return goTo(w, r, a.Return)
}

// Whether the provider was asked for the second factor that is owed.
const (
	stepUpWanted = "wanted"
	stepUpAsked  = "asked"
)

// providerHelps tells whether the provider at which the person signed in can be asked for the second factor that is owed, and
// would be believed. It is asked once: whoever cannot give one there proves one of ours.
func (s *SSO) providerHelps(r *http.Request, a *Attempt) (bool, error) {
	// Browsers let no form of ours lead to another site.
	if s.Providers == nil || a.Upstream == nil || a.Upstream.MFA || a.StepUp != "" || r.Method != http.MethodGet {
		return false, nil
	}
	if info, ok := s.Providers.Get(a.Upstream.Provider, "en"); !ok || !info.StepUp {
		return false, nil
	}
	p := s.passed(r, a)
	p.Upstream.MFA = true
	owed, err := s.Factors.Owes(r.Context(), a.User, p)
	return err == nil && owed.None, err
}

// stepUp has somebody who is signed in prove a second factor.
func (s *SSO) stepUp(w http.ResponseWriter, r *http.Request, b *Browser, need Need, back string) (bool, error) {
	if s.Factors == nil {
		return s.stepUpAtProvider(w, r, b, need, back)
	}
	a := Attempt{Return: back, Known: b.User, User: b.User, Way: b.Way, AMR: b.AMR, Need: need}
	owed, err := s.Factors.Owes(r.Context(), b.User, s.passed(r, &a))
	if err != nil {
		return false, err
	}
	if len(owed.Choose) == 0 { // the account has none here; its identity provider may
		if done, err := s.stepUpAtProvider(w, r, b, need, back); done {
			return true, err
		}
	}
	next := owed.Next()
	if next == "" {
		return false, errNoFactor // and no policy asks for one
	}
	if _, err := s.begin(w, r, a); err != nil {
		return false, err
	}
	return true, goTo(w, r, next)
}

// stepUpAtProvider has somebody who signed in at an identity provider prove a second factor there, where it can be asked for
// one. The answer must show it: otherwise the provider's part of the sign-in has failed.
func (s *SSO) stepUpAtProvider(w http.ResponseWriter, r *http.Request, b *Browser, need Need, back string) (bool, error) {
	provider, upstreamed := strings.CutPrefix(b.Way, "sso:")
	if !upstreamed || s.Providers == nil {
		return false, errNoFactor
	}
	if info, ok := s.Providers.Get(provider, "en"); !ok || !info.StepUp {
		return false, errNoFactor
	}
	if _, err := s.begin(w, r, Attempt{Return: back, Known: b.User, Need: need, StepUp: stepUpWanted}); err != nil {
		return true, err
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return true, goTo(w, r, PathSignIn+"?choose=1") // browsers let no form of ours lead to another site, a link does
	}
	return true, goTo(w, r, PathSignIn+"/upstream/"+provider)
}

// factorMethods are what counts as a second factor.
var factorMethods = []string{factor.AMROneTime, factor.AMRKey, factor.AMRSMS, factor.AMRMail, factor.AMRRecovery, factor.AMRMulti}

func hasFactor(amr []string) bool {
	return slices.ContainsFunc(amr, func(m string) bool { return slices.Contains(factorMethods, m) })
}

// clientName is how an attempt calls what somebody signs in to.
func (a *Attempt) clientName() string { return strings.TrimSpace(a.Client) }
