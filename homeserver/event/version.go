// Package event holds what Matrix says about room events: room versions, the PDU format with its hashes and signatures,
// redaction, the authorisation rules and state resolution. Everything in it is a pure function of its arguments.
package event

// StateResAlgorithm names a state resolution algorithm.
type StateResAlgorithm uint8

// The algorithms of the room versions: V1 for version 1, V2 for 2 to 11, V21 ("v2.1", MSC4297) for 12.
const (
	V1 StateResAlgorithm = iota + 1
	V2
	V21
)

// eventIDFormat says where an event's id comes from.
type eventIDFormat uint8

const (
	idField         eventIDFormat = iota + 1 // versions 1 and 2: the event_id property
	idHashStd                                // version 3: reference hash, standard base64
	idHashURLBase64                          // versions 4 and later: reference hash, URL-safe base64
)

// DefaultVersion is the version of rooms that are created without naming one.
const DefaultVersion = "12"

// Version describes the rules of one room version ("1".."12"). Values are shared and must not be changed.
// Source: Matrix specification, "Room Versions".
type Version struct {
	ID     string // as in m.room.create's room_version
	Stable bool   // every version known here is stable

	StateRes StateResAlgorithm

	EventIDInPDU       bool // v1-2: event_id is a property, prev_events and auth_events are pairs of id and hashes
	StrictJSON         bool // v6+: canonical JSON is enforced
	AliasesAuth        bool // v1-5: m.room.aliases has an auth rule of its own and keeps content.aliases when redacted
	RedactionAuth      bool // v1-2: m.room.redaction has an auth rule of its own
	NotificationsAuth  bool // v6+: the notifications of m.room.power_levels are checked like events
	Knock              bool // v7+: membership knock, join rule knock
	Restricted         bool // v8+: join rule restricted; redaction keeps join_rules' allow
	KeepJoinAuthorised bool // v9+: redaction keeps a member's join_authorised_via_users_server
	KnockRestricted    bool // v10+: join rule knock_restricted
	IntegerPowerLevels bool // v10+: power levels must be JSON integers
	FloatPowerLevels   bool // v1-5: power levels may be floats, which are truncated
	ImplicitCreator    bool // v11+: the creator is the sender of m.room.create
	ModernRedaction    bool // v11+: the redaction rules of version 11, redacts inside content
	RoomIDIsCreateHash bool // v12+: the room id is the id of m.room.create with another sigil
	PrivilegedCreators bool // v12+: creators have infinite power and may be several

	eventID eventIDFormat
}

// versions is ordered; it is never written.
var versions = [...]*Version{
	makeVersion(1, "1"), makeVersion(2, "2"), makeVersion(3, "3"), makeVersion(4, "4"), makeVersion(5, "5"), makeVersion(6, "6"),
	makeVersion(7, "7"), makeVersion(8, "8"), makeVersion(9, "9"), makeVersion(10, "10"), makeVersion(11, "11"), makeVersion(12, "12"),
}

func makeVersion(n int, name string) *Version {
	v := &Version{
		ID: name, Stable: true, StateRes: V2, eventID: idHashURLBase64,
		EventIDInPDU:       n <= 2,
		StrictJSON:         n >= 6,
		AliasesAuth:        n <= 5,
		RedactionAuth:      n <= 2,
		NotificationsAuth:  n >= 6,
		Knock:              n >= 7,
		Restricted:         n >= 8,
		KeepJoinAuthorised: n >= 9,
		KnockRestricted:    n >= 10,
		IntegerPowerLevels: n >= 10,
		FloatPowerLevels:   n <= 5,
		ImplicitCreator:    n >= 11,
		ModernRedaction:    n >= 11,
		RoomIDIsCreateHash: n >= 12,
		PrivilegedCreators: n >= 12,
	}
	switch {
	case n == 1:
		v.StateRes = V1
	case n >= 12:
		v.StateRes = V21
	}
	switch {
	case n <= 2:
		v.eventID = idField
	case n == 3:
		v.eventID = idHashStd
	}
	return v
}

// LookupVersion gives the rules of a room version by its id, for example "12".
func LookupVersion(id string) (*Version, bool) {
	for _, v := range versions {
		if v.ID == id {
			return v, true
		}
	}
	return nil, false
}

// Versions lists every known room version, ordered from 1 to 12.
func Versions() []*Version {
	return append([]*Version(nil), versions[:]...)
}

// maxDepth is the largest depth an event may have.
// Spec: PDU format, depth: 2^53-1 from room version 6, 2^63-1 before.
func (v *Version) maxDepth() int64 {
	if v.StrictJSON {
		return maxCanonicalInt
	}
	return 1<<63 - 1
}
