package adminapi

import (
	"cmp"
	"context"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) roomRoutes() []web.Route {
	const rooms = v1 + "/rooms"
	return []web.Route{
		{Pattern: "GET " + rooms, Handler: a.listRooms},
		{Pattern: "GET " + rooms + "/{roomId}", Handler: a.room},
		{Pattern: "GET " + rooms + "/{roomId}/members", Handler: a.members},
		{Pattern: "GET " + rooms + "/{roomId}/state", Handler: a.state},
		{Pattern: "GET " + rooms + "/{roomId}/messages", Handler: a.messages},
		{Pattern: "GET " + rooms + "/{roomId}/context/{eventId}", Handler: a.eventContext},
		{Pattern: "GET " + rooms + "/{roomId}/timestamp_to_event", Handler: a.timestampToEvent},
		{Pattern: "GET " + rooms + "/{roomId}/block", Handler: a.blocked},
		{Pattern: "PUT " + rooms + "/{roomId}/block", Rate: web.RateSend, Handler: a.block},
		{Pattern: "GET " + rooms + "/{roomId}/forward_extremities", Handler: a.extremities},
		{Pattern: "POST " + rooms + "/{roomId}/make_room_admin", Rate: web.RateSend, Handler: a.makeRoomAdmin},
		{Pattern: "POST " + v1 + "/join/{roomId}", Rate: web.RateSend, Handler: a.join},
		{Pattern: "GET " + v1 + "/fetch_event/{eventId}", Handler: a.fetchEvent},
	}
}

type roomJSON struct {
	RoomID            string  `json:"room_id"`
	Name              *string `json:"name"`
	CanonicalAlias    *string `json:"canonical_alias"`
	Joined            int64   `json:"joined_members"`
	JoinedLocal       int64   `json:"joined_local_members"`
	Version           string  `json:"version"`
	Creator           string  `json:"creator"`
	Encryption        *string `json:"encryption"`
	Federatable       bool    `json:"federatable"`
	Public            bool    `json:"public"`
	JoinRules         *string `json:"join_rules"`
	GuestAccess       *string `json:"guest_access"`
	HistoryVisibility *string `json:"history_visibility"`
	StateEvents       int64   `json:"state_events"`
	RoomType          *string `json:"room_type"`
	Tombstoned        bool    `json:"tombstoned"`
	Replacement       *string `json:"replacement_room,omitzero"`
	Avatar            *string `json:"avatar,omitzero"`
	Topic             *string `json:"topic,omitzero"`
	JoinedDevices     *int64  `json:"joined_local_devices,omitzero"`
	Forgotten         *bool   `json:"forgotten,omitzero"`
	nid               int64
}

// stateTypes are the state events that a listed room is described by.
func stateTypes() []string {
	return []string{"m.room.create", "m.room.name", "m.room.canonical_alias", "m.room.encryption", "m.room.join_rules", "m.room.guest_access",
		"m.room.history_visibility", "m.room.tombstone", "m.room.avatar", "m.room.topic"}
}

// add reads one of these state events.
func (j *roomJSON) add(evType string, pdu []byte) {
	text := func(name string) *string {
		if v := gjson.GetBytes(pdu, "content."+name); v.Type == gjson.String && v.Str != "" {
			return &v.Str
		}
		return nil
	}
	switch evType {
	case "m.room.create":
		j.RoomType = text("type")
		f := gjson.GetBytes(pdu, `content.m\.federate`)
		j.Federatable = !f.Exists() || f.Bool()
	case "m.room.name":
		j.Name = text("name")
	case "m.room.canonical_alias":
		j.CanonicalAlias = text("alias")
	case "m.room.encryption":
		j.Encryption = text("algorithm")
	case "m.room.join_rules":
		j.JoinRules = text("join_rule")
	case "m.room.guest_access":
		j.GuestAccess = text("guest_access")
	case "m.room.history_visibility":
		j.HistoryVisibility = text("history_visibility")
	case "m.room.tombstone":
		j.Tombstoned, j.Replacement = true, text("replacement_room")
	case "m.room.avatar":
		j.Avatar = text("url")
	case "m.room.topic":
		j.Topic = text("topic")
	}
}

