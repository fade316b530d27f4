package adminapi

import (
	"context"
	"math"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (a *API) mediaRoutes() []web.Route {
	const media, file = v1 + "/media", "/{serverName}/{mediaId}"
	return []web.Route{
		{Pattern: "GET " + media + file, Handler: a.mediaInfo},
		{Pattern: "DELETE " + media + file, Rate: web.RateSend, Handler: a.deleteMedia},
		{Pattern: "POST " + media + "/quarantine" + file, Rate: web.RateSend, Handler: a.quarantine},
		{Pattern: "POST " + media + "/unquarantine" + file, Rate: web.RateSend, Handler: a.unquarantine},
		{Pattern: "POST " + media + "/protect/{mediaId}", Rate: web.RateSend, Handler: a.protect},
		{Pattern: "POST " + media + "/unprotect/{mediaId}", Rate: web.RateSend, Handler: a.unprotect},
		{Pattern: "POST " + media + "/delete", Rate: web.RateSend, Handler: a.deleteOldMedia},
		{Pattern: "POST " + media + "/{serverName}/delete", Rate: web.RateSend, Handler: a.deleteOldMedia},
		{Pattern: "POST " + v1 + "/purge_media_cache", Rate: web.RateSend, Handler: a.purgeMediaCache},
		{Pattern: "GET " + v1 + "/room/{roomId}/media", Handler: a.roomMedia},
		{Pattern: "POST " + v1 + "/room/{roomId}/media/quarantine", Rate: web.RateSend, Handler: a.quarantineRoom},
		{Pattern: "POST " + v1 + "/user/{userId}/media/quarantine", Rate: web.RateSend, Handler: a.quarantineUser},
		{Pattern: "GET " + v1 + "/users/{userId}/media", Handler: a.userMedia},
		{Pattern: "DELETE " + v1 + "/users/{userId}/media", Rate: web.RateSend, Handler: a.deleteUserMedia},
	}
}

type mediaJSON struct {
	Origin        string  `json:"media_origin,omitzero"`
	UserID        *string `json:"user_id,omitzero"`
	ID            string  `json:"media_id"`
	Type          string  `json:"media_type"`
	Length        int64   `json:"media_length"`
	Name          *string `json:"upload_name"`
	Created       int64   `json:"created_ts"`
	LastAccess    *int64  `json:"last_access_ts"`
	QuarantinedBy *string `json:"quarantined_by"`
	Protected     bool    `json:"safe_from_quarantine"`
	Authenticated *bool   `json:"authenticated,omitzero"`
	SHA256        *string `json:"sha256,omitzero"`
}

func newMediaJSON(m store.ListedMedia) mediaJSON {
	return mediaJSON{ID: m.ID, Type: m.Type, Length: m.Size, Name: optional(m.Filename), Created: m.Created, LastAccess: &m.Accessed, QuarantinedBy: optional(m.QuarantinedBy), Protected: m.Protected}
}

// ours refuses other servers' media: there are none here.
func (a *API) ours(r *http.Request) (string, error) {
	if s := web.PathParam(r, "serverName"); s != a.ServerName {
		return "", mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "this server has only its own media")
	}
	return web.PathParam(r, "mediaId"), nil
}

// mediaInfo handles GET /_synapse/admin/v1/media/{serverName}/{mediaId}.
func (a *API) mediaInfo(w http.ResponseWriter, r *http.Request) error {
	mediaID, err := a.ours(r)
	if err != nil {
		return err
	}
	var m store.ListedMedia
	var ok bool
	err = a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		m, ok, err = tx.MediaInfo(a.ServerName, mediaID)
		return err
	})
	if err != nil {
		return err
	}
	if !ok {
		return mxerr.NotFound("there is no such file")
	}
	out := newMediaJSON(m)
	authenticated := !m.Public
	out.Origin, out.UserID, out.Authenticated = a.ServerName, optional(string(m.User)), &authenticated
	return web.WriteJSON(w, map[string]any{"media_info": out})
}

// deleteFiles removes files, and their contents where no other file has them.
func (a *API) deleteFiles(r *http.Request, mediaIDs []string) ([]string, error) {
	ctx := r.Context()
	if err := a.audited(r, "admin.media.deleted", "", map[string]any{"files": len(mediaIDs)}); err != nil {
		return nil, err
	}
	var deleted []string
	var hashes [][]byte
	err := a.Store.Write(ctx, func(tx *store.Tx) (err error) {
		deleted, hashes, err = tx.DeleteMedia(a.ServerName, mediaIDs)
		return err
	})
	if err != nil {
		return nil, err
	}
	if a.DropContents != nil && len(hashes) > 0 {
		if err := a.DropContents(ctx, hashes); err != nil {
			a.Logger.Warn("contents of deleted files stay on the disk", "error", err)
		}
	}
	if deleted == nil {
		deleted = []string{}
	}
	return deleted, nil
}

