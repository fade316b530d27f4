package account_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func (n *node) signIn(t *testing.T, user id.UserID, device id.DeviceID, refreshable bool) account.Tokens {
	t.Helper()
	_, tokens, err := n.SignIn(t.Context(), user, account.SignIn{Device: device, Refreshable: refreshable})
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// token fails the test unless the access token gives the errcode; soft is the soft_logout that must come with one.
func (n *node) token(t *testing.T, what, token, code string, soft bool) {
	t.Helper()
	_, err := n.Authenticate(t.Context(), token)
	wants(t, what, err, code)
	if e := mxerr.As(err); e != nil && e.Extra["soft_logout"] != soft {
		t.Errorf("%s: soft_logout is %v", what, e.Extra["soft_logout"])
	}
}

func TestSessions(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		var deleted []id.DeviceID
		var refuse error
		n := start(t, cfg, func(d *account.Deps) {
			d.OnDeviceDeleted = append(d.OnDeviceDeleted, func(_ *store.Tx, _ id.UserID, device id.DeviceID) error {
				deleted = append(deleted, device)
				return refuse
			})
		})
		ctx := t.Context()
		alice, bob := n.user(t, "alice"), n.user(t, "bob")
		name, other := "Phone\x00", "Tablet"
		device, first, err := n.SignIn(ctx, alice, account.SignIn{DeviceDisplayName: &name})
		if err != nil || len(device) != 10 || !strings.HasPrefix(first.AccessToken, "mht_") || first.RefreshToken != "" || first.ExpiresInMS != 0 {
			t.Fatalf("signed in: %s %+v %v", device, first, err)
		}
		who, err := n.Authenticate(ctx, first.AccessToken)
		if err != nil || who.UserID != alice || who.DeviceID != device || who.SessionID == 0 || who.Admin || who.Guest {
			t.Fatalf("authenticated: %+v %v", who, err)
		}
		if again, _ := n.Authenticate(ctx, first.AccessToken); again != who {
			t.Error("the session was read twice")
		}
		n.advance(365 * 24 * time.Hour)
		n.token(t, "a token without refresh after a year", first.AccessToken, "", false)

		// The same device again: its old token ends, its name stays.
		_, second, err := n.SignIn(ctx, alice, account.SignIn{Device: device, DeviceDisplayName: &other})
		wants(t, "sign in again", err, "")
		n.token(t, "old token of the device", first.AccessToken, "M_UNKNOWN_TOKEN", false)
		n.token(t, "new token of the device", second.AccessToken, "", false)
		d, err := n.Device(ctx, alice, device)
		if err != nil || d.DisplayName == nil || *d.DisplayName != "Phone" {
			t.Errorf("the device is %+v (%v)", d, err)
		}
		if len(deleted) != 0 {
			t.Errorf("devices deleted: %v", deleted)
		}

		// What one user ends is no other's.
		bobs := n.signIn(t, bob, device, false)
		laptop := n.signIn(t, alice, "LAPTOP", false)
		desk := n.signIn(t, alice, "DESK", false)
		wants(t, "end a device", n.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{device, "UNKNOWN"}}), "")
		n.token(t, "ended", second.AccessToken, "M_UNKNOWN_TOKEN", false)
		n.token(t, "bob's of the same id", bobs.AccessToken, "", false)
		n.token(t, "another device", laptop.AccessToken, "", false)
		if !slices.Equal(deleted, []id.DeviceID{device}) {
			t.Errorf("devices deleted: %v", deleted)
		}
		_, err = n.Device(ctx, alice, device)
		wants(t, "the device", err, "M_NOT_FOUND")

		wants(t, "end none", n.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{}}), "")
		n.token(t, "after ending none", desk.AccessToken, "", false)

		// If what belongs to a device cannot be deleted, nothing is.
		refuse = errors.New("no")
		if err := n.EndSessions(ctx, alice, account.Ending{}); !errors.Is(err, refuse) {
			t.Errorf("ended although refused: %v", err)
		}
		n.token(t, "refused", desk.AccessToken, "", false)
		refuse = nil

		wants(t, "end all but one", n.EndSessions(ctx, alice, account.Ending{Keep: "DESK"}), "")
		n.token(t, "kept", desk.AccessToken, "", false)
		n.token(t, "not kept", laptop.AccessToken, "M_UNKNOWN_TOKEN", false)

		wants(t, "soft", n.EndSessions(ctx, alice, account.Ending{Soft: true}), "")
		n.token(t, "softly ended", desk.AccessToken, "M_UNKNOWN_TOKEN", true)
		if _, err := n.Device(ctx, alice, "DESK"); err != nil {
			t.Errorf("a soft logout took the device: %v", err)
		}
		back := n.signIn(t, alice, "DESK", false)
		n.token(t, "back", back.AccessToken, "", false)
		n.token(t, "softly ended, device in use again", desk.AccessToken, "M_UNKNOWN_TOKEN", false)
		wants(t, "end all", n.EndSessions(ctx, alice, account.Ending{}), "")
		n.token(t, "all ended", back.AccessToken, "M_UNKNOWN_TOKEN", false)
		n.token(t, "bob's", bobs.AccessToken, "", false)

		wants(t, "new password", n.SetPassword(ctx, bob, "another one", &account.Ending{Keep: "NONE"}), "")
		n.token(t, "after a new password", bobs.AccessToken, "M_UNKNOWN_TOKEN", false)
	})
}

