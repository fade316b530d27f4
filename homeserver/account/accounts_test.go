package account_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// cheap is a password hash that tests can wait for.
var cheap = account.Argon2{Time: 1, MemoryKiB: 64, Threads: 1}

const password = "correct horse"

// node is one process: accounts over a store whose log is followed.
type node struct {
	*account.Accounts
	store *store.Store
	clock *atomic.Int64 // ms
}

// advance lets time pass.
func (n *node) advance(d time.Duration) { n.clock.Add(d.Milliseconds()) }

func start(t *testing.T, cfg store.Config, change ...func(*account.Deps)) *node {
	t.Helper()
	return startListening(t, cfg, store.Listener{}, change...)
}

// startListening is start with one more listener of the log.
func startListening(t *testing.T, cfg store.Config, more store.Listener, change ...func(*account.Deps)) *node {
	t.Helper()
	n := &node{clock: new(atomic.Int64)}
	n.clock.Store(1_700_000_000_000)
	s, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	deps := account.Deps{
		Store: s, ServerName: "example.org", Logger: slog.New(slog.DiscardHandler),
		Config: account.Config{Passwords: account.PasswordConfig{Argon2: cheap}, Registration: account.RegistrationConfig{SharedSecret: "shared"}},
		Clock:  func() time.Time { return time.UnixMilli(n.clock.Load()) },
	}
	for _, fn := range change {
		fn(&deps)
	}
	n.store, n.Accounts = s, account.New(deps)
	follows := make(chan struct{}, 1)
	probe := store.Listener{Apply: func([]store.Entry) {
		select {
		case follows <- struct{}{}:
		default:
		}
	}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Follow(ctx, []store.Listener{n.Listener(), probe, more}, nil) }()
	<-s.Following()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, s.Close()); err != nil {
			t.Error(err)
		}
	})
	for range 200 { // until the log is followed, as it is in a server before its first request
		if err := s.Write(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Announce(store.Entry{Kind: store.KindUser, User: "@probe:example.org"})
			return err
		}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-follows:
			return n
		case <-time.After(5 * time.Millisecond):
		}
	}
	t.Fatal("the log is not followed")
	return nil
}

func (n *node) user(t *testing.T, localpart string) id.UserID {
	t.Helper()
	u, err := n.CreateUser(t.Context(), account.NewUser{Localpart: localpart, Password: password})
	if err != nil {
		t.Fatal(err)
	}
	return u.ID
}

// wants fails the test unless err has the errcode; "" stands for no error.
func wants(t *testing.T, what string, err error, code string) {
	t.Helper()
	got := ""
	if e := mxerr.As(err); e != nil {
		got = e.Code
	} else if err != nil {
		got = "internal"
	}
	if got != code {
		t.Errorf("%s: got %q (%v), want %q", what, got, err, code)
	}
}

