package upstream_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// keycloak is a real identity provider.
type keycloak struct {
	t          *testing.T
	url, realm string
	token      string // of its administrator
}

func findKeycloak(t *testing.T) *keycloak {
	t.Helper()
	v := testkit.PartnerValues(t, "MOOTHALL_TEST_KEYCLOAK")
	k := &keycloak{t: t, url: v["url"], realm: v["url"] + "/realms/" + v["realm"]}
	resp, err := http.PostForm(k.url+"/realms/master/protocol/openid-connect/token", url.Values{
		"grant_type": {"password"}, "client_id": {"admin-cli"}, "username": {v["admin"]}, "password": {v["password"]},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || got.Token == "" {
		t.Fatalf("Keycloak's administrator: %s %v", resp.Status, err)
	}
	k.token = got.Token
	return k
}

// admin calls Keycloak's administration and returns the id of what was made, and the body.
func (k *keycloak) admin(method, path string, body any) (string, []byte) {
	k.t.Helper()
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			k.t.Fatal(err)
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, strings.Replace(k.realm, "/realms/", "/admin/realms/", 1)+path, rd)
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+k.token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		k.t.Fatalf("Keycloak: %s %s: %s %s %v", method, path, resp.Status, b, err)
	}
	at := resp.Header.Get("Location")
	return at[strings.LastIndexByte(at, '/')+1:], b
}

// user makes a user of Keycloak who is gone with the test.
func (k *keycloak) user(name string, more map[string]any) string {
	k.t.Helper()
	u := map[string]any{
		"username": name, "enabled": true, "email": name + "@corp.example", "emailVerified": true, "firstName": "Name", "lastName": name,
		"credentials": []any{map[string]any{"type": "password", "value": "secret-" + name, "temporary": false}}, "groups": []string{"/staff/engineering"},
	}
	for key, v := range more {
		u[key] = v
	}
	userID, _ := k.admin("POST", "/users", u)
	k.t.Cleanup(func() { k.admin("DELETE", "/users/"+userID, nil) })
	return userID
}

func unique(prefix string) string {
	var b [5]byte
	_, _ = rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}

// client registers a server with Keycloak, gone with the test.
func (k *keycloak) client(base string, change func(c map[string]any)) string {
	k.t.Helper()
	name := unique("moothall-")
	mapper := func(kind string, config map[string]string) map[string]any {
		for _, in := range []string{"id.token.claim", "access.token.claim", "userinfo.token.claim"} {
			config[in] = "true"
		}
		return map[string]any{"name": kind, "protocol": "openid-connect", "protocolMapper": kind, "config": config}
	}
	c := map[string]any{
		"clientId": name, "protocol": "openid-connect", "publicClient": false, "secret": "client-secret", "standardFlowEnabled": true,
		"redirectUris": []string{base + "/*"},
		"attributes": map[string]string{
			"pkce.code.challenge.method": "S256", "post.logout.redirect.uris": "+",
			"backchannel.logout.url": base + "/_moothall/upstream/kc/backchannel-logout", "backchannel.logout.session.required": "true",
		},
		"protocolMappers": []any{
			mapper("oidc-group-membership-mapper", map[string]string{"claim.name": "groups", "full.path": "true"}),
			mapper("oidc-amr-mapper", map[string]string{}),
		},
	}
	if change != nil {
		change(c)
	}
	clientID, _ := k.admin("POST", "/clients", c)
	k.t.Cleanup(func() { k.admin("DELETE", "/clients/"+clientID, nil) })
	return c["clientId"].(string)
}

// withKeycloak are the options of a server at which people sign in by Keycloak, and its address.
func (k *keycloak) server(change func(p *homeserver.SSOProvider)) (base string, option hstest.Option) {
	address := process.FreeAddress(k.t)
	base = "http://" + address
	p := homeserver.SSOProvider{
		ID: "kc", Name: "Company account", NameZH: "公司账号", Issuer: k.realm, ClientID: k.client(base, nil), ClientSecret: "client-secret",
		StepUpACRValues: []string{"mfa"},
	}
	if change != nil {
		change(&p)
	}
	return base, func(c *homeserver.Config) {
		c.Listen[0].Address, c.PublicURL = address, base
		c.SSO.Providers = append(c.SSO.Providers, p)
		c.SSO.RedirectsAllowed = []string{"http://app.example/"}
	}
}

