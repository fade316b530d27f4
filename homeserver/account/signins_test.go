package account_test

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

func TestSessionList(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, rules(func(c *account.Config) { c.Sessions.AbsoluteLimit = 240 * time.Hour }))
		ctx := audit.WithSource(t.Context(), audit.Source{Kind: audit.KindAnonymous, IP: "192.0.2.5", Agent: "Element/1\x00"})
		alice := n.user(t, "alice")
		name := "Laptop"
		_, _, err := n.SignIn(ctx, alice, account.SignIn{Device: "A", DeviceDisplayName: &name, Way: "sso:keycloak", AMR: []string{"pwd", "otp"}, OAuthClient: "client1"})
		wants(t, "sign in", err, "")
		n.advance(time.Minute)
		_, tokens, err := n.SignIn(ctx, alice, account.SignIn{Device: "B", Way: account.WayPassword, IP: "198.51.100.1", Agent: "Other/2", Refreshable: true})
		wants(t, "sign in", err, "")
		n.advance(time.Minute)
		_, err = n.Refresh(ctx, tokens.RefreshToken) // is no sign-in
		wants(t, "refresh", err, "")
		list, err := n.Sessions(ctx, alice)
		if err != nil || len(list) != 2 {
			t.Fatalf("%+v, %v", list, err)
		}
		b, a := list[0], list[1]
		if a.Device != "A" || a.DisplayName != "Laptop" || a.Way != "sso:keycloak" || !slices.Equal(a.AMR, []string{"pwd", "otp"}) || a.IP != "192.0.2.5" ||
			a.Agent != "Element/1" || a.OAuthClient != "client1" || a.SignedIn.UnixMilli() != n.clock.Load()-120_000 || !a.Until.Equal(a.SignedIn.Add(240*time.Hour)) {
			t.Errorf("the first is %+v", a)
		}
		if b.Device != "B" || b.Way != "password" || b.IP != "198.51.100.1" || b.SignedIn.UnixMilli() != n.clock.Load()-60_000 || b.Ended {
			t.Errorf("the second is %+v", b)
		}
		wants(t, "end", n.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{"A"}, Soft: true, Reason: "by_administrator"}), "")
		if list, _ = n.Sessions(ctx, alice); len(list) != 2 || !list[1].Ended {
			t.Errorf("after the end: %+v", list)
		}
		wants(t, "end all", n.EndSessions(ctx, alice, account.Ending{}), "")
		if list, _ = n.Sessions(ctx, alice); len(list) != 0 {
			t.Errorf("after the end of all: %+v", list)
		}
		if got := n.entries(t, "signin"); len(got) != 2 || got[1].Action != "signin.sso" || got[1].Device != "A" || got[1].Actor != alice || got[1].IP != "192.0.2.5" {
			t.Errorf("audited: %+v", got)
		}
		if got := n.entries(t, "session.ended"); len(got) != 2 || got[1].Reason != "by_administrator" || got[0].Reason != "signed_out" {
			t.Errorf("audited: %+v", got)
		}
	})
}

