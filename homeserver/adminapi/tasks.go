package adminapi

import (
	"cmp"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// task is background work as GET /scheduled_tasks lists it.
type task struct {
	ID       string         `json:"id"`
	Action   string         `json:"action"`
	Status   string         `json:"status"` // scheduled, active, complete, cancelled or failed
	TS       int64          `json:"timestamp_ms"`
	Resource *string        `json:"resource_id"`
	Result   jsontext.Value `json:"result"`
	Error    *string        `json:"error"`
}

// The names that tools know the work by.
const (
	actionDeletion  = "shutdown_and_purge_room"
	actionPurge     = "purge_history"
	actionRedaction = "redact_all_events"
)

// scheduledTasks handles GET /_synapse/admin/v1/scheduled_tasks: deletions of rooms of the whole server; removals of old messages and
// redactions of this process.
func (a *API) scheduledTasks(w http.ResponseWriter, r *http.Request) error {
	until, err := web.QueryInt(r, "max_timestamp", math.MaxInt, 0, math.MaxInt)
	if err != nil {
		return err
	}
	status := web.QueryString(r, "status")
	if status == "" {
		status = web.QueryString(r, "job_status") // its older name
	}
	switch status {
	case "", "scheduled", "active", "complete", "cancelled", "failed":
	default:
		return mxerr.InvalidParam("query parameter 'status' must be scheduled, active, complete, cancelled or failed")
	}
	list, err := a.deletions(r.Context(), "", "")
	if err != nil {
		return err
	}
	tasks := a.jobs()
	for _, d := range list {
		tasks = append(tasks, deletionTask(d))
	}
	action, resource := web.QueryString(r, "action_name"), web.QueryString(r, "resource_id")
	tasks = slices.DeleteFunc(tasks, func(t task) bool {
		return action != "" && t.Action != action || status != "" && t.Status != status || t.TS > int64(until) ||
			resource != "" && (t.Resource == nil || *t.Resource != resource)
	})
	slices.SortFunc(tasks, func(x, y task) int { return cmp.Or(cmp.Compare(x.TS, y.TS), strings.Compare(x.ID, y.ID)) })
	return web.WriteJSON(w, map[string]any{"scheduled_tasks": tasks})
}

func deletionTask(d store.RoomDeletion) task {
	t := task{ID: d.ID, Action: actionDeletion, TS: max(d.Requested, d.Finished), Resource: &d.RoomID, Result: jsontext.Value(d.Result)}
	switch {
	case d.Status == store.DeletionDone:
		t.Status = "complete"
	case d.Status == store.DeletionFailed:
		t.Status, t.Error = "failed", optional("the server's log says why")
	case d.Stage == 0:
		t.Status = "scheduled"
	default:
		t.Status = "active"
	}
	return t
}

// jobs lists the purges and redactions of this process.
func (a *API) jobs() []task {
	tasks := []task{}
	a.purges.mu.Lock()
	for id, p := range a.purges.byID {
		tasks = append(tasks, task{ID: id, Action: actionPurge, Status: p.Status, TS: p.changed, Resource: &p.roomID, Error: optional(p.Error)})
	}
	a.purges.mu.Unlock()
	a.redacts.mu.Lock()
	defer a.redacts.mu.Unlock()
	for id, x := range a.redacts.byID {
		t := task{ID: id, Action: actionRedaction, Status: x.Status, TS: x.changed, Resource: &x.user}
		if result, err := json.Marshal(map[string]any{"failed_redactions": x.Failed}); err == nil && x.Status == "complete" {
			t.Result = result
		}
		tasks = append(tasks, t)
	}
	return tasks
}
