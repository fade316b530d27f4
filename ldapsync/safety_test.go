package ldapsync_test

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestSafety shows that a run that would bar too many stops and asks.
func TestSafety(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		for i := range 20 {
			c.user(fmt.Sprintf("u%d", i))
		}
		s := start(func(d *homeserver.Directory) { d.Sync.Mode = "scan"; d.Safety.MinCount = 3; d.Safety.MaxShare = 0.2 })
		s.ready()
		u := s.login("u7", "pw-u7")
		for i := range 8 {
			c.remove(c.dn(fmt.Sprintf("u%d", i)))
		}
		plan := s.api("GET", "corp/plan", "")
		if n := len(plan["changes"].([]any)); n != 8 || plan["stopped"] == nil {
			t.Errorf("the plan has %d changes, stopped: %v", n, plan["stopped"])
		}
		if r := s.sync(); r["stopped"] == nil || r["gone"] != 0.0 {
			t.Errorf("the run did not stop: %v", r)
		}
		u.Must(t, "GET", "", "/v3/sync")
		waiting, _ := s.status()["waiting"].(map[string]any)
		if waiting == nil || waiting["disable"] != 8.0 {
			t.Fatalf("status: %v", s.status())
		}
		if r := s.admin.Do(t, "POST", `{"digest":"other"}`, "/_moothall/admin/v1/directory/corp/confirm"); r.Status != 400 {
			t.Errorf("confirming something else: %d %s", r.Status, r.Body)
		}
		if r := u.Do(t, "POST", `{}`, "/_moothall/admin/v1/directory/corp/confirm"); r.Status != 403 {
			t.Errorf("confirming as a user: %d %s", r.Status, r.Body)
		}
		if r := s.sync(); r["stopped"] == nil {
			t.Errorf("a second run did not stop: %v", r)
		}
		done := s.await(s.api("POST", "corp/confirm", fmt.Sprintf(`{"digest":%q}`, waiting["digest"]))["run"].(string))
		if done["gone"] != 8.0 || done["stopped"] != nil {
			t.Errorf("the confirmed run: %v", done)
		}
		if r := u.Do(t, "GET", "", "/v3/sync"); r.Errcode != "M_UNKNOWN_TOKEN" {
			t.Errorf("/sync of who is gone: %d %s", r.Status, r.Body)
		}
		if st := s.status(); st["waiting"] != nil || st["accounts"] != 12.0 || st["disabled_accounts"] != 8.0 {
			t.Errorf("status after: %v", st)
		}
		// A search that finds nothing is no reason to bar everybody.
		for i := 8; i < 20; i++ {
			c.remove(c.dn(fmt.Sprintf("u%d", i)))
		}
		if r := s.sync(); r["stopped"] == nil {
			t.Errorf("an empty directory did not stop the run: %v", r)
		}
	})
}

// TestSafetyPushed shows that pushed changes stop too.
func TestSafetyPushed(t *testing.T) {
	c := newCorp(t)
	for i := range 20 {
		c.user(fmt.Sprintf("u%d", i))
	}
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Safety.MinCount = 3; d.Safety.MaxShare = 0.2 })))
	s.ready()
	s.following()
	for i := range 10 {
		c.remove(c.dn(fmt.Sprintf("u%d", i)))
	}
	s.wait("the run to stop", limit, func() bool { return s.status()["waiting"] != nil })
	s.wait("the whole extent", limit, func() bool {
		w, _ := s.status()["waiting"].(map[string]any)
		return w != nil && w["digest"] != "changes" && w["disable"].(float64)+s.status()["disabled_accounts"].(float64) == 10
	})
	if n := s.status()["disabled_accounts"].(float64); n > 4 {
		t.Errorf("%v accounts were barred before anybody was asked", n)
	}
	s.await(s.api("POST", "corp/confirm", `{}`)["run"].(string))
	if st := s.status(); st["accounts"] != 10.0 || st["waiting"] != nil {
		t.Errorf("after the confirmation: %v", st)
	}
	c.user("late")
	s.wait("changes to be pushed again", limit, func() bool { return s.profile("late") != nil })
}