func TestSessionLimits(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, rules(func(c *account.Config) {
			c.Sessions.IdleLimit, c.Sessions.AbsoluteLimit = time.Hour, 10*time.Hour
		}))
		ctx := t.Context()
		alice := n.user(t, "alice")
		use := func(what, token, code string) {
			t.Helper()
			n.token(t, what, token, code, true)
		}
		used := n.signIn(t, alice, "USED", false).AccessToken
		idle := n.signIn(t, alice, "IDLE", false).AccessToken
		refreshed := n.signIn(t, alice, "FRESH", true)
		seen := func() { // as requests of USED and FRESH are noted
			err := n.store.Write(ctx, func(tx *store.Tx) error {
				return tx.SawDevices([]store.Device{{User: alice, ID: "USED", LastSeen: n.clock.Load()}, {User: alice, ID: "FRESH", LastSeen: n.clock.Load()}})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		use("at first", used, "")
		use("at first", idle, "")
		n.advance(50 * time.Minute)
		seen()
		n.advance(20 * time.Minute)
		use("used", used, "")
		use("not used for an hour", idle, "M_UNKNOWN_TOKEN")
		use("and again", idle, "M_UNKNOWN_TOKEN")
		tokens := refreshed
		for range 11 {
			var err error
			if tokens, err = n.Refresh(ctx, tokens.RefreshToken); err != nil {
				t.Fatal(err)
			}
			n.advance(50 * time.Minute)
			seen()
		}
		use("used all the time", used, "M_UNKNOWN_TOKEN")
		_, err := n.Refresh(ctx, tokens.RefreshToken)
		wants(t, "refreshed all the time", err, "M_UNKNOWN_TOKEN")
		if e := mxerr.As(err); e != nil && e.Extra["soft_logout"] != true {
			t.Error("the device is lost")
		}
		if _, err := n.Device(ctx, alice, "IDLE"); err != nil {
			t.Errorf("the device is gone: %v", err)
		}
		reasons := map[string]int{}
		for _, e := range n.entries(t, "session.ended") {
			reasons[e.Reason]++
		}
		if reasons["idle"] != 1 || reasons["absolute_limit"] != 2 {
			t.Errorf("audited: %v", reasons)
		}
		_, tokens, err = n.SignIn(ctx, alice, account.SignIn{Device: "IDLE"})
		wants(t, "sign in again", err, "")
		use("the same device", tokens.AccessToken, "")
	})
}

func TestNewDeviceMail(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		kicked := 0
		n := start(t, cfg, func(d *account.Deps) {
			d.Config.Email = account.EmailConfig{Enabled: true, Language: "zh"}
			d.MailQueued = func() { kicked++ }
		})
		ctx := t.Context()
		alice := n.user(t, "alice")
		err := n.store.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.InsertThreepid(store.Threepid{Medium: store.MediumEmail, Address: "alice@example.org", User: alice})
			return err
		})
		wants(t, "address", err, "")
		mails := func() (out []store.Mail) {
			t.Helper()
			err := n.store.Write(ctx, func(tx *store.Tx) error {
				var err error
				out, err = tx.ClaimMails(n.clock.Load(), n.clock.Load()+1, 10)
				return err
			})
			wants(t, "mails", err, "")
			return out
		}
		n.signIn(t, alice, "FIRST", false)
		if got := mails(); len(got) != 0 {
			t.Errorf("the first device is told of: %+v", got)
		}
		name := "Phone"
		_, _, err = n.SignIn(from(ctx, "192.0.2.9"), alice, account.SignIn{Device: "SECOND", DeviceDisplayName: &name, Way: account.WayPassword})
		wants(t, "second", err, "")
		got := mails()
		var data account.MailData
		if len(got) != 1 || got[0].To != "alice@example.org" || got[0].Kind != account.MailNewDevice || got[0].Lang != "zh" || json.Unmarshal(got[0].Data, &data) != nil {
			t.Fatalf("mails: %+v", got)
		}
		if facts := strings.Join(data.Facts, " "); !strings.Contains(facts, "SECOND Phone 192.0.2.9") || data.User != alice || kicked != 1 {
			t.Errorf("it says %s", facts)
		}
		n.advance(time.Hour)
		n.signIn(t, alice, "SECOND", false)
		if got := mails(); len(got) != 1 { // the one from before, which nobody sent
			t.Errorf("the same device again: %+v", got)
		}
	})
}

