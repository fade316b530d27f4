package homeserver_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
)

// load reads a configuration from text.
func load(t *testing.T, yaml string, env ...string) (homeserver.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "moothall.yaml")
	if err := os.WriteFile(path, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := homeserver.LoadConfig(path, env)
	if err != nil {
		err = fmt.Errorf("%s", strings.ReplaceAll(err.Error(), path, "moothall.yaml"))
	}
	return c, err
}

// TestExampleConfig holds config.example.yaml to the code: it loads, has the defaults, and names every key.
func TestExampleConfig(t *testing.T) {
	got, err := homeserver.LoadConfig("../config.example.yaml", nil)
	if err != nil {
		t.Fatal(err)
	}
	want, err := homeserver.LoadConfig("", []string{"MOOTHALL_SERVER_NAME=example.org", "MOOTHALL_PUBLIC_URL=https://matrix.example.org"})
	if err != nil {
		t.Fatal(err)
	}
	// Empty lists and absent ones are the same.
	if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
		t.Errorf("the example differs from the defaults:\n%s\n%s", g, w)
	}
	b, err := os.ReadFile("../config.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	eachKey(reflect.TypeFor[homeserver.Config](), "", func(path string) {
		last := path[strings.LastIndexByte(path, '.')+1:]
		if !regexp.MustCompile(`(?m)^[ #]*(- )?` + last + `:`).Match(b) {
			t.Errorf("config.example.yaml does not name %s", path)
		}
	})
}

// eachKey calls fn with the path of every key.
func eachKey(t reflect.Type, path string, fn func(path string)) {
	if t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "-" && !strings.Contains(path, "rate_limits.") {
			fn(path + key)
			eachKey(t.Field(i).Type, path+key+".", fn)
		}
	}
}

func TestEnvironmentNamesAreUnique(t *testing.T) {
	seen := map[string]string{}
	eachKey(reflect.TypeFor[homeserver.Config](), "", func(path string) {
		name := strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
		if other := seen[name]; other != "" {
			t.Errorf("%s and %s have the same variable", path, other)
		}
		seen[name] = path
	})
}

func TestConfigErrors(t *testing.T) {
	for _, tc := range []struct{ name, yaml, want string }{
		{"unknown key", "server_name: a.example\ndatabse:\n  url: x", `moothall.yaml:2: unknown key "databse"; did you mean "database"?`},
		{"unknown nested key", "log:\n  levle: info", `moothall.yaml:2: unknown key "log.levle"; did you mean "level"?`},
		{"strange key", "log:\n  zzzzzzzz: info", `known here are: level, format`},
		{"key of a list", "listen:\n  - adress: x", `moothall.yaml:2: unknown key "listen[0].adress"; did you mean "address"?`},
		{"duplicate", "log:\n  level: info\nlog:\n  level: debug", "moothall.yaml:3"},
		{"no YAML", "log: [", "moothall.yaml:1: this is not YAML"},
		{"not a mapping", "hello", "moothall.yaml:1: keys and values are expected"},
		{"two documents", "log:\n  level: info\n---\nlog:\n  level: info", "one document"},
		{"text for keys", "log: info", "moothall.yaml:1: log must hold keys: level, format"},
		{"keys for text", "server_name:\n  a: b", "server_name must be text"},
		{"text for a list", "listen: :8008", "moothall.yaml:1: listen must be a list"},
		{"bad boolean", "rate_limits:\n  enabled: maybe", `moothall.yaml:2: rate_limits.enabled is "maybe"; it must be true or false`},
		{"bad number", "\n\ndatabase:\n  max_connections: many", `moothall.yaml:4: database.max_connections is "many"; it must be a whole number`},
		{"fraction", "database:\n  max_connections: 1.5", "must be a whole number"},
		{"number out of range", "database:\n  max_connections: 0", "moothall.yaml:2: database.max_connections is 0; it must be from 2 to 1000"},
		{"bad size", "media:\n  max_upload_size: 50 bananas", `moothall.yaml:2: media.max_upload_size "50 bananas" is no size`},
		{"negative size", "media:\n  max_upload_size: -1", "is no size"},
		{"short retention", "media:\n  retention:\n    local: 1h", `moothall.yaml:3: media.retention.local must be 0 (files are kept for ever) or at least "2d"`},
		{"bad retention", "media:\n  retention: {local: -7d}", `moothall.yaml:2: media.retention.local "-7d" is no duration`},
		{"bad duration", "turn:\n  ttl: soon", `moothall.yaml:2: turn.ttl "soon" is no duration`},
		{"bad server name", "server_name: exa mple", "moothall.yaml:1: server_name"},
		{"capitals", "server_name: Example.org", "small letters"},
		{"bad url", "public_url: matrix.example.org", "moothall.yaml:1: public_url"},
		{"bad database", "database:\n  url: mysql://x", "moothall.yaml:2: database.url must be empty or like postgres://"},
		{"bad mode", "registration:\n  mode: yes", `registration.mode is "yes"; it must be closed, token or open`},
		{"bad address", "listen:\n  - address: 8008", `moothall.yaml:2: listen[0].address is "8008"; it must be host:port`},
		{"bad port", "listen:\n  - address: :99999", "port must be a number"},
		{"twice", "listen:\n  - address: :1\n  - address: :1", "moothall.yaml:3: listen[1].address"},
		{"no client", "listen:\n  - address: :1\n    serve: [metrics]", "no address that serves client"},
		{"bad service", "listen:\n  - address: :1\n    serve: [cleint]", "moothall.yaml:3: listen[0].serve has \"cleint\""},
		{"half of TLS", "listen:\n  - address: :1\n    tls:\n      key: x.pem", "belong together"},
		{"bad proxy", "listen:\n  - address: :1\n    trusted_proxies: [nonsense]", "moothall.yaml:3: listen[0].trusted_proxies"},
		{"bad level", "log:\n  level: loud", "moothall.yaml:2: log.level is \"loud\"; it must be debug, info, warn or error"},
		{"bad burst", "rate_limits:\n  send: {burst: 0}", "moothall.yaml:2: rate_limits.send.burst"},
		{"turn without secret", "turn:\n  uris: [\"turn:x\"]", "turn.shared_secret"},
		{"bad contact", "well_known:\n  contacts:\n    - role: m.role.admin", "moothall.yaml:3: well_known.contacts[0] needs an email"},
		{"missing secret file", "registration:\n  shared_secret_file: /does/not/exist", "moothall.yaml:2: registration.shared_secret_file cannot be read"},
		{"secret twice", "registration:\n  shared_secret: x\n  shared_secret_file: /dev/null", "both set"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := load(t, tc.yaml)
			if err == nil {
				t.Fatal("it was taken")
			}
			if !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("got  %v\nwant %s", err, tc.want)
			}
		})
	}
}

