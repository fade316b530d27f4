package clientapi

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// aliasRoutes are the endpoints of room aliases.
// Spec: client-server API, "Room aliases".
func (a *API) aliasRoutes() []web.Route {
	const alias = "/_matrix/client/v3/directory/room/{roomAlias}"
	return []web.Route{
		{Pattern: "GET " + alias, Auth: web.Public, Rate: web.RateRead, Handler: a.getAlias},
		{Pattern: "PUT " + alias, Auth: web.NoGuest, Rate: web.RateSend, Handler: a.putAlias},
		{Pattern: "DELETE " + alias, Auth: web.NoGuest, Rate: web.RateSend, Handler: a.deleteAlias},
		{Pattern: "GET /_matrix/client/v3/rooms/{roomId}/aliases", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.roomAliases},
	}
}

// checkAlias refuses what is no room alias.
// Spec: appendices, "Room Aliases".
func checkAlias(alias string) error {
	const maxLength = 255
	local, server, ok := strings.Cut(alias, ":")
	switch {
	case !strings.HasPrefix(local, "#") || local == "#" || !ok || strings.IndexByte(alias, 0) >= 0 || !event.ValidServerName(server):
		return mxerr.InvalidParam(printable(alias) + " is not a room alias: those look like #name:server")
	case len(alias) > maxLength:
		return mxerr.InvalidParam("a room alias may have at most 255 bytes")
	}
	return nil
}

// getAlias handles GET /directory/room/{roomAlias}.
func (a *API) getAlias(w http.ResponseWriter, r *http.Request) error {
	alias := web.PathParam(r, "roomAlias")
	if err := checkAlias(alias); err != nil {
		return err
	}
	rm, err := a.resolve(r.Context(), alias)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct {
		RoomID  id.RoomID `json:"room_id"`
		Servers []string  `json:"servers"`
	}{rm.ID(), []string{a.ServerName}})
}

// putAlias handles PUT /directory/room/{roomAlias}. Members of a room may give it aliases of this server.
func (a *API) putAlias(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadJSON[struct {
		RoomID *id.RoomID `json:"room_id"`
	}](r)
	if err != nil {
		return err
	}
	alias := web.PathParam(r, "roomAlias")
	if err := checkAlias(alias); err != nil {
		return err
	}
	if !a.localName(alias) {
		return mxerr.InvalidParam("the alias must end in :" + a.ServerName + ", the name of this server")
	}
	if req.RoomID == nil {
		return mxerr.MissingParam("'room_id' is missing")
	}
	who := web.Requester(r)
	if err := a.aliasAllowed(who, alias); err != nil {
		return err
	}
	rm, err := a.memberOf(ctx, *req.RoomID, who.UserID)
	if who.AppService != "" && mxerr.Is(err, "M_FORBIDDEN") {
		// Services name rooms of users whom they act for, without being in them.
		rm, err = a.Rooms.Room(ctx, *req.RoomID)
	}
	if err != nil {
		return err
	}
	err = a.changeMeta(ctx, rm.NID(), "aliases", func(tx *store.Tx) (bool, error) {
		ok, err := tx.InsertAlias(store.Alias{Alias: alias, Room: rm.NID(), Creator: string(who.UserID), Created: time.Now().UnixMilli()})
		if err == nil && !ok {
			err = mxerr.New(http.StatusConflict, "M_UNKNOWN", "the room alias "+printable(alias)+" exists already")
		}
		return ok, err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// changeMeta changes what a room has beside its events, and announces it if it did change.
func (a *API) changeMeta(ctx context.Context, nid int64, key string, change func(tx *store.Tx) (bool, error)) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		changed, err := change(tx)
		if err != nil || !changed {
			return err
		}
		_, err = tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: nid, Key: key})
		return err
	})
}

