package ldapsync

import (
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

func testMapper(t *testing.T, c Config) *mapper {
	t.Helper()
	m, err := newMapper(c.withDefaults(), func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestLocalpart(t *testing.T) {
	for _, tc := range []struct{ template, want string }{
		{"{{.uid}}", "j.smith"}, {"{{before `@` .mail}}", "jane"}, {"x-{{lower .uid}}", "x-j.smith"}, {"{{.cn}}", "jane=20=c3=a9=3d"},
		{"{{if .uid}}{{.uid}}{{else}}{{.cn}}{{end}}", "j.smith"},
	} {
		m, err := newMapping(tc.template)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.localpart(ldap.NewEntry("cn=x", map[string][]string{"UID": {"J.Smith"}, "mail": {"Jane@x.example"}, "cn": {" Jane é= "}}))
		if err != nil || got != tc.want {
			t.Errorf("%s: %q, %v; want %q", tc.template, got, err, tc.want)
		}
	}
	for _, bad := range []string{"", "constant", "{{.uid", "{{nosuch .uid}}"} {
		if _, err := newMapping(bad); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	m, _ := newMapping("{{.uid}}")
	if _, err := m.localpart(ldap.NewEntry("cn=x", nil)); err == nil || !strings.Contains(err.Error(), "uid is missing") {
		t.Errorf("without the attribute: %v", err)
	}
}

func TestKeys(t *testing.T) {
	m := testMapper(t, Config{Type: ActiveDirectory})
	raw := "\x78\x56\x34\x12\xcd\xab\x01\xef\x01\x02\x03\x04\x05\x06\x07\x08"
	e := ldap.NewEntry("cn=x", map[string][]string{"objectGUID": {raw}})
	e.Attributes[0].ByteValues = [][]byte{[]byte(raw)}
	if got := m.id(e); got != "12345678-abcd-ef01-0102-030405060708" {
		t.Errorf("objectGUID: %s", got)
	}
	if got := m.idFilter(m.id(e)); got != `(objectGUID=\78\56\34\12\cd\ab\01\ef\01\02\03\04\05\06\07\08)` {
		t.Errorf("filter: %s", got)
	}
	if dnKey("CN=A B , OU=X") != dnKey("cn=a b,ou=x") || dnKey("no dn") != "no dn" {
		t.Error("DNs are not compared as they should be")
	}
	if got := parentKeys(dnKey("uid=a,ou=b,dc=c")); len(got) != 2 || got[0] != dnKey("ou=b,dc=c") {
		t.Errorf("above: %v", got)
	}
}

func TestDisabled(t *testing.T) {
	ad := testMapper(t, Config{Type: ActiveDirectory})
	for _, tc := range []struct {
		name, value string
		want        bool
	}{
		{"userAccountControl", "512", false}, {"userAccountControl", "514", true}, {"userAccountControl", "66050", true},
		{"accountExpires", "0", false}, {"accountExpires", "9223372036854775807", false},
		{"accountExpires", "132500000000000000", true}, {"accountExpires", "139900000000000000", false},
	} {
		if got := ad.disabled(ldap.NewEntry("cn=x", map[string][]string{tc.name: {tc.value}})); (got != "") != tc.want {
			t.Errorf("%s %s: %q", tc.name, tc.value, got)
		}
	}
	other := testMapper(t, Config{Type: Generic, Users: Users{Disabled: []string{"state=gone", "locked=*"}}})
	for value, want := range map[string]bool{"here": false, "GONE": true} {
		if got := other.disabled(ldap.NewEntry("cn=x", map[string][]string{"state": {value}})); (got != "") != want {
			t.Errorf("state %s: %q", value, got)
		}
	}
	if other.disabled(ldap.NewEntry("cn=x", map[string][]string{"Locked": {"x"}})) == "" {
		t.Error("any value of locked does not disable")
	}
}

func TestRange(t *testing.T) {
	for _, tc := range []struct {
		attribute   string
		next        int
		found, done bool
	}{
		{"member;range=0-1499", 1500, true, false}, {"Member;Range=1500-*", 0, true, true}, {"member", 0, false, true}, {"memberOf;range=0-1", 0, false, true},
	} {
		_, next, found, done := nextRange(ldap.NewEntry("cn=x", map[string][]string{tc.attribute: {"a", "b"}}), "member")
		if next != tc.next || found != tc.found || done != tc.done {
			t.Errorf("%s: %d %v %v", tc.attribute, next, found, done)
		}
	}
}

func TestReasons(t *testing.T) {
	for text, want := range map[string]refusal{
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 52e, v4563": refusedPassword,
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 532, v4563": refusedExpired,
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 533, v4563": refusedDisabled,
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 773, v4563": refusedMustChange,
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 775, v4563": refusedLockedOut,
		"80090308: LdapErr: DSID-0C09044E, comment: AcceptSecurityContext error, data 701, v4563": refusedAccountExpired,
		"": refusedPassword, "data ": refusedPassword,
	} {
		if got := reason(ldap.NewError(ldap.LDAPResultInvalidCredentials, errText(text))); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	if reason(ldap.NewError(ldap.LDAPResultBusy, errText("x"))) != refusedOther {
		t.Error("a busy server says something of a password")
	}
}

type errText string

func (e errText) Error() string { return string(e) }

func TestConfig(t *testing.T) {
	good := Config{ID: "corp", Type: OpenLDAP, Servers: []string{"ldaps://x"}, Users: Users{Base: "dc=x"}}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for key, change := range map[string]func(*Config){
		"id":               func(c *Config) { c.ID = "A b" },
		"type":             func(c *Config) { c.Type = "x" },
		"servers":          func(c *Config) { c.Servers = []string{"http://x"} },
		"users.base":       func(c *Config) { c.Users.Base = "" },
		"users.filter":     func(c *Config) { c.Users.Filter = "(x" },
		"users.login":      func(c *Config) { c.Users.Login = "(uid=x)" },
		"users.localpart":  func(c *Config) { c.Users.Localpart = "x" },
		"users.disabled":   func(c *Config) { c.Users.Disabled = []string{"x"} },
		"sync.mode":        func(c *Config) { c.Sync.Mode = ModeUSN },
		"safety.max_share": func(c *Config) { c.Safety.MaxShare = 2 },
	} {
		c := good
		change(&c)
		fault, _ := c.Check().(*ConfigError)
		if fault == nil || fault.Key != key {
			t.Errorf("%s: %v", key, fault)
		}
	}
}

// FuzzLocalpart shows that whatever a directory holds becomes a localpart or an error.
func FuzzLocalpart(f *testing.F) {
	f.Add("Jane Doe")
	f.Add("张伟\x00")
	m, err := newMapping("{{.uid}}")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := m.localpart(ldap.NewEntry("cn=x", map[string][]string{"uid": {s}}))
		if err == nil && strings.Trim(got, "abcdefghijklmnopqrstuvwxyz0123456789._=-/+") != "" {
			t.Errorf("%q becomes %q", s, got)
		}
		dnKey(s)
		parentKeys(s)
	})
}
