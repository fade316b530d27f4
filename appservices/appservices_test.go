package appservices_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// service is an application service that notes what it is told.
type service struct {
	t    testing.TB
	name string
	*httptest.Server

	status  atomic.Int64                                      // what transactions are answered with; 0 is 200
	delay   atomic.Int64                                      // ms that each takes
	hsToken atomic.Pointer[string]                            // the token that it accepts
	query   func(kind, what string) bool                      // user and alias queries
	extra   func(w http.ResponseWriter, r *http.Request) bool // what else it answers

	mu       sync.Mutex
	txns     []txn // taken
	attempts []txn // all
	seen     map[string]bool
}

type txn struct {
	id   string
	body []byte
	at   time.Time
}

func newService(t testing.TB, name string) *service {
	s := &service{t: t, name: name, seen: map[string]bool{}}
	token := "hs-token-" + name
	s.hsToken.Store(&token)
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	if r.Header.Get("Authorization") != "Bearer "+*s.hsToken.Load() {
		answer(403, `{"errcode":"M_FORBIDDEN"}`)
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/app/v1/")
	kind, what, _ := strings.Cut(path, "/")
	switch {
	case s.extra != nil && s.extra(w, r):
	case kind == "transactions" && r.Method == http.MethodPut:
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		time.Sleep(time.Duration(s.delay.Load()) * time.Millisecond)
		status := int(s.status.Load())
		if status == 0 {
			status = 200
		}
		s.mu.Lock()
		one := txn{what, body, time.Now()}
		s.attempts = append(s.attempts, one)
		if status == 200 && !s.seen[what] {
			s.seen[what] = true
			s.txns = append(s.txns, one)
		}
		s.mu.Unlock()
		answer(status, `{}`)
	case kind == "ping":
		answer(200, `{}`)
	case (kind == "users" || kind == "rooms") && s.query != nil && s.query(kind, what):
		answer(200, `{}`)
	default:
		answer(404, `{"errcode":"M_NOT_FOUND"}`)
	}
}

// registration is the service's registration file, with further lines.
func (s *service) registration(lines string) string {
	return fmt.Sprintf(`id: %[1]s
url: %[2]s
as_token: as-token-%[1]s
hs_token: hs-token-%[1]s
sender_localpart: %[1]sbot
rate_limited: false
%[3]s`, s.name, s.URL, lines)
}

// namespaces is the usual registration: exclusive users and aliases that begin with the service's name.
func (s *service) namespaces() string {
	return fmt.Sprintf(`namespaces:
  users: [{exclusive: true, regex: "@%[1]s_.*:test"}]
  aliases: [{exclusive: true, regex: "#%[1]s_.*:test"}]
  rooms: []
`, s.name)
}

// write writes a file and returns its path.
func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// registered is the option for services with these registrations.
func registered(t testing.TB, registrations ...string) hstest.Option {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i, r := range registrations {
		paths = append(paths, write(t, dir, fmt.Sprintf("%d.yaml", i), r))
	}
	return func(c *homeserver.Config) { c.AppServices.Registrations = paths }
}

// as is a client with the service's token that acts as one of its users.
type as struct {
	*hstest.Client
	user id.UserID
	hs   *hstest.Server
}

func (s *service) as(hs *hstest.Server, user id.UserID) *as {
	c := hs.Anonymous()
	c.Token = "as-token-" + s.name
	return &as{c, user, hs}
}

func (a *as) do(t testing.TB, method, path, body string, more ...string) hstest.Response {
	t.Helper()
	q := url.Values{}
	if a.user != "" {
		q.Set("user_id", string(a.user))
	}
	for i := 0; i+1 < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	req, err := http.NewRequest(method, a.hs.URL+"/_matrix/client"+path+"?"+q.Encode(), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	return a.Send(t, req)
}

func (a *as) must(t testing.TB, method, path, body string, more ...string) map[string]any {
	t.Helper()
	r := a.do(t, method, path, body, more...)
	if r.Status/100 != 2 {
		t.Fatalf("%s %s as %s: %d %s", method, path, a.user, r.Status, r.Body)
	}
	var m map[string]any
	r.JSON(t, &m)
	return m
}

// register registers a user of the service and acts as it.
func (s *service) register(t testing.TB, hs *hstest.Server, localpart string) *as {
	t.Helper()
	s.as(hs, "").must(t, "POST", "/v3/register", fmt.Sprintf(`{"type":"m.login.application_service","username":%q,"inhibit_login":true}`, localpart))
	return s.as(hs, id.UserID("@"+localpart+":test"))
}

// told lists the values of one list of the transactions.
func (s *service) told(list string) []map[string]any {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []map[string]any
	for _, x := range s.txns {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(x.body, &m); err != nil {
			s.t.Errorf("transaction %s: %v: %s", x.id, err, x.body)
			continue
		}
		var some []map[string]any
		if raw := m[list]; raw != nil {
			if err := json.Unmarshal(raw, &some); err != nil {
				s.t.Errorf("transaction %s: %s: %v", x.id, list, err)
			}
		}
		out = append(out, some...)
	}
	return out
}

// bodies lists the texts of the messages that the service was told of, in order.
func (s *service) bodies() []string {
	var out []string
	for _, e := range s.told("events") {
		if e["type"] == "m.room.message" {
			b, _ := hstest.At(e, "content", "body").(string)
			out = append(out, b)
		}
	}
	return out
}

func (s *service) awaitBodies(t testing.TB, want ...string) {
	t.Helper()
	var got []string
	end := time.Now().Add(20 * time.Second)
	for time.Now().Before(end) {
		if got = s.bodies(); len(got) >= len(want) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%s was told %q, want %q", s.name, got, want)
	}
}

// TestUsers registers users, acts as them and signs them in.
func TestUsers(t *testing.T) {
	irc, other := newService(t, "irc"), newService(t, "other")
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		bot := irc.as(hs, "")
		if m := bot.must(t, "GET", "/v3/account/whoami", ""); m["user_id"] != "@ircbot:test" {
			t.Errorf("without user_id a service is %v", m)
		}
		ghost := irc.register(t, hs, "irc_ann")
		if m := ghost.must(t, "GET", "/v3/account/whoami", ""); m["user_id"] != "@irc_ann:test" {
			t.Errorf("the service acts as %v", m)
		}
		anybody := hs.User("alice")
		const reg = "/v3/register"
		app := func(name string) string {
			return fmt.Sprintf(`{"type":"m.login.application_service","username":%q}`, name)
		}
		for _, c := range []struct {
			name   string
			r      hstest.Response
			status int
			code   string
		}{
			{"taken", bot.do(t, "POST", reg, app("irc_ann")), 400, "M_USER_IN_USE"},
			{"outside of the namespace", bot.do(t, "POST", reg, app("bob")), 400, "M_EXCLUSIVE"},
			{"another service's user", other.as(hs, "").do(t, "POST", reg, app("irc_eve")), 400, "M_EXCLUSIVE"},
			{"no name", bot.do(t, "POST", reg, `{"type":"m.login.application_service"}`), 400, "M_MISSING_PARAM"},
			{"no token", hs.Anonymous().Do(t, "POST", app("irc_eve"), reg), 401, "M_MISSING_TOKEN"},
			{"a person's token", anybody.Do(t, "POST", app("irc_eve"), reg), 403, "M_FORBIDDEN"},
			{"a person claims the name", hs.Anonymous().Do(t, "POST", `{"username":"irc_eve","password":"correct horse battery","auth":{"type":"m.login.dummy"}}`, reg), 400, "M_EXCLUSIVE"},
			{"the name is said to be free", hs.Anonymous().Do(t, "GET", "", "/v3/register/available?username=irc_eve"), 400, "M_EXCLUSIVE"},
			{"acting outside", irc.as(hs, "@alice:test").do(t, "GET", "/v3/account/whoami", ""), 403, "M_FORBIDDEN"},
			{"acting as nobody", irc.as(hs, "@irc_none:test").do(t, "GET", "/v3/account/whoami", ""), 403, "M_FORBIDDEN"},
			{"a device that is not there", ghost.do(t, "GET", "/v3/account/whoami", "", "device_id", "NONE"), 400, "M_UNKNOWN_DEVICE"},
			{"sign in someone else", bot.do(t, "POST", "/v3/login", `{"type":"m.login.application_service","identifier":{"type":"m.id.user","user":"alice"}}`), 400, "M_EXCLUSIVE"},
			{"sign in nobody", bot.do(t, "POST", "/v3/login", `{"type":"m.login.application_service","identifier":{"type":"m.id.user","user":"irc_none"}}`), 403, "M_FORBIDDEN"},
		} {
			if c.r.Status != c.status || c.r.Errcode != c.code {
				t.Errorf("%s: %d %s, want %d %s", c.name, c.r.Status, c.r.Body, c.status, c.code)
			}
		}
		// a session of its own
		in := bot.must(t, "POST", "/v3/login", `{"type":"m.login.application_service","identifier":{"type":"m.id.user","user":"irc_ann"},"device_id":"OWN"}`)
		own := hs.Anonymous()
		own.Token, _ = in["access_token"].(string)
		if m := own.Must(t, "GET", "", "/v3/account/whoami"); m["device_id"] != "OWN" || m["user_id"] != "@irc_ann:test" {
			t.Errorf("signed in as %v", m)
		}
		// devices without sessions (MSC4190)
		if r := ghost.do(t, "PUT", "/v3/devices/E2EE", `{"display_name":"Bridge"}`); r.Status != 201 {
			t.Errorf("a new device: %d %s", r.Status, r.Body)
		}
		if r := ghost.do(t, "PUT", "/v3/devices/E2EE", `{"display_name":"The bridge"}`); r.Status != 200 {
			t.Errorf("the same device: %d %s", r.Status, r.Body)
		}
		if m := ghost.must(t, "GET", "/v3/devices/E2EE", ""); m["display_name"] != "The bridge" {
			t.Errorf("the device is %v", m)
		}
		if m := ghost.must(t, "GET", "/v3/account/whoami", "", "device_id", "E2EE"); m["device_id"] != "E2EE" {
			t.Errorf("with device_id the service is %v", m)
		}
		if r := ghost.do(t, "DELETE", "/v3/devices/E2EE", `{}`); r.Status != 200 {
			t.Errorf("delete a device: %d %s", r.Status, r.Body)
		}
		if r := anybody.Do(t, "PUT", `{"display_name":"x"}`, "/v3/devices/NEW"); r.Status != 404 {
			t.Errorf("a person makes a device: %d", r.Status)
		}
		flows := fmt.Sprint(hs.Anonymous().Must(t, "GET", "", "/v3/login")["flows"])
		if !strings.Contains(flows, "m.login.application_service") {
			t.Errorf("GET /login: %s", flows)
		}
		// messages of the past, as bridges import them
		room := ghost.must(t, "POST", "/v3/createRoom", `{"preset":"public_chat"}`)["room_id"].(string)
		ev := ghost.must(t, "PUT", "/v3/rooms/"+url.PathEscape(room)+"/send/m.room.message/1", `{"msgtype":"m.text","body":"old"}`, "ts", "1500000000000")
		got := ghost.must(t, "GET", "/v3/rooms/"+url.PathEscape(room)+"/event/"+url.PathEscape(ev["event_id"].(string)), "")
		if got["origin_server_ts"] != 1500000000000.0 {
			t.Errorf("the event is of %v", got["origin_server_ts"])
		}
	}, registered(t, irc.registration(irc.namespaces()), other.registration(other.namespaces())))
}

