package account_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func TestProfile(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice)
		set := func(name, value, code string) {
			t.Helper()
			wants(t, name+" "+value[:min(len(value), 40)], p.profiles.Set(ctx, alice, name, jsontext.Value(value)), code)
		}
		set("displayname", `"Alice 爱丽丝"`, "")
		set("avatar_url", `"mxc://example.org/x"`, "")
		set("m.tz", `"Europe/London"`, "")
		set("com.example.field-x", `{"a": [1.5, null]}`, "")
		set("com.example.null", `null`, "")
		got, err := p.profiles.Get(ctx, alice)
		if err != nil || got.DisplayName != "Alice 爱丽丝" || got.AvatarURL != "mxc://example.org/x" || string(got.Fields["com.example.field-x"]) != `{"a":[1.5,null]}` || len(got.All()) != 5 {
			t.Errorf("%+v %v", got, err)
		}
		for _, tc := range []struct{ name, value, code string }{
			{"displayname", `1`, "M_BAD_JSON"}, {"displayname", `null`, "M_BAD_JSON"}, {"displayname", `{}`, "M_BAD_JSON"},
			{"displayname", `"` + strings.Repeat("会", 257) + `"`, "M_INVALID_PARAM"}, {"displayname", `"a\u0000"`, "M_INVALID_PARAM"},
			{"avatar_url", `"https://x/y"`, "M_INVALID_PARAM"}, {"avatar_url", `"mxc://x"`, "M_INVALID_PARAM"}, {"avatar_url", `"mxc:///y"`, "M_INVALID_PARAM"},
			{"avatar_url", `"mxc://x/"`, "M_INVALID_PARAM"}, {"avatar_url", `[]`, "M_BAD_JSON"}, {"avatar_url", `"mxc://x/` + strings.Repeat("y", 1000) + `"`, "M_INVALID_PARAM"},
			{"m.tz", `1`, "M_BAD_JSON"}, {"nodot", `1`, "M_INVALID_PARAM"}, {"Com.example", `1`, "M_INVALID_PARAM"}, {"", `1`, "M_INVALID_PARAM"},
			{"1com.example", `1`, "M_INVALID_PARAM"}, {"com.", `1`, "M_INVALID_PARAM"}, {"com..x", `1`, "M_INVALID_PARAM"}, {"com.é", `1`, "M_INVALID_PARAM"},
			{"com." + strings.Repeat("x", 252), `1`, "M_KEY_TOO_LARGE"}, {"com." + strings.Repeat("x", 251), `1`, ""},
			{"com.example.big", `"` + strings.Repeat("x", 64<<10) + `"`, "M_PROFILE_TOO_LARGE"},
		} {
			set(tc.name, tc.value, tc.code)
		}
		set("displayname", `"Alice 爱丽丝"`, "") // the same again
		set("displayname", `""`, "")
		if _, err := p.profiles.Field(ctx, alice, "displayname"); err == nil {
			t.Error("an empty display name is none")
		}
		wants(t, "delete", p.profiles.Delete(ctx, alice, "avatar_url"), "")
		wants(t, "delete", p.profiles.Delete(ctx, alice, "m.tz"), "")
		wants(t, "delete again", p.profiles.Delete(ctx, alice, "m.tz"), "")
		wants(t, "delete a bad name", p.profiles.Delete(ctx, alice, "X"), "M_INVALID_PARAM")
		if want := []string{
			`@alice:example.org "Alice 爱丽丝" ""`, `@alice:example.org "Alice 爱丽丝" "mxc://example.org/x"`,
			`@alice:example.org "" "mxc://example.org/x"`, `@alice:example.org "" ""`,
		}; !slices.Equal(p.propagated, want) {
			t.Errorf("told the rooms %q", p.propagated)
		}
		_, err = p.profiles.Get(ctx, "@nobody:example.org")
		wants(t, "nobody", err, "M_NOT_FOUND")
		_, err = p.profiles.Field(ctx, alice, "com.example.none")
		wants(t, "no such field", err, "M_NOT_FOUND")
		wants(t, "of nobody", p.profiles.Set(ctx, "@nobody:example.org", "m.tz", jsontext.Value(`"x"`)), "M_NOT_FOUND")
		of, err := p.profiles.Of(ctx, []id.UserID{alice, bob})
		if err != nil || len(of) != 1 {
			t.Errorf("%v %v", of, err)
		}
	})
}

