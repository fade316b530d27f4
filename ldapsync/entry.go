package ldapsync

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"

	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// entry is what the mapping makes of an entry of the directory.
type entry struct {
	id, dn, key string // key: the DN in a form that can be compared
	kind        int64
	name        string
	digest      []byte

	// users
	person       people.Person // without the manager, who is another entry
	localpartErr error
	manager      string // key
	uid          string // by which groups of the old kind name their members
	unit         string // in an attribute
	why          string // why the account is disabled; "" where it is not
	warnings     []string

	// groups
	members []string // keys of DNs, or uid: and a uid
}

// dnKey brings a DN into a form that can be compared; what is none stays as it is, in small letters.
func dnKey(dn string) string {
	p, err := ldap.ParseDN(dn)
	if err != nil {
		return strings.ToLower(dn)
	}
	return strings.ToLower(p.String())
}

// parentKeys are the keys of the entries above one, the nearest first.
func parentKeys(key string) []string {
	p, err := ldap.ParseDN(key)
	if err != nil {
		return nil
	}
	var out []string
	for i := 1; i < len(p.RDNs); i++ {
		out = append(out, (&ldap.DN{RDNs: p.RDNs[i:]}).String())
	}
	return out
}

// firstRDN is the value of a DN's first part, for people.
func firstRDN(dn string) string {
	p, err := ldap.ParseDN(dn)
	if err != nil || len(p.RDNs) == 0 || len(p.RDNs[0].Attributes) == 0 {
		return dn
	}
	return p.RDNs[0].Attributes[0].Value
}

// mapper makes entries of what a directory returns.
type mapper struct {
	cfg       Config
	localpart *mapping
	now       func() time.Time
}

func newMapper(cfg Config, now func() time.Time) (*mapper, error) {
	m, err := newMapping(cfg.Users.Localpart)
	return &mapper{cfg: cfg, localpart: m, now: now}, err
}

// first gives the first value of alternatives: "displayName | cn".
func first(e *ldap.Entry, names string) string {
	for name := range strings.SplitSeq(names, "|") {
		name = strings.TrimSpace(name)
		if name == "" || name == "-" {
			continue
		}
		for _, v := range e.GetEqualFoldAttributeValues(name) {
			if v = cleanText(v); v != "" {
				return v
			}
		}
	}
	return ""
}

// cleanText takes out what a profile cannot have; text in another encoding is no text.
func cleanText(s string) string {
	if !utf8.ValidString(s) {
		return ""
	}
	return strings.TrimSpace(strings.ReplaceAll(s, "\x00", ""))
}

func attributeNames(lists ...string) []string {
	var out []string
	for _, list := range lists {
		for name := range strings.SplitSeq(list, "|") {
			if name = strings.TrimSpace(name); name != "" && name != "-" && !slices.Contains(out, name) {
				out = append(out, name)
			}
		}
	}
	return out
}

