package event

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

// sim is a room whose events are made as servers make them, with forks.
type sim struct {
	tb     failer
	v      *Version
	key    SigningKey
	events map[id.EventID]*Event
	all    []*Event // in the order of their making
	create *Event
	now    int64
}

// failer is what testing.TB and rapid.T have in common here.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// branch is one line of the room's history: where it stands and the state there.
type branch struct {
	state StateMap
	tip   []id.EventID
	depth int64
}

func (b *branch) fork() *branch {
	return &branch{state: maps.Clone(b.state), tip: b.tip, depth: b.depth}
}

const (
	alice = id.UserID("@alice:domain")
	bob   = id.UserID("@bob:domain")
	carol = id.UserID("@carol:other")
	dave  = id.UserID("@dave:other")
	eve   = id.UserID("@eve:third")
)

var simUsers = []id.UserID{alice, bob, carol, dave, eve}

func newSim(tb failer, v *Version, key SigningKey, createExtra string) (*sim, *branch) {
	s := &sim{tb: tb, v: v, key: key, events: map[id.EventID]*Event{}, now: 1_000_000}
	b := &branch{state: StateMap{}}
	content := `{"room_version":"` + v.ID + `"`
	if !v.ImplicitCreator {
		content += `,"creator":"` + string(alice) + `"`
	}
	s.create = s.must(b, alice, typeCreate, ptr(""), content+createExtra+"}")
	s.must(b, alice, typeMember, ptr(string(alice)), `{"membership":"join"}`)
	return s, b
}

// proto makes the next event of a branch.
func (s *sim) proto(b *branch, sender id.UserID, evType string, stateKey *string, content string) *Proto {
	p := &Proto{
		Sender: sender, Type: evType, StateKey: stateKey, Content: []byte(content), PrevEvents: b.tip, Depth: b.depth + 1, OriginServerTS: s.now,
		ReferenceHash: func(ref id.EventID) (hash [32]byte, ok bool) {
			if e := s.events[ref]; e != nil {
				return e.ReferenceHash(), true
			}
			return hash, false
		},
	}
	switch {
	case s.create != nil:
		p.RoomID = s.create.RoomID()
	case !s.v.RoomIDIsCreateHash:
		p.RoomID = "!room:domain"
	}
	for _, t := range s.v.AuthTypes(evType, stateKey, sender, p.Content) {
		if e := b.state[t]; e != nil {
			p.AuthEvents = append(p.AuthEvents, e.ID())
		}
	}
	return p
}

// build signs an event, whether or not it is allowed.
func (s *sim) build(p *Proto) *Event {
	s.tb.Helper()
	e, err := s.v.Build(p, domainOf(string(p.Sender)), s.key)
	if err != nil {
		s.tb.Fatalf("build %s %s: %v", p.Type, p.Content, err)
	}
	return e
}

// try adds an event to a branch if the rules allow it there.
func (s *sim) try(b *branch, p *Proto) (*Event, error) {
	s.tb.Helper()
	if err := s.v.CheckProto(p, b.state); err != nil {
		return nil, err
	}
	e := s.build(p)
	s.add(b, e)
	return e, nil
}

func (s *sim) add(b *branch, e *Event) {
	s.events[e.ID()] = e
	s.all = append(s.all, e)
	b.tip, b.depth = []id.EventID{e.ID()}, e.Depth()
	if e.isState {
		b.state[e.Tuple()] = e
	}
	s.now += 1000
}

func (s *sim) must(b *branch, sender id.UserID, evType string, stateKey *string, content string) *Event {
	s.tb.Helper()
	e, err := s.try(b, s.proto(b, sender, evType, stateKey, content))
	if err != nil {
		s.tb.Fatalf("%s %s %s: %v", sender, evType, content, err)
	}
	return e
}

func (s *sim) event(ref id.EventID) *Event { return s.events[ref] }

// member makes a membership event that must be allowed.
func (s *sim) member(b *branch, sender, target id.UserID, membership string) *Event {
	s.tb.Helper()
	return s.must(b, sender, typeMember, ptr(string(target)), `{"membership":"`+membership+`"}`)
}

// resolve joins branches, checking that the order of the states does not matter.
func (s *sim) resolve(branches ...*branch) StateMap {
	s.tb.Helper()
	sets := make([]map[StateKeyTuple]*Event, len(branches))
	reversed := make([]map[StateKeyTuple]*Event, len(branches))
	for i, b := range branches {
		sets[i] = b.state
		reversed[len(branches)-1-i] = b.state
	}
	got, err := s.v.Resolve(sets, s.event)
	if err != nil {
		s.tb.Fatalf("resolve: %v", err)
	}
	again, err := s.v.Resolve(reversed, s.event)
	if err != nil {
		s.tb.Fatalf("resolve: %v", err)
	}
	if d := diffStates(got, again); d != "" {
		s.tb.Fatalf("the order of the states matters:\n%s", d)
	}
	return got
}