// allRooms reads all rooms with what describes them.
func (a *API) allRooms(ctx context.Context) ([]roomJSON, error) {
	const atOnce = 500
	var rows []store.ListedRoom
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		rows, err = tx.ListRooms(":" + a.ServerName)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make([]roomJSON, 0, len(rows))
	at := make(map[int64]int, len(rows))
	for i, l := range rows {
		at[l.NID] = i
		out = append(out, roomJSON{RoomID: l.RoomID, Joined: l.Joined, JoinedLocal: l.JoinedLocal, Version: l.Version, Creator: l.Creator, Public: l.Published, StateEvents: l.State, nid: l.NID})
	}
	for chunk := range slices.Chunk(rows, atOnce) {
		nids := make([]int64, 0, len(chunk))
		for _, l := range chunk {
			nids = append(nids, l.NID)
		}
		err := a.Store.ReadOne(ctx, func(tx *store.Tx) error {
			return tx.DirectoryState(nids, stateTypes(), func(nid int64, evType string, pdu []byte) { out[at[nid]].add(evType, pdu) })
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func compareText(of func(*roomJSON) *string) func(x, y *roomJSON) int {
	return func(x, y *roomJSON) int {
		a, b := of(x), of(y)
		if (a == nil) != (b == nil) { // those without come last
			if a == nil {
				return 1
			}
			return -1
		}
		return strings.Compare(strings.ToLower(deref(a)), strings.ToLower(deref(b)))
	}
}

func compareBool(of func(*roomJSON) bool) func(x, y *roomJSON) int {
	return func(x, y *roomJSON) int {
		switch a, b := of(x), of(y); {
		case a == b:
			return 0
		case a:
			return 1
		default:
			return -1
		}
	}
}

// roomOrder gives the comparison that a name of an order stands for, and whether it runs backwards by nature: the largest
// rooms come first.
func roomOrder(name string) (compare func(x, y *roomJSON) int, largest bool) {
	byNumber := func(of func(*roomJSON) int64) func(x, y *roomJSON) int {
		return func(x, y *roomJSON) int { return cmp.Compare(of(x), of(y)) }
	}
	switch name {
	case "", "name", "alphabetical":
		return compareText(func(j *roomJSON) *string {
			if j.Name != nil {
				return j.Name
			}
			return j.CanonicalAlias
		}), false
	case "canonical_alias":
		return compareText(func(j *roomJSON) *string { return j.CanonicalAlias }), false
	case "joined_members", "size":
		return byNumber(func(j *roomJSON) int64 { return j.Joined }), true
	case "joined_local_members":
		return byNumber(func(j *roomJSON) int64 { return j.JoinedLocal }), true
	case "version":
		return compareText(func(j *roomJSON) *string { return &j.Version }), true
	case "creator":
		return compareText(func(j *roomJSON) *string { return &j.Creator }), false
	case "encryption":
		return compareText(func(j *roomJSON) *string { return j.Encryption }), false
	case "federatable":
		return compareBool(func(j *roomJSON) bool { return j.Federatable }), false
	case "public":
		return compareBool(func(j *roomJSON) bool { return j.Public }), false
	case "join_rules":
		return compareText(func(j *roomJSON) *string { return j.JoinRules }), false
	case "guest_access":
		return compareText(func(j *roomJSON) *string { return j.GuestAccess }), false
	case "history_visibility":
		return compareText(func(j *roomJSON) *string { return j.HistoryVisibility }), false
	case "state_events":
		return byNumber(func(j *roomJSON) int64 { return j.StateEvents }), true
	}
	return nil, false
}

// listRooms handles GET /_synapse/admin/v1/rooms.
func (a *API) listRooms(w http.ResponseWriter, r *http.Request) error {
	compare, largest := roomOrder(web.QueryString(r, "order_by"))
	if compare == nil {
		return mxerr.InvalidParam("rooms cannot be ordered by what 'order_by' names")
	}
	backwards, err := dir(r, "f")
	if err != nil {
		return err
	}
	from, limit, err := page(r, 100)
	if err != nil {
		return err
	}
	public, err := optionalBool(r, "public_rooms")
	if err != nil {
		return err
	}
	emptyRooms, err := optionalBool(r, "empty_rooms")
	if err != nil {
		return err
	}
	if term, given := web.QueryLookup(r, "search_term"); given && term == "" {
		return mxerr.InvalidParam("query parameter 'search_term' must not be empty")
	}
	term := strings.ToLower(web.QueryString(r, "search_term"))
	rooms, err := a.allRooms(r.Context())
	if err != nil {
		return err
	}
	rooms = slices.DeleteFunc(rooms, func(j roomJSON) bool {
		return public != nil && j.Public != *public || emptyRooms != nil && (j.Joined == 0) != *emptyRooms ||
			term != "" && !strings.Contains(strings.ToLower(deref(j.Name)), term) && !strings.Contains(strings.ToLower(deref(j.CanonicalAlias)), term) &&
				strings.ToLower(j.RoomID) != term && j.RoomID != web.QueryString(r, "search_term")
	})
	slices.SortStableFunc(rooms, func(x, y roomJSON) int {
		c := compare(&x, &y)
		if largest != backwards {
			c = -c
		}
		return cmp.Or(c, strings.Compare(x.RoomID, y.RoomID))
	})
	total := len(rooms)
	begin := min(from, total)
	out := map[string]any{"rooms": rooms[begin:min(begin+limit, total)], "offset": from, "total_rooms": total}
	if begin+limit < total {
		out["next_batch"] = begin + limit
	}
	if from > 0 {
		out["prev_batch"] = max(from-limit, 0)
	}
	return web.WriteJSON(w, out)
}

// room handles GET /_synapse/admin/v1/rooms/{roomId}.
func (a *API) room(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	forgotten := false
	j := roomJSON{RoomID: string(rm.ID()), Version: rm.Version().ID, Creator: string(rm.Creator()), Joined: int64(rm.JoinedCount()), nid: rm.NID(), Forgotten: &forgotten}
	var devices int64
	local := []string{}
	for _, u := range rm.Joined() {
		if a.local(u) {
			j.JoinedLocal++
			local = append(local, string(u))
		}
	}
	err = a.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if j.Public, err = tx.RoomPublished(rm.NID()); err != nil {
			return err
		}
		if devices, err = tx.CountDevices(local); err != nil {
			return err
		}
		return tx.DirectoryState([]int64{rm.NID()}, stateTypes(), func(_ int64, evType string, pdu []byte) { j.add(evType, pdu) })
	})
	if err != nil {
		return err
	}
	j.JoinedDevices = &devices
	j.StateEvents = int64(len(rm.StateNIDs()))
	return web.WriteJSON(w, j)
}

// members handles GET /_synapse/admin/v1/rooms/{roomId}/members.
func (a *API) members(w http.ResponseWriter, r *http.Request) error {
	rm, err := a.findRoom(r.Context(), web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	users := rm.Joined()
	slices.Sort(users)
	if users == nil {
		users = []id.UserID{}
	}
	return web.WriteJSON(w, map[string]any{"members": users, "total": len(users)})
}

// reader reads as the administrator, who sees everything.
func (a *API) reader(r *http.Request) *room.Reader {
	who := web.Requester(r)
	return &room.Reader{User: who.UserID, Device: who.DeviceID, NowMS: a.nowMS()}
}

// state handles GET /_synapse/admin/v1/rooms/{roomId}/state.
func (a *API) state(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	evs, err := rm.State(ctx)
	if err != nil {
		return err
	}
	only := web.QueryString(r, "type")
	if only != "" {
		evs = slices.DeleteFunc(evs, func(e *room.Event) bool { return e.PDU.Type() != only })
	}
	out, err := a.Rooms.AppendEvents(ctx, []byte(`{"state":`), rm, evs, a.reader(r))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, append(out, '}'))
}

// messages handles GET /_synapse/admin/v1/rooms/{roomId}/messages: like the members' endpoint, for all of the history. It
// stands in the audit log.
func (a *API) messages(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	backwards, err := dir(r, "f")
	if err != nil {
		return err
	}
	limit, err := web.QueryInt(r, "limit", 10, 0, 1000)
	if err != nil {
		return err
	}
	var f *filter.EventFilter
	if s := web.QueryString(r, "filter"); s != "" {
		if f, err = filter.ParseEvents([]byte(s)); err != nil {
			return err
		}
	}
	from := room.Token(-store.MaxOrd)
	if backwards {
		from = room.TokenEnd
	}
	if s := web.QueryString(r, "from"); s != "" {
		if from, err = room.ParseToken(s); err != nil {
			return err
		}
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.read", string(rm.ID()), nil); err != nil {
		return err
	}
	q := room.TimelineQuery{From: int64(from), Backwards: backwards, Limit: limit}
	if backwards && from != room.TokenEnd {
		q.From++ // a token lies behind its event
	}
	if f != nil {
		q.Match = func(e *room.Event) bool {
			return f.Match(filter.EventMeta{Type: e.PDU.Type(), Sender: string(e.PDU.Sender()), RoomID: string(rm.ID()), Content: e.PDU.Content()})
		}
	}
	page, err := a.Rooms.Timeline(ctx, rm, q)
	if err != nil {
		return err
	}
	out := append([]byte(`{"start":"`), from.String()...)
	out = append(out, '"')
	if page.More {
		end := room.Token(page.End)
		if backwards {
			end--
		}
		out = append(append(append(out, `,"end":"`...), end.String()...), '"')
	}
	if out, err = a.Rooms.AppendEvents(ctx, append(out, `,"chunk":`...), rm, page.Events, a.reader(r)); err != nil {
		return err
	}
	return web.WriteRaw(w, append(out, '}'))
}

// eventOf reads an event of a room.
func (a *API) eventOf(ctx context.Context, rm *room.Room, eventID string) (*room.Event, error) {
	e, err := a.Rooms.EventByID(ctx, id.EventID(eventID))
	if err == nil && (e == nil || e.Room != rm.NID()) {
		err = mxerr.NotFound("this room has no such event")
	}
	return e, err
}

// eventContext handles GET /_synapse/admin/v1/rooms/{roomId}/context/{eventId}.
func (a *API) eventContext(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	limit, err := web.QueryInt(r, "limit", 10, 0, 1000)
	if err != nil {
		return err
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	e, err := a.eventOf(ctx, rm, web.PathParam(r, "eventId"))
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.read", string(rm.ID()), map[string]any{"event_id": e.ID()}); err != nil {
		return err
	}
	before, err := a.Rooms.Timeline(ctx, rm, room.TimelineQuery{From: e.Ord, Backwards: true, Limit: limit / 2})
	if err != nil {
		return err
	}
	after, err := a.Rooms.Timeline(ctx, rm, room.TimelineQuery{From: e.Ord, Limit: limit - limit/2})
	if err != nil {
		return err
	}
	state, err := rm.State(ctx)
	if err != nil {
		return err
	}
	rd := a.reader(r)
	out, err := a.Rooms.AppendEvent(ctx, []byte(`{"event":`), rm, e, rd)
	for _, part := range []struct {
		name   string
		events []*room.Event
	}{{"events_before", before.Events}, {"events_after", after.Events}, {"state", state}} {
		if err != nil {
			return err
		}
		out = append(append(append(out, `,"`...), part.name...), `":`...)
		out, err = a.Rooms.AppendEvents(ctx, out, rm, part.events, rd)
	}
	if err != nil {
		return err
	}
	start, end := before.End-1, after.End
	out = append(append(append(out, `,"start":"`...), room.Token(start).String()...), '"')
	out = append(append(append(out, `,"end":"`...), room.Token(end).String()...), `"}`...)
	return web.WriteRaw(w, out)
}

// timestampToEvent handles GET /_synapse/admin/v1/rooms/{roomId}/timestamp_to_event.
func (a *API) timestampToEvent(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	backwards, err := dir(r, "f")
	if err != nil {
		return err
	}
	if web.QueryString(r, "ts") == "" {
		return mxerr.MissingParam("query parameter 'ts' is missing: milliseconds since 1970")
	}
	ts, err := web.QueryInt(r, "ts", 0, 0, 1<<53-1)
	if err != nil {
		return err
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	q := room.TimelineQuery{From: -store.MaxOrd, Backwards: backwards, Limit: 1, Match: func(e *room.Event) bool {
		sent := e.PDU.OriginServerTS()
		return backwards && sent <= int64(ts) || !backwards && sent >= int64(ts)
	}}
	if backwards {
		q.From = math.MaxInt64
	}
	for {
		page, err := a.Rooms.Timeline(ctx, rm, q)
		if err != nil {
			return err
		}
		if len(page.Events) > 0 {
			e := page.Events[0]
			return web.WriteJSON(w, map[string]any{"event_id": e.ID(), "origin_server_ts": e.PDU.OriginServerTS()})
		}
		if !page.More {
			return mxerr.NotFound("there is no event in that direction of the time")
		}
		q.From = page.End
	}
}

// blocked handles GET /_synapse/admin/v1/rooms/{roomId}/block.
func (a *API) blocked(w http.ResponseWriter, r *http.Request) error {
	roomID := web.PathParam(r, "roomId")
	if err := checkRoomID(roomID); err != nil {
		return err
	}
	by, on, err := a.Rooms.Blocked(r.Context(), id.RoomID(roomID))
	if err != nil {
		return err
	}
	out := map[string]any{"block": on}
	if on {
		out["user_id"] = by
	}
	return web.WriteJSON(w, out)
}

// block handles PUT /_synapse/admin/v1/rooms/{roomId}/block.
func (a *API) block(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Block *bool `json:"block"`
	}](r)
	if err != nil {
		return err
	}
	if req.Block == nil {
		return mxerr.MissingParam("'block' is required")
	}
	roomID := web.PathParam(r, "roomId")
	if err := checkRoomID(roomID); err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.blocked", roomID, map[string]any{"block": *req.Block}); err != nil {
		return err
	}
	if err := a.Rooms.Block(r.Context(), id.RoomID(roomID), web.Requester(r).UserID, *req.Block); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]bool{"block": *req.Block})
}

