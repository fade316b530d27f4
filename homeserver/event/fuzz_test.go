package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// FuzzCanonicalJSON: what is taken is JSON to a strict parser too and means the same afterwards; the output is a fixed point; what is
// refused has one of the two errcodes.
func FuzzCanonicalJSON(f *testing.F) {
	for _, seed := range []string{
		`{"b":1,"a":[true,null,"\u00e9\ud83d\ude00\n"]}`, `{"a":1,"a":2}`, `1.0`, `-0`, `9007199254740992`, `"\ud800"`, "\"\xff\"", `{"\u0000":{"z":{},"y":[]}}`,
		`[[[[]]]]`, ` { "x" : 1 } `, `{"1":{"b":1,"a":{"d":1,"c":2}},"0":0}`, strings.Repeat("[", 600),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, strict := range []bool{true, false} {
			before := bytes.Clone(in)
			out, err := appendCanonical(nil, in, strict)
			if !bytes.Equal(in, before) {
				t.Fatal("the input was written to")
			}
			if err != nil {
				if e := mxerr.As(err); e == nil || e.Code != "M_BAD_JSON" && e.Code != "M_NOT_JSON" {
					t.Fatalf("error %v", err)
				}
				if mxerr.Is(err, "M_NOT_JSON") && json.Valid(in) && utf8.Valid(in) {
					t.Fatalf("%q is JSON: %v", in, err)
				}
				continue
			}
			if !utf8.Valid(out) || !jsontext.Value(out).IsValid() || !jsontext.Value(in).IsValid() {
				t.Fatalf("%q became %q, and one of them is no JSON", in, out)
			}
			again, err := appendCanonical(nil, out, strict)
			if err != nil || !bytes.Equal(again, out) {
				t.Fatalf("no fixed point: %q, then %q, %v", out, again, err)
			}
			if strict && len(out) > len(in) {
				t.Fatalf("%q is not the shortest form of %q", out, in)
			}
			var was, is any
			if err := jsonv2.Unmarshal(in, &was); err != nil {
				continue // numbers beyond a double, which only the lenient form takes
			}
			if err := jsonv2.Unmarshal(out, &is); err != nil {
				t.Fatal(err)
			}
			a, errA := jsonv2.Marshal(was, jsonv2.Deterministic(true))
			b, errB := jsonv2.Marshal(is, jsonv2.Deterministic(true))
			if errA != nil || errB != nil || !bytes.Equal(bytes.ReplaceAll(a, []byte("-0"), []byte("0")), bytes.ReplaceAll(b, []byte("-0"), []byte("0"))) {
				t.Fatalf("%q became %q, which means something else", in, out)
			}
		}
	})
}

// FuzzParse: an event from the network that is taken can be stored and read again, keeps its id when redacted, is within the limits, and
// its accessors agree with its JSON. The input is a property to replace in a good event, or with no name a whole event.
func FuzzParse(f *testing.F) {
	good := make([]*Event, len(versions))
	for i, v := range versions {
		s, b := newSim(f, v, testKey(f), "")
		good[i] = s.must(b, alice, typeMember, ptr(string(alice)), `{"membership":"join","displayname":"A"}`)
		f.Add(uint8(i), "", s.create.JSON())
		f.Add(uint8(i), "", s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json()).JSON())
		f.Add(uint8(i), "", s.must(b, alice, "m.room.message", nil, `{"body":"hi"}`).JSON())
	}
	for property, values := range map[string][]string{
		"auth_events": {`["$a"]`, `[["$a:b",{"sha256":"x"}]]`, `[[]]`, `{}`}, "content": {`[]`, `{"membership":1,"third_party_invite":{"signed":{}}}`},
		"depth": {`-1`, `1e3`, `9223372036854775807`, `"1"`}, "event_id": {`"$x:y"`, `1`}, "hashes": {`{}`, `{"sha256":"AA=="}`, `null`}, "origin_server_ts": {`1.5`, `-5`},
		"prev_events": {`[1]`, `[]`}, "redacts": {`"$x"`, `{}`}, "room_id": {`"!x:y"`, `"!"`, `null`}, "sender": {`"@"`, `"@a:b"`}, "signatures": {`{"a":{"ed25519:1":1}}`, `[]`},
		"state_key": {`"\u0000"`, `null`}, "type": {`""`, `"m.room.redaction"`, `"m.room.create"`}, "unsigned": {`{"a":[{}]}`}, "membership": {`"join"`},
	} {
		for i, value := range values {
			f.Add(uint8(i*11), property, []byte(value))
			f.Add(uint8(3+i), property, []byte(value))
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, property string, pdu []byte) {
		v := versions[int(n)%len(versions)]
		if property != "" {
			base := good[int(n)%len(versions)].JSON()
			pdu = append(append(append([]byte("{"), AppendCanonicalString(nil, property)...), ':'), pdu...)
			pdu = appendOthers(pdu, base, property)
			// Half of them with the hash that belongs to the changed event, so that they are not all redacted at once.
			if js, err := canonicalObject(pdu, false, "event"); n&128 != 0 && property != "hashes" && err == nil {
				hash := contentHash(js)
				pdu = appendOthers(append(base64.RawStdEncoding.AppendEncode([]byte(`{"hashes":{"sha256":"`), hash[:]), `"}`...), js, "hashes")
			}
		}
		e, redacted, err := v.ParseUntrusted(pdu)
		if err != nil {
			if e := mxerr.As(err); e == nil || e.Code != "M_BAD_JSON" && e.Code != "M_NOT_JSON" && e.Code != "M_TOO_LARGE" {
				t.Fatalf("error %v", err)
			}
			return
		}
		if len(e.JSON()) > maxEventSize || len(e.Type()) > 255 || !ValidUserID(e.Sender()) || e.Depth() < 0 || len(e.PrevEvents()) > 20 || len(e.AuthEvents()) > 10 {
			t.Fatalf("beyond the limits: %s", e.JSON())
		}
		if e.RoomID() == "" || e.ID() == "" || !isObject(e.Content()) || !bytes.Contains(e.JSON(), e.Content()) || get(e.JSON(), "unsigned") != nil {
			t.Fatalf("incomplete: %s", e.JSON())
		}
		again, err := v.Parse(e.JSON(), "")
		if err != nil || again.ID() != e.ID() || !bytes.Equal(again.JSON(), e.JSON()) || again.Membership() != e.Membership() || again.Redacts() != e.Redacts() {
			t.Fatalf("read again: %v\n%s", err, e.JSON())
		}
		red, err := v.Redact(e.JSON())
		if err != nil {
			t.Fatal(err)
		}
		r, err := v.Parse(red, "")
		if err != nil || r.ID() != e.ID() || r.RoomID() != e.RoomID() {
			t.Fatalf("redaction changes the id: %v\n%s\n%s", err, e.JSON(), red)
		}
		if redacted && !bytes.Equal(red, e.JSON()) {
			t.Fatalf("said to be redacted: %s", e.JSON())
		}
		if !redacted && !v.EventIDInPDU {
			other, changed, err := v.ParseUntrusted(bytes.Replace(e.JSON(), []byte(`"content":{`), []byte(`"content":{"\u0000added":1,`), 1))
			if err == nil && !changed && other.ID() == e.ID() && len(e.Content()) > 2 {
				t.Fatalf("a forged content went through: %s", other.JSON())
			}
		}
		_ = Check(e, StateMap{})
		_ = e.RequiredSigners()
		_, _ = e.PowerLevels()
	})
}

