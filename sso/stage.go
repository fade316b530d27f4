package sso

import (
	"errors"
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

// pathStage is where the forms of the fallback pages go.
const pathStage = "/signin/stage"

func (s *SSO) stageRoutes() []web.Route {
	return []web.Route{s.form("POST "+pathStage, s.passStage)}
}

// stages are those of user-interactive authentication that apps can have passed on a page of ours without a sign-in there.
// Spec: client-server API, "Fallback".
var stages = []string{account.StagePassword, account.StageDummy, account.StageRegistrationToken, account.StageEmail}

// stageData is what the page of a stage shows.
type stageData struct {
	Session, Stage     string
	Kind, What         string // of the operation
	User               id.UserID
	Email, SID, Secret string // an address that is being proved
	Problem            string
}

// waitingStage finds an authentication under way that a stage can take further.
func (s *SSO) waitingStage(r *http.Request, session, stage string) (u account.UIA, d stageData, err error) {
	found := false
	err = s.Store.Read(r.Context(), func(tx *store.Tx) (err error) {
		u, found, err = tx.UIASession(session)
		return err
	})
	switch {
	case err != nil:
		return u, d, err
	case !found, u.Expires <= s.now(), !slices.Contains(stages, stage),
		!slices.Contains(u.Completed, stage) && (s.Passable == nil || !s.Passable(u, stage)):
		return u, d, errNoApproval
	}
	return u, stageData{Session: session, Stage: stage, Kind: operationKind(u.Operation), What: u.Operation, User: u.User}, nil
}

// showStage is the page on which a stage is passed.
func (s *SSO) showStage(w http.ResponseWriter, r *http.Request, session, stage string) error {
	u, d, err := s.waitingStage(r, session, stage)
	if err != nil {
		return err
	}
	if slices.Contains(u.Completed, stage) {
		return s.stagePassed(w, r)
	}
	return s.pages.Render(w, r, http.StatusOK, "stage", d)
}

// stagePassed is the page that tells the app.
func (s *SSO) stagePassed(w http.ResponseWriter, r *http.Request) error {
	return s.pages.Render(w, r, http.StatusOK, "approved", struct{ Allowed bool }{true})
}

// passStage handles POST /signin/stage.
func (s *SSO) passStage(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	u, d, err := s.waitingStage(r, r.PostFormValue("session"), r.PostFormValue("stage"))
	if err != nil {
		return err
	}
	if slices.Contains(u.Completed, d.Stage) {
		return s.stagePassed(w, r) // completed stages are not tried again
	}
	refuse := func(status int, problem string) error {
		d.Problem = problem
		return s.pages.Render(w, r, status, "stage", d)
	}
	var proof account.StageProof
	switch d.Stage {
	case account.StagePassword:
		err := s.limit(web.RateLogin, "password "+strings.ToLower(string(u.User)))
		if err == nil {
			err = s.Accounts.ConfirmPassword(ctx, u.User, r.PostFormValue("password"))
		}
		if key, status := passwordProblem(err); key != "" {
			return refuse(status, key)
		}
		if err != nil {
			return err
		}
	case account.StageRegistrationToken:
		proof.RegistrationToken = strings.TrimSpace(r.PostFormValue("token"))
	case account.StageEmail:
		proved, err := s.stageEmail(r, u, &d)
		if err != nil {
			return err
		}
		if !proved {
			status := http.StatusOK
			if d.Problem != "" {
				status = http.StatusBadRequest
			}
			return refuse(status, d.Problem)
		}
		proof.EmailSID = d.SID
	}
	if u.User != "" {
		e := audit.Entry{Action: "uia.approved", Target: string(u.User), Details: map[string]any{"operation": u.Operation, "stage": d.Stage}}
		if err := s.Audit.Record(source(ctx, u.User, ""), e); err != nil {
			return err
		}
	}
	_, err = s.Accounts.CompleteStage(ctx, u, d.Stage, proof)
	switch {
	case errors.Is(err, account.ErrTokenUnusable):
		return refuse(http.StatusBadRequest, "register_token")
	case errors.Is(err, account.ErrApprovalSpent):
		return errNoApproval
	case err != nil:
		return err
	}
	return s.stagePassed(w, r)
}

// stageEmail sends the mail by which an address is proved, or looks whether its link was opened.
func (s *SSO) stageEmail(r *http.Request, u account.UIA, d *stageData) (proved bool, err error) {
	purpose := store.EmailForRegistration
	if u.Operation == OperationResetPassword {
		purpose = store.EmailForPassword
	}
	d.Email, d.SID, d.Secret = strings.TrimSpace(r.PostFormValue("email")), r.PostFormValue("sid"), r.PostFormValue("secret")
	if d.SID != "" {
		err := s.Accounts.CheckEmail(r.Context(), d.SID, d.Secret, purpose)
		if mxerr.Is(err, "M_THREEPID_AUTH_FAILED") {
			d.Problem = "recover_not_yet"
			return false, nil
		}
		return err == nil, err
	}
	d.Secret = newSecret()
	d.SID, err = s.Accounts.RequestEmail(r.Context(), account.EmailRequest{
		Purpose: purpose, Address: d.Email, ClientSecret: d.Secret, SendAttempt: 1, Lang: s.Kit.Lang(r),
	})
	if e := mxerr.As(err); e != nil && e.Status < 500 {
		d.Problem = "email_refused"
		return false, nil
	}
	return false, err
}
