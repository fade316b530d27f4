package clientapi_test

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/web"
)

// serveUserData serves keys, account data and profiles for alice and bob, who are signed in. bob has the device B.
func serveUserData(t *testing.T, cfg store.Config, turn clientapi.TurnConfig) (s *accountServer, st *store.Store, alice, bob string) {
	t.Helper()
	st, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s = &accountServer{clock: new(atomic.Int64), logs: new(lockedLog)}
	s.clock.Store(1_700_000_000_000)
	keys := account.NewKeys(account.KeysDeps{Store: st, ServerName: "example.org"})
	data := account.NewData(account.DataDeps{Store: st})
	s.Accounts = account.New(account.Deps{Store: st, ServerName: "example.org", Logger: slog.New(slog.DiscardHandler),
		Config:          account.Config{Passwords: account.PasswordConfig{Argon2: account.Argon2{Time: 1, MemoryKiB: 64, Threads: 1}}},
		Clock:           func() time.Time { return time.UnixMilli(s.clock.Load()) },
		OnDeviceDeleted: []func(*store.Tx, id.UserID, id.DeviceID) error{keys.DeviceDeleted}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- st.Follow(ctx, []store.Listener{s.Listener(), keys.Listener(), data.Listener()}, nil)
	}()
	<-st.Following()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, st.Close()); err != nil {
			t.Error(err)
		}
	})
	api := clientapi.New(clientapi.Deps{ServerName: "example.org", Store: st, Accounts: s.Accounts, Logger: slog.New(slog.DiscardHandler),
		UserDataDeps: clientapi.UserDataDeps{
			Keys: keys, Data: data, Turn: turn,
			Profiles: account.NewProfiles(account.ProfilesDeps{Store: st, ServerName: "example.org"}),
			ParseSyncToken: func(token string) (int64, error) {
				pos, err := strconv.ParseInt(token, 10, 64)
				if err != nil {
					return 0, mxerr.InvalidParam("not a token")
				}
				return pos, nil
			},
			PushRules: func(context.Context, id.UserID) ([]byte, error) { return []byte(`{"global":{}}`), nil },
		}})
	mux, err := web.NewMux(web.Config{Authenticate: s.Authenticator, Logger: slog.New(slog.DiscardHandler),
		OnPanic: func(p any) { t.Errorf("panic: %v", p) }}, api.Routes())
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	s.url = srv.URL
	s.user(t, "alice")
	s.user(t, "bob")
	err = st.Write(t.Context(), func(tx *store.Tx) error {
		return tx.SaveRooms([]store.Room{{NID: 1, RoomID: "!r:example.org", Version: "12", Creator: "@alice:example.org", Extremities: []byte{}}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, st, s.login(t, "alice", "A"), s.login(t, "bob", "B")
}

// wrongTypes sends bodies in which one member at a time has every type but the right one. fields maps a member's path
// to its type; base is a good body of the endpoint, into which the member is put.
func (s *accountServer) wrongTypes(t *testing.T, method, path, token string, fields map[string]string) {
	t.Helper()
	values := map[string]string{"number": "1", "float": "1.5", "huge": "1e400", "string": `"x"`, "bool": "true", "list": "[]", "mixed": `[1,{}]`, "object": "{}"}
	fits := map[string][]string{
		"object": {"object"}, "string": {"string"}, "integer": {"number"}, "number": {"number", "float"}, "bool": {"bool"}, "strings": {"list"}, "any": nil,
	}
	for field, kind := range fields {
		for name, value := range values {
			fit := false
			for _, f := range fits[kind] {
				fit = fit || f == name
			}
			if fit {
				continue
			}
			body := value
			for names := strings.Split(field, "/"); len(names) > 0; names = names[:len(names)-1] {
				body = fmt.Sprintf("{%q:%s}", names[len(names)-1], body)
			}
			s.expect(t, method, path, token, body, 400, "M_BAD_JSON")
		}
	}
	for body, code := range map[string]string{`[]`: "M_BAD_JSON", `"x"`: "M_BAD_JSON", `null`: "M_BAD_JSON", `1`: "M_BAD_JSON", `{`: "M_NOT_JSON", `{"a":1,"a":2}`: "M_BAD_JSON",
		"{\"a\":\"\xff\"}": "M_NOT_JSON", strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200): "M_BAD_JSON"} {
		s.expect(t, method, path, token, body, 400, code)
	}
}

func signJSON(t *testing.T, obj, user, keyName, seed string) (signed, public string) {
	t.Helper()
	hash := sha256.Sum256([]byte(seed))
	key := ed25519.NewKeyFromSeed(hash[:])
	public = base64.RawStdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))
	out, err := event.SignJSON([]byte(strings.ReplaceAll(obj, "PUBLIC", public)), user, event.SigningKey{KeyID: "ed25519:" + strings.ReplaceAll(keyName, "PUBLIC", public), Private: key})
	if err != nil {
		t.Fatal(err)
	}
	return string(out), public
}

func TestKeyEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, st, alice, bob := serveUserData(t, cfg, clientapi.TurnConfig{})
		const keys = v3 + "/keys/"
		s.wrongTypes(t, "POST", keys+"upload", alice, map[string]string{"device_keys": "any", "device_keys/user_id": "string", "device_keys/keys": "object", "one_time_keys": "object",
			"one_time_keys/signed_curve25519:A": "any", "fallback_keys": "object", "fallback_keys/signed_curve25519:A": "any"})
		s.wrongTypes(t, "POST", keys+"query", alice, map[string]string{"device_keys": "object", "device_keys/@a:b": "strings", "timeout": "any"})
		s.wrongTypes(t, "POST", keys+"claim", alice, map[string]string{"one_time_keys": "object", "one_time_keys/@a:b": "object", "one_time_keys/@a:b/C": "string"})
		s.wrongTypes(t, "POST", keys+"signatures/upload", alice, map[string]string{"@a:b": "object", "@a:b/C": "object"})
		s.wrongTypes(t, "POST", keys+"device_signing/upload", alice, map[string]string{"master_key": "any", "self_signing_key": "any", "user_signing_key": "any", "auth": "object"})
		s.wrongTypes(t, "PUT", v3+"/sendToDevice/m.x/bad", alice, map[string]string{"messages": "object", "messages/@a:b": "object", "messages/@a:b/C": "object"})

		device, _ := signJSON(t, `{"user_id":"@alice:example.org","device_id":"A","algorithms":[],"keys":{"ed25519:A":"PUBLIC"}}`, "@alice:example.org", "A", "A")
		got := s.expect(t, "POST", keys+"upload", alice, `{"device_keys":`+device+`,"one_time_keys":{"signed_curve25519:K":{"key":"k","signatures":{}}},"fallback_keys":{"signed_curve25519:F":{"key":"f","fallback":true,"signatures":{}}}}`, 200, "")
		if got.get("one_time_key_counts.signed_curve25519").Int() != 1 {
			t.Error(got.body)
		}
		s.expect(t, "POST", keys+"upload", alice, `{"one_time_keys":{"signed_curve25519:K":{"key":"other","signatures":{}}}}`, 400, "M_UNKNOWN")
		s.expect(t, "POST", keys+"upload", bob, `{"device_keys":`+device+`}`, 400, "M_INVALID_PARAM")
		if got := s.expect(t, "POST", keys+"upload", bob, `{}`, 200, ""); got.get("one_time_key_counts.signed_curve25519").Raw != "0" {
			t.Error(got.body)
		}
		for _, want := range []string{"signed_curve25519:K", "signed_curve25519:F", "signed_curve25519:F"} {
			got = s.expect(t, "POST", keys+"claim", bob, `{"timeout":10,"one_time_keys":{"@alice:example.org":{"A":"signed_curve25519","Z":"signed_curve25519"},"@x:far.org":{"A":"x"}}}`, 200, "")
			if len(got.get(`one_time_keys.@alice:example\.org`).Map()) != 1 || !got.get(`one_time_keys.@alice:example\.org.A.`+want).Exists() || !got.get(`failures.far\.org`).IsObject() {
				t.Errorf("want %s: %s", want, got.body)
			}
		}
		got = s.expect(t, "POST", keys+"query", bob, `{"device_keys":{"@alice:example.org":["A"],"@bob:example.org":[],"@no:example.org":[],"@x:far.org":[]}}`, 200, "")
		if got.str(`device_keys.@alice:example\.org.A.device_id`) != "A" || got.get(`device_keys.@bob:example\.org`).Raw != "{}" || got.get(`device_keys.@no:example\.org`).Exists() || !got.get(`failures.far\.org`).Exists() {
			t.Error(got.body)
		}
		for _, path := range []string{"query", "claim"} {
			s.expect(t, "POST", keys+path, bob, `{}`, 400, "M_BAD_JSON")
			s.expect(t, "POST", keys+path, "", `{}`, 401, "M_MISSING_TOKEN")
		}
		s.expect(t, "POST", keys+"query", bob, `{"device_keys":{"alice":[]}}`, 400, "M_INVALID_PARAM")

		got = s.expect(t, "GET", keys+"changes?from=0&to="+strconv.FormatInt(st.Applied(), 10), alice, "", 200, "")
		if got.get("changed").Raw != `["@alice:example.org"]` || got.get("left").Raw != `[]` {
			t.Error(got.body)
		}
		s.expect(t, "GET", keys+"changes?from=0", alice, "", 400, "M_MISSING_PARAM")
		s.expect(t, "GET", keys+"changes?to=0", alice, "", 400, "M_MISSING_PARAM")
		s.expect(t, "GET", keys+"changes?from=x&to=0", alice, "", 400, "M_INVALID_PARAM")
		s.expect(t, "GET", keys+"changes?from=0&to=x", alice, "", 400, "M_INVALID_PARAM")
	})
}

func TestCrossSigningEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, _, alice, bob := serveUserData(t, cfg, clientapi.TurnConfig{})
		const unstable = "/_matrix/client/unstable/keys/device_signing/upload"
		const stable = v3 + "/keys/device_signing/upload"
		for _, path := range []string{unstable, stable} {
			for _, body := range []string{"", "{}"} { // as Element Web asks, before there are keys
				got := s.expect(t, "POST", path, alice, body, 401, "")
				if got.str("flows.0.stages.0") != "m.login.password" || got.str("session") == "" {
					t.Errorf("%s %q: %s", path, body, got.body)
				}
			}
		}
		s.expect(t, "POST", stable, alice, passwordAuth("alice", ""), 400, "M_MISSING_PARAM")

		master, public := signJSON(t, `{"user_id":"@alice:example.org","usage":["master"],"keys":{"ed25519:PUBLIC":"PUBLIC"}}`, "@alice:example.org", "PUBLIC", "M")
		s.expect(t, "POST", unstable, alice, `{"master_key":`+master+`}`, 200, "")
		s.expect(t, "POST", stable, alice, `{"master_key":`+master+`}`, 200, "") // the answer was lost
		second, _ := signJSON(t, `{"user_id":"@alice:example.org","usage":["master"],"keys":{"ed25519:PUBLIC":"PUBLIC"}}`, "@alice:example.org", "PUBLIC", "M2")
		challenge := s.expect(t, "POST", stable, alice, `{"master_key":`+second+`}`, 401, "")
		with := strings.TrimSuffix(passwordAuth("alice", challenge.str("session")), "}") + `,"master_key":` + second + `}`
		s.expect(t, "POST", stable, alice, strings.Replace(with, password, "wrong", 1), 401, "M_FORBIDDEN")
		s.expect(t, "POST", stable, alice, with, 200, "")
		got := s.expect(t, "POST", v3+"/keys/query", bob, `{"device_keys":{"@alice:example.org":[]}}`, 200, "")
		if body := got.get(`master_keys.@alice:example\.org`).Raw; body == "" || strings.Contains(body, public) {
			t.Error(got.body)
		}
		s.expect(t, "POST", stable, bob, `{"master_key":`+master+`}`, 400, "M_INVALID_PARAM")
		s.expect(t, "POST", stable, bob, `{"self_signing_key":`+strings.ReplaceAll(strings.ReplaceAll(master, "alice", "bob"), "master", "self_signing")+`}`, 400, "M_MISSING_PARAM")

		got = s.expect(t, "POST", v3+"/keys/signatures/upload", bob, `{"@alice:example.org":{"x":{}},"@x:far.org":{"y":{}}}`, 200, "")
		if got.str(`failures.@alice:example\.org.x.errcode`) != "M_NOT_FOUND" || got.str(`failures.@x:far\.org.y.errcode`) != "M_NOT_FOUND" {
			t.Error(got.body)
		}
		if got = s.expect(t, "POST", v3+"/keys/signatures/upload", bob, `{}`, 200, ""); got.get("failures").Raw != "{}" {
			t.Error(got.body)
		}
	})
}

func TestKeyBackupEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, _, alice, bob := serveUserData(t, cfg, clientapi.TurnConfig{})
		const version, keys = v3 + "/room_keys/version", v3 + "/room_keys/keys"
		const room = "!r:example.org"
		esc := url.PathEscape
		s.expect(t, "GET", version, alice, "", 404, "M_NOT_FOUND")
		s.expect(t, "PUT", keys+"?version=1", alice, `{"rooms":{}}`, 404, "M_NOT_FOUND")
		body := `{"algorithm":"` + account.BackupAlgorithm + `","auth_data":{"public_key":"p","signatures":{}}}`
		if got := s.expect(t, "POST", version, alice, body, 200, ""); got.str("version") != "1" {
			t.Error(got.body)
		}
		got := s.expect(t, "GET", version, alice, "", 200, "")
		if got.str("auth_data.public_key") != "p" || got.get("count").Raw != "0" || got.get("etag").Raw != `"0"` || got.get("version").Raw != `"1"` {
			t.Error(got.body)
		}
		s.expect(t, "GET", version+"/1", alice, "", 200, "")
		s.expect(t, "GET", version+"/1", bob, "", 404, "M_NOT_FOUND")
		s.expect(t, "GET", version+"/x", alice, "", 404, "M_NOT_FOUND")
		s.wrongTypes(t, "POST", version, alice, map[string]string{"algorithm": "string", "auth_data": "object"})
		s.wrongTypes(t, "PUT", version+"/1", alice, map[string]string{"algorithm": "string", "auth_data": "object", "version": "string"})
		s.expect(t, "POST", version, alice, `{"algorithm":"","auth_data":{}}`, 400, "M_INVALID_PARAM")
		s.expect(t, "POST", version, alice, `{"algorithm":"x"}`, 400, "M_BAD_JSON")
		s.expect(t, "POST", version, alice, `{"auth_data":{}}`, 400, "M_BAD_JSON")
		s.expect(t, "PUT", version+"/1", alice, strings.Replace(body, `{"alg`, `{"version":"1","alg`, 1), 200, "")
		s.expect(t, "PUT", version+"/1", alice, strings.Replace(body, `{"alg`, `{"version":"2","alg`, 1), 400, "M_INVALID_PARAM")
		s.expect(t, "PUT", version+"/9", alice, body, 404, "M_NOT_FOUND")

		const key = `{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{"ciphertext":"c"}}`
		fields := map[string]string{"first_message_index": "integer", "forwarded_count": "integer", "is_verified": "bool", "session_data": "object"}
		for _, prefix := range []struct{ path, member string }{
			{keys, "rooms/!r:x/sessions/s/"}, {keys + "/" + esc(room), "sessions/s/"}, {keys + "/" + esc(room) + "/s", ""},
		} {
			nested := map[string]string{}
			for f, k := range fields {
				nested[prefix.member+f] = k
			}
			for names := strings.Split(strings.TrimSuffix(prefix.member, "/"), "/"); len(names) > 0 && names[0] != ""; names = names[:len(names)-1] {
				nested[strings.Join(names, "/")] = "object"
			}
			s.wrongTypes(t, "PUT", prefix.path+"?version=1", alice, nested)
			s.expect(t, "PUT", prefix.path+"?version=1", alice, `{}`, 400, "M_BAD_JSON")
		}
		s.expect(t, "PUT", keys+"/"+esc(room)+"/s?version=1", alice, strings.Replace(key, `:1,`, `:-1,`, 1), 400, "M_BAD_JSON")
		s.expect(t, "PUT", keys+"/"+esc(room)+"/s", alice, key, 400, "M_MISSING_PARAM")
		s.expect(t, "PUT", keys+"/nonsense/s?version=1", alice, key, 400, "M_INVALID_PARAM")
		for i, put := range []struct{ path, body string }{
			{"/" + esc(room) + "/" + esc("a/b+c="), key}, {"/" + esc(room), `{"sessions":{"s2":` + key + `}}`},
			{"", `{"rooms":{"!r:example.org":{"sessions":{"\"3":` + key + `}},"!q:example.org":{"sessions":{"s4":` + key + `}}}}`},
		} {
			got := s.expect(t, "PUT", keys+put.path+"?version=1", alice, put.body, 200, "")
			if want := []int64{1, 2, 4}[i]; got.get("count").Int() != want || got.str("etag") != strconv.Itoa(i+1) {
				t.Errorf("%s: %s", put.path, got.body)
			}
		}
		if got := s.expect(t, "GET", keys+"/"+esc(room)+"/"+esc("a/b+c=")+"?version=1", alice, "", 200, ""); got.body != key {
			t.Errorf("got %s, stored %s", got.body, key)
		}
		got = s.expect(t, "GET", keys+"?version=1", alice, "", 200, "")
		if len(got.get("rooms").Map()) != 2 || len(got.get(`rooms.\!r:example\.org.sessions`).Map()) != 3 || got.get(`rooms.\!q:example\.org.sessions.s4`).Raw != key {
			t.Error(got.body)
		}
		if got := s.expect(t, "GET", keys+"/"+esc(room)+"?version=1", alice, "", 200, ""); len(got.get("sessions").Map()) != 3 {
			t.Error(got.body)
		}
		if got := s.expect(t, "GET", keys+"/"+esc("!none:example.org")+"?version=1", alice, "", 200, ""); got.body != `{"sessions":{}}` {
			t.Error(got.body)
		}
		s.expect(t, "GET", keys+"/"+esc(room)+"/none?version=1", alice, "", 404, "M_NOT_FOUND")
		for _, path := range []string{keys, keys + "/" + esc(room), keys + "/" + esc(room) + "/s2"} {
			for _, method := range []string{"GET", "DELETE"} {
				s.expect(t, method, path, alice, "", 400, "M_MISSING_PARAM")
				s.expect(t, method, path+"?version=7", alice, "", 404, "M_NOT_FOUND")
				s.expect(t, method, path+"?version=1", bob, "", 404, "M_NOT_FOUND")
			}
		}
		s.expect(t, "POST", version, alice, body, 200, "")
		if got := s.expect(t, "PUT", keys+"/"+esc(room)+"/s?version=1", alice, key, 403, "M_WRONG_ROOM_KEYS_VERSION"); got.get("current_version").Raw != `"2"` {
			t.Error(got.body)
		}
		if got := s.expect(t, "GET", keys+"?version=2", alice, "", 200, ""); got.body != `{"rooms":{}}` {
			t.Error(got.body)
		}
		for _, del := range []struct {
			path  string
			count int64
		}{{"/" + esc(room) + "/s2", 3}, {"/" + esc(room), 1}, {"", 0}} {
			if got := s.expect(t, "DELETE", keys+del.path+"?version=1", alice, "", 200, ""); got.get("count").Int() != del.count {
				t.Errorf("%s: %s", del.path, got.body)
			}
		}
		s.expect(t, "DELETE", version+"/2", alice, "", 200, "")
		s.expect(t, "DELETE", version+"/2", alice, "", 200, "")
		s.expect(t, "DELETE", version+"/3", alice, "", 404, "M_NOT_FOUND")
		s.expect(t, "GET", version+"/2", alice, "", 404, "M_NOT_FOUND")
	})
}

