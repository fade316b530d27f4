package oa

import (
	"context"
	"net/http"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (o *OA) pageRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET " + pagePath + "{token}", Auth: web.Public, Handler: o.pages.Handler(o.showTask)},
		{Pattern: "POST " + pagePath + "{token}", Auth: web.Public, Handler: o.pages.Handler(o.postForm)},
	}
}

// taskPage is what the page of a task shows.
type taskPage struct {
	Token    string
	Short    string
	Title    string
	Summary  string
	Rows     [][2]string
	Links    []Link
	Open     bool
	Do       string // approve, reject: what the person came for
	Outcome  []string
	Waits    bool // for the OA system
	Problem  string
	Reason   string
	Required bool // a reason, to reject
	Delegate bool
	StepUp   bool
	User     id.UserID
	Passed   id.UserID // to whom it was passed on just now
}

// linkOf finds the task of a link, for a visitor. Nobody but the person that the link was made for learns anything from it.
func (o *OA) linkOf(w http.ResponseWriter, r *http.Request) (v Visitor, tok store.OAToken, t *task, cb *store.OACallback, ok bool, err error) {
	secret := web.PathParam(r, "token")
	if v, ok = o.d.Signed(w, r, false, 0); !ok {
		return v, tok, nil, nil, false, nil
	}
	hash := store.HashID(secret)
	found := false
	t, cb, err = o.findBy(r.Context(), func(tx *store.Tx) (row store.OATask, exists bool, err error) {
		if tok, found, err = tx.OAToken(hash); err != nil || !found {
			return row, false, err
		}
		return tx.OATask(tok.Task)
	})
	if mxerr.Is(err, "M_NOT_FOUND") || err == nil && tok.User != v.User {
		reason := "unknown link"
		if found {
			reason = "the link is somebody else's"
		}
		if after := o.limits.Allow(web.RateLogin, "link "+string(v.User)); after > 0 {
			return v, tok, nil, nil, false, mxerr.LimitExceeded(after)
		}
		e := audit.Entry{Action: "oa.refused", Reason: reason}
		e.Actor, e.Kind = v.User, audit.KindUser
		if found {
			e.Target = shortID(tok.Task)
		}
		if err := o.d.Audit.Refusal(r.Context(), e); err != nil {
			return v, tok, nil, nil, false, err
		}
		if found {
			return v, tok, nil, nil, false, mxerr.Forbidden("this link was made for another person: sign in as that person, or ask for the approval to be passed on to you")
		}
		return v, tok, nil, nil, false, mxerr.NotFound("there is no such link: write “todo” in your approvals room for new ones")
	}
	if err != nil {
		return v, tok, nil, nil, false, err
	}
	if t.StepUp && t.Status == store.OAOpen {
		if v, ok = o.d.Signed(w, r, true, o.d.Config.StepUpAge); !ok {
			return v, tok, nil, nil, false, nil
		}
		if v.User != tok.User {
			return v, tok, nil, nil, false, errNotYour
		}
	}
	return v, tok, t, cb, true, nil
}

func (o *OA) pageOf(r *http.Request, v Visitor, t *task, cb *store.OACallback) taskPage {
	w := &english
	if o.d.Kit.Lang(r) == "zh" {
		w = &chinese
	}
	tmpl := o.template(t)
	p := taskPage{
		Token: web.PathParam(r, "token"), Short: shortID(t.NID), Title: t.brief.Title, Summary: t.doc.Summary, Rows: t.rows(w, tmpl), Links: t.doc.Links,
		Open: t.Status == store.OAOpen, Do: web.QueryString(r, "do"), Required: tmpl.RequireReason, Delegate: tmpl.Delegate, StepUp: t.StepUp, User: v.User,
	}
	if p.Do != "approve" && p.Do != "reject" {
		p.Do = ""
	}
	if !p.Open {
		by := t.DecidedBy
		if t.Via != viaOA {
			by = o.displayName(r.Context(), id.UserID(by))
		}
		p.Outcome = t.outcome(w, by, cb)
		p.Waits = cb != nil && cb.State == store.OACallbackWaiting
	}
	return p
}

