package console

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// An export is asked for first and downloaded then. Its file is made while it is sent, so that nothing of the archive lies
// anywhere else; how far that is stands in the database, where every process finds it.
const (
	exportAge    = 24 * time.Hour   // how long an export is known, and can be downloaded again
	exportLost   = 30 * time.Second // a download that was not heard of for so long has ended with its process
	exportTick   = time.Second      // between notes of how far a download is
	maxExports   = 3                // downloads of one officer at once
	shownExports = 50
)

var (
	errNoExport   = mxerr.NotFound("there is no such export; exports are known for 24 hours, and only to whoever asked for them")
	errExportRuns = mxerr.New(http.StatusConflict, "M_UNKNOWN", "this export is being downloaded already")
	errCancelled  = errors.New("it was cancelled")
)

// exportStates are what officers read.
var exportStates = [...]string{
	store.ExportWaiting: "waiting", store.ExportRunning: "running", store.ExportDone: "done", store.ExportCancelled: "cancelled", store.ExportInterrupted: "interrupted",
}

// askExport notes that an officer wants an export, and about how many entries it will have.
func (c *Console) askExport(ctx context.Context, o *officer, a *asked, format string) (*store.ArchiveExport, error) {
	if format != "csv" && format != "jsonl" {
		return nil, mxerr.InvalidParam("the format of an export is csv or jsonl")
	}
	q, err := c.query(ctx, a)
	if err != nil {
		return nil, err
	}
	q.Limit, q.Count = 1, true
	found, err := c.find(ctx, q) // what is wrong with the query is said now
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	var random [12]byte
	_, _ = rand.Read(random[:]) // never fails
	now := c.Clock()
	e := &store.ArchiveExport{
		ID: base64.RawURLEncoding.EncodeToString(random[:]), User: string(o.user), Reason: o.reason, Format: format, Asked: raw, About: found.Total,
		Created: now.UnixMilli(),
	}
	details := a.details()
	details["export"], details["format"], details["hits"] = e.ID, format, found.Total
	if err := c.record(ctx, o, "archive.export", a.Room, details); err != nil {
		return nil, err
	}
	return e, c.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.DropArchiveExports(now.Add(-exportAge).UnixMilli(), now.Add(-exportLost).UnixMilli()); err != nil {
			return err
		}
		return tx.AddArchiveExport(e)
	})
}

// findExport reads an export of an officer's.
func (c *Console) findExport(ctx context.Context, o *officer, id string) (e store.ArchiveExport, err error) {
	found := false
	err = c.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		e, found, err = tx.ArchiveExport(id, string(o.user))
		return err
	})
	if err == nil && (!found || e.Created < c.Clock().Add(-exportAge).UnixMilli()) {
		err = errNoExport
	}
	c.interrupted(&e)
	return e, err
}

// interrupted tells of a download whose process is gone.
func (c *Console) interrupted(e *store.ArchiveExport) {
	if e.State == store.ExportRunning && e.Seen < c.Clock().Add(-exportLost).UnixMilli() {
		e.State, e.Ended = store.ExportInterrupted, e.Seen
	}
}

// listExports reads the exports of an officer's last day, the newest first.
func (c *Console) listExports(ctx context.Context, o *officer) (list []store.ArchiveExport, err error) {
	err = c.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		list, err = tx.ArchiveExports(string(o.user), shownExports)
		return err
	})
	oldest := c.Clock().Add(-exportAge).UnixMilli()
	for i := range list {
		if list[i].Created < oldest {
			return list[:i], err
		}
		c.interrupted(&list[i])
	}
	return list, err
}

// cancelExport ends an export that waits or is being sent, by whichever process.
func (c *Console) cancelExport(ctx context.Context, o *officer, id string) error {
	e, err := c.findExport(ctx, o, id)
	if err != nil {
		return err
	}
	cancelled := false
	err = c.Store.Write(ctx, func(tx *store.Tx) (err error) {
		cancelled, err = tx.CancelArchiveExport(id, string(o.user), c.Clock().UnixMilli())
		return err
	})
	if err != nil || !cancelled {
		return err // what has ended is not cancelled any more
	}
	o.reason = e.Reason
	return c.record(ctx, o, "archive.export.cancelled", "", map[string]any{"export": id})
}

// progress is how far a download is.
type progress struct{ entries, bytes atomic.Int64 }

// counted counts what is sent.
type counted struct {
	w http.ResponseWriter
	p *progress
}

func (c counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.p.bytes.Add(int64(n))
	return n, err
}

// beginExport notes that a download begins.
func (c *Console) beginExport(ctx context.Context, o *officer, e *store.ArchiveExport) error {
	now := c.Clock()
	lost := now.Add(-exportLost).UnixMilli()
	err := c.Store.Write(ctx, func(tx *store.Tx) error {
		n, err := tx.RunningArchiveExports(e.User, lost)
		if err != nil {
			return err
		}
		if n >= maxExports {
			return mxerr.LimitExceeded(10 * time.Second)
		}
		run, ok, err := tx.BeginArchiveExport(e.ID, e.User, now.UnixMilli(), lost)
		if err == nil && !ok {
			err = errExportRuns
		}
		e.Run = run
		return err
	})
	if err != nil {
		return err
	}
	o.reason = e.Reason
	err = c.record(ctx, o, "archive.export.download", "", map[string]any{"export": e.ID})
	if err != nil {
		e.State = store.ExportInterrupted
		return errors.Join(err, c.endExport(ctx, e))
	}
	return nil
}

