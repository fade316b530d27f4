package clients_test

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // what Synapse's registration by shared secret takes
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/testkit"
)

// sharedSecret is that of all servers of these tests.
const sharedSecret = "the-secret-that-tools-know"

// registerAdmin makes an administrator by shared secret, as tools for Synapse do.
func registerAdmin(t *testing.T, homeserver, name string) account {
	t.Helper()
	const path = "/_synapse/admin/v1/register"
	var nonce struct {
		Nonce string `json:"nonce"`
	}
	if status := call(t, homeserver, "", "GET", path, nil, &nonce); status != 200 {
		t.Fatalf("a nonce: %d", status)
	}
	a := account{Name: name, Password: "correct horse battery"}
	mac := hmac.New(sha1.New, []byte(sharedSecret))
	mac.Write([]byte(strings.Join([]string{nonce.Nonce, a.Name, a.Password, "admin"}, "\x00")))
	body := map[string]any{"nonce": nonce.Nonce, "username": a.Name, "password": a.Password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil))}
	if status := call(t, homeserver, "", "POST", path, body, &a); status != 200 {
		t.Fatalf("registration by shared secret: %d", status)
	}
	return a
}

// synadm is the command line of that name, which runs its commands in one process.
type synadm struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func startSynadm(t *testing.T, bin, homeserver string, admin account) *synadm {
	t.Helper()
	config := filepath.Join(t.TempDir(), "synadm.yaml")
	text := fmt.Sprintf("user: %s\ntoken: %s\nprotocol: http\nbase_url: %s\nadmin_path: /_synapse/admin\nmatrix_path: /_matrix\nformat: minified\n"+
		"timeout: 60\nhomeserver: auto-retrieval\nssl_verify: true\nserver_discovery: well-known\n", admin.Name, admin.AccessToken, homeserver)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "python"), "run_synadm.py", config)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // the context of the test ends it at the latest
	})
	return &synadm{t: t, in: in, out: bufio.NewReader(out)}
}

// run runs a command, which must succeed, and gives what it printed.
func (s *synadm) run(args ...string) string {
	s.t.Helper()
	line, err := json.Marshal(args)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.in.Write(append(line, '\n')); err != nil {
		s.t.Fatal(err)
	}
	answer, err := s.out.ReadBytes('\n')
	if err != nil {
		s.t.Fatalf("synadm %q: %v", args, err)
	}
	var result struct {
		Exit   int
		Output string
	}
	if err := json.Unmarshal(answer, &result); err != nil {
		s.t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(result.Output), "\n") // before the last one it may tell that an account is new
	if result.Exit != 0 || strings.Contains(lines[len(lines)-1], "errcode") {
		s.t.Errorf("synadm %q ends with %d: %s", args, result.Exit, result.Output)
	}
	return result.Output
}

// says runs a command and wants each of these in what it prints.
func (s *synadm) says(args []string, want ...string) string {
	s.t.Helper()
	out := s.run(args...)
	for _, w := range want {
		if !strings.Contains(out, w) {
			s.t.Errorf("synadm %q does not say %q: %s", args, w, out)
		}
	}
	return out
}

// value runs a command and gives a member of what it prints.
func (s *synadm) value(name string, args ...string) string {
	s.t.Helper()
	out := s.run(args...)
	_, rest, found := strings.Cut(out, fmt.Sprintf("%q:", name))
	rest, _, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(rest), `"`), `"`)
	if !found || !ok {
		s.t.Fatalf("synadm %q says no %s: %s", args, name, out)
	}
	return rest
}

