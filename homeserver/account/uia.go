package account

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// Stages of user-interactive authentication. Spec: client-server API, "Authentication types".
const (
	StagePassword          = "m.login.password"
	StageDummy             = "m.login.dummy"
	StageRegistrationToken = "m.login.registration_token"
	StageEmail             = "m.login.email.identity"
	StageSSO               = "m.login.sso" // passed on the server's own pages
)

// ErrApprovalSpent says that an authentication session was used, or has expired, since it was looked at.
var ErrApprovalSpent = errors.New("the authentication session is gone")

// ErrTokenUnusable says that a registration token is not known, has expired or was used up.
var ErrTokenUnusable = errors.New("the registration token cannot be used")

// UIA is user-interactive authentication under way: which stages were completed, for what, by whom. Without an ID it is
// not stored, which spares a client that authenticates at its first request the writes.
type UIA = store.UIASession

// NewUIA begins an authentication without storing it. user is "" at registration.
func NewUIA(operation string, user id.UserID) UIA { return UIA{Operation: operation, User: user} }

// SaveUIA stores an authentication that was not stored before, so that any node can go on with it.
func (a *Accounts) SaveUIA(ctx context.Context, s UIA) (UIA, error) {
	s.ID = randomLetters(32)
	s.Expires = a.now() + uiaLifetime.Milliseconds()
	err := a.Store.Write(ctx, func(tx *store.Tx) error { return tx.InsertUIASession(s) })
	return s, err
}

// FindUIA returns the stored authentication of this id, if it is for this operation of this user.
func (a *Accounts) FindUIA(ctx context.Context, sid, operation string, user id.UserID) (UIA, bool, error) {
	var s UIA
	var found bool
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		s, found, err = tx.UIASession(sid)
		return err
	})
	return s, found && s.Operation == operation && s.User == user && s.Expires > a.now(), err
}

// RememberUIA keeps what the requests of an authentication have said, in the caller's form, for those that follow.
func (a *Accounts) RememberUIA(ctx context.Context, sid string, params []byte) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error { return tx.SetUIAParams(sid, params) })
}

// HashPassword gives the stored form of a password that was validated.
func (a *Accounts) HashPassword(ctx context.Context, password string) (string, error) {
	h, err := a.hashPassword(ctx, password)
	return string(h), err
}

// StageProof is what a passed stage leaves for the operation that it allows.
type StageProof struct {
	RegistrationToken string // reserved with the stage
	EmailSID          string // session in which an e-mail address was proved
}

// CompleteStage notes that a stage was passed. A registration token is reserved; ErrTokenUnusable if it cannot be.
func (a *Accounts) CompleteStage(ctx context.Context, s UIA, stage string, proof StageProof) (UIA, error) {
	registrationToken := proof.RegistrationToken
	if s.ID == "" {
		if registrationToken != "" {
			usable, err := a.RegistrationTokenValid(ctx, registrationToken)
			if err != nil || !usable {
				return s, errors.Join(err, errIf(!usable, ErrTokenUnusable))
			}
		}
		s.Completed = append(slices.Clone(s.Completed), stage)
		s.RegistrationToken = registrationToken
		s.EmailSID = proof.EmailSID
		return s, nil
	}
	var now UIA
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		var found bool
		var err error
		now, found, err = tx.LockUIASession(s.ID)
		if err != nil {
			return err
		}
		if !found {
			return ErrApprovalSpent
		}
		if slices.Contains(now.Completed, stage) {
			return nil // another request was quicker; completed stages are not tried again
		}
		if registrationToken != "" {
			reserved, err := tx.ReserveRegistrationToken(registrationToken, a.now())
			if err != nil {
				return err
			}
			if !reserved {
				return ErrTokenUnusable
			}
			now.RegistrationToken = registrationToken
		}
		if proof.EmailSID != "" {
			now.EmailSID = proof.EmailSID
		}
		now.Completed = append(now.Completed, stage)
		return tx.UpdateUIASession(now)
	})
	return now, err
}

func errIf(cond bool, err error) error {
	if cond {
		return err
	}
	return nil
}

// SpendUIA ends an authentication whose stages are complete, for an operation that may now be done once;
// ErrApprovalSpent if that was done already.
func (a *Accounts) SpendUIA(ctx context.Context, s UIA) error {
	if s.ID == "" && s.RegistrationToken == "" {
		return nil
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error { return a.spend(tx, &s) })
}

func (a *Accounts) spend(tx *store.Tx, s *UIA) error {
	if s.ID == "" {
		if s.RegistrationToken == "" {
			return nil
		}
		used, err := tx.UseRegistrationToken(s.RegistrationToken, a.now())
		if err == nil && !used {
			err = ErrTokenUnusable
		}
		return err
	}
	stored, found, err := tx.TakeUIASession(s.ID)
	if err != nil {
		return fmt.Errorf("end an authentication session: %w", err)
	}
	if !found {
		return ErrApprovalSpent
	}
	if stored.RegistrationToken == "" {
		return nil
	}
	return tx.SettleRegistrationToken(stored.RegistrationToken, true)
}
