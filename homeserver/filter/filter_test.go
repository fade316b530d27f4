package filter

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/mxerr"
)

func parseEvents(t *testing.T, s string) *EventFilter {
	t.Helper()
	f, err := ParseEvents([]byte(s))
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return f
}

func TestMatch(t *testing.T) {
	message := EventMeta{Type: "m.room.message", Sender: "@alice:x", RoomID: "!r:x", Content: []byte(`{"body":"url"}`)}
	file := message
	file.Content = []byte(`{"url":"mxc://x/y"}`)
	loved := message
	loved.Relations = []Relation{{"m.thread", "@bob:x"}, {"m.annotation", "@eve:x"}}
	tag := EventMeta{Type: "m.tag"}
	for _, tc := range []struct {
		filter string
		event  EventMeta
		want   bool
	}{
		{`{}`, message, true},
		{`{"types":null}`, message, true},
		{`{"types":[]}`, message, false},
		{`{"types":["m.room.message"]}`, message, true},
		{`{"types":["m.room.Message"]}`, message, false},
		{`{"types":["m.room.*"]}`, message, true},
		{`{"types":["*"]}`, message, true},
		{`{"types":["m.*.message","x"]}`, message, true},
		{`{"types":["m.*room*ess*"]}`, message, true},
		{`{"types":["m.room.message*message"]}`, message, false},
		{`{"types":["m.room.?essage"]}`, message, false},
		{`{"types":["*"],"not_types":["m.room.m*"]}`, message, false},
		{`{"not_types":["m.room.member"]}`, message, true},
		{`{"senders":["@alice:x"]}`, message, true},
		{`{"senders":["@ALICE:x"]}`, message, false},
		{`{"senders":[]}`, message, false},
		{`{"senders":["@alice:x"],"not_senders":["@alice:x"]}`, message, false},
		{`{"senders":["@bob:x"]}`, tag, true},
		{`{"rooms":["!r:x"]}`, message, true},
		{`{"rooms":[]}`, message, false},
		{`{"rooms":["!r:x"],"not_rooms":["!r:x"]}`, message, false},
		{`{"not_rooms":["!r:x"]}`, tag, true},
		{`{"contains_url":true}`, message, false},
		{`{"contains_url":false}`, message, true},
		{`{"contains_url":true}`, file, true},
		{`{"contains_url":false}`, file, false},
		{`{"related_by_senders":["@bob:x"]}`, message, false},
		{`{"related_by_senders":["@bob:x"]}`, loved, true},
		{`{"related_by_rel_types":["m.annotation"]}`, loved, true},
		{`{"related_by_rel_types":["m.annotation"],"related_by_senders":["@bob:x"]}`, loved, false},
		{`{"related_by_rel_types":["m.thread"],"related_by_senders":["@bob:x"]}`, loved, true},
	} {
		if got := parseEvents(t, tc.filter).Match(tc.event); got != tc.want {
			t.Errorf("%s and %+v: %t, want %t", tc.filter, tc.event, got, tc.want)
		}
	}
	if !(*EventFilter)(nil).Match(message) {
		t.Error("no filter must let everything through")
	}
}

