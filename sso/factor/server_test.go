package factor_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"mime/quotedprintable"
	"strings"
	"testing"
	"time"

	"github.com/pquerna/otp/hotp"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// policies is an option that sets the policies of a server.
func policies(list ...homeserver.Policy) hstest.Option {
	return func(c *homeserver.Config) { c.SSO.Policies = list }
}

func login(name, password string) string {
	return fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":%q}`, name, password)
}

// enter signs in by a password on the pages of a server.
func enter(v *visitor, name, password string) {
	v.t.Helper()
	v.get("/signin")
	v.post("username", name, "password", password)
}

func totpNow(t *testing.T, secret string, off int64) string {
	t.Helper()
	code, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30+off))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// TestServer goes through a whole server: what a policy means for the pages, for old clients, for registration and for
// user-interactive authentication.
func TestServer(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, anon := hs.User("alice"), hs.Anonymous()
		if got := anon.Do(t, "POST", login("alice", alice.Password), "/v3/login"); got.Status != 200 {
			t.Fatalf("nobody asks for a second factor: %d %s", got.Status, got.Body)
		}

		// Alice adds an authenticator app of her own will.
		v := newVisitor(t, hs.URL)
		enter(v, "alice", alice.Password)
		v.get("/account/factors")
		v.wants(200, "no second factor yet")
		v.get("/account/factors/add?kind=totp")
		v.post("name", "Phone")
		secret := secretForm.FindStringSubmatch(v.page)[1]
		v.post("code", totpNow(t, secret, -1))
		v.wants(200, "Recovery codes")

		// From now on her password alone opens nothing.
		got := anon.Do(t, "POST", login("alice", alice.Password), "/v3/login")
		if got.Status != 403 || got.Errcode != "M_FORBIDDEN" || !strings.Contains(string(got.Body), "single sign-on") {
			t.Errorf("a password alone: %d %s", got.Status, got.Body)
		}
		if got := anon.Do(t, "POST", login("alice", "wrong"), "/v3/login"); got.Status != 403 || strings.Contains(string(got.Body), "second factor") {
			t.Errorf("who does not know the password learns of the second factor: %s", got.Body)
		}
		got = alice.Do(t, "POST", `{}`, "/v3/delete_devices")
		if got.Status == 401 && strings.Contains(string(got.Body), "m.login.password") {
			t.Errorf("user-interactive authentication takes the password: %s", got.Body)
		}
		got = alice.Do(t, "POST", `{"devices":["X"]}`, "/v3/delete_devices")
		if got.Status != 401 || strings.Contains(string(got.Body), "m.login.password") || !strings.Contains(string(got.Body), "m.login.sso") {
			t.Errorf("user-interactive authentication: %d %s", got.Status, got.Body)
		}
		got = alice.Do(t, "POST", fmt.Sprintf(`{"devices":["X"],"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":%q}}`, alice.Password), "/v3/delete_devices")
		if got.Status != 401 {
			t.Errorf("the password confirms an operation: %d %s", got.Status, got.Body)
		}

		// In another browser: the password, then the code.
		v = newVisitor(t, hs.URL)
		enter(v, "alice", alice.Password)
		if v.wants(200, "authenticator app"); v.path != "/signin/factor" {
			t.Fatalf("it went to %s", v.path)
		}
		if v.get("/account"); v.path != "/signin" {
			t.Errorf("half a sign-in opens %s", v.path)
		}
		enter(v, "alice", alice.Password)
		v.post("code", "000000")
		v.wants(403, "wrong")
		v.post("code", totpNow(t, secret, 0))
		if v.wants(200, "@alice:test"); v.path != "/account" {
			t.Fatalf("it went to %s", v.path)
		}
		v.get("/account/factors")
		v.wants(200, "Phone")

		// An app password, which signs old clients in and does nothing else.
		v.get("/account/app-passwords")
		v.post("name", "Old app")
		v.wants(200, "never shown again")
		app := appForm.FindStringSubmatch(v.page)[1]
		in := anon.Must(t, "POST", login("@alice:test", app), "/v3/login")
		if in["user_id"] != "@alice:test" {
			t.Errorf("signed in as %v", in["user_id"])
		}
		other := newVisitor(t, hs.URL)
		enter(other, "alice", app)
		if other.path != "/signin/password" && other.path != "/signin" {
			t.Errorf("an app password opens the pages: %s", other.path)
		}
		v.get("/account/app-passwords")
		v.post("=action", "revoke")
		if got := anon.Do(t, "POST", login("alice", app), "/v3/login"); got.Status != 403 {
			t.Errorf("a revoked app password: %d", got.Status)
		}

		// The administrator resets what was lost.
		user, n, err := homeserver.ResetFactors(context.Background(), hs.Config, slog.New(slog.DiscardHandler), "alice")
		if err != nil || user != "@alice:test" || n != 1 {
			t.Fatal(user, n, err)
		}
		anon.Must(t, "POST", login("alice", alice.Password), "/v3/login")
	}, func(c *homeserver.Config) { c.SSO.Factors.AppPasswords = true })
}

