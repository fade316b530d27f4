package upstream_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/sso/upstream"
)

// dialect is a server that speaks as a provider documents it.
type dialect struct {
	*httptest.Server
	t      *testing.T
	tokens int    // application tokens given
	code   string // that is good
	failed string // errcode that the next answers have
}

func (d *dialect) want(r *http.Request, pairs ...string) {
	d.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if got := r.URL.Query().Get(pairs[i]); got != pairs[i+1] {
			d.t.Errorf("%s: %s is %q, want %q", r.URL.Path, pairs[i], got, pairs[i+1])
		}
	}
}

func (d *dialect) body(r *http.Request) map[string]string {
	var m map[string]string
	if err := json.NewDecoder(r.Body).Decode(&m); err != nil || r.Header.Get("Content-Type") != "application/json" {
		d.t.Errorf("%s: the body: %v", r.URL.Path, err)
	}
	return m
}

func startDialect(t *testing.T, routes func(d *dialect, mux *http.ServeMux)) *dialect {
	d := &dialect{t: t, code: "good-code"}
	mux := http.NewServeMux()
	routes(d, mux)
	d.Server = httptest.NewServer(mux)
	t.Cleanup(d.Close)
	return d
}

// wecom speaks 企业微信: developer.work.weixin.qq.com/document/path/98151, 91023, 90196.
func wecom(d *dialect, mux *http.ServeMux) {
	mux.HandleFunc("GET /cgi-bin/gettoken", func(w http.ResponseWriter, r *http.Request) {
		d.want(r, "corpid", "corp1", "corpsecret", "s&cr=t")
		d.tokens++
		writeJSON(w, map[string]any{"errcode": 0, "errmsg": "ok", "access_token": "app-token", "expires_in": 7200})
	})
	mux.HandleFunc("GET /cgi-bin/auth/getuserinfo", func(w http.ResponseWriter, r *http.Request) {
		d.want(r, "access_token", "app-token")
		switch {
		case d.failed != "":
			writeJSON(w, map[string]any{"errcode": json.RawMessage(d.failed), "errmsg": "access_token expired"})
		case r.URL.Query().Get("code") == "visitor":
			writeJSON(w, map[string]any{"errcode": 0, "errmsg": "ok", "openid": "OPENID"})
		case r.URL.Query().Get("code") != d.code:
			writeJSON(w, map[string]any{"errcode": 40029, "errmsg": "invalid code"})
		default:
			writeJSON(w, map[string]any{"errcode": 0, "errmsg": "ok", "userid": "ZhangSan"})
		}
	})
	mux.HandleFunc("GET /cgi-bin/user/get", func(w http.ResponseWriter, r *http.Request) {
		d.want(r, "access_token", "app-token", "userid", "ZhangSan")
		writeJSON(w, map[string]any{
			"errcode": 0, "errmsg": "ok", "userid": "ZhangSan", "name": "张三", "department": []int{1, 12}, "biz_mail": "zhangsan@corp.example",
		})
	})
}

// dingtalk speaks 钉钉: open.dingtalk.com/document/orgapp/obtain-user-token and the pages beside it.
func dingtalk(d *dialect, mux *http.ServeMux) {
	mux.HandleFunc("POST /v1.0/oauth2/userAccessToken", func(w http.ResponseWriter, r *http.Request) {
		b := d.body(r)
		if b["clientId"] != "corp1" || b["clientSecret"] != "s&cr=t" || b["grantType"] != "authorization_code" || b["code"] != d.code {
			w.WriteHeader(http.StatusBadRequest)
			writeJSON(w, map[string]any{"code": "invalidParameter.authCode.notFound", "message": "不合法的临时授权码"})
			return
		}
		writeJSON(w, map[string]any{"accessToken": "user-token", "refreshToken": "r", "expireIn": 7200, "corpId": "c"})
	})
	mux.HandleFunc("GET /v1.0/contact/users/me", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("x-acs-dingtalk-access-token") != "user-token" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		writeJSON(w, map[string]any{"nick": "小三", "unionId": "UNION1", "openId": "O", "email": "z@private.example", "mobile": "1"})
	})
	mux.HandleFunc("POST /v1.0/oauth2/accessToken", func(w http.ResponseWriter, r *http.Request) {
		if b := d.body(r); b["appKey"] != "corp1" || b["appSecret"] != "s&cr=t" {
			d.t.Errorf("application token: %v", b)
		}
		d.tokens++
		writeJSON(w, map[string]any{"accessToken": "app-token", "expireIn": 7200})
	})
	mux.HandleFunc("POST /topapi/user/getbyunionid", func(w http.ResponseWriter, r *http.Request) {
		d.want(r, "access_token", "app-token")
		if d.failed != "" {
			writeJSON(w, map[string]any{"errcode": 60121, "errmsg": "找不到该用户"})
			return
		}
		if b := d.body(r); b["unionid"] != "UNION1" {
			d.t.Errorf("unionid: %v", b)
		}
		writeJSON(w, map[string]any{"errcode": 0, "errmsg": "ok", "result": map[string]any{"contact_type": 0, "userid": "ZhangSan"}})
	})
	mux.HandleFunc("POST /topapi/v2/user/get", func(w http.ResponseWriter, r *http.Request) {
		d.want(r, "access_token", "app-token")
		writeJSON(w, map[string]any{"errcode": 0, "result": map[string]any{
			"userid": "ZhangSan", "name": "张三", "org_email": "zhangsan@corp.example", "dept_id_list": []int{1, 12},
		}})
	})
}

