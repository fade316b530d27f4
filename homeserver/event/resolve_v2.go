package event

import (
	"cmp"
	"container/heap"
	"math"
	"slices"

	"maunium.net/go/mautrix/id"
)

// resolution is one run of state resolution v2 or v2.1.
type resolution struct {
	v      *Version
	g      *authGraph
	create *Event   // v12: the room's m.room.create, which no auth_events name
	full   []bool   // the full conflicted set
	state  StateMap // the result so far
	node   int32    // the event that is being checked
}

// resolveV2 is state resolution v2 and v2.1. Spec: room version 2 and room version 12, "State resolution", "Algorithm".
func (v *Version) resolveV2(sets []map[StateKeyTuple]*Event, unconflicted map[StateKeyTuple]*Event, conflicted map[StateKeyTuple][]*Event,
	authEvent func(id.EventID) *Event,
) (map[StateKeyTuple]*Event, error) {
	g, err := buildAuthGraph(sets, authEvent)
	if err != nil {
		return nil, err
	}
	r := &resolution{v: v, g: g, state: make(StateMap, len(unconflicted)+len(conflicted))}
	r.full = g.authDifference(sets, unconflicted)
	marked := make([]bool, len(g.events))
	for _, events := range conflicted {
		for _, e := range events {
			marked[g.index[e.id]] = true
		}
	}
	if v.StateRes == V21 {
		marked = g.subgraph(marked)
		r.create = r.findCreate(unconflicted, authEvent)
	} else {
		// v2.1 starts from an empty state instead.
		for key, e := range unconflicted {
			r.state[key] = e
		}
	}
	for n, m := range marked {
		r.full[n] = r.full[n] || m
	}

	power := r.powerEvents()
	r.iterate(r.sortByPower(power))
	r.iterate(r.sortByMainline(power))
	for key, e := range unconflicted {
		r.state[key] = e
	}
	return r.state, nil
}

// findCreate gives the m.room.create of a version 12 room.
func (r *resolution) findCreate(unconflicted map[StateKeyTuple]*Event, authEvent func(id.EventID) *Event) *Event {
	if e := unconflicted[StateKeyTuple{typeCreate, ""}]; e != nil {
		return e
	}
	for _, e := range r.g.events {
		if e.isCreate() {
			return e
		}
	}
	if room := r.g.events[0].roomID; room != "" {
		return authEvent(id.EventID("$" + room[1:]))
	}
	return nil
}

// isPowerEvent tells whether an event might take away what someone can do. That m.room.create counts as one, and that other state keys do
// not, is how servers do it; the specification says less.
func isPowerEvent(e *Event) bool {
	switch e.evType {
	case typePowerLevels, typeJoinRules, typeCreate:
		return e.stateKey == ""
	case typeMember:
		return (e.membership == leave || e.membership == ban) && string(e.sender) != e.stateKey
	}
	return false
}

// powerEvents marks the power events of the full conflicted set and what they rest on within it.
func (r *resolution) powerEvents() []bool {
	picked := make([]bool, len(r.g.events))
	for _, n := range r.g.order { // events come before what they rest on
		if r.full[n] && (picked[n] || isPowerEvent(r.g.events[n])) {
			picked[n] = true
			for _, a := range r.g.edges[n] {
				picked[a] = picked[a] || r.full[a]
			}
		}
	}
	return picked
}

// senderPower is the power level of an event's sender by the event's own auth_events.
func (r *resolution) senderPower(n int32) int64 {
	var levels *Event
	create := r.create
	if a := r.g.authOf(n, typePowerLevels, ""); a >= 0 {
		levels = r.g.events[a]
	}
	if !r.v.RoomIDIsCreateHash {
		if a := r.g.authOf(n, typeCreate, ""); a >= 0 {
			create = r.g.events[a]
		}
	}
	return NewPowerLevels(levels, create).User(r.g.events[n].sender)
}

// powerHeap gives the smallest event first: greater power, then earlier, then smaller id.
type powerHeap struct {
	g     *authGraph
	power []int64
	nodes []int32
}

func (h *powerHeap) Len() int           { return len(h.nodes) }
func (h *powerHeap) Less(i, j int) bool { return h.less(h.nodes[i], h.nodes[j]) < 0 }
func (h *powerHeap) Swap(i, j int)      { h.nodes[i], h.nodes[j] = h.nodes[j], h.nodes[i] }
func (h *powerHeap) Push(x any)         { n, _ := x.(int32); h.nodes = append(h.nodes, n) }
func (h *powerHeap) Pop() any {
	last := len(h.nodes) - 1
	n := h.nodes[last]
	h.nodes = h.nodes[:last]
	return n
}

