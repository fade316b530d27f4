package clientsync

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	slidingListsMost    = 100
	slidingSubsMost     = 1000 // MSC4186 allows 100; the older form names no number
	slidingStateMost    = 500  // elements of one required_state
	slidingTimelineMost = 1000
	slidingNameMost     = 255 // bytes of a conn_id
	slidingSpacesMost   = 100
)

// slidingRequest is a request of either wire format.
type slidingRequest struct {
	who      *web.Identity
	wire     slidingWire
	connID   string
	pos      string // "": the first of a connection
	timeout  time.Duration
	presence presenceState
	lists    []slidingList // by name
	subs     map[id.RoomID]*roomConfig
	ext      slidingExtensions
}

// slidingList is a list of the request: the rooms that its filters let through, in the order of their activity, as far
// as they lie in its ranges.
type slidingList struct {
	name    string
	ranges  [][2]int64 // both ends belong to it; nil: all rooms
	filters *slidingFilters
	config  *roomConfig
}

// roomConfig says what is told of a room. Several of them combine to what any of them asks for.
type roomConfig struct {
	limit  int // events of the timeline
	asked  []*stateRequest
	places []int32 // of asked in the connection's table, ascending; the connection fills them in
	lazy   bool
}

// matches tells whether a state event is wanted for itself, not only as a member who appears in the timeline.
func (c *roomConfig) matches(evType, stateKey string) bool {
	return anyMatches(c.asked, evType, stateKey)
}

func anyMatches(asked []*stateRequest, evType, stateKey string) bool {
	return slices.ContainsFunc(asked, func(q *stateRequest) bool { return q.matches(evType, stateKey) })
}

// stateRequest is a required_state in the form that both wire formats have in common, and that is stored.
type stateRequest struct {
	Include []stateElement `json:"i,omitempty"`
	Exclude []stateElement `json:"x,omitempty"`
	Lazy    bool           `json:"l,omitempty"`
}

// stateElement matches state events; what is nil matches all.
type stateElement struct {
	Type *string `json:"t,omitempty"`
	Key  *string `json:"k,omitempty"`
}

func (e *stateElement) matches(evType, stateKey string) bool {
	return (e.Type == nil || *e.Type == evType) && (e.Key == nil || *e.Key == stateKey)
}

// matches tells whether a state event is asked for. With lazy members, elements for all members mean nothing; those for
// one of them do.
func (q *stateRequest) matches(evType, stateKey string) bool {
	found := false
	for i := range q.Include {
		e := &q.Include[i]
		if e.matches(evType, stateKey) && (e.Key != nil || !q.Lazy || evType != memberType) {
			found = true
			break
		}
	}
	return found && !slices.ContainsFunc(q.Exclude, func(e stateElement) bool { return e.matches(evType, stateKey) })
}

// allMembers tells whether all member events are asked for.
func (q *stateRequest) allMembers() bool {
	return !q.Lazy && slices.ContainsFunc(q.Include, func(e stateElement) bool {
		return e.Key == nil && (e.Type == nil || *e.Type == memberType)
	})
}

// encode is the request's one form, by which equal ones are known.
func (q *stateRequest) encode() (string, error) {
	for _, list := range [][]stateElement{q.Include, q.Exclude} {
		slices.SortFunc(list, func(a, b stateElement) int {
			if n := strings.Compare(deref(a.Type), deref(b.Type)); n != 0 {
				return n
			}
			return strings.Compare(deref(a.Key), deref(b.Key))
		})
	}
	b, err := json.Marshal(q)
	return string(b), err
}

// deref puts what matches all behind every name.
func deref(s *string) string {
	if s == nil {
		return "\U0010ffff"
	}
	return *s
}

// slidingFilters choose the rooms of a list; a room has to pass all that are given.
type slidingFilters struct {
	DM           *bool      `json:"is_dm"`
	Spaces       *[]string  `json:"spaces"`
	Encrypted    *bool      `json:"is_encrypted"`
	Invite       *bool      `json:"is_invite"`  // of the older form
	Invited      *bool      `json:"is_invited"` // of MSC4186
	RoomTypes    *[]*string `json:"room_types"`
	NotRoomTypes *[]*string `json:"not_room_types"`
	NameLike     *string    `json:"room_name_like"`
	Tags         *[]string  `json:"tags"`
	NotTags      *[]string  `json:"not_tags"`
}

// slidingExtensions are what is asked for beside rooms; both wire formats write them alike. Unknown ones are ignored.
type slidingExtensions struct {
	ToDevice *struct {
		Enabled bool    `json:"enabled"`
		Limit   *int64  `json:"limit"`
		Since   *string `json:"since"`
	} `json:"to_device"`
	E2EE *struct {
		Enabled bool `json:"enabled"`
	} `json:"e2ee"`
	AccountData *extensionRooms `json:"account_data"`
	Receipts    *extensionRooms `json:"receipts"`
	Typing      *extensionRooms `json:"typing"`
	Threads     *struct {
		Enabled bool   `json:"enabled"`
		Limit   *int64 `json:"limit"`
	} `json:"io.element.msc4308.thread_subscriptions"`
}

// extensionRooms says for which of the response's rooms an extension is wanted: those of lists by name, and those that
// were subscribed to by id; "*" stands for all of them and is what counts where nothing is said.
type extensionRooms struct {
	Enabled bool      `json:"enabled"`
	Lists   *[]string `json:"lists"`
	Rooms   *[]string `json:"rooms"`
}

func (e *extensionRooms) on() bool { return e != nil && e.Enabled }

func (e *slidingExtensions) check() error {
	if e.ToDevice != nil && e.ToDevice.Limit != nil && *e.ToDevice.Limit < 1 {
		return mxerr.InvalidParam("'extensions.to_device.limit' must be at least 1")
	}
	return nil
}

func (f *slidingFilters) check() error {
	if f != nil && f.Spaces != nil && len(*f.Spaces) > slidingSpacesMost {
		return mxerr.InvalidParam(fmt.Sprintf("'filters.spaces' may name at most %d spaces", slidingSpacesMost))
	}
	return nil
}

// wantsInvited is the filter by invitation under either name.
func (f *slidingFilters) wantsInvited() *bool {
	if f.Invited != nil {
		return f.Invited
	}
	return f.Invite
}

func checkConnID(name string) error {
	if len(name) > slidingNameMost {
		return mxerr.InvalidParam(fmt.Sprintf("'conn_id' may have at most %d bytes", slidingNameMost))
	}
	return nil
}

func checkRange(name string, from, to int64) error {
	if from < 0 || to < from {
		return mxerr.InvalidParam(fmt.Sprintf("the ranges of list %q must go from a number of at least 0 to one that is not less", name))
	}
	return nil
}

func checkStateCount(n int) error {
	if n > slidingStateMost {
		return mxerr.InvalidParam(fmt.Sprintf("'required_state' may have at most %d elements", slidingStateMost))
	}
	return nil
}

func checkListCount(n int) error {
	if n > slidingListsMost {
		return mxerr.InvalidParam(fmt.Sprintf("'lists' may have at most %d lists", slidingListsMost))
	}
	return nil
}

func sortLists(lists []slidingList) {
	slices.SortFunc(lists, func(a, b slidingList) int { return strings.Compare(a.name, b.name) })
}

// pollTime bounds a timeout in milliseconds.
func pollTime(ms int64) time.Duration {
	return time.Duration(min(ms, longestPoll.Milliseconds())) * time.Millisecond
}
