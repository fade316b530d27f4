package upstream_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// screenshotsEnv names a folder for pictures of the pages, for people to look at.
const screenshotsEnv = "MOOTHALL_TEST_SCREENSHOTS"

// chromium is one window of a real browser.
type chromium struct {
	t   *testing.T
	ctx context.Context
}

func startChromium(t *testing.T, lang string) *chromium {
	t.Helper()
	binary, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v: run ./scripts/test, which installs it", err)
		}
		t.Skip("there is no Chromium")
	}
	options := append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]),
		chromedp.ExecPath(binary), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(t.TempDir()), chromedp.WindowSize(760, 900),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("hide-scrollbars", true), chromedp.Flag("lang", lang))
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	c := &chromium{t: t, ctx: ctx}
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	t.Cleanup(func() {
		if err := chromedp.Cancel(ctx); err != nil { // waits until the browser has closed
			t.Errorf("close Chromium: %v", err)
		}
	})
	return c
}

func (c *chromium) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 20*time.Second)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		c.t.Fatalf("%s: %v\nthe page shows: %s", what, err, c.text("body"))
	}
}

func (c *chromium) text(sel string) string {
	ctx, cancel := context.WithTimeout(c.ctx, 5*time.Second)
	defer cancel()
	text, err := chromedp.Run(ctx, chromedp.Text(chromedp.CSS(sel)))
	if err != nil {
		c.t.Errorf("%s: %v", sel, err)
	}
	return text
}

func (c *chromium) picture(name string) {
	dir := os.Getenv(screenshotsEnv)
	if dir == "" {
		return
	}
	b, err := chromedp.Run(c.ctx, chromedp.CaptureScreenshot())
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), b, 0o644)
	}
	if err != nil {
		c.t.Errorf("picture %s: %v", name, err)
	}
}

// signIn goes from our page to Keycloak and back.
func (c *chromium) signIn(base, provider, name, password string) {
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
		c := startChromium(t, "zh-CN")
		c.do("our page", chromedp.Navigate(base+"/signin?lang=zh"), chromedp.WaitVisible(chromedp.CSS("h1")))
		if text := c.text("body"); !strings.Contains(text, "公司账号") || !strings.Contains(text, "旧账号") {
			t.Errorf("the page shows %s", text)
		}
		c.picture("signin-providers-zh")
		c.do("a provider that is down", chromedp.Click(chromedp.CSS(`a[href="/signin/upstream/gone"]`)), chromedp.WaitVisible(chromedp.CSS(".problem")))
		if text := c.text(".problem"); !strings.Contains(text, "没有响应") {
			t.Errorf("down: %s", text)
		}
		c.picture("provider-down-zh")
		// Password users are not concerned.
		c.do("the other ways", chromedp.Click(chromedp.CSS(`a[href="/signin?choose=1"]`)), chromedp.WaitVisible(chromedp.CSS("#password")))
		c.signIn(base, "kc", name, "secret-"+name)
		c.do("sign out", chromedp.Navigate(base+"/signout"), chromedp.WaitVisible(chromedp.CSS("main button[type=submit]")))
		c.do("here", chromedp.Click(chromedp.CSS("main button[type=submit]")), chromedp.WaitVisible(chromedp.CSS(`a[href^="`+k.realm+`"]`)))
		c.picture("signedout-zh")
		c.do("there too", chromedp.Click(chromedp.CSS(`a[href^="`+k.realm+`"]`)), chromedp.WaitVisible(chromedp.CSS(`a[href="/signin?choose=1"]`)))
		c.do("again", chromedp.Navigate(base+"/signin/upstream/kc"), chromedp.WaitVisible(chromedp.CSS("#username"))) // Keycloak asks
	})
	t.Run("SAML", func(t *testing.T) {
		k.t = t
		_, base := k.samlServer(false, func(c map[string]any) { attributes(c)["saml.client.signature"] = "false" })
		c := startChromium(t, "en")
		c.signIn(base, "adfs", name, "secret-"+name)
	})
}
