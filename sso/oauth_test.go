package sso_test

import (
	"net/url"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestAuthorizationCode signs in by OAuth 2.0, from the registration of the client to its sign-out.
func TestAuthorizationCode(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		if again := newApp(t, hs.URL, webApp); again.id != a.id {
			t.Error("the same metadata made another client")
		}
		b.get(a.request("login_hint", "mxid:@alice:test")).wants(200, `value="alice"`)
		b.wants(200, "to continue to Chat")
		b.submit("/signin/password", "username", "alice", "password", "wrong").wants(403, "username or password is wrong")
		b.submit("/signin/password", "username", "alice", "password", alice.Password).wants(200, "Sign in to Chat?")
		if !strings.Contains(b.csp, "form-action 'self' https://chat.example;") && !strings.HasSuffix(b.csp, "form-action 'self' https://chat.example") {
			t.Errorf("the policy would keep the browser from going back: %s", b.csp)
		}
		b.submit("/consent", "answer", "allow")
		got := answer(t, b)
		if !strings.HasPrefix(b.left, "https://chat.example/cb?") || got.Get("state") != "st4te" || got.Get("iss") != hs.URL+"/" || got.Get("code") == "" {
			t.Fatalf("sent back to %s", b.left)
		}
		status, tokens := a.exchange(got.Get("code"))
		if status != 200 || text(tokens, "token_type") != "Bearer" || text(tokens, "scope") != "urn:matrix:client:api:* urn:matrix:client:device:DEVICEONE1" || tokens["id_token"] != nil {
			t.Fatalf("token: %d %v", status, tokens)
		}
		if n, _ := tokens["expires_in"].(float64); n < 60 {
			t.Errorf("expires_in: %v", tokens["expires_in"])
		}
		if status, who := whoami(t, hs.URL, text(tokens, "access_token")); status != 200 || who != "@alice:test DEVICEONE1" {
			t.Errorf("whoami: %d %s", status, who)
		}
		// The fragment, for a client that asks for it; the person is known by now.
		a.device = "DEVICETWO2"
		b.get(a.request("response_mode", "fragment")).wants(200, "DEVICETWO2")
		b.submit("/consent", "answer", "allow")
		if !strings.HasPrefix(b.left, "https://chat.example/cb#") || answer(t, b).Get("code") == "" {
			t.Errorf("fragment: %s", b.left)
		}
		// Whoever says no is told to the client.
		b.get(a.request()).submit("/consent", "answer", "deny")
		if got := answer(t, b); got.Get("error") != "access_denied" || got.Get("state") != "st4te" || got.Has("code") {
			t.Errorf("denied: %s", b.left)
		}
		// Sign-out by revocation takes the device with it.
		status, _ = call(t, "POST", hs.URL+"/oauth2/revoke", "application/x-www-form-urlencoded", url.Values{"token": {text(tokens, "refresh_token")}, "token_type_hint": {"refresh_token"}}.Encode())
		if status != 200 {
			t.Errorf("revoke: %d", status)
		}
		if status, code := whoami(t, hs.URL, text(tokens, "access_token")); status != 401 || code != "M_UNKNOWN_TOKEN" {
			t.Errorf("after the revocation: %d %s", status, code)
		}
		if r := alice.Do(t, "GET", "", "/v3/devices/%s", "DEVICEONE1"); r.Status != 404 {
			t.Errorf("the device is still there: %d", r.Status)
		}
		status, _ = call(t, "POST", hs.URL+"/oauth2/revoke", "application/x-www-form-urlencoded", "token=mht_nothing")
		if status != 200 {
			t.Errorf("revoke of a token that is none: %d", status)
		}
	}, local)
}

// TestNativeApp comes back by a private scheme and by a loopback address of any port.
func TestNativeApp(t *testing.T) {
	hs := hstest.Start(t, local)
	alice := hs.User("alice")
	a, b := newApp(t, hs.URL, phone), newBrowser(t, hs.URL)
	b.signIn(alice)
	for _, redirect := range []string{"example.chat.phone:/cb", "http://127.0.0.1:51234/cb"} {
		a.redirect = redirect
		code := a.code(b)
		if !strings.HasPrefix(b.left, redirect+"?") {
			t.Errorf("sent back to %s", b.left)
		}
		if status, out := a.exchange(code); status != 200 {
			t.Errorf("%s: %d %v", redirect, status, out)
		}
	}
}