// TestAliases keeps aliases for their service and asks it for rooms and users that nobody knows.
func TestAliases(t *testing.T) {
	irc := newService(t, "irc")
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		bot := irc.as(hs, "")
		room := alice.CreateRoom("public_chat")
		for name, r := range map[string]hstest.Response{
			"PUT":        alice.Do(t, "PUT", fmt.Sprintf(`{"room_id":%q}`, room), "/v3/directory/room/%s", "#irc_x:test"),
			"createRoom": alice.Do(t, "POST", `{"room_alias_name":"irc_x"}`, "/v3/createRoom"),
			"outside":    bot.do(t, "POST", "/v3/createRoom", `{"room_alias_name":"elsewhere"}`),
		} {
			if r.Status != 400 || r.Errcode != "M_EXCLUSIVE" {
				t.Errorf("%s: %d %s", name, r.Status, r.Body)
			}
		}
		irc.query = func(kind, what string) bool {
			switch {
			case kind == "rooms" && what == "#irc_made:test":
				return bot.do(t, "POST", "/v3/createRoom", `{"preset":"public_chat","room_alias_name":"irc_made"}`).Status == 200
			case kind == "users" && what == "@irc_made:test":
				irc.register(t, hs, "irc_made").must(t, "PUT", "/v3/profile/@irc_made:test/displayname", `{"displayname":"Made"}`)
				return true
			}
			return false
		}
		joined := alice.Must(t, "POST", "{}", "/v3/join/%s", "#irc_made:test")["room_id"]
		if found := alice.Must(t, "GET", "", "/v3/directory/room/%s", "#irc_made:test")["room_id"]; found != joined {
			t.Errorf("the alias is of %v, alice joined %v", found, joined)
		}
		if r := alice.Do(t, "GET", "", "/v3/directory/room/%s", "#irc_none:test"); r.Status != 404 {
			t.Errorf("an alias that the service does not know: %d", r.Status)
		}
		if r := alice.Do(t, "DELETE", "", "/v3/directory/room/%s", "#irc_made:test"); r.Status != 400 || r.Errcode != "M_EXCLUSIVE" {
			t.Errorf("alice deletes the alias: %d %s", r.Status, r.Body)
		}
		if m := alice.Must(t, "GET", "", "/v3/profile/%s", "@irc_made:test"); m["displayname"] != "Made" {
			t.Errorf("the profile of a user that was made: %v", m)
		}
		if r := alice.Do(t, "GET", "", "/v3/profile/%s", "@irc_none:test"); r.Status != 404 {
			t.Errorf("a user that the service does not know: %d", r.Status)
		}
		// the directory of a network
		at := "/v3/directory/list/appservice/libera/" + url.PathEscape(joined.(string))
		bot.must(t, "PUT", at, `{"visibility":"public"}`)
		rooms := func(body string) string {
			return fmt.Sprint(hstest.At(map[string]any(alice.Must(t, "POST", body, "/v3/publicRooms")), "chunk"))
		}
		if list := rooms(`{"third_party_instance_id":"irc|libera"}`); !strings.Contains(list, joined.(string)) {
			t.Errorf("the network's directory: %s", list)
		}
		if list := rooms(`{"include_all_networks":true}`); !strings.Contains(list, joined.(string)) {
			t.Errorf("all networks: %s", list)
		}
		if list := rooms(`{}`); strings.Contains(list, joined.(string)) {
			t.Errorf("the server's own directory: %s", list)
		}
		if r := alice.Do(t, "PUT", `{"visibility":"public"}`, "/v3/directory/list/appservice/libera/%s", joined); r.Status != 403 {
			t.Errorf("a person publishes into a network: %d", r.Status)
		}
		bot.must(t, "PUT", at, `{"visibility":"private"}`)
		if list := rooms(`{"third_party_instance_id":"irc|libera"}`); strings.Contains(list, joined.(string)) {
			t.Errorf("the network's directory afterwards: %s", list)
		}
	}, registered(t, irc.registration(irc.namespaces())))
}

