package store

import (
	"bytes"

	"maunium.net/go/mautrix/id"
)

// MediumEmail is the medium of e-mail addresses.
const MediumEmail = "email"

// Threepid is an address outside of Matrix that a user has proved to own.
type Threepid struct {
	Medium, Address  string
	User             id.UserID
	Validated, Added int64 // ms
}

// InsertThreepid adds an address to an account; false means that some account has it.
func (tx *Tx) InsertThreepid(t Threepid) (bool, error) {
	n, err := tx.Exec(`INSERT INTO threepids (medium, address, usr, validated, added) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (medium, address) DO NOTHING`, t.Medium, t.Address, t.User, t.Validated, t.Added)
	return n > 0, err
}

// ThreepidUser finds whose an address is.
func (tx *Tx) ThreepidUser(medium, address string) (id.UserID, bool, error) {
	var user id.UserID
	found, err := tx.Get([]any{&user}, `SELECT usr FROM threepids WHERE medium = $1 AND address = $2`, medium, address)
	return user, found, err
}

// Threepids lists a user's addresses, the oldest first.
func (tx *Tx) Threepids(user id.UserID) ([]Threepid, error) {
	var out []Threepid
	err := tx.Each(`SELECT medium, address, usr, validated, added FROM threepids WHERE usr = $1 ORDER BY added, medium, address`,
		[]any{user}, func(r *Row) error {
			var t Threepid
			if err := r.Scan(&t.Medium, &t.Address, &t.User, &t.Validated, &t.Added); err != nil {
				return err
			}
			out = append(out, t)
			return nil
		})
	return out, err
}

// DeleteThreepid takes an address from a user's account; false means that the user does not have it.
func (tx *Tx) DeleteThreepid(user id.UserID, medium, address string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM threepids WHERE medium = $1 AND address = $2 AND usr = $3`, medium, address, user)
	return n > 0, err
}

// DeleteThreepids takes all addresses from a user's account.
func (tx *Tx) DeleteThreepids(user id.UserID) error {
	_, err := tx.Exec(`DELETE FROM threepids WHERE usr = $1`, user)
	return err
}

// EmailPurpose is what the proof of an e-mail address is for; it is good for nothing else. The numbers are stored.
type EmailPurpose int8

// The purposes.
const (
	EmailForRegistration EmailPurpose = 1 + iota
	EmailForAddress
	EmailForPassword
)

// EmailValidation is the proof of an e-mail address, under way or given.
type EmailValidation struct {
	SID       string
	Purpose   EmailPurpose
	Address   string
	Secret    TokenHash  // of the client's secret
	Token     *TokenHash // of the token in the mail; nil: the mail has none
	Attempt   int64      // the client's number of the last mail
	Mails     int64      // how many were sent
	NextLink  string
	Validated int64 // ms; 0: not yet
	Expires   int64 // ms
}

const validationColumns = `sid, purpose, address, secret, token, attempt, mails, next_link, validated, expires`

func (tx *Tx) emailValidation(sql string, args ...any) (EmailValidation, bool, error) {
	var v EmailValidation
	var secret, token []byte
	found, err := tx.Get([]any{&v.SID, &v.Purpose, &v.Address, &secret, &token, &v.Attempt, &v.Mails, &v.NextLink, &v.Validated, &v.Expires}, sql, args...)
	copy(v.Secret[:], secret)
	if len(token) == len(TokenHash{}) {
		h := TokenHash(bytes.Clone(token))
		v.Token = &h
	}
	return v, found, err
}

// EmailValidation reads a proof by its session id.
func (tx *Tx) EmailValidation(sid string) (EmailValidation, bool, error) {
	return tx.emailValidation(`SELECT `+validationColumns+` FROM email_validations WHERE sid = $1`, sid)
}

// LockEmailValidation is EmailValidation for one that this transaction is about to change.
func (tx *Tx) LockEmailValidation(sid string) (EmailValidation, bool, error) {
	return tx.emailValidation(`SELECT `+validationColumns+` FROM email_validations WHERE sid = $1 @forupdate`, sid)
}

// LockEmailRequest finds the proof that a client has asked for before.
func (tx *Tx) LockEmailRequest(purpose EmailPurpose, address string, secret TokenHash) (EmailValidation, bool, error) {
	return tx.emailValidation(`SELECT `+validationColumns+` FROM email_validations WHERE address = $1 AND purpose = $2 AND secret = $3 @forupdate`,
		address, purpose, secret[:])
}

// TakeEmailValidation reads a proof and removes it: what it allowed is done once.
func (tx *Tx) TakeEmailValidation(sid string) (EmailValidation, bool, error) {
	return tx.emailValidation(`DELETE FROM email_validations WHERE sid = $1 RETURNING `+validationColumns, sid)
}

// InsertEmailValidation adds a proof; false means that one of the same purpose, address and client secret is there.
func (tx *Tx) InsertEmailValidation(v EmailValidation) (bool, error) {
	n, err := tx.Exec(`INSERT INTO email_validations (sid, purpose, address, secret, token, attempt, mails, next_link, validated, expires)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (address, purpose, secret) DO NOTHING`,
		v.SID, v.Purpose, v.Address, v.Secret[:], v.token(), v.Attempt, v.Mails, v.NextLink, v.Validated, v.Expires)
	return n > 0, err
}

// UpdateEmailValidation stores what changed.
func (tx *Tx) UpdateEmailValidation(v EmailValidation) error {
	_, err := tx.Exec(`UPDATE email_validations SET token = $2, attempt = $3, mails = $4, next_link = $5, validated = $6, expires = $7 WHERE sid = $1`,
		v.SID, v.token(), v.Attempt, v.Mails, v.NextLink, v.Validated, v.Expires)
	return err
}

func (v *EmailValidation) token() []byte {
	if v.Token == nil {
		return nil
	}
	return v.Token[:]
}

// MailsTo counts the mails that were lately sent to an address to prove it.
func (tx *Tx) MailsTo(address string, now int64) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT CAST(coalesce(sum(mails), 0) AS BIGINT) FROM email_validations WHERE address = $1 AND expires > $2`, address, now)
	return n, err
}

