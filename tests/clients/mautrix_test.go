//go:build goolm

package clients_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/crypto/cryptohelper"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// TestMautrix lets two mautrix-go clients talk in an encrypted room, both ways.
func TestMautrix(t *testing.T) {
	eachServer(t, func(t *testing.T, homeserver string) {
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		alice, bob := newMautrix(t, homeserver, "alice"), newMautrix(t, homeserver, "bob")
		room := alice.encryptedRoom(ctx, t, bob.client.UserID)
		bob.join(ctx, t, room)
		alice.sees(ctx, t, "bob has joined", func(e *event.Event) bool {
			return e.Type == event.StateMember && e.GetStateKey() == bob.client.UserID.String() &&
				e.Content.AsMember().Membership == event.MembershipJoin
		})

		for i, turn := range []struct {
			from, to *mautrixClient
			text     string
		}{
			{alice, bob, "早上好 – good morning"},
			{bob, alice, "早上好, 开会吗?"},
			{alice, bob, "ten o'clock"},
		} {
			sent, err := turn.from.client.SendText(ctx, room, turn.text)
			if err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
			got := turn.to.sees(ctx, t, turn.text, func(e *event.Event) bool { return e.ID == sent.EventID && e.Type == event.EventMessage })
			if body := got.Content.AsMessage().Body; body != turn.text {
				t.Errorf("message %d decrypts to %q, want %q", i, body, turn.text)
			}
			if !got.Mautrix.WasEncrypted {
				t.Errorf("message %d came unencrypted", i)
			}
			stored, err := turn.to.client.GetEvent(ctx, room, sent.EventID)
			if err != nil {
				t.Fatal(err)
			}
			if stored.Type != event.EventEncrypted || strings.Contains(string(stored.Content.VeryRaw), turn.text) {
				t.Errorf("message %d lies on the server as %s %s", i, stored.Type.Type, stored.Content.VeryRaw)
			}
		}
	})
}

// mautrixClient is a client in sync, with all events it was given, decrypted.
type mautrixClient struct {
	client *mautrix.Client
	events chan *event.Event
}

func newMautrix(t *testing.T, homeserver, name string) *mautrixClient {
	t.Helper()
	a := register(t, homeserver, name)
	client, err := mautrix.NewClient(homeserver, id.UserID(a.UserID), a.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = id.DeviceID(a.DeviceID)
	client.Log = zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel)
	client.StateStore = mautrix.NewMemoryStateStore()
	c := &mautrixClient{client: client, events: make(chan *event.Event, 1000)}

	helper, err := cryptohelper.NewCryptoHelper(client, []byte("pickle"), crypto.NewMemoryStore(nil))
	if err != nil {
		t.Fatal(err)
	}
	helper.DecryptErrorCallback = func(e *event.Event, err error) { t.Errorf("%s cannot decrypt %s: %v", name, e.ID, err) }
	if err := helper.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	client.Crypto = helper
	syncer := client.Syncer.(*mautrix.DefaultSyncer)
	syncer.OnEvent(client.StateStoreSyncHandler)
	syncer.OnEvent(func(_ context.Context, e *event.Event) { c.events <- e })

	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- client.SyncWithContext(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("%s's sync: %v", name, err)
		}
	})
	return c
}

func (c *mautrixClient) encryptedRoom(ctx context.Context, t *testing.T, invited ...id.UserID) id.RoomID {
	t.Helper()
	room, err := c.client.CreateRoom(ctx, &mautrix.ReqCreateRoom{
		Preset: "private_chat",
		Invite: invited,
		InitialState: []*event.Event{{
			Type:    event.StateEncryption,
			Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.sees(ctx, t, "the room is encrypted", func(e *event.Event) bool {
		return e.RoomID == room.RoomID && e.Type == event.StateEncryption
	})
	return room.RoomID
}

func (c *mautrixClient) join(ctx context.Context, t *testing.T, room id.RoomID) {
	t.Helper()
	if _, err := c.client.JoinRoomByID(ctx, room); err != nil {
		t.Fatal(err)
	}
	c.sees(ctx, t, "its own join", func(e *event.Event) bool {
		return e.RoomID == room && e.Type == event.StateMember && e.GetStateKey() == c.client.UserID.String() &&
			e.Content.AsMember().Membership == event.MembershipJoin
	})
}

// sees waits for an event among those not looked at yet.
func (c *mautrixClient) sees(ctx context.Context, t *testing.T, what string, matches func(*event.Event) bool) *event.Event {
	t.Helper()
	for {
		select {
		case e := <-c.events:
			if matches(e) {
				return e
			}
		case <-ctx.Done():
			t.Fatal(fmt.Errorf("%s never saw: %s: %w", c.client.UserID, what, ctx.Err()))
		}
	}
}
