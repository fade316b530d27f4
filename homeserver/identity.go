package homeserver

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// Keys of server_settings.
const (
	settingServerName = "server_name"
	settingSigningKey = "signing_key"
	settingSetup      = "setup" // hashes of the setup link's tokens
)

// storedKey is how a signing key lies in the database.
type storedKey struct {
	KeyID string `json:"key_id"`
	Seed  []byte `json:"seed"`
}

// loadIdentity reads the server's name and signing key, or stores them at the first start. Another name than the stored one
// is refused: it is part of every user, room and event.
func loadIdentity(ctx context.Context, st *store.Store, serverName string) (event.SigningKey, error) {
	var key event.SigningKey
	fresh, err := newSigningKey()
	if err != nil {
		return key, err
	}
	err = st.Write(ctx, func(tx *store.Tx) error {
		name, err := tx.InitSetting(settingServerName, []byte(serverName))
		if err != nil {
			return err
		}
		if string(name) != serverName {
			return fmt.Errorf("server_name is %q, but this database belongs to %q; the name cannot be changed: set it back, or use another database", serverName, name)
		}
		b, err := tx.InitSetting(settingSigningKey, fresh)
		if err != nil {
			return err
		}
		key, err = readSigningKey(b)
		return err
	})
	return key, err
}

func newSigningKey() ([]byte, error) {
	seed := make([]byte, ed25519.SeedSize)
	name := make([]byte, 3)
	rand.Read(seed) // never fails
	rand.Read(name)
	return json.Marshal(storedKey{KeyID: fmt.Sprintf("ed25519:m%x", name), Seed: seed})
}

func readSigningKey(b []byte) (event.SigningKey, error) {
	var k storedKey
	if err := json.Unmarshal(b, &k); err != nil || len(k.Seed) != ed25519.SeedSize {
		return event.SigningKey{}, fmt.Errorf("the signing key in the database is damaged: restore a backup")
	}
	return event.SigningKey{KeyID: k.KeyID, Private: ed25519.NewKeyFromSeed(k.Seed)}, nil
}
