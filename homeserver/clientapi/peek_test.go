package clientapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

func TestRoomInitialSync(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	room := alice.CreateRoomWith(`{"visibility":"public","initial_state":[{"type":"m.room.history_visibility","content":{"history_visibility":"world_readable"}}]}`)
	closed := alice.CreateRoom("private_chat")
	alice.Invite(closed, eve.UserID)
	texts(alice, room, 20)
	alice.Must(t, "PUT", `{"order":0.5}`, "/v3/user/%s/rooms/%s/tags/m.favourite", alice.UserID, room)
	m := alice.Must(t, "GET", "", "/v3/rooms/%s/initialSync", room)
	if got := bodies(m["messages"].(map[string]any), "chunk"); !slices.Equal(got, []string{"11", "12", "13", "14", "15", "16", "17", "18", "19", "20"}) {
		t.Errorf("the messages are %v", got)
	}
	if m["membership"] != "join" || m["visibility"] != "public" || hstest.At(m, "account_data", 0, "type") != "m.tag" {
		t.Errorf("the room is %v", m)
	}
	older := messages(t, alice, room, "dir=b&limit=1&from="+hstest.At(m, "messages", "start").(string))
	if got := bodies(older, "chunk"); !slices.Equal(got, []string{"10"}) {
		t.Errorf("before the start come %v", got)
	}
	peek := eve.Must(t, "GET", "", "/v3/rooms/%s/initialSync?limit=2", room)
	if got := bodies(peek["messages"].(map[string]any), "chunk"); !slices.Equal(got, []string{"19", "20"}) || peek["membership"] != nil {
		t.Errorf("a stranger sees %v", peek)
	}
	checkAll(t, []refusal{
		{"stranger", bob, "GET", "/v3/rooms/%s/initialSync", []any{closed}, "", 403, "M_FORBIDDEN"},
		{"invited", eve, "GET", "/v3/rooms/%s/initialSync", []any{closed}, "", 403, "M_FORBIDDEN"},
		{"no room", eve, "GET", "/v3/rooms/%s/initialSync", []any{"!x:test"}, "", 403, "M_FORBIDDEN"},
		{"events of a closed room", eve, "GET", "/v3/events?room_id=%s&timeout=0", []any{closed}, "", 403, "M_FORBIDDEN"},
		{"events, bad token", eve, "GET", "/v3/events?from=x", nil, "", 400, "M_INVALID_PARAM"},
		{"events, bad timeout", eve, "GET", "/v3/events?timeout=-1", nil, "", 400, "M_INVALID_PARAM"},
		{"no events", eve, "GET", "/v3/events?timeout=0", nil, "", 200, ""},
	})
	// Peeking goes on with /events from the end of the messages.
	from := hstest.At(peek, "messages", "end").(string)
	alice.Text(room, "21")
	m = eve.Must(t, "GET", "", "/v3/events?room_id=%s&from=%s&timeout=5000", room, from)
	if got := bodies(m, "chunk"); !slices.Equal(got, []string{"21"}) {
		t.Errorf("a stranger's news are %v", m)
	}
	done := make(chan map[string]any, 1)
	go func() { done <- eve.Must(t, "GET", "", "/v3/events?room_id=%s&from=%s&timeout=20000", room, m["end"]) }()
	time.Sleep(50 * time.Millisecond)
	alice.Text(room, "22")
	if got := bodies(<-done, "chunk"); !slices.Equal(got, []string{"22"}) {
		t.Errorf("who waited gets %v", got)
	}
	// Without a room the events of all joined rooms come.
	all := alice.Must(t, "GET", "", "/v3/events?from=%s&timeout=0", from)
	if got := bodies(all, "chunk"); !slices.Equal(got, []string{"21", "22"}) {
		t.Errorf("alice's news are %v", got)
	}
}

