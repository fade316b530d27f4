package account_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/text/unicode/norm"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// from is a context of somebody at an address.
func from(ctx context.Context, ip string) context.Context {
	return audit.WithSource(ctx, audit.Source{Kind: audit.KindAnonymous, IP: ip})
}

func rules(fn func(c *account.Config)) func(d *account.Deps) {
	return func(d *account.Deps) { fn(&d.Config) }
}

// entries lists what the audit log has of an action.
func (n *node) entries(t *testing.T, action string) []audit.Stored {
	t.Helper()
	p, err := n.Audit.Query(t.Context(), audit.Filter{Actions: []string{action}, Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return p.Entries
}

func TestPasswordStrength(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()}, rules(func(c *account.Config) { c.Passwords.MinStrength = 3 }))
	for pw, code := range map[string]string{
		"password123": "M_WEAK_PASSWORD", "qwertyuiop": "M_WEAK_PASSWORD", "aliceliddell1": "M_WEAK_PASSWORD", "19851985": "M_WEAK_PASSWORD",
		"short": "M_WEAK_PASSWORD", "": "M_MISSING_PARAM", "plum-tractor-vivid-7": "", "köln regnet quer 9": "",
	} {
		wants(t, pw, n.ValidatePasswordFor(pw, "aliceliddell"), code)
	}
	began := time.Now()
	wants(t, "long", n.ValidatePassword(strings.Repeat("password1qwerty", 34)), "")
	if d := time.Since(began); d > 10*time.Second {
		t.Errorf("judging a long password takes %v", d)
	}
}

func TestPasswordHistory(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, rules(func(c *account.Config) { c.Passwords.History = 3 }))
		ctx := t.Context()
		alice := n.user(t, "alice") // password
		set := func(pw, code string) {
			t.Helper()
			n.advance(time.Minute)
			wants(t, pw, n.SetPassword(ctx, alice, pw, nil), code)
		}
		set(password, "M_WEAK_PASSWORD")
		set("second one", "")
		set("third one", "")
		set(password, "M_WEAK_PASSWORD")
		set("second one", "M_WEAK_PASSWORD")
		set("fourth one", "")
		set(password, "") // three others were used since
		if got := n.entries(t, "user.password"); len(got) != 4 || got[0].Target != string(alice) {
			t.Errorf("audited: %+v", got)
		}
	})
}

func TestPasswordAge(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, rules(func(c *account.Config) { c.Passwords.MaxAge = 90 * 24 * time.Hour }))
		ctx := t.Context()
		alice := n.user(t, "alice")
		check := func(what, pw, code string) {
			t.Helper()
			_, err := n.CheckPassword(ctx, "alice", pw)
			wants(t, what, err, code)
		}
		check("young", password, "")
		n.advance(91 * 24 * time.Hour)
		check("old", password, account.CodePasswordExpired)
		check("old and wrong", "other password", "M_FORBIDDEN")
		_, _, _, err := n.PasswordSignIn(ctx, "alice", password)
		wants(t, "old, of a client", err, account.CodePasswordExpired)
		wants(t, "old, to confirm", n.ConfirmPassword(ctx, alice, password), "")
		_, err = n.ChangeExpiredPassword(ctx, "alice", "wrong password", "a new one")
		wants(t, "change, wrong", err, "M_FORBIDDEN")
		_, err = n.ChangeExpiredPassword(ctx, "alice", password, "short")
		wants(t, "change, short", err, "M_WEAK_PASSWORD")
		_, err = n.ChangeExpiredPassword(ctx, "alice", password, password)
		wants(t, "change, same", err, "M_WEAK_PASSWORD")
		_, err = n.ChangeExpiredPassword(ctx, "alice", password, "a new one")
		wants(t, "change", err, "")
		check("changed", "a new one", "")

		wants(t, "by an administrator", n.SetInitialPassword(ctx, alice, "first-of-many", nil), "")
		check("initial", "first-of-many", account.CodePasswordExpired)
		_, err = n.ChangeExpiredPassword(ctx, "alice", "first-of-many", "my own one")
		wants(t, "initial changed", err, "")
		check("own", "my own one", "")
		u, err := n.CreateUser(ctx, account.NewUser{Localpart: "bob", Password: password, MustChangePassword: true})
		wants(t, "create", err, "")
		_, err = n.CheckPassword(ctx, string(u.ID), password)
		wants(t, "initial of a new account", err, account.CodePasswordExpired)
	})
}

