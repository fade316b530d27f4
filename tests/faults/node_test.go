package faults_test

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// node is a process of the server. It keeps its address and its data over restarts.
type node struct {
	t      testing.TB
	name   string
	config string
	dir    string
	url    string
	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone
	err    error         // what it ended with
	log    lockedBuffer
}

// nodeConfig is what differs between nodes.
type nodeConfig struct {
	name        string
	databaseURL string // "" for SQLite
	dataDir     string // "" for a new one
	extra       string // further YAML
}

// newNode writes a configuration; nothing runs yet.
func newNode(t testing.TB, c nodeConfig) *node {
	t.Helper()
	dir := t.TempDir()
	port := freePort(t)
	n := &node{t: t, name: c.name, dir: dir, config: filepath.Join(dir, "moothall.yaml"), url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	if c.dataDir == "" {
		c.dataDir = filepath.Join(dir, "data")
	}
	yaml := fmt.Sprintf("server_name: localhost\ndata_dir: %s\nlisten:\n  - address: 127.0.0.1:%d\n    serve: [client, metrics]\n"+
		"registration:\n  mode: open\nrate_limits:\n  enabled: false\npasswords: {argon2: {memory: 1 MiB, iterations: 1}}\n", c.dataDir, port)
	if c.databaseURL != "" {
		yaml += fmt.Sprintf("database:\n  url: %q\n", c.databaseURL)
	}
	if err := os.WriteFile(n.config, []byte(yaml+c.extra), 0o600); err != nil {
		t.Fatal(err)
	}
	return n
}

// startNode starts a server and stops it with the test.
func startNode(t testing.TB, c nodeConfig) *node {
	t.Helper()
	n := newNode(t, c)
	t.Cleanup(func() {
		n.end()
		log := n.log.String()
		if t.Failed() {
			t.Logf("the log of %s:\n%s", n.name, log[max(0, len(log)-8000):])
		}
		if strings.Contains(log, "panic") || strings.Contains(log, "DATA RACE") {
			t.Errorf("the log of %s tells of a panic:\n%s", n.name, log)
		}
	})
	n.start()
	return n
}

// start runs the process and returns how long it took until it was ready.
func (n *node) start() time.Duration {
	n.t.Helper()
	began := time.Now()
	n.cmd = exec.Command(binary(n.t), "serve", "--config", n.config)
	n.cmd.Dir, n.cmd.Stdout, n.cmd.Stderr, n.cmd.Env = n.dir, &n.log, &n.log, withoutSettings()
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	exited := make(chan struct{})
	n.exited = exited
	cmd := n.cmd
	go func() {
		n.err = cmd.Wait()
		close(exited)
	}()
	looks := 0
	for end := began.Add(30 * time.Second); time.Now().Before(end) || looks < 1000; time.Sleep(5 * time.Millisecond) {
		looks++ // a machine that stood still for 30 s is no fault of the server
		if n.ready() {
			return time.Since(began)
		}
		select {
		case <-n.exited:
			n.t.Fatalf("%s ended at once: %v\n%s", n.name, n.err, n.log.String())
		default:
		}
	}
	n.signal(syscall.SIGQUIT) // shows where it stands
	<-n.exited
	n.t.Fatalf("%s is not ready after %s and %d looks\n%s", n.name, time.Since(began), looks, n.log.String())
	return 0
}

func (n *node) ready() bool {
	resp, err := http.Get(n.url + "/ready")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		n.t.Errorf("signal %s to %s: %v", s, n.name, err)
	}
}

// kill ends the process as a power cut of the process alone would.
func (n *node) kill() {
	n.t.Helper()
	n.signal(syscall.SIGKILL)
	<-n.exited
}

// drain ends the process as an operator would and returns how long that took.
func (n *node) drain() time.Duration {
	n.t.Helper()
	began := time.Now()
	n.signal(syscall.SIGTERM)
	select {
	case <-n.exited:
		if n.err != nil {
			n.t.Errorf("%s ended with %v", n.name, n.err)
		}
	case <-time.After(20 * time.Second):
		n.t.Errorf("%s does not stop on SIGTERM", n.name)
		n.kill()
	}
	return time.Since(began)
}

// end stops whatever still runs, in order where that is possible.
func (n *node) end() {
	if n.cmd == nil {
		return
	}
	select {
	case <-n.exited:
		return
	default:
	}
	n.signal(syscall.SIGCONT)
	n.drain()
}

// alive tells whether the process still runs.
func (n *node) alive() bool {
	select {
	case <-n.exited:
		return false
	default:
		return true
	}
}

// command runs another subcommand with the node's configuration.
func (n *node) command(args ...string) {
	n.t.Helper()
	cmd := exec.Command(binary(n.t), append(args, "--config", n.config)...)
	cmd.Env, cmd.Dir = withoutSettings(), n.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("moothall %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// lockedBuffer takes the output of a process while the test may read it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String is all that was written.
func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
