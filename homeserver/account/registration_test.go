package account_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func ptr[T any](v T) *T { return &v }

func (n *node) registrationToken(t *testing.T, token string) (out store.RegistrationToken) {
	t.Helper()
	err := n.store.Read(t.Context(), func(tx *store.Tx) error {
		var err error
		out, _, err = tx.RegistrationToken(token)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRegistrationTokens(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		_, err := n.CreateRegistrationToken(ctx, account.NewRegistrationToken{Token: "three", UsesAllowed: ptr(int64(3))})
		wants(t, "create", err, "")
		_, err = n.CreateRegistrationToken(ctx, account.NewRegistrationToken{Token: "three"})
		wants(t, "create twice", err, "M_INVALID_PARAM")
		for _, bad := range []account.NewRegistrationToken{
			{Token: "a b"}, {Token: strings.Repeat("x", 65)}, {Token: "x\x00"}, {UsesAllowed: ptr(int64(-1))}, {Expires: time.UnixMilli(5)},
		} {
			_, err := n.CreateRegistrationToken(ctx, bad)
			wants(t, fmt.Sprint(bad), err, "M_INVALID_PARAM")
		}

		// Twelve want in at once, half of them through a stored authentication; three get in.
		var wg sync.WaitGroup
		var in, refused atomic.Int64
		for i := range 12 {
			wg.Go(func() {
				approval := account.NewUIA("register", "")
				var err error
				if i%2 == 0 {
					if approval, err = n.SaveUIA(ctx, approval); err != nil {
						t.Error(err)
						return
					}
				}
				approval, err = n.CompleteStage(ctx, approval, account.StageRegistrationToken, account.StageProof{RegistrationToken: "three"})
				if err == nil {
					_, err = n.CreateUser(ctx, account.NewUser{Localpart: fmt.Sprint("user", i), Approval: &approval})
				}
				switch {
				case err == nil:
					in.Add(1)
				case errors.Is(err, account.ErrTokenUnusable):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if in.Load() != 3 || refused.Load() != 9 {
			t.Errorf("%d registered, %d were refused", in.Load(), refused.Load())
		}
		if got := n.registrationToken(t, "three"); got.Completed != 3 || got.Pending != 0 {
			t.Errorf("the token is %+v", got)
		}
		if ok, err := n.RegistrationTokenValid(ctx, "three"); err != nil || ok {
			t.Errorf("used up: %v, %v", ok, err)
		}

		// A registration that is given up frees its reservation.
		one, err := n.CreateRegistrationToken(ctx, account.NewRegistrationToken{UsesAllowed: ptr(int64(1)), Expires: time.UnixMilli(n.clock.Load()).Add(time.Hour)})
		wants(t, "create", err, "")
		s, err := n.SaveUIA(ctx, account.NewUIA("register", ""))
		wants(t, "begin", err, "")
		s, err = n.CompleteStage(ctx, s, account.StageRegistrationToken, account.StageProof{RegistrationToken: one.Token})
		wants(t, "reserve", err, "")
		if ok, _ := n.RegistrationTokenValid(ctx, one.Token); ok {
			t.Error("a reserved token is valid")
		}
		n.advance(16 * time.Minute)
		if _, found, _ := n.FindUIA(ctx, s.ID, "register", ""); found {
			t.Error("an expired authentication was found")
		}
		wants(t, "sweep", n.Sweep(ctx), "")
		if ok, _ := n.RegistrationTokenValid(ctx, one.Token); !ok {
			t.Error("the reservation was not freed")
		}
		if _, err := n.CreateUser(ctx, account.NewUser{Localpart: "late", Approval: &s}); !errors.Is(err, account.ErrApprovalSpent) {
			t.Errorf("an expired authentication: %v", err)
		}
		if found, _ := n.Exists(ctx, "@late:example.org"); found {
			t.Error("the account was made all the same")
		}
		n.advance(time.Hour)
		if ok, _ := n.RegistrationTokenValid(ctx, one.Token); ok {
			t.Error("an expired token is valid")
		}
		for _, unknown := range []string{"", "nope", "a\x00", strings.Repeat("x", 100)} {
			if ok, err := n.RegistrationTokenValid(ctx, unknown); err != nil || ok {
				t.Errorf("%q: %v, %v", unknown, ok, err)
			}
		}
	})
}

func TestUIA(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		s, err := n.SaveUIA(ctx, account.NewUIA("delete device A", "@alice:example.org"))
		wants(t, "save", err, "")
		for _, tc := range []struct {
			sid, operation string
			user           id.UserID
			found          bool
		}{
			{s.ID, "delete device A", "@alice:example.org", true},
			{s.ID, "delete device B", "@alice:example.org", false},
			{s.ID, "delete device A", "@bob:example.org", false},
			{"nope", "delete device A", "@alice:example.org", false},
			{"", "delete device A", "@alice:example.org", false},
		} {
			if _, found, err := n.FindUIA(ctx, tc.sid, tc.operation, tc.user); err != nil || found != tc.found {
				t.Errorf("%+v: found %v, %v", tc, found, err)
			}
		}
		_, _, err = n.FindUIA(ctx, "a\x00b", "", "")
		wants(t, "a session id with NUL", err, "M_INVALID_PARAM")

		s, err = n.CompleteStage(ctx, s, "one", account.StageProof{})
		wants(t, "complete", err, "")
		s, err = n.CompleteStage(ctx, s, "one", account.StageProof{})
		wants(t, "complete again", err, "")
		if s, err = n.CompleteStage(ctx, s, "two", account.StageProof{}); err != nil || !slices.Equal(s.Completed, []string{"one", "two"}) {
			t.Errorf("completed: %v, %v", s.Completed, err)
		}
		if found, _, _ := n.FindUIA(ctx, s.ID, s.Operation, s.User); !slices.Equal(found.Completed, []string{"one", "two"}) {
			t.Errorf("stored: %v", found.Completed)
		}
		var wg sync.WaitGroup
		var spent atomic.Int64
		for range 6 {
			wg.Go(func() {
				if err := n.SpendUIA(ctx, s); err == nil {
					spent.Add(1)
				} else if !errors.Is(err, account.ErrApprovalSpent) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if spent.Load() != 1 {
			t.Errorf("spent %d times", spent.Load())
		}
		if _, err := n.CompleteStage(ctx, s, "three", account.StageProof{}); !errors.Is(err, account.ErrApprovalSpent) {
			t.Errorf("a stage of a spent authentication: %v", err)
		}
		if err := n.SpendUIA(ctx, account.NewUIA("x", "@alice:example.org")); err != nil {
			t.Errorf("one that was never stored: %v", err)
		}
	})
}

func TestRegisterBySecret(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		mac := func(secret string, parts ...string) string {
			h := hmac.New(sha1.New, []byte(secret))
			h.Write([]byte(strings.Join(parts, "\x00")))
			return hex.EncodeToString(h.Sum(nil))
		}
		nonce := func() string {
			v, err := n.NewNonce(ctx)
			wants(t, "nonce", err, "")
			return v
		}
		v := nonce()
		reg := account.SecretRegistration{Nonce: v, Username: "root", Password: password, Admin: true, MAC: mac("shared", v, "root", password, "admin")}
		u, err := n.RegisterBySecret(ctx, reg)
		if err != nil || u.ID != "@root:example.org" || !u.Admin {
			t.Fatalf("registered: %+v, %v", u, err)
		}
		_, err = n.RegisterBySecret(ctx, reg)
		wants(t, "the nonce again", err, "M_UNKNOWN")
		_, err = n.CheckPassword(ctx, "root", password)
		wants(t, "sign in", err, "")

		v = nonce()
		_, err = n.RegisterBySecret(ctx, account.SecretRegistration{Nonce: v, Username: "bot", Password: password, UserType: "bot", MAC: mac("shared", v, "bot", password, "notadmin", "bot")})
		wants(t, "with a user type", err, "")
		for _, tc := range []struct {
			name   string
			change func(nonce string) account.SecretRegistration
			code   string
		}{
			{"another secret", func(v string) account.SecretRegistration {
				return account.SecretRegistration{Username: "x", Password: password, MAC: mac("other", v, "x", password, "notadmin")}
			}, "M_UNKNOWN"},
			{"admin by the MAC of a user", func(v string) account.SecretRegistration {
				return account.SecretRegistration{Username: "x", Password: password, Admin: true, MAC: mac("shared", v, "x", password, "notadmin")}
			}, "M_UNKNOWN"},
			{"no hexadecimal", func(string) account.SecretRegistration {
				return account.SecretRegistration{Username: "x", Password: password, MAC: "zz"}
			}, "M_UNKNOWN"},
			{"taken", func(v string) account.SecretRegistration {
				return account.SecretRegistration{Username: "root", Password: password, MAC: mac("shared", v, "root", password, "notadmin")}
			}, "M_USER_IN_USE"},
			{"no username", func(v string) account.SecretRegistration {
				return account.SecretRegistration{Username: "a b", Password: password, MAC: mac("shared", v, "a b", password, "notadmin")}
			}, "M_INVALID_USERNAME"},
			{"no password", func(v string) account.SecretRegistration {
				return account.SecretRegistration{Username: "x", MAC: mac("shared", v, "x", "", "notadmin")}
			}, "M_MISSING_PARAM"},
		} {
			v := nonce()
			reg := tc.change(v)
			reg.Nonce = v
			_, err := n.RegisterBySecret(ctx, reg)
			wants(t, tc.name, err, tc.code)
		}
		v = nonce()
		n.advance(61 * time.Second)
		_, err = n.RegisterBySecret(ctx, account.SecretRegistration{Nonce: v, Username: "x", Password: password, MAC: mac("shared", v, "x", password, "notadmin")})
		wants(t, "an old nonce", err, "M_UNKNOWN")
		if found, _ := n.Exists(ctx, "@x:example.org"); found {
			t.Error("x was registered")
		}
	})
}
