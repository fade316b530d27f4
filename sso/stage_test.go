package sso_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// stageSession asks for something and gives the session of the authentication that it needs.
func stageSession(t *testing.T, c *hstest.Client, method, path, body string) string {
	t.Helper()
	r := c.Do(t, method, body, path, []any(nil)...)
	var out struct{ Session string }
	if err := json.Unmarshal(r.Body, &out); err != nil || r.Status != 401 || out.Session == "" {
		t.Fatalf("%s %s: %d %s", method, path, r.Status, r.Body)
	}
	return out.Session
}

func stagePath(stage, session string) string {
	return "/_matrix/client/v3/auth/" + stage + "/fallback/web?session=" + session
}

// TestStagePages passes stages of user-interactive authentication in the browser, for apps that do not know them.
func TestStagePages(t *testing.T) {
	mailbox := hstest.StartMailbox(t)
	hs := hstest.Start(t, local, mailbox.Option())
	alice := hs.User("alice")
	b, nobody := newBrowser(t, hs.URL), hs.Anonymous()

	second := alice.Login()
	device := "/v3/devices/" + string(second.DeviceID)
	session := stageSession(t, alice, "DELETE", device, "{}")
	b.get(stagePath("m.login.password", session)).wants(200, "sign out sessions")
	b.submit("/signin/stage", "password", "a wrong one").wants(403, `role="alert"`)
	if r := alice.Do(t, "DELETE", fmt.Sprintf(`{"auth":{"session":%q}}`, session), device, []any(nil)...); r.Status != 401 {
		t.Errorf("after a wrong password: %d %s", r.Status, r.Body)
	}
	b.submit("/signin/stage", "password", alice.Password).wants(200, "authdone.js")
	b.get(stagePath("m.login.password", session)).wants(200, "authdone.js")
	if r := alice.Do(t, "DELETE", fmt.Sprintf(`{"auth":{"session":%q}}`, session), device, []any(nil)...); r.Status != 200 {
		t.Errorf("after the right password: %d %s", r.Status, r.Body)
	}
	for _, path := range []string{
		stagePath("m.login.password", session), stagePath("m.login.password", "nothing"), stagePath("m.login.recaptcha", session),
		stagePath("m.login.dummy", stageSession(t, alice, "DELETE", device, "{}")),
		stagePath("m.login.password", stageSession(t, nobody, "POST", "/v3/register", `{"username":"eve","password":"correct horse battery"}`)),
	} {
		b.get(path).wants(404, "")
	}

	account := `{"username":"bob","password":"correct horse battery"%s}`
	session = stageSession(t, nobody, "POST", "/v3/register", fmt.Sprintf(account, ""))
	b.get(stagePath("m.login.dummy", session)).wants(200, "creates an account")
	b.submit("/signin/stage").wants(200, "authdone.js")
	if r := nobody.Do(t, "POST", fmt.Sprintf(account, fmt.Sprintf(`,"auth":{"session":%q}`, session)), "/v3/register"); r.Status != 200 {
		t.Errorf("registration: %d %s", r.Status, r.Body)
	}

	account = `{"username":"carol","password":"correct horse battery"%s}`
	session = stageSession(t, nobody, "POST", "/v3/register", fmt.Sprintf(account, ""))
	b.get(stagePath("m.login.email.identity", session)).wants(200, "E-mail address")
	b.submit("/signin/stage", "email", "nonsense").wants(400, "cannot be used")
	b.submit("/signin/stage", "email", "carol@example.org").wants(200, "A mail is on its way to carol@example.org")
	b.submit("/signin/stage").wants(400, "not opened yet")
	phone := newBrowser(t, hs.URL)
	phone.get("/_moothall/email/validate?"+mailbox.Next(t, "carol@example.org").Link()).wants(200, "carol@example.org")
	phone.submit("/_moothall/email/validate").wants(200, "The address is confirmed")
	b.submit("/signin/stage").wants(200, "authdone.js")
	if r := nobody.Do(t, "POST", fmt.Sprintf(account, fmt.Sprintf(`,"auth":{"session":%q}`, session)), "/v3/register"); r.Status != 200 {
		t.Errorf("registration with an address: %d %s", r.Status, r.Body)
	}
}

// TestStageToken passes the stage of an invitation code in the browser.
func TestStageToken(t *testing.T) {
	hs := hstest.Start(t, local, func(c *homeserver.Config) { c.Registration.Mode = "token" })
	root := hs.Anonymous()
	root.Password = "correct horse battery root"
	var err error
	if root.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "root", root.Password, true); err != nil {
		t.Fatal(err)
	}
	root = root.Login()
	root.Must(t, "POST", `{"token":"let.me-in","uses_allowed":1}`, "/_synapse/admin/v1/registration_tokens/new")
	b, nobody := newBrowser(t, hs.URL), hs.Anonymous()
	account := `{"username":"bob","password":"correct horse battery"%s}`
	session := stageSession(t, nobody, "POST", "/v3/register", fmt.Sprintf(account, ""))
	b.get(stagePath("m.login.registration_token", session)).wants(200, "Invitation code")
	b.submit("/signin/stage", "token", "guess").wants(400, "not valid")
	b.submit("/signin/stage", "token", "let.me-in").wants(200, "authdone.js")
	if r := nobody.Do(t, "POST", fmt.Sprintf(account, fmt.Sprintf(`,"auth":{"session":%q}`, session)), "/v3/register"); r.Status != 200 {
		t.Errorf("registration: %d %s", r.Status, r.Body)
	}
}
