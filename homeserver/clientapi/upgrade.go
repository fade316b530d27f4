package clientapi

import (
	"context"
	"net/http"
	"slices"

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

type upgradeRequest struct {
	Version            *string     `json:"new_version"`
	AdditionalCreators []id.UserID `json:"additional_creators"`
}

// upgrade is a room on its way to another version.
type upgrade struct {
	old  *room.Room
	who  *web.Identity
	req  upgradeRequest
	next newRoom
	temp bool // the creator holds more power than in the old room while the new one is furnished
}

// carriedTypes lists the state that the new room begins with, beside power levels.
// Spec: client-server API, "Room Upgrades", server behaviour, point 3.
func carriedTypes() []string {
	return []string{
		"m.room.join_rules", "m.room.history_visibility", "m.room.guest_access", "m.room.server_acl", "m.room.encryption",
		"m.room.name", "m.room.avatar", "m.room.topic", "m.room.canonical_alias",
	}
}

// upgradeRoom handles POST /rooms/{roomId}/upgrade.
func (a *API) upgradeRoom(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadJSON[upgradeRequest](r)
	if err != nil {
		return err
	}
	if req.Version == nil {
		return mxerr.MissingParam("'new_version' is missing")
	}
	u := &upgrade{who: web.Requester(r), req: req}
	if u.next.version, err = roomVersion(*req.Version); err != nil {
		return err
	}
	if u.old, err = a.memberOf(ctx, id.RoomID(web.PathParam(r, "roomId")), u.who.UserID); err != nil {
		return err
	}
	if err := u.checkTombstone(ctx); err != nil {
		return err
	}
	published, err := a.published(ctx, u.old)
	if err != nil {
		return err
	}
	replacement, err := a.begunUpgrade(ctx, u)
	if err != nil {
		return err
	}
	if replacement == "" {
		create, err := a.draftUpgrade(ctx, u)
		if err != nil {
			return err
		}
		if replacement, err = a.Rooms.CreateRoom(ctx, u.next.version, u.who.UserID, create, u.next.drafts, room.RoomMeta{}); err != nil {
			return invalidRoomState(err)
		}
	}
	if err := a.retire(ctx, u, replacement, published); err != nil {
		return err
	}
	return web.WriteJSON(w, struct {
		Replacement id.RoomID `json:"replacement_room"`
	}{replacement})
}

// begunUpgrade finds a replacement that an earlier request made before the server stopped: the user is alone there, and the old
// room does not know of it. "" where there is none.
func (a *API) begunUpgrade(ctx context.Context, u *upgrade) (id.RoomID, error) {
	user, err := a.Rooms.User(ctx, u.who.UserID)
	if err != nil {
		return "", err
	}
	var joined []int64
	user.EachRoom(func(r *room.UserRoom) {
		if r.Membership == room.MembershipJoin {
			joined = append(joined, r.Room.NID())
		}
	})
	var found []int64
	err = a.Store.ReadOne(ctx, func(tx *store.Tx) error {
		found = found[:0]
		return tx.CreateBodies(joined, func(nid int64, body []byte) {
			e := gjson.ParseBytes(body)
			if e.Get("content.predecessor.room_id").Str == string(u.old.ID()) && e.Get("sender").Str == string(u.who.UserID) &&
				e.Get("content.room_version").Str == u.next.version.ID {
				found = append(found, nid)
			}
		})
	})
	if err != nil || len(found) == 0 {
		return "", err
	}
	named := ""
	if e, err := u.old.StateEvent(ctx, "m.room.tombstone", ""); err != nil {
		return "", err
	} else if e != nil {
		named = gjson.GetBytes(e.PDU.Content(), "replacement_room").Str
	}
	for _, nid := range found {
		r, err := a.Rooms.RoomByNID(ctx, nid)
		if err != nil {
			return "", err
		}
		if string(r.ID()) != named && r.JoinedCount() == 1 && r.InvitedCount() == 0 {
			return r.ID(), nil
		}
	}
	return "", nil
}

// checkTombstone asks for the right to retire the old room before the new one is made.
func (u *upgrade) checkTombstone(ctx context.Context) error {
	return u.check(ctx, u.tombstone("!new:room"))
}

// check asks whether the old room lets an event in.
func (u *upgrade) check(ctx context.Context, d room.Draft) error {
	return u.old.Version().CheckProto(&event.Proto{
		RoomID: u.old.ID(), Sender: d.Sender, Type: d.Type, StateKey: d.StateKey, Content: d.Content,
	}, u.old.AuthState(ctx))
}

func (u *upgrade) tombstone(replacement id.RoomID) room.Draft {
	b, _ := json.Marshal(object{"body": quoted("This room has been replaced"), "replacement_room": quoted(string(replacement))}, json.Deterministic(true))
	return room.Draft{Type: "m.room.tombstone", StateKey: new(string), Content: b, Sender: u.who.UserID, Device: u.who.DeviceID}
}

// draftUpgrade lists the events of the new room and gives the content of its m.room.create.
func (a *API) draftUpgrade(ctx context.Context, u *upgrade) ([]byte, error) {
	n := &u.next
	n.creator = u.who.UserID
	create, err := u.createContent(ctx)
	if err != nil {
		return nil, err
	}
	join, err := a.memberDraft(ctx, n.creator, n.creator, memberContent{Membership: "join"})
	if err != nil {
		return nil, err
	}
	n.drafts = append(n.drafts, join)
	first, final, err := u.powerLevels(ctx)
	if err != nil {
		return nil, err
	}
	n.add("m.room.power_levels", "", first)
	for _, evType := range carriedTypes() {
		e, err := u.old.StateEvent(ctx, evType, "")
		if err != nil {
			return nil, err
		}
		if e != nil && len(e.PDU.Content()) > len(`{}`) {
			n.addRaw(evType, "", u.fitting(evType, e.PDU.Content()))
		}
	}
	if err := a.carryRest(ctx, u); err != nil {
		return nil, err
	}
	if u.temp {
		n.add("m.room.power_levels", "", final)
	}
	return create, nil
}

// fitting turns a join rule that the new version does not know into the closest one that it does.
func (u *upgrade) fitting(evType string, content []byte) []byte {
	if evType != "m.room.join_rules" {
		return content
	}
	v := u.next.version
	rule := gjson.GetBytes(content, "join_rule").Str
	if rule == "knock" && !v.Knock || rule == "restricted" && !v.Restricted || rule == "knock_restricted" && !v.KnockRestricted {
		return []byte(`{"join_rule":"invite"}`)
	}
	return content
}

// carryRest adds the children of a space, and the bans: who may not be in the old room may not come back through the
// new one.
func (a *API) carryRest(ctx context.Context, u *upgrade) error {
	n := &u.next
	if u.old.Type() == typeSpace {
		children, err := a.Rooms.EventsByNID(ctx, u.old.StateOfType(typeSpaceChild))
		if err != nil {
			return err
		}
		for _, e := range children {
			if key, _ := e.PDU.StateKey(); len(e.PDU.Content()) > len(`{}`) {
				n.addRaw(typeSpaceChild, key, e.PDU.Content())
			}
		}
	}
	banned := u.old.MembersBy(room.MembershipBan)
	slices.Sort(banned)
	for _, user := range banned {
		content := memberContent{Membership: "ban"}
		e, err := u.old.MemberEvent(ctx, user)
		if err != nil {
			return err
		}
		if e != nil {
			content.Reason = gjson.GetBytes(e.PDU.Content(), "reason").Str
		}
		d, err := a.memberDraft(ctx, n.creator, user, content)
		if err != nil {
			return err
		}
		n.drafts = append(n.drafts, d)
	}
	return nil
}

// createContent is the content of the new room's m.room.create.
// Spec: client-server API, "Room Upgrades", server behaviour, point 2 and its notes.
func (u *upgrade) createContent(ctx context.Context) ([]byte, error) {
	n := &u.next
	old, err := u.old.StateEvent(ctx, "m.room.create", "")
	if err != nil {
		return nil, err
	}
	content := object{}
	if old != nil {
		var before object
		if err := json.Unmarshal(old.PDU.Content(), &before); err != nil {
			return nil, err
		}
		for _, key := range []string{"type", "m.federate"} {
			if value, ok := before[key]; ok {
				content[key] = value
			}
		}
	}
	predecessor := object{"room_id": quoted(string(u.old.ID()))}
	if !n.version.RoomIDIsCreateHash {
		last, err := u.old.LastEventID(ctx)
		if err != nil {
			return nil, err
		}
		predecessor["event_id"] = quoted(string(last))
	}
	if content["predecessor"], err = json.Marshal(predecessor, json.Deterministic(true)); err != nil {
		return nil, err
	}
	if n.version.PrivilegedCreators && len(u.req.AdditionalCreators) > 0 {
		if content["additional_creators"], err = json.Marshal(u.req.AdditionalCreators); err != nil {
			return nil, err
		}
	}
	n.req.CreationContent = content
	return n.createContent()
}

// powerLevels gives the power levels with which the new room is furnished, and those it ends up with.
func (u *upgrade) powerLevels(ctx context.Context) (first, final object, err error) {
	n := &u.next
	final = object{}
	if e, err := u.old.StateEvent(ctx, "m.room.power_levels", ""); err != nil {
		return nil, nil, err
	} else if e != nil {
		if err := json.Unmarshal(e.PDU.Content(), &final); err != nil {
			return nil, nil, err
		}
	}
	var users map[id.UserID]jsontext.Value
	if value, ok := final["users"]; ok {
		if err := json.Unmarshal(value, &users); err != nil {
			return nil, nil, err
		}
	}
	if users == nil {
		users = make(map[id.UserID]jsontext.Value)
	}
	if n.version.PrivilegedCreators {
		// Creators stand above all levels and may not be listed.
		delete(users, n.creator)
		for _, creator := range u.req.AdditionalCreators {
			delete(users, creator)
		}
		if err := raiseTombstone(final); err != nil {
			return nil, nil, err
		}
		return final, final, setJSON(final, "users", users)
	}
	if err := u.formerCreators(ctx, users); err != nil {
		return nil, nil, err
	}
	if err := setJSON(final, "users", users); err != nil {
		return nil, nil, err
	}
	b, err := json.Marshal(final)
	if err != nil {
		return nil, nil, err
	}
	levels, err := n.version.ParsePowerLevels(b)
	if err != nil {
		return nil, nil, mxerr.New(http.StatusBadRequest, "M_INVALID_ROOM_STATE", "the power levels of the room do not fit the new version: "+message(err))
	}
	need := n.neededLevel(levels)
	if levels.User(n.creator) >= need {
		return final, final, nil
	}
	// While the room is furnished its creator needs more power than the user has; the last event takes it back.
	u.temp = true
	first = make(object, len(final))
	for key, value := range final {
		first[key] = value
	}
	users[n.creator], _ = json.Marshal(need)
	return first, final, setJSON(first, "users", users)
}

// formerCreators lists with 100 those who stood above all levels in the old room but cannot in the new one.
func (u *upgrade) formerCreators(ctx context.Context, users map[id.UserID]jsontext.Value) error {
	if !u.old.Version().PrivilegedCreators {
		return nil
	}
	create, err := u.old.StateEvent(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return err
	}
	for _, creator := range create.PDU.Creators() {
		users[creator] = jsontext.Value("100")
	}
	return nil
}

// neededLevel is the level that sends all of what a new room begins with.
func (n *newRoom) neededLevel(levels *event.PowerLevels) int64 {
	need := max(levels.StateDefault(), levels.Ban(), levels.Event("m.room.power_levels", true), levels.Event(typeSpaceChild, true))
	for _, evType := range carriedTypes() {
		need = max(need, levels.Event(evType, true))
	}
	return need
}

// raiseTombstone puts the level of m.room.tombstone above that of other state, as new rooms of the version have it.
func raiseTombstone(content object) error {
	var events map[string]jsontext.Value
	if value, ok := content["events"]; ok {
		if err := json.Unmarshal(value, &events); err != nil {
			return err
		}
	}
	if events == nil {
		events = make(map[string]jsontext.Value)
	}
	stateDefault := int64(50)
	if v, ok := content["state_default"]; ok {
		stateDefault = gjson.ParseBytes(v).Int()
	}
	if v, ok := events["m.room.tombstone"]; !ok || gjson.ParseBytes(v).Int() < tombstoneLevel(stateDefault) {
		b, err := json.Marshal(tombstoneLevel(stateDefault))
		if err != nil {
			return err
		}
		events["m.room.tombstone"] = b
	}
	return setJSON(content, "events", events)
}

func setJSON(content object, key string, value any) error {
	b, err := json.Marshal(value, json.Deterministic(true))
	if err == nil {
		content[key] = b
	}
	return err
}

// retire ends the old room, in one transaction: aliases and the place in the directory go to the new one, a tombstone points
// to it, and where possible nobody talks or invites any more.
// Spec: client-server API, "Room Upgrades", server behaviour, points 4 to 6.
func (a *API) retire(ctx context.Context, u *upgrade, replacement id.RoomID, published bool) error {
	next, err := a.Rooms.Room(ctx, replacement)
	if err != nil {
		return err
	}
	drafts := []room.Draft{u.tombstone(replacement)}
	for _, d := range u.lastDrafts(ctx) {
		if u.check(ctx, d) == nil { // Spec: "if possible"
			drafts = append(drafts, d)
		}
	}
	_, err = a.Rooms.SendWith(ctx, u.old.ID(), drafts, func(tx *store.Tx) error {
		if err := tx.MoveAliases(u.old.NID(), next.NID()); err != nil {
			return err
		}
		if published {
			if _, err := tx.SetRoomPublished(u.old.NID(), false); err != nil {
				return err
			}
			if _, err := tx.SetRoomPublished(next.NID(), true); err != nil {
				return err
			}
		}
		for _, nid := range []int64{u.old.NID(), next.NID()} {
			if _, err := tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: nid, Key: "aliases"}); err != nil {
				return err
			}
		}
		return nil
	})
	return err
}

// lastDrafts are the events that leave the old room without its aliases and quiet.
func (u *upgrade) lastDrafts(ctx context.Context) []room.Draft {
	var out []room.Draft
	draft := func(evType string, content []byte) {
		out = append(out, room.Draft{Type: evType, StateKey: new(string), Content: content, Sender: u.who.UserID, Device: u.who.DeviceID})
	}
	if e, err := u.old.StateEvent(ctx, "m.room.canonical_alias", ""); err == nil && e != nil && len(e.PDU.Content()) > len(`{}`) {
		draft("m.room.canonical_alias", []byte(`{}`))
	}
	e, err := u.old.StateEvent(ctx, "m.room.power_levels", "")
	if err != nil || e == nil {
		return out
	}
	var content object
	if json.Unmarshal(e.PDU.Content(), &content) != nil {
		return out
	}
	levels := u.old.PowerLevels()
	quiet := max(50, levels.UsersDefault()+1)
	if setJSON(content, "events_default", max(quiet, levels.EventsDefault())) == nil && setJSON(content, "invite", max(quiet, levels.Invite())) == nil {
		if b, err := json.Marshal(content, json.Deterministic(true)); err == nil {
			draft("m.room.power_levels", b)
		}
	}
	return out
}
