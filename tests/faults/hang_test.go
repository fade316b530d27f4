package faults_test

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/testkit"
)

// family lists a process and those it has started.
func family(t *testing.T, root int) []int {
	t.Helper()
	parents := map[int]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "stat"))
		if err != nil {
			continue // it has ended
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if parents[pid], err = strconv.Atoi(f[1]); err != nil {
			t.Fatal(err)
		}
	}
	out := []int{root}
	for pid, parent := range parents {
		if parent == root {
			out = append(out, pid)
		}
	}
	return out
}

// TestPostgresHangs stops PostgreSQL's processes without ending them, as a dying disk or a paused machine does: nothing is
// refused, nothing is answered. Requests of all kinds fail with 503 in bounded time, and everything goes on by itself.
func TestPostgresHangs(t *testing.T) {
	needFaults(t)
	dir, database := ownPostgres(t)
	n := startNode(t, nodeConfig{name: "A", databaseURL: database})
	users := registerAll(t, n, "a", 4)
	room := publicRoom(t, users...)
	l := newLoad(t, room)
	l.start(users[:2]...)
	time.Sleep(500 * time.Millisecond)

	b, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	postmaster, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	signal := func(s syscall.Signal) {
		for _, pid := range family(t, postmaster) {
			if err := syscall.Kill(pid, s); err != nil && err != syscall.ESRCH {
				t.Error(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { signal(syscall.SIGCONT) }) // before PostgreSQL is to end
	var wg sync.WaitGroup
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{"PUT", sendPath(room, "while-away"), text("while the database hangs")},
		{"POST", "/createRoom", map[string]any{}},
		{"GET", "/rooms/" + room + "/messages?dir=b&limit=1000&from=", nil},
		{"GET", "/rooms/" + room + "/event/$bm90LWhlcmU", nil},
		{"GET", "/directory/room/" + url.PathEscape("#nobody:localhost"), nil},
		{"GET", "/sync?timeout=0&full_state=true", nil},
		{"PUT", "/profile/" + users[3].user + "/displayname", map[string]any{"displayname": "x"}},
		{"POST", "/login", map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": users[3].user}, "password": password}},
	} {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			got, err := users[3].do(ctx, r.method, r.path, r.body)
			if r.method == "GET" && err == nil && got.status == http.StatusOK {
				return // from memory
			}
			if err != nil || got.status != http.StatusServiceUnavailable || got.errcode() == "" {
				t.Errorf("%s %s while the database hangs: %d %s %v, want 503 with a Matrix error", r.method, r.path, got.status, got.body, err)
			}
			t.Logf("%s %s: %d after %s", r.method, strings.SplitN(r.path, "?", 2)[0], got.status, got.took.Round(100*time.Millisecond))
			if got.took > 25*time.Second {
				t.Errorf("%s %s was refused after %s only", r.method, r.path, got.took)
			}
		})
	}
	wg.Wait()
	signal(syscall.SIGCONT)
	thawed := time.Now()
	testkit.Within(t, 30*time.Second, "nobody can send although PostgreSQL goes on", func() bool {
		at, ok := l.lastAnswer(users[:2])
		return ok && at.After(thawed)
	})
	t.Logf("messages went on %s after PostgreSQL did", time.Since(thawed).Round(time.Millisecond))
	l.stop()
	lost, doubled := l.check(users[0].history(t, room, "", ""))
	t.Logf("%d acknowledged, %d lost, %d doubled", l.count(), lost, doubled)
	if !n.Alive() {
		t.Error("the node has ended")
	}
}
