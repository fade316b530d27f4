package sso_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// TestAdministratorEndsSessions: what ends all sessions of somebody ends those of browsers too.
func TestAdministratorEndsSessions(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, admin := hs.User("alice"), boss(t, hs)
		for what, end := range map[string]func(b *browser){
			"every device by the API": func(*browser) {
				var out struct {
					Devices []struct {
						ID string `json:"device_id"`
					} `json:"devices"`
				}
				admin.Do(t, "GET", "", "/_synapse/admin/v2/users/@alice:test/devices").JSON(t, &out)
				var ids []string
				for _, d := range out.Devices {
					ids = append(ids, `"`+d.ID+`"`)
				}
				if r := admin.Do(t, "POST", `{"devices":[`+strings.Join(ids, ",")+`]}`, "/_synapse/admin/v2/users/@alice:test/delete_devices"); r.Status != 200 || len(ids) == 0 {
					t.Fatalf("delete %v: %d %s", ids, r.Status, r.Body)
				}
			},
			"the command line": func(*browser) {
				if user, err := homeserver.SignOut(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "alice"); err != nil || user != "@alice:test" {
					t.Fatalf("%s %v", user, err)
				}
			},
			"the user, everywhere": func(*browser) { alice.Login().Must(t, "POST", "{}", "/v3/logout/all") },
		} {
			b, client := newBrowser(t, hs.URL), alice.Login()
			b.signIn(alice).get("/account").wants(200, "@alice:test")
			end(b)
			if status, code := whoami(t, hs.URL, client.Token); status != 401 || code != "M_UNKNOWN_TOKEN" {
				t.Errorf("%s: the client's token: %d %s", what, status, code)
			}
			b.get("/account").wants(200, "Sign in")
		}
		// One of several is one alone.
		b, client, other := newBrowser(t, hs.URL), alice.Login(), alice.Login()
		b.signIn(alice)
		admin.Must(t, "POST", fmt.Sprintf(`{"devices":[%q]}`, client.DeviceID), "/_synapse/admin/v2/users/@alice:test/delete_devices")
		b.get("/account").wants(200, "@alice:test")
		if status, _ := whoami(t, hs.URL, other.Token); status != 200 {
			t.Errorf("the other client's token: %d", status)
		}
		// The pages' own "end all other sessions" keeps this browser, and no other.
		second := newBrowser(t, hs.URL)
		second.signIn(alice)
		b.get("/account/sessions").submit("/account/sessions/others").wants(200, "All other sessions were ended")
		second.get("/account").wants(200, "Sign in")
		if status, _ := whoami(t, hs.URL, other.Token); status != 401 {
			t.Errorf("the other client's token: %d", status)
		}
	}, local)
}