func TestLockout(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		few := rules(func(c *account.Config) {
			c.Passwords.Lockout = account.Lockout{Attempts: 3, AddressAttempts: 20, Delay: 10 * time.Second, MaxDelay: 25 * time.Second}
		})
		n := start(t, cfg, few)
		alice := n.user(t, "alice")
		away := from(t.Context(), "192.0.2.1")
		try := func(ctx context.Context, what, name, pw, code string) {
			t.Helper()
			_, err := n.CheckPassword(ctx, name, pw)
			wants(t, what, err, code)
		}
		for _, name := range []string{"alice", "nobody"} { // both are answered alike
			for i := range 3 {
				try(away, fmt.Sprint(name, " wrong ", i), name, "wrong password", "M_FORBIDDEN")
			}
			try(away, name+" held", name, "wrong password", "M_LIMIT_EXCEEDED")
		}
		try(away, "right but held", "alice", password, "M_LIMIT_EXCEEDED")
		try(from(t.Context(), "192.0.2.99"), "held from elsewhere too", "@alice:example.org", password, "M_LIMIT_EXCEEDED")
		_, err := n.CheckPassword(away, "alice", password)
		if e := mxerr.As(err); e == nil || e.RetryAfter != 10*time.Second {
			t.Errorf("the wait is %v", err)
		}
		n.advance(11 * time.Second)
		try(away, "wrong after the wait", "alice", "wrong password", "M_FORBIDDEN")
		n.advance(11 * time.Second)
		try(away, "the wait has doubled", "alice", password, "M_LIMIT_EXCEEDED")
		n.advance(10 * time.Second)
		try(away, "right after the wait", "alice", password, "")
		try(away, "wrong ones are forgotten", "alice", "wrong password", "M_FORBIDDEN")
		try(away, "right", "alice", password, "")
		if held := n.entries(t, "signin.held"); len(held) != 3 || held[0].Target != string(alice) {
			t.Errorf("audited: %+v", held)
		}

		// where the user has a device, strangers cannot lock the user out
		home := from(t.Context(), "198.51.100.7")
		if _, _, err := n.SignIn(home, alice, account.SignIn{Way: account.WayPassword}); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			_, _ = n.CheckPassword(away, "alice", "wrong password")
		}
		try(away, "held away", "alice", password, "M_LIMIT_EXCEEDED")
		try(home, "not at home", "alice", password, "")

		// an address that tries one account after another
		cracker := from(t.Context(), "2001:db8::1")
		for i := range 20 {
			try(cracker, "many names", fmt.Sprint("user", i), "wrong password", "M_FORBIDDEN")
		}
		try(from(t.Context(), "2001:db8::2"), "its network is held", "other", "wrong password", "M_LIMIT_EXCEEDED")
		wants(t, "a new password", n.SetPassword(t.Context(), alice, "another one", nil), "")
		try(away, "ends the wait of the account", "alice", "another one", "")
	})
}

