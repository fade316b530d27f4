package faults_test

import (
	"context"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// partner runs scripts/partners/postgres and returns what it prints.
func partner(t *testing.T, command, dir string) string {
	t.Helper()
	script, err := filepath.Abs("../../scripts/partners/postgres")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, command, dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("postgres %s: %v\n%s", command, err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// ownPostgres starts a PostgreSQL that the test may stop, and makes a database in it.
func ownPostgres(t *testing.T) (dir, database string) {
	t.Helper()
	testkit.Partner(t, storetest.PostgresEnv)
	dir, err := os.MkdirTemp("", "moothall-postgres") // PostgreSQL's user passes through
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // see above
		t.Fatal(err)
	}
	t.Cleanup(func() {
		partner(t, "stop", dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	t.Setenv(storetest.PostgresEnv, partner(t, "start", dir))
	return dir, storetest.Postgres(t)
}

// TestPostgresRestart stops and crashes PostgreSQL under load. Meanwhile requests are answered 503; afterwards the same
// processes go on by themselves, and nothing acknowledged is lost.
func TestPostgresRestart(t *testing.T) {
	needFaults(t)
	random := moments(t)
	dir, database := ownPostgres(t)
	a, b := startNode(t, nodeConfig{name: "A", databaseURL: database}), startNode(t, nodeConfig{name: "B", databaseURL: database})
	onA, onB := registerAll(t, a, "a", 6), registerAll(t, a, "b", 6)
	room := publicRoom(t, append(append([]*client{}, onA...), onB...)...)
	for _, c := range onB {
		c.move(b)
	}
	l := newLoad(t, room)
	atA, atB := newReader(t, onA[0].login(t, a), room, 20), newReader(t, onB[0].login(t, b), room, 20)
	atA.start()
	atB.start()
	l.start(append(append([]*client{}, onA...), onB...)...)
	for _, how := range []string{"stop", "crash", "stop"} {
		time.Sleep(between(random, 500*time.Millisecond, 1000*time.Millisecond))
		l.mu.Lock()
		l.requests = nil
		l.mu.Unlock()
		partner(t, how, dir)
		time.Sleep(700 * time.Millisecond)
		for _, c := range []*client{onA[0], onB[0]} {
			refusal(t, c, room)
		}
		time.Sleep(700 * time.Millisecond)
		_, requests := l.snapshot()
		refused := 0
		for _, r := range requests {
			if r.status != http.StatusOK {
				refused++
			}
			if r.status != http.StatusOK && (r.status != http.StatusServiceUnavailable || r.errcode == "") {
				t.Errorf("%s: a send was answered %d %q %v, want 503 with a Matrix error", how, r.status, r.errcode, r.err)
			}
		}
		partner(t, "start", dir)
		started := time.Now()
		for _, side := range [][]*client{onA, onB} {
			testkit.Within(t, 15*time.Second, "nobody can send although PostgreSQL is back", func() bool {
				at, ok := l.lastAnswer(side)
				return ok && at.After(started)
			})
		}
		t.Logf("%s: %d requests refused; both nodes took messages %s after PostgreSQL was back", how, refused, time.Since(started).Round(time.Millisecond))
		_, requests = l.snapshot()
		for _, r := range requests {
			if r.status == 0 || r.status >= 500 && r.status != http.StatusServiceUnavailable {
				t.Errorf("%s: a send was answered %d %q %v", how, r.status, r.errcode, r.err)
			}
		}
		if t.Failed() {
			break
		}
	}
	time.Sleep(500 * time.Millisecond)
	l.stop()
	atA.stop()
	atB.stop()
	if !a.Alive() || !b.Alive() {
		t.Fatal("a node has ended")
	}
	sameEnd(t, room, onA[0], onB[0])
	history := onA[0].history(t, room, "", "")
	lost, doubled := l.check(history)
	l.repeat(random.IntN, 20)
	atA.finish(history)
	atB.finish(onB[0].history(t, room, "", ""))
	t.Logf("%d acknowledged, %d lost, %d doubled; failed syncs: %d on A, %d on B", l.count(), lost, doubled, atA.failures(), atB.failures())
}

// refusal wants requests of several kinds to be refused with 503 and a body that clients understand, soon.
func refusal(t *testing.T, c *client, room string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, r := range []struct {
		method, path string
		body         any
	}{
		{"PUT", sendPath(room, "while-away"), text("while the database is away")},
		{"POST", "/createRoom", map[string]any{}},
		{"PUT", "/profile/" + c.user + "/displayname", map[string]any{"displayname": "x"}},
		{"POST", "/login", map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": c.user}, "password": password}},
	} {
		got, err := c.do(ctx, r.method, r.path, r.body)
		if err != nil || got.status != http.StatusServiceUnavailable || got.errcode() == "" || got.get("error").Str == "" {
			t.Errorf("%s %s without a database: %d %s %v, want 503 with a Matrix error", r.method, r.path, got.status, got.body, err)
		}
		if got.took > 6*time.Second {
			t.Errorf("%s %s without a database was refused after %s only", r.method, r.path, got.took)
		}
	}
}
