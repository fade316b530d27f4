package clientapi

import (
	"bytes"
	"cmp"
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// stateRoutes are the endpoints that read and write room state.
// Spec: client-server API, "Getting events for a room", "Sending events to a room".
func (a *API) stateRoutes() []web.Route {
	const one = "/_matrix/client/v3/rooms/{roomId}/state/{eventType}"
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/state", Auth: web.User, Rate: web.RateRead, Handler: a.roomState},
		// The slash before an empty state key is optional.
		{Pattern: "GET " + one, Auth: web.User, Rate: web.RateRead, Handler: a.stateEvent},
		{Pattern: "GET " + one + "/", Auth: web.User, Rate: web.RateRead, Handler: a.stateEvent},
		{Pattern: "GET " + one + "/{stateKey}", Auth: web.User, Rate: web.RateRead, Handler: a.stateEvent},
		{Pattern: "PUT " + one, Auth: web.User, Rate: web.RateSend, Handler: a.putState},
		{Pattern: "PUT " + one + "/", Auth: web.User, Rate: web.RateSend, Handler: a.putState},
		{Pattern: "PUT " + one + "/{stateKey}", Auth: web.User, Rate: web.RateSend, Handler: a.putState},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/members", Auth: web.User, Rate: web.RateRead, Handler: a.members},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/joined_members", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.joinedMembers},
	}
}

// stateOf gives the room's state that a reader sees, in the order in which it came about.
func (a *API) stateOf(ctx context.Context, acc *access) (evs []*room.Event, err error) {
	if acc.until == 0 {
		evs, err = acc.room.State(ctx)
	} else {
		evs, err = a.stateThen(ctx, acc)
	}
	slices.SortFunc(evs, func(x, y *room.Event) int { return cmp.Compare(x.Ord, y.Ord) })
	return evs, err
}

// stateThen gives the room's state when the reader left.
func (a *API) stateThen(ctx context.Context, acc *access) ([]*room.Event, error) {
	nids, err := a.Rooms.StateAt(ctx, acc.room, acc.until)
	if err != nil {
		return nil, err
	}
	list := make([]int64, 0, len(nids))
	for _, nid := range nids {
		list = append(list, nid)
	}
	return a.Rooms.EventsByNID(ctx, list)
}

// roomState handles GET /rooms/{roomId}/state.
func (a *API) roomState(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	acc, err := a.readable(r.Context(), id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	evs, err := a.stateOf(r.Context(), acc)
	if err != nil {
		return err
	}
	out, err := a.Rooms.AppendEvents(r.Context(), nil, acc.room, evs, plainReader(who, acc))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}

// stateEvent handles GET /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) stateEvent(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	format := web.QueryString(r, "format")
	if format != "" && format != "content" && format != "event" {
		return mxerr.InvalidParam("query parameter 'format' must be content or event")
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	evType, stateKey := web.PathParam(r, "eventType"), web.PathParam(r, "stateKey")
	var e *room.Event
	if acc.until == 0 {
		e, err = acc.room.StateEvent(ctx, evType, stateKey)
	} else {
		e, err = a.Rooms.StateAtOne(ctx, acc.room, acc.until, evType, stateKey)
	}
	if err != nil {
		return err
	}
	if e == nil {
		return mxerr.NotFound("the room has no state of this type and key")
	}
	if format != "event" {
		return web.WriteRaw(w, e.PDU.Content())
	}
	out, err := a.Rooms.AppendEvent(ctx, nil, acc.room, e, plainReader(who, acc))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, out)
}

// membershipFilter reads membership and not_membership, which are joined by "or".
func membershipFilter(r *http.Request) (func(m string) bool, error) {
	is, not := web.QueryString(r, "membership"), web.QueryString(r, "not_membership")
	for name, v := range map[string]string{"membership": is, "not_membership": not} {
		if v != "" && room.ParseMembership(v) == room.MembershipNone {
			return nil, mxerr.InvalidParam("query parameter '" + name + "' must be join, invite, knock, leave or ban")
		}
	}
	return func(m string) bool {
		return is == "" && not == "" || is != "" && m == is || not != "" && m != not
	}, nil
}

// members handles GET /rooms/{roomId}/members.
func (a *API) members(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	wanted, err := membershipFilter(r)
	if err != nil {
		return err
	}
	at, hasAt, err := a.pageToken(r, "at")
	if err != nil {
		return err
	}
	who := web.Requester(r)
	acc, err := a.readable(ctx, id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	then := acc.until // 0 means now
	if hasAt && (then == 0 || int64(at) < then) {
		then = int64(at)
	}
	nids, err := a.memberNIDs(ctx, acc.room, then, hasAt || acc.until != 0, wanted)
	if err != nil {
		return err
	}
	evs, err := a.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	chunk := evs[:0]
	for _, e := range evs {
		if wanted(e.PDU.Membership()) {
			chunk = append(chunk, e)
		}
	}
	out, err := a.Rooms.AppendEvents(ctx, []byte(`{"chunk":`), acc.room, chunk, plainReader(who, acc))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, append(out, '}'))
}

