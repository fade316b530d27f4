package event

import (
	"cmp"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

// reference is state resolution written down from the specification as sets of events, with no thought for speed. It shares Check with
// the code it checks, and nothing else.
type reference struct {
	v      *Version
	event  func(id.EventID) *Event
	create *Event
	chains map[*Event]eventSet
	result StateMap
}

type eventSet map[*Event]bool

func referenceResolve(v *Version, sets []StateMap, event func(id.EventID) *Event, create *Event) StateMap {
	unconflicted, conflicted := referenceConflicts(v, sets)
	if v.ID == "1" {
		return referenceV1(unconflicted, slices.Collect(maps.Keys(conflicted)))
	}
	r := &reference{v: v, event: event, create: create, chains: map[*Event]eventSet{}, result: StateMap{}}
	full := r.fullConflictedSet(sets, conflicted)
	power := eventSet{}
	for e := range full {
		if e.Type() == typePowerLevels || e.Type() == typeJoinRules || e.Type() == typeCreate ||
			(e.Membership() == leave || e.Membership() == ban) && string(e.Sender()) != e.stateKey {
			power[e] = true
			for a := range r.chain(e) {
				if full[a] {
					power[a] = true
				}
			}
		}
	}
	if v.ID != "12" {
		maps.Copy(r.result, unconflicted)
	}
	r.apply(r.topological(power))
	r.apply(r.mainline(full, power))
	maps.Copy(r.result, unconflicted)
	return r.result
}

func referenceConflicts(v *Version, sets []StateMap) (unconflicted StateMap, conflicted eventSet) {
	keys := map[StateKeyTuple]bool{}
	for _, s := range sets {
		for k := range s {
			keys[k] = true
		}
	}
	unconflicted, conflicted = StateMap{}, eventSet{}
	for k := range keys {
		found, missing := eventSet{}, false
		for _, s := range sets {
			if e := s[k]; e != nil {
				found[e] = true
			} else {
				missing = true
			}
		}
		for e := range found {
			if len(found) == 1 && (!missing || v.ID == "1") {
				unconflicted[k] = e
			} else {
				conflicted[e] = true
			}
		}
	}
	return unconflicted, conflicted
}

func (r *reference) chain(e *Event) eventSet {
	if c := r.chains[e]; c != nil {
		return c
	}
	c := eventSet{}
	for _, ref := range e.AuthEvents() {
		a := r.event(ref)
		c[a] = true
		maps.Copy(c, r.chain(a))
	}
	r.chains[e] = c
	return c
}

func (r *reference) fullConflictedSet(sets []StateMap, conflicted eventSet) eventSet {
	full, counts := maps.Clone(conflicted), map[*Event]int{}
	for _, s := range sets {
		c := eventSet{}
		for _, e := range s {
			maps.Copy(c, r.chain(e))
		}
		for e := range c {
			counts[e]++
		}
	}
	for e, n := range counts {
		if n < len(sets) {
			full[e] = true
		}
	}
	if r.v.ID != "12" {
		return full
	}
	for from := range conflicted {
		for to := range conflicted {
			for between := range r.chain(from) {
				if r.chain(between)[to] {
					full[between] = true
				}
			}
		}
	}
	return full
}

func (r *reference) levelsOf(e *Event) *Event {
	for _, ref := range e.AuthEvents() {
		if a := r.event(ref); a.Type() == typePowerLevels {
			return a
		}
	}
	return nil
}

func referenceTime(a, b *Event) int {
	return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.ID(), b.ID()))
}

// topological is the reverse topological power ordering.
func (r *reference) topological(events eventSet) []*Event {
	level := func(e *Event) int64 {
		if e == r.create {
			return 0 // it has no auth_events to look at
		}
		return NewPowerLevels(r.levelsOf(e), r.create).User(e.Sender())
	}
	var sorted []*Event
	for left := maps.Clone(events); len(left) > 0; {
		var ready []*Event
		for e := range left {
			waits := false
			for a := range r.chain(e) {
				waits = waits || left[a]
			}
			if !waits {
				ready = append(ready, e)
			}
		}
		first := slices.MinFunc(ready, func(a, b *Event) int { return cmp.Or(cmp.Compare(level(b), level(a)), referenceTime(a, b)) })
		sorted = append(sorted, first)
		delete(left, first)
	}
	return sorted
}