// TestRefreshRotation refreshes, loses an answer, and has a token stolen.
func TestRefreshRotation(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		other := newApp(t, hs.URL, phone)
		b.signIn(alice)
		_, first := a.exchange(a.code(b))
		if status, out := other.refresh(text(first, "refresh_token")); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("another client refreshed: %d %v", status, out)
		}
		if r := hs.Anonymous().Do(t, "POST", `{"refresh_token":"`+text(first, "refresh_token")+`"}`, "/v3/refresh"); r.Status != 401 || r.Errcode != "M_UNKNOWN_TOKEN" {
			t.Errorf("at the endpoint of older clients: %d %s", r.Status, r.Body)
		}
		status, second := a.refresh(text(first, "refresh_token"))
		if status != 200 || text(second, "access_token") == "" || text(second, "refresh_token") == text(first, "refresh_token") {
			t.Fatalf("refresh: %d %v", status, second)
		}
		// The answer was lost: the old token is good until a new one was used.
		status, third := a.refresh(text(first, "refresh_token"))
		if status != 200 {
			t.Fatalf("a second try: %d %v", status, third)
		}
		if status, who := whoami(t, hs.URL, text(third, "access_token")); status != 200 {
			t.Fatalf("the refreshed token: %d %s", status, who)
		}
		// Now it was stolen: the whole family ends, and its owner learns of it.
		if status, out := a.refresh(text(first, "refresh_token")); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("a used token: %d %v", status, out)
		}
		if status, who := whoami(t, hs.URL, text(third, "access_token")); status != 401 {
			t.Errorf("the family survived: %d %s", status, who)
		}
		if status, _ := a.refresh(text(third, "refresh_token")); status != 400 {
			t.Errorf("the family's refresh token survived: %d", status)
		}
		// The device and its keys are still there for who signs in again.
		if r := alice.Do(t, "GET", "", "/v3/devices/%s", a.device); r.Status != 200 {
			t.Errorf("the device: %d %s", r.Status, r.Body)
		}
		status, fourth := a.exchange(a.code(b))
		if status != 200 {
			t.Fatalf("sign in again: %d %v", status, fourth)
		}
		if status, _ := whoami(t, hs.URL, text(fourth, "access_token")); status != 200 {
			t.Errorf("the new session: %d", status)
		}
	}, local)
}

// TestCodeAttacks tries codes that were stolen.
func TestCodeAttacks(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		thief := newApp(t, hs.URL, phone)
		b.signIn(alice)
		for _, tc := range []struct {
			name    string
			changes []string
			spoils  bool // the code is worth nothing afterwards
		}{
			{"wrong verifier", []string{"code_verifier", strings.Repeat("z", 43)}, true},
			{"no verifier", []string{"code_verifier", ""}, true},
			{"the challenge as verifier", []string{"code_verifier", challenge(a.verifier)}, true},
			{"another redirect URI", []string{"redirect_uri", "https://app.chat.example/cb?x=1"}, false},
			{"another client", []string{"client_id", thief.id}, false},
		} {
			code := a.code(b)
			if status, out := a.exchange(code, tc.changes...); status != 400 || text(out, "error") != "invalid_grant" && text(out, "error") != "unauthorized_client" {
				t.Errorf("%s: %d %v", tc.name, status, out)
			}
			status, out := a.exchange(code)
			if tc.spoils != (status != 200) {
				t.Errorf("%s, then the right client: %d %v", tc.name, status, out)
			}
		}
		// A code that is used twice ends what it had opened.
		code := a.code(b)
		_, tokens := a.exchange(code)
		if status, _ := whoami(t, hs.URL, text(tokens, "access_token")); status != 200 {
			t.Fatalf("the first use: %d", status)
		}
		if status, out := a.exchange(code); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("the second use: %d %v", status, out)
		}
		if status, _ := whoami(t, hs.URL, text(tokens, "access_token")); status != 401 {
			t.Errorf("the session survived the second use of its code: %d", status)
		}
		if status, out := a.exchange("guess"); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("a guessed code: %d %v", status, out)
		}
	}, local)
}