// memberNIDs finds the member events of a room, now or at an ord. For the present the memberships are in memory, so
// that those that are not wanted need not be read.
func (a *API) memberNIDs(ctx context.Context, rm *room.Room, at int64, past bool, wanted func(string) bool) ([]int64, error) {
	state := map[event.StateKeyTuple]int64(nil)
	if past {
		var err error
		if state, err = a.Rooms.StateAt(ctx, rm, at); err != nil {
			return nil, err
		}
	} else {
		state = rm.StateNIDs()
	}
	var out []int64
	for t, nid := range state {
		if t.Type == typeMember && (past || wanted(rm.Membership(id.UserID(t.StateKey)).String())) {
			out = append(out, nid)
		}
	}
	return out, nil
}

// joinedMember is what /joined_members tells of a member.
type joinedMember struct {
	DisplayName string `json:"display_name,omitzero"`
	AvatarURL   string `json:"avatar_url,omitzero"`
}

// joinedMembers handles GET /rooms/{roomId}/joined_members.
func (a *API) joinedMembers(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	rm, err := a.memberOrService(ctx, id.RoomID(web.PathParam(r, "roomId")), web.Requester(r))
	if err != nil {
		return err
	}
	nids, err := a.memberNIDs(ctx, rm, 0, false, func(m string) bool { return m == "join" })
	if err != nil {
		return err
	}
	evs, err := a.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	joined := make(map[string]joinedMember, len(evs))
	for _, e := range evs {
		user, _ := e.PDU.StateKey()
		var m joinedMember
		if v := gjson.GetBytes(e.PDU.Content(), "displayname"); v.Type == gjson.String {
			m.DisplayName = v.Str
		}
		if v := gjson.GetBytes(e.PDU.Content(), "avatar_url"); v.Type == gjson.String && strings.HasPrefix(v.Str, "mxc://") {
			m.AvatarURL = v.Str
		}
		joined[user] = m
	}
	return web.WriteJSON(w, struct {
		Joined map[string]joinedMember `json:"joined"`
	}{joined})
}

// memberOrService is memberOf for an endpoint that services may ask about every room in which any of their users is.
// Spec: client-server API, GET /rooms/{roomId}/joined_members.
func (a *API) memberOrService(ctx context.Context, roomID id.RoomID, who *web.Identity) (*room.Room, error) {
	rm, err := a.memberOf(ctx, roomID, who.UserID)
	if err == nil || who.AppService == "" || !mxerr.Is(err, "M_FORBIDDEN") {
		return rm, err
	}
	of, notFound := a.Rooms.Room(ctx, roomID)
	if notFound != nil {
		return nil, err
	}
	for _, u := range of.Joined() {
		if a.AppServices.UserAllowed(who.AppService, u) == nil {
			return of, nil
		}
	}
	return nil, err
}

type eventIDResponse struct {
	EventID id.EventID `json:"event_id"`
}

// putState handles PUT /rooms/{roomId}/state/{eventType}/{stateKey}. Setting what is set already sends nothing and gives
// the event that set it.
func (a *API) putState(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	content, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	stateKey := web.PathParam(r, "stateKey")
	d := room.Draft{Type: web.PathParam(r, "eventType"), StateKey: &stateKey, Content: content, Sender: who.UserID, Device: who.DeviceID}
	if d.TS, err = massagedTime(r); err != nil {
		return err
	}
	rm, err := a.Rooms.Room(ctx, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return hideRoom(err)
	}
	wasJoined := rm.Membership(who.UserID) == room.MembershipJoin
	switch d.Type {
	case typeMember:
		err = a.prepareMember(ctx, rm, who, &d)
	case "m.room.canonical_alias":
		err = a.checkCanonicalAlias(ctx, rm, content)
	case "m.room.power_levels":
		err = checkCreatorLevels(ctx, rm, content)
	}
	if err != nil {
		return err
	}
	if done, err := a.delayed(w, r, rm, d); done || err != nil {
		return err
	}
	eventID, err := a.sameState(ctx, rm, &d)
	if err == nil && eventID == "" {
		eventID, err = a.Rooms.Send(ctx, rm.ID(), d)
	}
	if err != nil {
		return err
	}
	if d.Type == typeMember && !wasJoined && rm.Membership(who.UserID) == room.MembershipJoin {
		a.afterJoin(ctx, rm, who.UserID)
	}
	a.guestsOut(ctx, rm, d.Type)
	return web.WriteJSON(w, eventIDResponse{eventID})
}

