package upstream_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/sso/upstream"
)

// TestOIDC signs in with a right answer: what the provider says arrives.
func TestOIDC(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		i := startIssuer(t)
		h := open(t, cfg, i.config(func(c *upstream.Config) {
			c.Mapping.Roles = []upstream.RoleRule{{Group: "/admins", Role: "auditor"}, {Group: "/others", Role: "admin"}}
			c.Mapping.Attributes = []upstream.Pair{{Name: "long", Value: "{{.long}}"}}
		}))
		if asked := i.asked["/.well-known/openid-configuration"]; asked != 0 {
			t.Error("the provider was asked before anybody signed in")
		}
		got, err := h.signIn(i, alice("acr", "pwd", "amr", []string{"pwd"}, "long", json.RawMessage("12345678901234567890")))
		if err != nil {
			t.Fatal(err)
		}
		if got.Subject != "8d2f" || got.Localpart != "alice" || got.DisplayName != "Alice Liu" || got.Email != "alice@corp.example" || !got.EmailVerified ||
			len(got.Groups) != 2 || len(got.Roles) != 1 || got.Roles[0] != "auditor" || got.SID != "session-1" || got.MFA || got.ACR != "pwd" ||
			got.Attributes["long"] != "12345678901234567890" || time.Since(got.AuthTime) > time.Minute {
			t.Errorf("got %+v", got)
		}
		if i.asked["/.well-known/openid-configuration"] != 1 {
			t.Error("discovery was not kept")
		}
		b, err := json.Marshal(got)
		if err != nil || strings.Contains(string(b), "s3cret") {
			t.Errorf("%s %v", b, err)
		}
	})
}

