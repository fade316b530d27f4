package clientapi

import (
	"context"
	"net/http"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// summaryRoutes are the endpoints that describe rooms to those who are not in them.
// Spec: client-server API, "Room previews", "Spaces"; the unstable paths are those of MSC3266, which clients still ask.
func (a *API) summaryRoutes() []web.Route {
	const unstable = "/_matrix/client/unstable/im.nheko.summary"
	return []web.Route{
		{Pattern: "GET /_matrix/client/v1/room_summary/{roomIdOrAlias}", Auth: web.Optional, Rate: web.RateRead, Handler: a.roomSummary},
		{Pattern: "GET " + unstable + "/summary/{roomIdOrAlias}", Auth: web.Optional, Rate: web.RateRead, Handler: a.roomSummary},
		{Pattern: "GET " + unstable + "/rooms/{roomIdOrAlias}/summary", Auth: web.Optional, Rate: web.RateRead, Handler: a.roomSummary},
		{Pattern: "GET /_matrix/client/v1/rooms/{roomId}/hierarchy", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.hierarchy},
		{Pattern: "GET /_synapse/admin/v1/rooms/{roomId}/hierarchy", Auth: web.Admin, Rate: web.RateRead, Handler: a.adminHierarchy},
	}
}

// summary is what is told of a room in the directory, in a space and as a summary.
type summary struct {
	RoomID         id.RoomID       `json:"room_id"`
	Joined         int64           `json:"num_joined_members"`
	WorldReadable  bool            `json:"world_readable"`
	GuestCanJoin   bool            `json:"guest_can_join"`
	Name           string          `json:"name,omitzero"`
	Topic          string          `json:"topic,omitzero"`
	CanonicalAlias string          `json:"canonical_alias,omitzero"`
	AvatarURL      string          `json:"avatar_url,omitzero"`
	JoinRule       string          `json:"join_rule,omitzero"`
	RoomType       string          `json:"room_type,omitzero"`
	AllowedRooms   []id.RoomID     `json:"allowed_room_ids,omitzero"`
	Encryption     string          `json:"encryption,omitzero"`
	RoomVersion    string          `json:"room_version,omitzero"`
	Membership     string          `json:"membership,omitzero"`
	ChildrenState  *jsontext.Value `json:"children_state,omitzero"`
}

// summaryTypes lists the state events that a summary is made of.
func summaryTypes() []string {
	return []string{
		"m.room.create", "m.room.join_rules", "m.room.history_visibility", "m.room.guest_access", "m.room.name", "m.room.topic",
		"m.room.canonical_alias", "m.room.avatar", "m.room.encryption",
	}
}

// add reads one of these state events into the summary.
func (s *summary) add(evType string, content []byte) {
	text := func(path string) string {
		if v := gjson.GetBytes(content, path); v.Type == gjson.String {
			return v.Str
		}
		return ""
	}
	switch evType {
	case "m.room.create":
		s.RoomType = text("type")
		if s.RoomVersion = text("room_version"); s.RoomVersion == "" {
			s.RoomVersion = "1"
		}
	case "m.room.join_rules":
		s.JoinRule = text("join_rule")
		if strings.HasSuffix(s.JoinRule, "restricted") {
			s.AllowedRooms = allowedRooms(content)
		}
	case "m.room.history_visibility":
		s.WorldReadable = text("history_visibility") == "world_readable"
	case "m.room.guest_access":
		s.GuestCanJoin = text("guest_access") == "can_join"
	case "m.room.name":
		s.Name = text("name")
	case "m.room.topic":
		s.Topic = plainTopic(content)
	case "m.room.canonical_alias":
		if alias := text("alias"); strings.HasPrefix(alias, "#") {
			s.CanonicalAlias = alias
		}
	case "m.room.avatar":
		if url := text("url"); strings.HasPrefix(url, "mxc://") {
			s.AvatarURL = url
		}
	case "m.room.encryption":
		// The specification lists one algorithm; whatever else a room claims is not passed on.
		if text("algorithm") == "m.megolm.v1.aes-sha2" {
			s.Encryption = "m.megolm.v1.aes-sha2"
		}
	}
}

// plainTopic is a topic as plain text: the first text/plain of m.topic, or the plain topic where there is no m.topic.
// Spec: client-server API, GET /publicRooms, topic.
func plainTopic(content []byte) string {
	if texts := gjson.GetBytes(content, `m\.topic.m\.text`); texts.IsArray() {
		for _, t := range texts.Array() {
			if mime := t.Get("mimetype"); !mime.Exists() || mime.Str == "text/plain" {
				return t.Get("body").Str
			}
		}
		return ""
	}
	if v := gjson.GetBytes(content, "topic"); v.Type == gjson.String {
		return v.Str
	}
	return ""
}

// summarise describes a room that is in memory.
func summarise(ctx context.Context, rm *room.Room) (summary, error) {
	s := summary{RoomID: rm.ID(), Joined: int64(rm.JoinedCount()), JoinRule: "invite"}
	for _, evType := range summaryTypes() {
		e, err := rm.StateEvent(ctx, evType, "")
		if err != nil {
			return s, err
		}
		if e != nil {
			s.add(evType, e.PDU.Content())
		}
	}
	return s, nil
}

// describable tells whether a room may be described to somebody: to members and the invited, to those who may join or
// ask to, and to anyone if it is world-readable. user is "" for those who did not say who they are.
// Spec: client-server API, GET /rooms/{roomId}/hierarchy, rooms; GET /room_summary/{roomIdOrAlias}.
func (a *API) describable(ctx context.Context, rm *room.Room, user id.UserID) (bool, error) {
	if rm.HistoryVisibility() == "world_readable" {
		return true, nil
	}
	if user != "" {
		switch rm.Membership(user) {
		case room.MembershipJoin, room.MembershipInvite:
			return true, nil
		case room.MembershipBan:
			return false, nil
		}
	}
	v := rm.Version()
	switch rm.JoinRule() {
	case "public":
		return true, nil
	case "knock":
		return v.Knock, nil
	case "knock_restricted":
		return v.KnockRestricted, nil
	case "restricted":
		if user == "" || !v.Restricted {
			return false, nil
		}
		rules, err := rm.StateEvent(ctx, "m.room.join_rules", "")
		if err != nil || rules == nil {
			return false, err
		}
		return a.inAllowedRoom(ctx, rules, user)
	}
	return false, nil
}

// roomSummary handles GET /room_summary/{roomIdOrAlias}. The parameter via names servers to ask; a room that is here
// needs none.
func (a *API) roomSummary(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	rm, err := a.resolve(ctx, web.PathParam(r, "roomIdOrAlias"))
	if err != nil {
		return err
	}
	var user id.UserID
	if who := web.Requester(r); who != nil {
		user = who.UserID
	}
	ok, err := a.describable(ctx, rm, user)
	if err != nil {
		return err
	}
	if !ok {
		return mxerr.NotFound("there is no such room, or it shows itself to members only")
	}
	s, err := summarise(ctx, rm)
	if err != nil {
		return err
	}
	if user != "" {
		if s.Membership = rm.Membership(user).String(); s.Membership == "" {
			s.Membership = "leave"
		}
	}
	return web.WriteJSON(w, s)
}