func TestLocalpart(t *testing.T) {
	n := account.New(account.Deps{ServerName: "example.org"})
	for _, tc := range []struct{ name, want, code string }{
		{"alice", "alice", ""},
		{"Alice", "alice", ""},
		{"a.b_c=d-e/f+0", "a.b_c=d-e/f+0", ""},
		{"@alice:example.org", "alice", ""},
		{"@alice:example.com", "", "M_INVALID_USERNAME"},
		{"", "", "M_INVALID_USERNAME"},
		{"@:example.org", "", "M_INVALID_USERNAME"},
		{"a b", "", "M_INVALID_USERNAME"},
		{"a:b", "", "M_INVALID_USERNAME"},
		{"a\x00b", "", "M_INVALID_USERNAME"},
		{"élan", "", "M_INVALID_USERNAME"},
		{"İ", "", "M_INVALID_USERNAME"},
		{"会", "", "M_INVALID_USERNAME"},
		{"a!b", "", "M_INVALID_USERNAME"},
		{strings.Repeat("a", 255-len("@:example.org")), strings.Repeat("a", 255-len("@:example.org")), ""},
		{strings.Repeat("a", 256-len("@:example.org")), "", "M_INVALID_USERNAME"},
	} {
		got, err := n.Localpart(tc.name)
		wants(t, tc.name, err, tc.code)
		if got != tc.want {
			t.Errorf("%q became %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestUsers(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, func(d *account.Deps) {
			d.Exclusive = func(u id.UserID) bool { return strings.HasPrefix(string(u), "@irc_") }
		})
		ctx := t.Context()
		alice := n.user(t, "Alice")
		if alice != "@alice:example.org" {
			t.Errorf("the user is %s", alice)
		}
		_, err := n.CreateUser(ctx, account.NewUser{Localpart: "ALICE"})
		wants(t, "a name that is taken", err, "M_USER_IN_USE")
		_, err = n.CreateUser(ctx, account.NewUser{Localpart: "irc_bob"})
		wants(t, "a reserved name", err, "M_EXCLUSIVE")
		_, err = n.CreateUser(ctx, account.NewUser{Localpart: "irc_bob", Unreserved: true, AppService: "irc"})
		wants(t, "a reserved name by its owner", err, "")
		_, err = n.CreateUser(ctx, account.NewUser{Localpart: "x", PasswordHash: "plain"})
		wants(t, "a hash of an unknown form", err, "M_INVALID_PARAM")
		wants(t, "available: taken", n.Available(ctx, "alice"), "M_USER_IN_USE")
		wants(t, "available: reserved", n.Available(ctx, "irc_x"), "M_EXCLUSIVE")
		wants(t, "available", n.Available(ctx, "carol"), "")

		if found, err := n.Exists(ctx, alice); err != nil || !found {
			t.Errorf("alice exists: %v, %v", found, err)
		}
		if found, err := n.Exists(ctx, "@nobody:example.org"); err != nil || found {
			t.Errorf("nobody exists: %v, %v", found, err)
		}
		_, err = n.User(ctx, "@nobody:example.org")
		wants(t, "an unknown user", err, "M_NOT_FOUND")
		if count, err := n.LocalUsers(ctx); err != nil || count != 1 {
			t.Errorf("%d users (%v), want 1: an application service's do not count", count, err)
		}

		wants(t, "make admin", n.SetAdmin(ctx, alice, true), "")
		wants(t, "lock", n.Lock(ctx, alice, true), "")
		wants(t, "suspend", n.Suspend(ctx, alice, true), "")
		u, err := n.User(ctx, alice)
		if err != nil || !u.Admin || !u.Locked || !u.Suspended || u.Guest || u.Deactivated || u.Localpart != "alice" || u.Created != n.clock.Load() {
			t.Errorf("alice is %+v (%v)", u, err)
		}
		wants(t, "unlock", n.Lock(ctx, alice, false), "")
		if u, _ := n.User(ctx, alice); u.Locked || !u.Admin {
			t.Errorf("alice is %+v", u)
		}
		wants(t, "lock nobody", n.Lock(ctx, "@nobody:example.org", true), "M_NOT_FOUND")
		if strings.Contains(string(u.Password), password) || !strings.HasPrefix(string(u.Password), "$argon2id$v=19$m=64,t=1,p=1$") {
			t.Errorf("the password is stored as %q", u.Password)
		}
	})
}

