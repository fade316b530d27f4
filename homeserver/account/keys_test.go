package account_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// claim claims one key of a device and returns its name, or "".
func (p *parts) claim(t *testing.T, user id.UserID, device id.DeviceID) string {
	got, err := p.keys.Claim(t.Context(), map[id.UserID]map[id.DeviceID]string{user: {device: "signed_curve25519"}})
	if err != nil {
		t.Error(err)
		return ""
	}
	for name := range got.OneTimeKeys[user][device] {
		return name
	}
	return ""
}

// TestClaimConcurrently claims 100 keys 200 times at once: each is given out once, and who comes too late gets none.
func TestClaimConcurrently(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		p.user(t, alice, "A")
		_, err := p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{OneTimeKeys: oneTimeKeys(0, 100)})
		wants(t, "upload", err, "")
		run := func() map[string]int {
			var mu sync.Mutex
			got := map[string]int{}
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					name := p.claim(t, alice, "A")
					mu.Lock()
					defer mu.Unlock()
					got[name]++
				})
			}
			wg.Wait()
			return got
		}
		got := run()
		if len(got) != 101 || got[""] != 100 {
			t.Errorf("%d different keys were given out, %d claims got none", len(got)-1, got[""])
		}
		for name, n := range got {
			if name != "" && n != 1 {
				t.Errorf("%s was given out %d times", name, n)
			}
		}
		if c := p.counts(t, alice, "A"); c != `{"signed_curve25519":0} []` {
			t.Error(c)
		}
		fallback := map[string]jsontext.Value{"signed_curve25519:F": jsontext.Value(`{"key":"f","fallback":true,"signatures":{}}`)}
		_, err = p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{OneTimeKeys: oneTimeKeys(100, 150), FallbackKeys: fallback})
		wants(t, "upload", err, "")
		if c := p.counts(t, alice, "A"); c != `{"signed_curve25519":50} [signed_curve25519]` {
			t.Error(c)
		}
		got = run()
		if len(got) != 51 || got["signed_curve25519:F"] != 150 {
			t.Errorf("%d different keys, the fallback key %d times", len(got), got["signed_curve25519:F"])
		}
		if c := p.counts(t, alice, "A"); c != `{"signed_curve25519":0} []` {
			t.Error(c)
		}
	})
}

// TestClaimOrder checks upload order, devices and algorithms side by side, and who is told.
func TestClaimOrder(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		p.user(t, alice, "A", "B")
		p.user(t, bob, "A")
		upload := func(user id.UserID, device id.DeviceID, keys map[string]jsontext.Value) {
			t.Helper()
			_, err := p.keys.Upload(t.Context(), user, device, account.KeyUpload{OneTimeKeys: keys})
			wants(t, "upload", err, "")
		}
		upload(alice, "A", oneTimeKeys(5, 6))
		upload(alice, "A", oneTimeKeys(1, 2))
		upload(alice, "A", map[string]jsontext.Value{"curve25519:X": jsontext.Value(`"plain"`)})
		upload(alice, "B", oneTimeKeys(3, 4))
		upload(bob, "A", oneTimeKeys(4, 5))
		before := p.store.Applied()
		got, err := p.keys.Claim(t.Context(), map[id.UserID]map[id.DeviceID]string{
			alice:                  {"A": "signed_curve25519", "B": "signed_curve25519", "NONE": "signed_curve25519"},
			bob:                    {"A": "curve25519"},
			"@nobody:example.org":  {"A": "signed_curve25519"},
			"@far:elsewhere.org:1": {"A": "signed_curve25519"},
		})
		wants(t, "claim", err, "")
		if len(got.OneTimeKeys) != 1 || len(got.OneTimeKeys[alice]) != 2 || got.OneTimeKeys[alice]["A"]["signed_curve25519:K0005"] == nil || got.OneTimeKeys[alice]["B"]["signed_curve25519:K0003"] == nil {
			t.Errorf("claimed %v", got.OneTimeKeys)
		}
		if _, ok := got.Failures["elsewhere.org:1"]; !ok || len(got.Failures) != 1 {
			t.Errorf("failures %v", got.Failures)
		}
		var told []string
		p.read(t, func(tx *store.Tx) error {
			entries, err := tx.ReadLog(before, 100)
			for _, e := range entries {
				told = append(told, fmt.Sprint(e.Kind == store.KindKeys, e.User, e.Key))
			}
			return err
		})
		if slices.Sort(told); !slices.Equal(told, []string{"true@alice:example.orgA", "true@alice:example.orgB"}) && len(told) != 2 {
			t.Errorf("told %v", told)
		}
		if name := p.claim(t, alice, "A"); name != "signed_curve25519:K0001" {
			t.Errorf("second %q", name)
		}
		if c := p.counts(t, alice, "A"); c != `{"curve25519":1,"signed_curve25519":0} []` {
			t.Error(c)
		}
		_, err = p.keys.Claim(t.Context(), map[id.UserID]map[id.DeviceID]string{"alice": {"A": "x"}})
		wants(t, "claim from what is no user id", err, "M_INVALID_PARAM")
	})
}

func TestUploadKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		p.user(t, alice, "A", "B")
		good := deviceKeys(t, alice, "A")
		for _, tc := range []struct {
			name, body, code string
		}{
			{"another user", strings.Replace(good, `"user_id":"@alice`, `"user_id":"@bob`, 1), "M_INVALID_PARAM"},
			{"another device", deviceKeys(t, alice, "B"), "M_INVALID_PARAM"},
			{"nothing", `{}`, "M_BAD_JSON"},
			{"string", `"x"`, "M_BAD_JSON"},
			{"float", strings.Replace(good, `"user_id"`, `"x":1.5,"user_id"`, 1), "M_BAD_JSON"},
		} {
			_, err := p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{DeviceKeys: jsontext.Value(tc.body)})
			wants(t, tc.name, err, tc.code)
		}
		if changed, err := p.keys.DeviceListChangedSince(t.Context(), alice, 0, 1<<60); err != nil || len(changed) != 0 {
			t.Errorf("changed %v %v", changed, err)
		}
		// Clients judge signatures: keys of a kind that the server does not know are kept too.
		unknown := `{"algorithms":["m.future"],"device_id":"A","keys":{"ed448:A":"AAAA"},"signatures":{"@alice:example.org":{"ed448:A":"BBBB"}},"user_id":"@alice:example.org"}`
		_, err := p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{DeviceKeys: jsontext.Value(unknown)})
		wants(t, "another kind of key", err, "")
		p.uploadDevice(t, alice, "A")
		pos := p.store.Applied()
		p.uploadDevice(t, alice, "A") // the same again says nothing new
		if p.store.Applied() != pos {
			t.Error("the same keys were announced again")
		}
		withUnsigned := strings.Replace(good, `"user_id"`, `"unsigned":{"x":1},"user_id"`, 1)
		_, err = p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{DeviceKeys: jsontext.Value(withUnsigned)})
		wants(t, "unsigned", err, "")
		got, err := p.keys.Query(t.Context(), bob, map[id.UserID][]id.DeviceID{alice: nil})
		wants(t, "query", err, "")
		if body, err := event.CanonicalJSON(got.DeviceKeys[alice]["A"]); err != nil || string(body) != good {
			t.Errorf("stored %s, uploaded %s, %v", body, good, err)
		}

		keys := func(name, body string) account.KeyUpload {
			return account.KeyUpload{OneTimeKeys: map[string]jsontext.Value{name: jsontext.Value(body)}}
		}
		const sc = "signed_curve25519:X"
		for _, tc := range []struct {
			name string
			up   account.KeyUpload
			code string
		}{
			{"first", keys(sc, `{"key":"a","signatures":{}}`), ""},
			{"again", keys(sc, `{ "signatures" : {}, "key":"a" }`), ""},
			{"again with another signature", keys(sc, `{"key":"a","signatures":{"@alice:example.org":{"ed25519:A":"x"}}}`), ""},
			{"another key", keys(sc, `{"key":"b","signatures":{}}`), "M_UNKNOWN"},
			{"another algorithm", keys("curve25519:X", `"b"`), ""},
			{"no colon", keys("signed_curve25519", `{"key":"a","signatures":{}}`), "M_INVALID_PARAM"},
			{"no id", keys("signed_curve25519:", `{"key":"a","signatures":{}}`), "M_INVALID_PARAM"},
			{"no algorithm", keys(":a", `{"key":"a","signatures":{}}`), "M_INVALID_PARAM"},
			{"long", keys("a:"+strings.Repeat("x", 254), `"a"`), "M_INVALID_PARAM"},
			{"NUL", keys("a:\x00", `"a"`), "M_INVALID_PARAM"},
			{"number", keys("a:b", `1`), "M_BAD_JSON"},
			{"null", keys("a:b", `null`), "M_BAD_JSON"},
			{"signed string", keys("signed_curve25519:Y", `"a"`), "M_BAD_JSON"},
			{"no signatures", keys("signed_curve25519:Y", `{"key":"a"}`), "M_BAD_JSON"},
			{"no key", keys("signed_curve25519:Y", `{"signatures":{}}`), "M_BAD_JSON"},
			{"key is a number", keys("signed_curve25519:Y", `{"key":1,"signatures":{}}`), "M_BAD_JSON"},
			{"signatures are a list", keys("signed_curve25519:Y", `{"key":"a","signatures":[]}`), "M_BAD_JSON"},
			{"too many", account.KeyUpload{OneTimeKeys: oneTimeKeys(0, 999)}, "M_INVALID_PARAM"},
			{"two fallback keys", account.KeyUpload{FallbackKeys: oneTimeKeys(0, 2)}, "M_INVALID_PARAM"},
		} {
			_, err := p.keys.Upload(t.Context(), alice, "A", tc.up)
			wants(t, tc.name, err, tc.code)
		}
		counts, err := p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{})
		if err != nil || counts["signed_curve25519"] != 1 || counts["curve25519"] != 1 {
			t.Errorf("counts %v %v", counts, err)
		}
		_, err = p.keys.Upload(t.Context(), alice, "", keys(sc, `{"key":"a","signatures":{}}`))
		wants(t, "without a device", err, "M_INVALID_PARAM")
		_, err = p.keys.Upload(t.Context(), alice, "GONE", keys(sc, `{"key":"a","signatures":{}}`))
		wants(t, "of a deleted device", err, "M_UNKNOWN_TOKEN")
	})
}

