package account_test

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	alice = id.UserID("@alice:example.org")
	bob   = id.UserID("@bob:example.org")
	eve   = id.UserID("@eve:example.org")
)

// parts are keys, account data and profiles over a store whose log is followed.
type parts struct {
	store      *store.Store
	accounts   *account.Accounts
	keys       *account.Keys
	data       *account.Data
	profiles   *account.Profiles
	clock      *atomic.Int64
	propagated []string
}

func openParts(t *testing.T, cfg store.Config) *parts {
	t.Helper()
	s, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p := &parts{store: s, clock: new(atomic.Int64)}
	p.clock.Store(1_700_000_000_000)
	now := func() time.Time { return time.UnixMilli(p.clock.Load()) }
	log := slog.New(slog.DiscardHandler)
	p.keys = account.NewKeys(account.KeysDeps{Store: s, ServerName: "example.org", Logger: log, Clock: now})
	p.data = account.NewData(account.DataDeps{Store: s})
	p.profiles = account.NewProfiles(account.ProfilesDeps{Store: s, ServerName: "example.org", Logger: log,
		Propagate: func(_ context.Context, user id.UserID, name, avatar string) error {
			p.propagated = append(p.propagated, fmt.Sprintf("%s %q %q", user, name, avatar))
			return nil
		}})
	p.accounts = account.New(account.Deps{Store: s, ServerName: "example.org", Logger: log, Clock: now,
		Config:          account.Config{Passwords: account.PasswordConfig{Argon2: cheap}},
		OnDeviceDeleted: []func(*store.Tx, id.UserID, id.DeviceID) error{p.keys.DeviceDeleted}})
	followed := make(chan struct{}, 1)
	probe := store.Listener{Apply: func([]store.Entry) {
		select {
		case followed <- struct{}{}:
		default:
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- s.Follow(ctx, []store.Listener{p.accounts.Listener(), p.keys.Listener(), p.data.Listener(), probe}, nil)
	}()
	<-s.Following()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	for range 1000 {
		p.write(t, func(tx *store.Tx) error {
			_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: "@probe:example.org"})
			return err
		})
		select {
		case <-followed:
			return p
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the log is not followed")
	return nil
}

func (p *parts) write(t *testing.T, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := p.store.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func (p *parts) read(t *testing.T, fn func(tx *store.Tx) error) {
	t.Helper()
	if err := p.store.Read(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

// user makes a user with devices.
func (p *parts) user(t *testing.T, user id.UserID, devices ...id.DeviceID) {
	t.Helper()
	if _, err := p.accounts.CreateUser(t.Context(), account.NewUser{Localpart: user.Localpart()}); err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		if _, _, err := p.accounts.SignIn(t.Context(), user, account.SignIn{Device: d}); err != nil {
			t.Fatal(err)
		}
	}
}

// room makes a room with members, announced as if they had just come in.
func (p *parts) room(t *testing.T, roomID string, published bool, members ...id.UserID) (nid int64) {
	t.Helper()
	p.write(t, func(tx *store.Tx) error {
		var err error
		if nid, err = tx.NextRoomNID(); err != nil {
			return err
		}
		return tx.SaveRooms([]store.Room{{NID: nid, RoomID: roomID, Version: "12", Creator: string(alice), Extremities: []byte{}, Published: published}})
	})
	for _, m := range members {
		p.member(t, nid, m, 2)
	}
	return nid
}

// member sets a membership: 2 join, 3 leave.
func (p *parts) member(t *testing.T, room int64, user id.UserID, membership int64) {
	t.Helper()
	p.write(t, func(tx *store.Tx) error {
		pos, err := tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: room})
		if err != nil {
			return err
		}
		return tx.SaveMemberships([]store.Membership{{User: string(user), Room: room, Membership: membership, NID: pos, Pos: pos}})
	})
}

// signer is an ed25519 key made from a name.
type signer struct {
	private ed25519.PrivateKey
	public  string // unpadded base64
}

func newSigner(name string) signer {
	seed := sha256.Sum256([]byte(name))
	private := ed25519.NewKeyFromSeed(seed[:])
	return signer{private, base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))}
}

// sign adds a signature to an object.
func (s signer) sign(t *testing.T, obj string, user id.UserID, keyName string) string {
	t.Helper()
	out, err := event.SignJSON([]byte(obj), string(user), event.SigningKey{KeyID: "ed25519:" + keyName, Private: s.private})
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func deviceSigner(user id.UserID, device id.DeviceID) signer {
	return newSigner(string(user) + string(device))
}

// deviceKeys are signed identity keys.
func deviceKeys(t *testing.T, user id.UserID, device id.DeviceID) string {
	t.Helper()
	s := deviceSigner(user, device)
	return s.sign(t, fmt.Sprintf(`{"user_id":%q,"device_id":%q,"algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"ed25519:%s":%q,"curve25519:%s":"abc"}}`,
		user, device, device, s.public, device), user, string(device))
}

func crossSigningKey(user id.UserID, usage string, key signer) string {
	return fmt.Sprintf(`{"user_id":%q,"usage":[%q],"keys":{"ed25519:%s":%q}}`, user, usage, key.public, key.public)
}

// uploadDevice publishes identity keys.
func (p *parts) uploadDevice(t *testing.T, user id.UserID, device id.DeviceID) {
	t.Helper()
	_, err := p.keys.Upload(t.Context(), user, device, account.KeyUpload{DeviceKeys: jsontext.Value(deviceKeys(t, user, device))})
	wants(t, "upload device keys", err, "")
}

// uploadCrossSigning publishes three keys named after the user and returns them.
func (p *parts) uploadCrossSigning(t *testing.T, user id.UserID) (master, self, other signer) {
	t.Helper()
	master, self, other = newSigner(string(user)+"M"), newSigner(string(user)+"S"), newSigner(string(user)+"U")
	wants(t, "upload cross-signing keys", p.keys.UploadCrossSigning(t.Context(), user, crossSigning(t, user, master, self, other), false), "")
	return master, self, other
}

func crossSigning(t *testing.T, user id.UserID, master, self, other signer) account.CrossSigningUpload {
	t.Helper()
	return account.CrossSigningUpload{
		Master:      jsontext.Value(crossSigningKey(user, "master", master)),
		SelfSigning: jsontext.Value(master.sign(t, crossSigningKey(user, "self_signing", self), user, master.public)),
		UserSigning: jsontext.Value(master.sign(t, crossSigningKey(user, "user_signing", other), user, master.public)),
	}
}

// oneTimeKeys makes keys named by numbers from and up to to, without it.
func oneTimeKeys(from, to int) map[string]jsontext.Value {
	out := map[string]jsontext.Value{}
	for i := from; i < to; i++ {
		out[fmt.Sprintf("signed_curve25519:K%04d", i)] = jsontext.Value(fmt.Sprintf(`{"key":"key%d","signatures":{}}`, i))
	}
	return out
}

func (p *parts) counts(t *testing.T, user id.UserID, device id.DeviceID) string {
	t.Helper()
	counts, unused, err := p.keys.OTKCounts(t.Context(), user, device)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(counts)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %v", b, unused)
}
