// Package hstest starts real servers for tests: a real listener, a database of its own, real requests. Every response is
// checked against the specification's schemas where these are there.
package hstest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// ServerName is the server name of test servers.
const ServerName = "test"

// Server is a running server.
type Server struct {
	URL      string
	Config   homeserver.Config
	Instance *homeserver.Server

	t    testing.TB
	spec *Spec
	http *http.Client
	stop func()
}

// Option changes the configuration before the start.
type Option func(c *homeserver.Config)

// Start starts a server on SQLite with open registration and without rate limits. It is stopped with the test, which
// fails if the server logged an error.
func Start(t testing.TB, options ...Option) *Server {
	t.Helper()
	return StartWith(t, Config(t, options...))
}

// Each runs fn on a fresh server for each database there is.
func Each(t *testing.T, fn func(t *testing.T, hs *Server), options ...Option) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, Start(t, options...)) })
	t.Run("postgres", func(t *testing.T) {
		fn(t, Start(t, append([]Option{Postgres(storetest.Postgres(t))}, options...)...))
	})
}

// Postgres makes the server use this database.
func Postgres(url string) Option {
	return func(c *homeserver.Config) { c.Database.URL = homeserver.Secret(url) }
}

// Config is the configuration of test servers.
func Config(t testing.TB, options ...Option) homeserver.Config {
	t.Helper()
	c := homeserver.DefaultConfig()
	c.ServerName = ServerName
	c.DataDir = t.TempDir()
	c.Listen = []homeserver.Listen{{Address: "127.0.0.1:0", Serve: []string{homeserver.ServeClient}}}
	c.Registration.Mode = "open"
	c.RateLimits.Enabled = false
	c.Push.AllowPrivateAddresses = true
	// the cheapest parameters there are: hashing is not what these tests are about
	c.Passwords.Argon2.Memory = 64 << 10
	c.Passwords.Argon2.Iterations = 1
	for _, o := range options {
		o(&c)
	}
	return c
}

// StartWith starts a server with this configuration.
func StartWith(t testing.TB, c homeserver.Config) *Server {
	t.Helper()
	spec, err := LoadSpec("")
	if err != nil {
		t.Fatalf("load the specification: %v", err)
	}
	if c.Database.URL == "" {
		storetest.Furnish(t, c.DataDir)
	}
	log := &logWatch{t: t}
	ctx, cancel := context.WithCancel(context.Background())
	srv, err := homeserver.New(ctx, c, slog.New(log))
	if err != nil {
		cancel()
		t.Fatalf("start the server: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	hs := &Server{
		URL: srv.URL(), Config: c, Instance: srv, t: t, spec: spec,
		http: &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 100}},
	}
	hs.stop = sync.OnceFunc(func() {
		hs.http.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the server ended with: %v", err)
		}
		log.close()
	})
	t.Cleanup(hs.stop)
	hs.waitReady()
	return hs
}

// Stop ends the server before the test ends, for tests of restarts.
func (hs *Server) Stop() { hs.stop() }

func (hs *Server) waitReady() {
	hs.t.Helper()
	var last string
	for end := time.Now().Add(testkit.Patience); time.Now().Before(end); {
		resp, err := hs.http.Get(hs.URL + "/ready")
		if err == nil {
			b, _ := io.ReadAll(resp.Body) // only shown
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			last = fmt.Sprintf("%d %s", resp.StatusCode, b)
		} else {
			last = err.Error()
		}
		time.Sleep(10 * time.Millisecond)
	}
	hs.t.Fatalf("the server at %s is not ready after %v: %s", hs.URL, testkit.Patience, last)
}

// logWatch fails the test on errors in the log, panics among them.
type logWatch struct {
	mu    sync.Mutex
	t     testing.TB
	ended bool
	attrs []slog.Attr
	root  *logWatch
}

func (l *logWatch) base() *logWatch {
	if l.root != nil {
		return l.root
	}
	return l
}

func (l *logWatch) close() {
	l.mu.Lock()
	l.ended = true
	l.mu.Unlock()
}

func (l *logWatch) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