// deleteMedia handles DELETE /_synapse/admin/v1/media/{serverName}/{mediaId}.
func (a *API) deleteMedia(w http.ResponseWriter, r *http.Request) error {
	mediaID, err := a.ours(r)
	if err != nil {
		return err
	}
	deleted, err := a.deleteFiles(r, []string{mediaID})
	if err != nil {
		return err
	}
	if len(deleted) == 0 {
		return mxerr.NotFound("there is no such file")
	}
	return writeDeleted(w, deleted)
}

func writeDeleted(w http.ResponseWriter, deleted []string) error {
	return web.WriteJSON(w, map[string]any{"deleted_media": deleted, "total": len(deleted)})
}

// deleteOldMedia handles POST /_synapse/admin/v1/media/delete.
func (a *API) deleteOldMedia(w http.ResponseWriter, r *http.Request) error {
	const atMost, oldest = 10000, 2629746000 // a month after 1970: smaller numbers are seconds, given by mistake
	if s := web.PathParam(r, "serverName"); s != "" && s != a.ServerName {
		return mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "this server has only its own media")
	}
	if web.QueryString(r, "before_ts") == "" {
		return mxerr.MissingParam("query parameter 'before_ts' is missing: milliseconds since 1970")
	}
	before, err := web.QueryInt(r, "before_ts", 0, 0, 1<<53)
	if err != nil {
		return err
	}
	if before < oldest {
		return mxerr.InvalidParam("query parameter 'before_ts' lies in 1970: it is in milliseconds")
	}
	size, err := web.QueryInt(r, "size_gt", 0, 0, 1<<53)
	if err != nil {
		return err
	}
	keep, err := web.QueryBool(r, "keep_profiles", true)
	if err != nil {
		return err
	}
	var ids []string
	err = a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		q, more := store.MediaAge{Origin: a.ServerName, Before: int64(before), Larger: int64(size), KeepShown: keep, Limit: atMost}, true
		for ids = nil; more && len(ids) < atMost; {
			var page []string
			if page, q, more, err = tx.OldMedia(q); err != nil {
				return err
			}
			ids = append(ids, page...)
		}
		ids = ids[:min(len(ids), atMost)]
		return nil
	})
	if err != nil {
		return err
	}
	deleted, err := a.deleteFiles(r, ids)
	if err != nil {
		return err
	}
	return writeDeleted(w, deleted)
}

// purgeMediaCache handles POST /_synapse/admin/v1/purge_media_cache: the cache of other servers' media, which is empty.
func (a *API) purgeMediaCache(w http.ResponseWriter, r *http.Request) error {
	if web.QueryString(r, "before_ts") == "" {
		return mxerr.MissingParam("query parameter 'before_ts' is missing: milliseconds since 1970")
	}
	if _, err := web.QueryInt(r, "before_ts", 0, 0, 1<<53); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]int{"deleted": 0})
}

// hide hides files or shows them again, and tells how many changed.
func (a *API) hide(r *http.Request, mediaIDs []string, hide bool) (n int64, err error) {
	by, action := "", "admin.media.unquarantined"
	if hide {
		by, action = string(web.Requester(r).UserID), "admin.media.quarantined"
	}
	if err := a.audited(r, action, "", map[string]any{"files": len(mediaIDs)}); err != nil {
		return 0, err
	}
	err = a.Store.Write(r.Context(), func(tx *store.Tx) (err error) {
		n, err = tx.HideMedia(a.ServerName, mediaIDs, by)
		return err
	})
	return n, err
}

// quarantine handles POST /_synapse/admin/v1/media/quarantine/{serverName}/{mediaId}.
func (a *API) quarantine(w http.ResponseWriter, r *http.Request) error {
	return a.setHidden(w, r, true)
}

// unquarantine handles POST /_synapse/admin/v1/media/unquarantine/{serverName}/{mediaId}.
func (a *API) unquarantine(w http.ResponseWriter, r *http.Request) error {
	return a.setHidden(w, r, false)
}

func (a *API) setHidden(w http.ResponseWriter, r *http.Request, hide bool) error {
	mediaID, err := a.ours(r)
	if err != nil {
		return err
	}
	if _, err := a.hide(r, []string{mediaID}, hide); err != nil {
		return err
	}
	return empty(w)
}

// protect handles POST /_synapse/admin/v1/media/protect/{mediaId}.
func (a *API) protect(w http.ResponseWriter, r *http.Request) error {
	return a.setProtected(w, r, true)
}

// unprotect handles POST /_synapse/admin/v1/media/unprotect/{mediaId}.
func (a *API) unprotect(w http.ResponseWriter, r *http.Request) error {
	return a.setProtected(w, r, false)
}

