package clientapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/web"
)

// createRoomRoutes are the endpoints that make rooms.
// Spec: client-server API, "Creation", "Room Upgrades".
func (a *API) createRoomRoutes() []web.Route {
	return []web.Route{
		{Pattern: "POST /_matrix/client/v3/createRoom", Auth: web.NoGuest, Rate: web.RateCreate, Handler: a.createRoom},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/upgrade", Auth: web.NoGuest, Rate: web.RateCreate, Handler: a.upgradeRoom},
	}
}

// object is a JSON object whose members are kept as they came.
type object map[string]jsontext.Value

type createRoomRequest struct {
	Visibility      string           `json:"visibility"`
	AliasName       *string          `json:"room_alias_name"`
	Name            *string          `json:"name"`
	Topic           *string          `json:"topic"`
	Invite          []id.UserID      `json:"invite"`
	Invite3PID      []jsontext.Value `json:"invite_3pid"`
	Version         *string          `json:"room_version"`
	CreationContent object           `json:"creation_content"`
	InitialState    []initialState   `json:"initial_state"`
	Preset          string           `json:"preset"`
	IsDirect        bool             `json:"is_direct"`
	PowerLevels     object           `json:"power_level_content_override"`
}

type initialState struct {
	Type     *string        `json:"type"`
	StateKey string         `json:"state_key"`
	Content  jsontext.Value `json:"content"`
}

// preset is what a preset does to a new room.
// Spec: client-server API, POST /createRoom, the table of presets.
type preset struct {
	joinRule, guestAccess string
	trusted               bool  // the invited are the creator's equals
	inviteLevel           int64 // who may invite; not in the table
}

func presetNamed(name string) (preset, bool) {
	switch name {
	case "private_chat":
		return preset{joinRule: "invite", guestAccess: "can_join"}, true
	case "trusted_private_chat":
		return preset{joinRule: "invite", guestAccess: "can_join", trusted: true}, true
	case "public_chat":
		return preset{joinRule: "public", guestAccess: "forbidden", inviteLevel: 50}, true
	}
	return preset{}, false
}

// newRoom is a room that is about to be made.
type newRoom struct {
	req     createRoomRequest
	creator id.UserID
	service string // the application service that makes it, "" for none
	version *event.Version
	preset  preset
	alias   string // whole, "" for none
	drafts  []room.Draft
}

// createRoom handles POST /createRoom.
func (a *API) createRoom(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[createRoomRequest](r)
	if err != nil {
		return err
	}
	n := &newRoom{req: req, creator: web.Requester(r).UserID, service: web.Requester(r).AppService}
	if err := a.checkNewRoom(r.Context(), n); err != nil {
		return err
	}
	create, err := n.createContent()
	if err != nil {
		return err
	}
	if err := a.draftRoom(r.Context(), n); err != nil {
		return err
	}
	meta := room.RoomMeta{Published: req.Visibility == "public", Preset: n.req.Preset}
	if n.alias != "" {
		meta.Aliases = []id.RoomAlias{id.RoomAlias(n.alias)}
	}
	roomID, err := a.Rooms.CreateRoom(r.Context(), n.version, n.creator, create, n.drafts, meta)
	if err != nil {
		return invalidRoomState(err)
	}
	return web.WriteJSON(w, roomIDResponse{roomID})
}

// invalidRoomState turns a refusal by the authorisation rules into what it means for a room that was never made.
// Spec: client-server API, POST /createRoom, 400.
func invalidRoomState(err error) error {
	if e := mxerr.As(err); e != nil && e.Code == "M_FORBIDDEN" {
		return mxerr.New(http.StatusBadRequest, "M_INVALID_ROOM_STATE", "the room cannot begin like this: "+e.Message)
	}
	return err
}

// checkNewRoom checks a request, fills in what it implies, and refuses invitations that cannot be made before anything
// is made.
func (a *API) checkNewRoom(ctx context.Context, n *newRoom) error {
	req := &n.req
	switch req.Visibility {
	case "", "private", "public":
	default:
		return mxerr.BadJSON("'visibility' must be public or private")
	}
	if req.Preset == "" {
		req.Preset = "private_chat"
		if req.Visibility == "public" {
			req.Preset = "public_chat"
		}
	}
	var ok bool
	if n.preset, ok = presetNamed(req.Preset); !ok {
		return mxerr.BadJSON("'preset' must be private_chat, public_chat or trusted_private_chat")
	}
	version := event.DefaultVersion
	if req.Version != nil {
		version = *req.Version
	}
	var err error
	if n.version, err = roomVersion(version); err != nil {
		return err
	}
	if req.AliasName != nil && *req.AliasName != "" {
		if n.alias, err = a.newAlias(*req.AliasName); err == nil {
			err = a.aliasAllowed(&web.Identity{AppService: n.service}, n.alias)
		}
		if err != nil {
			return err
		}
	}
	if len(req.Invite3PID) > 0 {
		return noIdentityServer()
	}
	if err := n.checkInitialState(); err != nil {
		return err
	}
	return a.checkInvites(ctx, n)
}

