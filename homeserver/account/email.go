package account

import (
	"context"
	"crypto/subtle"
	"net/http"
	"net/mail"
	"net/url"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/idna"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Threepid is an address outside of Matrix that a user has proved to own.
type Threepid = store.Threepid

// EmailRequest is a client's wish that somebody proves to own an e-mail address.
type EmailRequest struct {
	Purpose      store.EmailPurpose
	Address      string
	ClientSecret string
	SendAttempt  int64
	NextLink     string // where the page goes on to, or ""
	Lang         string // of the mail
}

// Kinds of mail.
const (
	MailConfirmRegistration = "confirm_registration"
	MailConfirmAddress      = "confirm_address"
	MailConfirmPassword     = "confirm_password"
	MailAddressInUse        = "address_in_use" // to the owner of an address by which somebody wanted another account
	MailNoAccount           = "no_account"     // to an address of nobody, for which a password was to be reset
)

// MailData is what the text of a mail is made of.
type MailData struct {
	User  id.UserID `json:"user,omitzero"`
	Token string    `json:"token,omitzero"` // of the link
	Code  string    `json:"code,omitzero"`  // one-time code, of MailCode
	Facts []string  `json:"facts,omitzero"` // lines that tell of a device, of MailNewDevice
}

const (
	emailLifetime   = time.Hour // of a link, and of a proof that was given
	maxMailsTo      = 6         // to one address within emailLifetime
	maxEmail        = 254       // bytes; RFC 5321
	maxClientSecret = 255
	maxNextLink     = 2048
)

var (
	errNoEmail    = mxerr.New(http.StatusBadRequest, "M_THREEPID_MEDIUM_NOT_SUPPORTED", "this server sends no mail: e-mail addresses cannot be used here")
	errEmailProof = mxerr.New(http.StatusBadRequest, "M_THREEPID_AUTH_FAILED", "the address was not confirmed: open the link in the mail first")
	errEmailInUse = mxerr.New(http.StatusBadRequest, "M_THREEPID_IN_USE", "this address belongs to another account")
	errEmailToken = mxerr.NotFound("this link is not valid any more")
)

// CanonicalEmail brings an address into the form in which it is stored and compared: all in lower case, the domain as it
// stands in the DNS. Errors: M_INVALID_PARAM.
// Spec: appendices, "3PID Types", "E-Mail".
func CanonicalEmail(address string) (string, error) {
	bad := mxerr.InvalidParam("this is no e-mail address")
	parsed, err := mail.ParseAddress(address)
	if err != nil || parsed.Address != address || strings.ContainsAny(address, "\"\\ \t\r\n\x00") {
		return "", bad // a name, a comment or a quoted local part is not part of an address that is compared
	}
	at := strings.LastIndexByte(address, '@')
	domain, err := idna.Lookup.ToASCII(address[at+1:])
	if err != nil {
		return "", bad
	}
	out := lower(address[:at]) + "@" + domain
	if len(out) > maxEmail {
		return "", bad
	}
	for _, c := range []byte(out) {
		if c <= ' ' || c >= 0x7f {
			return "", bad
		}
	}
	return out, nil
}

// validSecret checks a client secret. Spec: POST …/email/requestToken, "client_secret".
func validSecret(s string) bool {
	if s == "" || len(s) > maxClientSecret {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '.', c == '=', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

func (req *EmailRequest) check() error {
	var err error
	if req.Address, err = CanonicalEmail(req.Address); err != nil {
		return err
	}
	if !validSecret(req.ClientSecret) {
		return mxerr.InvalidParam("'client_secret' must have 1 to 255 of the characters 0-9 a-z A-Z . = _ -")
	}
	if req.SendAttempt < 0 {
		return mxerr.InvalidParam("'send_attempt' must not be negative")
	}
	if req.NextLink == "" {
		return nil
	}
	u, err := url.Parse(req.NextLink)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil || len(req.NextLink) > maxNextLink {
		return mxerr.InvalidParam("'next_link' must be an address that begins with https://")
	}
	return nil
}

// RequestEmail queues a mail by which the owner of an address can prove to be that, and returns the session's id. The
// answer and the time it takes are the same whether an account has the address or not: in either case one mail is
// queued, and only it says what is the matter. A request that was seen before, told by its send attempt, sends nothing.
// Errors: M_THREEPID_MEDIUM_NOT_SUPPORTED, M_INVALID_PARAM, M_LIMIT_EXCEEDED.
func (a *Accounts) RequestEmail(ctx context.Context, req EmailRequest) (sid string, err error) {
	if !a.Config.Email.Enabled {
		return "", errNoEmail
	}
	if err := req.check(); err != nil {
		return "", err
	}
	queued := false
	err = a.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		sid, queued, err = a.requestEmail(tx, &req)
		return err
	})
	if err == nil && queued && a.MailQueued != nil {
		a.MailQueued()
	}
	return sid, err
}

func (a *Accounts) requestEmail(tx *store.Tx, req *EmailRequest) (sid string, queued bool, err error) {
	now, secret := a.now(), store.HashToken(req.ClientSecret)
	v, found, err := tx.LockEmailRequest(req.Purpose, req.Address, secret)
	if err != nil {
		return "", false, err
	}
	if found && v.Expires > now && (req.SendAttempt <= v.Attempt || v.Validated != 0) {
		return v.SID, false, nil
	}
	if found && v.Expires <= now {
		if _, _, err := tx.TakeEmailValidation(v.SID); err != nil {
			return "", false, err
		}
		found = false
	}
	lately, err := tx.MailsTo(req.Address, now)
	if err != nil {
		return "", false, err
	}
	if lately >= maxMailsTo {
		return "", false, mxerr.LimitExceeded(emailLifetime / 4)
	}
	owner, owned, err := tx.ThreepidUser(store.MediumEmail, req.Address)
	if err != nil {
		return "", false, err
	}
	if !found {
		v = store.EmailValidation{SID: randomLetters(32), Purpose: req.Purpose, Address: req.Address, Secret: secret}
	}
	v.Attempt, v.NextLink, v.Expires, v.Token = req.SendAttempt, req.NextLink, now+emailLifetime.Milliseconds(), nil
	v.Mails++
	m := store.Mail{ID: randomLetters(32), To: req.Address, Lang: req.Lang, Created: now}
	data := MailData{User: owner}
	token := newToken("")
	switch {
	case req.Purpose == store.EmailForPassword && owned:
		m.Kind = MailConfirmPassword
	case req.Purpose == store.EmailForPassword:
		m.Kind = MailNoAccount
	case owned:
		m.Kind = MailAddressInUse
	case req.Purpose == store.EmailForRegistration:
		m.Kind = MailConfirmRegistration
	default:
		m.Kind = MailConfirmAddress
	}
	if m.Kind != MailNoAccount && m.Kind != MailAddressInUse {
		h := store.HashToken(token)
		v.Token, data.Token = &h, v.SID+"."+token
	}
	if m.Data, err = json.Marshal(data); err != nil {
		return "", false, err
	}
	return a.storeEmailRequest(tx, v, m, found)
}

func (a *Accounts) storeEmailRequest(tx *store.Tx, v store.EmailValidation, m store.Mail, known bool) (sid string, queued bool, err error) {
	if known {
		err = tx.UpdateEmailValidation(v)
	} else {
		var inserted bool
		if inserted, err = tx.InsertEmailValidation(v); err == nil && !inserted {
			// The same request came twice at a time: the other one sends the mail.
			other, found, err := tx.LockEmailRequest(v.Purpose, v.Address, v.Secret)
			if err == nil && !found {
				err = mxerr.Unavailable("the same request is under way, try again")
			}
			return other.SID, false, err
		}
	}
	if err != nil {
		return "", false, err
	}
	return v.SID, true, tx.InsertMail(m)
}

// EmailToken finds the proof that the link in a mail is for. 404 M_NOT_FOUND if there is none any more.
func (a *Accounts) EmailToken(ctx context.Context, link string) (store.EmailValidation, error) {
	var v store.EmailValidation
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		v, err = a.emailToken(link, tx.EmailValidation)
		return err
	})
	return v, err
}

