package store

import (
	"fmt"

	"maunium.net/go/mautrix/id"
)

// CrossSigningKey is a public cross-signing key of a user.
type CrossSigningKey struct {
	User  id.UserID
	Usage string  // master, self_signing or user_signing
	Key   string  // the public key in unpadded base64
	Body  Content // signed JSON as it was uploaded
}

// CrossSigningKeys reads the cross-signing keys of some users.
func (tx *Tx) CrossSigningKeys(users []string) ([]CrossSigningKey, error) {
	var out []CrossSigningKey
	err := tx.Each(`SELECT usr, usage, key, body FROM cross_signing_keys WHERE usr IN @text($1) ORDER BY usr, usage`,
		[]any{users}, func(r *Row) error {
			var k CrossSigningKey
			if err := r.Scan(&k.User, &k.Usage, &k.Key, &k.Body); err != nil {
				return err
			}
			out = append(out, k)
			return nil
		})
	return out, err
}

// SetCrossSigningKey stores a cross-signing key.
func (tx *Tx) SetCrossSigningKey(k CrossSigningKey) error {
	_, err := tx.Exec(`INSERT INTO cross_signing_keys (usr, usage, key, body) VALUES ($1, $2, $3, $4)
		ON CONFLICT (usr, usage) DO UPDATE SET key = excluded.key, body = excluded.body`, k.User, k.Usage, k.Key, k.Body)
	if err != nil {
		return fmt.Errorf("store the %s key of %s: %w", k.Usage, k.User, err)
	}
	return nil
}

// DeleteCrossSigningKey removes a cross-signing key with the signatures on it, and those that it made on its owner's keys.
func (tx *Tx) DeleteCrossSigningKey(user id.UserID, usage, key string) error {
	if _, err := tx.Exec(`DELETE FROM cross_signing_keys WHERE usr = $1 AND usage = $2 AND key = $3`, user, usage, key); err != nil {
		return err
	}
	if _, err := tx.Exec(`DELETE FROM key_signatures WHERE usr = $1 AND signer = $1 AND key_id = $2`, user, "ed25519:"+key); err != nil {
		return err
	}
	return tx.DeleteSignatures(user, key)
}

// IsCrossSigningKey tells whether a user has a cross-signing key of this public key.
func (tx *Tx) IsCrossSigningKey(user id.UserID, key string) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM cross_signing_keys WHERE usr = $1 AND key = $2`, user, key)
}

// AnyDevice tells whether a user has a device with one of these ids.
func (tx *Tx) AnyDevice(user id.UserID, ids []string) (bool, error) {
	var one int64
	return tx.Get([]any{&one}, `SELECT 1 FROM devices WHERE usr = $1 AND device_id IN @text($2)`, user, ids)
}

// KeySignature is a signature that was added to a key after its upload.
type KeySignature struct {
	User      id.UserID // whose key was signed
	Target    string    // its device id, or its public key in the case of a cross-signing key
	Signer    id.UserID
	KeyID     string // "ed25519:…"
	Signature string
}

// KeySignatures reads the signatures on the keys of some users that viewer may see: those that their owners made, and
// those that viewer made.
// Spec: client-server API, "Key and signature security".
func (tx *Tx) KeySignatures(users []string, viewer id.UserID) ([]KeySignature, error) {
	var out []KeySignature
	err := tx.Each(`SELECT usr, target, signer, key_id, signature FROM key_signatures
		WHERE usr IN @text($1) AND (signer = usr OR signer = $2) ORDER BY usr, target, signer, key_id`, []any{users, viewer}, func(r *Row) error {
		var s KeySignature
		if err := r.Scan(&s.User, &s.Target, &s.Signer, &s.KeyID, &s.Signature); err != nil {
			return err
		}
		out = append(out, s)
		return nil
	})
	return out, err
}

// SetKeySignature stores a signature; false means that it is there already.
func (tx *Tx) SetKeySignature(s KeySignature) (bool, error) {
	n, err := tx.Exec(`INSERT INTO key_signatures (usr, target, signer, key_id, signature) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (usr, target, signer, key_id) DO UPDATE SET signature = excluded.signature
		WHERE key_signatures.signature <> excluded.signature`, s.User, s.Target, s.Signer, s.KeyID, s.Signature)
	if err != nil {
		return false, fmt.Errorf("store a signature on a key of %s: %w", s.User, err)
	}
	return n > 0, nil
}

// DeleteSignatures removes the signatures on a key.
func (tx *Tx) DeleteSignatures(user id.UserID, target string) error {
	_, err := tx.Exec(`DELETE FROM key_signatures WHERE usr = $1 AND target = $2`, user, target)
	return err
}
