// Package homeserver puts the server together: New builds every part of a Config, Run runs them.
package homeserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Server is a built homeserver. Its addresses are bound, but nothing runs before Run.
type Server struct {
	cfg      Config
	log      *slog.Logger
	store    *store.Store
	key      event.SigningKey
	accounts *account.Accounts
	parts
	kit       *page.Kit
	pages     *pages
	metrics   *metrics
	limits    *web.Limiter
	mux       *web.Mux // everything for clients
	ops       *web.Mux // health and metrics alone
	listeners []*listener
	setupLink string

	stopOnce sync.Once
	stopping chan struct{} // closed when shutdown begins: long polls answer at once
}

// New opens the database, binds the addresses and builds the parts. Its errors are for the operator, one line each.
func New(ctx context.Context, cfg Config, log *slog.Logger) (*Server, error) {
	cfg.complete()
	s := &Server{cfg: cfg, log: log, metrics: newMetrics(), stopping: make(chan struct{})}
	if err := s.build(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) build(ctx context.Context) error {
	if err := checkDataDir(s.cfg.DataDir); err != nil {
		return err
	}
	var err error
	if s.listeners, err = bind(&s.cfg, s.log); err != nil {
		return err
	}
	if strings.HasSuffix(s.cfg.PublicURL, ":0") {
		s.cfg.PublicURL = s.localURL() // the port was chosen by the system
	}
	if s.store, err = store.Open(ctx, s.cfg.StoreConfig(), s.log); err != nil {
		return err
	}
	if s.key, err = loadIdentity(ctx, s.store, s.cfg.ServerName); err != nil {
		return err
	}
	if s.kit, err = s.cfg.kit(); err != nil {
		return err
	}
	if s.pages, err = newPages(s.kit); err != nil {
		return err
	}
	s.limits = s.cfg.Limiter()
	if err := s.buildParts(); err != nil {
		return err
	}
	if err := s.services.Prepare(ctx); err != nil {
		return err
	}
	if s.setupLink, err = s.prepareSetup(ctx); err != nil {
		return err
	}
	return s.buildRoutes()
}

// buildRoutes makes the muxes from the tables of all parts.
func (s *Server) buildRoutes() error {
	s.metrics.gauge("moothall_log_applied_position", "Position of the log up to which this process's memory is.",
		func() float64 { return float64(s.store.Applied()) })
	s.searchMetrics()
	s.metrics.registry.MustRegister(s.directory)
	s.metrics.registry.MustRegister(s.services)
	cfg := web.Config{
		Authenticate: s.services.Authenticator(s.accounts.Authenticator),
		Trusted:      func(r *http.Request) bool { return s.services.Of(r) != "" },
		Limits:       s.limits,
		Logger:       s.log,
		OnPanic:      func(any) { s.metrics.panics.Inc() },
		Observe:      s.metrics.observe,
		Refused:      s.permissionRefused,
		Writing:      s.store.Expect,
	}
	if !s.store.SQLite() {
		cfg.CatchUp = s.catchUp
	}
	var err error
	tables := append(s.partRoutes(), s.healthRoutes(), s.pageRoutes(), s.wellKnownRoutes(), s.serverFactRoutes(), s.emailPageRoutes(), s.kit.Routes())
	if s.mux, err = web.NewMux(cfg, tables...); err != nil {
		return err
	}
	if s.ops, err = web.NewMux(web.Config{Logger: s.log}, s.healthRoutes(), s.metricsRoutes(), s.profileRoutes()); err != nil {
		return err
	}
	s.metrics.know(s.mux.Routes())
	return nil
}

// catchUp brings this process up to the log's head and tells whether it was behind.
func (s *Server) catchUp(ctx context.Context) (bool, error) {
	before := s.store.Applied()
	err := s.store.CatchUp(ctx)
	return s.store.Applied() != before, err
}

// handler is what a listener answers with.
func (s *Server) handler(l *listener) http.Handler {
	if !l.serves(ServeClient) {
		return s.ops
	}
	clients := s.mux.Behind(l.proxies)
	if !l.serves(ServeMetrics) {
		return clients
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			s.ops.ServeHTTP(w, r)
			return
		}
		clients.ServeHTTP(w, r)
	})
}

// Run serves until ctx ends, then stops in order: the listeners, long polls, requests under way, the followers of the
// log, the database. It returns the first error that stopped the server, or nil.
func (s *Server) Run(ctx context.Context) error {
	// The followers outlive ctx: requests that are still answered wait for what they apply.
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	g, work := errgroup.WithContext(work)
	g.Go(func() error {
		return s.store.Follow(work, s.listenersOfLog(), s.onBroadcast)
	})
	select {
	case <-s.store.Following(): // what is committed from here on reaches the memory of the parts
	case <-work.Done():
	}
	s.runParts(work, g)
	g.Go(func() error {
		defer stopWork()
		serving, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(work, stop)() // a part that failed stops the listeners too
		return serveHTTP(serving, s.listeners, s.handler, s.log, s.stop)
	})
	for _, l := range s.listeners {
		s.log.Info("listening", "address", l.Addr().String(), "serves", l.serve, "tls", l.cert != nil)
	}
	err := g.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, s.Close())
}

// stop tells long polls to answer at once.
func (s *Server) stop() {
	s.stopOnce.Do(func() {
		close(s.stopping)
		s.sync.Drain()
	})
}

// Close lets go of addresses and database. Run does so itself; Close is for a Server that is not run.
func (s *Server) Close() error {
	for _, l := range s.listeners {
		_ = l.Close() // closed before by its http.Server, usually
	}
	s.listeners = nil
	if s.store == nil {
		return nil
	}
	err := s.store.Close()
	s.store = nil
	return err
}

// SetupLink is the one-time address at which the first administrator is made, "" when there is one.
func (s *Server) SetupLink() string { return s.setupLink }

// URL is the first client listener's own address, such as http://127.0.0.1:8008.
func (s *Server) URL() string { return s.localURL() }

func (s *Server) localURL() string {
	for _, l := range s.listeners {
		if l.serves(ServeClient) {
			return l.url()
		}
	}
	return s.cfg.PublicURL
}

// checkDataDir makes the data directory and finds out whether it can be written to.
func checkDataDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	f, err := os.CreateTemp(dir, ".write-check-*")
	if err != nil {
		return fmt.Errorf("data_dir: %s cannot be written to by this user: %w", dir, err)
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// Version names the program's version and, where the build knows it, its commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	version, revision, dirty := info.Main.Version, "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+changes"
		}
	}
	if version == "" || version == "(devel)" {
		version = "devel"
		if revision != "" {
			version += " " + revision + dirty
		}
	}
	return version + " " + info.GoVersion
}

// Routes lists every route that clients can reach.
func (s *Server) Routes() []web.Route { return s.mux.Routes() }
