package event

import (
	"bytes"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

func ptr[T any](v T) *T { return &v }

// roomIDFor gives a room id of the form of the version.
func roomIDFor(v *Version) id.RoomID {
	if v.RoomIDIsCreateHash {
		return "!Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"
	}
	return "!room:domain"
}

func TestBuildAndParse(t *testing.T) {
	key := testKey(t)
	for _, v := range Versions() {
		t.Run(v.ID, func(t *testing.T) {
			p := &Proto{
				RoomID: roomIDFor(v), Sender: "@alice:domain", Type: "m.room.topic", StateKey: ptr(""),
				Content:    []byte(`{"topic": "caf\u00e9 \"x\"", "a": {"z": 1, "b": [1, 2]}}`),
				PrevEvents: []id.EventID{"$p1:domain", "$p2:domain"}, AuthEvents: []id.EventID{"$a1:domain"}, Depth: 7, OriginServerTS: 1234567890123,
			}
			e, err := v.Build(p, "domain", key)
			if err != nil {
				t.Fatal(err)
			}
			if canonical, err := CanonicalJSON(e.JSON()); err != nil || !bytes.Equal(canonical, e.JSON()) {
				t.Errorf("the built event is not canonical: %v\n%s", err, e.JSON())
			}
			if want := `{"a":{"b":[1,2],"z":1},"topic":"café \"x\""}`; string(e.Content()) != want {
				t.Errorf("content %s, want %s", e.Content(), want)
			}
			parsed, redacted, err := v.ParseUntrusted(e.JSON())
			if err != nil || redacted {
				t.Fatalf("ParseUntrusted: redacted=%v, %v", redacted, err)
			}
			sameEvent(t, parsed, e)
			again, err := v.Parse([]byte(" "+string(e.JSON()[:len(e.JSON())-1])+`, "unsigned": {"age": 4}}`), "")
			if err != nil {
				t.Fatal(err)
			}
			sameEvent(t, again, e)
			if err := e.VerifySignature("domain", key.KeyID, key.public()); err != nil {
				t.Error(err)
			}
			if err := e.VerifySignature("other", key.KeyID, key.public()); !mxerr.Is(err, "M_FORBIDDEN") {
				t.Errorf("the signature of another server: %v", err)
			}

			// A changed content survives as its redacted form, with the same id and signature.
			forged := bytes.Replace(e.JSON(), []byte("café"), []byte("tea"), 1)
			f, redacted, err := v.ParseUntrusted(forged)
			if err != nil || !redacted || string(f.Content()) != "{}" || f.ID() != e.ID() {
				t.Errorf("forged: redacted=%v, %v, %v", redacted, f, err)
			} else if err := f.VerifySignature("domain", key.KeyID, key.public()); err != nil {
				t.Error(err)
			}
			// A changed sender changes the id (but in versions 1 and 2) and breaks the signature.
			forged = bytes.Replace(e.JSON(), []byte("@alice"), []byte("@mallory"), 1)
			f, _, err = v.ParseUntrusted(forged)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.VerifySignature("domain", key.KeyID, key.public()); !mxerr.Is(err, "M_FORBIDDEN") {
				t.Errorf("the signature of a forged event: %v", err)
			}
			if (f.ID() == e.ID()) != v.EventIDInPDU {
				t.Errorf("the forged event has the id %s", f.ID())
			}
		})
	}
}

func sameEvent(t *testing.T, got, want *Event) {
	t.Helper()
	gk, gs := got.StateKey()
	wk, ws := want.StateKey()
	if got.ID() != want.ID() || got.RoomID() != want.RoomID() || got.Type() != want.Type() || gk != wk || gs != ws ||
		got.Sender() != want.Sender() || got.Depth() != want.Depth() || got.OriginServerTS() != want.OriginServerTS() ||
		got.Redacts() != want.Redacts() || got.Membership() != want.Membership() || !bytes.Equal(got.Content(), want.Content()) ||
		!bytes.Equal(got.JSON(), want.JSON()) || len(got.PrevEvents()) != len(want.PrevEvents()) || len(got.AuthEvents()) != len(want.AuthEvents()) {
		t.Errorf("events differ:\n got %s %s\nwant %s %s", got.ID(), got.JSON(), want.ID(), want.JSON())
	}
}

func TestCreateNamesTheRoom(t *testing.T) {
	v, _ := LookupVersion("12")
	p := &Proto{Sender: "@alice:domain", Type: "m.room.create", StateKey: ptr(""), Content: []byte(`{"room_version":"12"}`), Depth: 1, OriginServerTS: 1}
	e, err := v.Build(p, "domain", testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if string(e.RoomID()) != "!"+string(e.ID())[1:] {
		t.Errorf("room %s, event %s", e.RoomID(), e.ID())
	}
	if strings.Contains(string(e.JSON()), "room_id") {
		t.Errorf("the PDU has a room_id: %s", e.JSON())
	}
	parsed, _, err := v.ParseUntrusted(e.JSON())
	if err != nil {
		t.Fatal(err)
	}
	sameEvent(t, parsed, e)
	if err := Check(e, StateMap{}); err != nil {
		t.Error(err)
	}
	if err := v.CheckProto(p, StateMap{}); err != nil {
		t.Error(err)
	}
}

func TestBuildRefuses(t *testing.T) {
	v, _ := LookupVersion("12")
	for _, tc := range []struct {
		name, code string
		change     func(p *Proto)
	}{
		{"float", "M_BAD_JSON", func(p *Proto) { p.Content = []byte(`{"a":1.5}`) }},
		{"huge number", "M_BAD_JSON", func(p *Proto) { p.Content = []byte(`{"a":9007199254740992}`) }},
		{"duplicate key", "M_BAD_JSON", func(p *Proto) { p.Content = []byte(`{"a":1,"a":2}`) }},
		{"not JSON", "M_NOT_JSON", func(p *Proto) { p.Content = []byte(`{`) }},
		{"no object", "M_BAD_JSON", func(p *Proto) { p.Content = []byte(`[]`) }},
		{"deep", "M_BAD_JSON", func(p *Proto) {
			p.Content = []byte(`{"a":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`)
		}},
		{"too large", "M_TOO_LARGE", func(p *Proto) { p.Content = []byte(`{"a":"` + strings.Repeat("a", 65536) + `"}`) }},
		{"far too large", "M_TOO_LARGE", func(p *Proto) { p.Content = []byte(`{"a":"` + strings.Repeat("a", 1<<20) + `"}`) }},
		{"long type", "M_TOO_LARGE", func(p *Proto) { p.Type = strings.Repeat("a", 256) }},
		{"long state key", "M_TOO_LARGE", func(p *Proto) { p.StateKey = ptr(strings.Repeat("a", 256)) }},
		{"U+0000 in the state key", "M_BAD_JSON", func(p *Proto) { p.StateKey = ptr("a\x00b") }},
		{"bad UTF-8 in the type", "M_BAD_JSON", func(p *Proto) { p.Type = "a\xff" }},
		{"no sender", "M_BAD_JSON", func(p *Proto) { p.Sender = "alice" }},
		{"room id", "M_BAD_JSON", func(p *Proto) { p.RoomID = "!room:domain" }},
		{"too many prev_events", "M_TOO_LARGE", func(p *Proto) { p.PrevEvents = make([]id.EventID, 21) }},
		{"negative depth", "M_BAD_JSON", func(p *Proto) { p.Depth = -1 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &Proto{RoomID: roomIDFor(v), Sender: "@alice:domain", Type: "m.room.message", Content: []byte(`{}`), OriginServerTS: 1}
			tc.change(p)
			if _, err := v.Build(p, "domain", testKey(t)); !mxerr.Is(err, tc.code) {
				t.Errorf("got %v, want %s", err, tc.code)
			}
		})
	}
}

// versionsNamed looks up room versions by a list with spaces between.
func versionsNamed(t testing.TB, names string) []*Version {
	t.Helper()
	var versions []*Version
	for _, name := range strings.Fields(names) {
		v, ok := LookupVersion(name)
		if !ok {
			t.Fatalf("no room version %s", name)
		}
		versions = append(versions, v)
	}
	return versions
}