// TestSynadm runs each command of synadm, a command line for Synapse's administration API, and looks at what comes of it. What is not
// run here the server does not have: shadow bans and groups.
func TestSynadm(t *testing.T) {
	bin := testkit.Partner(t, "MOOTHALL_TEST_ADMIN_TOOLS")
	eachServer(t, func(t *testing.T, homeserver string) {
		admin := registerAdmin(t, homeserver, "admin")
		alice, bob := register(t, homeserver, "alice"), register(t, homeserver, "bob")
		s := startSynadm(t, bin, homeserver, admin)
		s.says([]string{"version"}, `"server_version"`)
		synadmUsers(t, s, homeserver, bob)
		room := synadmRooms(t, s, homeserver, alice, bob)
		synadmContent(t, s, homeserver, room, bob)
		synadmServer(t, s, homeserver, admin, alice)
	})
}

func words(text string) []string { return strings.Fields(text) }

// signsIn tells whether a password signs somebody in.
func signsIn(t *testing.T, homeserver, name, password string) bool {
	t.Helper()
	var out map[string]any
	return call(t, homeserver, "", "POST", "/_matrix/client/v3/login", map[string]any{
		"type": "m.login.password", "identifier": map[string]string{"type": "m.id.user", "user": name}, "password": password,
	}, &out) == 200
}

func synadmUsers(t *testing.T, s *synadm, homeserver string, bob account) {
	s.run("user", "modify", "frank", "-P", "correct horse battery", "-n", "Frank", "-t", "email", "frank@example.org")
	if !signsIn(t, homeserver, "frank", "correct horse battery") {
		t.Error("frank cannot sign in")
	}
	s.says(words("user details frank"), `"Frank"`, `"frank@example.org"`, `"email"`)
	s.says(words("user 3pid -m email frank@example.org"), `"@frank:localhost"`)
	s.says(words("user list -n fran"), `"@frank:localhost"`, `"total":1`)
	s.says(words("user list -f 1 -l 1 --sort-by creation_ts --reverse -a"), `"total":1`)
	s.says(words("user list -f 1 -l 2 -G --sort-by name"), `"next_token":"3"`, `"@alice:localhost"`)
	s.says(words("user search FRANK"), `"@frank:localhost"`)
	s.run(words("user modify frank --user-type bot --admin -v mxc://localhost/abc --clear-threepids")...)
	s.says(words("user details frank"), `"user_type":"bot"`, `"admin":true`, `"avatar_url":"mxc://localhost/abc"`, `"threepids":[]`)
	s.says(words("user list --exclude-user-type bot"), `"total":3`)
	s.run(words("user modify frank --no-admin --lock")...)
	s.says(words("user details frank"), `"admin":false`, `"locked":true`)
	s.says(words("user list -n frank -L"), `"total":1`)
	s.run(words("user modify frank --unlock")...)
	s.run("user", "password", "-p", "another horse battery", "frank")
	if signsIn(t, homeserver, "frank", "correct horse battery") || !signsIn(t, homeserver, "frank", "another horse battery") {
		t.Error("frank's password was not changed")
	}
	s.run(words("user modify frank --deactivate")...)
	s.says(words("user list -n frank -d"), `"deactivated":true`)
	s.run("user", "modify", "frank", "--activate", "-P", "a third horse battery")
	s.says(words("user suspend frank"), `"user_@frank:localhost_suspended":true`)
	s.says(words("user details frank"), `"suspended":true`, `"deactivated":false`)
	s.says(words("user whois bob"), `"`+bob.DeviceID+`"`, `"ip"`)
	token := s.value("access_token", words("user login bob --expire-days 1")...)
	var who struct {
		UserID string `json:"user_id"`
	}
	if status := call(t, homeserver, token, "GET", "/_matrix/client/v3/account/whoami", nil, &who); status != 200 || who.UserID != bob.UserID {
		t.Errorf("the token for bob: %d, %s", status, who.UserID)
	}
	signsIn(t, homeserver, "bob", bob.Password) // another device
	s.says([]string{"user", "prune-devices", "bob", "-i", bob.DeviceID, "-d", "0", "-s", "0", "-l"}, bob.DeviceID)
	s.run(words("user deactivate-regex fran. --dry-run")...)
	s.run(words("user deactivate frank --gdpr-erase")...)
	s.says(words("user details frank"), `"deactivated":true`, `"erased":true`)
}