// TestTransactions tells services of what concerns them and of nothing else, in order.
func TestTransactions(t *testing.T) {
	var irc, second *service
	start := func(t *testing.T) []hstest.Option {
		irc, second = newService(t, "irc"), newService(t, "second")
		return []hstest.Option{registered(t, irc.registration("receive_ephemeral: true\n"+irc.namespaces()), second.registration(second.namespaces()))}
	}
	each(t, start, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		private := alice.CreateRoom("private_chat")
		alice.Text(private, "not for services")
		room := alice.CreateRoom("public_chat")
		alice.Text(room, "before")
		ghost := irc.register(t, hs, "irc_ann")
		ghost.must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		want := []string{}
		for i := range 30 {
			want = append(want, fmt.Sprint("message ", i))
			alice.Text(room, want[i])
		}
		irc.awaitBodies(t, want...)
		if e := irc.told("events")[0]; e["type"] != "m.room.member" || e["state_key"] != "@irc_ann:test" || e["room_id"] != string(room) {
			t.Errorf("the first event is %v", e)
		}
		// an invitation concerns the service before its user is in the room
		alice.Invite(private, "@irc_ann:test")
		testkit.Eventually(t, "the invitation", func() bool {
			for _, e := range irc.told("events") {
				if e["room_id"] == string(private) && hstest.At(e, "content", "membership") == "invite" && e["state_key"] == "@irc_ann:test" {
					return true
				}
			}
			return false
		})
		// an alias makes a room the service's
		named := second.as(hs, "").must(t, "POST", "/v3/createRoom", `{"preset":"public_chat","room_alias_name":"second_room"}`)["room_id"].(string)
		alice.Join(id.RoomID(named))
		second.as(hs, "").must(t, "POST", "/v3/rooms/"+url.PathEscape(named)+"/leave", "{}")
		alice.Text(id.RoomID(named), "by alias")
		second.awaitBodies(t, "by alias")
		// ephemeral events for those who ask
		sent := alice.Text(room, "read me")
		alice.Must(t, "POST", `{}`, "/v3/rooms/%s/receipt/m.read/%s", room, sent)
		alice.Must(t, "PUT", `{"typing":true,"timeout":20000}`, "/v3/rooms/%s/typing/%s", room, alice.UserID)
		alice.Must(t, "PUT", `{"presence":"online","status_msg":"here"}`, "/v3/presence/%s/status", alice.UserID)
		found := map[string]bool{}
		testkit.Eventually(t, "typing, receipt and presence", func() bool {
			for _, e := range irc.told("ephemeral") {
				switch e["type"] {
				case "m.typing":
					found["typing"] = found["typing"] || e["room_id"] == string(room) && hstest.At(e, "content", "user_ids", 0) == string(alice.UserID)
				case "m.receipt":
					found["receipt"] = found["receipt"] || e["room_id"] == string(room) && hstest.At(e, "content", string(sent), "m.read", string(alice.UserID), "ts") != nil
				case "m.presence":
					found["presence"] = found["presence"] || e["sender"] == string(alice.UserID) && hstest.At(e, "content", "status_msg") == "here"
				}
			}
			return len(found) == 3 && found["typing"] && found["receipt"] && found["presence"]
		})
		if got := second.told("ephemeral"); len(got) > 0 {
			t.Errorf("a service that did not ask was told %v", got)
		}
		// after its user has gone, the room is nobody's business
		ghost.must(t, "POST", "/v3/rooms/"+url.PathEscape(string(room))+"/leave", "{}")
		alice.Text(room, "after")
		alice.Text(id.RoomID(named), "later")
		second.awaitBodies(t, "by alias", "later")
		if last := irc.bodies(); last[len(last)-1] != "read me" {
			t.Errorf("the service was told %q", last)
		}
		irc.mu.Lock()
		defer irc.mu.Unlock()
		ids := map[string]bool{}
		for _, x := range irc.attempts {
			if ids[x.id] {
				t.Errorf("transaction %s came twice", x.id)
			}
			ids[x.id] = true
		}
	})
}