func TestSendToDevice(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, st, alice, _ := serveUserData(t, cfg, clientapi.TurnConfig{})
		send := func(txn, body string, status int, code string) {
			t.Helper()
			s.expect(t, "PUT", v3+"/sendToDevice/m.room_key_request/"+txn, alice, body, status, code)
		}
		send("1", `{"messages":{"@bob:example.org":{"*":{"n":1}}}}`, 200, "")
		send("1", `{"messages":{"@bob:example.org":{"*":{"n":1}}}}`, 200, "")
		send("2", `{"messages":{"@bob:example.org":{"B":{"n":2}},"@nobody:example.org":{"B":{}},"@x:far.org":{"*":{}}}}`, 200, "")
		send("3", `{"messages":{}}`, 200, "")
		send("4", `{}`, 400, "M_BAD_JSON")
		send("5", `{"messages":{"bob":{"B":{}}}}`, 400, "M_INVALID_PARAM")
		send(strings.Repeat("6", 256), `{"messages":{}}`, 400, "M_INVALID_PARAM")
		err := st.Read(t.Context(), func(tx *store.Tx) error {
			list, err := tx.ToDevice("@bob:example.org", "B", 0, 1<<60, 10)
			if len(list) != 2 || string(list[0].Body) != `{"type":"m.room_key_request","sender":"@alice:example.org","content":{"n":1}}` {
				t.Errorf("%d messages: %+v", len(list), list)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestAccountDataEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, _, alice, bob := serveUserData(t, cfg, clientapi.TurnConfig{})
		const user = v3 + "/user/@alice:example.org"
		room := user + "/rooms/" + url.PathEscape("!r:example.org")
		for _, base := range []string{user, room} {
			path := base + "/account_data/"
			s.expect(t, "GET", path+"org.x", alice, "", 404, "M_NOT_FOUND")
			s.expect(t, "PUT", path+"org.x", alice, `{"a":[1.5,null]}`, 200, "")
			if got := s.expect(t, "GET", path+"org.x", alice, "", 200, ""); got.body != `{"a":[1.5,null]}` {
				t.Error(got.body)
			}
			s.wrongTypes(t, "PUT", path+"org.x", alice, nil)
			s.expect(t, "PUT", path+"org.x", bob, `{}`, 403, "M_FORBIDDEN")
			s.expect(t, "GET", path+"org.x", bob, "", 403, "M_FORBIDDEN")
			s.expect(t, "PUT", path+"m.fully_read", alice, `{}`, 405, "M_BAD_JSON")
			s.expect(t, "PUT", path+"m.push_rules", alice, `{}`, 405, "M_BAD_JSON")
			s.expect(t, "PUT", path+strings.Repeat("x", 256), alice, `{}`, 400, "M_INVALID_PARAM")
		}
		if got := s.expect(t, "GET", user+"/account_data/m.push_rules", alice, "", 200, ""); got.body != `{"global":{}}` {
			t.Error(got.body)
		}
		s.expect(t, "GET", room+"/account_data/m.fully_read", alice, "", 404, "M_NOT_FOUND")
		s.expect(t, "PUT", user+"/rooms/nonsense/account_data/x", alice, `{}`, 400, "M_INVALID_PARAM")
		s.expect(t, "GET", user+"/rooms/nonsense/account_data/x", alice, "", 400, "M_INVALID_PARAM")
		s.expect(t, "PUT", user+"/rooms/!none:example.org/account_data/x", alice, `{}`, 404, "M_NOT_FOUND")

		tags := room + "/tags"
		if got := s.expect(t, "GET", tags, alice, "", 200, ""); got.body != `{"tags":{}}` {
			t.Error(got.body)
		}
		s.wrongTypes(t, "PUT", tags+"/u.x", alice, map[string]string{"order": "number"})
		s.expect(t, "PUT", tags+"/"+url.PathEscape("u.Arbeit/会"), alice, `{"order":0.25,"more":"x"}`, 200, "")
		s.expect(t, "PUT", tags+"/m.favourite", alice, `{}`, 200, "")
		got := s.expect(t, "GET", tags, alice, "", 200, "")
		if all := got.get("tags").Map(); len(all) != 2 || all["m.favourite"].Raw != "{}" || all["u.Arbeit/会"].Raw != `{"order":0.25,"more":"x"}` {
			t.Error(got.body)
		}
		if got := s.expect(t, "GET", room+"/account_data/m.tag", alice, "", 200, ""); len(got.get("tags").Map()) != 2 {
			t.Error(got.body)
		}
		s.expect(t, "DELETE", tags+"/m.favourite", alice, "", 200, "")
		s.expect(t, "DELETE", tags+"/m.favourite", alice, "", 200, "")
		s.expect(t, "PUT", tags+"/"+strings.Repeat("x", 256), alice, `{}`, 400, "M_INVALID_PARAM")
		for _, method := range []string{"PUT", "DELETE"} {
			s.expect(t, method, tags+"/x", bob, `{}`, 403, "M_FORBIDDEN")
		}
		s.expect(t, "GET", tags, bob, "", 403, "M_FORBIDDEN")
		s.expect(t, "GET", user+"/rooms/nonsense/tags", alice, "", 400, "M_INVALID_PARAM")

		filters := user + "/filter"
		got = s.expect(t, "POST", filters, alice, `{"room":{"timeline":{"limit":10}},"event_format":"client"}`, 200, "")
		if got := s.expect(t, "GET", filters+"/"+got.str("filter_id"), alice, "", 200, ""); got.get("room.timeline.limit").Int() != 10 {
			t.Error(got.body)
		}
		s.wrongTypes(t, "POST", filters, alice, map[string]string{"room": "object", "room/timeline": "object", "room/timeline/limit": "integer", "room/state/types": "strings",
			"room/rooms": "strings", "presence/not_senders": "strings", "event_fields": "strings", "event_format": "any", "room/include_leave": "bool"})
		s.expect(t, "POST", filters, bob, `{}`, 403, "M_FORBIDDEN")
		s.expect(t, "GET", filters+"/nope", alice, "", 404, "M_NOT_FOUND")
		s.expect(t, "GET", filters+"/nope", bob, "", 403, "M_FORBIDDEN")
	})
}

func TestProfileEndpoints(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, st, alice, bob := serveUserData(t, cfg, clientapi.TurnConfig{})
		const profile = v3 + "/profile/@alice:example.org"
		if got := s.expect(t, "GET", profile, "", "", 200, ""); got.body != `{}` {
			t.Error(got.body)
		}
		s.expect(t, "GET", profile+"/displayname", "", "", 404, "M_NOT_FOUND")
		s.expect(t, "GET", v3+"/profile/@nobody:example.org", "", "", 404, "M_NOT_FOUND")
		s.expect(t, "GET", v3+"/profile/nobody/displayname", "", "", 404, "M_NOT_FOUND")
		s.expect(t, "PUT", profile+"/displayname", alice, `{"displayname":"Алиса 😀"}`, 200, "")
		s.expect(t, "PUT", profile+"/avatar_url", alice, `{"avatar_url":"mxc://example.org/a"}`, 200, "")
		s.expect(t, "PUT", profile+"/org.example.x", alice, `{"org.example.x":[1,{"b":null}]}`, 200, "")
		if got := s.expect(t, "GET", profile, "", "", 200, ""); got.str("displayname") != "Алиса 😀" || got.str("avatar_url") != "mxc://example.org/a" || got.get(`org\.example\.x`).Raw != `[1,{"b":null}]` {
			t.Error(got.body)
		}
		if got := s.expect(t, "GET", profile+"/org.example.x", bob, "", 200, ""); got.body != `{"org.example.x":[1,{"b":null}]}` {
			t.Error(got.body)
		}
		s.wrongTypes(t, "PUT", profile+"/displayname", alice, map[string]string{"displayname": "string"})
		s.wrongTypes(t, "PUT", profile+"/m.tz", alice, map[string]string{"m.tz": "string"})
		for _, tc := range []struct {
			key, body, code string
			status          int
		}{
			{"displayname", `{}`, "M_MISSING_PARAM", 400}, {"displayname", `{"avatar_url":"x"}`, "M_MISSING_PARAM", 400},
			{"avatar_url", `{"avatar_url":"http://x"}`, "M_INVALID_PARAM", 400}, {"avatar_url", `{"avatar_url":1}`, "M_BAD_JSON", 400},
			{"X", `{"X":1}`, "M_INVALID_PARAM", 400}, {"org." + strings.Repeat("x", 300), `{}`, "M_KEY_TOO_LARGE", 400},
			{"org.example.big", `{"org.example.big":"` + strings.Repeat("x", 70_000) + `"}`, "M_PROFILE_TOO_LARGE", 400},
		} {
			s.expect(t, "PUT", profile+"/"+tc.key, alice, tc.body, tc.status, tc.code)
		}
		s.expect(t, "PUT", profile+"/displayname", bob, `{"displayname":"Eve"}`, 403, "M_FORBIDDEN")
		s.expect(t, "DELETE", profile+"/displayname", bob, "", 403, "M_FORBIDDEN")
		s.expect(t, "PUT", profile+"/displayname", "", `{"displayname":"Eve"}`, 401, "M_MISSING_TOKEN")
		s.expect(t, "DELETE", profile+"/X", alice, "", 400, "M_INVALID_PARAM")

		const directory = v3 + "/user_directory/search"
		err := st.Write(t.Context(), func(tx *store.Tx) error {
			return tx.SaveMemberships([]store.Membership{{User: "@alice:example.org", Room: 1, Membership: 2}, {User: "@bob:example.org", Room: 1, Membership: 2}})
		})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.expect(t, "POST", directory, bob, `{"search_term":"АЛИ","limit":5}`, 200, ""); got.body != `{"limited":false,"results":[{"user_id":"@alice:example.org","display_name":"Алиса 😀","avatar_url":"mxc://example.org/a"}]}` &&
			got.body != `{"results":[{"user_id":"@alice:example.org","display_name":"Алиса 😀","avatar_url":"mxc://example.org/a"}],"limited":false}` {
			t.Error(got.body)
		}
		if got := s.expect(t, "POST", directory, bob, `{"search_term":""}`, 200, ""); got.get("results").Raw != "[]" {
			t.Error(got.body)
		}
		s.wrongTypes(t, "POST", directory, bob, map[string]string{"search_term": "string"})
		for body, code := range map[string]string{`{}`: "M_BAD_JSON", `{"search_term":"x","limit":"1"}`: "M_BAD_JSON", `{"search_term":"x","limit":0}`: "M_INVALID_PARAM", `{"search_term":"x","limit":-1}`: "M_INVALID_PARAM", `{"search_term":"x","limit":1.5}`: "M_BAD_JSON"} {
			s.expect(t, "POST", directory, bob, body, 400, code)
		}
		s.expect(t, "DELETE", profile+"/displayname", alice, "", 200, "")
		s.expect(t, "GET", profile+"/displayname", "", "", 404, "M_NOT_FOUND")
		if err := s.Suspend(t.Context(), "@alice:example.org", true); err != nil {
			t.Fatal(err)
		}
		s.expect(t, "PUT", profile+"/displayname", alice, `{"displayname":"A"}`, 403, "M_USER_SUSPENDED")
	})
}

