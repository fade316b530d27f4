package clientapi

import (
	"context"
	"fmt"
	"net/http"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// membershipRoutes are the endpoints that change who is in a room.
// Spec: client-server API, "Room membership".
func (a *API) membershipRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/joined_rooms", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.joinedRooms},
		{Pattern: "POST /_matrix/client/v3/join/{roomIdOrAlias}", Auth: web.User, Rate: web.RateJoin, Handler: a.joinByAlias},
		{Pattern: "POST /_matrix/client/v3/knock/{roomIdOrAlias}", Auth: web.NoGuest, Rate: web.RateJoin, Handler: a.knock},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/join", Auth: web.User, Rate: web.RateJoin, Handler: a.joinByID},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/invite", Auth: web.NoGuest, Rate: web.RateInvite, Handler: a.invite},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/leave", Auth: web.User, AllowSuspended: true, Rate: web.RateJoin, Handler: a.leave},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/forget", Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateJoin, Handler: a.forget},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/kick", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.kick},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/ban", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.ban},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/unban", Auth: web.NoGuest, Rate: web.RateSend, Handler: a.unban},
	}
}

const typeMember = "m.room.member"

// memberContent is the content of an m.room.member event.
type memberContent struct {
	AvatarURL        string            `json:"avatar_url,omitzero"`
	Displayname      string            `json:"displayname,omitzero"`
	IsDirect         bool              `json:"is_direct,omitzero"`
	AuthorisedVia    id.UserID         `json:"join_authorised_via_users_server,omitzero"`
	Membership       string            `json:"membership"`
	Reason           string            `json:"reason,omitzero"`
	ThirdPartyInvite *thirdPartyInvite `json:"third_party_invite,omitzero"`
}

type thirdPartyInvite struct {
	DisplayName string           `json:"display_name"`
	Signed      thirdPartySigned `json:"signed"`
}

// thirdPartySigned proves that a user owns the address that was invited.
type thirdPartySigned struct {
	Sender     id.UserID      `json:"sender,omitzero"`
	MXID       id.UserID      `json:"mxid"`
	Token      string         `json:"token"`
	Signatures jsontext.Value `json:"signatures"`
}

// memberDraft is a membership event that carries the target's profile. Only what the target does, or is offered, shows
// it: the profile of someone who was kicked or banned is not copied once more.
func (a *API) memberDraft(ctx context.Context, sender, target id.UserID, content memberContent) (room.Draft, error) {
	if content.Membership != "leave" && content.Membership != "ban" && a.localName(string(target)) {
		var profile store.Profile
		err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			profile, err = tx.Profile(target)
			return err
		})
		if err != nil {
			return room.Draft{}, fmt.Errorf("profile of %s: %w", target, err)
		}
		if profile.DisplayName != nil {
			content.Displayname = *profile.DisplayName
		}
		if profile.AvatarURL != nil {
			content.AvatarURL = *profile.AvatarURL
		}
	}
	b, err := json.Marshal(content)
	if err != nil {
		return room.Draft{}, err
	}
	key := string(target)
	return room.Draft{Type: typeMember, StateKey: &key, Content: b, Sender: sender}, nil
}

// sendMember sends a membership event.
func (a *API) sendMember(ctx context.Context, r *room.Room, who *web.Identity, target id.UserID, content memberContent) error {
	d, err := a.memberDraft(ctx, who.UserID, target, content)
	if err != nil {
		return err
	}
	d.Device = who.DeviceID
	_, err = a.Rooms.Send(ctx, r.ID(), d)
	return err
}

type joinRequest struct {
	Reason           string            `json:"reason"`
	ThirdPartySigned *thirdPartySigned `json:"third_party_signed"`
	// Further members of the body go into the member event, as clients are used to from other servers.
	Further object `json:",embed"`
}

// withFurther adds members to the content of a member event. What the server itself writes there stands.
func withFurther(content []byte, further object) ([]byte, error) {
	if len(further) == 0 {
		return content, nil
	}
	var out object
	if err := json.Unmarshal(content, &out); err != nil {
		return nil, err
	}
	for key, value := range further {
		switch key {
		case "avatar_url", "displayname", "is_direct", "join_authorised_via_users_server", "membership", "third_party_invite":
		default:
			out[key] = value
		}
	}
	return json.Marshal(out, json.Deterministic(true))
}

type roomIDResponse struct {
	RoomID id.RoomID `json:"room_id"`
}

