package store

import (
	"bytes"

	"maunium.net/go/mautrix/id"
)

// Factor is one thing by which a user proves more than a password.
type Factor struct {
	ID         string
	User       id.UserID
	Kind       string
	Name       string  // for people
	Secret     Content // what the kind needs to check a proof
	Credential []byte  // id of a passkey; nil for other kinds
	Counter    int64   // last time step, or the signature counter
	Active     bool    // it was proved to work
	Created    int64   // ms
	Used       int64   // ms; 0: never
	Expires    int64   // ms, of one that is being enrolled
}

const factorColumns = `id, usr, kind, name, secret, credential, counter, active, created, used, expires`

func (r *Row) factor() (Factor, error) {
	var f Factor
	var credential []byte
	err := r.Scan(&f.ID, &f.User, &f.Kind, &f.Name, &f.Secret, &credential, &f.Counter, &f.Active, &f.Created, &f.Used, &f.Expires)
	if credential != nil {
		f.Credential = bytes.Clone(credential)
	}
	return f, err
}

func (tx *Tx) oneFactor(sql string, args ...any) (f Factor, found bool, err error) {
	err = tx.Each(sql, args, func(r *Row) error {
		var err error
		f, err = r.factor()
		found = true
		return err
	})
	return f, found, err
}

// InsertFactor adds a factor; false means that its credential is known already.
func (tx *Tx) InsertFactor(f Factor) (bool, error) {
	n, err := tx.Exec(`INSERT INTO factors (`+factorColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
		ON CONFLICT (credential) DO NOTHING`,
		f.ID, f.User, f.Kind, f.Name, f.Secret, f.Credential, f.Counter, f.Active, f.Created, f.Used, f.Expires)
	return n > 0, err
}

// Factors lists a user's factors, those that are being enrolled too, the oldest first.
func (tx *Tx) Factors(user id.UserID) ([]Factor, error) {
	var out []Factor
	err := tx.Each(`SELECT `+factorColumns+` FROM factors WHERE usr = $1 ORDER BY created, id`, []any{user}, func(r *Row) error {
		f, err := r.factor()
		out = append(out, f)
		return err
	})
	return out, err
}

// Factor reads a factor of a user.
func (tx *Tx) Factor(user id.UserID, factorID string) (Factor, bool, error) {
	return tx.oneFactor(`SELECT `+factorColumns+` FROM factors WHERE id = $1 AND usr = $2`, factorID, user)
}

// FactorByCredential finds a passkey.
func (tx *Tx) FactorByCredential(credential []byte) (Factor, bool, error) {
	return tx.oneFactor(`SELECT `+factorColumns+` FROM factors WHERE credential = $1`, credential)
}

// UseFactor notes that a factor was used and where its counter is now; false if the counter was not below that: what was
// shown was used before, or another request with it was quicker.
func (tx *Tx) UseFactor(factorID string, counter, now int64) (bool, error) {
	n, err := tx.Exec(`UPDATE factors SET counter = $2, used = $3 WHERE id = $1 AND counter < $2`, factorID, counter, now)
	return n > 0, err
}

// UpdateFactor stores a factor's secret, counter, state and time of use.
func (tx *Tx) UpdateFactor(f Factor) error {
	_, err := tx.Exec(`UPDATE factors SET secret = $2, counter = $3, active = $4, used = $5, expires = $6, name = $7 WHERE id = $1`,
		f.ID, f.Secret, f.Counter, f.Active, f.Used, f.Expires, f.Name)
	return err
}

// DeleteFactor removes a factor of a user; false if the user has none of this id.
func (tx *Tx) DeleteFactor(user id.UserID, factorID string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM factors WHERE id = $1 AND usr = $2`, factorID, user)
	return n > 0, err
}

// DeleteFactors removes all that a user has: factors, recovery codes, challenges, remembered devices, app passwords. The
// row by which tries are counted stays, so that nobody gets new tries by it.
func (tx *Tx) DeleteFactors(user id.UserID) error {
	for _, sql := range []string{
		`DELETE FROM factors WHERE usr = $1`,
		`DELETE FROM factor_recovery WHERE usr = $1`,
		`DELETE FROM factor_challenges WHERE usr = $1`,
		`DELETE FROM remembered_devices WHERE usr = $1`,
		`DELETE FROM app_passwords WHERE usr = $1`,
		`UPDATE factor_users SET owed_since = 0, failures = 0, blocked_until = 0 WHERE usr = $1`,
	} {
		if _, err := tx.Exec(sql, user); err != nil {
			return err
		}
	}
	return nil
}

