package hr

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// The detail error keywords. Spec: RFC 7644, table 9.
const (
	invalidFilter = "invalidFilter"
	uniqueness    = "uniqueness"
	mutability    = "mutability"
	invalidSyntax = "invalidSyntax"
	invalidPath   = "invalidPath"
	noTarget      = "noTarget"
	invalidValue  = "invalidValue"
)

const errorURN = "urn:ietf:params:scim:api:messages:2.0:Error"

// scimError is a refusal in the form of RFC 7644, section 3.12.
type scimError struct {
	status int
	typ    string
	detail string
	after  time.Duration
}

// Error implements error.
func (e *scimError) Error() string { return e.detail }

func bad(typ, format string, args ...any) error {
	return &scimError{status: http.StatusBadRequest, typ: typ, detail: fmt.Sprintf(format, args...)}
}

func notFound(what, resource string) error {
	return &scimError{status: http.StatusNotFound, detail: fmt.Sprintf("there is no %s %q", what, resource)}
}

func conflict(format string, args ...any) error {
	return &scimError{status: http.StatusConflict, typ: uniqueness, detail: fmt.Sprintf(format, args...)}
}

func stale() error {
	return &scimError{status: http.StatusPreconditionFailed, detail: "the resource has changed since that version"}
}

// asSCIM makes any expected failure a SCIM error; nil for one that is not expected.
func asSCIM(err error) *scimError {
	var e *scimError
	if errors.As(err, &e) {
		return e
	}
	m := mxerr.As(err)
	if m == nil {
		return nil
	}
	out := &scimError{status: m.Status, detail: m.Message, after: m.RetryAfter}
	switch m.Code {
	case "M_NOT_JSON", "M_BAD_JSON":
		out.typ = invalidSyntax
	case "M_USER_IN_USE", "M_EXCLUSIVE":
		out.status, out.typ = http.StatusConflict, uniqueness
	case "M_INVALID_USERNAME", "M_INVALID_PARAM":
		out.typ = invalidValue
	}
	return out
}

func (e *scimError) body() map[string]any {
	out := map[string]any{"schemas": []string{errorURN}, "status": strconv.Itoa(e.status), "detail": e.detail}
	if e.typ != "" {
		out["scimType"] = e.typ
	}
	return out
}
