package console

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// auditAsked is what an auditor looks for.
type auditAsked struct {
	Actor, Target, Action, Result, IP, Text, From, To string
}

func auditAskedOf(v url.Values) auditAsked {
	return auditAsked{v.Get("actor"), v.Get("target"), v.Get("action"), v.Get("result"), v.Get("ip"), v.Get("text"), v.Get("from"), v.Get("to")}
}

func (a *auditAsked) values() url.Values {
	v := url.Values{}
	for _, f := range [][2]string{{"actor", a.Actor}, {"target", a.Target}, {"action", a.Action}, {"result", a.Result}, {"ip", a.IP}, {"text", a.Text}, {"from", a.From}, {"to", a.To}} {
		if f[1] != "" {
			v.Set(f[0], f[1])
		}
	}
	return v
}

func (a *auditAsked) filter() (audit.Filter, error) {
	f := audit.Filter{Actor: id.UserID(a.Actor), Target: a.Target, IP: a.IP, Text: a.Text, Result: audit.Result(a.Result)}
	if a.Action != "" {
		f.Actions = strings.Fields(a.Action)
	}
	switch f.Result {
	case "", audit.OK, audit.Refused, audit.Failed:
	default:
		return f, mxerr.InvalidParam("a result is ok, refused or failed")
	}
	for _, d := range []struct {
		text string
		to   *time.Time
		plus time.Duration
	}{{a.From, &f.From, 0}, {a.To, &f.To, 24 * time.Hour}} {
		if d.text == "" {
			continue
		}
		at, err := time.Parse(time.DateOnly, d.text)
		if err != nil {
			return f, mxerr.InvalidParam("a date is written like 2026-01-31")
		}
		*d.to = at.Add(d.plus)
	}
	return f, nil
}

func (a *auditAsked) details() map[string]any {
	d := map[string]any{}
	for k, v := range a.values() {
		d[k] = v[0]
	}
	return d
}

type auditRow struct {
	Time                                            int64
	Actor, Kind, Action, Target, Result, Reason, IP string
	Details                                         string
}

type auditData struct {
	Asked   auditAsked
	Problem string
	Rows    []auditRow
	Next    string
	Results []string
}

// showAudit handles GET /console/audit. Reading the log is itself an entry.
func (c *Console) showAudit(w http.ResponseWriter, r *http.Request, o *officer) error {
	d := auditData{Asked: auditAskedOf(r.URL.Query()), Results: []string{string(audit.OK), string(audit.Refused), string(audit.Failed)}}
	f, err := d.Asked.filter()
	status := http.StatusOK
	if err == nil {
		f.Page, f.Limit = web.QueryString(r, "page"), 50
		if err := c.record(r.Context(), o, "audit.read", "", d.Asked.details()); err != nil {
			return err
		}
		var page audit.Page
		if page, err = c.Audit.Query(r.Context(), f); err == nil {
			for i := range page.Entries {
				row, err := auditRowOf(&page.Entries[i])
				if err != nil {
					return err
				}
				d.Rows = append(d.Rows, row)
			}
			if page.Next != "" {
				v := d.Asked.values()
				v.Set("page", page.Next)
				d.Next = pathAudit + "?" + v.Encode()
			}
		}
	}
	if err != nil {
		e := mxerr.As(err)
		if e == nil {
			return err
		}
		status, d.Problem = e.Status, e.Message
	}
	return c.pages.Render(w, r, status, "audit", d)
}

func auditRowOf(e *audit.Stored) (auditRow, error) {
	row := auditRow{
		Time: e.Time, Actor: string(e.Actor), Kind: e.Kind, Action: e.Action, Target: e.Target, Result: string(e.Result), Reason: e.Reason, IP: e.IP,
	}
	rest := map[string]any{}
	for k, v := range e.Details {
		rest[k] = v
	}
	if e.Before != nil {
		rest["before"] = e.Before
	}
	if e.After != nil {
		rest["after"] = e.After
	}
	if len(rest) == 0 {
		return row, nil
	}
	b, err := json.Marshal(rest, json.Deterministic(true))
	row.Details = string(b)
	return row, err
}

// exportAudit handles POST /console/audit/export: JSON lines, the last of which has the sum of all before it.
func (c *Console) exportAudit(w http.ResponseWriter, r *http.Request, o *officer) error {
	a := auditAskedOf(r.PostForm)
	return c.writeAudit(w, r, o, &a)
}

// apiAudit handles GET /_moothall/compliance/v1/audit.
func (c *Console) apiAudit(w http.ResponseWriter, r *http.Request, o *officer) error {
	a := auditAskedOf(r.URL.Query())
	return c.writeAudit(w, r, o, &a)
}

func (c *Console) writeAudit(w http.ResponseWriter, r *http.Request, o *officer, a *auditAsked) error {
	f, err := a.filter()
	if err != nil {
		return err
	}
	f.Limit, f.OldestFirst = 500, true
	if err := c.record(r.Context(), o, "audit.export", "", a.details()); err != nil {
		return err
	}
	page, err := c.Audit.Query(r.Context(), f)
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "application/x-ndjson")
	h.Set("Content-Disposition", `attachment; filename="audit-`+c.Clock().UTC().Format("20060102-150405")+`.jsonl"`)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	digest := sha256.New()
	out := io.MultiWriter(w, digest)
	n := 0
	for {
		for i := range page.Entries {
			b, err := page.Entries[i].MarshalJSON()
			if err != nil {
				return err
			}
			if _, err := out.Write(append(b, '\n')); err != nil {
				return nil // the client went away
			}
			n++
		}
		if f.Page = page.Next; f.Page == "" {
			break
		}
		if page, err = c.Audit.Query(r.Context(), f); err != nil {
			c.abort(fmt.Errorf("export the audit log: %w", err))
		}
	}
	last, err := json.Marshal(map[string]any{"manifest": map[string]any{"entries": n, "sha256": hexSum(digest)}}, json.Deterministic(true))
	if err != nil {
		return err
	}
	_, _ = w.Write(append(last, '\n')) // an error is the client's connection
	return nil
}
