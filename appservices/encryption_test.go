package appservices_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestEncryption tells a service for end-to-end encryption of messages to its devices, of devices that changed, and of its
// keys, each under the name that it has now and under that of its proposal.
func TestEncryption(t *testing.T) {
	var irc *service
	start := func(t *testing.T) []hstest.Option {
		irc = newService(t, "irc")
		return []hstest.Option{registered(t, irc.registration("org.matrix.msc3202: true\n"+irc.namespaces()))}
	}
	each(t, start, func(t *testing.T, hs *hstest.Server) {
		alice, eve := hs.User("alice"), hs.User("eve")
		room := alice.CreateRoom("public_chat")
		ghost := irc.register(t, hs, "irc_ann")
		ghost.must(t, "PUT", "/v3/devices/BRIDGE", `{}`)
		ghost.must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		for i := range 2 {
			alice.Must(t, "PUT", fmt.Sprintf(`{"messages":{"@irc_ann:test":{"BRIDGE":{"n":%d}}}}`, i), "/v3/sendToDevice/m.test/%s", alice.Txn())
		}
		for _, name := range []string{"to_device", "de.sorunome.msc2409.to_device"} {
			testkit.Eventually(t, name, func() bool { return len(irc.told(name)) == 2 })
			for i, m := range irc.told(name) {
				if m["to_user_id"] != "@irc_ann:test" || m["to_device_id"] != "BRIDGE" || m["sender"] != string(alice.UserID) || hstest.At(m, "content", "n") != float64(i) {
					t.Errorf("%s: %v", name, m)
				}
			}
		}
		changed := func(list, user string) bool {
			for _, b := range irc.all() {
				for _, name := range []string{"device_lists", "org.matrix.msc3202.device_lists"} {
					if !strings.Contains(fmt.Sprint(hstest.At(b, name, list)), user) {
						break
					}
					if name != "device_lists" {
						return true
					}
				}
			}
			return false
		}
		testkit.Eventually(t, "the members of the room", func() bool { return changed("changed", "@alice:test") })
		if changed("changed", "@eve:test") {
			t.Error("the service was told of somebody who shares no room with it")
		}
		eve.Join(room)
		testkit.Eventually(t, "a newcomer", func() bool { return changed("changed", "@eve:test") })
		eve.Leave(room)
		testkit.Eventually(t, "who left", func() bool { return changed("left", "@eve:test") })
		count := fmt.Sprint(map[string]any{"@irc_ann:test": map[string]any{"BRIDGE": map[string]any{"signed_curve25519": 0}}})
		ok := false
		for _, b := range irc.all() {
			ok = ok || fmt.Sprint(b["device_one_time_keys_count"]) == count && fmt.Sprint(b["org.matrix.msc3202.device_one_time_keys_count"]) == count &&
				b["device_unused_fallback_key_types"] != nil && b["org.matrix.msc3202.device_unused_fallback_key_types"] != nil
		}
		if !ok {
			t.Errorf("no transaction tells how many keys the device has: %v", irc.all())
		}
	})
}

func (s *service) all() []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []map[string]any
	for _, x := range s.txns {
		var m map[string]any
		if err := json.Unmarshal(x.body, &m); err != nil {
			s.t.Error(err)
		}
		out = append(out, m)
	}
	return out
}

// TestTwoNodes: whichever process a message comes in at, the service is told of it once and in order, also when the
// process that delivers goes away.
func TestTwoNodes(t *testing.T) {
	irc := newService(t, "irc")
	db, files := hstest.Postgres(storetest.Postgres(t)), registered(t, irc.registration("receive_ephemeral: true\n"+irc.namespaces()))
	a, b := hstest.Start(t, db, files), hstest.Start(t, db, files)
	alice := a.User("alice")
	bob := b.User("bob")
	room := alice.CreateRoom("public_chat")
	bob.Join(room)
	irc.register(t, b, "irc_ann").must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
	var want []string
	say := func(c *hstest.Client) {
		want = append(want, fmt.Sprint("message ", len(want)))
		c.Text(room, want[len(want)-1])
	}
	for range 5 {
		say(alice)
		say(bob)
	}
	irc.awaitBodies(t, want...)
	bob.Must(t, "PUT", `{"typing":true,"timeout":20000}`, "/v3/rooms/%s/typing/%s", room, bob.UserID)
	alice.Must(t, "PUT", `{"typing":true,"timeout":20000}`, "/v3/rooms/%s/typing/%s", room, alice.UserID)
	testkit.Eventually(t, "typing on both nodes", func() bool {
		s := fmt.Sprint(irc.told("ephemeral"))
		return strings.Contains(s, "[@alice:test @bob:test]")
	})
	a.Stop()
	for range 5 {
		say(bob)
	}
	irc.awaitBodies(t, want...)
}

// TestReload takes up what changes in the files, and keeps what it has where they are wrong.
func TestReload(t *testing.T) {
	irc, late := newService(t, "irc"), newService(t, "late")
	dir := t.TempDir()
	write(t, dir, "irc.yaml", irc.registration(irc.namespaces()))
	hs := hstest.Start(t, func(c *homeserver.Config) { c.AppServices.Registrations = []string{dir} })
	alice := hs.User("alice")
	if r := late.as(hs, "").do(t, "GET", "/v3/account/whoami", ""); r.Status != 401 {
		t.Fatalf("a service that is not registered: %d", r.Status)
	}
	write(t, dir, "broken.yaml", "id: [")
	write(t, dir, "late.yaml", late.registration(late.namespaces()))
	time.Sleep(3 * time.Second)
	if r := late.as(hs, "").do(t, "GET", "/v3/account/whoami", ""); r.Status != 401 {
		t.Errorf("with a broken file beside it: %d", r.Status)
	}
	irc.as(hs, "").must(t, "GET", "/v3/account/whoami", "")
	write(t, dir, "broken.yaml", strings.ReplaceAll(irc.registration("namespaces: {}\nurl2: x"), "irc", "third"))
	testkit.Eventually(t, "the new registration", func() bool { return late.as(hs, "").do(t, "GET", "/v3/account/whoami", "").Status == 200 })
	room := alice.CreateRoom("public_chat")
	late.as(hs, "").must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
	alice.Text(room, "welcome")
	late.awaitBodies(t, "welcome")
}
