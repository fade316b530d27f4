package upstream

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what Providers work with.
type Deps struct {
	Store    *store.Store
	Accounts *account.Accounts
	Profiles *account.Profiles
	People   *people.People
	Logger   *slog.Logger
	// Client reaches the identity providers; they may lie in the company's own network.
	Client    *http.Client
	PublicURL string // without a slash at its end
	Providers []Config
	Clock     func() time.Time // nil: time.Now
	// EndBrowsers ends sessions of browsers on our own pages; nil: there are none.
	EndBrowsers func(ctx context.Context, browsers []string) error
	// SetGroups says which groups a user is in by a provider whose groups are the company's; nil: none's are.
	SetGroups func(ctx context.Context, provider string, user id.UserID, groups []string) error
}

// Identity is who a provider says somebody is. It is stored with the sign-in attempt as JSON.
type Identity struct {
	Provider      string            `json:"provider"`
	Subject       string            `json:"subject"` // never changes at the provider
	DirectoryID   string            `json:"directory_id,omitzero"`
	Localpart     string            `json:"localpart,omitzero"`
	DisplayName   string            `json:"display_name,omitzero"`
	Email         string            `json:"email,omitzero"`
	EmailVerified bool              `json:"email_verified,omitzero"`
	Groups        []string          `json:"groups,omitzero"`
	Roles         []account.Role    `json:"roles,omitzero"`
	ACR           string            `json:"acr,omitzero"`
	AMR           []string          `json:"amr,omitzero"`
	MFA           bool              `json:"mfa,omitzero"` // more than one factor was checked there
	SID           string            `json:"sid,omitzero"` // the provider's session
	IDToken       string            `json:"id_token,omitzero"`
	AuthTime      time.Time         `json:"auth_time,omitzero"`
	Attributes    map[string]string `json:"attributes,omitzero"`
}

// Info is what a sign-in page shows of a provider.
type Info struct {
	ID, Name, Icon, Brand string
	StepUp                bool // it can be asked for a second factor
}

// BeginParams say what is wanted of a provider.
type BeginParams struct {
	State     string        // names the attempt; comes back unchanged
	MFA       bool          // ask for the provider's own second factor; Finish refuses without
	StepUp    []string      // acr values to ask for beside those of the configuration; Finish refuses others
	Prompt    string        // OIDC's prompt: "login" asks for the password again
	MaxAge    time.Duration // the longest time since the person proved who they are; 0: any
	LoginHint string
	Lang      string // of the provider's pages
}

// kept is what is remembered between Begin and Finish beside the attempt.
type kept struct {
	Provider string   `json:"provider"`
	Nonce    string   `json:"nonce,omitzero"`
	Verifier string   `json:"verifier,omitzero"`
	Request  string   `json:"request,omitzero"` // id of the SAML request
	MFA      bool     `json:"mfa,omitzero"`
	ACR      []string `json:"acr,omitzero"`
	MaxAge   int64    `json:"max_age,omitzero"` // seconds; 0: none
	Fresh    bool     `json:"fresh,omitzero"`   // the person had to prove it again
	Began    int64    `json:"began"`            // ms
}

// provider is one protocol with one configuration.
type provider interface {
	// begin returns where to send the browser, and notes in k what finish needs.
	begin(ctx context.Context, b BeginParams, k *kept) (string, error)
	// finish reads the answer, whose state and provider were checked.
	finish(ctx context.Context, form url.Values, k *kept) (assertion, error)
}

// assertion is what a provider said, checked but not mapped.
type assertion struct {
	claims   claims
	acr      string
	amr      []string
	sid      string
	idToken  string
	authTime time.Time
}

// Providers are the configured identity providers.
type Providers struct {
	Deps

	all  []*entry
	byID map[string]*entry
}

type entry struct {
	cfg     Config
	mapping *mapping
	p       provider
	oidc    *oidcProvider // nil: another protocol
	saml    *samlProvider // nil: another protocol
}

