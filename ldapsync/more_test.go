package ldapsync_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// TestRelink: an entry that was deleted and made anew has another key; whose account it is an administrator says.
func TestRelink(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		c.user("alice", "title", "Engineer")
		c.user("bob")
		team := c.group("team", c.dn("alice"), c.dn("bob"))
		s := start(func(d *homeserver.Directory) { d.Sync.Mode = "scan"; d.Safety.MaxShare = 1 })
		s.ready()
		a := s.login("alice", "pw-alice")
		s.wait("alice's room", limit, func() bool { return slices.Equal(s.rooms(a), []string{"team"}) })
		room := a.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)[0]
		c.part(team, c.dn("alice"))
		c.remove(c.dn("alice"))
		s.sync()
		if r := a.Do(t, "GET", "", "/v3/sync"); r.Status != 401 {
			t.Errorf("alice is gone: %d", r.Status)
		}
		c.user("alice", "title", "Manager")
		c.join(team, c.dn("alice"))
		run := s.sync()
		if errs := fmt.Sprint(run["errors"]); !strings.Contains(errs, c.dn("alice")) || !strings.Contains(errs, "belongs to another entry") {
			t.Errorf("the entry made anew: %s", errs)
		}
		if r := s.try("alice", "pw-alice"); r.Status == 200 {
			t.Error("the new entry signs in to the account before anybody said that it is hers")
		}
		post := func(body string) hstest.Response {
			return s.admin.Do(t, "POST", body, "/_moothall/admin/v1/directory/corp/relink")
		}
		for body, errcode := range map[string]string{
			`{"user_id":"@alice:test","name":"nobody"}`: "M_NOT_FOUND",
			`{"user_id":"@alice:test","name":"bob"}`:    "M_USER_IN_USE",
			`{"user_id":"@nobody:test","name":"alice"}`: "M_NOT_FOUND",
			`{"user_id":"@alice:test"}`:                 "M_MISSING_PARAM",
			`{"user_id":"@alice:test","name":"al*"}`:    "M_NOT_FOUND",
		} {
			if r := post(body); r.Errcode != errcode {
				t.Errorf("%s: %d %s", body, r.Status, r.Body)
			}
		}
		r := post(`{"user_id":"@alice:test","name":"alice"}`)
		var out struct {
			Run string `json:"run"`
			DN  string `json:"dn"`
		}
		if r.JSON(t, &out); r.Status != 200 || out.DN != c.dn("alice") {
			t.Fatalf("relink: %d %s", r.Status, r.Body)
		}
		s.await(out.Run)
		a = s.login("alice", "pw-alice")
		if a.UserID != "@alice:test" || s.profile("alice")["org.moothall.title"] != "Manager" {
			t.Errorf("%s with %v", a.UserID, s.profile("alice"))
		}
		s.wait("alice to be back in the room", limit, func() bool {
			rooms, _ := a.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)
			return slices.Contains(rooms, room)
		})
		if run := s.sync(); run["errors"] != nil {
			t.Errorf("after it: %v", run["errors"])
		}
		if got := fmt.Sprint(s.api("GET", "history/@alice:test", "")["changes"]); !strings.Contains(got, "person.unlinked") || !strings.Contains(got, "person.linked") {
			t.Errorf("the history: %s", got)
		}
	})
}