// TestAuthorizeAttacks sends requests that must be refused, where possible without telling an address that is not the client's.
func TestAuthorizeAttacks(t *testing.T) {
	hs := hstest.Start(t, local)
	alice := hs.User("alice")
	a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
	b.signIn(alice)
	for _, tc := range []struct {
		name    string
		changes []string
		stays   int    // status of the page; 0: the client is told
		code    string // that the client is told
	}{
		{"foreign redirect", []string{"redirect_uri", "https://evil.example/cb"}, 400, ""},
		{"redirect with a suffix", []string{"redirect_uri", "https://chat.example/cb/../evil"}, 400, ""},
		{"redirect of a longer host", []string{"redirect_uri", "https://chat.example.evil.example/cb"}, 400, ""},
		{"redirect with credentials", []string{"redirect_uri", "https://chat.example@evil.example/cb"}, 400, ""},
		{"redirect with another query", []string{"redirect_uri", "https://chat.example/cb?a=b"}, 400, ""},
		{"no redirect", []string{"redirect_uri", "-"}, 400, ""},
		{"unknown client", []string{"client_id", "nobody"}, 400, ""},
		{"unknown mode", []string{"response_mode", "form_post"}, 400, ""},
		{"token", []string{"response_type", "token"}, 0, "unsupported_response_type"},
		{"no PKCE", []string{"code_challenge", "-"}, 0, "invalid_request"},
		{"plain PKCE", []string{"code_challenge_method", "plain"}, 0, "invalid_request"},
		{"default PKCE", []string{"code_challenge_method", "-"}, 0, "invalid_request"},
		{"short challenge", []string{"code_challenge", "abc"}, 0, "invalid_request"},
		{"no device", []string{"scope", "urn:matrix:client:api:*"}, 0, "invalid_scope"},
		{"two devices", []string{"scope", "urn:matrix:client:api:* urn:matrix:client:device:ABC urn:matrix:client:device:DEF"}, 0, "invalid_scope"},
		{"no API", []string{"scope", "urn:matrix:client:device:ABC"}, 0, "invalid_scope"},
		{"request object", []string{"request", "eyJhbGciOiJub25lIn0.e30."}, 0, "request_not_supported"},
	} {
		b.get(a.request(tc.changes...))
		switch {
		case tc.stays != 0 && (b.left != "" || b.code != tc.stays):
			t.Errorf("%s: %d, sent to %q", tc.name, b.code, b.left)
		case tc.code != "" && (!strings.HasPrefix(b.left, "https://chat.example/cb?") || answer(t, b).Get("error") != tc.code):
			t.Errorf("%s: %d, sent to %q, want %s", tc.name, b.code, b.left, tc.code)
		}
	}
	// A parameter that is there twice could be read differently by others.
	if b.get(a.request() + "&redirect_uri=https%3A%2F%2Fevil.example"); b.code != 400 || b.left != "" {
		t.Errorf("two redirect URIs: %d %s", b.code, b.left)
	}
	// The unstable names of the scopes are still asked for.
	a.code(b, "scope", "openid urn:matrix:org.matrix.msc2967.client:api:* urn:matrix:org.matrix.msc2967.client:device:"+a.device)
}

// TestForgedForms sends forms that did not come from their page.
func TestForgedForms(t *testing.T) {
	hs := hstest.Start(t, local)
	alice, mallory := hs.User("alice"), hs.User("mallory")
	a, b, evil := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL), newBrowser(t, hs.URL)
	b.signIn(alice)
	evil.signIn(mallory)

	b.get(a.request())
	at, form := b.form("/consent")
	form.Set("answer", "allow")
	token := form.Get("csrf")
	form.Del("csrf")
	b.post(at, form).wants(403, "M_FORBIDDEN")
	form.Set("csrf", strings.Repeat("A", len(token)))
	b.post(at, form).wants(403, "M_FORBIDDEN")
	form.Set("csrf", token)
	if b.post(at, form, "Sec-Fetch-Site", "cross-site"); b.code != 403 || b.left != "" {
		t.Errorf("from another site: %d %s", b.code, b.left)
	}
	if evil.post(at, form); evil.code != 403 {
		t.Errorf("with the token of another browser: %d", evil.code)
	}
	// Another person signed in meanwhile: the page is shown anew.
	form.Set("user", "@mallory:test")
	b.post(at, form).wants(200, "@alice:test")
	form.Set("user", "@alice:test")
	if b.post(at, form); answer(t, b).Get("code") == "" {
		t.Error("the real form was refused")
	}
	// Login CSRF: a sign-in needs the page of this very browser.
	fresh := newBrowser(t, hs.URL)
	fresh.post("/signin/password", url.Values{"username": {"mallory"}, "password": {mallory.Password}, "csrf": {token}}).wants(403, "M_FORBIDDEN")
	fresh.get("/account").wants(200, "Sign in")
	// Sign-out too.
	fresh.signIn(alice).post("/signout", url.Values{})
	fresh.get("/account").wants(200, "@alice:test")
}

