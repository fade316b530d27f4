package clientapi_test

import (
	"fmt"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// What one process has allowed another does not deny, however far its memory lags.
func TestNodesDoNotDeny(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hstest.Start(t, db), hstest.Start(t, db)
	alice, bob := a.User("alice"), a.User("bob")
	aliceB, bobB := alice.On(b), bob.On(b)
	open := alice.CreateRoom("public_chat")
	list(t, aliceB, "/v3/rooms/%s/state", open)
	for i := range 10 {
		bob.Join(open)
		checkAll(t, []refusal{
			{"state", bobB, "GET", "/v3/rooms/%s/state", []any{open}, "", 200, ""},
			{"kick", aliceB, "POST", "/v3/rooms/%s/kick", []any{open}, `{"user_id":"@bob:test"}`, 200, ""},
			{"ban", alice, "POST", "/v3/rooms/%s/ban", []any{open}, `{"user_id":"@bob:test"}`, 200, ""},
			{"unban", aliceB, "POST", "/v3/rooms/%s/unban", []any{open}, `{"user_id":"@bob:test"}`, 200, ""},
			{"invite", alice, "POST", "/v3/rooms/%s/invite", []any{open}, `{"user_id":"@bob:test"}`, 200, ""},
			{"reject", bobB, "POST", "/v3/rooms/%s/leave", []any{open}, ``, 200, ""},
		})
		restricted := alice.CreateRoomWith(fmt.Sprintf(`{"initial_state":[{"type":"m.room.join_rules","content":
			{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}}]}`, open))
		alice.Must(t, "POST", `{"user_id":"@bob:test"}`, "/v3/rooms/%s/invite", restricted)
		checkAll(t, []refusal{{fmt.Sprint("restricted by invitation ", i), bobB, "POST", "/v3/rooms/%s/join", []any{restricted}, "{}", 200, ""}})
	}
}