// TestTwoDirectories follows two companies' directories at once: each has its people, groups and safety, and one that is away
// keeps nobody of the other from anything.
func TestTwoDirectories(t *testing.T) {
	c, d := newCorp(t), newCorp(t)
	c.user("alice")
	c.user("both", "displayName", "of the first")
	c.group("team", c.dn("alice"))
	d.user("bob")
	d.user("both", "displayName", "of the second")
	d.group("team", d.dn("bob"))
	s := serve(t, hstest.Config(t, c.option(), func(cfg *homeserver.Config) {
		second := d.config()
		second.ID = "branch"
		cfg.Directories = append(cfg.Directories, second)
		cfg.Groups.Rules = append(cfg.Groups.Rules, homeserver.GroupRule{ID: "branch", Source: "branch", Kind: "group", NameRegexp: ".*", Make: "room", Join: "force"})
	}))
	s.ready()
	s.wait("the second directory", limit, func() bool { return s.api("GET", "branch", "")["following"] == true && s.status()["following"] == true })
	a, b := s.login("alice", "pw-alice"), s.login("bob", "pw-bob")
	s.wait("the rooms", limit, func() bool { return len(s.rooms(a)) == 1 && len(s.rooms(b)) == 1 })
	if one, two := a.Must(t, "GET", "", "/v3/joined_rooms"), b.Must(t, "GET", "", "/v3/joined_rooms"); fmt.Sprint(one) == fmt.Sprint(two) {
		t.Error("the teams of the two directories share a room")
	}
	faults := fmt.Sprint(s.status()["runs"], s.api("GET", "branch", "")["runs"])
	if !strings.Contains(faults, "@both:test exists already") {
		t.Errorf("a name that both have: %s", faults)
	}
	// Who has the account signs in with that entry's password alone.
	first := s.profile("both")["displayname"] == "of the first"
	good, bad := c, d
	if !first {
		good, bad = d, c
	}
	good.set(good.dn("both"), "userPassword", "the right one")
	bad.set(bad.dn("both"), "userPassword", "of somebody else")
	if r := s.try("both", "of somebody else"); r.Status == 200 {
		t.Error("the other directory's person signs in to the account")
	}
	if got := s.login("@both:test", "the right one").UserID; got != "@both:test" {
		t.Errorf("signed in as %s", got)
	}
	c.remove(c.dn("alice"))
	s.wait("alice to be out", limit, func() bool { return a.Do(t, "GET", "", "/v3/sync").Status == 401 })
	b.Must(t, "GET", "", "/v3/sync")
	d.set(d.dn("bob"), "title", "Boss")
	s.wait("bob's title", limit, func() bool { return s.profile("bob")["org.moothall.title"] == "Boss" })
}

// TestUnits gives a company's units a tree of spaces: made once, followed through moves and renames, entered and left by people.
func TestUnits(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		ou := "ou=people," + c.base
		east, sales := "ou=East,"+ou, "ou=Sales,ou=East,"+ou
		c.unit(east, "East")
		c.unit(sales, "Sales")
		c.unit("ou=West,"+ou, "West")
		person := func(uid, above string) string {
			dn := "uid=" + uid + "," + above
			c.add(dn, map[string][]string{"objectClass": {"inetOrgPerson"}, "cn": {uid}, "sn": {uid}, "uid": {uid}, "userPassword": {"pw-" + uid}})
			return dn
		}
		alice := person("alice", sales)
		person("bob", "ou=West,"+ou)
		s := serveUnits(t, c, start, ou)
		a, b := s.login("alice", "pw-alice"), s.login("bob", "pw-bob")
		s.wait("the spaces", limit, func() bool {
			return slices.Equal(s.rooms(a), []string{"East", "Sales", "people"}) && slices.Equal(s.rooms(b), []string{"West", "people"})
		})
		rooms := s.named(a)
		if tree := s.tree(a, rooms["people"]); tree != "people(? East(Sales))" { // what she is not in she does not see
			t.Errorf("the tree of spaces is %s", tree)
		}
		// Alice moves: she leaves the spaces of her old unit and enters those of the new one.
		c.move(alice, "uid=alice", "ou=West,"+ou)
		s.wait("alice in the west", limit, func() bool { return slices.Equal(s.rooms(a), []string{"West", "people"}) })
		// A unit is renamed with people in it, of whom the directory tells nothing: they stay, and so they do in groups.
		dora := person("dora", sales)
		club := c.group("club", dora)
		s.wait("dora's account", limit, func() bool { return s.profile("dora") != nil })
		d := s.login("dora", "pw-dora")
		s.wait("dora's spaces", limit, func() bool { return slices.Equal(s.rooms(d), []string{"East", "Sales", "people"}) })
		c.move(east, "ou=Orient", "")
		sales = "ou=Sales,ou=Orient," + ou
		s.wait("the new name", limit, func() bool { return slices.Equal(s.rooms(d), []string{"Orient", "Sales", "people"}) })
		c.set("uid=dora,"+sales, "title", "Boss")
		s.wait("dora's title", limit, func() bool { return s.profile("dora")["org.moothall.title"] == "Boss" })
		time.Sleep(300 * time.Millisecond)
		if got := s.rooms(d); !slices.Equal(got, []string{"Orient", "Sales", "people"}) {
			t.Errorf("dora is in %v after her unit was renamed", got)
		}
		c.remove(club)
		c.remove("uid=dora," + sales)
		// A unit is renamed and moved: the same space, under another one.
		c.move(sales, "ou=Verkauf", "ou=West,"+ou)
		person("carl", "ou=Verkauf,ou=West,"+ou)
		s.wait("carl's account", limit, func() bool { return s.profile("carl") != nil })
		k := s.login("carl", "pw-carl")
		s.wait("carl's spaces", limit, func() bool { return slices.Equal(s.rooms(k), []string{"Verkauf", "West", "people"}) })
		if s.named(k)["Verkauf"] != rooms["Sales"] {
			t.Error("the renamed unit has another space")
		}
		s.wait("the tree", limit, func() bool { return s.tree(k, rooms["people"]) == "people(? West(Verkauf))" })
	})
}

