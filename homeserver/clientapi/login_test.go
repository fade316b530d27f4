package clientapi_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/web"
)

const password = "correct horse"

// accountServer serves the account endpoints alone, over a store whose log is followed.
type accountServer struct {
	*account.Accounts
	url   string
	clock *atomic.Int64
	logs  *lockedLog
}

// lockedLog holds what was logged.
type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// options change what an accountServer is made of.
type options struct {
	config    account.Config
	limits    *web.Limiter
	elsewhere func(context.Context, id.UserID) (bool, error)
	sso       *clientapi.SSODeps
}

func serveAccounts(t *testing.T, cfg store.Config, change func(*options)) *accountServer {
	t.Helper()
	o := options{config: account.Config{
		Passwords:    account.PasswordConfig{Argon2: account.Argon2{Time: 1, MemoryKiB: 64, Threads: 1}},
		Registration: account.RegistrationConfig{Mode: account.RegistrationOpen, SharedSecret: "shared"},
		Sessions:     account.SessionConfig{LoginTokens: true},
	}}
	if change != nil {
		change(&o)
	}
	s := &accountServer{clock: new(atomic.Int64), logs: new(lockedLog)}
	s.clock.Store(1_700_000_000_000)
	st, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s.logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.Accounts = account.New(account.Deps{Store: st, ServerName: "example.org", Logger: log, Config: o.config, PasswordElsewhere: o.elsewhere,
		Clock: func() time.Time { return time.UnixMilli(s.clock.Load()) }})
	follows := make(chan struct{})
	var once atomic.Bool
	probe := store.Listener{Apply: func([]store.Entry) {
		if once.CompareAndSwap(false, true) {
			close(follows)
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Follow(ctx, []store.Listener{s.Listener(), probe}, nil) }()
	<-st.Following()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, st.Close()); err != nil {
			t.Error(err)
		}
	})
	s.user(t, "probe")
	for followed := false; !followed; {
		select {
		case <-follows:
			followed = true
		case <-time.After(5 * time.Millisecond):
			if err := s.SetAdmin(t.Context(), "@probe:example.org", false); err != nil {
				t.Fatal(err)
			}
		}
	}
	api := clientapi.New(clientapi.Deps{ServerName: "example.org", Store: st, Accounts: s.Accounts, Limits: o.limits, Logger: log, SSO: o.sso})
	mux, err := web.NewMux(web.Config{Authenticate: s.Authenticator, Limits: o.limits, Logger: log,
		OnPanic: func(p any) { t.Errorf("panic: %v", p) }}, api.Routes())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	return s
}

func (s *accountServer) user(t *testing.T, localpart string) {
	t.Helper()
	if _, err := s.CreateUser(t.Context(), account.NewUser{Localpart: localpart, Password: password}); err != nil {
		t.Fatal(err)
	}
}

// specification is what answers are checked against, nil where there is no copy of it.
var specification = sync.OnceValues(func() (*hstest.Spec, error) { return hstest.LoadSpec("") })

// answer is a response.
type answer struct {
	status int
	body   string
}

func (a answer) get(path string) gjson.Result { return gjson.Get(a.body, path) }
func (a answer) str(path string) string       { return a.get(path).String() }

// do sends a request; a token of "" sends none.
func (s *accountServer) do(t *testing.T, method, path, token, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := specification()
	if err != nil {
		t.Fatal(err)
	}
	if spec != nil {
		if err := spec.Check(method, path, resp.StatusCode, resp.Header, b); err != nil {
			t.Errorf("%s %s: %v", method, path, err)
		}
	}
	if resp.StatusCode >= 500 || !gjson.ValidBytes(b) || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		t.Errorf("%s %s: %d %s", method, path, resp.StatusCode, b)
	}
	return answer{resp.StatusCode, string(b)}
}

// expect is do with the status and errcode that must come; "" stands for none.
func (s *accountServer) expect(t *testing.T, method, path, token, body string, status int, errcode string) answer {
	t.Helper()
	got := s.do(t, method, path, token, body)
	if got.status != status || got.str("errcode") != errcode || (errcode != "" && got.str("error") == "") {
		t.Errorf("%s %s %.80s: got %d %s, want %d %q", method, path, body, got.status, got.body, status, errcode)
	}
	return got
}

const (
	v3    = "/_matrix/client/v3"
	v1    = "/_matrix/client/v1"
	login = v3 + "/login"
)

