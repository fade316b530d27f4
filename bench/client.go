package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/tidwall/gjson"
)

// transport is shared by all users: as many connections as there are requests at once.
func transport() *http.Transport {
	d := &net.Dialer{Timeout: 10 * time.Second}
	return &http.Transport{
		DialContext: d.DialContext, MaxIdleConns: 0, MaxIdleConnsPerHost: 20000, IdleConnTimeout: 5 * time.Minute,
		DisableCompression: true, WriteBufferSize: 2 << 10, ReadBufferSize: 4 << 10,
	}
}

// user is a signed-in account.
type user struct {
	b     *Bench
	url   string // of the process that this user speaks to
	via   *http.Client
	id    string
	token string
	since string
	txn   int

	answer bytes.Buffer // of the last sync
}

// alone is the same account for another goroutine.
func (u *user) alone() *user {
	return &user{b: u.b, url: u.url, via: u.via, id: u.id, token: u.token, since: u.since, txn: u.txn}
}

// statusError is an answer other than 200.
type statusError struct {
	status int
	body   string
	after  time.Duration
}

func (e *statusError) Error() string { return fmt.Sprintf("%d %.200s", e.status, e.body) }

// call sends one request and reads the whole answer.
func (u *user) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	return u.callInto(ctx, method, path, body, nil)
}

// callInto is call with room for the answer: readers of many large answers would otherwise measure this program's own
// garbage collector.
func (u *user) callInto(ctx context.Context, method, path string, body []byte, into *bytes.Buffer) ([]byte, error) {
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.url+path, rd)
	if err != nil {
		return nil, err
	}
	if u.token != "" {
		req.Header.Set("Authorization", "Bearer "+u.token)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := u.via.Do(req)
	if err != nil {
		return nil, err
	}
	if into == nil {
		into = new(bytes.Buffer)
	}
	into.Reset()
	if n := resp.ContentLength; n > 0 {
		into.Grow(int(n) + bytes.MinRead)
	}
	_, err = into.ReadFrom(resp.Body)
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	out := into.Bytes()
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, &statusError{status: resp.StatusCode, body: string(out), after: time.Duration(gjson.GetBytes(out, "retry_after_ms").Int()) * time.Millisecond}
	}
	return out, nil
}

func object(kv ...any) []byte {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i].(string)] = kv[i+1]
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // only strings, numbers and lists of these come here
	}
	return b
}

// register makes an account by open registration (m.login.dummy).
func (b *Bench) register(ctx context.Context, name string) (*user, error) {
	b.mu.Lock()
	u := &user{b: b, via: b.http, url: b.URLs[b.registered%len(b.URLs)]}
	b.registered++
	b.mu.Unlock()
	out, err := u.call(ctx, "POST", "/_matrix/client/v3/register",
		object("username", name, "password", b.password, "auth", map[string]string{"type": "m.login.dummy"}))
	if err != nil {
		return nil, fmt.Errorf("register %s (the server must allow open registration by m.login.dummy): %w", name, err)
	}
	u.id, u.token = gjson.GetBytes(out, "user_id").Str, gjson.GetBytes(out, "access_token").Str
	return u, nil
}

func (u *user) createRoom(ctx context.Context, preset string) (string, error) {
	out, err := u.call(ctx, "POST", "/_matrix/client/v3/createRoom", object("preset", preset))
	return gjson.GetBytes(out, "room_id").Str, err
}

func (u *user) join(ctx context.Context, room string) error {
	_, err := u.call(ctx, "POST", "/_matrix/client/v3/join/"+url.PathEscape(room), []byte("{}"))
	return err
}

// send sends a text and returns its event id. Each user is used by one goroutine at a time.
func (u *user) send(ctx context.Context, room, text string) (string, error) {
	u.txn++
	out, err := u.call(ctx, "PUT", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/b"+strconv.Itoa(u.txn),
		object("msgtype", "m.text", "body", text))
	return gjson.GetBytes(out, "event_id").Str, err
}

func (u *user) receipt(ctx context.Context, room, event string) error {
	_, err := u.call(ctx, "POST", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/receipt/m.read/"+url.PathEscape(event), []byte("{}"))
	return err
}

// sync asks for what is new since the last call and waits up to timeout for it. The answer is good until the next call.
func (u *user) sync(ctx context.Context, timeout time.Duration) ([]byte, error) {
	q := "?timeout=" + strconv.FormatInt(timeout.Milliseconds(), 10)
	if u.since != "" {
		q += "&since=" + url.QueryEscape(u.since)
	}
	out, err := u.callInto(ctx, "GET", "/_matrix/client/v3/sync"+q, nil, &u.answer)
	if err != nil {
		return nil, err
	}
	u.since = gjson.GetBytes(out, "next_batch").Str
	return out, nil
}
