package sso_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// TestDeviceGrant signs in something that has no browser.
func TestDeviceGrant(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		scope := "urn:matrix:client:api:* urn:matrix:client:device:TELEVISION"
		begin := func() (deviceCode, userCode string) {
			t.Helper()
			status, out := call(t, "POST", hs.URL+"/oauth2/device", "application/x-www-form-urlencoded", url.Values{"client_id": {a.id}, "scope": {scope}}.Encode())
			if status != 200 || text(out, "verification_uri") != hs.URL+"/device" || !regexp.MustCompile(`^[A-Z]{4}-[A-Z]{4}$`).MatchString(text(out, "user_code")) {
				t.Fatalf("device: %d %v", status, out)
			}
			return text(out, "device_code"), text(out, "user_code")
		}
		poll := func(code string) (int, map[string]any) {
			return a.token(url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {code}})
		}
		device, user := begin()
		if status, out := poll(device); status != 400 || text(out, "error") != "authorization_pending" {
			t.Errorf("the first poll: %d %v", status, out)
		}
		if status, out := poll(device); status != 400 || text(out, "error") != "slow_down" {
			t.Errorf("a poll at once: %d %v", status, out)
		}
		b.get("/device").wants(200, "Sign in")
		b.submit("/signin/password", "username", "alice", "password", alice.Password).wants(200, "Connect a device")
		b.get("/device?user_code=BBBB-BBBB").wants(404, "not known")
		b.get("/device?user_code="+strings.ToLower(strings.ReplaceAll(user, "-", "+"))).wants(200, user)
		b.submit("/device", "answer", "allow").wants(200, "The device is connected")
		status, tokens := poll(device)
		if status != 200 {
			t.Fatalf("the poll after the consent: %d %v", status, tokens)
		}
		if status, who := whoami(t, hs.URL, text(tokens, "access_token")); status != 200 || who != "@alice:test TELEVISION" {
			t.Errorf("whoami: %d %s", status, who)
		}
		if status, out := poll(device); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("the device code again: %d %v", status, out)
		}
		b.get("/device?user_code="+user).wants(404, "not known")
		device, user = begin()
		b.get("/device?user_code="+user).submit("/device", "answer", "deny").wants(200, "Cancelled")
		if status, out := poll(device); status != 400 || text(out, "error") != "access_denied" {
			t.Errorf("refused: %d %v", status, out)
		}
		if status, out := poll("guess"); status != 400 || text(out, "error") != "invalid_grant" {
			t.Errorf("guessed: %d %v", status, out)
		}
	}, local)
}

// TestMetadata reads what clients read first.
func TestMetadata(t *testing.T) {
	hs := hstest.Start(t, local)
	m := hs.Anonymous().Must(t, "GET", "", "/v1/auth_metadata")
	if m["issuer"] != hs.URL+"/" || m["token_endpoint"] != hs.URL+"/oauth2/token" || m["account_management_uri"] != hs.URL+"/account" {
		t.Errorf("%v", m)
	}
	for _, path := range []string{"/_matrix/client/unstable/org.matrix.msc2965/auth_metadata", "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"} {
		if _, got := call(t, "GET", hs.URL+path, "", ""); fmt.Sprint(got) != fmt.Sprint(m) {
			t.Errorf("%s differs: %v", path, got)
		}
	}
	if got := hs.Anonymous().Must(t, "GET", "", "/unstable/org.matrix.msc2965/auth_issuer"); got["issuer"] != hs.URL+"/" {
		t.Errorf("%v", got)
	}
	// Web clients call these from their own pages; nobody reads the authorization endpoint.
	for path, want := range map[string]string{"/oauth2/token": "*", "/oauth2/register": "*", "/oauth2/revoke": "*", "/oauth2/device": "*", "/oauth2/keys": "*", "/oauth2/authorize": ""} {
		r, _ := http.NewRequest("OPTIONS", hs.URL+path, nil)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("%s: Access-Control-Allow-Origin is %q", path, got)
		}
	}
	off := hstest.Start(t, local, func(c *homeserver.Config) { c.OAuth.Enabled = false })
	if r := off.Anonymous().Do(t, "GET", "", "/v1/auth_metadata"); r.Status != 404 || r.Errcode != "M_UNRECOGNIZED" {
		t.Errorf("without OAuth: %d %s", r.Status, r.Errcode)
	}
}