func TestDirectory(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		people := map[id.UserID]string{
			"@alice:example.org": "Alice Moor", "@bob:example.org": "", "@zhang.wei:example.org": "张伟", "@zhao:example.org": "ZHÀO Lì",
			"@strasse:example.org": "Große Straße", "@hidden:example.org": "Hidden Alice", "@public:example.org": "In Public",
			"@percent:example.org": "100%_x!", "@gone:example.org": "Gone Alice", "@malice:example.org": "Malice", "@ali:example.org": "ali",
		}
		var members []id.UserID
		for user, name := range people {
			p.user(t, user)
			if name != "" {
				wants(t, "name", p.profiles.Set(ctx, user, "displayname", jsontext.Value(fmt.Sprintf("%q", name))), "")
			}
			if user != "@hidden:example.org" && user != "@public:example.org" {
				members = append(members, user)
			}
		}
		shared := p.room(t, "!shared:example.org", false, members...)
		p.room(t, "!public:example.org", true, "@public:example.org")
		other := p.room(t, "!other:example.org", false, "@hidden:example.org")
		p.member(t, shared, "@hidden:example.org", 3)
		wants(t, "deactivate", p.accounts.Deactivate(ctx, "@gone:example.org", false), "")
		search := func(term string, limit int) string {
			t.Helper()
			results, limited, err := p.profiles.Search(ctx, bob, term, limit)
			wants(t, term, err, "")
			var out []string
			for _, r := range results {
				out = append(out, r.UserID.Localpart())
			}
			if limited {
				out = append(out, "…")
			}
			return strings.Join(out, " ")
		}
		for term, want := range map[string]string{
			"alice":              "alice malice", // exactly; somewhere in the name
			"ALI":                "ali alice malice",
			"moor ali":           "alice",
			"moor bob":           "",
			"@ali":               "ali alice",
			"@alice:example.org": "alice",
			"example":            "",
			"伟":                  "zhang.wei",
			"zhà":                "zhao",
			"STRASSE":            "strasse", // ß folds to ss
			"ﬀ":                  "",
			"100%":               "percent",
			"%":                  "percent",
			"_":                  "percent",
			"!":                  "percent",
			"public":             "public",
			"hidden":             "",
			"bob":                "", // the searcher
			"gone":               "",
			"":                   "",
			"  ":                 "",
			"a\x00lice":          "alice malice",
		} {
			if got := search(term, 0); got != want {
				t.Errorf("%q: %q, want %q", term, got, want)
			}
		}
		if got := search("ali", 2); got != "ali alice …" {
			t.Errorf("limited: %q", got)
		}
		// rooms that everybody may enter or read, without being published
		state := func(room, nid int64, evType, content string) {
			t.Helper()
			p.write(t, func(tx *store.Tx) error {
				if _, err := tx.Exec(`INSERT INTO events (nid, room, ord, event_id, status, ts, is_state, body) VALUES ($1, $2, $1, $3, 0, 0, 1, $4)`,
					nid, room, fmt.Sprint("$", nid), store.Content(`{"type":"`+evType+`","content":`+content+`}`)); err != nil {
					return err
				}
				return tx.SaveState([]store.StateRow{{Room: room, Type: evType, Ord: nid, NID: nid}})
			})
		}
		for i, step := range []struct{ evType, content, want string }{
			{"m.room.join_rules", `{"join_rule":"invite"}`, ""},
			{"m.room.join_rules", `{"join_rule":"public"}`, "hidden"},
			{"m.room.join_rules", `{"join_rule":"knock"}`, ""},
			{"m.room.history_visibility", `{"history_visibility":"shared"}`, ""},
			{"m.room.history_visibility", `{"history_visibility":"world_readable"}`, "hidden"},
			{"m.room.history_visibility", `{"history_visibility":1}`, ""},
		} {
			state(other, int64(1000+i), step.evType, step.content)
			for range 2 {
				if got := search("hidden", 0); got != step.want {
					t.Errorf("%s: %q, want %q", step.content, got, step.want)
				}
			}
		}
		p.profiles = account.NewProfiles(account.ProfilesDeps{Store: p.store, ServerName: "example.org", Everyone: true})
		if got := search("hidden", 0); got != "hidden" {
			t.Errorf("everyone: %q", got)
		}
	})
}
