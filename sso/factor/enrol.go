package factor

import (
	"context"
	"encoding/json" // as in webauthn.go
	"fmt"
	"html/template"
	"net/url"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Enrolling is a factor that its user has still to prove.
type Enrolling struct {
	ID        string
	Kind      Kind
	Name      string
	Secret    string       // totp: for people who cannot scan
	URL       string       // totp: for apps on the same device
	QR        template.URL // totp: a picture as a data: URL
	Challenge Challenge    // other kinds
}

// BeginEnrol begins to give a user another factor. to is the number or the address that codes go to. Errors:
// M_INVALID_PARAM, M_LIMIT_EXCEEDED, M_UNRECOGNIZED where the kind is not offered.
func (f *Factors) BeginEnrol(ctx context.Context, user id.UserID, k Kind, name, to string, from From) (Enrolling, error) {
	e := Enrolling{ID: newID(), Kind: k}
	var err error
	if e.Name, err = cleanName(name); err != nil {
		return e, err
	}
	if !f.Offered(k) {
		return e, errNotHere
	}
	x := store.Factor{ID: e.ID, User: user, Kind: string(k), Name: e.Name, Created: f.now()}
	x.Expires = x.Created + enrolLifetime.Milliseconds()
	switch k {
	case TOTP:
		e.Secret = totpEncoding.EncodeToString(random(totpSecret))
		e.URL = totpURL(f.Config.Issuer, string(user), e.Secret)
		if e.QR, err = qrCode(e.URL); err != nil {
			return e, err
		}
		x.Secret = store.Content(e.Secret)
	case SMS:
		if to, err = f.gateway.canonical(to); err != nil {
			return e, err
		}
		x.Secret = store.Content(to)
	case Email:
		if to, err = account.CanonicalEmail(to); err != nil {
			return e, err
		}
		x.Secret = store.Content(to)
	case WebAuthn:
		return f.beginKey(ctx, user, e)
	}
	err = f.Store.Write(ctx, func(tx *store.Tx) error {
		if err := f.room(tx, user); err != nil {
			return err
		}
		_, err := tx.InsertFactor(x)
		return err
	})
	if err == nil && k != TOTP {
		e.Challenge, err = f.sendCode(ctx, x, from)
	}
	return e, err
}

// room holds the user's row and tells whether another factor has room, those that are being enrolled included.
func (f *Factors) room(tx *store.Tx, user id.UserID) error {
	if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
		return err
	}
	all, err := tx.Factors(user)
	if err != nil {
		return err
	}
	now, n := f.now(), 0
	for _, x := range all {
		if x.Active || x.Expires > now {
			n++
		}
	}
	if n >= maxFactors {
		return errTooMany
	}
	return nil
}

// beginKey makes the options by which a browser makes a passkey. The name waits with the ceremony.
func (f *Factors) beginKey(ctx context.Context, user id.UserID, e Enrolling) (Enrolling, error) {
	e.Challenge = Challenge{Kind: WebAuthn}
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		if err := f.room(tx, user); err != nil {
			return err
		}
		o, err := f.owner(tx, user)
		if err != nil {
			return err
		}
		var known []protocol.CredentialDescriptor
		for _, c := range o.credentials {
			known = append(known, c.Descriptor())
		}
		options, session, err := f.web.BeginRegistration(o, webauthn.WithExclusions(known))
		if err != nil {
			return fmt.Errorf("begin a WebAuthn ceremony: %w", err)
		}
		return f.asked(tx, user, ceremonyEnrol, session, options, &e.Challenge)
	})
	return e, err
}

// Enrolled is what became of a factor that was proved.
type Enrolled struct {
	AMR []string
	// Recovery are the user's recovery codes where there were none: they are shown once.
	Recovery []string
}

