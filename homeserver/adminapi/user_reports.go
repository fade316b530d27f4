package adminapi

import (
	"net/http"
	"strconv"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// userReportJSON is a report of a user.
type userReportJSON struct {
	ID       int64  `json:"id"`
	Received int64  `json:"received_ts"`
	Target   string `json:"target_user_id"`
	User     string `json:"user_id"` // who reported
	Reason   string `json:"reason"`
}

func newUserReportJSON(r store.Report) userReportJSON {
	return userReportJSON{ID: r.ID, Received: r.Created, Target: r.User, User: r.Reporter, Reason: r.Reason}
}

// userReports handles GET /_synapse/admin/v1/user_reports.
func (a *API) userReports(w http.ResponseWriter, r *http.Request) error {
	q := store.ReportQuery{Users: true, SenderUserID: web.QueryString(r, "target_user_id")}
	return a.listReports(w, r, "user_reports", q, func(rep store.Report) (any, error) { return newUserReportJSON(rep), nil })
}

// userReport handles GET /_synapse/admin/v1/user_reports/{reportId}.
func (a *API) userReport(w http.ResponseWriter, r *http.Request) error {
	rep, err := a.reportOf(r, aboutUser)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, newUserReportJSON(rep))
}

// deleteUserReport handles DELETE /_synapse/admin/v1/user_reports/{reportId}.
func (a *API) deleteUserReport(w http.ResponseWriter, r *http.Request) error {
	return a.dropReport(w, r, aboutUser)
}

func aboutEvent(r store.Report) bool { return r.Event != "" }
func aboutUser(r store.Report) bool  { return r.Event == "" && r.Room == "" }

var errNoReport = mxerr.NotFound("there is no such report")

// reportOf reads the report in the path, which is about what it should be.
func (a *API) reportOf(r *http.Request, about func(store.Report) bool) (store.Report, error) {
	n, err := strconv.ParseInt(web.PathParam(r, "reportId"), 10, 64)
	if err != nil || n < 0 {
		return store.Report{}, mxerr.InvalidParam("the id of a report is a number of at least 0")
	}
	var rep store.Report
	var ok bool
	err = a.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		rep, ok, err = tx.Report(n)
		return err
	})
	if err == nil && (!ok || !about(rep)) {
		err = errNoReport
	}
	return rep, err
}

// dropReport removes the report in the path.
func (a *API) dropReport(w http.ResponseWriter, r *http.Request, about func(store.Report) bool) error {
	rep, err := a.reportOf(r, about)
	if err != nil {
		return err
	}
	if err := a.audited(r, "admin.report.deleted", strconv.FormatInt(rep.ID, 10), nil); err != nil {
		return err
	}
	err = a.Store.Write(r.Context(), func(tx *store.Tx) error {
		ok, err := tx.DeleteReport(rep.ID)
		if err == nil && !ok {
			err = errNoReport
		}
		return err
	})
	if err != nil {
		return err
	}
	return empty(w)
}
