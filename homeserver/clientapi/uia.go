package clientapi

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// authData is the "auth" member of requests that need user-interactive authentication.
// Spec: client-server API, "User-interactive API in the REST API".
type authData struct {
	Type    string `json:"type"`
	Session string `json:"session"`

	Identifier *userIdentifier `json:"identifier"` // m.login.password
	User       string          `json:"user"`       // the same as old clients send it
	Password   *string         `json:"password"`

	Token string `json:"token"` // m.login.registration_token

	ThreepidCreds *threepidCreds `json:"threepid_creds"` // m.login.email.identity
}

// userIdentifier names a user at sign-in. Spec: client-server API, "Identifier types".
type userIdentifier struct {
	Type    string `json:"type"`
	User    string `json:"user"`
	Medium  string `json:"medium"`
	Address string `json:"address"`
}

// uiaFlow is a list of stages; whoever passes all stages of one flow, in order, has authenticated.
type uiaFlow struct {
	Stages []string `json:"stages"`
}

// requireUIA lets a request of a signed-in user pass only after its user has proved again to be there. operation names
// what is to be done, with its target, such as "delete device ABC": a proof for one operation is good for no other, and
// only once. Application services need no proof. The error is the 401 that tells the client what to do.
func (a *API) requireUIA(r *http.Request, auth *authData, operation string) error {
	who := web.Requester(r)
	if who.AppService != "" {
		return nil
	}
	flows, err := a.proofFlows(r, operation)
	if err != nil {
		return err
	}
	s, err := a.interact(r, auth, operation, who.UserID, flows)
	if err != nil {
		return err
	}
	return a.spendUIA(r.Context(), s, flows)
}

// passwordFlow is how a user with a password proves to be there.
var passwordFlow = []uiaFlow{{Stages: []string{account.StagePassword}}}

// spendUIA makes sure that a completed authentication is used once.
func (a *API) spendUIA(ctx context.Context, s account.UIA, flows []uiaFlow) error {
	_, err := a.beginAgain(ctx, s, flows, a.Accounts.SpendUIA(ctx, s))
	return err
}

// beginAgain turns the errors that say that an authentication cannot be used (another request used it, it has expired, or
// its registration token was used up) into the challenge of a new one.
func (a *API) beginAgain(ctx context.Context, s account.UIA, flows []uiaFlow, err error) (account.UIA, error) {
	anew := account.NewUIA(s.Operation, s.User)
	switch {
	case errors.Is(err, account.ErrApprovalSpent):
		return a.challenge(ctx, anew, flows, mxerr.Forbidden("this authentication was used already or has expired; begin again"))
	case errors.Is(err, account.ErrTokenUnusable):
		return a.challenge(ctx, anew, flows, errRegistrationToken)
	}
	return s, err
}

// interact takes an authentication as far as this request brings it. It returns it when it is complete, and otherwise
// the 401 with the flows and the authentication that goes on. user is "" at registration.
func (a *API) interact(r *http.Request, auth *authData, operation string, user id.UserID, flows []uiaFlow) (account.UIA, error) {
	ctx := r.Context()
	s := account.NewUIA(operation, user)
	if auth == nil {
		return a.challenge(ctx, s, flows, nil)
	}
	if auth.Session != "" {
		stored, found, err := a.Accounts.FindUIA(ctx, auth.Session, operation, user)
		if err != nil {
			return s, err
		}
		if !found {
			return a.challenge(ctx, s, flows, mxerr.Forbidden("this authentication session is not known or has expired"))
		}
		s = stored
	} else if !singleStages(flows) {
		var err error
		if s, err = a.Accounts.SaveUIA(ctx, s); err != nil {
			return s, err
		}
	}
	if auth.Type != "" && !slices.Contains(s.Completed, auth.Type) {
		if !isNextStage(flows, s.Completed, auth.Type) {
			return a.challenge(ctx, s, flows, mxerr.Forbidden("this is not one of the authentication stages that can be passed now"))
		}
		proof, err := a.tryStage(r, auth, operation, user)
		if refused := mxerr.As(err); refused != nil && refused.Status == http.StatusUnauthorized {
			return a.challenge(ctx, s, flows, refused)
		}
		if err != nil {
			return s, err
		}
		next, err := a.Accounts.CompleteStage(ctx, s, auth.Type, proof)
		switch {
		case errors.Is(err, account.ErrTokenUnusable):
			return a.challenge(ctx, s, flows, errRegistrationToken)
		case err != nil:
			return a.beginAgain(ctx, s, flows, err)
		}
		s = next
	}
	if !isComplete(flows, s.Completed) {
		return a.challenge(ctx, s, flows, nil)
	}
	return s, nil
}

// challenge makes the 401 that tells what is still to be done, and stores an authentication that was not stored.
func (a *API) challenge(ctx context.Context, s account.UIA, flows []uiaFlow, refused *mxerr.Error) (account.UIA, error) {
	if s.ID == "" {
		var err error
		if s, err = a.Accounts.SaveUIA(ctx, s); err != nil {
			return s, err
		}
	}
	e := mxerr.New(http.StatusUnauthorized, "", "")
	if refused != nil {
		e = mxerr.New(http.StatusUnauthorized, refused.Code, refused.Message)
	}
	e = e.With("flows", flows).With("params", a.stageParams(flows, s.ID)).With("session", s.ID)
	return s, e.With("completed", append([]string{}, s.Completed...))
}

