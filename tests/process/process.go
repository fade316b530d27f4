// Package process runs programs as processes of their own for tests, the server first of all: built once, started in a folder, awaited
// until it is ready, ended in order, with everything that it printed at hand.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
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

// binaryEnv is a program that is built already; without it one is built.
const binaryEnv = "MOOTHALL_TEST_BINARY"

var build = sync.OnceValues(func() (string, error) {
	if path := os.Getenv(binaryEnv); path != "" {
		return path, nil
	}
	dir, err := os.MkdirTemp("", "moothall-test")
	if err != nil {
		return "", err
	}
	made = dir
	// a server that runs as another user must get at it
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // a program is no secret
		return "", err
	}
	path := filepath.Join(dir, "moothall")
	cmd := exec.Command("go", "build", "-o", path, "github.com/moothall/moothall/cmd/moothall")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the server: %w\n%s", err, out)
	}
	return path, nil
})

// made is the folder of the program that build has made.
var made string

// Main runs the tests of a package that uses Binary and removes what was built. Call it in TestMain.
func Main(m *testing.M) int {
	defer func() {
		if made != "" {
			_ = os.RemoveAll(made)
		}
	}()
	return m.Run()
}

// Binary is the path of the program, which is built at its first use.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// FreePort is a TCP port of 127.0.0.1 that nothing uses at the moment. It is none of those that the system gives to outgoing
// connections, of which one may come at any time, and none of the partners'.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(10_000)
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("100 ports of 127.0.0.1 are in use")
	return 0
}

// FreeAddress is 127.0.0.1 with a FreePort.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePort(t))
}

// Environ is the environment without variables that would be settings of the server.
func Environ() []string {
	var out []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "MOOTHALL_") {
			out = append(out, v)
		}
	}
	return out
}

// Process is a program that was started.
type Process struct {
	Cmd    *exec.Cmd
	Exited chan struct{} // closed when it is gone
	Err    error         // what it ended with, from then on
}

// Start runs a program in a folder. What it prints goes to log.
func Start(t testing.TB, dir string, log *Output, program string, args ...string) *Process {
	t.Helper()
	p := &Process{Cmd: exec.Command(program, args...), Exited: make(chan struct{})}
	p.Cmd.Dir, p.Cmd.Stdout, p.Cmd.Stderr, p.Cmd.Env = dir, log, log, Environ()
	if err := p.Cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.Err = p.Cmd.Wait()
		close(p.Exited)
	}()
	return p
}

// Launch runs a program that ends with the test. What it printed is shown if the test fails.
func Launch(t testing.TB, program string, args ...string) *Output {
	t.Helper()
	log := &Output{}
	p := Start(t, t.TempDir(), log, program, args...)
	t.Cleanup(func() {
		p.Kill(t)
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program), log.Tail(12_000))
		}
	})
	return log
}

// AwaitReady waits until a server says that it is ready, and returns how long that took. A machine that stood still for 30 s is no
// fault of the server: it is looked at often enough, too.
func (p *Process) AwaitReady(t testing.TB, url string, log *Output) time.Duration {
	t.Helper()
	began, looks := time.Now(), 0
	for end := began.Add(30 * time.Second); time.Now().Before(end) || looks < 1000; time.Sleep(5 * time.Millisecond) {
		looks++
		if Ready(url) {
			return time.Since(began)
		}
		if !p.Alive() {
			t.Fatalf("the server at %s ended at once: %v\n%s", url, p.Err, log)
		}
	}
	p.Signal(t, syscall.SIGQUIT) // shows where it stands
	<-p.Exited
	t.Fatalf("the server at %s is not ready after %s and %d looks\n%s", url, time.Since(began), looks, log)
	return 0
}

// Ready tells whether a server says that it is.
func Ready(url string) bool {
	resp, err := http.Get(url + "/ready")
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Alive tells whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.Exited:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended meanwhile is fine.
func (p *Process) Signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := p.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal %s: %v", s, err)
	}
}

// Kill ends the process as a power cut of the process alone would.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGKILL)
	<-p.Exited
}

// Drain ends the process as an operator would, wants it to go in order, and returns how long that took.
func (p *Process) Drain(t testing.TB) time.Duration {
	t.Helper()
	began := time.Now()
	p.Signal(t, syscall.SIGTERM)
	select {
	case <-p.Exited:
		if p.Err != nil {
			t.Errorf("the server ended with %v", p.Err)
		}
	case <-time.After(20 * time.Second):
		t.Error("the server does not stop on SIGTERM")
		p.Kill(t)
	}
	return time.Since(began)
}

// Output takes what a process prints while the test may read it.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

// String is all that was written.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// Tail is the end of it, at most n bytes.
func (o *Output) Tail(n int) string {
	s := o.String()
	return s[max(0, len(s)-n):]
}

// Blame fails the test if the output tells of a panic or a data race, and shows its end where the test has failed.
func (o *Output) Blame(t testing.TB, name string) {
	t.Helper()
	if s := o.String(); strings.Contains(s, "panic") || strings.Contains(s, "DATA RACE") {
		t.Errorf("the log of %s tells of a panic:\n%s", name, s)
	} else if t.Failed() {
		t.Logf("the log of %s:\n%s", name, o.Tail(12_000))
	}
}
