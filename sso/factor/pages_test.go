package factor_test

import (
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

// site serves the pages of a fixture with a sign-in of the test's own.
type site struct {
	*fixture
	t   *testing.T
	url string

	mu     sync.Mutex
	signed factor.Visitor // on the account pages; User "": nobody
	trying factor.Visitor // the sign-in under way
	grace  bool
}

// openSite serves on localhost, where browsers offer passkeys without TLS.
func openSite(t *testing.T, conf factor.Config) *site {
	t.Helper()
	return openSiteOn(t, store.Config{DataDir: t.TempDir()}, conf)
}

func openSiteOn(t *testing.T, cfg store.Config, conf factor.Config) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, url: fmt.Sprintf("http://localhost:%d", l.Addr().(*net.TCPAddr).Port)}
	s.fixture = open(t, cfg, conf, nil)
	s.clock.ms.Store(time.Now().UnixMilli())
	kit, err := page.New(page.Config{ServerName: "example.org", PublicURL: s.url})
	if err != nil {
		t.Fatal(err)
	}
	d := s.Deps
	d.Kit, d.PublicURL = kit, s.url
	if s.Factors, err = factor.New(d); err != nil {
		t.Fatal(err)
	}
	mux, err := web.NewMux(web.Config{Logger: slog.New(slog.DiscardHandler), OnPanic: func(p any) { t.Errorf("panic: %v", p) }}, s.Pages(s), kit.Routes())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return s
}

// The methods of factor.Host.

func (s *site) Signed(w http.ResponseWriter, _ *http.Request, _ time.Duration) (factor.Visitor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed.User == "" {
		http.Error(w, "sign in first", http.StatusUnauthorized)
	}
	return s.signed, s.signed.User != ""
}

func (s *site) Raise(_ http.ResponseWriter, _ *http.Request, amr ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signed.Passed.AMR = append(s.signed.Passed.AMR, amr...)
	s.signed.ProvedAt = s.clock.now()
	return nil
}

func (s *site) Attempt(w http.ResponseWriter, r *http.Request) (factor.Visitor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.trying.User == "" {
		http.Error(w, "no sign-in is under way", http.StatusBadRequest)
	}
	v := s.trying
	v.Passed.Remembered = s.RememberedCookie(r, v.User)
	return v, v.User != ""
}

