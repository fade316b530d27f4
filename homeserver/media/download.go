package media

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	defaultWait = 20_000 // ms. Spec: timeout_ms
	maxWait     = 60_000
	waitStep    = 300 * time.Millisecond
	cacheTime   = "max-age=86400, immutable" // a day: a quarantine reaches caches after that
	// Spec: content repository, the recommended policy
	contentPolicy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"
)

// reader serves files to those with a token. By the frozen endpoints anybody gets what is public, such as the signs of
// identity providers, and who sends a token gets the rest too: bots from before the endpoints with a token live on.
type reader struct {
	*Media
	frozen bool
}

func (m *Media) serve(frozen bool) reader { return reader{m, frozen} }

// find gives the row of the file that the path names, waiting for its content where it was only announced.
func (s reader) find(r *http.Request) (*store.Media, error) {
	origin, mediaID, err := mxc(r)
	if err != nil {
		return nil, err
	}
	wait, err := web.QueryInt(r, "timeout_ms", defaultWait, 0, maxWait)
	if err != nil {
		return nil, err
	}
	if s.frozen { // wishes of the legacy endpoints: nothing is remote here and nothing redirects
		for _, name := range []string{"allow_remote", "allow_redirect"} {
			if _, err := web.QueryBool(r, name, false); err != nil {
				return nil, err
			}
		}
	}
	deadline := time.Now().Add(time.Duration(wait) * time.Millisecond)
	for {
		f, err := s.row(r.Context(), origin, mediaID, web.Requester(r) != nil)
		if err != nil {
			return nil, err
		}
		if f.Expires == nil {
			s.noteUse(f, time.Now())
			return f, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return nil, mxerr.New(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "the content was not uploaded yet")
		}
		select {
		case <-r.Context().Done():
			return nil, r.Context().Err()
		case <-time.After(min(left, waitStep)):
		}
	}
}

// row reads a file's row; what may not be seen is not found.
func (s reader) row(ctx context.Context, origin, mediaID string, signedIn bool) (f *store.Media, err error) {
	err = s.Store.Read(ctx, func(tx *store.Tx) error {
		f, err = tx.Media(origin, mediaID)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case f == nil, f.Quarantined, !signedIn && !f.Public, f.Expires != nil && *f.Expires <= time.Now().UnixMilli():
		return nil, errUnknownMedia()
	}
	return f, nil
}

// download handles GET …/media/download/{serverName}/{mediaId} and …/{fileName}.
func (s reader) download(w http.ResponseWriter, r *http.Request) error {
	f, err := s.find(r)
	if err != nil {
		return err
	}
	name := f.Filename
	if given := cleanFilename(web.PathParam(r, "fileName")); given != "" {
		name = given
	}
	key := hex.EncodeToString(f.SHA256)
	return s.send(w, r, key, f.Type, disposition(f.Type, name))
}

// send serves a blob with ranges and conditions.
func (s reader) send(w http.ResponseWriter, r *http.Request, key, contentType, disposition string) error {
	blob, err := s.Blobs.Open(r.Context(), key)
	if errors.Is(err, fs.ErrNotExist) {
		s.Log.Error("the content of a file is missing", "sha256", key)
		return errUnknownMedia()
	}
	if err != nil {
		return fmt.Errorf("open content: %w", err)
	}
	defer func() { _ = blob.Close() }()
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Disposition", disposition)
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("ETag", `"`+key+`"`)
	if s.frozen && web.Requester(r) == nil {
		h.Set("Cache-Control", "public, "+cacheTime)
	} else {
		h.Set("Cache-Control", "private, "+cacheTime)
	}
	http.ServeContent(w, r, "", time.Time{}, blob)
	return nil
}

// inlineType tells whether browsers may show the type. Spec: content repository, "Serving inline content".
func inlineType(contentType string) bool {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch t {
	case "text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
		"image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
		"video/mp4", "video/webm", "video/ogg", "video/quicktime",
		"audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav",
		"audio/x-wav", "audio/x-pn-wav", "audio/flac", "audio/x-flac":
		return true
	}
	return false
}

// disposition renders Content-Disposition. RFC 6266: a name beyond plain ASCII goes into filename*.
func disposition(contentType, filename string) string {
	how := "attachment"
	if inlineType(contentType) {
		how = "inline"
	}
	if filename == "" {
		return how
	}
	plain := true
	for i := range len(filename) {
		if c := filename[i]; c < ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '%' {
			plain = false
		}
	}
	if plain {
		return how + `; filename="` + filename + `"`
	}
	return how + "; filename*=UTF-8''" + strings.ReplaceAll(url.QueryEscape(filename), "+", "%20")
}