// browser is a browser without scripts.
type browser struct {
	t *testing.T
	c *http.Client
}

// openJar keeps cookies that are Secure for http too, as browsers do for the machine itself.
type openJar struct{ *cookiejar.Jar }

func (j openJar) SetCookies(u *url.URL, cookies []*http.Cookie) {
	for _, c := range cookies {
		c.Secure = false
	}
	j.Jar.SetCookies(u, cookies)
}

func newBrowser(t *testing.T) *browser {
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &browser{t, &http.Client{Jar: openJar{jar}, Timeout: 30 * time.Second}}
}

// view is a page that a browser shows.
type view struct {
	at     *url.URL
	status int
	body   string
	forms  []form
}

type form struct {
	id, action string
	post       bool
	values     url.Values
}

func (b *browser) read(resp *http.Response, err error) *view {
	b.t.Helper()
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	p := &view{at: resp.Request.URL, status: resp.StatusCode, body: string(body)}
	root, err := html.Parse(bytes.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	attr := func(n *html.Node, name string) string {
		for _, a := range n.Attr {
			if a.Key == name {
				return a.Val
			}
		}
		return ""
	}
	for n := range root.Descendants() {
		switch {
		case n.Type != html.ElementNode:
		case n.Data == "form":
			f := form{id: attr(n, "id"), action: attr(n, "action"), post: strings.EqualFold(attr(n, "method"), "post"), values: url.Values{}}
			for in := range n.Descendants() {
				if in.Type == html.ElementNode && in.Data == "input" && attr(in, "name") != "" {
					f.values.Set(attr(in, "name"), attr(in, "value"))
				}
			}
			p.forms = append(p.forms, f)
		}
	}
	return p
}

func (b *browser) get(target string) *view {
	b.t.Helper()
	return b.read(b.c.Get(target))
}

// submit sends the n-th form of a page with these values.
func (b *browser) submit(p *view, n int, pairs ...string) *view {
	b.t.Helper()
	if n >= len(p.forms) {
		b.t.Fatalf("the page %s has no form: %d %.1500s", p.at, p.status, p.body)
	}
	f := p.forms[n]
	u, err := p.at.Parse(f.action)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		f.values.Set(pairs[i], pairs[i+1])
	}
	return b.read(b.c.PostForm(u.String(), f.values))
}

// totp is the one-time code of now. Spec: RFC 6238.
func totp(secret string, at time.Time) string {
	m := hmac.New(sha1.New, []byte(secret))
	_ = binary.Write(m, binary.BigEndian, uint64(at.Unix()/30))
	sum := m.Sum(nil)
	n := binary.BigEndian.Uint32(sum[sum[19]&15:]) & 0x7fffffff
	return fmt.Sprintf("%06d", n%1_000_000)
}

// legacySignIn signs a person in by m.login.sso and returns the client.
func (b *browser) legacySignIn(hs *hstest.Server, name, password string) (*hstest.Client, *view) {
	b.t.Helper()
	p := b.get(hs.URL + "/_matrix/client/v3/login/sso/redirect/kc?redirectUrl=" + url.QueryEscape("http://app.example/done"))
	if len(p.forms) > 0 && p.forms[0].id == "kc-form-login" {
		p = b.submit(p, 0, "username", name, "password", password)
	}
	_, rest, ok := strings.Cut(html.UnescapeString(p.body), "loginToken=")
	if !ok {
		return nil, p
	}
	token := rest[:strings.IndexAny(rest, "\"'& ")]
	c := hs.Anonymous()
	got := c.Must(b.t, "POST", fmt.Sprintf(`{"type":"m.login.token","token":%q}`, token), "/v3/login")
	c.Token = got["access_token"].(string)
	return c, p
}

// TestKeycloak signs people in at a real Keycloak.
func TestKeycloak(t *testing.T) {
	t.Run("sqlite", func(t *testing.T) { testKeycloak(t) })
	t.Run("postgres", func(t *testing.T) { testKeycloak(t, hstest.Postgres(storetest.Postgres(t))) })
}

