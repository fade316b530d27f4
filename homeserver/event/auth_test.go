package event

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// allows fails the test unless the rules answer as wanted; a denial must be M_FORBIDDEN and hold the words of want.
func (s *sim) allows(t *testing.T, b *branch, sender id.UserID, evType string, stateKey *string, content, want string) {
	t.Helper()
	p := s.proto(b, sender, evType, stateKey, content)
	err := s.v.CheckProto(p, b.state)
	switch {
	case want == "" && err != nil:
		t.Errorf("v%s: %s may not send %s %s: %v", s.v.ID, sender, evType, content, err)
	case want != "" && (!mxerr.Is(err, "M_FORBIDDEN") || !strings.Contains(err.Error(), want)):
		t.Errorf("v%s: %s sends %s %s: got %v, want a denial with %q", s.v.ID, sender, evType, content, err, want)
	}
	if built := Check(s.build(p), b.state); fmt.Sprint(built) != fmt.Sprint(err) {
		t.Errorf("v%s: Check says %v, CheckProto %v", s.v.ID, built, err)
	}
}

func TestMessages(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, dave, dave, join)
		s.allows(t, b, dave, "m.room.message", nil, `{"body":"hi"}`, "")
		s.allows(t, b, eve, "m.room.message", nil, `{"body":"hi"}`, "@eve:third is not in this room")
		s.allows(t, b, dave, "m.room.name", ptr(""), `{"name":"x"}`, "you need power level 50 to send m.room.name in this room; yours is 0")
		s.allows(t, b, alice, "m.room.name", ptr(""), `{"name":"x"}`, "")
		s.allows(t, b, alice, "org.x", ptr(string(dave)), `{}`, "a state key that is a user id")
		s.allows(t, b, alice, "org.x", ptr(string(alice)), `{}`, "")
		s.allows(t, b, dave, typeThirdPartyInvite, ptr("t"), `{}`, "")
		s.allows(t, b, dave, typeMember, nil, `{"membership":"join"}`, "must have a state key")
		s.allows(t, b, dave, typeMember, ptr(string(dave)), `{"membership":1}`, "must have a state key and a membership")
		if err := v.CheckProto(s.proto(b, alice, typeCreate, ptr(""), `{}`), b.state); !mxerr.Is(err, "M_FORBIDDEN") {
			t.Errorf("a second m.room.create: %v", err)
		}
	})
}

func TestAliasesAndRedactionsOfOldVersions(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		outside, other := "", "server name"
		if !v.AliasesAuth {
			outside, other = "not in this room", "not in this room"
		}
		// Before version 6 anyone, also from outside, sends the aliases of his server.
		s.allows(t, b, eve, typeAliases, ptr("third"), `{"aliases":[]}`, outside)
		s.allows(t, b, eve, typeAliases, ptr("domain"), `{"aliases":[]}`, other)

		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, bob, bob, join)
		s.member(b, dave, dave, join)
		p := s.proto(b, dave, typeRedaction, nil, `{}`)
		p.Redacts = "$x:domain"
		if err := v.CheckProto(p, b.state); (err == nil) == v.RedactionAuth {
			t.Errorf("redacting another server's event: %v", err)
		}
		p.Redacts = "$x:other"
		if err := v.CheckProto(p, b.state); err != nil {
			t.Errorf("redacting the own server's event: %v", err)
		}
	})
}

