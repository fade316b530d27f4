package factor

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"math/big"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// newCode makes six digits, all of which are equally likely.
func newCode() string {
	n, _ := rand.Int(rand.Reader, big.NewInt(1_000_000)) // never fails
	return fmt.Sprintf("%06d", n)
}

func codeHash(challenge, code string) store.TokenHash {
	return store.HashToken("code " + challenge + " " + code)
}

// limit is a number of codes that may be sent in a day.
type limit struct {
	key   string
	most  int
	every time.Duration
}

// limits are those for a code to a place, which is a number or an address.
func (f *Factors) limits(user id.UserID, k Kind, to string, from From) []limit {
	out := []limit{{"gap " + string(k) + " " + to, 1, codeGap}}
	if k == Email {
		return append(out, limit{"mail to " + to, mailsPerDay, day}, limit{"mail for " + string(user), mailsPerDay, day})
	}
	s := &f.gateway.cfg
	return append(out,
		limit{"sms to " + to, s.PerNumberDay, day}, limit{"sms for " + string(user), s.PerAccountDay, day},
		limit{"sms from " + from.IP.String(), s.PerAddressDay, day}, limit{"sms", s.PerDay, day})
}

// sendCode sends a code to the place of a factor and returns the challenge that it answers. Codes sent before to the same
// user by the same way are good no more. Errors: M_LIMIT_EXCEEDED; 502 where the gateway does not take it.
func (f *Factors) sendCode(ctx context.Context, x store.Factor, from From) (Challenge, error) {
	k, to := Kind(x.Kind), string(x.Secret)
	c := store.FactorChallenge{ID: newID(), User: x.User, Kind: x.Kind, Factor: x.ID, Data: store.Content("{}")}
	code := newCode()
	c.Hash = codeHash(c.ID, code)
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		now := f.now()
		c.Expires = now + codeLifetime.Milliseconds()
		if _, err := tx.LockFactorUser(x.User, newHandle()); err != nil {
			return err
		}
		for _, l := range f.limits(x.User, k, to, from) {
			n, err := tx.CountFactor(store.HashToken(l.key), now, now+l.every.Milliseconds())
			if err != nil {
				return err
			}
			if n > int64(l.most) {
				return mxerr.LimitExceeded(min(l.every, time.Hour))
			}
		}
		if err := tx.DeleteFactorChallenges(x.User, x.Kind); err != nil {
			return err
		}
		if err := tx.InsertFactorChallenge(c); err != nil {
			return err
		}
		if k == Email {
			m, err := account.CodeMail(to, from.Lang, code, now)
			if err != nil {
				return err
			}
			if err := tx.InsertMail(m); err != nil {
				return err
			}
		}
		return f.audit(ctx, tx, x.User, "factor."+x.Kind+".sent", audit.OK, "", map[string]any{"factor": x.ID})
	})
	if err != nil {
		return Challenge{}, err
	}
	if k == Email {
		f.MailQueued()
	} else if err := f.gateway.send(ctx, smsData{Number: to, Code: code, Lang: from.Lang, Now: f.Clock()}); err != nil {
		f.Logger.Warn("an SMS could not be sent", "user_id", x.User, "error", err)
		return Challenge{}, errSMS
	}
	return Challenge{ID: c.ID, Kind: k, To: infoOf(x).To}, nil
}

// useCode checks a code that was sent and uses it up. After five wrong ones the challenge is answered by none.
func (f *Factors) useCode(tx *store.Tx, user id.UserID, k Kind, factorID, challenge, code string) (store.Factor, bool, error) {
	c, found, err := tx.LockFactorChallenge(challenge)
	if err != nil || !found || c.User != user || c.Kind != string(k) || c.Expires <= f.now() || (factorID != "" && c.Factor != factorID) {
		return store.Factor{}, false, err
	}
	if c.Tries >= codeTries {
		return store.Factor{}, false, nil
	}
	h := codeHash(c.ID, plain(code))
	if subtle.ConstantTimeCompare(h[:], c.Hash[:]) != 1 {
		return store.Factor{}, false, tx.CountFactorTry(c.ID)
	}
	if _, _, err := tx.TakeFactorChallenge(c.ID); err != nil {
		return store.Factor{}, false, err
	}
	x, found, err := tx.Factor(user, c.Factor)
	return x, found, err
}