// diffStates says how two states differ, "" if they do not.
func diffStates(got, want StateMap) string {
	var out strings.Builder
	for k, e := range got {
		if want[k] == nil || want[k].ID() != e.ID() {
			fmt.Fprintf(&out, "%v: got %s, want %s\n", k, describe(e), describe(want[k]))
		}
	}
	for k, e := range want {
		if got[k] == nil {
			fmt.Fprintf(&out, "%v: got nothing, want %s\n", k, describe(e))
		}
	}
	return out.String()
}

func describe(e *Event) string {
	if e == nil {
		return "nothing"
	}
	return fmt.Sprintf("%s by %s %s", e.ID(), e.Sender(), e.Content())
}

// --- random rooms ---

// levelsContent is m.room.power_levels as generated.
type levelsContent struct {
	Ban           *int64              `json:"ban,omitempty"`
	Events        map[string]int64    `json:"events,omitempty"`
	EventsDefault *int64              `json:"events_default,omitempty"`
	Invite        *int64              `json:"invite,omitempty"`
	Kick          *int64              `json:"kick,omitempty"`
	Notifications map[string]int64    `json:"notifications,omitempty"`
	Redact        *int64              `json:"redact,omitempty"`
	StateDefault  *int64              `json:"state_default,omitempty"`
	Users         map[id.UserID]int64 `json:"users,omitempty"`
	UsersDefault  *int64              `json:"users_default,omitempty"`
}

func fullLevels(v *Version) levelsContent {
	l := levelsContent{
		Ban: ptr(int64(50)), Events: map[string]int64{"m.room.name": 50, typePowerLevels: 75}, EventsDefault: ptr(int64(0)), Invite: ptr(int64(0)), Kick: ptr(int64(50)),
		Notifications: map[string]int64{"room": 50}, Redact: ptr(int64(50)), StateDefault: ptr(int64(50)), Users: map[id.UserID]int64{bob: 75, carol: 50},
		UsersDefault: ptr(int64(0)),
	}
	if !v.PrivilegedCreators {
		l.Users[alice] = 100
	}
	return l
}

func (l levelsContent) json() string {
	b, err := json.Marshal(l)
	if err != nil {
		return err.Error() // never valid content, so that the test notices
	}
	return string(b)
}

// changeLevels changes a few levels of the current event; with full, none comes or goes.
func changeLevels(t *rapid.T, v *Version, current *Event, full bool) string {
	l := fullLevels(v)
	if current != nil {
		l = levelsContent{}
		if err := json.Unmarshal(current.Content(), &l); err != nil {
			t.Fatalf("levels: %v", err)
		}
	}
	level := rapid.SampledFrom([]int64{0, 25, 50, 75, 100})
	for range rapid.IntRange(1, 2).Draw(t, "changes") {
		n := level.Draw(t, "level")
		singles := []**int64{&l.Ban, &l.EventsDefault, &l.Invite, &l.Kick, &l.Redact, &l.StateDefault, &l.UsersDefault}
		switch which := rapid.SampledFrom([]string{"user", "user", "event", "single", "notification", "same"}).Draw(t, "which"); which {
		case "user":
			users := simUsers
			if v.PrivilegedCreators && rapid.IntRange(0, 9).Draw(t, "creator") > 0 {
				users = simUsers[1:]
			}
			u := rapid.SampledFrom(users).Draw(t, "user")
			if _, there := l.Users[u]; there && !full && rapid.Bool().Draw(t, "remove") {
				delete(l.Users, u)
			} else if l.Users != nil {
				l.Users[u] = n
			}
		case "event":
			names := []string{"m.room.name", typePowerLevels}
			if !full {
				names = append(names, typeMember, typeThirdPartyInvite, "m.room.message", typeRedaction)
			}
			name := rapid.SampledFrom(names).Draw(t, "type")
			if _, there := l.Events[name]; there && !full && rapid.Bool().Draw(t, "remove") {
				delete(l.Events, name)
			} else if l.Events != nil {
				l.Events[name] = n
			}
		case "single":
			p := rapid.SampledFrom(singles).Draw(t, "single")
			if *p != nil && !full && rapid.Bool().Draw(t, "remove") {
				*p = nil
			} else {
				*p = &n
			}
		case "notification":
			if l.Notifications != nil {
				l.Notifications["room"] = n
			}
		}
	}
	return l.json()
}

