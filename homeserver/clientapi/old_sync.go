package clientapi

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// oldSyncRoutes are the endpoints that came before /sync; /events, which previews use too, stands in peekRoutes.
func (a *API) oldSyncRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/initialSync", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.initialSync},
		{Pattern: "GET /_matrix/client/v3/events/{eventId}", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.eventAnywhere},
	}
}

// initialSync handles the deprecated GET /_matrix/client/v3/initialSync. Presence comes by /sync.
func (a *API) initialSync(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	limit, err := web.QueryInt(r, "limit", defaultPage, 0, maxPage)
	if err != nil {
		return err
	}
	archived, err := web.QueryBool(r, "archived", false)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	user, err := a.Rooms.User(ctx, who.UserID)
	if err != nil {
		return err
	}
	end := a.Store.Applied()
	rooms := user.Rooms()
	slices.SortFunc(rooms, func(x, y room.UserRoom) int { return cmp.Compare(x.Room.NID(), y.Room.NID()) })
	out := append([]byte(`{"end":`), quoted(room.Token(end).String())...)
	out = append(out, `,"presence":[],"rooms":[`...)
	for i := range rooms {
		entry, err := a.initialRoom(ctx, who, &rooms[i], archived, limit)
		if err != nil {
			return err
		}
		if entry == nil {
			continue
		}
		if !bytes.HasSuffix(out, []byte{'['}) {
			out = append(out, ',')
		}
		out = append(out, entry...)
	}
	if out, err = a.appendAccountData(ctx, append(out, `],"account_data":`...), who.UserID, 0); err != nil {
		return err
	}
	rules, err := a.PushRules(ctx, who.UserID)
	if err != nil {
		return err
	}
	out = bytes.TrimSuffix(out, []byte{']'})
	if !bytes.HasSuffix(out, []byte{'['}) {
		out = append(out, ',')
	}
	out = append(append(append(out, `{"type":"m.push_rules","content":`...), rules...), `}]}`...)
	return web.WriteRaw(w, out)
}

// initialRoom renders one room of initialSync; nil where it does not belong there.
func (a *API) initialRoom(ctx context.Context, who *web.Identity, ur *room.UserRoom, archived bool, limit int) ([]byte, error) {
	roomID := ur.Room.ID()
	switch ur.Membership {
	case room.MembershipInvite:
		return a.initialInvite(ctx, who, roomID)
	case room.MembershipJoin:
	case room.MembershipLeave, room.MembershipBan:
		if !archived || ur.Forgotten {
			return nil, nil
		}
	default:
		return nil, nil
	}
	acc, err := a.readable(ctx, roomID, who.UserID)
	if mxerr.Is(err, "M_FORBIDDEN") {
		return nil, nil // an invitation that was declined: there is nothing to see
	}
	if err != nil {
		return nil, err
	}
	return a.appendInitial(ctx, nil, who, acc, limit)
}

func (a *API) initialInvite(ctx context.Context, who *web.Identity, roomID id.RoomID) ([]byte, error) {
	rm, err := a.Rooms.Room(ctx, roomID)
	if err != nil {
		return nil, err
	}
	e, err := rm.MemberEvent(ctx, who.UserID)
	if err != nil || e == nil {
		return nil, err
	}
	// Spec, "Ignoring Users", "Invite permission": clients are not told of these invitations.
	ignored, err := a.Data.Ignored(ctx, who.UserID)
	if err != nil {
		return nil, err
	}
	if _, skip := ignored[e.PDU.Sender()]; skip {
		return nil, nil
	}
	if blocked, err := a.Data.BlocksInvites(ctx, who.UserID); err != nil || blocked {
		return nil, err
	}
	out := append([]byte(`{"room_id":`), quoted(string(roomID))...)
	out = append(out, `,"membership":"invite","invite":`...)
	if out, err = a.Rooms.AppendEvent(ctx, out, rm, e, plainReader(who, &access{room: rm})); err != nil {
		return nil, err
	}
	return append(out, '}'), nil
}

// eventAnywhere handles the deprecated GET /_matrix/client/v3/events/{eventId}.
func (a *API) eventAnywhere(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	eventID := id.EventID(web.PathParam(r, "eventId"))
	found, err := a.Rooms.EventByID(ctx, eventID)
	if err != nil {
		return err
	}
	if found == nil {
		return eventNotFound()
	}
	rm, err := a.Rooms.RoomByNID(ctx, found.Room)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, rm.ID(), who.UserID)
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
	e, err := a.visibleEvent(ctx, acc, rd, eventID)
	if err != nil {
		return err
	}
	out, err := a.Rooms.AppendEvent(ctx, nil, acc.room, e, rd)
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}
