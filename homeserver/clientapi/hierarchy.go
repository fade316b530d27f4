package clientapi

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	typeSpace      = "m.space"
	typeSpaceChild = "m.space.child"

	defaultHierarchy = 50
	maxHierarchy     = 100
	maxDepth         = 20
)

// hierarchyQuery is one request for a part of a space.
type hierarchyQuery struct {
	user      id.UserID
	suggested bool
	depth     int
	skip      int // rooms that earlier pages held
	limit     int
	all       bool // the requester sees every room
}

// adminHierarchy handles GET /_synapse/admin/v1/rooms/{roomId}/hierarchy, with all rooms whoever may see them.
func (a *API) adminHierarchy(w http.ResponseWriter, r *http.Request) error {
	return a.spaceHierarchy(w, r, true)
}

// hierarchy handles GET /rooms/{roomId}/hierarchy. A page is found by walking from the root again and leaving out what
// earlier pages held, so that nothing is kept between requests.
// Spec: client-server API, "Discovering rooms within spaces".
func (a *API) hierarchy(w http.ResponseWriter, r *http.Request) error {
	return a.spaceHierarchy(w, r, false)
}

func (a *API) spaceHierarchy(w http.ResponseWriter, r *http.Request, all bool) error {
	q, err := readHierarchyQuery(r)
	if err != nil {
		return err
	}
	q.all = all
	ctx := r.Context()
	root, err := a.Rooms.Room(ctx, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		if all {
			return err
		}
		return hideRoom(err)
	}
	if ok, err := a.mayDescribe(ctx, root, q); err != nil || !ok {
		return cmp.Or(err, notInRoom())
	}
	rooms, more, err := a.walkSpace(ctx, root, q)
	if err != nil {
		return err
	}
	out := struct {
		Rooms     []summary `json:"rooms"`
		NextBatch string    `json:"next_batch,omitzero"`
	}{Rooms: rooms}
	if more {
		out.NextBatch = q.token(q.skip + len(rooms))
	}
	return web.WriteJSON(w, out)
}

func (a *API) mayDescribe(ctx context.Context, rm *room.Room, q *hierarchyQuery) (bool, error) {
	if q.all {
		return true, nil
	}
	return a.describable(ctx, rm, q.user)
}

// token names a page; what must not change between pages is part of it.
func (q *hierarchyQuery) token(skip int) string {
	return fmt.Sprintf("h%d_%d_%t", skip, q.depth, q.suggested)
}

func readHierarchyQuery(r *http.Request) (*hierarchyQuery, error) {
	q := &hierarchyQuery{user: web.Requester(r).UserID}
	var err error
	if q.limit, err = web.QueryInt(r, "limit", defaultHierarchy, 1, maxHierarchy); err != nil {
		return nil, err
	}
	if q.depth, err = web.QueryInt(r, "max_depth", maxDepth, 0, maxDepth); err != nil {
		return nil, err
	}
	if q.suggested, err = web.QueryBool(r, "suggested_only", false); err != nil {
		return nil, err
	}
	from := web.QueryString(r, "from")
	if from == "" {
		return q, nil
	}
	if n, err := fmt.Sscanf(from, "h%d_", &q.skip); err != nil || n != 1 || q.skip < 0 || q.token(q.skip) != from {
		return nil, mxerr.InvalidParam("this server gave out no such pagination token, or suggested_only or max_depth are not those of the first request")
	}
	return q, nil
}

// walkSpace walks through a space, depth first, and gives one page of its rooms.
func (a *API) walkSpace(ctx context.Context, root *room.Room, q *hierarchyQuery) (page []summary, more bool, err error) {
	type place struct {
		rm    *room.Room
		depth int
	}
	page = []summary{}
	stack := []place{{root, 0}}
	seen := map[id.RoomID]bool{root.ID(): true}
	for n := 0; len(stack) > 0; n++ {
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if len(page) == q.limit {
			return page, true, nil
		}
		var children []*room.Event
		if at.rm.Type() == typeSpace {
			if children, err = a.spaceChildren(ctx, at.rm, q.suggested); err != nil {
				return nil, false, err
			}
		}
		if n >= q.skip {
			s, err := summarise(ctx, at.rm)
			if err != nil {
				return nil, false, err
			}
			s.ChildrenState = childrenState(children)
			page = append(page, s)
		}
		if at.depth >= q.depth {
			continue
		}
		for _, c := range slices.Backward(children) {
			key, _ := c.PDU.StateKey()
			if seen[id.RoomID(key)] {
				continue
			}
			child, err := a.Rooms.Room(ctx, id.RoomID(key))
			if mxerr.Is(err, "M_NOT_FOUND") {
				continue // a room of another server
			}
			if err != nil {
				return nil, false, err
			}
			ok, err := a.mayDescribe(ctx, child, q)
			if err != nil {
				return nil, false, err
			}
			if ok {
				seen[child.ID()] = true
				stack = append(stack, place{child, at.depth + 1})
			}
		}
	}
	return page, false, nil
}

// spaceChildren lists the valid m.space.child events of a space in the order of its children.
// Spec: client-server API, "Ordering of children within a space".
func (a *API) spaceChildren(ctx context.Context, space *room.Room, suggested bool) ([]*room.Event, error) {
	evs, err := a.Rooms.EventsByNID(ctx, space.StateOfType(typeSpaceChild))
	if err != nil {
		return nil, err
	}
	evs = slices.DeleteFunc(evs, func(e *room.Event) bool {
		content := e.PDU.Content()
		via := gjson.GetBytes(content, "via")
		return !via.IsArray() || len(via.Array()) == 0 || suggested && !gjson.GetBytes(content, "suggested").Bool()
	})
	slices.SortFunc(evs, func(x, y *room.Event) int {
		a, b := childOrder(x), childOrder(y)
		if (a == "") != (b == "") { // those without an order come last
			if a == "" {
				return 1
			}
			return -1
		}
		ka, _ := x.PDU.StateKey()
		kb, _ := y.PDU.StateKey()
		return cmp.Or(cmp.Compare(a, b), cmp.Compare(x.PDU.OriginServerTS(), y.PDU.OriginServerTS()), cmp.Compare(ka, kb))
	})
	return evs, nil
}

// childOrder is the order that an m.space.child gives its room, "" where it gives none that is valid.
func childOrder(e *room.Event) string {
	const maxLength = 50
	order := gjson.GetBytes(e.PDU.Content(), "order")
	if order.Type != gjson.String || len(order.Str) > maxLength {
		return ""
	}
	for i := range len(order.Str) {
		if c := order.Str[i]; c < ' ' || c > '~' {
			return ""
		}
	}
	return order.Str
}

// childrenState is the list of a space's children as stripped state with its times.
func childrenState(children []*room.Event) *jsontext.Value {
	out := jsontext.Value{'['}
	for i, c := range children {
		if i > 0 {
			out = append(out, ',')
		}
		out = c.AppendStripped(out)
		out = append(out[:len(out)-1], `,"origin_server_ts":`...)
		out = append(strconv.AppendInt(out, c.PDU.OriginServerTS(), 10), '}')
	}
	out = append(out, ']')
	return &out
}
