package homeserver

import (
	"net/http"
	"runtime/pprof"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// profileRoutes give operators what `go tool pprof` reads. They stand beside the metrics only, never where clients are.
func (s *Server) profileRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /debug/pprof/profile", Handler: s.cpuProfile},
		{Pattern: "GET /debug/pprof/{name}", Handler: s.namedProfile},
	}
}

// cpuProfile handles GET /debug/pprof/profile: CPU use over the next seconds (query seconds, 10 by default, at most 60).
func (s *Server) cpuProfile(w http.ResponseWriter, r *http.Request) error {
	seconds, err := web.QueryInt(r, "seconds", 10, 1, 60)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := pprof.StartCPUProfile(w); err != nil {
		return mxerr.Unavailable("a CPU profile is being taken already")
	}
	defer pprof.StopCPUProfile()
	select {
	case <-r.Context().Done():
	case <-s.stopping:
	case <-time.After(time.Duration(seconds) * time.Second):
	}
	return nil
}

// namedProfile handles GET /debug/pprof/{name}: heap, goroutine, allocs, block, mutex.
func (s *Server) namedProfile(w http.ResponseWriter, r *http.Request) error {
	p := pprof.Lookup(web.PathParam(r, "name"))
	if p == nil {
		return mxerr.NotFound("there is no such profile; there are heap, goroutine, allocs, block and mutex")
	}
	debug, err := web.QueryInt(r, "debug", 0, 0, 2)
	if err != nil {
		return err
	}
	if debug == 0 {
		w.Header().Set("Content-Type", "application/octet-stream")
	} else {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	}
	return p.WriteTo(w, debug)
}
