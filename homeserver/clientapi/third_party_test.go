package clientapi_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/hstest"
)

// A user who proves to own an invited address gets in: the proof is signed by the identity server that the room names.
func TestThirdPartySigned(t *testing.T) {
	hs := hstest.Start(t)
	alice, bob, eve := hs.User("alice"), hs.User("bob"), hs.User("eve")
	room := alice.CreateRoom("private_chat")
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	public := base64.RawStdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	alice.State(room, "m.room.third_party_invite", "token", fmt.Sprintf(`{"display_name":"b...","key_validity_url":"https://id/v","public_key":%q}`, public))
	proof := func(mxid, token, sender string) string {
		signed, err := event.SignJSON([]byte(fmt.Sprintf(`{"mxid":%q,"token":%q}`, mxid, token)), "id.example", event.SigningKey{KeyID: "ed25519:0", Private: key})
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(signed, &m); err != nil {
			t.Fatal(err)
		}
		m["sender"] = sender
		return fmt.Sprintf(`{"third_party_signed":%s}`, must(json.Marshal(m)))
	}
	good := proof("@bob:test", "token", "@alice:test")
	const path = "/v3/rooms/%s/join"
	checkAll(t, []refusal{
		{"someone else's proof", eve, "POST", path, []any{room}, good, 403, "M_FORBIDDEN"},
		{"another invitation", bob, "POST", path, []any{room}, proof("@bob:test", "other", "@alice:test"), 403, "M_FORBIDDEN"},
		{"another inviter", bob, "POST", path, []any{room}, proof("@bob:test", "token", "@eve:test"), 403, "M_FORBIDDEN"},
		{"an inviter elsewhere", bob, "POST", path, []any{room}, proof("@bob:test", "token", "@eve:elsewhere"), 403, "M_FORBIDDEN"},
		{"no signature", bob, "POST", path, []any{room}, `{"third_party_signed":{"mxid":"@bob:test","token":"token","sender":"@alice:test","signatures":{}}}`, 403, "M_FORBIDDEN"},
		{"signatures of a wrong shape", bob, "POST", path, []any{room}, `{"third_party_signed":{"mxid":"@bob:test","token":"token","sender":"@alice:test","signatures":1}}`, 400, "M_BAD_JSON"},
		{"the proof", bob, "POST", path, []any{room}, good, 200, ""},
	})
	if got := membersOf(t, alice, room, ""); got != "map[@alice=join:true @bob=join:true]" {
		t.Errorf("the members are %s", got)
	}
}
