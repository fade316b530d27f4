package ldapsync

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	dirSyncCookie = "dirsync"
	// idChunk is how many entries are asked for by one filter.
	idChunk = 40
	// dirSyncLimit bounds the bytes of one answer to DirSync.
	dirSyncLimit = 1 << 20
)

// changes looks at what changed in an Active Directory since the last look.
func (f *follower) changes(ctx context.Context) error {
	b, again, err := f.readChanges(ctx)
	if err != nil {
		return f.failed(ctx, err)
	}
	if again != "" {
		return f.full(ctx, again, "")
	}
	return f.applyBatch(ctx, b)
}

// readChanges reads what changed. again says why everything is to be read in place of it.
func (f *follower) readChanges(ctx context.Context) (b batch, again string, err error) {
	conn, server, done, err := f.dialer.service(ctx)
	if err != nil {
		return b, "", err
	}
	defer done()
	info, err := f.info(conn)
	if err != nil {
		return b, "", fmt.Errorf("%s: %w", server, err)
	}
	if info.invocation != f.s.Server {
		// Another domain controller, or a restored one, counts anew (MS-ADTS: invocationId).
		return b, "another domain controller answers: its numbers of changes are its own", nil
	}
	var ids []string
	if f.cfg.Sync.Mode == ModeDirSync {
		ids, b.cookie, err = f.dirSync(ctx, conn, info)
		b.search = dirSyncCookie
	} else {
		ids, err = f.usnChanges(ctx, conn, info)
	}
	if err != nil {
		return b, "", fmt.Errorf("%s: %w", server, err)
	}
	if len(ids) > 0 {
		if err := f.readChanged(ctx, conn, ids, &b); err != nil {
			return b, "", fmt.Errorf("%s: %w", server, err)
		}
	}
	f.s.USN = max(f.s.USN, info.usn)
	return b, "", nil
}

// usnChanges lists the entries whose uSNChanged is beyond what was seen: in the whole domain and among what was deleted,
// as an entry that was moved out of the search's base is one that is gone.
func (f *follower) usnChanges(ctx context.Context, conn *ldap.Conn, info *serverInfo) ([]string, error) {
	var ids []string
	req := ldap.SearchRequest{
		BaseDN: info.root, Scope: ldap.ScopeWholeSubtree, Attributes: []string{f.cfg.Users.ID},
		Filter:   fmt.Sprintf("(&(uSNChanged>=%d)(|(objectClass=user)(objectClass=group)(objectClass=organizationalUnit)))", f.s.USN+1),
		Controls: []ldap.Control{ldap.NewControlMicrosoftShowDeleted()},
	}
	_, err := search(ctx, conn, req, f.cfg.Sync.PageSize, func(e *ldap.Entry) error {
		if entryID := f.mapper.id(e); entryID != "" {
			ids = append(ids, entryID)
		}
		return nil
	})
	return ids, err
}

// dirSync lists the entries that changed since the cookie, by the DirSync control (MS-ADTS 3.1.1.3.4.1.3). The flag
// lets an account use it that has no right to replicate: it then sees what it may read.
func (f *follower) dirSync(ctx context.Context, conn *ldap.Conn, info *serverInfo) (ids []string, cookie []byte, err error) {
	cookie = f.s.Cookies[dirSyncCookie]
	first := cookie == nil
	// An entry is told of when one of these changed; name changes with a move too.
	attributes := slices.Concat(f.mapper.userAttributes(), f.mapper.groupAttributes(), f.mapper.unitAttributes(), []string{"name", "isDeleted"})
	for i := range attributes {
		attributes[i], _, _ = strings.Cut(attributes[i], ";")
	}
	slices.Sort(attributes)
	attributes = slices.Compact(attributes)
	for ctx.Err() == nil {
		res, err := conn.DirSync(&ldap.SearchRequest{
			BaseDN: info.root, Scope: ldap.ScopeWholeSubtree, Attributes: attributes,
			Filter: "(|(objectClass=user)(objectClass=group)(objectClass=organizationalUnit))",
		}, ldap.DirSyncObjectSecurity, dirSyncLimit, cookie)
		if err != nil {
			return nil, nil, fmt.Errorf("DirSync: %w", err)
		}
		for _, e := range res.Entries {
			if entryID := f.mapper.id(e); entryID != "" {
				ids = append(ids, entryID)
			}
		}
		control, ok := ldap.FindControl(res.Controls, ldap.ControlTypeDirSync).(*ldap.ControlDirSync)
		if !ok {
			return nil, nil, fmt.Errorf("DirSync: the server does not answer with the control")
		}
		cookie = control.Cookie
		if control.Flags == 0 {
			break
		}
	}
	if first {
		// The first cookie tells of everything; what the complete comparison saw is not read again, but what happened
		// between it and the cookie is.
		changed, err := f.usnChanges(ctx, conn, info)
		return changed, cookie, err
	}
	slices.Sort(ids)
	return slices.Compact(ids), cookie, ctx.Err()
}

// readChanged reads entries by their keys. What is known and does not match its search any more is gone.
func (f *follower) readChanged(ctx context.Context, conn *ldap.Conn, ids []string, b *batch) error {
	there := map[string]bool{}
	for _, spec := range f.searches() {
		snap := &snapshot{}
		for chunk := range slices.Chunk(ids, idChunk) {
			var filter strings.Builder
			for _, entryID := range chunk {
				filter.WriteString(f.mapper.idFilter(entryID))
			}
			s := spec
			s.filter = "(&" + spec.filter + "(|" + filter.String() + "))"
			if err := f.readOne(ctx, conn, s, snap); err != nil {
				return fmt.Errorf("%s: %w", spec.name, err)
			}
		}
		for _, e := range snap.entries {
			there[e.id] = true
			b.entries = append(b.entries, e)
		}
	}
	known := map[string]bool{}
	for _, entryID := range ids {
		_, linked := f.s.links[entryID]
		if !there[entryID] && (linked || f.s.items[entryID] != nil) {
			known[entryID] = true
		}
	}
	b.gone = slices.Sorted(maps.Keys(known))
	return nil
}

// odd tells whether an account is not as its entry says although the entry is known.
func (f *follower) odd(e *entry) bool {
	l, linked := f.s.links[e.id]
	return e.kind == store.DirectoryUser && (!linked || l.Active != (e.why == ""))
}
