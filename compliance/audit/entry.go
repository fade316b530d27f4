package audit

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"regexp"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	idLength  = 26
	maxText   = 512 // bytes of one field
	maxBody   = 64 << 10
	concealed = "(secret)"
)

var (
	idEncoding = base32.HexEncoding.WithPadding(base32.NoPadding) // keeps the order of what it encodes
	idCounter  atomic.Uint32
)

// newID makes the id of an entry: its time, a counter that keeps the order of one process, and 64 random bits.
func newID(ms int64) string {
	var b [16]byte
	putTime(&b, ms)
	binary.BigEndian.PutUint16(b[6:], uint16(idCounter.Add(1)))
	_, _ = rand.Read(b[8:]) // never fails
	return idEncoding.EncodeToString(b[:])
}

// firstID is the smallest id that an entry of a time can have.
func firstID(ms int64) string {
	var b [16]byte
	putTime(&b, max(ms, 0))
	return idEncoding.EncodeToString(b[:])
}

func putTime(b *[16]byte, ms int64) {
	var t [8]byte
	binary.BigEndian.PutUint64(t[:], uint64(ms))
	copy(b[:6], t[2:])
}

type entryBody struct {
	Before  jsontext.Value `json:"before,omitzero"`
	After   jsontext.Value `json:"after,omitzero"`
	Details jsontext.Value `json:"details,omitzero"`
}

// row makes the stored form of an entry.
func (e *Entry) row(ctx context.Context) (store.AuditEntry, error) {
	if err := e.check(); err != nil {
		return store.AuditEntry{}, err
	}
	s := e.Source
	s.complete(SourceOf(ctx))
	row := store.AuditEntry{
		Time: e.Time, Actor: s.Actor, Kind: text(s.Kind), Device: s.Device, Session: text(s.Session), IP: text(s.IP), Agent: text(s.Agent),
		Action: text(e.Action), Target: text(e.Target), Result: string(e.Result), Reason: text(e.Reason),
	}
	if row.Time == 0 {
		row.Time = time.Now().UnixMilli()
	}
	if row.Result == "" {
		row.Result = string(OK)
	}
	row.ID = newID(row.Time)
	var err error
	row.Body, err = e.body()
	return row, err
}

// complete fills what is empty from another source; a source of somebody else gives only what is no part of a person.
func (s *Source) complete(from Source) {
	if s.Actor == "" || s.Actor == from.Actor {
		if s.Actor == "" {
			s.Actor = from.Actor
		}
		if s.Device == "" {
			s.Device = from.Device
		}
		if s.Session == "" {
			s.Session = from.Session
		}
	}
	if s.Kind == "" {
		if s.Kind = from.Kind; s.Kind == KindAnonymous && s.Actor != "" {
			s.Kind = KindUser
		}
	}
	if s.IP == "" {
		s.IP = from.IP
	}
	if s.Agent == "" {
		s.Agent = from.Agent
	}
}

// text brings a string from outside into a form that can be stored and shown on one line.
func text(s string) string {
	if len(s) > maxText {
		s = s[:maxText]
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f {
			return ' '
		}
		return c
	}, s)
	return conceal(s)
}

// tokens are the secrets that this server hands out, by their form.
var tokens = regexp.MustCompile(`mh[a-z]{1,2}_[A-Za-z0-9_-]{20,}`)

// secretNames are members whose values are never stored, whatever a caller passes.
var secretNames = regexp.MustCompile(`(?i)^(.*[_.-])?(password|passwd|passphrase|secret|token|access_token|refresh_token|authorization|cookie|private_key|otp|code|recovery_key)$`)

func conceal(s string) string {
	if !strings.Contains(s, "mh") {
		return s
	}
	return tokens.ReplaceAllString(s, concealed)
}

func (e *Entry) body() (store.Content, error) {
	var b entryBody
	some := false
	for _, m := range []struct {
		to   *jsontext.Value
		from any
		has  bool
	}{{&b.Before, e.Before, e.Before != nil}, {&b.After, e.After, e.After != nil}, {&b.Details, e.Details, len(e.Details) > 0}} {
		if !m.has {
			continue
		}
		v, err := clean(m.from)
		if err != nil {
			return nil, fmt.Errorf("audit entry %s: %w", e.Action, err)
		}
		*m.to, some = v, true
	}
	if !some {
		return nil, nil
	}
	out, err := json.Marshal(b)
	if err != nil {
		return nil, fmt.Errorf("audit entry %s: %w", e.Action, err)
	}
	if len(out) > maxBody {
		out, err = json.Marshal(map[string]any{"details": map[string]any{"omitted_bytes": len(out)}})
	}
	return out, err
}

// clean encodes a value and takes out what looks like a secret.
func clean(v any) (jsontext.Value, error) {
	raw, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true), json.FormatNilSliceAsNull(false))
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(raw, &tree, jsontext.AllowInvalidUTF8(true)); err != nil {
		return nil, err
	}
	out, err := json.Marshal(cleaned(tree), jsontext.AllowInvalidUTF8(true), json.Deterministic(true))
	return out, err
}

func cleaned(v any) any {
	switch v := v.(type) {
	case string:
		return conceal(strings.ToValidUTF8(v, "\uFFFD"))
	case []any:
		for i := range v {
			v[i] = cleaned(v[i])
		}
	case map[string]any:
		for name, value := range v {
			if _, isText := value.(string); isText && secretNames.MatchString(name) {
				v[name] = concealed
				continue
			}
			v[name] = cleaned(value)
		}
	}
	return v
}

// canonical is the entry as it is hashed: every stored field behind its length, so that no two entries have the same bytes.
func canonical(e *store.AuditEntry) []byte {
	out := []byte("moothall-audit-entry-1\x00")
	field := func(b []byte) {
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	field([]byte(e.ID))
	field(binary.BigEndian.AppendUint64(nil, uint64(e.Time)))
	for _, s := range []string{
		string(e.Actor), e.Kind, string(e.Device), e.Session, e.IP, e.Agent, e.Action, e.Target, e.Result, e.Reason,
	} {
		field([]byte(s))
	}
	field(e.Body)
	return out
}
