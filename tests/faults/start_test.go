package faults_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// refuses starts the server and wants it to say one clear line, with these words in it, and to end with exit code 1.
func refuses(t *testing.T, n *node, as *syscall.Credential, words ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, process.Binary(t), "serve", "--config", n.config)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.Dir = &stdout, &stderr, process.Environ(), "/"
	if as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("the server ended with %v, want exit code 1\n%s%s", err, stdout.String(), stderr.String())
		return
	}
	var lines []string
	for line := range strings.Lines(stderr.String()) {
		if !strings.Contains(line, "level=WARN") && !strings.Contains(line, "level=INFO") { // about the configuration
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	if len(lines) != 1 || !strings.HasPrefix(lines[0], "moothall: ") || stdout.Len() > 0 {
		t.Errorf("the server says\n%s%s\nwant one line on stderr", stdout.String(), stderr.String())
		return
	}
	t.Log(lines[0])
	for _, w := range words {
		if !strings.Contains(lines[0], w) {
			t.Errorf("the line does not tell of %q", w)
		}
	}
}

// TestStartFailures starts the server where it cannot run.
func TestStartFailures(t *testing.T) {
	needFaults(t)
	t.Run("port in use", func(t *testing.T) {
		n := newNode(t, nodeConfig{name: "node"})
		l, err := net.Listen("tcp", strings.TrimPrefix(n.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = l.Close() }()
		refuses(t, n, nil, "listen[0].address", "is in use")
		if _, err := os.Stat(filepath.Join(n.dir, "data", "moothall.db")); err == nil {
			t.Error("a server that cannot listen made a database")
		}
	})
	t.Run("data directory below a file", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, newNode(t, nodeConfig{name: "node", dataDir: filepath.Join(file, "data")}), nil, "data_dir", "not a directory")
	})
	t.Run("data directory read-only", func(t *testing.T) {
		dir := mount(t, "tmpfs", "size=1m,ro")
		refuses(t, newNode(t, nodeConfig{name: "node", dataDir: filepath.Join(dir, "data")}), nil, "data_dir", "read-only")
	})
	t.Run("data directory of another user", func(t *testing.T) {
		if os.Getuid() != 0 {
			refuses(t, newNode(t, nodeConfig{name: "node", dataDir: "/root/moothall"}), nil, "data_dir", "permission denied")
			return
		}
		dir, err := os.MkdirTemp("", "moothall-data") // the way there is open to that user
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		n := newNode(t, nodeConfig{name: "node", dataDir: dir})
		config, err := os.ReadFile(n.config)
		if err != nil {
			t.Fatal(err)
		}
		open, err := os.MkdirTemp("", "moothall-config")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(open) })
		n.config = filepath.Join(open, "moothall.yaml")
		if err := errors.Join(os.Chmod(open, 0o755), os.WriteFile(n.config, config, 0o600), os.Chmod(n.config, 0o644)); err != nil { //nolint:gosec // read by another user
			t.Fatal(err)
		}
		refuses(t, n, &syscall.Credential{Uid: 65534, Gid: 65534}, "data_dir", "permission denied")
	})
	t.Run("SQLite newer than the program", func(t *testing.T) {
		n := newNode(t, nodeConfig{name: "node"})
		n.start()
		n.drain()
		c, err := sqlite.OpenConn(filepath.Join(n.dir, "data", "moothall.db"), sqlite.OpenReadWrite)
		if err != nil {
			t.Fatal(err)
		}
		err = errors.Join(sqlitex.ExecuteTransient(c, newer, nil), c.Close())
		if err != nil {
			t.Fatal(err)
		}
		refuses(t, n, nil, "newer version of moothall", "9999")
	})
	t.Run("PostgreSQL newer than the program", func(t *testing.T) {
		n := newNode(t, nodeConfig{name: "node", databaseURL: storetest.Postgres(t)})
		n.start()
		n.drain()
		execPostgres(t, n, newer)
		refuses(t, n, nil, "newer version of moothall", "9999")
	})
	t.Run("PostgreSQL away", func(t *testing.T) {
		refuses(t, newNode(t, nodeConfig{name: "node", databaseURL: "postgres://nobody:secret-word@127.0.0.1:1/none"}), nil, "PostgreSQL", "127.0.0.1")
	})
	t.Run("disk full", func(t *testing.T) {
		dir := mount(t, "tmpfs", "size=64k")
		refuses(t, newNode(t, nodeConfig{name: "node", dataDir: filepath.Join(dir, "data")}), nil, "full")
	})
}