// TestOIDCAttacks shows answers that must not sign anybody in.
func TestOIDCAttacks(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	set := func(name string, value any) func(map[string]any) {
		return func(c map[string]any) {
			if value == nil {
				delete(c, name)
				return
			}
			c[name] = value
		}
	}
	now := time.Now().Unix()
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
	for _, tc := range []struct {
		name   string
		reason upstream.Reason // "" means that the sign-in is good
		change func(c map[string]any)
		sign   func(payload []byte) string
		answer func(v url.Values)
		info   func(c map[string]any) any
		state  string // in place of the attempt's
	}{
		{name: "right"},
		{name: "forged state", reason: upstream.ReasonAttempt, answer: func(v url.Values) { v.Set("state", "forged") }},
		{name: "no state", reason: upstream.ReasonAttempt, answer: func(v url.Values) { v.Del("state") }},
		{name: "two states", reason: upstream.ReasonAttempt, answer: func(v url.Values) { v.Add("state", "x") }},
		{name: "another issuer", reason: upstream.ReasonInvalid, answer: func(v url.Values) { v.Set("iss", "https://evil.example") }},
		{name: "issuer left out", reason: upstream.ReasonInvalid, answer: func(v url.Values) { v.Del("iss") }},
		{name: "foreign code", reason: upstream.ReasonInvalid, answer: func(v url.Values) { v.Set("code", "stolen") }},
		{name: "no code", reason: upstream.ReasonInvalid, answer: func(v url.Values) { v.Del("code") }},
		{name: "two codes", reason: upstream.ReasonInvalid, answer: func(v url.Values) { v.Add("code", "x") }},
		{name: "denied", reason: upstream.ReasonDenied, answer: func(v url.Values) { v.Del("code"); v.Set("error", "access_denied") }},
		{name: "error of the provider", reason: upstream.ReasonUnavailable, answer: func(v url.Values) { v.Del("code"); v.Set("error", "server_error") }},
		{name: "alg none", reason: upstream.ReasonInvalid, sign: unsigned},
		{name: "alg None", reason: upstream.ReasonInvalid, sign: func(p []byte) string {
			return base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"None"}`)) + unsigned(p)[strings.IndexByte(unsigned(p), '.'):]
		}},
		{name: "our secret as key", reason: upstream.ReasonInvalid, sign: func(p []byte) string {
			return sign(t, jose.HS256, []byte("s3crets3crets3crets3crets3crets3"), "k1", p)
		}},
		{name: "public key as HMAC key", reason: upstream.ReasonInvalid, sign: func(p []byte) string {
			return sign(t, jose.HS256, i.key.N.Bytes(), "k1", p)
		}},
		{name: "another key", reason: upstream.ReasonInvalid, sign: func(p []byte) string { return sign(t, jose.RS256, other, "k1", p) }},
		{name: "no token", reason: upstream.ReasonInvalid, sign: func([]byte) string { return "" }},
		{name: "wrong nonce", reason: upstream.ReasonInvalid, change: set("nonce", "another")},
		{name: "no nonce", reason: upstream.ReasonInvalid, change: set("nonce", nil)},
		{name: "expired", reason: upstream.ReasonInvalid, change: set("exp", now-120)},
		{name: "expired within leeway", change: set("exp", now-20)},
		{name: "from the future", reason: upstream.ReasonInvalid, change: set("iat", now+180)},
		{name: "from the future within leeway", change: set("iat", now+20)},
		{name: "wrong audience", reason: upstream.ReasonInvalid, change: set("aud", "another")},
		{name: "two audiences", reason: upstream.ReasonInvalid, change: set("aud", []string{"moothall", "another"})},
		{name: "two audiences, issued to us", change: func(c map[string]any) { c["aud"], c["azp"] = []string{"moothall", "another"}, "moothall" }},
		{name: "issued to another", reason: upstream.ReasonInvalid, change: set("azp", "another")},
		{name: "wrong issuer", reason: upstream.ReasonInvalid, change: set("iss", "https://evil.example")},
		{name: "wrong access token", reason: upstream.ReasonInvalid, change: set("at_hash", "AAAAAAAAAAAAAAAAAAAAAA")},
		{name: "no subject", reason: upstream.ReasonInvalid, change: set("sub", "")},
		{name: "user info of another", reason: upstream.ReasonInvalid, info: func(c map[string]any) any { c["sub"] = "other"; return c }},
		{name: "user info is no object", reason: upstream.ReasonInvalid, info: func(map[string]any) any { return []int{1} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			i.set(func() { i.change, i.sign, i.userinfo = tc.change, tc.sign, tc.info })
			state := "state " + tc.name
			target, kept, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: state})
			if err != nil {
				t.Fatal(err)
			}
			v := i.authorize(target, alice())
			if tc.answer != nil {
				tc.answer(v)
			}
			got, err := h.Finish(t.Context(), "kc", callback(v), state, kept)
			if reason := upstream.ReasonOf(err); reason != tc.reason || (err == nil) != (tc.reason == "") {
				t.Errorf("got %q %v, want %q", reason, err, tc.reason)
			}
			if err != nil && (got.Subject != "" || strings.Contains(err.Error(), "s3cret")) {
				t.Errorf("got %+v with %v", got, err)
			}
		})
	}
}

// TestOIDCUserInfoCannotOverrule: what is signed stays.
func TestOIDCUserInfoCannotOverrule(t *testing.T) {
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
	i.userinfo = func(c map[string]any) any {
		c["groups"], c["preferred_username"], c["department"] = []string{"/root"}, "root", "x"
		return c
	}
	got, err := h.signIn(i, alice())
	if err != nil || got.Localpart != "alice" || len(got.Groups) != 2 {
		t.Errorf("got %+v %v", got, err)
	}
}

// TestCallbackOnce: an answer counts once, for its own attempt, at its own provider, and for an hour.
func TestCallbackOnce(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		i := startIssuer(t)
		h := open(t, cfg, i.config(), i.config(func(c *upstream.Config) { c.ID = "other" }))
		target, kept, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s"})
		if err != nil {
			t.Fatal(err)
		}
		v := i.authorize(target, alice())
		for _, tc := range []struct {
			name, provider, state string
			kept                  []byte
			want                  upstream.Reason
		}{
			{"at another provider", "other", "s", kept, upstream.ReasonAttempt},
			{"at none", "nobody", "s", kept, upstream.ReasonUnknown},
			{"another attempt", "kc", "t", kept, upstream.ReasonAttempt},
			{"an attempt without state", "kc", "", kept, upstream.ReasonAttempt},
			{"an attempt that did not begin", "kc", "s", nil, upstream.ReasonAttempt},
			{"right", "kc", "s", kept, ""},
			{"replayed", "kc", "s", kept, upstream.ReasonReplayed},
		} {
			_, err := h.Finish(t.Context(), tc.provider, callback(v), tc.state, tc.kept)
			if upstream.ReasonOf(err) != tc.want || (err == nil) != (tc.want == "") {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
		target, kept, err = h.Begin(t.Context(), "kc", upstream.BeginParams{State: "late"})
		if err != nil {
			t.Fatal(err)
		}
		v = i.authorize(target, alice())
		h.skew.Store(int64(2 * time.Hour))
		if _, err := h.Finish(t.Context(), "kc", callback(v), "late", kept); upstream.ReasonOf(err) != upstream.ReasonAttempt {
			t.Errorf("late: %v", err)
		}
	})
}

// TestStepUp: what was asked for beyond a sign-in is checked.
func TestStepUp(t *testing.T) {
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config(func(c *upstream.Config) {
		c.StepUpACR = []string{"mfa"}
		c.ACR = []string{"plain"}
	}))
	old := time.Now().Add(-time.Hour).Unix()
	for _, tc := range []struct {
		name   string
		begin  upstream.BeginParams
		claims map[string]any
		query  string
		want   upstream.Reason
		mfa    bool
	}{
		{"nothing asked", upstream.BeginParams{}, alice(), "acr_values=plain", "", false},
		{"second factor given", upstream.BeginParams{MFA: true}, alice("acr", "mfa"), "acr_values=mfa", "", true},
		{"second factor by amr", upstream.BeginParams{MFA: true}, alice("amr", []string{"pwd", "otp"}), "acr_values=mfa", "", true},
		{"second factor not given", upstream.BeginParams{MFA: true}, alice("acr", "plain", "amr", []string{"pwd"}), "", upstream.ReasonStepUp, false},
		{"second factor without being asked", upstream.BeginParams{}, alice("amr", []string{"mfa"}), "", "", true},
		{"level given", upstream.BeginParams{StepUp: []string{"gold"}}, alice("acr", "gold"), "acr_values=gold", "", false},
		{"level not given", upstream.BeginParams{StepUp: []string{"gold"}}, alice("acr", "mfa"), "", upstream.ReasonStepUp, false},
		{"fresh", upstream.BeginParams{Prompt: "login"}, alice(), "prompt=login", "", false},
		{"not fresh", upstream.BeginParams{Prompt: "login"}, alice("auth_time", old), "max_age=0", upstream.ReasonNotFresh, false},
		{"fresh enough", upstream.BeginParams{MaxAge: 2 * time.Hour}, alice("auth_time", old), "max_age=7200", "", false},
		{"not fresh enough", upstream.BeginParams{MaxAge: time.Minute}, alice("auth_time", old), "max_age=60", upstream.ReasonNotFresh, false},
		{"without a time", upstream.BeginParams{MaxAge: time.Minute}, alice("auth_time", "yesterday"), "", upstream.ReasonNotFresh, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.begin.State = "step " + tc.name
			target, kept, err := h.Begin(t.Context(), "kc", tc.begin)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(target, tc.query) {
				t.Errorf("asked %s, want %s", target, tc.query)
			}
			got, err := h.Finish(t.Context(), "kc", callback(i.authorize(target, tc.claims)), tc.begin.State, kept)
			if upstream.ReasonOf(err) != tc.want || (err == nil) != (tc.want == "") || got.MFA != tc.mfa {
				t.Errorf("got %v, mfa %v", err, got.MFA)
			}
		})
	}
}

// TestProviderDown: a provider that is away is told of at once, and is found again when it is back; one that hangs is not
// waited for longer than configured, by however many.
func TestProviderDown(t *testing.T) {
	i := startIssuer(t)
	i.set(func() { i.delay = 20 * time.Second })
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config(func(c *upstream.Config) { c.Timeout = 300 * time.Millisecond }))
	began := time.Now()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, _, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s"})
			if upstream.ReasonOf(err) != upstream.ReasonUnavailable || mxerr.As(err).Status != http.StatusServiceUnavailable {
				t.Errorf("hanging: %v", err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("20 sign-ins waited %v for a provider that hangs", took)
	}
	if n := i.asked["/.well-known/openid-configuration"]; n != 1 {
		t.Errorf("it was asked %d times at once", n)
	}
	i.set(func() { i.delay, i.down = 0, true })
	h.skew.Add(int64(10 * time.Second))
	if _, _, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s"}); upstream.ReasonOf(err) != upstream.ReasonUnavailable {
		t.Errorf("down: %v", err)
	}
	i.set(func() { i.down = false })
	h.skew.Add(int64(10 * time.Second))
	target, kept, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s"})
	if err != nil {
		t.Fatalf("it is back: %v", err)
	}
	v := i.authorize(target, alice())
	i.set(func() { i.down = true })
	if _, err := h.Finish(t.Context(), "kc", callback(v), "s", kept); upstream.ReasonOf(err) != upstream.ReasonUnavailable {
		t.Errorf("down at the token endpoint: %v", err)
	}
	// What is known of a provider serves on while it is down.
	h.skew.Add(int64(2 * time.Hour))
	if _, _, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s2"}); err != nil {
		t.Errorf("old discovery: %v", err)
	}
	i.set(func() { i.down = false })
	i.set(func() { i.token = func(w http.ResponseWriter) { _, _ = w.Write(make([]byte, 3<<20)) } })
	target, kept, err = h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s3"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Finish(t.Context(), "kc", callback(i.authorize(target, alice())), "s3", kept); upstream.ReasonOf(err) != upstream.ReasonInvalid {
		t.Errorf("endless answer: %v", err)
	}
}

// TestDiscovery: a document of another issuer, or one that lacks what is needed, is no provider.
func TestDiscovery(t *testing.T) {
	for name, meta := range map[string]map[string]any{
		"another issuer":    {"issuer": "https://evil.example"},
		"no token endpoint": {"token_endpoint": ""},
		"strange address":   {"authorization_endpoint": "javascript:alert(1)"},
	} {
		t.Run(name, func(t *testing.T) {
			i := startIssuer(t)
			i.meta = meta
			h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
			if target, _, err := h.Begin(t.Context(), "kc", upstream.BeginParams{State: "s"}); err == nil {
				t.Errorf("sent to %s", target)
			}
		})
	}
}
