package sso

import (
	"net/http"
	"slices"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
)

// reasons are why a directory does not take a right password, as pages have texts for.
var reasons = []string{"password_expired", "password_must_change", "locked_out", "not_now"}

// problem is the text that a page shows for an error that its visitor can do something about, and the page's status; "" for
// other errors.
func problem(err error) (key string, status int) {
	e := mxerr.As(err)
	if e == nil || e.Status >= 500 {
		return "", 0
	}
	if why, _ := e.Extra[account.ReasonField].(string); slices.Contains(reasons, why) {
		return "signin_" + why, http.StatusForbidden
	}
	switch e.Code {
	case "M_LIMIT_EXCEEDED":
		return "signin_too_often", http.StatusTooManyRequests
	case "M_USER_DEACTIVATED", "M_USER_LOCKED":
		return "error_" + e.Code, http.StatusForbidden
	case "M_INVALID_USERNAME", "M_USER_IN_USE", "M_EXCLUSIVE":
		return e.Code, http.StatusBadRequest
	case "M_WEAK_PASSWORD", "M_INVALID_PARAM", "M_MISSING_PARAM":
		return "M_WEAK_PASSWORD", http.StatusBadRequest
	case "M_THREEPID_IN_USE", "M_THREEPID_AUTH_FAILED":
		return "email_refused", http.StatusBadRequest
	}
	return "", 0
}

// passwordProblem is problem for an error of a password that was checked.
func passwordProblem(err error) (key string, status int) {
	if key, status = problem(err); key == "" && mxerr.Is(err, "M_FORBIDDEN") {
		return "signin_wrong", http.StatusForbidden
	}
	return key, status
}