// proposal draws an event that someone might send next, allowed or not.
func proposal(t *rapid.T, s *sim, b *branch, full bool) *Proto {
	user := rapid.SampledFrom(simUsers)
	sender := user.Draw(t, "sender")
	switch kind := rapid.SampledFrom([]string{"member", "member", "member", "member", "levels", "levels", "rules", "name", "message", "own", "redaction", "third", "visibility"}).Draw(t, "kind"); kind {
	case "member":
		target := sender
		if rapid.Bool().Draw(t, "other") {
			target = user.Draw(t, "target")
		}
		membership := rapid.SampledFrom([]string{join, join, join, invite, leave, ban, knock, "dance"}).Draw(t, "membership")
		content := `{"membership":"` + membership + `"`
		if membership == join && rapid.IntRange(0, 3).Draw(t, "authorised") == 0 {
			content += `,"join_authorised_via_users_server":"` + string(user.Draw(t, "authoriser")) + `"`
		}
		return s.proto(b, sender, typeMember, ptr(string(target)), content+"}")
	case "levels":
		return s.proto(b, sender, typePowerLevels, ptr(""), changeLevels(t, s.v, b.state.Get(typePowerLevels, ""), full))
	case "rules":
		rule := rapid.SampledFrom([]string{"public", "public", "invite", "knock", "restricted", "knock_restricted", "private"}).Draw(t, "rule")
		return s.proto(b, sender, typeJoinRules, ptr(""), `{"join_rule":"`+rule+`"}`)
	case "name":
		return s.proto(b, sender, "m.room.name", ptr(""), fmt.Sprintf(`{"name":"room %d"}`, s.now))
	case "own":
		return s.proto(b, sender, "org.example.own", ptr(string(user.Draw(t, "owner"))), `{}`)
	case "redaction":
		target := s.create.ID()
		if len(s.all) > 0 {
			target = rapid.SampledFrom(s.all).Draw(t, "redacted").ID()
		}
		p := s.proto(b, sender, typeRedaction, nil, `{}`)
		p.Redacts = target
		if s.v.ModernRedaction {
			p.Content, p.Redacts = []byte(`{"redacts":"`+string(target)+`"}`), ""
		}
		return p
	case "third":
		return s.proto(b, sender, typeThirdPartyInvite, ptr("token"), `{"display_name":"x","key_validity_url":"https://id.example/","public_key":"`+strings.Repeat("A", 43)+`"}`)
	case "visibility":
		return s.proto(b, sender, typeHistoryVisibility, ptr(""), `{"history_visibility":"shared"}`)
	default:
		return s.proto(b, sender, "m.room.message", nil, `{"msgtype":"m.text","body":"hi"}`)
	}
}

// randomRoom makes a room with some history and gives the ends of its forks.
func randomRoom(t *rapid.T, v *Version, key SigningKey, full bool, forks int) (*sim, []*branch) {
	extra := ""
	if v.PrivilegedCreators && rapid.Bool().Draw(t, "two creators") {
		extra = `,"additional_creators":["` + string(dave) + `"]`
	}
	s, b := newSim(t, v, key, extra)
	if full || rapid.IntRange(0, 4).Draw(t, "levels") > 0 {
		l := fullLevels(v)
		if extra != "" {
			delete(l.Users, dave)
		}
		s.must(b, alice, typePowerLevels, ptr(""), l.json())
	}
	s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
	for _, u := range simUsers[1:] {
		if rapid.IntRange(0, 4).Draw(t, "joins") > 0 {
			s.member(b, u, u, join)
		}
	}
	branches := []*branch{b}
	for i := 1; i < forks; i++ {
		branches = append(branches, b.fork())
	}
	for range rapid.IntRange(6*forks, 16*forks).Draw(t, "steps") {
		b := rapid.SampledFrom(branches).Draw(t, "branch")
		// Times go back too, as the clocks of servers do.
		s.now += int64(rapid.IntRange(-5000, 5000).Draw(t, "clock"))
		if rapid.IntRange(0, 9).Draw(t, "branch off") == 0 && len(branches) < 6 {
			branches = append(branches, b.fork())
		}
		_, _ = s.try(b, proposal(t, s, b, full))
	}
	return s, branches
}

// forEachVersion runs a test in every room version.
func forEachVersion(t *testing.T, test func(t *testing.T, v *Version)) {
	for _, v := range Versions() {
		t.Run("v"+v.ID, func(t *testing.T) { test(t, v) })
	}
}
