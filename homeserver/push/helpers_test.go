package push

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/homeserver/web"
)

// world is a Push on a database, with a room of alice, bob and carol in memory.
type world struct {
	*Push
	t   *testing.T
	srv *httptest.Server

	mu      sync.Mutex
	events  map[int64]*EventView
	members []id.UserID
	unread  map[id.UserID]Counts
	readers []id.UserID
	ignored map[id.UserID]id.UserID
	panics  []any
}

type testRoom struct{ w *world }

func (r testRoom) RoomID() id.RoomID { return "!room:example.com" }
func (r testRoom) MemberCount() int64 {
	r.w.mu.Lock()
	defer r.w.mu.Unlock()
	return int64(len(r.w.members))
}
func (r testRoom) Name() string  { return "会议室" }
func (r testRoom) Alias() string { return "#room:example.com" }
func (r testRoom) DisplayName(u id.UserID) string {
	return strings.ToUpper(u.String()[1:2]) + u.String()[2:strings.IndexByte(u.String(), ':')]
}
func (r testRoom) PowerLevel(u id.UserID) int64 {
	if u == bob {
		return 100
	}
	return 0
}
func (r testRoom) NotificationLevel(string) int64 { return 50 }

func newWorld(t *testing.T, cfg store.Config) *world {
	w := &world{t: t, events: map[int64]*EventView{}, members: []id.UserID{alice, bob, carol}, unread: map[id.UserID]Counts{}, ignored: map[id.UserID]id.UserID{}}
	client, err := NewClient(ClientConfig{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Timeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	deps := Deps{
		Log: slog.New(slog.DiscardHandler), Client: client, Config: Config{AllowHTTP: true},
		Event: func(_ context.Context, _, nid int64) (*EventView, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.events[nid], nil
		},
		RoomUsers: func(context.Context, int64) ([]id.UserID, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.members, nil
		},
		Room: func(context.Context, int64) (RoomView, error) { return testRoom{w}, nil },
		Unread: func(_ context.Context, u id.UserID) (Counts, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.unread[u], nil
		},
		ReceiptUsers: func(context.Context, int64, int64) ([]id.UserID, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.readers, nil
		},
		Ignores: func(_ context.Context, u, sender id.UserID) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.ignored[u] == sender, nil
		},
	}
	w.Push = New(deps)
	w.scanEvery = 30 * time.Millisecond
	w.backoff = func(int64) time.Duration { return 20 * time.Millisecond }
	w.Store = storetest.Open(t, cfg, w.Listener())
	mux, err := web.NewMux(web.Config{Authenticate: func(_ *http.Request, token string) (*web.Identity, error) {
		for _, u := range []id.UserID{alice, bob, carol} {
			if token == u.String() {
				return &web.Identity{UserID: u, DeviceID: "DEV"}, nil
			}
		}
		return nil, mxerr.UnknownToken("no such token", false)
	}, Logger: slog.New(slog.DiscardHandler), OnPanic: func(v any) { w.mu.Lock(); w.panics = append(w.panics, v); w.mu.Unlock() }}, w.Routes())
	if err != nil {
		t.Fatal(err)
	}
	w.srv = httptest.NewServer(mux)
	t.Cleanup(func() {
		w.srv.Close()
		if len(w.panics) > 0 {
			t.Errorf("panics: %v", w.panics)
		}
	})
	return w
}

// do makes a request as the user and checks status and errcode.
func (w *world) do(user id.UserID, method, path, body string, status int, errcode string) gjson.Result {
	w.t.Helper()
	req, err := http.NewRequest(method, w.srv.URL+"/_matrix/client/v3"+path, bytes.NewReader([]byte(body)))
	if err != nil {
		w.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+user.String())
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	out := gjson.ParseBytes(b)
	if resp.StatusCode != status || out.Get("errcode").Str != errcode {
		w.t.Fatalf("%s %s %s: %d %s, want %d %q", method, path, body, resp.StatusCode, b, status, errcode)
	}
	return out
}

// run starts follower and delivery; they end with the test or by the func returned.
func (w *world) run() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Push.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("Run: %v", err)
			}
		})
	}
	w.t.Cleanup(stop)
	// A new follower begins at the head: wait until it has.
	eventually(w.t, func() bool {
		n := int64(0)
		err := w.Store.Read(context.Background(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&n}, `SELECT count(*) FROM followers WHERE name = 'push' AND lease_until > 0`)
			return err
		})
		return err == nil && n == 1
	})
	return stop
}

func eventually(t *testing.T, fn func() bool) {
	t.Helper()
	for range 6000 {
		if fn() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("it did not happen in time")
}

// announce puts an entry into the log.
func (w *world) announce(e store.Entry) {
	w.t.Helper()
	if err := w.Store.Write(context.Background(), func(tx *store.Tx) error { _, err := tx.Announce(e); return err }); err != nil {
		w.t.Fatal(err)
	}
}

// say makes an event of the room known and announces it.
func (w *world) say(nid int64, ev EventView) {
	w.t.Helper()
	ev.RoomID = "!room:example.com"
	w.mu.Lock()
	w.events[nid] = &ev
	w.mu.Unlock()
	w.announce(store.Entry{Kind: store.KindEvent, Room: 1, Ref: nid})
}

func message(eventID, sender, body string) EventView {
	return EventView{ID: eventID, Sender: sender, Type: "m.room.message", Content: []byte(`{"msgtype":"m.text","body":"` + body + `"}`)}
}

func (w *world) setUnread(u id.UserID, c Counts) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unread[u] = c
}

// gatewayServer is a push gateway that keeps what it gets.
type gatewayServer struct {
	*httptest.Server
	got chan gjson.Result

	mu       sync.Mutex
	status   int
	reject   string
	requests int
	delay    time.Duration
	inside   int
	most     int
}

func newGateway(t *testing.T) *gatewayServer {
	g := &gatewayServer{got: make(chan gjson.Result, 1000), status: 200}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.Method != "POST" || r.URL.Path != notifyPath || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("request %s %s: %v", r.Method, r.URL, err)
		}
		g.mu.Lock()
		g.requests++
		g.inside++
		g.most = max(g.most, g.inside)
		status, reject, delay := g.status, g.reject, g.delay
		g.mu.Unlock()
		time.Sleep(delay)
		g.mu.Lock()
		g.inside--
		g.mu.Unlock()
		if status == 200 {
			g.got <- gjson.ParseBytes(b).Get("notification")
		}
		w.WriteHeader(status)
		if reject != "" {
			_, _ = io.WriteString(w, `{"rejected":["`+reject+`"]}`)
		} else {
			_, _ = io.WriteString(w, `{"rejected":[]}`)
		}
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gatewayServer) set(fn func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn()
}

func (g *gatewayServer) next(t *testing.T) gjson.Result {
	t.Helper()
	select {
	case n := <-g.got:
		return n
	case <-time.After(testkit.Patience):
		t.Fatal("the gateway got nothing")
		return gjson.Result{}
	}
}

func (g *gatewayServer) none(t *testing.T) {
	t.Helper()
	select {
	case n := <-g.got:
		t.Fatalf("the gateway got %s", n.Raw)
	case <-time.After(200 * time.Millisecond):
	}
}

func pusherBody(g *gatewayServer, appID, pushkey, format string) string {
	f := ""
	if format != "" {
		f = `,"format":"` + format + `"`
	}
	return `{"kind":"http","app_id":"` + appID + `","pushkey":"` + pushkey + `","app_display_name":"App","device_display_name":"Phone","lang":"zh-CN",
		"data":{"url":"` + g.URL + notifyPath + `","default_payload":{"x":1}` + f + `}}`
}