func (s *site) Passed(w http.ResponseWriter, r *http.Request, amr ...string) error {
	s.mu.Lock()
	s.trying.Passed.AMR = append(s.trying.Passed.AMR, amr...)
	s.grace = s.grace || len(amr) == 0
	v := s.trying
	v.Passed.Remembered = s.RememberedCookie(r, v.User)
	s.mu.Unlock()
	o, err := s.Owes(r.Context(), v.User, v.Passed)
	if err != nil {
		return err
	}
	if next := o.Next(); next != "" && !(s.grace && o.MayPass()) {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	w.Header().Set("Content-Type", "text/html")
	_, err = fmt.Fprintf(w, `<p id="in">signed in: %s by %s</p>`, v.User, strings.Join(v.Passed.AMR, " "))
	return err
}

func (s *site) PassedAs(w http.ResponseWriter, r *http.Request, user id.UserID, amr ...string) error {
	s.try(user, "passkey")
	return s.Passed(w, r, amr...)
}

// try begins a sign-in whose first step was passed.
func (s *site) try(user id.UserID, way string, amr ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grace = false
	s.trying = factor.Visitor{User: user, Passed: factor.Passed{Way: way, AMR: amr, IP: here.IP}}
}

func (s *site) sign(user id.UserID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signed = factor.Visitor{User: user, Passed: factor.Passed{Way: "password", AMR: []string{"pwd"}, IP: here.IP}}
}

// visitor is a browser without JavaScript.
type visitor struct {
	t      *testing.T
	url    string
	http   *http.Client
	lang   string
	path   string
	status int
	page   string
}

func (s *site) visitor() *visitor { return newVisitor(s.t, s.url) }

func newVisitor(t *testing.T, base string) *visitor {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &visitor{t: t, url: base, http: &http.Client{Jar: jar, Timeout: time.Minute}, lang: "en"}
}

func (v *visitor) do(method, path string, form url.Values) string {
	v.t.Helper()
	req, err := http.NewRequest(method, v.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		v.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept-Language", v.lang)
	resp, err := v.http.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		v.t.Fatal(err)
	}
	v.status, v.path = resp.StatusCode, resp.Request.URL.Path
	v.page = strings.ReplaceAll(styleForm.ReplaceAllString(string(b), ""), "&#43;", "+")
	if csp := resp.Header.Get("Content-Security-Policy"); v.status == 200 && strings.Contains(v.page, "<html") && (!strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe")) {
		v.t.Errorf("%s: policy %q", path, csp)
	}
	if i := strings.Index(v.page, "<script"); i >= 0 && !strings.HasPrefix(v.page[i:], `<script src="/_moothall/assets/`) {
		v.t.Errorf("%s has a script inside", path)
	}
	return v.page
}

func (v *visitor) get(path string) string { v.t.Helper(); return v.do("GET", path, nil) }

var (
	styleForm = regexp.MustCompile(`(?s)<style>.*</style>`)
	formForm  = regexp.MustCompile(`(?s)<form method="post" action="([^"]+)"[^>]*>(.*?)</form>`)
	inputForm = regexp.MustCompile(`<input [^>]*name="([^"]+)"[^>]*>`)
	valueForm = regexp.MustCompile(` value="([^"]*)"`)
)

// post fills the first form of the page that has all these fields, and sends it.
func (v *visitor) post(kv ...string) string {
	v.t.Helper()
	for _, f := range formForm.FindAllStringSubmatch(v.page, -1) {
		form := url.Values{}
		for _, in := range inputForm.FindAllStringSubmatch(f[2], -1) {
			value := ""
			if m := valueForm.FindStringSubmatch(in[0]); m != nil && !strings.Contains(in[0], "checkbox") {
				value = m[1]
			}
			form.Set(in[1], value)
		}
		fits := true
		for i := 0; i < len(kv); i += 2 {
			name, hidden := strings.CutPrefix(kv[i], "=")
			if hidden { // a form that has this value already
				fits = fits && form.Get(name) == kv[i+1]
				continue
			}
			fits = fits && form.Has(name)
			form.Set(name, kv[i+1])
		}
		if fits {
			return v.do("POST", f[1], form)
		}
	}
	v.t.Fatalf("%s has no form with %v:\n%s", v.path, kv, v.page)
	return ""
}

func (v *visitor) wants(status int, texts ...string) {
	v.t.Helper()
	if v.status != status {
		v.t.Fatalf("%s answers %d, want %d:\n%s", v.path, v.status, status, v.page)
	}
	for _, text := range texts {
		if !strings.Contains(v.page, text) {
			v.t.Fatalf("%s has no %q:\n%s", v.path, text, v.page)
		}
	}
}

var (
	secretForm = regexp.MustCompile(`<code>([A-Z2-7]{32})</code>`)
	appForm    = regexp.MustCompile(`<code>([a-z0-9-]{24})</code>`)
	removeForm = regexp.MustCompile(`remove=(\w+)`)
)

// TestAccountPages goes through the pages of an account.
func TestAccountPages(t *testing.T) {
	storetest.Each(t, testAccountPages)
}

func testAccountPages(t *testing.T, cfg store.Config) {
	s := openSiteOn(t, cfg, factor.Config{AppPasswords: true})
	v := s.visitor()
	v.get("/account/factors")
	v.wants(401)
	s.sign(alice)
	v.get("/account/factors")
	v.wants(200, "no second factor yet", "Add an authenticator app", "Add a phone number")

	v.get("/account/factors/add?kind=totp")
	v.post("name", "Work phone")
	v.wants(200, "data:image/png;base64,", "Work phone")
	secret := secretForm.FindStringSubmatch(v.page)[1]
	v.post("code", "000000")
	v.wants(403, "wrong", secret)
	v.post("code", s.code(t, secret, 0))
	v.wants(200, "Recovery codes")
	if n := len(regexp.MustCompile(`<code>[a-z0-9-]{19}</code>`).FindAllString(v.page, -1)); n != 10 {
		t.Errorf("%d recovery codes are shown", n)
	}
	v.get("/account/factors")
	v.wants(200, "Work phone", "10 recovery codes")

	// Another factor needs a recent proof of the first.
	s.clock.forward(11 * time.Minute)
	v.get("/account/factors/add?kind=sms")
	if v.wants(200, "confirm once more"); v.path != "/account/factors/prove" {
		t.Fatalf("it went to %s", v.path)
	}
	v.post("code", s.code(t, secret, 0))
	if v.wants(200, "Phone number"); v.path != "/account/factors/add" {
		t.Fatalf("it went to %s", v.path)
	}
	v.post("to", "123")
	v.wants(400, "No SMS can be sent", `value="123"`)
	v.post("to", "138 0013 8000", "name", "")
	v.wants(200, "+86•••••••8000")
	_, code := s.sms.last(t)
	v.post("code", code)
	v.wants(200, "Second factors", "+86•••••••8000")

	v.get("/account/factors?rename=" + s.first(t, alice))
	v.post("name", "<b>工作</b>")
	v.wants(200, "&lt;b&gt;工作")
	v.post("=action", "recovery")
	v.wants(200, "never shown again")
	v.get("/account/factors?remove=" + s.first(t, alice))
	s.clock.forward(11 * time.Minute)
	v.post("=action", "remove")
	if v.path != "/account/factors/prove" {
		t.Fatalf("a factor was removed without a recent proof: %s", v.path)
	}
	if list, _, _ := s.List(t.Context(), alice); len(list) != 2 {
		t.Fatalf("%d factors are left", len(list))
	}
	v.post("code", s.code(t, secret, 0))
	v.get("/account/factors?remove=" + s.first(t, alice))
	v.post("=action", "remove")
	if list, _, _ := s.List(t.Context(), alice); v.status != 200 || len(list) != 1 {
		t.Fatalf("%d: %d factors are left", v.status, len(list))
	}

	v.get("/account/app-passwords")
	v.post("name", "FluffyChat")
	v.wants(200, "never shown again")
	made := appForm.FindStringSubmatch(v.page)
	if made == nil {
		t.Fatal("no password is shown")
	}
	if ok, err := s.AppPassword(t.Context(), alice, made[1], here.IP); !ok || err != nil {
		t.Error("it does not work", err)
	}
	v.get("/account/app-passwords")
	v.post("=action", "revoke")
	if ok, _ := s.AppPassword(t.Context(), alice, made[1], here.IP); v.status != 200 || ok {
		t.Error("it works although it was revoked")
	}
}

// TestForgedForms shows that no form of these pages is taken from elsewhere.
func TestForgedForms(t *testing.T) {
	storetest.Each(t, testForgedForms)
}

func testForgedForms(t *testing.T, cfg store.Config) {
	s := openSiteOn(t, cfg, factor.Config{})
	s.sign(alice)
	s.try(alice, "password", "pwd")
	v := s.visitor()
	for _, path := range []string{"/signin/factor", "/signin/factor/enrol", "/signin/passkey", "/account/factors", "/account/factors/add", "/account/factors/prove", "/account/app-passwords", "/account/browsers"} {
		if v.do("POST", path, url.Values{"action": {"begin"}, "kind": {"totp"}, "csrf": {strings.Repeat("x", 32)}}); v.status != 403 || !strings.Contains(v.page, "not sent from its own page") {
			t.Errorf("%s answers %d", path, v.status)
		}
	}
	for _, to := range []string{"https://evil.example", "//evil.example", "/\\evil.example", "/account\\..", "javascript:alert(1)"} {
		s.totp(t, id.UserID("@u"+fmt.Sprint(len(to))+":test"))
		s.sign(id.UserID("@u" + fmt.Sprint(len(to)) + ":test"))
		if v.get("/account/factors/prove?" + url.Values{"to": {to}}.Encode()); strings.Contains(v.page, `value="`+to) {
			t.Errorf("the page would lead to %s", to)
		}
	}
}

// TestSignInPages signs in with codes, a recovery code, in a remembered browser and in a grace period.
func TestSignInPages(t *testing.T) {
	storetest.Each(t, testSignInPages)
}

func testSignInPages(t *testing.T, cfg store.Config) {
	rules := []factor.Rule{
		{Name: "late", Users: []string{"late"}, Require: []string{"any"}, GraceDays: 3},
		{Name: "all", Require: []string{"any"}, RememberDays: 14},
	}
	s := openSiteOn(t, cfg, factor.Config{Rules: rules})
	v := s.visitor()
	s.try(alice, "password", "pwd")
	v.get("/signin/factor")
	if v.wants(200, "Your organisation asks", "Add a passkey"); v.path != "/signin/factor/enrol" || strings.Contains(v.page, "Not now") {
		t.Fatalf("it went to %s", v.path)
	}
	v.do("GET", "/signin/factor/enrol?kind=totp", nil)
	v.post("name", "")
	secret := secretForm.FindStringSubmatch(v.page)[1]
	v.post("code", s.code(t, secret, 0))
	v.wants(200, "Recovery codes")
	recovery := regexp.MustCompile(`<code>([a-z0-9-]{19})</code>`).FindStringSubmatch(v.page)[1]
	old := v.page
	v.post("=action", "done")
	v.wants(200, "signed in: @alice:test by pwd otp")
	v.page = old
	s.try(alice, "password", "pwd")
	v.post("=action", "done")
	v.wants(403) // the ticket was used

	s.clock.forward(time.Minute)
	v.get("/signin/factor")
	v.wants(200, "for 14 days", "Use a recovery code")
	v.post("code", "000000")
	v.wants(403, "wrong")
	v.post("code", s.code(t, secret, 0), "remember", "1")
	v.wants(200, "signed in: @alice:test by pwd otp")
	s.try(alice, "password", "pwd")
	v.get("/signin/factor")
	v.wants(200, "signed in: @alice:test by pwd") // remembered
	other := s.visitor()
	other.get("/signin/factor")
	other.wants(200, "authenticator app")
	other.get("/signin/factor?kind=recovery")
	other.post("code", strings.ToUpper(recovery))
	other.wants(200, "signed in: @alice:test by pwd rec")

	// The cookie of one account does nothing for another, in the same browser too.
	s.totp(t, bob)
	s.try(bob, "password", "pwd")
	v.get("/signin/factor")
	v.wants(200, "authenticator app", "@bob:test")
	base, _ := url.Parse(s.url)
	cookies := v.http.Jar.Cookies(base)
	at := slices.IndexFunc(cookies, func(c *http.Cookie) bool { return strings.HasPrefix(c.Name, "mh_known_") })
	if at < 0 {
		t.Fatal("there is no cookie")
	}
	if list, err := s.Remembered(t.Context(), alice); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	s.sign(alice)
	v.get("/account/browsers")
	v.wants(200, "Go-http-client")
	v.post("=browser", regexp.MustCompile(`name="browser" value="(\w+)"`).FindStringSubmatch(v.page)[1])
	v.wants(200, "All browsers are asked")
	s.try(alice, "password", "pwd")
	v.get("/signin/factor")
	v.wants(200, "authenticator app") // revoked

	s.try("@late:test", "password", "pwd")
	v.get("/signin/factor/enrol")
	v.post("=action", "later")
	v.wants(200, "signed in: @late:test by pwd")
	s.clock.forward(4 * 24 * time.Hour)
	s.try("@late:test", "password", "pwd")
	v.do("POST", "/signin/factor/enrol", url.Values{"action": {"later"}, "csrf": {csrfOf(v)}})
	if strings.Contains(v.page, "signed in") || strings.Contains(v.page, "Not now") {
		t.Error("enrolment is put off for ever")
	}
}

func csrfOf(v *visitor) string {
	base, _ := url.Parse(v.url)
	for _, c := range v.http.Jar.Cookies(base) {
		if c.Name == "mh_csrf" {
			return c.Value
		}
	}
	return ""
}

// TestSMSPages shows that an SMS is sent when it is asked for, and not by looking at a page.
func TestSMSPages(t *testing.T) {
	storetest.Each(t, testSMSPages)
}

func testSMSPages(t *testing.T, cfg store.Config) {
	s := openSiteOn(t, cfg, factor.Config{})
	e, err := s.BeginEnrol(t.Context(), alice, factor.SMS, "Phone", "13800138000", here)
	if err != nil {
		t.Fatal(err)
	}
	_, code := s.sms.last(t)
	if _, err := s.Confirm(t.Context(), alice, factor.SMS, e.ID, "", url.Values{"challenge": {e.Challenge.ID}, "code": {code}}); err != nil {
		t.Fatal(err)
	}
	s.clock.forward(2 * time.Minute)
	before := s.sms.count()
	s.try(alice, "password", "pwd")
	v := s.visitor()
	v.lang = "zh-CN"
	v.get("/signin/factor")
	v.wants(200, "我们将向 +86•••••••8000 发送短信验证码")
	if s.sms.count() != before {
		t.Error("looking at the page sends an SMS")
	}
	v.post("=action", "send")
	v.wants(200, "5 分钟内有效")
	v.post("code", "000000x")
	v.wants(403, "验证码错误")
	_, code = s.sms.last(t)
	v.post("code", code)
	v.wants(200, "signed in: @alice:test by pwd sms")
}
