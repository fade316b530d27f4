package upstream

import (
	"errors"
	"net/http"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// Reason tells refusals apart, for pages that put them into words.
type Reason string

// The reasons.
const (
	ReasonUnknown     Reason = "unknown_provider" // no such provider is configured
	ReasonUnavailable Reason = "unavailable"      // it does not answer, or too slowly
	ReasonAttempt     Reason = "attempt"          // not the answer to an attempt of this browser, or a late one
	ReasonReplayed    Reason = "replayed"         // the answer was used before
	ReasonInvalid     Reason = "invalid"          // the answer cannot be trusted or read
	ReasonDenied      Reason = "denied"           // the person or the provider said no
	ReasonGroups      Reason = "groups"           // not in a group that may sign in
	ReasonMissing     Reason = "missing"          // the provider does not tell what is needed
	ReasonName        Reason = "name"             // the name it tells cannot be that of an account
	ReasonConflict    Reason = "conflict"         // an account of that name exists and is not linked
	ReasonNoAccount   Reason = "no_account"       // there is no account, and none is made
	ReasonStepUp      Reason = "step_up"          // the second factor that was asked for was not given
	ReasonNotFresh    Reason = "not_fresh"        // the proof is older than was asked for
	ReasonLocked      Reason = "locked"           // the account is locked or was deactivated
)

func refusal(status int, code string, reason Reason, msg string) *mxerr.Error {
	return mxerr.New(status, code, msg).With(reasonKey, string(reason))
}

const reasonKey = "reason"

// ReasonOf is why an error of this package refuses a sign-in; "" for other errors.
func ReasonOf(err error) Reason {
	if e := mxerr.As(err); e != nil {
		s, _ := e.Extra[reasonKey].(string)
		return Reason(s)
	}
	return ""
}

var (
	errUnknownProvider = refusal(http.StatusNotFound, "M_NOT_FOUND", ReasonUnknown, "this server knows no such identity provider")
	errUnavailable     = refusal(http.StatusServiceUnavailable, "M_UNKNOWN", ReasonUnavailable, "the identity provider does not answer at the moment; please try again later")
	errNoAttempt       = refusal(http.StatusBadRequest, "M_INVALID_PARAM", ReasonAttempt, "this sign-in was not begun in this browser, or it took too long; please begin again")
	errReplayed        = refusal(http.StatusBadRequest, "M_INVALID_PARAM", ReasonReplayed, "this answer of the identity provider was used before; please begin again")
	errInvalidAnswer   = refusal(http.StatusBadGateway, "M_UNKNOWN", ReasonInvalid, "the answer of the identity provider is not valid; your administrator finds the cause in the log")
	errDenied          = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonDenied, "the identity provider did not sign you in")
	errGroups          = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonGroups, "your account at the identity provider may not use this server")
	errNoName          = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonName, "the name that the identity provider tells cannot be that of an account here")
	errConflict        = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonConflict, "an account of this name exists and does not belong to this sign-in; please ask your administrator")
	errNoAccount       = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonNoAccount, "there is no account for you on this server; please ask your administrator")
	errStepUp          = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonStepUp, "the identity provider did not confirm the second factor that is needed")
	errNotFresh        = refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonNotFresh, "the identity provider did not ask you again; please sign out there and begin again")
	errAccountLocked   = refusal(http.StatusForbidden, "M_USER_LOCKED", ReasonLocked, "this account is locked")
	errAccountGone     = refusal(http.StatusForbidden, "M_USER_DEACTIVATED", ReasonLocked, "this account was deactivated")
)

func errMissing(what string) error {
	return refusal(http.StatusForbidden, "M_FORBIDDEN", ReasonMissing, "the identity provider does not tell your "+what+", which is needed here")
}

// errAway marks answers of a provider that is not working.
var errAway = errors.New("the provider is not working")
