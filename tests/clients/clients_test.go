// Package clients_test drives real Matrix clients against a real server binary: matrix-js-sdk in Node, mautrix-go and a
// web page in Chromium. All traffic passes a proxy that checks every response against the specification.
package clients_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

const (
	enableEnv = "MOOTHALL_CLIENT_TESTS"        // set by scripts/test: the npm packages and the browser are there
	serverEnv = "MOOTHALL_CLIENT_TESTS_SERVER" // the address of another homeserver, to try the tests themselves
)

func TestMain(m *testing.M) { os.Exit(process.Main(m)) }

// needClients leaves the test out where scripts/test has not installed the clients; in CI that is a failure.
func needClients(t *testing.T) {
	t.Helper()
	testkit.Partner(t, enableEnv)
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
	dir, port := t.TempDir(), process.FreePort(t)
	upstream := fmt.Sprintf("http://127.0.0.1:%d", port)
	proxy := startProxy(t, upstream)
	config := filepath.Join(dir, "moothall.yaml")
	yaml := fmt.Sprintf("server_name: localhost\npublic_url: %s\ndata_dir: %s\nlisten:\n  - address: 127.0.0.1:%d\n"+
		"registration:\n  mode: open\n  shared_secret: %s\nrate_limits:\n  enabled: false\n", proxy, filepath.Join(dir, "data"), port, sharedSecret)
	yaml += strings.Join(more, "")
	if databaseURL != "" {
		yaml += fmt.Sprintf("database:\n  url: %q\n", databaseURL)
	}
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	log := &process.Output{}
	server := process.Start(t, dir, log, process.Binary(t), "serve", "--config", config)
	t.Cleanup(func() {
		server.Drain(t)
		log.Blame(t, "the server")
	})
	server.AwaitReady(t, upstream, log)
	return proxy
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
