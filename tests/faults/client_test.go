package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"
)

const api = "/_matrix/client/v3"

// client is one device of a user. It can move from one node to another.
type client struct {
	base   atomic.Pointer[string]
	http   *http.Client
	user   string
	name   string
	token  string
	device string
}

const password = "correct horse battery"

// newClient makes a client with connections of its own, as devices have.
func newClient(n *node, name string) *client {
	c := &client{name: name, http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}}}
	c.move(n)
	return c
}

// move lets the next requests go to this node.
func (c *client) move(n *node) { c.base.Store(&n.url) }

// answer is what a request got.
type answer struct {
	status int
	body   []byte
	took   time.Duration
}

func (a answer) get(path string) gjson.Result { return gjson.GetBytes(a.body, path) }

func (a answer) errcode() string { return a.get("errcode").Str }

// do sends a request. The error is the connection's; any status is an answer.
func (c *client) do(ctx context.Context, method, path string, body any) (answer, error) {
	began := time.Now()
	var rd io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		rd = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, *c.base.Load()+api+path, rd)
	if err != nil {
		return answer{}, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{took: time.Since(began)}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, body: b, took: time.Since(began)}, err
}

// must is do where nothing but 200 will do.
func (c *client) must(t testing.TB, method, path string, body any) answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	a, err := c.do(ctx, method, path, body)
	if err != nil {
		t.Fatalf("%s: %s %s: %v", c.name, method, path, err)
	}
	if a.status != http.StatusOK {
		t.Fatalf("%s: %s %s answers %d %s", c.name, method, path, a.status, a.body)
	}
	return a
}

// register makes an account on a node.
func register(t testing.TB, n *node, name string) *client {
	t.Helper()
	c := newClient(n, name)
	a := c.must(t, "POST", "/register", map[string]any{"username": name, "password": password, "auth": map[string]string{"type": "m.login.dummy"}})
	c.user, c.token, c.device = a.get("user_id").Str, a.get("access_token").Str, a.get("device_id").Str
	return c
}

// registerAll makes several accounts: name0, name1, …
func registerAll(t testing.TB, n *node, name string, count int) []*client {
	t.Helper()
	out := make([]*client, count)
	for i := range out {
		out[i] = register(t, n, fmt.Sprintf("%s%d", name, i))
	}
	return out
}

// login makes another device of an account.
func (c *client) login(t testing.TB, n *node) *client {
	t.Helper()
	d := newClient(n, c.name)
	a := d.must(t, "POST", "/login", map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": c.user}, "password": password})
	d.user, d.token, d.device = a.get("user_id").Str, a.get("access_token").Str, a.get("device_id").Str
	return d
}

func (c *client) createRoom(t testing.TB, body map[string]any) string {
	t.Helper()
	return c.must(t, "POST", "/createRoom", body).get("room_id").Str
}

func (c *client) join(t testing.TB, room string) {
	t.Helper()
	c.must(t, "POST", "/join/"+url.PathEscape(room), map[string]any{})
}

// publicRoom makes a room with these members.
func publicRoom(t testing.TB, members ...*client) string {
	t.Helper()
	room := members[0].createRoom(t, map[string]any{"preset": "public_chat"})
	for _, m := range members[1:] {
		m.join(t, room)
	}
	return room
}

func sendPath(room, txn string) string {
	return "/rooms/" + url.PathEscape(room) + "/send/m.room.message/" + url.PathEscape(txn)
}

func text(body string) map[string]any { return map[string]any{"msgtype": "m.text", "body": body} }

// send sends one message that must be taken, and returns its event id.
func (c *client) send(t testing.TB, room, txn, body string) string {
	t.Helper()
	return c.must(t, "PUT", sendPath(room, txn), text(body)).get("event_id").Str
}

// message is an event of a timeline.
type message struct {
	id, sender, kind, body, stateKey string
}

func toMessage(e gjson.Result) message {
	return message{id: e.Get("event_id").Str, sender: e.Get("sender").Str, kind: e.Get("type").Str, body: e.Get("content.body").Str,
		stateKey: e.Get("state_key").Str}
}

// page reads one page of /messages backwards, newest first, and tells where the next one begins ("" at the beginning).
func (c *client) page(t testing.TB, room, from, to string, limit int) ([]message, string) {
	t.Helper()
	q := url.Values{"dir": {"b"}, "limit": {fmt.Sprint(limit)}}
	if from != "" {
		q.Set("from", from)
	}
	if to != "" {
		q.Set("to", to)
	}
	a := c.must(t, "GET", "/rooms/"+url.PathEscape(room)+"/messages?"+q.Encode(), nil)
	var out []message
	for _, e := range a.get("chunk").Array() {
		out = append(out, toMessage(e))
	}
	return out, a.get("end").Str
}

// history reads a room from its end back to a token, or to its beginning, and returns it oldest first.
func (c *client) history(t testing.TB, room, from, to string) []message {
	t.Helper()
	var out []message
	for pages := 0; ; pages++ {
		chunk, end := c.page(t, room, from, to, 500)
		out = append(out, chunk...)
		if end == "" {
			break
		}
		if end == from || pages > 10_000 {
			t.Fatalf("%s: paging backwards through %s does not end: %q", c.name, room, end)
		}
		from = end
	}
	slices.Reverse(out)
	return out
}

// sameEnd waits until the clients, on nodes of their own, see the same newest event: a node may lag by a moment.
func sameEnd(t testing.TB, room string, clients ...*client) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		last := map[string]bool{}
		for _, c := range clients {
			chunk, _ := c.page(t, room, "", "", 1)
			last[chunk[0].id] = true
		}
		if len(last) == 1 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("5 s after the last message the nodes show different ends of the room")
			return
		}
	}
}

// timelineFilter asks for so many events of a room in each sync.
func timelineFilter(limit int) string {
	return fmt.Sprintf(`{"room":{"timeline":{"limit":%d},"state":{"lazy_load_members":true}},"presence":{"not_types":["*"]}}`, limit)
}

// sync asks for news. It returns the connection's error.
func (c *client) sync(ctx context.Context, since string, timeout time.Duration, limit int) (answer, error) {
	q := url.Values{"timeout": {fmt.Sprint(timeout.Milliseconds())}, "filter": {timelineFilter(limit)}}
	if since != "" {
		q.Set("since", since)
	}
	return c.do(ctx, "GET", "/sync?"+q.Encode(), nil)
}

// syncToken is a token for now.
func (c *client) syncToken(t testing.TB) string {
	t.Helper()
	return c.must(t, "GET", "/sync?timeout=0&filter="+url.QueryEscape(timelineFilter(1)), nil).get("next_batch").Str
}

// roomKey makes a room's id a path of gjson.
func roomKey(room string) string {
	return strings.NewReplacer(".", `\.`, "*", `\*`, "?", `\?`, "|", `\|`, "!", `\!`, "#", `\#`, "@", `\@`).Replace(room)
}
