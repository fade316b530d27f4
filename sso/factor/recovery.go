package factor

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

const recoveryLength = 16 // letters, 80 bits: too many to try, so that a plain hash of them will do

// newRecoveryCodes makes codes as they are shown and as they are stored.
func newRecoveryCodes(user id.UserID) (shown []string, hashes []store.TokenHash) {
	for range recoveryCodes {
		code := letters(recoveryLength)
		shown = append(shown, code[:4]+"-"+code[4:8]+"-"+code[8:12]+"-"+code[12:])
		hashes = append(hashes, recoveryHash(user, code))
	}
	return shown, hashes
}

func recoveryHash(user id.UserID, code string) store.TokenHash {
	return store.HashToken("recovery " + string(user) + " " + code)
}

// NewRecoveryCodes gives a user new recovery codes; the old ones are good no more. They are never shown again. The user has
// a factor and has proved one lately (the caller sees to the latter).
func (f *Factors) NewRecoveryCodes(ctx context.Context, user id.UserID) ([]string, error) {
	shown, hashes := newRecoveryCodes(user)
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
			return err
		}
		factors, err := activeFactors(tx, user)
		if err != nil {
			return err
		}
		if len(factors) == 0 {
			return errNoFactor
		}
		if err := tx.ReplaceRecoveryCodes(user, hashes); err != nil {
			return err
		}
		return f.audit(ctx, tx, user, "factor.recovery.renewed", audit.OK, "", nil)
	})
	if err != nil {
		return nil, err
	}
	return shown, nil
}

func (f *Factors) useRecovery(tx *store.Tx, user id.UserID, code string) (bool, error) {
	if code = plain(code); len(code) != recoveryLength {
		return false, nil
	}
	return tx.TakeRecoveryCode(user, recoveryHash(user, code))
}
