package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/moothall/moothall/homeserver/store"
)

// snapshot is what a complete reading of a directory returned.
type snapshot struct {
	entries  []*entry
	nameless []EntryError // entries whose key cannot be read
	warnings []string
	server   *serverInfo
}

// EntryError is what is wrong with one entry.
type EntryError struct {
	DN    string `json:"dn"`
	Error string `json:"error"`
}

// serverInfo is what the server says of itself.
type serverInfo struct {
	invocation string // Active Directory: names the database that USN counts for
	usn        int64
	root       string // Active Directory's naming context
	skew       time.Duration
}

// searchSpec is one of the searches of a directory.
type searchSpec struct {
	name       string // users, groups, units
	kind       int64
	base       string
	filter     string
	attributes []string
	parse      func(*ldap.Entry) *entry
}

func (d *directory) searches() []searchSpec {
	m, c := d.mapper, &d.cfg
	out := []searchSpec{{"users", store.DirectoryUser, c.Users.Base, c.Users.Filter, m.userAttributes(), m.user}}
	if c.Units.Base != "" && c.Units.From == "" {
		out = append(out, searchSpec{"units", store.DirectoryUnit, c.Units.Base, c.Units.Filter, m.unitAttributes(), m.unit})
	}
	if c.Groups.Base != "" {
		out = append(out, searchSpec{"groups", store.DirectoryGroup, c.Groups.Base, c.Groups.Filter, m.groupAttributes(), m.group})
	}
	return out
}

func (s *searchSpec) request() ldap.SearchRequest {
	return ldap.SearchRequest{BaseDN: s.base, Scope: ldap.ScopeWholeSubtree, DerefAliases: ldap.NeverDerefAliases, Filter: s.filter, Attributes: s.attributes}
}

// read reads everything. Anything but a complete answer is an error.
func (d *directory) read(ctx context.Context) (*snapshot, error) {
	conn, server, done, err := d.dialer.service(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	out := &snapshot{}
	if out.server, err = d.info(conn); err != nil {
		return nil, fmt.Errorf("%s: %w", server, err)
	}
	if skew := out.server.skew; skew.Abs() > maxSkew {
		// The server tells whole seconds.
		out.warnings = append(out.warnings, fmt.Sprintf("the clock of %s differs from ours by %s", server, skew.Round(10*time.Second)))
	}
	for _, s := range d.searches() {
		if err := d.readOne(ctx, conn, s, out); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", server, s.name, err)
		}
	}
	return out, nil
}

const maxSkew = 5 * time.Minute

func (d *directory) readOne(ctx context.Context, conn *ldap.Conn, s searchSpec, out *snapshot) error {
	type part struct {
		e    *entry
		next int
	}
	var parts []part
	references, err := search(ctx, conn, s.request(), d.cfg.Sync.PageSize, func(raw *ldap.Entry) error {
		e := s.parse(raw)
		if e.id == "" {
			out.nameless = append(out.nameless, EntryError{raw.DN, "the attribute " + d.cfg.Users.ID + " cannot be read"})
			return nil
		}
		if s.kind == store.DirectoryGroup {
			for _, name := range attributeNames(d.cfg.Groups.Member) {
				name, _, _ = strings.Cut(name, ";") // who wants smaller parts asks for member;range=0-499
				values, next, found, done := nextRange(raw, name)
				if !found {
					continue
				}
				e.addMembers(values)
				if !done {
					parts = append(parts, part{e, next})
				}
				e.seal()
			}
		}
		out.entries = append(out.entries, e)
		return nil
	})
	if err != nil {
		return err
	}
	if references > 0 {
		out.warnings = append(out.warnings, fmt.Sprintf("%d references to other servers below %s were not followed", references, s.base))
	}
	for _, p := range parts { // after the search: a paged search is not interrupted by others
		if err := d.readRest(ctx, conn, p.e, p.next); err != nil {
			return err
		}
	}
	return nil
}

// readRest reads the members of a large group that the server did not return at once (MS-ADTS 3.1.1.3.1.3.3).
func (d *directory) readRest(ctx context.Context, conn *ldap.Conn, e *entry, next int) error {
	name, _, _ := strings.Cut(attributeNames(d.cfg.Groups.Member)[0], ";")
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		res, err := conn.Search(&ldap.SearchRequest{
			BaseDN: e.dn, Scope: ldap.ScopeBaseObject, Filter: "(objectClass=*)", Attributes: []string{fmt.Sprintf("%s;range=%d-*", name, next)},
		})
		if err != nil {
			return fmt.Errorf("members of %s from %d on: %w", e.dn, next, err)
		}
		if len(res.Entries) != 1 {
			return fmt.Errorf("members of %s from %d on: the group is gone", e.dn, next)
		}
		values, after, found, done := nextRange(res.Entries[0], name)
		if !found {
			return fmt.Errorf("members of %s from %d on: the server returned none", e.dn, next)
		}
		e.addMembers(values)
		if done || len(values) == 0 {
			e.seal()
			return nil
		}
		next = after
	}
}

// info asks the server for what it is.
func (d *directory) info(conn *ldap.Conn) (*serverInfo, error) {
	out := &serverInfo{}
	if d.cfg.Type != ActiveDirectory {
		return out, nil
	}
	res, err := conn.Search(&ldap.SearchRequest{Scope: ldap.ScopeBaseObject, Filter: "(objectClass=*)",
		Attributes: []string{"highestCommittedUSN", "dsServiceName", "currentTime", "defaultNamingContext"}})
	if err != nil {
		return nil, fmt.Errorf("read the root of the directory: %w", err)
	}
	if len(res.Entries) != 1 {
		return nil, errors.New("the server tells nothing of itself")
	}
	root := res.Entries[0]
	if _, err := fmt.Sscan(root.GetAttributeValue("highestCommittedUSN"), &out.usn); err != nil {
		return nil, fmt.Errorf("highestCommittedUSN is %q: is this an Active Directory?", root.GetAttributeValue("highestCommittedUSN"))
	}
	out.root = root.GetAttributeValue("defaultNamingContext")
	if t, err := time.Parse("20060102150405", strings.TrimSuffix(root.GetAttributeValue("currentTime"), ".0Z")); err == nil {
		out.skew = t.Sub(d.Clock())
	}
	// The database's id, so that a restored or other domain controller is not asked for what follows another's count.
	out.invocation = root.GetAttributeValue("dsServiceName")
	res, err = conn.Search(&ldap.SearchRequest{BaseDN: root.GetAttributeValue("dsServiceName"), Scope: ldap.ScopeBaseObject,
		Filter: "(objectClass=*)", Attributes: []string{"invocationId"}})
	if err == nil && len(res.Entries) == 1 {
		if raw := res.Entries[0].GetRawAttributeValue("invocationId"); len(raw) == 16 {
			out.invocation = guidText(raw)
		}
	}
	return out, nil
}
