package clientapi

import (
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// reportRoutes are the endpoints by which users report what is inappropriate. Reports are kept for the administrators.
// Spec: client-server API, "Reporting Content".
func (a *API) reportRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/report", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.reportRoom},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.reportEvent},
		{Pattern: "POST /_matrix/client/v3/users/{userId}/report", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.reportUser},
	}
}

// maxReason bounds the text of a report, in bytes.
const maxReason = 4000

type reportRequest struct {
	Reason *string `json:"reason"`
}

// readReport reads a report. Spec: the reason may be blank, but for rooms and users it must be there.
func readReport(r *http.Request, reasonRequired bool) (store.Report, error) {
	req, err := web.ReadOptionalJSON[reportRequest](r)
	if err != nil {
		return store.Report{}, err
	}
	report := store.Report{Created: time.Now().UnixMilli(), Reporter: string(web.Requester(r).UserID)}
	switch {
	case req.Reason == nil && reasonRequired:
		return report, mxerr.MissingParam("'reason' is missing")
	case req.Reason != nil && len(*req.Reason) > maxReason:
		return report, mxerr.TooLarge("a reason may have at most 4000 bytes")
	case req.Reason != nil:
		report.Reason = *req.Reason
	}
	return report, nil
}

func (a *API) keepReport(w http.ResponseWriter, r *http.Request, report store.Report) error {
	err := a.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.InsertReport(report) })
	if err != nil {
		return err
	}
	a.Logger.Info("content reported", "user_id", report.Reporter, "room_id", report.Room, "event_id", report.Event)
	return web.WriteJSON(w, struct{}{})
}

// reportRoom handles POST /rooms/{roomId}/report.
func (a *API) reportRoom(w http.ResponseWriter, r *http.Request) error {
	report, err := readReport(r, true)
	if err != nil {
		return err
	}
	rm, err := a.Rooms.Room(r.Context(), id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return err
	}
	report.Room = string(rm.ID())
	return a.keepReport(w, r, report)
}

// reportEvent handles POST /rooms/{roomId}/report/{eventId}. The reporter must be in the room and see the event.
func (a *API) reportEvent(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	report, err := readReport(r, false)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	rm, err := a.memberOf(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if mxerr.Is(err, "M_FORBIDDEN") {
		return eventNotFound()
	}
	if err != nil {
		return err
	}
	visibility, err := a.Rooms.Visibility(ctx, rm, who.UserID)
	if err != nil {
		return err
	}
	e, err := a.visibleEvent(ctx, &access{room: rm}, &room.Reader{Visibility: visibility}, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	report.Room, report.Event, report.User = string(rm.ID()), string(e.ID()), string(e.PDU.Sender())
	return a.keepReport(w, r, report)
}

// reportUser handles POST /users/{userId}/report. Whether there is such a user is not told.
func (a *API) reportUser(w http.ResponseWriter, r *http.Request) error {
	report, err := readReport(r, true)
	if err != nil {
		return err
	}
	report.User = web.PathParam(r, "userId")
	if !event.ValidUserID(id.UserID(report.User)) {
		return mxerr.InvalidParam(printable(report.User) + " is not a user id")
	}
	return a.keepReport(w, r, report)
}