func TestFallbackKeys(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		p.user(t, alice, "A")
		put := func(name string) {
			t.Helper()
			_, err := p.keys.Upload(t.Context(), alice, "A", account.KeyUpload{FallbackKeys: map[string]jsontext.Value{
				"signed_curve25519:" + name: jsontext.Value(`{"key":"` + name + `","fallback":true,"signatures":{}}`)}})
			wants(t, "upload", err, "")
		}
		const used, unused = `{"signed_curve25519":0} []`, `{"signed_curve25519":0} [signed_curve25519]`
		for i, step := range []struct{ put, claimed, counts string }{
			{"F1", "", unused},
			{"", "F1", used},
			{"F1", "", used}, // the same key stays used
			{"", "F1", used},
			{"F2", "", unused},
			{"", "F2", used},
		} {
			if step.put != "" {
				put(step.put)
			} else if name := p.claim(t, alice, "A"); name != "signed_curve25519:"+step.claimed {
				t.Errorf("step %d: claimed %q", i, name)
			}
			if c := p.counts(t, alice, "A"); c != step.counts {
				t.Errorf("step %d: %s", i, c)
			}
		}
	})
}

// TestCountsAcrossNodes: what one process caches follows what another one writes.
func TestCountsAcrossNodes(t *testing.T) {
	cfg := store.Config{DataDir: t.TempDir(), URL: storetest.Postgres(t)}
	one, two := openParts(t, cfg), openParts(t, cfg)
	one.user(t, alice, "A")
	for n := 1; n <= 3; n++ {
		_, err := one.keys.Upload(t.Context(), alice, "A", account.KeyUpload{OneTimeKeys: oneTimeKeys(n, n+1)})
		wants(t, "upload", err, "")
		wants(t, "ignore", one.data.SetAccountData(t.Context(), alice, "m.ignored_user_list", fmt.Appendf(nil, `{"ignored_users":{"@%d:x":{}}}`, n)), "")
		if err := two.store.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		if c := two.counts(t, alice, "A"); c != fmt.Sprintf(`{"signed_curve25519":%d} []`, n) {
			t.Errorf("after %d: %s", n, c)
		}
		if ignored, err := two.data.Ignored(t.Context(), alice); err != nil || len(ignored) != 1 || !has(ignored, id.UserID(fmt.Sprintf("@%d:x", n))) {
			t.Errorf("after %d: %v %v", n, ignored, err)
		}
	}
}

func has[K comparable, V any](m map[K]V, key K) bool { _, ok := m[key]; return ok }