// TestNoEntryNoAct takes the audit log's table away: nothing that it would record may happen.
func TestNoEntryNoAct(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		token := n.signIn(t, alice, "A", false).AccessToken
		rename := func(sql string) {
			t.Helper()
			if err := n.store.Write(ctx, func(tx *store.Tx) error { _, err := tx.Exec(sql); return err }); err != nil {
				t.Fatal(err)
			}
		}
		rename(`ALTER TABLE audit_log RENAME TO away`)
		for what, err := range map[string]error{
			"sign in":     errOf(n.SignIn(ctx, alice, account.SignIn{Device: "B"})),
			"sign out":    n.EndSessions(ctx, alice, account.Ending{}),
			"password":    n.SetPassword(ctx, alice, "another one", nil),
			"create":      second(n.CreateUser(ctx, account.NewUser{Localpart: "bob", Password: password})),
			"lock":        n.Lock(ctx, alice, true),
			"suspend":     n.Suspend(ctx, alice, true),
			"admin":       n.SetAdmin(ctx, alice, true),
			"role":        n.SetRole(ctx, alice, account.RoleAuditor, true),
			"deactivate":  n.Deactivate(ctx, alice, false),
			"login token": errOf(n.LoginToken(ctx, alice)),
			"wrong":       second(n.CheckPassword(ctx, "alice", "wrong password")),
			"no role":     n.RequireRole(ctx, alice, "see the archive", account.RoleCompliance),
		} {
			if err == nil || mxerr.As(err) != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		rename(`ALTER TABLE away RENAME TO audit_log`)
		n.token(t, "the session", token, "", false)
		u, err := n.User(ctx, alice)
		if err != nil || u.Locked || u.Suspended || u.Admin || u.Deactivated {
			t.Errorf("the account is %+v, %v", u, err)
		}
		if ok, err := n.Exists(ctx, "@bob:example.org"); ok || err != nil {
			t.Errorf("bob: %v %v", ok, err)
		}
		if list, err := n.Sessions(ctx, alice); err != nil || len(list) != 1 {
			t.Errorf("sessions: %+v %v", list, err)
		}
		if roles, err := n.Roles(ctx, alice); err != nil || len(roles) != 0 {
			t.Errorf("roles: %v %v", roles, err)
		}
		_, err = n.CheckPassword(ctx, "alice", password)
		wants(t, "the password", err, "")
	})
}

func errOf[A, B any](_ A, _ B, err error) error { return err }

func second[A any](_ A, err error) error { return err }

func TestRoles(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, func(d *account.Deps) { d.Config.SeparationOfDuties = true })
		ctx := audit.WithSource(t.Context(), audit.Source{Kind: audit.KindCLI})
		alice, bob := n.user(t, "alice"), n.user(t, "bob")
		has := func(user id.UserID, want ...account.Role) {
			t.Helper()
			got, err := n.Roles(ctx, user)
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s has %v, %v; want %v", user, got, err, want)
			}
		}
		has(alice)
		wants(t, "give", n.SetRole(ctx, alice, account.RoleAdmin, true), "")
		has(alice, account.RoleAdmin)
		wants(t, "twice", n.SetRole(ctx, alice, account.RoleAdmin, true), "")
		wants(t, "kept apart", n.SetRole(ctx, alice, account.RoleAuditor, true), "M_FORBIDDEN")
		wants(t, "beside", n.SetRole(ctx, alice, account.RoleCompliance, true), "")
		has(alice, account.RoleAdmin, account.RoleCompliance)
		wants(t, "kept apart", n.SetRole(ctx, bob, account.RoleAuditor, true), "")
		wants(t, "kept apart by the old way", n.SetAdmin(ctx, bob, true), "M_FORBIDDEN")
		wants(t, "unknown", n.SetRole(ctx, bob, "king", true), "M_INVALID_PARAM")
		wants(t, "nobody", n.SetRole(ctx, "@none:example.org", account.RoleAuditor, true), "M_NOT_FOUND")
		wants(t, "take", n.SetRole(ctx, alice, account.RoleAdmin, false), "")
		has(alice, account.RoleCompliance)
		wants(t, "after that", n.SetRole(ctx, alice, account.RoleSecurity, true), "")
		wants(t, "enough", n.RequireRole(ctx, alice, "x", account.RoleAdmin, account.RoleSecurity), "")
		wants(t, "not enough", n.RequireRole(ctx, bob, "change policies", account.RoleSecurity), "M_FORBIDDEN")
		if got := n.entries(t, "permission.refused"); len(got) != 1 || got[0].Actor != bob || got[0].Details["what"] != "change policies" {
			t.Errorf("audited: %+v", got)
		}
		if got := n.entries(t, "user.role"); len(got) != 5 || got[0].Target != string(alice) || got[0].Kind != audit.KindCLI {
			t.Errorf("audited: %+v", got)
		}
		if users, err := n.UsersWithRole(ctx, account.RoleAuditor); err != nil || !slices.Equal(users, []id.UserID{bob}) {
			t.Errorf("auditors: %v %v", users, err)
		}
		wants(t, "deactivate", n.Deactivate(ctx, bob, false), "")
		has(bob)
	})
}

