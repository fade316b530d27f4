package console

import (
	"context"
	"encoding/hex"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// FileFunc opens an uploaded file as it was sent, also one that users do not get any more.
type FileFunc func(ctx context.Context, origin, mediaID string) (io.ReadCloser, *store.Media, error)

// pageFile handles GET /console/search/file?id=….
func (c *Console) pageFile(w http.ResponseWriter, r *http.Request, o *officer) error {
	if o.reason == "" {
		return c.pages.Render(w, r, http.StatusOK, "reason", reasonData{})
	}
	return c.sendFile(w, r, o, web.QueryString(r, "id"))
}

// apiFile handles GET /_moothall/compliance/v1/events/{eventId}/file.
func (c *Console) apiFile(w http.ResponseWriter, r *http.Request, o *officer) error {
	return c.sendFile(w, r, o, web.PathParam(r, "eventId"))
}

// sendFile notes that the file of an archived event is looked at, and sends it. It is never shown in the page: what somebody
// uploaded runs nowhere.
func (c *Console) sendFile(w http.ResponseWriter, r *http.Request, o *officer, eventID string) error {
	if c.Find == nil || c.File == nil {
		return errNoArchive
	}
	address := ""
	err := c.Store.ReadOne(r.Context(), func(tx *store.Tx) error {
		rows, err := tx.ArchiveVersions(eventID, maxVersions)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(rows, func(e store.ArchiveEntry) bool { return e.EventID == eventID })
		if i < 0 {
			return errNoEvent
		}
		h := describe(rows[i])
		address = h.mxc()
		return nil
	})
	if err != nil {
		return err
	}
	uri, err := id.ParseContentURI(address)
	if err != nil || address == "" {
		return mxerr.NotFound("this event has no file that the server could read")
	}
	if err := c.record(r.Context(), o, "archive.file", eventID, map[string]any{"file": address}); err != nil {
		return err
	}
	blob, file, err := c.File(r.Context(), uri.Homeserver, uri.FileID)
	if err != nil {
		return err
	}
	defer func() { _ = blob.Close() }()
	name := strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c == '/' || c == '\\' {
			return '_'
		}
		return c
	}, file.Filename)
	if name == "" {
		name = uri.FileID
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": name}))
	h.Set("Content-Length", strconv.FormatInt(file.Size, 10))
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Moothall-SHA256", hex.EncodeToString(file.SHA256))
	_, _ = io.Copy(w, blob) // an error is the client's connection, or shows as a file that is too short
	return nil
}
