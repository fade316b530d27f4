package clientapi

import (
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// event handles GET /rooms/{roomId}/event/{eventId}. What the user may not see is not found.
func (a *API) event(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
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
	e, err := a.visibleEvent(ctx, acc, rd, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	out, err := a.Rooms.AppendEvent(ctx, nil, acc.room, e, rd)
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}

// eventContext handles GET /rooms/{roomId}/context/{eventId}.
func (a *API) eventContext(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	limit, err := web.QueryInt(r, "limit", defaultPage, 0, maxPage)
	if err != nil {
		return err
	}
	f, err := eventFilter(r)
	if err != nil {
		return err
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
	e, err := a.visibleEvent(ctx, acc, rd, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	match := a.matcher(ctx, acc, rd, f)
	before, err := a.timelinePage(ctx, acc, room.TimelineQuery{From: e.Ord, Backwards: true, Limit: limit / 2, Match: match}, f)
	if err != nil {
		return err
	}
	forward := room.TimelineQuery{From: e.Ord, Limit: limit - limit/2, Match: match}
	if acc.until != 0 {
		forward.To = acc.until + 1
	}
	after, err := a.timelinePage(ctx, acc, forward, f)
	if err != nil {
		return err
	}
	state, err := a.contextState(r, acc, f, e, before.Events, after.Events)
	if err != nil {
		return err
	}
	start, end := e.Ord-1, e.Ord
	if len(before.Events) > 0 {
		start = before.End - 1
	}
	if len(after.Events) > 0 {
		end = after.End
	}
	out := append([]byte(`{"start":`), quoted(room.Token(start).String())...)
	out = append(append(out, `,"end":`...), quoted(room.Token(end).String())...)
	for _, part := range []struct {
		name   string
		events []*room.Event
		rd     *room.Reader
	}{
		{"events_before", before.Events, rd},
		{"events_after", after.Events, rd},
		{"state", state, plainReader(who, acc)},
	} {
		out = append(out, `,"`+part.name+`":`...)
		if out, err = a.Rooms.AppendEvents(ctx, out, acc.room, part.events, part.rd); err != nil {
			return err
		}
	}
	if out, err = a.Rooms.AppendEvent(ctx, append(out, `,"event":`...), acc.room, e, rd); err != nil {
		return err
	}
	return web.WriteRaw(w, append(out, '}'))
}

// contextState is the room's state at the last of the events, as the filter wants it.
func (a *API) contextState(r *http.Request, acc *access, f *filter.EventFilter, e *room.Event, before, after []*room.Event) ([]*room.Event, error) {
	all := slices.Concat(before, []*room.Event{e}, after)
	nids, err := a.Rooms.StateAt(r.Context(), acc.room, lastOrd(all))
	if err != nil {
		return nil, err
	}
	var wanted []int64
	if f.LazyMembers() {
		wanted = withMembersOf(nids, all)
	} else {
		for _, nid := range nids {
			wanted = append(wanted, nid)
		}
	}
	evs, err := a.Rooms.EventsByNID(r.Context(), wanted)
	if err != nil || f == nil {
		return evs, err
	}
	return slices.DeleteFunc(evs, func(s *room.Event) bool {
		return !f.Match(filter.EventMeta{
			Type: s.PDU.Type(), Sender: string(s.PDU.Sender()), RoomID: string(acc.room.ID()), Content: s.PDU.Content(),
		})
	}), nil
}

// timestampToEvent handles GET /rooms/{roomId}/timestamp_to_event.
func (a *API) timestampToEvent(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	backwards, err := direction(r, "")
	if err != nil {
		return err
	}
	if web.QueryString(r, "ts") == "" {
		return mxerr.MissingParam("query parameter 'ts' is missing: milliseconds since 1970")
	}
	const lastMS = 1<<53 - 1
	ts, err := web.QueryInt(r, "ts", 0, 0, lastMS)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	visibility, err := a.Rooms.Visibility(ctx, acc.room, who.UserID)
	if err != nil {
		return err
	}
	rd := &room.Reader{User: who.UserID, Visibility: visibility, Until: acc.until}
	at := int64(ts)
	if backwards {
		at++ // the last event at or before ts stands before the first one after it
	}
	var ord int64
	err = a.Store.Read(ctx, func(tx *store.Tx) (err error) {
		ord, err = tx.OrdAtTime(acc.room.NID(), at)
		return err
	})
	if err != nil {
		return err
	}
	q := room.TimelineQuery{From: ord, Backwards: backwards, Limit: 1, Match: func(e *room.Event) bool {
		sent := e.PDU.OriginServerTS()
		return shows(rd, e) && (backwards && sent <= int64(ts) || !backwards && sent >= int64(ts))
	}}
	if !backwards && ord != store.MaxOrd {
		q.From = ord - 1
	}
	page, err := a.Rooms.Timeline(ctx, acc.room, q)
	if err != nil {
		return err
	}
	if len(page.Events) == 0 {
		return mxerr.NotFound("there is no event in that direction of the time")
	}
	return web.WriteJSON(w, struct {
		EventID id.EventID `json:"event_id"`
		TS      int64      `json:"origin_server_ts"`
	}{page.Events[0].ID(), page.Events[0].PDU.OriginServerTS()})
}