// feishu speaks 飞书: open.feishu.cn/document/authentication-management/access-token/get-user-access-token.
func feishu(d *dialect, mux *http.ServeMux) {
	challenge := ""
	mux.HandleFunc("GET /challenge", func(_ http.ResponseWriter, r *http.Request) { challenge = r.URL.Query().Get("c") })
	mux.HandleFunc("POST /open-apis/authen/v2/oauth/token", func(w http.ResponseWriter, r *http.Request) {
		b := d.body(r)
		sum := sha256.Sum256([]byte(b["code_verifier"]))
		if b["client_id"] != "corp1" || b["client_secret"] != "s&cr=t" || b["grant_type"] != "authorization_code" || b["code"] != d.code ||
			b["redirect_uri"] != publicURL+"/_moothall/signin/callback/cn" || base64.RawURLEncoding.EncodeToString(sum[:]) != challenge {
			writeJSON(w, map[string]any{"code": 20003, "error": "invalid_grant", "error_description": "The authorization code has been used"})
			return
		}
		writeJSON(w, map[string]any{"code": 0, "access_token": "user-token", "expires_in": 7200, "token_type": "Bearer"})
	})
	mux.HandleFunc("GET /open-apis/authen/v1/user_info", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer user-token" {
			d.t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		writeJSON(w, map[string]any{"code": 0, "msg": "success", "data": map[string]any{
			"name": "张三", "union_id": "UNION1", "open_id": "O", "user_id": "ZhangSan", "enterprise_email": "zhangsan@corp.example", "tenant_key": "t",
		}})
	})
}

// TestPlainOAuth2 signs in at servers that speak the dialects of 企业微信, 钉钉 and 飞书.
func TestPlainOAuth2(t *testing.T) {
	for _, tc := range []struct {
		kind, page, codeParam, subject string
		routes                         func(*dialect, *http.ServeMux)
		query                          map[string]string
		groups                         int
		tokens                         int
	}{
		{upstream.TypeWeCom, "/wwlogin/sso/login", "code", "ZhangSan", wecom, map[string]string{"login_type": "CorpApp", "appid": "corp1", "agentid": "1000002"}, 2, 1},
		{upstream.TypeDingTalk, "/oauth2/auth", "authCode", "UNION1", dingtalk, map[string]string{"client_id": "corp1", "response_type": "code", "scope": "openid", "prompt": "consent"}, 2, 1},
		{upstream.TypeFeishu, "/open-apis/authen/v1/authorize", "code", "UNION1", feishu, map[string]string{"client_id": "corp1", "response_type": "code", "code_challenge_method": "S256"}, 0, 0},
	} {
		t.Run(tc.kind, func(t *testing.T) {
			d := startDialect(t, tc.routes)
			c := upstream.Config{ID: "cn", Type: tc.kind, ClientID: "corp1", ClientSecret: "s&cr=t", CreateAccounts: true, Timeout: 20 * time.Second}
			c.OAuth2.BaseURL, c.OAuth2.AgentID = d.URL, "1000002"
			h := open(t, store.Config{DataDir: t.TempDir()}, c)
			signIn := func(state string, answer url.Values) (upstream.Identity, error) {
				t.Helper()
				target, kept, err := h.Begin(t.Context(), "cn", upstream.BeginParams{State: state})
				if err != nil {
					t.Fatal(err)
				}
				u, err := url.Parse(target)
				if err != nil || !strings.HasPrefix(target, d.URL+tc.page+"?") {
					t.Fatalf("sent to %s", target)
				}
				q := u.Query()
				for name, want := range tc.query {
					if q.Get(name) != want {
						t.Errorf("%s is %q, want %q", name, q.Get(name), want)
					}
				}
				if q.Get("redirect_uri") != publicURL+"/_moothall/signin/callback/cn" || q.Get("state") != state || strings.Contains(target, "s%26cr") {
					t.Errorf("sent to %s", target)
				}
				if resp, err := http.Get(d.URL + "/challenge?c=" + q.Get("code_challenge")); err == nil {
					_ = resp.Body.Close()
				}
				answer.Set("state", state)
				return h.Finish(t.Context(), "cn", callback(answer), state, kept)
			}
			for _, state := range []string{"first", "second"} {
				got, err := signIn(state, url.Values{tc.codeParam: {d.code}})
				if err != nil {
					t.Fatal(err)
				}
				if got.Subject != tc.subject || got.Localpart != "zhangsan" || got.DisplayName != "张三" || got.Email != "zhangsan@corp.example" || !got.EmailVerified ||
					len(got.Groups) != tc.groups || tc.groups == 2 && got.Groups[1] != "12" {
					t.Errorf("got %+v", got)
				}
			}
			if d.tokens != tc.tokens {
				t.Errorf("%d application tokens were fetched, want %d", d.tokens, tc.tokens)
			}
			if _, err := signIn("bad code", url.Values{tc.codeParam: {"used"}}); upstream.ReasonOf(err) != upstream.ReasonInvalid {
				t.Errorf("used code: %v", err)
			}
			if _, err := signIn("no code", url.Values{}); upstream.ReasonOf(err) != upstream.ReasonDenied {
				t.Errorf("no code: %v", err)
			}
			switch tc.kind {
			case upstream.TypeWeCom:
				if _, err := signIn("visitor", url.Values{"code": {"visitor"}}); upstream.ReasonOf(err) != upstream.ReasonMissing {
					t.Errorf("somebody of no company: %v", err)
				}
				// A token that was withdrawn is fetched anew.
				before := d.tokens
				d.failed = "42001"
				if _, err := signIn("withdrawn", url.Values{"code": {d.code}}); err == nil {
					t.Error("a withdrawn token signed in")
				}
				d.failed = ""
				if _, err := signIn("again", url.Values{"code": {d.code}}); err != nil || d.tokens <= before {
					t.Errorf("after a withdrawn token: %v, %d tokens", err, d.tokens)
				}
			case upstream.TypeDingTalk:
				d.failed = "x"
				if _, err := signIn("stranger", url.Values{"authCode": {d.code}}); err == nil {
					t.Error("somebody of another company signed in")
				}
			}
			d.Close()
			if _, err := signIn("down", url.Values{tc.codeParam: {d.code}}); upstream.ReasonOf(err) != upstream.ReasonUnavailable || strings.Contains(err.Error(), "s%26") {
				t.Errorf("down: %v", err)
			}
		})
	}
}

