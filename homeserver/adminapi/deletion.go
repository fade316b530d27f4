package adminapi

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) deletionRoutes() []web.Route {
	const history = v1 + "/purge_history/{roomId}"
	return []web.Route{
		{Pattern: "DELETE " + v1 + "/rooms/{roomId}", Rate: web.RateSend, Handler: a.deleteRoomNow},
		{Pattern: "DELETE " + v2 + "/rooms/{roomId}", Rate: web.RateSend, Handler: a.deleteRoom},
		{Pattern: "GET " + v2 + "/rooms/{roomId}/delete_status", Handler: a.deletionsOfRoom},
		{Pattern: "GET " + v2 + "/rooms/delete_status/{deleteId}", Handler: a.deletionStatus},
		{Pattern: "POST " + history, Rate: web.RateSend, Handler: a.purgeHistory},
		{Pattern: "POST " + history + "/{eventId}", Rate: web.RateSend, Handler: a.purgeHistory},
		{Pattern: "GET " + v1 + "/purge_history_status/{purgeId}", Handler: a.purgeStatus},
	}
}

// deleteRequest asks for a room's deletion.
type deleteRequest struct {
	NewRoomUser id.UserID `json:"new_room_user_id"`
	RoomName    string    `json:"room_name"`
	Message     string    `json:"message"`
	Block       bool      `json:"block"`
	Purge       *bool     `json:"purge"`
	ForcePurge  bool      `json:"force_purge"`
}

// deleteResult is what became of a room's members.
type deleteResult struct {
	Kicked  []id.UserID `json:"kicked_users"`
	Failed  []id.UserID `json:"failed_to_kick_users"`
	Aliases []string    `json:"local_aliases"`
	NewRoom *id.RoomID  `json:"new_room_id"`
}

// deleteRoomNow handles DELETE /_synapse/admin/v1/rooms/{roomId}, which answers when all is done.
func (a *API) deleteRoomNow(w http.ResponseWriter, r *http.Request) error {
	d, err := a.askDeletion(r)
	if err != nil {
		return err
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := a.deletions(r.Context(), d.ID, "")
		if err != nil {
			return err
		}
		if len(list) == 1 && list[0].Status != store.DeletionOpen {
			if list[0].Status == store.DeletionFailed {
				return mxerr.New(http.StatusInternalServerError, "M_UNKNOWN", "the room could not be deleted: the server's log says why")
			}
			return web.WriteRaw(w, list[0].Result)
		}
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return r.Context().Err()
		}
	}
}

// deleteRoom handles DELETE /_synapse/admin/v2/rooms/{roomId}: the deletion goes on in the background.
func (a *API) deleteRoom(w http.ResponseWriter, r *http.Request) error {
	d, err := a.askDeletion(r)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"delete_id": d.ID})
}

// askDeletion notes that a room is to be deleted.
func (a *API) askDeletion(r *http.Request) (store.RoomDeletion, error) {
	ctx := r.Context()
	req, err := web.ReadOptionalJSON[deleteRequest](r)
	if err != nil {
		return store.RoomDeletion{}, err
	}
	roomID := web.PathParam(r, "roomId")
	if err := checkRoomID(roomID); err != nil {
		return store.RoomDeletion{}, err
	}
	if req.NewRoomUser != "" {
		if !a.local(req.NewRoomUser) {
			return store.RoomDeletion{}, mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "'new_room_user_id' must be a user of this server")
		}
		if _, err := a.Accounts.User(ctx, req.NewRoomUser); err != nil {
			return store.RoomDeletion{}, err
		}
	}
	who := web.Requester(r).UserID
	if err := a.audited(r, "admin.room.deleted", roomID, map[string]any{"block": req.Block, "purge": req.Purge == nil || *req.Purge, "message": req.Message}); err != nil {
		return store.RoomDeletion{}, err
	}
	params, err := json.Marshal(req)
	if err != nil {
		return store.RoomDeletion{}, err
	}
	result, err := json.Marshal(newDeleteResult())
	if err != nil {
		return store.RoomDeletion{}, err
	}
	d := store.RoomDeletion{ID: newJobID(), RoomID: roomID, Requester: string(who), Requested: a.nowMS(), Purge: req.Purge == nil || *req.Purge, Params: params, Result: result}
	rm, err := a.Rooms.Room(ctx, id.RoomID(roomID))
	switch {
	case mxerr.Is(err, "M_NOT_FOUND") && !req.Block:
		return d, err
	case err == nil:
		d.NID = rm.NID()
	case !mxerr.Is(err, "M_NOT_FOUND"):
		return d, err
	}
	if req.Block {
		if err := a.Rooms.Block(ctx, id.RoomID(roomID), who, true); err != nil {
			return d, err
		}
	}
	if d.NID == 0 { // nothing but the block
		d.Status, d.Finished = store.DeletionDone, d.Requested
	}
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		open, err := tx.RoomDeletions("", roomID)
		if err != nil {
			return err
		}
		for _, o := range open {
			if o.Status == store.DeletionOpen {
				return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "this room is being deleted already, by the deletion "+o.ID)
			}
		}
		return tx.InsertRoomDeletion(d)
	})
	if err == nil {
		select {
		case a.kick <- struct{}{}:
		default:
		}
	}
	return d, err
}

