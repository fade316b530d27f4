package upstream_test

import (
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/sso/upstream"
)

// TestAccounts: whose an identity is, by every rule.
func TestAccounts(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		for _, tc := range []struct {
			name   string
			change func(c *upstream.Config)
			before func(t *testing.T, h *house)
			claims map[string]any
			want   id.UserID
			reason upstream.Reason
			code   string
		}{
			{name: "new account", claims: alice(), want: "@alice:example.org"},
			{name: "name with strange letters", claims: alice("preferred_username", "Älice W@corp"), want: "@lice-w:example.org"},
			{name: "no name", claims: alice("preferred_username", nil), reason: upstream.ReasonMissing},
			{name: "no name, people choose", change: func(c *upstream.Config) { c.Mapping.LocalpartUse = upstream.UseForce },
				claims: alice("preferred_username", nil), want: "@chosen:example.org"},
			{name: "suggested name", change: func(c *upstream.Config) { c.Mapping.LocalpartUse = upstream.UseSuggest }, claims: alice(), want: "@chosen:example.org"},
			{name: "ignored name", change: func(c *upstream.Config) { c.Mapping.LocalpartUse = upstream.UseIgnore }, claims: alice(), want: "@chosen:example.org"},
			{name: "impossible name", change: func(c *upstream.Config) { c.Mapping.Localpart = "{{.name}}" }, claims: alice(), reason: upstream.ReasonName},
			{name: "chosen name is taken", change: func(c *upstream.Config) { c.Mapping.LocalpartUse = upstream.UseSuggest },
				before: func(_ *testing.T, h *house) { h.user("chosen") }, claims: alice(), code: "M_USER_IN_USE"},
			{name: "e-mail is needed", change: func(c *upstream.Config) { c.Mapping.EmailUse = upstream.UseRequire }, claims: alice("email", nil), reason: upstream.ReasonMissing},
			{name: "no new accounts", change: func(c *upstream.Config) { c.CreateAccounts = false }, claims: alice(), reason: upstream.ReasonNoAccount},
			{name: "in a group", change: func(c *upstream.Config) { c.AllowedGroups = []string{"/x", "/staff"} }, claims: alice(), want: "@alice:example.org"},
			{name: "in no group", change: func(c *upstream.Config) { c.AllowedGroups = []string{"/x"} }, claims: alice(), reason: upstream.ReasonGroups},
			{name: "groups not told", change: func(c *upstream.Config) { c.AllowedGroups = []string{"/x"} }, claims: alice("groups", nil), reason: upstream.ReasonGroups},
			{name: "the group of a path", change: func(c *upstream.Config) { c.AllowedGroups, c.Mapping.Groups = []string{"chat"}, "realm_access.roles" },
				claims: alice("realm_access", map[string]any{"roles": []string{"chat"}}), want: "@alice:example.org"},
			{name: "conflict fails", before: func(_ *testing.T, h *house) { h.user("alice") }, claims: alice(), reason: upstream.ReasonConflict},
			{name: "conflict adds", change: func(c *upstream.Config) { c.OnConflict = upstream.ConflictAdd },
				before: func(t *testing.T, h *house) { h.link(t, "kc", "somebody", h.user("alice")) }, claims: alice(), want: "@alice:example.org"},
			{name: "conflict sets", change: func(c *upstream.Config) { c.OnConflict = upstream.ConflictSet },
				before: func(t *testing.T, h *house) { h.link(t, "other", "somebody", h.user("alice")) }, claims: alice(), want: "@alice:example.org"},
			{name: "conflict sets once", change: func(c *upstream.Config) { c.OnConflict = upstream.ConflictSet },
				before: func(t *testing.T, h *house) { h.link(t, "kc", "somebody", h.user("alice")) }, claims: alice(), reason: upstream.ReasonConflict},
			{name: "conflict replaces", change: func(c *upstream.Config) { c.OnConflict = upstream.ConflictReplace },
				before: func(t *testing.T, h *house) { h.link(t, "kc", "somebody", h.user("alice")) }, claims: alice(), want: "@alice:example.org"},
			{name: "suggested names link nothing", change: func(c *upstream.Config) {
				c.Mapping.LocalpartUse, c.OnConflict = upstream.UseSuggest, upstream.ConflictAdd
			}, before: func(_ *testing.T, h *house) { h.user("chosen") }, claims: alice(), code: "M_USER_IN_USE"},
			{name: "a bridge's account", change: func(c *upstream.Config) { c.OnConflict = upstream.ConflictAdd },
				before: func(t *testing.T, h *house) {
					if _, err := h.accounts.CreateUser(t.Context(), account.NewUser{Localpart: "alice", AppService: "bridge"}); err != nil {
						t.Fatal(err)
					}
				}, claims: alice(), reason: upstream.ReasonConflict},
			{name: "by verified e-mail", change: func(c *upstream.Config) { c.LinkBy = []string{"email"} },
				before: func(t *testing.T, h *house) { h.email(t, h.user("al"), "alice@corp.example") }, claims: alice("email", "Alice@CORP.example"), want: "@al:example.org"},
			{name: "e-mail not verified", change: func(c *upstream.Config) { c.LinkBy = []string{"email"} },
				before: func(t *testing.T, h *house) { h.email(t, h.user("al"), "alice@corp.example") }, claims: alice("email_verified", false), want: "@alice:example.org"},
			{name: "verification not told", change: func(c *upstream.Config) { c.LinkBy = []string{"email"} },
				before: func(t *testing.T, h *house) { h.email(t, h.user("al"), "alice@corp.example") }, claims: alice("email_verified", nil), want: "@alice:example.org"},
			{name: "e-mail of an account of somebody else there", change: func(c *upstream.Config) { c.LinkBy = []string{"email"} },
				before: func(t *testing.T, h *house) {
					u := h.user("al")
					h.email(t, u, "alice@corp.example")
					h.link(t, "kc", "somebody", u)
				}, claims: alice(), reason: upstream.ReasonConflict},
			{name: "by the directory", change: func(c *upstream.Config) {
				c.LinkBy, c.Directory, c.Mapping.DirectoryID = []string{"directory"}, "ad", "{{.guid}}"
			}, before: func(t *testing.T, h *house) { h.link(t, people.DirectorySource("ad"), "guid-7", h.user("al")) }, claims: alice("guid", "guid-7"), want: "@al:example.org"},
			{name: "locked", before: func(t *testing.T, h *house) {
				u := h.user("al")
				h.link(t, "kc", "8d2f", u)
				if err := h.accounts.Lock(t.Context(), u, true); err != nil {
					t.Fatal(err)
				}
			}, claims: alice(), reason: upstream.ReasonLocked},
			{name: "deactivated", before: func(t *testing.T, h *house) {
				u := h.user("al")
				h.link(t, "kc", "8d2f", u)
				if err := h.accounts.Deactivate(t.Context(), u, false); err != nil {
					t.Fatal(err)
				}
			}, claims: alice(), reason: upstream.ReasonLocked},
		} {
			t.Run(tc.name, func(t *testing.T) {
				if cfg.URL != "" {
					if tc.name != "new account" && tc.name != "conflict replaces" && tc.name != "by verified e-mail" {
						return // what lies in SQL is run on both
					}
					cfg.URL = storetest.Postgres(t)
				}
				cfg.DataDir = t.TempDir()
				i := startIssuer(t)
				c := i.config()
				if tc.change != nil {
					tc.change(&c)
				}
				h := open(t, cfg, c)
				if tc.before != nil {
					tc.before(t, h)
				}
				got, _, err := h.account(i, tc.claims)
				if got != tc.want || upstream.ReasonOf(err) != tc.reason || tc.code != "" && !mxerr.Is(err, tc.code) || (err != nil) != (tc.want == "") {
					t.Fatalf("got %q %v", got, err)
				}
				if tc.want == "" {
					return
				}
				// The second time nothing is asked: the link holds, whatever the names are now.
				again, _, err := h.account(i, alice("preferred_username", "renamed", "email", "new@corp.example", "realm_access", tc.claims["realm_access"]))
				if again != tc.want || err != nil {
					t.Errorf("the second time: %q %v", again, err)
				}
			})
		}
	})
}

