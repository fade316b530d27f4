// Package clients_test drives real Matrix clients against a real server binary: matrix-js-sdk in Node, mautrix-go and a
// web page in Chromium. All traffic passes a proxy that checks every response against the specification.
package clients_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
)

const (
	enableEnv = "MOOTHALL_CLIENT_TESTS"        // set by scripts/test: the npm packages and the browser are there
	serverEnv = "MOOTHALL_CLIENT_TESTS_SERVER" // the address of another homeserver, to try the tests themselves
)

// needClients leaves the test out where scripts/test has not installed the clients; in CI that is a failure.
func needClients(t *testing.T) {
	t.Helper()
	if os.Getenv(enableEnv) != "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not set: run these tests by ./scripts/test", enableEnv)
	}
	t.Skipf("%s is not set: ./scripts/test installs the clients and runs these tests", enableEnv)
}

// eachServer runs fn against a new server on every database.
func eachServer(t *testing.T, fn func(t *testing.T, homeserver string)) {
	t.Helper()
	needClients(t)
	t.Run("sqlite", func(t *testing.T) { fn(t, startServer(t, "")) })
	if os.Getenv(serverEnv) == "" {
		t.Run("postgres", func(t *testing.T) { fn(t, startServer(t, storetest.Postgres(t))) })
	}
}

// startServer starts the binary with an empty database, and more lines of configuration, and returns the address of a checking
// proxy before it.
func startServer(t *testing.T, databaseURL string, more ...string) string {
	t.Helper()
	if other := os.Getenv(serverEnv); other != "" {
		return startProxy(t, other)
	}
	binary, dir, port := buildServer(t), t.TempDir(), freePort(t)
	upstream := fmt.Sprintf("http://127.0.0.1:%d", port)
	proxy := startProxy(t, upstream)
	config := filepath.Join(dir, "moothall.yaml")
	yaml := fmt.Sprintf("server_name: localhost\npublic_url: %s\ndata_dir: %s\nlisten:\n  - address: 127.0.0.1:%d\n"+
		"registration:\n  mode: open\nrate_limits:\n  enabled: false\n", proxy, filepath.Join(dir, "data"), port)
	yaml += strings.Join(more, "")
	if databaseURL != "" {
		yaml += fmt.Sprintf("database:\n  url: %q\n", databaseURL)
	}
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	var log lockedBuffer
	cmd := exec.Command(binary, "serve", "--config", config)
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
	// variables of the tests are no settings of the server
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MOOTHALL_") })
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		stopServer(t, cmd, exited)
		if t.Failed() {
			t.Logf("the server's log:\n%s", log.tail(12_000))
		}
		if strings.Contains(log.String(), "panic") {
			t.Error("the server's log tells of a panic")
		}
	})
	waitReady(t, upstream, exited)
	return proxy
}

// stopServer ends the server as an operator would and wants it to go in order.
func stopServer(t *testing.T, cmd *exec.Cmd, exited <-chan error) {
	t.Helper()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("stop the server: %v", err)
	}
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("the server ended with %v", err)
		}
	case <-time.After(15 * time.Second):
		t.Error("the server does not stop on SIGTERM")
		_ = cmd.Process.Kill()
		<-exited
	}
}

func waitReady(t *testing.T, upstream string, exited chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, upstream+"/ready", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-exited:
			exited <- err // for stopServer
			t.Fatalf("the server ended at once: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("the server is not ready after 30 s")
}

// buildServer builds the binary once for all tests of the package; the go command's cache makes a second build cheap.
func buildServer(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "moothall")
	cmd := exec.Command("go", "build", "-o", path, "github.com/moothall/moothall/cmd/moothall")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the server: %v\n%s", err, out)
	}
	return path
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// run executes a program of the client's and shows what it prints as it comes.
func run(t *testing.T, limit time.Duration, env []string, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v (%v)", filepath.Base(name), strings.Join(args, " "), err, ctx.Err())
	}
}

// node is the Node that the npm packages bring along; the machine's own may be too old for the SDK.
func node(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("node_modules/node/bin/node")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run ./scripts/test, or npm ci in tests/clients", err)
	}
	return path
}

// account is what a registration gives.
type account struct {
	UserID      string `json:"user_id"`
	DeviceID    string `json:"device_id"`
	AccessToken string `json:"access_token"`
	Name        string `json:"-"`
	Password    string `json:"-"`
}

// register makes an account as a client does: an empty request, then the stage m.login.dummy.
func register(t *testing.T, homeserver, name string) account {
	t.Helper()
	a := account{Name: name, Password: "correct horse battery"}
	if os.Getenv(serverEnv) != "" {
		a.Name = fmt.Sprintf("%s-%d", name, time.Now().UnixNano()%1_000_000) // that server remembers the last run
	}
	var flows struct {
		Session string `json:"session"`
	}
	if status := call(t, homeserver, "", "POST", "/_matrix/client/v3/register", map[string]any{}, &flows); status != 401 {
		t.Fatalf("an empty registration answers %d, want 401 with flows", status)
	}
	if status := call(t, homeserver, "", "POST", "/_matrix/client/v3/register", map[string]any{
		"username": a.Name, "password": a.Password,
		"auth": map[string]string{"type": "m.login.dummy", "session": flows.Session},
	}, &a); status != 200 {
		t.Fatalf("the registration of %s answers %d", a.Name, status)
	}
	return a
}

// call does one request of the client-server API and returns its status.
func call(t *testing.T, homeserver, token, method, path string, body, into any) int {
	t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, homeserver+path, bytes.NewReader(encoded))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode
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

// tail is the last n bytes.
func (l *lockedBuffer) tail(n int) string {
	s := l.String()
	return s[max(0, len(s)-n):]
}
