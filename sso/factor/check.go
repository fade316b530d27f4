package factor

import (
	"context"
	"net/url"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Challenge is what a user has to answer.
type Challenge struct {
	ID      string // goes back with the answer; "" for kinds that need none
	Kind    Kind
	To      string // where a code was sent, for the most part hidden
	Options string // JSON for navigator.credentials
}

// Fields of the forms in which answers come.
const (
	FieldKind       = "kind"
	FieldCode       = "code"
	FieldChallenge  = "challenge"
	FieldCredential = "credential" // JSON of a passkey's answer
	FieldRemember   = "remember"
)

// Begin asks a user for a proof of a kind: it sends a code, or makes the options for a passkey. factorID chooses among
// several numbers or addresses; "" takes the first. Errors: M_NOT_FOUND where the user has none of the kind,
// M_LIMIT_EXCEEDED, 502 where no SMS could be sent.
func (f *Factors) Begin(ctx context.Context, user id.UserID, k Kind, factorID string, from From) (Challenge, error) {
	switch k {
	case TOTP, Recovery:
		return Challenge{Kind: k}, nil
	case WebAuthn:
		if f.web == nil {
			return Challenge{}, errNotHere
		}
		return f.beginProof(ctx, user)
	case SMS, Email:
		if !f.canSend(k) {
			return Challenge{}, errNotHere
		}
	default:
		return Challenge{}, errNotHere
	}
	var to store.Factor
	err := f.Store.Read(ctx, func(tx *store.Tx) error {
		factors, err := activeFactors(tx, user)
		if err != nil {
			return err
		}
		for _, x := range factors {
			if Kind(x.Kind) == k && (factorID == "" || x.ID == factorID) {
				to = x
				return nil
			}
		}
		return errNoFactor
	})
	if err != nil {
		return Challenge{}, err
	}
	return f.sendCode(ctx, to, from)
}

func (f *Factors) canSend(k Kind) bool {
	return (k == SMS && f.gateway != nil) || (k == Email && f.MailQueued != nil)
}

// Check checks a user's answer and returns the methods that it proves. Every answer is good once, also when it comes twice at
// the same time at two nodes. Errors: M_FORBIDDEN; M_LIMIT_EXCEEDED when the account has to wait after wrong answers.
func (f *Factors) Check(ctx context.Context, user id.UserID, k Kind, form url.Values) (amr []string, err error) {
	var fn func(tx *store.Tx) (bool, map[string]any, error)
	code, challenge := form.Get(FieldCode), form.Get(FieldChallenge)
	switch k {
	case TOTP:
		fn = func(tx *store.Tx) (bool, map[string]any, error) { return f.anyTOTP(tx, user, code) }
	case Recovery:
		fn = func(tx *store.Tx) (bool, map[string]any, error) {
			ok, err := f.useRecovery(tx, user, code)
			return ok, nil, err
		}
	case WebAuthn:
		if f.web == nil {
			return nil, errNotHere
		}
		fn = func(tx *store.Tx) (bool, map[string]any, error) {
			return f.useKey(tx, user, challenge, form.Get(FieldCredential))
		}
	case SMS, Email:
		fn = func(tx *store.Tx) (bool, map[string]any, error) {
			x, ok, err := f.useCode(tx, user, k, "", challenge, code)
			if err != nil || !ok || !x.Active {
				return false, nil, err
			}
			x.Used = f.now()
			return true, map[string]any{"factor": x.ID}, tx.UpdateFactor(x)
		}
	default:
		return nil, errNotHere
	}
	if err := f.try(ctx, user, "factor."+string(k)+".used", fn); err != nil {
		if k == WebAuthn && mxerr.Is(err, "M_FORBIDDEN") {
			err = errPasskey
		}
		return nil, err
	}
	if k == WebAuthn {
		return []string{AMRKey, AMRVerified}, nil
	}
	return []string{k.AMR()}, nil
}

var errPasskey = mxerr.Forbidden("this passkey could not be checked; try again, or use another second factor")

// anyTOTP checks a code against all authenticator apps of a user.
func (f *Factors) anyTOTP(tx *store.Tx, user id.UserID, code string) (bool, map[string]any, error) {
	factors, err := activeFactors(tx, user)
	if err != nil {
		return false, nil, err
	}
	for _, x := range factors {
		if Kind(x.Kind) != TOTP {
			continue
		}
		if ok, err := f.useTOTP(tx, x, code); err != nil || ok {
			return ok, map[string]any{"factor": x.ID}, err
		}
	}
	return false, nil, nil
}
