package api_test

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
)

// seed says what a right request to an operation is. In all its strings {name} stands for a value of the fixture.
type seed struct {
	path   map[string]string // what deviates from pathValues
	query  []string          // name=value, escaped
	body   string            // JSON, or any bytes where the operation takes some
	who    string            // "alice" (the default), "bob", "eve", "admin", "service" (an application service) or "nobody"
	status int               // what the right request is answered with; 0 is 200
	once   bool              // the request can be granted only once: each weak case gets users and rooms of its own
	needs  func(w *walk, f *fixture)
}

// fixture is the world that one operation is walked in: alice and her room with bob in it, and eve with a room of her own.
type fixture struct {
	alice, bob, eve *hstest.Client
	admin           *hstest.Client // for seeds that need one
	values          map[string]string
}

func (w *walk) fixture(s *seed) *fixture {
	w.n++
	name := fmt.Sprintf("%s.%d", w.name, w.n)
	f := &fixture{alice: w.hs.User("alice." + name), bob: w.hs.User("bob." + name), eve: w.hs.User("eve." + name)}
	room := f.alice.CreateRoomWith(fmt.Sprintf(`{"preset":"private_chat","invite":[%q]}`, f.bob.UserID))
	f.bob.Join(room)
	other := f.eve.CreateRoom("private_chat")
	f.values = map[string]string{
		"name": name, "room": string(room), "other": string(other),
		"alice": string(f.alice.UserID), "bob": string(f.bob.UserID), "eve": string(f.eve.UserID),
		"device": string(f.alice.DeviceID), "eveDevice": string(f.eve.DeviceID),
		"password": f.alice.Password,
		"event":    string(f.alice.Text(room, "hello")), "otherEvent": string(f.eve.Text(other, "psst")),
	}
	if s.who == "admin" {
		f.admin = w.administrator("admin." + name)
	}
	if s.needs != nil {
		s.needs(w, f)
	}
	return f
}

// serviceToken is that of an application service which says yes to everything.
const serviceToken = "the token of a service that walks"

// registration writes the registration of an application service, which answers as long as the test runs.
func registration(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("{}")) // a broken connection fails the test elsewhere
	}))
	t.Cleanup(s.Close)
	file := filepath.Join(t.TempDir(), "walk.yaml")
	text := fmt.Sprintf("id: walk\nurl: %s\nas_token: %s\nhs_token: the token of the server\nsender_localpart: walking.service\nnamespaces: {}\n", s.URL, serviceToken)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// withService brings the application service into the room.
func withService(w *walk, f *fixture) {
	const sender = "@walking.service:" + hstest.ServerName
	f.alice.Invite(id.RoomID(f.values["room"]), sender)
	service := w.hs.Anonymous()
	service.Token = serviceToken
	service.Join(id.RoomID(f.values["room"]))
}

// sharedSecret is what administrators are registered with.
const sharedSecret = "walk with me"

func (w *walk) administrator(name string) *hstest.Client {
	c := w.hs.Anonymous()
	nonce := fmt.Sprint(w.must(c, "GET", "", "/_synapse/admin/v1/register")["nonce"])
	mac := hmac.New(sha1.New, []byte(sharedSecret))
	mac.Write([]byte(strings.Join([]string{nonce, name, "walk walk walk", "admin"}, "\x00"))) // never fails
	made := w.must(c, "POST", fmt.Sprintf(`{"nonce":%q,"username":%q,"password":"walk walk walk","admin":true,"mac":"%x"}`, nonce, name, mac.Sum(nil)),
		"/_synapse/admin/v1/register")
	c.Token = fmt.Sprint(made["access_token"])
	return c
}

func (f *fixture) text(s string) string {
	pairs := make([]string, 0, 2*len(f.values))
	for k, v := range f.values {
		pairs = append(pairs, "{"+k+"}", v)
	}
	return strings.NewReplacer(pairs...).Replace(s)
}

