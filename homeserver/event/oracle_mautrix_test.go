//go:build goexperiment.jsonv2

package event

import (
	"bytes"
	"encoding/base64"
	"encoding/json/v2"
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/federation/eventauth"
	"maunium.net/go/mautrix/federation/pdu"
	"maunium.net/go/mautrix/id"
	"pgregory.net/rapid"
)

// mautrix is the oracle of this file. Its packages are there only with GOEXPERIMENT=jsonv2.

func mautrixPDU(t failer, e *Event) *pdu.PDU {
	var p pdu.PDU
	if err := json.Unmarshal(e.JSON(), &p); err != nil {
		t.Fatalf("mautrix: %v\n%s", err, e.JSON())
	}
	return &p
}

func TestMautrixEvents(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		key := testKey(t)
		public := id.SigningKey(base64.RawStdEncoding.EncodeToString(key.public()))
		getKey := func(string, id.KeyID, time.Time) (id.SigningKey, time.Time, error) {
			return public, time.Now().AddDate(1000000, 0, 0), nil
		}
		rapid.Check(t, func(t *rapid.T) {
			p := randomEvent(t, v)
			if v.ModernRedaction && p.Type == typeMember && rapid.Bool().Draw(t, "third") {
				p.Content = []byte(`{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"token":"t"}}}`)
			}
			// It writes a reference without a hash otherwise than it read it.
			p.ReferenceHash = func(id.EventID) ([32]byte, bool) { return [32]byte{1, 2, 3}, true }
			// When it redacts a redaction before version 11 it keeps redacts, which is not among the properties that stay.
			p.Redacts = ""
			server := domainOf(string(p.Sender))
			e, err := v.Build(p, server, key)
			if err != nil {
				t.Fatal(err)
			}
			var theirs pdu.AnyPDU = &pdu.PDU{}
			if v.EventIDInPDU {
				theirs = &pdu.RoomV1PDU{}
			}
			if err := json.Unmarshal(e.JSON(), theirs); err != nil {
				t.Fatalf("mautrix: %v\n%s", err, e.JSON())
			}
			version := id.RoomVersion(v.ID)
			eventID, err := theirs.GetEventID(version)
			if err != nil || eventID != e.ID() {
				t.Fatalf("mautrix: id %s, %v; ours %s\n%s", eventID, err, e.ID(), e.JSON())
			}
			hash, err := theirs.GetReferenceHash(version)
			if ours := e.ReferenceHash(); err != nil || !bytes.Equal(hash[:], ours[:]) {
				t.Fatalf("mautrix: reference hash %x, %v; ours %x\n%s", hash, err, ours, e.JSON())
			}
			hash, err = theirs.CalculateContentHash()
			if ours := contentHash(e.JSON()); err != nil || hash != ours {
				t.Fatalf("mautrix: content hash %x, %v; ours %x\n%s", hash, err, ours, e.JSON())
			}
			if err := theirs.VerifySignature(version, server, getKey); err != nil {
				t.Fatalf("mautrix: %v\n%s", err, e.JSON())
			}
			redacted, err := v.RedactContent(p.Type, p.Content)
			if err != nil {
				t.Fatal(err)
			}
			content, err := CanonicalJSON(pdu.RedactContent(p.Type, slices.Clone(e.Content()), version))
			if err != nil || !bytes.Equal(content, redacted) {
				t.Fatalf("mautrix: redacted content %s, %v; ours %s", content, err, redacted)
			}
		})
	})
}

// mautrixWrong tells why the oracle's answer cannot be used, "" if it can.
func mautrixWrong(v *Version, e *Event, state StateMap) string {
	switch {
	case v.AliasesAuth && e.Type() == typeAliases:
		return "it has no rule for m.room.aliases"
	case e.Membership() == join && len(e.PrevEvents()) == 1 && e.PrevEvents()[0] == state.Get(typeCreate, "").ID() && len(e.AuthEvents()) > 1:
		return "it asks that the creator's first join have no auth_events but one"
	case e.Type() == typePowerLevels && !v.NotificationsAuth && levelsComeOrGo(state.Get(typePowerLevels, ""), e):
		return "it looks at notifications in versions 3 to 5 too"
	case e.Type() == typePowerLevels && !v.NotificationsAuth && notificationsChange(state.Get(typePowerLevels, ""), e):
		return "it looks at notifications in versions 3 to 5 too"
	}
	return ""
}