func (l *logWatch) Handle(_ context.Context, r slog.Record) error {
	b := l.base()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return nil
	}
	var line strings.Builder
	line.WriteString(r.Message)
	for _, a := range l.attrs {
		fmt.Fprintf(&line, " %s=%v", a.Key, a.Value)
	}
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&line, " %s=%v", a.Key, a.Value)
		return true
	})
	if r.Level >= slog.LevelError {
		b.t.Errorf("the server logged an error: %s", line.String())
	} else {
		b.t.Logf("log: %s", line.String())
	}
	return nil
}

func (l *logWatch) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logWatch{root: l.base(), attrs: append(append([]slog.Attr(nil), l.attrs...), attrs...)}
}

func (l *logWatch) WithGroup(string) slog.Handler { return l }

// Client is a signed-in device, or nobody when Token is empty.
type Client struct {
	UserID   id.UserID
	DeviceID id.DeviceID
	Token    string
	Password string

	hs   *Server
	t    testing.TB
	mu   sync.Mutex
	next int
}

// Response is an answer.
type Response struct {
	Status  int
	Errcode string
	Header  http.Header
	Body    []byte
}

// JSON unmarshals the body.
func (r Response) JSON(t testing.TB, into any) {
	t.Helper()
	if err := json.Unmarshal(r.Body, into); err != nil {
		t.Fatalf("the body is no such JSON: %v\n%s", err, r.Body)
	}
}

// Anonymous is a client without a token.
func (hs *Server) Anonymous() *Client { return &Client{hs: hs, t: hs.t} }

// User registers a user and signs in on a first device.
func (hs *Server) User(localpart string) *Client {
	hs.t.Helper()
	c := &Client{hs: hs, t: hs.t, Password: "correct horse battery " + localpart}
	r := c.Do(hs.t, "POST", fmt.Sprintf(`{"username":%q,"password":%q,"auth":{"type":"m.login.dummy"}}`, localpart, c.Password), "/v3/register")
	c.signedIn(r)
	return c
}

// Login signs the user in on another device.
func (c *Client) Login() *Client {
	c.t.Helper()
	n := &Client{hs: c.hs, t: c.t, Password: c.Password}
	r := n.Do(c.t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":%q}`, c.UserID, c.Password), "/v3/login")
	n.signedIn(r)
	return n
}

// On is the same device speaking to another server, for tests of several nodes on one database.
func (c *Client) On(hs *Server) *Client {
	return &Client{UserID: c.UserID, DeviceID: c.DeviceID, Token: c.Token, Password: c.Password, hs: hs, t: hs.t}
}

func (c *Client) signedIn(r Response) {
	c.t.Helper()
	if r.Status != http.StatusOK {
		c.t.Fatalf("sign in: %d %s", r.Status, r.Body)
	}
	var in struct {
		UserID      id.UserID   `json:"user_id"`
		DeviceID    id.DeviceID `json:"device_id"`
		AccessToken string      `json:"access_token"`
	}
	r.JSON(c.t, &in)
	c.UserID, c.DeviceID, c.Token = in.UserID, in.DeviceID, in.AccessToken
}

// Do sends a request. path is below /_matrix/client unless it begins with /_; its arguments are path-escaped. The
// response is checked against the specification.
func (c *Client) Do(t testing.TB, method, body, path string, args ...any) Response {
	t.Helper()
	escaped := make([]any, len(args))
	for i, a := range args {
		escaped[i] = url.PathEscape(fmt.Sprint(a))
	}
	target := fmt.Sprintf(path, escaped...)
	if !strings.HasPrefix(path, "/_") && !strings.HasPrefix(path, "/.well-known") {
		target = "/_matrix/client" + target
	}
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, c.hs.URL+target, rd)
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.Send(t, req)
}

// Send sends any request with the client's token, and checks the response.
func (c *Client) Send(t testing.TB, req *http.Request) Response {
	t.Helper()
	if c.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.Token)
	}
	resp, err := c.hs.http.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", req.Method, req.URL, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: read the body: %v", req.Method, req.URL, err)
	}
	out := Response{Status: resp.StatusCode, Header: resp.Header, Body: b}
	if bytes.HasPrefix(b, []byte("{")) {
		var e struct {
			Errcode string `json:"errcode"`
		}
		_ = json.Unmarshal(b, &e) // what is no JSON has no errcode; the check below says so
		out.Errcode = e.Errcode
	}
	if resp.StatusCode >= 500 && resp.StatusCode != http.StatusServiceUnavailable && resp.StatusCode != http.StatusGatewayTimeout {
		t.Errorf("%s %s: %d %s", req.Method, req.URL, resp.StatusCode, b)
	}
	if req.URL.Query().Has("org.matrix.msc4140.delay") && resp.StatusCode == http.StatusOK {
		return out // a proposal changes the answer: the event has no id yet
	}
	if err := c.hs.spec.Check(req.Method, req.URL.EscapedPath(), resp.StatusCode, resp.Header, b); err != nil {
		t.Errorf("%s %s: the response is not as the specification says: %v\n%d %.2000s", req.Method, req.URL.Path, err, resp.StatusCode, b)
	}
	return out
}

