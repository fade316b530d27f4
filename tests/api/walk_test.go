// Package api_test drives a whole server over HTTP: every operation of the specification with bad requests, and what
// the specification's text asks of rooms, media and keys.
package api_test

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// slow is the longest time that any bad request may take.
const slow = 10 * time.Second

// workers is how many operations are walked at once: requests wait for commits, which they share.
const workers = 8

// specification is the specification's OpenAPI files; a test that is made of them has nothing to do without.
func specification(t *testing.T) *hstest.Spec {
	t.Helper()
	spec, err := hstest.LoadSpec("")
	if err != nil {
		t.Fatal(err)
	}
	if spec == nil {
		t.Skip("no copy of the Matrix specification: set MATRIX_SPEC")
	}
	return spec
}

// served is what a server's mux has, as "METHOD /path" in the specification's words.
func served(hs *hstest.Server) map[string]bool {
	out := map[string]bool{}
	for _, rt := range hs.Instance.Routes() {
		out[strings.TrimSuffix(rt.Pattern, "{$}")] = true
	}
	return out
}

// request is one request to an operation.
type request struct {
	method, template string
	path             map[string]string // parameters, not escaped
	query            []string          // name=value, escaped
	body             []byte
	bodyType         string
	token            string
}

func (q request) url(base string) string {
	segments := strings.Split(q.template, "/")
	for i, s := range segments {
		if strings.HasPrefix(s, "{") {
			segments[i] = url.PathEscape(q.path[strings.Trim(s, "{}")])
		}
	}
	out := base + strings.Join(segments, "/")
	if len(q.query) > 0 {
		out += "?" + strings.Join(q.query, "&")
	}
	return out
}

// with returns a copy with another path parameter.
func (q request) with(param, value string) request {
	path := map[string]string{}
	for k, v := range q.path {
		path[k] = v
	}
	path[param] = value
	q.path = path
	return q
}

// asking returns a copy with these values of a query parameter instead of its own.
func (q request) asking(name string, escaped ...string) request {
	q.query = slices.DeleteFunc(slices.Clone(q.query), func(pair string) bool { return strings.HasPrefix(pair, name+"=") })
	for _, v := range escaped {
		q.query = append(q.query, name+"="+v)
	}
	return q
}

// sending returns a copy with another body.
func (q request) sending(body []byte) request {
	q.body = body
	return q
}

func (q request) send(t testing.TB, hs *hstest.Server) hstest.Response {
	t.Helper()
	req, err := http.NewRequest(q.method, q.url(hs.URL), bytes.NewReader(q.body))
	if err != nil {
		t.Fatal(err)
	}
	if q.bodyType != "" && len(q.body) > 0 {
		req.Header.Set("Content-Type", q.bodyType)
	}
	c := hs.Anonymous()
	c.Token = q.token
	start := time.Now()
	r := c.Send(t, req) // checks against the schema, and that there is no 5xx
	if time.Since(start) > slow {
		t.Errorf("%s %s took %v", q.method, req.URL.Path, time.Since(start))
	}
	return r
}

// bad is a generated request and what may be answered.
type bad struct {
	name string
	request
	statuses []int    // none: whatever is not a 5xx
	codes    []string // none: any errcode
}

func (b *bad) judge(r hstest.Response) string {
	if r.Header.Get("Access-Control-Allow-Origin") != "*" {
		return "without CORS headers"
	}
	if len(b.statuses) > 0 && !slices.Contains(b.statuses, r.Status) {
		return fmt.Sprintf("want status %v %v", b.statuses, b.codes)
	}
	if r.Status >= 400 && len(b.codes) > 0 && !slices.Contains(b.codes, r.Errcode) {
		return fmt.Sprintf("want errcode %v", b.codes)
	}
	return ""
}

// TestBadRequests walks every operation that the server has through bad requests, on both databases.
func TestBadRequests(t *testing.T) {
	spec := specification(t)
	mails, err := net.Listen("tcp", "127.0.0.1:0") // a mail server that never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mails.Close() })
	everything := func(c *homeserver.Config) {
		c.Sessions.LoginTokens, c.Media.URLPreviews = true, true
		c.Registration.SharedSecret = sharedSecret
		c.AppServices.Registrations = []string{registration(t)}
		c.Email = homeserver.Email{Server: mails.Addr().String(), TLS: "none", From: "Moothall <moothall@example.org>"}
	}
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		have := served(hs)
		var jobs []hstest.Operation
		for _, op := range spec.Operations() {
			if have[op.Method+" "+op.Path] {
				jobs = append(jobs, op)
			}
		}
		queue := make(chan int)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for i := range queue {
					op := jobs[i]
					t.Run(op.OperationID, func(t *testing.T) {
						w := walk{t: t, hs: hs, op: op, spec: spec.Request(op), name: fmt.Sprintf("w%d", i)}
						w.run()
					})
				}
			})
		}
		for i := range jobs {
			queue <- i
		}
		close(queue)
		wg.Wait()
		for key := range exceptions {
			if op, _, _ := strings.Cut(key, " "); !slices.ContainsFunc(jobs, func(o hstest.Operation) bool { return o.OperationID == op }) {
				t.Errorf("an exception for %s, which is not served", op)
			}
		}
	}, everything)
}

// walk is the walk through one operation.
type walk struct {
	t    *testing.T
	hs   *hstest.Server
	op   hstest.Operation
	spec hstest.Request
	name string // of users
	seed *seed
	n    int
}

