//go:build goolm

package clients_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// TestMaubot runs maubot as its handbook says: mbc makes the bot's account by shared secret, signs it in again, uploads a plugin; the
// bot joins where it is invited to, and answers.
func TestMaubot(t *testing.T) {
	bin := testkit.Partner(t, "MOOTHALL_TEST_ADMIN_TOOLS")
	eachServer(t, func(t *testing.T, homeserver string) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		dir := t.TempDir()
		bots := startMaubot(ctx, t, bin, dir, homeserver)
		mbc := func(folder string, args ...string) {
			t.Helper()
			cmd := exec.CommandContext(ctx, filepath.Join(bin, "mbc"), args...)
			cmd.Dir, cmd.Env = folder, append(os.Environ(), "HOME="+dir)
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "uccessfully") {
				t.Fatalf("mbc %q: %v: %s", args, err, out)
			}
		}
		mbc(dir, "login", "-s", bots, "-u", "tester", "-p", "tester of bots", "-a", "test")
		mbc(dir, "auth", "-h", "localhost", "-u", "echobot", "-p", "correct horse battery", "--register", "--update-client")
		mbc(dir, "auth", "-h", "localhost", "-u", "echobot", "-p", "correct horse battery", "--update-client")
		mbc(writeEcho(t), "build", "--upload")

		const bot, api = "@echobot:localhost", "/_matrix/maubot/v1/"
		var session struct {
			Token string `json:"token"`
		}
		if status := call(t, bots, "", "POST", api+"auth/login", map[string]string{"username": "tester", "password": "tester of bots"}, &session); status != 200 {
			t.Fatalf("sign in to maubot: %d", status)
		}
		put := func(path string, body any) {
			t.Helper()
			var out any
			if status := call(t, bots, session.Token, "PUT", api+path, body, &out); status/100 != 2 {
				t.Fatalf("%s: %d %v", path, status, out)
			}
		}
		put("client/"+bot, map[string]bool{"autojoin": true, "enabled": true, "started": true, "sync": true})
		put("instance/echo", map[string]any{"id": "echo", "type": "test.echo", "primary_user": bot, "enabled": true, "started": true})

		alice := newMautrix(t, homeserver, "alice")
		room, err := alice.client.CreateRoom(ctx, &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bot}})
		if err != nil {
			t.Fatal(err)
		}
		alice.sees(ctx, t, "the bot comes", func(e *event.Event) bool {
			return e.Type == event.StateMember && e.GetStateKey() == bot && e.Content.AsMember().Membership == event.MembershipJoin
		})
		if _, err := alice.client.SendText(ctx, room.RoomID, "!echo is anybody there?"); err != nil {
			t.Fatal(err)
		}
		alice.sees(ctx, t, "the bot answers", func(e *event.Event) bool {
			return e.Sender == bot && e.Type == event.EventMessage && e.Content.AsMessage().Body == "is anybody there?"
		})
	})
}

// startMaubot starts maubot and returns its address.
func startMaubot(ctx context.Context, t *testing.T, bin, dir, homeserver string) string {
	t.Helper()
	port := process.FreePort(t)
	for _, folder := range []string{"plugins", "trash", ".config"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	address, config := fmt.Sprintf("http://127.0.0.1:%d", port), filepath.Join(dir, "config.yaml")
	text := fmt.Sprintf(`database: "sqlite:%[1]s/maubot.db"
crypto_database: default
plugin_directories: {upload: "%[1]s/plugins", load: ["%[1]s/plugins"], trash: "%[1]s/trash"}
plugin_databases: {sqlite: "%[1]s/plugins", postgres: null}
server: {hostname: 127.0.0.1, port: %[2]d, public_url: "%[3]s", ui_base_path: /_matrix/maubot, plugin_base_path: /_matrix/maubot/plugin/, unshared_secret: generate}
homeservers: {localhost: {url: "%[4]s", secret: "%[5]s"}}
admins: {root: "", tester: "tester of bots"}
api_features: {login: true, plugin: true, plugin_upload: true, instance: true, instance_database: true, client: true, client_proxy: true, client_auth: true, dev_open: true, log: true}
logging: {version: 1, handlers: {console: {class: logging.StreamHandler}}, root: {level: INFO, handlers: [console]}}
`, dir, port, address, homeserver, sharedSecret)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	log := process.Launch(t, filepath.Join(bin, "python"), "-m", "maubot", "-c", config)
	for !strings.Contains(log.String(), "now running forever") {
		if ctx.Err() != nil {
			t.Fatal("maubot does not start")
		}
		time.Sleep(100 * time.Millisecond)
	}
	return address
}

// writeEcho writes a plugin that repeats what is said to it.
func writeEcho(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"maubot.yaml": "maubot: 0.1.0\nid: test.echo\nversion: 1.0.0\nlicense: Apache-2.0\nmodules: [echo]\nmain_class: Echo\n",
		"echo.py": `from maubot import MessageEvent, Plugin
from maubot.handlers import command


class Echo(Plugin):
    @command.new("echo")
    @command.argument("text", pass_raw=True)
    async def echo(self, evt: MessageEvent, text: str) -> None:
        await evt.reply(text)
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
