package people_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

type fixture struct {
	*people.People
	accounts *account.Accounts
	now      time.Time
}

func newFixture(t *testing.T, cfg store.Config) *fixture {
	f := &fixture{now: time.Now()}
	log := slog.New(slog.DiscardHandler)
	st := storetest.Open(t, cfg)
	clock := func() time.Time { return f.now }
	f.accounts = account.New(account.Deps{Store: st, ServerName: "test", Logger: log, Clock: clock,
		Config: account.Config{Passwords: account.PasswordConfig{Argon2: account.Argon2{Time: 1, MemoryKiB: 64, Threads: 1}}}})
	f.People = people.New(people.Deps{
		Store: st, Accounts: f.accounts, Profiles: account.NewProfiles(account.ProfilesDeps{Store: st, ServerName: "test", Logger: log}),
		Logger: log, Clock: clock, DeactivateAfter: 24 * time.Hour,
		SavePhoto: func(_ context.Context, _ id.UserID, b []byte) (string, error) {
			if string(b) == "broken" {
				return "", mxerr.InvalidParam("broken")
			}
			return "mxc://test/" + string(b), nil
		},
	})
	return f
}

func (f *fixture) upsert(t *testing.T, p people.Person) (id.UserID, people.Change) {
	t.Helper()
	user, change, err := f.Upsert(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return user, change
}

// TestPeople takes a person from joining to leaving for good.
func TestPeople(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		f, ctx := newFixture(t, cfg), t.Context()
		p := people.Person{Source: "directory:corp", ExternalID: "1", Localpart: "Alice", DisplayName: "Alice", Email: "A@corp.example", Title: "Engineer", Photo: []byte("one"), Active: true}
		user, change := f.upsert(t, p)
		if user != "@alice:test" || !change.Created {
			t.Fatalf("%s, %+v", user, change)
		}
		if _, change = f.upsert(t, p); change.Any() || len(change.Warnings) != 0 {
			t.Errorf("the same again: %+v", change)
		}
		p.Title, p.Photo, p.Localpart, p.TimeZone = "", []byte("broken"), "renamed", "Asia/Shanghai"
		again, change := f.upsert(t, p)
		if again != user || !slices.Equal(change.Fields, []string{"m.tz", people.FieldTitle}) || len(change.Warnings) != 1 {
			t.Errorf("%s, %+v", again, change)
		}
		profile, err := f.Profiles.Get(ctx, user)
		if err != nil || profile.AvatarURL != "mxc://test/one" || string(profile.Fields[people.FieldEmail]) != `"a@corp.example"` || profile.Fields[people.FieldTitle] != nil {
			t.Errorf("%+v, %v", profile, err)
		}

		_, tokens, err := f.accounts.SignIn(ctx, user, account.SignIn{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Disable(ctx, p.Source, p.ExternalID, "left"); err != nil {
			t.Fatal(err)
		}
		if _, err := f.accounts.Authenticate(ctx, tokens.AccessToken); !mxerr.Is(err, "M_UNKNOWN_TOKEN") || !strings.Contains(mxerrText(err), "soft_logout") {
			t.Errorf("a session of who left: %v", err)
		}
		if _, _, err := f.accounts.SignIn(ctx, user, account.SignIn{}); !mxerr.Is(err, "M_USER_LOCKED") {
			t.Errorf("sign-in of who left: %v", err)
		}
		links, err := f.Links(ctx, user)
		if err != nil || len(links) != 1 || links[0].Active || links[0].Reason != "left" {
			t.Errorf("%+v, %v", links, err)
		}
		// Another source that knows the person does not let them in again.
		if err := f.Link(ctx, "oidc:x", "sub", user); err != nil {
			t.Fatal(err)
		}
		if err := f.Enable(ctx, "oidc:x", "sub"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.accounts.SignIn(ctx, user, account.SignIn{}); !mxerr.Is(err, "M_USER_LOCKED") {
			t.Errorf("sign-in of who is enabled by another source: %v", err)
		}
		if _, change := f.upsert(t, p); !change.Enabled {
			t.Errorf("back: %+v", change)
		}
		if _, _, err := f.accounts.SignIn(ctx, user, account.SignIn{}); err != nil {
			t.Errorf("sign-in of who is back: %v", err)
		}
		if err := f.Disable(ctx, p.Source, p.ExternalID, "left"); err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			after time.Duration
			gone  bool
		}{{23 * time.Hour, false}, {2 * time.Hour, true}} {
			f.now = f.now.Add(step.after)
			if err := f.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			if u, err := f.accounts.User(ctx, user); err != nil || u.Deactivated != step.gone {
				t.Errorf("after %v: %+v, %v", step.after, u, err)
			}
		}
	})
}

func mxerrText(err error) string {
	e := mxerr.As(err)
	if e == nil {
		return ""
	}
	for name := range e.Extra {
		return name
	}
	return ""
}

// TestConflicts keeps accounts apart.
func TestConflicts(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		f, ctx := newFixture(t, cfg), t.Context()
		if _, err := f.accounts.CreateUser(ctx, account.NewUser{Localpart: "bob"}); err != nil {
			t.Fatal(err)
		}
		p := people.Person{Source: "s", ExternalID: "1", Localpart: "bob", Email: "x@corp.example", Active: true}
		if _, _, err := f.Upsert(ctx, p); !mxerr.Is(err, "M_USER_IN_USE") {
			t.Errorf("a local account: %v", err)
		}
		p.LinkExisting = true
		if user, change := f.upsert(t, p); user != "@bob:test" || !change.Linked {
			t.Errorf("%s, %+v", user, change)
		}
		p.ExternalID = "2"
		if _, _, err := f.Upsert(ctx, p); !mxerr.Is(err, "M_USER_IN_USE") {
			t.Errorf("a second entry of the name: %v", err)
		}
		if err := f.Link(ctx, "s", "1", "@nobody:test"); !mxerr.Is(err, "M_NOT_FOUND") {
			t.Errorf("linking nobody: %v", err)
		}
		p.Localpart = "carol"
		if _, change := f.upsert(t, p); len(change.Warnings) != 1 {
			t.Errorf("an address that another account has: %+v", change)
		}
		if err := f.Link(ctx, "s", "1", "@carol:test"); !mxerr.Is(err, "M_USER_IN_USE") {
			t.Errorf("linking what is linked: %v", err)
		}
		p.ExternalID, p.Localpart = "3", "not allowed!"
		if _, _, err := f.Upsert(ctx, p); !mxerr.Is(err, "M_INVALID_USERNAME") {
			t.Errorf("an impossible localpart: %v", err)
		}
		if user, change, err := f.Upsert(ctx, people.Person{Source: "s", ExternalID: "4", Localpart: "dan"}); user != "" || change.Any() || err != nil {
			t.Errorf("somebody who is not active: %s, %+v, %v", user, change, err)
		}
	})
}