func TestPasswords(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		gone := n.user(t, "gone")
		wants(t, "deactivate", n.Deactivate(ctx, gone, false), "")
		if _, err := n.CreateUser(ctx, account.NewUser{Localpart: "nopassword"}); err != nil {
			t.Fatal(err)
		}
		hash, err := bcrypt.GenerateFromPassword([]byte("from elsewhere"), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := n.CreateUser(ctx, account.NewUser{Localpart: "moved", PasswordHash: string(hash)}); err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct{ name, password, code string }{
			{"alice", password, ""},
			{"ALICE", password, ""},
			{"@alice:example.org", password, ""},
			{"@Alice:example.org", password, ""},
			{"@alice:example.com", password, "M_FORBIDDEN"},
			{"alice", password + "x", "M_FORBIDDEN"},
			{"alice", "", "M_FORBIDDEN"},
			{"alice", strings.Repeat("x", 1<<20), "M_FORBIDDEN"},
			{"alice ", password, "M_FORBIDDEN"},
			{"nobody", password, "M_FORBIDDEN"},
			{"no\x00body", password, "M_FORBIDDEN"},
			{strings.Repeat("n", 5000), password, "M_FORBIDDEN"},
			{"", "", "M_FORBIDDEN"},
			{"nopassword", "", "M_FORBIDDEN"},
			{"gone", password, "M_USER_DEACTIVATED"},
			{"moved", "from elsewher", "M_FORBIDDEN"},
			{"moved", "from elsewhere", ""},
		} {
			_, err := n.CheckPassword(ctx, tc.name, tc.password)
			wants(t, "sign in as "+tc.name[:min(20, len(tc.name))], err, tc.code)
		}
		// The sign-in above renewed the hash.
		if u, _ := n.User(ctx, "@moved:example.org"); !strings.HasPrefix(string(u.Password), "$argon2id$") {
			t.Errorf("moved's hash is %q", u.Password)
		}
		_, err = n.CheckPassword(ctx, "moved", "from elsewhere")
		wants(t, "sign in by the renewed hash", err, "")

		dearer := account.New(account.Deps{Store: n.store, ServerName: "example.org",
			Config: account.Config{Passwords: account.PasswordConfig{Argon2: account.Argon2{Time: 2, MemoryKiB: 128, Threads: 1}}}})
		_, err = dearer.CheckPassword(ctx, "alice", "wrong")
		wants(t, "wrong password", err, "M_FORBIDDEN")
		if u, _ := n.User(ctx, alice); !strings.Contains(string(u.Password), "$m=64,t=1,p=1$") {
			t.Errorf("a wrong password renewed the hash: %q", u.Password)
		}
		_, err = dearer.CheckPassword(ctx, "alice", password)
		wants(t, "sign in at another cost", err, "")
		if u, _ := n.User(ctx, alice); !strings.Contains(string(u.Password), "$m=128,t=2,p=1$") {
			t.Errorf("alice's hash is %q", u.Password)
		}

		wants(t, "set a password", n.SetPassword(ctx, alice, "another one", nil), "")
		_, err = n.CheckPassword(ctx, "alice", password)
		wants(t, "the old password", err, "M_FORBIDDEN")
		_, err = n.CheckPassword(ctx, "alice", "another one")
		wants(t, "the new password", err, "")
		wants(t, "a password for nobody", n.SetPassword(ctx, "@nobody:example.org", "another one", nil), "M_NOT_FOUND")
		wants(t, "a password for a deactivated user", n.SetPassword(ctx, gone, "another one", nil), "M_USER_DEACTIVATED")
		wants(t, "an empty password", n.SetPassword(ctx, alice, "", nil), "M_MISSING_PARAM")
		wants(t, "a long password", n.SetPassword(ctx, alice, strings.Repeat("x", 513), nil), "M_INVALID_PARAM")
	})
}

func TestValidatePassword(t *testing.T) {
	n := account.New(account.Deps{})
	for _, tc := range []struct{ password, code string }{
		{"", "M_MISSING_PARAM"}, {"1234567", "M_WEAK_PASSWORD"}, {"12345678", ""}, {"会议厅会议厅会", "M_WEAK_PASSWORD"}, {"会议厅会议厅会议", ""},
		{strings.Repeat("x", 512), ""}, {strings.Repeat("x", 513), "M_INVALID_PARAM"},
	} {
		wants(t, tc.password, n.ValidatePassword(tc.password), tc.code)
	}
}

