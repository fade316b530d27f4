package ldapsync_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/ldapsync"
)

// TestActiveDirectoryStates has a domain controller refuse right passwords for each reason that it has, and tells them apart.
func TestActiveDirectoryStates(t *testing.T) {
	d := newDomain(t)
	ticks := func(at time.Time) string { return strconv.FormatInt((at.Unix()+11644473600)*1e7, 10) }
	d.user("fine")
	old := d.user("old")
	d.age(old)
	locks := "CN=locks" + d.suffix + ",CN=Password Settings Container,CN=System," + d.root
	locked := d.user("locked")
	d.add(locks, map[string][]string{
		"objectClass": {"msDS-PasswordSettings"}, "msDS-PasswordSettingsPrecedence": {"2"}, "msDS-PasswordReversibleEncryptionEnabled": {"FALSE"},
		"msDS-PasswordHistoryLength": {"0"}, "msDS-PasswordComplexityEnabled": {"FALSE"}, "msDS-MinimumPasswordLength": {"0"},
		"msDS-MinimumPasswordAge": {"0"}, "msDS-MaximumPasswordAge": {"-864000000000000"}, "msDS-LockoutThreshold": {"2"},
		"msDS-LockoutObservationWindow": {"-18000000000"}, "msDS-LockoutDuration": {"-18000000000"}, "msDS-PSOAppliesTo": {locked},
	})
	t.Cleanup(func() { _ = d.conn.Del(ldap.NewDelRequest(locks, nil)) })
	must := d.user("must")
	d.set(must, "pwdLastSet", "0")
	left := d.user("left")
	d.set(left, "accountExpires", ticks(time.Now().Add(-time.Hour)))
	stays := d.user("stays")
	d.set(stays, "accountExpires", ticks(time.Now().Add(time.Hour)))
	s := serve(t, hstest.Config(t, d.option()))
	s.ready()
	for range 3 {
		s.try(d.name("locked"), "wrong")
	}
	for _, tc := range []struct{ name, errcode, text string }{
		{"fine", "", ""}, {"stays", "", ""},
		{"old", "M_FORBIDDEN", "password_expired"}, {"must", "M_FORBIDDEN", "password_must_change"},
		{"locked", "M_FORBIDDEN", "locked_out"}, {"left", "M_USER_LOCKED", "disabled"},
	} {
		if r := s.try(d.name(tc.name), "Pw-"+tc.name+"-1234"); r.Errcode != tc.errcode || !strings.Contains(string(r.Body), tc.text) {
			t.Errorf("%s: %d %s, want %s %s", tc.name, r.Status, r.Body, tc.errcode, tc.text)
		}
		// A wrong password gives none of it away.
		if r := s.try(d.name(tc.name), "wrong"); tc.name != "locked" && (r.Errcode != "M_FORBIDDEN" || !strings.Contains(string(r.Body), "is wrong")) {
			t.Errorf("%s with a wrong password: %d %s", tc.name, r.Status, r.Body)
		}
	}
	if s.profile(d.name("left")) != nil {
		t.Error("who had expired before the first comparison has an account")
	}
	// An account that expires while its person is signed in: out at the next comparison.
	c := s.login(d.name("stays"), "Pw-stays-1234")
	d.set(stays, "accountExpires", ticks(time.Now().Add(-time.Minute)))
	s.wait("the expired account to be out", limit, func() bool { return c.Do(t, "GET", "", "/v3/sync").Errcode == "M_UNKNOWN_TOKEN" })
	d.set(stays, "accountExpires", "0")
	s.wait("it to be back", limit, func() bool { return s.try(d.name("stays"), "Pw-stays-1234").Status == 200 })
}

// age makes a password an old one.
func (d *domain) age(dn string) {
	d.t.Helper()
	cmd := exec.Command(filepath.Join("..", "scripts", "partners", "samba-ad"), "age", filepath.Dir(d.env["ca"]), dn)
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("samba-ad age: %v: %s", err, out)
	}
}

// TestRangeRetrieval reads a group of 260 in ranges of 20, as a domain controller gives out one of 100,000 in 67 ranges of 1,500:
// whole at first, and whole again when one member more or less makes it be read anew.
func TestRangeRetrieval(t *testing.T) {
	d := newDomain(t)
	alice, bob := d.user("alice"), d.user("bob")
	const n = 260
	members := []string{alice}
	began := time.Now()
	for i := range n - 1 {
		dn := fmt.Sprintf("CN=c%d,OU=Elsewhere,%s", i, d.base)
		d.add(dn, map[string][]string{"objectClass": {"contact"}})
		members = append(members, dn)
	}
	crowd := d.group("crowd", members...)
	t.Logf("%d members were made in %v", n, time.Since(began).Round(time.Millisecond))
	s := serve(t, hstest.Config(t, d.option(func(c *homeserver.Directory) {
		c.Sync.Mode, c.Groups.Member = "usn", "member;range=0-19"
	})))
	s.ready()
	a, k := s.login(d.name("alice"), "Pw-alice-1234"), s.login(d.name("bob"), "Pw-bob-1234")
	s.wait("alice's room", limit, func() bool { return slices.Equal(s.rooms(a), []string{"crowd"}) })
	d.join(crowd, bob)
	s.wait("bob's room", limit, func() bool { return slices.Equal(s.rooms(k), []string{"crowd"}) })
	d.part(crowd, alice)
	s.wait("alice to leave", limit, func() bool { return len(s.rooms(a)) == 0 })
	if got := s.rooms(k); !slices.Equal(got, []string{"crowd"}) {
		t.Errorf("bob's rooms: %v", got)
	}
}

