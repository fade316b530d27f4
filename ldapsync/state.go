package ldapsync

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-ldap/ldap/v3"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// item is what is kept of an entry between runs.
type item struct {
	id, dn, key string
	kind        int64
	digest      string
	data        itemData
}

// itemData is stored as JSON.
type itemData struct {
	Name    string      `json:"name,omitzero"`
	UID     string      `json:"uid,omitzero"`
	Unit    string      `json:"unit,omitzero"`
	Members []string    `json:"members,omitzero"`
	Users   []id.UserID `json:"users,omitzero"` // of a group: whom it had, so that nobody leaves rooms who is only barred
}

// saved is how far a directory was followed.
type saved struct {
	Config     string            `json:"config,omitzero"`    // digest of the configuration that the rest belongs to
	Cookies    map[string][]byte `json:"cookies,omitzero"`   // of syncrepl by search, of DirSync
	Server     string            `json:"server,omitzero"`    // Active Directory: the invocationId that USN counts for
	USN        int64             `json:"usn,omitzero"`       // everything up to here was seen
	FullAt     int64             `json:"full_at,omitzero"`   // ms: the last complete comparison
	SeenAt     int64             `json:"seen_at,omitzero"`   // ms: the last look at the directory that succeeded
	Error      string            `json:"error,omitzero"`     // what went wrong since
	Pending    *Pending          `json:"pending,omitzero"`   // a run that waits for a confirmation
	Following  bool              `json:"following,omitzero"` // changes are pushed
	RequestRun string            `json:"request_run,omitzero"`
}

// Pending is a run that was stopped because it would do too much.
type Pending struct {
	Digest    string  `json:"digest"` // names it
	Since     int64   `json:"since"`  // ms
	Why       string  `json:"why"`
	Disable   int     `json:"disable"` // accounts that it would bar
	Accounts  int     `json:"accounts"`
	Leave     int     `json:"leave"` // memberships that it would end
	Share     float64 `json:"share"`
	Confirmed bool    `json:"confirmed,omitzero"`
	By        string  `json:"by,omitzero"`
}

// state is what is known of a directory, in the memory of the process that follows it.
type state struct {
	saved
	items   map[string]*item
	byKey   map[string]*item
	byUID   map[string]*item
	links   map[string]people.Link
	aliases map[string]string   // keys that entries had before they were moved, until the next complete comparison
	groups  map[string][]string // user's key -> ids of groups that name it
}

func (c *Config) digest() string {
	plain := *c
	plain.BindPassword, plain.RootCAs = "", nil
	plain.Servers = nil
	sum := sha256.Sum256(fmt.Appendf(nil, "1 %+v", plain))
	return hex.EncodeToString(sum[:8])
}

