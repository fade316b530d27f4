// Package ldapsync makes accounts follow a company's directory (Active Directory, OpenLDAP or any other LDAP server): sign-in
// by bind, and a synchronisation of users, groups and units that holds changes open where the directory can push them.
package ldapsync

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// Kinds of directories.
const (
	OpenLDAP        = "openldap"
	ActiveDirectory = "active_directory"
	Generic         = "generic"
)

// Ways to see changes.
const (
	ModeAuto     = "auto"
	ModeSyncrepl = "syncrepl" // RFC 4533, held open
	ModeUSN      = "usn"      // Active Directory's uSNChanged
	ModeDirSync  = "dirsync"  // Active Directory's DirSync control
	ModeScan     = "scan"     // everything is read each time
)

// Config is one directory.
type Config struct {
	ID       string // short name, in sources and commands
	Type     string
	Servers  []string // ldap:// or ldaps:// URLs, in the order in which they are tried
	StartTLS bool
	RootCAs  *x509.CertPool // nil: the system's
	// BindDN and BindPassword are the account that reads the directory.
	BindDN, BindPassword string
	Timeout              time.Duration // of connecting and of each request; 10 s if it is 0

	Users  Users
	Groups Groups
	Units  Units
	Sync   SyncConfig
	Safety Safety
}

// Users says which entries are people and what is read of them.
type Users struct {
	Base, Filter string
	Localpart    string // template of attributes: {{.uid}}
	ID           string // attribute that never changes; by type if it is ""
	Login        string // filter by which a typed name is found: (uid={{.login}}); by type if it is ""
	DirectBind   string // template of the name to bind with, {{.login}}@corp.example: no search before; "": search, then bind
	SignIn       bool   // passwords are checked by the directory
	LinkExisting bool   // an account that exists already is taken over by the entry of its localpart
	MaxPhoto     int    // bytes; 2 MiB if it is 0
	Disabled     []string
	Attributes   Attributes
}

// Attributes names the attributes of a person's fields; "a | b" takes the first that has a value, "-" takes none.
type Attributes struct {
	DisplayName, Email, Phone, Title, Department, Manager, EmployeeNumber, Photo, TimeZone string
}

// Groups says which entries are groups; without a Base there are none.
type Groups struct{ Base, Filter, Name, Member string }

// Units says which entries are the company's units; without a Base and with From "" there are none.
type Units struct {
	Base, Filter, Name string
	// From is an attribute of users that names their unit, such as department, in place of entries; Separator parts
	// the levels in it.
	From, Separator string
}

// SyncConfig says when and how the directory is followed.
type SyncConfig struct {
	Enabled  bool
	Mode     string
	Interval time.Duration // between looks, where changes are not pushed; 5 min if it is 0
	// Reconcile is the time between complete comparisons where only changes are read otherwise; 24 h if it is 0.
	Reconcile time.Duration
	PageSize  int // entries of a search's page; 100 if it is 0
	Workers   int // accounts that are written at a time; if it is 0, 4 on SQLite, where they share commits, and 2 else
}

// Safety stops runs that would do too much.
type Safety struct {
	// MaxShare is the largest share of the accounts of a directory that one run, or an hour of changes, may bar; and of the
	// memberships that it may end. 0.1 if it is 0.
	MaxShare float64
	// MinCount is how many it may bar in any case; 10 if it is 0.
	MinCount int
}

