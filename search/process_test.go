package search_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/search"
)

// keepers are the processes that keep the index for this one.
func keepers(t testing.TB) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		t.Skip("processes cannot be listed here")
	}
	var out []int
	for _, file := range stats {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" || fields[1] != strconv.Itoa(os.Getpid()) {
			continue
		}
		env, err := os.ReadFile(filepath.Join(filepath.Dir(file), "environ"))
		if err == nil && bytes.Contains(env, []byte("MOOTHALL_SEARCH_INDEX=")) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			out = append(out, pid)
		}
	}
	return out
}

func count(t testing.TB, x search.Index) int64 {
	t.Helper()
	p, err := x.Search(t.Context(), &search.Query{View: search.ViewUser, Exact: true})
	if err != nil {
		return -1
	}
	return p.Total
}

// TestProcess follows the process of an index through its life: nothing is started before it is needed, it runs at a low
// priority, it is started again when it was killed, and what it had not kept it does not claim to have.
func TestProcess(t *testing.T) {
	dir := t.TempDir()
	x := beside(t, dir, slog.New(slog.DiscardHandler))
	if gens, err := x.Generations(t.Context()); err != nil || len(gens) != 0 || len(keepers(t)) != 0 {
		t.Fatalf("before anything was written: %v %v, processes %v", gens, err, keepers(t))
	}
	state := search.State{Format: search.Format}
	if err := x.Create(t.Context(), "gen-1", true, state); err != nil {
		t.Fatal(err)
	}
	write := func(from, to int) {
		t.Helper()
		b := &search.Batch{Version: 1}
		for i := from; i < to; i++ {
			b.Docs = append(b.Docs, document(i, fmt.Sprintf("ocelot %d", i)))
		}
		state.Pos = int64(to)
		if err := x.Write(t.Context(), "gen-1", b, state); err != nil {
			t.Fatal(err)
		}
	}
	write(0, 10)
	if n := count(t, x); n != 10 {
		t.Fatalf("%d documents", n)
	}
	if err := x.Serve(t.Context(), "gen-1"); err != nil { // which writes what is in memory
		t.Fatal(err)
	}
	write(10, 20)
	gens, err := x.Generations(t.Context())
	if err != nil || len(gens) != 1 || gens[0].State.Pos != 20 || gens[0].Kept != 10 {
		t.Fatalf("generations %+v %v", gens, err)
	}
	pids := keepers(t)
	if len(pids) != 1 {
		t.Fatalf("processes %v", pids)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
	if err != nil {
		t.Fatal(err)
	}
	if f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); f[16] != "10" || f[38] != "3" {
		t.Errorf("niceness %s, policy %s; want 10 and 3 (batch)", f[16], f[38])
	}

	// an order to the server is none to this process
	if err := syscall.Kill(pids[0], syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if n := count(t, x); n != 20 {
		t.Errorf("after SIGTERM: %d", n)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "no new process", func() bool { return count(t, x) == 10 })
	if gens, err := x.Generations(t.Context()); err != nil || len(gens) != 1 || gens[0].State.Pos != 10 {
		t.Errorf("after it was killed: %+v %v", gens, err)
	}

	// one that hangs holds nobody up who does not want to wait
	pids = keepers(t)
	if err := syscall.Kill(pids[0], syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := x.Search(ctx, &search.Query{}); err == nil || time.Since(began) > 10*time.Second {
		t.Errorf("a process that hangs: %v after %v", err, time.Since(began))
	}
	if err := syscall.Kill(pids[0], syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// long texts go in several messages
	b := &search.Batch{Version: 2}
	for i := 10; i < 20; i++ {
		b.Docs = append(b.Docs, document(i, strings.Repeat("ocelot ", 120_000)))
	}
	state.Pos = 20
	if err := x.Write(t.Context(), "gen-1", b, state); err != nil {
		t.Fatal(err)
	}
	if n := count(t, x); n != 20 {
		t.Errorf("after long texts: %d", n)
	}

	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if len(keepers(t)) != 0 {
		t.Errorf("after Close: %v", keepers(t))
	}
	if err := x.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := count(t, x); n != 20 {
		t.Errorf("opened again: %d", n)
	}
}

// TestProcessDies kills the process of the index again and again while people talk: chat goes on, and in the end everything
// is found once.
func TestProcessDies(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	hs := hstest.Start(t, func(c *homeserver.Config) { c.Search.Program = program })
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	ready(t, alice)
	var want []string
	for i := range 60 {
		want = append(want, string(alice.Text(room, fmt.Sprintf("pangolin %d", i))))
		if i%20 == 10 {
			time.Sleep(300 * time.Millisecond)
			for _, pid := range keepers(t) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, want[0], alice.Txn())
	want = want[1:]
	testkit.Eventually(t, "not everything is found", func() bool {
		r := alice.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"pangolin","filter":{"limit":100}}}}`, "/v3/search")
		return r.Status == 200 && strings.Count(string(r.Body), `"rank"`) == len(want)
	})
	finds(t, alice, "pangolin", slices.Clone(want)...)
	if n := ask(t, alice, "pangolin", "", "").Count; n != len(want) {
		t.Errorf("the index counts %d, want %d", n, len(want))
	}
}
