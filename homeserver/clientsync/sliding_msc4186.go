package clientsync

import (
	"fmt"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// body4186 is the body of POST /v4/sync.
// Spec: MSC4186, "Request Body".
type body4186 struct {
	ConnID      *string              `json:"conn_id"`
	Pos         *string              `json:"pos"`
	Timeout     *int64               `json:"timeout"`
	SetPresence *string              `json:"set_presence"`
	Lists       map[string]*list4186 `json:"lists"`
	Subs        map[string]*room4186 `json:"room_subscriptions"`
	Ext         slidingExtensions    `json:"extensions"`
}

type room4186 struct {
	TimelineLimit *int64 `json:"timeline_limit"`
	RequiredState *struct {
		Include []element4186 `json:"include"`
		Exclude []element4186 `json:"exclude"`
		Lazy    bool          `json:"lazy_members"`
	} `json:"required_state"`
}

type element4186 struct {
	Type *string `json:"type"`
	Key  *string `json:"state_key"`
}

type list4186 struct {
	room4186
	Range   *[]int64        `json:"range"`
	Filters *slidingFilters `json:"filters"`
}

// subs4186 is how many rooms MSC4186 lets clients subscribe to.
const subs4186 = 100

// postSliding4186 handles POST /_matrix/client/v4/sync.
func (s *Sync) postSliding4186(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadJSON[body4186](r)
	if err != nil {
		return err
	}
	req, err := body.request()
	if err != nil {
		return err
	}
	req.who = web.Requester(r)
	return s.serveSliding(r, w, req)
}

func (b *body4186) request() (*slidingRequest, error) {
	req := &slidingRequest{wire: wire4186, ext: b.Ext}
	if b.ConnID != nil {
		req.connID = *b.ConnID
	}
	if b.Pos != nil {
		req.pos = *b.Pos
	}
	if b.Timeout != nil {
		if *b.Timeout < 0 {
			return nil, mxerr.InvalidParam("'timeout' must be a number of milliseconds of at least 0")
		}
		req.timeout = pollTime(*b.Timeout)
	}
	var err error
	req.presence = online
	if b.SetPresence != nil {
		var ok bool
		if req.presence, ok = parsePresence(*b.SetPresence); !ok {
			return nil, mxerr.InvalidParam("'set_presence' must be online, unavailable or offline")
		}
	}
	if err := checkConnID(req.connID); err != nil {
		return nil, err
	}
	if err := checkListCount(len(b.Lists)); err != nil {
		return nil, err
	}
	for name, l := range b.Lists {
		if !isOpaque(name) {
			return nil, mxerr.InvalidParam("the name of a list must be an opaque identifier: 1 to 255 of the characters a-z, A-Z, 0-9 and -._~")
		}
		list := slidingList{name: name}
		if l == nil {
			return nil, mxerr.BadJSON(fmt.Sprintf("'lists.%s' must be an object", name))
		}
		if list.config, err = l.config(); err != nil {
			return nil, err
		}
		if l.Range != nil {
			x := *l.Range
			if len(x) != 2 {
				return nil, mxerr.BadJSON(fmt.Sprintf("'lists.%s.range' must be a pair of numbers", name))
			}
			if err := checkRange(name, x[0], x[1]); err != nil {
				return nil, err
			}
			list.ranges = [][2]int64{{x[0], x[1]}}
		}
		list.filters = l.Filters
		if err := list.filters.check(); err != nil {
			return nil, err
		}
		req.lists = append(req.lists, list)
	}
	sortLists(req.lists)
	if len(b.Subs) > subs4186 {
		return nil, mxerr.InvalidParam(fmt.Sprintf("'room_subscriptions' may have at most %d rooms", subs4186))
	}
	req.subs = make(map[id.RoomID]*roomConfig, len(b.Subs))
	for roomID, x := range b.Subs {
		if x == nil {
			return nil, mxerr.BadJSON(fmt.Sprintf("'room_subscriptions.%s' must be an object", roomID))
		}
		if req.subs[id.RoomID(roomID)], err = x.config(); err != nil {
			return nil, err
		}
	}
	return req, req.ext.check()
}

func (x *room4186) config() (*roomConfig, error) {
	if x.RequiredState == nil || x.TimelineLimit == nil {
		return nil, mxerr.BadJSON("each list and subscription needs 'required_state' and 'timeline_limit'")
	}
	if *x.TimelineLimit < 0 {
		return nil, mxerr.InvalidParam("'timeline_limit' must be a number of at least 0")
	}
	rs := x.RequiredState
	if err := checkStateCount(len(rs.Include) + len(rs.Exclude)); err != nil {
		return nil, err
	}
	q := &stateRequest{Lazy: rs.Lazy}
	for _, e := range rs.Include {
		q.Include = append(q.Include, stateElement(e))
	}
	for _, e := range rs.Exclude {
		q.Exclude = append(q.Exclude, stateElement(e))
	}
	// Spec: MSC4186, "SyncListConfig": the server may cap the number of events
	return &roomConfig{limit: int(min(*x.TimelineLimit, slidingTimelineMost)), asked: []*stateRequest{q}}, nil
}

// isOpaque tells whether a string is an opaque identifier. Spec: appendices, "Opaque Identifiers".
func isOpaque(s string) bool {
	if s == "" || len(s) > 255 {
		return false
	}
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~':
		default:
			return false
		}
	}
	return true
}