// login signs in and returns the access token.
func (s *accountServer) login(t *testing.T, localpart string, device id.DeviceID) string {
	t.Helper()
	got := s.expect(t, "POST", login, "", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"`+localpart+`"},"password":"`+password+`","device_id":"`+string(device)+`"}`, 200, "")
	if got.str("home_server") != "example.org" { // deprecated, and what tools name the server by
		t.Errorf("signed in at %q", got.str("home_server"))
	}
	return got.str("access_token")
}

func TestLogin(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		s.user(t, "gone")
		s.user(t, "locked")
		if err := errors.Join(s.Deactivate(t.Context(), "@gone:example.org", false), s.Lock(t.Context(), "@locked:example.org", true)); err != nil {
			t.Fatal(err)
		}
		as := func(name string) string {
			return `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"` + name + `"},"password":"` + password + `"}`
		}
		for _, tc := range []struct {
			name, body string
			status     int
			errcode    string
		}{
			{"localpart", as("alice"), 200, ""},
			{"capitals", as("ALICE"), 200, ""},
			{"full id", as("@alice:example.org"), 200, ""},
			{"legacy user", `{"type":"m.login.password","user":"alice","password":"correct horse"}`, 200, ""},
			{"legacy full user", `{"type":"m.login.password","user":"@alice:example.org","password":"correct horse"}`, 200, ""},
			{"device name", strings.Replace(as("alice"), `}`, `},"initial_device_display_name":"Phone"`, 1), 200, ""},
			{"unknown members", strings.Replace(as("alice"), `{`, `{"x":[1.5],`, 1), 200, ""},
			{"another server's user", as("@alice:example.com"), 403, "M_FORBIDDEN"},
			{"nobody", as("nobody"), 403, "M_FORBIDDEN"},
			{"NUL in the name", as(`a\u0000b`), 403, "M_FORBIDDEN"},
			{"wrong password", strings.Replace(as("alice"), password, "x", 1), 403, "M_FORBIDDEN"},
			{"empty password", strings.Replace(as("alice"), password, "", 1), 403, "M_FORBIDDEN"},
			{"deactivated", as("gone"), 403, "M_USER_DEACTIVATED"},
			{"locked", as("locked"), 401, "M_USER_LOCKED"},
			{"third-party identifier", `{"type":"m.login.password","identifier":{"type":"m.id.thirdparty","medium":"email","address":"a@b"},"password":"x"}`, 403, "M_FORBIDDEN"},
			{"phone", `{"type":"m.login.password","identifier":{"type":"m.id.phone","country":"CH","phone":"1"},"password":"x"}`, 403, "M_FORBIDDEN"},
			{"legacy third-party identifier", `{"type":"m.login.password","medium":"email","address":"a@b","password":"x"}`, 403, "M_FORBIDDEN"},
			{"unknown identifier", `{"type":"m.login.password","identifier":{"type":"x"},"password":"x"}`, 400, "M_UNKNOWN"},
			{"no identifier", `{"type":"m.login.password","password":"x"}`, 400, "M_MISSING_PARAM"},
			{"no identifier type", `{"type":"m.login.password","identifier":{"user":"alice"},"password":"x"}`, 400, "M_MISSING_PARAM"},
			{"no user", `{"type":"m.login.password","identifier":{"type":"m.id.user"},"password":"x"}`, 400, "M_MISSING_PARAM"},
			{"no password", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"}}`, 400, "M_MISSING_PARAM"},
			{"no type", `{}`, 400, "M_MISSING_PARAM"},
			{"unknown type", `{"type":"m.login.magic"}`, 400, "M_UNKNOWN"},
			{"no login token", `{"type":"m.login.token"}`, 400, "M_MISSING_PARAM"},
			{"wrong login token", `{"type":"m.login.token","token":"x"}`, 403, "M_FORBIDDEN"},
			{"type is a number", `{"type":1}`, 400, "M_BAD_JSON"},
			{"password is a number", strings.Replace(as("alice"), `"`+password+`"`, "7", 1), 400, "M_BAD_JSON"},
			{"identifier is a string", `{"type":"m.login.password","identifier":"alice","password":"x"}`, 400, "M_BAD_JSON"},
			{"refresh_token is a string", strings.Replace(as("alice"), `}`, `},"refresh_token":"yes"`, 1), 400, "M_BAD_JSON"},
			{"device id too long", strings.Replace(as("alice"), `}`, `},"device_id":"`+strings.Repeat("x", 300)+`"`, 1), 400, "M_INVALID_PARAM"},
			{"device id with NUL", strings.Replace(as("alice"), `}`, `},"device_id":"\u0000"`, 1), 400, "M_INVALID_PARAM"},
			{"duplicate member", strings.Replace(as("alice"), `{`, `{"type":"m.login.password",`, 1), 400, "M_BAD_JSON"},
			{"invalid UTF-8", strings.Replace(as("alice"), "alice", "al\xffice", 1), 400, "M_NOT_JSON"},
			{"not an object", `[]`, 400, "M_BAD_JSON"},
			{"broken", `{"type":`, 400, "M_NOT_JSON"},
			{"empty", ``, 400, "M_NOT_JSON"},
			{"too large", `{"type":"` + strings.Repeat("x", 1<<20) + `"}`, 413, "M_TOO_LARGE"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				got := s.expect(t, "POST", login, "", tc.body, tc.status, tc.errcode)
				if tc.status == 200 && (got.str("user_id") != "@alice:example.org" || got.str("device_id") == "" || got.get("refresh_token").Exists() || got.get("expires_in_ms").Exists()) {
					t.Errorf("answered %s", got.body)
				}
				if tc.errcode == "M_USER_LOCKED" && !got.get("soft_logout").Bool() {
					t.Errorf("answered %s", got.body)
				}
			})
		}
		if strings.Contains(s.logs.String(), password) || strings.Contains(s.logs.String(), "mht_") {
			t.Error("a secret was logged")
		}
		if !strings.Contains(s.logs.String(), "sign-in refused") {
			t.Error("refused sign-ins were not logged")
		}
		flows := s.expect(t, "GET", login, "", "", 200, "")
		if flows.str("flows.0.type") != "m.login.password" || flows.str("flows.1.type") != "m.login.token" || !flows.get("flows.1.get_login_token").Bool() {
			t.Errorf("flows: %s", flows.body)
		}
	})
}