// TestLockoutHoldsOnAllNodes also tries many passwords at the same time.
func TestLockoutHoldsOnAllNodes(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	few := rules(func(c *account.Config) { c.Passwords.Lockout.Attempts = 5 })
	a, b := start(t, cfg, few), start(t, cfg, few)
	a.user(t, "alice")
	var looked atomic.Int64
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			n := a
			if i%2 == 0 {
				n = b
			}
			if _, err := n.CheckPassword(t.Context(), "alice", "wrong password"); mxerr.Is(err, "M_FORBIDDEN") {
				looked.Add(1)
			} else if !mxerr.Is(err, "M_LIMIT_EXCEEDED") {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := looked.Load(); n < 5 || n > 7 { // each node may have one under way
		t.Errorf("%d passwords were looked at", n)
	}
	_, err := b.CheckPassword(t.Context(), "alice", password)
	wants(t, "the other node", err, "M_LIMIT_EXCEEDED")
}

// TestSynapseHashes signs in with hashes as Synapse made them.
func TestSynapseHashes(t *testing.T) {
	const pepper = "dash of pepper"
	n := start(t, store.Config{DataDir: t.TempDir()}, rules(func(c *account.Config) { c.Passwords.BcryptPepper = pepper }))
	typed := "Ångström ｆｕｌｌ" // Synapse hashes the form NFKC
	hash, err := bcrypt.GenerateFromPassword([]byte(norm.NFKC.String(typed)+pepper), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateUser(t.Context(), account.NewUser{Localpart: "alice", PasswordHash: string(hash)}); err != nil {
		t.Fatal(err)
	}
	_, err = n.CheckPassword(t.Context(), "alice", typed+"x")
	wants(t, "wrong", err, "M_FORBIDDEN")
	for _, what := range []string{"bcrypt", "argon2id, which was made of it"} {
		_, err = n.CheckPassword(t.Context(), "alice", typed)
		wants(t, what, err, "")
	}
	u, err := n.User(t.Context(), "@alice:example.org")
	if err != nil || !strings.HasPrefix(string(u.Password), "$argon2id$") {
		t.Errorf("the hash is %.12q, %v", string(u.Password), err)
	}
}

// TestRefusalTime compares how long refusals take for accounts with hashes of different cost, and for none.
func TestRefusalTime(t *testing.T) {
	n := start(t, store.Config{DataDir: t.TempDir()}, rules(func(c *account.Config) { c.Passwords.RefusalTime = 150 * time.Millisecond }))
	slow, err := bcrypt.GenerateFromPassword([]byte(password), 9) // some 20 ms
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CreateUser(t.Context(), account.NewUser{Localpart: "slow", PasswordHash: string(slow)}); err != nil {
		t.Fatal(err)
	}
	n.user(t, "quick")
	for _, name := range []string{"slow", "quick", "nobody"} {
		best := time.Hour
		for range 3 {
			began := time.Now()
			_, err := n.CheckPassword(t.Context(), name, "wrong password")
			wants(t, name, err, "M_FORBIDDEN")
			best = min(best, time.Since(began))
		}
		if best < 150*time.Millisecond {
			t.Errorf("%s is refused after %v", name, best)
		}
	}
}

// TestPasswordSignIn tries passwords for single apps and the gate, which are other packages' work.
func TestPasswordSignIn(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		var asked []string
		owes := mxerr.New(http.StatusForbidden, "M_FORBIDDEN", "this account owes a second factor: sign in with SSO")
		n := start(t, cfg, func(d *account.Deps) {
			d.AppPassword = func(_ context.Context, user id.UserID, pw string) (bool, error) {
				return user == "@alice:example.org" && pw == "app-password-of-alice", nil
			}
			d.Gate = func(_ context.Context, user id.UserID, way string, amr []string, ip string) error {
				asked = append(asked, fmt.Sprint(user, " ", way, " ", amr, " ", ip))
				if user == "@bob:example.org" && way == account.WayPassword {
					return owes
				}
				return nil
			}
		})
		n.user(t, "alice")
		n.user(t, "bob")
		ctx := from(t.Context(), "192.0.2.8")
		_, way, amr, err := n.PasswordSignIn(ctx, "alice", "app-password-of-alice")
		wants(t, "app password", err, "")
		if way != account.WayAppPassword || fmt.Sprint(amr) != "[pwd]" {
			t.Errorf("way %q, amr %v", way, amr)
		}
		_, err = n.CheckPassword(ctx, "alice", "app-password-of-alice")
		wants(t, "app passwords open no page", err, "M_FORBIDDEN")
		wants(t, "and confirm nothing", n.ConfirmPassword(ctx, "@alice:example.org", "app-password-of-alice"), "M_FORBIDDEN")
		_, way, _, err = n.PasswordSignIn(ctx, "alice", password)
		wants(t, "password", err, "")
		if way != account.WayPassword {
			t.Errorf("way %q", way)
		}
		_, _, _, err = n.PasswordSignIn(ctx, "bob", "wrong password")
		wants(t, "the gate is not asked of wrong passwords", err, "M_FORBIDDEN")
		_, _, _, err = n.PasswordSignIn(ctx, "bob", password)
		if err == nil || mxerr.As(err) == nil || mxerr.As(err).Message != owes.Message {
			t.Errorf("bob gets %v", err)
		}
		want := "@alice:example.org app_password [pwd] 192.0.2.8|@alice:example.org password [pwd] 192.0.2.8|@bob:example.org password [pwd] 192.0.2.8"
		if got := strings.Join(asked, "|"); got != want {
			t.Errorf("the gate was asked %s", got)
		}
	})
}

