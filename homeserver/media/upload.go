package media

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	octetStream = "application/octet-stream"
	maxType     = 255
	maxFilename = 255 // characters
)

// upload handles POST /_matrix/media/v3/upload.
func (m *Media) upload(w http.ResponseWriter, r *http.Request) error {
	f, err := m.receive(r)
	if err != nil {
		return err
	}
	f.Origin, f.ID, f.User, f.Created = m.ServerName, newMediaID(), web.Requester(r).UserID, time.Now().UnixMilli()
	if err := m.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.InsertMedia(f) }); err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]string{"content_uri": "mxc://" + f.Origin + "/" + f.ID})
}

// create handles POST /_matrix/media/v1/create: an mxc URI now, its content later.
func (m *Media) create(w http.ResponseWriter, r *http.Request) error {
	now := time.Now()
	expires := now.Add(m.Config.PendingExpiry).UnixMilli()
	f := store.Media{Origin: m.ServerName, ID: newMediaID(), User: web.Requester(r).UserID, Created: now.UnixMilli(), Expires: &expires}
	err := m.Store.Write(r.Context(), func(tx *store.Tx) error {
		n, first, err := tx.PendingMedia(f.User, f.Created)
		if err != nil {
			return err
		}
		if n >= m.Config.MaxPending {
			return mxerr.LimitExceeded(time.Duration(first-f.Created) * time.Millisecond)
		}
		return tx.InsertMedia(f)
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, map[string]any{"content_uri": "mxc://" + f.Origin + "/" + f.ID, "unused_expires_at": expires})
}

// uploadTo handles PUT /_matrix/media/v3/upload/{serverName}/{mediaId}.
func (m *Media) uploadTo(w http.ResponseWriter, r *http.Request) error {
	origin, mediaID, err := mxc(r)
	if err != nil {
		return err
	}
	who := web.Requester(r).UserID
	// Looked at before the body is read, and again when its content is noted.
	err = m.Store.Read(r.Context(), func(tx *store.Tx) error {
		row, err := tx.Media(origin, mediaID)
		switch {
		case err != nil:
			return err
		case origin != m.ServerName || row == nil:
			return errUnknownMedia()
		case row.User != who:
			return mxerr.Forbidden("this media id was made by somebody else")
		case row.Expires == nil:
			return errOverwrite()
		case *row.Expires <= time.Now().UnixMilli():
			return errUnknownMedia()
		}
		return nil
	})
	if err != nil {
		return err
	}
	f, err := m.receive(r)
	if err != nil {
		return err
	}
	f.Origin, f.ID = origin, mediaID
	err = m.Store.Write(r.Context(), func(tx *store.Tx) error {
		ok, err := tx.CompleteMedia(f, time.Now().UnixMilli())
		if err == nil && !ok {
			return errOverwrite()
		}
		return err
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

func errUnknownMedia() error { return mxerr.NotFound("there is no such media") }

func errOverwrite() error {
	return mxerr.New(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "this media id has its content already")
}

// receive stores the body of an upload and describes it.
func (m *Media) receive(r *http.Request) (store.Media, error) {
	f := store.Media{Type: uploadType(r.Header.Get("Content-Type")), Filename: cleanFilename(web.QueryString(r, "filename"))}
	if r.ContentLength > m.Config.MaxUpload {
		return f, m.errTooLarge()
	}
	var err error
	f.SHA256, f.Size, err = m.keep(r.Context(), r.Body, m.Config.MaxUpload)
	if errors.Is(err, errLimit) {
		return f, m.errTooLarge()
	}
	return f, err
}

func (m *Media) errTooLarge() error {
	return mxerr.TooLarge(fmt.Sprintf("files larger than %d bytes cannot be uploaded", m.Config.MaxUpload))
}

// errLimit: there are more bytes than may be read.
var errLimit = errors.New("the content is larger than allowed")

// readError marks the failure of a source, in contrast to one of ours.
type readError struct{ err error }

func (e readError) Error() string { return "read content: " + e.err.Error() }
func (e readError) Unwrap() []error {
	return []error{mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "the content ended early"), e.err}
}

type errReader struct{ io.Reader }

func (r errReader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = readError{err}
	}
	return n, err
}

// keep streams a content to the blobs; it is durable when keep returns.
func (m *Media) keep(ctx context.Context, src io.Reader, limit int64) (hash []byte, size int64, err error) {
	w, err := m.Blobs.Create(ctx)
	if err != nil {
		return nil, 0, err
	}
	defer w.Abort()
	h := sha256.New()
	if src != nil {
		size, err = io.Copy(io.MultiWriter(w, h), io.LimitReader(errReader{src}, limit+1))
	}
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over) || size > limit:
		return nil, 0, errLimit
	case err != nil:
		return nil, 0, err
	}
	hash = h.Sum(nil)
	return hash, size, w.Commit(hex.EncodeToString(hash))
}

// uploadType is the Content-Type of an upload if it can be sent back, else application/octet-stream.
func uploadType(s string) string {
	if len(s) > maxType {
		return octetStream
	}
	t, params, err := mime.ParseMediaType(s)
	if err != nil || !strings.Contains(t, "/") {
		return octetStream
	}
	if out := mime.FormatMediaType(t, params); out != "" {
		return out
	}
	return octetStream
}

// cleanFilename takes out what no header can carry.
func cleanFilename(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r) {
			return -1
		}
		return r
	}, s)
	if utf8.RuneCountInString(s) > maxFilename {
		runes := []rune(s)
		s = string(runes[len(runes)-maxFilename:]) // the end has the extension
	}
	return s
}

// mxc reads and checks the two parts of an mxc URI in the path. Spec: content repository, "Security considerations".
func mxc(r *http.Request) (origin, mediaID string, err error) {
	origin, mediaID = web.PathParam(r, "serverName"), web.PathParam(r, "mediaId")
	if !validServerName(origin) {
		return "", "", mxerr.InvalidParam("the server name of the mxc URI is not valid")
	}
	if !validMediaID(mediaID) {
		return "", "", mxerr.InvalidParam("a media id has only letters, digits, _ and -")
	}
	return origin, mediaID, nil
}

func validMediaID(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '_' && c != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

// validServerName checks for the characters of names, IPv6 literals and ports. Spec: appendices, "Server name".
func validServerName(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '.' && c != '-' && c != ':' && c != '[' && c != ']' {
			return false
		}
	}
	return s != "" && len(s) <= 255
}

func isAlnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}
