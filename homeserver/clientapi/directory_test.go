package clientapi_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

func TestAliases(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, carol, eve := hs.User("alice"), hs.User("bob"), hs.User("carol"), hs.User("eve")
		room := alice.CreateRoom("public_chat")
		bob.Join(room)
		carol.Join(room)
		body := fmt.Sprintf(`{"room_id":%q}`, room)
		const path = "/v3/directory/room/%s"
		checkAll(t, []refusal{
			{"member", bob, "PUT", path, []any{"#bobs:test"}, body, 200, ""},
			{"odd letters", alice, "PUT", path, []any{"#ä/ö ?:test"}, body, 200, ""},
			{"taken", alice, "PUT", path, []any{"#bobs:test"}, body, 409, "M_UNKNOWN"},
			{"of another server", bob, "PUT", path, []any{"#a:elsewhere"}, body, 400, "M_INVALID_PARAM"},
			{"no alias", bob, "PUT", path, []any{"a:test"}, body, 400, "M_INVALID_PARAM"},
			{"no server", bob, "PUT", path, []any{"#a"}, body, 400, "M_INVALID_PARAM"},
			{"too long", bob, "PUT", path, []any{"#" + strings.Repeat("a", 250) + ":test"}, body, 400, "M_INVALID_PARAM"},
			{"no room", bob, "PUT", path, []any{"#a:test"}, `{}`, 400, "M_MISSING_PARAM"},
			{"room is a number", bob, "PUT", path, []any{"#a:test"}, `{"room_id":1}`, 400, "M_BAD_JSON"},
			{"stranger", eve, "PUT", path, []any{"#a:test"}, body, 403, "M_FORBIDDEN"},
			{"unknown room", eve, "PUT", path, []any{"#a:test"}, `{"room_id":"!x:test"}`, 403, "M_FORBIDDEN"},
			{"read by nobody in particular", hs.Anonymous(), "GET", path, []any{"#ä/ö ?:test"}, "", 200, ""},
			{"read what is not there", eve, "GET", path, []any{"#none:test"}, "", 404, "M_NOT_FOUND"},
			{"read of another server", eve, "GET", path, []any{"#none:elsewhere"}, "", 404, "M_NOT_FOUND"},
			{"read no alias", eve, "GET", path, []any{"none"}, "", 400, "M_INVALID_PARAM"},
			{"list", carol, "GET", "/v3/rooms/%s/aliases", []any{room}, "", 200, ""},
			{"list from outside", eve, "GET", "/v3/rooms/%s/aliases", []any{room}, "", 403, "M_FORBIDDEN"},
		})
		alice.State(room, "m.room.canonical_alias", "", `{"alias":"#bobs:test","alt_aliases":["#ä/ö ?:test"]}`)
		if got := fmt.Sprint(bob.Must(t, "GET", "", "/v3/rooms/%s/aliases", room)["aliases"]); got != "[#bobs:test #ä/ö ?:test]" {
			t.Errorf("the aliases are %s", got)
		}
		checkAll(t, []refusal{
			{"delete without the right to", carol, "DELETE", path, []any{"#bobs:test"}, "", 403, "M_FORBIDDEN"},
			{"delete by its maker", bob, "DELETE", path, []any{"#bobs:test"}, "", 200, ""},
			{"delete what is gone", bob, "DELETE", path, []any{"#bobs:test"}, "", 404, "M_NOT_FOUND"},
			{"delete by power", alice, "DELETE", path, []any{"#ä/ö ?:test"}, "", 200, ""},
			{"join by what is gone", eve, "POST", "/v3/join/%s", []any{"#bobs:test"}, "{}", 404, "M_NOT_FOUND"},
		})
		if got := content(t, alice, room, "m.room.canonical_alias"); fmt.Sprint(got["alt_aliases"]) != "[]" {
			t.Errorf("m.room.canonical_alias still lists what alice deleted: %v", got)
		}
	})
}