// joinByID handles POST /rooms/{roomId}/join.
func (a *API) joinByID(w http.ResponseWriter, r *http.Request) error {
	roomID := web.PathParam(r, "roomId")
	if len(roomID) == 0 || roomID[0] != '!' {
		return mxerr.InvalidParam("this endpoint takes a room id, which begins with !; for aliases there is /join/{roomIdOrAlias}")
	}
	return a.joinRoom(w, r, roomID)
}

// joinByAlias handles POST /join/{roomIdOrAlias}. The parameter via, and server_name as it was called before, name
// servers to join through; a room that is here needs none.
func (a *API) joinByAlias(w http.ResponseWriter, r *http.Request) error {
	return a.joinRoom(w, r, web.PathParam(r, "roomIdOrAlias"))
}

func (a *API) joinRoom(w http.ResponseWriter, r *http.Request, roomIDOrAlias string) error {
	req, err := web.ReadOptionalJSON[joinRequest](r)
	if err != nil {
		return err
	}
	rm, err := a.resolve(r.Context(), roomIDOrAlias)
	if err != nil {
		return err
	}
	if err := a.join(r.Context(), rm, web.Requester(r), req); err != nil {
		return err
	}
	return web.WriteJSON(w, roomIDResponse{rm.ID()})
}

// join makes a user a member. Who is one already stays one.
func (a *API) join(ctx context.Context, rm *room.Room, who *web.Identity, req joinRequest) error {
	if rm.Membership(who.UserID) == room.MembershipJoin {
		return nil
	}
	if err := a.checkJoin(rm, who); err != nil {
		return err
	}
	var drafts []room.Draft
	invited, err := a.invitedTo(ctx, rm, who.UserID)
	if err != nil {
		return err
	}
	if req.ThirdPartySigned != nil && !invited {
		d, err := a.exchangeInvite(ctx, who, req.ThirdPartySigned)
		if err != nil {
			return err
		}
		drafts = append(drafts, d)
		invited = true
	}
	content := memberContent{Membership: "join", Reason: req.Reason}
	if !invited {
		if content.AuthorisedVia, err = a.authoriseJoin(ctx, rm, who.UserID); err != nil {
			return err
		}
	}
	d, err := a.memberDraft(ctx, who.UserID, who.UserID, content)
	if err != nil {
		return err
	}
	d.Device = who.DeviceID
	if d.Content, err = withFurther(d.Content, req.Further); err != nil {
		return err
	}
	if _, err := a.Rooms.SendAll(ctx, rm.ID(), append(drafts, d)); err != nil {
		return err
	}
	a.afterJoin(ctx, rm, who.UserID)
	return nil
}

// invitedTo tells whether a user has an invitation. Only restricted rooms, which may let in the others too, ask twice;
// elsewhere the authorisation rules do.
func (a *API) invitedTo(ctx context.Context, rm *room.Room, user id.UserID) (bool, error) {
	invited := func() bool { return rm.Membership(user) == room.MembershipInvite }
	if !restricted(rm) {
		return invited(), nil
	}
	return a.fresh(ctx, invited)
}

// checkJoin refuses guests where the room does not want them.
// Spec: client-server API, "Guest Access", server behaviour.
func (a *API) checkJoin(rm *room.Room, who *web.Identity) error {
	if who.Guest && !rm.GuestsMayJoin() {
		return mxerr.New(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "this room does not let guests in")
	}
	return nil
}

// afterJoin does what is not part of the join itself and so cannot make it fail.
func (a *API) afterJoin(ctx context.Context, rm *room.Room, user id.UserID) {
	if err := a.takeSettings(ctx, rm, user); err != nil {
		a.Logger.Error("settings were not carried over to an upgraded room", "room_id", rm.ID(), "user_id", user, "error", err)
	}
}

// takeSettings carries a user's settings over where the room replaces one that the user was in.
// Spec: client-server API, "Room Upgrades", server behaviour, the last paragraph.
func (a *API) takeSettings(ctx context.Context, rm *room.Room, user id.UserID) error {
	create, err := rm.StateEvent(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return err
	}
	old := gjson.GetBytes(create.PDU.Content(), "predecessor.room_id").Str
	if old == "" {
		return nil
	}
	before, err := a.Rooms.Room(ctx, id.RoomID(old))
	if err != nil {
		if mxerr.Is(err, "M_NOT_FOUND") {
			return nil
		}
		return err
	}
	// Anyone may claim a predecessor; the old room must name this one as its replacement.
	tombstone, err := before.StateEvent(ctx, "m.room.tombstone", "")
	if err != nil || tombstone == nil || gjson.GetBytes(tombstone.PDU.Content(), "replacement_room").Str != string(rm.ID()) {
		return err
	}
	if before.Membership(user) == room.MembershipNone {
		return nil
	}
	return a.copySettings(ctx, user, before, rm)
}