// each is hstest.Each with options made for each server.
func each(t *testing.T, options func(t *testing.T) []hstest.Option, fn func(t *testing.T, hs *hstest.Server)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, hstest.Start(t, options(t)...)) })
	t.Run("postgres", func(t *testing.T) {
		fn(t, hstest.Start(t, append([]hstest.Option{hstest.Postgres(storetest.Postgres(t))}, options(t)...)...))
	})
}

// TestFaults: what a service does not take waits for it, in order and under the same id, over a restart too; it holds up
// nobody else.
func TestFaults(t *testing.T) {
	var bad, good *service
	start := func(t *testing.T) []hstest.Option {
		bad, good = newService(t, "bad"), newService(t, "good")
		return []hstest.Option{registered(t, bad.registration(bad.namespaces()), good.registration(good.namespaces()))}
	}
	each(t, start, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("public_chat")
		for _, s := range []*service{bad, good} {
			s.register(t, hs, s.name+"_ann").must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		}
		alice.Text(room, "0")
		bad.awaitBodies(t, "0")
		good.awaitBodies(t, "0")
		want := []string{"0"}
		say := func(body string) {
			t.Helper()
			want = append(want, body)
			alice.Text(room, body)
			began := time.Now()
			good.awaitBodies(t, want...)
			if d := time.Since(began); d > 10*time.Second {
				t.Errorf("%q reached the good service after %v", body, d)
			}
		}
		bad.status.Store(500)
		say("1")
		say("2")
		testkit.Eventually(t, "a second attempt", func() bool { return len(bad.tries()) >= 2 })
		tries := bad.tries()
		if tries[0].id != tries[1].id || messages(t, tries[0].body) != messages(t, tries[1].body) {
			t.Errorf("attempts differ: %s %s and %s %s", tries[0].id, tries[0].body, tries[1].id, tries[1].body)
		}
		bad.status.Store(0)
		bad.ping(t, hs) // a service that comes back says so
		bad.awaitBodies(t, want...)
		// slow: the others do not wait
		bad.delay.Store(1500)
		say("3")
		say("4")
		bad.delay.Store(0)
		bad.awaitBodies(t, want...)
		// a wrong token
		right, wrong := *bad.hsToken.Load(), "another"
		bad.hsToken.Store(&wrong)
		say("5")
		bad.hsToken.Store(&right)
		bad.ping(t, hs)
		bad.awaitBodies(t, want...)
		// down, and a restart meanwhile
		bad.status.Store(503)
		say("6")
		say("7")
		testkit.Eventually(t, "an attempt", func() bool { n := bad.tries(); return messages(t, n[len(n)-1].body) != "" })
		last := bad.tries()
		hs.Stop()
		bad.status.Store(0)
		hs = hstest.StartWith(t, hs.Config)
		bad.ping(t, hs)
		bad.awaitBodies(t, want...)
		bad.mu.Lock()
		again := bad.txns[len(bad.txns)-1].id == last[len(last)-1].id || bad.txns[len(bad.txns)-2].id == last[len(last)-1].id
		bad.mu.Unlock()
		if !again {
			t.Errorf("after the restart the transaction %s came under another id", last[len(last)-1].id)
		}
		alice.On(hs).Must(t, "PUT", `{"msgtype":"m.text","body":"8"}`, "/v3/rooms/%s/send/m.room.message/after", room)
		good.awaitBodies(t, append(want, "8")...)
	})
}

