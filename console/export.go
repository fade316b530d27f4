package console

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// exportChunk hits are read at once: what an export holds in memory.
const exportChunk = 200

// manifest is the last file of an export: without it, or with another sum, the export is not whole.
type manifest struct {
	File    string         `json:"file"`
	SHA256  string         `json:"sha256"`
	Entries int64          `json:"entries"`
	Query   map[string]any `json:"query"`
	Reason  string         `json:"reason"`
	Officer string         `json:"officer"`
	Began   string         `json:"began"`
	Ended   string         `json:"ended"`
	Head    string         `json:"archive_head"` // of the archive's chain, number:hash
}

// exportPage handles POST /console/search/export.
func (c *Console) exportPage(w http.ResponseWriter, r *http.Request, o *officer) error {
	if o.reason == "" {
		return mxerr.InvalidParam("state the reason of the search first")
	}
	a := askedOf(r.PostForm)
	return c.export(w, r, o, &a, r.PostFormValue("format"))
}

// exporter writes hits into one file.
type exporter interface {
	hit(h *hit) error
	end() error
}

// export answers with a ZIP file of the hits and a manifest. It is made while it is sent, a page of hits at a time.
func (c *Console) export(w http.ResponseWriter, r *http.Request, o *officer, a *asked, format string) error {
	if format != "csv" && format != "jsonl" {
		return mxerr.InvalidParam("the format of an export is csv or jsonl")
	}
	q, err := c.query(r.Context(), a)
	if err != nil {
		return err
	}
	q.Limit = exportChunk
	found, err := c.find(r.Context(), q) // what is wrong with the query is said before anything is sent
	if err != nil {
		return err
	}
	details := a.details()
	details["format"], details["hits"] = format, found.Total
	if err := c.record(r.Context(), o, "archive.export", a.Room, details); err != nil {
		return err
	}
	began := c.Clock().UTC()
	name := "archive-" + began.Format("20060102-150405")
	h := w.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", `attachment; filename="`+name+`.zip"`)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Moothall-Hits", strconv.FormatInt(found.Total, 10)) // about how many there will be
	n, sum, err := c.writeExport(r.Context(), w, q, found, name+"."+format, format, func(sum string, entries int64, head string) any {
		return manifest{
			File: name + "." + format, SHA256: sum, Entries: entries, Query: a.details(), Reason: o.reason, Officer: string(o.user),
			Began: began.Format(time.RFC3339), Ended: c.Clock().UTC().Format(time.RFC3339), Head: head,
		}
	})
	ended := map[string]any{"entries": n, "sha256": sum}
	if err != nil {
		ended["interrupted"] = true
	}
	if e := c.record(context.WithoutCancel(r.Context()), o, "archive.export.ended", a.Room, ended); e != nil {
		c.Logger.Error("the end of an export cannot be noted", "error", e)
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

func (c *Console) writeExport(ctx context.Context, w io.Writer, q *Query, found *Found, name, format string, describe func(sum string, entries int64, head string) any) (n int64, sum string, err error) {
	z := zip.NewWriter(w)
	file, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: c.Clock()})
	if err != nil {
		return 0, "", err
	}
	digest := sha256.New()
	var x exporter
	if format == "csv" {
		x, err = newCSV(io.MultiWriter(file, digest))
	} else {
		x = &jsonLines{io.MultiWriter(file, digest)}
	}
	if err != nil {
		return 0, "", err
	}
	for {
		hits, err := c.read(ctx, found)
		if err != nil {
			return n, "", err
		}
		for i := range hits {
			if err := x.hit(&hits[i]); err != nil {
				return n, "", err
			}
			n++
		}
		if err := x.end(); err != nil {
			return n, "", err
		}
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		if len(found.Hits) < q.Limit {
			break
		}
		last := found.Hits[len(found.Hits)-1]
		q.After = &last
		if found, err = c.find(ctx, q); err != nil {
			return n, "", err
		}
	}
	sum = hexSum(digest)
	head := ""
	err = c.Store.ReadOne(ctx, func(tx *store.Tx) error {
		h, ok, err := tx.ArchiveHead()
		if ok {
			head = strconv.FormatInt(h.Number, 10) + ":" + hex.EncodeToString(h.Hash)
		}
		return err
	})
	if err != nil {
		return n, sum, err
	}
	last, err := z.CreateHeader(&zip.FileHeader{Name: "manifest.json", Method: zip.Deflate, Modified: c.Clock()})
	if err != nil {
		return n, sum, err
	}
	if err := json.MarshalWrite(last, describe(sum, n, head), json.Deterministic(true), jsontext.WithIndent("  ")); err != nil {
		return n, sum, err
	}
	return n, sum, z.Close()
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

type csvFile struct{ w *csv.Writer }

func newCSV(w io.Writer) (*csvFile, error) {
	if _, err := io.WriteString(w, "\uFEFF"); err != nil { // by which Excel knows UTF-8
		return nil, err
	}
	x := &csvFile{csv.NewWriter(w)}
	return x, x.w.Write([]string{"time", "room", "event", "sender", "type", "edited", "deleted", "text", "file", "replaces", "archived", "number"})
}

// cell keeps spreadsheets from taking what somebody wrote for a formula.
func cell(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

func iso(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }

func (x *csvFile) hit(h *hit) error {
	return x.w.Write([]string{
		iso(h.TS), h.RoomID, h.EventID, cell(h.Sender), cell(h.Type), strconv.FormatBool(h.Edited), strconv.FormatBool(h.Deleted),
		cell(h.Text), cell(h.File), cell(h.Target), iso(h.Archived), strconv.FormatInt(h.NID, 10),
	})
}

func (x *csvFile) end() error {
	x.w.Flush()
	return x.w.Error()
}

type jsonLines struct{ w io.Writer }

// hitJSON is a hit as the API and exports show it.
type hitJSON struct {
	Number   int64          `json:"number"` // in the archive
	Time     string         `json:"time"`
	Archived string         `json:"archived"`
	RoomID   string         `json:"room_id"`
	EventID  string         `json:"event_id"`
	Sender   string         `json:"sender"`
	Type     string         `json:"type"`
	Text     string         `json:"text,omitempty"`
	File     string         `json:"file,omitempty"`
	Replaces string         `json:"replaces,omitempty"`
	Edited   bool           `json:"edited"`
	Deleted  bool           `json:"deleted"`
	Event    jsontext.Value `json:"event"` // as it was sent
}

func (h *hit) json() hitJSON {
	return hitJSON{
		Number: h.NID, Time: iso(h.TS), Archived: iso(h.Archived), RoomID: h.RoomID, EventID: h.EventID, Sender: h.Sender, Type: h.Type,
		Text: h.Text, File: h.File, Replaces: h.Target, Edited: h.Edited, Deleted: h.Deleted, Event: jsontext.Value(h.Body),
	}
}

func (x *jsonLines) hit(h *hit) error {
	b, err := json.Marshal(h.json())
	if err != nil {
		return err
	}
	_, err = x.w.Write(append(b, '\n'))
	return err
}

func (x *jsonLines) end() error { return nil }
