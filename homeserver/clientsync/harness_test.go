package clientsync_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/clientsync"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/homeserver/web"
)

// node is one process as far as syncing goes.
type node struct {
	t     testing.TB
	store *store.Store
	rooms *room.Rooms
	data  *account.Data
	keys  *account.Keys
	push  *push.Push
	sync  *clientsync.Sync
	mux   *web.Mux
	spec  *hstest.Spec
	stop  func()

	mu    sync.Mutex
	ended map[id.DeviceID]bool
	clock time.Duration // added to the clock of the Sync
	txn   int
}

func start(t testing.TB, cfg store.Config) *node {
	t.Helper()
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	st, err := store.Open(context.Background(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, store: st, ended: map[id.DeviceID]bool{}}
	n.rooms = room.New(room.Deps{Store: st, ServerName: "test", Logger: log, Features: features,
		Key: event.SigningKey{KeyID: "ed25519:a", Private: ed25519.NewKeyFromSeed(make([]byte, 32))}})
	n.data = account.NewData(account.DataDeps{Store: st})
	n.keys = account.NewKeys(account.KeysDeps{Store: st, ServerName: "test", Logger: log})
	n.push = push.New(push.Deps{Store: st})
	n.sync = clientsync.New(clientsync.Deps{
		Store: st, Rooms: n.rooms, Data: n.data, Keys: n.keys, Logger: log,
		Now: func() time.Time {
			n.mu.Lock()
			defer n.mu.Unlock()
			return time.Now().Add(n.clock)
		},
		Rules: n.rules, Thread: thread,
		PushRules: func(ctx context.Context, u id.UserID) ([]byte, error) {
			c, _, err := n.push.AccountData(ctx, u)
			return c, err
		},
		Bundle: func(_ context.Context, _ id.UserID, _ *room.Room, events []*room.Event) (func(*room.Event) []byte, error) {
			return func(e *room.Event) []byte {
				for _, x := range events {
					if x == e {
						return []byte(`{"m.reference":{"chunk":[]}}`)
					}
				}
				return nil
			}, nil
		},
		SessionEnded: func(_ context.Context, who *web.Identity) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			if n.ended[who.DeviceID] {
				return mxerr.UnknownToken("ended", false)
			}
			return nil
		},
	})
	if n.spec, err = hstest.LoadSpec(""); err != nil {
		t.Fatal(err)
	}
	n.mux, err = web.NewMux(web.Config{Logger: log, OnPanic: func(x any) { t.Errorf("panic: %v", x) }, Authenticate: authenticate}, n.sync.Routes(), []web.Route{
		{Pattern: "GET /wait", Auth: web.User, Handler: func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return nil }},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return st.Follow(gctx, []store.Listener{n.rooms.Listener(), n.keys.Listener(), n.data.Listener(), n.push.Listener(), n.sync.Listener()}, n.sync.OnBroadcast)
	})
	<-st.Following()
	work, stopWork := context.WithCancel(context.Background())
	g.Go(func() error { return n.rooms.Run(work) })
	g.Go(func() error { return n.sync.Run(work) })
	n.stop = sync.OnceFunc(func() {
		stopWork()
		time.Sleep(20 * time.Millisecond) // the writers end before the log's follower
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("run: %v", err)
		}
		if err := st.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// each runs fn on a node for each database.
func each(t *testing.T, fn func(t *testing.T, n *node)) {
	t.Helper()
	storetest.Each(t, func(t *testing.T, cfg store.Config) { fn(t, start(t, cfg)) })
}

func (n *node) pass(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.clock += d
}

// authenticate reads "user|device" as a token.
func authenticate(_ *http.Request, token string) (*web.Identity, error) {
	user, device, ok := strings.Cut(token, "|")
	if !ok {
		return nil, mxerr.UnknownToken("no such token", false)
	}
	return &web.Identity{UserID: id.UserID(user), DeviceID: id.DeviceID(device), SessionID: 1}, nil
}

func features(evType string, stateKey *string, content []byte, parent func(string) []byte) []byte {
	f := push.FeaturesOf(evType, stateKey, content, func(eventID string) string { return thread(parent(eventID)) })
	return f.AppendBinary(nil)
}

func thread(b []byte) string {
	f, err := push.ParseFeatures(b)
	if err != nil {
		return ""
	}
	return f.Thread
}

func (n *node) rules(ctx context.Context, user id.UserID, r *room.Room) (clientsync.Rules, error) {
	rules, err := n.push.Rules(ctx, user)
	if err != nil {
		return clientsync.Rules{}, err
	}
	rc := push.RoomContext{UserID: string(user), RoomID: string(r.ID()), MemberCount: int64(r.JoinedCount())}
	verdict := func(a push.Actions) clientsync.Verdict {
		return clientsync.Verdict{Notify: a.Notify, Highlight: a.Highlight, Actions: a.JSON}
	}
	return clientsync.Rules{
		Skips: func(b []byte) bool { return rules.Compiled.Skips(push.FlagsOf(b)) },
		Quick: func(b []byte, sender id.UserID) (clientsync.Verdict, bool) {
			f, err := push.ParseFeatures(b)
			if err != nil {
				return clientsync.Verdict{}, false
			}
			a, decided := rules.Compiled.EvaluateFeatures(&push.FeatureView{Features: f, Sender: string(sender)}, &rc)
			return verdict(a), decided
		},
		Full: func(e *room.Event) (clientsync.Verdict, error) {
			v := push.EventView{ID: string(e.ID()), RoomID: string(r.ID()), Type: e.PDU.Type(), Sender: string(e.PDU.Sender()), Content: e.PDU.Content()}
			if k, ok := e.PDU.StateKey(); ok {
				v.StateKey = &k
			}
			return verdict(rules.Compiled.Evaluate(&v, &rc)), nil
		},
	}, nil
}

// client is a device of a user.
type client struct {
	n      *node
	user   id.UserID
	device id.DeviceID
	since  string
	odd    bool // asks for what the schemas do not describe: responses are not checked
}

func (n *node) client(localpart, device string) *client {
	return &client{n: n, user: id.UserID("@" + localpart + ":test"), device: id.DeviceID(device)}
}

// on is the same device speaking to another node.
func (c *client) on(n *node) *client {
	return &client{n: n, user: c.user, device: c.device, since: c.since}
}

type answer struct {
	status  int
	errcode string
	body    []byte
	json    map[string]any
}

func (c *client) do(method, body, path string, args ...any) answer {
	c.n.t.Helper()
	for i, a := range args {
		args[i] = url.PathEscape(fmt.Sprint(a))
	}
	return c.request(context.Background(), method, body, fmt.Sprintf(path, args...))
}

func (c *client) request(ctx context.Context, method, body, path string) answer {
	c.n.t.Helper()
	target := "/_matrix/client" + path
	var rd io.Reader
	if body != "" {
		rd = strings.NewReader(body)
	}
	req := httptest.NewRequestWithContext(ctx, method, target, rd)
	req.Header.Set("Authorization", "Bearer "+string(c.user)+"|"+string(c.device))
	w := httptest.NewRecorder()
	c.n.mux.ServeHTTP(w, req)
	if ctx.Err() != nil {
		return answer{}
	}
	out := answer{status: w.Code, body: w.Body.Bytes()}
	if err := json.Unmarshal(out.body, &out.json); err != nil {
		c.n.t.Fatalf("%s %s: no JSON: %v\n%s", method, target, err, out.body)
	}
	out.errcode, _ = out.json["errcode"].(string)
	if w.Code >= 500 {
		c.n.t.Errorf("%s %s: %d %s", method, target, w.Code, out.body)
	}
	if c.odd {
		return out
	}
	if err := c.n.spec.Check(method, req.URL.EscapedPath(), w.Code, w.Header(), out.body); err != nil {
		c.n.t.Errorf("%s %s is not as the specification says: %v\n%.3000s", method, target, err, out.body)
	}
	return out
}

func (c *client) must(method, body, path string, args ...any) map[string]any {
	c.n.t.Helper()
	a := c.do(method, body, path, args...)
	if a.status != http.StatusOK {
		c.n.t.Fatalf("%s %s %s: %d %s", c.user, method, fmt.Sprintf(path, args...), a.status, a.body)
	}
	return a.json
}

// sync goes on from where the client is, with these further parameters.
func (c *client) sync(params ...string) map[string]any {
	c.n.t.Helper()
	out := c.peek(params...)
	c.since, _ = out["next_batch"].(string)
	return out
}

// peek is sync that stays where the client is.
func (c *client) peek(params ...string) map[string]any {
	c.n.t.Helper()
	a := c.get(params...)
	if a.status != http.StatusOK {
		c.n.t.Fatalf("sync of %s: %d %s", c.user, a.status, a.body)
	}
	return a.json
}

func (c *client) get(params ...string) answer {
	c.n.t.Helper()
	return c.request(context.Background(), "GET", "", c.query(params...))
}

func (c *client) query(params ...string) string {
	q := url.Values{}
	if c.since != "" {
		q.Set("since", c.since)
	}
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	return "/v3/sync?" + q.Encode()
}

// wait syncs until check is satisfied, for what comes a little later.
func (c *client) wait(what string, check func(m map[string]any) bool) map[string]any {
	c.n.t.Helper()
	deadline := time.Now().Add(testkit.Patience)
	for time.Now().Before(deadline) {
		if m := c.sync("timeout", "1000"); check(m) {
			return m
		}
	}
	c.n.t.Fatalf("%s never saw %s", c.user, what)
	return nil
}

func key(s string) *string { return &s }

func (c *client) state(roomID id.RoomID, typ, stateKey, content string) id.EventID {
	c.n.t.Helper()
	e, err := c.n.rooms.Send(context.Background(), roomID, room.Draft{Type: typ, StateKey: key(stateKey), Content: []byte(content), Sender: c.user, Device: c.device})
	if err != nil {
		c.n.t.Fatalf("%s sends %s: %v", c.user, typ, err)
	}
	return e
}

func (c *client) member(roomID id.RoomID, user id.UserID, membership string) {
	c.n.t.Helper()
	c.state(roomID, "m.room.member", string(user), `{"membership":"`+membership+`"}`)
}

func (c *client) join(roomID id.RoomID)  { c.n.t.Helper(); c.member(roomID, c.user, "join") }
func (c *client) leave(roomID id.RoomID) { c.n.t.Helper(); c.member(roomID, c.user, "leave") }

func (c *client) send(roomID id.RoomID, typ, content string) id.EventID {
	c.n.t.Helper()
	c.n.mu.Lock()
	c.n.txn++
	txn := fmt.Sprintf("send/%s/t%d", typ, c.n.txn)
	c.n.mu.Unlock()
	d := room.Draft{Type: typ, Content: []byte(content), Sender: c.user, Device: c.device, Txn: txn}
	if typ == "m.room.redaction" {
		var r struct {
			Redacts id.EventID `json:"redacts"`
		}
		_ = json.Unmarshal(d.Content, &r)
		d.Redacts = r.Redacts
	}
	e, err := c.n.rooms.Send(context.Background(), roomID, d)
	if err != nil {
		c.n.t.Fatalf("%s sends: %v", c.user, err)
	}
	return e
}

func (c *client) text(roomID id.RoomID, body string) id.EventID {
	c.n.t.Helper()
	return c.send(roomID, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":%q}`, body))
}

// room makes a public room with more members.
func (c *client) room(members ...*client) id.RoomID {
	c.n.t.Helper()
	r := c.emptyRoom("11")
	for _, m := range members {
		m.join(r)
	}
	return r
}

func (c *client) emptyRoom(version string) id.RoomID {
	c.n.t.Helper()
	v, _ := event.LookupVersion(version)
	draft := func(typ, k, content string) room.Draft {
		return room.Draft{Type: typ, StateKey: key(k), Content: []byte(content), Sender: c.user}
	}
	levels := fmt.Sprintf(`{"users":{%q:100},"notifications":{"room":0}}`, c.user)
	if version == "12" {
		levels = `{}`
	}
	roomID, err := c.n.rooms.CreateRoom(context.Background(), v, c.user, []byte(`{"room_version":"`+version+`"}`), []room.Draft{
		draft("m.room.member", string(c.user), `{"membership":"join"}`),
		draft("m.room.power_levels", "", levels),
		draft("m.room.join_rules", "", `{"join_rule":"public"}`),
	}, room.RoomMeta{})
	if err != nil {
		c.n.t.Fatalf("create a room: %v", err)
	}
	return roomID
}

func (c *client) receipt(roomID id.RoomID, typ string, eventID id.EventID, body string) {
	c.n.t.Helper()
	c.must("POST", body, "/v3/rooms/%s/receipt/%s/%s", roomID, typ, eventID)
}

// at walks decoded JSON.
func at(v any, path ...any) any { return hstest.At(v, path...) }

// events are the objects of a list of events.
func events(v any) []map[string]any {
	list, _ := v.([]any)
	out := make([]map[string]any, 0, len(list))
	for _, e := range list {
		m, _ := e.(map[string]any)
		out = append(out, m)
	}
	return out
}

// joined is the part of a response about a joined room.
func joined(m map[string]any, r id.RoomID) any { return at(m, "rooms", "join", string(r)) }

// ids are the event ids of a timeline.
func ids(section any) (out []id.EventID) {
	for _, e := range events(at(section, "timeline", "events")) {
		s, _ := e["event_id"].(string)
		out = append(out, id.EventID(s))
	}
	return out
}

// known are the state events of state and timeline of a room, by tuple.
func known(section any) map[string]map[string]any {
	out := tuples(at(section, "state", "events"))
	for k, e := range tuples(at(section, "timeline", "events")) {
		out[k] = e
	}
	return out
}

// tuples are "type|state_key" of a list of state events.
func tuples(v any) map[string]map[string]any {
	out := map[string]map[string]any{}
	for _, e := range events(v) {
		out[fmt.Sprint(e["type"], "|", e["state_key"])] = e
	}
	return out
}

// ephemeral gives the content of an ephemeral event of a room, nil when there is none.
func ephemeral(section any, typ string) map[string]any {
	for _, e := range events(at(section, "ephemeral", "events")) {
		if e["type"] == typ {
			c, _ := e["content"].(map[string]any)
			return c
		}
	}
	return nil
}