// TestUnlimited lifts the rate limits for a service's users where its registration says so, and for its own account in any case.
func TestUnlimited(t *testing.T) {
	free, bound := newService(t, "free"), newService(t, "bound")
	hs := hstest.Start(t, registered(t, free.registration(free.namespaces()),
		strings.Replace(bound.registration(bound.namespaces()), "rate_limited: false", "rate_limited: true", 1)),
		func(c *homeserver.Config) {
			c.RateLimits.Enabled = true
			c.RateLimits.Send = homeserver.RateLimit{PerSecond: 0.01, Burst: 3}
		})
	limited := func(who *as) (n int) {
		room := who.must(t, "POST", "/v3/createRoom", "{}")["room_id"].(string)
		for i := range 10 {
			if who.do(t, "PUT", fmt.Sprintf("/v3/rooms/%s/send/m.room.message/%d", url.PathEscape(room), i), `{"msgtype":"m.text","body":"x"}`).Status == 429 {
				n++
			}
		}
		return n
	}
	if n := limited(free.register(t, hs, "free_ann")); n != 0 {
		t.Errorf("%d of 10 messages of a user without limits were refused", n)
	}
	if n := limited(bound.register(t, hs, "bound_ann")); n != 7 {
		t.Errorf("%d of 10 messages of a user with limits were refused, want 7", n)
	}
	if n := limited(bound.as(hs, "")); n != 0 {
		t.Errorf("%d of 10 messages of a service's own account were refused", n)
	}
}