// FuzzCheck: whatever the content of a state event, in a room that has that content as its state nothing panics, a denial is M_FORBIDDEN,
// CheckProto and Check agree, and no one without power changes the levels of those who have it.
func FuzzCheck(f *testing.F) {
	for _, content := range []string{
		`{"membership":"join"}`, `{"membership":"invite","third_party_invite":{"signed":{"mxid":"@bob:domain","token":"t","signatures":{"a":{"ed25519:1":"x"}}}}}`,
		`{"membership":"join","join_authorised_via_users_server":"@alice:domain"}`, `{"users":{"@bob:domain":100},"users_default":100}`, `{"ban":"x","users":[]}`,
		`{"join_rule":"restricted"}`, `{"additional_creators":["@bob:domain"],"room_version":"12"}`, `{"public_key":"AAAA","public_keys":[{"public_key":1}]}`, `{}`,
	} {
		for n := range uint8(7) {
			f.Add(n, n, "", []byte(content), []byte(content))
			f.Add(uint8(11), n, "@bob:domain", []byte(content), []byte(`{"membership":"join"}`))
		}
	}
	types := []string{typeMember, typePowerLevels, typeJoinRules, typeCreate, typeThirdPartyInvite, typeAliases, "m.room.name"}
	rooms := make([]*sim, len(versions))
	states := make([]*branch, len(versions))
	for i, v := range versions {
		s, b := newSim(f, v, testKey(f), "")
		s.must(b, alice, typePowerLevels, ptr(""), fullLevels(v).json())
		s.must(b, alice, typeJoinRules, ptr(""), `{"join_rule":"public"}`)
		s.member(b, dave, dave, join)
		rooms[i], states[i] = s, b
	}
	f.Fuzz(func(t *testing.T, n, kind uint8, stateKey string, content, inState []byte) {
		i := int(n) % len(versions)
		s, b := rooms[i], states[i].fork()
		s.tb = t
		// First a state that no rule has checked, as a faulty database might hold it.
		evType := types[int(kind)%len(types)]
		if evType != typeCreate {
			p := s.proto(b, alice, evType, &stateKey, string(inState))
			p.AuthEvents = nil
			if e, err := s.v.Build(p, "domain", s.key); err == nil {
				b.state[e.Tuple()] = e
			}
		}
		for _, sender := range []id.UserID{alice, dave, eve} {
			p := s.proto(b, sender, evType, &stateKey, string(content))
			protoErr := s.v.CheckProto(p, b.state)
			if e := mxerr.As(protoErr); protoErr != nil && (e == nil || e.Message == "" || e.Code != "M_FORBIDDEN" && e.Code != "M_BAD_JSON" && e.Code != "M_NOT_JSON") {
				t.Fatalf("error %v", protoErr)
			}
			e, err := s.v.Build(p, "domain", s.key)
			if err != nil {
				continue
			}
			if err := Check(e, b.state); (err == nil) != (protoErr == nil) {
				t.Fatalf("Check says %v, CheckProto %v: %s", err, protoErr, e.JSON())
			}
			if protoErr == nil && evType == typePowerLevels && sender == dave {
				before := PowerLevelsOf(b.state)
				if own := before.User(dave); before.Event(typePowerLevels, true) > own {
					t.Fatalf("dave (%d) sent power levels: %s", own, e.JSON())
				}
				after := NewPowerLevels(e, s.create)
				if after.User(dave) > before.User(dave) && after.set[levelUsersDefault] == before.set[levelUsersDefault] && after.UsersDefault() == before.UsersDefault() {
					t.Fatalf("dave raised himself: %s", e.JSON())
				}
			}
		}
	})
}
