package store

import (
	"fmt"
	"strings"

	"maunium.net/go/mautrix/id"
)

// SignInFacts are how a device was signed in.
type SignInFacts struct {
	Time        int64 // ms; 0: before this was noted
	Way         string
	AMR         []string
	IP, Agent   string
	OAuthClient string
}

// SetSignIn notes how a device was signed in, which is also when it was seen.
func (tx *Tx) SetSignIn(user id.UserID, device id.DeviceID, f SignInFacts) error {
	_, err := tx.Exec(`UPDATE devices SET signed_in = $3, signin_way = $4, signin_amr = $5, signin_ip = $6, signin_agent = $7, oauth_client = $8,
		last_seen = $3, last_ip = $6, last_agent = $7 WHERE usr = $1 AND device_id = $2`,
		user, device, f.Time, f.Way, strings.Join(f.AMR, " "), f.IP, f.Agent, f.OAuthClient)
	if err != nil {
		return fmt.Errorf("note how %s was signed in for %s: %w", device, user, err)
	}
	return nil
}

// DeviceSession is a device with how it was signed in and what is left of its sessions.
type DeviceSession struct {
	Device
	SignIn      SignInFacts
	SessionID   int64 // the newest one's
	Created     int64 // the oldest one's, ms
	Refreshable bool
	Ended       bool // softly: its user has to sign in again, with the same device
}

