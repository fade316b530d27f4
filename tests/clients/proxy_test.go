package clients_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
)

// checker looks at every response that passes the proxy.
type checker struct {
	spec *hstest.Spec

	mu       sync.Mutex
	problems []string       // what is wrong, once each
	unknown  []string       // endpoints that the server does not have, once each
	seen     map[string]int // responses by operation id
}

// startProxy puts a proxy before a homeserver that checks every response against the specification, and wants no 5xx.
// What it finds fails the test at its end.
func startProxy(t *testing.T, upstream string) string {
	t.Helper()
	spec, err := hstest.LoadSpec("")
	if err != nil {
		t.Fatal(err)
	}
	if spec == nil {
		t.Log("responses are not checked: there is no copy of the specification (MATRIX_SPEC)")
	}
	c := &checker{spec: spec, seen: map[string]int{}}
	server := c.serve(t, upstream)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		c.report(t)
	})
	return server.URL
}

func (c *checker) serve(t *testing.T, upstream string) *httptest.Server {
	t.Helper()
	target, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	return httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(target); r.SetXForwarded() },
		ModifyResponse: c.check,
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil { // a client that went away is no fault of the server
				c.add(fmt.Errorf("%s %s: %w", r.Method, r.URL.Path, err))
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	})
}

func (c *checker) check(resp *http.Response) error {
	method, uri := resp.Request.Method, resp.Request.URL.RequestURI()
	var body []byte
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
		var err error
		if body, err = io.ReadAll(resp.Body); err != nil {
			return err
		}
		_ = resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	err := c.spec.Check(method, uri, resp.StatusCode, resp.Header, body)
	if resp.StatusCode >= 500 {
		err = errors.Join(err, fmt.Errorf("%s %s answers %d: %s", method, resp.Request.URL.Path, resp.StatusCode, body))
	}
	c.add(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	op, ok := c.spec.Find(method, uri)
	if ok {
		c.seen[op.OperationID]++
	}
	if bytes.Contains(body, []byte(`"M_UNRECOGNIZED"`)) {
		endpoint := method + " " + resp.Request.URL.Path
		if ok {
			endpoint = method + " " + op.Path
		}
		if !slices.Contains(c.unknown, endpoint) {
			c.unknown = append(c.unknown, endpoint)
		}
	}
	return nil
}

func (c *checker) add(err error) {
	if err == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.problems, err.Error()) {
		c.problems = append(c.problems, err.Error())
	}
}

func (c *checker) report(t *testing.T) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	total := 0
	for _, n := range c.seen {
		total += n
	}
	t.Logf("%d responses of %d operations were checked against the specification", total, len(c.seen))
	for _, endpoint := range c.unknown {
		t.Logf("the client asked in vain for %s", endpoint)
	}
	for _, p := range c.problems {
		t.Error(p)
	}
}

// TestChecker shows that the proxy sees what is wrong and passes on what is right.
func TestChecker(t *testing.T) {
	spec, err := hstest.LoadSpec("")
	if err != nil {
		t.Fatal(err)
	}
	answers := map[string]struct {
		status int
		body   string
	}{
		"/_matrix/client/v3/account/whoami":  {200, `{"user_id":"@a:b"}`},
		"/_matrix/client/v3/joined_rooms":    {200, `{"joined_rooms":7}`},
		"/_matrix/client/v3/capabilities":    {500, `{"errcode":"M_UNKNOWN","error":"oops"}`},
		"/_matrix/client/v3/voip/turnServer": {404, `{"errcode":"M_UNRECOGNIZED","error":"no such endpoint"}`},
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(answers[r.URL.Path].status)
		_, _ = io.WriteString(w, answers[r.URL.Path].body)
	}))
	defer upstream.Close()
	c := &checker{spec: spec, seen: map[string]int{}}
	proxy := c.serve(t, upstream.URL)
	defer proxy.Close()
	for path, want := range answers {
		resp, err := http.Get(proxy.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != want.status || string(body) != want.body {
			t.Errorf("%s arrives as %d %s, %v", path, resp.StatusCode, body, err)
		}
	}
	problems := strings.Join(c.problems, "\n")
	if !strings.Contains(problems, "capabilities answers 500") {
		t.Errorf("a 500 is not complained of: %s", problems)
	}
	if spec == nil {
		return // the rest needs the schemas
	}
	if !strings.Contains(problems, "joined_rooms answers 200") || strings.Contains(problems, "whoami") {
		t.Errorf("wrong complaints: %s", problems)
	}
	if len(c.seen) != len(answers) || !slices.Equal(c.unknown, []string{"GET /_matrix/client/v3/voip/turnServer"}) {
		t.Errorf("seen %v, unknown %q", c.seen, c.unknown)
	}
}
