package clientapi

import (
	"context"
	"math"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// timelineRoutes are the endpoints that read a room's timeline.
// Spec: client-server API, "Getting events for a room", "Event context".
func (a *API) timelineRoutes() []web.Route {
	const v1, v3 = "/_matrix/client/v1/rooms/{roomId}", "/_matrix/client/v3/rooms/{roomId}"
	return []web.Route{
		{Pattern: "GET " + v3 + "/messages", Auth: web.User, Rate: web.RateRead, Handler: a.messages},
		{Pattern: "GET " + v3 + "/context/{eventId}", Auth: web.User, Rate: web.RateRead, Handler: a.eventContext},
		{Pattern: "GET " + v3 + "/event/{eventId}", Auth: web.User, Rate: web.RateRead, Handler: a.event},
		{Pattern: "GET " + v1 + "/timestamp_to_event", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.timestampToEvent},
		// Spec: "this endpoint deliberately does not support rate limiting" (relations).
		{Pattern: "GET " + v1 + "/relations/{eventId}", Auth: web.NoGuest, Handler: a.relations},
		{Pattern: "GET " + v1 + "/relations/{eventId}/{relType}", Auth: web.NoGuest, Handler: a.relations},
		{Pattern: "GET " + v1 + "/relations/{eventId}/{relType}/{eventType}", Auth: web.NoGuest, Handler: a.relations},
		{Pattern: "GET " + v1 + "/threads", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.threads},
	}
}

const (
	defaultPage = 10
	maxPage     = 1000
)

// eventFilter reads the parameter filter, a RoomEventFilter; nil where there is none.
func eventFilter(r *http.Request) (*filter.EventFilter, error) {
	s := web.QueryString(r, "filter")
	if s == "" {
		return nil, nil
	}
	return filter.ParseEvents([]byte(s))
}

// matcher decides which events a page holds: those that the reader may see, does not ignore and has asked for.
func (a *API) matcher(ctx context.Context, acc *access, rd *room.Reader, f *filter.EventFilter) func(e *room.Event) bool {
	roomID := string(acc.room.ID())
	return func(e *room.Event) bool {
		if !shows(rd, e) {
			return false
		}
		if f == nil {
			return true
		}
		m := filter.EventMeta{Type: e.PDU.Type(), Sender: string(e.PDU.Sender()), RoomID: roomID, Content: e.PDU.Content()}
		if f.NeedsRelations() && f.MatchType(m.Type) && f.MatchSender(m.Sender) {
			m.Relations = a.relationsFor(ctx, acc, rd, e)
		}
		return f.Match(m)
	}
}

// relationsFor reads what relates to an event, for filters that ask for it. An event whose relations cannot be read
// matches none.
func (a *API) relationsFor(ctx context.Context, acc *access, rd *room.Reader, e *room.Event) []filter.Relation {
	out, err := a.Rooms.Relating(ctx, acc.room, e.ID(), rd.Ignored, func(e *room.Event) bool { return shows(rd, e) })
	if err != nil {
		a.Logger.Error("read relations for a filter", "event_id", e.ID(), "error", err)
	}
	return out
}

// messages handles GET /rooms/{roomId}/messages.
func (a *API) messages(w http.ResponseWriter, r *http.Request) error {
	ctx, who := r.Context(), web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	backwards, err := direction(r, "")
	if err != nil {
		return err
	}
	limit, err := web.QueryInt(r, "limit", defaultPage, 0, maxPage)
	if err != nil {
		return err
	}
	f, err := eventFilter(r)
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
	rd, err := a.reader(ctx, who, acc)
	if err != nil {
		return err
	}
	if f != nil && f.Limit > 0 && web.QueryString(r, "limit") == "" {
		limit = f.Limit
	}
	q := room.TimelineQuery{Backwards: backwards, Limit: limit, Match: a.matcher(ctx, acc, rd, f)}
	start := pageBounds(acc, &q, from, hasFrom, to, hasTo)
	page, err := a.timelinePage(ctx, acc, q, f)
	if err != nil {
		return err
	}
	out := append([]byte(`{"start":`), quoted(start.String())...)
	if page.More {
		out = append(append(out, `,"end":`...), quoted(pageEnd(page.End, backwards).String())...)
	}
	out = append(out, `,"chunk":`...)
	if out, err = a.Rooms.AppendEvents(ctx, out, acc.room, page.Events, rd); err != nil {
		return err
	}
	if f.LazyMembers() {
		state, err := a.senders(ctx, acc.room, page.Events)
		if err != nil {
			return err
		}
		if out, err = a.Rooms.AppendEvents(ctx, append(out, `,"state":`...), acc.room, state, plainReader(who, acc)); err != nil {
			return err
		}
	}
	return web.WriteRaw(w, append(out, '}'))
}

// pageBounds turns tokens into the bounds of a query, and gives the token that the page starts with.
func pageBounds(acc *access, q *room.TimelineQuery, from room.Token, hasFrom bool, to room.Token, hasTo bool) room.Token {
	if q.Backwards {
		if !hasFrom {
			from = room.Token(min(acc.end()-1, acc.room.LastPos()))
		}
		// A token lies behind its event: backwards, that event is the first.
		q.From = min(behind(from), acc.end())
		if hasTo {
			q.To = int64(to)
			if q.To == 0 { // 0 means no bound, and there is no event at it
				q.To = -1
			}
		}
		return from
	}
	if !hasFrom {
		from = -store.MaxOrd
	}
	q.From = int64(from)
	if hasTo {
		q.To = behind(to)
	} else if acc.until != 0 {
		q.To = acc.until + 1
	}
	if !hasFrom {
		return 0
	}
	return from
}

// behind is the smallest ord behind a token.
func behind(t room.Token) int64 {
	if t == room.TokenEnd {
		return math.MaxInt64
	}
	return int64(t) + 1
}

// pageEnd is the token with which to go on behind the event at ord.
func pageEnd(ord int64, backwards bool) room.Token {
	if backwards {
		return room.Token(ord - 1)
	}
	return room.Token(ord)
}

// timelinePage reads a page, unless the filter lets nothing through at all.
func (a *API) timelinePage(ctx context.Context, acc *access, q room.TimelineQuery, f *filter.EventFilter) (room.TimelinePage, error) {
	if f.MatchesNothing() || !f.MatchRoom(string(acc.room.ID())) {
		return room.TimelinePage{End: q.From}, nil
	}
	if q.Limit == 0 {
		return room.TimelinePage{End: q.From, More: true}, nil // going on means going on from the same place
	}
	return a.Rooms.Timeline(ctx, acc.room, q)
}

// senders gives the member events of those who sent some events, as they were at the first of these.
// Spec: client-server API, "Lazy-loading room members".
func (a *API) senders(ctx context.Context, rm *room.Room, evs []*room.Event) ([]*room.Event, error) {
	if len(evs) == 0 {
		return nil, nil
	}
	first := evs[0].Ord
	seen := make(map[id.UserID]struct{})
	var users []id.UserID
	for _, e := range evs {
		first = min(first, e.Ord)
		if _, ok := seen[e.PDU.Sender()]; !ok {
			seen[e.PDU.Sender()] = struct{}{}
			users = append(users, e.PDU.Sender())
		}
	}
	out := make([]*room.Event, 0, len(users))
	nids := rm.MemberNIDs(users)
	current, err := a.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	for _, m := range current {
		if m.Ord > first {
			// The member event is younger than the page: what stood before it is read.
			user, _ := m.PDU.StateKey()
			if m, err = a.Rooms.StateAtOne(ctx, rm, first, typeMember, user); err != nil {
				return nil, err
			}
			if m == nil {
				// The user joined within the page.
				if m, err = a.Rooms.StateAtOne(ctx, rm, lastOrd(evs), typeMember, user); err != nil {
					return nil, err
				}
			}
		}
		if m != nil {
			out = append(out, m)
		}
	}
	return out, nil
}

func lastOrd(evs []*room.Event) int64 {
	last := evs[0].Ord
	for _, e := range evs {
		last = max(last, e.Ord)
	}
	return last
}

// withMembersOf keeps the state that a lazy-loading client wants: everything but members, and those members that sent
// one of the events.
func withMembersOf(state map[event.StateKeyTuple]int64, evs []*room.Event) []int64 {
	senders := make(map[string]struct{}, len(evs))
	for _, e := range evs {
		senders[string(e.PDU.Sender())] = struct{}{}
	}
	out := make([]int64, 0, len(state))
	for t, nid := range state {
		if _, ok := senders[t.StateKey]; ok || t.Type != typeMember {
			out = append(out, nid)
		}
	}
	return out
}
