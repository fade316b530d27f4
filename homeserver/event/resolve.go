package event

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// Resolve runs the room version's state resolution over the states after the prev_events of an event. The sets may share events; none is
// changed. authEvent gives any event of their auth chains by id, and is asked for each one at most once; an event that it does not know is
// an error, because a resolution that leaves it out would differ from that of other servers. The result is a new map.
// Spec: room version pages, "State resolution".
func (v *Version) Resolve(sets []map[StateKeyTuple]*Event, authEvent func(id.EventID) *Event) (map[StateKeyTuple]*Event, error) {
	if len(sets) == 0 {
		return map[StateKeyTuple]*Event{}, nil
	}
	for _, set := range sets {
		for key, e := range set {
			if e == nil || !e.isState || e.Tuple() != key {
				return nil, fmt.Errorf("resolve state: the event of (%q, %q) is not of that type and state key", key.Type, key.StateKey)
			}
		}
	}
	unconflicted, conflicted := v.separate(sets)
	if len(conflicted) == 0 {
		return unconflicted, nil
	}
	if v.StateRes == V1 {
		return resolveV1(unconflicted, conflicted), nil
	}
	return v.resolveV2(sets, unconflicted, conflicted, authEvent)
}

// separate divides the states into the keys on which they agree and the events of all others, each event once. In room version 1, states
// agree on a key that some of them lack; later they do not.
func (v *Version) separate(sets []map[StateKeyTuple]*Event) (unconflicted map[StateKeyTuple]*Event, conflicted map[StateKeyTuple][]*Event) {
	unconflicted = make(map[StateKeyTuple]*Event, len(sets[0]))
	conflicted = make(map[StateKeyTuple][]*Event)
	for i, set := range sets {
		for key, e := range set {
			if i > 0 {
				if u := unconflicted[key]; u != nil && sameID(u, e) {
					continue
				}
			}
			if i == 0 || unconflicted[key] == nil && conflicted[key] == nil {
				if v.agree(sets, key, e) {
					unconflicted[key] = e
					continue
				}
			}
			conflicted[key] = appendNew(conflicted[key], e)
		}
	}
	return unconflicted, conflicted
}

// agree tells whether no set has another event under the key than e.
func (v *Version) agree(sets []map[StateKeyTuple]*Event, key StateKeyTuple, e *Event) bool {
	for _, set := range sets {
		if o := set[key]; o == nil && v.StateRes != V1 || o != nil && !sameID(o, e) {
			return false
		}
	}
	return true
}

// sameID tells whether two values are the same event, which may have been parsed twice.
func sameID(a, b *Event) bool { return a == b || a.id == b.id }

func appendNew(events []*Event, e *Event) []*Event {
	for _, o := range events {
		if sameID(o, e) {
			return events
		}
	}
	return append(events, e)
}