// TestLegacySSO signs in by m.login.sso.
func TestLegacySSO(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		flows := fmt.Sprint(hs.Anonymous().Must(t, "GET", "", "/v3/login")["flows"])
		for _, want := range []string{"m.login.password", "m.login.sso", "m.login.token", "oauth_aware_preferred:true"} {
			if !strings.Contains(flows, want) {
				t.Errorf("the flows lack %s: %s", want, flows)
			}
		}
		b := newBrowser(t, hs.URL)
		login := func(token string) (int, string) {
			r := hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"type":"m.login.token","token":%q}`, token), "/v3/login")
			var in struct {
				UserID string `json:"user_id"`
			}
			_ = json.Unmarshal(r.Body, &in)
			return r.Status, in.UserID
		}
		start := "/_matrix/client/v3/login/sso/redirect?redirectUrl="
		b.get(start+url.QueryEscape("https://old.example/app?x=1&loginToken=evil#frag")).wants(200, "Sign in")
		b.submit("/signin/password", "username", "@alice:test", "password", alice.Password).wants(200, "old.example")
		b.submit("/signin/app")
		u, err := url.Parse(b.left)
		if err != nil || u.Host != "old.example" || u.Fragment != "frag" || u.Query().Get("x") != "1" || len(u.Query()["loginToken"]) != 1 {
			t.Fatalf("sent back to %q", b.left)
		}
		if status, who := login(u.Query().Get("loginToken")); status != 200 || who != "@alice:test" {
			t.Errorf("login: %d %s", status, who)
		}
		if status, _ := login(u.Query().Get("loginToken")); status != 403 {
			t.Errorf("the token again: %d", status)
		}
		// A trusted address is not asked about.
		b.get(start+url.QueryEscape("https://trusted.example/chat/")).wants(200, "You are being taken back")
		if !regexp.MustCompile(`http-equiv="refresh" content="0;url=https://trusted\.example/chat/\?loginToken=mhl_`).MatchString(b.page) {
			t.Errorf("no way back: %s", b.page)
		}
		// Others are, however similar; addresses that are none, or programs, are refused.
		b.get(start+url.QueryEscape("https://trusted.example.evil.example/")).wants(200, "Allow this only if")
		for _, bad := range []string{"", "javascript:alert(1)", "data:text/html,x", "//evil.example", "https://", "https://a@b.example/", `https:\\evil.example`, "vbscript:x"} {
			if b.get(start + url.QueryEscape(bad)); b.code != 400 || b.left != "" {
				t.Errorf("%q: %d %s", bad, b.code, b.left)
			}
		}
		b.get("/_matrix/client/v3/login/sso/redirect/nobody?redirectUrl=https%3A%2F%2Fold.example%2F").wants(404, "")
		b.get("/_matrix/client/v3/login/sso/redirect?redirectUrl=https%3A%2F%2Fold.example%2F&action=register").wants(200, "old.example")
		// Nor does our own way back lead elsewhere.
		_, form := b.get("/account").form("/account/profile")
		form.Set("return", "//evil.example/")
		if b.post("/signout", form); b.left != "" || b.at.Host != strings.TrimPrefix(hs.URL, "http://") {
			t.Errorf("sign-out led to %s", b.left)
		}
	}, local, func(c *homeserver.Config) { c.SSO.RedirectsAllowed = []string{"https://trusted.example/"} })
}

// TestUserInteractive confirms operations of clients in the browser.
func TestUserInteractive(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, mallory := hs.User("alice"), hs.User("mallory")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		b.signIn(alice)
		_, tokens := a.exchange(a.code(b))
		client := hs.Anonymous()
		client.Token = text(tokens, "access_token")

		ask := func(body string) (hstest.Response, string, map[string]any) {
			r := client.Do(t, "DELETE", body, "/v3/devices/%s", alice.DeviceID)
			var out map[string]any
			r.JSON(t, &out)
			return r, text(out, "session"), out
		}
		r, session, out := ask("{}")
		if r.Status != 401 || fmt.Sprint(out["flows"]) != "[map[stages:[m.login.sso]]]" {
			t.Fatalf("an OAuth session that deletes a device: %d %s", r.Status, r.Body)
		}
		if r, _, _ := ask(fmt.Sprintf(`{"auth":{"type":"m.login.sso","session":%q}}`, session)); r.Status != 401 && r.Status != 400 {
			t.Errorf("not confirmed yet: %d %s", r.Status, r.Body)
		}
		// Somebody else cannot confirm it.
		evil := newBrowser(t, hs.URL)
		evil.signIn(mallory).get("/_matrix/client/v3/auth/m.login.sso/fallback/web?session="+session).wants(404, "nothing to confirm")
		b.get("/_matrix/client/v3/auth/m.login.sso/fallback/web?session="+session).wants(200, "sign out sessions")
		b.submit("/account/approve", "answer", "allow").wants(200, "authdone.js")
		if !strings.Contains(b.csp, "script-src "+hs.URL+"/_moothall/assets/") {
			t.Errorf("the policy does not let the page tell its app: %s", b.csp)
		}
		if r, _, _ := ask(fmt.Sprintf(`{"auth":{"session":%q}}`, session)); r.Status != 200 {
			t.Errorf("confirmed: %d %s", r.Status, r.Body)
		}
		if r, _ := whoami(t, hs.URL, alice.Token); r != 401 {
			t.Errorf("the device's token: %d", r)
		}
		// A client with a password session is still asked for the password.
		other := alice.Login()
		if r := other.Do(t, "DELETE", "{}", "/v3/devices/%s", a.device); r.Status != 401 || !strings.Contains(string(r.Body), "m.login.password") {
			t.Errorf("a password session: %d %s", r.Status, r.Body)
		}
	}, local)
}