func TestReports(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		event := alice.Text(room, "rude")
		checkAll(t, []refusal{
			{"event", bob, "POST", "/v3/rooms/%s/report/%s", []any{room, event}, `{"reason":"rude","score":-100}`, 200, ""},
			{"event without a reason", bob, "POST", "/v3/rooms/%s/report/%s", []any{room, event}, ``, 200, ""},
			{"event from outside", eve, "POST", "/v3/rooms/%s/report/%s", []any{room, event}, `{}`, 404, "M_NOT_FOUND"},
			{"no event", bob, "POST", "/v3/rooms/%s/report/%s", []any{room, "$none"}, `{}`, 404, "M_NOT_FOUND"},
			{"reason is a number", bob, "POST", "/v3/rooms/%s/report/%s", []any{room, event}, `{"reason":1}`, 400, "M_BAD_JSON"},
			{"long reason", bob, "POST", "/v3/rooms/%s/report/%s", []any{room, event}, `{"reason":"` + strings.Repeat("x", 5000) + `"}`, 413, "M_TOO_LARGE"},
			{"room", eve, "POST", "/v3/rooms/%s/report", []any{room}, `{"reason":""}`, 200, ""},
			{"room without a reason", eve, "POST", "/v3/rooms/%s/report", []any{room}, `{}`, 400, "M_MISSING_PARAM"},
			{"no room", eve, "POST", "/v3/rooms/%s/report", []any{"!x:test"}, `{"reason":""}`, 404, "M_NOT_FOUND"},
			{"user", eve, "POST", "/v3/users/%s/report", []any{alice.UserID}, `{"reason":"spam"}`, 200, ""},
			{"unknown user", eve, "POST", "/v3/users/%s/report", []any{"@none:test"}, `{"reason":"spam"}`, 200, ""},
			{"no user", eve, "POST", "/v3/users/%s/report", []any{"none"}, `{"reason":"spam"}`, 400, "M_INVALID_PARAM"},
		})
		var got []string
		hs.Stop() // SQLite is for one process
		s := storetest.Open(t, store.Config{URL: string(hs.Config.Database.URL), DataDir: hs.Config.DataDir})
		err := s.Read(context.Background(), func(tx *store.Tx) error {
			reports, err := tx.Reports(store.MaxOrd, 100)
			for _, r := range reports {
				got = append(got, fmt.Sprintf("%s: %s %t %t %q", r.Reporter, r.User, r.Room == string(room), r.Event == string(event), r.Reason))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		want := []string{`@bob:test: @alice:test true true ""`, `@bob:test: @alice:test true true "rude"`, `@eve:test:  true false ""`,
			`@eve:test: @alice:test false false "spam"`, `@eve:test: @none:test false false "spam"`}
		if !slices.Equal(got, want) {
			t.Errorf("kept are\n%q, want\n%q", got, want)
		}
	})
}

func TestUpgrade(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, mod, eve, dan := hs.User("alice"), hs.User("bob"), hs.User("mod"), hs.User("eve"), hs.User("dan")
		for _, v := range []struct{ from, to string }{{"10", "12"}, {"12", "11"}, {"12", "12"}, {"1", "6"}} {
			t.Run(v.from+" to "+v.to, func(t *testing.T) {
				alias := fmt.Sprintf("room%s-%s", v.from, v.to)
				room := alice.CreateRoomWith(fmt.Sprintf(`{"visibility":"public","room_version":%q,"room_alias_name":%q,"name":"Name","topic":"Topic",
					"creation_content":{"type":"org.example.t"},"initial_state":[{"type":"m.room.encryption","content":{"algorithm":"m.megolm.v1.aes-sha2"}}]}`, v.from, alias))
				for _, c := range []*hstest.Client{bob, mod, dan} {
					c.Join(room)
				}
				levels := content(t, alice, room, "m.room.power_levels")
				users, _ := levels["users"].(map[string]any)
				users["@mod:test"] = 100
				// A tombstone within the moderator's reach, as in rooms from before version 12.
				levels["events"].(map[string]any)["m.room.tombstone"] = 100
				alice.State(room, "m.room.power_levels", "", string(must(json.Marshal(levels))))
				alice.Must(t, "POST", `{"user_id":"@eve:test","reason":"spam"}`, "/v3/rooms/%s/ban", room)
				dan.Must(t, "PUT", `{"order":0.5}`, "/v3/user/%s/rooms/%s/tags/m.favourite", dan.UserID, room)
				dan.Must(t, "PUT", fmt.Sprintf(`{"@alice:test":[%q]}`, room), "/v3/user/%s/account_data/m.direct", dan.UserID)
				body := fmt.Sprintf(`{"new_version":%q}`, v.to)
				const path = "/v3/rooms/%s/upgrade"
				checkAll(t, []refusal{
					{"without the right to", bob, "POST", path, []any{room}, body, 403, "M_FORBIDDEN"},
					{"stranger", eve, "POST", path, []any{room}, body, 403, "M_FORBIDDEN"},
					{"no room", alice, "POST", path, []any{"!x:test"}, body, 403, "M_FORBIDDEN"},
					{"no version", alice, "POST", path, []any{room}, `{}`, 400, "M_MISSING_PARAM"},
					{"unknown version", alice, "POST", path, []any{room}, `{"new_version":"99"}`, 400, "M_UNSUPPORTED_ROOM_VERSION"},
				})
				next := mod.Must(t, "POST", body, path, room)["replacement_room"].(string)
				create := mod.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.create", next)
				if create["room_version"] != v.to || create["type"] != "org.example.t" || hstest.At(create, "predecessor", "room_id") != string(room) {
					t.Errorf("the new room's m.room.create is %v", create)
				}
				for evType, want := range map[string]string{
					"m.room.name": "map[name:Name]", "m.room.join_rules": "map[join_rule:public]", "m.room.encryption": "map[algorithm:m.megolm.v1.aes-sha2]",
					"m.room.canonical_alias": fmt.Sprintf("map[alias:#%s:test]", alias),
				} {
					if got := fmt.Sprint(mod.Must(t, "GET", "", "/v3/rooms/%s/state/%s", next, evType)); got != want {
						t.Errorf("%s is %s, want %s", evType, got, want)
					}
				}
				levels = mod.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.power_levels", next)
				if listed := hstest.At(levels, "users", "@mod:test"); (listed == nil) != (v.to == "12") {
					t.Errorf("the new creator has the level %v", listed)
				}
				if got := hstest.At(levels, "users", "@alice:test"); v.from != "12" && got != 100.0 || v.to == "11" && got != 100.0 {
					t.Errorf("the old creator has the level %v", got)
				}
				if got := hstest.At(levels, "events", "m.room.tombstone"); v.to == "12" && got != 150.0 {
					t.Errorf("a tombstone needs %v", got)
				}
				if got := bob.Must(t, "GET", "", "/v3/directory/room/%s", "#"+alias+":test")["room_id"]; got != next {
					t.Errorf("the alias points to %v", got)
				}
				if got := bob.Must(t, "GET", "", "/v3/directory/list/room/%s", room)["visibility"]; got != "private" {
					t.Errorf("the old room is %v", got)
				}
				if got := bob.Must(t, "GET", "", "/v3/directory/list/room/%s", next)["visibility"]; got != "public" {
					t.Errorf("the new room is %v", got)
				}
				if got := content(t, alice, room, "m.room.tombstone")["replacement_room"]; got != next {
					t.Errorf("the tombstone names %v", got)
				}
				checkAll(t, []refusal{
					{"talk in the old room", bob, "PUT", "/v3/rooms/%s/send/m.room.message/x", []any{room}, `{"msgtype":"m.text","body":""}`, 403, "M_FORBIDDEN"},
					{"the banned", eve, "POST", "/v3/rooms/%s/join", []any{next}, `{}`, 403, "M_FORBIDDEN"},
					{"a member", dan, "POST", "/v3/rooms/%s/join", []any{next}, `{}`, 200, ""},
				})
				if tags := dan.Must(t, "GET", "", "/v3/user/%s/rooms/%s/tags", dan.UserID, next); hstest.At(tags, "tags", "m.favourite") == nil {
					t.Errorf("dan's tags in the new room are %v", tags)
				}
				if direct := fmt.Sprint(dan.Must(t, "GET", "", "/v3/user/%s/account_data/m.direct", dan.UserID)); !strings.Contains(direct, next) {
					t.Errorf("m.direct is %s", direct)
				}
			})
		}
	})
}