// TestOneNamespace: two services may share a namespace that neither claims for itself; both hear and act. Two that claim one do not
// even start (TestRegistrations).
func TestOneNamespace(t *testing.T) {
	const shared = "namespaces:\n  users: [{exclusive: false, regex: \"@both_.*:test\"}]\n"
	var one, two *service
	start := func(t *testing.T) []hstest.Option {
		one, two = newService(t, "one"), newService(t, "two")
		return []hstest.Option{registered(t, one.registration(shared), two.registration(shared))}
	}
	each(t, start, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("public_chat")
		members := "/v3/rooms/" + url.PathEscape(string(room)) + "/joined_members"
		if r := one.as(hs, "").do(t, "GET", members, ""); r.Status != 403 {
			t.Errorf("members of a room without a user of the service: %d %s", r.Status, r.Body)
		}
		one.register(t, hs, "both_ann").must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		if m := one.as(hs, "").must(t, "GET", members, ""); hstest.At(m, "joined", "@both_ann:test") == nil {
			t.Errorf("the service's bot reads the members %v", m)
		}
		alice.Text(room, "to both")
		send := func() any {
			return two.as(hs, "@both_ann:test").must(t, "PUT", "/v3/rooms/"+url.PathEscape(string(room))+"/send/m.room.message/1", `{"msgtype":"m.text","body":"from the other"}`)["event_id"]
		}
		if first, again := send(), send(); first != again {
			t.Errorf("a request that a service repeats sends %v and %v", first, again)
		}
		one.awaitBodies(t, "to both", "from the other")
		two.awaitBodies(t, "to both", "from the other")
	})
}

