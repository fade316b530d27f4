package homeserver_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// TestAudit does what the audit log has to tell of, on a whole server, and reads it by what the command line uses.
func TestAudit(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		boss := hs.User("boss")
		log := slog.New(slog.DiscardHandler)
		if _, roles, err := homeserver.SetRole(t.Context(), hs.Config, log, "boss", "admin", true); err != nil || len(roles) != 1 {
			t.Fatal(roles, err)
		}
		second := alice.Login()
		alice.Do(t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":"hunter2-is-wrong"}`, alice.UserID), "/v3/login")
		alice.Do(t, "POST", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"my-password-in-the-wrong-field"},"password":"hunter3"}`, "/v3/login")
		for range 3 {
			if r := alice.Do(t, "PUT", `{"locked":true}`, "/v1/admin/lock/%s", boss.UserID); r.Status != 403 {
				t.Errorf("alice locks: %d", r.Status)
			}
		}
		boss.Must(t, "PUT", `{"locked":true}`, "/v1/admin/lock/%s", alice.UserID)
		boss.Must(t, "PUT", `{"locked":false}`, "/v1/admin/lock/%s", alice.UserID)
		boss.Must(t, "PUT", `{"suspended":true}`, "/v1/admin/suspend/%s", alice.UserID)
		boss.Must(t, "PUT", `{"suspended":false}`, "/v1/admin/suspend/%s", alice.UserID)
		second.Must(t, "POST", `{}`, "/v3/logout")
		alice.Must(t, "POST", fmt.Sprintf(`{"new_password":"a quite new password","logout_devices":true,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":%q}}`,
			alice.UserID, alice.Password), "/v3/account/password")
		alice.Must(t, "POST", `{"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"public_key":"abc","signatures":{}}}`, "/v3/room_keys/version")
		alice.Must(t, "DELETE", ``, "/v3/room_keys/version/1")
		alice.Must(t, "POST", fmt.Sprintf(`{"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":"a quite new password"}}`, alice.UserID), "/v3/account/deactivate")

		var all []audit.Stored
		err := homeserver.WithAudit(t.Context(), hs.Config, log, "test", func(ctx context.Context, l *audit.Log) error {
			if err := l.Chain(ctx); err != nil {
				return err
			}
			r, err := l.Verify(ctx)
			if err != nil || len(r.Problems) != 0 {
				t.Errorf("verify: %+v, %v", r, err)
			}
			p, err := l.Query(ctx, audit.Filter{Limit: 1000})
			all = p.Entries
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		count := map[string]int{}
		for _, e := range all {
			b, err := e.MarshalJSON()
			if err != nil {
				t.Fatal(err)
			}
			text.Write(b)
			text.WriteByte('\n')
			count[fmt.Sprintf("%s %s %s %s", e.Action, e.Actor.Localpart(), e.Target, e.Result)]++
			if e.Kind != audit.KindCLI && e.Kind != audit.KindSystem && e.IP != "127.0.0.1" {
				t.Errorf("no address: %s", b)
			}
		}
		for _, want := range []string{
			"user.created alice @alice:" + hstest.ServerName + " ok",
			"signin.registration alice @alice:" + hstest.ServerName + " ok",
			"signin.password alice @alice:" + hstest.ServerName + " ok",
			"user.role  @boss:" + hstest.ServerName + " ok",
			"signin.refused  @alice:" + hstest.ServerName + " refused",
			"signin.refused   refused",
			"permission.refused alice  refused",
			"user.locked boss @alice:" + hstest.ServerName + " ok", "user.unlocked boss @alice:" + hstest.ServerName + " ok",
			"user.suspended boss @alice:" + hstest.ServerName + " ok", "user.unsuspended boss @alice:" + hstest.ServerName + " ok",
			"session.ended alice @alice:" + hstest.ServerName + " ok",
			"user.password alice @alice:" + hstest.ServerName + " ok",
			"keys.backup.created alice @alice:" + hstest.ServerName + " ok", "keys.backup.deleted alice @alice:" + hstest.ServerName + " ok",
			"user.deactivated alice @alice:" + hstest.ServerName + " ok",
			"audit.read   ok",
		} {
			if count[want] == 0 {
				t.Errorf("there is no %q", want)
			}
		}
		if n := count["permission.refused alice  refused"]; n != 1 {
			t.Errorf("refused permissions are told %d times", n)
		}
		for _, secret := range []string{"hunter", "wrong-field", "quite new", alice.Password, alice.Token, second.Token, boss.Token, "argon2id"} {
			if strings.Contains(text.String(), secret) {
				t.Errorf("the log holds %q", secret)
			}
		}
		if t.Failed() {
			t.Log(text.String())
		}
	})
}
