package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// command runs the program inside the test and returns its exit code and what it printed.
func command(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	in := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(in, []byte(stdin), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(name string, flag int) *os.File {
		f, err := os.OpenFile(filepath.Join(filepath.Dir(in), name), flag, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		return f
	}
	oldIn, oldOut, oldErr := os.Stdin, os.Stdout, os.Stderr
	defer func() { os.Stdin, os.Stdout, os.Stderr = oldIn, oldOut, oldErr }()
	os.Stdin = open("in", os.O_RDONLY)
	out, bad := open("out", os.O_RDWR|os.O_CREATE), open("err", os.O_RDWR|os.O_CREATE)
	os.Stdout, os.Stderr = out, bad
	code = run(args)
	read := func(f *os.File) string {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return code, read(out), read(bad)
}

func TestCommandLine(t *testing.T) {
	t.Chdir(t.TempDir())
	write := func(name, text string) {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("bad.yaml", "log:\n  level: loud\n")
	write("moothall.yaml", "server_name: cmd.test\npasswords: {argon2: {memory: 1 MiB, iterations: 1}}\n")
	for _, tc := range []struct {
		args, stdin    string
		code           int
		stdout, stderr string
	}{
		{"", "", 0, "Usage: moothall", ""},
		{"--help", "", 0, "user set-password", ""},
		{"version", "", 0, "moothall ", ""},
		{"nonsense", "", 1, "", "moothall: unexpected argument nonsense"},
		{"config check", "", 0, "The configuration is good: cmd.test at https://cmd.test, SQLite in ./data.", ""},
		{"config check --config bad.yaml", "", 1, "", "bad.yaml:2: log.level is \"loud\"; it must be debug, info, warn or error"},
		{"serve --config none.yaml", "", 1, "", "no such file"},
		{"serve --config bad.yaml", "", 1, "", "bad.yaml:2"},
		{"user create alice --admin --password-stdin", "long enough\n", 0, "@alice:cmd.test", ""},
		{"user create alice --password-stdin", "long enough", 1, "", "moothall: this username is taken"},
		{"user create bob --password-stdin", "", 1, "", "moothall: no password was given"},
		{"user create bob", "long enough\nlong enough\n", 1, "", "use --password-stdin"},
		{"user set-password alice --password-stdin", "another one", 0, "@alice:cmd.test", ""},
		{"user set-password nobody --password-stdin", "another one", 1, "", "moothall: "},
		{"user sign-out alice", "", 0, "@alice:cmd.test", ""},
		{"user sign-out nobody", "", 1, "", "moothall: "},
		{"backup bk", "", 0, "The backup is complete", ""},
		{"backup bk", "", 1, "", "is not empty"},
		{"restore bk", "", 1, "", "restored into an empty data_dir only"},
		{"restore nowhere", "", 1, "", "nowhere"},
	} {
		code, stdout, stderr := command(t, tc.stdin, strings.Fields(tc.args)...)
		if code != tc.code || !strings.Contains(stdout, tc.stdout) || !strings.Contains(stderr, tc.stderr) {
			t.Errorf("moothall %s: exit %d\n%s%s\nwant %d %q %q", tc.args, code, stdout, stderr, tc.code, tc.stdout, tc.stderr)
		}
		if code == 1 && strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
			t.Errorf("moothall %s complains in several lines:\n%s", tc.args, stderr)
		}
	}
	t.Setenv("MOOTHALL_DATA_DIR", "other")
	if code, _, stderr := command(t, "", "restore", "bk"); code != 0 {
		t.Errorf("restore: %s", stderr)
	}
	if code, _, stderr := command(t, "long enough", "user", "create", "alice", "--password-stdin"); code != 1 || !strings.Contains(stderr, "taken") {
		t.Errorf("alice is not in the restored database: %d %s", code, stderr)
	}
}
