package factor

import (
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"
)

// Visitor is who uses a page.
type Visitor struct {
	User   id.UserID
	Passed Passed
	// ProvedAt is when this browser last proved a second factor; zero: it has not.
	ProvedAt time.Time
}

// Host is the sign-in that the pages of this package are part of. Where a method cannot give what it is asked for, it
// answers the request itself, by a redirect or a page.
type Host interface {
	// Signed tells who is signed in to our pages. With maxAge above 0 the sign-in must not be older than that: otherwise the
	// host makes the visitor sign in again and come back. ok is false when the host has answered.
	Signed(w http.ResponseWriter, r *http.Request, maxAge time.Duration) (v Visitor, ok bool)
	// Raise notes that the visitor who is signed in to our pages has just proved these methods.
	Raise(w http.ResponseWriter, r *http.Request, amr ...string) error
	// Attempt tells whose sign-in is under way in this browser, once the first step was passed. ok is false when the host
	// has answered.
	Attempt(w http.ResponseWriter, r *http.Request) (v Visitor, ok bool)
	// Passed goes on with the sign-in under way: these methods were proved (none: the visitor puts enrolment off, as the
	// grace period allows). It answers the request.
	Passed(w http.ResponseWriter, r *http.Request, amr ...string) error
	// PassedAs is Passed where a passkey has told who signs in.
	PassedAs(w http.ResponseWriter, r *http.Request, user id.UserID, amr ...string) error
}