// SweepEmail removes proofs that have expired.
func (tx *Tx) SweepEmail(now int64) error {
	_, err := tx.Exec(`DELETE FROM email_validations WHERE expires <= $1`, now)
	return err
}

// Mail is a mail that waits to be sent.
type Mail struct {
	ID       string
	To       string // address
	Kind     string // which text
	Lang     string
	Data     Content // what the text is made of, JSON
	Created  int64   // ms
	Attempts int64   // how often it was tried, this time included
}

// InsertMail queues a mail.
func (tx *Tx) InsertMail(m Mail) error {
	_, err := tx.Exec(`INSERT INTO mails (id, recipient, kind, lang, data, created, due) VALUES ($1, $2, $3, $4, $5, $6, $6)`,
		m.ID, m.To, m.Kind, m.Lang, m.Data, m.Created)
	return err
}

// MailDue tells whether any mail is to be sent now.
func (tx *Tx) MailDue(now int64) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM mails WHERE due <= $1 LIMIT 1`, now)
}

// ClaimMails takes mails that are due; until `until` no other process gets them.
func (tx *Tx) ClaimMails(now, until int64, limit int) ([]Mail, error) {
	var out []Mail
	err := tx.Each(`UPDATE mails SET due = $2, attempts = attempts + 1 WHERE id IN (SELECT id FROM mails WHERE due <= $1 ORDER BY due LIMIT $3 @skiplocked)
		RETURNING id, recipient, kind, lang, data, created, attempts`, []any{now, until, limit}, func(r *Row) error {
		var m Mail
		if err := r.Scan(&m.ID, &m.To, &m.Kind, &m.Lang, &m.Data, &m.Created, &m.Attempts); err != nil {
			return err
		}
		out = append(out, m)
		return nil
	})
	return out, err
}

// RetryMail sets when a mail is tried again.
func (tx *Tx) RetryMail(mailID string, due int64) error {
	_, err := tx.Exec(`UPDATE mails SET due = $2 WHERE id = $1`, mailID, due)
	return err
}

// DeleteMail removes a mail that was sent or given up.
func (tx *Tx) DeleteMail(mailID string) error {
	_, err := tx.Exec(`DELETE FROM mails WHERE id = $1`, mailID)
	return err
}