var (
	errRegistrationToken = mxerr.New(http.StatusUnauthorized, "M_FORBIDDEN", "the registration token is not valid")
	errUIAPassword       = mxerr.New(http.StatusUnauthorized, "M_FORBIDDEN", "the username or password is wrong")
)

// tryStage checks what the client submits for a stage. A 401 error means that it may try again. Whether a registration
// token can be used is found out when it is reserved.
func (a *API) tryStage(r *http.Request, auth *authData, operation string, user id.UserID) (account.StageProof, error) {
	switch auth.Type {
	case account.StageDummy:
		return account.StageProof{}, nil
	case account.StageRegistrationToken:
		if auth.Token == "" {
			return account.StageProof{}, mxerr.MissingParam("'auth.token' is required")
		}
		return account.StageProof{RegistrationToken: auth.Token}, nil
	case account.StagePassword:
		return account.StageProof{}, a.tryPassword(r, auth, user)
	case account.StageEmail:
		return a.tryEmail(r, auth, operation)
	}
	return account.StageProof{}, mxerr.New(http.StatusBadRequest, "M_UNRECOGNIZED", "this authentication type is not known")
}

func (a *API) tryPassword(r *http.Request, auth *authData, user id.UserID) error {
	if auth.Password == nil {
		return mxerr.MissingParam("'auth.password' is required")
	}
	name, err := a.loginName(r.Context(), auth.Identifier, auth.User)
	if err != nil {
		return err
	}
	if !names(name, user) {
		return mxerr.Forbidden("the account that confirms this must be the one that asks for it")
	}
	if err := a.passwordAttempt(string(user)); err != nil {
		return err
	}
	err = a.Accounts.ConfirmPassword(r.Context(), user, *auth.Password)
	if mxerr.Is(err, "M_FORBIDDEN") {
		a.Logger.Info("user-interactive authentication refused", "user_id", user, "ip", web.ClientIP(r))
		return errUIAPassword
	}
	return err
}

// names tells whether a name that a user typed is that of the user.
func names(name string, user id.UserID) bool {
	return strings.EqualFold(name, string(user)) || strings.EqualFold(name, user.Localpart())
}

// passwordAttempt limits how often passwords are tried for one account, from wherever.
func (a *API) passwordAttempt(account string) error {
	if wait := a.Limits.Allow(web.RateLogin, "password "+account); wait > 0 {
		return mxerr.LimitExceeded(wait)
	}
	return nil
}

// nobody is the name of no account. Spec: "In the case that the homeserver does not know about the supplied 3PID, the
// homeserver must respond with 403 Forbidden": as a wrong password is answered, and after the same time.
const nobody = "@"

// loginName is the name in an identifier, or in the "user" member of old clients. An address that no account has gives
// nobody.
func (a *API) loginName(ctx context.Context, identifier *userIdentifier, legacy string) (string, error) {
	switch {
	case identifier == nil && legacy == "":
		return "", mxerr.MissingParam("'identifier' is required")
	case identifier == nil:
		return legacy, nil
	}
	switch identifier.Type {
	case "m.id.user":
		if identifier.User == "" {
			return "", mxerr.MissingParam("'identifier.user' is required")
		}
		return identifier.User, nil
	case "m.id.thirdparty":
		if identifier.Medium == "" || identifier.Address == "" {
			return "", mxerr.MissingParam("'identifier.medium' and 'identifier.address' are required")
		}
		return a.addressOwner(ctx, identifier.Medium, identifier.Address)
	case "m.id.phone":
		return nobody, nil // no account has a phone number
	case "":
		return "", mxerr.MissingParam("'identifier.type' is required")
	}
	return "", mxerr.New(http.StatusBadRequest, "M_UNKNOWN", "this type of user identifier is not known")
}

func singleStages(flows []uiaFlow) bool {
	return !slices.ContainsFunc(flows, func(f uiaFlow) bool { return len(f.Stages) > 1 })
}

// isNextStage tells whether a stage follows the completed ones in some flow.
func isNextStage(flows []uiaFlow, completed []string, stage string) bool {
	return slices.ContainsFunc(flows, func(f uiaFlow) bool {
		return len(f.Stages) > len(completed) && slices.Equal(f.Stages[:len(completed)], completed) && f.Stages[len(completed)] == stage
	})
}

// Passable tells whether a stage of an authentication can be passed now on a page of the server's own, as the client would pass
// it here. Spec: client-server API, "Fallback".
func (a *API) Passable(s account.UIA, stage string) bool {
	switch {
	case s.Operation == operationRegister:
		return isNextStage(a.registrationFlows(), s.Completed, stage)
	case s.Operation == operationResetPassword:
		return isNextStage(resetFlows, s.Completed, stage)
	}
	return s.User != "" && isNextStage(passwordFlow, s.Completed, stage)
}

func isComplete(flows []uiaFlow, completed []string) bool {
	return slices.ContainsFunc(flows, func(f uiaFlow) bool { return slices.Equal(f.Stages, completed) })
}