func TestCrossSigning(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice, "A")
		p.user(t, bob, "B")
		p.uploadDevice(t, alice, "A")
		m, s, u := newSigner("m"), newSigner("s"), newSigner("u")
		all := crossSigning(t, alice, m, s, u)

		upload := func(what string, up account.CrossSigningUpload, approved bool, code string) {
			t.Helper()
			wants(t, what, p.keys.UploadCrossSigning(ctx, alice, up, approved), code)
		}
		needsApproval := func(what string, up account.CrossSigningUpload) {
			t.Helper()
			if err := p.keys.UploadCrossSigning(ctx, alice, up, false); !errors.Is(err, account.ErrNeedsApproval) {
				t.Errorf("%s: %v", what, err)
			}
		}
		needsApproval("nothing", account.CrossSigningUpload{})
		upload("nothing, approved", account.CrossSigningUpload{}, true, "M_MISSING_PARAM")
		upload("no master", account.CrossSigningUpload{SelfSigning: all.SelfSigning}, false, "M_MISSING_PARAM")
		bad := all
		bad.SelfSigning = jsontext.Value(crossSigningKey(alice, "self_signing", s))
		upload("unsigned", bad, false, "M_INVALID_SIGNATURE")
		bad.SelfSigning = jsontext.Value(u.sign(t, crossSigningKey(alice, "self_signing", s), alice, m.public))
		upload("signed by another", bad, false, "M_INVALID_SIGNATURE")
		bad.SelfSigning = jsontext.Value(m.sign(t, crossSigningKey(alice, "self_signing", m), alice, m.public))
		upload("the same key twice", bad, false, "M_INVALID_PARAM")
		for what, master := range map[string]string{
			"of another user":  crossSigningKey(bob, "master", m),
			"of another usage": crossSigningKey(alice, "self_signing", m),
			"two keys":         strings.Replace(crossSigningKey(alice, "master", m), `"keys":{`, `"keys":{"ed25519:x":"x",`, 1),
			"named otherwise":  strings.Replace(crossSigningKey(alice, "master", m), `"ed25519:`, `"ed25519:x`, 1),
			"too short":        `{"user_id":"@alice:example.org","usage":["master"],"keys":{"ed25519:AAAA":"AAAA"}}`,
		} {
			upload(what, account.CrossSigningUpload{Master: jsontext.Value(master)}, false, "M_INVALID_PARAM")
		}
		for _, master := range []string{`{}`, `[]`, `"x"`, `1`, `true`, `{"user_id":1}`, `{"user_id":"@alice:example.org","usage":"master","keys":{}}`} {
			upload(master, account.CrossSigningUpload{Master: jsontext.Value(master)}, false, "M_BAD_JSON")
		}
		// a key that is named like a device
		if _, _, err := p.accounts.SignIn(ctx, alice, account.SignIn{Device: id.DeviceID(s.public)}); err != nil {
			t.Fatal(err)
		}
		upload("named like a device", all, false, "M_FORBIDDEN")
		wants(t, "sign out", p.accounts.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{id.DeviceID(s.public)}}), "")

		upload("first", all, false, "")
		pos := p.store.Applied()
		upload("the same again", all, false, "")
		upload("the master again", account.CrossSigningUpload{Master: all.Master}, false, "")
		if p.store.Applied() != pos {
			t.Error("the same keys were announced again")
		}
		upload("another of the same without the master", account.CrossSigningUpload{SelfSigning: all.SelfSigning}, false, "")
		// a device that is named like a key
		_, _, err := p.accounts.SignIn(ctx, alice, account.SignIn{Device: id.DeviceID(m.public)})
		wants(t, "a device named like a key", err, "M_FORBIDDEN")

		query := func(viewer id.UserID) *account.KeyQuery {
			t.Helper()
			q, err := p.keys.Query(ctx, viewer, map[id.UserID][]id.DeviceID{alice: {}})
			wants(t, "query", err, "")
			return q
		}
		if q := query(alice); len(q.MasterKeys) != 1 || len(q.SelfSigningKeys) != 1 || len(q.UserSigningKeys) != 1 {
			t.Errorf("alice sees %+v", q)
		}
		if q := query(bob); len(q.MasterKeys) != 1 || len(q.SelfSigningKeys) != 1 || len(q.UserSigningKeys) != 0 {
			t.Errorf("bob sees %+v", q)
		}

		signed := newSigner("s").sign(t, deviceKeys(t, alice, "A"), alice, s.public)
		failures, err := p.keys.UploadSignatures(ctx, alice, account.SignatureUpload{alice: {"A": jsontext.Value(signed)}})
		if err != nil || len(failures) != 0 {
			t.Fatalf("%v %v", failures, err)
		}
		second := crossSigning(t, alice, newSigner("m2"), newSigner("s2"), newSigner("u2"))
		needsApproval("replaced", second)
		upload("replaced, approved", account.CrossSigningUpload{Master: second.Master, SelfSigning: second.SelfSigning}, true, "")
		q := query(alice)
		if len(q.UserSigningKeys) != 0 || !strings.Contains(string(q.SelfSigningKeys[alice]), newSigner("s2").public) {
			t.Errorf("after a new master key: %+v", q)
		}
		if strings.Contains(string(q.DeviceKeys[alice]["A"]), s.public) {
			t.Error("a signature by a key that is gone is still shown")
		}
		wants(t, "of nobody", p.keys.UploadCrossSigning(ctx, eve, crossSigning(t, eve, m, s, u), false), "M_NOT_FOUND")
	})
}

