package clientapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// directoryRoutes are the endpoints of the published room directory. Listing it takes a token (decision 0161).
// Spec: client-server API, "Published room directory".
func (a *API) directoryRoutes() []web.Route {
	const list = "/_matrix/client/v3/directory/list/room/{roomId}"
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/publicRooms", Auth: web.User, Rate: web.RateRead, Handler: a.getPublicRooms},
		{Pattern: "POST /_matrix/client/v3/publicRooms", Auth: web.User, AllowSuspended: true, Rate: web.RateRead, Handler: a.queryPublicRooms},
		{Pattern: "GET " + list, Auth: web.Public, Rate: web.RateRead, Handler: a.getVisibility},
		{Pattern: "PUT " + list, Auth: web.NoGuest, Rate: web.RateSend, Handler: a.putVisibility},
	}
}

const (
	defaultDirectory = 100
	maxDirectory     = 500
	directoryChunk   = 100 // rooms whose state is read at once
)

// directoryQuery asks for a page of the directory.
type directoryQuery struct {
	Limit  *int64 `json:"limit"`
	Since  string `json:"since"`
	Filter struct {
		Term      string     `json:"generic_search_term"`
		RoomTypes *[]*string `json:"room_types"`
	} `json:"filter"`
	AllNetworks bool   `json:"include_all_networks"`
	Network     string `json:"third_party_instance_id"`
}

// matches tells whether a room is one of those asked for.
func (q *directoryQuery) matches(s *summary) bool {
	if q.Filter.RoomTypes != nil && !slices.ContainsFunc(*q.Filter.RoomTypes, func(t *string) bool {
		return t == nil && s.RoomType == "" || t != nil && *t == s.RoomType
	}) {
		return false
	}
	term := strings.ToLower(q.Filter.Term)
	return term == "" || strings.Contains(strings.ToLower(s.Name), term) || strings.Contains(strings.ToLower(s.Topic), term) ||
		strings.Contains(strings.ToLower(s.CanonicalAlias), term)
}

// getPublicRooms handles GET /publicRooms.
func (a *API) getPublicRooms(w http.ResponseWriter, r *http.Request) error {
	limit, err := web.QueryInt(r, "limit", defaultDirectory, 0, maxDirectory)
	if err != nil {
		return err
	}
	n := int64(limit)
	return a.publicRooms(w, r, &directoryQuery{Limit: &n, Since: web.QueryString(r, "since")})
}

// queryPublicRooms handles POST /publicRooms.
func (a *API) queryPublicRooms(w http.ResponseWriter, r *http.Request) error {
	q, err := web.ReadOptionalJSON[directoryQuery](r)
	if err != nil {
		return err
	}
	if q.AllNetworks && q.Network != "" {
		return mxerr.InvalidParam("'third_party_instance_id' does not go with 'include_all_networks'")
	}
	if q.Limit != nil && *q.Limit < 0 {
		return mxerr.InvalidParam("'limit' must not be negative")
	}
	return a.publicRooms(w, r, &q)
}

type publicRoomsResponse struct {
	Chunk     []summary `json:"chunk"`
	NextBatch string    `json:"next_batch,omitzero"`
	PrevBatch string    `json:"prev_batch,omitzero"`
	Total     int       `json:"total_room_count_estimate"`
}

