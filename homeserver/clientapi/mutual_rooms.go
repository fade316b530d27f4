package clientapi

import (
	"encoding/base64"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Spec: client-server API, "Mutual Rooms".
func (a *API) mutualRoomRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v1/mutual_rooms", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.mutualRooms},
		// matrix-js-sdk calls it by the name from before it was in the specification, and pages by other names.
		{Pattern: "GET /_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms", Auth: web.NoGuest, Rate: web.RateRead, Handler: a.mutualRooms},
	}
}

const (
	maxMutualRooms = 100
	maxUserID      = 255 // bytes
)

type mutualRooms struct {
	Joined    []id.RoomID `json:"joined"`
	Count     int64       `json:"count"`
	NextBatch string      `json:"next_batch,omitempty"`
	NextToken string      `json:"next_batch_token,omitempty"` // NextBatch in the unstable form
}

// mutualRooms handles GET /_matrix/client/v1/mutual_rooms. Rooms come in the order of their ids; the token of the next
// batch holds the last of this one, so it never expires.
func (a *API) mutualRooms(w http.ResponseWriter, r *http.Request) error {
	other, given := web.QueryLookup(r, "user_id")
	me := web.Requester(r).UserID
	switch {
	case !given:
		return mxerr.MissingParam("query parameter 'user_id' is required")
	case !validUserID(other):
		return mxerr.InvalidParam("query parameter 'user_id' must be a user id, such as @alice:" + a.ServerName)
	case id.UserID(other) == me:
		return mxerr.InvalidParam("query parameter 'user_id' is your own")
	}
	var after id.RoomID
	from, given := web.QueryLookup(r, "from")
	if !given {
		from, given = web.QueryLookup(r, "batch_token")
	}
	if given {
		b, err := base64.RawURLEncoding.DecodeString(from)
		if err != nil || len(b) < 2 || b[0] != '!' || len(b) > maxUserID || strings.ContainsRune(string(b), 0) {
			return mxerr.InvalidParam("query parameter 'from' must be a 'next_batch' of this endpoint")
		}
		after = id.RoomID(b)
	}
	var out mutualRooms
	err := a.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		out.Joined, out.Count, err = tx.MutualRooms(me, id.UserID(other), after, maxMutualRooms+1)
		return err
	})
	if err != nil {
		return err
	}
	if len(out.Joined) > maxMutualRooms {
		out.Joined = out.Joined[:maxMutualRooms]
		out.NextBatch = base64.RawURLEncoding.EncodeToString([]byte(out.Joined[maxMutualRooms-1]))
		if strings.Contains(r.URL.Path, "/unstable/") {
			out.NextToken = out.NextBatch
		}
	}
	return web.WriteJSON(w, out)
}

// validUserID checks the grammar of user ids, the historical one included: any characters in the local part.
// Spec: appendices, "User Identifiers", "Historical User IDs".
func validUserID(s string) bool {
	local, server, ok := strings.Cut(strings.TrimPrefix(s, "@"), ":")
	return ok && strings.HasPrefix(s, "@") && local != "" && server != "" && len(s) <= maxUserID && !strings.ContainsRune(s, 0)
}