// FactorUser is what is kept of a user who has to do with factors.
type FactorUser struct {
	User         id.UserID
	Handle       []byte // the user's name for passkeys
	OwedSince    int64  // ms; 0: no policy asks for a factor that is missing
	Failures     int64  // wrong tries since the last right one
	BlockedUntil int64  // ms
}

// LockFactorUser reads a user's row and holds it, making it where there is none: handle is taken then.
func (tx *Tx) LockFactorUser(user id.UserID, handle []byte) (FactorUser, error) {
	u := FactorUser{User: user}
	if _, err := tx.Exec(`INSERT INTO factor_users (usr, handle) VALUES ($1, $2) ON CONFLICT (usr) DO NOTHING`, user, handle); err != nil {
		return u, err
	}
	_, err := tx.Get([]any{&u.Handle, &u.OwedSince, &u.Failures, &u.BlockedUntil},
		`SELECT handle, owed_since, failures, blocked_until FROM factor_users WHERE usr = $1 @forupdate`, user)
	u.Handle = bytes.Clone(u.Handle)
	return u, err
}

// FactorUser reads a user's row.
func (tx *Tx) FactorUser(user id.UserID) (FactorUser, bool, error) {
	u := FactorUser{User: user}
	found, err := tx.Get([]any{&u.Handle, &u.OwedSince, &u.Failures, &u.BlockedUntil},
		`SELECT handle, owed_since, failures, blocked_until FROM factor_users WHERE usr = $1`, user)
	u.Handle = bytes.Clone(u.Handle)
	return u, found, err
}

// FactorUserByHandle finds whose a passkey's user handle is.
func (tx *Tx) FactorUserByHandle(handle []byte) (id.UserID, bool, error) {
	var user id.UserID
	found, err := tx.Get([]any{&user}, `SELECT usr FROM factor_users WHERE handle = $1`, handle)
	return user, found, err
}

// UpdateFactorUser stores what changed.
func (tx *Tx) UpdateFactorUser(u FactorUser) error {
	_, err := tx.Exec(`UPDATE factor_users SET owed_since = $2, failures = $3, blocked_until = $4 WHERE usr = $1`,
		u.User, u.OwedSince, u.Failures, u.BlockedUntil)
	return err
}

// ReplaceRecoveryCodes gives a user new recovery codes in place of the old ones.
func (tx *Tx) ReplaceRecoveryCodes(user id.UserID, hashes []TokenHash) error {
	if _, err := tx.Exec(`DELETE FROM factor_recovery WHERE usr = $1`, user); err != nil {
		return err
	}
	return tx.Insert("factor_recovery", []Col{{"usr", Text}, {"hash", Bytes}}, len(hashes),
		func(i int) []any { return []any{string(user), hashes[i][:]} }, "ON CONFLICT DO NOTHING")
}

// TakeRecoveryCode uses a recovery code; false if the user has no such one.
func (tx *Tx) TakeRecoveryCode(user id.UserID, hash TokenHash) (bool, error) {
	n, err := tx.Exec(`DELETE FROM factor_recovery WHERE usr = $1 AND hash = $2`, user, hash[:])
	return n > 0, err
}

// RecoveryCodes counts the codes that a user can still use.
func (tx *Tx) RecoveryCodes(user id.UserID) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `SELECT count(*) FROM factor_recovery WHERE usr = $1`, user)
	return n, err
}

// FactorChallenge is a code that was sent, or the state of a WebAuthn ceremony.
type FactorChallenge struct {
	ID      string
	User    id.UserID // "" where whoever answers tells who it is
	Kind    string
	Factor  string
	Hash    TokenHash // of the code
	Data    Content
	Tries   int64
	Expires int64 // ms
}

const challengeColumns = `id, usr, kind, factor, hash, data, tries, expires`