// endExport notes how a download ended.
func (c *Console) endExport(ctx context.Context, e *store.ArchiveExport) error {
	e.Ended = c.Clock().UnixMilli()
	return c.Store.Write(context.WithoutCancel(ctx), func(tx *store.Tx) error {
		_, err := tx.EndArchiveExport(e)
		return err
	})
}

// seeExport notes how far a download is; false where it was cancelled.
func (c *Console) seeExport(ctx context.Context, e *store.ArchiveExport, p *progress) (goes bool, err error) {
	err = c.Store.Write(ctx, func(tx *store.Tx) (err error) {
		goes, err = tx.SeeArchiveExport(e.ID, e.Run, p.entries.Load(), p.bytes.Load(), c.Clock().UnixMilli())
		return err
	})
	return goes, err
}

// watchExport notes how far a download is until ctx ends, and ends it when it was cancelled or when the officer is none any more.
func (c *Console) watchExport(ctx context.Context, stop context.CancelCauseFunc, w http.ResponseWriter, o *officer, e *store.ArchiveExport, p *progress) {
	tick := time.NewTicker(exportTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		goes, err := c.seeExport(ctx, e, p)
		why := errCancelled
		if err == nil && goes {
			goes, err = c.Accounts.HasRole(ctx, o.user, account.RoleCompliance)
			why = errRole
		}
		if err == nil && !goes {
			stop(why)
			_ = http.NewResponseController(w).SetWriteDeadline(c.Clock()) // whoever waits for the client waits no longer
			return
		}
	}
}

// sendExport answers with an export: a ZIP file of the hits and a manifest.
func (c *Console) sendExport(w http.ResponseWriter, r *http.Request, o *officer, e *store.ArchiveExport) error {
	var a asked
	if err := json.Unmarshal(e.Asked, &a); err != nil {
		return err
	}
	q, err := c.query(r.Context(), &a)
	if err != nil {
		return err
	}
	q.Limit = exportChunk
	found, err := c.find(r.Context(), q) // an engine that is not there is told of before anything is sent
	if err != nil {
		return err
	}
	if err := c.beginExport(r.Context(), o, e); err != nil {
		return err
	}
	began := c.Clock().UTC()
	name := "archive-" + began.Format("20060102-150405")
	h := w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", `attachment; filename="`+name+`.zip"`)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Moothall-Hits", strconv.FormatInt(e.About, 10)) // about how many there will be
	h.Set("X-Moothall-Export", e.ID)

	ctx, stop := context.WithCancelCause(r.Context())
	p := &progress{}
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.watchExport(ctx, stop, w, o, e, p)
	}()
	e.SHA256, err = c.writeExport(ctx, counted{w, p}, http.NewResponseController(w).Flush, q, found, name+"."+e.Format, e.Format, p, func(sum, head string) (any, error) {
		if goes, err := c.seeExport(ctx, e, p); err != nil || !goes {
			return nil, cmp.Or(err, errCancelled) // what was cancelled gets no manifest, however quick its end was
		}
		return manifest{
			File: name + "." + e.Format, SHA256: sum, Entries: p.entries.Load(), Query: a.details(), Reason: e.Reason, Officer: e.User,
			Began: began.Format(time.RFC3339), Ended: c.Clock().UTC().Format(time.RFC3339), Head: head,
		}, nil
	})
	if err != nil && context.Cause(ctx) != nil {
		err = context.Cause(ctx)
	}
	stop(nil)
	<-watched

	e.State, e.Entries, e.Bytes = store.ExportDone, p.entries.Load(), p.bytes.Load()
	ended := map[string]any{"export": e.ID, "entries": e.Entries, "sha256": e.SHA256}
	switch {
	case errors.Is(err, errCancelled):
		e.State, ended["cancelled"] = store.ExportCancelled, true
	case err != nil:
		e.State, ended["interrupted"] = store.ExportInterrupted, true
	}
	if err := c.endExport(ctx, e); err != nil {
		c.Logger.Error("the end of an export cannot be noted", "error", err)
	}
	if err := c.record(context.WithoutCancel(ctx), o, "archive.export.ended", a.Room, ended); err != nil {
		c.Logger.Error("the end of an export cannot be noted", "error", err)
	}
	if err != nil {
		c.abort(err)
	}
	return nil
}

// abort breaks the connection of an answer that has begun, so that nobody takes it for the whole.
func (c *Console) abort(err error) {
	c.Logger.Warn("an export was interrupted", "error", err)
	panic(http.ErrAbortHandler)
}