// checkCreatorLevels refuses power levels that name a creator: nobody's power is missing, the content is wrong.
// Spec: room version 12, authorisation rule 10.4.
func checkCreatorLevels(ctx context.Context, rm *room.Room, content []byte) error {
	if !rm.Version().PrivilegedCreators {
		return nil
	}
	create, err := rm.StateEvent(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return err
	}
	for user := range gjson.GetBytes(content, "users").Map() {
		if slices.Contains(create.PDU.Creators(), id.UserID(user)) {
			return mxerr.New(http.StatusBadRequest, "M_INVALID_PARAM", printable(user)+" made this room and has every power: 'users' cannot name a creator")
		}
	}
	return nil
}

// sameState finds the event that has already set what a member of the room is about to set once more.
func (a *API) sameState(ctx context.Context, rm *room.Room, d *room.Draft) (id.EventID, error) {
	if rm.Membership(d.Sender) != room.MembershipJoin || d.TS != 0 {
		return "", nil
	}
	current, err := rm.StateEvent(ctx, d.Type, *d.StateKey)
	if err != nil || current == nil || current.PDU.Sender() != d.Sender || current.RedactedBy != 0 {
		return "", err
	}
	content, err := event.CanonicalJSON(d.Content)
	if err != nil || !bytes.Equal(content, current.PDU.Content()) {
		return "", nil // what is wrong with it is said when it is sent
	}
	return current.ID(), nil
}

// prepareMember brings a membership that is set as state under the rules of the membership endpoints.
func (a *API) prepareMember(ctx context.Context, rm *room.Room, who *web.Identity, d *room.Draft) error {
	target := id.UserID(*d.StateKey)
	if !event.ValidUserID(target) {
		return mxerr.InvalidParam("the state key of m.room.member must be a user id")
	}
	switch gjson.GetBytes(d.Content, "membership").Str {
	case "invite":
		if _, err := a.memberOf(ctx, rm.ID(), who.UserID); err != nil {
			return err
		}
		return a.checkInvitee(ctx, target)
	case "join":
		if target != who.UserID || rm.Membership(target) == room.MembershipJoin {
			return nil
		}
		if err := a.checkJoin(rm, who); err != nil {
			return err
		}
		if invited, err := a.invitedTo(ctx, rm, target); err != nil || invited {
			return err
		}
		voucher, err := a.authoriseJoin(ctx, rm, target)
		if err != nil || voucher == "" {
			return err
		}
		var content object
		if err := json.Unmarshal(d.Content, &content); err != nil {
			return err
		}
		content["join_authorised_via_users_server"] = quoted(string(voucher))
		d.Content, err = json.Marshal(content)
		return err
	case "leave":
		if target == who.UserID {
			return a.checkLeave(ctx, rm, target)
		}
	}
	return nil
}

// checkCanonicalAlias refuses aliases that are not of this room. Those that the event lists already are not looked at.
// Spec: client-server API, PUT /rooms/{roomId}/state/{eventType}/{stateKey}.
func (a *API) checkCanonicalAlias(ctx context.Context, rm *room.Room, content []byte) error {
	now, err := listedAliases(content)
	if err != nil || len(now) == 0 {
		return err
	}
	known := make(map[string]bool)
	current, err := rm.StateEvent(ctx, "m.room.canonical_alias", "")
	if err != nil {
		return err
	}
	if current != nil {
		// What an older event lists wrongly is no reason to refuse this one.
		before, _ := listedAliases(current.PDU.Content())
		for _, alias := range before {
			known[alias] = true
		}
	}
	for _, alias := range now {
		if known[alias] {
			continue
		}
		if err := checkAlias(alias); err != nil {
			return err
		}
		nid, err := a.aliasRoom(ctx, alias)
		if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
			return err
		}
		if err != nil || nid != rm.NID() {
			return mxerr.New(http.StatusBadRequest, "M_BAD_ALIAS", "the alias "+printable(alias)+" does not point to this room")
		}
	}
	return nil
}

// listedAliases reads the aliases that an m.room.canonical_alias names.
func listedAliases(content []byte) ([]string, error) {
	var out []string
	switch alias := gjson.GetBytes(content, "alias"); {
	case alias.Type == gjson.String:
		if alias.Str != "" {
			out = append(out, alias.Str)
		}
	case alias.Exists() && alias.Type != gjson.Null:
		return nil, mxerr.InvalidParam("'alias' must be a string")
	}
	alt := gjson.GetBytes(content, "alt_aliases")
	if !alt.Exists() || alt.Type == gjson.Null {
		return out, nil
	}
	if !alt.IsArray() {
		return nil, mxerr.InvalidParam("'alt_aliases' must be a list of aliases")
	}
	for _, alias := range alt.Array() {
		if alias.Type != gjson.String {
			return nil, mxerr.InvalidParam("'alt_aliases' must be a list of aliases")
		}
		out = append(out, alias.Str)
	}
	return out, nil
}

// published tells whether a room stands in the directory.
func (a *API) published(ctx context.Context, rm *room.Room) (published bool, err error) {
	err = a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		published, err = tx.RoomPublished(rm.NID())
		return err
	})
	return published, err
}