func picture(w, h int) []byte {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		img.Set(i%w, i/w, color.Gray{uint8(i * i)})
	}
	var b bytes.Buffer
	_ = jpeg.Encode(&b, img, nil)
	return b.Bytes()
}

// TestBadInput shows that what is wrong with one entry is named, and everyone else is taken over.
func TestBadInput(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		ou := "ou=people," + c.base
		c.unit("ou=two,"+ou, "two")
		person := func(dn, uid string, more ...string) {
			attrs := map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {"x"}, "sn": {"x"}, "userPassword": {"pw"}}
			if uid != "" {
				attrs["uid"] = []string{uid}
			}
			for i := 0; i+1 < len(more); i += 2 {
				attrs[more[i]] = []string{more[i+1]}
			}
			c.add(dn, attrs)
		}
		person("cn=no uid,"+ou, "")
		person("cn=first,"+ou, "twin")
		person("cn=second,ou=two,"+ou, "TWIN")
		c.user("张伟", "displayName", "张伟")
		c.user("a b", "mail", "same@corp.example")
		c.user("other", "mail", "same@corp.example")
		c.user("broken", "jpegPhoto", "\xff\xd8\xff\xe0 this is no picture \xff\xd9")
		c.user("huge", "jpegPhoto", string(picture(400, 400)))
		c.user("nice", "jpegPhoto", string(picture(40, 40)))
		c.user("root2", "displayName", strings.Repeat("很", 400), "title", "bad\x01title")
		group := c.group("odd", c.dn("nice"), "uid=nobody,"+ou, "cn=no uid,"+ou)
		c.join(group, group) // itself
		s := start(func(d *homeserver.Directory) { d.Sync.Mode = "scan"; d.Users.MaxPhoto = 3000 })
		s.User("taken")
		c.user("taken", "displayName", "From the directory")
		s.ready()
		run := s.sync()
		faults := map[string]string{}
		for _, e := range append(run["errors"].([]any), hstest.At(s.status(), "runs", -1, "errors").([]any)...) {
			m := e.(map[string]any)
			dn, _, _ := strings.Cut(m["dn"].(string), ",")
			faults[dn] += m["error"].(string) + "; "
		}
		for dn, want := range map[string]string{
			"cn=no uid": "uid is missing", "cn=first": "twin", "cn=second": "twin",
			"uid=broken": "photo", "uid=huge": "bytes", "uid=taken": "exists already",
		} {
			if !strings.Contains(faults[dn], want) {
				t.Errorf("fault of %s: %q, want %q in it", dn, faults[dn], want)
			}
		}
		if got := faults["uid=other"] + faults["uid=a b"]; !strings.Contains(got, "same@corp.example") {
			t.Errorf("the address of two: %q", got)
		}
		for _, uid := range []string{"=e5=bc=a0=e4=bc=9f", "a=20b", "other", "broken", "huge", "nice", "root2"} {
			if s.profile(uid) == nil {
				t.Errorf("%s has no account", uid)
			}
		}
		if s.profile("twin") != nil {
			t.Error("one of the twins has an account")
		}
		if got := s.profile("taken")["displayname"]; got == "From the directory" {
			t.Error("a local account was taken over")
		}
		if uri, _ := s.profile("nice")["avatar_url"].(string); !strings.HasPrefix(uri, "mxc://test/") {
			t.Errorf("avatar of nice: %q", uri)
		} else if r := s.login("nice", "pw-nice").Do(t, "GET", "", "/v1/media/download/test/"+strings.TrimPrefix(uri, "mxc://test/")); r.Status != 200 || !bytes.Equal(r.Body, picture(40, 40)) {
			t.Errorf("the photo: %d, %d bytes", r.Status, len(r.Body))
		}
		if s.profile("broken")["avatar_url"] != nil {
			t.Error("a broken photo became an avatar")
		}
		if got := []rune(s.profile("root2")["displayname"].(string)); len(got) > 256 {
			t.Errorf("a display name of %d characters", len(got))
		}
		c.set(c.dn("nice"), "jpegPhoto")
		s.sync()
		if s.profile("nice")["avatar_url"] != nil {
			t.Error("the removed photo is still an avatar")
		}
	})
}

