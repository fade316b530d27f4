package oa

import (
	"bytes"
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const apiBase = "/_moothall/oa/v1"

const (
	usualLimit = 100
	maxLimit   = 10_000
	maxBulk    = 1000
)

type apiHandler func(w http.ResponseWriter, r *http.Request, s *system, body []byte) error

func (o *OA) apiRoutes() []web.Route {
	var out []web.Route
	add := func(pattern string, fn apiHandler) {
		out = append(out, web.Route{Pattern: pattern, Auth: web.Public, Handler: func(w http.ResponseWriter, r *http.Request) error {
			var body []byte
			if r.ContentLength != 0 && r.Method != http.MethodGet {
				var err error
				if body, err = web.ReadRawObject(r); err != nil {
					return err
				}
			}
			ctx, s, err := o.authenticate(r, body)
			if err != nil {
				return err
			}
			return fn(w, r.WithContext(ctx), s, body)
		}})
	}
	add("POST "+apiBase+"/tasks", o.postTask)
	add("GET "+apiBase+"/tasks", o.listTasks)
	add("PUT "+apiBase+"/tasks/{id}", o.putTask)
	add("GET "+apiBase+"/tasks/{id}", o.getTask)
	add("POST "+apiBase+"/tasks/{id}/withdraw", o.withdraw)
	add("POST "+apiBase+"/tasks/{id}/decide", o.decideThere)
	add("POST "+apiBase+"/tasks/{id}/remind", o.postRemind)
	add("POST "+apiBase+"/tasks/{id}/delegate", o.postDelegate)
	add("POST "+apiBase+"/bulk", o.bulk)
	return append(out, web.Route{Pattern: "GET " + apiBase + "/mine", Auth: web.NoGuest, Rate: web.RateRead, Handler: o.mine})
}

// postTask handles POST tasks: the same id makes one task, however often it is asked for.
func (o *OA) postTask(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := web.DecodeObject[taskRequest](body)
	if err != nil {
		return err
	}
	row, err := o.build(r.Context(), s, &req)
	if err != nil {
		return err
	}
	t, isNew, err := o.create(r.Context(), s, row)
	if err != nil {
		return err
	}
	if !isNew && !sameTask(&t.OATask, &row) {
		return mxerr.New(http.StatusConflict, "M_CONFLICT", "there is another task of this id: PUT changes it").With("status", t.Status)
	}
	return o.answer(w, r, t, isNew)
}

func sameTask(a, b *store.OATask) bool {
	return bytes.Equal(a.Brief, b.Brief) && bytes.Equal(a.Doc, b.Doc) && a.Assignee == b.Assignee && a.Applicant == b.Applicant &&
		a.LowRisk == b.LowRisk && a.StepUp == b.StepUp
}

// create stores a task unless there is one of its id, which it returns then.
func (o *OA) create(ctx context.Context, s *system, row store.OATask) (*task, bool, error) {
	isNew := false
	err := o.d.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		isNew, err = o.insert(ctx, tx, s, &row)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	if isNew {
		o.wake(loopCards)
	}
	t, err := readTask(row)
	return t, isNew, err
}

func (o *OA) insert(ctx context.Context, tx *store.Tx, s *system, row *store.OATask) (bool, error) {
	before, found, err := tx.OATaskOf(s.ID, row.ExternalID)
	if err != nil {
		return false, err
	}
	if found {
		*row = before
		return false, nil
	}
	t, err := readTask(*row)
	if err != nil {
		return false, err
	}
	row.Created = o.now()
	row.RemindAt = remindAt(o.template(t), row.Created)
	if row.NID, err = tx.NumberOATasks(1); err != nil {
		return false, err
	}
	isNew, err := tx.InsertOATask(row)
	if err != nil {
		return false, err
	}
	if !isNew { // another request was quicker
		*row, _, err = tx.OATaskOf(s.ID, row.ExternalID)
		return false, err
	}
	return true, audit.Append(ctx, tx, audit.Entry{Action: "oa.created", Target: shortID(row.NID), Details: map[string]any{
		"system": s.ID, "id": row.ExternalID, "assignee": row.Assignee,
	}})
}

// putTask handles PUT tasks/{id}: it creates a task or changes an open one, whose old links are void then.
func (o *OA) putTask(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := web.DecodeObject[taskRequest](body)
	if err != nil {
		return err
	}
	if req.ID = web.PathParam(r, "id"); req.Assignee == "" {
		return bad("assignee", "is missing")
	}
	row, err := o.build(r.Context(), s, &req)
	if err != nil {
		return err
	}
	t, isNew, err := o.put(r.Context(), s, row)
	if err != nil {
		return err
	}
	return o.answer(w, r, t, isNew)
}

func (o *OA) put(ctx context.Context, s *system, row store.OATask) (*task, bool, error) {
	t, isNew, err := o.create(ctx, s, row)
	if err != nil || isNew || sameTask(&t.OATask, &row) {
		return t, isNew, err
	}
	err = o.d.Store.Write(ctx, func(tx *store.Tx) error {
		now, _, err := tx.OATaskOf(s.ID, row.ExternalID)
		if err != nil {
			return err
		}
		if now.Status != store.OAOpen {
			return errClosed(now.Status)
		}
		before := now
		now.Assignee, now.Applicant, now.LowRisk, now.StepUp, now.Brief, now.Doc = row.Assignee, row.Applicant, row.LowRisk, row.StepUp, row.Brief, row.Doc
		changed, err := tx.ChangeOATask(now, o.now())
		if err != nil {
			return err
		}
		if !changed {
			return errChanged
		}
		if now, _, err = tx.OATask(now.NID); err != nil {
			return err
		}
		if t, err = readTask(now); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "oa.changed", Target: shortID(now.NID), Details: map[string]any{
			"system": s.ID, "id": now.ExternalID, "version": now.Version, "from": before.Assignee, "assignee": now.Assignee,
		}})
	})
	if err == nil {
		o.wake(loopCards)
	}
	return t, false, err
}

