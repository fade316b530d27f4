// Package mxerr holds the error value that every layer returns for expected failures: a Matrix errcode, the HTTP
// status it travels with and a sentence for people.
package mxerr

import (
	"errors"
	"net/http"
	"time"
)

// Error is an expected failure. It becomes the response's body as the "standard error response" of the Matrix
// specification; anything that is not an *Error becomes a logged 500.
type Error struct {
	Status     int            // HTTP status
	Code       string         // Matrix errcode, e.g. M_FORBIDDEN
	Message    string         // for people: what was wrong, where, what would be right
	RetryAfter time.Duration  // for M_LIMIT_EXCEEDED; zero otherwise
	Extra      map[string]any // further members of the response, e.g. soft_logout
}

// Error implements error.
func (e *Error) Error() string { return e.Code + ": " + e.Message }

// With returns a copy that carries one more member in its response body.
func (e *Error) With(key string, value any) *Error {
	c := *e
	c.Extra = make(map[string]any, len(e.Extra)+1)
	for k, v := range e.Extra {
		c.Extra[k] = v
	}
	c.Extra[key] = value
	return &c
}

// New makes an error of any status and errcode.
func New(status int, code, msg string) *Error {
	return &Error{Status: status, Code: code, Message: msg}
}

// As returns the *Error in err's chain, or nil.
func As(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Is tells whether err carries the errcode.
func Is(err error, code string) bool {
	e := As(err)
	return e != nil && e.Code == code
}

// Forbidden is 403 M_FORBIDDEN.
func Forbidden(msg string) *Error { return New(http.StatusForbidden, "M_FORBIDDEN", msg) }

// NotFound is 404 M_NOT_FOUND.
func NotFound(msg string) *Error { return New(http.StatusNotFound, "M_NOT_FOUND", msg) }

// BadJSON is 400 M_BAD_JSON: valid JSON of the wrong shape.
func BadJSON(msg string) *Error { return New(http.StatusBadRequest, "M_BAD_JSON", msg) }

// NotJSON is 400 M_NOT_JSON: the body is no JSON.
func NotJSON(msg string) *Error { return New(http.StatusBadRequest, "M_NOT_JSON", msg) }

// InvalidParam is 400 M_INVALID_PARAM.
func InvalidParam(msg string) *Error { return New(http.StatusBadRequest, "M_INVALID_PARAM", msg) }

// MissingParam is 400 M_MISSING_PARAM.
func MissingParam(msg string) *Error { return New(http.StatusBadRequest, "M_MISSING_PARAM", msg) }

// TooLarge is 413 M_TOO_LARGE.
func TooLarge(msg string) *Error { return New(http.StatusRequestEntityTooLarge, "M_TOO_LARGE", msg) }

// Unrecognized is 404 M_UNRECOGNIZED: no such endpoint.
func Unrecognized() *Error {
	return New(http.StatusNotFound, "M_UNRECOGNIZED", "this server has no such endpoint")
}

// MethodNotAllowed is 405 M_UNRECOGNIZED.
func MethodNotAllowed() *Error {
	return New(http.StatusMethodNotAllowed, "M_UNRECOGNIZED", "this endpoint does not take this method")
}

// MissingToken is 401 M_MISSING_TOKEN.
func MissingToken() *Error {
	return New(http.StatusUnauthorized, "M_MISSING_TOKEN", "this request needs an access token")
}

// UnknownToken is 401 M_UNKNOWN_TOKEN; softLogout tells the client to keep its device and keys.
func UnknownToken(msg string, softLogout bool) *Error {
	return New(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", msg).With("soft_logout", softLogout)
}

// UserSuspended is 403 M_USER_SUSPENDED.
func UserSuspended() *Error {
	return New(http.StatusForbidden, "M_USER_SUSPENDED", "this account is suspended: it can read, but may not do this")
}

// LimitExceeded is 429 M_LIMIT_EXCEEDED with Retry-After.
func LimitExceeded(after time.Duration) *Error {
	e := New(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "too many requests, try again later")
	e.RetryAfter = after
	return e
}

// Unavailable is 503: the database or another part the request needs is away for the moment.
func Unavailable(msg string) *Error { return New(http.StatusServiceUnavailable, "M_UNKNOWN", msg) }