func TestMatchesNothing(t *testing.T) {
	for s, want := range map[string]bool{
		`{}`: false, `{"types":[]}`: true, `{"senders":[]}`: true, `{"rooms":[]}`: true, `{"types":["x"]}`: false,
		`{"rooms":["!a:x"],"not_rooms":["!a:x"]}`: true, `{"not_types":["*"]}`: false,
	} {
		if got := parseEvents(t, s).MatchesNothing(); got != want {
			t.Errorf("%s: %t, want %t", s, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	f, err := Parse([]byte(`{"room":{"rooms":["!a:x","!b:x"],"not_rooms":["!b:x"],"include_leave":true,
		"timeline":{"limit":7,"lazy_load_members":true,"include_redundant_members":true,"unread_thread_notifications":true},
		"state":{"types":["m.room.name"]},"ephemeral":{"not_types":["m.typing"]},"account_data":{"limit":99999}},
		"presence":{"limit":0,"senders":["@a:x"]},"account_data":{"types":["m.*"]},
		"event_format":"federation","event_fields":["type"],"unknown":[1]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !f.Room.IncludeLeave || !f.Federation || f.Fields.All() {
		t.Errorf("%+v", f)
	}
	if !f.Room.MatchRoom("!a:x") || f.Room.MatchRoom("!b:x") || f.Room.MatchRoom("!c:x") {
		t.Error("rooms and not_rooms")
	}
	if rooms, ok := f.Room.OnlyRooms(); !ok || fmt.Sprint(rooms) != "[!a:x]" {
		t.Errorf("only rooms %v", rooms)
	}
	tl := f.Room.Timeline
	if tl.LimitOr(10) != 7 || !tl.LazyMembers() || !tl.IncludeRedundantMembers || !tl.ThreadNotifications() {
		t.Errorf("timeline %+v", tl)
	}
	if f.Room.State.LimitOr(10) != 10 || f.Room.State.MatchType("m.room.topic") {
		t.Error("state")
	}
	if f.Room.Ephemeral.MatchType("m.typing") || !f.Room.Ephemeral.MatchType("m.receipt") {
		t.Error("ephemeral")
	}
	if f.Room.AccountData.Limit != MaxLimit || f.Presence.Limit != 1 {
		t.Error("limits are bounded")
	}
	if f.AccountData.MatchType("org.x") || f.Presence.MatchSender("@b:x") {
		t.Error("account data and presence")
	}
}

// TestBadFilters gives every field every wrong type.
func TestBadFilters(t *testing.T) {
	values := map[string]string{"number": "1", "float": "1.5", "string": `"x"`, "bool": "true", "array": "[]", "numbers": "[1]", "object": "{}", "huge": "1e400"}
	good := map[string][]string{"list": {"array"}, "int": {"number"}, "bool": {"bool"}, "object": {"object"}, "string": {"string"}}
	fields := map[string]string{"event_fields": "list", "presence": "object", "account_data": "object", "room": "object",
		"room.rooms": "list", "room.not_rooms": "list", "room.include_leave": "bool"}
	parts := []string{"presence", "account_data", "room.timeline", "room.state", "room.ephemeral", "room.account_data"}
	for _, p := range parts {
		fields[p] = "object"
		fields[p+".limit"] = "int"
		for _, l := range []string{"types", "not_types", "senders", "not_senders", "rooms", "not_rooms", "related_by_senders", "related_by_rel_types"} {
			fields[p+"."+l] = "list"
		}
		for _, b := range []string{"lazy_load_members", "include_redundant_members", "unread_thread_notifications", "contains_url"} {
			fields[p+"."+b] = "bool"
		}
	}
	for field, kind := range fields {
		for name, value := range values {
			body := value
			for names := strings.Split(field, "."); len(names) > 0; names = names[:len(names)-1] {
				body = fmt.Sprintf("{%q:%s}", names[len(names)-1], body)
			}
			_, err := Parse([]byte(body))
			isGood := good[kind][0] == name
			if isGood && err != nil || !isGood && !mxerr.Is(err, "M_BAD_JSON") {
				t.Errorf("%s: %v", body, err)
			}
		}
	}
	for _, tc := range []struct{ body, code string }{
		{``, "M_NOT_JSON"}, {`{`, "M_NOT_JSON"}, {`{} x`, "M_NOT_JSON"}, {"{\"a\":\"\xff\"}", "M_NOT_JSON"},
		{`null`, "M_BAD_JSON"}, {`[]`, "M_BAD_JSON"}, {`"x"`, "M_BAD_JSON"}, {`1`, "M_BAD_JSON"},
		{`{"room":{},"room":{}}`, "M_BAD_JSON"}, {`{"event_format":"xml"}`, "M_BAD_JSON"},
		{`{"room":{"timeline":{"limit":-1}}}`, "M_BAD_JSON"}, {`{"room":{"timeline":{"limit":99999999999999999999}}}`, "M_BAD_JSON"},
		{`{"room":{"rooms":["#a:x"]}}`, "M_BAD_JSON"}, {`{"room":{"not_rooms":[""]}}`, "M_BAD_JSON"},
		{`{"presence":{"senders":["alice"]}}`, "M_BAD_JSON"}, {`{"presence":{"not_senders":[null]}}`, "M_BAD_JSON"},
		{`{"presence":1`, "M_NOT_JSON"},
	} {
		if _, err := Parse([]byte(tc.body)); !mxerr.Is(err, tc.code) {
			t.Errorf("%s: %v, want %s", tc.body, err, tc.code)
		}
	}
}

func TestFields(t *testing.T) {
	const event = `{"type":"m.x","sender":"@a:x","content":{"body":"b","info":{"w":1,"h":2},"a.b":3,"n":{}},"unsigned":{"age":5}}`
	for fields, want := range map[string]string{
		`[]`:                         `{}`,
		`["type"]`:                   `{"type":"m.x"}`,
		`["content.body","sender"]`:  `{"sender":"@a:x","content":{"body":"b"}}`,
		`["content.info.h"]`:         `{"content":{"info":{"h":2}}}`,
		`["content.info","content"]`: `{"content":{"body":"b","info":{"w":1,"h":2},"a.b":3,"n":{}}}`,
		`["content.a\\.b"]`:          `{"content":{"a.b":3}}`,
		`["content.a.b","type.x"]`:   `{}`,
		`["","nothing.here"]`:        `{}`,
	} {
		f, err := Parse([]byte(`{"event_fields":` + fields + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(f.Fields.Apply([]byte(event))); got != want {
			t.Errorf("%s: %s, want %s", fields, got, want)
		}
	}
	whole := &Filter{}
	if string(whole.Fields.Apply([]byte(event))) != event {
		t.Error("without event_fields an event is whole")
	}
}

// FuzzParse: whatever comes in, Parse gives a filter or one of two errcodes, matching does not panic, the projection
// stays JSON, and * means what path.Match says for names without special characters.
func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"room":{"timeline":{"types":["m.*"],"limit":3},"rooms":["!a:b"]},"event_fields":["content.body"]}`), "m.room.message")
	f.Add([]byte(`{"presence":{"not_types":["*a*b*","**"]}}`), "xaxbx")
	f.Add([]byte(`{"event_format":"federation","room":null}`), "")
	f.Fuzz(func(t *testing.T, b []byte, eventType string) {
		flt, err := Parse(b)
		if err != nil {
			if !mxerr.Is(err, "M_BAD_JSON") && !mxerr.Is(err, "M_NOT_JSON") {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		m := EventMeta{Type: eventType, Sender: "@a:b", RoomID: "!a:b", Content: []byte(`{"url":1}`)}
		for _, part := range []*EventFilter{flt.Presence, flt.AccountData, flt.Room.Timeline, flt.Room.State, flt.Room.Ephemeral, flt.Room.AccountData} {
			if part.Match(m) && part.MatchesNothing() {
				t.Fatalf("%q matches and matches nothing", b)
			}
		}
		if out := flt.Fields.Apply([]byte(`{"type":"x","content":{"body":{"a":[1]},"b":2}}`)); !json.Valid(out) {
			t.Fatalf("%q gives %q", b, out)
		}
	})
}

// FuzzGlob compares the wildcard with another implementation of it.
func FuzzGlob(f *testing.F) {
	f.Add("m.*", "m.room")
	f.Add("*ab*ab", "ababab")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if strings.ContainsAny(pattern+name, `/\[]?`) || strings.ContainsRune(pattern+name, '\uFFFD') {
			return
		}
		want, err := path.Match(pattern, name)
		if err != nil {
			return
		}
		p := newPatterns(&[]string{pattern})
		if got := p.match(name); got != want {
			t.Fatalf("%q and %q: %t, want %t", pattern, name, got, want)
		}
	})
}