// load reads what is known.
func (d *directory) load(ctx context.Context) (*state, error) {
	s := &state{items: map[string]*item{}}
	err := d.Store.Read(ctx, func(tx *store.Tx) error {
		s.saved = saved{}
		clear(s.items)
		raw, _, err := tx.LDAPState(d.cfg.ID)
		if err != nil {
			return err
		}
		if raw != nil {
			if err := json.Unmarshal(raw, &s.saved); err != nil {
				return fmt.Errorf("read the state of directory %s: %w", d.cfg.ID, err)
			}
		}
		return tx.DirectoryItems(d.cfg.ID, func(row store.DirectoryItem) error {
			it := &item{id: row.ID, kind: row.Kind, dn: row.DN, key: dnKey(row.DN), digest: string(row.Digest)}
			if row.Data != nil {
				if err := json.Unmarshal(row.Data, &it.data); err != nil {
					return fmt.Errorf("read entry %s: %w", row.DN, err)
				}
			}
			s.items[it.id] = it
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	if s.Config != d.cfg.digest() {
		s.Config, s.Cookies, s.Server, s.USN, s.FullAt = d.cfg.digest(), nil, "", 0, 0
	}
	if s.links, err = d.People.Of(ctx, d.source); err != nil {
		return nil, err
	}
	s.index()
	return s, nil
}

// index makes the maps that items are found by.
func (s *state) index() {
	s.byKey, s.byUID, s.groups, s.aliases = map[string]*item{}, map[string]*item{}, map[string][]string{}, map[string]string{}
	for _, it := range s.items {
		s.enter(it)
	}
}

func (s *state) enter(it *item) {
	s.byKey[it.key] = it
	if it.data.UID != "" {
		s.byUID[it.data.UID] = it
	}
	for _, m := range it.data.Members {
		s.groups[m] = append(s.groups[m], it.id)
	}
}

func (s *state) leave(it *item) {
	if s.byKey[it.key] == it {
		delete(s.byKey, it.key)
	}
	if s.byUID[it.data.UID] == it {
		delete(s.byUID, it.data.UID)
	}
	for _, m := range it.data.Members {
		s.groups[m] = slices.DeleteFunc(s.groups[m], func(g string) bool { return g == it.id })
	}
}

// put notes what an entry is now. What lies below one that was moved or renamed moves along, which the directory does not tell, and
// groups go on naming it: also lists what has to be stored for that.
func (s *state) put(e *entry) (now *item, also []*item) {
	it := &item{id: e.id, dn: e.dn, key: e.key, kind: e.kind, digest: string(e.digest),
		data: itemData{Name: e.name, UID: e.uid, Unit: e.unit, Members: e.members}}
	if old := s.items[e.id]; old != nil {
		it.data.Users = old.data.Users
		s.leave(old)
		s.items[it.id] = it
		s.enter(it)
		if old.key != it.key {
			also = s.move(old, it)
		}
		return it, also
	}
	s.items[it.id] = it
	s.enter(it)
	return it, nil
}

// move takes over that an entry has another place.
func (s *state) move(from, to *item) []*item {
	changed := map[string]*item{}
	renamed := map[string]string{from.key: to.key} // keys
	s.aliases[from.key] = to.id
	if to.kind != store.DirectoryUser {
		for entryID, it := range s.items {
			dn, below := movedDN(it.dn, from.dn, to.dn)
			if !below {
				continue
			}
			s.leave(it)
			s.aliases[it.key] = entryID
			old := it.key
			it.dn, it.key = dn, dnKey(dn)
			renamed[old] = it.key
			s.enter(it)
			changed[entryID] = it
		}
	}
	for old, key := range renamed {
		for _, groupID := range slices.Clone(s.groups[old]) {
			g := s.items[groupID]
			if g == nil {
				continue
			}
			s.leave(g)
			g.data.Members = slices.Clone(g.data.Members)
			for i, m := range g.data.Members {
				if m == old {
					g.data.Members[i] = key
				}
			}
			s.enter(g)
			changed[groupID] = g
		}
	}
	return slices.Collect(maps.Values(changed))
}

// movedDN is the name of an entry that lay below one which has another name now; false for one that did not.
func movedDN(dn, from, to string) (string, bool) {
	p, err1 := ldap.ParseDN(dn)
	above, err2 := ldap.ParseDN(from)
	now, err3 := ldap.ParseDN(to)
	if err1 != nil || err2 != nil || err3 != nil || !above.AncestorOfFold(p) {
		return "", false
	}
	own := p.RDNs[:len(p.RDNs)-len(above.RDNs)]
	return (&ldap.DN{RDNs: slices.Concat(own, now.RDNs)}).String(), true
}

func (s *state) remove(id string) {
	if it := s.items[id]; it != nil {
		s.leave(it)
		delete(s.items, id)
	}
}

// find resolves a member: a DN's key, or uid: and a uid.
func (s *state) find(member string) *item {
	if uid, ok := strings.CutPrefix(member, "uid:"); ok {
		return s.byUID[uid]
	}
	if it := s.byKey[member]; it != nil {
		return it
	}
	return s.items[s.aliases[member]]
}

func (it *item) row() (store.DirectoryItem, error) {
	data, err := json.Marshal(it.data)
	return store.DirectoryItem{ID: it.id, Kind: it.kind, DN: it.dn, Digest: []byte(it.digest), Data: data}, err
}

// unitOf is the nearest unit that an entry lies in.
func (s *state) unitOf(key string) *item {
	for _, parent := range parentKeys(key) {
		if it := s.byKey[parent]; it != nil && it.kind == store.DirectoryUnit {
			return it
		}
	}
	return nil
}

// group is a group as its rooms are to follow it. Whoever is barred stays where they were: a mistake in the directory
// must cost nobody their rooms; they leave when the account is deactivated.
func (s *state) group(source string, it *item) groups.Group {
	g := groups.Group{Source: source, ExternalID: it.id, Name: it.data.Name, DN: it.dn, Kind: groups.KindGroup}
	if u := s.unitOf(it.key); u != nil {
		g.ParentID = u.id
	}
	seen := map[id.UserID]bool{}
	for _, m := range it.data.Members {
		member := s.find(m)
		switch {
		case member == nil:
		case member.kind == store.DirectoryGroup:
			g.Nested = append(g.Nested, member.id)
		case member.kind == store.DirectoryUser:
			s.addMember(&g, seen, member.id)
		}
	}
	s.keepBarred(&g, seen, it)
	return g
}

func (s *state) addMember(g *groups.Group, seen map[id.UserID]bool, entryID string) {
	if l, ok := s.links[entryID]; ok && !seen[l.User] {
		seen[l.User] = true
		g.Members = append(g.Members, l.User)
	}
}

func (s *state) keepBarred(g *groups.Group, seen map[id.UserID]bool, it *item) {
	if len(it.data.Users) == 0 {
		return
	}
	barred := s.barred()
	for _, u := range it.data.Users {
		if barred[u] && !seen[u] {
			seen[u] = true
			g.Members = append(g.Members, u)
		}
	}
}

func (s *state) barred() map[id.UserID]bool {
	out := map[id.UserID]bool{}
	for _, l := range s.links {
		if !l.Active {
			out[l.User] = true
		}
	}
	return out
}