func TestSessionLife(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		whoami := func(token string, status int, errcode string) answer {
			t.Helper()
			return s.expect(t, "GET", v3+"/account/whoami", token, "", status, errcode)
		}
		phone := s.login(t, "alice", "PHONE")
		who := whoami(phone, 200, "")
		if who.str("user_id") != "@alice:example.org" || who.str("device_id") != "PHONE" || who.get("is_guest").Raw != "false" {
			t.Errorf("whoami: %s", who.body)
		}
		whoami("", 401, "M_MISSING_TOKEN")
		if got := whoami("x", 401, "M_UNKNOWN_TOKEN"); got.get("soft_logout").Bool() {
			t.Errorf("whoami: %s", got.body)
		}
		again := s.login(t, "alice", "PHONE")
		whoami(phone, 401, "M_UNKNOWN_TOKEN")
		desk := s.login(t, "alice", "DESK")
		s.expect(t, "POST", v3+"/logout", again, "", 200, "")
		whoami(again, 401, "M_UNKNOWN_TOKEN")
		whoami(desk, 200, "")
		s.expect(t, "GET", v3+"/devices/PHONE", desk, "", 404, "M_NOT_FOUND")
		s.expect(t, "POST", v3+"/logout", again, "", 401, "M_UNKNOWN_TOKEN")

		// Refresh tokens.
		got := s.expect(t, "POST", login, "", `{"type":"m.login.password","user":"alice","password":"correct horse","refresh_token":true,"device_id":"TABLET"}`, 200, "")
		first, refresh := got.str("access_token"), got.str("refresh_token")
		if got.get("expires_in_ms").Int() != 300_000 || refresh == "" {
			t.Errorf("login: %s", got.body)
		}
		got = s.expect(t, "POST", v3+"/refresh", "", `{"refresh_token":"`+refresh+`"}`, 200, "")
		if got.get("expires_in_ms").Int() != 300_000 || got.str("refresh_token") == refresh {
			t.Errorf("refresh: %s", got.body)
		}
		whoami(first, 200, "")
		whoami(got.str("access_token"), 200, "")
		whoami(first, 401, "M_UNKNOWN_TOKEN")
		s.clock.Add(301_000)
		if gone := whoami(got.str("access_token"), 401, "M_UNKNOWN_TOKEN"); !gone.get("soft_logout").Bool() {
			t.Errorf("expired: %s", gone.body)
		}
		for body, code := range map[string]string{
			`{}`: "M_MISSING_PARAM", `{"refresh_token":1}`: "M_BAD_JSON", ``: "M_NOT_JSON",
		} {
			s.expect(t, "POST", v3+"/refresh", "", body, 400, code)
		}
		s.expect(t, "POST", v3+"/refresh", "", `{"refresh_token":"`+refresh+`"}`, 401, "M_UNKNOWN_TOKEN")

		s.expect(t, "POST", v3+"/logout/all", desk, "{}", 200, "")
		whoami(desk, 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "POST", v3+"/refresh", "", `{"refresh_token":"`+got.str("refresh_token")+`"}`, 401, "M_UNKNOWN_TOKEN")

		// A locked user can sign out and nothing else.
		locked := s.login(t, "alice", "LOCKED")
		if err := s.Lock(t.Context(), "@alice:example.org", true); err != nil {
			t.Fatal(err)
		}
		if got := whoami(locked, 401, "M_USER_LOCKED"); !got.get("soft_logout").Bool() {
			t.Errorf("locked: %s", got.body)
		}
		s.expect(t, "POST", v3+"/logout", locked, "", 200, "")
		whoami(locked, 401, "M_UNKNOWN_TOKEN")
	})
}