func serveUnits(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server, ou string) *server {
	t.Helper()
	s := start(func(d *homeserver.Directory) { d.Units.Base = ou })
	s.Stop()
	cfg := s.Config
	cfg.Groups.Rules = []homeserver.GroupRule{{ID: "units", Source: "corp", Kind: "unit", NameRegexp: ".*", Make: "space", Join: "force", Parent: "unit"}}
	s = serve(t, cfg)
	s.ready()
	s.following()
	return s
}

// named are the rooms that a user is in by their names.
func (s *server) named(c *hstest.Client) map[string]id.RoomID {
	s.t.Helper()
	out := map[string]id.RoomID{}
	joined, _ := c.Must(s.t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)
	for _, r := range joined {
		name, _ := c.Must(s.t, "GET", "", "/v3/rooms/%s/state/m.room.name", r)["name"].(string)
		out[name] = id.RoomID(r.(string))
	}
	return out
}

// tree writes the spaces below one, by name.
func (s *server) tree(c *hstest.Client, room id.RoomID) string {
	s.t.Helper()
	var out struct {
		Rooms []struct {
			ID       id.RoomID `json:"room_id"`
			Name     string    `json:"name"`
			Children []struct {
				Key id.RoomID `json:"state_key"`
			} `json:"children_state"`
		} `json:"rooms"`
	}
	c.Do(s.t, "GET", "", "/v1/rooms/%s/hierarchy", room).JSON(s.t, &out)
	var write func(room id.RoomID) string
	write = func(room id.RoomID) string {
		for _, r := range out.Rooms {
			if r.ID != room {
				continue
			}
			var below []string
			for _, child := range r.Children {
				below = append(below, write(child.Key))
			}
			slices.Sort(below)
			if len(below) == 0 {
				return r.Name
			}
			return r.Name + "(" + strings.Join(below, " ") + ")"
		}
		return "?"
	}
	return write(room)
}

// TestTimeZone takes the time zone over into the profile, where it is one.
func TestTimeZone(t *testing.T) {
	c := newCorp(t)
	c.user("alice", "roomNumber", "Asia/Shanghai")
	c.user("bob", "roomNumber", "near the lift")
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Users.Attributes.TimeZone = "roomNumber" })))
	s.ready()
	s.following()
	if got := s.profile("alice")["m.tz"]; got != "Asia/Shanghai" {
		t.Errorf("alice's time zone is %v", got)
	}
	if got := s.profile("bob")["m.tz"]; got != nil {
		t.Errorf("bob's time zone is %v", got)
	}
	if got := fmt.Sprint(s.status()["runs"]); !strings.Contains(got, `the time zone "near the lift" is none`) {
		t.Errorf("the run does not tell of bob's: %s", got)
	}
	c.set(c.dn("alice"), "roomNumber", "Europe/Berlin")
	s.wait("the new time zone", limit, func() bool { return s.profile("alice")["m.tz"] == "Europe/Berlin" })
	c.set(c.dn("alice"), "roomNumber")
	s.wait("no time zone", limit, func() bool { return s.profile("alice")["m.tz"] == nil })
}

// TestReferrals has entries that refer to the very server they are on, in a circle: nobody follows them, and everyone else is synced.
func TestReferrals(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	refer := func(dn, name, to string) {
		t.Helper()
		req := ldap.NewAddRequest(dn, []ldap.Control{ldap.NewControlManageDsaIT(true)})
		req.Attribute("objectClass", []string{"referral", "extensibleObject"})
		req.Attribute("ou", []string{name})
		req.Attribute("ref", []string{to})
		c.must(c.conn.Add(req))
	}
	ou := "ou=people," + c.base
	refer("ou=round,"+ou, "round", c.env["ldap"]+"/"+ou)
	refer("ou=about,"+ou, "about", c.env["ldap"]+"/ou=round,"+ou)
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Mode = "scan" })))
	s.ready()
	run := s.sync()
	if text := fmt.Sprint(run["warnings"]); !strings.Contains(text, "2 references to other servers below "+ou) || run["error"] != nil {
		t.Errorf("the run: %v", run)
	}
	s.login("alice", "pw-alice")
	s.Stop()
	cfg := s.Config
	cfg.Directories[0].Users.Base = "ou=round," + ou
	s = serve(t, cfg)
	s.wait("the fault", limit, func() bool {
		text := fmt.Sprint(s.status()["error"])
		return strings.Contains(text, "ou=round,"+ou) && strings.Contains(text, "referrals are not followed")
	})
	if got := s.status(); got["accounts"] != 1.0 {
		t.Errorf("accounts after it: %v", got["accounts"])
	}
}

