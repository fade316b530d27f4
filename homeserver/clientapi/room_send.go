package clientapi

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// sendRoutes are the endpoints that send and redact messages.
// Spec: client-server API, "Sending events to a room", "Redactions".
func (a *API) sendRoutes() []web.Route {
	return []web.Route{
		{Pattern: "PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: a.send},
		{Pattern: "PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateSend, Handler: a.redact},
	}
}

const typeRedaction = "m.room.redaction"

// send handles PUT /rooms/{roomId}/send/{eventType}/{txnId}.
func (a *API) send(w http.ResponseWriter, r *http.Request) error {
	content, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	evType := web.PathParam(r, "eventType")
	if who.Suspended && evType != typeRedaction {
		return mxerr.UserSuspended()
	}
	d := room.Draft{
		Type: evType, Content: content, Sender: who.UserID, Device: who.DeviceID,
		Txn: "send/" + evType + "/" + web.PathParam(r, "txnId"),
	}
	if d.TS, err = massagedTime(r); err != nil {
		return err
	}
	switch evType {
	case "m.room.create", typeMember:
		return mxerr.Forbidden(evType + " cannot be sent as a message")
	}
	rm, err := a.memberOf(r.Context(), id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	if evType == typeRedaction {
		err = a.prepareRedaction(r.Context(), rm, who, &d)
	} else {
		err = cmp.Or(checkMessage(&d), a.checkRelation(r.Context(), rm, &d))
	}
	if err != nil {
		return err
	}
	return a.sendDraft(w, r, rm, d)
}

// checkMessage refuses messages that clients could not show. Spec: client-server API, "Instant Messaging", server behaviour.
func checkMessage(d *room.Draft) error {
	if d.Type != "m.room.message" {
		return nil
	}
	for _, key := range []string{"msgtype", "body"} {
		if gjson.GetBytes(d.Content, key).Type != gjson.String {
			return mxerr.BadJSON("a message must have '" + key + "', a string")
		}
	}
	return nil
}

func (a *API) sendDraft(w http.ResponseWriter, r *http.Request, rm *room.Room, d room.Draft) error {
	if done, err := a.delayed(w, r, rm, d); done || err != nil {
		return err
	}
	eventID, err := a.Rooms.Send(r.Context(), rm.ID(), d)
	if err != nil {
		return err
	}
	if d.Redacts != "" {
		if err := a.redacted(r.Context(), rm, d.Redacts); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, eventIDResponse{eventID})
}

// redacted does what follows from a state event losing its content.
func (a *API) redacted(ctx context.Context, rm *room.Room, target id.EventID) error {
	e, err := a.Rooms.EventByID(ctx, target)
	if err != nil || e == nil || e.Room != rm.NID() {
		return err
	}
	if _, isState := e.PDU.StateKey(); isState {
		a.guestsOut(ctx, rm, e.PDU.Type())
	}
	return nil
}

// delayed schedules an event instead of sending it where the request says so (MSC4140), and tells whether it did.
func (a *API) delayed(w http.ResponseWriter, r *http.Request, rm *room.Room, d room.Draft) (bool, error) {
	const parameter = "org.matrix.msc4140.delay"
	s, given := web.QueryLookup(r, parameter)
	if !given || a.Delay == nil {
		return false, nil
	}
	delay, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return false, mxerr.InvalidParam("query parameter '" + parameter + "' must be an integer: milliseconds")
	}
	delayID, err := a.Delay(r.Context(), rm.ID(), d, delay)
	if err != nil {
		return false, err
	}
	return true, web.WriteJSON(w, map[string]string{"delay_id": delayID})
}

// massagedTime reads the time that an application service gives an event; 0 for everybody else.
// Spec: application service API, "Timestamp massaging".
func massagedTime(r *http.Request) (int64, error) {
	if web.Requester(r).AppService == "" {
		return 0, nil
	}
	ts, err := web.QueryInt(r, "ts", 0, 0, math.MaxInt)
	return int64(ts), err
}

// prepareRedaction checks a redaction that was sent like any other event, and takes its target out of the content: it
// goes where the room version wants it.
// Spec: client-server API, PUT /rooms/{roomId}/send/{eventType}/{txnId}.
func (a *API) prepareRedaction(ctx context.Context, rm *room.Room, who *web.Identity, d *room.Draft) error {
	target := gjson.GetBytes(d.Content, "redacts")
	if target.Type != gjson.String {
		return mxerr.BadJSON("'redacts' must name the event to redact")
	}
	var content object
	if err := json.Unmarshal(d.Content, &content); err != nil {
		return err
	}
	delete(content, "redacts")
	var err error
	if d.Content, err = json.Marshal(content); err != nil {
		return err
	}
	d.Redacts = id.EventID(target.Str)
	return a.checkRedaction(ctx, rm, who, d.Redacts)
}

// checkRedaction refuses what a user may not redact. Whether the user may send redactions at all is for the
// authorisation rules.
// Spec: client-server API, PUT /rooms/{roomId}/redact/{eventId}/{txnId}.
func (a *API) checkRedaction(ctx context.Context, rm *room.Room, who *web.Identity, target id.EventID) error {
	acc := &access{room: rm}
	visibility, err := a.Rooms.Visibility(ctx, rm, who.UserID)
	if err != nil {
		return err
	}
	e, err := a.visibleEvent(ctx, acc, &room.Reader{Visibility: visibility}, target)
	if err != nil {
		return err
	}
	switch e.PDU.Type() {
	case "m.room.create":
		return mxerr.Forbidden("the event that made the room cannot be redacted")
	case "m.room.server_acl":
		return mxerr.Forbidden("server access lists cannot be redacted: send another one")
	}
	if e.PDU.Sender() != who.UserID && who.Suspended {
		return mxerr.UserSuspended()
	}
	allowed, err := a.fresh(ctx, func() bool {
		levels := rm.PowerLevels()
		return e.PDU.Sender() == who.UserID || levels.User(who.UserID) >= levels.Redact()
	})
	if err != nil {
		return err
	}
	if !allowed {
		return mxerr.Forbidden("you may redact your own events only in this room")
	}
	return nil
}

// redact handles PUT /rooms/{roomId}/redact/{eventId}/{txnId}.
func (a *API) redact(w http.ResponseWriter, r *http.Request) error {
	content, err := web.ReadOptionalJSON[object](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	target := id.EventID(web.PathParam(r, "eventId"))
	if reason, ok := content["reason"]; ok && reason.Kind() != '"' {
		return mxerr.BadJSON("'reason' must be a string")
	}
	if content == nil {
		content = object{}
	}
	delete(content, "redacts")
	rm, err := a.memberOf(r.Context(), id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	if err := a.checkRedaction(r.Context(), rm, who, target); err != nil {
		return err
	}
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	return a.sendDraft(w, r, rm, room.Draft{
		Type: typeRedaction, Content: b, Redacts: target, Sender: who.UserID, Device: who.DeviceID,
		Txn: "redact/" + string(target) + "/" + web.PathParam(r, "txnId"),
	})
}

// checkRelation refuses relations that the specification has servers refuse: threads that begin at an event which
// relates to another one, and a user's second annotation of the same kind.
func (a *API) checkRelation(ctx context.Context, rm *room.Room, d *room.Draft) error {
	rel := gjson.GetBytes(d.Content, `m\.relates_to`)
	if !rel.Exists() {
		return nil
	}
	parent := rel.Get("event_id").Str
	switch rel.Get("rel_type").Str {
	case "m.thread":
		return a.checkThread(ctx, rm, id.EventID(parent))
	case "m.annotation":
		return a.checkAnnotation(ctx, d, parent, rel.Get("key").Str)
	}
	return nil
}

// checkThread refuses to begin a thread at an event that relates to another one.
// Spec: client-server API, "Validation of m.thread relationships".
func (a *API) checkThread(ctx context.Context, rm *room.Room, root id.EventID) error {
	e, err := a.Rooms.EventByID(ctx, root)
	if err != nil || e == nil || e.Room != rm.NID() {
		return err
	}
	if gjson.GetBytes(e.PDU.Content(), `m\.relates_to.rel_type`).Exists() {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "a thread cannot begin at an event that relates to another one")
	}
	return nil
}

// checkAnnotation refuses an annotation that the user has made already. The same request sent again is none.
// Spec: client-server API, "Avoiding duplicate annotations".
func (a *API) checkAnnotation(ctx context.Context, d *room.Draft, parent, key string) error {
	var nids []int64
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		nids, err = tx.AnnotationsBy(parent, d.Type, string(d.Sender))
		return err
	})
	if err != nil || len(nids) == 0 {
		return err
	}
	evs, err := a.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	for _, e := range evs {
		again := e.Txn == d.Txn && e.Device == d.Device
		if !again && e.RedactedBy == 0 && gjson.GetBytes(e.PDU.Content(), `m\.relates_to.key`).Str == key {
			return mxerr.New(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "you have already sent this annotation")
		}
	}
	return nil
}