func TestConfigValues(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := load(t, `
server_name: chat.example.org
listen:
  - address: :8448
    tls: {certificate: a.pem, key: b.pem}
  - address: 127.0.0.1:9000
    serve: [metrics, client]
    trusted_proxies: [127.0.0.1, "10.1.2.3/8"]
media: {max_upload_size: 1.5 GB, retention: {local: 180d}}
turn: {uris: ["turn:a"], shared_secret_file: `+secret+`, ttl: 1d12h}
registration:
`, "MOOTHALL_DATABASE_URL=postgres://db/x", "MOOTHALL_LISTEN_1_ADDRESS=:9001", "MOOTHALL_LISTEN_2_ADDRESS=:9002",
		"MOOTHALL_RATE_LIMITS_SEND_PER_SECOND=2.5", "MOOTHALL_TURN_URIS=turn:b, turns:c", "MOOTHALL_SERVICE_HOST=10.0.0.1", "MOOTHALL_LOG_LEVLE=debug", "OTHER=1")
	if err != nil {
		t.Fatal(err)
	}
	if c.PublicURL != "https://chat.example.org" || c.Media.MaxUploadSize != 1_500_000_000 || c.TURN.TTL.Std() != 36*time.Hour || c.Media.Retention.Local.Std() != 180*24*time.Hour {
		t.Errorf("values are %+v", c)
	}
	if c.TURN.SharedSecret != "from a file" || strings.Contains(fmt.Sprintf("%v %+v %#v", c, c, c), "from a file") {
		t.Error("the secret was not read, or is printed")
	}
	if len(c.Listen) != 3 || c.Listen[1].Address != ":9001" || c.Listen[2].Address != ":9002" || c.Listen[2].Serve[0] != "client" {
		t.Errorf("listeners are %+v", c.Listen)
	}
	if c.Database.URL != "postgres://db/x" || c.RateLimits.Send.PerSecond != 2.5 || c.RateLimits.Send.Burst != 50 || len(c.TURN.URIs) != 2 || c.TURN.URIs[1] != "turns:c" {
		t.Errorf("values are %+v", c)
	}
	if len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "MOOTHALL_LOG_LEVLE") {
		t.Errorf("warnings are %q", c.Warnings)
	}
	if _, err := homeserver.LoadConfig("", []string{"MOOTHALL_LOG_LEVEL=loud"}); err == nil || !strings.Contains(err.Error(), "MOOTHALL_LOG_LEVEL: log.level is") {
		t.Errorf("a wrong variable: %v", err)
	}
	if _, err := homeserver.LoadConfig("/does/not/exist.yaml", nil); err == nil {
		t.Error("a missing file was taken")
	}
}

func TestDefaults(t *testing.T) {
	c, err := homeserver.LoadConfig("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.ServerName != "localhost" || c.PublicURL != "http://127.0.0.1:8008" || c.Listen[0].Address != "127.0.0.1:8008" || len(c.Warnings) != 1 {
		t.Errorf("defaults are %+v", c)
	}
	for _, tc := range []struct {
		text string
		want time.Duration
	}{{"90s", 90 * time.Second}, {"7d", 7 * 24 * time.Hour}, {"2w", 14 * 24 * time.Hour}, {"1h30m", 90 * time.Minute}, {"1d 6h", 30 * time.Hour}, {"1.5d", 36 * time.Hour}} {
		var d homeserver.Duration
		if err := d.UnmarshalText([]byte(tc.text)); err != nil || d.Std() != tc.want {
			t.Errorf("%s is %v, %v", tc.text, d.Std(), err)
		}
	}
	for _, bad := range []string{"", "7", "d", "-1d", "1x", "1d1d", "99999999999999999999d"} {
		var d homeserver.Duration
		if err := d.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is %v", bad, d.Std())
		}
	}
}
