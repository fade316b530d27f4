package event

import (
	"slices"

	"maunium.net/go/mautrix/id"
)

// State gives the authorisation rules what they need. Get gives nil where there is no such state.
type State interface {
	Get(evType, stateKey string) *Event
}

// StateMap is a State in a map.
type StateMap map[StateKeyTuple]*Event

// Get implements State.
func (m StateMap) Get(evType, stateKey string) *Event { return m[StateKeyTuple{evType, stateKey}] }

// NewStateMap puts state events into a map. Where several have the same type and state key the last one stays; events that are no state
// events, and nil, are left out.
func NewStateMap(events ...*Event) StateMap {
	m := make(StateMap, len(events))
	for _, e := range events {
		if e != nil && e.isState {
			m[e.Tuple()] = e
		}
	}
	return m
}

// AuthTypes lists the state that an event of this shape needs as auth_events, as far as the room has it; in version 12 m.room.create is
// never among it. Spec: server-server API, "Auth events selection".
func (v *Version) AuthTypes(evType string, stateKey *string, sender id.UserID, content []byte) []StateKeyTuple {
	if evType == typeCreate && stateKey != nil && *stateKey == "" {
		return nil
	}
	tuples := make([]StateKeyTuple, 0, 7)
	if !v.RoomIDIsCreateHash {
		tuples = append(tuples, StateKeyTuple{typeCreate, ""})
	}
	tuples = append(tuples, StateKeyTuple{typePowerLevels, ""}, StateKeyTuple{typeMember, string(sender)})
	if evType != typeMember || stateKey == nil {
		return tuples
	}
	add := func(t StateKeyTuple) {
		if !slices.Contains(tuples, t) {
			tuples = append(tuples, t)
		}
	}
	add(StateKeyTuple{typeMember, *stateKey})
	js, err := canonicalObject(content, v.StrictJSON, "content")
	if err != nil {
		return tuples // Build and Check refuse it
	}
	membership := getString(js, "membership")
	if membership == join || membership == invite || membership == knock {
		add(StateKeyTuple{typeJoinRules, ""})
	}
	if membership == invite {
		if token, ok := str(get(get(get(js, "third_party_invite"), "signed"), "token")); ok {
			add(StateKeyTuple{typeThirdPartyInvite, token})
		}
	}
	if membership == join && v.Restricted {
		if authoriser, ok := str(get(js, "join_authorised_via_users_server")); ok {
			add(StateKeyTuple{typeMember, authoriser})
		}
	}
	return tuples
}