func TestCreate(t *testing.T) {
	key := testKey(t)
	for _, tc := range []struct{ versions, name, content, room, want string }{
		{"1 11", "plain", `{"creator":"@alice:domain"}`, "!r:domain", ""},
		{"1 10", "no creator", `{}`, "!r:domain", "must name the creator"},
		{"11", "no creator", `{}`, "!r:domain", ""},
		{"1 11", "other server", `{"creator":"@alice:domain"}`, "!r:other", "must be of the sender's server"},
		{"1 11", "unknown version", `{"creator":"@alice:domain","room_version":"99"}`, "!r:domain", "is not known"},
		{"1 11", "odd version", `{"creator":"@alice:domain","room_version":5}`, "!r:domain", "is not known"},
		{"12", "with room id", `{}`, "!r:domain", "no room id"},
		{"12", "plain", `{"room_version":"12","additional_creators":["@bob:other"]}`, "", ""},
		{"12", "creators no list", `{"additional_creators":"@bob:other"}`, "", "must be a list"},
		{"12", "creators no strings", `{"additional_creators":[1]}`, "", "no user id"},
		{"12", "creators no users", `{"additional_creators":["bob"]}`, "", "no user id"},
	} {
		for _, v := range versionsNamed(t, tc.versions) {
			p := &Proto{RoomID: id.RoomID(tc.room), Sender: alice, Type: typeCreate, StateKey: ptr(""), Content: []byte(tc.content), OriginServerTS: 1}
			err := v.CheckProto(p, StateMap{})
			if tc.want == "" && err != nil || tc.want != "" && (!mxerr.Is(err, "M_FORBIDDEN") || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("v%s %s: got %v, want %q", v.ID, tc.name, err, tc.want)
			}
			p.PrevEvents = []id.EventID{"$x"}
			if err := v.CheckProto(p, StateMap{}); !mxerr.Is(err, "M_FORBIDDEN") {
				t.Errorf("v%s %s: with prev_events: %v", v.ID, tc.name, err)
			}
		}
	}
	v, _ := LookupVersion("12")
	if err := v.CheckProto(&Proto{Sender: alice, Type: "m.x", Content: []byte(`{}`)}, StateMap{}); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("without a create event: %v", err)
	}
	s, b := newSim(t, v, key, "")
	p := s.proto(b, alice, "m.room.message", nil, `{}`)
	p.RoomID = roomIDFor(v)
	if err := v.CheckProto(p, b.state); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("in another room: %v", err)
	}
}

func TestFederate(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), `,"m.federate":false`)
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.allows(t, b, bob, typeMember, ptr(string(bob)), `{"membership":"join"}`, "")
		s.allows(t, b, eve, typeMember, ptr(string(eve)), `{"membership":"join"}`, "closed to other servers")
	})
}

func TestMembership(t *testing.T) {
	// For each membership that a user has, what the memberships that follow need. "-" is never allowed.
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		l := fullLevels(v)
		l.Invite = ptr(int64(50))
		s.must(b, alice, typePowerLevels, ptr(""), l.json())
		member := func(b *branch, sender, target id.UserID, membership, want string) {
			t.Helper()
			s.allows(t, b, sender, typeMember, ptr(string(target)), `{"membership":"`+membership+`"}`, want)
		}
		member(b, bob, bob, join, "for invited users only")
		member(b, bob, bob, knock, map[bool]string{true: "does not take requests", false: "not known"}[v.Knock])
		member(b, bob, bob, "dance", "is not known in room version")
		member(b, alice, bob, join, "for someone else")
		member(b, alice, bob, leave, "") // removing one who was never there
		s.member(b, alice, bob, invite)
		member(b, bob, bob, leave, "")
		member(b, bob, carol, invite, "is not in this room")
		s.member(b, bob, bob, join)
		member(b, alice, bob, invite, "already in this room")
		member(b, bob, alice, ban, "not below yours")
		s.member(b, bob, dave, invite)
		s.member(b, dave, dave, join)
		member(b, dave, carol, invite, "you need power level 50 to invite someone to this room; yours is 0")
		member(b, dave, bob, leave, "you need power level 50 to remove someone from this room")
		member(b, dave, bob, ban, "you need power level 50 to ban someone from this room")
		s.member(b, bob, dave, ban)
		member(b, dave, dave, join, "banned")
		member(b, dave, dave, leave, "banned")
		member(b, alice, dave, invite, "banned")
		s.member(b, bob, dave, leave)
		member(b, dave, dave, leave, "is not in this room")

		// Unbanning needs the ban level and the kick level, and to be above the target.
		l.Ban = ptr(int64(80))
		unban := b.fork()
		s.member(unban, bob, dave, ban)
		s.must(unban, alice, typePowerLevels, ptr(""), l.json())
		member(unban, bob, dave, leave, "you need power level 80 to unban someone in this room; yours is 75")
		l.Ban, l.Kick = ptr(int64(50)), ptr(int64(80))
		s.must(unban, alice, typePowerLevels, ptr(""), l.json())
		member(unban, bob, dave, leave, "you need power level 80 to remove someone")
	})
}