func newDeleteResult() deleteResult {
	return deleteResult{Kicked: []id.UserID{}, Failed: []id.UserID{}, Aliases: []string{}}
}

func (a *API) deletions(ctx context.Context, deletionID, roomID string) (list []store.RoomDeletion, err error) {
	err = a.Store.ReadOne(ctx, func(tx *store.Tx) error {
		list, err = tx.RoomDeletions(deletionID, roomID)
		return err
	})
	return list, err
}

// deletionJSON tells how far a deletion has come.
func deletionJSON(d store.RoomDeletion) map[string]any {
	status := "shutting_down"
	switch {
	case d.Status == store.DeletionDone:
		status = "complete"
	case d.Status == store.DeletionFailed:
		status = "failed"
	case d.Stage > 0:
		status = "purging"
	}
	var result deleteResult
	if err := json.Unmarshal(d.Result, &result); err != nil {
		result = newDeleteResult()
	}
	return map[string]any{"delete_id": d.ID, "room_id": d.RoomID, "status": status, "shutdown_room": result}
}

// deletionsOfRoom handles GET /_synapse/admin/v2/rooms/{roomId}/delete_status.
func (a *API) deletionsOfRoom(w http.ResponseWriter, r *http.Request) error {
	roomID := web.PathParam(r, "roomId")
	if err := checkRoomID(roomID); err != nil {
		return err
	}
	list, err := a.deletions(r.Context(), "", roomID)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		return mxerr.NotFound("no deletion of this room was asked for")
	}
	results := make([]map[string]any, 0, len(list))
	for _, d := range list {
		results = append(results, deletionJSON(d))
	}
	return web.WriteJSON(w, map[string]any{"results": results})
}

// deletionStatus handles GET /_synapse/admin/v2/rooms/delete_status/{deleteId}.
func (a *API) deletionStatus(w http.ResponseWriter, r *http.Request) error {
	list, err := a.deletions(r.Context(), web.PathParam(r, "deleteId"), "")
	if err != nil {
		return err
	}
	if len(list) == 0 || web.PathParam(r, "deleteId") == "" {
		return mxerr.NotFound("this server knows no such deletion")
	}
	return web.WriteJSON(w, deletionJSON(list[0]))
}

const (
	deletionLease = 5 * time.Minute
	deletionPoll  = 30 * time.Second
)

