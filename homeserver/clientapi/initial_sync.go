package clientapi

import (
	"cmp"
	"context"
	"net/http"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// peekRoutes are the endpoints by which clients look into rooms without joining them.
// Spec: client-server API, "Room Previews".
func (a *API) peekRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/initialSync", Auth: web.User, Rate: web.RateRead, Handler: a.roomInitialSync},
		{Pattern: "GET /_matrix/client/v3/events", Auth: web.User, Rate: web.RateRead, Handler: a.events},
	}
}

// roomInitialSync handles GET /rooms/{roomId}/initialSync.
func (a *API) roomInitialSync(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	limit, err := web.QueryInt(r, "limit", defaultPage, 0, maxPage)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	out, err := a.appendInitial(ctx, nil, who, acc, limit)
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}

// appendInitial appends a room as the initialSync endpoints show it.
func (a *API) appendInitial(ctx context.Context, out []byte, who *web.Identity, acc *access, limit int) ([]byte, error) {
	rd, err := a.reader(ctx, who, acc)
	if err != nil {
		return nil, err
	}
	rd.Bundles = false // not required on this endpoint
	last := min(acc.end()-1, acc.room.LastPos())
	page, err := a.timelinePage(ctx, acc, room.TimelineQuery{
		From: last + 1, Backwards: true, Limit: limit, Match: a.matcher(ctx, acc, rd, nil),
	}, nil)
	if err != nil {
		return nil, err
	}
	slices.Reverse(page.Events)
	published, err := a.published(ctx, acc.room)
	if err != nil {
		return nil, err
	}
	out = append(append(out, `{"room_id":`...), quoted(string(acc.room.ID()))...)
	// Spec: the list of memberships here knows no knock.
	if m := acc.room.Membership(who.UserID); m != room.MembershipNone && m != room.MembershipKnock {
		out = append(append(out, `,"membership":`...), quoted(m.String())...)
	}
	out = append(append(out, `,"visibility":`...), quoted(visibilityName(published))...)
	out = append(append(out, `,"messages":{"end":`...), quoted(room.Token(last).String())...)
	if page.More {
		out = append(append(out, `,"start":`...), quoted(pageEnd(page.End, true).String())...)
	}
	if out, err = a.Rooms.AppendEvents(ctx, append(out, `,"chunk":`...), acc.room, page.Events, rd); err != nil {
		return nil, err
	}
	state, err := a.stateOf(ctx, acc)
	if err != nil {
		return nil, err
	}
	if out, err = a.Rooms.AppendEvents(ctx, append(out, `},"state":`...), acc.room, state, plainReader(who, acc)); err != nil {
		return nil, err
	}
	if out, err = a.appendAccountData(ctx, append(out, `,"account_data":`...), who.UserID, acc.room.NID()); err != nil {
		return nil, err
	}
	return append(out, '}'), nil
}