func TestJoinRules(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.member(b, alice, dave, invite)
		try := func(rule string, user id.UserID, content, want string) {
			t.Helper()
			b := b.fork()
			s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"`+rule+`"}`)
			s.allows(t, b, user, typeMember, ptr(string(user)), content, want)
		}
		const joins, knocks, vouched = `{"membership":"join"}`, `{"membership":"knock"}`, `{"membership":"join","join_authorised_via_users_server":"@alice:domain"}`
		try("public", eve, joins, "")
		try("invite", eve, joins, "invited users only")
		try("invite", dave, joins, "")
		try("private", dave, joins, "lets nobody in")
		is := func(ok bool, want string) string {
			if ok {
				return want
			}
			return "lets nobody in"
		}
		try("knock", dave, joins, is(v.Knock, ""))
		try("restricted", dave, joins, is(v.Restricted, ""))
		try("knock_restricted", dave, joins, is(v.KnockRestricted, ""))
		if v.Restricted {
			try("restricted", eve, vouched, "")
			try("restricted", eve, joins, "no member vouches")
			try("restricted", eve, `{"membership":"join","join_authorised_via_users_server":"@dave:other"}`, "is not in this room")
			try("restricted", eve, `{"membership":"join","join_authorised_via_users_server":1}`, "no member vouches")
		} else {
			try("restricted", eve, vouched, "invited users only")
		}
		if v.KnockRestricted {
			try("knock_restricted", eve, vouched, "")
			try("knock_restricted", eve, knocks, "")
		} else if v.Knock {
			try("knock_restricted", eve, knocks, "does not take requests")
		}
		if v.Knock {
			try("knock", eve, knocks, "")
			try("knock", dave, knocks, "already invited")
			try("public", eve, knocks, "does not take requests")
			try("restricted", eve, knocks, "does not take requests")
			b := b.fork()
			s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"knock"}`)
			s.must(b, eve, typeMember, ptr(string(eve)), knocks)
			s.allows(t, b, eve, typeMember, ptr(string(eve)), joins, "invited users only")
			s.allows(t, b, eve, typeMember, ptr(string(eve)), `{"membership":"leave"}`, "")
			s.allows(t, b, alice, typeMember, ptr(string(eve)), `{"membership":"invite"}`, "")
		}
	})
}

