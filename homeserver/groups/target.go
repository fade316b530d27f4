package groups

import (
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"
)

// target is a room or space as it shall be.
type target struct {
	key                string
	source, id         string // the group that it is for; "" where several share it
	rule               *compiled
	space              bool
	name, topic, alias string
	parent             string              // key of the space that it lies in, "" for none
	members            map[id.UserID]int64 // who shall be in it, with the power level that a group gives
	groups             []ref               // whose members these are
	depth              int                 // how many spaces lie above it
	children           int                 // how many targets lie in it
	fault              error               // why it cannot be made
	idle               bool                // nothing that it depends on changed
}

const (
	maxName  = 200 // bytes of a room's name
	maxTopic = 1000
	maxAlias = 150 // bytes of an alias before the colon
	// maxLevels is how many power levels of their own a room's event can hold with ease: it may have 65,536 bytes.
	maxLevels = 800
)

func spaceKey(spaceID string) string { return "space/" + spaceID }

// key is what the room of a group is found again by.
func (r *compiled) key(g *Group) string {
	switch {
	case r.SharedWith != "":
		return "shared/" + r.SharedWith
	case r.Shared:
		return "shared/" + r.ID
	}
	return r.ID + "/" + g.Source + "/" + g.ExternalID
}

// targets works out all rooms and spaces that there shall be.
func (g *Groups) targets(gr *graph) map[string]*target {
	out := map[string]*target{}
	spaces := map[ref]string{} // the space of a unit
	for _, r := range gr.sorted() {
		x := gr.groups[r]
		for _, rule := range g.rules {
			if !rule.matches(x) {
				continue
			}
			t := g.target(out, rule, x)
			t.groups = append(t.groups, r)
			for u := range gr.members(r, rule.Direct) {
				// the highest level counts; one below everybody's only where no other group is in the room
				if old, in := t.members[u]; !in || rule.PowerLevel > old {
					t.members[u] = rule.PowerLevel
				}
			}
			if t.space && x.Kind == KindUnit && spaces[r] == "" {
				spaces[r] = t.key
			}
		}
	}
	for _, r := range gr.sorted() {
		x := gr.groups[r]
		for _, rule := range g.rules {
			if rule.Parent == "" || rule.SharedWith != "" || !rule.matches(x) {
				continue
			}
			g.placeUnder(out, gr, spaces, out[rule.key(x)], rule, x)
		}
	}
	g.addSpaces(out)
	return out
}

// target finds or begins the target of a group under a rule.
func (g *Groups) target(all map[string]*target, rule *compiled, x *Group) *target {
	key := rule.key(x)
	t := all[key]
	if t != nil {
		return t
	}
	t = &target{key: key, rule: rule, space: rule.Make == MakeSpace, members: map[id.UserID]int64{}}
	all[key] = t
	if !rule.Shared && rule.SharedWith == "" {
		t.source, t.id = x.Source, x.ExternalID
	}
	if rule.SharedWith != "" {
		// the rule that the room belongs to says what it is like, even where no group of its own is there yet
		for _, r := range g.rules {
			if r.ID == rule.SharedWith {
				t.rule, t.space = r, r.Make == MakeSpace
			}
		}
	}
	f := t.rule.factsOf(x)
	for _, part := range []struct {
		into  *string
		limit int
		make  func() (string, error)
	}{
		{&t.name, maxName, func() (string, error) { return render(t.rule.title, f, maxName) }},
		{&t.topic, maxTopic, func() (string, error) { return render(t.rule.topic, f, maxTopic) }},
		{&t.alias, maxAlias, func() (string, error) { return render(t.rule.link, f, maxAlias) }},
	} {
		var err error
		if *part.into, err = part.make(); err != nil && t.fault == nil {
			t.fault = fmt.Errorf("the template of rule %s does not fit the group %q: %w", t.rule.ID, x.Name, err)
		}
	}
	if t.name == "" {
		t.name = cut(x.ExternalID, maxName)
	}
	return t
}

// placeUnder says in which space a target lies.
func (g *Groups) placeUnder(all map[string]*target, gr *graph, spaces map[ref]string, t *target, rule *compiled, x *Group) {
	if t == nil || t.parent != "" {
		return
	}
	if rule.Parent != ParentUnit {
		t.parent = spaceKey(rule.Parent)
		return
	}
	unit, found := gr.unitAbove(x, func(r ref) bool { return spaces[r] != "" && spaces[r] != t.key })
	if found {
		t.parent = spaces[unit]
	} else if rule.Root != "" {
		t.parent = spaceKey(rule.Root)
	}
}

// addSpaces adds the spaces of the configuration that anything lies in. Everyone who is in that is in them.
func (g *Groups) addSpaces(all map[string]*target) {
	for i := range g.d.Config.Spaces {
		s := &g.d.Config.Spaces[i]
		t := &target{key: spaceKey(s.ID), space: true, name: s.Name, topic: s.Topic, alias: s.Alias, members: map[id.UserID]int64{}, rule: spaceRule}
		if s.Parent != "" {
			t.parent = spaceKey(s.Parent)
		}
		all[t.key] = t
	}
	setDepths(all)
	for _, t := range all {
		if t.rule == spaceRule {
			continue
		}
		for p := all[t.parent]; p != nil; p = all[p.parent] {
			if p.rule != spaceRule {
				continue
			}
			for u := range t.members {
				p.members[u] = 0
			}
			p.children++
			p.groups = append(p.groups, t.groups...)
		}
	}
	for _, s := range slices.Backward(g.d.Config.Spaces) {
		if t := all[spaceKey(s.ID)]; t.children == 0 {
			delete(all, t.key)
		}
	}
}

// spaceRule is how spaces of the configuration behave.
var spaceRule = &compiled{Rule: Rule{ID: "space", Make: MakeSpace, Join: JoinForce, History: "shared", KeepExtra: true}}

// setDepths counts the spaces above each target. Units that lie in each other are cut apart.
func setDepths(all map[string]*target) {
	for _, t := range all {
		seen := map[*target]bool{t: true}
		for p := all[t.parent]; p != nil; p = all[p.parent] {
			if seen[p] {
				t.parent = ""
				break
			}
			seen[p] = true
		}
		t.depth = len(seen) - 1
	}
}
