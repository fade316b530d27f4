package sso

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Stages of user-interactive authentication that are passed on our pages.
const (
	StageSSO               = "m.login.sso"
	StageOAuth             = "m.oauth"
	StageCrossSigningReset = "org.matrix.cross_signing_reset" // m.oauth before v1.17 of the specification
)

func (s *SSO) approveRoutes() []web.Route {
	return []web.Route{
		s.page("GET "+pathApprove, s.showApprove),
		s.form("POST "+pathApprove, s.approve),
	}
}

type approveData struct {
	User           id.UserID
	Kind, What     string
	Session, Stage string
	Fallback       bool
}

// operationKinds are the texts for operations, by how they begin.
var operationKinds = []struct{ prefix, text string }{
	{OperationCrossSigning, "approve_reset"},
	{"delete device", "approve_devices"},
	{"deactivate", "approve_deactivate"},
	{"change password", "approve_password"},
	{"get a login token", "approve_token"},
	{"add the address", "approve_address"},
	{"register", "approve_register"},
	{OperationResetPassword, "approve_reset_password"},
}

func operationKind(operation string) string {
	for _, k := range operationKinds {
		if strings.HasPrefix(operation, k.prefix) {
			return k.text
		}
	}
	return "approve_other"
}

var errNoApproval = mxerr.NotFound("there is nothing to confirm, or it has expired: begin again in your app")

// waiting finds the user-interactive authentication that is to be approved; a person who comes without a session (an app
// opened the deep link alone) approves the newest ones for cross-signing.
func (s *SSO) waiting(r *http.Request, user id.UserID, session string) ([]account.UIA, error) {
	var out []account.UIA
	err := s.Store.Read(r.Context(), func(tx *store.Tx) error {
		out = nil
		ids := []string{session}
		if session == "" {
			var err error
			if ids, err = tx.UIASessionsFor(user, OperationCrossSigning, s.now()); err != nil {
				return err
			}
		}
		for _, sid := range ids {
			u, found, err := tx.UIASession(sid)
			if err != nil {
				return err
			}
			if found && u.User == user && u.Expires > s.now() {
				out = append(out, u)
			}
		}
		return nil
	})
	if err == nil && len(out) == 0 {
		err = errNoApproval
	}
	return out, err
}

// showApprove handles GET /account/approve: what an app wants to do in somebody's name is shown, to who has just signed in.
func (s *SSO) showApprove(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{MaxAge: sensitiveAge})
	if !ok {
		return nil
	}
	session, stage := web.QueryString(r, "session"), cmp.Or(web.QueryString(r, "stage"), StageOAuth)
	list, err := s.waiting(r, b.User, session)
	if err != nil {
		return err
	}
	return s.pages.Render(w, r, http.StatusOK, "approve", approveData{
		User: b.User, Kind: operationKind(list[0].Operation), What: list[0].Operation, Session: session, Stage: stage,
	})
}

// approve handles POST /account/approve.
func (s *SSO) approve(w http.ResponseWriter, r *http.Request) error {
	b, ok := s.RequireBrowser(w, r, Need{MaxAge: sensitiveAge})
	if !ok {
		return nil
	}
	stage := r.PostFormValue("stage")
	if !slices.Contains([]string{StageSSO, StageOAuth, StageCrossSigningReset}, stage) {
		return mxerr.InvalidParam("this authentication type is not confirmed here")
	}
	if r.PostFormValue("user") != string(b.User) {
		return errOther
	}
	list, err := s.waiting(r, b.User, r.PostFormValue("session"))
	if err != nil {
		return err
	}
	if r.PostFormValue("answer") != "allow" {
		return s.pages.Render(w, r, http.StatusOK, "approved", struct{ Allowed bool }{false})
	}
	ctx := source(r.Context(), b.User, b.ID[:8])
	for _, u := range list {
		if err := s.Audit.Record(ctx, audit.Entry{Action: "uia.approved", Target: string(b.User), Details: map[string]any{"operation": u.Operation}}); err != nil {
			return err
		}
		if _, err := s.Accounts.CompleteStage(ctx, u, stage, account.StageProof{}); err != nil {
			return err
		}
	}
	return s.pages.Render(w, r, http.StatusOK, "approved", struct{ Allowed bool }{true})
}