func (f *fixture) tokenOf(who string) string {
	switch who {
	case "bob":
		return f.bob.Token
	case "eve":
		return f.eve.Token
	case "admin":
		return f.admin.Token
	case "nobody":
		return ""
	case "service":
		return serviceToken
	}
	return f.alice.Token
}

// others is a value of the path parameter that belongs to somebody else.
func (f *fixture) others(param string) string {
	return map[string]string{
		"roomId": f.values["other"], "roomIdOrAlias": f.values["other"], "eventId": f.values["otherEvent"],
		"userId": f.values["eve"], "deviceId": f.values["eveDevice"],
	}[param]
}

// pathValues are the path parameters of right requests.
var pathValues = map[string]string{
	"roomId": "{room}", "roomIdOrAlias": "{room}", "roomAlias": "#{name}:" + hstest.ServerName, "eventId": "{event}", "userId": "{alice}",
	"deviceId": "{device}", "eventType": "m.room.message", "txnId": "walk", "stateKey": "", "type": "org.example.walk", "tag": "m.favourite",
	"keyName": "displayname", "relType": "m.thread", "filterId": "{filter}", "receiptType": "m.read", "kind": "override", "ruleId": "walk",
	"version": "{backup}", "sessionId": "session", "serverName": hstest.ServerName, "mediaId": "{media}", "fileName": "walk.png",
}

func (w *walk) right(s *seed, f *fixture) request {
	q := request{method: w.op.Method, template: w.op.Path, path: map[string]string{}, token: f.tokenOf(s.who), bodyType: "application/json"}
	for _, p := range w.spec.Params {
		if p.In == "path" {
			v, ok := s.path[p.Name]
			if !ok {
				v = pathValues[p.Name]
			}
			q.path[p.Name] = f.text(v)
		}
	}
	for _, pair := range s.query {
		q.query = append(q.query, f.text(pair))
	}
	q.body = []byte(f.text(s.body))
	if w.spec.JSON && len(q.body) == 0 {
		q.body = []byte("{}")
	}
	if !w.spec.JSON {
		q.bodyType = "application/octet-stream"
	}
	return q
}

// uia is the user-interactive authentication of a right request.
const uia = `"auth":{"type":"m.login.password","session":"{uia}","identifier":{"type":"m.id.user","user":"{alice}"},"password":"{password}"}`

// withUIA starts an interactive authentication, as the 401 of the operation gives it.
func withUIA(w *walk, f *fixture) {
	q := w.right(w.seed, f)
	var body map[string]json.RawMessage
	if err := json.Unmarshal(q.body, &body); err != nil {
		w.t.Fatal(err)
	}
	delete(body, "auth")
	b, err := json.Marshal(body)
	if err != nil {
		w.t.Fatal(err)
	}
	r := q.sending(b).send(w.t, w.hs)
	var challenge struct {
		Session string `json:"session"`
	}
	r.JSON(w.t, &challenge)
	if r.Status != http.StatusUnauthorized || challenge.Session == "" {
		w.t.Fatalf("no interactive authentication: %d %s", r.Status, r.Body)
	}
	f.values["uia"] = challenge.Session
}

func (w *walk) must(c *hstest.Client, method, body, path string, args ...any) map[string]any {
	w.t.Helper()
	return c.Must(w.t, method, body, path, args...)
}

func withPublicRoom(w *walk, f *fixture) {
	f.values["public"] = string(f.eve.CreateRoomWith(`{"preset":"public_chat","room_alias_name":"` + f.values["name"] + `"}`))
}

func withKnocking(w *walk, f *fixture) {
	f.values["knockable"] = string(f.eve.CreateRoomWith(`{"initial_state":[{"type":"m.room.join_rules","content":{"join_rule":"knock"}}]}`))
}

func withAlias(w *walk, f *fixture) {
	w.must(f.alice, "PUT", f.text(`{"room_id":"{room}"}`), "/v3/directory/room/%s", f.text("#{name}:"+hstest.ServerName))
}

