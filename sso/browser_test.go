package sso_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"html"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// local makes the server's public address its own, so that a browser can use its pages.
func local(c *homeserver.Config) { c.PublicURL = "http://127.0.0.1:0" }

// browser is a person with a browser without JavaScript: it keeps cookies, follows redirects on the server, and fills in forms.
type browser struct {
	t    *testing.T
	http *http.Client
	base string
	page string // body of the page that is shown
	at   *url.URL
	code int
	csp  string
	left string // address on another site that it was sent to
}

func newBrowser(t *testing.T, base string) *browser {
	t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &browser{t: t, base: base}
	b.http = &http.Client{Jar: jar, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if !strings.HasPrefix(r.URL.String(), b.base+"/") {
			b.left = r.URL.String()
			return http.ErrUseLastResponse
		}
		if len(via) > 12 {
			t.Fatalf("redirects without end: %v", r.URL)
		}
		return nil
	}}
	return b
}

func (b *browser) do(r *http.Request) *browser {
	b.t.Helper()
	b.left = ""
	resp, err := b.http.Do(r)
	if err != nil {
		b.t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	page := string(body)
	if i := strings.Index(page, "<style>"); i >= 0 { // which nobody wants to read in a failure
		page = page[:i] + page[max(i, strings.Index(page, "</style>")):]
	}
	b.page, b.code, b.at, b.csp = page, resp.StatusCode, resp.Request.URL, resp.Header.Get("Content-Security-Policy")
	return b
}

func (b *browser) get(path string) *browser {
	b.t.Helper()
	if strings.HasPrefix(path, "/") {
		path = b.base + path
	}
	r, err := http.NewRequest("GET", path, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	return b.do(r)
}

func (b *browser) post(path string, form url.Values, headers ...string) *browser {
	b.t.Helper()
	r, err := http.NewRequest("POST", b.base+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	return b.do(r)
}

var (
	formTag  = regexp.MustCompile(`(?s)<form method="post" action="([^"]*)"[^>]*>(.*?)</form>`)
	inputTag = regexp.MustCompile(`<input[^>]*>`)
	attr     = regexp.MustCompile(`(name|value|type)="([^"]*)"`)
)

// form reads the form of an action on the page, with what it holds already.
func (b *browser) form(action string) (string, url.Values) {
	b.t.Helper()
	for _, m := range formTag.FindAllStringSubmatch(b.page, -1) {
		at := html.UnescapeString(m[1])
		if !strings.HasPrefix(at, action) {
			continue
		}
		values := url.Values{}
		for _, input := range inputTag.FindAllString(m[2], -1) {
			a := map[string]string{}
			for _, x := range attr.FindAllStringSubmatch(input, -1) {
				a[x[1]] = html.UnescapeString(x[2])
			}
			if a["name"] != "" && a["type"] != "checkbox" {
				values.Set(a["name"], a["value"])
			}
		}
		return at, values
	}
	b.t.Fatalf("%s has no form for %s:\n%s", b.at, action, b.page)
	return "", nil
}

// submit fills in a form of the page and sends it.
func (b *browser) submit(action string, values ...string) *browser {
	b.t.Helper()
	at, form := b.form(action)
	for i := 0; i < len(values); i += 2 {
		form.Set(values[i], values[i+1])
	}
	return b.post(at, form)
}

// wants fails the test unless the page has a status and a text.
func (b *browser) wants(code int, text string) *browser {
	b.t.Helper()
	if b.code != code || !strings.Contains(b.page, text) {
		b.t.Fatalf("%s: %d, want %d with %q:\n%s", b.at, b.code, code, text, b.page)
	}
	return b
}

func (b *browser) signIn(user *hstest.Client) *browser {
	b.t.Helper()
	b.get("/signin?choose=1").wants(200, "Sign in")
	return b.submit("/signin/password", "username", user.UserID.Localpart(), "password", user.Password).wants(200, string(user.UserID))
}

// app is an OAuth client.
type app struct {
	t        *testing.T
	base     string
	id       string
	redirect string
	verifier string
	state    string
	device   string
}

func call(t *testing.T, method, target, kind, body string) (int, map[string]any) {
	t.Helper()
	r, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", kind)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatalf("%s %s: %d, no JSON: %v", method, target, resp.StatusCode, err)
	}
	return resp.StatusCode, out
}

const (
	webApp = `{"client_name":"Chat","client_name#zh":"聊天","client_uri":"https://chat.example/","redirect_uris":["https://chat.example/cb","https://app.chat.example/cb?x=1"],"grant_types":["authorization_code","refresh_token","urn:ietf:params:oauth:grant-type:device_code"],"response_types":["code"],"token_endpoint_auth_method":"none","application_type":"web"}`
	phone  = `{"client_name":"Phone","client_uri":"https://chat.example/","redirect_uris":["example.chat.phone:/cb","http://127.0.0.1/cb"],"application_type":"native"}`
)

func newApp(t *testing.T, base, metadata string) *app {
	t.Helper()
	status, out := call(t, "POST", base+"/oauth2/register", "application/json", metadata)
	if status != 201 {
		t.Fatalf("register: %d %v", status, out)
	}
	a := &app{t: t, base: base, id: out["client_id"].(string), verifier: strings.Repeat("abcDEF123-", 5), state: "st4te", device: "DEVICEONE1"}
	uris, _ := out["redirect_uris"].([]any)
	if len(uris) == 0 {
		t.Fatalf("register: %v", out)
	}
	a.redirect, _ = uris[0].(string)
	return a
}

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// request is the query of an authorization request, with changes.
func (a *app) request(changes ...string) string {
	q := url.Values{
		"response_type": {"code"}, "client_id": {a.id}, "redirect_uri": {a.redirect}, "state": {a.state}, "response_mode": {"query"},
		"scope":          {"urn:matrix:client:api:* urn:matrix:client:device:" + a.device},
		"code_challenge": {challenge(a.verifier)}, "code_challenge_method": {"S256"},
	}
	for i := 0; i < len(changes); i += 2 {
		if changes[i+1] == "-" {
			q.Del(changes[i])
		} else {
			q.Set(changes[i], changes[i+1])
		}
	}
	return "/oauth2/authorize?" + q.Encode()
}

// token sends a request to the token endpoint.
func (a *app) token(form url.Values) (int, map[string]any) {
	a.t.Helper()
	if !form.Has("client_id") {
		form.Set("client_id", a.id)
	}
	return call(a.t, "POST", a.base+"/oauth2/token", "application/x-www-form-urlencoded", form.Encode())
}

func (a *app) exchange(code string, changes ...string) (int, map[string]any) {
	a.t.Helper()
	form := url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {a.redirect}, "code_verifier": {a.verifier}}
	for i := 0; i < len(changes); i += 2 {
		form.Set(changes[i], changes[i+1])
	}
	return a.token(form)
}

func (a *app) refresh(token string) (int, map[string]any) {
	a.t.Helper()
	return a.token(url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}})
}