// find reads the task that a request names.
func (o *OA) find(r *http.Request, s *system) (*task, *store.OACallback, error) {
	return o.findBy(r.Context(), func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATaskOf(s.ID, web.PathParam(r, "id")) })
}

func (o *OA) findBy(ctx context.Context, get func(tx *store.Tx) (store.OATask, bool, error)) (*task, *store.OACallback, error) {
	var row store.OATask
	var cb *store.OACallback
	err := o.d.Store.Read(ctx, func(tx *store.Tx) error {
		cb = nil
		var found bool
		var err error
		if row, found, err = get(tx); err != nil {
			return err
		}
		if !found {
			return errGone
		}
		c, found, err := tx.OACallback(row.NID, row.Version, kindDecided)
		if found {
			cb = &c
		}
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	t, err := readTask(row)
	return t, cb, err
}

func (o *OA) answer(w http.ResponseWriter, r *http.Request, t *task, isNew bool) error {
	status := http.StatusOK
	if isNew {
		status = http.StatusCreated
	}
	_, cb, err := o.findBy(r.Context(), func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(t.NID) })
	if err != nil {
		return err
	}
	return web.WriteJSONStatus(w, status, t.view(cb))
}

// getTask handles GET tasks/{id}.
func (o *OA) getTask(w http.ResponseWriter, r *http.Request, s *system, _ []byte) error {
	t, cb, err := o.find(r, s)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, t.view(cb))
}

// settle ends a task in the name of the OA system.
func (o *OA) settle(w http.ResponseWriter, r *http.Request, s *system, status, name, reason string) error {
	t, _, err := o.find(r, s)
	if err != nil {
		return err
	}
	if t.Status == status && t.Via == viaOA {
		return o.answer(w, r, t, false) // it was said before
	}
	if t, err = o.decide(r.Context(), decision{task: t.NID, name: name, status: status, reason: reason, via: viaOA}); err != nil {
		return err
	}
	return o.answer(w, r, t, false)
}

type outcomeRequest struct {
	Outcome string `json:"outcome"`
	By      string `json:"by"`
	Reason  string `json:"reason"`
}