func withBan(w *walk, f *fixture) {
	w.must(f.alice, "POST", f.text(`{"user_id":"{bob}"}`), "/v3/rooms/%s/ban", f.values["room"])
}

func withThread(w *walk, f *fixture) {
	f.alice.Event(f.alice.CreateRoom("private_chat"), "m.room.message", `{"msgtype":"m.text","body":"x"}`)
	w.must(f.bob, "PUT", f.text(`{"msgtype":"m.text","body":"re","m.relates_to":{"rel_type":"m.thread","event_id":"{event}"}}`),
		"/v3/rooms/%s/send/m.room.message/t", f.values["room"])
}

func withFilter(w *walk, f *fixture) {
	f.values["filter"] = fmt.Sprint(w.must(f.alice, "POST", `{}`, "/v3/user/%s/filter", f.values["alice"])["filter_id"])
}

func withTag(w *walk, f *fixture) {
	w.must(f.alice, "PUT", `{}`, "/v3/user/%s/rooms/%s/tags/m.favourite", f.values["alice"], f.values["room"])
}

func withAccountData(w *walk, f *fixture) {
	w.must(f.alice, "PUT", `{"a":1}`, "/v3/user/%s/account_data/org.example.walk", f.values["alice"])
	w.must(f.alice, "PUT", `{"a":1}`, "/v3/user/%s/rooms/%s/account_data/org.example.walk", f.values["alice"], f.values["room"])
}

func withRule(w *walk, f *fixture) {
	w.must(f.alice, "PUT", `{"actions":["notify"],"conditions":[]}`, "/v3/pushrules/global/override/walk")
}

const backupData = `"algorithm":"m.megolm_backup.v1.curve25519-aes-sha2","auth_data":{"public_key":"abcdefg"}`

const backupKey = `{"first_message_index":1,"forwarded_count":0,"is_verified":true,"session_data":{"ciphertext":"a","ephemeral":"b","mac":"c"}}`

func withBackup(w *walk, f *fixture) {
	f.values["backup"] = fmt.Sprint(w.must(f.alice, "POST", "{"+backupData+"}", "/v3/room_keys/version")["version"])
	w.must(f.alice, "PUT", backupKey, "/v3/room_keys/keys/%s/session?version="+f.values["backup"], f.values["room"])
}

func withMedia(w *walk, f *fixture) {
	q := request{method: "POST", template: "/_matrix/media/v3/upload", body: []byte(onePixel), bodyType: "image/png", token: f.alice.Token}
	f.setMedia(w, q.send(w.t, w.hs))
}

func withReservedMedia(w *walk, f *fixture) {
	f.setMedia(w, request{method: "POST", template: "/_matrix/media/v1/create", token: f.alice.Token}.send(w.t, w.hs))
}

func (f *fixture) setMedia(w *walk, r hstest.Response) {
	var made struct {
		URI string `json:"content_uri"`
	}
	r.JSON(w.t, &made)
	f.values["media"] = made.URI[strings.LastIndex(made.URI, "/")+1:]
}

// onePixel is the smallest PNG.
var onePixel = func() string {
	b, err := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	if err != nil {
		return ""
	}
	return string(b)
}()

// key is an ed25519 key for signatures of devices and cross-signing.
type key struct{ private ed25519.PrivateKey }

func newKey(seed string) key {
	return key{ed25519.NewKeyFromSeed([]byte((seed + strings.Repeat(".", 32))[:32]))}
}

func (k key) public() string {
	return base64.RawStdEncoding.EncodeToString(k.private.Public().(ed25519.PublicKey))
}

// sign adds a signature to an object whose names are in order and that has no spaces: then it is canonical JSON.
func (k key) sign(object, user, keyID string) string {
	sig := base64.RawStdEncoding.EncodeToString(ed25519.Sign(k.private, []byte(object)))
	return strings.TrimSuffix(object, "}") + fmt.Sprintf(`,"signatures":{%q:{"ed25519:%s":%q}}}`, user, keyID, sig)
}

