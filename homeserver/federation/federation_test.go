package federation_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/hstest"
)

// policyServer signs what does not say "spam". Its server name is that of the test server, whose users are in the rooms.
type policyServer struct {
	t   *testing.T
	url string
	key ed25519.PrivateKey

	mu     sync.Mutex
	home   *hstest.Server
	asked  []string // types of the events that it was asked for
	broken bool
}

func newPolicyServer(t *testing.T) *policyServer {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &policyServer{t: t, key: key}
	srv := httptest.NewServer(http.HandlerFunc(p.serve))
	t.Cleanup(srv.Close)
	p.url = srv.URL
	return p
}

func (p *policyServer) option(c *homeserver.Config) {
	c.Policy = []homeserver.RoomPolicy{{ServerName: hstest.ServerName, URL: p.url}}
}

func (p *policyServer) policy() string {
	return fmt.Sprintf(`{"via":%q,"public_keys":{"ed25519":%q}}`, hstest.ServerName,
		base64.RawStdEncoding.EncodeToString(p.key.Public().(ed25519.PublicKey)))
}

var xMatrix = regexp.MustCompile(`^X-Matrix origin="(.*)",destination="(.*)",key="(.*)",sig="(.*)"$`)

// authentic checks the request's signature with the key that the homeserver publishes.
func (p *policyServer) authentic(r *http.Request, body []byte) bool {
	f := xMatrix.FindStringSubmatch(r.Header.Get("Authorization"))
	if f == nil || f[1] != hstest.ServerName || f[2] != hstest.ServerName {
		return false
	}
	resp, err := http.Get(p.home.URL + "/_matrix/key/v2/server")
	if err != nil {
		return false
	}
	defer func() { _ = resp.Body.Close() }()
	keys, err := io.ReadAll(resp.Body)
	if err != nil {
		return false
	}
	pub, err := event.DecodeBase64(gjson.GetBytes(keys, "verify_keys."+strings.ReplaceAll(f[3], ".", `\.`)+".key").Str)
	if err != nil {
		return false
	}
	signed := fmt.Sprintf(`{"method":%q,"uri":%q,"origin":%q,"destination":%q,"content":%s,"signatures":{%q:{%q:%q}}}`,
		r.Method, r.URL.RequestURI(), f[1], f[2], body, f[1], f[3], f[4])
	return event.VerifyJSON([]byte(signed), f[1], f[3], pub) == nil
}

func (p *policyServer) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	refuse := func(status int, errcode, text string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"errcode": errcode, "error": text})
	}
	p.asked = append(p.asked, gjson.GetBytes(body, "type").Str)
	switch {
	case r.Method != "POST" || r.URL.Path != "/_matrix/policy/v1/sign" || !p.authentic(r, body):
		p.t.Errorf("%s %s %s is not signed as it should be", r.Method, r.URL, r.Header.Get("Authorization"))
		refuse(401, "M_UNAUTHORIZED", "who are you?")
		return
	case p.broken:
		w.WriteHeader(500)
		return
	case strings.Contains(gjson.GetBytes(body, "content.body").Str, "spam"):
		refuse(400, "M_FORBIDDEN", "we have no appetite for that")
		return
	}
	version, key := "10", event.SigningKey{KeyID: "ed25519:policy_server", Private: p.key}
	if !strings.Contains(gjson.GetBytes(body, "room_id").Str, ":") {
		version = "12"
	}
	v, _ := event.LookupVersion(version)
	e, err := v.Parse(body, "")
	if err == nil {
		e, err = e.Sign(hstest.ServerName, key)
	}
	if err != nil {
		refuse(400, "M_BAD_JSON", err.Error())
		return
	}
	sig := gjson.GetBytes(e.JSON(), `signatures.`+hstest.ServerName+`.ed25519:policy_server`).Str
	_ = json.NewEncoder(w).Encode(map[string]any{hstest.ServerName: map[string]string{"ed25519:policy_server": sig}})
}

func TestPolicyServer(t *testing.T) {
	for _, version := range []string{"10", "12"} {
		t.Run("room version "+version, func(t *testing.T) {
			p := newPolicyServer(t)
			hstest.Each(t, func(t *testing.T, hs *hstest.Server) { testPolicyServer(t, hs, p, version) }, p.option)
		})
	}
}