func TestSignInRefused(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice := n.user(t, "alice")
		err := n.store.Write(t.Context(), func(tx *store.Tx) error {
			return tx.SetCrossSigningKey(store.CrossSigningKey{User: alice, Usage: "master", Key: "KEY", Body: store.Content(`{}`)})
		})
		wants(t, "cross-signing key", err, "")
		for _, tc := range []struct {
			name   string
			user   id.UserID
			device id.DeviceID
			code   string
		}{
			{"nobody", "@nobody:example.org", "", "M_NOT_FOUND"},
			{"a long device id", alice, id.DeviceID(strings.Repeat("x", 256)), "M_INVALID_PARAM"},
			{"the id of a cross-signing key", alice, "KEY", "M_FORBIDDEN"},
			{"a device id with NUL", alice, "a\x00b", "M_INVALID_PARAM"},
			{"a device id with a line break", alice, "a\nb", "M_INVALID_PARAM"},
			{"a device id of broken UTF-8", alice, "a\xff", "M_INVALID_PARAM"},
			{"a device id of any letters", alice, "会 议/%厅", ""},
		} {
			_, _, err := n.SignIn(t.Context(), tc.user, account.SignIn{Device: tc.device})
			wants(t, tc.name, err, tc.code)
		}
		for _, token := range []string{"", "mht_", "x", "mht_" + strings.Repeat("a", 43), "mhr_" + strings.Repeat("a", 43), "mht_\x00" + strings.Repeat("a", 42), strings.Repeat("a", 1<<16)} {
			n.token(t, "token "+token[:min(8, len(token))], token, "M_UNKNOWN_TOKEN", false)
			_, err := n.Refresh(t.Context(), token)
			wants(t, "refresh", err, "M_UNKNOWN_TOKEN")
			_, err = n.UseLoginToken(t.Context(), token)
			wants(t, "login token", err, "M_FORBIDDEN")
		}
	})
}

func TestRefresh(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		refresh := func(what, token, code string) account.Tokens {
			t.Helper()
			got, err := n.Refresh(ctx, token)
			wants(t, what, err, code)
			return got
		}
		first := n.signIn(t, alice, "PHONE", true)
		if first.RefreshToken == "" || first.ExpiresInMS != 300_000 {
			t.Fatalf("tokens: %+v", first)
		}
		n.token(t, "first", first.AccessToken, "", false)
		n.advance(6 * time.Minute)
		n.token(t, "first, expired", first.AccessToken, "M_UNKNOWN_TOKEN", true)
		n.token(t, "a refresh token as access token", first.RefreshToken, "M_UNKNOWN_TOKEN", false)
		refresh("an access token as refresh token", first.AccessToken, "M_UNKNOWN_TOKEN")

		// The answer may be lost: the old refresh token is good until a new token is used.
		lost := refresh("first", first.RefreshToken, "")
		second := refresh("first again", first.RefreshToken, "")
		n.token(t, "second", second.AccessToken, "", false)
		refresh("first after the second was used", first.RefreshToken, "M_UNKNOWN_TOKEN")
		refresh("lost after the second was used", lost.RefreshToken, "M_UNKNOWN_TOKEN")
		n.token(t, "lost", lost.AccessToken, "M_UNKNOWN_TOKEN", false)

		// Using the new refresh token counts as well.
		third := refresh("second", second.RefreshToken, "")
		n.token(t, "second, refreshed but still good", second.AccessToken, "", false)
		fourth := refresh("third", third.RefreshToken, "")
		refresh("second after the third was used", second.RefreshToken, "M_UNKNOWN_TOKEN")
		n.token(t, "second after the third was used", second.AccessToken, "M_UNKNOWN_TOKEN", false)
		n.token(t, "third", third.AccessToken, "", false)
		n.token(t, "fourth", fourth.AccessToken, "", false)
		n.token(t, "third after the fourth was used", third.AccessToken, "M_UNKNOWN_TOKEN", false)

		if who, err := n.Authenticate(ctx, fourth.AccessToken); err != nil || who.DeviceID != "PHONE" {
			t.Errorf("fourth is %+v, %v", who, err)
		}
		wants(t, "lock", n.Lock(ctx, alice, true), "")
		refresh("while locked", fourth.RefreshToken, "M_USER_LOCKED")
		wants(t, "unlock", n.Lock(ctx, alice, false), "")
		wants(t, "soft", n.EndSessions(ctx, alice, account.Ending{Soft: true}), "")
		_, err := n.Refresh(ctx, fourth.RefreshToken)
		if e := mxerr.As(err); e == nil || e.Code != "M_UNKNOWN_TOKEN" || e.Extra["soft_logout"] != true {
			t.Errorf("a refresh after a soft end: %v", err)
		}
		n.token(t, "fourth after a soft end", fourth.AccessToken, "M_UNKNOWN_TOKEN", true)
		wants(t, "end", n.EndSessions(ctx, alice, account.Ending{}), "")
		refresh("ended", fourth.RefreshToken, "M_UNKNOWN_TOKEN")
		if n := countSessions(t, n.store); n != 0 {
			t.Errorf("%d sessions are left", n)
		}
	})
}