// TestDeviceReused: whoever signs in with a password on the device of an OAuth session has a session of its own, of which the
// client's refresh tokens know nothing.
func TestDeviceReused(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		b.signIn(alice)
		_, first := a.exchange(a.code(b))
		_, second := a.refresh(text(first, "refresh_token"))
		if status, _ := whoami(t, hs.URL, text(second, "access_token")); status != 200 {
			t.Fatalf("the OAuth session: %d", status)
		}
		r := hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":%q,"device_id":%q,"refresh_token":true}`,
			alice.Password, a.device), "/v3/login")
		var in struct {
			Token   string `json:"access_token"`
			Refresh string `json:"refresh_token"`
			Device  string `json:"device_id"`
		}
		if r.JSON(t, &in); r.Status != 200 || in.Device != a.device {
			t.Fatalf("sign-in: %d %s", r.Status, r.Body)
		}
		if status, code := whoami(t, hs.URL, text(second, "access_token")); status != 401 {
			t.Errorf("the OAuth session goes on: %d %s", status, code)
		}
		for what, token := range map[string]string{"spent": text(first, "refresh_token"), "last": text(second, "refresh_token"), "the password session's": in.Refresh} {
			if status, out := a.refresh(token); status != 400 || text(out, "error") != "invalid_grant" {
				t.Errorf("the client refreshed by the %s token: %d %v", what, status, out)
			}
			if status, code := whoami(t, hs.URL, in.Token); status != 200 {
				t.Fatalf("the %s token ended the password session: %d %s", what, status, code)
			}
		}
		if r := hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"refresh_token":%q}`, in.Refresh), "/v3/refresh"); r.Status != 200 {
			t.Errorf("refresh of the password session: %d %s", r.Status, r.Body)
		}
		if strings.Contains(b.get("/account/sessions").page, "chat.example") {
			t.Error("the session is still shown as the client's")
		}
	}, local)
}

// TestBoundNetwork: a cookie is good in its network, and ends where it comes from another one.
func TestBoundNetwork(t *testing.T) {
	hs := hstest.Start(t, local, func(c *homeserver.Config) {
		c.SSO.Browser.BindAddress = "network"
		c.Listen[0].TrustedProxies = []string{"127.0.0.1"}
	})
	alice := hs.User("alice")
	for _, tc := range []struct {
		home, other string
		same        bool
	}{
		{"203.0.113.9", "203.0.113.200", true}, {"203.0.113.9", "203.0.114.9", false},
		{"2001:db8:1:1100::1", "2001:db8:1:11ff::9", true}, {"2001:db8:1:1100::1", "2001:db8:1:1200::1", false}, {"203.0.113.9", "2001:db8::1", false},
	} {
		b := newBrowser(t, hs.URL)
		b.http.Transport = forwarded(tc.home)
		b.signIn(alice).get("/account").wants(200, "@alice:test")
		b.http.Transport = forwarded(tc.other)
		if in := strings.Contains(b.get("/account").page, "@alice:test"); in != tc.same {
			t.Errorf("from %s to %s: signed in: %v", tc.home, tc.other, in)
		}
		b.http.Transport = forwarded(tc.home)
		if in := strings.Contains(b.get("/account").page, "@alice:test"); in != tc.same {
			t.Errorf("back from %s to %s: signed in: %v", tc.other, tc.home, in)
		}
	}
}

// forwarded makes requests come from an address, as a proxy tells it.
type forwarded string

func (f forwarded) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-Forwarded-For", string(f))
	return http.DefaultTransport.RoundTrip(r)
}

// TestExpiredPassword: a right password that may not be used any more is replaced where people sign in.
func TestExpiredPassword(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		quiet := slog.New(slog.DiscardHandler)
		if _, err := homeserver.CreateInitialUser(t.Context(), hs.Config, quiet, "bob", "given by the office", false); err != nil {
			t.Fatal(err)
		}
		r := hs.Anonymous().Do(t, "POST", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"bob"},"password":"given by the office"}`, "/v3/login")
		if r.Status != 403 || r.Errcode != "ORG.MOOTHALL.PASSWORD_EXPIRED" {
			t.Errorf("a client: %d %s", r.Status, r.Body)
		}
		a, b := newApp(t, hs.URL, webApp), newBrowser(t, hs.URL)
		b.get("/signin/expired").wants(400, "")
		b.get(a.request()).submit("/signin/password", "username", "bob", "password", "given by the office").wants(200, "Choose a new password")
		const own = "one of my very own"
		b.submit("/signin/expired", "current", "wrong", "password", own, "password2", own).wants(403, "current password is wrong")
		b.submit("/signin/expired", "current", "given by the office", "password", own, "password2", "else").wants(400, "not the same")
		b.submit("/signin/expired", "current", "given by the office", "password", "short", "password2", "short").wants(400, "too weak")
		b.submit("/signin/expired", "current", "given by the office", "password", "given by the office", "password2", "given by the office").wants(400, "too weak")
		b.submit("/signin/expired", "current", "given by the office", "password", own, "password2", own).wants(200, "Sign in to Chat?")
		b.submit("/consent", "answer", "allow")
		if status, out := a.exchange(answer(t, b).Get("code")); status != 200 {
			t.Errorf("token: %d %v", status, out)
		}
		newBrowser(t, hs.URL).get("/signin").submit("/signin/password", "username", "bob", "password", own).wants(200, "@bob:test")
	}, local)
}

// TestAdministratorsSession: how a session came about that an administrator got is kept.
func TestAdministratorsSession(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		hs.User("alice")
		admin := boss(t, hs)
		admin.Must(t, "POST", "{}", "/_synapse/admin/v1/users/@alice:test/login")
		var entries []audit.Stored
		err := homeserver.WithAudit(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "test", func(ctx context.Context, l *audit.Log) error {
			p, err := l.Query(ctx, audit.Filter{Actions: []string{"signin.admin"}, Limit: 10})
			entries = p.Entries
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(entries) != 1 || entries[0].Target != "@alice:test" || entries[0].Actor != "@boss:test" {
			t.Errorf("audited: %+v", entries)
		}
	}, local)
}

// TestUnknownPeople: neither the answer nor its time tells whether an account, or an e-mail address of one, exists.
func TestUnknownPeople(t *testing.T) {
	const step = 400 * time.Millisecond // to which a refusal's time is rounded up
	hs := hstest.Start(t, local)
	hs.User("alice")
	var pages []string
	for _, name := range []string{"alice", "nobody", "nobody@example.org", "@alice:elsewhere"} {
		b := newBrowser(t, hs.URL)
		b.get("/signin").form("/signin/password")
		began := time.Now()
		b.submit("/signin/password", "username", name, "password", "wrong").wants(403, "username or password is wrong")
		if took := time.Since(began); took < step || took > 20*step {
			t.Errorf("%s: refused after %v", name, took)
		}
		pages = append(pages, strings.ReplaceAll(b.page, `value="`+name+`"`, ""))
	}
	for _, p := range pages[1:] {
		if cut(p) != cut(pages[0]) {
			t.Errorf("the pages differ:\n%s\n%s", p, pages[0])
		}
	}
}

// cut takes the token of the form out of a page.
func cut(page string) string {
	at := strings.Index(page, `name="csrf"`)
	if at < 0 {
		return page
	}
	end := strings.Index(page[at:], ">")
	return page[:at] + page[at+end:]
}

// boss is an administrator.
func boss(t *testing.T, hs *hstest.Server) *hstest.Client {
	t.Helper()
	c := hs.User("boss")
	if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "boss", "admin", true); err != nil {
		t.Fatal(err)
	}
	return c
}