func (w *walk) run() {
	if pages[w.op.OperationID] {
		return
	}
	s, ok := seeds[w.op.OperationID]
	if !ok {
		w.t.Fatal("no seed: say in seeds what a right request is")
	}
	w.seed = &s
	f := w.fixture(&s)
	right := w.right(&s, f)
	var may []bad // requests that may be granted
	for _, b := range w.generate(right, f) {
		if len(b.statuses) == 0 {
			may = append(may, b)
			continue
		}
		w.try(&b)
	}
	// Nothing so far may have changed anything, so the right request is still granted.
	w.try(&bad{name: "right", request: right, statuses: []int{max(s.status, 200)}})
	for _, b := range may {
		if s.once {
			f := w.fixture(&s)
			b.token = f.tokenOf(s.who)
			// Only the place of the deviation counts; the rest is made anew for the new users.
			b.path = w.rebuilt(b.path, right.path, w.right(&s, f).path)
		}
		w.try(&b)
	}
}

func (w *walk) rebuilt(path, old, fresh map[string]string) map[string]string {
	out := map[string]string{}
	for k, v := range path {
		if v == old[k] {
			v = fresh[k]
		}
		out[k] = v
	}
	return out
}

func (w *walk) try(b *bad) {
	if key, ok := exceptionFor(w.op.OperationID, b.name); ok && len(b.statuses) > 0 {
		b.statuses, b.codes = exceptions[key].statuses, exceptions[key].codes
		b.name += " (" + exceptions[key].reason + ")"
	}
	r := b.send(w.t, w.hs)
	if problem := b.judge(r); problem != "" {
		w.t.Errorf("%s: %s %.200s %.200s: got %d %.300s: %s", b.name, b.method, b.url(""), b.body, r.Status, r.Body, problem)
	}
}

// exceptionFor finds the exception for a case: for it alone, for its field or parameter, or for what its field is in.
func exceptionFor(operation, name string) (string, bool) {
	for {
		if _, ok := exceptions[operation+" "+name]; ok {
			return operation + " " + name, true
		}
		i := strings.LastIndexAny(name, ":.")
		if i < 0 {
			return "", false
		}
		name = name[:i]
	}
}

// elsewhere tells whether a path is also one of another pattern, which has the method: "/rooms/new" is one of "/rooms/{id}".
func elsewhere(methods map[string][]string, method, path string) bool {
	segments := strings.Split(path, "/")
	for pattern, have := range methods {
		if pattern == path || !slices.Contains(have, method) {
			continue
		}
		p := strings.Split(pattern, "/")
		rest := strings.HasSuffix(pattern, "...}")
		if len(p) > len(segments) || len(p) < len(segments) && !rest {
			continue
		}
		fits := true
		for i, s := range p {
			fits = fits && (s == segments[i] || strings.HasPrefix(s, "{"))
		}
		if fits {
			return true
		}
	}
	return false
}

// TestMethodsAndOrigins asks every path of the table with the methods that it does not have, and as a browser that asks
// before it sends.
func TestMethodsAndOrigins(t *testing.T) {
	hs := hstest.Start(t)
	methods := map[string][]string{}
	for key := range served(hs) {
		method, path, _ := strings.Cut(key, " ")
		methods[path] = append(methods[path], method)
	}
	send := func(method, path string) hstest.Response {
		req, err := http.NewRequest(method, hs.URL+strings.NewReplacer("{", "", "}", "").Replace(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		return hs.Anonymous().Send(t, req)
	}
	for path, have := range methods {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "WALK"} {
			if slices.Contains(have, method) || elsewhere(methods, method, path) {
				continue
			}
			r := send(method, path)
			if r.Status != http.StatusMethodNotAllowed || r.Errcode != "M_UNRECOGNIZED" || r.Header.Get("Allow") == "" {
				t.Errorf("%s %s: %d %s, Allow %q", method, path, r.Status, r.Body, r.Header.Get("Allow"))
			}
		}
		if !strings.HasPrefix(path, "/_matrix/") && !strings.HasPrefix(path, "/.well-known/") {
			continue
		}
		r := send(http.MethodOptions, path)
		allowed := r.Header.Get("Access-Control-Allow-Headers")
		if r.Status != http.StatusOK && r.Status != http.StatusNoContent || r.Header.Get("Access-Control-Allow-Origin") != "*" ||
			!strings.Contains(allowed, "Authorization") || !strings.Contains(allowed, "Content-Type") {
			t.Errorf("OPTIONS %s: %d %v", path, r.Status, r.Header)
		}
		for _, method := range have {
			if !slices.Contains(strings.Split(r.Header.Get("Access-Control-Allow-Methods"), ", "), method) {
				t.Errorf("OPTIONS %s does not allow %s", path, method)
			}
		}
	}
	for _, path := range []string{
		"/_matrix", "/_matrix/", "/_matrix/client", "/_matrix/client/", "/_matrix/client/v3", "/_matrix/client/v3/walker",
		"/_matrix/client/v9/sync", "/_matrix/client/r0/walker", "/_matrix/client/v3/sync/", "/_matrix/client/v3//sync",
		"/_matrix/client/v3/rooms", "/_matrix/client/v3/rooms/!a:b", "/_matrix/client/v3/rooms/!a:b/walker",
		"/_matrix/media/v3/walker", "/_matrix/key/v9/walker", "/_synapse/walker", "/.well-known/walker", "/walker", "/favicon.ico",
		"/_matrix/client/%2e%2e/v3/sync", "/_matrix/client/v3/%FF", "/_matrix/client/v3/%00",
	} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "WALK"} {
			if r := send(method, path); r.Status != http.StatusNotFound || r.Errcode != "M_UNRECOGNIZED" {
				t.Errorf("%s %s: %d %s", method, path, r.Status, r.Body)
			}
		}
	}
}
