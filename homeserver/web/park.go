package web

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// A request that waits for minutes costs net/http two goroutines, their stacks and three buffers: 30 KiB. A Lot takes the
// connection of such a request out of net/http (it is hijacked) and keeps it with one goroutine of the smallest size, which
// waits until the connection can be read or somebody wakes it. The answer is written here; with the client's next request
// the connection goes back to the http.Server, which takes it for a new one (decision 0305).

// Lot is a listener whose connections can be parked: Listen on it, and give its Context to the http.Server.
type Lot struct {
	net.Listener
	idle     time.Duration // how long a connection may wait for its next request
	accepted chan accepted
	back     chan net.Conn // connections whose next request has come
	once     sync.Once
	closed   chan struct{}

	mu      sync.Mutex
	parked  map[*Parked]struct{}
	leaving bool
	over    sync.WaitGroup // requests under way
}

type accepted struct {
	conn net.Conn
	err  error
}

type lotKey struct{}

// NewLot makes a Lot of a listener. idle bounds the time between two requests of a connection that was parked.
func NewLot(l net.Listener, idle time.Duration) *Lot {
	return &Lot{
		Listener: l, idle: idle, accepted: make(chan accepted), back: make(chan net.Conn), closed: make(chan struct{}),
		parked: make(map[*Parked]struct{}),
	}
}

// Context lets the requests of an http.Server that serves the Lot be parked.
func (l *Lot) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, lotKey{}, &parking{l, ctx})
}

// parking is what a request finds in its context.
type parking struct {
	lot *Lot
	ctx context.Context // of requests that go on without net/http
}

// Accept implements net.Listener: a new connection, or one that was parked.
func (l *Lot) Accept() (net.Conn, error) {
	l.once.Do(func() { go l.accept() })
	select {
	case c := <-l.back:
		return c, nil
	case a := <-l.accepted:
		return a.conn, a.err
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// accept ends with the listener.
func (l *Lot) accept() {
	for {
		var a accepted
		a.conn, a.err = l.Listener.Accept()
		select {
		case l.accepted <- a:
		case <-l.closed:
			if a.conn != nil {
				_ = a.conn.Close()
			}
			return
		}
	}
}

// Close implements net.Listener.
func (l *Lot) Close() error {
	l.mu.Lock()
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	l.mu.Unlock()
	return l.Listener.Close()
}

// Drain makes all parked requests answer now, and gives connections without a request back to the http.Server.
func (l *Lot) Drain() {
	l.mu.Lock()
	l.leaving = true
	waiting := make([]*Parked, 0, len(l.parked))
	for p := range l.parked {
		waiting = append(waiting, p)
	}
	l.mu.Unlock()
	for _, p := range waiting {
		p.Wake()
	}
}

// Wait waits for the parked requests' answers.
func (l *Lot) Wait(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		l.over.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

func (l *Lot) isLeaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaving
}

// Waiter is what goes on with a parked request.
type Waiter interface {
	// Look answers if there is something to tell, or if it is the last time that it is asked. An error is answered as that
	// of a Handler.
	Look(ctx context.Context, w http.ResponseWriter, last bool) (done bool, err error)
	// Over is called once, when the request was answered or its client has gone.
	Over()
}

// Parked is a request whose connection is parked.
type Parked struct {
	lot    *Lot
	ctx    context.Context
	conn   *net.TCPConn
	raw    syscall.RawConn
	waiter Waiter
	until  time.Time

	m        *Mux
	identity *Identity
	pattern  string
	method   string
	path     string
	id       string
	ip       netip.Addr
	start    time.Time
	cors     bool
	close    bool // the connection ends with this answer

	mu     sync.Mutex
	woken  bool
	asleep bool // the read deadline is what wakes it
}

// Park takes a request out of net/http until the given time. The handler of a request that was parked returns nil at once
// and uses nothing of the request any more; x.Look is called after Wake and at the end of the time. Where a request cannot
// be parked (HTTP/2, TLS, other systems) it returns nil.
func Park(r *http.Request, until time.Time, x Waiter) *Parked {
	q := stateOf(r)
	if q == nil || !canPark || r.ProtoMajor != 1 || r.ProtoMinor != 1 || r.Close || r.ContentLength < 0 || r.Method == http.MethodHead || q.status != 0 {
		return nil
	}
	at, _ := q.Context.Value(lotKey{}).(*parking)
	if at == nil {
		return nil
	}
	p := &Parked{
		lot: at.lot, ctx: at.ctx, waiter: x, until: until, m: q.m, identity: q.identity, pattern: q.pattern, method: r.Method, path: r.URL.Path,
		id: q.id, ip: q.ip, start: q.start, cors: q.Header()["Access-Control-Allow-Origin"] != nil,
	}
	if !p.lot.enter(p) {
		return nil
	}
	conn, buffered, err := http.NewResponseController(q.response.w).Hijack()
	if err != nil {
		p.leave()
		p.lot.over.Done()
		return nil
	}
	q.parked = true
	// A client that sent its next request already gets this answer at once, and sends the other one again.
	// Spec: RFC 9112, section 9.3.2.
	p.close = buffered.Reader.Buffered() > 0
	var ok bool
	if p.conn, ok = conn.(*net.TCPConn); ok {
		p.raw, err = p.conn.SyscallConn()
	}
	if !ok || err != nil { // no listener of ours has such connections
		p.leave()
		_ = conn.Close()
		p.finish()
		return p
	}
	if p.close {
		p.Wake()
	}
	go p.wait()
	return p
}

// enter counts a request that is about to be parked; false once the server leaves.
func (l *Lot) enter(p *Parked) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving {
		return false
	}
	l.parked[p] = struct{}{}
	l.over.Add(1)
	return true
}

// Wake has the request looked at again. It may be called at any time and does not wait.
func (p *Parked) Wake() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.woken = true
	if p.asleep {
		_ = p.conn.SetReadDeadline(past)
	}
}

