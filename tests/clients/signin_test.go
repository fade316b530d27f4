package clients_test

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/moothall/moothall/tests/chromium"
)

// pagesEnv names the folder that pictures of the sign-in and account pages are written to, for the documentation.
const pagesEnv = "MOOTHALL_SCREENSHOT_PAGES"

// TestSignInPages goes through the pages in Chromium, by keyboard, in both languages: it holds their policy against what
// the pages do, the way back to the app among it.
func TestSignInPages(t *testing.T) {
	needClients(t)
	homeserver := startServer(t, "")
	alice := register(t, homeserver, "alice")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "<!DOCTYPE html><p id=app>%s</p>", map[bool]string{true: "code", false: "none"}[r.URL.Query().Get("code") != ""])
	}))
	t.Cleanup(app.Close)
	var client struct {
		ID string `json:"client_id"`
	}
	if status := call(t, homeserver, "", "POST", "/oauth2/register", map[string]any{
		"client_name": "Element X", "client_uri": "https://element.io/", "redirect_uris": []string{"http://127.0.0.1/cb"}, "application_type": "native",
	}, &client); status != 201 {
		t.Fatalf("register the client: %d", status)
	}
	browser := chromium.Start(t, "", 1280, 800)
	for _, lang := range []string{"en", "zh"} {
		t.Run(lang, func(t *testing.T) {
			ctx, cancel := chromedp.NewContext(browser)
			t.Cleanup(cancel)
			if err := chromedp.Do(ctx); err != nil { // the tab lives as long as the context that it is made with
				t.Fatal(err)
			}
			p := &tab{t: t, ctx: ctx}
			shot := func(name string) { t.Helper(); p.picture(lang, name) }
			open := func(path string) chromedp.Action[chromedp.Void] { return chromedp.Navigate(homeserver + path) }
			h1 := chromedp.WaitVisible(chromedp.CSS("h1"))

			p.do("the first page", open("/signin?choose=1&lang="+lang), h1)
			shot("signin")
			p.do("registration", open("/register"), h1)
			shot("register")
			query := url.Values{
				"response_type": {"code"}, "client_id": {client.ID}, "redirect_uri": {app.URL + "/cb"}, "state": {"s"},
				"scope":                 {"urn:matrix:client:api:* urn:matrix:client:device:ELEMENTX" + strings.ToUpper(lang)},
				"code_challenge_method": {"S256"}, "code_challenge": {strings.Repeat("a", 43)},
			}
			p.do("a wrong password", open("/oauth2/authorize?"+query.Encode()), h1,
				chromedp.SendKeys(chromedp.CSS("#username"), alice.Name), chromedp.SendKeys(chromedp.CSS("#password"), "wrong\r"), chromedp.WaitVisible(chromedp.CSS("#problem")))
			shot("signin-wrong")
			p.do("the right one", chromedp.SendKeys(chromedp.CSS("#password"), alice.Password+"\r"), chromedp.WaitVisible(chromedp.CSS(`button[value="deny"]`)))
			shot("consent")
			p.do("back to the app", chromedp.Click(chromedp.CSS(`button[value="allow"]`)), chromedp.WaitVisible(chromedp.CSS("#app")))
			p.waitText("#app", "code")
			for _, one := range []struct{ path, name string }{
				{"/account", "account"}, {"/account/sessions", "sessions"}, {"/account/sessions/device?device_id=" + alice.DeviceID, "session"},
				{"/account/password", "password"}, {"/account/deactivate", "deactivate"}, {"/device", "device"}, {"/signout", "signout"},
				{"/account/approve?session=none", "error"},
			} {
				p.do(one.name, open(one.path), h1)
				shot(one.name)
			}
			p.do("m.login.sso", open("/_matrix/client/v3/login/sso/redirect?redirectUrl="+url.QueryEscape("https://chat.example.org/")), h1)
			shot("app")
			p.do("sign out", open("/signout"), chromedp.Click(chromedp.CSS(`form[action="/signout"] button`)), chromedp.WaitVisible(chromedp.CSS(".state")))
			p.do("recovery", open("/recover?again=1"), h1)
			shot("recover")
		})
	}
}

// picture takes a picture of the whole page, and keeps it where pagesEnv says.
func (p *tab) picture(lang, name string) {
	p.t.Helper()
	p.do("set the window", chromedp.EmulateViewport(760, 820))
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	if config, err := png.DecodeConfig(bytes.NewReader(picture)); err != nil || config.Width != 760 {
		p.t.Errorf("the picture of %s is %d wide: %v", name, config.Width, err)
	}
	if dir := os.Getenv(pagesEnv); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+"-"+lang+".png"), picture, 0o644); err != nil {
			p.t.Error(err)
		}
	}
}
