package ldapsync_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/go-ldap/ldap/v3"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// domain is a company's Active Directory of a test: a branch of its own in a real domain.
type domain struct {
	*corp
	root, suffix string
}

func newDomain(t *testing.T) *domain {
	t.Helper()
	env := testkit.PartnerValues(t, sambaEnv)
	pem, err := os.ReadFile(env["ca"])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	conn, err := ldap.DialURL(env["ldaps"], ldap.DialWithTLSConfig(&tls.Config{RootCAs: pool, ServerName: "localhost"}))
	if err == nil {
		err = conn.Bind(env["admin"], env["password"])
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	d := &domain{corp: &corp{t: t, env: env, conn: conn}, root: env["base"], suffix: fmt.Sprint(time.Now().UnixNano() % 1e9)}
	d.base = "OU=t" + d.suffix + "," + d.root
	for _, ou := range []string{d.base, "OU=People," + d.base, "OU=East,OU=People," + d.base, "OU=Groups," + d.base, "OU=Elsewhere," + d.base} {
		d.add(ou, map[string][]string{"objectClass": {"organizationalUnit"}})
	}
	return d
}

// password is a value of unicodePwd.
func password(s string) string {
	var b []byte
	for _, c := range utf16.Encode([]rune(`"` + s + `"`)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return string(b)
}

// name is unique in the domain, as sAMAccountName has to be.
func (d *domain) name(s string) string { return s + d.suffix }

func (d *domain) user(s string, attributes ...string) string {
	d.t.Helper()
	dn := "CN=" + s + ",OU=People," + d.base
	attrs := map[string][]string{
		"objectClass": {"user"}, "sAMAccountName": {d.name(s)}, "userPrincipalName": {d.name(s) + "@corp.example"},
		"unicodePwd": {password("Pw-" + s + "-1234")}, "userAccountControl": {"512"},
	}
	for i := 0; i+1 < len(attributes); i += 2 {
		attrs[attributes[i]] = []string{attributes[i+1]}
	}
	d.add(dn, attrs)
	return dn
}

func (d *domain) group(s string, members ...string) string {
	d.t.Helper()
	dn := "CN=" + s + ",OU=Groups," + d.base
	d.add(dn, map[string][]string{"objectClass": {"group"}, "sAMAccountName": {d.name("g-" + s)}, "member": members})
	return dn
}

func (d *domain) option(changes ...func(*homeserver.Directory)) hstest.Option {
	cfg := homeserver.Directory{
		ID: "corp", Type: "active_directory", Servers: []string{d.env["ldaps"]}, CAFile: d.env["ca"], BindDN: d.env["admin"],
		BindPassword: homeserver.Secret(d.env["password"]),
		Users:        homeserver.DirectoryUsers{Base: "OU=People," + d.base},
		Groups:       homeserver.DirectoryGroups{Base: "OU=Groups," + d.base},
		Units:        homeserver.DirectoryUnits{Base: "OU=People," + d.base},
		Sync:         homeserver.DirectorySync{Interval: homeserver.Duration(200 * time.Millisecond)},
	}
	for _, change := range changes {
		change(&cfg)
	}
	return func(c *homeserver.Config) {
		c.Directories = []homeserver.Directory{cfg}
		c.Groups.Rules = []homeserver.GroupRule{{ID: "all", Source: "corp", Kind: "group", NameRegexp: ".*", Make: "room", Join: "force"}}
	}
}

// TestActiveDirectory has people sign in, join, move and leave in a real domain, in both ways to see changes and on both
// databases.
func TestActiveDirectory(t *testing.T) {
	for _, tc := range []struct {
		name, mode string
		postgres   bool
	}{{"usn on SQLite", "usn", false}, {"dirsync on PostgreSQL", "dirsync", true}} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDomain(t)
			photo := string(picture(48, 48))
			alice := d.user("alice", "displayName", "Alice A.", "mail", d.name("alice")+"@corp.example", "title", "Engineer", "department", "R&D", "thumbnailPhoto", photo)
			bob := d.user("bob", "manager", alice)
			staff := d.group("staff", alice, bob)
			d.group("all", staff)
			options := []hstest.Option{d.option(func(c *homeserver.Directory) {
				c.Sync.Mode = tc.mode
				c.Groups.Member = "member;range=0-0" // one at a time: as Active Directory returns large groups
			})}
			if tc.postgres {
				options = append(options, hstest.Postgres(storetest.Postgres(t)))
			}
			s := serve(t, hstest.Config(t, options...))
			s.ready()
			d.signIn(s)
			d.follow(s, alice, bob, staff)
		})
	}
}