// ConfirmEmail is what the link in a mail does once its reader has agreed; doing it again changes nothing.
func (a *Accounts) ConfirmEmail(ctx context.Context, link string) (store.EmailValidation, error) {
	var v store.EmailValidation
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		var err error
		if v, err = a.emailToken(link, tx.LockEmailValidation); err != nil || v.Validated != 0 {
			return err
		}
		v.Validated = a.now()
		v.Expires = v.Validated + emailLifetime.Milliseconds()
		return tx.UpdateEmailValidation(v)
	})
	return v, err
}

func (a *Accounts) emailToken(link string, read func(sid string) (store.EmailValidation, bool, error)) (store.EmailValidation, error) {
	sid, token, ok := strings.Cut(link, ".")
	if !ok || !validSecret(sid) {
		return store.EmailValidation{}, errEmailToken
	}
	v, found, err := read(sid)
	if err != nil {
		return v, err
	}
	h := store.HashToken(token)
	if !found || v.Token == nil || v.Expires <= a.now() || subtle.ConstantTimeCompare(h[:], v.Token[:]) != 1 {
		return store.EmailValidation{}, errEmailToken
	}
	return v, nil
}

// CheckEmail tells whether an address was proved in a session: nil or M_THREEPID_AUTH_FAILED, whatever is missing.
func (a *Accounts) CheckEmail(ctx context.Context, sid, clientSecret string, purpose store.EmailPurpose) error {
	if !validSecret(sid) || !validSecret(clientSecret) {
		return errEmailProof
	}
	return a.Store.Read(ctx, func(tx *store.Tx) error {
		v, found, err := tx.EmailValidation(sid)
		if err != nil {
			return err
		}
		secret := store.HashToken(clientSecret)
		if !found || subtle.ConstantTimeCompare(secret[:], v.Secret[:]) != 1 || !a.proves(v, purpose) {
			return errEmailProof
		}
		return nil
	})
}