// synadmRooms gives a room of alice and bob.
func synadmRooms(t *testing.T, s *synadm, homeserver string, alice, bob account) string {
	create := func(body map[string]any) string {
		t.Helper()
		var room struct {
			ID string `json:"room_id"`
		}
		if status := call(t, homeserver, alice.AccessToken, "POST", "/_matrix/client/v3/createRoom", body, &room); status != 200 {
			t.Fatalf("createRoom answers %d", status)
		}
		return room.ID
	}
	room := create(map[string]any{"preset": "public_chat", "name": "Atlas", "room_alias_name": "atlas"})
	s.says([]string{"room", "join", "#atlas:localhost", bob.UserID}, room)
	s.says(words("room resolve #atlas:localhost"), room)
	s.says([]string{"room", "resolve", "-r", room}, "#atlas:localhost")
	s.says(words("user membership bob"), "#atlas:localhost")
	s.says(words("user membership --ids bob"), room)
	s.says(words("room search tla"), room, `"total_rooms":1`)
	s.says(words("room list -s joined_members -r -l 1"), `"Atlas"`)
	s.says([]string{"room", "details", room}, `"joined_members":2`, `"#atlas:localhost"`)
	s.says([]string{"room", "state", room}, `"m.room.create"`, `"m.room.member"`)
	s.says([]string{"room", "members", room}, bob.UserID, `"total":2`)
	s.run("room", "make-admin", room, "-u", bob.UserID)
	s.says([]string{"room", "power-levels", "-i", room, "-a"}, fmt.Sprintf("%q:100", bob.UserID))
	s.says([]string{"room", "block", "-b", room}, `"block":true`)
	s.says([]string{"room", "block-status", room}, `"block":true`)
	s.says([]string{"room", "block", "-u", room}, `"block":false`)

	gone := create(map[string]any{"name": "Gone"})
	deletion := s.value("delete_id", "room", "delete", gone, "-u", bob.UserID, "-n", "Moved", "-m", "This way", "-b")
	testkit.Eventually(t, "the room is deleted", func() bool {
		return strings.Contains(s.run("room", "delete-status", "-d", deletion), `"complete"`)
	})
	s.says([]string{"room", "delete-status", "-r", gone}, alice.UserID, deletion)
	s.says([]string{"room", "delete", create(map[string]any{"name": "Gone too"}), "--v1"}, `"kicked_users"`, alice.UserID)
	void := create(map[string]any{"name": "Void"})
	var left map[string]any
	call(t, homeserver, alice.AccessToken, "POST", "/_matrix/client/v3/rooms/"+void+"/leave", map[string]any{}, &left)
	s.says(words("room list -e"), void)
	s.says(words("room purge-empty --dry-run"), void)
	s.says(words("room purge-empty"), "delete_id")
	testkit.Eventually(t, "the empty room is deleted", func() bool { return !strings.Contains(s.run("room", "list"), void) })
	return room
}