// Who may retire a room but not rule it gets a new room in which the same holds.
func TestUpgradeByModerator(t *testing.T) {
	hs := hstest.Start(t)
	alice, mod := hs.User("alice"), hs.User("mod")
	room := alice.CreateRoomWith(`{"preset":"public_chat","room_version":"10","power_level_content_override":
		{"users":{"@alice:test":100,"@mod:test":60},"events":{"m.room.tombstone":60,"m.room.power_levels":100,"m.room.history_visibility":100}}}`)
	mod.Join(room)
	next := mod.Must(t, "POST", `{"new_version":"11"}`, "/v3/rooms/%s/upgrade", room)["replacement_room"].(string)
	levels := mod.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.power_levels", next)
	if got := fmt.Sprint(levels["users"]); got != "map[@alice:test:100 @mod:test:60]" {
		t.Errorf("the levels of the new room are %s", got)
	}
	alice.Must(t, "POST", "{}", "/v3/rooms/%s/join", next)
	checkAll(t, []refusal{
		{"the moderator cannot rule", mod, "PUT", "/v3/rooms/%s/state/m.room.power_levels/", []any{next}, `{"users":{"@mod:test":100}}`, 403, "M_FORBIDDEN"},
		{"the old ruler can", alice, "PUT", "/v3/rooms/%s/state/m.room.power_levels/", []any{next}, `{"users":{"@alice:test":100}}`, 200, ""},
	})
}

// TestUpgradeGoesOn begins where a server stopped that had made the new room and not yet retired the old one.
func TestUpgradeGoesOn(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob := hs.User("alice"), hs.User("bob")
		old := alice.CreateRoomWith(`{"preset":"public_chat","visibility":"public","room_alias_name":"lobby","room_version":"11"}`)
		bob.Join(old)
		half := alice.CreateRoomWith(`{"preset":"public_chat","room_version":"12","creation_content":{"predecessor":{"room_id":"` + string(old) + `"}}}`)
		upgrade := func(version string) any {
			return alice.Must(t, "POST", `{"new_version":"`+version+`"}`, "/v3/rooms/%s/upgrade", old)["replacement_room"]
		}
		if other := upgrade("10"); other == string(half) {
			t.Error("a room of another version was taken")
		}
		if got := upgrade("12"); got != string(half) {
			t.Errorf("the replacement is %v, not %s", got, half)
		}
		if got := content(t, alice, old, "m.room.tombstone")["replacement_room"]; got != string(half) {
			t.Errorf("the tombstone names %v", got)
		}
		if again := upgrade("12"); again == string(half) {
			t.Error("a replacement that the old room knows was taken for one that was left behind")
		}
	})
}