// roomVersion finds a room version that new rooms may have.
func roomVersion(name string) (*event.Version, error) {
	v, ok := event.LookupVersion(name)
	if !ok {
		return nil, mxerr.New(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "this server does not know the room version "+printable(name))
	}
	return v, nil
}

// newAlias makes a whole alias from its local part.
func (a *API) newAlias(localpart string) (string, error) {
	alias := "#" + localpart + ":" + a.ServerName
	if strings.ContainsAny(localpart, ":\x00") {
		return "", mxerr.InvalidParam("'room_alias_name' is the part of an alias before the colon, and may not hold one")
	}
	return alias, checkAlias(alias)
}

func (n *newRoom) checkInitialState() error {
	for i, s := range n.req.InitialState {
		switch {
		case s.Type == nil || *s.Type == "":
			return mxerr.BadJSON(fmt.Sprintf("'initial_state.%d.type' is missing", i))
		case s.Content.Kind() != '{':
			return mxerr.BadJSON(fmt.Sprintf("'initial_state.%d.content' must be an object", i))
		case *s.Type == "m.room.create":
			return mxerr.BadJSON("m.room.create belongs into 'creation_content', not into 'initial_state'")
		case *s.Type == typeMember:
			return mxerr.BadJSON("people are invited by 'invite', not by 'initial_state'")
		}
	}
	return nil
}