func synadmContent(t *testing.T, s *synadm, homeserver, room string, bob account) {
	const api = "/_matrix/client/v3/rooms/"
	var first, last struct {
		ID string `json:"event_id"`
	}
	var media []string
	for i := range 4 {
		var file struct {
			URI string `json:"content_uri"`
		}
		if status := call(t, homeserver, bob.AccessToken, "POST", "/_matrix/media/v3/upload?filename=f", strings.Repeat("x", 10+i), &file); status != 200 {
			t.Fatalf("upload: %d", status)
		}
		media = append(media, strings.TrimPrefix(file.URI, "mxc://localhost/"))
		into := &last
		if i == 0 {
			into = &first
		}
		call(t, homeserver, bob.AccessToken, "PUT", fmt.Sprintf("%s%s/send/m.room.message/m%d", api, room, i), map[string]string{"msgtype": "m.file", "body": "f", "url": file.URI}, into)
	}
	s.says([]string{"media", "list", "-r", room}, media[0], media[3])
	s.says(words("media list -u bob --sort media_length -R"), media[0], `"total":4`)
	s.says(words("user media bob --sort media_length -l 1"), `"total":4`)
	s.run("media", "protect", media[0])
	s.says(words("media quarantine -u bob"), `"num_quarantined":3`)
	s.says([]string{"media", "quarantine", "-r", room}, `"num_quarantined"`)
	s.run("media", "unquarantine", "-s", "localhost", "-i", media[1])
	s.run("media", "quarantine", "-U", "mxc://localhost/"+media[1])
	s.says([]string{"media", "delete", "-i", media[2]}, `"total":1`, media[2])
	s.says(words("media delete -d 1 --kib 1"), `"total":0`)
	s.says(words("media purge -d 1"), `"deleted":0`)

	says := func(event string) bool {
		var out struct {
			Content struct {
				Body string `json:"body"`
			} `json:"content"`
		}
		return call(t, homeserver, bob.AccessToken, "GET", api+room+"/event/"+event, nil, &out) == 200 && out.Content.Body == "f"
	}
	redaction := s.value("redact_id", "user", "redact", "bob", "-r", room, "--reason", "spam", "-l", "1")
	testkit.Eventually(t, "the redaction ends", func() bool { return strings.Contains(s.run("user", "redact-status", redaction), `"complete"`) })
	if says(last.ID) || !says(first.ID) {
		t.Error("not the last message was redacted, or not it alone")
	}
	purge := s.value("purge_id", "history", "purge", room, "-i", last.ID, "--delete-local")
	testkit.Eventually(t, "the purge ends", func() bool { return strings.Contains(s.run("history", "purge-status", purge), `"complete"`) })
	if says(first.ID) {
		t.Error("the first message was not purged")
	}
}

func synadmServer(t *testing.T, s *synadm, homeserver string, admin, alice account) {
	s.says(words("regtok new -n tok -u 3"), `"token":"tok"`, `"uses_allowed":3`)
	s.says(words("regtok new -l 20"), `"token"`)
	s.says(words("regtok update tok -u 9"), `"uses_allowed":9`)
	s.says(words("regtok details tok"), `"uses_allowed":9`, `"completed":0`)
	s.says(words("regtok list -v"), `"tok"`)
	s.run(words("regtok delete tok")...)
	if out := s.run(words("regtok list")...); strings.Contains(out, `"tok"`) {
		t.Errorf("the token is still there: %s", out)
	}
	s.says([]string{"notice", "send", "alice", "maintenance tonight"}, `"event_id"`)
	s.says([]string{"notice", "send", "-r", "@al.*:localhost", "maintenance tomorrow"}, `"event_id"`)
	var sync struct {
		Rooms struct {
			Invite map[string]any `json:"invite"`
		} `json:"rooms"`
	}
	testkit.Eventually(t, "alice is invited to the server's notices", func() bool {
		return call(t, homeserver, alice.AccessToken, "GET", "/_matrix/client/v3/sync", nil, &sync) == 200 && len(sync.Rooms.Invite) == 1
	})
	token := s.value("access_token", "matrix", "login", admin.Name, "-p", admin.Password)
	s.says([]string{"matrix", "raw", "-t", token, "client/v3/account/whoami"}, admin.UserID)
	s.says(words("raw v1/scheduled_tasks"), `"scheduled_tasks"`, `"shutdown_and_purge_room"`)
	deadline := time.Now().Add(time.Hour).UnixMilli()
	s.says([]string{"raw", "-m", "post", "-d", fmt.Sprintf(`{"token":"late","expiry_time":%d}`, deadline), "v1/registration_tokens/new"}, fmt.Sprint(deadline))
}