// Confirm checks the proof of a factor that is being enrolled; then it is one of the user's. name is that of a passkey.
// Errors: M_FORBIDDEN, M_LIMIT_EXCEEDED, M_NOT_FOUND when it took too long.
func (f *Factors) Confirm(ctx context.Context, user id.UserID, k Kind, factorID, name string, form url.Values) (Enrolled, error) {
	out := Enrolled{AMR: []string{k.AMR()}}
	shown, hashes := newRecoveryCodes(user)
	var err error
	if k == WebAuthn {
		out.AMR = append(out.AMR, AMRVerified)
		if name, err = cleanName(name); err != nil {
			return out, err
		}
	}
	given := false
	err = f.try(ctx, user, "factor."+string(k)+".enrolled", func(tx *store.Tx) (bool, map[string]any, error) {
		given = false
		var ok bool
		var err error
		if k == WebAuthn {
			factorID, ok, err = f.newKey(tx, user, name, form)
		} else {
			ok, err = f.confirm(tx, user, k, factorID, form)
		}
		if err != nil || !ok {
			return false, nil, err
		}
		if n, err := tx.RecoveryCodes(user); err != nil {
			return false, nil, err
		} else if n == 0 {
			given = true
			if err := tx.ReplaceRecoveryCodes(user, hashes); err != nil {
				return false, nil, err
			}
		}
		u, _, err := tx.FactorUser(user)
		if err == nil && u.OwedSince != 0 {
			u.OwedSince = 0
			err = tx.UpdateFactorUser(u)
		}
		return true, map[string]any{"factor": factorID}, err
	})
	if given {
		out.Recovery = shown
	}
	if err != nil && k == WebAuthn && mxerr.Is(err, "M_FORBIDDEN") {
		err = errPasskey
	}
	return out, err
}

func (f *Factors) confirm(tx *store.Tx, user id.UserID, k Kind, factorID string, form url.Values) (bool, error) {
	x, found, err := tx.Factor(user, factorID)
	if err != nil {
		return false, err
	}
	if !found || x.Active || x.Kind != string(k) || x.Expires <= f.now() {
		return false, errNoFactor
	}
	ok := false
	if k == TOTP {
		if ok, err = f.useTOTP(tx, x, form.Get(FieldCode)); ok {
			x, _, err = tx.Factor(user, factorID) // with the counter moved
		}
	} else {
		_, ok, err = f.useCode(tx, user, k, x.ID, form.Get(FieldChallenge), form.Get(FieldCode))
	}
	if err != nil || !ok {
		return false, err
	}
	x.Active, x.Used, x.Expires = true, f.now(), 0
	return true, tx.UpdateFactor(x)
}

// newKey checks a new passkey. Spec: WebAuthn 3, section 7.1.
func (f *Factors) newKey(tx *store.Tx, user id.UserID, name string, form url.Values) (factorID string, ok bool, err error) {
	if f.web == nil {
		return "", false, errNotHere
	}
	session, found, err := f.takeCeremony(tx, user, ceremonyEnrol, form.Get(FieldChallenge))
	if err != nil || !found {
		return "", false, err
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes([]byte(form.Get(FieldCredential)))
	if err != nil {
		return "", false, nil
	}
	o, err := f.owner(tx, user)
	if err != nil {
		return "", false, err
	}
	c, err := f.web.CreateCredential(o, session, parsed)
	if err != nil {
		f.Logger.Debug("a passkey was refused", "user_id", user, "reason", reasonOf(err))
		return "", false, nil
	}
	x := store.Factor{
		ID: newID(), User: user, Kind: string(WebAuthn), Name: name, Credential: c.ID,
		Counter: int64(c.Authenticator.SignCount), Active: true, Created: f.now(), Used: f.now(),
	}
	if x.Secret, err = json.Marshal(c); err != nil {
		return "", false, err
	}
	inserted, err := tx.InsertFactor(x) // a credential id that somebody has is refused: section 7.1, step 26
	return x.ID, inserted, err
}

// recordRefusal notes a refusal that touches nothing else.
func (f *Factors) recordRefusal(ctx context.Context, user id.UserID, action, reason string) error {
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		return f.audit(ctx, tx, user, action, audit.Refused, reason, nil)
	})
}