// TestClientRegistration checks the rules for metadata and redirect URIs.
func TestClientRegistration(t *testing.T) {
	hs := hstest.Start(t, local)
	for _, tc := range []struct{ metadata, want string }{
		{`{"client_uri":"https://a.example/","redirect_uris":["https://a.example/cb"]}`, ""},
		{`{"client_uri":"https://a.example/","redirect_uris":["https://a.example:5173/?query=value"]}`, ""},
		{`{"client_uri":"https://a.example/","redirect_uris":["https://x.a.example/cb"],"grant_types":["authorization_code","refresh_token","urn:ietf:params:oauth:grant-type:token-exchange"],"contacts":["x"],"client_name#fr":"Mon"}`, ""},
		{`{"client_uri":"https://a.example/","grant_types":["urn:ietf:params:oauth:grant-type:device_code","refresh_token"],"application_type":"native"}`, ""},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["example.a.app:/cb","example.a:/","example.a:cb","http://localhost/cb","http://127.0.0.1/cb","http://[::1]/cb","https://a.example/cb"]}`, ""},
		{`{"redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"http://a.example/","redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"https://u:p@a.example/","redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"https://a.example/","logo_uri":"https://b.example/l.png","redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"https://a.example/","token_endpoint_auth_method":"client_secret_basic","redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"https://a.example/","application_type":"desktop","redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":"https://a.example/","grant_types":["implicit"],"redirect_uris":["https://a.example/cb"]}`, "invalid_client_metadata"},
		{`{"client_uri":7}`, "invalid_client_metadata"},
		{`{"client_uri":"https://a.example/"}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["https://a.example/cb#x"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["http://a.example/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["http://localhost/"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["https://nota.example/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["https://a.example@b.example/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","redirect_uris":["javascript:alert(1)"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["example:/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["javascript:/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["example.a.app://cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["https://localhost/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["http://localhost:1234/cb"]}`, "invalid_redirect_uri"},
		{`{"client_uri":"https://a.example/","application_type":"native","redirect_uris":["http://a.example/cb"]}`, "invalid_redirect_uri"},
		{`[]`, "invalid_request"},
		{`{`, "invalid_request"},
	} {
		status, out := call(t, "POST", hs.URL+"/oauth2/register", "application/json", tc.metadata)
		if tc.want == "" && (status != 201 || text(out, "client_id") == "") || tc.want != "" && (status != 400 || text(out, "error") != tc.want) {
			t.Errorf("%s: %d %v, want %q", tc.metadata, status, out, tc.want)
		}
	}
}

// TestTwoNodes goes through a sign-in in which every step is at another process.
func TestTwoNodes(t *testing.T) {
	db := storetest.Postgres(t)
	one := hstest.Start(t, hstest.Postgres(db), local)
	two := hstest.Start(t, hstest.Postgres(db), func(c *homeserver.Config) { c.PublicURL = one.URL })
	alice := one.User("alice")
	a, b := newApp(t, one.URL, webApp), newBrowser(t, one.URL)
	swap := func() {
		// A balancer sends the browser elsewhere: cookies go along, since they are of one host for both.
		if b.base == one.URL {
			b.base, a.base = two.URL, two.URL
		} else {
			b.base, a.base = one.URL, one.URL
		}
	}
	b.get(a.request()).wants(200, "Sign in")
	swap()
	b.submit("/signin/password", "username", "alice", "password", alice.Password)
	b.get(a.request()).wants(200, "Sign in to Chat?")
	swap()
	b.submit("/consent", "answer", "allow")
	code := answer(t, b).Get("code")
	swap()
	status, tokens := a.exchange(code)
	if status != 200 {
		t.Fatalf("token: %d %v", status, tokens)
	}
	swap()
	if status, out := a.exchange(code); status != 400 {
		t.Errorf("the code again at the other node: %d %v", status, out)
	}
	for _, base := range []string{one.URL, two.URL} {
		if status, _ := whoami(t, base, text(tokens, "access_token")); status != 401 {
			t.Errorf("the session that the code had opened, at %s: %d", base, status)
		}
	}
}