// mainline orders what is left by the mainline of the levels resolved so far.
func (r *reference) mainline(full, power eventSet) []*Event {
	var line []*Event
	for p := r.result.Get(typePowerLevels, ""); p != nil; p = r.levelsOf(p) {
		line = append(line, p)
	}
	position := func(e *Event) int {
		for p := r.levelsOf(e); p != nil; p = r.levelsOf(p) {
			if i := slices.Index(line, p); i >= 0 {
				return i
			}
		}
		return 1 << 30
	}
	var rest []*Event
	for e := range full {
		if !power[e] {
			rest = append(rest, e)
		}
	}
	slices.SortFunc(rest, func(a, b *Event) int { return cmp.Or(cmp.Compare(position(b), position(a)), referenceTime(a, b)) })
	return rest
}

// apply is the iterative auth checks algorithm.
func (r *reference) apply(events []*Event) {
	for _, e := range events {
		state := StateMap{}
		if r.v.ID == "12" {
			state[StateKeyTuple{typeCreate, ""}] = r.create
		}
		for _, ref := range e.AuthEvents() {
			a := r.event(ref)
			state[a.Tuple()] = a
		}
		maps.Copy(state, r.result)
		if Check(e, state) == nil {
			r.result[e.Tuple()] = e
		}
	}
}

func referenceV1(result StateMap, conflicted []*Event) StateMap {
	result = maps.Clone(result)
	hash := func(e *Event) string {
		sum := sha1.Sum([]byte(e.ID()))
		return hex.EncodeToString(sum[:])
	}
	slices.SortFunc(conflicted, func(a, b *Event) int {
		return cmp.Or(cmp.Compare(a.Depth(), b.Depth()), cmp.Compare(hash(b), hash(a)))
	})
	for _, pass := range []string{typePowerLevels, typeJoinRules, typeMember, ""} {
		known := maps.Clone(result)
		groups := map[StateKeyTuple][]*Event{}
		for _, e := range conflicted {
			if e.Type() == pass || pass == "" && e.Type() != typePowerLevels && e.Type() != typeJoinRules && e.Type() != typeMember {
				groups[e.Tuple()] = append(groups[e.Tuple()], e)
			}
		}
		for k, events := range groups {
			if pass == "" {
				result[k] = events[0]
				for _, e := range events {
					if Check(e, known) == nil {
						result[k] = e
					}
				}
				continue
			}
			r := maps.Clone(known)
			for i, e := range events {
				if i > 0 && Check(e, r) != nil {
					break
				}
				r[k] = e
			}
			result[k] = r[k]
		}
	}
	return result
}

// mixedStates gives the states at the ends of the branches, and some that a faulty or lying server might claim: with entries left out or
// taken from elsewhere in the room.
func mixedStates(t *rapid.T, s *sim, branches []*branch) []StateMap {
	var states []StateMap
	for _, b := range branches {
		state := maps.Clone(b.state)
		for range rapid.IntRange(0, 2).Draw(t, "claims") {
			e := rapid.SampledFrom(s.all).Draw(t, "claim")
			if !e.isState || e.Type() == typeCreate {
				continue
			}
			if rapid.Bool().Draw(t, "leave out") {
				delete(state, e.Tuple())
			} else {
				state[e.Tuple()] = e
			}
		}
		states = append(states, state)
	}
	return states
}