// TestAccountPages uses the pages of an account.
func TestAccountPages(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		b, other := newBrowser(t, hs.URL), newBrowser(t, hs.URL)
		b.get("/account/sessions").wants(200, "Sign in")
		b.submit("/signin/password", "username", "alice", "password", alice.Password).wants(200, string(alice.DeviceID))
		other.signIn(alice)

		b.get("/account").submit("/account/profile", "displayname", `Alice <b>"A"</b>`).wants(200, "Your name was saved")
		if got := alice.Must(t, "GET", "", "/v3/profile/%s/displayname", alice.UserID); got["displayname"] != `Alice <b>"A"</b>` {
			t.Errorf("the name is %v", got)
		}
		if strings.Contains(b.page, "<b>") {
			t.Error("the name is not escaped")
		}
		for action, want := range map[string]string{
			"org.matrix.profile": "Name shown to others", "org.matrix.devices_list": "End all other sessions", "org.matrix.device_view": "Session ID",
			"org.matrix.device_delete": "End this session?", "org.matrix.account_deactivate": "cannot be undone",
		} {
			b.get("/account?action="+action+"&device_id="+string(alice.DeviceID)).wants(200, want)
		}
		b.get("/account?action=org.matrix.device_view&device_id=NONE").wants(404, "no such session")

		b.get("/account/sessions").submit("/account/sessions/browser").wants(200, "The session was ended")
		other.get("/account").wants(200, "Sign in")
		other.signIn(alice)

		second := alice.Login()
		b.get("/account/sessions/device?device_id="+string(second.DeviceID)).wants(200, "<dt>Way of signing in</dt><dd>Password</dd>").wants(200, " · 127.0.0.1</dd>")
		b.get("/account/sessions/device?device_id="+string(second.DeviceID)).submit("/account/sessions/device", "do", "end").wants(200, "The session was ended")
		if status, _ := whoami(t, hs.URL, second.Token); status != 401 {
			t.Errorf("the ended session: %d", status)
		}

		b.get("/account/password").submit("/account/password", "current", "wrong", "password", "battery staple horse", "password2", "battery staple horse").wants(403, "current password is wrong")
		b.submit("/account/password", "current", alice.Password, "password", "battery staple horse", "password2", "else").wants(400, "not the same")
		b.submit("/account/password", "current", alice.Password, "password", "x", "password2", "x").wants(400, "too weak")
		b.submit("/account/password", "current", alice.Password, "password", "battery staple horse", "password2", "battery staple horse").wants(200, "Your password was changed")
		other.get("/account").wants(200, "Sign in") // a new password ends other browsers
		b.get("/account").wants(200, "@alice:test")
		if status, _ := whoami(t, hs.URL, alice.Token); status != 200 {
			t.Errorf("the apps were not to end: %d", status)
		}
		b.get("/account/deactivate").submit("/account/deactivate", "confirm", "bob").wants(400, "not your Matrix ID")
		b.submit("/account/deactivate", "confirm", "@alice:test").wants(200, "The account was deactivated")
		if status, _ := whoami(t, hs.URL, alice.Token); status != 401 {
			t.Errorf("after the deactivation: %d", status)
		}
		b.get("/account").wants(200, "Sign in")
		b.submit("/signin/password", "username", "alice", "password", "battery staple horse")
		if b.code != 403 {
			t.Errorf("sign-in to what is deactivated: %d", b.code)
		}
	}, local)
}