func TestCallsAndProtocols(t *testing.T) {
	s, _, alice, _ := serveUserData(t, store.Config{DataDir: t.TempDir()}, clientapi.TurnConfig{})
	if got := s.expect(t, "GET", v3+"/voip/turnServer", alice, "", 200, ""); got.body != `{}` {
		t.Error(got.body)
	}
	s.expect(t, "GET", v3+"/voip/turnServer", "", "", 401, "M_MISSING_TOKEN")

	turn := clientapi.TurnConfig{URIs: []string{"turn:turn.example.org?transport=udp"}, SharedSecret: "secret", Lifetime: time.Hour}
	s, _, alice, _ = serveUserData(t, store.Config{DataDir: t.TempDir()}, turn)
	got := s.expect(t, "GET", v3+"/voip/turnServer", alice, "", 200, "")
	expiry, user, _ := strings.Cut(got.str("username"), ":")
	at, err := strconv.ParseInt(expiry, 10, 64)
	if left := time.Until(time.Unix(at, 0)); err != nil || left < 59*time.Minute || left > time.Hour || user != "@alice:example.org" || got.get("ttl").Int() != 3600 {
		t.Error(got.body)
	}
	mac := hmac.New(sha1.New, []byte("secret"))
	mac.Write([]byte(got.str("username")))
	if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); got.str("password") != want || got.get("uris").Raw != `["turn:turn.example.org?transport=udp"]` {
		t.Error(got.body)
	}

	turn = clientapi.TurnConfig{URIs: turn.URIs, Username: "u", Password: "p"}
	s, _, alice, _ = serveUserData(t, store.Config{DataDir: t.TempDir()}, turn)
	if got := s.expect(t, "GET", v3+"/voip/turnServer", alice, "", 200, ""); got.str("username") != "u" || got.str("password") != "p" || got.get("ttl").Int() != 86400 {
		t.Error(got.body)
	}
}