// withDefaults fills in what depends on the type.
func (c Config) withDefaults() Config {
	set := func(s *string, def string) {
		if *s == "" {
			*s = def
		}
	}
	ad := c.Type == ActiveDirectory
	pick := func(forAD, other string) string {
		if ad {
			return forAD
		}
		return other
	}
	set(&c.Users.ID, pick("objectGUID", "entryUUID"))
	set(&c.Users.Filter, pick("(&(objectCategory=person)(objectClass=user))", "(objectClass=inetOrgPerson)"))
	set(&c.Users.Localpart, pick("{{.sAMAccountName}}", "{{.uid}}"))
	set(&c.Users.Login, pick("(|(sAMAccountName={{.login}})(userPrincipalName={{.login}})(mail={{.login}}))", "(|(uid={{.login}})(mail={{.login}}))"))
	set(&c.Groups.Filter, pick("(objectClass=group)", "(|(objectClass=groupOfNames)(objectClass=groupOfUniqueNames)(objectClass=posixGroup))"))
	set(&c.Groups.Name, "cn")
	set(&c.Groups.Member, pick("member", "member | uniqueMember | memberUid"))
	set(&c.Units.Filter, "(objectClass=organizationalUnit)")
	set(&c.Units.Name, "ou")
	set(&c.Sync.Mode, ModeAuto)
	if c.Sync.Mode == ModeAuto {
		c.Sync.Mode = map[string]string{OpenLDAP: ModeSyncrepl, ActiveDirectory: ModeUSN}[c.Type]
		set(&c.Sync.Mode, ModeScan)
	}
	a := &c.Users.Attributes
	set(&a.DisplayName, "displayName | cn")
	set(&a.Email, "mail")
	set(&a.Phone, "telephoneNumber | mobile")
	set(&a.Title, "title")
	set(&a.Department, pick("department", "departmentNumber | ou"))
	set(&a.Manager, "manager")
	set(&a.EmployeeNumber, pick("employeeID | employeeNumber", "employeeNumber"))
	set(&a.Photo, pick("thumbnailPhoto | jpegPhoto", "jpegPhoto"))
	set(&a.TimeZone, "-")
	if c.Users.Disabled == nil && !ad {
		c.Users.Disabled = []string{"pwdAccountLockedTime=000001010000Z", "nsAccountLock=true"}
	}
	if c.Users.MaxPhoto == 0 {
		c.Users.MaxPhoto = 2 << 20
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	if c.Sync.Interval == 0 {
		c.Sync.Interval = 5 * time.Minute
	}
	if c.Sync.Reconcile == 0 {
		c.Sync.Reconcile = 24 * time.Hour
	}
	if c.Sync.PageSize == 0 {
		c.Sync.PageSize = 100
	}
	if c.Safety.MaxShare == 0 {
		c.Safety.MaxShare = 0.1
	}
	if c.Safety.MinCount == 0 {
		c.Safety.MinCount = 10
	}
	return c
}

// ConfigError is a fault of a directory's configuration.
type ConfigError struct {
	Key string // below the directory, such as users.filter
	Err error
}

// Error implements error.
func (e *ConfigError) Error() string { return e.Key + " " + e.Err.Error() }

// Unwrap gives the fault itself.
func (e *ConfigError) Unwrap() error { return e.Err }

func wrong(key, format string, args ...any) error {
	return &ConfigError{key, fmt.Errorf(format, args...)}
}

// Check finds the first value that cannot be.
func (c Config) Check() error {
	if c.ID == "" || strings.Trim(c.ID, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return wrong("id", "is %q; it must be a short name of a-z, 0-9, - and _", c.ID)
	}
	if !slices.Contains([]string{OpenLDAP, ActiveDirectory, Generic}, c.Type) {
		return wrong("type", "is %q; it must be openldap, active_directory or generic", c.Type)
	}
	if len(c.Servers) == 0 {
		return wrong("servers", "is empty; it must be a list such as [ldaps://ldap.example.org]")
	}
	for _, s := range c.Servers {
		u, err := url.Parse(s)
		if err != nil || (u.Scheme != "ldap" && u.Scheme != "ldaps") || u.Host == "" {
			return wrong("servers", "has %q; it must be like ldaps://ldap.example.org", s)
		}
	}
	d := c.withDefaults()
	for key, dn := range map[string]string{"users.base": d.Users.Base, "groups.base": d.Groups.Base, "units.base": d.Units.Base} {
		if _, err := ldap.ParseDN(dn); err != nil || dn == "" && key == "users.base" {
			return wrong(key, "is %q; it must be a DN such as ou=people,dc=example,dc=org", dn)
		}
	}
	for key, filter := range map[string]string{
		"users.filter": d.Users.Filter, "groups.filter": d.Groups.Filter, "units.filter": d.Units.Filter, "users.login": loginFilter(d.Users.Login, "x"),
	} {
		if _, err := ldap.CompileFilter(filter); err != nil {
			return wrong(key, "is no LDAP filter: %v", err)
		}
	}
	if !strings.Contains(d.Users.Login, loginPlace) {
		return wrong("users.login", "must hold %s, which stands for the typed name", loginPlace)
	}
	if _, err := newMapping(d.Users.Localpart); err != nil {
		return wrong("users.localpart", "%v", err)
	}
	for _, s := range d.Users.Disabled {
		if name, _, ok := strings.Cut(s, "="); !ok || name == "" {
			return wrong("users.disabled", "has %q; it must be like nsAccountLock=true, or nsAccountLock=* for any value", s)
		}
	}
	switch {
	case !slices.Contains([]string{ModeSyncrepl, ModeUSN, ModeDirSync, ModeScan}, d.Sync.Mode):
		return wrong("sync.mode", "is %q; it must be auto, syncrepl, usn, dirsync or scan", c.Sync.Mode)
	case (d.Sync.Mode == ModeUSN || d.Sync.Mode == ModeDirSync) != (c.Type == ActiveDirectory) && d.Sync.Mode != ModeScan:
		return wrong("sync.mode", "is %q, which does not go with type %s", c.Sync.Mode, c.Type)
	case d.Safety.MaxShare < 0 || d.Safety.MaxShare > 1:
		return wrong("safety.max_share", "must be between 0 and 1")
	}
	return nil
}

// loginPlace stands for the typed name in filters and names to bind with.
const loginPlace = "{{.login}}"

func loginFilter(filter, login string) string {
	return strings.ReplaceAll(filter, loginPlace, ldap.EscapeFilter(login))
}

// tlsConfig is for one server: its certificate must be for the name in the URL.
func (c *Config) tlsConfig(host string) *tls.Config {
	return &tls.Config{ServerName: host, RootCAs: c.RootCAs, MinVersion: tls.VersionTLS12}
}

// mapping makes a localpart of an entry's attributes.
type mapping struct {
	t     *template.Template
	names []string // of attributes
}

func newMapping(text string) (*mapping, error) {
	t, err := template.New("localpart").Option("missingkey=error").Funcs(template.FuncMap{
		"lower":  strings.ToLower,
		"before": func(sep, s string) string { head, _, _ := strings.Cut(s, sep); return head },
	}).Parse(text)
	if err != nil {
		return nil, fmt.Errorf("is no template such as {{.uid}}: %w", err)
	}
	m := &mapping{t: t}
	collect(t.Root, &m.names)
	if len(m.names) == 0 {
		return nil, fmt.Errorf("is %q; it must name an attribute, such as {{.uid}}", text)
	}
	return m, nil
}

// collect finds the attributes that a template asks for.
func collect(n parse.Node, names *[]string) {
	switch n := n.(type) {
	case *parse.ListNode:
		if n != nil {
			for _, x := range n.Nodes {
				collect(x, names)
			}
		}
	case *parse.ActionNode:
		collect(n.Pipe, names)
	case *parse.PipeNode:
		for _, c := range n.Cmds {
			collect(c, names)
		}
	case *parse.CommandNode:
		for _, a := range n.Args {
			collect(a, names)
		}
	case *parse.FieldNode:
		if len(n.Ident) == 1 && !slices.Contains(*names, n.Ident[0]) {
			*names = append(*names, n.Ident[0])
		}
	case *parse.IfNode:
		collect(n.Pipe, names)
		collect(n.List, names)
		collect(n.ElseList, names)
	}
}

// localpart applies the mapping. What a localpart cannot have is written as the specification proposes: small letters,
// and =xx for the bytes of all other characters. Spec: appendices, "Mapping from other character sets".
func (m *mapping) localpart(e *ldap.Entry) (string, error) {
	values := make(map[string]string, len(m.names))
	for _, name := range m.names {
		v := e.GetEqualFoldAttributeValue(name)
		if v == "" {
			return "", fmt.Errorf("the attribute %s is missing, so there is no localpart", name)
		}
		values[name] = v
	}
	var out bytes.Buffer
	if err := m.t.Execute(&out, values); err != nil {
		return "", fmt.Errorf("make a localpart: %w", err)
	}
	return encodeLocalpart(out.Bytes()), nil
}

func encodeLocalpart(b []byte) string {
	var out strings.Builder
	for _, c := range bytes.TrimSpace(b) {
		switch {
		case c >= 'A' && c <= 'Z':
			out.WriteByte(c + 'a' - 'A')
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.IndexByte("._-/+", c) >= 0:
			out.WriteByte(c)
		default:
			fmt.Fprintf(&out, "=%02x", c)
		}
	}
	return out.String()
}

// Plain tells whether passwords would travel over a connection to another machine that is not encrypted.
func (c Config) Plain() bool {
	for _, s := range c.Servers {
		u, err := url.Parse(s)
		if err == nil && u.Scheme == "ldap" && !c.StartTLS && !slices.Contains([]string{"localhost", "127.0.0.1", "::1"}, u.Hostname()) {
			return true
		}
	}
	return false
}