// TestPolicyOnServer has a policy for everybody: old clients and registration get no session, people enrol on the pages.
func TestPolicyOnServer(t *testing.T) {
	hs := hstest.Start(t, policies(
		homeserver.Policy{Name: "later", Users: []string{"later"}, Require: []string{"any"}, GraceDays: 3},
		homeserver.Policy{Name: "elsewhere", Users: []string{"office"}, Networks: []string{"127.0.0.0/8", "::1"}, Require: []string{"none"}},
		homeserver.Policy{Name: "all", Users: []string{"bob", "office"}, Require: []string{"any"}, RememberDays: 7},
	))
	anon := hs.Anonymous()
	got := anon.Do(t, "POST", `{"username":"bob","password":"a good passphrase","auth":{"type":"m.login.dummy"}}`, "/v3/register")
	if got.Status != 403 || got.Errcode != "M_FORBIDDEN" {
		t.Fatalf("registration: %d %s", got.Status, got.Body)
	}
	anon.Must(t, "POST", `{"username":"bob","password":"a good passphrase","inhibit_login":true,"auth":{"type":"m.login.dummy"}}`, "/v3/register")
	if got := anon.Do(t, "POST", login("bob", "a good passphrase"), "/v3/login"); got.Status != 403 {
		t.Fatalf("a password alone: %d %s", got.Status, got.Body)
	}
	hs.User("later")  // signed in while the grace period runs
	hs.User("office") // by network

	v := newVisitor(t, hs.URL)
	enter(v, "bob", "a good passphrase")
	if v.wants(200, "Your organisation asks"); v.path != "/signin/factor/enrol" {
		t.Fatalf("it went to %s", v.path)
	}
	if strings.Contains(v.page, "passkey") {
		t.Error("a passkey is offered at an address at which browsers make none")
	}
	if !strings.Contains(v.page, "data:image/png") {
		v.post("name", "Phone")
	}
	secret := secretForm.FindStringSubmatch(v.page)[1]
	v.post("code", totpNow(t, secret, 0))
	v.wants(200, "Recovery codes")
	v.post("=action", "done")
	if v.wants(200, "@bob:test"); v.path != "/account" {
		t.Fatalf("it went to %s", v.path)
	}
	factorID := ""
	v.get("/account/factors")
	if m := removeForm.FindStringSubmatch(v.page); m != nil {
		factorID = m[1]
	}
	v.get("/account/factors?remove=" + factorID)
	v.post("=action", "remove")
	v.wants(403, "Add another one before you remove")
}

// TestMailCodes gets codes by a real mail server.
func TestMailCodes(t *testing.T) {
	g := hstest.FindGreenMail(t)
	hs := hstest.Start(t, func(c *homeserver.Config) {
		g.Option(c)
		c.SSO.Factors.Kinds = []string{"email"}
	})
	address := fmt.Sprintf("factor%d@example.org", time.Now().UnixNano())
	alice := hs.User("alice")
	v := newVisitor(t, hs.URL)
	v.lang = "zh"
	enter(v, "alice", alice.Password)
	v.get("/account/factors/add?kind=email")
	v.post("to", address)
	v.wants(200, "邮件验证码已发送至 f•••@example.org")
	mail := mailText(t, g, address, 1)
	if !strings.Contains(mail, "5 分钟内有效") || !strings.Contains(mail, "Auto-Submitted: auto-generated") {
		t.Errorf("the mail: %s", mail)
	}
	v.post("code", sixDigits.FindString(strings.SplitAfterN(mail, "请输入此验证码", 2)[1]))
	v.wants(200, "恢复码")
}

// mailText is the n-th mail to an address, with its text in the clear.
func mailText(t *testing.T, g hstest.GreenMail, address string, n int) string {
	t.Helper()
	text, err := io.ReadAll(quotedprintable.NewReader(strings.NewReader(g.Wait(t, address, n))))
	if err != nil {
		t.Logf("mail %d to %s: %v", n, address, err) // the parts' boundaries are not quoted
	}
	return string(text)
}