var past = time.Unix(1, 0)

// news is what ends a wait.
type news int

const (
	newsWoken news = iota
	newsTime
	newsBytes
	newsGone
)

// sleep waits for news of the connection. It uses little of the stack, and nothing of what it calls stays on it.
func (p *Parked) sleep(until time.Time) news {
	p.mu.Lock()
	if p.woken {
		p.woken = false
		p.mu.Unlock()
		return newsWoken
	}
	p.asleep = true
	_ = p.conn.SetReadDeadline(until)
	p.mu.Unlock()
	bytes, err := readable(p.raw)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asleep = false
	woken := p.woken
	p.woken = false
	switch {
	case err == nil && !bytes:
		return newsGone
	case err == nil:
		p.woken = woken
		return newsBytes
	case !isTimeout(err):
		return newsGone
	case woken:
		return newsWoken
	}
	return newsTime
}

// wait waits for news of a request that is not answered yet.
func (p *Parked) wait() {
	switch p.sleep(p.until) {
	case newsGone:
		p.leave()
		_ = p.conn.Close()
		p.finish()
	case newsTime:
		go p.look(true)
	case newsBytes: // the next request, before this one was answered
		p.close = true
		go p.look(true)
	case newsWoken:
		go p.look(p.close || p.lot.isLeaving())
	}
}

// look asks for an answer on a goroutine of its own: its stack grows, and the one that waits is to have a small one.
func (p *Parked) look(last bool) {
	w := &parkedWriter{p: p, header: make(http.Header, 12)}
	q := &request{Context: p.ctx, identity: p.identity, ip: p.ip, id: p.id, m: p.m, start: p.start, pattern: p.pattern}
	q.response.w = w
	w.header["X-Request-Id"] = []string{p.id}
	if p.cors {
		setCORS(w.header)
	}
	if !p.ask(q, last) {
		go p.wait()
		return
	}
	if p.m.cfg.Observe != nil {
		p.m.cfg.Observe(p.pattern, q.statusCode(), time.Since(p.start), q.written)
	}
	if p.m.cfg.Logger.Enabled(p.ctx, slog.LevelDebug) {
		p.m.accessLog(q, p.request(), p.pattern, time.Since(p.start))
	}
	if p.close || w.err != nil || p.lot.isLeaving() {
		p.leave()
		_ = p.conn.Close()
		p.finish()
		return
	}
	p.finish()
	go p.next()
}

