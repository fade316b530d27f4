package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// TokenHash is the SHA-256 of a secret token: tokens themselves are never stored.
type TokenHash [sha256.Size]byte

// HashToken hashes a token.
func HashToken(token string) TokenHash { return sha256.Sum256([]byte(token)) }

// id is the key of the hash's row: its first 63 bits, so that no second index over the whole hash is needed.
func (h TokenHash) id() int64 { return int64(binary.BigEndian.Uint64(h[:]) >> 1) }

// ID is the id of the session that a token has.
func (h TokenHash) ID() int64 { return h.id() }

// Session is an access token and the refresh token issued beside it.
type Session struct {
	ID       int64
	Hash     TokenHash
	User     id.UserID
	Device   id.DeviceID
	Created  int64      // ms
	Expires  int64      // ms; 0: never
	Refresh  *TokenHash // nil: there is no refresh token
	Replaces int64      // session that this one takes the place of when it is used for the first time; 0: none
	Ended    bool       // softly: its user has to sign in again, with the same device
}

const sessionColumns = `s.id, s.hash, s.usr, s.device_id, s.created, coalesce(s.expires, 0), s.refresh_hash, coalesce(s.replaces, 0), s.ended`

type sessionScan struct {
	s             Session
	hash, refresh []byte
}

func (c *sessionScan) dest() []any {
	return []any{&c.s.ID, &c.hash, &c.s.User, &c.s.Device, &c.s.Created, &c.s.Expires, &c.refresh, &c.s.Replaces, &c.s.Ended}
}

func (c *sessionScan) session() Session {
	copy(c.s.Hash[:], c.hash)
	if len(c.refresh) == sha256.Size {
		h := TokenHash(c.refresh)
		c.s.Refresh = &h
	}
	return c.s
}

// InsertSession adds a session and returns its id.
func (tx *Tx) InsertSession(s Session) (int64, error) {
	var refreshHash, expires, refreshID, replaces any
	if s.Refresh != nil {
		refreshHash, refreshID = s.Refresh[:], s.Refresh.id()
	}
	if s.Expires != 0 {
		expires = s.Expires
	}
	if s.Replaces != 0 {
		replaces = s.Replaces
	}
	_, err := tx.Exec(`INSERT INTO sessions (id, hash, usr, device_id, created, expires, refresh_id, refresh_hash, replaces)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
		s.Hash.id(), s.Hash[:], s.User, s.Device, s.Created, expires, refreshID, refreshHash, replaces)
	if err != nil {
		return 0, fmt.Errorf("insert a session of %s: %w", s.User, err)
	}
	return s.Hash.id(), nil
}

// SessionByToken reads the session of an access token and its user.
func (tx *Tx) SessionByToken(h TokenHash) (Session, User, bool, error) {
	var c sessionScan
	var u User
	found, err := tx.Get(append(c.dest(), u.dest()...), `SELECT `+sessionColumns+`, `+userColumns+`
		FROM sessions s JOIN users u ON u.user_id = s.usr WHERE s.id = $1`, h.id())
	return c.session(), u, found && bytes.Equal(c.hash, h[:]), err
}

// SessionByRefresh reads the session of a refresh token.
func (tx *Tx) SessionByRefresh(h TokenHash) (Session, bool, error) {
	var c sessionScan
	found, err := tx.Get(c.dest(), `SELECT `+sessionColumns+` FROM sessions s WHERE s.refresh_id = $1`, h.id())
	return c.session(), found && bytes.Equal(c.refresh, h[:]), err
}

// Session reads a session by its id.
func (tx *Tx) Session(sid int64) (Session, bool, error) {
	var c sessionScan
	found, err := tx.Get(c.dest(), `SELECT `+sessionColumns+` FROM sessions s WHERE s.id = $1`, sid)
	return c.session(), found, err
}

// ConfirmSession ends what a session takes the place of (the session that was refreshed, and others that were made from
// it and never used), now that it was used.
func (tx *Tx) ConfirmSession(s Session) error {
	if _, err := tx.Exec(`DELETE FROM sessions WHERE id = $1`, s.Replaces); err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM sessions WHERE usr = $1 AND device_id = $2 AND replaces = $3 AND id <> $4`,
		s.User, s.Device, s.Replaces, s.ID); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE sessions SET replaces = NULL WHERE id = $1`, s.ID)
	return err
}

// DeleteDeviceSessions removes the sessions of a device.
func (tx *Tx) DeleteDeviceSessions(user id.UserID, device id.DeviceID) (int64, error) {
	return tx.Exec(`DELETE FROM sessions WHERE usr = $1 AND device_id = $2`, user, device)
}

// ExpireDeviceSessions makes the sessions of a device end now but keeps them, so that the client is told to sign in
// again with the same device, whether it shows an access token or a refresh token.
func (tx *Tx) ExpireDeviceSessions(user id.UserID, device id.DeviceID, now int64) (int64, error) {
	return tx.Exec(`UPDATE sessions SET expires = $3, ended = 1 WHERE usr = $1 AND device_id = $2 AND ended = 0`, user, device, now)
}

// LogPosition is the head of the log in this transaction's snapshot.
func (tx *Tx) LogPosition() (int64, error) {
	var pos int64
	_, err := tx.Get([]any{&pos}, `SELECT pos FROM log_head WHERE id = 1`)
	return pos, err
}

// InsertLoginToken stores a single-use token that signs its user in.
func (tx *Tx) InsertLoginToken(h TokenHash, user id.UserID, expires int64) error {
	_, err := tx.Exec(`INSERT INTO login_tokens (hash, usr, expires) VALUES ($1, $2, $3)`, h[:], user, expires)
	return err
}

// TakeLoginToken removes a login token and returns whose it was; false means that there is none that is still good.
func (tx *Tx) TakeLoginToken(h TokenHash, now int64) (id.UserID, bool, error) {
	var user id.UserID
	var expires int64
	found, err := tx.Get([]any{&user, &expires}, `DELETE FROM login_tokens WHERE hash = $1 RETURNING usr, expires`, h[:])
	return user, found && expires > now, err
}

// DeleteLoginTokens removes all login tokens of a user.
func (tx *Tx) DeleteLoginTokens(user id.UserID) error {
	_, err := tx.Exec(`DELETE FROM login_tokens WHERE usr = $1`, user)
	return err
}

// InsertNonce stores a random value that may be sent back once.
func (tx *Tx) InsertNonce(nonce string, expires int64) error {
	_, err := tx.Exec(`INSERT INTO nonces (nonce, expires) VALUES ($1, $2)`, nonce, expires)
	return err
}

// TakeNonce removes a nonce; false means that there is none that is still good.
func (tx *Tx) TakeNonce(nonce string, now int64) (bool, error) {
	var expires int64
	found, err := tx.Get([]any{&expires}, `DELETE FROM nonces WHERE nonce = $1 RETURNING expires`, nonce)
	return found && expires > now, err
}
