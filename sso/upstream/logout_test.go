package upstream_test

import (
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/sso/upstream"
)

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logoutClaims are those of a right logout token.
func (i *issuer) logoutClaims(jti string, more ...any) map[string]any {
	now := time.Now().Unix()
	c := map[string]any{
		"iss": i.URL, "aud": i.client, "iat": now, "exp": now + 120, "jti": jti, "sub": "8d2f", "sid": "session-1",
		"events": map[string]any{logoutEvent: map[string]any{}},
	}
	for n := 0; n < len(more); n += 2 {
		if more[n+1] == nil {
			delete(c, more[n].(string))
			continue
		}
		c[more[n].(string)] = more[n+1]
	}
	return c
}

func (h *house) post(path string, form url.Values) *httptest.ResponseRecorder {
	r := httptest.NewRequest("POST", path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	h.mux.ServeHTTP(w, r)
	return w
}

func (h *house) logout(token string) *httptest.ResponseRecorder {
	return h.post("/_moothall/upstream/kc/backchannel-logout", url.Values{"logout_token": {token}})
}

// TestBackChannelLogout ends what a session at the provider opened, and nothing else.
func TestBackChannelLogout(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		for _, on := range []string{upstream.LogoutSoft, upstream.LogoutEnd, upstream.LogoutIgnore} {
			t.Run(on, func(t *testing.T) {
				if cfg.URL != "" {
					cfg.URL = storetest.Postgres(t)
				}
				cfg.DataDir = t.TempDir()
				i := startIssuer(t)
				h := open(t, cfg, i.config(func(c *upstream.Config) { c.OnLogout = on }))
				user, ident, err := h.account(i, alice())
				if err != nil {
					t.Fatal(err)
				}
				second := ident
				second.SID = "session-2"
				must := func(err error) {
					t.Helper()
					if err != nil {
						t.Fatal(err)
					}
				}
				phone, phoneToken := h.device(user)
				laptop, laptopToken := h.device(user)
				_, local := h.device(user) // by password, say
				must(h.Remember(t.Context(), ident, user, phone))
				must(h.RememberBrowser(t.Context(), second, user, "browser-2"))
				must(h.RememberDevice(t.Context(), "browser-2", user, laptop))
				must(h.RememberDevice(t.Context(), "browser-9", user, laptop)) // one that came in otherwise
				must(h.RememberBrowser(t.Context(), ident, user, "browser-1"))

				check := func(what string, want ...bool) {
					t.Helper()
					for n, token := range []string{phoneToken, laptopToken, local} {
						if got := h.alive(token); got != (want[n] || on == upstream.LogoutIgnore) {
							t.Errorf("%s: session %d lives: %v", what, n, got)
						}
					}
				}
				check("before", true, true, true)
				if w := h.logout(sign(t, jose.RS256, i.key, "k1", marshal(t, i.logoutClaims("j1", "sid", "unknown")))); w.Code != 200 {
					t.Errorf("unknown session: %d %s", w.Code, w.Body)
				}
				check("unknown session", true, true, true)
				if w := h.logout(sign(t, jose.RS256, i.key, "k1", marshal(t, i.logoutClaims("j2")))); w.Code != 200 || w.Header().Get("Cache-Control") != "no-store" {
					t.Errorf("by sid: %d %s", w.Code, w.Body)
				}
				check("by sid", false, true, true)
				if on != upstream.LogoutIgnore && fmt.Sprint(h.ended) != "[browser-1]" {
					t.Errorf("browsers ended: %v", h.ended)
				}
				_, err = h.accounts.Authenticate(t.Context(), phoneToken)
				if e := mxerr.As(err); on != upstream.LogoutIgnore && (e == nil || e.Extra["soft_logout"] != (on == upstream.LogoutSoft)) {
					t.Errorf("soft_logout: %v %v", err, e)
				}
				if w := h.logout(sign(t, jose.RS256, i.key, "k1", marshal(t, i.logoutClaims("j3", "sid", nil)))); w.Code != 200 {
					t.Errorf("by sub: %d %s", w.Code, w.Body)
				}
				check("by sub", false, false, true)
			})
		}
	})
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestLogoutTokens shows tokens that must end nothing. Spec: OpenID Connect Back-Channel Logout 1.0, section 2.6.
func TestLogoutTokens(t *testing.T) {
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
	user, ident, err := h.account(i, alice())
	if err != nil {
		t.Fatal(err)
	}
	device, token := h.device(user)
	if err := h.Remember(t.Context(), ident, user, device); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	idToken := map[string]any{"iss": i.URL, "aud": i.client, "iat": now, "exp": now + 300, "nonce": "n"}
	maps.Copy(idToken, alice())
	right := func(c map[string]any) string { return sign(t, jose.RS256, i.key, "k1", marshal(t, c)) }
	for name, tok := range map[string]string{
		"empty":              "",
		"no token":           "hello",
		"an id token":        right(idToken),
		"with a nonce":       right(i.logoutClaims("a", "nonce", "n")),
		"with a null nonce":  right(i.logoutClaims("a", "nonce", json.RawMessage("null"))),
		"no events":          right(i.logoutClaims("a", "events", nil)),
		"other events":       right(i.logoutClaims("a", "events", map[string]any{"x": map[string]any{}})),
		"event is no object": right(i.logoutClaims("a", "events", map[string]any{logoutEvent: "yes"})),
		"nobody":             right(i.logoutClaims("a", "sub", nil, "sid", nil)),
		"no jti":             right(i.logoutClaims("a", "jti", nil)),
		"wrong audience":     right(i.logoutClaims("a", "aud", "other")),
		"wrong issuer":       right(i.logoutClaims("a", "iss", "https://evil.example")),
		"expired":            right(i.logoutClaims("a", "exp", now-120)),
		"no expiry":          right(i.logoutClaims("a", "exp", nil)),
		"endless":            right(i.logoutClaims("a", "exp", now+3650*24*3600)),
		"from the future":    right(i.logoutClaims("a", "iat", now+600)),
		"no time of issue":   right(i.logoutClaims("a", "iat", nil)),
		"alg none":           unsigned(marshal(t, i.logoutClaims("a"))),
		"another key":        sign(t, jose.RS256, other, "k1", marshal(t, i.logoutClaims("a"))),
		"our secret as key":  sign(t, jose.HS256, []byte("s3crets3crets3crets3crets3crets3"), "k1", marshal(t, i.logoutClaims("a"))),
	} {
		w := h.logout(tok)
		if w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), `"error":"invalid_request"`) || !h.alive(token) {
			t.Errorf("%s: %d %s, alive %v", name, w.Code, w.Body, h.alive(token))
		}
	}
	if w := h.post("/_moothall/upstream/nobody/backchannel-logout", url.Values{"logout_token": {right(i.logoutClaims("b"))}}); w.Code != http.StatusNotFound {
		t.Errorf("unknown provider: %d", w.Code)
	}
	// Somebody else's session is not ended by its name alone where the token says whose it is.
	if w := h.logout(right(i.logoutClaims("c", "sub", "somebody else"))); w.Code != 200 || !h.alive(token) {
		t.Errorf("another subject: %d, alive %v", w.Code, h.alive(token))
	}
	last := right(i.logoutClaims("d"))
	if w := h.logout(last); w.Code != 200 || h.alive(token) {
		t.Fatalf("right: %d, alive %v", w.Code, h.alive(token))
	}
	device, token = h.device(user)
	if err := h.Remember(t.Context(), ident, user, device); err != nil {
		t.Fatal(err)
	}
	if w := h.logout(last); w.Code != http.StatusBadRequest || !h.alive(token) {
		t.Errorf("replayed: %d, alive %v", w.Code, h.alive(token))
	}
}