// TestDeactivate checks what ends with an account, and that an interrupted deactivation can be finished.
func TestDeactivate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		var left []id.UserID
		fail := errors.New("rooms are away")
		n := start(t, cfg, func(d *account.Deps) {
			d.LeaveAllRooms = func(_ context.Context, u id.UserID) error { left = append(left, u); return fail }
		})
		ctx := t.Context()
		alice := n.user(t, "alice")
		_, tokens, err := n.SignIn(ctx, alice, account.SignIn{Refreshable: true})
		wants(t, "sign in", err, "")
		login, _, err := n.LoginToken(ctx, alice)
		wants(t, "login token", err, "")
		n.keepThings(t, alice)
		_, err = n.Authenticate(ctx, tokens.AccessToken)
		wants(t, "token", err, "")
		if err := n.Deactivate(ctx, alice, true); !errors.Is(err, fail) {
			t.Errorf("deactivate: %v", err)
		}
		fail = nil
		wants(t, "deactivate again", n.Deactivate(ctx, alice, false), "")
		if kept := n.kept(t, alice); len(kept) != 0 {
			t.Errorf("left behind: %v", kept)
		}
		if len(left) != 2 || left[0] != alice {
			t.Errorf("left: %v", left)
		}
		_, err = n.Authenticate(ctx, tokens.AccessToken)
		wants(t, "token", err, "M_UNKNOWN_TOKEN")
		_, err = n.Refresh(ctx, tokens.RefreshToken)
		wants(t, "refresh token", err, "M_UNKNOWN_TOKEN")
		_, err = n.UseLoginToken(ctx, login)
		wants(t, "login token", err, "M_FORBIDDEN")
		_, _, err = n.SignIn(ctx, alice, account.SignIn{})
		wants(t, "sign in", err, "M_USER_DEACTIVATED")
		if devices, err := n.Devices(ctx, alice); err != nil || len(devices) != 0 {
			t.Errorf("devices: %v, %v", devices, err)
		}
		if u, _ := n.User(ctx, alice); !u.Deactivated || !u.Erased || u.Password != nil {
			t.Errorf("alice is %+v", u)
		}
		_, err = n.CreateUser(ctx, account.NewUser{Localpart: "alice"})
		wants(t, "the name again", err, "M_USER_IN_USE")
		wants(t, "deactivate nobody", n.Deactivate(ctx, "@nobody:example.org", false), "M_NOT_FOUND")
	})
}

// keepThings gives a user something of everything that a user can keep on the server, and a lot of account data.
func (n *node) keepThings(t *testing.T, user id.UserID) {
	t.Helper()
	body := store.Content(`{}`)
	err := n.store.Write(t.Context(), func(tx *store.Tx) error {
		for i := range 1200 {
			if err := tx.SetAccountData(user, 0, fmt.Sprint("org.example.", i), body); err != nil {
				return err
			}
		}
		name := "Alice"
		_, err := tx.InsertBackup(user, "m.megolm_backup.v1.curve25519-aes-sha2", body)
		return errors.Join(err,
			tx.SetProfile(store.Profile{User: user, DisplayName: &name, Folded: "alice"}),
			tx.SetCrossSigningKey(store.CrossSigningKey{User: user, Usage: "master", Key: "k", Body: body}),
			tx.UpdatePushRules(user, func([]byte) ([]byte, error) { return []byte(`{}`), nil }))
	})
	if err != nil {
		t.Fatal(err)
	}
	if kept := n.kept(t, user); len(kept) != 5 {
		t.Fatalf("kept: %v", kept)
	}
}

// kept lists what a user keeps on the server.
func (n *node) kept(t *testing.T, user id.UserID) []string {
	t.Helper()
	var out []string
	err := n.store.Read(t.Context(), func(tx *store.Tx) error {
		for _, table := range []string{"account_data", "backup_versions", "profiles", "cross_signing_keys", "push_rules", "pushers", "filters", "device_keys"} {
			var count int64
			if _, err := tx.Get([]any{&count}, `SELECT count(*) FROM `+table+` WHERE usr = $1`, user); err != nil {
				return err
			}
			if count > 0 {
				out = append(out, table)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