// TestInvocation has another database of the domain answer, as after a fail-over or a restored domain controller: its numbers of
// changes mean nothing to what was seen before, so that everything is compared, and nobody is missed.
func TestInvocation(t *testing.T) {
	d := newDomain(t)
	d.user("alice")
	s := serve(t, hstest.Config(t, d.option(func(c *homeserver.Directory) { c.Sync.Mode = "usn" })))
	s.ready()
	s.Stop()
	db := storetest.Open(t, store.Config{DataDir: s.Config.DataDir})
	err := db.Write(t.Context(), func(tx *store.Tx) error {
		raw, _, err := tx.LDAPState("corp")
		if err != nil {
			return err
		}
		var state map[string]any
		if err := json.Unmarshal(raw, &state); err != nil {
			return err
		}
		if state["server"] == nil || state["usn"] == nil {
			t.Errorf("the state names no server: %s", raw)
		}
		// what another controller had: far beyond the numbers of this one
		state["server"], state["usn"] = "00000000-0000-4000-8000-000000000000", 1<<50
		raw, err = json.Marshal(state)
		return errors.Join(err, tx.PutLDAPState("corp", raw))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	d.user("late")
	s = serve(t, s.Config)
	s.wait("the new account", limit, func() bool { return s.profile(d.name("late")) != nil })
	s.wait("the run", limit, func() bool {
		return slices.ContainsFunc(s.status()["runs"].([]any), func(run any) bool {
			return strings.HasPrefix(run.(map[string]any)["why"].(string), "another domain controller")
		})
	})
	d.user("later") // and from there on by the numbers of this one
	s.wait("the next account", limit, func() bool { return s.profile(d.name("later")) != nil })
}

// TestReconcile compares everything when it is time to, also where all changes are pushed.
func TestReconcile(t *testing.T) {
	c := newCorp(t)
	c.user("alice")
	s := serve(t, hstest.Config(t, c.option(func(d *homeserver.Directory) { d.Sync.Reconcile = homeserver.Duration(time.Second) })))
	s.following()
	first := s.status()["full_at"].(float64)
	s.wait("another comparison", limit, func() bool { return s.status()["full_at"].(float64) >= first+1000 })
}

// TestActiveDirectoryUnits gives a domain's units a tree of spaces, and an entry that is moved to where nobody may read it away.
func TestActiveDirectoryUnits(t *testing.T) {
	d := newDomain(t)
	alice := d.user("alice")
	s := serve(t, hstest.Config(t, d.option(), func(c *homeserver.Config) {
		c.Groups.Rules = []homeserver.GroupRule{{ID: "units", Source: "corp", Kind: "unit", NameRegexp: ".*", Make: "space", Join: "force", Parent: "unit"}}
	}))
	s.ready()
	a := s.login(d.name("alice"), "Pw-alice-1234")
	s.wait("the space", limit, func() bool { return slices.Equal(s.rooms(a), []string{"People"}) })
	d.move(alice, "CN=alice", "OU=East,OU=People,"+d.base)
	s.wait("the spaces", limit, func() bool { return slices.Equal(s.rooms(a), []string{"East", "People"}) })
	if tree := s.tree(a, s.named(a)["People"]); tree != "People(East)" {
		t.Errorf("the tree of spaces is %s", tree)
	}
	d.move("OU=East,OU=People,"+d.base, "OU=Orient", "")
	s.wait("the new name", limit, func() bool { return slices.Equal(s.rooms(a), []string{"Orient", "People"}) })
}

// TestClockSkew has our clock be wrong by ten minutes: the test and the run say so, and name the server.
func TestClockSkew(t *testing.T) {
	d := newDomain(t)
	d.user("alice")
	hs := serve(t, hstest.Config(t, d.option(func(c *homeserver.Directory) { c.Sync.Mode = "off" })))
	for ahead, want := range map[time.Duration]string{0: "", 10 * time.Minute: "differs from ours by -10m", -10 * time.Minute: "differs from ours by 10m"} {
		err := homeserver.WithDirectory(t.Context(), hs.Config, slog.New(slog.DiscardHandler), func(ctx context.Context, s *ldapsync.Sync) error {
			s.Clock = func() time.Time { return time.Now().Add(ahead) }
			report, err := s.Test(ctx, "corp", d.name("alice"))
			if err != nil {
				return err
			}
			text := fmt.Sprint(report.Steps)
			if report.OK != (want == "") || !strings.Contains(text, want) || want != "" && !strings.Contains(text, d.env["ldaps"]) {
				t.Errorf("our clock %v ahead: %s", ahead, text)
			}
			plan, err := s.Plan(ctx, "corp")
			if err != nil {
				return err
			}
			if got := fmt.Sprint(plan.Warnings); strings.Contains(got, "the clock of") != (want != "") || len(plan.Changes) != 1 {
				t.Errorf("the plan with our clock %v ahead: %s, %v", ahead, got, plan.Changes)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