func countSessions(t *testing.T, s *store.Store) (n int64) {
	t.Helper()
	err := s.Read(t.Context(), func(tx *store.Tx) error {
		_, err := tx.Get([]any{&n}, `SELECT count(*) FROM sessions`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRefreshRace uses two answers to one refresh at the same time: one of them wins, for good.
func TestRefreshRace(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		alice := n.user(t, "alice")
		first := n.signIn(t, alice, "PHONE", true)
		var answers []account.Tokens
		for range 6 {
			a, err := n.Refresh(t.Context(), first.RefreshToken)
			wants(t, "refresh", err, "")
			answers = append(answers, a)
		}
		var wg sync.WaitGroup
		var good atomic.Int64
		for _, a := range answers {
			wg.Go(func() {
				if _, err := n.Authenticate(t.Context(), a.AccessToken); err == nil {
					good.Add(1)
				} else {
					wants(t, "race", err, "M_UNKNOWN_TOKEN")
				}
			})
		}
		wg.Wait()
		if good.Load() != 1 || countSessions(t, n.store) != 1 {
			t.Errorf("%d of the answers were good, %d sessions are left", good.Load(), countSessions(t, n.store))
		}
	})
}

func TestLocked(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		s := n.signIn(t, alice, "PHONE", false)
		n.token(t, "before", s.AccessToken, "", false)
		wants(t, "lock", n.Lock(ctx, alice, true), "")
		n.token(t, "locked", s.AccessToken, "M_USER_LOCKED", true)
		_, _, err := n.SignIn(ctx, alice, account.SignIn{})
		wants(t, "sign in", err, "M_USER_LOCKED")
		for path, code := range map[string]string{
			"/_matrix/client/v3/sync": "M_USER_LOCKED", "/_matrix/client/v3/logout": "", "/_matrix/client/v3/logout/all": "", "/x/_matrix/client/v3/logout": "M_USER_LOCKED",
		} {
			_, err := n.Authenticator(httptest.NewRequest("POST", path, nil), s.AccessToken)
			wants(t, path, err, code)
		}
		wants(t, "unlock", n.Lock(ctx, alice, false), "")
		n.token(t, "unlocked", s.AccessToken, "", false)
		wants(t, "suspend", n.Suspend(ctx, alice, true), "")
		wants(t, "make admin", n.SetAdmin(ctx, alice, true), "")
		if who, err := n.Authenticate(ctx, s.AccessToken); err != nil || !who.Suspended || !who.Admin {
			t.Errorf("suspended: %+v, %v", who, err)
		}
	})
}

// TestTwoNodes ends a session at one node that another has in memory.
func TestTwoNodes(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		if cfg.URL == "" {
			return // SQLite is one process's
		}
		a, b := start(t, cfg), start(t, cfg)
		ctx := t.Context()
		alice := a.user(t, "alice")
		phone, desk := a.signIn(t, alice, "PHONE", false), a.signIn(t, alice, "DESK", false)
		b.token(t, "phone", phone.AccessToken, "", false)
		b.token(t, "desk", desk.AccessToken, "", false)
		wants(t, "end", a.EndSessions(ctx, alice, account.Ending{Keep: "DESK"}), "")
		catchUp(t, b)
		b.token(t, "phone, ended elsewhere", phone.AccessToken, "M_UNKNOWN_TOKEN", false)
		b.token(t, "desk", desk.AccessToken, "", false)
		wants(t, "lock", a.Lock(ctx, alice, true), "")
		catchUp(t, b)
		b.token(t, "locked elsewhere", desk.AccessToken, "M_USER_LOCKED", true)
	})
}

