package web

import (
	"io"
	"maps"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	bodyStall  = 60 * time.Second // a request body that brings nothing for so long ends the request
	writeStall = 2 * time.Minute  // so does a client that takes nothing of its response
	copyChunk  = 4 << 20          // bytes copied between two extensions of the write deadline
)

// response is the http.ResponseWriter that handlers get: it counts, and keeps the write deadline ahead of a client
// that goes on reading. A server-wide WriteTimeout would end long polls and large downloads.
type response struct {
	w        http.ResponseWriter
	status   int // 0: nothing answered yet
	written  int64
	deadline time.Time
}

func (p *response) init(w http.ResponseWriter, r *http.Request) {
	p.w = w
	if len(r.Header["Expect"]) > 0 {
		// The deadline of the connection's previous response must not hit the "100 Continue".
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
	}
}

func (p *response) statusCode() int {
	if p.status == 0 {
		return http.StatusOK
	}
	return p.status
}

func (p *response) extend() {
	if now := time.Now(); p.deadline.Sub(now) < writeStall*3/4 {
		p.deadline = now.Add(writeStall)
		_ = http.NewResponseController(p.w).SetWriteDeadline(p.deadline) // not every writer has deadlines
	}
}

// Header implements http.ResponseWriter.
func (p *response) Header() http.Header { return p.w.Header() }

// WriteHeader implements http.ResponseWriter.
func (p *response) WriteHeader(status int) {
	if status >= 200 {
		if p.status != 0 {
			return
		}
		p.status = status
	}
	p.extend()
	p.w.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (p *response) Write(b []byte) (int, error) {
	if p.status == 0 {
		p.status = http.StatusOK
	}
	p.extend()
	n, err := p.w.Write(b)
	p.written += int64(n)
	return n, err
}

// ReadFrom keeps net/http's way of sending files without copying them through the process.
func (p *response) ReadFrom(src io.Reader) (int64, error) {
	if p.status == 0 {
		p.status = http.StatusOK
	}
	// net recognises a file only directly behind one LimitedReader.
	whole, limited := src.(*io.LimitedReader)
	if !limited {
		whole = &io.LimitedReader{R: src, N: math.MaxInt64}
	}
	var total int64
	for {
		p.extend()
		want := min(whole.N, copyChunk)
		n, err := io.Copy(p.w, &io.LimitedReader{R: whole.R, N: want})
		whole.N -= n
		p.written += n
		total += n
		if err != nil || n < want || whole.N <= 0 {
			return total, err
		}
	}
}

// FlushError implements what http.ResponseController looks for.
func (p *response) FlushError() error {
	if p.status == 0 {
		p.status = http.StatusOK
	}
	p.extend()
	return http.NewResponseController(p.w).Flush()
}

// Flush implements http.Flusher.
func (p *response) Flush() { _ = p.FlushError() }

// Unwrap lets http.ResponseController reach the connection.
func (p *response) Unwrap() http.ResponseWriter { return p.w }

// body moves the read deadline ahead while the client goes on sending, and lifts it at the end: net/http's own
// ReadTimeout would end a long poll.
type body struct {
	io.ReadCloser
	w        http.ResponseWriter
	deadline time.Time
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	if now := time.Now(); b.deadline.Sub(now) < bodyStall*3/4 {
		b.deadline = now.Add(bodyStall)
		_ = http.NewResponseController(b.w).SetReadDeadline(b.deadline)
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.deadline = time.Time{}
		_ = http.NewResponseController(b.w).SetReadDeadline(time.Time{})
	}
	return n, err
}

// Output is not checked for duplicate names (structs have none), broken text in old rows becomes U+FFFD rather than a
// 500, nil slices and maps are [] and {}, and omitempty also leaves out 0 and false, as encoding/json does.
var outOptions = json.JoinOptions(
	jsontext.AllowDuplicateNames(true),
	jsontext.AllowInvalidUTF8(true),
	jsonv1.OmitEmptyWithLegacySemantics(true),
)

// Header values shared by all responses.
var (
	jsonType = []string{"application/json"}
	noStore  = []string{"no-store"}
	noSniff  = []string{"nosniff"}
)

// WriteJSON answers 200 with v as JSON. Nil slices and maps are written as [] and {}; omitempty leaves out what
// encoding/json would leave out.
func WriteJSON(w http.ResponseWriter, v any) error { return WriteJSONStatus(w, http.StatusOK, v) }

// WriteJSONStatus answers with any status.
func WriteJSONStatus(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v, outOptions)
	if err != nil {
		return err
	}
	return writeBytes(w, status, b)
}

// WriteRaw answers 200 with bytes that are JSON already.
func WriteRaw(w http.ResponseWriter, body []byte) error {
	return writeBytes(w, http.StatusOK, body)
}

func writeBytes(w http.ResponseWriter, status int, body []byte) error {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["X-Content-Type-Options"] = noSniff
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	if h["Cache-Control"] == nil {
		h["Cache-Control"] = noStore
	}
	w.WriteHeader(status)
	// An error here is the client's connection; the answer cannot be changed any more.
	_, _ = w.Write(body)
	return nil
}

// writeError answers with the standard error response. An error without a code (the 401 of user-interactive
// authentication) has only its extra members.
// Spec: client-server API, "Standard error response", "Rate limiting".
func writeError(w http.ResponseWriter, e *mxerr.Error) error {
	out := make(map[string]any, len(e.Extra)+3)
	maps.Copy(out, e.Extra)
	if e.Code != "" {
		out["errcode"] = e.Code
		out["error"] = e.Message
	}
	if e.RetryAfter > 0 {
		out["retry_after_ms"] = (e.RetryAfter + time.Millisecond - 1).Milliseconds()
		w.Header().Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	status := e.Status
	if status < 400 || status > 599 {
		status = http.StatusInternalServerError
	}
	return WriteJSONStatus(w, status, out)
}