func (h *house) link(t *testing.T, source, externalID string, user id.UserID) {
	t.Helper()
	if err := h.people.Link(t.Context(), source, externalID, user); err != nil {
		t.Fatal(err)
	}
}

func (h *house) email(t *testing.T, user id.UserID, address string) {
	t.Helper()
	err := h.store.Write(t.Context(), func(tx *store.Tx) error {
		_, err := tx.InsertThreepid(store.Threepid{Medium: store.MediumEmail, Address: address, User: user, Validated: 1, Added: 1})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestForcedAttributes follow the provider, suggested ones do not.
func TestForcedAttributes(t *testing.T) {
	for _, use := range []string{upstream.UseIgnore, upstream.UseSuggest, upstream.UseForce} {
		t.Run(use, func(t *testing.T) {
			i := startIssuer(t)
			h := open(t, store.Config{DataDir: t.TempDir()}, i.config(func(c *upstream.Config) {
				c.Mapping.DisplayNameUse, c.Mapping.EmailUse = use, use
				c.Mapping.Roles = []upstream.RoleRule{{Group: "/admins", Role: "compliance"}}
			}))
			look := func(claims map[string]any) (name string, mails []string, compliance bool) {
				t.Helper()
				user, _, err := h.account(i, claims)
				if err != nil {
					t.Fatal(err)
				}
				p, err := h.Profiles.Get(t.Context(), user)
				if err != nil && mxerr.As(err) == nil {
					t.Fatal(err)
				}
				list, err := h.accounts.Threepids(t.Context(), user)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range list {
					mails = append(mails, m.Address)
				}
				roles, err := h.accounts.Roles(t.Context(), user)
				if err != nil {
					t.Fatal(err)
				}
				return p.DisplayName, mails, slices.Contains(roles, account.RoleCompliance)
			}
			wantName, wantMails := "Alice Liu", []string{"alice@corp.example"}
			if use == upstream.UseIgnore {
				wantName, wantMails = "", nil
			}
			if name, mails, role := look(alice()); name != wantName || !slices.Equal(mails, wantMails) || !role {
				t.Errorf("first: %q %v %v", name, mails, role)
			}
			if use == upstream.UseForce {
				wantName, wantMails = "Alice Wang", []string{"alice.wang@corp.example", "alice@corp.example"}
			}
			name, mails, role := look(alice("name", "Alice Wang", "email", "alice.wang@corp.example", "groups", []string{"/staff"}))
			slices.Sort(mails)
			if name != wantName || !slices.Equal(mails, wantMails) || role {
				t.Errorf("second: %q %v %v", name, mails, role)
			}
		})
	}
}