func TestSignatures(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		ctx := t.Context()
		p.user(t, alice, "A", "A2")
		p.user(t, bob, "B")
		p.user(t, eve, "E")
		p.uploadDevice(t, alice, "A")
		p.uploadDevice(t, alice, "A2")
		p.uploadDevice(t, bob, "B")
		aliceM, aliceS, aliceU := p.uploadCrossSigning(t, alice)
		bobM, _, _ := p.uploadCrossSigning(t, bob)

		upload := func(what string, owner id.UserID, target, body, code string) {
			t.Helper()
			failures, err := p.keys.UploadSignatures(ctx, alice, account.SignatureUpload{owner: {target: jsontext.Value(body)}})
			if got := failures[owner][target].Errcode; err != nil || got != code {
				t.Errorf("%s: %v %v, want %q", what, failures, err, code)
			}
		}
		device, master := deviceKeys(t, alice, "A"), crossSigningKey(alice, "master", aliceM)
		theirs := crossSigningKey(bob, "master", bobM)
		upload("unknown device", alice, "NONE", device, "M_NOT_FOUND")
		upload("device of another", bob, "B", aliceU.sign(t, deviceKeys(t, bob, "B"), alice, aliceU.public), "M_NOT_FOUND")
		upload("no signature", alice, "A", device, "M_INVALID_SIGNATURE")
		upload("by the wrong key", alice, "A", aliceU.sign(t, device, alice, aliceS.public), "M_INVALID_SIGNATURE")
		upload("another object", alice, "A", aliceS.sign(t, deviceKeys(t, alice, "A2"), alice, aliceS.public), "M_INVALID_SIGNATURE")
		upload("master without", alice, aliceM.public, master, "M_INVALID_SIGNATURE")
		upload("master by an unknown device", alice, aliceM.public, aliceS.sign(t, master, alice, "NONE"), "M_INVALID_SIGNATURE")
		upload("master by the wrong device", alice, aliceM.public, aliceS.sign(t, master, alice, "A"), "M_INVALID_SIGNATURE")
		upload("of another, by the self-signing key", bob, bobM.public, aliceS.sign(t, theirs, alice, aliceS.public), "M_INVALID_SIGNATURE")
		upload("float", alice, "A", `{"x":1.5}`, "M_BAD_JSON")

		pos := p.store.Applied()
		upload("device", alice, "A", aliceS.sign(t, device, alice, aliceS.public), "")
		upload("master", alice, aliceM.public, deviceSigner(alice, "A").sign(t, master, alice, "A"), "")
		mid := p.store.Applied()
		upload("of another", bob, bobM.public, aliceU.sign(t, theirs, alice, aliceU.public), "")
		if p.store.Applied() != mid+1 {
			t.Error("a signature on another user's key is one entry")
		}
		upload("of another again", bob, bobM.public, aliceU.sign(t, theirs, alice, aliceU.public), "")
		if p.store.Applied() != mid+1 {
			t.Error("the same signature was announced again")
		}

		for _, tc := range []struct {
			viewer      id.UserID
			since, upto int64
			want        []id.UserID
		}{
			{alice, pos, 1 << 60, []id.UserID{alice, bob}},
			{bob, pos, 1 << 60, []id.UserID{alice}},
			{alice, mid, 1 << 60, []id.UserID{bob}},
			{bob, mid, 1 << 60, nil},
			{alice, pos, mid, []id.UserID{alice}},
		} {
			got, err := p.keys.DeviceListChangedSince(ctx, tc.viewer, tc.since, tc.upto)
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%s since %d: %v %v, want %v", tc.viewer, tc.since, got, err, tc.want)
			}
		}

		const path = "signatures.@alice:example\\.org"
		for _, tc := range []struct {
			viewer             id.UserID
			device, own, other int // signatures by alice on her device, on her master key, on bob's master key
		}{{alice, 2, 1, 1}, {bob, 2, 1, 0}, {eve, 2, 1, 0}} {
			q, err := p.keys.Query(ctx, tc.viewer, map[id.UserID][]id.DeviceID{alice: {"A"}, bob: nil, "@no:example.org": nil, "@x:far.org": nil})
			wants(t, "query", err, "")
			count := func(v jsontext.Value) int { return len(gjson.GetBytes(v, path).Map()) }
			if d, o, x := count(q.DeviceKeys[alice]["A"]), count(q.MasterKeys[alice]), count(q.MasterKeys[bob]); d != tc.device || o != tc.own || x != tc.other {
				t.Errorf("%s sees %d %d %d signatures", tc.viewer, d, o, x)
			}
			if len(q.DeviceKeys[alice]) != 1 || len(q.DeviceKeys[bob]) != 1 || len(q.DeviceKeys) != 2 {
				t.Errorf("%s sees devices %v", tc.viewer, q.DeviceKeys)
			}
			if !slices.Equal(slices.Collect(maps.Keys(q.Failures)), []string{"far.org"}) {
				t.Errorf("failures %v", q.Failures)
			}
		}
		name := "Alice's “phone”"
		p.write(t, func(tx *store.Tx) error { _, err := tx.SetDeviceName(alice, "A", name); return err })
		q, err := p.keys.Query(ctx, eve, map[id.UserID][]id.DeviceID{alice: {"A"}, eve: {}})
		if got := gjson.GetBytes(q.DeviceKeys[alice]["A"], "unsigned.device_display_name").String(); err != nil || got != name {
			t.Errorf("name %q %v", got, err)
		}
		if d, ok := q.DeviceKeys[eve]; !ok || len(d) != 0 {
			t.Error("a known user without keys has an empty entry")
		}
		_, err = p.keys.Query(ctx, eve, map[id.UserID][]id.DeviceID{"nobody": {}})
		wants(t, "what is no user id", err, "M_INVALID_PARAM")
		_, err = p.keys.UploadSignatures(ctx, alice, account.SignatureUpload{alice: {"A": jsontext.Value(`[]`)}})
		wants(t, "a list", err, "M_BAD_JSON")

		// the device goes, and its keys and signatures with it
		pos = p.store.Applied()
		wants(t, "sign out", p.accounts.EndSessions(ctx, alice, account.Ending{Devices: []id.DeviceID{"A"}}), "")
		q, err = p.keys.Query(ctx, bob, map[id.UserID][]id.DeviceID{alice: nil})
		if err != nil || has(q.DeviceKeys[alice], "A") {
			t.Errorf("the device is still shown: %v %v", q, err)
		}
		if got, err := p.keys.DeviceListChangedSince(ctx, bob, pos, 1<<60); err != nil || !slices.Equal(got, []id.UserID{alice}) {
			t.Errorf("nobody was told: %v %v", got, err)
		}
	})
}