func TestPublicRooms(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice, bob, carol := hs.User("alice"), hs.User("bob"), hs.User("carol")
		var rooms []id.RoomID
		for i := range 5 {
			rooms = append(rooms, alice.CreateRoomWith(fmt.Sprintf(`{"visibility":"public","name":"Room %d"}`, i)))
		}
		space := alice.CreateRoomWith(`{"visibility":"public","name":"Space","topic":"About Bees","room_alias_name":"hive","creation_content":{"type":"m.space"}}`)
		alice.CreateRoomWith(`{"name":"Secret Room"}`)
		bob.Join(rooms[3])
		carol.Join(rooms[3])
		bob.Join(rooms[1])
		names := func(m map[string]any) string {
			var out []string
			for _, r := range m["chunk"].([]any) {
				out = append(out, hstest.At(r, "name").(string))
			}
			return strings.Join(out, ",")
		}
		first := bob.Must(t, "GET", "", "/v3/publicRooms?limit=2")
		if names(first) != "Room 3,Room 1" || first["prev_batch"] != nil || first["total_room_count_estimate"] != 6.0 {
			t.Errorf("the first page is %v", first)
		}
		second := bob.Must(t, "GET", "", "/v3/publicRooms?limit=2&since=%s", first["next_batch"])
		third := bob.Must(t, "GET", "", "/v3/publicRooms?limit=2&since=%s", second["next_batch"])
		if names(second) != "Room 0,Room 2" || names(third) != "Room 4,Space" || third["next_batch"] != nil {
			t.Errorf("further pages are %v and %v", second, third)
		}
		back := bob.Must(t, "GET", "", "/v3/publicRooms?limit=2&since=%s", third["prev_batch"])
		if names(back) != names(second) {
			t.Errorf("back from the third page comes %v", back)
		}
		start := bob.Must(t, "GET", "", "/v3/publicRooms?limit=2&since=%s", back["prev_batch"])
		if names(start) != names(first) || start["prev_batch"] != nil || start["next_batch"] != first["next_batch"] {
			t.Errorf("back from the second page comes %v", start)
		}
		for body, want := range map[string]string{
			`{}`: "Room 3,Room 1,Room 0,Room 2,Room 4,Space",
			``:   "Room 3,Room 1,Room 0,Room 2,Room 4,Space",
			`{"filter":{"generic_search_term":"BEES"}}`:                            "Space",
			`{"filter":{"generic_search_term":"#hive"}}`:                           "Space",
			`{"filter":{"generic_search_term":"room 2"}}`:                          "Room 2",
			`{"filter":{"generic_search_term":"secret"}}`:                          "",
			`{"filter":{"room_types":["m.space"]}}`:                                "Space",
			`{"filter":{"room_types":[null]},"limit":2}`:                           "Room 3,Room 1",
			`{"filter":{"room_types":[null,"m.space"]}}`:                           "Room 3,Room 1,Room 0,Room 2,Room 4,Space",
			`{"filter":{"room_types":[]}}`:                                         "",
			`{"filter":{"room_types":["m.space"],"generic_search_term":"room 1"}}`: "",
			`{"third_party_instance_id":"irc"}`:                                    "",
		} {
			if got := names(bob.Must(t, "POST", body, "/v3/publicRooms")); got != want {
				t.Errorf("%s: %s, want %s", body, got, want)
			}
		}
		for _, r := range third["chunk"].([]any) {
			if hstest.At(r, "room_id") == string(space) && (hstest.At(r, "room_type") != "m.space" || hstest.At(r, "topic") != "About Bees" ||
				hstest.At(r, "canonical_alias") != "#hive:test" || hstest.At(r, "join_rule") != "public" || hstest.At(r, "num_joined_members") != 1.0) {
				t.Errorf("the space is described as %v", r)
			}
		}
		const list = "/v3/directory/list/room/%s"
		checkAll(t, []refusal{
			{"nobody", hs.Anonymous(), "GET", "/v3/publicRooms", nil, "", 401, "M_MISSING_TOKEN"},
			{"token", bob, "GET", "/v3/publicRooms?since=x", nil, "", 400, "M_INVALID_PARAM"},
			{"token out of range", bob, "GET", "/v3/publicRooms?since=n999", nil, "", 200, ""},
			{"limit", bob, "GET", "/v3/publicRooms?limit=-1", nil, "", 400, "M_INVALID_PARAM"},
			{"limit in the body", bob, "POST", "/v3/publicRooms", nil, `{"limit":-1}`, 400, "M_INVALID_PARAM"},
			{"limit is text", bob, "POST", "/v3/publicRooms", nil, `{"limit":"1"}`, 400, "M_BAD_JSON"},
			{"another server", bob, "GET", "/v3/publicRooms?server=elsewhere", nil, "", 404, "M_NOT_FOUND"},
			{"this server", bob, "GET", "/v3/publicRooms?server=test", nil, "", 200, ""},
			{"both networks", bob, "POST", "/v3/publicRooms", nil, `{"include_all_networks":true,"third_party_instance_id":"irc"}`, 400, "M_INVALID_PARAM"},
			{"hide without the right to", bob, "PUT", list, []any{rooms[1]}, `{"visibility":"private"}`, 403, "M_FORBIDDEN"},
			{"hide badly", alice, "PUT", list, []any{rooms[1]}, `{"visibility":"hidden"}`, 400, "M_BAD_JSON"},
			{"hide", alice, "PUT", list, []any{rooms[1]}, `{"visibility":"private"}`, 200, ""},
			{"hide no room", alice, "PUT", list, []any{"!x:test"}, `{"visibility":"private"}`, 404, "M_NOT_FOUND"},
			{"look at no room", alice, "GET", list, []any{"!x:test"}, ``, 404, "M_NOT_FOUND"},
		})
		if got := bob.Must(t, "GET", "", list, rooms[1])["visibility"]; got != "private" {
			t.Errorf("the hidden room is %v", got)
		}
		if got := names(bob.Must(t, "GET", "", "/v3/publicRooms")); strings.Contains(got, "Room 1") {
			t.Errorf("the hidden room is listed: %s", got)
		}
		alice.Must(t, "PUT", "{}", list, rooms[1])
		if got := bob.Must(t, "GET", "", list, rooms[1])["visibility"]; got != "public" {
			t.Errorf("the room that was shown again is %v", got)
		}
	})
}