// TestKeysStayApart sends the strings that databases treat in different ways through identifiers.
func TestKeysStayApart(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s, _, alice, _ := serveUserData(t, cfg, clientapi.TurnConfig{})
		const path = v3 + "/user/@alice:example.org/account_data/"
		for i, name := range []string{"x", "X", "é", "e\u0301", "ﬁ", "fi", "x ", "%", "_", "😀", "'; --"} {
			s.expect(t, "PUT", path+url.PathEscape(name), alice, fmt.Sprintf(`{"n":%d}`, i), 200, "")
		}
		for i, name := range []string{"x", "X", "é", "e\u0301", "ﬁ", "fi", "x ", "%", "_", "😀", "'; --"} {
			if got := s.expect(t, "GET", path+url.PathEscape(name), alice, "", 200, ""); got.get("n").Int() != int64(i) {
				t.Errorf("%q: %s", name, got.body)
			}
		}
		s.expect(t, "PUT", path+"a%00b", alice, `{}`, 400, "M_INVALID_PARAM")
		s.expect(t, "POST", v3+"/keys/query", alice, `{"device_keys":{"@a\u0000:example.org":[]}}`, 400, "M_INVALID_PARAM")
		s.expect(t, "POST", v3+"/keys/claim", alice, `{"one_time_keys":{"@a:example.org":{"\u0000":"\u0000"}}}`, 400, "M_INVALID_PARAM")
		s.expect(t, "PUT", v3+"/sendToDevice/m.x/y", alice, `{"messages":{"@a\u0000:example.org":{"x":{}}}}`, 400, "M_INVALID_PARAM")
		s.expect(t, "POST", v3+"/keys/signatures/upload", alice, `{"@a\u0000:example.org":{"x":{}}}`, 400, "M_INVALID_PARAM")
		resp, err := http.Get(s.url + v3 + "/profile/@alice:example.org/org.%FF")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != 400 || err != nil {
			t.Errorf("%d %s %v", resp.StatusCode, b, err)
		}
	})
}
