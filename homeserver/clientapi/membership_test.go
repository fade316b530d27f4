package clientapi_test

import (
	"fmt"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
)

func TestJoinRules(t *testing.T) { hstest.Each(t, testJoinRules) }

func testJoinRules(t *testing.T, hs *hstest.Server) {
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	public := alice.CreateRoomWith(`{"preset":"public_chat","room_alias_name":"open"}`)
	invite := alice.CreateRoom("private_chat")
	knock := alice.CreateRoomWith(`{"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":"knock"}}]}`)
	private := alice.CreateRoomWith(`{"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":"private"}}]}`)
	rule := `{"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":%q,"allow":[{"type":"m.room_membership","room_id":%q}]}}]}`
	restricted := alice.CreateRoomWith(fmt.Sprintf(rule, "restricted", public))
	both := alice.CreateRoomWith(fmt.Sprintf(rule, "knock_restricted", public))
	alice.Invite(private, bob.UserID)
	bob.Join(public)
	checkAll(t, []refusal{
		{"public", eve, "POST", "/v3/join/%s", []any{"#open:test"}, "", 200, ""},
		{"public again", eve, "POST", "/v3/join/%s?server_name=elsewhere&via=b", []any{public}, "{}", 200, ""},
		{"public, left again", eve, "POST", "/v3/rooms/%s/leave", []any{public}, "", 200, ""},
		{"left twice", eve, "POST", "/v3/rooms/%s/leave", []any{public}, "", 200, ""},
		{"invite", bob, "POST", "/v3/rooms/%s/join", []any{invite}, "{}", 403, "M_FORBIDDEN"},
		{"private with an invitation", bob, "POST", "/v3/rooms/%s/join", []any{private}, "{}", 403, "M_FORBIDDEN"},
		{"knock room", bob, "POST", "/v3/rooms/%s/join", []any{knock}, "{}", 403, "M_FORBIDDEN"},
		{"knock", bob, "POST", "/v3/knock/%s", []any{knock}, `{"reason":"let me in"}`, 200, ""},
		{"knock again", bob, "POST", "/v3/knock/%s", []any{knock}, ``, 200, ""},
		{"knock where it is no use", eve, "POST", "/v3/knock/%s", []any{invite}, ``, 403, "M_FORBIDDEN"},
		{"knock in no room", eve, "POST", "/v3/knock/%s", []any{"!nothing:test"}, ``, 404, "M_NOT_FOUND"},
		{"restricted", bob, "POST", "/v3/rooms/%s/join", []any{restricted}, `{"reason":"x"}`, 200, ""},
		{"restricted, in no allowed room", eve, "POST", "/v3/rooms/%s/join", []any{restricted}, "{}", 403, "M_FORBIDDEN"},
		{"knock_restricted", bob, "PUT", "/v3/rooms/%s/state/m.room.member/%s", []any{both, bob.UserID}, `{"membership":"join"}`, 200, ""},
		{"knock_restricted, in no allowed room", eve, "POST", "/v3/rooms/%s/join", []any{both}, "{}", 403, "M_FORBIDDEN"},
		{"knock_restricted, knock", eve, "POST", "/v3/knock/%s", []any{both}, "{}", 200, ""},
		{"no such room", bob, "POST", "/v3/rooms/%s/join", []any{"!nothing:elsewhere"}, "{}", 404, "M_NOT_FOUND"},
		{"no such alias", bob, "POST", "/v3/join/%s", []any{"#nothing:test"}, "{}", 404, "M_NOT_FOUND"},
		{"alias elsewhere", bob, "POST", "/v3/join/%s", []any{"#nothing:elsewhere"}, "{}", 404, "M_NOT_FOUND"},
		{"neither", bob, "POST", "/v3/join/%s", []any{"nothing"}, "{}", 400, "M_INVALID_PARAM"},
		{"alias for an id", bob, "POST", "/v3/rooms/%s/join", []any{"#open:test"}, "{}", 400, "M_INVALID_PARAM"},
		{"bad body", bob, "POST", "/v3/rooms/%s/join", []any{public}, `{"reason":1}`, 400, "M_BAD_JSON"},
		{"no JSON", bob, "POST", "/v3/rooms/%s/join", []any{public}, `{`, 400, "M_NOT_JSON"},
		{"leave what one is not in", bob, "POST", "/v3/rooms/%s/leave", []any{invite}, "", 403, "M_FORBIDDEN"},
		{"leave what is not there", bob, "POST", "/v3/rooms/%s/leave", []any{"!nothing:test"}, "", 403, "M_FORBIDDEN"},
	})
	member := alice.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.member/%s", restricted, bob.UserID)
	if member["join_authorised_via_users_server"] != "@alice:test" || member["reason"] != "x" {
		t.Errorf("bob's restricted join is %v", member)
	}
	if member := alice.Must(t, "GET", "", "/v3/rooms/%s/state/m.room.member/%s", knock, bob.UserID); member["reason"] != "let me in" {
		t.Errorf("bob's knock is %v", member)
	}
	if got := len(bob.Must(t, "GET", "", "/v3/joined_rooms")["joined_rooms"].([]any)); got != 3 {
		t.Errorf("bob is in %d rooms, want 3", got)
	}
}

