package clientapi

import (
	"math"
	"net/http"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	defaultRelations = 50
	maxRelations     = 500
)

// relations handles GET /rooms/{roomId}/relations/{eventId} with and without a relation type and an event type.
// Spec: client-server API, "Relationships API".
func (a *API) relations(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	backwards, err := direction(r, "b")
	if err != nil {
		return err
	}
	limit, err := web.QueryInt(r, "limit", defaultRelations, 1, maxRelations)
	if err != nil {
		return err
	}
	recurse, err := web.QueryBool(r, "recurse", false)
	if err != nil {
		return err
	}
	from, hasFrom, err := a.pageToken(r, "from")
	if err != nil {
		return err
	}
	to, hasTo, err := a.pageToken(r, "to")
	if err != nil {
		return err
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if mxerr.Is(err, "M_FORBIDDEN") {
		return eventNotFound()
	}
	if err != nil {
		return err
	}
	rd, err := a.reader(ctx, who, acc)
	if err != nil {
		return err
	}
	parent, err := a.visibleEvent(ctx, acc, rd, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	bounds := room.TimelineQuery{Backwards: backwards}
	pageBounds(acc, &bounds, from, hasFrom, to, hasTo)
	page, err := a.Rooms.Relations(ctx, acc.room, room.RelationsQuery{
		Parent: parent.ID(), RelType: web.PathParam(r, "relType"), EventType: web.PathParam(r, "eventType"), Recurse: recurse,
		From: bounds.From, To: bounds.To, Backwards: backwards, Limit: limit, Ignored: rd.Ignored,
		Match: func(e *room.Event) bool { return shows(rd, e) },
	})
	if err != nil {
		return err
	}
	out, err := a.Rooms.AppendEvents(ctx, []byte(`{"chunk":`), acc.room, page.Events, rd)
	if err != nil {
		return err
	}
	if page.More {
		out = append(append(out, `,"next_batch":`...), quoted(pageEnd(page.End, backwards).String())...)
	}
	if hasFrom {
		out = append(append(out, `,"prev_batch":`...), quoted(from.String())...)
	}
	if web.QueryString(r, "recurse") != "" {
		out = append(out, `,"recursion_depth":`...)
		depth := 1
		if recurse {
			depth = store.RelationDepth
		}
		out = strconv.AppendInt(out, int64(depth), 10)
	}
	return web.WriteRaw(w, append(out, '}'))
}

const (
	defaultThreads = 20
	maxThreads     = 100
)

// threads handles GET /rooms/{roomId}/threads.
// Spec: client-server API, "Querying threads in a room".
func (a *API) threads(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	include := web.QueryString(r, "include")
	if include != "" && include != "all" && include != "participated" {
		return mxerr.InvalidParam("query parameter 'include' must be all or participated")
	}
	limit, err := web.QueryInt(r, "limit", defaultThreads, 1, maxThreads)
	if err != nil {
		return err
	}
	before := int64(math.MaxInt64)
	if s := web.QueryString(r, "from"); s != "" {
		digits, ok := strings.CutPrefix(s, "th")
		if before, err = strconv.ParseInt(digits, 10, 64); err != nil || !ok {
			return mxerr.InvalidParam("this server gave out no such pagination token")
		}
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	rd, err := a.reader(ctx, who, acc)
	if err != nil {
		return err
	}
	roots, next, err := a.Rooms.Threads(ctx, acc.room, room.ThreadsQuery{
		Before: before, Participated: include == "participated", Limit: limit, Reader: rd,
	})
	if err != nil {
		return err
	}
	for i, e := range roots {
		// Spec: the root by an ignored user is shown redacted, so that the thread stays.
		if _, ignored := rd.Ignored[e.PDU.Sender()]; ignored {
			if roots[i], err = acc.room.Redacted(e); err != nil {
				return err
			}
		}
	}
	out, err := a.Rooms.AppendEvents(ctx, []byte(`{"chunk":`), acc.room, roots, rd)
	if err != nil {
		return err
	}
	if next != 0 {
		out = append(append(out, `,"next_batch":`...), quoted("th"+strconv.FormatInt(next, 10))...)
	}
	return web.WriteRaw(w, append(out, '}'))
}
