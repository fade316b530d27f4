package console

import (
	"archive/zip"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

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

// exporter writes hits into one file.
type exporter interface {
	hit(h *hit) error
	end() error
}

// writeExport writes a ZIP file of the hits, a page of hits at a time, and a manifest, and counts the entries. describe gives the
// manifest, or tells why there is to be none.
func (c *Console) writeExport(ctx context.Context, w io.Writer, flush func() error, q *Query, found *Found, name, format string, p *progress,
	describe func(sum, head string) (any, error)) (sum string, err error) {
	z := zip.NewWriter(w)
	file, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: c.Clock()})
	if err != nil {
		return "", err
	}
	digest := sha256.New()
	var x exporter
	if format == "csv" {
		x, err = newCSV(io.MultiWriter(file, digest))
	} else {
		x = &jsonLines{io.MultiWriter(file, digest)}
	}
	if err != nil {
		return "", err
	}
	for {
		hits, err := c.read(ctx, found)
		if err != nil {
			return "", err
		}
		for i := range hits {
			if err := x.hit(&hits[i]); err != nil {
				return "", err
			}
			p.entries.Add(1)
		}
		if err := x.end(); err != nil {
			return "", err
		}
		if err := flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
			return "", err
		}
		if len(found.Hits) < q.Limit {
			break
		}
		last := found.Hits[len(found.Hits)-1]
		q.After = &last
		if found, err = c.find(ctx, q); err != nil {
			return "", err
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
		return sum, err
	}
	about, err := describe(sum, head)
	if err != nil {
		return sum, err
	}
	last, err := z.CreateHeader(&zip.FileHeader{Name: "manifest.json", Method: zip.Deflate, Modified: c.Clock()})
	if err != nil {
		return sum, err
	}
	if err := json.MarshalWrite(last, about, json.Deterministic(true), jsontext.WithIndent("  ")); err != nil {
		return sum, err
	}
	return sum, z.Close()
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
