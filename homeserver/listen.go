package homeserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/web"
)

const (
	headerTimeout = 20 * time.Second
	idleTimeout   = 3 * time.Minute
	maxHeader     = 32 << 10
	drainTime     = 10 * time.Second // how long requests under way may take at shutdown
	certEvery     = 2 * time.Second  // how often a certificate's files are looked at, while connections come in
)

// listener is one bound address.
type listener struct {
	net.Listener
	lot     *web.Lot // the listener itself where its long polls can be parked, else nil
	what    string   // for error messages: "listen[0].address"
	cert    *certificate
	serve   []string
	proxies []netip.Prefix
}

// bind opens all addresses, so that a port in use is known before anything is started.
func bind(cfg *Config, log *slog.Logger) (out []*listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range out {
				_ = l.Close()
			}
		}
	}()
	wanted := make([]Listen, len(cfg.Listen), len(cfg.Listen)+1)
	copy(wanted, cfg.Listen)
	if cfg.Metrics.Address != "" {
		wanted = append(wanted, Listen{Address: cfg.Metrics.Address, Serve: []string{ServeMetrics}})
	}
	for i, w := range wanted {
		l := &listener{what: index("listen", i) + ".address", serve: w.Serve}
		if i == len(cfg.Listen) {
			l.what = "metrics.address"
		}
		if l.proxies, err = w.proxies(); err != nil {
			return out, fmt.Errorf("%s.trusted_proxies: %w", index("listen", i), err)
		}
		if w.TLS.Certificate != "" {
			if l.cert, err = openCertificate(w.TLS, log); err != nil {
				return out, fmt.Errorf("%s.tls: %w", index("listen", i), err)
			}
		}
		if l.Listener, err = net.Listen("tcp", w.Address); err != nil {
			return out, bindError(l.what, w.Address, err)
		}
		if l.cert == nil { // what is encrypted, and HTTP/2, stays in net/http
			l.lot = web.NewLot(l.Listener, idleTimeout)
			l.Listener = l.lot
		}
		out = append(out, l)
	}
	return out, nil
}

// bindError says in one line why an address cannot be listened on.
func bindError(what, address string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s: %s is in use by another program (is moothall running already?)", what, address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%s: this user may not listen on %s; ports below 1024 need a right or a proxy", what, address)
	}
	return fmt.Errorf("%s: cannot listen on %s: %w", what, address, err)
}

func (l *listener) serves(what string) bool { return Listen{Serve: l.serve}.serves(what) }

// url is the listener's own address for people on this machine.
func (l *listener) url() string {
	scheme := "http"
	if l.cert != nil {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(l.Addr().String())
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}

// serveHTTP serves all listeners until ctx ends, then lets the requests under way finish. stopping is called first: long
// polls are to answer at once. base is the context of requests; it outlives ctx by the time they get.
func serveHTTP(ctx context.Context, listeners []*listener, handler func(*listener) http.Handler, log *slog.Logger, stopping func()) error {
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	g, ctx := errgroup.WithContext(ctx)
	servers := make([]*http.Server, 0, len(listeners))
	bye := &farewell{}
	var lots []*web.Lot
	for _, l := range listeners {
		srv := newHTTPServer(base, bye.wrap(handler(l)), log)
		srv.ConnState = bye.count
		if l.lot != nil {
			lots = append(lots, l.lot)
			srv.BaseContext = func(net.Listener) context.Context { return l.lot.Context(base) }
		}
		servers = append(servers, srv)
		g.Go(func() error {
			err := l.run(srv)
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return fmt.Errorf("%s: %w", l.what, err)
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		stopping()
		for _, lot := range lots {
			lot.Drain()
		}
		bye.say(farewellTime)
		drain(base, cut, servers, log)
		waiting, stop := context.WithTimeout(base, drainTime)
		defer stop()
		for _, lot := range lots {
			lot.Wait(waiting)
		}
		return nil
	})
	return g.Wait()
}

func newHTTPServer(base context.Context, h http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true) // for proxies that speak it to the server behind them
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		Protocols:         protocols,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

func (l *listener) run(srv *http.Server) error {
	if l.cert == nil {
		return srv.Serve(l.Listener)
	}
	srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: l.cert.get}
	return srv.ServeTLS(l.Listener, "", "")
}

// farewellTime is how long clients with kept connections are told to leave before these are closed: a request that
// arrives on a connection while it is being closed would be lost.
const farewellTime = 500 * time.Millisecond

// farewell empties the kept connections before a shutdown.
type farewell struct {
	leaving atomic.Bool
	open    atomic.Int64
}

// wrap tells clients, once the server leaves, that their connection ends with this answer.
func (f *farewell) wrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.leaving.Load() && r.ProtoMajor == 1 {
			w.Header().Set("Connection", "close")
		}
		h.ServeHTTP(w, r)
	})
}

// count is http.Server.ConnState.
func (f *farewell) count(_ net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		f.open.Add(1)
	case http.StateClosed, http.StateHijacked:
		f.open.Add(-1)
	}
}

// say begins the farewell and waits until every connection has ended, at most for the given time.
func (f *farewell) say(most time.Duration) {
	f.leaving.Store(true)
	for end := time.Now().Add(most); f.open.Load() > 0 && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
}

// drain closes the listeners and waits for requests under way; those that take too long are cut off.
func drain(base context.Context, cut func(), servers []*http.Server, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(base, drainTime)
	defer cancel()
	var wg sync.WaitGroup
	for _, srv := range servers {
		wg.Go(func() {
			if err := srv.Shutdown(ctx); err == nil {
				return
			}
			log.Warn("some requests did not end in time and are cut off")
			cut()
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if srv.Shutdown(ctx) != nil {
				_ = srv.Close()
			}
		})
	}
	wg.Wait()
}

// certificate is a certificate with its key, read again when its files change.
type certificate struct {
	files TLS
	log   *slog.Logger

	mu     sync.Mutex
	cert   *tls.Certificate
	stamp  certStamp
	looked time.Time
}

// certStamp changes when the files do.
type certStamp struct {
	cert, key         time.Time
	certSize, keySize int64
}

func openCertificate(files TLS, log *slog.Logger) (*certificate, error) {
	c := &certificate{files: files, log: log, looked: time.Now()}
	var err error
	if c.stamp, err = c.stat(); err != nil {
		return nil, err
	}
	cert, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", files.Certificate, files.Key, err)
	}
	c.cert = &cert
	return c, nil
}

func (c *certificate) stat() (certStamp, error) {
	cert, err := os.Stat(c.files.Certificate)
	if err != nil {
		return certStamp{}, err
	}
	key, err := os.Stat(c.files.Key)
	if err != nil {
		return certStamp{}, err
	}
	return certStamp{cert.ModTime(), key.ModTime(), cert.Size(), key.Size()}, nil
}

// get is tls.Config.GetCertificate. What cannot be read (a renewal half written) leaves the old certificate in use.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < certEvery {
		return c.cert, nil
	}
	c.looked = time.Now()
	stamp, err := c.stat()
	if err == nil && stamp == c.stamp {
		return c.cert, nil
	}
	if err == nil {
		var cert tls.Certificate
		if cert, err = tls.LoadX509KeyPair(c.files.Certificate, c.files.Key); err == nil {
			c.cert, c.stamp = &cert, stamp
			c.log.Info("the certificate was read again", "file", c.files.Certificate)
		}
	}
	if err != nil {
		c.log.Warn("the changed certificate cannot be read, the old one stays in use", "file", c.files.Certificate, "error", err)
	}
	return c.cert, nil
}
