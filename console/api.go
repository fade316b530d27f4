package console

import (
	"fmt"
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/web"
)

const maxAPIHits = 500

type searchResponse struct {
	Total   int64               `json:"total"`
	AtLeast bool                `json:"at_least"`
	Hits    []hitJSON           `json:"hits"`
	Facets  map[string][]Bucket `json:"facets"`
	Next    string              `json:"next,omitempty"`
}

// apiSearch handles POST /_moothall/compliance/v1/search.
func (c *Console) apiSearch(w http.ResponseWriter, r *http.Request, o *officer) error {
	a, err := web.ReadJSON[asked](r)
	if err != nil {
		return err
	}
	q, err := c.query(r.Context(), &a)
	if err != nil {
		return err
	}
	q.Facets, q.Limit = true, pageHits
	if a.Limit > 0 {
		q.Limit = min(a.Limit, maxAPIHits)
	}
	if err := c.record(r.Context(), o, "archive.search", a.Room, a.details()); err != nil {
		return err
	}
	found, err := c.find(r.Context(), q)
	if err != nil {
		return err
	}
	hits, err := c.read(r.Context(), found)
	if err != nil {
		return err
	}
	out := searchResponse{Total: found.Total, AtLeast: found.AtLeast, Hits: []hitJSON{}, Facets: found.Facets}
	for i := range hits {
		out.Hits = append(out.Hits, hits[i].json())
	}
	if len(found.Hits) == q.Limit {
		last := found.Hits[len(found.Hits)-1]
		out.Next = fmt.Sprintf("%d.%d", last.TS, last.NID)
	}
	return web.WriteJSON(w, out)
}

// apiExport handles POST /_moothall/compliance/v1/export?format=csv.
func (c *Console) apiExport(w http.ResponseWriter, r *http.Request, o *officer) error {
	a, err := web.ReadJSON[asked](r)
	if err != nil {
		return err
	}
	format := web.QueryString(r, "format")
	if format == "" {
		format = "jsonl"
	}
	return c.export(w, r, o, &a, format)
}

type eventResponse struct {
	RoomID       string    `json:"room_id"`
	RoomDeleted  bool      `json:"room_deleted"`
	Versions     []hitJSON `json:"versions"`
	Conversation []hitJSON `json:"conversation"`
	Members      []string  `json:"members"` // who was in the room at that time
}

// apiEvent handles GET /_moothall/compliance/v1/events/{eventId}.
func (c *Console) apiEvent(w http.ResponseWriter, r *http.Request, o *officer) error {
	s, err := c.story(r.Context(), o, id.EventID(web.PathParam(r, "eventId")))
	if err != nil {
		return err
	}
	out := eventResponse{RoomID: s.room.RoomID, RoomDeleted: s.room.Deleted, Members: s.members, Versions: []hitJSON{}, Conversation: []hitJSON{}}
	for i := range s.versions {
		out.Versions = append(out.Versions, s.versions[i].json())
	}
	for i := range s.talk {
		out.Conversation = append(out.Conversation, s.talk[i].json())
	}
	return web.WriteJSON(w, out)
}