// New makes Providers. Nothing is fetched: a provider that is down is noticed by who signs in with it. The error names the
// provider and the value.
func New(d Deps) (*Providers, error) {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Client == nil {
		d.Client = http.DefaultClient
	}
	p := &Providers{Deps: d, byID: map[string]*entry{}}
	for i := range d.Providers {
		e, err := p.newEntry(d.Providers[i].withDefaults())
		if err != nil {
			return nil, fmt.Errorf("sso.providers[%d] (%s): %w", i, d.Providers[i].ID, err)
		}
		if p.byID[e.cfg.ID] != nil {
			return nil, fmt.Errorf("sso.providers[%d]: the id %q is taken by an earlier one", i, e.cfg.ID)
		}
		p.all = append(p.all, e)
		p.byID[e.cfg.ID] = e
	}
	return p, nil
}

func (p *Providers) newEntry(cfg Config) (*entry, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	m, err := newMapping(cfg.Mapping)
	if err != nil {
		return nil, err
	}
	e := &entry{cfg: cfg, mapping: m}
	client := &http.Client{Transport: bounded{cmpTransport(p.Client)}, Timeout: cfg.Timeout, CheckRedirect: noRedirect}
	logger := p.Logger.With("provider", cfg.ID)
	switch cfg.Type {
	case TypeOIDC:
		e.oidc = newOIDC(cfg, client, p.callback(cfg.ID), p.Clock, logger)
		e.p = e.oidc
	case TypeSAML:
		e.saml = newSAML(cfg, client, p, logger)
		e.p = e.saml
	default:
		if e.p, err = newOAuth2(cfg, client, p.callback(cfg.ID), p.Clock, logger); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// callback is the redirect URI of a provider.
func (p *Providers) callback(id string) string {
	return p.PublicURL + "/_moothall/signin/callback/" + id
}

// base is the address of what a provider itself calls.
func (p *Providers) base(id string) string { return p.PublicURL + "/_moothall/upstream/" + id }

// List tells of the providers in their configured order, named in a language ("zh" or "en").
func (p *Providers) List(lang string) []Info {
	out := make([]Info, 0, len(p.all))
	for _, e := range p.all {
		out = append(out, e.info(lang))
	}
	return out
}

// Get tells of one provider.
func (p *Providers) Get(id, lang string) (Info, bool) {
	e := p.byID[id]
	if e == nil {
		return Info{}, false
	}
	return e.info(lang), true
}

func (e *entry) info(lang string) Info {
	i := Info{ID: e.cfg.ID, Name: e.cfg.Name, Icon: e.cfg.Icon, Brand: e.cfg.Brand, StepUp: len(e.cfg.StepUpACR) > 0}
	if strings.HasPrefix(lang, "zh") && e.cfg.NameZH != "" {
		i.Name = e.cfg.NameZH
	}
	return i
}

// Begin returns the address at which somebody signs in, and what the attempt keeps for Finish. Errors are for people:
// 404 for an unknown provider, 503 for one that does not answer.
func (p *Providers) Begin(ctx context.Context, id string, b BeginParams) (target string, kept []byte, err error) {
	e := p.byID[id]
	if e == nil {
		return "", nil, errUnknownProvider
	}
	k := p.newKept(e, b)
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	if target, err = e.p.begin(ctx, b, k); err != nil {
		return "", nil, p.explain(e, "begin", err)
	}
	kept, err = json.Marshal(k)
	return target, kept, err
}

func (p *Providers) newKept(e *entry, b BeginParams) *kept {
	k := &kept{
		Provider: e.cfg.ID, MFA: b.MFA, ACR: slices.Clone(b.StepUp), MaxAge: int64(b.MaxAge / time.Second),
		Fresh: b.Prompt == "login", Began: p.Clock().UnixMilli(),
	}
	if b.MFA && len(k.ACR) == 0 {
		k.ACR = slices.Clone(e.cfg.StepUpACR)
	}
	return k
}

// attemptLifetime is how long somebody may take at the provider.
const attemptLifetime = time.Hour

// Finish reads the provider's answer: r is the request to the callback, state and kept are those of the attempt that the
// browser's cookie names. Each answer counts once. Errors are for people; ReasonOf tells them apart.
func (p *Providers) Finish(ctx context.Context, id string, r *http.Request, state string, keptBytes []byte) (Identity, error) {
	e := p.byID[id]
	if e == nil {
		return Identity{}, errUnknownProvider
	}
	var k kept
	if len(keptBytes) == 0 || json.Unmarshal(keptBytes, &k) != nil {
		return Identity{}, errNoAttempt
	}
	if err := r.ParseForm(); err != nil {
		return Identity{}, mxerr.InvalidParam("the answer of the identity provider cannot be read")
	}
	// The state binds the answer to this browser's attempt (RFC 6749, section 10.12), the provider's id to the provider.
	got := r.Form["state"]
	if len(got) != 1 || state == "" || subtle.ConstantTimeCompare([]byte(got[0]), []byte(state)) != 1 || k.Provider != id {
		return Identity{}, errNoAttempt
	}
	if p.Clock().Sub(time.UnixMilli(k.Began)) > attemptLifetime {
		return Identity{}, errNoAttempt
	}
	if err := p.once(ctx, "state", id, state, attemptLifetime); err != nil {
		return Identity{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*e.cfg.Timeout)
	defer cancel()
	a, err := e.p.finish(ctx, r.Form, &k)
	if err != nil {
		return Identity{}, p.explain(e, "finish", err)
	}
	ident, err := e.identity(a)
	if err != nil {
		return Identity{}, p.explain(e, "map", err)
	}
	if err := p.stepped(e, &ident, &k); err != nil {
		return Identity{}, p.explain(e, "step up", err)
	}
	return ident, nil
}

// stepped checks that the provider did what was asked for beyond a plain sign-in: it may ignore what it does not know
// (OpenID Connect Core 1.0, sections 3.1.2.1 and 5.5.1.1).
func (p *Providers) stepped(e *entry, ident *Identity, k *kept) error {
	switch {
	case k.MFA && !ident.MFA && !slices.Contains(k.ACR, ident.ACR):
		return errStepUp
	case !k.MFA && len(k.ACR) > 0 && !slices.Contains(k.ACR, ident.ACR):
		return errStepUp
	}
	if k.MFA {
		ident.MFA = true
	}
	// What was asked for is proved by the time of proof; a provider that does not tell it did not prove it.
	oldest := time.Time{}
	if k.MaxAge > 0 {
		oldest = p.Clock().Add(-time.Duration(k.MaxAge) * time.Second)
	}
	if began := time.UnixMilli(k.Began); k.Fresh && began.After(oldest) {
		oldest = began
	}
	if !oldest.IsZero() && ident.AuthTime.Before(oldest.Add(-e.cfg.ClockSkew)) {
		return errNotFresh
	}
	return nil
}

// once refuses what came before.
func (p *Providers) once(ctx context.Context, kind, provider, value string, life time.Duration) error {
	fresh := false
	err := p.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		fresh, err = tx.MarkSeen(seenKey(kind, provider, value), p.Clock().Add(life).UnixMilli())
		return err
	})
	if err == nil && !fresh {
		err = errReplayed
	}
	return err
}

func seenKey(kind, provider, value string) string {
	sum := sha256.Sum256([]byte(provider + "\x00" + value))
	return kind + ":" + base64.RawURLEncoding.EncodeToString(sum[:])
}

// explain turns an error into one for people, and logs the cause. Secrets stand in addresses and bodies: neither is logged.
func (p *Providers) explain(e *entry, doing string, err error) error {
	var known *mxerr.Error
	cause := err
	if u := (*url.Error)(nil); errors.As(err, &u) {
		cause = fmt.Errorf("%s: %w", strings.ToLower(u.Op), u.Err)
	}
	p.Logger.Warn("sign-in at the identity provider", "provider", e.cfg.ID, "step", doing, "error", cut(cause.Error(), 400))
	if errors.As(err, &known) {
		return known
	}
	var u *url.Error
	if errors.As(err, &u) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errAway) {
		return errUnavailable
	}
	return errInvalidAnswer
}

func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}

// random is 160 bits from the system, for states and nonces.
func random() string {
	var b [20]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Run drops from time to time what has expired.
func (p *Providers) Run(ctx context.Context) error {
	t := time.NewTicker(10 * time.Minute)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		now := p.Clock()
		err := p.Store.Write(ctx, func(tx *store.Tx) error {
			return tx.SweepUpstream(now.UnixMilli(), now.Add(-browserNotes).UnixMilli())
		})
		if err != nil && ctx.Err() == nil {
			p.Logger.Warn("sweep what identity providers sent", "error", err)
		}
	}
}

// browserNotes is how long it is remembered where a browser's session came from; no such session lives longer.
const browserNotes = 90 * 24 * time.Hour
