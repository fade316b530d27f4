package event

import (
	"bytes"
	"cmp"
	"crypto/sha1" // an order that the specification defines, no protection
	"slices"
)

// resolveV1 is the state resolution of room version 1. Spec: room version 1, "State resolution".
func resolveV1(unconflicted map[StateKeyTuple]*Event, conflicted map[StateKeyTuple][]*Event) map[StateKeyTuple]*Event {
	resolved := StateMap(unconflicted)
	for _, evType := range [...]string{typePowerLevels, typeJoinRules, typeMember} {
		// The conflicts of one pass do not see each other's outcome.
		outcome := make(StateMap)
		for key, events := range conflicted {
			if key.Type == evType {
				outcome[key] = resolveAuthV1(resolved, events)
			}
		}
		for key, e := range outcome {
			resolved[key] = e
		}
	}
	outcome := make(StateMap)
	for key, events := range conflicted {
		switch key.Type {
		case typePowerLevels, typeJoinRules, typeMember:
		default:
			outcome[key] = resolveNormalV1(resolved, events)
		}
	}
	for key, e := range outcome {
		resolved[key] = e
	}
	return resolved
}

// sortV1 orders by ascending depth, then descending SHA-1 of the event id.
func sortV1(events []*Event) {
	slices.SortFunc(events, func(a, b *Event) int {
		if c := cmp.Compare(a.depth, b.depth); c != 0 {
			return c
		}
		x, y := sha1.Sum([]byte(a.id)), sha1.Sum([]byte(b.id))
		return bytes.Compare(y[:], x[:])
	})
}

// overlaid is a state with one entry replaced.
type overlaid struct {
	State
	e *Event
}

func (o *overlaid) Get(evType, stateKey string) *Event {
	if evType == o.e.evType && stateKey == o.e.stateKey {
		return o.e
	}
	return o.State.Get(evType, stateKey)
}

// resolveAuthV1 lets each event, from the oldest on, replace the one before as long as that allows it.
func resolveAuthV1(state State, events []*Event) *Event {
	sortV1(events)
	current := &overlaid{State: state, e: events[0]}
	for _, e := range events[1:] {
		if Check(e, current) != nil {
			break
		}
		current.e = e
	}
	return current.e
}

// resolveNormalV1 takes the newest event that is allowed. Where none is, the oldest stays, as in other servers; the specification is
// silent there.
func resolveNormalV1(state State, events []*Event) *Event {
	sortV1(events)
	for _, e := range slices.Backward(events) {
		if Check(e, state) == nil {
			return e
		}
	}
	return events[0]
}
