package clientsync

import (
	"fmt"
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// body3575 is the body of POST /unstable/org.matrix.simplified_msc3575/sync, the form that Element X speaks: it keeps
// much of MSC3575 where MSC4186 found other names later.
type body3575 struct {
	ConnID *string              `json:"conn_id"`
	Lists  map[string]*list3575 `json:"lists"`
	Subs   map[string]*room3575 `json:"room_subscriptions"`
	Ext    slidingExtensions    `json:"extensions"`
}

type room3575 struct {
	RequiredState *[][]string `json:"required_state"`
	TimelineLimit *int64      `json:"timeline_limit"`
}

type list3575 struct {
	room3575
	Ranges  [][]int64       `json:"ranges"`
	All     bool            `json:"slow_get_all_rooms"`
	Filters *slidingFilters `json:"filters"`
}

// postSliding3575 handles POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync.
func (s *Sync) postSliding3575(w http.ResponseWriter, r *http.Request) error {
	req, err := read3575(r)
	if err != nil {
		return err
	}
	return s.serveSliding(r, w, req)
}

func read3575(r *http.Request) (*slidingRequest, error) {
	ms, err := web.QueryInt(r, "timeout", 0, 0, int(longestPoll.Milliseconds()))
	if err != nil {
		return nil, err
	}
	body, err := web.ReadJSON[body3575](r)
	if err != nil {
		return nil, err
	}
	who := web.Requester(r)
	req, err := body.request(who.UserID)
	if err != nil {
		return nil, err
	}
	req.who, req.pos, req.timeout = who, web.QueryString(r, "pos"), time.Duration(ms)*time.Millisecond
	if req.presence, err = readPresence(web.QueryString(r, "set_presence")); err != nil {
		return nil, err
	}
	return req, nil
}

// readPresence reads set_presence: online where nothing is said.
func readPresence(p string) (presenceState, error) {
	if p == "" {
		return online, nil
	}
	state, ok := parsePresence(p)
	if !ok {
		return state, mxerr.InvalidParam("'set_presence' must be online, unavailable or offline")
	}
	return state, nil
}

func (b *body3575) request(user id.UserID) (*slidingRequest, error) {
	req := &slidingRequest{wire: wire3575, ext: b.Ext}
	if b.ConnID != nil {
		req.connID = *b.ConnID
	}
	if err := checkConnID(req.connID); err != nil {
		return nil, err
	}
	if err := checkListCount(len(b.Lists)); err != nil {
		return nil, err
	}
	for name, l := range b.Lists {
		if len(name) > 64 {
			return nil, mxerr.InvalidParam("the name of a list may have at most 64 bytes")
		}
		list := slidingList{name: name}
		if l == nil {
			return nil, mxerr.BadJSON(fmt.Sprintf("'lists.%s' must be an object", name))
		}
		var err error
		if list.config, err = l.config(user); err != nil {
			return nil, err
		}
		if !l.All {
			for _, x := range l.Ranges {
				if len(x) != 2 {
					return nil, mxerr.BadJSON(fmt.Sprintf("'lists.%s.ranges' must hold pairs of numbers", name))
				}
				if err := checkRange(name, x[0], x[1]); err != nil {
					return nil, err
				}
				list.ranges = append(list.ranges, [2]int64{x[0], x[1]})
			}
		}
		list.filters = l.Filters
		if err := list.filters.check(); err != nil {
			return nil, err
		}
		req.lists = append(req.lists, list)
	}
	sortLists(req.lists)
	if len(b.Subs) > slidingSubsMost {
		return nil, mxerr.InvalidParam(fmt.Sprintf("'room_subscriptions' may have at most %d rooms", slidingSubsMost))
	}
	req.subs = make(map[id.RoomID]*roomConfig, len(b.Subs))
	for roomID, x := range b.Subs {
		if x == nil {
			return nil, mxerr.BadJSON(fmt.Sprintf("'room_subscriptions.%s' must be an object", roomID))
		}
		config, err := x.config(user)
		if err != nil {
			return nil, err
		}
		req.subs[id.RoomID(roomID)] = config
	}
	return req, req.ext.check()
}

// config reads pairs of type and state key, of which "*" stands for all, "$ME" for the user and "$LAZY" for members as
// they are needed.
func (x *room3575) config(user id.UserID) (*roomConfig, error) {
	if x.RequiredState == nil || x.TimelineLimit == nil {
		return nil, mxerr.BadJSON("each list and subscription needs 'required_state' and 'timeline_limit'")
	}
	if *x.TimelineLimit < 0 || *x.TimelineLimit > slidingTimelineMost {
		return nil, mxerr.InvalidParam(fmt.Sprintf("'timeline_limit' must be a number from 0 to %d", slidingTimelineMost))
	}
	if err := checkStateCount(len(*x.RequiredState)); err != nil {
		return nil, err
	}
	q := &stateRequest{}
	for _, pair := range *x.RequiredState {
		if len(pair) != 2 {
			return nil, mxerr.BadJSON("'required_state' must hold pairs of a type and a state key")
		}
		evType, key := &pair[0], &pair[1]
		if *evType == memberType && *key == "$LAZY" {
			q.Lazy = true
			continue
		}
		if *evType == "*" {
			evType = nil
		}
		switch *key {
		case "*":
			key = nil
		case "$ME":
			me := string(user)
			key = &me
		}
		q.Include = append(q.Include, stateElement{evType, key})
	}
	return &roomConfig{limit: int(*x.TimelineLimit), asked: []*stateRequest{q}}, nil
}
