package web

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// echo answers with the route it belongs to and the parameters named.
func echo(name string, params ...string) Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		out := map[string]string{"route": name}
		for _, p := range params {
			out[p] = PathParam(r, p)
		}
		return WriteJSON(w, out)
	}
}

func newServer(t *testing.T, cfg Config, tables ...[]Route) *httptest.Server {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	m, err := NewMux(cfg, tables...)
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(m)
	t.Cleanup(srv.Close)
	return srv
}

type answer struct {
	*http.Response
	body string
}

func (a answer) errcode() string { return gjson.Get(a.body, "errcode").String() }

func call(t *testing.T, srv *httptest.Server, method, path, body string, headers ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, srv.URL, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	// Opaque keeps the path on the wire as the test wrote it.
	req.URL.Opaque = "//" + req.URL.Host + path
	for i := 0; i < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp, string(b)}
}

func TestRouting(t *testing.T) {
	srv := newServer(t, Config{}, []Route{
		{Pattern: "GET /_matrix/client/versions", Handler: echo("versions")},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}", Handler: echo("state", "roomId", "eventType", "stateKey")},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/", Handler: echo("state slash", "roomId", "eventType")},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}", Handler: echo("state short", "roomId", "eventType")},
		{Pattern: "PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}", Handler: echo("put state", "roomId", "eventType")},
		{Pattern: "GET /_matrix/client/v3/profile/{userId}/displayname", Handler: echo("displayname", "userId")},
		{Pattern: "PUT /_matrix/client/v3/profile/{userId}/{keyName}", Handler: echo("field", "userId", "keyName")},
		{Pattern: "GET /_matrix/client/v3/pushrules/{$}", Handler: echo("rules")},
		{Pattern: "GET /_matrix/media/v3/download/{serverName}/{mediaId}", Handler: echo("media", "serverName", "mediaId")},
		{Pattern: "GET /console/{file...}", Handler: echo("console", "file")},
		{Pattern: "GET /", Handler: echo("root")},
	})
	for _, tc := range []struct {
		method, path string
		status       int
		want         string // a member "name=value" of the body
	}{
		{"GET", "/", 200, "route=root"},
		{"GET", "/_matrix/client/versions", 200, "route=versions"},
		{"HEAD", "/_matrix/client/versions", 200, ""},
		{"GET", "/_matrix/client/versions/", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix//client/versions", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "//_matrix/client/versions", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/../client/versions", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix%2Fclient/versions", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/%5Fmatrix/client/versions", 200, "route=versions"},
		{"POST", "/_matrix/client/versions", 405, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/nothing", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/m.room.name", 200, "roomId=!a:b"},
		{"GET", "/_matrix/client/v3/rooms/%21a%3Ab/state/m.room.name", 200, "roomId=!a:b"},
		{"GET", "/_matrix/client/v3/rooms/%23a%2Fb%3Ac/state/m.room.name", 200, "roomId=#a/b:c"},
		{"GET", "/_matrix/client/v3/rooms/%2525%2F/state/x", 200, "roomId=%25/"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/m%2Froom/%2F%2F", 200, "stateKey=//"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/a+b%20c%2Bd", 200, "stateKey=a+b c+d"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/%252F", 200, "stateKey=%2F"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/%2E%2E", 200, "stateKey=.."},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/@%E4%BC%9A:b", 200, "stateKey=@会:b"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/", 200, "route=state slash"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/y/z", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/rooms//state/x", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/%FF", 400, "errcode=M_INVALID_PARAM"},
		{"GET", "/_matrix/client/v3/rooms/!a:b/state/x/a%00", 400, "errcode=M_INVALID_PARAM"},
		{"PUT", "/_matrix/client/v3/rooms/!a:b/state/x", 200, "route=put state"},
		{"PUT", "/_matrix/client/v3/rooms/!a:b/state/x/", 405, "errcode=M_UNRECOGNIZED"},
		// A static segment that does not know the method leaves the request to the parameter.
		{"PUT", "/_matrix/client/v3/profile/@a:b/displayname", 200, "keyName=displayname"},
		{"GET", "/_matrix/client/v3/profile/@a:b/displayname", 200, "route=displayname"},
		{"DELETE", "/_matrix/client/v3/profile/@a:b/displayname", 405, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v3/pushrules/", 200, "route=rules"},
		{"GET", "/_matrix/client/v3/pushrules", 404, "errcode=M_UNRECOGNIZED"},
		{"GET", "/_matrix/media/v3/download/a.b:8448/x", 200, "serverName=a.b:8448"},
		{"GET", "/console/a/b%2Fc/d", 200, "file=a/b/c/d"},
		{"GET", "/console/", 200, "file="},
		{"GET", "/consol", 404, "errcode=M_UNRECOGNIZED"},
	} {
		t.Run(tc.method+" "+tc.path, func(t *testing.T) {
			got := call(t, srv, tc.method, tc.path, "")
			name, value, _ := strings.Cut(tc.want, "=")
			if got.StatusCode != tc.status || name != "" && gjson.Get(got.body, name).String() != value {
				t.Errorf("got %d %s, want %d %s", got.StatusCode, got.body, tc.status, tc.want)
			}
		})
	}
	if got := call(t, srv, "POST", "/_matrix/client/v3/profile/@a:b/displayname", ""); got.Header.Get("Allow") != "GET, PUT" {
		t.Errorf("Allow is %q", got.Header.Get("Allow"))
	}
}

// TestWriting: who asks is told of requests that may write, and of no other.
func TestWriting(t *testing.T) {
	told := 0
	srv := newServer(t, Config{Writing: func() { told++ }}, []Route{
		{Pattern: "GET /a", Handler: echo("read")}, {Pattern: "PUT /a", Handler: echo("write")}, {Pattern: "POST /a", Handler: echo("write")}})
	for _, c := range []struct {
		method, path string
		want         int
	}{{"GET", "/a", 0}, {"PUT", "/a", 1}, {"POST", "/a", 2}, {"PUT", "/b", 2}, {"DELETE", "/a", 2}} {
		if call(t, srv, c.method, c.path, "{}"); told != c.want {
			t.Errorf("%s %s: told of %d writes, want %d", c.method, c.path, told, c.want)
		}
	}
}

func TestNewMuxRefuses(t *testing.T) {
	h := echo("")
	for _, table := range [][]Route{
		{{Pattern: "GET /a", Handler: h}, {Pattern: "GET /a", Handler: h}},
		{{Pattern: "GET /a/{b}", Handler: h}, {Pattern: "GET /a/{c}", Handler: h}},
		{{Pattern: "GET /a/{b...}", Handler: h}, {Pattern: "GET /a/{c...}", Handler: h}},
		{{Pattern: "/a", Handler: h}},
		{{Pattern: "GET a", Handler: h}},
		{{Pattern: "GET /a//b", Handler: h}},
		{{Pattern: "GET /a/{}", Handler: h}},
		{{Pattern: "GET /a/x{b}", Handler: h}},
		{{Pattern: "GET /a/{b...}/c", Handler: h}},
		{{Pattern: "GET /a"}},
	} {
		if _, err := NewMux(Config{}, table); err == nil {
			t.Errorf("%q was taken", table[0].Pattern)
		}
	}
	if _, err := NewMux(Config{}, []Route{{Pattern: "GET /a/{b}", Handler: h}, {Pattern: "PUT /a/{c}", Handler: h}, {Pattern: "GET /a/b", Handler: h}}); err != nil {
		t.Error(err)
	}
}

func TestAuth(t *testing.T) {
	who := map[string]*Identity{
		"user":  {UserID: "@user:x", DeviceID: "D"},
		"guest": {UserID: "@guest:x", Guest: true},
		"admin": {UserID: "@admin:x", Admin: true},
		"as":    {UserID: "@bot:x", AppService: "bot"},
		"soft":  {UserID: "@soft:x", SoftLogout: true},
	}
	h := func(w http.ResponseWriter, r *http.Request) error {
		user := ""
		if i := Requester(r); i != nil {
			user = string(i.UserID)
		}
		return WriteJSON(w, map[string]string{"user": user})
	}
	auth := func(r *http.Request, token string) (*Identity, error) {
		if token == "boom" {
			return nil, errors.New("database away")
		}
		if i := who[token]; i != nil {
			return i, nil
		}
		return nil, mxerr.UnknownToken("no such token", false)
	}
	srv := newServer(t, Config{Authenticate: auth}, []Route{
		{Pattern: "GET /public", Auth: Public, Handler: h}, {Pattern: "GET /optional", Auth: Optional, Handler: h},
		{Pattern: "GET /user", Auth: User, Handler: h}, {Pattern: "GET /noguest", Auth: NoGuest, Handler: h},
		{Pattern: "GET /admin", Auth: Admin, Handler: h}, {Pattern: "GET /as", Auth: AppService, Handler: h},
	})
	for _, tc := range []struct {
		path, token string
		status      int
		want        string
	}{
		{"/public", "", 200, ""}, {"/public", "wrong", 200, ""}, {"/public", "user", 200, ""},
		{"/optional", "", 200, ""}, {"/optional", "user", 200, "@user:x"}, {"/optional", "wrong", 401, "M_UNKNOWN_TOKEN"},
		{"/user", "", 401, "M_MISSING_TOKEN"}, {"/user", "wrong", 401, "M_UNKNOWN_TOKEN"}, {"/user", "user", 200, "@user:x"},
		{"/user", "guest", 200, "@guest:x"}, {"/user", "soft", 401, "M_UNKNOWN_TOKEN"}, {"/user", "boom", 500, "M_UNKNOWN"},
		{"/noguest", "guest", 403, "M_GUEST_ACCESS_FORBIDDEN"}, {"/noguest", "user", 200, "@user:x"},
		{"/admin", "user", 403, "M_FORBIDDEN"}, {"/admin", "admin", 200, "@admin:x"}, {"/admin", "guest", 403, "M_GUEST_ACCESS_FORBIDDEN"},
		{"/as", "user", 403, "M_FORBIDDEN"}, {"/as", "as", 200, "@bot:x"},
	} {
		t.Run(tc.path+" "+tc.token, func(t *testing.T) {
			var headers []string
			if tc.token != "" {
				headers = []string{"Authorization", "Bearer " + tc.token}
			}
			got := call(t, srv, "GET", tc.path, "", headers...)
			said := got.errcode() + gjson.Get(got.body, "user").String()
			if got.StatusCode != tc.status || said != tc.want {
				t.Errorf("got %d %s, want %d %s", got.StatusCode, got.body, tc.status, tc.want)
			}
		})
	}
	if got := call(t, srv, "GET", "/user?x=1&access_token=user", ""); got.StatusCode != 200 {
		t.Errorf("a token in the query: %d %s", got.StatusCode, got.body)
	}
	if got := call(t, srv, "GET", "/user", "", "Authorization", "bearer  user "); got.StatusCode != 200 {
		t.Errorf("a lower-case scheme: %d %s", got.StatusCode, got.body)
	}
	if got := call(t, srv, "GET", "/user", "", "Authorization", "Basic user"); got.errcode() != "M_MISSING_TOKEN" {
		t.Errorf("another scheme: %d %s", got.StatusCode, got.body)
	}
	if got := call(t, srv, "GET", "/user", "", "Authorization", "Bearer soft"); !gjson.Get(got.body, "soft_logout").Bool() {
		t.Errorf("soft_logout is missing: %s", got.body)
	}
}

func TestErrors(t *testing.T) {
	var logs bytes.Buffer
	var panics []any
	fail := func(err error) Handler {
		return func(http.ResponseWriter, *http.Request) error { return err }
	}
	srv := newServer(t, Config{Logger: slog.New(slog.NewTextHandler(&logs, nil)), OnPanic: func(p any) { panics = append(panics, p) }}, []Route{
		{Pattern: "GET /_matrix/forbidden", Handler: fail(mxerr.Forbidden("no"))},
		{Pattern: "GET /_matrix/internal", Handler: fail(errors.New("secret detail"))},
		{Pattern: "GET /_matrix/limit", Handler: fail(mxerr.LimitExceeded(1500 * time.Millisecond))},
		{Pattern: "GET /_matrix/uia", Handler: fail(mxerr.New(401, "", "").With("flows", []int{}))},
		{Pattern: "GET /_matrix/panic", Handler: func(http.ResponseWriter, *http.Request) error { panic("ouch") }},
		{Pattern: "GET /_matrix/late", Handler: func(w http.ResponseWriter, r *http.Request) error {
			if err := WriteJSON(w, struct{}{}); err != nil {
				return err
			}
			return mxerr.Forbidden("too late")
		}},
	})
	if got := call(t, srv, "GET", "/_matrix/forbidden", ""); got.StatusCode != 403 || got.body != `{"errcode":"M_FORBIDDEN","error":"no"}` && got.body != `{"error":"no","errcode":"M_FORBIDDEN"}` {
		t.Errorf("forbidden: %d %s", got.StatusCode, got.body)
	}
	got := call(t, srv, "GET", "/_matrix/internal", "")
	if got.StatusCode != 500 || got.errcode() != "M_UNKNOWN" || strings.Contains(got.body, "secret") || !strings.Contains(logs.String(), "secret detail") {
		t.Errorf("internal: %d %s; log %s", got.StatusCode, got.body, logs.String())
	}
	if id := got.Header.Get("X-Request-Id"); id == "" || !strings.Contains(logs.String(), id) {
		t.Errorf("request id %q is not in the log", id)
	}
	got = call(t, srv, "GET", "/_matrix/limit", "")
	if got.StatusCode != 429 || got.Header.Get("Retry-After") != "2" || gjson.Get(got.body, "retry_after_ms").Int() != 1500 {
		t.Errorf("limit: %d %v %s", got.StatusCode, got.Header, got.body)
	}
	if got := call(t, srv, "GET", "/_matrix/uia", ""); got.StatusCode != 401 || got.body != `{"flows":[]}` {
		t.Errorf("uia: %d %s", got.StatusCode, got.body)
	}
	if got := call(t, srv, "GET", "/_matrix/panic", ""); got.StatusCode != 500 || got.errcode() != "M_UNKNOWN" || len(panics) != 1 {
		t.Errorf("panic: %d %s, told %v", got.StatusCode, got.body, panics)
	}
	if got := call(t, srv, "GET", "/_matrix/late", ""); got.StatusCode != 200 || got.body != "{}" {
		t.Errorf("late error: %d %s", got.StatusCode, got.body)
	}
}

func TestCORS(t *testing.T) {
	srv := newServer(t, Config{}, []Route{
		{Pattern: "GET /_matrix/client/versions", Handler: echo("v")},
		{Pattern: "GET /_matrix/client/v3/account/whoami", Auth: User, Handler: echo("w")},
		{Pattern: "GET /.well-known/matrix/client", Handler: echo("c")},
		{Pattern: "GET /", Handler: echo("root")},
	})
	for _, tc := range []struct {
		method, path string
		status       int
		cors         bool
	}{
		{"GET", "/_matrix/client/versions", 200, true},
		{"OPTIONS", "/_matrix/client/versions", 204, true},
		{"OPTIONS", "/_matrix/client/v3/account/whoami", 204, true},
		{"OPTIONS", "/_matrix/client/v3/unknown", 204, true},
		{"GET", "/_matrix/client/v3/account/whoami", 401, true},
		{"GET", "/_matrix/client/v3/unknown", 404, true},
		{"GET", "/.well-known/matrix/client", 200, true},
		{"GET", "/", 200, false},
		{"OPTIONS", "/", 405, false},
	} {
		got := call(t, srv, tc.method, tc.path, "")
		if got.StatusCode != tc.status || (got.Header.Get("Access-Control-Allow-Origin") == "*") != tc.cors {
			t.Errorf("%s %s: %d %v", tc.method, tc.path, got.StatusCode, got.Header)
		}
	}
}

func TestClientIP(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		peer    string
		forward []string
		want    string
	}{
		{"192.0.2.1:1", nil, "192.0.2.1"},
		{"192.0.2.1:1", []string{"1.1.1.1"}, "192.0.2.1"},
		{"10.0.0.1:1", nil, "10.0.0.1"},
		{"10.0.0.1:1", []string{"1.1.1.1"}, "1.1.1.1"},
		{"10.0.0.1:1", []string{"6.6.6.6, 1.1.1.1"}, "1.1.1.1"},
		{"10.0.0.1:1", []string{"6.6.6.6, 1.1.1.1, 10.2.2.2"}, "1.1.1.1"},
		{"10.0.0.1:1", []string{"6.6.6.6, 1.1.1.1", "10.2.2.2"}, "1.1.1.1"},
		{"10.0.0.1:1", []string{"10.9.9.9, 10.2.2.2"}, "10.9.9.9"},
		{"10.0.0.1:1", []string{"1.1.1.1, junk"}, "10.0.0.1"},
		{"10.0.0.1:1", []string{"1.1.1.1:4711"}, "1.1.1.1"},
		{"10.0.0.1:1", []string{"[2001:db8::1]:4711"}, "2001:db8::1"},
		{"[fd00::1]:1", []string{"2001:db8::1"}, "2001:db8::1"},
		{"[::ffff:10.0.0.1]:1", []string{"1.1.1.1"}, "1.1.1.1"},
		{"@", []string{"1.1.1.1"}, "invalid IP"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = tc.peer
		for _, f := range tc.forward {
			r.Header.Add("X-Forwarded-For", f)
		}
		if got := clientIP(r, trusted).String(); got != tc.want {
			t.Errorf("%s with %q: %s, want %s", tc.peer, tc.forward, got, tc.want)
		}
	}
}

func TestObserve(t *testing.T) {
	type seen struct {
		pattern string
		status  int
		bytes   int64
	}
	var got []seen
	m, err := NewMux(Config{Logger: quiet(), Observe: func(p string, s int, _ time.Duration, n int64) { got = append(got, seen{p, s, n}) }},
		[]Route{{Pattern: "GET /a/{b}", Handler: echo("x")}})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a/1", "/nothing"} {
		m.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", path, nil))
	}
	if len(got) != 2 || got[0] != (seen{"GET /a/{b}", 200, 13}) || got[1].pattern != "" || got[1].status != 404 {
		t.Errorf("observed %v", got)
	}
}

func TestReadFrom(t *testing.T) {
	payload := strings.Repeat("0123456789abcdef", copyChunk/16) + "tail"
	srv := newServer(t, Config{}, []Route{
		{Pattern: "GET /all", Handler: func(w http.ResponseWriter, r *http.Request) error {
			_, err := io.Copy(w, io.MultiReader(strings.NewReader(payload)))
			return err
		}},
		{Pattern: "GET /part", Handler: func(w http.ResponseWriter, r *http.Request) error {
			_, err := io.CopyN(w, io.MultiReader(strings.NewReader(payload)), copyChunk+2)
			return err
		}},
	})
	if got := call(t, srv, "GET", "/all", ""); got.body != payload {
		t.Errorf("got %d bytes", len(got.body))
	}
	if got := call(t, srv, "GET", "/part", ""); got.body != payload[:copyChunk+2] {
		t.Errorf("got %d bytes", len(got.body))
	}
}

func BenchmarkSendRoute(b *testing.B) {
	who := &Identity{UserID: "@alice:example.org"}
	m, err := NewMux(Config{Logger: quiet(), Limits: NewLimiter(map[Rate]Bucket{RateSend: {1e9, 1000}}),
		Authenticate: func(*http.Request, string) (*Identity, error) { return who, nil }}, []Route{
		{Pattern: "PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", Auth: User, Rate: RateSend, Handler: func(w http.ResponseWriter, r *http.Request) error {
			if _, err := ReadRawObject(r); err != nil {
				return err
			}
			return WriteJSON(w, struct {
				EventID string `json:"event_id"`
			}{"$abc"})
		}}})
	if err != nil {
		b.Fatal(err)
	}
	text := `{"msgtype":"m.text","body":"` + strings.Repeat("hello ", 20) + `"}`
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("PUT", "/_matrix/client/v3/rooms/%21abc%3Aexample.org/send/m.room.message/t1", strings.NewReader(text))
		r.Header.Set("Authorization", "Bearer abc")
		m.ServeHTTP(httptest.NewRecorder(), r)
	}
}