func (a *Accounts) proves(v store.EmailValidation, purpose store.EmailPurpose) bool {
	return v.Purpose == purpose && v.Validated != 0 && v.Expires > a.now()
}

// attachEmail gives a user the address that was proved in a session, which ends.
func (a *Accounts) attachEmail(ctx context.Context, tx *store.Tx, user id.UserID, sid string, purpose store.EmailPurpose) error {
	v, found, err := tx.TakeEmailValidation(sid)
	if err != nil {
		return err
	}
	if !found || !a.proves(v, purpose) {
		return errEmailProof
	}
	added, err := tx.InsertThreepid(Threepid{Medium: store.MediumEmail, Address: v.Address, User: user, Validated: v.Validated, Added: a.now()})
	if err == nil && added {
		return audit.Append(ctx, tx, audit.Entry{Action: "user.email.added", Target: string(user), Details: map[string]any{"address": v.Address}})
	}
	if err != nil {
		return err
	}
	owner, _, err := tx.ThreepidUser(store.MediumEmail, v.Address)
	if err == nil && owner != user {
		err = errEmailInUse
	}
	return err
}

// AddEmail gives a user the address that was proved in a session that CheckEmail has found good. Errors:
// M_THREEPID_AUTH_FAILED, M_THREEPID_IN_USE.
func (a *Accounts) AddEmail(ctx context.Context, user id.UserID, sid string) error {
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		if u, found, err := tx.LockUser(user); err != nil || !found || u.Deactivated {
			return orNoUser(err)
		}
		return a.attachEmail(ctx, tx, user, sid, store.EmailForAddress)
	})
}

func orNoUser(err error) error {
	if err != nil {
		return err
	}
	return errNoUser
}

// TakeEmailProof ends the session of an authentication by e-mail and returns whose account the address belongs to.
// Errors: M_THREEPID_AUTH_FAILED.
func (a *Accounts) TakeEmailProof(ctx context.Context, sid string) (id.UserID, error) {
	var user id.UserID
	err := a.Store.Write(ctx, func(tx *store.Tx) error {
		v, found, err := tx.TakeEmailValidation(sid)
		if err != nil {
			return err
		}
		if !found || !a.proves(v, store.EmailForPassword) {
			return errEmailProof
		}
		if user, found, err = tx.ThreepidUser(store.MediumEmail, v.Address); err == nil && !found {
			err = errEmailProof
		}
		return err
	})
	return user, err
}

// Threepids lists a user's addresses outside of Matrix.
func (a *Accounts) Threepids(ctx context.Context, user id.UserID) ([]Threepid, error) {
	var out []Threepid
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		out, err = tx.Threepids(user)
		return err
	})
	return out, err
}

// DeleteThreepid takes an address from a user. One that the user does not have is as good as deleted.
func (a *Accounts) DeleteThreepid(ctx context.Context, user id.UserID, medium, address string) error {
	if medium == store.MediumEmail {
		if canonical, err := CanonicalEmail(address); err == nil {
			address = canonical
		}
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error {
		removed, err := tx.DeleteThreepid(user, medium, address)
		if err != nil || !removed {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "user.email.removed", Target: string(user), Details: map[string]any{"address": address}})
	})
}

// EmailUser finds whose an e-mail address is; "" if nobody's.
func (a *Accounts) EmailUser(ctx context.Context, address string) (id.UserID, error) {
	address, err := CanonicalEmail(address)
	if err != nil {
		return "", nil
	}
	var user id.UserID
	err = a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		user, _, err = tx.ThreepidUser(store.MediumEmail, address)
		return err
	})
	return user, err
}
