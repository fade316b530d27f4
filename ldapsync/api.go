package ldapsync

import (
	"net/http"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/web"
)

// Routes are the administrators' endpoints.
func (s *Sync) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_moothall/admin/v1/directory", Auth: web.Admin, Rate: web.RateRead, Handler: s.getAll},
		{Pattern: "GET /_moothall/admin/v1/directory/{directory}", Auth: web.Admin, Rate: web.RateRead, Handler: s.getOne},
		{Pattern: "GET /_moothall/admin/v1/directory/{directory}/runs", Auth: web.Admin, Rate: web.RateRead, Handler: s.getRuns},
		{Pattern: "GET /_moothall/admin/v1/directory/{directory}/plan", Auth: web.Admin, Rate: web.RateSend, Handler: s.getPlan},
		{Pattern: "GET /_moothall/admin/v1/directory/{directory}/test", Auth: web.Admin, Rate: web.RateSend, Handler: s.getTest},
		{Pattern: "POST /_moothall/admin/v1/directory/{directory}/sync", Auth: web.Admin, Rate: web.RateSend, Handler: s.postSync},
		{Pattern: "POST /_moothall/admin/v1/directory/{directory}/confirm", Auth: web.Admin, Rate: web.RateSend, Handler: s.postConfirm},
		{Pattern: "POST /_moothall/admin/v1/directory/{directory}/relink", Auth: web.Admin, Rate: web.RateSend, Handler: s.postRelink},
		{Pattern: "GET /_moothall/admin/v1/directory/history/{userId}", Auth: web.Admin, Rate: web.RateRead, Handler: s.getHistory},
	}
}

// getAll handles GET /_moothall/admin/v1/directory.
func (s *Sync) getAll(w http.ResponseWriter, r *http.Request) error {
	all, err := s.Statuses(r.Context())
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"directories": all})
}

// getOne handles GET /_moothall/admin/v1/directory/{directory}.
func (s *Sync) getOne(w http.ResponseWriter, r *http.Request) error {
	st, err := s.Status(r.Context(), web.PathParam(r, "directory"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, st)
}

// getRuns handles GET /_moothall/admin/v1/directory/{directory}/runs.
func (s *Sync) getRuns(w http.ResponseWriter, r *http.Request) error {
	limit, err := web.QueryInt(r, "limit", 50, 1, keepRuns)
	if err != nil {
		return err
	}
	runs, err := s.Runs(r.Context(), web.PathParam(r, "directory"), limit)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"runs": runs})
}

// getPlan handles GET /_moothall/admin/v1/directory/{directory}/plan: what a run would do.
func (s *Sync) getPlan(w http.ResponseWriter, r *http.Request) error {
	p, err := s.Plan(r.Context(), web.PathParam(r, "directory"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, p)
}

// getTest handles GET /_moothall/admin/v1/directory/{directory}/test; the query user names whom to show.
func (s *Sync) getTest(w http.ResponseWriter, r *http.Request) error {
	t, err := s.Test(r.Context(), web.PathParam(r, "directory"), web.QueryString(r, "user"))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, t)
}

// postSync handles POST /_moothall/admin/v1/directory/{directory}/sync: a complete comparison as soon as possible.
func (s *Sync) postSync(w http.ResponseWriter, r *http.Request) error {
	run, err := s.Request(r.Context(), web.PathParam(r, "directory"), string(web.Requester(r).UserID))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"run": run})
}

// postConfirm handles POST /_moothall/admin/v1/directory/{directory}/confirm: the run that waits goes on.
func (s *Sync) postConfirm(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Digest string `json:"digest"` // of what was looked at; "": whatever waits
	}](r)
	if err != nil {
		return err
	}
	run, err := s.Confirm(r.Context(), web.PathParam(r, "directory"), req.Digest, string(web.Requester(r).UserID))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"run": run})
}

// postRelink handles POST /_moothall/admin/v1/directory/{directory}/relink: an account is another entry's from now on.
func (s *Sync) postRelink(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		User id.UserID `json:"user_id"`
		Name string    `json:"name"` // by which the directory knows the person
	}](r)
	if err != nil {
		return err
	}
	out, err := s.Relink(r.Context(), web.PathParam(r, "directory"), req.User, req.Name, string(web.Requester(r).UserID))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// getHistory handles GET /_moothall/admin/v1/directory/history/{userId}.
func (s *Sync) getHistory(w http.ResponseWriter, r *http.Request) error {
	entries, err := s.History(r.Context(), id.UserID(web.PathParam(r, "userId")))
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"changes": entries})
}