// TestPasswordStates tells expired and locked passwords from wrong ones, by OpenLDAP's password policy.
func TestPasswordStates(t *testing.T) {
	c := newCorp(t)
	policy := "cn=policy," + c.base
	c.add(policy, map[string][]string{"objectClass": {"organizationalRole", "pwdPolicy"}, "cn": {"policy"}, "pwdAttribute": {"userPassword"},
		"pwdMaxAge": {"1"}})
	other := "cn=lenient," + c.base
	c.add(other, map[string][]string{"objectClass": {"organizationalRole", "pwdPolicy"}, "cn": {"lenient"}, "pwdAttribute": {"userPassword"},
		"pwdLockout": {"TRUE"}, "pwdMaxFailure": {"2"}, "pwdMustChange": {"TRUE"}})
	c.user("old")
	c.set(c.dn("old"), "pwdPolicySubentry", policy)
	c.set(c.dn("old"), "userPassword", "pw-old")
	c.user("locked")
	c.set(c.dn("locked"), "pwdPolicySubentry", other)
	c.user("reset")
	c.set(c.dn("reset"), "pwdPolicySubentry", other)
	c.set(c.dn("reset"), "pwdReset", "TRUE")
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Mode = "off" })))
	time.Sleep(1500 * time.Millisecond)
	check := func(name, password, reason string) {
		t.Helper()
		r := s.try(name, password)
		if r.Status != 403 || r.Errcode != "M_FORBIDDEN" || !strings.Contains(string(r.Body), reason) {
			t.Errorf("%s: %d %s, want %s", name, r.Status, r.Body, reason)
		}
	}
	check("old", "wrong", "is wrong")
	check("old", "pw-old", "password_expired")
	check("reset", "pw-reset", "password_must_change")
	check("locked", "wrong", "is wrong")
	s.try("locked", "wrong")
	check("locked", "pw-locked", "locked_out")
}

// TestConnections tries TLS, StartTLS, a certificate that nobody trusts, servers that are away, and a bind account that
// cannot bind.
func TestConnections(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	silent := "ldap://" + dead.Addr().String() // takes connections and never answers
	defer func() { _ = dead.Close() }()
	for _, tc := range []struct {
		name   string
		change func(d *homeserver.Directory)
		fault  string // in the status; "": it works
	}{
		{"ldaps", func(d *homeserver.Directory) { d.Servers = []string{c.env["ldaps"]}; d.CAFile = c.env["ca"] }, ""},
		{"StartTLS", func(d *homeserver.Directory) { d.StartTLS = true; d.CAFile = c.env["ca"] }, ""},
		{"fail-over", func(d *homeserver.Directory) {
			d.Servers = []string{"ldap://127.0.0.1:1", silent, c.env["ldap"]}
			d.StartTLS, d.CAFile, d.Timeout = true, c.env["ca"], homeserver.Duration(300*time.Millisecond)
		}, ""},
		{"direct bind", func(d *homeserver.Directory) { d.Users.DirectBind = "uid={{.login}},ou=people," + c.base }, ""},
		{"untrusted certificate", func(d *homeserver.Directory) { d.Servers = []string{c.env["ldaps"]} }, "authority that is not trusted"},
		{"wrong bind password", func(d *homeserver.Directory) { d.BindPassword = "no" }, "cn=sync,dc=corp,dc=example cannot bind: the name or the password is wrong"},
		{"no such base", func(d *homeserver.Directory) { d.Users.Base = "ou=no,dc=corp,dc=example" }, "there is no such entry"},
		{"all away", func(d *homeserver.Directory) { d.Servers = []string{"ldap://127.0.0.1:1"} }, "can be reached"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, hstest.Config(t, c.option(tc.change)))
			if tc.fault == "" {
				s.ready()
				s.login("alice", "pw-alice")
				if r := s.try("alice", "wrong"); r.Status != 403 {
					t.Errorf("a wrong password: %d %s", r.Status, r.Body)
				}
				if r := s.api("GET", "corp/test?user=alice", ""); hstest.At(r, "sample", "user_id") != "@alice:test" {
					t.Errorf("test: %v", r)
				}
				return
			}
			s.wait("the fault", limit, func() bool { return strings.Contains(fmt.Sprint(s.status()["error"]), tc.fault) })
			if r := s.try("alice", "pw-alice"); r.Status != 503 && tc.name != "no such base" {
				t.Errorf("sign-in: %d %s", r.Status, r.Body)
			}
			if r := s.api("GET", "corp/test", ""); r["ok"] != false || !strings.Contains(fmt.Sprint(r), tc.fault) {
				t.Errorf("test: %v", r)
			}
			s.login("root", "root's password") // who is not in the directory signs in all the same
		})
	}
}

