package clientapi_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"net/url"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

const register = v3 + "/register"

func TestRegister(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "taken")
		const dummy = `"auth":{"type":"m.login.dummy"}`
		flows := s.expect(t, "POST", register, "", "", 401, "")
		if flows.str("flows.0.stages.0") != "m.login.dummy" || flows.str("session") == "" || flows.get("params").Raw != "{}" || flows.get("completed").Raw != "[]" {
			t.Errorf("flows: %s", flows.body)
		}
		for _, tc := range []struct {
			name, query, body string
			status            int
			errcode           string
		}{
			{"empty", "", `{}`, 401, ""},
			{"no auth", "", `{"username":"new","password":"correct horse"}`, 401, ""},
			{"null auth", "", `{"username":"new","password":"correct horse","auth":null}`, 401, ""},
			{"kind user", "?kind=user", `{}`, 401, ""},
			{"guest", "?kind=guest", `{}`, 403, "M_GUEST_ACCESS_FORBIDDEN"},
			{"unknown kind", "?kind=x", `{}`, 400, "M_INVALID_PARAM"},
			{"taken, before auth", "", `{"username":"taken"}`, 400, "M_USER_IN_USE"},
			{"taken in capitals", "", `{"username":"TAKEN",` + dummy + `,"password":"correct horse"}`, 400, "M_USER_IN_USE"},
			{"invalid", "", `{"username":"a b"}`, 400, "M_INVALID_USERNAME"},
			{"empty username", "", `{"username":""}`, 400, "M_INVALID_USERNAME"},
			{"NUL", "", `{"username":"a\u0000"}`, 400, "M_INVALID_USERNAME"},
			{"too long", "", `{"username":"` + strings.Repeat("a", 255) + `"}`, 400, "M_INVALID_USERNAME"},
			{"weak", "", `{"username":"new","password":"short"}`, 400, "M_WEAK_PASSWORD"},
			{"long password", "", `{"username":"new","password":"` + strings.Repeat("x", 513) + `"}`, 400, "M_INVALID_PARAM"},
			{"no password", "", `{"username":"new",` + dummy + `}`, 400, "M_MISSING_PARAM"},
			{"bad device", "", `{"device_id":"\u0000"}`, 400, "M_INVALID_PARAM"},
			{"stage of another flow", "", `{"auth":{"type":"m.login.password"}}`, 401, "M_FORBIDDEN"},
			{"unknown session", "", `{"auth":{"type":"m.login.dummy","session":"x"}}`, 401, "M_FORBIDDEN"},
			{"session with NUL", "", `{"auth":{"session":"\u0000"}}`, 400, "M_INVALID_PARAM"},
			{"auth is a string", "", `{"auth":"m.login.dummy"}`, 400, "M_BAD_JSON"},
			{"username is a number", "", `{"username":7}`, 400, "M_BAD_JSON"},
			{"inhibit_login is a string", "", `{"inhibit_login":"true"}`, 400, "M_BAD_JSON"},
			{"not an object", "", `"x"`, 400, "M_BAD_JSON"},
			{"broken", "", `{`, 400, "M_NOT_JSON"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				got := s.expect(t, "POST", register+tc.query, "", tc.body, tc.status, tc.errcode)
				if tc.status == 401 && (got.str("flows.0.stages.0") != "m.login.dummy" || got.str("session") == "") {
					t.Errorf("answered %s", got.body)
				}
			})
		}

		session := flows.str("session")
		s.expect(t, "POST", register, "", `{"username":"new","password":"correct horse","auth":{"session":"`+session+`"}}`, 401, "")
		body := `{"username":"New","password":"correct horse","device_id":"PHONE","initial_device_display_name":"x","auth":{"type":"m.login.dummy","session":"` + session + `"}}`
		got := s.expect(t, "POST", register, "", body, 200, "")
		if got.str("user_id") != "@new:example.org" || got.str("device_id") != "PHONE" {
			t.Errorf("registered: %s", got.body)
		}
		s.expect(t, "GET", v3+"/account/whoami", got.str("access_token"), "", 200, "")
		s.expect(t, "POST", register, "", strings.Replace(body, "New", "another", 1), 401, "M_FORBIDDEN")

		got = s.expect(t, "POST", register, "", `{"password":"correct horse","inhibit_login":true,`+dummy+`}`, 200, "")
		if !strings.HasPrefix(got.str("user_id"), "@u") || got.get("access_token").Exists() || got.get("device_id").Exists() {
			t.Errorf("registered: %s", got.body)
		}
		got = s.expect(t, "POST", register, "", `{"username":"fresh","password":"correct horse","refresh_token":true,`+dummy+`}`, 200, "")
		if got.str("refresh_token") == "" || got.get("expires_in_ms").Int() != 300_000 {
			t.Errorf("registered: %s", got.body)
		}

		// What the first request says, the others need not repeat.
		session = s.expect(t, "POST", register, "", `{"username":"Brief","password":"correct horse","device_id":"OLD","initial_device_display_name":"My phone"}`, 401, "").str("session")
		var kept store.Content
		err := s.Store.Read(t.Context(), func(tx *store.Tx) error {
			_, err := tx.Get([]any{&kept}, `SELECT params FROM uia_sessions WHERE id = $1`, session)
			return err
		})
		if err != nil || !strings.Contains(string(kept), "Brief") || strings.Contains(string(kept), "correct horse") {
			t.Errorf("kept is %s, %v", kept, err)
		}
		only := `"auth":{"type":"m.login.dummy","session":"` + session + `"}}`
		s.expect(t, "POST", register, "", `{"username":"other",`+only, 400, "M_MISSING_PARAM") // the password was checked with another name
		got = s.expect(t, "POST", register, "", `{"device_id":"NEW",`+only, 200, "")
		if got.str("user_id") != "@brief:example.org" || got.str("device_id") != "NEW" {
			t.Errorf("registered: %s", got.body)
		}
		if name := s.expect(t, "GET", v3+"/devices/NEW", got.str("access_token"), "", 200, "").str("display_name"); name != "My phone" {
			t.Errorf("the device is called %q", name)
		}
		s.expect(t, "POST", v3+"/login", "", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"brief"},"password":"correct horse"}`, 200, "")
		session = s.expect(t, "POST", register, "", `{"inhibit_login":true}`, 401, "").str("session")
		got = s.expect(t, "POST", register, "", `{"password":"correct horse","auth":{"type":"m.login.dummy","session":"`+session+`"}}`, 200, "")
		if got.get("access_token").Exists() {
			t.Errorf("registered: %s", got.body)
		}

		for query, want := range map[string]struct {
			status  int
			errcode string
		}{
			"?username=free": {200, ""}, "?username=TAKEN": {400, "M_USER_IN_USE"}, "?username=a%20b": {400, "M_INVALID_USERNAME"},
			"?username=": {400, "M_INVALID_USERNAME"}, "": {400, "M_MISSING_PARAM"}, "?username=%00": {400, "M_INVALID_USERNAME"},
		} {
			s.expect(t, "GET", register+"/available"+query, "", "", want.status, want.errcode)
		}
	})
}

func TestRegisterByToken(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, func(o *options) { o.config.Registration.Mode = account.RegistrationToken })
		one := int64(1)
		if _, err := s.CreateRegistrationToken(t.Context(), account.NewRegistrationToken{Token: "let.me-in", UsesAllowed: &one}); err != nil {
			t.Fatal(err)
		}
		valid := func(token string, want bool) {
			t.Helper()
			got := s.expect(t, "GET", v1+"/register/m.login.registration_token/validity?token="+url.QueryEscape(token), "", "", 200, "")
			if got.get("valid").Bool() != want {
				t.Errorf("%q: %s", token, got.body)
			}
		}
		valid("let.me-in", true)
		valid("", false)
		valid("nope", false)
		valid("a\x00", false)
		s.expect(t, "GET", v1+"/register/m.login.registration_token/validity", "", "", 400, "M_MISSING_PARAM")

		flows := s.expect(t, "POST", register, "", "{}", 401, "")
		if flows.str("flows.0.stages.0") != "m.login.registration_token" || flows.get("flows.#").Int() != 1 {
			t.Errorf("flows: %s", flows.body)
		}
		with := func(name, auth string) string {
			return `{"username":"` + name + `","password":"correct horse","auth":` + auth + `}`
		}
		s.expect(t, "POST", register, "", with("a", `{"type":"m.login.dummy"}`), 401, "M_FORBIDDEN")
		s.expect(t, "POST", register, "", with("a", `{"type":"m.login.registration_token"}`), 400, "M_MISSING_PARAM")
		s.expect(t, "POST", register, "", with("a", `{"type":"m.login.registration_token","token":"nope"}`), 401, "M_FORBIDDEN")
		session := flows.str("session")
		s.expect(t, "POST", register, "", `{"auth":{"type":"m.login.registration_token","token":"nope","session":"`+session+`"}}`, 401, "M_FORBIDDEN")
		// The stage is passed, then a member is missing: the token stays reserved for this client.
		s.expect(t, "POST", register, "", `{"username":"a","auth":{"type":"m.login.registration_token","token":"let.me-in","session":"`+session+`"}}`, 400, "M_MISSING_PARAM")
		valid("let.me-in", false)
		s.expect(t, "POST", register, "", with("b", `{"type":"m.login.registration_token","token":"let.me-in"}`), 401, "M_FORBIDDEN")
		s.expect(t, "POST", register, "", with("a", `{"session":"`+session+`"}`), 200, "")
		valid("let.me-in", false)
		s.expect(t, "POST", register, "", with("b", `{"session":"`+session+`"}`), 401, "M_FORBIDDEN")
	})
}

func TestRegisterClosed(t *testing.T) {
	s := serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) { o.config.Registration = account.RegistrationConfig{} })
	for _, body := range []string{"", "{}", `{"username":"probe"}`, `{"username":"x","password":"correct horse","auth":{"type":"m.login.dummy"}}`} {
		s.expect(t, "POST", register, "", body, 403, "M_FORBIDDEN")
	}
	s.expect(t, "POST", register, "", "{", 400, "M_NOT_JSON")
	s.expect(t, "GET", register+"/available?username=probe", "", "", 403, "M_FORBIDDEN")
	s.expect(t, "GET", v1+"/register/m.login.registration_token/validity?token=x", "", "", 403, "M_FORBIDDEN")
	for _, method := range []string{"GET", "POST"} {
		s.expect(t, method, "/_synapse/admin/v1/register", "", "{}", 400, "M_UNKNOWN")
	}
}

func TestSecretRegistration(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, func(o *options) { o.config.Registration.Mode = account.RegistrationClosed })
		const path = "/_synapse/admin/v1/register"
		body := func(admin string) string {
			nonce := s.expect(t, "GET", path, "", "", 200, "").str("nonce")
			h := hmac.New(sha1.New, []byte("shared"))
			h.Write([]byte(nonce + "\x00root\x00" + password + "\x00" + admin))
			return `{"nonce":"` + nonce + `","username":"root","password":"` + password + `","admin":` + map[string]string{"admin": "true", "notadmin": "false"}[admin] +
				`,"mac":"` + hex.EncodeToString(h.Sum(nil)) + `"}`
		}
		first := strings.Replace(body("admin"), "{", `{"displayname":"The Root",`, 1)
		got := s.expect(t, "POST", path, "", first, 200, "")
		if got.str("user_id") != "@root:example.org" || got.str("home_server") != "example.org" || got.str("device_id") == "" {
			t.Errorf("registered: %s", got.body)
		}
		s.expect(t, "GET", v3+"/account/whoami", got.str("access_token"), "", 200, "")
		if u, err := s.User(t.Context(), "@root:example.org"); err != nil || !u.Admin {
			t.Errorf("root is %+v, %v", u, err)
		}
		if p, err := account.NewProfiles(account.ProfilesDeps{Store: s.Store, ServerName: "example.org"}).Get(t.Context(), "@root:example.org"); err != nil || p.DisplayName != "The Root" {
			t.Errorf("root's profile is %+v, %v", p, err)
		}
		s.expect(t, "POST", path, "", first, 400, "M_UNKNOWN")
		s.expect(t, "POST", path, "", strings.Replace(strings.Replace(body("notadmin"), "root", "x", 1), "{", `{"displayname":"\u0000",`, 1), 403, "M_UNKNOWN")
		s.expect(t, "POST", path, "", body("notadmin"), 400, "M_USER_IN_USE")
		s.expect(t, "POST", path, "", strings.Replace(body("notadmin"), `"admin":false`, `"admin":true`, 1), 403, "M_UNKNOWN")
		for _, missing := range []string{"nonce", "username", "password", "mac"} {
			s.expect(t, "POST", path, "", strings.Replace(body("notadmin"), `"`+missing+`"`, `"x"`, 1), 400, "M_BAD_JSON")
		}
		s.expect(t, "POST", path, "", strings.Replace(body("notadmin"), `{`, `{"user_type":"king",`, 1), 400, "M_UNKNOWN")
		s.expect(t, "POST", path, "", `{"nonce":7}`, 400, "M_BAD_JSON")
		s.expect(t, "POST", path, "", ``, 400, "M_NOT_JSON")
		s.expect(t, "POST", path, "", strings.Replace(first, `"nonce":"`, `"nonce":"\u0000`, 1), 400, "M_INVALID_PARAM")
	})
}

func TestDevices(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		s.user(t, "bob")
		phone, bob := s.login(t, "alice", "PHONE"), s.login(t, "bob", "BOBS")
		desk := s.login(t, "alice", "D/E SK")
		list := s.expect(t, "GET", v3+"/devices", phone, "", 200, "")
		if list.get("devices.#").Int() != 2 || list.str("devices.0.device_id") != "D/E SK" || list.get("devices.0.display_name").Raw != `""` {
			t.Errorf("devices: %s", list.body)
		}
		s.expect(t, "GET", v3+"/devices/BOBS", phone, "", 404, "M_NOT_FOUND")
		s.expect(t, "PUT", v3+"/devices/BOBS", phone, `{"display_name":"mine"}`, 404, "M_NOT_FOUND")
		s.expect(t, "PUT", v3+"/devices/BOBS", phone, `{}`, 404, "M_NOT_FOUND")
		s.expect(t, "PUT", v3+"/devices/PHONE", phone, `{"display_name":7}`, 400, "M_BAD_JSON")
		s.expect(t, "PUT", v3+"/devices/PHONE", phone, ``, 400, "M_NOT_JSON")
		s.expect(t, "PUT", v3+"/devices/D%2FE%20SK", phone, `{"display_name":"Desk \ud83d\udda5"}`, 200, "")
		s.expect(t, "PUT", v3+"/devices/D%2FE%20SK", phone, `{}`, 200, "")
		if got := s.expect(t, "GET", v3+"/devices/D%2FE%20SK", phone, "", 200, ""); got.str("display_name") != "Desk 🖥" {
			t.Errorf("device: %s", got.body)
		}

		// Deleting needs the password, for just this device, once, by this user.
		path := v3 + "/devices/D%2FE%20SK"
		challenge := s.expect(t, "DELETE", path, phone, "", 401, "")
		if challenge.str("flows.0.stages.0") != "m.login.password" {
			t.Errorf("challenge: %s", challenge.body)
		}
		session := challenge.str("session")
		wrong := s.expect(t, "DELETE", path, phone, strings.Replace(passwordAuth("alice", session), password, "x", 1), 401, "M_FORBIDDEN")
		if wrong.str("session") != session || wrong.str("flows.0.stages.0") != "m.login.password" {
			t.Errorf("a wrong password: %s", wrong.body)
		}
		s.expect(t, "DELETE", path, phone, passwordAuth("bob", session), 403, "M_FORBIDDEN")
		s.expect(t, "DELETE", path, phone, `{"auth":{"type":"m.login.dummy","session":"`+session+`"}}`, 401, "M_FORBIDDEN")
		s.expect(t, "DELETE", path, phone, `{"auth":{"type":"m.login.password","session":"`+session+`"}}`, 400, "M_MISSING_PARAM")
		s.expect(t, "DELETE", v3+"/devices/PHONE", phone, passwordAuth("alice", session), 401, "M_FORBIDDEN")
		s.expect(t, "DELETE", path, bob, passwordAuth("bob", session), 401, "M_FORBIDDEN")
		s.expect(t, "GET", v3+"/account/whoami", desk, "", 200, "")
		s.expect(t, "DELETE", path, phone, passwordAuth("@alice:example.org", session), 200, "")
		s.expect(t, "GET", v3+"/account/whoami", desk, "", 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "DELETE", path, phone, passwordAuth("alice", session), 401, "M_FORBIDDEN")
		s.expect(t, "DELETE", path, phone, passwordAuth("alice", ""), 200, "") // "or had been removed previously"

		a, b := s.login(t, "alice", "A"), s.login(t, "alice", "B")
		bulk := v3 + "/delete_devices"
		s.expect(t, "POST", bulk, phone, `{}`, 400, "M_MISSING_PARAM")
		s.expect(t, "POST", bulk, phone, `{"devices":"A"}`, 400, "M_BAD_JSON")
		s.expect(t, "POST", bulk, phone, `{"devices":[1]}`, 400, "M_BAD_JSON")
		none := strings.Replace(passwordAuth("alice", ""), "{", `{"devices":[],`, 1)
		s.expect(t, "POST", bulk, phone, none, 200, "")
		s.expect(t, "GET", v3+"/account/whoami", a, "", 200, "")
		session = s.expect(t, "POST", bulk, phone, `{"devices":["A","B","NONE"]}`, 401, "").str("session")
		with := func(devices string) string {
			return strings.Replace(passwordAuth("alice", session), "{", `{"devices":`+devices+`,`, 1)
		}
		s.expect(t, "POST", bulk, phone, with(`["A","PHONE"]`), 401, "M_FORBIDDEN")
		s.expect(t, "POST", bulk, phone, with(`["B","NONE","A","A"]`), 200, "")
		s.expect(t, "GET", v3+"/account/whoami", a, "", 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "GET", v3+"/account/whoami", b, "", 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "GET", v3+"/account/whoami", phone, "", 200, "")
		s.expect(t, "POST", bulk, phone, strings.Replace(passwordAuth("alice", ""), "{", `{"devices":["a\u0000"],`, 1), 400, "M_INVALID_PARAM")
	})
}

func TestChangePassword(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		phone, desk := s.login(t, "alice", "PHONE"), s.login(t, "alice", "DESK")
		const path = v3 + "/account/password"
		s.expect(t, "POST", path, "", `{"new_password":"battery staple"}`, 401, "M_MISSING_TOKEN")
		s.expect(t, "POST", path, phone, `{}`, 401, "")
		s.expect(t, "POST", path, phone, `{"new_password":"short"}`, 400, "M_WEAK_PASSWORD")
		s.expect(t, "POST", path, phone, `{"new_password":7}`, 400, "M_BAD_JSON")
		s.expect(t, "POST", path, phone, passwordAuth("alice", ""), 400, "M_MISSING_PARAM")
		s.expect(t, "POST", path, phone, `{"new_password":"battery staple","logout_devices":"no"}`, 400, "M_BAD_JSON")
		with := func(members string) string {
			return strings.Replace(passwordAuth("alice", ""), "{", "{"+members+",", 1)
		}
		s.expect(t, "POST", path, phone, with(`"new_password":"battery staple","logout_devices":false`), 200, "")
		s.expect(t, "GET", v3+"/account/whoami", desk, "", 200, "")
		s.expect(t, "POST", login, "", `{"type":"m.login.password","user":"alice","password":"correct horse"}`, 403, "M_FORBIDDEN")
		s.expect(t, "POST", path, phone, strings.Replace(with(`"new_password":"correct horse"`), `"password":"correct horse"`, `"password":"battery staple"`, 1), 200, "")
		s.expect(t, "GET", v3+"/account/whoami", desk, "", 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "GET", v3+"/account/whoami", phone, "", 200, "")
		s.login(t, "alice", "DESK")
	})
}

func TestDeactivate(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		s := serveAccounts(t, cfg, nil)
		s.user(t, "alice")
		phone := s.login(t, "alice", "PHONE")
		const path = v3 + "/account/deactivate"
		s.expect(t, "POST", path, "", `{}`, 401, "M_MISSING_TOKEN")
		s.expect(t, "POST", path, phone, `{"erase":1}`, 400, "M_BAD_JSON")
		session := s.expect(t, "POST", path, phone, `{}`, 401, "").str("session")
		got := s.expect(t, "POST", path, phone, strings.Replace(passwordAuth("alice", session), "{", `{"erase":true,`, 1), 200, "")
		if got.str("id_server_unbind_result") != "success" {
			t.Errorf("deactivated: %s", got.body)
		}
		s.expect(t, "GET", v3+"/account/whoami", phone, "", 401, "M_UNKNOWN_TOKEN")
		s.expect(t, "POST", register, "", `{"username":"alice"}`, 400, "M_USER_IN_USE")
		if u, err := s.User(t.Context(), "@alice:example.org"); err != nil || !u.Deactivated || !u.Erased {
			t.Errorf("alice is %+v, %v", u, err)
		}
	})
}

// TestPasswordCapability tells clients whether a password can be changed here, and refuses to change it elsewhere.
// Spec: client-server API, "m.change_password capability".
func TestPasswordCapability(t *testing.T) {
	s := serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) {
		o.elsewhere = func(_ context.Context, user id.UserID) (bool, error) { return user == "@directory:example.org", nil }
	})
	sso := serveAccounts(t, store.Config{DataDir: t.TempDir()}, func(o *options) {
		o.sso = &clientapi.SSODeps{Providers: func() []clientapi.IdentityProvider { return nil }}
	})
	for _, tc := range []struct {
		server *accountServer
		name   string
		want   string
	}{{s, "local", "true"}, {s, "directory", "false"}, {sso, "federated", "false"}} {
		tc.server.user(t, tc.name)
		_, tokens, err := tc.server.SignIn(t.Context(), id.UserID("@"+tc.name+":example.org"), account.SignIn{Way: account.WayAdmin})
		if err != nil {
			t.Fatal(err)
		}
		got := tc.server.expect(t, "GET", v3+"/capabilities", tokens.AccessToken, "", 200, "")
		if can := got.str(`capabilities.m\.change_password.enabled`); can != tc.want {
			t.Errorf("%s: %q", tc.name, can)
		}
		err = tc.server.SetPassword(t.Context(), id.UserID("@"+tc.name+":example.org"), "another horse battery", nil)
		if refused := mxerr.Is(err, "M_FORBIDDEN"); refused != (tc.name == "directory") || err != nil && !refused {
			t.Errorf("%s: changing it: %v", tc.name, err)
		}
	}
}

func TestServerFacts(t *testing.T) {
	s := serveAccounts(t, store.Config{DataDir: t.TempDir()}, nil)
	s.user(t, "alice")
	token := s.login(t, "alice", "PHONE")
	for _, bearer := range []string{"", "x", token} {
		got := s.expect(t, "GET", "/_matrix/client/versions", bearer, "", 200, "")
		if got.str("versions.0") != "v1.1" || !got.get(`unstable_features.org\.matrix\.e2e_cross_signing`).Bool() {
			t.Errorf("versions: %s", got.body)
		}
	}
	s.expect(t, "GET", v3+"/capabilities", "", "", 401, "M_MISSING_TOKEN")
	got := s.expect(t, "GET", v3+"/capabilities", token, "", 200, "")
	for path, want := range map[string]string{
		`capabilities.m\.room_versions.default`: "12", `capabilities.m\.room_versions.available.1`: "stable", `capabilities.m\.room_versions.available.12`: "stable",
		`capabilities.m\.change_password.enabled`: "true", `capabilities.m\.3pid_changes.enabled`: "false", `capabilities.m\.get_login_token.enabled`: "true",
		`capabilities.m\.set_displayname.enabled`: "true", `capabilities.m\.profile_fields.enabled`: "true",
	} {
		if got.str(path) != want {
			t.Errorf("%s is %q in %s", path, got.str(path), got.body)
		}
	}
	if got := s.expect(t, "GET", v3+"/account/3pid", token, "", 200, ""); got.get("threepids").Raw != "[]" {
		t.Errorf("3pid: %s", got.body)
	}
	// Clients from before version 1.1 are answered too.
	s.expect(t, "GET", "/_matrix/client/r0/account/whoami", token, "", 200, "")
	for _, path := range []string{"/_matrix/client/r0/walker", v3 + "/account/3pid/remove", v3 + "/auth/x/fallback/web"} {
		s.expect(t, "GET", path, token, "", 404, "M_UNRECOGNIZED")
	}
	s.expect(t, "PUT", login, "", "{}", 405, "M_UNRECOGNIZED")
	for _, route := range clientapi.PromisedRoutes() {
		method, path, ok := strings.Cut(route, " ")
		if !ok || method == "" || !strings.HasPrefix(path, "/") {
			t.Error(errors.New(route))
		}
	}
}