// exchangeInvite turns the proof that a user owns an invited address into an invitation, which the inviter sends.
// Spec: client-server API, "Third-party invites".
func (a *API) exchangeInvite(ctx context.Context, who *web.Identity, signed *thirdPartySigned) (room.Draft, error) {
	if signed.MXID != who.UserID {
		return room.Draft{}, mxerr.Forbidden("the third-party invitation is for someone else")
	}
	if !a.localName(string(signed.Sender)) || !event.ValidUserID(signed.Sender) {
		return room.Draft{}, mxerr.Forbidden("the third-party invitation was made on another server, and this one does not talk to others")
	}
	if signed.Signatures.Kind() != '{' {
		return room.Draft{}, mxerr.BadJSON("'third_party_signed.signatures' must be an object")
	}
	proof := *signed
	proof.Sender = "" // it is not part of what was signed
	return a.memberDraft(ctx, signed.Sender, who.UserID, memberContent{
		Membership:       "invite",
		ThirdPartyInvite: &thirdPartyInvite{DisplayName: string(who.UserID), Signed: proof},
	})
}

// authoriseJoin finds the member who vouches for a join into a restricted room; "" where the room needs none.
// Spec: client-server API, "Restricted rooms"; room version 8, "Restricted rooms".
func (a *API) authoriseJoin(ctx context.Context, rm *room.Room, user id.UserID) (id.UserID, error) {
	if !restricted(rm) {
		return "", nil
	}
	rules, err := rm.StateEvent(ctx, "m.room.join_rules", "")
	if err != nil || rules == nil {
		return "", err
	}
	allowed, err := a.inAllowedRoom(ctx, rules, user)
	if err != nil {
		return "", err
	}
	if !allowed {
		return "", mxerr.Forbidden("this room is for the members of certain rooms or for the invited, and you are neither")
	}
	voucher := a.voucher(ctx, rm)
	if voucher == "" {
		return "", mxerr.Forbidden("no member of this room who is on this server may invite, so nobody can vouch for you")
	}
	return voucher, nil
}

// restricted tells whether members of other rooms may join this one.
func restricted(rm *room.Room) bool {
	v := rm.Version()
	switch rm.JoinRule() {
	case "restricted":
		return v.Restricted
	case "knock_restricted":
		return v.KnockRestricted
	}
	return false
}

// inAllowedRoom tells whether a user is in one of the rooms whose members a join rule lets in.
func (a *API) inAllowedRoom(ctx context.Context, rules *room.Event, user id.UserID) (bool, error) {
	for _, allowed := range allowedRooms(rules.PDU.Content()) {
		other, err := a.Rooms.Room(ctx, allowed)
		if mxerr.Is(err, "M_NOT_FOUND") {
			continue
		}
		if err != nil {
			return false, err
		}
		in, err := a.fresh(ctx, func() bool { return other.Membership(user) == room.MembershipJoin })
		if err != nil || in {
			return in, err
		}
	}
	return false, nil
}

// allowedRooms reads the rooms out of the conditions of a join rule.
func allowedRooms(joinRules []byte) []id.RoomID {
	var out []id.RoomID
	allow := gjson.GetBytes(joinRules, "allow")
	if !allow.IsArray() {
		return nil
	}
	allow.ForEach(func(_, rule gjson.Result) bool {
		if r := rule.Get("room_id"); rule.Get("type").Str == "m.room_membership" && r.Type == gjson.String {
			out = append(out, id.RoomID(r.Str))
		}
		return true
	})
	return out
}

// voucher finds a member of this server who may invite. The creators and those with levels of their own are tried first,
// so that the cost does not grow with the room.
func (a *API) voucher(ctx context.Context, rm *room.Room) id.UserID {
	levels := rm.PowerLevels()
	fits := func(u id.UserID) bool {
		return a.localName(string(u)) && rm.Membership(u) == room.MembershipJoin && levels.User(u) >= levels.Invite()
	}
	auth := rm.AuthState(ctx)
	if create := auth.Get("m.room.create", ""); create != nil {
		for _, u := range create.Creators() {
			if fits(u) {
				return u
			}
		}
	}
	var found id.UserID
	if pl := auth.Get("m.room.power_levels", ""); pl != nil {
		gjson.GetBytes(pl.Content(), "users").ForEach(func(key, _ gjson.Result) bool {
			if u := id.UserID(key.String()); fits(u) {
				found = u
			}
			return found == ""
		})
	}
	if found != "" || levels.UsersDefault() < levels.Invite() {
		return found
	}
	for _, u := range rm.Joined() {
		if fits(u) {
			return u
		}
	}
	return ""
}