// deleteAlias handles DELETE /directory/room/{roomAlias}: for whoever made the alias, for those who may set the room's
// aliases, and for administrators of the server.
func (a *API) deleteAlias(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	alias := web.PathParam(r, "roomAlias")
	if err := checkAlias(alias); err != nil {
		return err
	}
	nid, err := a.aliasRoom(ctx, alias)
	if err != nil {
		return err
	}
	rm, err := a.Rooms.RoomByNID(ctx, nid)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	if err := a.aliasAllowed(who, alias); err != nil && !who.Admin {
		return err
	}
	var found store.Alias
	err = a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		found, _, err = tx.AliasByName(alias)
		return err
	})
	if err != nil {
		return err
	}
	allowed, err := a.fresh(ctx, func() bool { return found.Creator == string(who.UserID) || who.Admin || mayCurate(rm, who.UserID) })
	if err != nil {
		return err
	}
	if !allowed {
		return mxerr.Forbidden("only who made the alias, and who may set the room's aliases, can delete it")
	}
	err = a.changeMeta(ctx, nid, "aliases", func(tx *store.Tx) (bool, error) { return tx.DeleteAlias(alias) })
	if err != nil {
		return err
	}
	if err := a.dropCanonicalAlias(ctx, rm, who, alias); err != nil {
		// The alias is gone, which is what was asked for.
		a.Logger.Warn("a deleted alias stays listed in its room", "room_id", rm.ID(), "error", err)
	}
	return web.WriteJSON(w, struct{}{})
}

// mayCurate tells whether a member may decide how a room is found: its aliases and its place in the directory.
func mayCurate(rm *room.Room, user id.UserID) bool {
	levels := rm.PowerLevels()
	return rm.Membership(user) == room.MembershipJoin && levels.User(user) >= levels.Event("m.room.canonical_alias", true)
}

// dropCanonicalAlias takes a deleted alias out of m.room.canonical_alias if the user may send that.
// Spec: client-server API, DELETE /directory/room/{roomAlias}, the note.
func (a *API) dropCanonicalAlias(ctx context.Context, rm *room.Room, who *web.Identity, alias string) error {
	current, err := rm.StateEvent(ctx, "m.room.canonical_alias", "")
	if err != nil || current == nil || !mayCurate(rm, who.UserID) {
		return err
	}
	content, changed, err := withoutAlias(current.PDU.Content(), alias)
	if err != nil || !changed {
		return err
	}
	empty := ""
	_, err = a.Rooms.Send(ctx, rm.ID(), room.Draft{
		Type: "m.room.canonical_alias", StateKey: &empty, Content: content, Sender: who.UserID, Device: who.DeviceID,
	})
	return err
}

// withoutAlias is the content of m.room.canonical_alias without one of its aliases.
func withoutAlias(content []byte, alias string) (out []byte, changed bool, err error) {
	var c object
	if err := json.Unmarshal(content, &c); err != nil {
		return nil, false, err
	}
	if gjson.GetBytes(content, "alias").Str == alias {
		delete(c, "alias")
		changed = true
	}
	if alt := gjson.GetBytes(content, "alt_aliases"); alt.IsArray() {
		keep := []string{}
		for _, x := range alt.Array() {
			if x.Str == alias {
				changed = true
			} else if x.Type == gjson.String {
				keep = append(keep, x.Str)
			}
		}
		if c["alt_aliases"], err = json.Marshal(keep); err != nil {
			return nil, false, err
		}
	}
	out, err = json.Marshal(c, json.Deterministic(true))
	return out, changed, err
}

// roomAliases handles GET /rooms/{roomId}/aliases.
func (a *API) roomAliases(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	rm, err := a.Rooms.Room(r.Context(), id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return hideRoom(err)
	}
	if rm.Membership(who.UserID) != room.MembershipJoin && rm.HistoryVisibility() != "world_readable" && !who.Admin {
		return notInRoom()
	}
	var out struct {
		Aliases []string `json:"aliases"`
	}
	err = a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		out.Aliases, err = tx.RoomAliases(rm.NID())
		return err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}