// TestLongAway: what a service misses while it is away piles up for it, is seen in the metrics, and comes in order when it is back,
// by hundreds.
func TestLongAway(t *testing.T) {
	var away *service
	start := func(t *testing.T) []hstest.Option {
		away = newService(t, "away")
		return []hstest.Option{registered(t, away.registration(away.namespaces())), func(c *homeserver.Config) {
			c.Listen[0].Serve = []string{homeserver.ServeClient, homeserver.ServeMetrics}
		}}
	}
	each(t, start, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("public_chat")
		away.register(t, hs, "away_ann").must(t, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		testkit.Eventually(t, "the joining", func() bool { return len(away.told("events")) > 0 })
		away.status.Store(503)
		var want []string
		for i := range 250 {
			want = append(want, fmt.Sprint(i))
			alice.Text(room, want[i])
		}
		gauge := func(name string) float64 {
			resp, err := http.Get(hs.URL + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = resp.Body.Close() }()
			b, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			_, rest, _ := strings.Cut(string(b), "\nmoothall_appservice_"+name+`{appservice="away"} `)
			line, _, _ := strings.Cut(rest, "\n")
			v, err := strconv.ParseFloat(line, 64)
			if err != nil {
				t.Fatalf("the metric %s is %q", name, line)
			}
			return v
		}
		testkit.Eventually(t, "the backlog in the metrics", func() bool {
			return gauge("backlog") == 250 && gauge("backlog_transactions") > 0 && gauge("failures") > 0
		})
		away.status.Store(0)
		away.ping(t, hs)
		away.awaitBodies(t, want...)
		away.mu.Lock()
		for _, x := range away.txns {
			if n := strings.Count(messages(t, x.body), " "); n >= 100 {
				t.Errorf("a transaction has %d events", n+1)
			}
		}
		away.mu.Unlock()
		testkit.Eventually(t, "no backlog", func() bool { return gauge("backlog") == 0 && gauge("failures") == 0 })
	})
}

func (s *service) tries() []txn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []txn
	for _, x := range s.attempts {
		if !s.seen[x.id] {
			out = append(out, x)
		}
	}
	if len(out) == 0 {
		return []txn{{}}
	}
	return out
}

func (s *service) ping(t testing.TB, hs *hstest.Server) {
	t.Helper()
	s.as(hs, "").must(t, "POST", "/v1/appservice/"+s.name+"/ping", `{"transaction_id":"p"}`)
}

// messages are the texts in a transaction.
func messages(t testing.TB, body []byte) string {
	t.Helper()
	if len(body) == 0 {
		return ""
	}
	var x struct {
		Events []struct {
			Content struct{ Body string }
		}
	}
	if err := json.Unmarshal(body, &x); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range x.Events {
		out = append(out, e.Content.Body)
	}
	return strings.Join(out, " ")
}