// TestFrontChannelLogout: the provider's frame ends the session that it names.
func TestFrontChannelLogout(t *testing.T) {
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
	user, ident, err := h.account(i, alice())
	if err != nil {
		t.Fatal(err)
	}
	device, token := h.device(user)
	if err := h.Remember(t.Context(), ident, user, device); err != nil {
		t.Fatal(err)
	}
	get := func(q url.Values) int {
		w := httptest.NewRecorder()
		h.mux.ServeHTTP(w, httptest.NewRequest("GET", "/_moothall/upstream/kc/frontchannel-logout?"+q.Encode(), nil))
		return w.Code
	}
	for _, q := range []url.Values{{}, {"iss": {i.URL}}, {"sid": {"session-1"}}, {"iss": {"https://evil.example"}, "sid": {"session-1"}}} {
		if code := get(q); code != 400 || !h.alive(token) {
			t.Errorf("%v: %d, alive %v", q, code, h.alive(token))
		}
	}
	if code := get(url.Values{"iss": {i.URL}, "sid": {"guessed"}}); code != 200 || !h.alive(token) {
		t.Errorf("guessed: %d, alive %v", code, h.alive(token))
	}
	if code := get(url.Values{"iss": {i.URL}, "sid": {"session-1"}}); code != 200 || h.alive(token) {
		t.Errorf("right: %d, alive %v", code, h.alive(token))
	}
}

// TestLogoutURL is where a browser goes to sign out at the provider too.
func TestLogoutURL(t *testing.T) {
	i := startIssuer(t)
	h := open(t, store.Config{DataDir: t.TempDir()}, i.config())
	user, ident, err := h.account(i, alice())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.RememberBrowser(t.Context(), ident, user, "b"); err != nil {
		t.Fatal(err)
	}
	got, err := h.LogoutURL(t.Context(), "b", publicURL+"/signout", "st")
	u, _ := url.Parse(got)
	if err != nil || !strings.HasPrefix(got, i.URL+"/logout?") || u.Query().Get("id_token_hint") != ident.IDToken ||
		u.Query().Get("post_logout_redirect_uri") != publicURL+"/signout" || u.Query().Get("state") != "st" || ident.IDToken == "" {
		t.Errorf("got %s %v", got, err)
	}
	if got, err := h.LogoutURL(t.Context(), "another", publicURL, ""); got != "" || err != nil {
		t.Errorf("another browser: %q %v", got, err)
	}
}