// federationFormat is a sync whose events are as servers exchange them: the schema of the client-server API does not hold for those.
func federationFormat(t *testing.T, hs *hstest.Server, c *hstest.Client) (body map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, hs.URL+"/_matrix/client/v3/sync?filter="+url.QueryEscape(`{"event_format":"federation"}`), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("sync: %d %v", resp.StatusCode, err)
	}
	return body
}

func testPolicyServer(t *testing.T, hs *hstest.Server, p *policyServer, version string) {
	p.mu.Lock()
	p.home, p.asked = hs, nil
	p.mu.Unlock()
	alice, bob := hs.User("alice"), hs.User("bob")
	room := id.RoomID(alice.Must(t, "POST", `{"preset":"public_chat","room_version":"`+version+`"}`, "/v3/createRoom")["room_id"].(string))
	alice.Text(room, "spam while there is no policy server")
	alice.State(room, "m.room.policy", "", p.policy())
	if len(p.asked) != 0 {
		t.Fatalf("the policy server was asked for %v before the room had one, or for m.room.policy", p.asked)
	}

	bob.Join(room)
	sent := bob.Text(room, "hello")
	alice.State(room, "m.room.policy", "other", `{}`)
	if want := "[m.room.member m.room.message m.room.policy]"; fmt.Sprint(p.asked) != want {
		t.Errorf("the policy server was asked for %v, not %s", p.asked, want)
	}
	signed := false
	for _, e := range hstest.At(federationFormat(t, hs, bob), "rooms", "join", string(room), "timeline", "events").([]any) {
		if hstest.At(e, "event_id") == string(sent) || hstest.At(e, "content", "body") == "hello" {
			_, signed = hstest.At(e, "signatures", hstest.ServerName, "ed25519:policy_server").(string)
		}
	}
	if !signed {
		t.Error("the event is kept without the policy server's signature")
	}

	const send = "/v3/rooms/%s/send/m.room.message/%s"
	for _, tc := range []struct {
		name, body string
		status     int
		errcode    string
	}{
		{"refused", `{"msgtype":"m.text","body":"spam"}`, 400, "M_FORBIDDEN"},
		{"let through", `{"msgtype":"m.text","body":"ham"}`, 200, ""},
	} {
		if r := bob.Do(t, "PUT", tc.body, send, room, bob.Txn()); r.Status != tc.status || r.Errcode != tc.errcode {
			t.Errorf("%s: %d %s", tc.name, r.Status, r.Body)
		} else if tc.status != 200 && !strings.Contains(string(r.Body), "no appetite") {
			t.Errorf("%s: the policy server's words are missing: %s", tc.name, r.Body)
		}
	}

	var all sync.WaitGroup
	for n := range 12 {
		all.Add(1)
		go func() {
			defer all.Done()
			if r := alice.Do(t, "PUT", `{"msgtype":"m.text","body":"at once"}`, send, room, fmt.Sprint("once", n)); r.Status != 200 {
				t.Errorf("one of many at once: %d %s", r.Status, r.Body)
			}
		}()
	}
	all.Wait()

	p.mu.Lock()
	p.broken = true
	p.mu.Unlock()
	if r := bob.Do(t, "PUT", `{"msgtype":"m.text","body":"ham"}`, send, room, bob.Txn()); r.Status != 504 || r.Errcode != "M_UNKNOWN" {
		t.Errorf("without an answer: %d %s", r.Status, r.Body)
	}
	p.mu.Lock()
	p.broken = false
	p.mu.Unlock()
	alice.State(room, "m.room.policy", "", strings.Replace(p.policy(), `"ed25519":"`, `"ed25519":"AAAA`, 1))
	if r := bob.Do(t, "PUT", `{"msgtype":"m.text","body":"ham"}`, send, room, bob.Txn()); r.Status != 403 {
		t.Errorf("with a wrong key: %d %s", r.Status, r.Body)
	}
	alice.State(room, "m.room.policy", "", `{}`) // needs no signature, and switches it off
	bob.Text(room, "spam again")
}
