package ldapsync_test

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// slapdEnv says where an OpenLDAP runs, as scripts/partners/slapd prints it; sambaEnv where a Samba domain controller does.
const (
	slapdEnv = "MOOTHALL_TEST_SLAPD"
	sambaEnv = "MOOTHALL_TEST_SAMBA_AD"
)

// corp is a company's directory of a test: a branch of its own in a real server.
type corp struct {
	t    testing.TB
	env  map[string]string
	conn *ldap.Conn
	base string
}

func newCorp(t testing.TB) *corp {
	t.Helper()
	return corpAt(t, testkit.PartnerValues(t, slapdEnv))
}

func corpAt(t testing.TB, env map[string]string) *corp {
	t.Helper()
	c := &corp{t: t, env: env}
	c.connect()
	name := fmt.Sprintf("t%d", time.Now().UnixNano())
	c.base = "ou=" + name + ",dc=corp,dc=example"
	c.unit(c.base, name)
	c.unit("ou=people,"+c.base, "people")
	c.unit("ou=groups,"+c.base, "groups")
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

func (c *corp) connect() {
	c.t.Helper()
	conn, err := ldap.DialURL(c.env["ldap"])
	if err == nil {
		err = conn.Bind("cn=admin,dc=corp,dc=example", "admin-pw")
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.conn = conn
}

func (c *corp) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *corp) add(dn string, attrs map[string][]string) {
	c.t.Helper()
	req := ldap.NewAddRequest(dn, nil)
	for name, values := range attrs {
		req.Attribute(name, values)
	}
	c.must(c.conn.Add(req))
}

func (c *corp) unit(dn, name string) {
	c.t.Helper()
	c.add(dn, map[string][]string{"objectClass": {"organizationalUnit"}, "ou": {name}})
}

func (c *corp) dn(uid string) string { return "uid=" + uid + ",ou=people," + c.base }

// user adds a person whose password is "pw-" and the uid; attributes are pairs.
func (c *corp) user(uid string, attributes ...string) string {
	c.t.Helper()
	attrs := map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {"Name of " + uid}, "sn": {uid}, "uid": {uid}, "userPassword": {"pw-" + uid}}
	for i := 0; i+1 < len(attributes); i += 2 {
		attrs[attributes[i]] = []string{attributes[i+1]}
	}
	c.add(c.dn(uid), attrs)
	return c.dn(uid)
}

func (c *corp) group(cn string, members ...string) string {
	c.t.Helper()
	dn := "cn=" + cn + ",ou=groups," + c.base
	c.add(dn, map[string][]string{"objectClass": {"groupOfNames"}, "cn": {cn}, "member": members})
	return dn
}

// set replaces an attribute; without values it is removed.
func (c *corp) set(dn, name string, values ...string) {
	c.t.Helper()
	req := ldap.NewModifyRequest(dn, nil)
	req.Replace(name, values)
	c.must(c.conn.Modify(req))
}

func (c *corp) join(group, member string) {
	c.t.Helper()
	req := ldap.NewModifyRequest(group, nil)
	req.Add("member", []string{member})
	c.must(c.conn.Modify(req))
}

func (c *corp) part(group, member string) {
	c.t.Helper()
	req := ldap.NewModifyRequest(group, nil)
	req.Delete("member", []string{member})
	c.must(c.conn.Modify(req))
}

func (c *corp) remove(dn string) {
	c.t.Helper()
	c.must(c.conn.Del(ldap.NewDelRequest(dn, nil)))
}

// move renames an entry, into another branch if above is not "".
func (c *corp) move(dn, rdn, above string) {
	c.t.Helper()
	c.must(c.conn.ModifyDN(ldap.NewModifyDNRequest(dn, rdn, true, above)))
}

// config is the directory as a company would write it.
func (c *corp) config() homeserver.Directory {
	return homeserver.Directory{
		ID: "corp", Type: "openldap", Servers: []string{c.env["ldap"]}, BindDN: "cn=sync,dc=corp,dc=example", BindPassword: "sync-pw",
		Users:  homeserver.DirectoryUsers{Base: "ou=people," + c.base, Filter: "(objectClass=inetOrgPerson)", Localpart: "{{.uid}}"},
		Groups: homeserver.DirectoryGroups{Base: "ou=groups," + c.base, Filter: "(objectClass=groupOfNames)"},
		Sync:   homeserver.DirectorySync{Interval: homeserver.Duration(5 * time.Minute)},
	}
}

func (c *corp) option(changes ...func(*homeserver.Directory)) hstest.Option {
	d := c.config()
	for _, change := range changes {
		change(&d)
	}
	return func(cfg *homeserver.Config) {
		cfg.Directories = []homeserver.Directory{d}
		cfg.Groups.Rules = []homeserver.GroupRule{{ID: "all", Source: "corp", Kind: "group", NameRegexp: ".*", Make: "room", Join: "force"}}
	}
}