// Who vouches for a join must be able to invite.
func TestVouchingNeedsPower(t *testing.T) {
	for _, v := range versionsNamed(t, "8 12") {
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, dave, dave, join)
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"restricted"}`)
		l := fullLevels(v)
		l.Invite = ptr(int64(50))
		s.must(b, alice, typePowerLevels, ptr(""), l.json())
		s.allows(t, b, eve, typeMember, ptr(string(eve)), `{"membership":"join","join_authorised_via_users_server":"@dave:other"}`, "may not invite")
		s.allows(t, b, eve, typeMember, ptr(string(eve)), `{"membership":"join","join_authorised_via_users_server":"@alice:domain"}`, "")
	}
}

func TestThirdPartyInvite(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		key := testKey(t)
		public := base64.RawStdEncoding.EncodeToString(key.public())
		other := base64.RawStdEncoding.EncodeToString(ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey))
		sign := func(content string) string {
			signed, err := SignJSON([]byte(content), "id.example", SigningKey{KeyID: "ed25519:0", Private: key.Private})
			if err != nil {
				t.Fatal(err)
			}
			return `{"membership":"invite","third_party_invite":{"display_name":"e","signed":` + string(signed) + `}}`
		}
		good := sign(`{"mxid":"@eve:third","token":"abc","sender":"@alice:domain"}`)
		for _, keys := range []string{`"public_key":"` + public + `"`, `"public_key":"` + other + `","public_keys":[{"public_key":"x"},{"public_key":"` + public + `"}]`} {
			s, b := newSim(t, v, key, "")
			s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
			s.allows(t, b, alice, typeMember, ptr(string(eve)), good, "withdrawn or never made")
			s.must(b, alice, typeThirdPartyInvite, ptr("abc"), `{"display_name":"e","key_validity_url":"https://id.example/",`+keys+`}`)
			s.allows(t, b, alice, typeMember, ptr(string(eve)), good, "")
			s.allows(t, b, alice, typeMember, ptr(string(dave)), good, "for someone else")
			s.allows(t, b, bob, typeMember, ptr(string(eve)), good, "made by someone else")
			s.allows(t, b, alice, typeMember, ptr(string(eve)), strings.Replace(good, `"sender":"@alice`, `"sender":"@mallory`, 1), "not signed by a key")
			s.allows(t, b, alice, typeMember, ptr(string(eve)), `{"membership":"invite","third_party_invite":{"signed":{"mxid":"@eve:third"}}}`, "does not say whom")
			s.allows(t, b, alice, typeMember, ptr(string(eve)), `{"membership":"invite","third_party_invite":{}}`, "does not say whom")
			s.member(b, alice, eve, ban)
			s.allows(t, b, alice, typeMember, ptr(string(eve)), good, "banned")
		}
		s, b := newSim(t, v, key, "")
		s.must(b, alice, typeThirdPartyInvite, ptr("abc"), `{"public_key":"`+other+`"}`)
		s.allows(t, b, alice, typeMember, ptr(string(eve)), good, "not signed by a key")
	})
}

func TestPowerLevelRules(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		try := func(sender id.UserID, want string, change func(l *levelsContent)) {
			t.Helper()
			l := fullLevels(v)
			change(&l)
			s.allows(t, b, sender, typePowerLevels, ptr(""), l.json(), want)
		}
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, bob, bob, join)
		s.member(b, carol, carol, join)
		try(bob, "you need power level 50 to send m.room.power_levels", func(*levelsContent) {})
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		try(carol, "you need power level 75", func(*levelsContent) {})
		try(bob, "", func(*levelsContent) {})
		try(bob, "100 of ban is above yours (75)", func(l *levelsContent) { l.Ban = ptr(int64(100)) })
		try(bob, "", func(l *levelsContent) { l.Ban = nil })
		try(bob, "", func(l *levelsContent) { l.Events["m.x"] = 75 })
		try(bob, "76 of events m.x is above yours (75)", func(l *levelsContent) { l.Events["m.x"] = 76 })
		try(bob, "", func(l *levelsContent) { delete(l.Events, "m.room.name") })
		try(bob, "", func(l *levelsContent) { l.Users[dave] = 75 })
		try(bob, "80 of users @dave:other is above yours", func(l *levelsContent) { l.Users[dave] = 80 })
		try(bob, "", func(l *levelsContent) { delete(l.Users, carol) })
		try(bob, "", func(l *levelsContent) { l.Users[bob] = 10 })
		try(bob, "", func(l *levelsContent) { delete(l.Users, bob) })
		try(bob, "users @bob:domain is above yours", func(l *levelsContent) { l.Users[bob] = 76 })
		notifications := ""
		if v.NotificationsAuth {
			notifications = "100 of notifications room is above yours (75)"
		}
		try(bob, notifications, func(l *levelsContent) { l.Notifications["room"] = 100 })
		if !v.PrivilegedCreators {
			try(bob, "users @alice:domain is above yours", func(l *levelsContent) { delete(l.Users, alice) })
			try(alice, "101 of users @dave:other is above yours (100)", func(l *levelsContent) { l.Users[dave] = 101 })
		} else {
			try(alice, "cannot name a creator", func(l *levelsContent) { l.Users[alice] = 100 })
			try(alice, "", func(l *levelsContent) { l.Users[dave] = maxCanonicalInt })
		}
		try(alice, "", func(l *levelsContent) { l.Users[carol] = 75 })
		equal := fullLevels(v)
		equal.Users[carol] = 75
		s.must(b, alice, typePowerLevels, ptr(""), equal.json())
		try(bob, "@carol:other has power level 75, which is not below yours (75)", func(l *levelsContent) { delete(l.Users, carol) })
		try(bob, "@carol:other has power level 75", func(l *levelsContent) { l.Users[carol] = 0 })
	})
}

func TestPowerLevelSpelling(t *testing.T) {
	for _, tc := range []struct{ allowed, content string }{
		{"1 9 10 12", `{"ban":50}`},
		{"1 9", `{"ban":"50"}`},
		{"1 9", `{"users":{"@a:b":" +0050 "}}`},
		{"1 9", `{"events":{"m.x":"-5"}}`},
		{"1 5", `{"users":{"@a:b":50.57}}`},
		{"1 5", `{"users":{"@a:b":5.1e1}}`},
		{"", `{"users":{"@a:b":1e400}}`},
		{"", `{"users":{"@a:b":"5.5"}}`},
		{"", `{"users":{"@a:b":"0x5"}}`},
		{"", `{"users":{"@a:b":"1_0"}}`},
		{"", `{"users":{"@a:b":null}}`},
		{"", `{"users":{"@a:b":true}}`},
		{"", `{"users":{"a":1}}`},
		{"", `{"users":[]}`},
		{"", `{"events":[]}`},
		{"", `{"notifications":{"room":[]}}`},
		{"", `{"ban":{}}`},
	} {
		for _, v := range versionsNamed(t, "1 5 6 9 10 12") {
			if strings.Contains(tc.content, "e400") && v.StrictJSON {
				continue // no JSON of these versions
			}
			want := strings.Contains(" "+tc.allowed+" ", " "+v.ID+" ")
			switch {
			case tc.allowed == "1 5":
				want = v.FloatPowerLevels
			case tc.allowed == "1 9":
				want = !v.IntegerPowerLevels
			case tc.allowed != "":
				want = true
			}
			_, err := v.ParsePowerLevels([]byte(tc.content))
			if (err == nil) != want {
				t.Errorf("v%s %s: got %v, want allowed=%v", v.ID, tc.content, err, want)
			}
		}
	}
	v, _ := LookupVersion("1")
	p, err := v.ParsePowerLevels([]byte(`{"users":{"@a:b":50.99,"@c:d":" -07 ","@e:f":1e300},"users_default":"3","notifications":{"room":"20"}}`))
	if err != nil || p.User("@a:b") != 50 || p.User("@c:d") != -7 || p.User("@e:f") != math.MaxInt64 || p.User("@x:y") != 3 || p.NotificationRoom() != 20 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestPowerLevelDefaults(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		p := PowerLevelsOf(b.state)
		want := int64(100)
		if v.PrivilegedCreators {
			want = math.MaxInt64
		}
		if p.User(alice) != want || p.User(bob) != 0 || p.Event("m.x", true) != 50 || p.Event("m.x", false) != 0 || p.Invite() != 0 || p.Kick() != 50 ||
			p.Ban() != 50 || p.Redact() != 50 || p.StateDefault() != 50 || p.EventsDefault() != 0 || p.UsersDefault() != 0 || p.NotificationRoom() != 50 {
			t.Errorf("without an event: %+v", p)
		}
		e := s.must(b, alice, typePowerLevels, ptr(""), `{"events":{"m.x":7},"users":{"@bob:domain":9},"users_default":1,"state_default":2,"events_default":3}`)
		p = PowerLevelsOf(b.state)
		want = 1
		if v.PrivilegedCreators {
			want = math.MaxInt64
		}
		if p.User(alice) != want || p.User(bob) != 9 || p.User(eve) != 1 || p.Event("m.x", true) != 7 || p.Event("m.y", true) != 2 || p.Event("m.y", false) != 3 {
			t.Errorf("with an event: %+v", p)
		}
		if PowerLevelsOf(b.state) != p {
			t.Error("the levels were parsed again")
		}
		if own, err := e.PowerLevels(); err != nil || own.User(alice) != 1 {
			t.Errorf("the event's own levels: %+v, %v", own, err)
		}
	})
}

func TestCheckAuthEvents(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		levels := s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		rules := s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		e := s.must(b, alice, "m.room.message", nil, `{}`)
		own := b.state.Get(typeMember, string(alice))
		with := func(events ...*Event) []*Event {
			if !v.RoomIDIsCreateHash {
				events = append(events, s.create)
			}
			return events
		}
		if err := CheckAuthEvents(e, with(levels, own)); err != nil {
			t.Error(err)
		}
		for name, events := range map[string][]*Event{
			"twice":       with(levels, levels, own),
			"not needed":  with(levels, own, rules),
			"not a state": with(e),
		} {
			if err := CheckAuthEvents(e, events); !mxerr.Is(err, "M_FORBIDDEN") {
				t.Errorf("%s: %v", name, err)
			}
		}
		create := []*Event{levels, own, s.create}
		if !v.RoomIDIsCreateHash {
			create = create[:2]
		}
		if err := CheckAuthEvents(e, create); !mxerr.Is(err, "M_FORBIDDEN") {
			t.Errorf("m.room.create: %v", err)
		}
		if err := CheckAuthEvents(s.create, nil); err != nil {
			t.Error(err)
		}
		stranger, sb := newSim(t, v, testKey(t), `,"m.federate":true`)
		foreign := stranger.proto(sb, alice, typePowerLevels, ptr(""), `{}`)
		if !v.RoomIDIsCreateHash {
			foreign.RoomID = "!elsewhere:domain"
		}
		if err := CheckAuthEvents(e, with(stranger.build(foreign), own)); !mxerr.Is(err, "M_FORBIDDEN") {
			t.Errorf("of another room: %v", err)
		}
	})
}

func TestRequiredSigners(t *testing.T) {
	for _, tc := range []struct{ version, content, want string }{
		{"1", `{"membership":"join","join_authorised_via_users_server":"@x:vouch"}`, "[other ids]"},
		{"7", `{"membership":"join","join_authorised_via_users_server":"@x:vouch"}`, "[other]"},
		{"8", `{"membership":"join","join_authorised_via_users_server":"@x:vouch"}`, "[other vouch]"},
		{"12", `{"membership":"invite","third_party_invite":{}}`, "[]"},
		{"12", `{"membership":"invite"}`, "[other]"},
	} {
		v, _ := LookupVersion(tc.version)
		p := &Proto{RoomID: roomIDFor(v), Sender: carol, Type: typeMember, StateKey: ptr(string(carol)), Content: []byte(tc.content), OriginServerTS: 1}
		if v.EventIDInPDU {
			p.EventID = "$1:ids"
		}
		e, err := v.Build(p, "other", testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(e.RequiredSigners()); got != tc.want {
			t.Errorf("v%s %s: %s, want %s", tc.version, tc.content, got, tc.want)
		}
		if keys := e.SignatureKeys("other"); fmt.Sprint(keys) != "[ed25519:1]" {
			t.Errorf("signed with %v", keys)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	for s, want := range map[string]bool{
		"domain": true, "a.b-c.D9": true, "1.2.3.4:80": true, "[::1]": true, "[::1]:8448": true, "domain:1": true,
		"": false, ":1": false, "a:": false, "a:123456": false, "a:x": false, "a b": false, "[::1": false, "[1.2.3.4]": false, "[::1]x": false, "a_b": false,
		"ö": false, "[::1%eth0]": false, strings.Repeat("a", 256): false,
	} {
		if ValidServerName(s) != want {
			t.Errorf("ValidServerName(%q) = %v", s, !want)
		}
	}
	for s, want := range map[id.UserID]bool{
		"@a:b": true, "@:b": true, "@A Ü/x:b:80": true, "a:b": false, "@a": false, "@a:": false, "@a\x00:b": false, "": false,
		id.UserID("@" + strings.Repeat("a", 253) + ":b"): false,
	} {
		if ValidUserID(s) != want {
			t.Errorf("ValidUserID(%q) = %v", s, !want)
		}
	}
}

func TestRedactionApplies(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		s, b := newSim(t, v, testKey(t), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		for _, u := range simUsers[1:] {
			s.member(b, u, u, join)
		}
		target := s.must(b, dave, "m.room.message", nil, `{"body":"x"}`)
		redact := func(sender id.UserID, what id.EventID) *Event {
			p := s.proto(b, sender, typeRedaction, nil, `{"redacts":"`+string(what)+`"}`)
			if !v.ModernRedaction {
				p.Content, p.Redacts = []byte(`{}`), what
			}
			return s.build(p)
		}
		for sender, want := range map[id.UserID]bool{dave: true, carol: true, bob: true, eve: v.RedactionAuth} {
			if got := RedactionApplies(redact(sender, target.ID()), target, b.state); got != want {
				t.Errorf("%s redacts dave's event: %v", sender, got)
			}
		}
		if RedactionApplies(redact(dave, s.create.ID()), target, b.state) || RedactionApplies(target, target, b.state) {
			t.Error("it applies to another event")
		}
	})
}

// The levels are cached on events that many requests share; run with -race this shows that they may.
func TestLevelsAreShared(t *testing.T) {
	v, _ := LookupVersion(DefaultVersion)
	s, b := newSim(t, v, testKey(t), "")
	s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
	p := s.proto(b, alice, "m.room.message", nil, `{}`)
	// Parsed anew, so that nothing is cached yet.
	state := StateMap{}
	for k, e := range b.state {
		fresh, err := v.Parse(e.JSON(), e.ID())
		if err != nil {
			t.Fatal(err)
		}
		state[k] = fresh
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if err := v.CheckProto(p, state); err != nil {
					t.Error(err)
				}
				if own, err := state.Get(typePowerLevels, "").PowerLevels(); err != nil || own.User(bob) != 75 {
					t.Errorf("bob has %d, %v", own.User(bob), err)
				}
			}
		})
	}
	wg.Wait()
}