func catchUp(t *testing.T, n *node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := n.store.CatchUp(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestLoginToken(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		token, life, err := n.LoginToken(ctx, alice)
		if err != nil || life != 120_000 {
			t.Fatalf("login token: %d ms, %v", life, err)
		}
		var wg sync.WaitGroup
		var good atomic.Int64
		for range 8 {
			wg.Go(func() {
				if user, err := n.UseLoginToken(ctx, token); err == nil && user == alice {
					good.Add(1)
				} else {
					wants(t, "used", err, "M_FORBIDDEN")
				}
			})
		}
		wg.Wait()
		if good.Load() != 1 {
			t.Errorf("the token was good %d times", good.Load())
		}
		token, _, err = n.LoginToken(ctx, alice)
		wants(t, "another", err, "")
		n.advance(121 * time.Second)
		_, err = n.UseLoginToken(ctx, token)
		wants(t, "expired", err, "M_FORBIDDEN")
	})
}

func TestSeen(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		s := n.signIn(t, alice, "PHONE", false)
		r := httptest.NewRequest("GET", "/_matrix/client/v3/sync", nil)
		r.RemoteAddr = "192.0.2.7:4711"
		r.Header.Set("User-Agent", "Client/1\xff\x00"+strings.Repeat("x", 1000))
		run := func() {
			running, cancel := context.WithCancel(ctx)
			cancel() // Run writes down what is left when it ends
			if err := n.Run(running); err != nil {
				t.Error(err)
			}
		}
		seen := func() account.Device {
			_, err := n.Authenticator(r, s.AccessToken)
			wants(t, "authenticate", err, "")
			run()
			d, err := n.Device(ctx, alice, "PHONE")
			wants(t, "device", err, "")
			return d
		}
		first := seen()
		if first.LastSeen != n.clock.Load() || first.LastIP != "192.0.2.7" || !strings.HasPrefix(first.LastAgent, "Client/1x") || len(first.LastAgent) > 200 {
			t.Errorf("seen: %+v", first)
		}
		n.advance(4 * time.Minute)
		if d := seen(); d.LastSeen != first.LastSeen {
			t.Errorf("written after 4 min: %+v", d)
		}
		n.advance(time.Minute)
		if d := seen(); d.LastSeen != n.clock.Load() {
			t.Errorf("not written after 5 min: %+v", d)
		}
	})
}

func TestRenameDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg)
		ctx := t.Context()
		alice := n.user(t, "alice")
		n.signIn(t, alice, "PHONE", false)
		wants(t, "rename", n.RenameDevice(ctx, alice, "PHONE", strings.Repeat("会", 300)), "")
		if d, err := n.Device(ctx, alice, "PHONE"); err != nil || *d.DisplayName != strings.Repeat("会", 255) {
			t.Errorf("device: %+v, %v", d, err)
		}
		wants(t, "an unknown device", n.RenameDevice(ctx, alice, "OTHER", "x"), "M_NOT_FOUND")
		wants(t, "a device of nobody", n.RenameDevice(ctx, "@bob:example.org", "PHONE", "x"), "M_NOT_FOUND")
	})
}

// TestDeviceKeysEnd checks that a device's keys go with it, that a soft end keeps them, and that others are told.
func TestDeviceKeysEnd(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		n := start(t, cfg, func(d *account.Deps) {
			d.OnDeviceDeleted = append(d.OnDeviceDeleted, account.NewKeys(account.KeysDeps{Store: d.Store, ServerName: d.ServerName}).DeviceDeleted)
		})
		ctx := t.Context()
		alice := n.user(t, "alice")
		n.signIn(t, alice, "PHONE", false)
		err := n.store.Write(ctx, func(tx *store.Tx) error { return tx.SetDeviceKeys(alice, "PHONE", store.Content(`{}`)) })
		wants(t, "device keys", err, "")
		state := func() (keys bool, changed []id.UserID) {
			t.Helper()
			err := n.store.Read(ctx, func(tx *store.Tx) error {
				body, err := tx.DeviceKeysOf(alice, "PHONE")
				if err != nil {
					return err
				}
				keys = body != nil
				changed, err = tx.DeviceListChanges(0, 1<<60)
				return err
			})
			wants(t, "read", err, "")
			return keys, changed
		}
		wants(t, "soft", n.EndSessions(ctx, alice, account.Ending{Soft: true}), "")
		if keys, changed := state(); !keys || len(changed) != 0 {
			t.Errorf("after a soft end: keys %v, changed %v", keys, changed)
		}
		wants(t, "end", n.EndSessions(ctx, alice, account.Ending{}), "")
		if keys, changed := state(); keys || !slices.Equal(changed, []id.UserID{alice}) {
			t.Errorf("after the end: keys %v, changed %v", keys, changed)
		}
	})
}