// each runs fn on both databases, each with a directory of its own.
func each(t *testing.T, fn func(t *testing.T, c *corp, start func(changes ...func(*homeserver.Directory)) *server)) {
	for _, db := range []string{"sqlite", "postgres"} {
		t.Run(db, func(t *testing.T) {
			c := newCorp(t)
			fn(t, c, func(changes ...func(*homeserver.Directory)) *server {
				t.Helper()
				options := []hstest.Option{c.option(changes...)}
				if db == "postgres" {
					options = append(options, hstest.Postgres(storetest.Postgres(t)))
				}
				return serve(t, hstest.Config(t, options...))
			})
		})
	}
}

// server is a running server with an administrator.
type server struct {
	*hstest.Server
	t     testing.TB
	admin *hstest.Client
}

func serve(t testing.TB, cfg homeserver.Config) *server {
	t.Helper()
	s := &server{Server: hstest.StartWith(t, cfg), t: t}
	if _, err := homeserver.CreateUser(t.Context(), s.Config, slog.New(slog.DiscardHandler), "root", "root's password", true); err != nil && !strings.Contains(err.Error(), "taken") {
		t.Fatal(err)
	}
	s.admin = s.login("root", "root's password")
	return s
}

// try signs in.
func (s *server) try(name, password string) hstest.Response {
	s.t.Helper()
	body, _ := json.Marshal(map[string]any{"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": name}, "password": password})
	return s.Anonymous().Do(s.t, "POST", string(body), "/v3/login")
}

// login signs in, which must succeed.
func (s *server) login(name, password string) *hstest.Client {
	s.t.Helper()
	r := s.try(name, password)
	if r.Status != 200 {
		s.t.Fatalf("sign-in of %s: %d %s", name, r.Status, r.Body)
	}
	var out struct {
		UserID   id.UserID   `json:"user_id"`
		Token    string      `json:"access_token"`
		DeviceID id.DeviceID `json:"device_id"`
	}
	r.JSON(s.t, &out)
	c := s.Anonymous()
	c.UserID, c.Token, c.DeviceID = out.UserID, out.Token, out.DeviceID
	return c
}

// metrics is what Prometheus reads.
func (s *server) metrics() string {
	s.t.Helper()
	resp, err := http.Get(s.URL + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// status is GET …/directory/corp.
func (s *server) status() map[string]any {
	s.t.Helper()
	return s.api("GET", "corp", "")
}

func (s *server) api(method, path, body string) map[string]any {
	s.t.Helper()
	r := s.admin.Do(s.t, method, body, "/_moothall/admin/v1/directory/"+path)
	if r.Status != 200 {
		s.t.Fatalf("%s %s: %d %s", method, path, r.Status, r.Body)
	}
	var m map[string]any
	r.JSON(s.t, &m)
	return m
}

// ready waits for the first complete comparison.
func (s *server) ready() {
	s.t.Helper()
	s.wait("the first comparison", 15*time.Second, func() bool { return s.status()["full_at"] != nil })
}

// following waits until changes are pushed.
func (s *server) following() {
	s.t.Helper()
	s.wait("changes to be pushed", 15*time.Second, func() bool { return s.status()["following"] == true })
}

// sync asks for a run and waits for its report.
func (s *server) sync() map[string]any {
	s.t.Helper()
	return s.await(s.api("POST", "corp/sync", "{}")["run"].(string))
}

func (s *server) await(run string) map[string]any {
	s.t.Helper()
	var report map[string]any
	s.wait("run "+run, 60*time.Second, func() bool {
		for _, r := range s.api("GET", "corp/runs", "")["runs"].([]any) {
			if m := r.(map[string]any); m["id"] == run && m["ended"] != nil {
				report = m
				return true
			}
		}
		return false
	})
	return report
}

func (s *server) wait(what string, limit time.Duration, done func() bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	for !done() {
		if time.Since(start) > limit {
			s.t.Fatalf("waited %v for %s; status: %v", limit, what, s.status())
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(start)
}

// profile is a user's profile.
func (s *server) profile(user string) map[string]any {
	s.t.Helper()
	r := s.admin.Do(s.t, "GET", "", "/v3/profile/@%s:test", user)
	if r.Status == 404 {
		return nil
	}
	var m map[string]any
	r.JSON(s.t, &m)
	return m
}

// rooms are the names of the rooms that a user is in.
func (s *server) rooms(c *hstest.Client) []string {
	s.t.Helper()
	var out []string
	joined, _ := c.Must(s.t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)
	for _, r := range joined {
		if resp := c.Do(s.t, "GET", "", "/v3/rooms/%s/state/m.room.name", r); resp.Status == 200 {
			var m struct{ Name string }
			resp.JSON(s.t, &m)
			out = append(out, m.Name)
		}
	}
	slices.Sort(out)
	return out
}
