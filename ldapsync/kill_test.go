package ldapsync_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/ldapsync"
)

// childEnv makes this program a server with the configuration in a file: a process of its own can be killed.
const childEnv = "MOOTHALL_TEST_DIRECTORY_CHILD"

func TestMain(m *testing.M) {
	file := os.Getenv(childEnv)
	if file == "" {
		os.Exit(m.Run())
	}
	cfg, err := homeserver.LoadConfig(file, nil)
	var srv *homeserver.Server
	if err == nil {
		srv, err = homeserver.New(context.Background(), cfg, slog.New(slog.DiscardHandler))
	}
	if err == nil {
		err = srv.Run(context.Background())
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// child is a server in a process of its own.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	cfg homeserver.Config
	out bytes.Buffer
}

func startChild(t *testing.T, file string) *child {
	t.Helper()
	cfg, err := homeserver.LoadConfig(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &child{t: t, cfg: cfg, cmd: exec.Command(os.Args[0])}
	c.cmd.Env = append(os.Environ(), childEnv+"="+file)
	c.cmd.Stderr = &c.out
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.kill)
	return c
}

// kill is kill -9.
func (c *child) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Signal(syscall.SIGKILL)
		_ = c.cmd.Wait()
	}
}

// wait waits until the directory's status is as wanted, which it reads from the database.
func (c *child) wait(what string, done func(s *ldapsync.Status) bool) ldapsync.Status {
	c.t.Helper()
	var last ldapsync.Status
	for end := time.Now().Add(testkit.Patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		err := homeserver.WithDirectory(c.t.Context(), c.cfg, slog.New(slog.DiscardHandler), func(ctx context.Context, s *ldapsync.Sync) error {
			st, err := s.Status(ctx, "corp")
			if err == nil {
				last = *st
			}
			return err
		})
		if err == nil && done(&last) {
			return last
		}
	}
	c.t.Fatalf("%s: %+v\n%s", what, last, c.out.String())
	return last
}

// killConfig writes the configuration of a server that can be killed.
func (c *corp) killConfig(t *testing.T, databaseURL string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(`server_name: test
data_dir: %s
public_url: https://test.example
listen: [{address: "127.0.0.1:0", serve: [client]}]
registration: {mode: open}
rate_limits: {enabled: false}
passwords: {argon2: {memory: 1MiB, iterations: 1}}
directories:
  - id: corp
    type: openldap
    servers: [%s]
    bind_dn: cn=sync,dc=corp,dc=example
    bind_password: sync-pw
    users: {base: "ou=people,%s", filter: "(objectClass=inetOrgPerson)", localpart: "{{.uid}}"}
    groups: {base: "ou=groups,%s", filter: "(objectClass=groupOfNames)"}
groups: {rules: [{id: all, source: corp, kind: group, name_regexp: ".*", make: room, join: force}]}
`, dir, c.env["ldap"], c.base, c.base)
	if databaseURL != "" {
		text += "database: {url: \"" + databaseURL + "\"}\n"
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// people adds many.
func (c *corp) people(n int) {
	c.t.Helper()
	var load strings.Builder
	for i := range n {
		fmt.Fprintf(&load, "dn: %s\nobjectClass: inetOrgPerson\ncn: U %d\nsn: x\nuid: u%d\nuserPassword: pw-u%d\n\n", c.dn(fmt.Sprintf("u%d", i)), i, i, i)
	}
	c.load(load.String())
}

// TestKilled kills the server by SIGKILL in the middle of its first comparison, and while it follows the directory: it goes on
// where it was, does nothing twice and misses nothing.
func TestKilled(t *testing.T) {
	t.Run("first comparison", func(t *testing.T) {
		t.Parallel()
		c := newCorp(t)
		const n = 240
		c.people(n)
		c.group("team", c.dn("u1"), c.dn("u2"))
		file := c.killConfig(t, "")
		victim := startChild(t, file)
		early := victim.wait("some accounts", func(s *ldapsync.Status) bool { return s.Accounts >= 40 })
		victim.kill()
		if early.FullAt != 0 {
			t.Error("the first comparison was done before the server could be killed")
		}
		s := serve(t, victim.cfg)
		s.wait("the first comparison", 2*time.Minute, func() bool { return s.status()["full_at"] != nil })
		if got := s.status()["accounts"]; got != float64(n) {
			t.Errorf("%v accounts after the kill, want %d", got, n)
		}
		runs := s.status()["runs"].([]any)
		if run := runs[len(runs)-1].(map[string]any); run["created"].(float64) > float64(n)-40 || run["errors"] != nil {
			t.Errorf("the run after the kill: %v", run)
		}
		u := s.login("u1", "pw-u1")
		s.wait("the room", limit, func() bool { return len(s.rooms(u)) == 1 })
	})
	t.Run("following", func(t *testing.T) {
		t.Parallel()
		c := newCorp(t)
		c.people(60)
		file := c.killConfig(t, storetest.Postgres(t))
		victim := startChild(t, file)
		full := victim.wait("following", func(s *ldapsync.Status) bool { return s.Following }).FullAt
		for i := range 40 {
			c.set(c.dn(fmt.Sprintf("u%d", i)), "title", fmt.Sprint("Title ", i))
			if i == 30 {
				victim.kill() // some of it was pushed and written, some pushed, some not yet
			}
		}
		c.remove(c.dn("u50"))
		c.user("late")
		s := serve(t, victim.cfg)
		s.wait("what happened meanwhile", 40*time.Second, func() bool { return s.profile("late") != nil && s.status()["disabled_accounts"] == 1.0 })
		for i := range 40 {
			name := fmt.Sprintf("u%d", i)
			s.wait(name, limit, func() bool { return s.profile(name)["org.moothall.title"] == fmt.Sprint("Title ", i) })
		}
		if got := s.status()["full_at"]; got != float64(full) {
			t.Errorf("everything was compared again: complete at %v before, at %v now; runs: %v", full, got, s.status()["runs"])
		}
		// one is gone, and nobody else was ever out
		disabled := func() (n float64) {
			for _, run := range s.status()["runs"].([]any) {
				run := run.(map[string]any)
				n += run["disabled"].(float64)
				if run["stopped"] != nil {
					t.Errorf("a run stopped: %v", run)
				}
			}
			return n
		}
		s.wait("the record of who is gone", limit, func() bool { return disabled() >= 1 })
		if n := disabled(); n != 1 {
			t.Errorf("%v accounts were disabled, one is gone", n)
		}
	})
}