// appendAccountData appends what a user keeps with a room, or with none where room is 0, as a list of events.
func (a *API) appendAccountData(ctx context.Context, dst []byte, user id.UserID, room int64) ([]byte, error) {
	var data []store.AccountData
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		data, err = tx.RoomAccountData(user, room)
		return err
	})
	if err != nil {
		return nil, err
	}
	dst = append(dst, '[')
	for i, d := range data {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"content":`...)
		dst = append(dst, d.Body...)
		dst = append(dst, `,"type":`...)
		dst = append(event.AppendCanonicalString(dst, d.Type), '}')
	}
	return append(dst, ']'), nil
}

const (
	defaultWait = 30 * time.Second
	maxWait     = 5 * time.Minute
	peekPoll    = 500 * time.Millisecond // a room that the user is not in wakes nobody: it is looked at
	maxEvents   = 100
)

// events handles GET /events: with room_id the events of one room, which need not be joined, otherwise those of all
// joined rooms. It waits for the first one.
func (a *API) events(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	timeout, err := web.QueryInt(r, "timeout", int(defaultWait.Milliseconds()), 0, int(maxWait.Milliseconds()))
	if err != nil {
		return err
	}
	from, hasFrom, err := a.pageToken(r, "from")
	if err != nil {
		return err
	}
	if !hasFrom {
		from = room.Token(a.Store.Applied())
	}
	user, err := a.Rooms.User(ctx, web.Requester(r).UserID)
	if err != nil {
		return err
	}
	watch := user.Watch()
	defer watch.Close()
	deadline := time.NewTimer(time.Duration(timeout) * time.Millisecond)
	defer deadline.Stop()
	poll := time.NewTicker(peekPoll)
	defer poll.Stop()
	for {
		out, found, err := a.eventsSince(r, user, from)
		if err != nil {
			return err
		}
		if found {
			return web.WriteRaw(w, out)
		}
		select {
		case <-watch.C():
		case <-poll.C:
		case <-deadline.C:
			return web.WriteRaw(w, out)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// eventsSince builds the response of /events, and tells whether it holds any event.
func (a *API) eventsSince(r *http.Request, user *room.User, from room.Token) (out []byte, found bool, err error) {
	type part struct {
		acc *access
		rd  *room.Reader
		e   *room.Event
	}
	ctx := r.Context()
	who := web.Requester(r)
	end := max(int64(from), a.Store.Applied())
	rooms, err := a.listened(ctx, who, user, web.QueryString(r, "room_id"), int64(from))
	if err != nil {
		return nil, false, err
	}
	var parts []part
	for _, acc := range rooms {
		rd, err := a.reader(ctx, who, acc)
		if err != nil {
			return nil, false, err
		}
		rd.Bundles = false
		page, err := a.Rooms.Timeline(ctx, acc.room, room.TimelineQuery{
			From: int64(from), To: behind(room.Token(end)), Limit: maxEvents, Match: func(e *room.Event) bool { return shows(rd, e) },
		})
		if err != nil {
			return nil, false, err
		}
		for _, e := range page.Events {
			parts = append(parts, part{acc, rd, e})
		}
	}
	slices.SortFunc(parts, func(x, y part) int { return cmp.Compare(x.e.Ord, y.e.Ord) })
	if len(parts) > maxEvents {
		parts = parts[:maxEvents]
	}
	if len(parts) == maxEvents {
		end = parts[maxEvents-1].e.Ord
	}
	out = append([]byte(`{"start":`), quoted(from.String())...)
	out = append(append(out, `,"end":`...), quoted(room.Token(end).String())...)
	out = append(out, `,"chunk":[`...)
	for i, p := range parts {
		if i > 0 {
			out = append(out, ',')
		}
		if out, err = a.Rooms.AppendEvent(ctx, out, p.acc.room, p.e, p.rd); err != nil {
			return nil, false, err
		}
	}
	return append(out, `]}`...), len(parts) > 0, nil
}

// listened gives the rooms that a request to /events is about, as far as they have news.
func (a *API) listened(ctx context.Context, who *web.Identity, user *room.User, roomID string, from int64) ([]*access, error) {
	if roomID != "" {
		acc, err := a.readable(ctx, id.RoomID(roomID), who.UserID)
		if err != nil {
			return nil, err
		}
		if acc.until != 0 {
			return nil, mxerr.Forbidden("you have left this room: nothing new will come")
		}
		return []*access{acc}, nil
	}
	var ids []id.RoomID
	user.EachRoom(func(ur *room.UserRoom) {
		if ur.Membership == room.MembershipJoin && ur.Room.LastPos() > from {
			ids = append(ids, ur.Room.ID())
		}
	})
	out := make([]*access, 0, len(ids))
	for _, roomID := range ids {
		rm, err := a.Rooms.Room(ctx, roomID)
		if err != nil {
			return nil, err
		}
		out = append(out, &access{room: rm})
	}
	return out, nil
}
