// Package faults_test starts the real program as processes of its own and breaks things: processes are killed, frozen and
// drained, PostgreSQL is stopped, disks fill up, backups bring an earlier time back. After each fault it reads everything
// back through the client API: what was acknowledged is there, once, in one order.
package faults_test

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

const (
	enableEnv = "MOOTHALL_FAULT_TESTS" // set by scripts/test: these tests take minutes and need the machine
	roundsEnv = "FAULT_ROUNDS"         // how often a process is killed; 5 if it is not set
	seedEnv   = "FAULT_SEED"           // repeats the random moments of a run
)

// needFaults leaves the test out where nobody asked for it; in CI that is a failure.
func needFaults(t *testing.T) {
	t.Helper()
	testkit.Partner(t, enableEnv)
}

// eachDatabase runs fn on SQLite (no URL) and on PostgreSQL.
func eachDatabase(t *testing.T, fn func(t *testing.T, databaseURL string)) {
	t.Helper()
	needFaults(t)
	t.Run("sqlite", func(t *testing.T) { fn(t, "") })
	t.Run("postgres", func(t *testing.T) { fn(t, storetest.Postgres(t)) })
}

func TestMain(m *testing.M) { os.Exit(process.Main(m)) }

// rounds is how often a test repeats its fault.
func rounds(t *testing.T) int {
	t.Helper()
	text := os.Getenv(roundsEnv)
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s must be a number of rounds, not %q", roundsEnv, text)
	}
	return n
}

// moments draws the random moments of a test; the seed is printed and can be given again.
func moments(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedEnv); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
		seed = n
	}
	t.Logf("%s=%d", seedEnv, seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// between draws a duration.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)))
}