func testKeycloak(t *testing.T, database ...hstest.Option) {
	k := findKeycloak(t)
	name := unique("lin")
	userID := k.user(name, nil)
	base, option := k.server(nil)
	hs := hstest.Start(t, append(database, option)...)
	if hs.URL != base {
		t.Fatalf("the server is at %s, not %s", hs.URL, base)
	}
	flows := fmt.Sprint(hs.Anonymous().Must(t, "GET", "", "/v3/login"))
	if !strings.Contains(flows, "Company account") {
		t.Errorf("the provider is not among %s", flows)
	}
	c, p := newBrowser(t).legacySignIn(hs, name, "secret-"+name)
	if c == nil {
		t.Fatalf("not signed in: %s %d %.2000s", p.at, p.status, p.body)
	}
	if who := c.Must(t, "GET", "", "/v3/account/whoami")["user_id"]; who != "@"+name+":test" {
		t.Errorf("signed in as %v", who)
	}
	if got := c.Must(t, "GET", "", "/v3/profile/%s/displayname", "@"+name+":test")["displayname"]; got != "Name "+name {
		t.Errorf("display name %v", got)
	}
	if mails := fmt.Sprint(c.Must(t, "GET", "", "/v3/account/3pid")); !strings.Contains(mails, name+"@corp.example") {
		t.Errorf("addresses: %s", mails)
	}

	t.Run("wrong password", func(t *testing.T) {
		if c, p := newBrowser(t).legacySignIn(hs, name, "wrong"); c != nil || !strings.HasPrefix(p.at.String(), k.realm) {
			t.Errorf("at %s", p.at)
		}
	})
	t.Run("back-channel logout", func(t *testing.T) {
		// Two browsers, two sessions at Keycloak; the person is signed out of all of them there.
		second, _ := newBrowser(t).legacySignIn(hs, name, "secret-"+name)
		if second == nil {
			t.Fatal("the second browser is not signed in")
		}
		type end struct {
			r  hstest.Response
			at time.Time
		}
		ends := make(chan end, 2)
		for _, who := range []*hstest.Client{c, second} {
			since := who.Sync("set_presence=offline")["next_batch"].(string)
			go func() {
				for {
					r := who.Do(t, "GET", "", "/v3/sync?set_presence=offline&timeout=30000&since="+url.QueryEscape(since))
					if r.Status != 200 {
						ends <- end{r, time.Now()}
						return
					}
					var next struct {
						Batch string `json:"next_batch"`
					}
					r.JSON(t, &next)
					since = next.Batch
				}
			}()
		}
		time.Sleep(300 * time.Millisecond) // until the polls wait
		out := time.Now()
		k.admin("POST", "/users/"+userID+"/logout", nil)
		for range 2 {
			e := <-ends
			took := e.at.Sub(out)
			if e.r.Status != 401 || e.r.Errcode != "M_UNKNOWN_TOKEN" || !strings.Contains(string(e.r.Body), `"soft_logout":true`) || took < 0 {
				t.Errorf("the long poll ended with %d %s", e.r.Status, e.r.Body)
			}
			if took > 2*time.Second {
				t.Errorf("it took %v", took)
			}
			t.Logf("401 in /sync %v after the sign-out at Keycloak", took)
		}
	})
	t.Run("disabled there", func(t *testing.T) {
		k.admin("PUT", "/users/"+userID, map[string]any{"enabled": false})
		if c, p := newBrowser(t).legacySignIn(hs, name, "secret-"+name); c != nil || !strings.HasPrefix(p.at.String(), k.realm) {
			t.Errorf("signed in: %v, at %s", c != nil, p.at)
		}
	})
}