func (req *outcomeRequest) check(s *system) error {
	switch {
	case len(req.By) > maxTitle:
		return bad("by", "has more than %d bytes", maxTitle)
	case len(req.Reason) > maxReason:
		return bad("reason", "has more than %d bytes", maxReason)
	}
	if req.By == "" {
		if req.By = s.Name; req.By == "" {
			req.By = s.ID
		}
	}
	return nil
}

func readOptional[T any](body []byte) (T, error) {
	if len(body) == 0 {
		var v T
		return v, nil
	}
	return web.DecodeObject[T](body)
}

// withdraw handles POST tasks/{id}/withdraw: nobody is to decide it any more.
func (o *OA) withdraw(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := readOptional[outcomeRequest](body)
	if err == nil {
		err = req.check(s)
	}
	if err != nil {
		return err
	}
	return o.settle(w, r, s, store.OAWithdrawn, req.By, req.Reason)
}

// decideThere handles POST tasks/{id}/decide: somebody decided it in the OA system itself.
func (o *OA) decideThere(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := web.DecodeObject[outcomeRequest](body)
	if err == nil {
		err = req.check(s)
	}
	if err != nil {
		return err
	}
	if !slices.Contains([]string{store.OAApproved, store.OARejected}, req.Outcome) {
		return bad("outcome", "is %q; it must be approved or rejected", req.Outcome)
	}
	return o.settle(w, r, s, req.Outcome, req.By, req.Reason)
}

// postRemind handles POST tasks/{id}/remind.
func (o *OA) postRemind(w http.ResponseWriter, r *http.Request, s *system, _ []byte) error {
	t, _, err := o.find(r, s)
	if err != nil {
		return err
	}
	if t.Status != store.OAOpen {
		return errClosed(t.Status)
	}
	done, err := o.remind(r.Context(), t.OATask)
	if err != nil {
		return err
	}
	if !done {
		return mxerr.LimitExceeded(max(time.Until(time.UnixMilli(t.LastRemind).Add(remindEvery)), time.Second))
	}
	return o.answer(w, r, t, false)
}

type delegateRequest struct {
	To string `json:"to"`
}

// postDelegate handles POST tasks/{id}/delegate.
func (o *OA) postDelegate(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := web.DecodeObject[delegateRequest](body)
	if err != nil {
		return err
	}
	to, err := o.user(r.Context(), "to", req.To)
	if err != nil {
		return err
	}
	t, _, err := o.find(r, s)
	if err != nil {
		return err
	}
	if t, err = o.delegate(r.Context(), t.NID, 0, "", to, viaOA); err != nil {
		return err
	}
	return o.answer(w, r, t, false)
}

type bulkRequest struct {
	Tasks []taskRequest `json:"tasks"`
}

type bulkAnswer struct {
	Created int `json:"created"`
	Known   int `json:"known"` // there were tasks of these ids
}

// bulk handles POST bulk: many tasks at once, all or none.
func (o *OA) bulk(w http.ResponseWriter, r *http.Request, s *system, body []byte) error {
	req, err := web.DecodeObject[bulkRequest](body)
	if err != nil {
		return err
	}
	if len(req.Tasks) == 0 || len(req.Tasks) > maxBulk {
		return bad("tasks", "must have 1 to %d entries", maxBulk)
	}
	rows := make([]store.OATask, len(req.Tasks))
	for i := range req.Tasks {
		if rows[i], err = o.build(r.Context(), s, &req.Tasks[i]); err != nil {
			if e := mxerr.As(err); e != nil {
				err = mxerr.New(e.Status, e.Code, "tasks["+strconv.Itoa(i)+"]: "+e.Message)
			}
			return err
		}
	}
	out, err := o.insertAll(r.Context(), s, rows)
	if err != nil {
		return err
	}
	o.wake(loopCards)
	return web.WriteJSON(w, out)
}

