package web

import (
	"bytes"
	"io"
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// replayMax bounds the bodies that are kept for a second run of the handler.
const replayMax = 1 << 20

// replay keeps what a handler reads of a body.
type replay struct {
	io.ReadCloser
	kept bytes.Buffer
}

// Read implements io.Reader.
func (b *replay) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.kept.Write(p[:n])
	return n, err
}

// run calls the handler. A process whose memory lags behind the others' must not deny what they have allowed: before it
// answers 403 or 404 it catches up, and where that brought news the handler decides once more.
func (m *Mux) run(q *request, r *http.Request, rt *route) error {
	if m.cfg.CatchUp == nil || rt.Auth == Public || r.ContentLength > replayMax || r.ContentLength < 0 {
		return rt.Handler(q, r)
	}
	var kept *replay
	if r.ContentLength > 0 && r.Body != nil {
		kept = &replay{ReadCloser: r.Body}
		r.Body = kept
	}
	err := rt.Handler(q, r)
	e := mxerr.As(err)
	if e == nil || q.status != 0 || (e.Status != http.StatusForbidden && e.Status != http.StatusNotFound) {
		return err
	}
	if news, cerr := m.cfg.CatchUp(q); cerr != nil || !news {
		return err
	}
	if kept != nil {
		r.Body = struct {
			io.Reader
			io.Closer
		}{io.MultiReader(bytes.NewReader(kept.kept.Bytes()), kept.ReadCloser), kept.ReadCloser}
	}
	return rt.Handler(q, r)
}