func (f *fixture) deviceKeys(w *walk) (key, string) {
	k := newKey(w.name)
	f.values["deviceKey"] = k.public()
	object := f.text(`{"algorithms":["m.olm.v1.curve25519-aes-sha2","m.megolm.v1.aes-sha2"],"device_id":"{device}","keys":{"curve25519:{device}":"` +
		newKey("curve").public() + `","ed25519:{device}":"{deviceKey}"},"user_id":"{alice}"}`)
	return k, object
}

func withSignedDevice(w *walk, f *fixture) {
	k, object := f.deviceKeys(w)
	f.values["deviceKeys"] = k.sign(object, f.values["alice"], f.values["device"])
	f.values["deviceObject"] = object
	oneTime := `{"key":"` + newKey("one-time").public() + `"}`
	fallback := `{"fallback":true,"key":"` + newKey("fallback").public() + `"}`
	f.values["oneTime"] = k.sign(oneTime, f.values["alice"], f.values["device"])
	f.values["fallback"] = k.sign(fallback, f.values["alice"], f.values["device"])
}

func withUploadedDevice(w *walk, f *fixture) {
	withSignedDevice(w, f)
	w.must(f.alice, "POST", f.text(`{"device_keys":{deviceKeys},"one_time_keys":{"signed_curve25519:A":{oneTime}}}`), "/v3/keys/upload")
}

func withCrossSigning(w *walk, f *fixture) {
	withSignedDevice(w, f)
	for _, usage := range []string{"master", "self_signing", "user_signing"} {
		k := newKey(usage + w.name)
		object := fmt.Sprintf(`{"keys":{"ed25519:%s":%q},"usage":[%q],"user_id":%q}`, k.public(), k.public(), usage, f.values["alice"])
		master := newKey("master" + w.name)
		f.values[usage] = master.sign(object, f.values["alice"], master.public())
	}
	f.values["master"] = f.values["master"][:strings.Index(f.values["master"], `,"signatures"`)] + "}"
}

// withSignature has keys and a signature of the master key over the device to upload.
func withSignature(w *walk, f *fixture) {
	withCrossSigning(w, f)
	w.must(f.alice, "POST", f.text(`{"device_keys":{deviceKeys}}`), "/v3/keys/upload")
	w.must(f.alice, "POST", f.text(`{"master_key":{master},"self_signing_key":{self_signing},"user_signing_key":{user_signing}}`), "/v3/keys/device_signing/upload")
	self := newKey("self_signing" + w.name)
	f.values["signed"] = self.sign(f.values["deviceObject"], f.values["alice"], self.public())
}

// withPage has a page to preview.
func withPage(w *walk, f *fixture) {
	page := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = rw.Write([]byte(`<title>A page</title><p>Walk`)) // the client's end is seen by it
	}))
	w.t.Cleanup(page.Close)
	f.values["page"] = url.QueryEscape(page.URL)
}

func withSyncToken(_ *walk, f *fixture) {
	f.values["since"] = fmt.Sprint(f.alice.Sync("")["next_batch"])
}

// withEvents has a token behind which there are events to be told of at once.
func withEvents(w *walk, f *fixture) {
	f.values["from"] = fmt.Sprint(w.must(f.alice, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=1", f.values["room"])["end"])
}

func withRefreshToken(w *walk, f *fixture) {
	in := w.must(f.alice, "POST", f.text(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":"{alice}"},"password":"{password}","refresh_token":true}`), "/v3/login")
	f.values["refresh"] = fmt.Sprint(in["refresh_token"])
}

// withSecondDevice has another device to delete than the one that asks.
func withSecondDevice(w *walk, f *fixture) {
	f.values["device"] = string(f.alice.Login().DeviceID)
	withUIA(w, f)
}