// TestRegisterPage makes accounts in the browser.
func TestRegisterPage(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		hs.User("taken")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		b.get(a.request("prompt", "create")).wants(200, "You get an account on test and go on to Chat.")
		long := "correct horse battery"
		for _, tc := range []struct{ name, password, again, want string }{
			{"taken", long, long, "is taken"},
			{"no spaces", long, long, "not possible"},
			{"", long, long, "not possible"},
			{"new", "x", "x", "too weak"},
			{"new", long, "other", "not the same"},
		} {
			b.submit("/register", "username", tc.name, "password", tc.password, "password2", tc.again).wants(400, tc.want)
		}
		b.submit("/register", "username", "New", "password", long, "password2", long).wants(200, "Sign in to Chat?")
		b.submit("/consent", "answer", "allow")
		if status, out := a.exchange(answer(t, b).Get("code")); status != 200 {
			t.Errorf("token: %d %v", status, out)
		}
	}, local)
	closed := hstest.Start(t, local, func(c *homeserver.Config) { c.Registration.Mode = "closed" })
	b := newBrowser(t, closed.URL)
	b.get("/register").wants(403, "registration is closed")
	b.get("/signin")
	if strings.Contains(b.page, "/register") {
		t.Error("a closed server offers registration")
	}
}

// TestBrowserSessions ends them: by time, by another address, by lock.
func TestBrowserSessions(t *testing.T) {
	hs := hstest.Start(t, local, func(c *homeserver.Config) {
		c.SSO.Browser.BindAddress = "exact"
		c.Listen[0].TrustedProxies = []string{"127.0.0.1"}
	})
	alice := hs.User("alice")
	b := newBrowser(t, hs.URL)
	b.signIn(alice)
	stolen := func(ip string) *browser {
		t.Helper()
		r, err := http.NewRequest("GET", hs.URL+"/account", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Forwarded-For", ip)
		return b.do(r)
	}
	b.get("/account").wants(200, "@alice:test")
	if strings.Contains(stolen("203.0.113.9").page, "@alice:test") {
		t.Error("the cookie works from another address")
	}
	if strings.Contains(b.get("/account").page, "@alice:test") {
		t.Error("a stolen cookie goes on working where it came from")
	}
	short := hstest.Start(t, local, func(c *homeserver.Config) { c.SSO.Browser.IdleTimeout = homeserver.Duration(300 * time.Millisecond) })
	bob := short.User("bob")
	s := newBrowser(t, short.URL)
	s.signIn(bob)
	time.Sleep(400 * time.Millisecond)
	s.get("/account").wants(200, "Sign in")
}

// TestRecovery replaces a forgotten password by mail.
func TestRecovery(t *testing.T) {
	mailbox := hstest.StartMailbox(t)
	hs := hstest.Start(t, local, mailbox.Option(), func(c *homeserver.Config) { c.Registration.RequireEmail = true })
	b, phone := newBrowser(t, hs.URL), newBrowser(t, hs.URL)
	confirm := func() {
		t.Helper()
		// The mail is read on another device.
		link := mailbox.Next(t, "alice@example.org").Link()
		phone.get("/_moothall/email/validate?"+link).wants(200, "alice@example.org")
		phone.submit("/_moothall/email/validate").wants(200, "The address is confirmed")
	}
	b.get("/register").wants(200, "confirm your e-mail address")
	b.submit("/register/email", "email", "nonsense").wants(400, "cannot be used")
	b.submit("/register/email", "email", "alice@example.org").wants(200, "A mail is on its way to alice@example.org")
	confirm()
	long := "correct horse battery"
	b.get("/register").submit("/register", "username", "alice", "password", long, "password2", long).wants(200, "@alice:test")

	fresh := newBrowser(t, hs.URL)
	fresh.get("/recover").submit("/recover", "email", "alice@example.org").wants(200, "A mail is on its way")
	fresh.get("/recover?check=1").wants(200, "was not opened yet")
	// Who knows that a mail was sent, but not its link, gets nowhere.
	_, form := fresh.get("/recover?again=1").form("/recover")
	form.Set("password", long)
	form.Set("password2", long)
	if fresh.post("/recover/password", form); fresh.code != 400 {
		t.Errorf("without the link: %d", fresh.code)
	}
	confirm()
	fresh.get("/recover").wants(200, "Choose a new password")
	fresh.submit("/recover/password", "password", "x", "password2", "x").wants(400, "too weak")
	fresh.submit("/recover/password", "password", "battery staple horse", "password2", "battery staple horse").wants(200, "Your password was changed")
	b.get("/account").wants(200, "Sign in") // the other browser was signed out
	fresh.get("/signin").submit("/signin/password", "username", "alice@example.org", "password", "battery staple horse").wants(200, "@alice:test")
	if fresh.post("/recover/password", form); fresh.code == 200 {
		t.Error("the proof was good twice")
	}
	// An address of nobody is answered the same.
	nobody := newBrowser(t, hs.URL)
	nobody.get("/recover").submit("/recover", "email", "nobody@example.org").wants(200, "A mail is on its way")
}
