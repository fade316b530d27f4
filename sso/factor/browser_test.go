package factor_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/webauthn"
	"github.com/chromedp/chromedp"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/sso/factor"
	"github.com/moothall/moothall/tests/chromium"
)

// window is one window with a virtual authenticator.
type window struct {
	t    *testing.T
	s    *site
	ctx  context.Context
	auth webauthn.AuthenticatorID
}

func (s *site) window() *window {
	t := s.t
	t.Helper()
	c := &window{t: t, s: s, ctx: chromium.Start(t, "en", 760, 1000)}
	if _, err := chromedp.Call(c.ctx, webauthn.Enable, webauthn.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	c.auth = c.key()
	return c
}

// key adds an authenticator: a device with a fingerprint reader.
func (c *window) key() webauthn.AuthenticatorID {
	c.t.Helper()
	added, err := chromedp.Call(c.ctx, webauthn.AddVirtualAuthenticator, webauthn.AddVirtualAuthenticatorParams{Options: &webauthn.VirtualAuthenticatorOptions{
		Protocol: "ctap2", Transport: "internal", HasResidentKey: true, HasUserVerification: true, IsUserVerified: true, AutomaticPresenceSimulation: true,
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	return added.AuthenticatorID
}

func (c *window) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	chromium.Do(c.ctx, c.t, what, actions...)
}

func (c *window) open(path, sel string) {
	c.t.Helper()
	c.do("open "+path, chromedp.Navigate(c.s.url+path), chromedp.WaitVisible(chromedp.CSS(sel)))
}

func (c *window) press(sel, then string) {
	c.t.Helper()
	c.do("press "+sel, chromedp.Click(chromedp.CSS(sel)), chromedp.WaitVisible(chromedp.CSS(then)))
}

func (c *window) text(sel string) string {
	c.t.Helper()
	return chromium.Text(c.ctx, c.t, sel)
}

// picture keeps what the window shows, where that is wanted.
func (c *window) picture(name string) {
	c.t.Helper()
	chromium.Picture(c.ctx, c.t, "factor-"+name)
}

const (
	passkeyButton = "form[data-passkey] button"
	signedIn      = "#in"
)

// TestPasskey enrols and uses passkeys in Chromium: as a second factor, without a name and a password, and in wrong ways.
func TestPasskey(t *testing.T) {
	rules := []factor.Rule{{Name: "all", Users: []string{"alice"}, Require: []string{"cryptographic"}}}
	s := openSite(t, factor.Config{Rules: rules})
	c := s.window()

	// At sign-in somebody who must have a passkey makes one.
	s.try(alice, "password", "pwd")
	c.open("/signin/factor", "form button")
	c.press("form button", passkeyButton)
	c.press(passkeyButton, "ul.list code")
	if codes := c.text("ul.list"); len(strings.Fields(codes)) != 10 {
		t.Errorf("recovery codes: %q", codes)
	}
	c.press("form button", signedIn)
	if got := c.text(signedIn); got != "signed in: @alice:test by pwd hwk user" {
		t.Fatal(got)
	}

	// As a second factor, and by itself.
	s.try(alice, "password", "pwd")
	c.open("/signin/factor", passkeyButton)
	c.picture("passkey-en")
	c.press(passkeyButton, signedIn)
	if got := c.text(signedIn); got != "signed in: @alice:test by pwd hwk user" {
		t.Fatal(got)
	}
	s.try("", "")
	c.open("/signin/passkey", passkeyButton)
	c.picture("passwordless-en")
	c.press(passkeyButton, signedIn)
	if got := c.text(signedIn); got != "signed in: @alice:test by hwk user" {
		t.Fatal(got)
	}

	// A second one, on another key; the first one is not offered to be made again.
	s.sign(alice)
	_ = s.Raise(nil, nil, "hwk")
	c.open("/account/factors/add?kind=webauthn", "#name")
	c.do("name it", chromedp.SendKeys(chromedp.CSS("#name"), "YubiKey 5C"))
	c.press("form button", passkeyButton)
	c.press(passkeyButton, "#passkey-problem")
	if list, _, _ := s.List(t.Context(), alice); len(list) != 1 {
		t.Fatalf("the same authenticator was enrolled twice: %+v", list)
	}
	first := c.auth
	if _, err := chromedp.Call(c.ctx, webauthn.RemoveVirtualAuthenticator, webauthn.RemoveVirtualAuthenticatorParams{AuthenticatorID: first}); err != nil {
		t.Fatal(err)
	}
	c.auth = c.key()
	c.open("/account/factors/add?kind=webauthn", "#name")
	c.do("name it", chromedp.SendKeys(chromedp.CSS("#name"), "YubiKey 5C"))
	c.press("form button", passkeyButton)
	c.picture("make-passkey-en")
	c.press(passkeyButton, "nav.tabs")
	if got := c.text("ul.list"); !strings.Contains(got, "YubiKey 5C") || !strings.Contains(got, "Passkey\n") {
		t.Errorf("the list shows %q", got)
	}
	c.picture("list-en")
	c.wrongPasskeys(alice)
}

// addCredential is webauthn.AddCredential without what this Chromium does not know yet.
var addCredential = cdp.Command[map[string]any, cdp.Empty]{Method: webauthn.CommandAddCredential}

// put puts a passkey into an authenticator.
func (c *window) put(auth webauthn.AuthenticatorID, k *webauthn.Credential) {
	c.t.Helper()
	if _, err := chromedp.Call(c.ctx, addCredential, map[string]any{"authenticatorId": auth, "credential": map[string]any{
		"credentialId": k.CredentialID, "isResidentCredential": true, "rpId": "localhost", "privateKey": k.PrivateKey, "userHandle": k.UserHandle, "signCount": k.SignCount,
	}}); err != nil {
		c.t.Fatal(err)
	}
}

// wrongPasskeys shows what is refused: no verification of the user, a forged signature, a copy of the key, a challenge again.
func (c *window) wrongPasskeys(user id.UserID) {
	t, s := c.t, c.s
	t.Helper()
	verified := func(yes bool) {
		t.Helper()
		if _, err := chromedp.Call(c.ctx, webauthn.SetUserVerified, webauthn.SetUserVerifiedParams{AuthenticatorID: c.auth, IsUserVerified: yes}); err != nil {
			t.Fatal(err)
		}
	}
	override := func(signature, uv bool) {
		t.Helper()
		if _, err := chromedp.Call(c.ctx, webauthn.SetResponseOverrideBits, webauthn.SetResponseOverrideBitsParams{AuthenticatorID: c.auth, IsBogusSignature: &signature, IsBadUV: &uv}); err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, path, sel string) {
		t.Helper()
		s.try(user, "password", "pwd")
		c.open(path, passkeyButton)
		c.press(passkeyButton, sel)
	}
	verified(false)
	refused("no verification", "/signin/factor", "#passkey-problem") // the browser refuses already
	verified(true)
	for _, path := range []string{"/signin/factor", "/signin/passkey"} {
		override(true, false)
		refused("a forged signature", path, "#problem")
		override(false, true)
		refused("no verification, and the browser lies", path, "#problem")
		override(false, false)
	}

	// A copy of the key whose counter is behind.
	keys, err := chromedp.Call(c.ctx, webauthn.GetCredentials, webauthn.GetCredentialsParams{AuthenticatorID: c.auth})
	if err != nil || len(keys.Credentials) != 1 {
		t.Fatal(keys, err)
	}
	s.clock.forward(time.Hour)
	s.try(user, "password", "pwd")
	c.open("/signin/factor", passkeyButton)
	c.press(passkeyButton, signedIn)
	clone := keys.Credentials[0]
	clone.SignCount = 1
	if _, err := chromedp.Call(c.ctx, webauthn.RemoveCredential, webauthn.RemoveCredentialParams{AuthenticatorID: c.auth, CredentialID: clone.CredentialID}); err != nil {
		t.Fatal(err)
	}
	c.put(c.auth, clone)
	refused("a copy", "/signin/factor", "#problem")

	// What the browser sent is sent again.
	if _, err := chromedp.Call(c.ctx, webauthn.RemoveCredential, webauthn.RemoveCredentialParams{AuthenticatorID: c.auth, CredentialID: clone.CredentialID}); err != nil {
		t.Fatal(err)
	}
	clone.SignCount = 1000
	c.put(c.auth, clone)
	s.try(user, "password", "pwd")
	c.open("/signin/factor", passkeyButton)
	// The form's own submit is held back, so that the answer can be sent twice, and for somebody else.
	if _, err := chromedp.Run(c.ctx, chromedp.Evaluate[cdp.Empty](`HTMLFormElement.prototype.submit = function () {
		const p = document.createElement('p');
		p.id = 'held'; p.textContent = new URLSearchParams(new FormData(this)).toString(); document.body.append(p);
	}; ({})`)); err != nil {
		t.Fatal(err)
	}
	c.press(passkeyButton, "#held")
	form, err := url.ParseQuery(c.text("#held"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.CheckPasskey(t.Context(), form.Get("challenge"), form.Get("credential")); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("the answer to another question: %v", err)
	}
	// That has spent the challenge, whoever it was for.
	if _, err := s.Check(t.Context(), user, factor.WebAuthn, form); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("an answer to a spent challenge: %v", err)
	}
	challenge, err := s.Begin(t.Context(), user, factor.WebAuthn, "", here)
	if err != nil {
		t.Fatal(err)
	}
	form.Set("challenge", challenge.ID)
	if _, err := s.Check(t.Context(), user, factor.WebAuthn, form); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("an old answer to a new challenge: %v", err)
	}
}

// TestPictures takes pictures of the other pages in both languages, and looks whether anything is wider than a telephone.
func TestPictures(t *testing.T) {
	rules := []factor.Rule{
		{Name: "new", Users: []string{"carol"}, Require: []string{"any"}, GraceDays: 7},
		{Name: "all", Require: []string{"any"}, RememberDays: 30, AppPasswords: true},
	}
	s := openSite(t, factor.Config{Rules: rules, AppPasswords: true})
	s.totp(t, alice)
	e, err := s.BeginEnrol(t.Context(), alice, factor.SMS, "工作手机", "13800138000", here)
	if err != nil {
		t.Fatal(err)
	}
	_, code := s.sms.last(t)
	if _, err := s.Confirm(t.Context(), alice, factor.SMS, e.ID, "", map[string][]string{"challenge": {e.Challenge.ID}, "code": {code}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NewAppPassword(t.Context(), alice, "FluffyChat", here.IP); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remember(t.Context(), alice, []string{"otp"}, 24*time.Hour, factor.From{IP: here.IP, Agent: "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}); err != nil {
		t.Fatal(err)
	}
	s.sign(alice)
	_ = s.Raise(nil, nil, "otp")
	c := s.window()
	for _, lang := range []string{"en", "zh"} {
		for _, p := range []struct {
			name, path string
			user       id.UserID
			press      string
		}{
			{"totp", "/signin/factor?kind=totp", alice, ""}, {"sms", "/signin/factor?kind=sms", alice, ""}, {"recovery", "/signin/factor?kind=recovery", alice, ""},
			{"enrol", "/signin/factor/enrol?", "@carol:test", ""}, {"enrol-totp", "/signin/factor/enrol?kind=totp", "@carol:test", ""},
			{"scan", "/signin/factor/enrol?kind=totp", "@carol:test", "form button"}, {"factors", "/account/factors?", "", ""},
			{"remove", "/account/factors?remove=" + s.first(t, alice), "", ""}, {"apps", "/account/app-passwords?", "", ""}, {"browsers", "/account/browsers?", "", ""},
			{"new-codes", "/account/factors?", "", "main > form button"},
		} {
			s.try(p.user, "password", "pwd")
			c.open(p.path+"&lang="+lang, "main")
			if p.press != "" {
				c.press(p.press, "main img, main ul code")
			}
			c.picture(p.name + "-" + lang)
			c.do("a telephone", chromedp.EmulateViewport(360, 740))
			if width, err := chromedp.Run(c.ctx, chromedp.Evaluate[int](`document.documentElement.scrollWidth`)); err != nil || width > 360 {
				t.Errorf("%s in %s is %d pixels wide on a telephone: %v", p.name, lang, width, err)
			}
			c.do("a window", chromedp.EmulateViewport(760, 1000))
		}
	}
}