// TestHugeGroup reads a group of 100,000 members, of whom three are people of the company.
func TestHugeGroup(t *testing.T) {
	c := newCorp(t)
	for i := range 3 {
		c.user(fmt.Sprintf("u%d", i))
	}
	c.group("small", c.dn("u1"))
	var b strings.Builder
	fmt.Fprintf(&b, "dn: cn=huge,ou=groups,%s\nobjectClass: groupOfNames\ncn: huge\nmember: %s\nmember: %s\nmember: %s\n", c.base, c.dn("u0"), c.dn("u1"), c.dn("u2"))
	for i := range 100_000 - 3 {
		fmt.Fprintf(&b, "member: uid=n%d,ou=nobody,%s\n", i, c.base)
	}
	c.load(b.String() + "\n")
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Mode = "scan" })))
	s.ready()
	u := s.login("u1", "pw-u1")
	s.wait("the rooms", limit, func() bool { return slices.Equal(s.rooms(u), []string{"huge", "small"}) })
	began := time.Now()
	run := s.sync()
	t.Logf("a comparison that finds nothing new took %v: %v", time.Since(began).Round(time.Millisecond), run["took_ms"])
	if run["error"] != nil || time.Since(began) > 15*time.Second {
		t.Errorf("the run: %v", run)
	}
}

// TestCertificates tries servers whose certificate is for another name, or has expired: the error says which and what to do.
func TestCertificates(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	for _, tc := range []struct {
		what, name, fault string
		until             time.Duration
	}{
		{"another name", "dc9.elsewhere.example", "its certificate is for another name", time.Hour},
		{"expired", "127.0.0.1", "has expired or is not valid yet (is a clock wrong?)", -time.Hour},
	} {
		t.Run(tc.what, func(t *testing.T) {
			address, ca := tlsFront(t, strings.TrimPrefix(c.env["ldap"], "ldap://"), tc.name, tc.until)
			s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) {
				d.Servers, d.CAFile = []string{"ldaps://" + address}, ca
			})))
			s.wait("the fault", limit, func() bool { return strings.Contains(fmt.Sprint(s.status()["error"]), tc.fault) })
			if r := s.try("alice", "pw-alice"); r.Status != 503 {
				t.Errorf("sign-in: %d %s", r.Status, r.Body)
			}
		})
	}
}

// tlsFront puts TLS with a certificate of its own before a server.
func tlsFront(t *testing.T, to, name string, until time.Duration) (address, ca string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(until),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = conn.Close() }()
				behind, err := net.Dial("tcp", to)
				if err != nil {
					return
				}
				defer func() { _ = behind.Close() }()
				go func() { _, _ = io.Copy(behind, conn) }()
				_, _ = io.Copy(conn, behind)
			}()
		}
	}()
	return l.Addr().String(), ca
}

// TestBindAccountLocked: the account that reads the directory is locked there after wrong passwords. The error names it, nobody is
// barred, and when it is unlocked things go on.
func TestBindAccountLocked(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	policy := "cn=policy," + c.base
	c.add(policy, map[string][]string{"objectClass": {"organizationalRole", "pwdPolicy"}, "cn": {"policy"}, "pwdAttribute": {"userPassword"},
		"pwdLockout": {"TRUE"}, "pwdMaxFailure": {"1"}})
	reader := c.user("reader")
	c.set(reader, "pwdPolicySubentry", policy)
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) {
		d.BindDN, d.BindPassword, d.Sync.Mode = reader, "pw-reader", "scan"
		d.Sync.Interval = homeserver.Duration(time.Second)
	})))
	s.ready()
	a := s.login("alice", "pw-alice")
	wrong, err := ldap.DialURL(c.env["ldap"])
	c.must(err)
	_ = wrong.Bind(reader, "wrong")
	_ = wrong.Close()
	s.wait("the fault", limit, func() bool {
		text := fmt.Sprint(s.status()["error"])
		return strings.Contains(text, "bind_dn "+reader+" cannot bind")
	})
	a.Must(t, "GET", "", "/v3/sync")
	if r := s.try("alice", "pw-alice"); r.Status != 503 {
		t.Errorf("sign-in meanwhile: %d %s", r.Status, r.Body)
	}
	c.set(reader, "pwdAccountLockedTime")
	s.wait("things to go on", 15*time.Second, func() bool { return s.status()["error"] == nil })
	s.login("alice", "pw-alice")
}