// showTask handles GET /approvals/{token}. It never acts: clients and mail scanners fetch links too.
func (o *OA) showTask(w http.ResponseWriter, r *http.Request) error {
	v, tok, t, cb, ok, err := o.linkOf(w, r)
	if err != nil || !ok {
		return err
	}
	if t.Status == store.OAOpen && tok.Version != t.Version {
		return errChanged
	}
	if t.Status == store.OAOpen && (tok.Used != 0 || tok.Expires <= o.now()) {
		return errUsed
	}
	return o.pages.Render(w, r, http.StatusOK, "task", o.pageOf(r, v, t, cb))
}

// visitorContext is the context in which a visitor acts.
func visitorContext(ctx context.Context, v Visitor) context.Context {
	return audit.WithSource(ctx, audit.Source{Actor: v.User, Kind: audit.KindUser, Session: v.Session})
}

// postForm handles POST /approvals/{token}.
func (o *OA) postForm(w http.ResponseWriter, r *http.Request) error {
	if after := o.limits.Allow(web.RateSend, "form "+web.ClientIP(r).String()); after > 0 {
		return mxerr.LimitExceeded(after)
	}
	if err := o.d.Kit.Form(w, r); err != nil {
		return err
	}
	v, tok, t, cb, ok, err := o.linkOf(w, r)
	if err != nil || !ok {
		return err
	}
	ctx := visitorContext(r.Context(), v)
	reason := strings.TrimSpace(strings.ReplaceAll(r.PostFormValue("reason"), "\r\n", "\n"))
	if len(reason) > maxReason || strings.ContainsRune(reason, 0) {
		return bad("reason", "has more than %d bytes", maxReason)
	}
	answer := r.PostFormValue("answer")
	if answer == "delegate" {
		return o.postPassOn(ctx, w, r, v, tok, t)
	}
	d := decision{task: t.NID, version: tok.Version, by: v.User, reason: reason, via: viaPage, token: tok.Hash, amr: v.AMR}
	switch answer {
	case "approve":
		d.status = store.OAApproved
	case "reject":
		d.status = store.OARejected
		if reason == "" && t.Status == store.OAOpen && o.template(t).RequireReason {
			p := o.pageOf(r, v, t, cb)
			p.Problem, p.Do = "need_reason", "reject"
			return o.pages.Render(w, r, http.StatusBadRequest, "task", p)
		}
	default:
		return mxerr.InvalidParam("choose one of: approve, reject")
	}
	decided, err := o.decide(ctx, d)
	if e := mxerr.As(err); e != nil && e.Extra["status"] != nil {
		// A second click, or somebody was quicker: what was decided is shown.
		if t, cb, err = o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(t.NID) }); err != nil {
			return err
		}
		p := o.pageOf(r, v, t, cb)
		p.Problem = "closed_before"
		return o.pages.Render(w, r, http.StatusConflict, "task", p)
	}
	if err != nil {
		return err
	}
	if cb = o.awaitCallback(ctx, decided); cb == nil {
		_, cb, err = o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(t.NID) })
	}
	if err != nil {
		return err
	}
	return o.pages.Render(w, r, http.StatusOK, "task", o.pageOf(r, v, decided, cb))
}

// postPassOn handles the form by which an approval is passed on.
func (o *OA) postPassOn(ctx context.Context, w http.ResponseWriter, r *http.Request, v Visitor, tok store.OAToken, t *task) error {
	to, err := o.user(ctx, "to", strings.TrimSpace(r.PostFormValue("to")))
	if err != nil {
		return err
	}
	if tok.Used != 0 || tok.Expires <= o.now() {
		return errUsed
	}
	if t, err = o.delegate(ctx, t.NID, tok.Version, v.User, to, viaPage); err != nil {
		return err
	}
	p := o.pageOf(r, v, t, nil)
	p.Passed, p.Open = to, false
	return o.pages.Render(w, r, http.StatusOK, "task", p)
}