func TestRoomSummary(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	public := alice.CreateRoomWith(`{"preset":"public_chat","name":"Open","room_alias_name":"open","initial_state":[
		{"type":"m.room.encryption","content":{"algorithm":"m.megolm.v1.aes-sha2"}},{"type":"m.room.avatar","content":{"url":"mxc://a/b"}},
		{"type":"m.room.topic","content":{"topic":"plain","m.topic":{"m.text":[{"body":"<b>","mimetype":"text/html"},{"body":"rich"}]}}}]}`)
	private := alice.CreateRoom("private_chat")
	bob.Join(public)
	rule := func(join string) id.RoomID {
		return alice.CreateRoomWith(fmt.Sprintf(`{"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":%q,"allow":[{"type":"m.room_membership","room_id":%q}]}}]}`, join, public))
	}
	knock, restricted := rule("knock"), rule("restricted")
	alice.Invite(private, eve.UserID)
	got := bob.Must(t, "GET", "", "/v1/room_summary/%s?via=x", "#open:test")
	for key, want := range map[string]any{
		"room_id": string(public), "name": "Open", "membership": "join", "join_rule": "public", "encryption": "m.megolm.v1.aes-sha2",
		"room_version": "12", "num_joined_members": 2.0, "canonical_alias": "#open:test", "avatar_url": "mxc://a/b", "topic": "rich",
		"world_readable": false, "guest_can_join": false,
	} {
		if got[key] != want {
			t.Errorf("%s is %v, want %v", key, got[key], want)
		}
	}
	if allowed := fmt.Sprint(bob.Must(t, "GET", "", "/v1/room_summary/%s", restricted)["allowed_room_ids"]); allowed != fmt.Sprintf("[%s]", public) {
		t.Errorf("allowed_room_ids is %s", allowed)
	}
	const path = "/v1/room_summary/%s"
	nobody := hs.Anonymous()
	checkAll(t, []refusal{
		{"nobody, public", nobody, "GET", path, []any{public}, "", 200, ""},
		{"nobody, knock", nobody, "GET", path, []any{knock}, "", 200, ""},
		{"nobody, private", nobody, "GET", path, []any{private}, "", 404, "M_NOT_FOUND"},
		{"nobody, restricted", nobody, "GET", path, []any{restricted}, "", 404, "M_NOT_FOUND"},
		{"invited", eve, "GET", path, []any{private}, "", 200, ""},
		{"not invited", bob, "GET", path, []any{private}, "", 404, "M_NOT_FOUND"},
		{"restricted, in no allowed room", eve, "GET", path, []any{restricted}, "", 404, "M_NOT_FOUND"},
		{"unstable", eve, "GET", "/unstable/im.nheko.summary/summary/%s", []any{public}, "", 200, ""},
		{"no room", eve, "GET", path, []any{"!x:elsewhere"}, "", 404, "M_NOT_FOUND"},
		{"nothing", eve, "GET", path, []any{"x"}, "", 400, "M_INVALID_PARAM"},
	})
}

