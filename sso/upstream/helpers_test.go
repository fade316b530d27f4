package upstream_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/upstream"
)

const publicURL = "https://matrix.example.org"

// house is a server's accounts and identity providers.
type house struct {
	*upstream.Providers
	t        *testing.T
	store    *store.Store
	accounts *account.Accounts
	people   *people.People
	skew     atomic.Int64 // ns that our clock is ahead
	mux      http.Handler
	mu       sync.Mutex
	ended    []string // browsers
}

// open makes a house over a database, with providers.
func open(t *testing.T, cfg store.Config, providers ...upstream.Config) *house {
	t.Helper()
	s, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, store: s}
	h.accounts = account.New(account.Deps{
		Store: s, ServerName: "example.org", Logger: slog.New(slog.DiscardHandler),
		Config:          account.Config{Passwords: account.PasswordConfig{Argon2: account.Argon2{Time: 1, MemoryKiB: 64, Threads: 1}}},
		OnDeviceDeleted: []func(*store.Tx, id.UserID, id.DeviceID) error{upstream.DeviceDeleted},
	})
	profiles := account.NewProfiles(account.ProfilesDeps{
		Store: s, ServerName: "example.org", Logger: slog.New(slog.DiscardHandler),
		Propagate: func(context.Context, id.UserID, string, string) error { return nil },
	})
	h.people = people.New(people.Deps{Store: s, Accounts: h.accounts, Profiles: profiles, Logger: slog.New(slog.DiscardHandler)})
	follows := make(chan struct{}, 1)
	probe := store.Listener{Apply: func([]store.Entry) {
		select {
		case follows <- struct{}{}:
		default:
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, []store.Listener{h.accounts.Listener(), probe}, nil) }()
	<-s.Following()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	h.use(profiles, providers...)
	return h
}

