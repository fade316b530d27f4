//go:build goolm

package clients_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// TestBridge lets somebody here talk with somebody on another network through a bridge that is made as mautrix bridges are,
// end-to-end encrypted: commands to its bot, rooms that it makes, messages both ways. Its device has no session (MSC4190);
// keys come to it in transactions.
func TestBridge(t *testing.T) {
	command := testkit.Partner(t, "MOOTHALL_TEST_BRIDGEV2")
	t.Run("sqlite", func(t *testing.T) { testBridge(t, command, "") })
	t.Run("postgres", func(t *testing.T) { testBridge(t, command, storetest.Postgres(t)) })
}

func testBridge(t *testing.T, command, databaseURL string) {
	needClients(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	registrations := t.TempDir()
	homeserver := startServer(t, databaseURL, fmt.Sprintf("appservices:\n  registrations: [%q]\n", registrations))
	alice := newMautrix(t, homeserver, "alice")
	other := startBridge(ctx, t, command, homeserver, filepath.Join(registrations, "testnet.yaml"))
	bot := id.UserID("@testnetbot:localhost")

	// the bot takes commands in an encrypted room
	room := alice.encryptedRoom(ctx, t, bot)
	alice.sees(ctx, t, "the bot comes", func(e *event.Event) bool {
		return e.Type == event.StateMember && e.GetStateKey() == bot.String() && e.Content.AsMember().Membership == event.MembershipJoin
	})
	if _, err := alice.client.SendText(ctx, room, "login"); err != nil {
		t.Fatal(err)
	}
	answer := alice.sees(ctx, t, "the bot answers", func(e *event.Event) bool {
		return e.Type == event.EventMessage && e.Sender == bot && strings.Contains(e.Content.AsMessage().Body, "Welcome to Testnet")
	})
	if !answer.Mautrix.WasEncrypted {
		t.Error("the bot's answer came unencrypted")
	}
	// somebody writes there: the bridge makes a room
	other.say(ctx, t, "bob", "hello from Testnet")
	invite := alice.sees(ctx, t, "an invitation", func(e *event.Event) bool {
		return e.Type == event.StateMember && e.RoomID != room && e.GetStateKey() == alice.client.UserID.String() &&
			e.Content.AsMember().Membership == event.MembershipInvite && strings.HasPrefix(e.Sender.String(), "@testnet")
	})
	portal := alice.joinWith(ctx, t, invite, "hello from Testnet")
	for i := range 3 {
		text := fmt.Sprint("hello from Matrix ", i)
		if _, err := alice.client.SendText(ctx, portal, text); err != nil {
			t.Fatal(err)
		}
		other.hears(ctx, t, text)
		text = fmt.Sprint("and back ", i)
		other.say(ctx, t, "bob", text)
		got := alice.sees(ctx, t, text, func(e *event.Event) bool { return e.Type == event.EventMessage && e.Content.AsMessage().Body == text })
		if got.RoomID != portal || got.Sender != "@testnet_bob:localhost" || !got.Mautrix.WasEncrypted {
			t.Errorf("%q came from %s in %s, encrypted %v", text, got.Sender, got.RoomID, got.Mautrix.WasEncrypted)
		}
	}
}

// TestBot talks with a bot in appservice mode that is made with mautrix-python, in the clear and end-to-end encrypted, and lets it
// hear of read receipts.
func TestBot(t *testing.T) {
	python := testkit.Partner(t, "MOOTHALL_TEST_MAUTRIX_PYTHON")
	t.Run("sqlite", func(t *testing.T) { testBot(t, python, "") })
	t.Run("postgres", func(t *testing.T) { testBot(t, python, storetest.Postgres(t)) })
}

func testBot(t *testing.T, python, databaseURL string) {
	needClients(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	port := process.FreePort(t)
	registration := filepath.Join(t.TempDir(), "pybot.yaml")
	text := fmt.Sprintf(`id: pybot
url: http://127.0.0.1:%d
as_token: as-token-of-the-bot
hs_token: hs-token-of-the-bot
sender_localpart: pybot
rate_limited: false
receive_ephemeral: true
org.matrix.msc3202: true
io.element.msc4190: true
namespaces: {users: [{exclusive: true, regex: "@pybot_.*"}], aliases: [], rooms: []}
`, port)
	if err := os.WriteFile(registration, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	homeserver := startServer(t, databaseURL, fmt.Sprintf("appservices:\n  registrations: [%q]\n", registration))
	alice := newMautrix(t, homeserver, "alice")
	script, err := filepath.Abs("bot.py")
	if err != nil {
		t.Fatal(err)
	}
	log := process.Launch(t, python, script, homeserver, "localhost", "as-token-of-the-bot", "hs-token-of-the-bot", fmt.Sprint(port))
	for !strings.Contains(log.String(), "ready\n") {
		if ctx.Err() != nil {
			t.Fatal("the bot does not start")
		}
		time.Sleep(100 * time.Millisecond)
	}
	bot := id.UserID("@pybot:localhost")
	comes := func(room id.RoomID) {
		t.Helper()
		alice.sees(ctx, t, "the bot comes", func(e *event.Event) bool {
			return e.RoomID == room && e.Type == event.StateMember && e.GetStateKey() == bot.String() && e.Content.AsMember().Membership == event.MembershipJoin
		})
	}
	asks := func(room id.RoomID, question, answer string) *event.Event {
		t.Helper()
		if _, err := alice.client.SendText(ctx, room, question); err != nil {
			t.Fatal(err)
		}
		return alice.sees(ctx, t, answer, func(e *event.Event) bool {
			return e.RoomID == room && e.Sender == bot && e.Type == event.EventMessage && e.Content.AsMessage().Body == answer
		})
	}
	clear, err := alice.client.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bot}})
	if err != nil {
		t.Fatal(err)
	}
	comes(clear.RoomID)
	pong := asks(clear.RoomID, "ping", "pong")
	if err := alice.client.SendReceipt(ctx, clear.RoomID, pong.ID, event.ReceiptTypeRead, nil); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(log.String(), "EDUs") { // how the library notes what is ephemeral
		if ctx.Err() != nil {
			t.Fatal("the bot never heard of the read receipt")
		}
		time.Sleep(50 * time.Millisecond)
	}
	asks(clear.RoomID, "seen", "1 read receipts")
	sealed := alice.encryptedRoom(ctx, t, bot)
	comes(sealed)
	for range 3 {
		if e := asks(sealed, "ping", "pong"); !e.Mautrix.WasEncrypted {
			t.Error("the bot answers unencrypted")
		}
	}
}

