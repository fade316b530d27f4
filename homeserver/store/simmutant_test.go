package store_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSimulationCatchesMutants breaks the engine's source in one place at a time, without touching the working tree, and shows
// that the simulation fails on it.
func TestSimulationCatchesMutants(t *testing.T) {
	mutants := []struct{ name, file, from, to string }{
		{"versions are checked before the lock", "../room/commit.go",
			"\tst, err := tx.LockStanding(rooms, keys)\n\tstop()\n\tb.rs.gathers = len(b.units) > before\n\tif err != nil {\n\t\treturn err\n\t}\n",
			"\t_, _, _ = rooms, keys, before\n\tstop()\n\tst := &store.Standing{}\n\tif err := b.check(tx, st); err != nil {\n\t\treturn err\n\t}\n\tif err := tx.LockHead(); err != nil {\n\t\treturn err\n\t}\n"},
		{"a state event follows only what its node knew", "../room/commit.go",
			"if fewer || rb.line.states > 0 || len(ext) > prevEvents/2 {", "if fewer || len(ext) > prevEvents/2 {"},
		{"transaction ids are not looked up", "../room/commit.go", "for _, h := range hits {", "for _, h := range hits[:0] {"},
		{"a denial does not wait for the head", "../room/send.go", "!rs.d.Store.SQLite() &&", "rs.d.Store.SQLite() &&"},
		{"what was gathered is forgotten", "../room/commit.go", "\tb.units = append(b.units, units...)\n", "\tif b.units == nil {\n\t\tb.units = units\n\t}\n"},
		{"what comes along is applied without its events", "along.go", "\tif err := s.hydrateAll(ctx, strange); err != nil {\n\t\ts.wakeTailer()\n\t\treturn\n\t}\n", ""},
	}
	if testing.Short() {
		mutants = mutants[:1]
	}
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			src, err := os.ReadFile(m.file)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(src), m.from); n != 1 {
				t.Fatalf("%s has the place to break %d times", m.file, n)
			}
			dir := t.TempDir()
			broken, overlay := filepath.Join(dir, "mutant.go"), filepath.Join(dir, "overlay.json")
			path, err := filepath.Abs(m.file)
			if err != nil {
				t.Fatal(err)
			}
			replace, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{broken: []byte(strings.Replace(string(src), m.from, m.to, 1)), overlay: replace} {
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-vet=off", "-overlay", overlay, "-timeout", "120s", "-failfast", "-run", "^TestSimulation$", ".")
			cmd.Env = append(os.Environ(), "SIM_SEEDS=100", "SIM_SEED=", "CGO_ENABLED=0")
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Error("the simulation did not notice")
			} else if !strings.Contains(string(out), "replay it by: SIM_SEED=") {
				t.Errorf("it failed for another reason: %v\n%s", err, out)
			}
		})
	}
}