// ask is the part of a look that may fail or panic.
func (p *Parked) ask(q *request, last bool) (done bool) {
	defer func() {
		if fault := recover(); fault != nil {
			p.close, done = true, true
			if err, ok := fault.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				return // net/http's way to cut a connection
			}
			p.m.panicked(q, p.request(), fault)
		}
	}()
	done, err := p.waiter.Look(p.ctx, q, last)
	if err != nil {
		p.m.fail(q, p.request(), err)
	}
	return done || last || err != nil
}

// request is what log entries name.
func (p *Parked) request() *http.Request {
	return (&http.Request{Method: p.method, URL: &url.URL{Path: p.path}}).WithContext(p.ctx)
}

// finish ends the request; the connection may go on.
func (p *Parked) finish() {
	p.waiter.Over()
	p.waiter, p.identity = nil, nil
	p.lot.over.Done()
}

func (p *Parked) leave() {
	p.lot.mu.Lock()
	defer p.lot.mu.Unlock()
	delete(p.lot.parked, p)
}

// next waits for the connection's next request and gives it back to the http.Server then.
func (p *Parked) next() {
	until := time.Now().Add(p.lot.idle)
	for {
		switch p.sleep(until) {
		case newsWoken:
			if !p.lot.isLeaving() {
				continue // a late wake-up of the request before
			}
		case newsGone, newsTime:
			p.leave()
			_ = p.conn.Close()
			return
		case newsBytes:
		}
		p.leave()
		_ = p.conn.SetDeadline(time.Time{})
		select {
		case p.lot.back <- p.conn:
		case <-p.lot.closed:
			_ = p.conn.Close()
		}
		return
	}
}

// parkedWriter writes an HTTP/1.1 response to a parked connection. Handlers say how long it is, or it ends with the connection.
type parkedWriter struct {
	p      *Parked
	header http.Header
	head   []byte
	err    error
}

// Header implements http.ResponseWriter.
func (w *parkedWriter) Header() http.Header { return w.header }

// SetWriteDeadline is found by http.ResponseController.
func (w *parkedWriter) SetWriteDeadline(t time.Time) error { return w.p.conn.SetWriteDeadline(t) }

// WriteHeader implements http.ResponseWriter. The head is sent with the first bytes of the body.
func (w *parkedWriter) WriteHeader(status int) {
	if w.header["Content-Length"] == nil {
		w.p.close = true
	}
	b := make([]byte, 0, 768)
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(status)...)
	b = append(b, "\r\nDate: "...)
	b = time.Now().UTC().AppendFormat(b, http.TimeFormat)
	b = append(b, "\r\n"...)
	for name, values := range w.header {
		for _, v := range values {
			b = append(b, name...)
			b = append(b, ": "...)
			b = append(b, v...)
			b = append(b, "\r\n"...)
		}
	}
	if w.p.close || w.p.lot.isLeaving() {
		w.p.close = true
		b = append(b, "Connection: close\r\n"...)
	}
	w.head = append(b, "\r\n"...)
}

// Write implements http.ResponseWriter.
func (w *parkedWriter) Write(body []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	if w.head == nil {
		w.err = w.writeAll(body)
	} else {
		head := w.head
		w.head = nil
		if len(body) <= cap(head)-len(head)+8<<10 {
			w.err = w.writeAll(append(head, body...))
		} else {
			parts := net.Buffers{head, body}
			_, w.err = parts.WriteTo(w.p.conn)
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	return len(body), nil
}

func (w *parkedWriter) writeAll(b []byte) error {
	_, err := w.p.conn.Write(b)
	return err
}