// joinWith joins what a bridge invites to (rooms of chats, and the space of them) until a text is read, and gives its room.
func (c *mautrixClient) joinWith(ctx context.Context, t *testing.T, invite *event.Event, text string) id.RoomID {
	t.Helper()
	for {
		if invite != nil {
			if _, err := c.client.JoinRoomByID(ctx, invite.RoomID); err != nil {
				t.Fatal(err)
			}
		}
		e := c.sees(ctx, t, text, func(e *event.Event) bool {
			again := e.Type == event.StateMember && e.GetStateKey() == c.client.UserID.String() && e.Content.AsMember().Membership == event.MembershipInvite
			return again || e.Type == event.EventMessage && e.Content.AsMessage().Body == text
		})
		if e.Type == event.EventMessage {
			if !e.Mautrix.WasEncrypted {
				t.Errorf("%q came unencrypted", text)
			}
			return e.RoomID
		}
		invite = e
	}
}

// bridge is the far side of a bridge.
type bridge struct{ url string }

// startBridge lets a bridge write its registration, and starts it.
func startBridge(ctx context.Context, t *testing.T, command, homeserver, registration string) *bridge {
	t.Helper()
	dir, port, far := t.TempDir(), process.FreePort(t), process.FreePort(t)
	config := filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(`network: {listen: "127.0.0.1:%d"}
bridge:
  permissions: {"localhost": admin}
database: {type: sqlite3-fk-wal, uri: "file:%s?_txlock=immediate"}
homeserver: {address: %s, domain: localhost}
appservice: {address: "http://127.0.0.1:%d", hostname: 127.0.0.1, port: %d}
encryption: {allow: true, default: true, require: true, appservice: true, msc4190: true, pickle_key: generate}
logging: {min_level: debug, writers: [{type: stdout, format: json}]}
`, far, filepath.Join(dir, "bridge.db"), homeserver, port, port)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(command, "-g", "-c", config, "-r", registration).CombinedOutput(); err != nil {
		t.Fatalf("the bridge does not write its registration: %v\n%s", err, out)
	}
	time.Sleep(2500 * time.Millisecond) // the server reads registrations every two seconds
	process.Launch(t, command, "-n", "-c", config)
	b := &bridge{fmt.Sprintf("http://127.0.0.1:%d", far)}
	for b.heard(ctx) == nil {
		if ctx.Err() != nil {
			t.Fatal("the bridge does not start")
		}
		time.Sleep(100 * time.Millisecond)
	}
	return b
}

// say says something on the far side.
func (b *bridge) say(ctx context.Context, t *testing.T, from, text string) {
	t.Helper()
	body, err := json.Marshal(map[string]string{"chat": "c1", "from": from, "text": text})
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.url+"/say", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("say %q: %d", text, resp.StatusCode)
	}
}

// heard lists what was said here; nil while the bridge does not answer.
func (b *bridge) heard(ctx context.Context) []string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.url+"/heard", nil)
	if err != nil {
		return nil
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var list []struct{ Text string }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil
	}
	out := []string{}
	for _, l := range list {
		out = append(out, l.Text)
	}
	return out
}

func (b *bridge) hears(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	for list := b.heard(ctx); len(list) == 0 || list[len(list)-1] != text; list = b.heard(ctx) {
		if ctx.Err() != nil {
			t.Fatalf("the other network never heard %q, but %q", text, list)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
