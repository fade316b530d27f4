package appservices

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/moothall/moothall/homeserver/store"
)

var (
	descBacklog  = prometheus.NewDesc("moothall_appservice_backlog", "Events and the like that wait for an application service.", []string{"appservice"}, nil)
	descWaiting  = prometheus.NewDesc("moothall_appservice_backlog_transactions", "Transactions that wait for an application service.", []string{"appservice"}, nil)
	descFailures = prometheus.NewDesc("moothall_appservice_failures", "Attempts in vain since an application service last took a transaction.", []string{"appservice"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Services) Describe(ch chan<- *prometheus.Desc) {
	ch <- descBacklog
	ch <- descWaiting
	ch <- descFailures
}

// Collect implements prometheus.Collector. The process that delivers has the numbers.
func (s *Services) Collect(ch chan<- prometheus.Metric) {
	if !s.line.active.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	type numbers struct{ events, txns, failures int64 }
	all := map[string]numbers{}
	err := s.Store.Read(ctx, func(tx *store.Tx) error {
		states, err := tx.ServiceStates()
		if err != nil {
			return err
		}
		for _, service := range s.current().receivers() {
			n := numbers{failures: states[service].Failures}
			if n.txns, n.events, err = tx.ServiceBacklog(service); err != nil {
				return err
			}
			all[service] = n
		}
		return nil
	})
	if err != nil {
		s.Logger.Warn("count what waits for application services", "error", err)
		return
	}
	for service, n := range all {
		ch <- prometheus.MustNewConstMetric(descBacklog, prometheus.GaugeValue, float64(n.events), service)
		ch <- prometheus.MustNewConstMetric(descWaiting, prometheus.GaugeValue, float64(n.txns), service)
		ch <- prometheus.MustNewConstMetric(descFailures, prometheus.GaugeValue, float64(n.failures), service)
	}
}
