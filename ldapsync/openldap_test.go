package ldapsync_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// limit is how soon a change in the directory has to be seen where it is pushed.
const limit = 5 * time.Second

// TestSignIn signs people in by the directory's password, by all names that they have.
func TestSignIn(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		c.user("alice", "mail", "alice.a@corp.example", "displayName", "Alice A.", "title", "Engineer", "telephoneNumber", "+86 10 1234", "employeeNumber", "4711")
		c.user("Bob.Big")
		c.user("eve*")
		s := start()
		s.ready()
		for _, name := range []string{"alice", "ALICE", "@alice:test", "alice.a@corp.example", `CORP\alice`} {
			if got := s.login(name, "pw-alice").UserID; got != "@alice:test" {
				t.Errorf("%s is %s", name, got)
			}
		}
		if got := s.login("Bob.Big", "pw-Bob.Big").UserID; got != "@bob.big:test" {
			t.Errorf("Bob.Big is %s", got)
		}
		for _, tc := range []struct{ name, password string }{
			{"alice", "wrong"}, {"alice", ""}, {"@alice:test", ""}, {"nobody", "x"}, {"nobody", ""}, {"*", "pw-alice"}, {"al*", "pw-alice"},
			{"alice)(uid=*", "pw-alice"}, {"alice", "pw-alice\x00"}, {"@alice:elsewhere", "pw-alice"}, {"eve*", "pw-alice"},
		} {
			if r := s.try(tc.name, tc.password); r.Status != 403 || r.Errcode != "M_FORBIDDEN" {
				t.Errorf("%q with %q: %d %s", tc.name, tc.password, r.Status, r.Body)
			}
		}
		if got := s.login("eve*", "pw-eve*").UserID; got != "@eve=2a:test" {
			t.Errorf("eve* is %s", got)
		}
		p := s.profile("alice")
		for field, want := range map[string]string{
			"displayname": "Alice A.", "org.moothall.title": "Engineer", "org.moothall.phone": "+86 10 1234", "org.moothall.employee_number": "4711",
			"org.moothall.email": "alice.a@corp.example",
		} {
			if p[field] != want {
				t.Errorf("profile field %s: %v, want %s", field, p[field], want)
			}
		}
		alice := s.login("alice", "pw-alice")
		if got := fmt.Sprint(alice.Must(t, "GET", "", "/v3/account/3pid")["threepids"]); !strings.Contains(got, "alice.a@corp.example") {
			t.Errorf("the mail address is not the account's: %s", got)
		}
		// Who proves to be there by the directory's password may delete a device; nobody changes that password here.
		auth := func(password string) string {
			return fmt.Sprintf(`{"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":%q}}`, password)
		}
		if r := alice.Do(t, "DELETE", auth("wrong"), "/v3/devices/%s", alice.DeviceID); r.Status != 401 {
			t.Errorf("deleting a device with a wrong password: %d %s", r.Status, r.Body)
		}
		r := alice.Do(t, "POST", `{"new_password":"another password"}`, "/v3/account/password")
		if r.Status != 403 || !strings.Contains(string(r.Body), "directory") {
			t.Errorf("changing the password: %d %s", r.Status, r.Body)
		}
		alice.Must(t, "DELETE", auth("pw-alice"), "/v3/devices/%s", alice.DeviceID)
	})
}

// TestSignInFirst makes the account at the first sign-in where no synchronisation has.
func TestSignInFirst(t *testing.T) {
	c := newCorp(t)
	c.user("carol", "displayName", "Carol C.")
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Mode = "off" })))
	if s.profile("carol") != nil {
		t.Fatal("the account is there already")
	}
	s.login("carol", "pw-carol")
	if got := s.profile("carol")["displayname"]; got != "Carol C." {
		t.Errorf("display name %v", got)
	}
	c.move(c.dn("carol"), "uid=caro", "")
	if got := s.login("caro", "pw-carol").UserID; got != "@carol:test" {
		t.Errorf("the renamed entry is %s", got)
	}
	s.login("@carol:test", "pw-carol")
	s.login("carol", "pw-carol")
	// Whoever gets the old name is somebody else.
	c.user("carol")
	if r := s.try("carol", "pw-carol"); r.Status != 403 || strings.Contains(string(r.Body), "access_token") {
		t.Errorf("the new carol: %d %s", r.Status, r.Body)
	}
	c.user("pw")
	c.set(c.dn("pw"), "userPassword")
	if r := s.try("pw", "pw-pw"); r.Status != 403 {
		t.Errorf("an entry without a password: %d %s", r.Status, r.Body)
	}
}