// extremities handles GET /_synapse/admin/v1/rooms/{roomId}/forward_extremities.
func (a *API) extremities(w http.ResponseWriter, r *http.Request) error {
	rm, err := a.findRoom(r.Context(), web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	results := []map[string]any{}
	for _, x := range rm.Extremities() {
		results = append(results, map[string]any{"event_id": x.EventID, "depth": x.Depth})
	}
	return web.WriteJSON(w, map[string]any{"count": len(results), "results": results})
}

// makeRoomAdmin handles POST /_synapse/admin/v1/rooms/{roomId}/make_room_admin: a member with the highest power that may
// hands it to somebody.
func (a *API) makeRoomAdmin(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadOptionalJSON[struct {
		UserID id.UserID `json:"user_id"`
	}](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	if req.UserID == "" {
		req.UserID = who.UserID
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.made_admin", string(rm.ID()), map[string]any{"user": req.UserID}); err != nil {
		return err
	}
	if err := a.promote(ctx, rm, req.UserID); err != nil {
		return err
	}
	return empty(w)
}

// strongest finds the local member with the highest power level that may change power levels.
func (a *API) strongest(rm *room.Room) (id.UserID, int64) {
	levels := rm.PowerLevels()
	var best id.UserID
	most := int64(math.MinInt64)
	for _, u := range rm.Joined() {
		if l := levels.User(u); a.local(u) && (l > most || l == most && u < best) {
			best, most = u, l
		}
	}
	if best == "" || most < levels.Event("m.room.power_levels", true) {
		return "", 0
	}
	return best, most
}

func (a *API) promote(ctx context.Context, rm *room.Room, user id.UserID) error {
	giver, level := a.strongest(rm)
	if giver == "" {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "no local member of this room may change its power levels")
	}
	levels := rm.PowerLevels()
	if levels.User(user) < level {
		const cap53 = 1<<53 - 1
		content, err := withUserLevel(ctx, rm, user, min(level, cap53))
		if err != nil {
			return err
		}
		key := ""
		if _, err := a.Rooms.Send(ctx, rm.ID(), room.Draft{Type: "m.room.power_levels", StateKey: &key, Content: content, Sender: giver}); err != nil {
			return err
		}
	}
	if m := rm.Membership(user); m != room.MembershipJoin && m != room.MembershipInvite && rm.JoinRule() != "public" {
		key := string(user)
		_, err := a.Rooms.Send(ctx, rm.ID(), room.Draft{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`), Sender: giver})
		return err
	}
	return nil
}

// withUserLevel is the content of m.room.power_levels with one user's level changed. Where creators stand above all levels
// (room version 12) the highest level that can be written is 100 or the greatest there is.
func withUserLevel(ctx context.Context, rm *room.Room, user id.UserID, level int64) (jsontext.Value, error) {
	e, err := rm.StateEvent(ctx, "m.room.power_levels", "")
	if err != nil {
		return nil, err
	}
	current := []byte(`{}`)
	if e != nil {
		current = e.PDU.Content()
	}
	if rm.Version().PrivilegedCreators {
		level = 100
		gjson.GetBytes(current, "users").ForEach(func(_, v gjson.Result) bool {
			level = max(level, v.Int())
			return true
		})
	}
	return setUserLevel(current, string(user), level)
}

// join handles POST /_synapse/admin/v1/join/{roomId}: brings a local user into a room.
func (a *API) join(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadJSON[struct {
		UserID id.UserID `json:"user_id"`
	}](r)
	if err != nil {
		return err
	}
	if req.UserID == "" {
		return mxerr.MissingParam("'user_id' is required")
	}
	if !a.local(req.UserID) {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "only users of this server can be brought into rooms")
	}
	if _, err := a.Accounts.User(ctx, req.UserID); err != nil {
		return err
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.joined", string(rm.ID()), map[string]any{"user": req.UserID}); err != nil {
		return err
	}
	if rm.Membership(req.UserID) != room.MembershipJoin {
		if err := a.bringIn(ctx, rm, req.UserID, web.Requester(r).UserID); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, map[string]id.RoomID{"room_id": rm.ID()})
}

// bringIn invites where that is needed, as the administrator if in the room, and joins.
func (a *API) bringIn(ctx context.Context, rm *room.Room, user, admin id.UserID) error {
	p, err := a.Profiles.Get(ctx, user)
	if err != nil {
		return err
	}
	member, err := memberContent("join", p)
	if err != nil {
		return err
	}
	key := string(user)
	join := room.Draft{Type: "m.room.member", StateKey: &key, Content: member, Sender: user}
	if rm.JoinRule() == "public" || rm.Membership(user) == room.MembershipInvite {
		_, err := a.Rooms.Send(ctx, rm.ID(), join)
		return err
	}
	inviter := admin
	if rm.Membership(admin) != room.MembershipJoin {
		if inviter, _ = a.strongest(rm); inviter == "" {
			return mxerr.Forbidden("this room is not public, and nobody in it can invite")
		}
	}
	invite := room.Draft{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`), Sender: inviter}
	_, err = a.Rooms.SendAll(ctx, rm.ID(), []room.Draft{invite, join})
	return err
}

// fetchEvent handles GET /_synapse/admin/v1/fetch_event/{eventId}.
func (a *API) fetchEvent(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	e, err := a.Rooms.EventByID(ctx, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	if e == nil {
		return mxerr.NotFound("this server has no such event")
	}
	rm, err := a.Rooms.RoomByNID(ctx, e.Room)
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.room.read", string(rm.ID()), map[string]any{"event_id": e.ID()}); err != nil {
		return err
	}
	out, err := a.Rooms.AppendEvent(ctx, []byte(`{"event":`), rm, e, a.reader(r))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, append(out, '}'))
}
