package store

import (
	"encoding/base64"
	"fmt"

	"maunium.net/go/mautrix/id"
)

// HashID is the SHA-256 of a secret, as the id of its row.
func HashID(secret string) string {
	h := HashToken(secret)
	return base64.RawURLEncoding.EncodeToString(h[:])
}

// PutSSOAttempt stores a sign-in under way.
func (tx *Tx) PutSSOAttempt(attempt string, data []byte, expires int64) error {
	_, err := tx.Exec(`INSERT INTO sso_attempts (id, data, expires) VALUES ($1, $2, $3)
		ON CONFLICT (id) DO UPDATE SET data = excluded.data, expires = excluded.expires`, attempt, Content(data), expires)
	return err
}

// SSOAttempt reads a sign-in under way.
func (tx *Tx) SSOAttempt(attempt string, now int64) ([]byte, bool, error) {
	var data Content
	found, err := tx.Get([]any{&data}, `SELECT data FROM sso_attempts WHERE id = $1 AND expires > $2`, attempt, now)
	return data, found, err
}

// TakeSSOAttempt removes a sign-in that was under way; false means that it is gone.
func (tx *Tx) TakeSSOAttempt(attempt string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM sso_attempts WHERE id = $1`, attempt)
	return n > 0, err
}

// SSOBrowser is somebody signed in to our own pages.
type SSOBrowser struct {
	ID      string
	User    id.UserID
	Data    Content
	Seen    int64 // ms
	Expires int64 // ms
}

// PutSSOBrowser stores one.
func (tx *Tx) PutSSOBrowser(b SSOBrowser) error {
	_, err := tx.Exec(`INSERT INTO sso_browsers (id, usr, data, seen, expires) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (id) DO UPDATE SET data = excluded.data, seen = excluded.seen`, b.ID, b.User, b.Data, b.Seen, b.Expires)
	if err != nil {
		return fmt.Errorf("store a browser of %s: %w", b.User, err)
	}
	return nil
}

// SSOBrowser reads one with its user.
func (tx *Tx) SSOBrowser(browser string) (SSOBrowser, User, bool, error) {
	var b SSOBrowser
	var u User
	found, err := tx.Get(append([]any{&b.ID, &b.User, &b.Data, &b.Seen, &b.Expires}, u.dest()...),
		`SELECT b.id, b.usr, b.data, b.seen, b.expires, `+userColumns+` FROM sso_browsers b JOIN users u ON u.user_id = b.usr WHERE b.id = $1`, browser)
	return b, u, found, err
}

// SSOBrowsers lists a user's, the one used last first.
func (tx *Tx) SSOBrowsers(user id.UserID, now int64) ([]SSOBrowser, error) {
	var out []SSOBrowser
	err := tx.Each(`SELECT id, usr, data, seen, expires FROM sso_browsers WHERE usr = $1 AND expires > $2 ORDER BY seen DESC, id`,
		[]any{user, now}, func(r *Row) error {
			var b SSOBrowser
			if err := r.Scan(&b.ID, &b.User, &b.Data, &b.Seen, &b.Expires); err != nil {
				return err
			}
			out = append(out, b)
			return nil
		})
	return out, err
}

// SawSSOBrowser notes when one was used.
func (tx *Tx) SawSSOBrowser(browser string, now int64) error {
	_, err := tx.Exec(`UPDATE sso_browsers SET seen = $2 WHERE id = $1 AND seen < $2`, browser, now)
	return err
}

// DeleteSSOBrowser ends one; false means that it had ended.
func (tx *Tx) DeleteSSOBrowser(browser string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM sso_browsers WHERE id = $1`, browser)
	return n > 0, err
}

// DeleteSSOBrowsers ends all of a user's but one ("" : all).
func (tx *Tx) DeleteSSOBrowsers(user id.UserID, keep string) (int64, error) {
	return tx.Exec(`DELETE FROM sso_browsers WHERE usr = $1 AND id <> $2`, user, keep)
}

// UIASessionsFor lists the user-interactive authentications of a user for an operation that can still be completed.
func (tx *Tx) UIASessionsFor(user id.UserID, operation string, now int64) ([]string, error) {
	var out []string
	err := tx.Each(`SELECT id FROM uia_sessions WHERE usr = $1 AND operation = $2 AND expires > $3`, []any{user, operation, now}, func(r *Row) error {
		var sid string
		if err := r.Scan(&sid); err != nil {
			return err
		}
		out = append(out, sid)
		return nil
	})
	return out, err
}

// sweepChunk bounds what one transaction sweeps of one table.
const sweepChunk = 500

// SweepSSO removes some of what has expired of sign-ins and OAuth 2.0, and clients that nobody used since unused and that hold
// no session; more tells that there may be more. Spec: client-server API, "Dynamic client registration flow".
func (tx *Tx) SweepSSO(now, unused int64) (more bool, err error) {
	for _, sql := range []string{
		`DELETE FROM sso_attempts WHERE id IN (SELECT id FROM sso_attempts WHERE expires <= $1 LIMIT $2)`,
		`DELETE FROM sso_browsers WHERE id IN (SELECT id FROM sso_browsers WHERE expires <= $1 LIMIT $2)`,
		`DELETE FROM oauth_codes WHERE id IN (SELECT id FROM oauth_codes WHERE expires <= $1 LIMIT $2)`,
		`DELETE FROM oauth_device_codes WHERE id IN (SELECT id FROM oauth_device_codes WHERE expires <= $1 LIMIT $2)`,
		`DELETE FROM oauth_spent WHERE id IN (SELECT id FROM oauth_spent WHERE expires <= $1 LIMIT $2)`,
	} {
		n, err := tx.Exec(sql, now, sweepChunk)
		if err != nil {
			return false, err
		}
		more = more || n == sweepChunk
	}
	n, err := tx.Exec(`DELETE FROM oauth_clients WHERE client_id IN (SELECT c.client_id FROM oauth_clients c
		WHERE c.used <= $1 AND NOT EXISTS (SELECT 1 FROM oauth_grants g WHERE g.client_id = c.client_id) LIMIT $2)`, unused, sweepChunk)
	return more || n == sweepChunk, err
}