func (h *house) use(profiles *account.Profiles, providers ...upstream.Config) {
	h.t.Helper()
	p, err := upstream.New(upstream.Deps{
		Store: h.store, Accounts: h.accounts, Profiles: profiles, People: h.people, Logger: slog.New(slog.DiscardHandler),
		Client: http.DefaultClient, PublicURL: publicURL, Providers: providers,
		Clock: func() time.Time { return time.Now().Add(time.Duration(h.skew.Load())) },
		EndBrowsers: func(_ context.Context, browsers []string) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.ended = append(h.ended, browsers...)
			return nil
		},
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.Providers = p
	mux, err := web.NewMux(web.Config{Logger: slog.New(slog.DiscardHandler)}, p.Routes())
	if err != nil {
		h.t.Fatal(err)
	}
	h.mux = mux
}

func (h *house) user(localpart string) id.UserID {
	h.t.Helper()
	u, err := h.accounts.CreateUser(h.t.Context(), account.NewUser{Localpart: localpart})
	if err != nil {
		h.t.Fatal(err)
	}
	return u.ID
}

// device signs a user in.
func (h *house) device(user id.UserID) (id.DeviceID, string) {
	h.t.Helper()
	d, tok, err := h.accounts.SignIn(h.t.Context(), user, account.SignIn{})
	if err != nil {
		h.t.Fatal(err)
	}
	return d, tok.AccessToken
}

// alive tells whether an access token is good.
func (h *house) alive(token string) bool {
	_, err := h.accounts.Authenticate(h.t.Context(), token)
	return err == nil
}

// callback is the request by which the browser comes back.
func callback(values url.Values) *http.Request {
	return httptest.NewRequest("GET", "/_moothall/signin/callback/x?"+values.Encode(), nil)
}

// issuer is an OpenID provider in the test, which can lie.
type issuer struct {
	*httptest.Server
	t   *testing.T
	key *rsa.PrivateKey

	mu       sync.Mutex
	client   string
	codes    map[string]grant
	meta     map[string]any              // added to the discovery document
	change   func(c map[string]any)      // of the ID token's claims
	sign     func(payload []byte) string // in place of a right signature
	userinfo func(c map[string]any) any  // nil: the claims
	token    func(w http.ResponseWriter) // in place of the token endpoint
	delay    time.Duration               // of every answer
	down     bool                        // answers 503
	asked    map[string]int              // requests by path
}

type grant struct {
	nonce, challenge string
	claims           map[string]any
	access           string
}

func startIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key, client: "moothall", codes: map[string]grant{}, asked: map[string]int{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		doc := map[string]any{
			"issuer": i.URL, "authorization_endpoint": i.URL + "/authorize", "token_endpoint": i.URL + "/token", "jwks_uri": i.URL + "/keys",
			"userinfo_endpoint": i.URL + "/userinfo", "end_session_endpoint": i.URL + "/logout",
			"id_token_signing_alg_values_supported":          []string{"RS256", "HS256", "none"},
			"authorization_response_iss_parameter_supported": true,
		}
		i.mu.Lock()
		maps.Copy(doc, i.meta)
		i.mu.Unlock()
		writeJSON(w, doc)
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: &key.PublicKey, KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	})
	mux.HandleFunc("POST /token", i.exchange)
	mux.HandleFunc("GET /userinfo", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		for _, g := range i.codes {
			if "Bearer "+g.access == r.Header.Get("Authorization") {
				c := maps.Clone(g.claims)
				if i.userinfo != nil {
					writeJSON(w, i.userinfo(c))
					return
				}
				writeJSON(w, c)
				return
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		i.asked[r.URL.Path]++
		delay, down := i.delay, i.down
		i.mu.Unlock()
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
		if down {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(i.Close)
	return i
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func (i *issuer) set(fn func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	fn()
}

func (i *issuer) exchange(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.token != nil {
		i.token(w)
		return
	}
	user, password, _ := r.BasicAuth()
	g, ok := i.codes[r.FormValue("code")]
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	if !ok || user != i.client || password != "s3cret" || base64.RawURLEncoding.EncodeToString(sum[:]) != g.challenge {
		w.WriteHeader(http.StatusBadRequest)
		_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
		return
	}
	now := time.Now().Unix()
	c := map[string]any{"iss": i.URL, "aud": i.client, "iat": now, "exp": now + 300, "auth_time": now}
	if g.nonce != "" {
		c["nonce"] = g.nonce
	}
	maps.Copy(c, g.claims)
	if i.change != nil {
		i.change(c)
	}
	writeJSON(w, map[string]any{"access_token": g.access, "token_type": "Bearer", "expires_in": 300, "id_token": i.signed(c)})
}

// signed signs claims, or does what the test wants in its place.
func (i *issuer) signed(c map[string]any) string {
	payload, err := json.Marshal(c)
	if err != nil {
		i.t.Error(err)
	}
	if i.sign != nil {
		return i.sign(payload)
	}
	return sign(i.t, jose.RS256, i.key, "k1", payload)
}

func sign(t *testing.T, alg jose.SignatureAlgorithm, key any, kid string, payload []byte) string {
	t.Helper()
	opts := (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", kid)
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts)
	if err != nil {
		t.Fatal(err)
	}
	o, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := o.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unsigned is a token of alg none.
func unsigned(payload []byte) string {
	b := base64.RawURLEncoding
	return b.EncodeToString([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + b.EncodeToString(payload) + "."
}

// config is this issuer as a provider.
func (i *issuer) config(change ...func(*upstream.Config)) upstream.Config {
	c := upstream.Config{
		ID: "kc", Type: upstream.TypeOIDC, Issuer: i.URL, ClientID: i.client, ClientSecret: "s3cret", CreateAccounts: true, Timeout: 20 * time.Second,
	}
	for _, fn := range change {
		fn(&c)
	}
	return c
}

// authorize is what the browser does at the provider: it signs in, and gets a code for the redirect.
func (i *issuer) authorize(target string, claims map[string]any) url.Values {
	i.t.Helper()
	u, err := url.Parse(target)
	if err != nil {
		i.t.Fatal(err)
	}
	q := u.Query()
	for name, want := range map[string]string{
		"client_id": i.client, "response_type": "code", "code_challenge_method": "S256", "redirect_uri": publicURL + "/_moothall/signin/callback/kc",
	} {
		if q.Get(name) != want {
			i.t.Errorf("%s is %q, want %q", name, q.Get(name), want)
		}
	}
	if q.Get("nonce") == "" || q.Get("code_challenge") == "" || !strings.HasPrefix(target, i.URL+"/authorize?") {
		i.t.Errorf("asked at %s", target)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	code := fmt.Sprintf("code%d", len(i.codes))
	i.codes[code] = grant{nonce: q.Get("nonce"), challenge: q.Get("code_challenge"), claims: claims, access: "access" + code}
	return url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {i.URL}}
}

// alice is who signs in.
func alice(more ...any) map[string]any {
	c := map[string]any{
		"sub": "8d2f", "preferred_username": "Alice", "name": "Alice Liu", "email": "alice@corp.example", "email_verified": true,
		"groups": []string{"/staff", "/admins"}, "sid": "session-1",
	}
	for i := 0; i < len(more); i += 2 {
		if more[i+1] == nil {
			delete(c, more[i].(string))
			continue
		}
		c[more[i].(string)] = more[i+1]
	}
	return c
}

// signIn goes through a whole sign-in at an issuer.
func (h *house) signIn(i *issuer, claims map[string]any) (upstream.Identity, error) {
	h.t.Helper()
	return h.signInWith(i, claims, upstream.BeginParams{})
}

func (h *house) signInWith(i *issuer, claims map[string]any, b upstream.BeginParams) (upstream.Identity, error) {
	h.t.Helper()
	if b.State == "" {
		b.State = fmt.Sprintf("state%d", time.Now().UnixNano())
	}
	target, kept, err := h.Begin(h.t.Context(), "kc", b)
	if err != nil {
		return upstream.Identity{}, err
	}
	return h.Finish(h.t.Context(), "kc", callback(i.authorize(target, claims)), b.State, kept)
}

// account signs in and takes the account, made if need be.
func (h *house) account(i *issuer, claims map[string]any) (id.UserID, upstream.Identity, error) {
	h.t.Helper()
	ident, err := h.signIn(i, claims)
	if err != nil {
		return "", ident, err
	}
	r, err := h.Resolve(h.t.Context(), ident)
	if err != nil {
		return "", ident, err
	}
	user, err := h.Accept(h.t.Context(), ident, r, upstream.Choice{Localpart: "chosen"})
	return user, ident, err
}
