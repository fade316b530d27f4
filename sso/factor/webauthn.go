package factor

import (
	"context"
	"encoding/json" // the library's own types are made for it
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/store"
)

// newWebAuthn makes the relying party of the public address. It is nil where browsers offer no passkeys: at a bare address,
// and without TLS except on localhost. Spec: WebAuthn 3, sections 4 ("RP ID") and 5.4.2.
func newWebAuthn(publicURL, name string) (*webauthn.WebAuthn, error) {
	u, err := url.Parse(publicURL)
	if err != nil {
		return nil, fmt.Errorf("the public address: %w", err)
	}
	host := u.Hostname()
	if _, err := netip.ParseAddr(host); err == nil || host == "" || net.ParseIP(host) != nil {
		return nil, nil
	}
	if protocol.ValidateRPID(host) != nil {
		return nil, nil // a name without a domain, in a company's own network
	}
	if u.Scheme != "https" && host != "localhost" && !strings.HasSuffix(host, ".localhost") {
		return nil, nil
	}
	enforced := webauthn.TimeoutConfig{Enforce: true, Timeout: codeLifetime, TimeoutUVD: codeLifetime}
	return webauthn.New(&webauthn.Config{
		RPID: host, RPDisplayName: name, RPOrigins: []string{u.Scheme + "://" + u.Host},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: protocol.ResidentKeyRequired(),
			UserVerification: protocol.VerificationRequired,
		},
		Timeouts: webauthn.TimeoutsConfig{Login: enforced, Registration: enforced},
	})
}

// keyOwner is a user as the library wants one.
type keyOwner struct {
	user        id.UserID
	handle      []byte
	credentials []webauthn.Credential
}

func (o *keyOwner) WebAuthnID() []byte                         { return o.handle }
func (o *keyOwner) WebAuthnName() string                       { return string(o.user) }
func (o *keyOwner) WebAuthnDisplayName() string                { return o.user.Localpart() }
func (o *keyOwner) WebAuthnCredentials() []webauthn.Credential { return o.credentials }

func credentialOf(x store.Factor) (webauthn.Credential, error) {
	var c webauthn.Credential
	if err := json.Unmarshal(x.Secret, &c); err != nil {
		return c, fmt.Errorf("passkey %s: %w", x.ID, err)
	}
	c.Authenticator.SignCount = uint32(x.Counter)
	return c, nil
}

func ownerOf(user id.UserID, handle []byte, factors []store.Factor) (*keyOwner, error) {
	o := &keyOwner{user: user, handle: handle}
	for _, x := range factors {
		if Kind(x.Kind) != WebAuthn || !x.Active {
			continue
		}
		c, err := credentialOf(x)
		if err != nil {
			return nil, err
		}
		o.credentials = append(o.credentials, c)
	}
	return o, nil
}

func (f *Factors) owner(tx *store.Tx, user id.UserID) (*keyOwner, error) {
	u, err := tx.LockFactorUser(user, newHandle())
	if err != nil {
		return nil, err
	}
	factors, err := tx.Factors(user)
	if err != nil {
		return nil, err
	}
	return ownerOf(user, u.Handle, factors)
}

// keepCeremony stores the state of a ceremony until its answer comes.
func (f *Factors) keepCeremony(tx *store.Tx, user id.UserID, what string, session *webauthn.SessionData) (string, error) {
	data, err := json.Marshal(session)
	if err != nil {
		return "", err
	}
	c := store.FactorChallenge{ID: newID(), User: user, Kind: what, Data: data, Expires: f.now() + codeLifetime.Milliseconds()}
	return c.ID, tx.InsertFactorChallenge(c)
}

// takeCeremony reads the state of a ceremony, which is answered once.
func (f *Factors) takeCeremony(tx *store.Tx, user id.UserID, what, challenge string) (webauthn.SessionData, bool, error) {
	var session webauthn.SessionData
	c, found, err := tx.TakeFactorChallenge(challenge)
	if err != nil || !found || c.User != user || c.Kind != what || c.Expires <= f.now() {
		return session, false, err
	}
	if err := json.Unmarshal(c.Data, &session); err != nil {
		return session, false, fmt.Errorf("ceremony %s: %w", challenge, err)
	}
	return session, true, nil
}

// What ceremonies are for.
const (
	ceremonyEnrol    = "webauthn enrol"
	ceremonyProve    = "webauthn prove"
	ceremonyWithout  = "webauthn sign in" // without a name
	errorKindClone   = "factor.webauthn.cloned"
	actionWebAuthnOK = "factor.webauthn.used"
)

// beginProof asks a user for one of the user's passkeys.
func (f *Factors) beginProof(ctx context.Context, user id.UserID) (Challenge, error) {
	out := Challenge{Kind: WebAuthn}
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		o, err := f.owner(tx, user)
		if err != nil {
			return err
		}
		if len(o.credentials) == 0 {
			return errNoFactor
		}
		options, session, err := f.web.BeginLogin(o, webauthn.WithUserVerification(protocol.VerificationRequired))
		if err != nil {
			return fmt.Errorf("begin a WebAuthn ceremony: %w", err)
		}
		return f.asked(tx, user, ceremonyProve, session, options, &out)
	})
	return out, err
}