// exportPage handles POST /console/search/export: the export is asked for, and its page tells of it.
func (c *Console) exportPage(w http.ResponseWriter, r *http.Request, o *officer) error {
	if o.reason == "" {
		return mxerr.InvalidParam("state the reason of the search first")
	}
	a := askedOf(r.PostForm)
	e, err := c.askExport(r.Context(), o, &a, r.PostFormValue("format"))
	if err != nil {
		return err
	}
	return goTo(pathExport+"?id="+url.QueryEscape(e.ID))(w, r, o)
}

// exportFile handles GET /console/search/export/file?id=….
func (c *Console) exportFile(w http.ResponseWriter, r *http.Request, o *officer) error {
	return c.downloadExport(w, r, o, web.QueryString(r, "id"))
}

func (c *Console) downloadExport(w http.ResponseWriter, r *http.Request, o *officer, id string) error {
	if r.Method == http.MethodHead {
		return mxerr.MethodNotAllowed() // it would make the whole file for nothing
	}
	e, err := c.findExport(r.Context(), o, id)
	if err != nil {
		return err
	}
	return c.sendExport(w, r, o, &e)
}

// cancelPage handles POST /console/search/export/cancel.
func (c *Console) cancelPage(w http.ResponseWriter, r *http.Request, o *officer) error {
	id := r.PostFormValue("id")
	if err := c.cancelExport(r.Context(), o, id); err != nil {
		return err
	}
	return goTo(pathExport+"?id="+url.QueryEscape(id))(w, r, o)
}

// exportView is an export as its page shows it.
type exportView struct {
	ID, Reason, Format, State string
	Asked                     asked
	About, Entries            int64
	Size, Elapsed, Left       string
	Created, Ended            int64
	SHA256                    string
}

type exportData struct {
	Export  *exportView // nil: the list
	List    []exportView
	Refresh int // seconds until the page loads itself again; 0: it does not
	Still   bool
}

// showExport handles GET /console/search/export: how far an export is, by a page that loads itself again; without an id the
// exports of the last day.
func (c *Console) showExport(w http.ResponseWriter, r *http.Request, o *officer) error {
	if c.Find == nil {
		return errNoArchive
	}
	var d exportData
	if id := web.QueryString(r, "id"); id != "" {
		e, err := c.findExport(r.Context(), o, id)
		if err != nil {
			return err
		}
		v, err := c.viewExport(&e)
		if err != nil {
			return err
		}
		d.Export, d.Still = v, web.QueryString(r, "still") != ""
		const patience = 10 * time.Minute // with an export that nobody downloads
		if !d.Still && (e.State == store.ExportRunning || e.State == store.ExportWaiting && c.Clock().UnixMilli()-e.Created < patience.Milliseconds()) {
			d.Refresh = 2
		}
		return c.pages.Render(w, r, http.StatusOK, "export", d)
	}
	list, err := c.listExports(r.Context(), o)
	if err != nil {
		return err
	}
	for i := range list {
		v, err := c.viewExport(&list[i])
		if err != nil {
			return err
		}
		d.List = append(d.List, *v)
	}
	return c.pages.Render(w, r, http.StatusOK, "export", d)
}

func (c *Console) viewExport(e *store.ArchiveExport) (*exportView, error) {
	v := &exportView{
		ID: e.ID, Reason: e.Reason, Format: e.Format, State: exportStates[e.State], About: e.About, Entries: e.Entries, Size: size(e.Bytes),
		Created: e.Created, Ended: e.Ended, SHA256: e.SHA256,
	}
	if err := json.Unmarshal(e.Asked, &v.Asked); err != nil {
		return nil, err
	}
	if e.Began == 0 {
		return v, nil
	}
	until := e.Ended
	if e.State == store.ExportRunning {
		until = c.Clock().UnixMilli()
		if v.About = max(v.About, e.Entries); e.Entries > 0 && e.Seen > e.Began { // for a bar that does not run over
			v.Left = minutes((e.Seen - e.Began) * (v.About - e.Entries) / e.Entries)
		}
	}
	v.Elapsed = minutes(until - e.Began)
	return v, nil
}

// minutes writes a stretch of time as 1:05 or 1:00:05.
func minutes(ms int64) string {
	s := max(ms, 0) / 1000
	two := func(n int64) string { return string([]byte{byte('0' + n/10), byte('0' + n%10)}) }
	if s >= 3600 {
		return strconv.FormatInt(s/3600, 10) + ":" + two(s/60%60) + ":" + two(s%60)
	}
	return strconv.FormatInt(s/60, 10) + ":" + two(s%60)
}

// size writes a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1000:
		return strconv.FormatInt(n, 10) + " B"
	case n < 1000_000:
		return strconv.FormatFloat(float64(n)/1000, 'f', 1, 64) + " kB"
	case n < 1000_000_000:
		return strconv.FormatFloat(float64(n)/1000_000, 'f', 1, 64) + " MB"
	}
	return strconv.FormatFloat(float64(n)/1000_000_000, 'f', 2, 64) + " GB"
}
