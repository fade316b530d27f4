package event

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// authGraph is the part of a room's auth events that state resolution looks at, with events as small integers.
type authGraph struct {
	index  map[id.EventID]int32
	events []*Event
	edges  [][]int32 // by event: its auth_events
	order  []int32   // every event before its auth_events
}

// buildAuthGraph collects the events of some states and their auth chains.
func buildAuthGraph(sets []map[StateKeyTuple]*Event, authEvent func(id.EventID) *Event) (*authGraph, error) {
	g := &authGraph{index: make(map[id.EventID]int32, 2*len(sets[0]))}
	for _, set := range sets {
		for _, e := range set {
			g.add(e)
		}
	}
	var arena []int32
	// g.events grows while it is walked: what is added is walked later.
	for n := 0; n < len(g.events); n++ {
		e := g.events[n]
		if cap(arena)-len(arena) < len(e.auth) {
			arena = make([]int32, 0, 1024+len(e.auth))
		}
		start := len(arena)
		for _, ref := range e.auth {
			a, ok := g.index[ref]
			if !ok {
				event := authEvent(ref)
				if event == nil {
					return nil, fmt.Errorf("resolve state: auth event %s of %s is not known", ref, e.id)
				}
				a = g.add(event)
			}
			arena = append(arena, a)
		}
		g.edges = append(g.edges, arena[start:len(arena):len(arena)])
	}
	g.sort()
	return g, nil
}

// add gives the number of an event, a new one if it has none.
func (g *authGraph) add(e *Event) int32 {
	if n, ok := g.index[e.id]; ok {
		return n
	}
	n := int32(len(g.events))
	g.index[e.id] = n
	g.events = append(g.events, e)
	return n
}

// sort fills order by a depth-first walk. Hashes make cycles impossible but in room versions 1 and 2, where forged events may cite each
// other: there an edge back is as if it were not there.
func (g *authGraph) sort() {
	type step struct {
		node int32
		next int
	}
	visited := make([]bool, len(g.events))
	g.order = make([]int32, len(g.events))
	at := len(g.events)
	var stack []step
	for root := range g.events {
		if visited[root] {
			continue
		}
		visited[root] = true
		stack = append(stack[:0], step{node: int32(root)})
		for len(stack) > 0 {
			top := &stack[len(stack)-1]
			if top.next == len(g.edges[top.node]) {
				at--
				g.order[at] = top.node
				stack = stack[:len(stack)-1]
				continue
			}
			child := g.edges[top.node][top.next]
			top.next++
			if !visited[child] {
				visited[child] = true
				stack = append(stack, step{node: child})
			}
		}
	}
}

// authOf gives the event of a type and state key among the auth_events of an event, or -1.
func (g *authGraph) authOf(n int32, evType, stateKey string) int32 {
	for _, a := range g.edges[n] {
		if e := g.events[a]; e.isState && e.evType == evType && e.stateKey == stateKey {
			return a
		}
	}
	return -1
}

// authDifference marks the events that are in the auth chains of some sets but not of all. Each event carries one bit per set, and hands
// the bits of the sets that hold or reach it on to its auth_events; one walk in order settles all chains at once.
func (g *authGraph) authDifference(sets []map[StateKeyTuple]*Event, unconflicted map[StateKeyTuple]*Event) []bool {
	words := (len(sets) + 63) / 64
	held := make([]uint64, words*len(g.events))  // by event: sets that hold it
	chain := make([]uint64, words*len(g.events)) // by event: sets in whose auth chain it is
	full := make([]uint64, words)
	for i := range sets {
		full[i/64] |= 1 << (i % 64)
	}
	for _, e := range unconflicted {
		copy(held[int(g.index[e.id])*words:], full)
	}
	for i, set := range sets {
		for key, e := range set {
			if unconflicted[key] == nil {
				held[int(g.index[e.id])*words+i/64] |= 1 << (i % 64)
			}
		}
	}
	difference := make([]bool, len(g.events))
	for _, n := range g.order {
		from := int(n) * words
		for _, a := range g.edges[n] {
			to := int(a) * words
			for w := range words {
				chain[to+w] |= chain[from+w] | held[from+w]
			}
		}
	}
	for n := range g.events {
		some, all := false, true
		for w := range words {
			c := chain[n*words+w]
			some = some || c != 0
			all = all && c == full[w]
		}
		difference[n] = some && !all
	}
	return difference
}

// subgraph marks the events on the paths between marked events, ends included: those that a marked event reaches and that reach a
// marked event. Spec: room version 12, "Conflicted state subgraph".
func (g *authGraph) subgraph(marked []bool) []bool {
	below := append([]bool(nil), marked...) // reached from a marked event
	above := append([]bool(nil), marked...) // reaches a marked event
	for _, n := range g.order {
		if below[n] {
			for _, a := range g.edges[n] {
				below[a] = true
			}
		}
	}
	for i := len(g.order) - 1; i >= 0; i-- {
		n := g.order[i]
		for _, a := range g.edges[n] {
			above[n] = above[n] || above[a]
		}
	}
	for n := range below {
		below[n] = below[n] && above[n]
	}
	return below
}
