package roomclass_test

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

const megolm = `{"algorithm":"m.megolm.v1.aes-sha2"}`

func withEncryption(extra string) string {
	return `{"initial_state":[{"type":"m.room.encryption","state_key":"","content":` + megolm + `}]` + extra + `}`
}

// TestClasses makes rooms of all classes and tries to encrypt them.
func TestClasses(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, chief := hs.User("alice"), hs.User("chief")
		if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "chief", "security", true); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			name, body string
			who        *hstest.Client
			encrypted  bool
		}{
			{"corporate", withEncryption(``), alice, false},
			{"named, by nobody", withEncryption(`,"name":"[secret] a"`), alice, false},
			{"named, by the chief", withEncryption(`,"name":"[secret] a"`), chief, true},
			{"by preset", withEncryption(`,"preset":"trusted_private_chat"`), alice, true},
			{"by alias", withEncryption(`,"room_alias_name":"x-partner"`), alice, true},
		} {
			room := tc.who.CreateRoomWith(tc.body)
			status := tc.who.Do(t, "GET", "", "/v3/rooms/%s/state/m.room.encryption", room).Status
			if (status == 200) != tc.encrypted {
				t.Errorf("%s: m.room.encryption answers %d", tc.name, status)
			}
			// A name that comes later changes nothing.
			tc.who.State(room, "m.room.name", "", `{"name":"[secret] later"}`)
			want := 200
			if !tc.encrypted {
				want = 403
			}
			for what, got := range map[string]hstest.Response{
				"encryption": tc.who.Do(t, "PUT", megolm, "/v3/rooms/%s/state/m.room.encryption", room),
				"encrypted":  tc.who.Do(t, "PUT", `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"abc","session_id":"s"}`, "/v3/rooms/%s/send/m.room.encrypted/%s", room, tc.who.Txn()),
			} {
				if got.Status != want {
					t.Errorf("%s: m.room.%s answers %d, want %d", tc.name, what, got.Status, want)
				}
			}
			tc.who.Text(room, "plain")
			// A room that replaces it has its class.
			next := tc.who.Must(t, "POST", `{"new_version":"11"}`, "/v3/rooms/%s/upgrade", room)["replacement_room"]
			if got := tc.who.Do(t, "PUT", megolm, "/v3/rooms/%s/state/m.room.encryption", next); got.Status != want {
				t.Errorf("%s: in the room that replaces it m.room.encryption answers %d, want %d", tc.name, got.Status, want)
			}
		}
		var known struct {
			E2EE map[string]any `json:"io.element.e2ee"`
		}
		alice.Do(t, "GET", "", "/.well-known/matrix/client").JSON(t, &known)
		if known.E2EE["default"] != false || known.E2EE["force_disable"] != nil {
			t.Errorf("well-known: %v", known)
		}
	}, func(c *homeserver.Config) {
		c.Compliance.Notice = false
		r := &c.Compliance.RoomClasses
		r.Corporate.Encryption = "forbidden"
		r.Confidential.Rules = []homeserver.RoomRule{{CreatorRole: "security", Name: `^\[secret\]`}}
		r.External.Rules = []homeserver.RoomRule{{Alias: `^#x-`}}
		r.Private.Rules = []homeserver.RoomRule{{Preset: "trusted_private_chat"}}
	})
}

// TestDefault shows that without a policy everything may be encrypted, and nobody is told anything.
func TestDefault(t *testing.T) {
	hs := hstest.Start(t)
	alice := hs.User("alice")
	room := alice.CreateRoomWith(withEncryption(``))
	alice.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.encryption", room)
	var known map[string]any
	alice.Do(t, "GET", "", "/.well-known/matrix/client").JSON(t, &known)
	if known["io.element.e2ee"] != nil {
		t.Errorf("well-known: %v", known)
	}
}

// TestNotice waits for the notice, which comes once.
func TestNotice(t *testing.T) {
	c := hstest.Config(t, func(c *homeserver.Config) {
		c.Compliance.Archive = true
		c.Notices.AutoJoin = true
		for _, class := range []*homeserver.RoomClass{&c.Compliance.RoomClasses.Corporate, &c.Compliance.RoomClasses.Confidential, &c.Compliance.RoomClasses.Private, &c.Compliance.RoomClasses.External} {
			class.Encryption = "forbidden"
		}
	})
	hs := hstest.StartWith(t, c)
	alice := hs.User("alice")
	var known struct {
		E2EE map[string]any `json:"io.element.e2ee"`
	}
	alice.Do(t, "GET", "", "/.well-known/matrix/client").JSON(t, &known)
	if known.E2EE["force_disable"] != true {
		t.Errorf("well-known: %v", known)
	}
	hs.Stop()
	hs = hstest.StartWith(t, c) // whoever is there is told at the start
	alice = alice.On(hs)
	count := func() int {
		body := alice.Do(t, "GET", "", "/v3/sync")
		return strings.Count(string(body.Body), "archived by your organisation")
	}
	testkit.Eventually(t, "alice is told", func() bool { return count() > 0 })
	hs.Stop()
	hs = hstest.StartWith(t, c)
	alice = alice.On(hs)
	time.Sleep(700 * time.Millisecond)
	if n := count(); n == 0 || n > 2 { // plain and as HTML in one event
		t.Errorf("alice reads the notice %d times", n)
	}
}