func TestMembershipChanges(t *testing.T) { hstest.Each(t, testMembershipChanges) }

func testMembershipChanges(t *testing.T, hs *hstest.Server) {
	alice, bob, carol, dave, eve := hs.User("alice"), hs.User("bob"), hs.User("carol"), hs.User("dave"), hs.User("eve")
	bob.Must(t, "PUT", `{"displayname":"Bob"}`, "/v3/profile/%s/displayname", bob.UserID)
	dave.Must(t, "PUT", `{"default_action":"block"}`, "/v3/user/%s/account_data/m.invite_permission_config", dave.UserID)
	room := alice.CreateRoomWith(`{"preset":"public_chat"}`)
	carol.Join(room)
	const base = "/v3/rooms/%s/"
	in := []any{room}
	checkAll(t, []refusal{
		{"invite", alice, "POST", base + "invite", in, `{"user_id":"@bob:test","reason":"hi"}`, 200, ""},
		{"invite twice", alice, "POST", base + "invite", in, `{"user_id":"@bob:test"}`, 200, ""},
		{"invite twice without the right to", carol, "POST", base + "invite", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"invite without the right to", carol, "POST", base + "invite", in, `{"user_id":"@eve:test"}`, 403, "M_FORBIDDEN"},
		{"invite a member", alice, "POST", base + "invite", in, `{"user_id":"@carol:test"}`, 403, "M_FORBIDDEN"},
		{"invite from outside", eve, "POST", base + "invite", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"invite to no room", eve, "POST", base + "invite", []any{"!x:test"}, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"invite nobody", alice, "POST", base + "invite", in, `{}`, 400, "M_MISSING_PARAM"},
		{"invite no user", alice, "POST", base + "invite", in, `{"user_id":"bob"}`, 400, "M_INVALID_PARAM"},
		{"invite a number", alice, "POST", base + "invite", in, `{"user_id":5}`, 400, "M_BAD_JSON"},
		{"invite by address", alice, "POST", base + "invite", in, `{"id_server":"x","id_access_token":"y","medium":"email","address":"a@b"}`, 400, "M_SERVER_NOT_TRUSTED"},
		{"invite who blocks it", alice, "POST", base + "invite", in, `{"user_id":"@dave:test"}`, 403, "M_INVITE_BLOCKED"},
		{"invite who blocks it, by state", alice, "PUT", base + "state/m.room.member/%s", []any{room, dave.UserID}, `{"membership":"invite"}`, 403, "M_INVITE_BLOCKED"},
		{"reject the invitation", bob, "POST", base + "leave", in, `{"reason":"no"}`, 200, ""},
		{"invite again", alice, "POST", base + "invite", in, `{"user_id":"@bob:test"}`, 200, ""},
		{"forget while invited", bob, "POST", base + "forget", in, ``, 400, "M_UNKNOWN"},
		{"accept the invitation", bob, "POST", base + "join", in, ``, 200, ""},
		{"forget while joined", bob, "POST", base + "forget", in, ``, 400, "M_UNKNOWN"},
		{"kick without the right to", bob, "POST", base + "kick", in, `{"user_id":"@carol:test"}`, 403, "M_FORBIDDEN"},
		{"kick a stranger", alice, "POST", base + "kick", in, `{"user_id":"@eve:test"}`, 403, "M_FORBIDDEN"},
		{"kick from outside", eve, "POST", base + "kick", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"kick", alice, "POST", base + "kick", in, `{"user_id":"@bob:test","reason":"bye"}`, 200, ""},
		{"kick twice", alice, "POST", base + "kick", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"unban who is not banned", alice, "POST", base + "unban", in, `{"user_id":"@bob:test"}`, 403, "M_BAD_STATE"},
		{"ban", alice, "POST", base + "ban", in, `{"user_id":"@bob:test","reason":"spam"}`, 200, ""},
		{"ban without the right to", carol, "POST", base + "ban", in, `{"user_id":"@eve:test"}`, 403, "M_FORBIDDEN"},
		{"ban the creator", carol, "POST", base + "ban", in, `{"user_id":"@alice:test"}`, 403, "M_FORBIDDEN"},
		{"join while banned", bob, "POST", base + "join", in, ``, 403, "M_FORBIDDEN"},
		{"leave while banned", bob, "POST", base + "leave", in, ``, 403, "M_FORBIDDEN"},
		{"invite the banned", alice, "POST", base + "invite", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"kick the banned", alice, "POST", base + "kick", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"unban without the right to", carol, "POST", base + "unban", in, `{"user_id":"@bob:test"}`, 403, "M_FORBIDDEN"},
		{"unban", alice, "POST", base + "unban", in, `{"user_id":"@bob:test"}`, 200, ""},
		{"read while remembered", bob, "GET", base + "state", in, ``, 200, ""},
		{"forget", bob, "POST", base + "forget", in, ``, 200, ""},
		{"read after forgetting", bob, "GET", base + "state", in, ``, 403, "M_FORBIDDEN"},
		{"messages after forgetting", bob, "GET", base + "messages?dir=b", in, ``, 403, "M_FORBIDDEN"},
		{"join after forgetting", bob, "POST", base + "join", in, ``, 200, ""},
		{"read after joining again", bob, "GET", base + "state", in, ``, 200, ""},
		{"forget what one never knew", eve, "POST", base + "forget", in, ``, 404, "M_NOT_FOUND"},
		{"join someone else", alice, "PUT", base + "state/m.room.member/%s", []any{room, eve.UserID}, `{"membership":"join"}`, 403, "M_FORBIDDEN"},
		{"membership of no user", alice, "PUT", base + "state/m.room.member/%s", []any{room, "eve"}, `{"membership":"join"}`, 400, "M_INVALID_PARAM"},
		{"name for one room", bob, "PUT", base + "state/m.room.member/%s", []any{room, bob.UserID}, `{"membership":"join","displayname":"Robert"}`, 200, ""},
	})
	var reasons []any
	for _, e := range alice.Must(t, "GET", "", "/v3/rooms/%s/messages?dir=f&limit=100", room)["chunk"].([]any) {
		if hstest.At(e, "state_key") == "@bob:test" {
			reasons = append(reasons, hstest.At(e, "content", "membership"), hstest.At(e, "content", "reason"), hstest.At(e, "content", "displayname"))
		}
	}
	want := []any{"invite", "hi", "Bob", "leave", "no", nil, "invite", nil, "Bob", "join", nil, "Bob", "leave", "bye", nil, "ban", "spam", nil,
		"leave", nil, nil, "join", nil, "Bob", "join", nil, "Robert"}
	if fmt.Sprint(reasons) != fmt.Sprint(want) {
		t.Errorf("bob's memberships are\n%v, want\n%v", reasons, want)
	}
}

// A join costs the same in a room of any size: it reads no member list and writes a fixed number of rows.
func BenchmarkJoin(b *testing.B) {
	hs := hstest.Start(b)
	alice, bob := hs.User("alice"), hs.User("bob")
	room := alice.CreateRoom("public_chat")
	for b.Loop() {
		bob.Join(room)
		bob.Leave(room)
	}
}
