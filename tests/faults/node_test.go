package faults_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/tests/process"
)

// node is a process of the server. It keeps its address and its data over restarts.
type node struct {
	*process.Process // the one that runs, or ran last; nil before the first
	t                testing.TB
	name             string
	config           string
	dir              string
	url              string
	log              process.Output
}

// nodeConfig is what differs between nodes.
type nodeConfig struct {
	name        string
	databaseURL string // "" for SQLite
	dataDir     string // "" for a new one
	limits      string // rate limits as YAML; "" for none
	extra       string // further YAML
}

// newNode writes a configuration; nothing runs yet.
func newNode(t testing.TB, c nodeConfig) *node {
	t.Helper()
	dir := t.TempDir()
	port := process.FreePort(t)
	n := &node{t: t, name: c.name, dir: dir, config: filepath.Join(dir, "moothall.yaml"), url: fmt.Sprintf("http://127.0.0.1:%d", port)}
	if c.dataDir == "" {
		c.dataDir = filepath.Join(dir, "data")
	}
	if c.limits == "" {
		c.limits = "{enabled: false}"
	}
	yaml := fmt.Sprintf("server_name: localhost\ndata_dir: %s\nlisten:\n  - address: 127.0.0.1:%d\n    serve: [client, metrics]\n"+
		"registration:\n  mode: open\nrate_limits: %s\npasswords: {argon2: {memory: 1 MiB, iterations: 1}}\n", c.dataDir, port, c.limits)
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
		n.log.Blame(t, n.name)
	})
	n.start()
	return n
}

// start runs the process and returns how long it took until it was ready.
func (n *node) start() time.Duration {
	n.t.Helper()
	n.Process = process.Start(n.t, n.dir, &n.log, process.Binary(n.t), "serve", "--config", n.config)
	return n.AwaitReady(n.t, n.url, &n.log)
}

func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	n.Signal(n.t, s)
}

// kill ends the process as a power cut of the process alone would.
func (n *node) kill() {
	n.t.Helper()
	n.Kill(n.t)
}

// drain ends the process as an operator would and returns how long that took.
func (n *node) drain() time.Duration {
	n.t.Helper()
	return n.Drain(n.t)
}

// end stops whatever still runs, in order where that is possible.
func (n *node) end() {
	if n.Process == nil || !n.Alive() {
		return
	}
	n.signal(syscall.SIGCONT)
	n.drain()
}

// command runs another subcommand with the node's configuration.
func (n *node) command(args ...string) {
	n.t.Helper()
	cmd := exec.Command(process.Binary(n.t), append(args, "--config", n.config)...)
	cmd.Env, cmd.Dir = process.Environ(), n.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("moothall %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}