func (a *API) setProtected(w http.ResponseWriter, r *http.Request, on bool) error {
	err := a.Store.Write(r.Context(), func(tx *store.Tx) error {
		ok, err := tx.ProtectMedia(a.ServerName, web.PathParam(r, "mediaId"), on)
		if err == nil && !ok {
			err = mxerr.NotFound("there is no such file")
		}
		return err
	})
	if err != nil {
		return err
	}
	return empty(w)
}

// filesOf finds the media that the events of a room name.
func (a *API) filesOf(ctx context.Context, rm *room.Room) (local, remote []string, err error) {
	seen := map[string]bool{}
	q := room.TimelineQuery{From: math.MaxInt64, Backwards: true, Limit: 500}
	for {
		page, err := a.Rooms.Timeline(ctx, rm, q)
		if err != nil {
			return nil, nil, err
		}
		for _, e := range page.Events {
			for _, m := range store.MXC.FindAllSubmatch(e.PDU.Content(), -1) {
				server, mediaID := string(m[1]), string(m[2])
				if seen[server+"/"+mediaID] {
					continue
				}
				seen[server+"/"+mediaID] = true
				if server == a.ServerName {
					local = append(local, mediaID)
				} else {
					remote = append(remote, "mxc://"+server+"/"+mediaID)
				}
			}
		}
		if q.From = page.End; !page.More {
			return local, remote, nil
		}
	}
}

// roomMedia handles GET /_synapse/admin/v1/room/{roomId}/media.
func (a *API) roomMedia(w http.ResponseWriter, r *http.Request) error {
	rm, err := a.findRoom(r.Context(), web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	ids, remote, err := a.filesOf(r.Context(), rm)
	if err != nil {
		return err
	}
	local := make([]string, 0, len(ids))
	for _, mediaID := range ids {
		local = append(local, "mxc://"+a.ServerName+"/"+mediaID)
	}
	if remote == nil {
		remote = []string{}
	}
	return web.WriteJSON(w, map[string]any{"local": local, "remote": remote})
}

// quarantineRoom handles POST /_synapse/admin/v1/room/{roomId}/media/quarantine.
func (a *API) quarantineRoom(w http.ResponseWriter, r *http.Request) error {
	rm, err := a.findRoom(r.Context(), web.PathParam(r, "roomId"))
	if err != nil {
		return err
	}
	ids, _, err := a.filesOf(r.Context(), rm)
	if err != nil {
		return err
	}
	n, err := a.hide(r, ids, true)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]int64{"num_quarantined": n})
}

// quarantineUser handles POST /_synapse/admin/v1/user/{userId}/media/quarantine.
func (a *API) quarantineUser(w http.ResponseWriter, r *http.Request) error {
	user, err := a.userPath(r)
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.media.quarantined", string(user), nil); err != nil {
		return err
	}
	var n int64
	err = a.Store.Write(r.Context(), func(tx *store.Tx) (err error) {
		n, err = tx.HideMediaOf(user, string(web.Requester(r).UserID))
		return err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]int64{"num_quarantined": n})
}

// mediaOf reads a page of a user's files.
func (a *API) mediaOf(r *http.Request, user id.UserID) (list []store.ListedMedia, total, from, limit int64, err error) {
	order := web.QueryString(r, "order_by")
	if order != "" && !store.MediaOrder(order) {
		return nil, 0, 0, 0, mxerr.InvalidParam("files cannot be ordered by what 'order_by' names")
	}
	def := "f"
	if order == "" {
		def = "b" // the newest first
	}
	backwards, err := dir(r, def)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	f, l, err := page(r, 100)
	if err != nil {
		return nil, 0, 0, 0, err
	}
	err = a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		list, total, err = tx.MediaOfUser(user, order, backwards, int64(f), int64(l))
		return err
	})
	return list, total, int64(f), int64(l), err
}

// userMedia handles GET /_synapse/admin/v1/users/{userId}/media.
func (a *API) userMedia(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	list, total, from, limit, err := a.mediaOf(r, u.ID)
	if err != nil {
		return err
	}
	files := make([]mediaJSON, 0, len(list))
	for _, m := range list {
		files = append(files, newMediaJSON(m))
	}
	out := map[string]any{"media": files, "total": total}
	if from+limit < total {
		out["next_token"] = from + int64(len(files))
	}
	return web.WriteJSON(w, out)
}

// deleteUserMedia handles DELETE /_synapse/admin/v1/users/{userId}/media.
func (a *API) deleteUserMedia(w http.ResponseWriter, r *http.Request) error {
	u, err := a.account(r)
	if err != nil {
		return err
	}
	list, _, _, _, err := a.mediaOf(r, u.ID)
	if err != nil {
		return err
	}
	ids := make([]string, 0, len(list))
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	deleted, err := a.deleteFiles(r, ids)
	if err != nil {
		return err
	}
	return writeDeleted(w, deleted)
}