func (a *API) publicRooms(w http.ResponseWriter, r *http.Request, q *directoryQuery) error {
	if server := web.QueryString(r, "server"); server != "" && server != a.ServerName {
		return noFederation("the directory of " + printable(server))
	}
	limit := defaultDirectory
	if q.Limit != nil && *q.Limit > 0 {
		limit = int(min(*q.Limit, maxDirectory))
	}
	at, back, err := directoryToken(q.Since)
	if err != nil {
		return err
	}
	out, err := a.directoryPage(r.Context(), q, at, back, limit)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// directoryToken reads a token: n (next) or p (previous), and a place in the list.
func directoryToken(s string) (at int, back bool, err error) {
	if s == "" {
		return 0, false, nil
	}
	at, err = strconv.Atoi(s[1:])
	if err != nil || at < 0 || s[0] != 'n' && s[0] != 'p' {
		return 0, false, mxerr.InvalidParam("this server gave out no such pagination token")
	}
	return at, s[0] == 'p', nil
}

// directoryPage walks through the directory from a place on until a page is full, reading the rooms' state in chunks.
func (a *API) directoryPage(ctx context.Context, q *directoryQuery, at int, back bool, limit int) (publicRoomsResponse, error) {
	var out publicRoomsResponse
	var rooms []store.DirectoryRoom
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		switch service, network, _ := strings.Cut(q.Network, "|"); {
		case q.AllNetworks:
			rooms, err = tx.NetworkRooms("", "")
		case q.Network != "":
			// what the protocols of application services have as the instance_id of a network
			rooms, err = tx.NetworkRooms(service, network)
		default:
			rooms, err = tx.PublishedRooms()
		}
		return err
	})
	if err != nil {
		return out, err
	}
	out.Total = len(rooms)
	out.Chunk = []summary{}
	at = min(at, len(rooms))
	places := make([]int, 0, len(rooms)) // in the order of the walk
	if back {
		for i := at - 1; i >= 0; i-- {
			places = append(places, i)
		}
	} else {
		for i := at; i < len(rooms); i++ {
			places = append(places, i)
		}
	}
	first, last, more := at, at, false
	if back {
		last = at - 1
	}
	for chunk := range slices.Chunk(places, directoryChunk) {
		found, err := a.summaries(ctx, rooms, chunk)
		if err != nil {
			return out, err
		}
		for i, place := range chunk {
			if !q.matches(&found[i]) {
				continue
			}
			if len(out.Chunk) == limit {
				more = true
				break
			}
			out.Chunk = append(out.Chunk, found[i])
			if back {
				first = place
			} else {
				last = place
			}
		}
		if more {
			break
		}
	}
	if back {
		slices.Reverse(out.Chunk)
		more = at < len(rooms)
		last = at - 1
	}
	if more {
		out.NextBatch = fmt.Sprintf("n%d", last+1)
	}
	if first > 0 && (!back || len(out.Chunk) == limit) {
		out.PrevBatch = fmt.Sprintf("p%d", first)
	}
	return out, nil
}

// summaries describes some of the rooms of the directory.
func (a *API) summaries(ctx context.Context, rooms []store.DirectoryRoom, places []int) ([]summary, error) {
	out := make([]summary, len(places))
	nids := make([]int64, len(places))
	index := make(map[int64]int, len(places))
	for i, place := range places {
		rm := rooms[place]
		out[i] = summary{RoomID: id.RoomID(rm.RoomID), Joined: rm.Joined, JoinRule: "invite"}
		nids[i] = rm.NID
		index[rm.NID] = i
	}
	err := a.Store.ReadOne(ctx, func(tx *store.Tx) error {
		return tx.DirectoryState(nids, summaryTypes(), func(nid int64, evType string, pdu []byte) {
			out[index[nid]].add(evType, []byte(gjson.GetBytes(pdu, "content").Raw))
		})
	})
	for i := range out {
		// The directory's rooms have less to tell than summaries. Spec: PublishedRoomsChunk.
		out[i].AllowedRooms, out[i].Encryption, out[i].RoomVersion = nil, "", ""
	}
	return out, err
}

type visibilityBody struct {
	Visibility string `json:"visibility"`
}

// getVisibility handles GET /directory/list/room/{roomId}.
func (a *API) getVisibility(w http.ResponseWriter, r *http.Request) error {
	rm, err := a.Rooms.Room(r.Context(), id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return err
	}
	published, err := a.published(r.Context(), rm)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, visibilityBody{visibilityName(published)})
}

func visibilityName(published bool) string {
	if published {
		return "public"
	}
	return "private"
}

// putVisibility handles PUT /directory/list/room/{roomId}: for those who may set the room's aliases, and for
// administrators of the server.
func (a *API) putVisibility(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	req, err := web.ReadOptionalJSON[visibilityBody](r)
	if err != nil {
		return err
	}
	switch req.Visibility {
	case "":
		req.Visibility = "public"
	case "public", "private":
	default:
		return mxerr.BadJSON("'visibility' must be public or private")
	}
	rm, err := a.Rooms.Room(ctx, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		return err
	}
	who := web.Requester(r)
	allowed, err := a.fresh(ctx, func() bool { return who.Admin || mayCurate(rm, who.UserID) })
	if err != nil {
		return err
	}
	if !allowed {
		return mxerr.Forbidden("only those who may set the room's aliases can put it into the directory or take it out")
	}
	err = a.changeMeta(ctx, rm.NID(), "published", func(tx *store.Tx) (bool, error) {
		return tx.SetRoomPublished(rm.NID(), req.Visibility == "public")
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}
