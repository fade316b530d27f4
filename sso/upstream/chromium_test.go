package upstream_test

import (
	"context"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/tests/chromium"
)

// window is one window of a real browser.
type window struct {
	t   *testing.T
	ctx context.Context
}

func openWindow(t *testing.T, lang string) *window {
	t.Helper()
	return &window{t, chromium.Start(t, lang, 760, 900)}
}

func (c *window) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	chromium.Do(c.ctx, c.t, what, actions...)
}

func (c *window) text(sel string) string {
	c.t.Helper()
	return chromium.Text(c.ctx, c.t, sel)
}

// signIn goes from our page to Keycloak and back.
func (c *window) signIn(base, provider, name, password string) {
	c.t.Helper()
	button := `a[href="/signin/upstream/` + provider + `"]`
	c.do("our page", chromedp.Navigate(base+"/signin"), chromedp.WaitVisible(chromedp.CSS(button)))
	c.do("to Keycloak", chromedp.Click(chromedp.CSS(button)), chromedp.WaitVisible(chromedp.CSS("#username")))
	c.do("at Keycloak", chromedp.SendKeys(chromedp.CSS("#username"), name), chromedp.SendKeys(chromedp.CSS("#password"), password),
		chromedp.Click(chromedp.CSS("#kc-login")), chromedp.WaitVisible(chromedp.CSS(`form[action="/signout"], a[href="/signout"]`)))
	if text := c.text("body"); !strings.Contains(text, "@"+name+":test") {
		c.t.Errorf("the account page shows %s", text)
	}
}

// TestChromiumKeycloak signs in and out in a real browser: scripts of Keycloak's pages, cookies by the browser's rules.
func TestChromiumKeycloak(t *testing.T) {
	k := findKeycloak(t)
	name := unique("mei")
	k.user(name, nil)
	t.Run("OpenID Connect", func(t *testing.T) {
		k.t = t
		base, option := k.server(nil)
		hstest.Start(t, option, func(c *homeserver.Config) {
			c.SSO.Providers = append(c.SSO.Providers, homeserver.SSOProvider{
				ID: "gone", Name: "Old account", NameZH: "旧账号", Issuer: "http://127.0.0.1:9/realms/x", ClientID: "x", ClientSecret: "x",
			})
		})
		c := openWindow(t, "zh-CN")
		c.do("our page", chromedp.Navigate(base+"/signin?lang=zh"), chromedp.WaitVisible(chromedp.CSS("h1")))
		if text := c.text("body"); !strings.Contains(text, "公司账号") || !strings.Contains(text, "旧账号") {
			t.Errorf("the page shows %s", text)
		}
		chromium.Picture(c.ctx, t, "signin-providers-zh")
		c.do("a provider that is down", chromedp.Click(chromedp.CSS(`a[href="/signin/upstream/gone"]`)), chromedp.WaitVisible(chromedp.CSS(".problem")))
		if text := c.text(".problem"); !strings.Contains(text, "没有响应") {
			t.Errorf("down: %s", text)
		}
		chromium.Picture(c.ctx, t, "provider-down-zh")
		// Password users are not concerned.
		c.do("the other ways", chromedp.Click(chromedp.CSS(`a[href="/signin?choose=1"]`)), chromedp.WaitVisible(chromedp.CSS("#password")))
		c.signIn(base, "kc", name, "secret-"+name)
		c.do("sign out", chromedp.Navigate(base+"/signout"), chromedp.WaitVisible(chromedp.CSS("main button[type=submit]")))
		c.do("here", chromedp.Click(chromedp.CSS("main button[type=submit]")), chromedp.WaitVisible(chromedp.CSS(`a[href^="`+k.realm+`"]`)))
		chromium.Picture(c.ctx, t, "signedout-zh")
		c.do("there too", chromedp.Click(chromedp.CSS(`a[href^="`+k.realm+`"]`)), chromedp.WaitVisible(chromedp.CSS(`a[href="/signin?choose=1"]`)))
		c.do("again", chromedp.Navigate(base+"/signin/upstream/kc"), chromedp.WaitVisible(chromedp.CSS("#username"))) // Keycloak asks
	})
	t.Run("SAML", func(t *testing.T) {
		k.t = t
		_, base := k.samlServer(false, func(c map[string]any) { attributes(c)["saml.client.signature"] = "false" })
		c := openWindow(t, "en")
		c.signIn(base, "adfs", name, "secret-"+name)
	})
}