func (h *powerHeap) less(a, b int32) int {
	if c := cmp.Compare(h.power[b], h.power[a]); c != 0 {
		return c
	}
	return compareByTime(h.g.events[a], h.g.events[b])
}

func compareByTime(a, b *Event) int {
	if c := cmp.Compare(a.ts, b.ts); c != 0 {
		return c
	}
	return cmp.Compare(a.id, b.id)
}

// sortByPower is the reverse topological power ordering, by Kahn's algorithm: what an event rests on comes before it.
func (r *resolution) sortByPower(picked []bool) []int32 {
	h := &powerHeap{g: r.g, power: make([]int64, len(r.g.events))}
	waiting := make([]int32, len(r.g.events)) // how many auth_events must come first
	cited := make(map[int32][]int32)
	count := 0
	for n := range r.g.events {
		if !picked[n] {
			continue
		}
		count++
		node := int32(n)
		h.power[n] = r.senderPower(node)
		for _, a := range r.g.edges[n] {
			if picked[a] {
				waiting[n]++
				cited[a] = append(cited[a], node)
			}
		}
		if waiting[n] == 0 {
			h.nodes = append(h.nodes, node)
		}
	}
	heap.Init(h)
	sorted := make([]int32, 0, count)
	for h.Len() > 0 {
		n, _ := heap.Pop(h).(int32)
		sorted = append(sorted, n)
		for _, c := range cited[n] {
			if waiting[c]--; waiting[c] == 0 {
				heap.Push(h, c)
			}
		}
	}
	if len(sorted) < count {
		// Forged events of room versions 1 and 2 that rest on each other have no order; no rule ever allows both.
		var rest []int32
		for n := range r.g.events {
			if picked[n] && waiting[n] > 0 {
				rest = append(rest, int32(n))
			}
		}
		slices.SortFunc(rest, h.less)
		sorted = append(sorted, rest...)
	}
	return sorted
}

// sortByMainline orders the rest of the full conflicted set by the mainline of the power levels resolved so far.
func (r *resolution) sortByMainline(picked []bool) []int32 {
	// position of each m.room.power_levels: that in the mainline, or that of the first one in it that it rests on.
	position := make(map[int32]int)
	if levels := r.state.Get(typePowerLevels, ""); levels != nil {
		i := 0
		for n := r.g.index[levels.id]; n >= 0; n = r.g.authOf(n, typePowerLevels, "") {
			if _, cycle := position[n]; cycle {
				break
			}
			position[n] = i
			i++
		}
	}
	type ranked struct {
		node     int32
		position int
	}
	var rest []ranked
	for n := range r.g.events {
		if r.full[n] && !picked[n] {
			rest = append(rest, ranked{int32(n), r.mainlinePosition(int32(n), position)})
		}
	}
	slices.SortFunc(rest, func(a, b ranked) int {
		if c := cmp.Compare(b.position, a.position); c != 0 {
			return c
		}
		return compareByTime(r.g.events[a.node], r.g.events[b.node])
	})
	sorted := make([]int32, len(rest))
	for i, e := range rest {
		sorted[i] = e.node
	}
	return sorted
}

// mainlinePosition follows the power levels that an event rests on down to the mainline, and remembers for all on the way.
func (r *resolution) mainlinePosition(n int32, position map[int32]int) int {
	var path []int32
	found := math.MaxInt
	for n = r.g.authOf(n, typePowerLevels, ""); n >= 0; n = r.g.authOf(n, typePowerLevels, "") {
		if p, ok := position[n]; ok {
			found = p
			break
		}
		position[n] = math.MaxInt // until known; this also ends a cycle
		path = append(path, n)
	}
	for _, p := range path {
		position[p] = found
	}
	return found
}

// iterate is the iterative auth checks algorithm.
func (r *resolution) iterate(sorted []int32) {
	for _, n := range sorted {
		r.node = n
		if e := r.g.events[n]; e.isState && Check(e, r) == nil {
			r.state[e.Tuple()] = e
		}
	}
}

// Get implements State for the event that is being checked: what is resolved so far, else what the event itself rests on.
func (r *resolution) Get(evType, stateKey string) *Event {
	if e := r.state.Get(evType, stateKey); e != nil {
		return e
	}
	if r.create != nil && evType == typeCreate && stateKey == "" {
		return r.create
	}
	if a := r.g.authOf(r.node, evType, stateKey); a >= 0 {
		return r.g.events[a]
	}
	return nil
}