func (f *Factors) asked(tx *store.Tx, user id.UserID, what string, session *webauthn.SessionData, options any, out *Challenge) error {
	b, err := json.Marshal(options)
	if err != nil {
		return err
	}
	out.Options = string(b)
	out.ID, err = f.keepCeremony(tx, user, what, session)
	return err
}

// BeginPasskey asks whoever signs in for a passkey, without a name.
func (f *Factors) BeginPasskey(ctx context.Context) (Challenge, error) {
	out := Challenge{Kind: WebAuthn}
	if !f.Passkeys() {
		return out, errNotHere
	}
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		options, session, err := f.web.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
		if err != nil {
			return fmt.Errorf("begin a WebAuthn ceremony: %w", err)
		}
		return f.asked(tx, "", ceremonyWithout, session, options, &out)
	})
	return out, err
}

// useKey checks an assertion against the passkeys of its owner and notes the counter. A counter that does not grow means that
// somebody may have a copy: refused. Spec: WebAuthn 3, sections 7.2 and 6.1.1.
func (f *Factors) useKey(tx *store.Tx, user id.UserID, challenge, answer string) (ok bool, details map[string]any, err error) {
	session, found, err := f.takeCeremony(tx, user, ceremonyProve, challenge)
	if err != nil || !found {
		return false, nil, err
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes([]byte(answer))
	if err != nil {
		return false, map[string]any{"why": "the answer cannot be read"}, nil
	}
	o, err := f.owner(tx, user)
	if err != nil {
		return false, nil, err
	}
	c, err := f.web.ValidateLogin(o, session, parsed)
	if err != nil {
		return false, map[string]any{"why": reasonOf(err)}, nil
	}
	return f.noteKey(tx, user, c)
}

func reasonOf(err error) string {
	if e, ok := err.(*protocol.Error); ok {
		return e.Type
	}
	return "not valid"
}

func (f *Factors) noteKey(tx *store.Tx, user id.UserID, c *webauthn.Credential) (bool, map[string]any, error) {
	x, found, err := tx.FactorByCredential(c.ID)
	if err != nil || !found || x.User != user || !x.Active {
		return false, nil, err
	}
	details := map[string]any{"factor": x.ID}
	if c.Authenticator.CloneWarning {
		details["why"] = errorKindClone
		return false, details, nil
	}
	if x.Secret, err = json.Marshal(c); err != nil {
		return false, nil, err
	}
	x.Counter, x.Used = int64(c.Authenticator.SignCount), f.now()
	return true, details, tx.UpdateFactor(x)
}

// CheckPasskey checks the answer to BeginPasskey and tells who signs in and what was proved. Errors: M_FORBIDDEN, whatever
// is wrong; M_USER_DEACTIVATED and M_USER_LOCKED for the owner of a passkey that is right.
func (f *Factors) CheckPasskey(ctx context.Context, challenge, answer string) (id.UserID, []string, error) {
	if !f.Passkeys() {
		return "", nil, errNotHere
	}
	var user id.UserID
	var refused bool
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		user, refused = "", false
		session, found, err := f.takeCeremony(tx, "", ceremonyWithout, challenge)
		if err != nil {
			return err
		}
		var ok bool
		var details map[string]any
		if found {
			if user, ok, details, err = f.passkey(tx, session, answer); err != nil {
				return err
			}
		}
		if refused = !ok; refused {
			return f.audit(ctx, tx, user, actionWebAuthnOK, audit.Refused, "M_FORBIDDEN", details)
		}
		return f.audit(ctx, tx, user, actionWebAuthnOK, audit.OK, "", details)
	})
	switch {
	case err != nil:
		return "", nil, err
	case refused:
		return "", nil, errPasskey
	}
	if f.MayAct != nil {
		if err := f.MayAct(ctx, user); err != nil {
			return "", nil, err
		}
	}
	return user, []string{AMRKey, AMRVerified}, nil
}

func (f *Factors) passkey(tx *store.Tx, session webauthn.SessionData, answer string) (id.UserID, bool, map[string]any, error) {
	parsed, err := protocol.ParseCredentialRequestResponseBytes([]byte(answer))
	if err != nil {
		return "", false, map[string]any{"why": "the answer cannot be read"}, nil
	}
	var broken error // of the database, which the library would take for a wrong passkey
	find := func(_, handle []byte) (webauthn.User, error) {
		user, found, err := tx.FactorUserByHandle(handle)
		if err == nil && !found {
			return nil, errNoFactor
		}
		if err != nil {
			broken = err
			return nil, err
		}
		o, err := f.owner(tx, user)
		if err != nil {
			broken = err
			return nil, err
		}
		return o, nil
	}
	who, c, err := f.web.ValidatePasskeyLogin(find, session, parsed)
	if broken != nil {
		return "", false, nil, broken
	}
	if err != nil {
		return "", false, map[string]any{"why": reasonOf(err)}, nil
	}
	user := who.(*keyOwner).user
	ok, details, err := f.noteKey(tx, user, c)
	return user, ok, details, err
}
