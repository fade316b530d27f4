package web

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Mux routes requests to handlers. It is immutable and safe for any number of goroutines.
type Mux struct {
	cfg     Config
	root    *node
	routes  []Route
	serial  *atomic.Uint64
	idStart string // random start of this process's request ids
}

// NewMux builds a Mux from tables. Two rows of the same method and path, and patterns that cannot be read, are errors.
func NewMux(cfg Config, tables ...[]Route) (*Mux, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	var start [4]byte
	rand.Read(start[:]) // never fails
	m := &Mux{cfg: cfg, root: &node{}, serial: new(atomic.Uint64), idStart: hex.EncodeToString(start[:]) + "-"}
	for _, table := range tables {
		for _, rt := range table {
			if err := m.root.add(rt); err != nil {
				return nil, err
			}
			m.routes = append(m.routes, rt)
		}
	}
	return m, nil
}

// Behind returns the same Mux for a listener that stands behind these proxies.
func (m *Mux) Behind(proxies []netip.Prefix) *Mux {
	c := *m
	c.cfg.TrustedProxies = proxies
	return &c
}

// Routes returns the rows the Mux was made of.
func (m *Mux) Routes() []Route { return m.routes }

// request is what a Mux knows of a request in flight: one allocation that serves as the request's context, its body
// and its response writer.
type request struct {
	context.Context
	response
	body     body
	identity *Identity
	ip       netip.Addr
	agent    string
	id       string
	m        *Mux
	pattern  string // of the route, "" for none
	start    time.Time
	parked   bool // the request goes on without net/http
}

type requestKey struct{}

// Value implements context.Context.
func (q *request) Value(key any) any {
	if key == (requestKey{}) {
		return q
	}
	return q.Context.Value(key)
}

func stateOf(r *http.Request) *request {
	q, _ := r.Context().Value(requestKey{}).(*request)
	return q
}

// Requester is who makes the request: never nil behind User, NoGuest, Admin and AppService, nil behind Public, perhaps
// nil behind Optional.
func Requester(r *http.Request) *Identity {
	if q := stateOf(r); q != nil {
		return q.identity
	}
	return nil
}

// RequestID identifies the request in logs; it is sent as X-Request-Id too.
func RequestID(r *http.Request) string {
	if q := stateOf(r); q != nil {
		return q.id
	}
	return ""
}

// PathParam returns a decoded parameter of the route's pattern.
func PathParam(r *http.Request, name string) string { return r.PathValue(name) }

// ServeHTTP implements http.Handler.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	q := &request{Context: r.Context(), ip: clientIP(r, m.cfg.TrustedProxies), agent: r.UserAgent(), m: m, start: start}
	q.id = m.idStart + strconv.FormatUint(m.serial.Add(1), 36)
	q.response.init(w, r)
	r = r.WithContext(q)
	if r.Body != nil && r.Body != http.NoBody {
		q.body = body{ReadCloser: r.Body, w: w}
		r.Body = &q.body
	}
	q.Header()["X-Request-Id"] = []string{q.id}

	found := match{method: r.Method}
	m.root.find(&found, r.URL)
	if found.route != nil {
		q.pattern = found.route.Pattern
	}
	m.serve(q, r, &found)
	if q.parked {
		return // it is answered, counted and logged elsewhere
	}
	if m.cfg.Observe != nil {
		m.cfg.Observe(q.pattern, q.statusCode(), time.Since(start), q.written)
	}
	if m.cfg.Logger.Enabled(q, slog.LevelDebug) {
		m.accessLog(q, r, q.pattern, time.Since(start))
	}
}

// accessLog writes one line; the query is left out, it may hold a token.
func (m *Mux) accessLog(q *request, r *http.Request, pattern string, d time.Duration) {
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs, slog.String("request_id", q.id), slog.String("method", r.Method), slog.String("path", r.URL.Path),
		slog.String("route", pattern), slog.Int("status", q.statusCode()), slog.Int64("bytes", q.written),
		slog.Duration("duration", d), slog.String("ip", q.ip.String()))
	if q.identity != nil {
		attrs = append(attrs, slog.String("user_id", string(q.identity.UserID)))
	}
	m.cfg.Logger.LogAttrs(q, slog.LevelDebug, "request", attrs...)
}

// serve runs the handler, turns its error into a response and survives its panic.
func (m *Mux) serve(q *request, r *http.Request, found *match) {
	defer func() {
		if p := recover(); p != nil {
			m.panicked(q, r, p)
		}
	}()
	if cors := found.route == nil && hasCORS(r.URL.Path) || found.route != nil && found.route.cors; cors {
		setCORS(q.Header())
		if r.Method == http.MethodOptions {
			q.WriteHeader(http.StatusNoContent)
			return
		}
	}
	if err := m.handle(q, r, found); err != nil {
		m.fail(q, r, err)
	}
}