// TestOwnOAuth2 describes a provider in the configuration, with a form and a list of paths.
func TestOwnOAuth2(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("code") != "a&b=c" || r.FormValue("secret") != "s" {
			t.Errorf("form %v", r.Form)
		}
		writeJSON(w, map[string]any{"status": map[string]any{"ok": true}, "token": "t\"k"})
	})
	mux.HandleFunc("POST /me", func(w http.ResponseWriter, r *http.Request) {
		var m map[string]string
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil || m["token"] != "t\"k" {
			t.Errorf("json %v %v", m, err)
		}
		writeJSON(w, map[string]any{"data": map[string]any{"id": 4711, "login": "bob", "teams": []map[string]string{{"name": "a"}, {"name": "b"}}}})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c := upstream.Config{ID: "own", Type: upstream.TypeOAuth2, ClientID: "c", ClientSecret: "s", AuthorizeURL: s.URL + "/go?fixed=1"}
	c.OAuth2 = upstream.OAuth2{
		Authorize: []upstream.Pair{{Name: "client", Value: "{{.client_id}}"}},
		Requests: []upstream.Request{
			{Name: "token", URL: s.URL + "/token", OK: "status.ok", OKValue: "true", Need: "token",
				Form: []upstream.Pair{{Name: "code", Value: "{{.code}}"}, {Name: "secret", Value: "{{.client_secret}}"}}},
			{Name: "me", URL: s.URL + "/me", JSON: []upstream.Pair{{Name: "token", Value: "{{.token.token}}"}}},
		},
	}
	c.Mapping = upstream.Mapping{Subject: "{{.me.data.id}}", Localpart: "{{.me.data.login}}", Groups: "me.data.teams.#.name"}
	h := open(t, store.Config{DataDir: t.TempDir()}, c)
	target, kept, err := h.Begin(t.Context(), "own", upstream.BeginParams{State: "s"})
	if err != nil || !strings.Contains(target, "fixed=1") || !strings.Contains(target, "client=c") {
		t.Fatalf("%s %v", target, err)
	}
	got, err := h.Finish(t.Context(), "own", callback(url.Values{"code": {"a&b=c"}, "state": {"s"}}), "s", kept)
	if err != nil || got.Subject != "4711" || got.Localpart != "bob" || strings.Join(got.Groups, " ") != "a b" {
		t.Errorf("got %+v %v", got, err)
	}
}