func TestKeyChanges(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		p := openParts(t, cfg)
		for _, u := range []id.UserID{alice, bob, eve} {
			p.user(t, u, "D")
		}
		check := func(what string, user id.UserID, since int64, changed, left []id.UserID) {
			t.Helper()
			c, l, err := p.keys.Changes(t.Context(), user, since)
			if err != nil || !slices.Equal(c, changed) || !slices.Equal(l, left) {
				t.Errorf("%s: changed %v, left %v, %v; want %v and %v", what, c, l, err, changed, left)
			}
		}
		shared := p.room(t, "!shared:example.org", false, alice, bob)
		other := p.room(t, "!other:example.org", false, bob, eve)
		at := p.store.Applied()
		check("nothing", alice, at, nil, nil)
		p.uploadDevice(t, bob, "D")
		p.uploadDevice(t, eve, "D")
		check("bob's keys", alice, at, []id.UserID{bob}, nil)
		check("my own", eve, at, []id.UserID{bob, eve}, nil)
		at = p.store.Applied()
		p.member(t, shared, eve, 2)
		check("eve came", alice, at, []id.UserID{eve}, nil)
		check("eve sees all", eve, at, []id.UserID{alice, bob, eve}, nil)
		at = p.store.Applied()
		p.member(t, shared, bob, 3)
		check("bob left", alice, at, nil, []id.UserID{bob})
		check("bob left, who shares another room", eve, at, nil, nil)
		check("for bob", bob, at, nil, []id.UserID{alice})
		p.member(t, other, alice, 2)
		check("a room with bob again", alice, at, []id.UserID{alice, bob, eve}, nil)
	})
}