func (d *domain) signIn(s *server) {
	t := s.t
	user := "@" + d.name("alice") + ":test"
	for _, name := range []string{d.name("alice"), d.name("alice") + "@corp.example", `CORP\` + d.name("alice"), user} {
		if got := s.login(name, "Pw-alice-1234").UserID; string(got) != user {
			t.Errorf("%s is %s", name, got)
		}
	}
	p := s.profile(d.name("alice"))
	if p["displayname"] != "Alice A." || p["org.moothall.department"] != "R&D" || !strings.HasPrefix(fmt.Sprint(p["avatar_url"]), "mxc://") {
		t.Errorf("profile of alice: %v", p)
	}
	if got := s.profile(d.name("bob"))["org.moothall.manager"]; got != "Alice A." {
		t.Errorf("bob's manager: %v", got)
	}
	must := d.user("must")
	d.set(must, "pwdLastSet", "0")
	off := d.user("off")
	d.set(off, "userAccountControl", "514")
	for _, tc := range []struct {
		name, password, errcode, text string
	}{
		{"alice", "wrong", "M_FORBIDDEN", "is wrong"}, {"alice", "", "M_FORBIDDEN", "is wrong"}, {"nobody", "x", "M_FORBIDDEN", "is wrong"},
		{"must", "Pw-must-1234", "M_FORBIDDEN", "password_must_change"}, {"must", "wrong", "M_FORBIDDEN", "is wrong"},
		{"off", "Pw-off-1234", "M_USER_LOCKED", "disabled"},
	} {
		if r := s.try(d.name(tc.name), tc.password); r.Errcode != tc.errcode || !strings.Contains(string(r.Body), tc.text) {
			t.Errorf("%s with %q: %d %s, want %s %s", tc.name, tc.password, r.Status, r.Body, tc.errcode, tc.text)
		}
	}
}

func (d *domain) follow(s *server, alice, bob, staff string) {
	t := s.t
	a, b := s.login(d.name("alice"), "Pw-alice-1234"), s.login(d.name("bob"), "Pw-bob-1234")
	both := []string{"all", "staff"}
	s.wait("the rooms", limit, func() bool { return slices.Equal(s.rooms(a), both) && slices.Equal(s.rooms(b), both) })

	dan := d.user("dan")
	d.join(staff, dan)
	s.wait("dan's account", limit, func() bool { return s.profile(d.name("dan")) != nil })
	c := s.login(d.name("dan"), "Pw-dan-1234")
	s.wait("dan's rooms", limit, func() bool { return slices.Equal(s.rooms(c), both) })

	d.move(bob, "CN=bob", "OU=East,OU=People,"+d.base)
	bob = "CN=bob,OU=East,OU=People," + d.base
	d.set(bob, "displayName", "Bob in the east")
	s.wait("bob's new name", limit, func() bool { return s.profile(d.name("bob"))["displayname"] == "Bob in the east" })
	d.move(alice, "CN=alicia", "")
	alice = "CN=alicia,OU=People," + d.base
	d.set(alice, "sAMAccountName", d.name("alicia"))
	s.wait("alice to sign in by the new name", limit, func() bool { return s.try(d.name("alicia"), "Pw-alice-1234").Status == 200 })
	if got := s.rooms(b); !slices.Equal(got, both) {
		t.Errorf("bob's rooms after the move: %v", got)
	}
	d.part(staff, alice)
	s.wait("alice to leave", limit, func() bool { return len(s.rooms(a)) == 0 })

	d.set(bob, "userAccountControl", "514")
	s.wait("bob to be out", limit, func() bool { return b.Do(t, "GET", "", "/v3/sync").Errcode == "M_UNKNOWN_TOKEN" })
	d.set(bob, "userAccountControl", "512")
	s.wait("bob to be back", limit, func() bool { return s.try(d.name("bob"), "Pw-bob-1234").Status == 200 })
	if got := s.rooms(s.login(d.name("bob"), "Pw-bob-1234")); !slices.Equal(got, both) {
		t.Errorf("bob is back in %v", got)
	}
	d.remove(dan)
	s.wait("dan to be out", limit, func() bool { return c.Do(t, "GET", "", "/v3/sync").Errcode == "M_UNKNOWN_TOKEN" })
	d.move(alice, "CN=alicia", "OU=Elsewhere,"+d.base) // where nobody looks: she is gone
	s.wait("alice to be out", limit, func() bool { return a.Do(t, "GET", "", "/v3/sync").Errcode == "M_UNKNOWN_TOKEN" })
}