// TestHashQueue lets more people sign in than may wait.
func TestHashQueue(t *testing.T) {
	slow := account.Argon2{Time: 1, MemoryKiB: 32 << 10, Threads: 1}
	n := start(t, store.Config{DataDir: t.TempDir()}, rules(func(c *account.Config) { c.Passwords.Argon2 = slow }))
	ctx, cancel := context.WithCancel(t.Context())
	var busy atomic.Int64
	var wg sync.WaitGroup
	for i := range 1100 {
		wg.Go(func() {
			_, err := n.CheckPassword(ctx, fmt.Sprint("nobody", i), "wrong password")
			if e := mxerr.As(err); e != nil && e.Status == http.StatusServiceUnavailable {
				if busy.Add(1) == 1 {
					cancel() // the others need not be hashed
				}
			}
		})
	}
	wg.Wait()
	cancel()
	if busy.Load() == 0 {
		t.Error("nobody was told that too many wait")
	}
}

// TestPasswordForgetsBrowsers: with a new password no browser goes on without a second factor, and the audit log says so.
func TestPasswordForgetsBrowsers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice, bob := n.user(t, "alice"), n.user(t, "bob")
		known := func(user id.UserID) (count int) {
			t.Helper()
			err := n.store.Read(ctx, func(tx *store.Tx) error {
				list, err := tx.RememberedDevices(user)
				count = len(list)
				return err
			})
			wants(t, "remembered browsers", err, "")
			return count
		}
		for _, user := range []id.UserID{alice, bob} {
			err := n.store.Write(ctx, func(tx *store.Tx) error {
				if _, err := tx.LockFactorUser(user, []byte(user)); err != nil {
					return err
				}
				return tx.InsertRememberedDevice(store.RememberedDevice{
					ID: "of " + string(user), Hash: store.HashToken(string(user)), User: user, AMR: "otp", Created: n.clock.Load(), Used: n.clock.Load(), Expires: n.clock.Load() + 1e9,
				})
			})
			wants(t, "remember", err, "")
		}
		wants(t, "new password", n.SetPassword(ctx, alice, "another one", nil), "")
		if a, b := known(alice), known(bob); a != 0 || b != 1 {
			t.Errorf("browsers after alice's new password: %d of hers, %d of bob's", a, b)
		}
		if got := n.entries(t, "user.password"); len(got) != 1 || got[0].Details["browsers_forgotten"] != 1.0 {
			t.Errorf("audited: %+v", got)
		}
	})
}
