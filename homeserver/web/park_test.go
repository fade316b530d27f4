package web

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/testkit"
)

// waiter parks whatever comes and answers when it is told to.
type waiter struct {
	parked *Parked
	say    atomic.Value // string: what to answer
	looks  atomic.Int32
	over   chan struct{}
}

func (x *waiter) Look(_ context.Context, w http.ResponseWriter, last bool) (bool, error) {
	x.looks.Add(1)
	switch say, _ := x.say.Load().(string); say {
	case "":
		if !last {
			return false, nil
		}
		return true, WriteJSON(w, map[string]string{"said": "nothing"})
	case "forbidden":
		return true, mxerr.Forbidden("no more")
	case "panic":
		panic("of the test")
	default:
		return true, WriteJSON(w, map[string]string{"said": say})
	}
}

func (x *waiter) Over() { close(x.over) }

type parkServer struct {
	*http.Server
	lot      *Lot
	url      string
	waiters  chan *waiter
	observed chan int
}

func newParkServer(t *testing.T, wait time.Duration) *parkServer {
	t.Helper()
	s := &parkServer{waiters: make(chan *waiter, 10), observed: make(chan int, 100)}
	mux, err := NewMux(Config{
		Observe: func(_ string, status int, _ time.Duration, _ int64) { s.observed <- status },
	}, []Route{
		{Pattern: "GET /_matrix/wait", Handler: func(w http.ResponseWriter, r *http.Request) error {
			x := &waiter{over: make(chan struct{})}
			if x.parked = Park(r, time.Now().Add(wait), x); x.parked == nil {
				return WriteJSON(w, map[string]string{"said": "not parked"})
			}
			s.waiters <- x
			return nil
		}},
		{Pattern: "POST /_matrix/echo", Handler: func(w http.ResponseWriter, r *http.Request) error {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return err
			}
			return WriteRaw(w, b)
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.lot = NewLot(l, time.Minute)
	s.url = "http://" + l.Addr().String()
	s.Server = &http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		BaseContext: func(net.Listener) context.Context { return s.lot.Context(context.Background()) },
	}
	go func() { _ = s.Serve(s.lot) }()
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// wait sends a request that is parked; the answer comes on the channel.
func (s *parkServer) wait(t *testing.T, c *http.Client, reused *bool) (*waiter, <-chan string) {
	t.Helper()
	answer := make(chan string, 1)
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { *reused = i.Reused }})
	r, err := http.NewRequestWithContext(ctx, "GET", s.url+"/_matrix/wait", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		resp, err := c.Do(r)
		if err != nil {
			answer <- err.Error()
			return
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		answer <- fmt.Sprintf("%d %s %v %s", resp.StatusCode, strings.TrimSpace(string(b)), err, resp.Header.Get("Access-Control-Allow-Origin"))
	}()
	select {
	case x := <-s.waiters:
		return x, answer
	case got := <-answer:
		t.Fatalf("the request was not parked: %s", got)
	case <-time.After(testkit.Patience):
		t.Fatal("no request came")
	}
	return nil, nil
}

func receive[T any](t *testing.T, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(testkit.Patience):
		t.Fatal("nothing came within 5 s")
		panic("unreachable")
	}
}

// TestPark sends requests over one connection, of which some are parked: answered after a wake-up with news, refused, and
// a request with a body in between, which the connection's return must not cut.
func TestPark(t *testing.T) {
	s := newParkServer(t, time.Minute)
	c := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	var reused bool
	for i := range 20 {
		x, answer := s.wait(t, c, &reused)
		if i > 0 && !reused {
			t.Fatal("the connection was not used again")
		}
		x.parked.Wake() // without news
		for x.looks.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		long := strings.Repeat("x", i*i*1000)
		say, want := "news"+long, `200 {"said":"news`+long+`"} <nil> *`
		if i%5 == 4 {
			say, want = "forbidden", "403 "
		}
		x.say.Store(say)
		x.parked.Wake()
		if got := receive(t, answer); got != want && (say != "forbidden" || !strings.HasPrefix(got, want) || !strings.Contains(got, "M_FORBIDDEN")) {
			t.Fatalf("got %.200s, want %.200s", got, want)
		}
		receive(t, x.over)
		if got := receive(t, s.observed); got != 200 && got != 403 {
			t.Errorf("counted with status %d", got)
		}
		if i%2 == 0 {
			body := strings.Repeat("y", 1+i*40_000)
			resp, err := c.Post(s.url+"/_matrix/echo", "text/plain", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != body {
				t.Fatalf("%d of %d bytes came back: %v", len(b), len(body), err)
			}
			_ = resp.Body.Close()
			receive(t, s.observed)
		}
	}
	if len(s.observed) != 0 {
		t.Errorf("%d requests were counted twice", len(s.observed))
	}
}

func TestParkEnds(t *testing.T) {
	var reused bool
	t.Run("time", func(t *testing.T) {
		s := newParkServer(t, 50*time.Millisecond)
		_, answer := s.wait(t, &http.Client{Transport: &http.Transport{}}, &reused)
		if got := receive(t, answer); got != `200 {"said":"nothing"} <nil> *` {
			t.Error(got)
		}
	})
	t.Run("panic", func(t *testing.T) {
		s := newParkServer(t, time.Minute)
		x, answer := s.wait(t, &http.Client{Transport: &http.Transport{}}, &reused)
		x.say.Store("panic")
		x.parked.Wake()
		if got := receive(t, answer); !strings.HasPrefix(got, "500 ") {
			t.Error(got)
		}
	})
	t.Run("client gone", func(t *testing.T) {
		s := newParkServer(t, time.Minute)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /_matrix/wait HTTP/1.1\r\nHost: x\r\n\r\n")
		x := receive(t, s.waiters)
		_ = conn.Close()
		receive(t, x.over)
	})
	t.Run("next request too early", func(t *testing.T) {
		s := newParkServer(t, time.Minute)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "GET /_matrix/wait HTTP/1.1\r\nHost: x\r\n\r\n")
		receive(t, s.waiters)
		fmt.Fprintf(conn, "GET /_matrix/wait HTTP/1.1\r\nHost: x\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("%v, %v; the answer ends the connection, so that the client sends the other request again", resp, err)
		}
	})
	for _, what := range []string{"HTTP/1.0\r\n\r\n", "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"} {
		s := newParkServer(t, time.Minute)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /_matrix/wait %s", what)
		if b, err := io.ReadAll(conn); err != nil || !strings.Contains(string(b), "not parked") {
			t.Errorf("%q: %s, %v", what, b, err)
		}
		_ = conn.Close()
	}
}

// TestParkDrain stops a server with parked requests and with a connection that waits for its next one.
func TestParkDrain(t *testing.T) {
	s := newParkServer(t, time.Minute)
	var reused bool
	c := &http.Client{Transport: &http.Transport{}}
	x, answer := s.wait(t, c, &reused)
	x.say.Store("news")
	x.parked.Wake()
	receive(t, answer)
	for range 3 { // on connections of their own, but for the first
		_, a := s.wait(t, c, &reused)
		defer func() {
			if got := receive(t, a); got != `200 {"said":"nothing"} <nil> *` {
				t.Error(got)
			}
		}()
	}
	s.lot.Drain()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	s.lot.Wait(ctx)
	if ctx.Err() != nil {
		t.Error("the parked requests were not answered")
	}
}
