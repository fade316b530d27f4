package ldapsync

import (
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/store"
)

// unitPrefix begins the ids of units that stand in an attribute of users.
const unitPrefix = "unit:"

// units are the company's units with who is in each, by id: entries of the directory, or the values of an attribute. Each
// person is in the lowest one only.
func (s *state) units(d *directory) map[string]*groups.Group {
	out := map[string]*groups.Group{}
	seen := map[string]map[id.UserID]bool{}
	add := func(unitID, entryID string) {
		if seen[unitID] == nil {
			seen[unitID] = map[id.UserID]bool{}
		}
		s.addMember(out[unitID], seen[unitID], entryID)
	}
	if d.cfg.Units.From != "" {
		for _, entryID := range slices.Sorted(maps.Keys(s.items)) {
			it := s.items[entryID]
			if _, linked := s.linkOf(entryID); !linked || it.data.Unit == "" {
				continue
			}
			path := unitPath(it.data.Unit, d.cfg.Units.Separator)
			d.enterUnits(out, path)
			add(unitID(path), entryID)
		}
		return out
	}
	for entryID, it := range s.items {
		if it.kind != store.DirectoryUnit {
			continue
		}
		g := &groups.Group{Source: d.cfg.ID, ExternalID: entryID, Name: it.data.Name, DN: it.dn, Kind: groups.KindUnit}
		if above := s.unitOf(it.key); above != nil {
			g.ParentID = above.id
		}
		out[entryID] = g
	}
	if len(out) == 0 {
		return out
	}
	for _, entryID := range slices.Sorted(maps.Keys(s.items)) {
		if it := s.items[entryID]; it.kind == store.DirectoryUser {
			if u := s.unitOf(it.key); u != nil {
				add(u.id, entryID)
			}
		}
	}
	for entryID, g := range out {
		if seen[entryID] == nil {
			seen[entryID] = map[id.UserID]bool{}
		}
		s.keepBarred(g, seen[entryID], s.items[entryID])
	}
	return out
}

// unitPath parts a unit's name into levels.
func unitPath(name, separator string) []string {
	if separator == "" {
		return []string{name}
	}
	var out []string
	for part := range strings.SplitSeq(name, separator) {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func unitID(path []string) string { return unitPrefix + strings.ToLower(strings.Join(path, "\x1f")) }

// enterUnits makes a unit and those above it.
func (d *directory) enterUnits(out map[string]*groups.Group, path []string) {
	parent := ""
	for i := range path {
		here := unitID(path[:i+1])
		if out[here] == nil {
			out[here] = &groups.Group{Source: d.cfg.ID, ExternalID: here, Name: path[i], ParentID: parent, Kind: groups.KindUnit}
		}
		parent = here
	}
}
