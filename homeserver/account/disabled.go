package account

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// Disable bars an account in the caller's transaction because the source that it comes from says that its person is
// gone: its sessions end softly (devices and their keys stay, so that a mistake costs nobody their history), its pushers
// and login tokens go, and nobody can sign in. It announces things, so it comes last in the transaction. false means
// that the account was barred already, or cannot be used anyway.
func (a *Accounts) Disable(tx *store.Tx, user id.UserID) (bool, error) {
	u, found, err := tx.LockUser(user)
	if err != nil || !found || u.Deactivated || u.Disabled != 0 {
		return false, err
	}
	if _, err := tx.SetUserDisabled(user, a.now()); err != nil {
		return false, err
	}
	if err := tx.DeleteLoginTokens(user); err != nil {
		return false, err
	}
	if err := tx.DeletePushersOf(user); err != nil {
		return false, err
	}
	if err := a.endSessions(context.Background(), tx, user, Ending{Soft: true, Reason: "disabled"}); err != nil {
		return false, err
	}
	return true, announceUser(tx, user)
}

// Enable takes back what Disable did, but for the sessions: the person signs in again. false means that the account was
// not barred.
func (a *Accounts) Enable(tx *store.Tx, user id.UserID) (bool, error) {
	u, found, err := tx.LockUser(user)
	if err != nil || !found || u.Disabled == 0 {
		return false, err
	}
	if _, err := tx.SetUserDisabled(user, 0); err != nil {
		return false, err
	}
	return true, announceUser(tx, user)
}
