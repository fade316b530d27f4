package console

import (
	"net/http"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
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
	limit := pageHits
	if a.Limit > 0 {
		limit = min(a.Limit, maxAPIHits)
	}
	found, hits, next, err := c.ask(r.Context(), o, &a, limit)
	if err != nil {
		return err
	}
	out := searchResponse{Total: found.Total, AtLeast: found.AtLeast, Hits: []hitJSON{}, Facets: found.Facets, Next: next}
	for i := range hits {
		out.Hits = append(out.Hits, hits[i].json())
	}
	return web.WriteJSON(w, out)
}

// apiExport handles POST /_moothall/compliance/v1/export?format=csv: an export is asked for and downloaded at once.
func (c *Console) apiExport(w http.ResponseWriter, r *http.Request, o *officer) error {
	e, err := c.readExport(r, o)
	if err != nil {
		return err
	}
	return c.sendExport(w, r, o, e)
}

func (c *Console) readExport(r *http.Request, o *officer) (*store.ArchiveExport, error) {
	a, err := web.ReadJSON[asked](r)
	if err != nil {
		return nil, err
	}
	format := web.QueryString(r, "format")
	if format == "" {
		format = "jsonl"
	}
	return c.askExport(r.Context(), o, &a, format)
}

// exportJSON is an export as the API shows it.
type exportJSON struct {
	ID      string         `json:"export_id"`
	State   string         `json:"state"`
	Format  string         `json:"format"`
	Query   map[string]any `json:"query"`
	Reason  string         `json:"reason"`
	About   int64          `json:"about"` // entries
	Entries int64          `json:"entries"`
	Bytes   int64          `json:"bytes"`
	Created string         `json:"created"`
	Began   string         `json:"began,omitempty"`
	Ended   string         `json:"ended,omitempty"`
	SHA256  string         `json:"sha256,omitempty"`
}

func exportOf(e *store.ArchiveExport) (exportJSON, error) {
	var a asked
	if err := json.Unmarshal(e.Asked, &a); err != nil {
		return exportJSON{}, err
	}
	out := exportJSON{
		ID: e.ID, State: exportStates[e.State], Format: e.Format, Query: a.details(), Reason: e.Reason, About: e.About, Entries: e.Entries, Bytes: e.Bytes,
		Created: iso(e.Created), SHA256: e.SHA256,
	}
	if e.Began > 0 {
		out.Began = iso(e.Began)
	}
	if e.Ended > 0 {
		out.Ended = iso(e.Ended)
	}
	return out, nil
}

// apiAskExport handles POST /_moothall/compliance/v1/exports?format=csv.
func (c *Console) apiAskExport(w http.ResponseWriter, r *http.Request, o *officer) error {
	e, err := c.readExport(r, o)
	if err != nil {
		return err
	}
	out, err := exportOf(e)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

type exportsResponse struct {
	Exports []exportJSON `json:"exports"` // the newest first
}

// apiExports handles GET /_moothall/compliance/v1/exports.
func (c *Console) apiExports(w http.ResponseWriter, r *http.Request, o *officer) error {
	list, err := c.listExports(r.Context(), o)
	if err != nil {
		return err
	}
	out := exportsResponse{Exports: make([]exportJSON, len(list))}
	for i := range list {
		if out.Exports[i], err = exportOf(&list[i]); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, out)
}

// apiExportState handles GET /_moothall/compliance/v1/exports/{exportId}.
func (c *Console) apiExportState(w http.ResponseWriter, r *http.Request, o *officer) error {
	e, err := c.findExport(r.Context(), o, web.PathParam(r, "exportId"))
	if err != nil {
		return err
	}
	out, err := exportOf(&e)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// apiCancelExport handles DELETE /_moothall/compliance/v1/exports/{exportId}.
func (c *Console) apiCancelExport(w http.ResponseWriter, r *http.Request, o *officer) error {
	if err := c.cancelExport(r.Context(), o, web.PathParam(r, "exportId")); err != nil {
		return err
	}
	return c.apiExportState(w, r, o)
}

// apiExportFile handles GET /_moothall/compliance/v1/exports/{exportId}/file.
func (c *Console) apiExportFile(w http.ResponseWriter, r *http.Request, o *officer) error {
	return c.downloadExport(w, r, o, web.PathParam(r, "exportId"))
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