func (a *API) checkInvites(ctx context.Context, n *newRoom) error {
	seen := make(map[id.UserID]struct{}, len(n.req.Invite))
	n.req.Invite = slices.DeleteFunc(n.req.Invite, func(u id.UserID) bool {
		_, twice := seen[u]
		seen[u] = struct{}{}
		return twice
	})
	for _, u := range n.req.Invite {
		if !event.ValidUserID(u) {
			return mxerr.InvalidParam("'invite' holds " + printable(string(u)) + ", which is not a user id")
		}
		if u == n.creator {
			return mxerr.InvalidParam("'invite' holds yourself: who makes a room is in it")
		}
		if err := a.checkInvitee(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// createContent is the content of m.room.create.
func (n *newRoom) createContent() ([]byte, error) {
	content := make(object, len(n.req.CreationContent)+2)
	for key, value := range n.req.CreationContent {
		content[key] = value
	}
	for key, kind := range map[string]string{"type": `"`, "m.federate": "tf", "predecessor": "{"} {
		if value, ok := content[key]; ok && !strings.ContainsRune(kind, rune(value.Kind())) {
			return nil, mxerr.BadJSON("'creation_content." + key + "' is of the wrong type")
		}
	}
	delete(content, "creator")
	if !n.version.ImplicitCreator {
		content["creator"] = quoted(string(n.creator))
	}
	content["room_version"] = quoted(n.version.ID)
	if n.version.PrivilegedCreators {
		if err := n.additionalCreators(content); err != nil {
			return nil, err
		}
	}
	return json.Marshal(content, json.Deterministic(true))
}

// additionalCreators checks who shall have the creator's rights, and adds the invited of a trusted chat.
// Spec: client-server API, POST /createRoom, creation_content; room version 12, "Event format".
func (n *newRoom) additionalCreators(content object) error {
	var creators []id.UserID
	if value, ok := content["additional_creators"]; ok {
		if err := json.Unmarshal(value, &creators); err != nil {
			return mxerr.BadJSON("'creation_content.additional_creators' must be a list of user ids")
		}
	}
	if n.preset.trusted {
		creators = append(creators, n.req.Invite...)
	}
	unique := make([]id.UserID, 0, len(creators))
	for _, u := range creators {
		if !event.ValidUserID(u) {
			return mxerr.BadJSON("'creation_content.additional_creators' holds " + printable(string(u)) + ", which is not a user id")
		}
		if u != n.creator && !slices.Contains(unique, u) {
			unique = append(unique, u)
		}
	}
	delete(content, "additional_creators")
	if len(unique) > 0 {
		list, err := json.Marshal(unique)
		if err != nil {
			return err
		}
		content["additional_creators"] = list
	}
	return nil
}

// quoted is a string as JSON.
func quoted(s string) jsontext.Value { return event.AppendCanonicalString(nil, s) }

// draftRoom lists the events behind m.room.create in the order that the specification sets.
// Spec: client-server API, POST /createRoom.
func (a *API) draftRoom(ctx context.Context, n *newRoom) error {
	join, err := a.memberDraft(ctx, n.creator, n.creator, memberContent{Membership: "join"})
	if err != nil {
		return err
	}
	n.drafts = append(n.drafts, join)
	levels, err := n.powerLevels()
	if err != nil {
		return err
	}
	n.add("m.room.power_levels", "", levels)
	if n.alias != "" {
		n.add("m.room.canonical_alias", "", object{"alias": quoted(n.alias)})
	}
	n.addPreset("m.room.join_rules", "join_rule", n.preset.joinRule)
	n.addPreset("m.room.history_visibility", "history_visibility", "shared")
	n.addPreset("m.room.guest_access", "guest_access", n.preset.guestAccess)
	for _, s := range n.req.InitialState {
		n.addRaw(*s.Type, s.StateKey, s.Content)
	}
	if n.req.Name != nil {
		n.add("m.room.name", "", object{"name": quoted(*n.req.Name)})
	}
	if n.req.Topic != nil {
		n.add("m.room.topic", "", topicContent(*n.req.Topic))
	}
	for _, u := range n.req.Invite {
		d, err := a.memberDraft(ctx, n.creator, u, memberContent{Membership: "invite", IsDirect: n.req.IsDirect})
		if err != nil {
			return err
		}
		n.drafts = append(n.drafts, d)
	}
	return nil
}

// topicContent is a topic in its plain and its rich form.
// Spec: client-server API, m.room.topic; text/plain is the default of m.text.
func topicContent(topic string) object {
	return object{
		"topic":   quoted(topic),
		"m.topic": jsontext.Value(`{"m.text":[{"body":` + string(quoted(topic)) + `}]}`),
	}
}

func (n *newRoom) add(evType, stateKey string, content object) {
	// A map of strings to valid JSON always marshals.
	b, _ := json.Marshal(content, json.Deterministic(true))
	n.addRaw(evType, stateKey, b)
}

func (n *newRoom) addRaw(evType, stateKey string, content []byte) {
	n.drafts = append(n.drafts, room.Draft{Type: evType, StateKey: &stateKey, Content: content, Sender: n.creator})
}

// addPreset adds what a preset says, unless initial_state says otherwise.
func (n *newRoom) addPreset(evType, key, value string) {
	for _, s := range n.req.InitialState {
		if *s.Type == evType && s.StateKey == "" {
			return
		}
	}
	n.add(evType, "", object{key: quoted(value)})
}

// powerLevels is the content of the first m.room.power_levels.
func (n *newRoom) powerLevels() (object, error) {
	users := make(map[id.UserID]int64)
	if !n.version.PrivilegedCreators {
		users[n.creator] = 100
		if n.preset.trusted {
			for _, u := range n.req.Invite {
				users[u] = 100
			}
		}
	}
	stateDefault := int64(50)
	if v, ok := n.req.PowerLevels["state_default"]; ok {
		// What is no number is refused below.
		_ = json.Unmarshal(v, &stateDefault)
	}
	tombstone := int64(100)
	if n.version.PrivilegedCreators {
		tombstone = tombstoneLevel(stateDefault)
	}
	b, err := json.Marshal(map[string]any{
		"users": users, "users_default": 0,
		"events": map[string]int64{
			"m.room.avatar": 50, "m.room.canonical_alias": 50, "m.room.encryption": 100, "m.room.history_visibility": 100,
			"m.room.name": 50, "m.room.power_levels": 100, "m.room.server_acl": 100, "m.room.tombstone": tombstone,
		},
		"events_default": 0, "state_default": 50, "ban": 50, "kick": 50, "redact": 50,
		"invite": n.preset.inviteLevel, "historical": 100,
	})
	if err != nil {
		return nil, err
	}
	var content object
	if err := json.Unmarshal(b, &content); err != nil {
		return nil, err
	}
	for key, value := range n.req.PowerLevels {
		content[key] = value
	}
	return content, n.checkPowerLevels(content)
}

// tombstoneLevel is who may replace a room whose creators stand above all levels: more than may send state.
// Spec: client-server API, POST /createRoom, point 3.
func tombstoneLevel(stateDefault int64) int64 { return max(150, stateDefault+50) }

// checkPowerLevels refuses levels that no room of the version could have. Where the server chose the version, creators
// are taken out instead.
func (n *newRoom) checkPowerLevels(content object) error {
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	if _, err := n.version.ParsePowerLevels(b); err != nil {
		return mxerr.BadJSON("'power_level_content_override' is not of the form of m.room.power_levels: " + message(err))
	}
	if !n.version.PrivilegedCreators {
		return nil
	}
	var creators []id.UserID
	if value, ok := n.req.CreationContent["additional_creators"]; ok {
		_ = json.Unmarshal(value, &creators) // checked before
	}
	if n.preset.trusted {
		creators = append(creators, n.req.Invite...)
	}
	var users map[id.UserID]jsontext.Value
	if err := json.Unmarshal(content["users"], &users); err != nil {
		return mxerr.BadJSON("'power_level_content_override.users' must be an object")
	}
	for _, u := range append(creators, n.creator) {
		if _, listed := users[u]; !listed {
			continue
		}
		if n.req.Version != nil {
			return mxerr.BadJSON(string(u) + " creates the room and stands above all power levels in room version " + n.version.ID +
				": 'power_level_content_override.users' may not list creators")
		}
		// Who leaves the version to the server cannot know that it has creators above all levels: bots from before give
		// themselves 100, which they have anyway.
		delete(users, u)
		if content["users"], err = json.Marshal(users, json.Deterministic(true)); err != nil {
			return err
		}
	}
	return nil
}

// message is what an expected failure says to people.
func message(err error) string {
	if e := mxerr.As(err); e != nil {
		return e.Message
	}
	return err.Error()
}