// TestKeycloakSecondFactor: a second factor at Keycloak is seen, and asked for where it is owed.
func TestKeycloakSecondFactor(t *testing.T) {
	k := findKeycloak(t)
	base, option := k.server(func(p *homeserver.SSOProvider) { p.ACRValues = []string{"mfa"} })
	hstest.Start(t, option)
	b := newBrowser(t)
	p := b.get(base + "/signin/upstream/kc")
	p = b.submit(p, 0, "username", "carol", "password", "carol-pw")
	if len(p.forms) == 0 || p.forms[0].id != "kc-otp-login-form" {
		t.Fatalf("no second factor was asked for: %s %.1500s", p.at, p.body)
	}
	p = b.submit(p, 0, "otp", totp("carolsecretcarolsecr", time.Now()))
	if p.at.String() != base+"/account" || p.status != 200 || !strings.Contains(p.body, "@carol:test") {
		t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
	}
}

// TestKeycloakStepUp: a policy of this server asks for a second factor, and Keycloak is asked for it; who has signed in there
// with a password alone proves the second factor only.
func TestKeycloakStepUp(t *testing.T) {
	k := findKeycloak(t)
	base, option := k.server(nil)
	hstest.Start(t, option, func(c *homeserver.Config) {
		c.SSO.Policies = []homeserver.Policy{{Name: "everybody", Require: []string{"any"}}}
	})
	b := newBrowser(t)
	p := b.get(base + "/signin/upstream/kc")
	p = b.submit(p, 0, "username", "carol", "password", "carol-pw")
	if len(p.forms) == 0 || p.forms[0].id != "kc-otp-login-form" {
		t.Fatalf("Keycloak was not asked for a second factor: %s %.1500s", p.at, p.body)
	}
	p = b.submit(p, 0, "otp", totp("carolsecretcarolsecr", time.Now()))
	if p.at.String() != base+"/account" || p.status != 200 || !strings.Contains(p.body, "@carol:test") {
		t.Fatalf("ended at %s: %d %.1500s", p.at, p.status, p.body)
	}
}

// TestKeycloakMisuse: callbacks that nobody asked for.
func TestKeycloakMisuse(t *testing.T) {
	k := findKeycloak(t)
	base, option := k.server(nil)
	hstest.Start(t, option)
	b := newBrowser(t)
	stop := func(req *http.Request, _ []*http.Request) error {
		if strings.HasPrefix(req.URL.String(), base+"/_moothall/signin/callback/") {
			return http.ErrUseLastResponse
		}
		return nil
	}
	// The browser signs in at Keycloak, but its callback is taken away by another one.
	p := b.get(base + "/signin/upstream/kc")
	b.c.CheckRedirect = stop
	f := p.forms[0]
	f.values.Set("username", "alice")
	f.values.Set("password", "alice-pw")
	resp, err := b.c.PostForm(f.action, f.values)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	target := resp.Header.Get("Location")
	if !strings.HasPrefix(target, base+"/_moothall/signin/callback/kc?") {
		t.Fatalf("sent to %s", target)
	}
	thief := newBrowser(t)
	if p := thief.get(target); p.status != 400 || strings.Contains(p.body, "@alice:test") {
		t.Errorf("another browser: %d at %s", p.status, p.at)
	}
	thief.get(base + "/signin/upstream/kc") // with an attempt of its own
	if p := thief.get(target); p.status != 400 || strings.Contains(p.body, "@alice:test") {
		t.Errorf("another browser's attempt: %d at %s", p.status, p.at)
	}
	b.c.CheckRedirect = nil
	if p := b.get(target); p.status != 200 || !strings.Contains(p.body, "@alice:test") {
		t.Errorf("the right browser: %d at %s %.500s", p.status, p.at, p.body)
	}
	if p := b.get(target); p.status != 400 {
		t.Errorf("replayed: %d at %s", p.status, p.at)
	}
	for _, evil := range []string{"//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"} {
		r, err := http.NewRequest("GET", base+"/signin/upstream/kc?return="+url.QueryEscape(evil)+"&redirectUrl="+url.QueryEscape(evil), nil)
		if err != nil {
			t.Fatal(err)
		}
		c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if at := resp.Header.Get("Location"); !strings.HasPrefix(at, k.realm+"/") || strings.Contains(at, "evil") {
			t.Errorf("%s: sent to %s", evil, at)
		}
	}
}

func decode(r io.Reader, v any) error { return json.NewDecoder(r).Decode(v) }
