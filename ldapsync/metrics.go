package ldapsync

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// numbers are counted by the process that follows a directory.
type numbers struct {
	following, waiting                                  atomic.Bool
	seen                                                atomic.Int64 // ms
	runs, failures, faults                              atomic.Int64
	created, updated, enabled, disabled, joined, leaved atomic.Int64
}

func (n *numbers) add(r *Report) {
	n.runs.Add(1)
	n.faults.Add(int64(r.FaultCount))
	n.created.Add(int64(r.Created))
	n.updated.Add(int64(r.Updated))
	n.enabled.Add(int64(r.Enabled))
	n.disabled.Add(int64(r.Barred))
	n.joined.Add(int64(r.Groups.Join + r.Groups.Invite))
	n.leaved.Add(int64(r.Groups.Leave))
}

var (
	descFollowing = prometheus.NewDesc("moothall_directory_following", "Whether this process follows the directory.", []string{"directory"}, nil)
	descWaiting   = prometheus.NewDesc("moothall_directory_waiting", "Whether a run waits for a confirmation: somebody has to look.", []string{"directory"}, nil)
	descSeen      = prometheus.NewDesc("moothall_directory_last_success_seconds", "When the directory was read last, in seconds since 1970.", []string{"directory"}, nil)
	descRuns      = prometheus.NewDesc("moothall_directory_runs_total", "Runs that ended.", []string{"directory"}, nil)
	descFailures  = prometheus.NewDesc("moothall_directory_failures_total", "Times that the directory could not be read.", []string{"directory"}, nil)
	descFaults    = prometheus.NewDesc("moothall_directory_entry_errors_total", "Entries that could not be taken over.", []string{"directory"}, nil)
	descChanges   = prometheus.NewDesc("moothall_directory_changes_total", "Accounts and memberships that were changed.", []string{"directory", "what"}, nil)
)

// Describe implements prometheus.Collector.
func (s *Sync) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descFollowing, descWaiting, descSeen, descRuns, descFailures, descFaults, descChanges} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Sync) Collect(ch chan<- prometheus.Metric) {
	for _, d := range s.dirs {
		n, name := &d.numbers, d.cfg.ID
		gauge := func(desc *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, v, name)
		}
		count := func(desc *prometheus.Desc, v int64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(v), append([]string{name}, labels...)...)
		}
		gauge(descFollowing, float64(boolInt(n.following.Load())))
		gauge(descWaiting, float64(boolInt(n.waiting.Load())))
		gauge(descSeen, float64(n.seen.Load())/1000)
		count(descRuns, n.runs.Load())
		count(descFailures, n.failures.Load())
		count(descFaults, n.faults.Load())
		for what, v := range map[string]*atomic.Int64{
			"created": &n.created, "updated": &n.updated, "enabled": &n.enabled, "disabled": &n.disabled, "joined": &n.joined, "left": &n.leaved,
		} {
			count(descChanges, v.Load(), what)
		}
	}
}