func (tx *Tx) factorChallenge(sql string, args ...any) (FactorChallenge, bool, error) {
	var c FactorChallenge
	var hash []byte
	found, err := tx.Get([]any{&c.ID, &c.User, &c.Kind, &c.Factor, &hash, &c.Data, &c.Tries, &c.Expires}, sql, args...)
	copy(c.Hash[:], hash)
	return c, found, err
}

// InsertFactorChallenge adds a challenge.
func (tx *Tx) InsertFactorChallenge(c FactorChallenge) error {
	_, err := tx.Exec(`INSERT INTO factor_challenges (`+challengeColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		c.ID, c.User, c.Kind, c.Factor, c.Hash[:], c.Data, c.Tries, c.Expires)
	return err
}

// LockFactorChallenge reads a challenge that this transaction is about to change.
func (tx *Tx) LockFactorChallenge(challenge string) (FactorChallenge, bool, error) {
	return tx.factorChallenge(`SELECT `+challengeColumns+` FROM factor_challenges WHERE id = $1 @forupdate`, challenge)
}

// TakeFactorChallenge reads a challenge and removes it: it is answered once.
func (tx *Tx) TakeFactorChallenge(challenge string) (FactorChallenge, bool, error) {
	return tx.factorChallenge(`DELETE FROM factor_challenges WHERE id = $1 RETURNING `+challengeColumns, challenge)
}

// CountFactorTry counts a wrong answer.
func (tx *Tx) CountFactorTry(challenge string) error {
	_, err := tx.Exec(`UPDATE factor_challenges SET tries = tries + 1 WHERE id = $1`, challenge)
	return err
}

// DeleteFactorChallenges removes a user's challenges of a kind: of several codes only the last one is good.
func (tx *Tx) DeleteFactorChallenges(user id.UserID, kind string) error {
	_, err := tx.Exec(`DELETE FROM factor_challenges WHERE usr = $1 AND kind = $2`, user, kind)
	return err
}

// CountFactor counts one more of something in a window that ends at `expires` if it begins now, and returns how many there
// are in the current window.
func (tx *Tx) CountFactor(key TokenHash, now, expires int64) (int64, error) {
	var n int64
	_, err := tx.Get([]any{&n}, `INSERT INTO factor_counts (key, n, expires) VALUES ($1, 1, $3)
		ON CONFLICT (key) DO UPDATE SET
			n = CASE WHEN factor_counts.expires <= $2 THEN 1 ELSE factor_counts.n + 1 END,
			expires = CASE WHEN factor_counts.expires <= $2 THEN $3 ELSE factor_counts.expires END
		RETURNING n`, key[:], now, expires)
	return n, err
}

// FactorUsers lists up to limit users who have an active factor, behind `after`, in order.
func (tx *Tx) FactorUsers(after id.UserID, limit int) ([]id.UserID, error) {
	var out []id.UserID
	err := tx.Each(`SELECT DISTINCT usr FROM factors WHERE active = 1 AND usr > $1 ORDER BY usr LIMIT $2`, []any{after, limit}, func(r *Row) error {
		var user id.UserID
		err := r.Scan(&user)
		out = append(out, user)
		return err
	})
	return out, err
}

// SweepFactors removes what has expired, and what belonged to accounts that were deactivated: numbers and addresses among it.
func (tx *Tx) SweepFactors(now int64) error {
	for _, sql := range []string{
		`DELETE FROM factors WHERE active = 0 AND expires <= $1`,
		`DELETE FROM factor_challenges WHERE expires <= $1`,
		`DELETE FROM factor_counts WHERE expires <= $1`,
		`DELETE FROM remembered_devices WHERE expires <= $1`,
	} {
		if _, err := tx.Exec(sql, now); err != nil {
			return err
		}
	}
	for _, table := range []string{"factors", "factor_recovery", "remembered_devices", "app_passwords"} {
		if _, err := tx.Exec(`DELETE FROM ` + table + ` WHERE EXISTS
			(SELECT 1 FROM users u WHERE u.user_id = ` + table + `.usr AND u.deactivated = 1)`); err != nil {
			return err
		}
	}
	return nil
}