// TestRevokedOnAnotherNode looks how long a token is good on a node that is not told of its end but by the log.
func TestRevokedOnAnotherNode(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	a, b := start(t, cfg), start(t, cfg)
	ctx := t.Context()
	alice := a.user(t, "alice")
	for i := range 5 {
		token := a.signIn(t, alice, "PHONE", false).AccessToken
		b.token(t, "on the other node", token, "", false)
		end := time.Now().Add(300 * time.Millisecond)
		for time.Now().Before(end) { // warm
			if _, err := b.Authenticate(ctx, token); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.EndSessions(ctx, alice, account.Ending{}); err != nil {
			t.Fatal(err)
		}
		ended := time.Now()
		for {
			began := time.Now() // what the machine is slow at afterwards is not the token's
			if _, err := b.Authenticate(ctx, token); err != nil {
				wants(t, "revoked", err, "M_UNKNOWN_TOKEN")
				break
			}
			if began.Sub(ended) > 1100*time.Millisecond {
				t.Fatal("the token is good after more than a second")
			}
			time.Sleep(time.Millisecond)
		}
		t.Logf("round %d: it was good for %v more", i, time.Since(ended).Round(time.Millisecond))
	}
}

// TestFrozenFollower stops a node from hearing what others write, without its noticing: after a second it reads the database
// for every token instead of trusting its memory, and is quick about it.
func TestFrozenFollower(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	a := start(t, cfg)
	frozen, thaw := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b := startListening(t, cfg, store.Listener{Hydrate: func(ctx context.Context, entries []store.Entry) error {
		for _, e := range entries {
			if e.User == "@freeze:example.org" {
				once.Do(func() { close(frozen) })
				select {
				case <-thaw:
				case <-ctx.Done():
				}
			}
		}
		return nil
	}})
	ctx := t.Context()
	alice := a.user(t, "alice")
	ended, kept := a.signIn(t, alice, "PHONE", false).AccessToken, a.signIn(t, alice, "DESK", false).AccessToken
	b.token(t, "on the other node", ended, "", false)
	b.token(t, "on the other node", kept, "", false)
	err := a.store.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: "@freeze:example.org"})
		return err
	})
	wants(t, "freeze", err, "")
	<-frozen
	wants(t, "end", a.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{"PHONE"}}), "")
	began := time.Now()
	for {
		asked := time.Now()
		if _, err := b.Authenticate(ctx, ended); err != nil {
			wants(t, "revoked", err, "M_UNKNOWN_TOKEN")
			break
		}
		if asked.Sub(began) > 1400*time.Millisecond {
			t.Fatal("a node that hears of nothing trusts what it knew")
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("it was good for %v more", time.Since(began).Round(time.Millisecond))
	began = time.Now()
	for range 50 {
		b.token(t, "another one", kept, "", false)
		b.token(t, "revoked", ended, "M_UNKNOWN_TOKEN", false)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("100 tokens took %v", took)
	}
	close(thaw)
	for began = time.Now(); !errors.Is(b.store.Confirm(ctx, time.Second), nil); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > testkit.Patience {
			t.Fatal("the node does not catch up after it has thawed")
		}
	}
	b.token(t, "after the thaw", kept, "", false)
	b.token(t, "after the thaw", ended, "M_UNKNOWN_TOKEN", false)
}

// TestWarmTokenReadsNothing takes the tables away that a token is found in: one that is in memory needs none of them, for
// longer than the second after which the log's head has to be confirmed.
func TestWarmTokenReadsNothing(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice := n.user(t, "alice")
		token := n.signIn(t, alice, "A", false).AccessToken
		n.token(t, "cold", token, "", false)
		rename := func(from, to string) {
			t.Helper()
			for _, table := range []string{"sessions", "devices", "users"} {
				err := n.store.Write(t.Context(), func(tx *store.Tx) error {
					_, err := tx.Exec(`ALTER TABLE ` + from + table + ` RENAME TO ` + to + table)
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		rename("", "away_")
		defer rename("away_", "")
		began := time.Now()
		for time.Since(began) < 1500*time.Millisecond {
			if _, err := n.Authenticate(t.Context(), token); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
}