func TestLoginTokens(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		token := s.login(t, "alice", "PHONE")
		const path = v1 + "/login/get_token"
		s.expect(t, "POST", path, "", "{}", 401, "M_MISSING_TOKEN")
		session := s.expect(t, "POST", path, token, "{}", 401, "").str("session")
		got := s.expect(t, "POST", path, token, passwordAuth("alice", session), 200, "")
		if got.get("expires_in_ms").Int() != 120_000 {
			t.Errorf("login token: %s", got.body)
		}
		// Another token needs another proof.
		s.expect(t, "POST", path, token, `{"auth":{"session":"`+session+`"}}`, 401, "M_FORBIDDEN")
		body := `{"type":"m.login.token","token":"` + got.str("login_token") + `","device_id":"TABLET"}`
		if in := s.expect(t, "POST", login, "", body, 200, ""); in.str("user_id") != "@alice:example.org" || in.str("device_id") != "TABLET" {
			t.Errorf("signed in: %s", in.body)
		}
		s.expect(t, "POST", login, "", body, 403, "M_FORBIDDEN")
	})
	s := serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) { o.config.Sessions.LoginTokens = false })
	s.user(t, "alice")
	token := s.login(t, "alice", "PHONE")
	s.expect(t, "POST", v1+"/login/get_token", token, "{}", 404, "M_UNRECOGNIZED")
	s.expect(t, "POST", login, "", `{"type":"m.login.token","token":"x"}`, 400, "M_UNKNOWN")
	if got := s.expect(t, "GET", login, "", "", 200, ""); got.get("flows.#").Int() != 1 {
		t.Errorf("flows: %s", got.body)
	}
	if got := s.expect(t, "GET", v3+"/capabilities", token, "", 200, ""); got.get(`capabilities.m\.get_login_token.enabled`).Raw != "false" {
		t.Errorf("capabilities: %s", got.body)
	}
}

// TestLoginLimits tries passwords for one account from one address, and for many.
func TestLoginLimits(t *testing.T) {
	s := serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) {
		o.limits = web.NewLimiter(map[web.Rate]web.Bucket{web.RateLogin: {PerSecond: 0.001, Burst: 5}})
	})
	s.user(t, "alice")
	for _, name := range []string{"alice", "@alice:example.org", "ALICE", "alice", "alice"} {
		s.expect(t, "POST", login, "", `{"type":"m.login.password","user":"`+name+`","password":"x"}`, 403, "M_FORBIDDEN")
	}
	got := s.expect(t, "POST", login, "", `{"type":"m.login.password","user":"bob","password":"x"}`, 429, "M_LIMIT_EXCEEDED")
	if got.get("retry_after_ms").Int() <= 0 {
		t.Errorf("limited: %s", got.body)
	}

	// The account's bucket counts wherever requests come from: here the addresses' one is not drawn from.
	s = serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) {
		o.limits = web.NewLimiter(map[web.Rate]web.Bucket{web.RateLogin: {PerSecond: 0.001, Burst: 3}})
	})
	s.user(t, "alice")
	token := s.login(t, "alice", "PHONE")
	for range 2 {
		s.expect(t, "DELETE", v3+"/devices/X", token, strings.Replace(passwordAuth("alice", ""), password, "x", 1), 401, "M_FORBIDDEN")
	}
	s.expect(t, "DELETE", v3+"/devices/X", token, passwordAuth("alice", ""), 429, "M_LIMIT_EXCEEDED")
}

// passwordAuth is a body with the auth member of m.login.password.
func passwordAuth(localpart, session string) string {
	body := `{"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"` + localpart + `"},"password":"` + password + `"`
	if session != "" {
		body += `,"session":"` + session + `"`
	}
	return body + `}}`
}