type reasonRequest struct {
	Reason string `json:"reason"`
}

// knock handles POST /knock/{roomIdOrAlias}. Asking again is asking once.
func (a *API) knock(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[reasonRequest](r)
	if err != nil {
		return err
	}
	rm, err := a.resolve(r.Context(), web.PathParam(r, "roomIdOrAlias"))
	if err != nil {
		return err
	}
	who := web.Requester(r)
	if rm.Membership(who.UserID) != room.MembershipKnock {
		err := a.sendMember(r.Context(), rm, who, who.UserID, memberContent{Membership: "knock", Reason: req.Reason})
		if err != nil {
			return err
		}
	}
	return web.WriteJSON(w, roomIDResponse{rm.ID()})
}

// leave handles POST /rooms/{roomId}/leave; it also turns an invitation down and takes a knock back. Who has left
// already stays away.
func (a *API) leave(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[reasonRequest](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	rm, err := a.Rooms.Room(r.Context(), id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return hideRoom(err)
	}
	in, err := a.fresh(r.Context(), func() bool {
		m := rm.Membership(who.UserID)
		return m != room.MembershipLeave && m != room.MembershipNone
	})
	switch {
	case err != nil:
		return err
	case !in && rm.Membership(who.UserID) == room.MembershipLeave:
		return web.WriteJSON(w, struct{}{})
	case !in:
		return notInRoom()
	}
	if err := a.checkLeave(r.Context(), rm, who.UserID); err != nil {
		return err
	}
	if err := a.sendMember(r.Context(), rm, who, who.UserID, memberContent{Membership: "leave", Reason: req.Reason}); err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// checkLeave refuses to turn down the invitation to the room of the server's notices; who has joined it may leave.
// Spec: client-server API, "Server Notices", client behaviour.
func (a *API) checkLeave(ctx context.Context, rm *room.Room, user id.UserID) error {
	if rm.Membership(user) != room.MembershipInvite {
		return nil
	}
	var notices bool
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		notices, err = tx.IsNoticeRoom(user, rm.ID())
		return err
	})
	if err == nil && notices {
		err = mxerr.New(http.StatusForbidden, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "this is where the server tells you things: its invitation cannot be turned down")
	}
	return err
}

type targetRequest struct {
	UserID id.UserID `json:"user_id"`
	Reason string    `json:"reason"`
}

type inviteRequest struct {
	UserID   id.UserID `json:"user_id"`
	Reason   string    `json:"reason"`
	IDServer *string   `json:"id_server"`
	Medium   *string   `json:"medium"`
	Address  *string   `json:"address"`
}

// checkTarget checks the user id of a request about someone else.
func checkTarget(u id.UserID) error {
	if u == "" {
		return mxerr.MissingParam("'user_id' is missing")
	}
	if !event.ValidUserID(u) {
		return mxerr.InvalidParam(printable(string(u)) + " is not a user id")
	}
	return nil
}

// noIdentityServer is the answer to invitations by e-mail address or telephone number: who owns those is known to
// identity servers, and this server works with none.
func noIdentityServer() error {
	return mxerr.New(http.StatusBadRequest, "M_SERVER_NOT_TRUSTED",
		"this server works without identity servers: people are invited by their Matrix user id")
}

