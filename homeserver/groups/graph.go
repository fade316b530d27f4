package groups

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// ref names a group.
type ref struct{ source, id string }

func (g *Group) ref() ref { return ref{g.Source, g.ExternalID} }

// graph is all groups that are known.
type graph struct {
	groups   map[ref]*Group
	children map[ref][]ref // nested groups, and units below
	parents  map[ref][]ref
	rows     map[ref]store.CompanyGroup
	below    map[ref]map[id.UserID]struct{} // found before
}

// load reads the groups as they are stored.
func (g *Groups) load(ctx context.Context) (*graph, error) {
	out := &graph{groups: map[ref]*Group{}, rows: map[ref]store.CompanyGroup{}}
	err := g.d.Store.Read(ctx, func(tx *store.Tx) error {
		clear(out.groups)
		clear(out.rows)
		rows, err := tx.CompanyGroups()
		if err != nil {
			return err
		}
		for _, row := range rows {
			r := ref{row.Source, row.ID}
			out.rows[r] = row
			out.groups[r] = &Group{Source: row.Source, ExternalID: row.ID, Kind: row.Kind, Name: row.Name, DN: row.DN, ParentID: row.Parent, Gone: row.Gone}
		}
		err = tx.CompanyGroupMembers("", "", func(source, groupID string, user id.UserID) {
			if x := out.groups[ref{source, groupID}]; x != nil {
				x.Members = append(x.Members, user)
			}
		})
		if err != nil {
			return err
		}
		return tx.CompanyGroupNested("", "", func(source, groupID, child string) {
			if x := out.groups[ref{source, groupID}]; x != nil {
				x.Nested = append(x.Nested, child)
			}
		})
	})
	out.link()
	return out, err
}

// link works out which groups lie in which.
func (gr *graph) link() {
	gr.children, gr.parents, gr.below = map[ref][]ref{}, map[ref][]ref{}, map[ref]map[id.UserID]struct{}{}
	join := func(parent, child ref) {
		if gr.groups[parent] == nil || gr.groups[child] == nil || parent == child {
			return
		}
		gr.children[parent] = append(gr.children[parent], child)
		gr.parents[child] = append(gr.parents[child], parent)
	}
	for _, r := range gr.sorted() {
		x := gr.groups[r]
		for _, n := range x.Nested {
			join(r, ref{x.Source, n})
		}
		if x.ParentID != "" && x.Kind == KindUnit {
			join(ref{x.Source, x.ParentID}, r)
		}
	}
}

func (gr *graph) sorted() []ref {
	return slices.SortedFunc(maps.Keys(gr.groups), func(a, b ref) int {
		return cmp.Or(strings.Compare(a.source, b.source), strings.Compare(a.id, b.id))
	})
}

// replace makes the groups of one source these, and tells what became of the others.
func (gr *graph) replace(source string, all []Group) (gone []ref) {
	keep := map[ref]bool{}
	for i := range all {
		x := all[i]
		x.Source = source
		if x.Kind == "" {
			x.Kind = KindGroup
		}
		keep[x.ref()] = true
		gr.groups[x.ref()] = &x
	}
	for r := range gr.groups {
		if r.source == source && !keep[r] {
			gone = append(gone, r)
			x := *gr.groups[r]
			x.Gone, x.Members, x.Nested = true, nil, nil
			gr.groups[r] = &x
		}
	}
	gr.link()
	return gone
}

// members are who is in a group: by name, by nested groups, by units below. Groups that lie in each other are one.
func (gr *graph) members(r ref, direct bool) map[id.UserID]struct{} {
	if direct {
		out := map[id.UserID]struct{}{}
		for _, u := range gr.groups[r].Members {
			out[u] = struct{}{}
		}
		return out
	}
	if found := gr.below[r]; found != nil {
		return found
	}
	out, seen, stack := map[id.UserID]struct{}{}, map[ref]bool{r: true}, []ref{r}
	for len(stack) > 0 {
		x := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, u := range gr.groups[x].Members {
			out[u] = struct{}{}
		}
		for _, c := range gr.children[x] {
			if !seen[c] {
				seen[c] = true
				stack = append(stack, c)
			}
		}
	}
	gr.below[r] = out
	return out
}

// affected are the groups whose members may change when these change: they themselves and all that they lie in.
func (gr *graph) affected(changed []ref) map[ref]bool {
	out, stack := map[ref]bool{}, slices.Clone(changed)
	for len(stack) > 0 {
		x := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if !out[x] {
			out[x] = true
			stack = append(stack, gr.parents[x]...)
		}
	}
	return out
}

// unitAbove finds the nearest unit above a group that fits; units that lie in each other end the search.
func (gr *graph) unitAbove(g *Group, fits func(ref) bool) (ref, bool) {
	seen := map[ref]bool{g.ref(): true}
	for parent := g.ParentID; parent != ""; {
		r := ref{g.Source, parent}
		x := gr.groups[r]
		if x == nil || seen[r] {
			break
		}
		if fits(r) {
			return r, true
		}
		seen[r] = true
		parent = x.ParentID
	}
	return ref{}, false
}