// Run deletes rooms, until ctx ends. A deletion that another process gave up is taken over.
func (a *API) Run(ctx context.Context) error {
	tick := time.NewTicker(deletionPoll)
	defer tick.Stop()
	for {
		for ctx.Err() == nil {
			var d store.RoomDeletion
			var ok bool
			err := a.Store.Write(ctx, func(tx *store.Tx) (err error) {
				d, ok, err = tx.TakeRoomDeletion(a.nowMS(), a.Now().Add(deletionLease).UnixMilli())
				return err
			})
			if err != nil && ctx.Err() == nil {
				a.Logger.Error("look for rooms to delete", "error", err)
			}
			if err != nil || !ok {
				break
			}
			a.runDeletion(ctx, d)
		}
		select {
		case <-a.kick:
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (a *API) runDeletion(ctx context.Context, d store.RoomDeletion) {
	err := a.delete(ctx, &d)
	if ctx.Err() != nil {
		return // whoever comes next goes on
	}
	d.Status, d.Finished = store.DeletionDone, a.nowMS()
	if err != nil {
		d.Status = store.DeletionFailed
		a.Logger.Error("delete a room", "room_id", d.RoomID, "delete_id", d.ID, "error", err)
	} else {
		a.Logger.Info("room deleted", "room_id", d.RoomID, "delete_id", d.ID, "by", d.Requester)
	}
	if err := a.Store.Write(ctx, func(tx *store.Tx) error { return tx.SaveRoomDeletion(d) }); err != nil {
		a.Logger.Error("note that a room was deleted", "room_id", d.RoomID, "error", err)
	}
}

// delete makes everybody leave a room and removes it. It may begin again in the middle.
func (a *API) delete(ctx context.Context, d *store.RoomDeletion) error {
	var req deleteRequest
	if err := json.Unmarshal(d.Params, &req); err != nil {
		return fmt.Errorf("the deletion's parameters: %w", err)
	}
	rm, err := a.Rooms.RoomByNID(ctx, d.NID)
	if err != nil && !mxerr.Is(err, "M_NOT_FOUND") {
		return err
	}
	if err == nil && d.Stage == 0 {
		result, err := a.shutDown(ctx, d, rm, &req)
		if err != nil {
			return err
		}
		if len(result.Failed) > 0 && !req.ForcePurge && d.Purge {
			return fmt.Errorf("%d members could not be made to leave; force_purge deletes the room all the same", len(result.Failed))
		}
	}
	if !d.Purge {
		return nil
	}
	d.Stage = 1
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveRoomDeletion(*d); err != nil {
			return err
		}
		return tx.HoldRoomDeletion(d.ID, a.Now().Add(deletionLease).UnixMilli())
	})
	if err != nil {
		return err
	}
	return a.Rooms.Purge(ctx, d.NID)
}

// shutDown moves a room's members out, to a new room if the request names one.
func (a *API) shutDown(ctx context.Context, d *store.RoomDeletion, rm *room.Room, req *deleteRequest) (deleteResult, error) {
	out := newDeleteResult()
	if err := json.Unmarshal(d.Result, &out); err != nil {
		return out, err
	}
	if req.NewRoomUser != "" && out.NewRoom == nil {
		members := rm.Joined()
		next, err := a.makeNoticeRoom(ctx, req, members)
		if err != nil {
			return out, err
		}
		out.NewRoom = &next
		if err := a.saveResult(ctx, d, out); err != nil { // so that a second try makes no second room
			return out, err
		}
	}
	left, failed, err := a.Rooms.RemoveMembers(ctx, rm)
	if err != nil {
		return out, err
	}
	out.Kicked = append(out.Kicked, left...)
	out.Failed = append(out.Failed, failed...)
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		aliases, err := tx.RoomAliases(rm.NID())
		if err != nil {
			return err
		}
		for _, alias := range aliases {
			if _, err := tx.DeleteAlias(alias); err != nil {
				return err
			}
		}
		if len(aliases) > 0 {
			out.Aliases = aliases
		}
		if _, err := tx.SetRoomPublished(rm.NID(), false); err != nil {
			return err
		}
		_, err = tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: rm.NID(), Key: "aliases"})
		return err
	})
	if err != nil {
		return out, err
	}
	return out, a.saveResult(ctx, d, out)
}

func (a *API) saveResult(ctx context.Context, d *store.RoomDeletion, out deleteResult) error {
	raw, err := json.Marshal(out)
	if err != nil {
		return err
	}
	d.Result = raw
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.SaveRoomDeletion(*d); err != nil {
			return err
		}
		return tx.HoldRoomDeletion(d.ID, a.Now().Add(deletionLease).UnixMilli())
	})
}

// makeNoticeRoom makes the room that tells members why theirs is gone. They are in it without being asked, and only its
// creator can write.
func (a *API) makeNoticeRoom(ctx context.Context, req *deleteRequest, members []id.UserID) (id.RoomID, error) {
	v, _ := event.LookupVersion(event.DefaultVersion)
	name, message := req.RoomName, req.Message
	if name == "" {
		name = "Content Violation Notification"
	}
	if message == "" {
		message = "Sharing illegal content on this server is not permitted and rooms in violation will be blocked."
	}
	creator := req.NewRoomUser
	state := func(evType, key string, content any) (room.Draft, error) {
		raw, err := json.Marshal(content)
		return room.Draft{Type: evType, StateKey: &key, Content: raw, Sender: creator}, err
	}
	create, err := json.Marshal(map[string]any{"room_version": v.ID})
	if err != nil {
		return "", err
	}
	users := map[string]int64{}
	if !v.PrivilegedCreators {
		users[string(creator)] = 100
	}
	var drafts []room.Draft
	for _, s := range []struct {
		evType, key string
		content     any
	}{
		{"m.room.member", string(creator), map[string]string{"membership": "join"}},
		{"m.room.power_levels", "", map[string]any{"users": users, "users_default": -10, "events_default": 0, "state_default": 50, "invite": 50}},
		{"m.room.join_rules", "", map[string]string{"join_rule": "invite"}},
		{"m.room.history_visibility", "", map[string]string{"history_visibility": "shared"}},
		{"m.room.name", "", map[string]string{"name": name}},
	} {
		d, err := state(s.evType, s.key, s.content)
		if err != nil {
			return "", err
		}
		drafts = append(drafts, d)
	}
	text, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": message})
	if err != nil {
		return "", err
	}
	drafts = append(drafts, room.Draft{Type: "m.room.message", Content: text, Sender: creator})
	roomID, err := a.Rooms.CreateRoom(ctx, v, creator, create, drafts, room.RoomMeta{})
	if err != nil {
		return "", err
	}
	rm, err := a.Rooms.Room(ctx, roomID)
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if !a.local(m) || m == creator {
			continue
		}
		if err := a.bringIn(ctx, rm, m, creator); err != nil {
			a.Logger.Warn("a member could not be brought into the room that replaces a deleted one", "user_id", m, "error", err)
		}
	}
	return roomID, nil
}