func TestHierarchy(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	space := func(name, preset string) id.RoomID {
		return alice.CreateRoomWith(fmt.Sprintf(`{"preset":%q,"name":%q,"creation_content":{"type":"m.space"}}`, preset, name))
	}
	child := func(parent, room id.RoomID, content string) {
		alice.State(parent, "m.space.child", string(room), content)
	}
	plain := func(name, preset string) id.RoomID {
		return alice.CreateRoomWith(fmt.Sprintf(`{"preset":%q,"name":%q}`, preset, name))
	}
	root, sub := space("root", "public_chat"), space("sub", "public_chat")
	first, second, deep, hidden, suggested := plain("first", "public_chat"), plain("second", "public_chat"), plain("deep", "public_chat"), plain("hidden", "private_chat"), plain("suggested", "public_chat")
	const via = `"via":["test"]`
	child(root, second, `{`+via+`}`)
	child(root, first, `{`+via+`,"order":"b"}`)
	child(root, sub, `{`+via+`,"order":"a"}`)
	child(root, hidden, `{`+via+`}`)
	child(root, suggested, `{`+via+`,"suggested":true,"order":"\u0001"}`)
	child(root, "!elsewhere:elsewhere", `{"via":["elsewhere"]}`)
	child(root, plain("removed", "public_chat"), `{}`)
	child(sub, deep, `{`+via+`}`)
	child(sub, root, `{`+via+`}`) // a loop
	names := func(m map[string]any) string {
		var out []string
		for _, r := range m["rooms"].([]any) {
			out = append(out, hstest.At(r, "name").(string))
		}
		return strings.Join(out, " ")
	}
	const path = "/v1/rooms/%s/hierarchy"
	for query, want := range map[string]string{
		"":                     "root sub deep first second suggested",
		"?max_depth=1":         "root sub first second suggested",
		"?max_depth=0":         "root",
		"?suggested_only=true": "root suggested",
		"?max_depth=99":        "root sub deep first second suggested",
	} {
		if got := names(bob.Must(t, "GET", "", path+query, root)); got != want {
			t.Errorf("hierarchy%s: %s, want %s", query, got, want)
		}
	}
	if got := names(alice.Must(t, "GET", "", path, root)); got != "root sub deep first second hidden suggested" {
		t.Errorf("alice, who is in all of them, sees %s", got)
	}
	var pages []string
	from := ""
	for range 9 {
		m := bob.Must(t, "GET", "", path+"?limit=4"+from, root)
		pages = append(pages, names(m))
		next, ok := m["next_batch"].(string)
		if !ok {
			break
		}
		from = "&from=" + next
	}
	if !slices.Equal(pages, []string{"root sub deep first", "second suggested"}) {
		t.Errorf("pages are %q", pages)
	}
	if n := len(hstest.At(bob.Must(t, "GET", "", path, root), "rooms", 0, "children_state").([]any)); n != 6 {
		t.Errorf("the root lists %d children, want 6: all with via", n)
	}
	token := from[len("&from="):]
	checkAll(t, []refusal{
		{"a token of other parameters", bob, "GET", path + "?max_depth=1&from=" + token, []any{root}, "", 400, "M_INVALID_PARAM"},
		{"no token", bob, "GET", path + "?from=x", []any{root}, "", 400, "M_INVALID_PARAM"},
		{"limit", bob, "GET", path + "?limit=0", []any{root}, "", 400, "M_INVALID_PARAM"},
		{"depth", bob, "GET", path + "?max_depth=-1", []any{root}, "", 400, "M_INVALID_PARAM"},
		{"suggested", bob, "GET", path + "?suggested_only=1", []any{root}, "", 400, "M_INVALID_PARAM"},
		{"private", bob, "GET", path, []any{hidden}, "", 403, "M_FORBIDDEN"},
		{"no room", bob, "GET", path, []any{"!x:test"}, "", 403, "M_FORBIDDEN"},
	})
}