// DeviceSessions lists a user's devices that have a session, by device id.
func (tx *Tx) DeviceSessions(user id.UserID) ([]DeviceSession, error) {
	var out []DeviceSession
	err := tx.Each(`SELECT d.usr, d.device_id, d.display_name, d.created, coalesce(d.last_seen, 0), coalesce(d.last_ip, ''), coalesce(d.last_agent, ''),
			d.signed_in, d.signin_way, d.signin_amr, d.signin_ip, d.signin_agent, d.oauth_client,
			s.id, s.created, CASE WHEN s.refresh_id IS NULL THEN 0 ELSE 1 END, s.ended
		FROM devices d JOIN sessions s ON s.usr = d.usr AND s.device_id = d.device_id
		WHERE d.usr = $1 ORDER BY d.device_id, s.created`, []any{user}, func(r *Row) error {
		var s DeviceSession
		var amr string
		err := r.Scan(&s.User, &s.ID, &s.DisplayName, &s.Device.Created, &s.LastSeen, &s.LastIP, &s.LastAgent,
			&s.SignIn.Time, &s.SignIn.Way, &amr, &s.SignIn.IP, &s.SignIn.Agent, &s.SignIn.OAuthClient,
			&s.SessionID, &s.Created, &s.Refreshable, &s.Ended)
		if err != nil {
			return err
		}
		s.SignIn.AMR = strings.Fields(amr)
		if n := len(out); n > 0 && out[n-1].ID == s.ID {
			s.Created = out[n-1].Created
			s.Ended = s.Ended && out[n-1].Ended
			out[n-1] = s
			return nil
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// DeviceTimes tells when a device was signed in and seen (ms), as the limits of its sessions count.
func (tx *Tx) DeviceTimes(user id.UserID, device id.DeviceID) (signedIn, seen int64, err error) {
	_, err = tx.Get([]any{&signedIn, &seen}, `SELECT CASE WHEN d.signed_in > 0 THEN d.signed_in ELSE coalesce(min(s.created), 0) END,
			max(coalesce(d.last_seen, 0))
		FROM devices d LEFT JOIN sessions s ON s.usr = d.usr AND s.device_id = d.device_id
		WHERE d.usr = $1 AND d.device_id = $2 GROUP BY d.usr, d.device_id, d.signed_in`, user, device)
	return signedIn, seen, err
}

// OverdueSessions lists devices with sessions that were signed in before one time or not used since another (ms; 0: no
// limit), and that were not ended softly.
func (tx *Tx) OverdueSessions(signedInBefore, unusedSince int64, limit int) ([]Device, error) {
	var out []Device
	err := tx.Each(`SELECT DISTINCT d.usr, d.device_id FROM devices d JOIN sessions s ON s.usr = d.usr AND s.device_id = d.device_id
		WHERE s.ended = 0 AND ((CASE WHEN d.signed_in > 0 THEN d.signed_in ELSE s.created END) < $1
			OR (coalesce(d.last_seen, 0) < $2 AND s.created < $2)) LIMIT $3`, []any{signedInBefore, unusedSince, limit}, func(r *Row) error {
		var d Device
		if err := r.Scan(&d.User, &d.ID); err != nil {
			return err
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

// KnowsAddress tells whether a user has a device that was signed in or seen at an address.
func (tx *Tx) KnowsAddress(user id.UserID, ip string) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM devices WHERE usr = $1 AND (last_ip = $2 OR signin_ip = $2) LIMIT 1`, user, ip)
}

// PasswordFacts are what is known of an account's password besides its hash.
type PasswordFacts struct {
	Set        int64 // ms; 0: before this was noted
	MustChange bool
}

// PasswordFacts reads them.
func (tx *Tx) PasswordFacts(user id.UserID) (PasswordFacts, error) {
	var f PasswordFacts
	_, err := tx.Get([]any{&f.Set, &f.MustChange}, `SELECT password_set, password_must_change FROM users WHERE user_id = $1`, user)
	return f, err
}

// SetPasswordFacts stores them.
func (tx *Tx) SetPasswordFacts(user id.UserID, f PasswordFacts) error {
	_, err := tx.Exec(`UPDATE users SET password_set = $2, password_must_change = $3 WHERE user_id = $1`, user, f.Set, f.MustChange)
	return err
}

// AddPasswordHistory keeps the hash of a password that was replaced, and no more than some of those before it.
func (tx *Tx) AddPasswordHistory(user id.UserID, hash Content, now int64, keep int) error {
	_, err := tx.Exec(`INSERT INTO password_history (usr, replaced, password) VALUES ($1, $2, $3) ON CONFLICT (usr, replaced) DO NOTHING`, user, now, hash)
	if err != nil {
		return err
	}
	_, err = tx.Exec(`DELETE FROM password_history WHERE usr = $1 AND replaced NOT IN
		(SELECT replaced FROM password_history WHERE usr = $1 ORDER BY replaced DESC LIMIT $2)`, user, keep)
	return err
}

// PasswordHistory reads the hashes of the last passwords that were replaced, newest first.
func (tx *Tx) PasswordHistory(user id.UserID, limit int) ([]Content, error) {
	var out []Content
	err := tx.Each(`SELECT password FROM password_history WHERE usr = $1 ORDER BY replaced DESC LIMIT $2`, []any{user, limit}, func(r *Row) error {
		var c Content
		if err := r.Scan(&c); err != nil {
			return err
		}
		out = append(out, c)
		return nil
	})
	return out, err
}

// DeletePasswordHistory forgets a user's passwords.
func (tx *Tx) DeletePasswordHistory(user id.UserID) error {
	_, err := tx.Exec(`DELETE FROM password_history WHERE usr = $1`, user)
	return err
}

// SignInFailures are the wrong passwords of an account or from an address.
type SignInFailures struct {
	Count       int64
	Last, Until int64 // ms
}

// SignInFailures reads those of some ids.
func (tx *Tx) SignInFailures(ids []string) (map[string]SignInFailures, error) {
	out := map[string]SignInFailures{}
	err := tx.Each(`SELECT id, count, last, until FROM signin_failures WHERE id IN @text($1)`, []any{ids}, func(r *Row) error {
		var id string
		var f SignInFailures
		if err := r.Scan(&id, &f.Count, &f.Last, &f.Until); err != nil {
			return err
		}
		out[id] = f
		return nil
	})
	return out, err
}

// CountSignInFailure counts a wrong password and returns how many there were; what lies behind forget (ms) is forgotten.
func (tx *Tx) CountSignInFailure(id string, now, forget int64) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `INSERT INTO signin_failures (id, count, last, until) VALUES ($1, 1, $2, 0)
		ON CONFLICT (id) DO UPDATE SET count = CASE WHEN signin_failures.last < $3 THEN 1 ELSE signin_failures.count + 1 END, last = $2
		RETURNING count`, id, now, forget)
	return n, err
}

// HoldSignIn says until when (ms) no password is looked at.
func (tx *Tx) HoldSignIn(id string, until int64) error {
	_, err := tx.Exec(`UPDATE signin_failures SET until = $2 WHERE id = $1 AND until < $2`, id, until)
	return err
}

// ForgetSignInFailures removes what was counted for some ids.
func (tx *Tx) ForgetSignInFailures(ids []string) error {
	_, err := tx.Exec(`DELETE FROM signin_failures WHERE id IN @text($1)`, ids)
	return err
}

// SweepSignInFailures removes what is old.
func (tx *Tx) SweepSignInFailures(before int64) error {
	_, err := tx.Exec(`DELETE FROM signin_failures WHERE id IN (SELECT id FROM signin_failures WHERE last < $1 LIMIT 1000)`, before)
	return err
}