// Must is Do that fails the test unless the answer is 200, and unmarshals it into a map.
func (c *Client) Must(t testing.TB, method, body, path string, args ...any) map[string]any {
	t.Helper()
	r := c.Do(t, method, body, path, args...)
	if r.Status != http.StatusOK {
		t.Fatalf("%s %s %s: %d %s", c.UserID, method, fmt.Sprintf(path, args...), r.Status, r.Body)
	}
	var m map[string]any
	r.JSON(t, &m)
	return m
}

// CreateRoom makes a room with a preset.
func (c *Client) CreateRoom(preset string) id.RoomID {
	c.t.Helper()
	return c.CreateRoomWith(fmt.Sprintf(`{"preset":%q}`, preset))
}

// CreateRoomWith makes a room with this request body.
func (c *Client) CreateRoomWith(body string) id.RoomID {
	c.t.Helper()
	return id.RoomID(c.Must(c.t, "POST", body, "/v3/createRoom")["room_id"].(string))
}

// Join joins a room.
func (c *Client) Join(room id.RoomID) {
	c.t.Helper()
	c.Must(c.t, "POST", "{}", "/v3/rooms/%s/join", room)
}

// Leave leaves a room.
func (c *Client) Leave(room id.RoomID) {
	c.t.Helper()
	c.Must(c.t, "POST", "{}", "/v3/rooms/%s/leave", room)
}

// Invite invites a user.
func (c *Client) Invite(room id.RoomID, user id.UserID) {
	c.t.Helper()
	c.Must(c.t, "POST", fmt.Sprintf(`{"user_id":%q}`, user), "/v3/rooms/%s/invite", room)
}

// Txn is a transaction id that the client has not used yet.
func (c *Client) Txn() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	return fmt.Sprintf("txn%d", c.next)
}

// Text sends a text message.
func (c *Client) Text(room id.RoomID, body string) id.EventID {
	c.t.Helper()
	b, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": body})
	if err != nil {
		c.t.Fatal(err)
	}
	return c.Event(room, "m.room.message", string(b))
}

// Event sends a message event with this content.
func (c *Client) Event(room id.RoomID, evType, content string) id.EventID {
	c.t.Helper()
	return id.EventID(c.Must(c.t, "PUT", content, "/v3/rooms/%s/send/%s/%s", room, evType, c.Txn())["event_id"].(string))
}

// State sends a state event.
func (c *Client) State(room id.RoomID, evType, stateKey, content string) id.EventID {
	c.t.Helper()
	return id.EventID(c.Must(c.t, "PUT", content, "/v3/rooms/%s/state/%s/%s", room, evType, stateKey)["event_id"].(string))
}

// Sync is GET /sync with these query parameters ("" for the first one), as a map.
func (c *Client) Sync(query string) map[string]any {
	c.t.Helper()
	if query != "" {
		query = "?" + query
	}
	req, err := http.NewRequest("GET", c.hs.URL+"/_matrix/client/v3/sync"+query, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r := c.Send(c.t, req)
	if r.Status != http.StatusOK {
		c.t.Fatalf("sync of %s: %d %s", c.UserID, r.Status, r.Body)
	}
	var m map[string]any
	r.JSON(c.t, &m)
	return m
}

// At walks a decoded JSON value by object keys and array indexes; nil where there is no such place.
func At(v any, path ...any) any {
	for _, p := range path {
		switch k := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[k]
		case int:
			a, _ := v.([]any)
			if k < 0 {
				k += len(a)
			}
			if k < 0 || k >= len(a) {
				return nil
			}
			v = a[k]
		}
	}
	return v
}