func TestResolveLikeTheSpecification(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		key := testKey(t)
		rapid.Check(t, func(t *rapid.T) {
			s, branches := randomRoom(t, v, key, false, 3)
			states := mixedStates(t, s, branches)
			sets := make([]map[StateKeyTuple]*Event, len(states))
			for i := range states {
				sets[i] = states[i]
			}
			got, err := v.Resolve(sets, s.event)
			if err != nil {
				t.Fatal(err)
			}
			if d := diffStates(got, referenceResolve(v, states, s.event, s.create)); d != "" {
				t.Fatalf("%s", d)
			}
			slices.Reverse(sets)
			again, err := v.Resolve(sets, s.event)
			if err != nil {
				t.Fatal(err)
			}
			if d := diffStates(got, again); d != "" {
				t.Fatalf("the order of the states matters:\n%s", d)
			}
			// Resolving the outcome with itself changes nothing.
			same, err := v.Resolve([]map[StateKeyTuple]*Event{got, maps.Clone(got)}, s.event)
			if err != nil || diffStates(same, got) != "" {
				t.Fatalf("a state does not resolve to itself: %v", err)
			}
		})
	})
}

func TestResolveEdges(t *testing.T) {
	v, _ := LookupVersion("12")
	got, err := v.Resolve(nil, nil)
	if err != nil || len(got) != 0 {
		t.Errorf("no states: %v, %v", got, err)
	}
	s, b := newSim(t, v, testKey(t), "")
	got, err = v.Resolve([]map[StateKeyTuple]*Event{b.state}, s.event)
	if err != nil || diffStates(got, b.state) != "" {
		t.Errorf("one state: %v, %v", got, err)
	}
	got[StateKeyTuple{"a", "b"}] = s.create
	if len(b.state) == len(got) {
		t.Error("the result is not a map of its own")
	}
	other := b.fork()
	s.must(other, alice, "m.room.name", ptr(""), `{"name":"a"}`)
	if _, err := v.Resolve([]map[StateKeyTuple]*Event{b.state, other.state}, func(id.EventID) *Event { return nil }); err != nil {
		t.Errorf("everything that is needed is in the states: %v", err)
	}
	delete(other.state, StateKeyTuple{typeMember, string(alice)})
	delete(b.state, StateKeyTuple{typeMember, string(alice)})
	if _, err := v.Resolve([]map[StateKeyTuple]*Event{b.state, other.state}, func(id.EventID) *Event { return nil }); err == nil {
		t.Error("an unknown auth event went unnoticed")
	}
	if _, err := v.Resolve([]map[StateKeyTuple]*Event{{{"x", ""}: s.create}}, s.event); err == nil {
		t.Error("an event under the key of another went unnoticed")
	}
}

// In version 1 and 2 event ids are no hashes: events can cite each other. That must neither hang nor crash.
func TestResolveCycle(t *testing.T) {
	v, _ := LookupVersion("2")
	s, b := newSim(t, v, testKey(t), "")
	levels := s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
	s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
	one, two := s.proto(b, alice, typePowerLevels, ptr(""), `{"ban":1}`), s.proto(b, alice, typePowerLevels, ptr(""), `{"ban":2}`)
	one.EventID, two.EventID = "$one:domain", "$two:domain"
	one.AuthEvents, two.AuthEvents = append(one.AuthEvents, "$two:domain"), append(two.AuthEvents, "$one:domain")
	left, right := b.fork(), b.fork()
	s.add(left, s.build(one))
	s.add(right, s.build(two))
	got := s.resolve(left, right)
	if got.Get(typePowerLevels, "") == nil || got.Get(typeJoinRules, "") == nil {
		t.Errorf("state was lost: %v (had %s)", got, levels.ID())
	}
}

// A chain of events that all cite several earlier ones has exponentially many paths.
func TestResolveManyPaths(t *testing.T) {
	for _, id := range []string{"11", "12"} {
		v, _ := LookupVersion(id)
		s, b := newSim(t, v, testKey(t), "")
		old := b.fork()
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		for i := range 150 {
			l := fullLevels(v)
			l.Kick = ptr(int64(i % 50))
			s.must(b, alice, typePowerLevels, ptr(""), l.json())
			s.must(b, alice, typeMember, ptr(string(alice)), fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, i))
		}
		start := time.Now()
		got := s.resolve(b, old)
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("v%s: %v", id, took)
		}
		if d := diffStates(got, b.state); d != "" {
			t.Errorf("v%s: %s", id, d)
		}
	}
}

