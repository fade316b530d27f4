package homeserver

import (
	"context"
	"net/http"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// readyTimeout is how long the database may take to answer before the server calls itself not ready.
const readyTimeout = 2 * time.Second

func (s *Server) healthRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /health", Handler: s.health},
		{Pattern: "GET /ready", Handler: s.ready},
	}
}

func (s *Server) metricsRoutes() []web.Route {
	h := s.metrics.handler()
	return []web.Route{{Pattern: "GET /metrics", Handler: func(w http.ResponseWriter, r *http.Request) error {
		h.ServeHTTP(w, r)
		return nil
	}}}
}

func (s *Server) wellKnownRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /.well-known/matrix/client", Handler: s.wellKnownClient},
		{Pattern: "GET /.well-known/matrix/support", Handler: s.wellKnownSupport},
	}
}

type healthResponse struct {
	Status string `json:"status"`
}

// health handles GET /health: the process is alive and answers.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, healthResponse{"ok"})
}

// ready handles GET /ready: the database is there and this process has applied all that is in its log. A server that
// shuts down is not ready, so that a balancer sends nobody else.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) error {
	select {
	case <-s.stopping:
		return mxerr.Unavailable("the server is shutting down")
	default:
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := s.store.CatchUp(ctx); err != nil {
		s.log.Debug("not ready", "error", err)
		return mxerr.Unavailable("the database does not answer, or this process lags behind it")
	}
	return web.WriteJSON(w, healthResponse{"ok"})
}

type wellKnownClient struct {
	Homeserver struct {
		BaseURL string `json:"base_url"`
	} `json:"m.homeserver"`
	Foci []jsontext.Value `json:"org.matrix.msc4143.rtc_foci,omitempty"`
	E2EE map[string]any   `json:"io.element.e2ee,omitempty"`
}

// wellKnownClient handles GET /.well-known/matrix/client.
// Spec: client-server API, "Server discovery".
func (s *Server) wellKnownClient(w http.ResponseWriter, _ *http.Request) error {
	var out wellKnownClient
	out.Homeserver.BaseURL = s.cfg.PublicURL
	out.Foci = s.rtc.Transports()
	out.E2EE = s.classes.WellKnown()
	return web.WriteJSON(w, out)
}

type supportContact struct {
	Role     string `json:"role"`
	Email    string `json:"email_address,omitempty"`
	MatrixID string `json:"matrix_id,omitempty"`
}

type wellKnownSupport struct {
	Contacts    []supportContact `json:"contacts,omitempty"`
	SupportPage string           `json:"support_page,omitempty"`
}

// wellKnownSupport handles GET /.well-known/matrix/support.
// Spec: client-server API, "Well-known URIs", support.
func (s *Server) wellKnownSupport(w http.ResponseWriter, _ *http.Request) error {
	out := wellKnownSupport{SupportPage: s.cfg.WellKnown.SupportPage}
	for _, c := range s.cfg.WellKnown.Contacts {
		out.Contacts = append(out.Contacts, supportContact(c))
	}
	if len(out.Contacts) == 0 && out.SupportPage == "" {
		return mxerr.NotFound("this server names nobody to ask")
	}
	return web.WriteJSON(w, out)
}
