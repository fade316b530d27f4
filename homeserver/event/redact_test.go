package event

import "testing"

func TestRedactContent(t *testing.T) {
	const member = `{"membership":"join","join_authorised_via_users_server":"@a:b","displayname":"x","third_party_invite":{"display_name":"y","signed":{"token":"t"}}}`
	const levels = `{"ban":1,"events":{"a":1},"events_default":1,"historical":1,"invite":1,"kick":1,"notifications":{"room":1},"redact":1,"state_default":1,"users":{},"users_default":1}`
	for _, tc := range []struct{ versions, evType, content, want string }{
		{"1 5 8", typeMember, member, `{"membership":"join"}`},
		{"9 10", typeMember, member, `{"join_authorised_via_users_server":"@a:b","membership":"join"}`},
		{"11 12", typeMember, member, `{"join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"signed":{"token":"t"}}}`},
		{"11 12", typeMember, `{"third_party_invite":{"display_name":"y"}}`, `{"third_party_invite":{}}`},
		{"11 12", typeMember, `{"third_party_invite":"y"}`, `{}`},
		{"1 10", typeCreate, `{"creator":"@a:b","room_version":"1","m.federate":false}`, `{"creator":"@a:b"}`},
		{"11 12", typeCreate, `{"creator":"@a:b","room_version":"1","m.federate":false}`, `{"creator":"@a:b","m.federate":false,"room_version":"1"}`},
		{"1 7", typeJoinRules, `{"join_rule":"restricted","allow":[],"x":1}`, `{"join_rule":"restricted"}`},
		{"8 12", typeJoinRules, `{"join_rule":"restricted","allow":[],"x":1}`, `{"allow":[],"join_rule":"restricted"}`},
		{"1 10", typePowerLevels, levels, `{"ban":1,"events":{"a":1},"events_default":1,"kick":1,"redact":1,"state_default":1,"users":{},"users_default":1}`},
		{"11 12", typePowerLevels, levels, `{"ban":1,"events":{"a":1},"events_default":1,"invite":1,"kick":1,"redact":1,"state_default":1,"users":{},"users_default":1}`},
		{"1 5", typeAliases, `{"aliases":["#a:b"],"x":1}`, `{"aliases":["#a:b"]}`},
		{"6 12", typeAliases, `{"aliases":["#a:b"],"x":1}`, `{}`},
		{"1 12", typeHistoryVisibility, `{"history_visibility":"shared","x":1}`, `{"history_visibility":"shared"}`},
		{"1 10", typeRedaction, `{"redacts":"$a","reason":"x"}`, `{}`},
		{"11 12", typeRedaction, `{"redacts":"$a","reason":"x"}`, `{"redacts":"$a"}`},
		{"1 12", "m.room.message", `{"body":"x"}`, `{}`},
	} {
		for _, v := range versionsNamed(t, tc.versions) {
			got, err := v.RedactContent(tc.evType, []byte(tc.content))
			if err != nil || string(got) != tc.want {
				t.Errorf("v%s %s: got %s, %v; want %s", v.ID, tc.evType, got, err, tc.want)
			}
		}
	}
}

func TestRedactTopLevel(t *testing.T) {
	const pdu = `{"type":"m.x","unsigned":{"age":1},"origin":"a","prev_state":[],"membership":"join","redacts":"$a","age_ts":1,"content":{"a":1},"event_id":"$b","hashes":{},"signatures":{}}`
	for versions, want := range map[string]string{
		"1 10":  `{"content":{},"event_id":"$b","hashes":{},"membership":"join","origin":"a","prev_state":[],"signatures":{},"type":"m.x"}`,
		"11 12": `{"content":{},"event_id":"$b","hashes":{},"signatures":{},"type":"m.x"}`,
	} {
		for _, v := range versionsNamed(t, versions) {
			got, err := v.Redact([]byte(pdu))
			if err != nil || string(got) != want {
				t.Errorf("v%s: got %s, %v; want %s", v.ID, got, err, want)
			}
		}
	}
}
