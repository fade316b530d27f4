package bleve

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/search"
)

// The process that serves and the one that keeps the index speak in frames: the length as four bytes, then JSON.
const maxFrame = 16 << 20

// maxWrite is about how many bytes of texts are sent at once.
const maxWrite = 4 << 20

// The things that can be asked for.
const (
	opOpen        = "open"
	opSearch      = "search"
	opGenerations = "generations"
	opCreate      = "create"
	opWrite       = "write"
	opDeleteRoom  = "delete_room"
	opServe       = "serve"
	opDrop        = "drop"
	opSize        = "size"
	opCancel      = "cancel" // of the request with this id; it has no answer of its own
)

type request struct {
	ID         uint64        `json:"id"`
	Op         string        `json:"op"`
	Generation string        `json:"gen,omitempty"` // for opOpen the folder
	Query      *search.Query `json:"query,omitempty"`
	Batch      *search.Batch `json:"batch,omitempty"`
	State      search.State  `json:"state,omitzero"`
	Part       bool          `json:"part,omitempty"` // of opWrite: more follows, the state stays as it was
	Room       int64         `json:"room,omitempty"`
	Served     bool          `json:"served,omitempty"`
}

type response struct {
	ID          uint64              `json:"id"`
	Error       string              `json:"error,omitempty"`
	Kind        string              `json:"kind,omitempty"` // of the error: one that callers tell apart
	Page        *search.Page        `json:"page,omitempty"`
	Generations []search.Generation `json:"gens,omitempty"`
	Docs        int64               `json:"docs,omitempty"`
	Bytes       int64               `json:"bytes,omitempty"`
}

// The kinds of errors.
const (
	kindGone      = "gone"
	kindNotServed = "not served"
)

func (r *response) fail(err error) {
	r.Error = err.Error()
	switch {
	case errors.Is(err, search.ErrGone):
		r.Kind = kindGone
	case errors.Is(err, search.ErrNotServed):
		r.Kind = kindNotServed
	}
}

// err is the error of a response as callers know it.
func (r *response) err() error {
	switch {
	case r.Error == "":
		return nil
	case r.Kind == kindGone:
		return fmt.Errorf("%w (%s)", search.ErrGone, r.Error)
	case r.Kind == kindNotServed:
		return search.ErrNotServed
	}
	return errors.New(r.Error)
}

// asIs lets nil and empty lists differ, as queries do, and texts be as people sent them.
var asIs = json.JoinOptions(json.FormatNilSliceAsNull(true), json.FormatNilMapAsNull(true), jsontext.AllowInvalidUTF8(true))

func frame(v any) ([]byte, error) {
	raw, err := json.Marshal(v, asIs)
	if err != nil {
		return nil, fmt.Errorf("write a message to the search index: %w", err)
	}
	if len(raw) > maxFrame {
		return nil, fmt.Errorf("a message of %d bytes is too long for the search index", len(raw))
	}
	return append(binary.BigEndian.AppendUint32(make([]byte, 0, len(raw)+4), uint32(len(raw))), raw...), nil
}

func readFrame(r *bufio.Reader, v any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return fmt.Errorf("a message of %d bytes is too long", n)
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return err
	}
	if err := json.Unmarshal(raw, v, asIs); err != nil {
		return fmt.Errorf("read a message: %w", err)
	}
	return nil
}