// purges are the removals of old messages that run or have run in this process.
type purges struct {
	mu   sync.Mutex
	byID map[string]*purge
	ids  []string
}

type purge struct {
	Status string `json:"status"`
	Error  string `json:"error,omitzero"`
	room   int64

	roomID  string
	changed int64 // ms: when it began or ended
}

// purgeHistory handles POST /_synapse/admin/v1/purge_history/{roomId} and …/{eventId}: removes messages before an event or a
// time. All messages here are those of local users, so that nothing happens without delete_local_events.
func (a *API) purgeHistory(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadOptionalJSON[struct {
		Local bool   `json:"delete_local_events"`
		Event string `json:"purge_up_to_event_id"`
		TS    *int64 `json:"purge_up_to_ts"`
	}](r)
	if err != nil {
		return err
	}
	rm, err := a.findRoom(ctx, web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	if e := web.PathParam(r, "eventId"); e != "" {
		req.Event = e
	}
	var ord int64
	switch {
	case req.Event != "":
		e, err := a.eventOf(ctx, rm, req.Event)
		if err != nil {
			return err
		}
		ord = e.Ord
	case req.TS != nil:
		err := a.Store.Read(ctx, func(tx *store.Tx) (err error) {
			ord, err = tx.OrdAtTime(rm.NID(), *req.TS)
			return err
		})
		if err != nil {
			return err
		}
	default:
		return mxerr.New(http.StatusBadRequest, "M_BAD_JSON", "'purge_up_to_event_id' or 'purge_up_to_ts' is required")
	}
	if err := a.audited(r, "admin.room.history_purged", string(rm.ID()), map[string]any{"local": req.Local}); err != nil {
		return err
	}
	p := &purge{Status: "active", room: rm.NID(), roomID: string(rm.ID()), changed: a.nowMS()}
	job := newJobID()
	a.purges.mu.Lock()
	for _, o := range a.purges.byID {
		if o.room == p.room && o.Status == "active" {
			a.purges.mu.Unlock()
			return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "the history of this room is being purged already")
		}
	}
	a.purges.byID[job] = p
	a.purges.ids = append(a.purges.ids, job)
	for len(a.purges.ids) > keepJobs {
		delete(a.purges.byID, a.purges.ids[0])
		a.purges.ids = a.purges.ids[1:]
	}
	a.purges.mu.Unlock()
	go a.runPurge(context.WithoutCancel(ctx), p, rm, ord, req.Local)
	return web.WriteJSON(w, map[string]string{"purge_id": job})
}

func (a *API) runPurge(ctx context.Context, p *purge, rm *room.Room, ord int64, local bool) {
	var err error
	if local {
		err = a.Rooms.PurgeHistory(ctx, rm, ord, func(int) {})
	}
	a.purges.mu.Lock()
	defer a.purges.mu.Unlock()
	p.Status, p.changed = "complete", a.nowMS()
	if err != nil {
		a.Logger.Error("purge a room's history", "room_id", rm.ID(), "error", err)
		p.Status, p.Error = "failed", strings.ToValidUTF8(err.Error(), "")
	}
}

// purgeStatus handles GET /_synapse/admin/v1/purge_history_status/{purgeId}.
func (a *API) purgeStatus(w http.ResponseWriter, r *http.Request) error {
	a.purges.mu.Lock()
	defer a.purges.mu.Unlock()
	p := a.purges.byID[web.PathParam(r, "purgeId")]
	if p == nil {
		return mxerr.NotFound("this server knows no such purge")
	}
	return web.WriteJSON(w, p)
}