// invite handles POST /rooms/{roomId}/invite in both of its forms.
func (a *API) invite(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[inviteRequest](r)
	if err != nil {
		return err
	}
	if req.UserID == "" && (req.IDServer != nil || req.Medium != nil || req.Address != nil) {
		return noIdentityServer()
	}
	if err := checkTarget(req.UserID); err != nil {
		return err
	}
	who := web.Requester(r)
	rm, err := a.memberOf(r.Context(), id.RoomID(web.PathParam(r, "roomId")), who.UserID)
	if err != nil {
		return err
	}
	if err := a.checkInvitee(r.Context(), req.UserID); err != nil {
		return err
	}
	d, err := a.memberDraft(r.Context(), who.UserID, req.UserID, memberContent{Membership: "invite", Reason: req.Reason})
	if err != nil {
		return err
	}
	if rm.Membership(req.UserID) == room.MembershipInvite {
		// Inviting twice is fine for whoever may invite, and sends nothing.
		err = rm.Version().CheckProto(&event.Proto{
			RoomID: rm.ID(), Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
		}, rm.AuthState(r.Context()))
	} else {
		d.Device = who.DeviceID
		_, err = a.Rooms.Send(r.Context(), rm.ID(), d)
	}
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// checkInvitee refuses to invite those who cannot or will not be invited.
// Spec: client-server API, "Invite permission".
func (a *API) checkInvitee(ctx context.Context, user id.UserID) error {
	if !a.localName(string(user)) {
		return mxerr.Forbidden("this server does not talk to other servers, so " + printable(string(user)) + " cannot be invited")
	}
	if known, err := a.Accounts.Exists(ctx, user); err != nil {
		return err
	} else if !known {
		a.queriedUser(ctx, user) // whether a service made the user or not: anybody can be invited
	}
	config, err := a.Data.AccountData(ctx, user, "", "m.invite_permission_config")
	if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	if gjson.GetBytes(config, "default_action").Str == "block" {
		return mxerr.New(http.StatusForbidden, "M_INVITE_BLOCKED", string(user)+" does not accept invitations")
	}
	return nil
}

// target reads a request about someone else and finds the room, which the requester must be in.
func (a *API) target(r *http.Request) (targetRequest, *room.Room, error) {
	req, err := web.ReadJSON[targetRequest](r)
	if err != nil {
		return req, nil, err
	}
	if err := checkTarget(req.UserID); err != nil {
		return req, nil, err
	}
	rm, err := a.memberOf(r.Context(), id.RoomID(web.PathParam(r, "roomId")), web.Requester(r).UserID)
	return req, rm, err
}

// kick handles POST /rooms/{roomId}/kick. It also takes an invitation or a knock back.
func (a *API) kick(w http.ResponseWriter, r *http.Request) error {
	req, rm, err := a.target(r)
	if err != nil {
		return err
	}
	in, err := a.fresh(r.Context(), func() bool {
		m := rm.Membership(req.UserID)
		return m == room.MembershipJoin || m == room.MembershipInvite || m == room.MembershipKnock
	})
	if err != nil {
		return err
	}
	if !in {
		return mxerr.Forbidden(string(req.UserID) + " is not in this room")
	}
	return a.changeMember(w, r, rm, req, "leave")
}

// ban handles POST /rooms/{roomId}/ban.
func (a *API) ban(w http.ResponseWriter, r *http.Request) error {
	req, rm, err := a.target(r)
	if err != nil {
		return err
	}
	return a.changeMember(w, r, rm, req, "ban")
}

// unban handles POST /rooms/{roomId}/unban.
func (a *API) unban(w http.ResponseWriter, r *http.Request) error {
	req, rm, err := a.target(r)
	if err != nil {
		return err
	}
	banned, err := a.fresh(r.Context(), func() bool { return rm.Membership(req.UserID) == room.MembershipBan })
	if err != nil {
		return err
	}
	if !banned {
		return mxerr.New(http.StatusForbidden, "M_BAD_STATE", string(req.UserID)+" is not banned from this room")
	}
	return a.changeMember(w, r, rm, req, "leave")
}

func (a *API) changeMember(w http.ResponseWriter, r *http.Request, rm *room.Room, req targetRequest, membership string) error {
	err := a.sendMember(r.Context(), rm, web.Requester(r), req.UserID, memberContent{Membership: membership, Reason: req.Reason})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// forget handles POST /rooms/{roomId}/forget.
func (a *API) forget(w http.ResponseWriter, r *http.Request) error {
	err := a.Rooms.Forget(r.Context(), id.RoomID(web.PathParam(r, "roomId")), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// joinedRooms handles GET /joined_rooms.
func (a *API) joinedRooms(w http.ResponseWriter, r *http.Request) error {
	u, err := a.Rooms.User(r.Context(), web.Requester(r).UserID)
	if err != nil {
		return err
	}
	out := struct {
		Rooms []id.RoomID `json:"joined_rooms"`
	}{[]id.RoomID{}}
	u.EachRoom(func(ur *room.UserRoom) {
		if ur.Membership == room.MembershipJoin {
			out.Rooms = append(out.Rooms, ur.Room.ID())
		}
	})
	return web.WriteJSON(w, out)
}