// TestSizeLimit shows that a search that the directory cut short bars nobody.
func TestSizeLimit(t *testing.T) {
	c := newCorp(t)
	for i := range 12 {
		c.user(fmt.Sprintf("u%d", i))
	}
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Mode = "scan"; d.Safety.MaxShare = 1 })))
	s.ready()
	u := s.login("u3", "pw-u3")
	s.Stop()
	// an account for which the directory's limit of 500 holds, and more entries than that
	var load strings.Builder
	for i := range 600 {
		fmt.Fprintf(&load, "dn: %s\nobjectClass: inetOrgPerson\ncn: x\nsn: x\nuid: x%d\n\n", c.dn(fmt.Sprintf("x%d", i)), i)
	}
	c.load(load.String())
	c.add("cn=weak,"+c.base, map[string][]string{"objectClass": {"organizationalRole", "simpleSecurityObject"}, "cn": {"weak"}, "userPassword": {"weak"}})
	cfg := s.Config
	cfg.Directories[0].BindDN, cfg.Directories[0].BindPassword = "cn=weak,"+c.base, "weak"
	s = serve(t, cfg)
	run := s.sync()
	if text, _ := run["error"].(string); !strings.Contains(text, "size limit") || run["gone"] != 0.0 {
		t.Errorf("the run: %v", run)
	}
	u.On(s.Server).Must(t, "GET", "", "/v3/sync")
}

// load adds entries quickly.
func (c *corp) load(ldif string) {
	c.t.Helper()
	cmd := exec.Command("ldapadd", "-x", "-H", c.env["ldap"], "-D", "cn=admin,dc=corp,dc=example", "-w", "admin-pw")
	cmd.Stdin = strings.NewReader(ldif)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.t.Fatalf("ldapadd: %v: %.500s", err, out[max(0, len(out)-500):])
	}
}

// TestRestart stops the server in the middle of its first comparison, changes the directory while it is away, and takes
// the directory away while the server follows it.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	slapd := func(command string) map[string]string {
		out, err := exec.Command(filepath.Join("..", "scripts", "partners", "slapd"), command, dir).Output()
		if err != nil {
			t.Fatalf("slapd %s: %v", command, err)
		}
		env := map[string]string{}
		for _, pair := range strings.Fields(string(out)) {
			k, v, _ := strings.Cut(pair, "=")
			env[k] = v
		}
		return env
	}
	testkit.Partner(t, slapdEnv)
	env := slapd("start")
	defer slapd("stop")
	c := corpAt(t, env)
	const n = 400
	var load strings.Builder
	for i := range n {
		fmt.Fprintf(&load, "dn: %s\nobjectClass: inetOrgPerson\ncn: U %d\nsn: x\nuid: u%d\nuserPassword: pw-u%d\n\n", c.dn(fmt.Sprintf("u%d", i)), i, i, i)
	}
	c.load(load.String())
	cfg := hstest.Config(t, c.option())
	s := serve(t, cfg)
	s.wait("some accounts", 15*time.Second, func() bool { return s.status()["accounts"].(float64) > 20 })
	early := s.status()
	s.Stop()
	if early["full_at"] != nil {
		t.Log("the first comparison was done before it could be stopped")
	}
	s = serve(t, s.Config)
	s.ready()
	s.following()
	if got := s.status()["accounts"]; got != float64(n) {
		t.Errorf("%v accounts after the restart, want %d", got, n)
	}
	u, v := s.login("u1", "pw-u1"), s.login("u2", "pw-u2")

	// what happens while the server is away is seen by the cookie, without a complete comparison
	full := s.status()["full_at"]
	s.Stop()
	c.remove(c.dn("u1"))
	c.set(c.dn("u3"), "displayName", "Changed")
	c.user("new")
	s = serve(t, s.Config)
	s.wait("the new account", limit, func() bool { return s.profile("new") != nil && s.profile("u3")["displayname"] == "Changed" })
	s.wait("u1 to be out", limit, func() bool { return u.On(s.Server).Do(t, "GET", "", "/v3/sync").Status == 401 })
	if got := s.status()["full_at"]; got != full {
		t.Errorf("everything was read again: %v, %v", full, got)
	}

	// the directory goes away, and comes back with changes
	s.following()
	_ = c.conn.Close()
	slapd("stop")
	s.wait("the loss to be seen", limit, func() bool { return s.status()["error"] != nil })
	v.On(s.Server).Must(t, "GET", "", "/v3/sync") // nobody is signed out by it
	if r := s.try("u5", "pw-u5"); r.Status != 503 {
		t.Errorf("sign-in while the directory is away: %d %s", r.Status, r.Body)
	}
	slapd("start")
	c.connect()
	c.remove(c.dn("u2"))
	s.wait("u2 to be out", 10*time.Second, func() bool { return v.On(s.Server).Do(t, "GET", "", "/v3/sync").Status == 401 })
	s.login("u5", "pw-u5")
}

