package homeserver

import (
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/moothall/moothall/homeserver/web"
)

// metrics are the process's numbers for Prometheus.
type metrics struct {
	registry  *prometheus.Registry
	durations *prometheus.HistogramVec
	sent      prometheus.Counter
	panics    prometheus.Counter
	routes    map[string]*routeMetrics // by pattern; filled before requests come
}

// routeMetrics keeps a route's histograms at hand, one for each class of status, so that a request looks nothing up.
type routeMetrics struct {
	method, route string
	byClass       [6]atomic.Pointer[prometheus.Observer]
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		durations: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "moothall_http_request_duration_seconds",
			Help:    "Time from a request's first byte to the end of its handler, long polls included.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30},
		}, []string{"method", "route", "status"}),
		sent: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "moothall_http_response_bytes_total", Help: "Bytes of response bodies.",
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "moothall_http_panics_total", Help: "Handlers that panicked: each is a bug.",
		}),
		routes: map[string]*routeMetrics{"": {method: "", route: "none"}},
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.durations, m.sent, m.panics)
	return m
}

// gauge adds a number that is read when Prometheus asks.
func (m *metrics) gauge(name, help string, read func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, read))
}

// know prepares the routes' histograms.
func (m *metrics) know(routes []web.Route) {
	for _, rt := range routes {
		method, path, _ := strings.Cut(rt.Pattern, " ")
		m.routes[rt.Pattern] = &routeMetrics{method: method, route: path}
	}
}

// observe is web.Config.Observe.
func (m *metrics) observe(pattern string, status int, d time.Duration, bytesOut int64) {
	m.sent.Add(float64(bytesOut))
	rt := m.routes[pattern]
	class := status / 100
	if rt == nil || class < 1 || class > 5 {
		return
	}
	o := rt.byClass[class].Load()
	if o == nil {
		made := m.durations.WithLabelValues(rt.method, rt.route, strconv.Itoa(class)+"xx")
		o = &made
		rt.byClass[class].Store(o)
	}
	(*o).Observe(d.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}