// TestFollow has people join, move and leave while changes are pushed.
func TestFollow(t *testing.T) {
	each(t, func(t *testing.T, c *corp, start func(...func(*homeserver.Directory)) *server) {
		ou := "ou=people," + c.base
		c.unit("ou=east,"+ou, "east")
		alice, bob := c.user("alice"), c.user("bob")
		staff := c.group("staff", alice, bob)
		c.group("all", staff)
		s := start(func(d *homeserver.Directory) { d.Units.Base = ou })
		s.ready()
		s.following()
		a, b := s.login("alice", "pw-alice"), s.login("bob", "pw-bob")
		s.wait("bob's rooms", limit, func() bool { return slices.Equal(s.rooms(b), []string{"all", "staff"}) })

		t.Run("joiner", func(t *testing.T) {
			dan := c.user("dan", "displayName", "Dan")
			s.wait("dan's account", limit, func() bool { return s.profile("dan") != nil })
			c.join(staff, dan)
			d := s.login("dan", "pw-dan")
			s.wait("dan in rooms, by a nested group too", limit, func() bool { return slices.Equal(s.rooms(d), []string{"all", "staff"}) })
		})
		t.Run("mover", func(t *testing.T) {
			c.set(bob, "title", "Boss")
			c.move(bob, "uid=bob", "ou=east,"+ou)
			s.wait("bob's title", limit, func() bool { return s.profile("bob")["org.moothall.title"] == "Boss" })
			time.Sleep(300 * time.Millisecond)
			if got := s.rooms(b); !slices.Equal(got, []string{"all", "staff"}) {
				t.Errorf("bob's rooms after the move: %v", got)
			}
		})
		t.Run("rename", func(t *testing.T) {
			c.move(alice, "uid=alicia", "")
			alice = c.dn("alicia")
			c.set(alice, "displayName", "Alicia")
			s.wait("the new name", limit, func() bool { return s.profile("alice")["displayname"] == "Alicia" })
			if got := s.login("alicia", "pw-alice").UserID; got != "@alice:test" {
				t.Errorf("alicia is %s", got)
			}
		})
		t.Run("leaves a group", func(t *testing.T) {
			c.part(staff, alice)
			s.wait("alice to leave the rooms", limit, func() bool { return len(s.rooms(a)) == 0 })
			c.join(staff, alice)
			s.wait("alice to be back", limit, func() bool { return len(s.rooms(a)) == 2 })
		})
		t.Run("leaver", func(t *testing.T) {
			d := s.login("dan", "pw-dan")
			d.Must(t, "POST", `{"kind":"http","app_id":"app","pushkey":"key","app_display_name":"A","device_display_name":"D","lang":"en","data":{"url":"https://push.example.org/_matrix/push/v1/notify"}}`, "/v3/pushers/set")
			c.remove(c.dn("dan"))
			took := s.wait("dan to be out", limit, func() bool { return d.Do(t, "GET", "", "/v3/sync").Status == 401 })
			t.Logf("signed out %v after the entry was gone", took)
			r := d.Do(t, "GET", "", "/v3/sync")
			if r.Errcode != "M_UNKNOWN_TOKEN" || !strings.Contains(string(r.Body), `"soft_logout":true`) {
				t.Errorf("/sync of who is gone: %d %s", r.Status, r.Body)
			}
			if r := s.try("dan", "pw-dan"); r.Status != 403 && r.Status != 401 {
				t.Errorf("sign-in of who is gone: %d %s", r.Status, r.Body)
			}
			if r := s.admin.Do(t, "GET", "", "/_synapse/admin/v2/users/@dan:test/devices"); !strings.Contains(string(r.Body), string(d.DeviceID)) {
				t.Errorf("the device is gone: %d %s", r.Status, r.Body)
			}
			if got := fmt.Sprint(s.api("GET", "history/@dan:test", "")["changes"]); !strings.Contains(got, "person.created") || !strings.Contains(got, "person.disabled") {
				t.Errorf("the history of dan: %s", got)
			}
		})
		t.Run("disabled and back", func(t *testing.T) {
			c.set(bob2(c), "pwdAccountLockedTime", "000001010000Z")
			s.wait("bob to be out", limit, func() bool { return b.Do(t, "GET", "", "/v3/sync").Status == 401 })
			if r := s.try("bob", "pw-bob"); r.Status != 401 || r.Errcode != "M_USER_LOCKED" {
				t.Errorf("sign-in of who is disabled: %d %s", r.Status, r.Body)
			}
			c.set(bob2(c), "pwdAccountLockedTime")
			var again *hstest.Client
			s.wait("bob to be back", limit, func() bool {
				if s.try("bob", "pw-bob").Status != 200 {
					return false
				}
				again = s.login("bob", "pw-bob")
				return true
			})
			if got := s.rooms(again); again.UserID != "@bob:test" || !slices.Equal(got, []string{"all", "staff"}) {
				t.Errorf("%s is back in %v", again.UserID, got)
			}
		})
		t.Run("an administrator's lock", func(t *testing.T) {
			a := s.login("alicia", "pw-alice")
			r := s.admin.Do(t, "PUT", `{"locked":true}`, "/v1/admin/lock/@alice:test")
			if r.Status != 200 {
				t.Fatalf("lock: %d %s", r.Status, r.Body)
			}
			if r := a.Do(t, "GET", "", "/v3/sync"); r.Errcode != "M_USER_LOCKED" {
				t.Errorf("/sync of a locked user: %d %s", r.Status, r.Body)
			}
			s.admin.Must(t, "PUT", `{"locked":false}`, "/v1/admin/lock/@alice:test")
			a.Must(t, "GET", "", "/v3/sync")
		})
	})
}

func bob2(c *corp) string { return "uid=bob,ou=east,ou=people," + c.base }