// TestTwoNodes shows that of two servers on one database one follows the directory.
func TestTwoNodes(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	one := serve(t, hstest.Config(t, c.option(), hstest.Postgres(storetest.Postgres(t)), func(cfg *homeserver.Config) {
		cfg.Listen[0].Serve = []string{homeserver.ServeClient, homeserver.ServeMetrics}
	}))
	one.ready()
	one.following()
	cfg := one.Config
	cfg.DataDir = t.TempDir()
	two := serve(t, cfg)
	a := two.login("alice", "pw-alice")
	leader := func(s *server) bool {
		return strings.Contains(s.metrics(), `moothall_directory_following{directory="corp"} 1`)
	}
	if !leader(one) || leader(two) {
		t.Errorf("following: %v and %v", leader(one), leader(two))
	}
	c.remove(c.dn("alice"))
	two.wait("alice to be out at the other node", limit, func() bool { return a.Do(t, "GET", "", "/v3/sync").Status == 401 })
	one.Stop()
	two.admin = two.login("root", "root's password")
	two.wait("the other node to follow", 10*time.Second, func() bool { return leader(two) })
	c.user("bob")
	two.wait("bob's account", limit, func() bool { return two.profile("bob") != nil })
}

// TestDeactivation deactivates who has been gone for the configured time.
func TestDeactivation(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	c.group("team", c.dn("alice"))
	cfg := hstest.Config(t, c.option(), func(cfg *homeserver.Config) { cfg.People.DeactivateAfter = homeserver.Duration(time.Millisecond) })
	s := serve(t, cfg)
	s.ready()
	s.following()
	s.login("alice", "pw-alice")
	c.remove(c.dn("alice"))
	s.wait("alice to be disabled", limit, func() bool { return s.status()["disabled_accounts"] == 1.0 })
	s.Stop()
	s = serve(t, s.Config) // the sweep begins with the server
	s.wait("alice to be deactivated", limit, func() bool {
		return strings.Contains(fmt.Sprint(s.api("GET", "history/@alice:test", "")), "person.deactivated")
	})
}

// TestAPI asks for what there is not.
func TestAPI(t *testing.T) {
	c := newCorp(t)
	s := serve(t, hstest.Config(t, c.option()))
	s.ready()
	if r := s.api("GET", "corp/plan", ""); len(r["changes"].([]any)) != 0 || r["stopped"] != nil {
		t.Errorf("the plan: %v", r)
	}
	if r := s.admin.Do(t, "GET", "", "/_moothall/admin/v1/directory/none"); r.Status != 404 {
		t.Errorf("an unknown directory: %d", r.Status)
	}
	if r := s.Anonymous().Do(t, "GET", "", "/_moothall/admin/v1/directory"); r.Status != 401 {
		t.Errorf("without a token: %d", r.Status)
	}
}