// MSC4297, start from an empty state: both states say that the sender of two conflicting events has left since. Under v2 nothing he sent
// passes against that, and the room falls back to having no join rules; v2.1 replays the events as they were allowed.
func TestResolveV21StartsEmpty(t *testing.T) {
	for _, tc := range []struct {
		version string
		keeps   bool
	}{{"11", false}, {"12", true}} {
		v, _ := LookupVersion(tc.version)
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, bob, bob, join)
		old := s.must(b, bob, typeJoinRules, ptr(""), `{"join_rule":"invite"}`)
		stale := b.fork()
		newer := s.must(b, bob, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		left := s.member(b, bob, bob, leave)
		// A server that lags with the join rules claims this state together with bob's leaving.
		stale.state[left.Tuple()] = left
		got := s.resolve(b, stale)
		rules := got.Get(typeJoinRules, "")
		switch {
		case tc.keeps && (rules == nil || rules.ID() != newer.ID()):
			t.Errorf("v%s: join rules are %s, want %s (old: %s)", tc.version, describe(rules), newer.ID(), old.ID())
		case !tc.keeps && rules != nil:
			t.Errorf("v%s: join rules are %s; v2 loses them here", tc.version, describe(rules))
		}
	}
}

// MSC4297, conflicted state subgraph: one state is stale in its power levels, but it also holds a member whose event cites the levels in
// between. Those are in every auth chain, so v2 does not replay them and refuses what rests on them.
func TestResolveV21Subgraph(t *testing.T) {
	for _, tc := range []struct {
		version string
		keeps   bool
	}{{"11", false}, {"12", true}} {
		v, _ := LookupVersion(tc.version)
		s, b := newSim(t, v, testKey(t), "")
		l := fullLevels(v)
		delete(l.Users, bob)
		first := s.must(b, alice, typePowerLevels, ptr(""), l.json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, bob, bob, join)
		l.Users[bob] = 100
		s.must(b, alice, typePowerLevels, ptr(""), l.json()) // makes bob an administrator
		joined := s.member(b, carol, carol, join)            // cites it
		l.Users[dave] = 50
		last := s.must(b, bob, typePowerLevels, ptr(""), l.json()) // bob uses it

		stale := b.fork()
		stale.state[first.Tuple()] = first
		if stale.state.Get(typeMember, string(carol)) != joined {
			t.Fatal("the stale state should know carol")
		}
		got := s.resolve(b, stale).Get(typePowerLevels, "")
		if want := map[bool]*Event{true: last, false: first}[tc.keeps]; got == nil || got.ID() != want.ID() {
			t.Errorf("v%s: power levels are %s, want %s", tc.version, describe(got), describe(want))
		}
	}
}

// A ban and what the banned did at the same time: the ban is ordered first.
func TestResolveBanWins(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		if v.StateRes == V1 {
			return // orders by depth, and lets the name stand
		}
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, carol, carol, join)
		name := s.must(b, carol, "m.room.name", ptr(""), `{"name":"before"}`)
		other := b.fork()
		s.must(other, carol, "m.room.name", ptr(""), `{"name":"meanwhile"}`)
		banned := s.member(b, alice, carol, ban)
		got := s.resolve(b, other)
		if e := got.Get(typeMember, string(carol)); e == nil || e.ID() != banned.ID() {
			t.Errorf("carol is %s", describe(e))
		}
		// The older name rests on carol's membership too and is checked against the ban like the newer one.
		if e := got.Get("m.room.name", ""); e != nil {
			t.Errorf("the name is %s (before: %s)", describe(e), name.ID())
		}
	})
}