func (m *mapper) userAttributes() []string {
	a := &m.cfg.Users.Attributes
	out := attributeNames(m.cfg.Users.ID, a.DisplayName, a.Email, a.Phone, a.Title, a.Department, a.Manager, a.EmployeeNumber, a.Photo, a.TimeZone, m.cfg.Units.From)
	for _, name := range slices.Concat(m.localpart.names, []string{"uid"}) {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, s := range m.cfg.Users.Disabled {
		name, _, _ := strings.Cut(s, "=")
		out = append(out, name)
	}
	if m.cfg.Type == ActiveDirectory {
		out = append(out, "userAccountControl", "accountExpires")
	}
	return out
}

func (m *mapper) groupAttributes() []string {
	return attributeNames(m.cfg.Users.ID, m.cfg.Groups.Name, m.cfg.Groups.Member)
}

func (m *mapper) unitAttributes() []string { return attributeNames(m.cfg.Users.ID, m.cfg.Units.Name) }

// id is the entry's key that never changes; "" where it cannot be read.
func (m *mapper) id(e *ldap.Entry) string {
	raw := e.GetEqualFoldRawAttributeValue(m.cfg.Users.ID)
	switch {
	case len(raw) == 0:
		return ""
	case strings.EqualFold(m.cfg.Users.ID, "objectGUID") && len(raw) == 16:
		return guidText(raw)
	case !utf8.Valid(raw) || bytes.IndexByte(raw, 0) >= 0:
		return hex.EncodeToString(raw)
	}
	return strings.ToLower(strings.TrimSpace(string(raw)))
}

// guidText writes an objectGUID as Windows and identity providers do: its first three parts are little-endian.
func guidText(raw []byte) string {
	u := swapGUID(raw)
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

func swapGUID(raw []byte) []byte {
	u := slices.Clone(raw)
	slices.Reverse(u[:4])
	slices.Reverse(u[4:6])
	slices.Reverse(u[6:8])
	return u
}

// idFilter finds an entry by its key.
func (m *mapper) idFilter(id string) string {
	name := m.cfg.Users.ID
	if strings.EqualFold(name, "objectGUID") {
		u, err := hex.DecodeString(strings.ReplaceAll(id, "-", ""))
		if err != nil || len(u) != 16 {
			return "(!(objectClass=*))"
		}
		var b strings.Builder
		for _, c := range swapGUID(u) {
			fmt.Fprintf(&b, "\\%02x", c)
		}
		return "(" + name + "=" + b.String() + ")"
	}
	return "(" + name + "=" + ldap.EscapeFilter(id) + ")"
}

// disabled tells why an account cannot be used, "" where it can.
func (m *mapper) disabled(e *ldap.Entry) string {
	if m.cfg.Type == ActiveDirectory {
		flags, err := strconv.ParseInt(e.GetEqualFoldAttributeValue("userAccountControl"), 10, 64)
		if err == nil && flags&2 != 0 { // ADS_UF_ACCOUNTDISABLE
			return "disabled in the directory"
		}
		expires, err := strconv.ParseInt(e.GetEqualFoldAttributeValue("accountExpires"), 10, 64)
		if err == nil && expires > 0 && expires < 1<<62 && fileTime(expires).Before(m.now()) {
			return "expired in the directory"
		}
	}
	for _, s := range m.cfg.Users.Disabled {
		name, want, _ := strings.Cut(s, "=")
		for _, v := range e.GetEqualFoldAttributeValues(name) {
			if want == "*" || strings.EqualFold(v, want) {
				return "disabled in the directory (" + name + ")"
			}
		}
	}
	return ""
}

// fileTime reads Windows' count of 100 ns since 1601.
func fileTime(n int64) time.Time {
	const to1970 = 11644473600
	return time.Unix(n/1e7-to1970, n%1e7*100)
}

var timeZone = regexp.MustCompile(`^[A-Za-z]+(/[A-Za-z0-9_+-]+){0,2}$`)

const (
	maxField   = 500 // bytes of a profile field
	maxDisplay = 256 // characters of a display name
)

func clip(s string, n int) string {
	r := []rune(s)
	if len(r) > n {
		return string(r[:n])
	}
	return s
}

// user maps an entry of a person.
func (m *mapper) user(e *ldap.Entry) *entry {
	a := &m.cfg.Users.Attributes
	out := &entry{id: m.id(e), dn: e.DN, key: dnKey(e.DN), kind: store.DirectoryUser, why: m.disabled(e), uid: strings.ToLower(first(e, "uid"))}
	p := people.Person{
		Source: people.DirectorySource(m.cfg.ID), ExternalID: out.id, LinkExisting: m.cfg.Users.LinkExisting,
		DisplayName: clip(first(e, a.DisplayName), maxDisplay), Email: first(e, a.Email), Phone: clip(first(e, a.Phone), maxField),
		Title: clip(first(e, a.Title), maxField), Department: clip(first(e, a.Department), maxField),
		EmployeeNumber: clip(first(e, a.EmployeeNumber), maxField), TimeZone: first(e, a.TimeZone), Active: out.why == "",
	}
	if p.TimeZone != "" && !timeZone.MatchString(p.TimeZone) {
		out.warnings = append(out.warnings, fmt.Sprintf("the time zone %q is none of the IANA's", clip(p.TimeZone, 50)))
		p.TimeZone = ""
	}
	for _, name := range attributeNames(a.Photo) {
		raw := e.GetEqualFoldRawAttributeValue(name)
		if len(raw) > m.cfg.Users.MaxPhoto {
			out.warnings = append(out.warnings, fmt.Sprintf("the photo in %s has %d bytes; %d are allowed", name, len(raw), m.cfg.Users.MaxPhoto))
			continue
		}
		if len(raw) > 0 {
			p.Photo = raw
			break
		}
	}
	if dn := first(e, a.Manager); dn != "" {
		out.manager = dnKey(dn)
	}
	out.unit = first(e, m.cfg.Units.From)
	p.Localpart, out.localpartErr = m.localpart.localpart(e)
	out.name, out.person = p.DisplayName, p
	out.seal()
	return out
}

// group maps an entry of a group; members that are not read yet (range retrieval) are added with addMembers.
func (m *mapper) group(e *ldap.Entry) *entry {
	out := &entry{id: m.id(e), dn: e.DN, key: dnKey(e.DN), kind: store.DirectoryGroup, name: first(e, m.cfg.Groups.Name)}
	for _, name := range attributeNames(m.cfg.Groups.Member) {
		out.addMembers(e.GetEqualFoldAttributeValues(name))
	}
	out.seal()
	return out
}

func (m *mapper) unit(e *ldap.Entry) *entry {
	out := &entry{id: m.id(e), dn: e.DN, key: dnKey(e.DN), kind: store.DirectoryUnit, name: first(e, m.cfg.Units.Name)}
	out.seal()
	return out
}

func (e *entry) addMembers(values []string) {
	for _, v := range values {
		if strings.Contains(v, "=") {
			e.members = append(e.members, dnKey(v))
		} else if v != "" {
			e.members = append(e.members, "uid:"+strings.ToLower(v))
		}
	}
}

// seal computes the digest of all that the mapping takes of an entry.
func (e *entry) seal() {
	slices.Sort(e.members)
	e.members = slices.Compact(e.members)
	h := sha256.New()
	field := func(s string) {
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	p := &e.person
	for _, s := range []string{
		strconv.FormatInt(e.kind, 10), e.dn, e.name, e.manager, e.uid, e.unit, e.why, p.Localpart, p.DisplayName, p.Email, p.Phone,
		p.Title, p.Department, p.EmployeeNumber, p.TimeZone, string(p.Photo),
	} {
		field(s)
	}
	for _, member := range e.members {
		field(member)
	}
	e.digest = h.Sum(nil)[:16]
}

// nextRange finds an attribute of which a server returned only a part (Active Directory: "member;range=0-1499"), and
// where the rest begins. done says that this was the last part.
func nextRange(e *ldap.Entry, name string) (values []string, next int, found, done bool) {
	prefix := strings.ToLower(name) + ";range="
	for _, a := range e.Attributes {
		bounds, ok := strings.CutPrefix(strings.ToLower(a.Name), prefix)
		if !ok {
			continue
		}
		_, end, _ := strings.Cut(bounds, "-")
		if end == "*" {
			return a.Values, 0, true, true
		}
		if last, err := strconv.Atoi(end); err == nil {
			return a.Values, last + 1, true, false
		}
	}
	return nil, 0, false, true
}
