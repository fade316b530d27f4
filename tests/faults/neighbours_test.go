package faults_test

import (
	"io"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/moothall/moothall/bench"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestNeighbours measures what others feel of clients that never read their answers, of a thousand that come back at
// once, of a lively room of 5,000 and of an account in 5,000 rooms: their p99 stays within twice what it was, and the
// server's memory within bounds. It is part of scripts/soak.
func TestNeighbours(t *testing.T) {
	if os.Getenv(soakEnv) == "" {
		t.Skip("it takes minutes and a machine of its own: scripts/soak runs it")
	}
	needFaults(t)
	for _, database := range []string{"sqlite", "postgres"} {
		for _, phase := range []string{"stuck", "reconnect", "large", "many"} {
			t.Run(database+"/"+phase, func(t *testing.T) {
				url := ""
				if database == "postgres" {
					url = storetest.Postgres(t)
				}
				n := startNode(t, nodeConfig{name: "node", databaseURL: url})
				var ratio, most float64
				for try := range 3 { // another program on the machine is felt, too
					results, err := bench.Run(t.Context(), bench.Config{URLs: []string{n.url}, PIDs: []int{n.Cmd.Process.Pid}, Phases: []string{phase},
						Duration: 6 * time.Second, Idle: 1, Members: 2000, Messages: 1, Disk: t.TempDir(), Progress: io.Discard})
					if err != nil {
						t.Fatal(err)
					}
					last := results[len(results)-1]
					ratio, most = last.Extra["p99 meanwhile / before"], 0
					for _, m := range last.Memory {
						most = max(most, float64(m)/(1<<20))
					}
					t.Logf("try %d: p99 %.1f ms, %.2f times what it was before; %.0f MiB; %s", try, last.P99, ratio, most, formatExtra(last.Extra))
					if last.Errors > 0 {
						t.Errorf("%d errors, first: %s", last.Errors, last.FirstError)
					}
					if ratio <= 2 {
						break
					}
				}
				if ratio > 2 {
					t.Errorf("the others' p99 is %.1f times what it was", ratio)
				}
				if most > 1500 {
					t.Errorf("the server takes %.0f MiB", most)
				}
			})
		}
	}
}

func formatExtra(extra map[string]float64) (out string) {
	for k, v := range extra {
		out += k + " " + strconv.FormatFloat(v, 'f', 1, 64) + "; "
	}
	return out
}