// code has a signed-in person agree, and returns the code that the app gets.
func (a *app) code(b *browser, changes ...string) string {
	a.t.Helper()
	b.get(a.request(changes...)).wants(200, a.device)
	b.submit("/consent", "answer", "allow")
	return answer(a.t, b).Get("code")
}

// answer is what the app was told at its redirect URI.
func answer(t *testing.T, b *browser) url.Values {
	t.Helper()
	u, err := url.Parse(b.left)
	if err != nil || b.left == "" {
		t.Fatalf("the browser was not sent back to the app, but to %s: %d\n%s", b.at, b.code, b.page)
	}
	if u.Fragment != "" {
		q, err := url.ParseQuery(u.EscapedFragment())
		if err != nil {
			t.Fatal(err)
		}
		return q
	}
	return u.Query()
}

// whoami asks the server whose an access token is.
func whoami(t *testing.T, base, token string) (int, string) {
	t.Helper()
	r, err := http.NewRequest("GET", base+"/_matrix/client/v3/account/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var out struct {
		UserID  string `json:"user_id"`
		Device  string `json:"device_id"`
		Errcode string `json:"errcode"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		t.Fatal(err)
	}
	if out.Errcode != "" {
		return resp.StatusCode, out.Errcode
	}
	return resp.StatusCode, out.UserID + " " + out.Device
}

func text(m map[string]any, key string) string {
	s, _ := m[key].(string)
	return s
}