// insertAll stores tasks with one entry in the audit log.
func (o *OA) insertAll(ctx context.Context, s *system, rows []store.OATask) (out bulkAnswer, err error) {
	err = o.d.Store.Write(ctx, func(tx *store.Tx) error {
		last, err := tx.NumberOATasks(len(rows))
		if err != nil {
			return err
		}
		now := o.now()
		list := slices.Clone(rows) // a transaction may run again
		for i := range list {
			row := &list[i]
			t, err := readTask(*row)
			if err != nil {
				return err
			}
			row.NID, row.Created, row.RemindAt = last-int64(len(list)-1-i), now, remindAt(o.template(t), now)
		}
		added, err := tx.InsertOATasks(list)
		if err != nil {
			return err
		}
		out = bulkAnswer{Created: int(added), Known: len(list) - int(added)}
		return audit.Append(ctx, tx, audit.Entry{Action: "oa.created", Target: shortID(last), Details: map[string]any{
			"system": s.ID, "from": shortID(last - int64(len(rows)) + 1), "to": shortID(last), "created": out.Created,
		}})
	})
	return out, err
}

// listTasks handles GET tasks.
func (o *OA) listTasks(w http.ResponseWriter, r *http.Request, s *system, _ []byte) error {
	q := store.OAQuery{System: s.ID, Status: web.QueryString(r, "status")}
	if a := web.QueryString(r, "assignee"); a != "" {
		if q.Assignee = id.UserID(a); a[0] != '@' {
			q.Assignee = id.NewUserID(a, o.d.ServerName)
		}
	}
	if !slices.Contains([]string{"", store.OAOpen, store.OAApproved, store.OARejected, store.OAWithdrawn}, q.Status) {
		return bad("status", "is %q; it must be open, approved, rejected or withdrawn", q.Status)
	}
	return o.list(w, r, q)
}

// mine handles GET mine: what the user whose access token it is has to decide.
func (o *OA) mine(w http.ResponseWriter, r *http.Request) error {
	return o.list(w, r, store.OAQuery{Assignee: web.Requester(r).UserID, Status: store.OAOpen})
}

func (o *OA) list(w http.ResponseWriter, r *http.Request, q store.OAQuery) error {
	var err error
	if q.Limit, err = web.QueryInt(r, "limit", usualLimit, 1, maxLimit); err != nil {
		return err
	}
	from, err := web.QueryInt(r, "from", 0, 0, 1<<52)
	if err != nil {
		return err
	}
	q.After = int64(from)
	limit := q.Limit
	q.Limit++ // whether there are more
	var out []byte
	n, last := 0, int64(0)
	err = o.d.Store.Read(r.Context(), func(tx *store.Tx) error {
		out, n = append(out[:0], `{"tasks":[`...), 0
		return tx.OABriefs(q, func(b store.OABrief) (err error) {
			if n++; n > limit {
				return nil
			}
			if n > 1 {
				out = append(out, ',')
			}
			last = b.NID
			out, err = appendBrief(out, b)
			return err
		})
	})
	if err != nil {
		return err
	}
	out = append(out, ']')
	if n > limit {
		out = append(strconv.AppendInt(append(out, `,"next":"`...), last, 10), '"')
	}
	return web.WriteRaw(w, append(out, '}'))
}

// appendBrief writes an entry of a list by hand: lists are long, and what a task says is JSON already.
func appendBrief(out []byte, b store.OABrief) ([]byte, error) {
	var err error
	text := func(key, value string) {
		if err == nil {
			out = append(append(append(out, `,"`...), key...), `":`...)
			out, err = jsontext.AppendQuote(out, value)
		}
	}
	out = append(strconv.AppendInt(append(out, `{"short_id":"#A`...), b.NID, 10), '"')
	text("id", b.ExternalID)
	text("system", b.System)
	text("status", b.Status)
	text("assignee", string(b.Assignee))
	out = append(out, `,"version":`...)
	out = strconv.AppendInt(out, b.Version, 10)
	out = append(time.UnixMilli(b.Created).UTC().AppendFormat(append(out, `,"created":"`...), time.RFC3339), `","task":`...)
	if len(b.Brief) < 2 {
		return nil, json.Unmarshal(b.Brief, &brief{})
	}
	return append(append(out, b.Brief...), '}'), err
}