const newer = `INSERT INTO schema_migrations (number, name) VALUES (9999, 'from the future')`

func execPostgres(t *testing.T, n *node, sql string) {
	t.Helper()
	text, err := os.ReadFile(n.config)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "url: \"")
	url, _, _ := strings.Cut(rest, "\"")
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Exec(t.Context(), sql)
	if err = errors.Join(err, c.Close(context.WithoutCancel(t.Context()))); err != nil {
		t.Fatal(err)
	}
}

// mount makes a file system of its own for the test. Where that is not allowed the test is left out; in CI it is.
func mount(t *testing.T, kind, options string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", kind, "-o", options, "none", dir).CombinedOutput(); err != nil {
		t.Skipf("this machine does not let a test mount a file system: %v %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v %s", err, out)
		}
	})
	return dir
}

// TestDiskFull fills the disk of a server that runs on SQLite. Messages are refused with 503 and an error that says so,
// reading goes on, and when there is room again everything goes on by itself; nothing acknowledged is lost.
func TestDiskFull(t *testing.T) {
	needFaults(t)
	random := moments(t)
	disk := mount(t, "tmpfs", "size=192m")
	n := startNode(t, nodeConfig{name: "node", dataDir: filepath.Join(disk, "data")})
	senders := registerAll(t, n, "sender", 8)
	room := publicRoom(t, senders...)
	l := newLoad(t, room)
	r := newReader(t, senders[0].login(t, n), room, 20)
	r.start()
	l.start(senders...)
	for range 2 {
		time.Sleep(between(random, 200*time.Millisecond, 600*time.Millisecond))
		filler := filepath.Join(disk, "filler")
		fill(t, filler)
		full := time.Now()
		l.mu.Lock()
		l.requests = nil
		l.mu.Unlock()
		testkit.Within(t, 20*time.Second, "the disk is full and messages are still taken", func() bool {
			_, requests := l.snapshot()
			return len(requests) > 20 && requests[len(requests)-1].status == http.StatusServiceUnavailable
		})
		refusedAfter := time.Since(full)
		time.Sleep(500 * time.Millisecond)
		if got := senders[0].must(t, "GET", "/joined_rooms", nil); len(got.get("joined_rooms").Array()) != 1 {
			t.Errorf("reading does not work on a full disk: %s", got.body)
		}
		senders[0].page(t, room, "", "", 50)
		_, requests := l.snapshot()
		for _, q := range requests {
			if q.status != http.StatusOK && (q.status != http.StatusServiceUnavailable || q.errcode == "") {
				t.Errorf("a send on a full disk got %d %q %v", q.status, q.errcode, q.err)
			}
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		freed, before := time.Now(), l.count()
		testkit.Within(t, 20*time.Second, "there is room again and messages are still refused", func() bool { return l.count() > before+20 })
		t.Logf("the first refusal %s after the disk was full; messages again %s after there was room", refusedAfter.Round(time.Millisecond),
			time.Since(freed).Round(time.Millisecond))
	}
	l.stop()
	r.stop()
	history := senders[0].history(t, room, "", "")
	lost, doubled := l.check(history)
	r.finish(history)
	t.Logf("%d acknowledged, %d lost, %d doubled", l.count(), lost, doubled)
	// after a restart as well
	n.kill()
	n.start()
	l.check(senders[0].history(t, room, "", ""))
}

// fill writes until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<12)
	for err == nil {
		_, err = f.Write(block)
	}
	if cerr := f.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(errors.Join(err, cerr))
	}
}
