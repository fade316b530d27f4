package push_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/tests/process"
)

// sygnal is a real push gateway that notes what it was told.
type sygnal struct{ url, file string }

// startSygnal runs a Sygnal with one app, org.example.app, whose phones are a file.
func startSygnal(t *testing.T) sygnal {
	python := os.Getenv("MOOTHALL_TEST_SYGNAL")
	if python == "" {
		t.Skip("Sygnal is in no package index: SYGNAL=URL ./scripts/test installs it from a repository")
	}
	dir, port := t.TempDir(), process.FreePort(t)
	s := sygnal{url: fmt.Sprintf("http://127.0.0.1:%d", port), file: filepath.Join(dir, "notes")}
	conf := filepath.Join(dir, "sygnal.yaml")
	text := fmt.Sprintf(`http: {bind_addresses: ["127.0.0.1"], port: %d}
log: {setup: {version: 1, handlers: {out: {class: logging.StreamHandler}}, root: {handlers: [out], level: INFO}}}
apps:
  org.example.app: {type: sygnal_recorder.RecorderPushkin, file: %q}
`, port, s.file)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	process.Launch(t, "env", "SYGNAL_CONF="+conf, python, "-m", "sygnal.sygnal")
	await(t, "Sygnal to be ready", func() bool {
		resp, err := http.Get(s.url + "/health")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	return s
}

func await(t *testing.T, what string, fn func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if fn() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

// notes are what Sygnal would have sent to a phone.
func (s sygnal) notes(t *testing.T, pushkey string) (out []gjson.Result) {
	t.Helper()
	b, err := os.ReadFile(s.file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if n := gjson.Parse(line); strings.HasSuffix(line, "\n") && n.Get("pushkey").Str == pushkey {
			out = append(out, n)
		}
	}
	return out
}

// next waits for the nth note, from 1.
func (s sygnal) next(t *testing.T, pushkey string, n int) gjson.Result {
	t.Helper()
	var got []gjson.Result
	await(t, fmt.Sprintf("notification %d of %s", n, pushkey), func() bool {
		got = s.notes(t, pushkey)
		return len(got) >= n
	})
	return got[n-1]
}

// addPusher adds a pusher of somebody's phone.
func (s sygnal) addPusher(t *testing.T, who *hstest.Client, app, pushkey, format string) {
	t.Helper()
	who.Must(t, "POST", fmt.Sprintf(`{"kind":"http","app_id":%q,"pushkey":%q,"app_display_name":"App","device_display_name":"Phone","lang":"zh",
		"data":{"url":"%s/_matrix/push/v1/notify","format":%q,"default_payload":{"aps":{"badge":1}}},"append":true}`, app, pushkey, s.url, format), "/v3/pushers/set")
}

func pushkeys(t *testing.T, who *hstest.Client) (out []string) {
	t.Helper()
	for _, p := range who.Must(t, "GET", "", "/v3/pushers")["pushers"].([]any) {
		out = append(out, hstest.At(p, "pushkey").(string))
	}
	slices.Sort(out)
	return out
}

// TestSygnal delivers notifications to a Sygnal: whole ones and event ids alone, with counts that fall when messages are read; a
// pushkey that it rejects, and an app that it does not know, lose their pushers, and what the phones' network refuses comes again.
func TestSygnal(t *testing.T) {
	s := startSygnal(t)
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) { s.test(t, hs) }, func(c *homeserver.Config) { c.Push.AllowPrivateAddresses = true })
}

func (s sygnal) test(t *testing.T, hs *hstest.Server) {
	alice, bob := hs.User("alice"), hs.User("bob")
	room := bob.CreateRoomWith(`{"preset":"private_chat","name":"会议室","invite":["` + string(alice.UserID) + `"]}`)
	alice.Join(room)
	key := func(kind string) string { return kind + " " + t.Name() }
	whole, short, gone, broken := key("whole"), key("short"), key("gone"), key("broken")
	s.addPusher(t, alice, "org.example.app", whole, "")
	s.addPusher(t, alice, "org.example.app", short, "event_id_only")

	first := bob.Text(room, "你好")
	n := s.next(t, whole, 1)
	for path, want := range map[string]any{
		"event_id": string(first), "room_id": string(room), "room_name": "会议室", "sender": string(bob.UserID), "type": "m.room.message",
		"content.body": "你好", "prio": "high", "sound": "default", "unread": 1.0, "data.default_payload.aps.badge": 1.0, "app_id": "org.example.app",
	} {
		if got := n.Get(path).Value(); got != want {
			t.Errorf("%s is %v, not %v", path, got, want)
		}
	}
	if n.Get("data.url").Exists() {
		t.Errorf("the gateway's own address went along: %s", n)
	}
	n = s.next(t, short, 1)
	if n.Get("event_id").Str != string(first) || n.Get("room_id").Str != string(room) || n.Get("unread").Int() != 1 {
		t.Errorf("the short one: %s", n)
	}
	for _, path := range []string{"content", "sender", "type", "room_name"} {
		if n.Get(path).Type != gjson.Null {
			t.Errorf("%s is in the short one: %s", path, n)
		}
	}

	second := bob.Text(room, "noch eine")
	if n = s.next(t, whole, 2); n.Get("unread").Int() != 2 || n.Get("event_id").Str != string(second) {
		t.Errorf("the second: %s", n)
	}
	s.next(t, short, 2)
	alice.Must(t, "POST", "{}", "/v3/rooms/%s/receipt/m.read/%s", room, second)
	if n = s.next(t, whole, 3); n.Get("event_id").Type != gjson.Null || n.Get("unread").Type != gjson.Number || n.Get("unread").Int() != 0 {
		t.Errorf("the badge was not cleared: %s", n)
	}

	s.addPusher(t, alice, "org.example.app", gone, "")
	s.addPusher(t, alice, "org.example.app", broken, "")
	s.addPusher(t, alice, "org.example.unknown", key("other"), "")
	third := bob.Text(room, "third")
	s.next(t, whole, 4)
	await(t, "the rejected pushers to go", func() bool { return slices.Equal(pushkeys(t, alice), sorted(whole, short, broken)) })
	for _, n := range []gjson.Result{s.next(t, broken, 1), s.next(t, broken, 2)} {
		if n.Get("event_id").Str != string(third) {
			t.Errorf("tried again was %s", n)
		}
	}
	alice.Must(t, "POST", fmt.Sprintf(`{"kind":null,"app_id":"org.example.app","pushkey":%q}`, broken), "/v3/pushers/set")
	fourth := bob.Text(room, "fourth")
	s.next(t, whole, 5)
	if n := len(s.notes(t, gone)); n != 1 {
		t.Errorf("the rejected pushkey got %d notifications", n)
	}
	seen := map[id.EventID]int{}
	for _, n := range s.notes(t, whole) {
		seen[id.EventID(n.Get("event_id").Str)]++
	}
	for _, e := range []id.EventID{first, second, third, fourth} {
		if seen[e] != 1 {
			t.Errorf("%s came %d times", e, seen[e])
		}
	}
}

func sorted(s ...string) []string {
	slices.Sort(s)
	return s
}