func notificationsChange(was, is *Event) bool {
	if was == nil {
		return false
	}
	a, _ := was.PowerLevels()
	b, _ := is.PowerLevels()
	return a.NotificationRoom() != b.NotificationRoom()
}

func TestMautrixAuthRules(t *testing.T) {
	forEachVersion(t, func(t *testing.T, v *Version) {
		if v.EventIDInPDU {
			t.Log("the oracle's rules are for versions 3 and later")
			return
		}
		key := testKey(t)
		public := id.SigningKey(base64.RawStdEncoding.EncodeToString(key.public()))
		getKey := func(string, id.KeyID, time.Time) (id.SigningKey, time.Time, error) {
			return public, time.Now().AddDate(1000000, 0, 0), nil
		}
		allowed, denied, panics, wrong := 0, 0, 0, map[string]int{}
		rapid.Check(t, func(t *rapid.T) {
			full := rapid.Bool().Draw(t, "full")
			s, branches := randomRoom(t, v, key, full, 1)
			state := branches[0].state
			for range 12 {
				e := s.build(proposal(t, s, branches[0], full))
				if via := getString(e.Content(), "join_authorised_via_users_server"); via != "" {
					signed, err := e.Sign(domainOf(via), key)
					if err != nil {
						t.Fatal(err)
					}
					e = signed
				}
				if reason := mautrixWrong(v, e, state); reason != "" {
					wrong[reason]++
					continue
				}
				ours := Check(e, state)
				theirs, panicked := mautrixAllows(t, e, state, getKey)
				if panicked {
					// It does so where a user on the sender's own level or above is removed from users.
					panics++
					if ours == nil {
						t.Fatalf("mautrix panics on what we allow: %v\n%s", theirs, e.JSON())
					}
					continue
				}
				if (theirs == nil) != (ours == nil) {
					t.Fatalf("mautrix: %v\n   ours: %v\n%s\nlevels: %s\nrules: %s", theirs, ours, e.JSON(), describe(state.Get(typePowerLevels, "")),
						describe(state.Get(typeJoinRules, "")))
				}
				if ours == nil {
					allowed++
				} else {
					denied++
				}
			}
		})
		if allowed < 20 || denied < 20 {
			t.Errorf("the test is worth nothing: %d allowed, %d denied, %d panics, %v", allowed, denied, panics, wrong)
		}
	})
}

func mautrixAllows(t failer, e *Event, state StateMap, getKey pdu.GetKeyFunc) (err error, panicked bool) {
	var key *string
	if e.isState {
		key = &e.stateKey
	}
	var auth []*pdu.PDU
	for _, tuple := range e.Version().AuthTypes(e.Type(), key, e.Sender(), e.Content()) {
		if s := state[tuple]; s != nil {
			auth = append(auth, mautrixPDU(t, s))
		}
	}
	getEvents := func([]id.EventID) ([]*pdu.PDU, error) {
		return []*pdu.PDU{mautrixPDU(t, state.Get(typeCreate, ""))}, nil
	}
	theirs := mautrixPDU(t, e)
	if want := theirs.AuthEventSelection(id.RoomVersion(e.Version().ID)); !sameSelection(want, e.Version().AuthTypes(e.Type(), key, e.Sender(), e.Content())) {
		t.Fatalf("mautrix selects the auth events %v for %s", want, e.JSON())
	}
	defer func() {
		if p := recover(); p != nil {
			err, panicked = fmt.Errorf("%v", p), true
		}
	}()
	return eventauth.Authorize(id.RoomVersion(e.Version().ID), theirs, auth, getEvents, getKey), false
}

func sameSelection(theirs pdu.AuthEventSelection, ours []StateKeyTuple) bool {
	if len(theirs) != len(ours) {
		return false
	}
	for _, t := range theirs {
		if !slices.Contains(ours, StateKeyTuple{t.Type, t.StateKey}) {
			return false
		}
	}
	return true
}
