package upstream_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/hstest"
)

// TestKeycloakOAuth: a client that signs in by OAuth 2.0, with its user at Keycloak, loses its tokens when the user is
// signed out there; the refresh token too.
func TestKeycloakOAuth(t *testing.T) {
	k := findKeycloak(t)
	name := unique("wei")
	userID := k.user(name, nil)
	base, option := k.server(nil)
	hs := hstest.Start(t, option)
	body, err := json.Marshal(map[string]any{
		"client_name": "App", "client_uri": "https://app.example/", "redirect_uris": []string{"https://app.example/done"},
		"grant_types": []string{"authorization_code", "refresh_token"}, "response_types": []string{"code"}, "token_endpoint_auth_method": "none",
	})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(base+"/oauth2/register", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	var registered struct {
		ID string `json:"client_id"`
	}
	err = decode(resp.Body, &registered)
	_ = resp.Body.Close()
	if err != nil || registered.ID == "" {
		t.Fatalf("register: %s %v", resp.Status, err)
	}
	verifier := strings.Repeat("verifier-", 6)
	sum := sha256.Sum256([]byte(verifier))
	b := newBrowser(t)
	left := ""
	b.c.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if r.URL.Host == "app.example" {
			left = r.URL.String()
			return http.ErrUseLastResponse
		}
		return nil
	}
	b.get(base + "/oauth2/authorize?" + url.Values{
		"response_type": {"code"}, "client_id": {registered.ID}, "redirect_uri": {"https://app.example/done"}, "state": {"st"}, "response_mode": {"query"},
		"scope":          {"urn:matrix:client:api:* urn:matrix:client:device:DEVICEDEVICE"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}.Encode())
	p := b.get(base + "/signin/upstream/kc")
	p = b.submit(p, 0, "username", name, "password", "secret-"+name)
	if left == "" { // the consent
		p = b.submit(p, 0, "answer", "allow")
	}
	u, err := url.Parse(left)
	if err != nil || u.Query().Get("code") == "" || u.Query().Get("state") != "st" {
		t.Fatalf("sent to %q, from %s %.800s", left, p.at, p.body)
	}
	token := func(v url.Values) (int, map[string]any) {
		t.Helper()
		v.Set("client_id", registered.ID)
		resp, err := http.PostForm(base+"/oauth2/token", v)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		var got map[string]any
		if err := decode(resp.Body, &got); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, got
	}
	status, got := token(url.Values{
		"grant_type": {"authorization_code"}, "code": {u.Query().Get("code")}, "redirect_uri": {"https://app.example/done"}, "code_verifier": {verifier},
	})
	if status != 200 {
		t.Fatalf("token: %d %v", status, got)
	}
	c := hs.Anonymous()
	c.Token = got["access_token"].(string)
	if who := c.Must(t, "GET", "", "/v3/account/whoami"); who["user_id"] != "@"+name+":test" || who["device_id"] != "DEVICEDEVICE" {
		t.Errorf("signed in as %v", who)
	}
	k.admin("POST", "/users/"+userID+"/logout", nil)
	deadline := time.Now().Add(2 * time.Second)
	for {
		r := c.Do(t, "GET", "", "/v3/account/whoami")
		if r.Status == 401 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still signed in: %d %s", r.Status, r.Body)
		}
		time.Sleep(20 * time.Millisecond)
	}
	if status, got := token(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {got["refresh_token"].(string)}}); status != 400 {
		t.Errorf("refreshed after the sign-out: %d %v", status, got)
	}
	// The browser's own session has ended too.
	if p := b.get(base + "/account"); strings.Contains(p.body, "@"+name+":test") {
		t.Errorf("the browser is still signed in, at %s", p.at)
	}
}