func (m *Mux) handle(q *request, r *http.Request, found *match) error {
	rt := found.route
	if rt == nil {
		if found.allowed == nil {
			return mxerr.Unrecognized()
		}
		q.Header().Set("Allow", found.allowHeader())
		return mxerr.MethodNotAllowed()
	}
	if m.cfg.Writing != nil && rt.method != http.MethodGet {
		m.cfg.Writing()
	}
	for i, name := range rt.params {
		v := found.values[i]
		if !utf8.ValidString(v) || strings.IndexByte(v, 0) >= 0 {
			return mxerr.InvalidParam("the path's " + name + " is not valid UTF-8 text")
		}
		r.SetPathValue(name, v)
	}
	if err := m.authenticate(q, r, rt); err != nil {
		return err
	}
	if q.identity != nil && q.identity.Suspended && !rt.AllowSuspended && rt.method != http.MethodGet {
		return mxerr.UserSuspended()
	}
	if rt.Rate != RateNone && m.cfg.Limits != nil && !(rt.Auth == Public && m.cfg.Trusted != nil && m.cfg.Trusted(r)) {
		if wait := m.cfg.Limits.allowRequest(rt.Rate, q.identity, q.ip); wait > 0 {
			return mxerr.LimitExceeded(wait)
		}
	}
	err := m.run(q, r, rt)
	if rt.Auth == Admin {
		if e := mxerr.As(err); e != nil && e.Status == http.StatusForbidden {
			return m.refused(q, q.identity, rt, e)
		}
	}
	return err
}

// authenticate fills q.identity as the route's Auth demands.
func (m *Mux) authenticate(q *request, r *http.Request, rt *route) error {
	auth := rt.Auth
	if auth == Public {
		return nil
	}
	token := accessToken(r)
	if token == "" {
		if auth == Optional {
			return nil
		}
		return mxerr.MissingToken()
	}
	if m.cfg.Authenticate == nil {
		return mxerr.UnknownToken("this server knows no such access token", false)
	}
	who, err := m.cfg.Authenticate(r, token)
	if err != nil {
		return err
	}
	if who == nil {
		return mxerr.UnknownToken("this server knows no such access token", false)
	}
	if who.SoftLogout {
		return mxerr.UnknownToken("this session was ended; sign in again", true)
	}
	switch {
	case who.Guest && (auth == NoGuest || auth == Admin):
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "guests may not do this")
	case auth == Admin && !who.Admin:
		return m.refused(q, who, rt, mxerr.Forbidden("only administrators of this server may do this"))
	case auth == AppService && who.AppService == "":
		return m.refused(q, who, rt, mxerr.Forbidden("only application services may do this"))
	}
	q.identity = who
	return nil
}

// refused tells of a refusal and returns it.
func (m *Mux) refused(ctx context.Context, who *Identity, rt *route, err *mxerr.Error) error {
	if m.cfg.Refused != nil {
		m.cfg.Refused(ctx, who, rt.Pattern, err)
	}
	return err
}

// accessToken reads the bearer token of the Authorization header or, as older clients send it, of the query.
// Spec: client-server API, "Using access tokens".
func accessToken(r *http.Request) string {
	if h := r.Header["Authorization"]; len(h) > 0 {
		scheme, token, ok := strings.Cut(h[0], " ")
		if ok && strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
	}
	return QueryString(r, "access_token")
}

// AccessToken is the token that a request carries, "" for none; for public endpoints that may be called with one.
func AccessToken(r *http.Request) string { return accessToken(r) }

// fail answers with the error, if nothing was answered yet.
func (m *Mux) fail(q *request, r *http.Request, err error) {
	e := mxerr.As(err)
	if e == nil {
		if r.Context().Err() != nil || errors.Is(err, context.Canceled) {
			// The client went away or the server stops; nobody did anything wrong.
			m.cfg.Logger.Debug("request ended early", "request_id", q.id, "route", r.Method+" "+r.URL.Path, "error", err)
			e = mxerr.Unavailable("the request was interrupted, try again")
		} else {
			m.cfg.Logger.Error("request failed", "request_id", q.id, "method", r.Method, "path", r.URL.Path, "error", err)
			e = mxerr.New(http.StatusInternalServerError, "M_UNKNOWN", "internal error "+q.id)
		}
	}
	if q.status != 0 {
		return // the handler had begun its answer; its error was logged above or is the client's
	}
	if err := writeError(q, e); err != nil {
		m.cfg.Logger.Debug("error response was not sent", "request_id", q.id, "error", err)
	}
}

// panicked logs a handler's panic and answers 500.
func (m *Mux) panicked(q *request, r *http.Request, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p) // net/http's way to cut a connection
	}
	m.cfg.Logger.Error("handler panicked", "request_id", q.id, "method", r.Method, "path", r.URL.Path,
		"panic", p, "stack", string(debug.Stack()))
	if m.cfg.OnPanic != nil {
		m.cfg.OnPanic(p)
	}
	m.fail(q, r, mxerr.New(http.StatusInternalServerError, "M_UNKNOWN", "internal error "+q.id))
}
