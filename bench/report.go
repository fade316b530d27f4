package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Result is what one phase measured. Durations are in milliseconds.
type Result struct {
	Phase       string             `json:"phase"`
	Operations  int                `json:"operations"`
	Errors      int                `json:"errors"`
	FirstError  string             `json:"first_error,omitempty"`
	Seconds     float64            `json:"seconds"`
	PerSecond   float64            `json:"per_second"`
	P50         float64            `json:"p50_ms"`
	P95         float64            `json:"p95_ms"`
	P99         float64            `json:"p99_ms"`
	Max         float64            `json:"max_ms"`
	CPU         []float64          `json:"cpu_seconds,omitempty"`          // of each --pid
	CPUPer1000  float64            `json:"cpu_seconds_per_1000,omitempty"` // of all --pid together
	Memory      []int64            `json:"memory_bytes,omitempty"`         // of each --pid, at the end
	OwnCPU      float64            `json:"generator_cpu_seconds"`
	OthersShare float64            `json:"others_share"` // of the machine, 0 to 1
	Extra       map[string]float64 `json:"extra,omitempty"`
}

func percentile(sorted []time.Duration, p float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := min(len(sorted)-1, int(p*float64(len(sorted))))
	return float64(sorted[i].Microseconds()) / 1000
}

func (r *Result) latencies(ds []time.Duration) {
	slices.Sort(ds)
	r.P50, r.P95, r.P99 = percentile(ds, 0.5), percentile(ds, 0.95), percentile(ds, 0.99)
	if len(ds) > 0 {
		r.Max = float64(ds[len(ds)-1].Microseconds()) / 1000
	}
}

// WriteJSON writes the results as one JSON array.
func WriteJSON(w io.Writer, results []Result) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(results)
}

// WriteTable writes the results for people.
func WriteTable(w io.Writer, results []Result) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%-34s %8s %6s %9s %9s %9s %9s %10s %9s %7s\n", "phase", "ops", "errors", "ops/s", "p50 ms", "p95 ms", "p99 ms", "CPU s/1000", "MiB", "others")
	for _, r := range results {
		var mem int64
		for _, m := range r.Memory {
			mem += m
		}
		fmt.Fprintf(&b, "%-34s %8d %6d %9.1f %9.2f %9.2f %9.2f %10.3f %9.1f %6.0f%%\n", r.Phase, r.Operations, r.Errors, r.PerSecond, r.P50, r.P95, r.P99,
			r.CPUPer1000, float64(mem)/(1<<20), 100*r.OthersShare)
		keys := make([]string, 0, len(r.Extra))
		for k := range r.Extra {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			fmt.Fprintf(&b, "    %s: %.3f\n", k, r.Extra[k])
		}
		if len(r.CPU) > 1 && r.Operations > 0 {
			b.WriteString("    CPU s/1000 of each --pid:")
			for _, c := range r.CPU {
				fmt.Fprintf(&b, " %.3f", 1000*c/float64(r.Operations))
			}
			b.WriteString("\n")
		}
		if r.FirstError != "" {
			fmt.Fprintf(&b, "    first error: %s\n", r.FirstError)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
