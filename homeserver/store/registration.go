package store

import (
	"encoding/json"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// RegistrationToken lets whoever has it register.
type RegistrationToken struct {
	Token       string
	Created     int64  // ms
	Expires     *int64 // ms; nil: never
	UsesAllowed *int64 // nil: any number
	Pending     int64  // registrations under way
	Completed   int64
}

// what a registration token must fulfil to be used once more; $2 is now
const tokenUsable = `(expires IS NULL OR expires > $2) AND (uses_allowed IS NULL OR pending + completed < uses_allowed)`

// InsertRegistrationToken adds a token; false means that it exists.
func (tx *Tx) InsertRegistrationToken(t RegistrationToken) (bool, error) {
	n, err := tx.Exec(`INSERT INTO registration_tokens (token, created, expires, uses_allowed) VALUES ($1, $2, $3, $4)
		ON CONFLICT (token) DO NOTHING`, t.Token, t.Created, t.Expires, t.UsesAllowed)
	return n > 0, err
}

// RegistrationToken reads a token.
func (tx *Tx) RegistrationToken(token string) (RegistrationToken, bool, error) {
	t := RegistrationToken{Token: token}
	found, err := tx.Get([]any{&t.Created, &t.Expires, &t.UsesAllowed, &t.Pending, &t.Completed},
		`SELECT created, expires, uses_allowed, pending, completed FROM registration_tokens WHERE token = $1`, token)
	return t, found, err
}

// RegistrationTokenUsable tells whether a token can be used once more.
func (tx *Tx) RegistrationTokenUsable(token string, now int64) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM registration_tokens WHERE token = $1 AND `+tokenUsable, token, now)
}

// ReserveRegistrationToken counts a registration that is under way; false means that the token cannot be used.
func (tx *Tx) ReserveRegistrationToken(token string, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE registration_tokens SET pending = pending + 1 WHERE token = $1 AND `+tokenUsable, token, now)
	return n > 0, err
}

// UseRegistrationToken counts a registration that was not reserved; false means that the token cannot be used.
func (tx *Tx) UseRegistrationToken(token string, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE registration_tokens SET completed = completed + 1 WHERE token = $1 AND `+tokenUsable, token, now)
	return n > 0, err
}

// SettleRegistrationToken ends a reservation: the registration was completed or given up.
func (tx *Tx) SettleRegistrationToken(token string, completed bool) error {
	_, err := tx.Exec(`UPDATE registration_tokens SET pending = pending - 1, completed = completed + $2
		WHERE token = $1 AND pending > 0`, token, completed)
	return err
}

// UIASession is user-interactive authentication under way.
type UIASession struct {
	ID                string
	Operation         string    // what it is for; it is good for nothing else
	User              id.UserID // whose it is; "" at registration
	Completed         []string  // stages
	RegistrationToken string    // reserved by a completed stage, or ""
	EmailSID          string    // proof of an e-mail address that a completed stage named, or ""
	Params            []byte    // what earlier requests said, in the form of whoever asked
	Expires           int64     // ms
}

// InsertUIASession stores a new session.
func (tx *Tx) InsertUIASession(s UIASession) error {
	completed, err := json.Marshal(s.Completed)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`INSERT INTO uia_sessions (id, operation, usr, completed, registration_token, email_sid, expires) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		s.ID, s.Operation, s.User, string(completed), s.RegistrationToken, s.EmailSID, s.Expires)
	return err
}

// LockUIASession reads a session and holds its row to the end of the transaction.
func (tx *Tx) LockUIASession(sid string) (UIASession, bool, error) {
	return tx.uiaSession(`SELECT operation, usr, completed, registration_token, email_sid, params, expires FROM uia_sessions WHERE id = $1 @forupdate`, sid)
}

// UIASession reads a session.
func (tx *Tx) UIASession(sid string) (UIASession, bool, error) {
	return tx.uiaSession(`SELECT operation, usr, completed, registration_token, email_sid, params, expires FROM uia_sessions WHERE id = $1`, sid)
}

// TakeUIASession reads a session and removes it: what it allowed is done once.
func (tx *Tx) TakeUIASession(sid string) (UIASession, bool, error) {
	return tx.uiaSession(`DELETE FROM uia_sessions WHERE id = $1 RETURNING operation, usr, completed, registration_token, email_sid, params, expires`, sid)
}

func (tx *Tx) uiaSession(sql, sid string) (UIASession, bool, error) {
	s := UIASession{ID: sid}
	var completed string
	var params Content
	found, err := tx.Get([]any{&s.Operation, &s.User, &completed, &s.RegistrationToken, &s.EmailSID, &params, &s.Expires}, sql, sid)
	if err != nil || !found {
		return s, false, err
	}
	if err := json.Unmarshal([]byte(completed), &s.Completed); err != nil {
		return s, false, fmt.Errorf("read the stages of an authentication session: %w", err)
	}
	s.Params = params
	return s, true, nil
}

// UpdateUIASession stores the stages that were completed.
func (tx *Tx) UpdateUIASession(s UIASession) error {
	completed, err := json.Marshal(s.Completed)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`UPDATE uia_sessions SET completed = $2, registration_token = $3, email_sid = $4 WHERE id = $1`,
		s.ID, string(completed), s.RegistrationToken, s.EmailSID)
	return err
}

// SetUIAParams keeps what the requests of a session said.
func (tx *Tx) SetUIAParams(sid string, params []byte) error {
	_, err := tx.Exec(`UPDATE uia_sessions SET params = $2 WHERE id = $1`, sid, Content(params))
	return err
}

// SweepRegistration removes what has expired of authentication sessions, login tokens and nonces, and frees the
// registration tokens that given-up registrations had reserved.
func (tx *Tx) SweepRegistration(now int64) error {
	var reserved []string
	err := tx.Each(`DELETE FROM uia_sessions WHERE id IN (SELECT id FROM uia_sessions WHERE expires <= $1 LIMIT 1000)
		RETURNING registration_token`, []any{now}, func(r *Row) error {
		var token string
		if err := r.Scan(&token); err != nil {
			return err
		}
		if token != "" {
			reserved = append(reserved, token)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, token := range reserved {
		if err := tx.SettleRegistrationToken(token, false); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(`DELETE FROM login_tokens WHERE expires <= $1`, now); err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM nonces WHERE expires <= $1`, now)
	return err
}
