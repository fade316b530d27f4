package hooks_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// made is a hook that a test made.
type made struct {
	t            testing.TB
	base         string
	name, secret string
	user         id.UserID
}

// admin makes an administrator.
func admin(t testing.TB, hs *hstest.Server) *hstest.Client {
	t.Helper()
	c := hs.Anonymous()
	c.Password = "correct horse battery root"
	var err error
	if c.UserID, err = homeserver.CreateUser(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "boss", c.Password, true); err != nil {
		t.Fatal(err)
	}
	return c.Login()
}

// hook makes a hook.
func hook(t testing.TB, hs *hstest.Server, boss *hstest.Client, name string, target fmt.Stringer, more string) made {
	t.Helper()
	r := boss.Do(t, "POST", fmt.Sprintf(`{"name":%q,"target":%q%s}`, name, target, more), "/_moothall/admin/v1/hooks")
	if r.Status != 201 {
		t.Fatalf("make hook %s: %d %s", name, r.Status, r.Body)
	}
	return made{t, hs.URL, name, gjson.GetBytes(r.Body, "secret").Str, id.UserID(gjson.GetBytes(r.Body, "user_id").Str)}
}

// send posts; headers are pairs.
func (m made) send(suffix, body string, headers ...string) (int, gjson.Result) {
	m.t.Helper()
	req, err := http.NewRequest("POST", m.base+"/_moothall/hooks/v1/"+m.name+suffix, strings.NewReader(body))
	if err != nil {
		m.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	b, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		m.t.Fatal(err)
	}
	return resp.StatusCode, gjson.ParseBytes(bytes.TrimSpace(b))
}

// post posts with the secret and wants a status.
func (m made) post(status int, body string, headers ...string) gjson.Result {
	m.t.Helper()
	got, out := m.send("", body, append([]string{"Authorization", "Bearer " + m.secret}, headers...)...)
	if got != status {
		m.t.Fatalf("post to %s: %d %s, want %d", m.name, got, out.Raw, status)
	}
	return out
}

// last is the content of the newest event of a room.
func last(t testing.TB, c *hstest.Client, room id.RoomID) gjson.Result {
	t.Helper()
	r := c.Do(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=1", room)
	return gjson.GetBytes(r.Body, "chunk.0")
}

func count(t testing.TB, c *hstest.Client, room id.RoomID) int {
	t.Helper()
	n := 0
	for _, e := range gjson.GetBytes(c.Do(t, "GET", "", "/v3/rooms/%s/messages?dir=b&limit=500", room).Body, "chunk").Array() {
		if e.Get("type").Str == "m.room.message" {
			n++
		}
	}
	return n
}

func sum(key, text string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

// TestGeneric posts in the form of our own.
func TestGeneric(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		boss := admin(t, hs)
		room := boss.CreateRoom("private_chat")
		m := hook(t, hs, boss, "oa", room, `,"display_name":"OA 系统"`)
		out := m.post(200, `{"title":"Leave","markdown":"**Ann** asks <b>for</b> [x](javascript:alert(1))","mentions":["boss","nobody"]}`)
		e := last(t, boss, room)
		html := e.Get("content.formatted_body").Str
		if e.Get("event_id").Str != out.Get("event_id").Str || e.Get("sender").Str != "@hook-oa:test" || !strings.Contains(html, "<strong>Ann</strong>") ||
			strings.Contains(html, "<b>") || strings.Contains(html, "javascript") || e.Get("content.m\\.mentions.user_ids").Raw != `["@boss:test"]` {
			t.Errorf("sent %s", e.Raw)
		}
		// what is wrong is named
		for body, path := range map[string]string{
			`{"text":7}`: "/text", `{}`: "/text", `{"text":"x","markdown":"y"}`: "/markdown", `{"text":"x","mentions":["a",""]}`: "/mentions/1",
			`{"text":"x","attachments":[{"data":"!!"}]}`: "/attachments/0/data", `{"text":"x","attachments":[{}]}`: "/attachments/0", `{"text":"x","msgtype":"m.image"}`: "/msgtype",
		} {
			if out := m.post(400, body); out.Get("errcode").Str != "M_BAD_JSON" || out.Get("path").Str != path {
				t.Errorf("%s: %s, want path %s", body, out.Raw, path)
			}
		}
		if out := m.post(400, `{"text"`); out.Get("errcode").Str != "M_NOT_JSON" {
			t.Errorf("broken JSON: %s", out.Raw)
		}
		// the same post twice
		a, b := m.post(200, `{"text":"once"}`, "Idempotency-Key", "k1"), m.post(200, `{"text":"once"}`, "Idempotency-Key", "k1")
		if a.Get("event_id").Str != b.Get("event_id").Str {
			t.Errorf("a repeated post made %s and %s", a, b)
		}
		// changes by key, and a repeated first one
		first := m.post(200, `{"text":"building","key":"job-1","idempotency_key":"i1"}`).Get("event_id").Str
		before := count(t, boss, room)
		if again := m.post(200, `{"text":"building","key":"job-1","idempotency_key":"i1"}`).Get("event_id").Str; again != first || count(t, boss, room) != before {
			t.Errorf("the first message of a key, posted again, made %s", again)
		}
		m.post(200, `{"text":"built","key":"job-1"}`)
		if c := last(t, boss, room).Get("content"); c.Get("m\\.relates_to.rel_type").Str != "m.replace" || c.Get("m\\.relates_to.event_id").Str != first || c.Get("m\\.new_content.body").Str != "built" {
			t.Errorf("the change is %s", c.Raw)
		}
		// threads by key
		root := m.post(200, `{"text":"incident","thread":"t"}`).Get("event_id").Str
		m.post(200, `{"text":"solved","thread":"t"}`)
		if c := last(t, boss, room).Get("content.m\\.relates_to"); c.Get("rel_type").Str != "m.thread" || c.Get("event_id").Str != root {
			t.Errorf("the answer's relation is %s", c.Raw)
		}
		// an attachment
		png := "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
		m.post(200, `{"attachments":[{"data":"`+png+`","name":"a/../b.png"}]}`)
		if c := last(t, boss, room).Get("content"); c.Get("msgtype").Str != "m.image" || c.Get("filename").Str != "a_.._b.png" || c.Get("info.w").Int() != 1 {
			t.Errorf("the attachment is %s", c.Raw)
		}
		// revoked is revoked
		boss.Must(t, "DELETE", "", "/_moothall/admin/v1/hooks/oa")
		m.post(401, `{"text":"x"}`)
	})
}

// TestProofs posts with right and wrong proofs of who posts.
func TestProofs(t *testing.T) {
	hs := hstest.Start(t)
	boss := admin(t, hs)
	room := boss.CreateRoom("private_chat")
	tok := hook(t, hs, boss, "tok", room, "")
	sig := hook(t, hs, boss, "sig", room, `,"auth":"hmac"`)
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(sig.secret, "whsec_"))
	if err != nil {
		t.Fatal(err)
	}
	const body = `{"text":"hello"}`
	std := func(id string, at time.Time, body string) []string {
		ts := strconv.FormatInt(at.Unix(), 10)
		return []string{"webhook-id", id, "webhook-timestamp", ts, "webhook-signature", "v1,AAAA v1," + base64.StdEncoding.EncodeToString(sum(string(key), id+"."+ts+"."+body))}
	}
	now := time.Now()
	for _, tc := range []struct {
		name    string
		hook    made
		suffix  string
		status  int
		headers []string
	}{
		{"in the path", tok, "/" + tok.secret, 200, nil},
		{"as GitLab does", tok, "", 200, []string{"X-Gitlab-Token", tok.secret}},
		{"in the query", tok, "?key=" + tok.secret, 200, nil},
		{"wrong", tok, "", 401, []string{"Authorization", "Bearer " + tok.secret + "x"}},
		{"none", tok, "", 401, nil},
		{"no such hook", made{t, hs.URL, "none", "", ""}, "", 401, []string{"Authorization", "Bearer " + tok.secret}},
		{"signed", sig, "", 200, std("m1", now, body)},
		{"signed long ago", sig, "", 401, std("m2", now.Add(-6*time.Minute), body)},
		{"signed for another body", sig, "", 401, std("m3", now, body+" ")},
		{"as GitHub signs", sig, "", 200, []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(sum(sig.secret, body))}},
		{"as GitHub does not", sig, "", 401, []string{"X-Hub-Signature-256", "sha256=" + hex.EncodeToString(sum(sig.secret, body+"x"))}},
		{"secret shown where it signs", sig, "", 401, []string{"Authorization", "Bearer " + sig.secret}},
	} {
		if status, out := tc.hook.send(tc.suffix, body, tc.headers...); status != tc.status {
			t.Errorf("%s: %d %s, want %d", tc.name, status, out.Raw, tc.status)
		}
	}
	// replayed: the same event
	h := std("m9", now, body)
	_, a := sig.send("", body, h...)
	if _, b := sig.send("", body, h...); a.Get("event_id").Str != b.Get("event_id").Str || a.Get("event_id").Str == "" {
		t.Errorf("a replayed request made %s and %s", a.Raw, b.Raw)
	}
	// from elsewhere
	far := hook(t, hs, boss, "far", room, `,"addresses":["192.0.2.0/24"]`)
	far.post(401, body)
	// a flood, and wrong secrets without end
	slow := hook(t, hs, boss, "slow", room, `,"per_minute":1`)
	limited := 0
	for range 12 {
		if status, _ := slow.send("", body, "Authorization", "Bearer "+slow.secret); status == 429 {
			limited++
		}
	}
	if limited == 0 {
		t.Error("a flood was not limited")
	}
	limited = 0
	for range 40 {
		if status, _ := tok.send("", body, "Authorization", "Bearer wrong"); status == 429 {
			limited++
		}
	}
	if limited == 0 {
		t.Error("wrong secrets were not limited")
	}
	// both are in the audit log, together rather than one by one
	hs.Stop()
	err = homeserver.WithAudit(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "test", func(ctx context.Context, l *audit.Log) error {
		for action, want := range map[string]int{"hook.refused": 3, "hook.limited": 1} {
			page, err := l.Query(ctx, audit.Filter{Actions: []string{action}, Limit: 1000})
			if err != nil {
				return err
			}
			if n := len(page.Entries); n < want || n > 20 {
				t.Errorf("%d entries of %s", n, action)
			}
			for _, e := range page.Entries {
				if strings.Contains(fmt.Sprint(e), tok.secret) {
					t.Errorf("the secret stands in the audit log: %v", e)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRobots posts what robots are posted today.
func TestRobots(t *testing.T) {
	hs := hstest.Start(t)
	boss := admin(t, hs)
	room := boss.CreateRoom("private_chat")
	wecom := hook(t, hs, boss, "wecom", room, `,"format":"wecom","secret":"693a91f6-7xxx-4bc4-97a0-0ec2sifa5aaa"`)
	status, out := wecom.send("?key=693a91f6-7xxx-4bc4-97a0-0ec2sifa5aaa", `{"msgtype":"markdown","markdown":{"content":"新增反馈<font color=\"warning\">132例</font> <@boss>\n>类型:普通"}}`)
	c := last(t, boss, room).Get("content")
	if status != 200 || out.Raw != `{"errcode":0,"errmsg":"ok"}` || !strings.Contains(c.Get("formatted_body").Str, `<span data-mx-color="#e07b00">132例</span>`) || c.Get("m\\.mentions.user_ids.0").Str != "@boss:test" {
		t.Errorf("企业微信: %d %s made %s", status, out.Raw, c.Raw)
	}
	if status, out = wecom.send("?key=wrong", `{}`); status != 200 || out.Get("errcode").Int() != 93000 {
		t.Errorf("企业微信, wrong key: %d %s", status, out.Raw)
	}
	if status, out = wecom.send("?key=693a91f6-7xxx-4bc4-97a0-0ec2sifa5aaa", `{"msgtype":"text"}`); status != 200 || out.Get("errcode").Int() != 40058 {
		t.Errorf("企业微信, no text: %d %s", status, out.Raw)
	}

	const secret = "SEC0123456789abcdef0123456789abcdef"
	ding := hook(t, hs, boss, "ding", room, `,"format":"dingtalk","auth":"hmac","secret":"`+secret+`"`)
	signed := func(at time.Time) string {
		ts := strconv.FormatInt(at.UnixMilli(), 10)
		return "?access_token=x&timestamp=" + ts + "&sign=" + url.QueryEscape(base64.StdEncoding.EncodeToString(sum(secret, ts+"\n"+secret)))
	}
	const dingBody = `{"msgtype":"markdown","markdown":{"title":"杭州天气","text":"#### 9度"},"at":{"atUserIds":["boss"],"isAtAll":true}}`
	status, out = ding.send(signed(time.Now()), dingBody)
	c = last(t, boss, room).Get("content")
	if status != 200 || out.Raw != `{"errcode":0,"errmsg":"ok"}` || c.Get("m\\.mentions").Get("room").Raw != "true" || !strings.Contains(c.Get("formatted_body").Str, "9度") {
		t.Errorf("钉钉: %d %s made %s", status, out.Raw, c.Raw)
	}
	if status, out = ding.send(signed(time.Now().Add(-2*time.Hour)), dingBody); status != 200 || out.Get("errcode").Int() != 310000 {
		t.Errorf("钉钉, old signature: %d %s", status, out.Raw)
	}

	fei := hook(t, hs, boss, "fei", room, `,"format":"feishu","auth":"hmac","secret":"`+secret+`"`)
	ts := strconv.FormatInt(time.Now().Unix(), 10)
	sign := base64.StdEncoding.EncodeToString(sum(ts+"\n"+secret, ""))
	status, out = fei.send("", `{"timestamp":"`+ts+`","sign":"`+sign+`","msg_type":"interactive","card":{"header":{"title":{"tag":"plain_text","content":"标题"}},"elements":[{"tag":"div","text":{"tag":"lark_md","content":"**西湖** <at id=all></at>"}},{"tag":"action","actions":[{"tag":"button","text":{"content":"更多"},"url":"https://example.org/"}]}]}}`)
	c = last(t, boss, room).Get("content")
	if status != 200 || out.Get("code").Raw != "0" || out.Get("StatusCode").Raw != "0" || !strings.Contains(c.Get("formatted_body").Str, `<a href="https://example.org/">更多</a>`) || !c.Get("m\\.mentions.room").Bool() {
		t.Errorf("飞书: %d %s made %s", status, out.Raw, c.Raw)
	}
	if status, out = fei.send("", `{"msg_type":"text","content":{"text":"x"}}`); status != 200 || out.Get("code").Int() != 19021 {
		t.Errorf("飞书, not signed: %d %s", status, out.Raw)
	}
}

// TestTools posts what tools post.
func TestTools(t *testing.T) {
	hs := hstest.Start(t)
	boss := admin(t, hs)
	room := boss.CreateRoom("private_chat")
	am := hook(t, hs, boss, "am", room, `,"format":"alertmanager"`)
	body := func(status string) string {
		return `{"version":"4","groupKey":"{}:{alertname=\"Disk\"}","status":"` + status + `","commonLabels":{"alertname":"Disk","severity":"critical"},"externalURL":"http://am.example.org","alerts":[{"status":"` +
			status + `","labels":{"alertname":"Disk","instance":"db1"},"annotations":{"summary":"disk is full"},"startsAt":"2026-01-01T00:00:00Z"}]}`
	}
	root := am.post(200, body("firing")).Get("event_id").Str
	am.post(200, body("resolved"))
	if c := last(t, boss, room).Get("content"); c.Get("m\\.relates_to.event_id").Str != root || !strings.Contains(c.Get("body").Str, "RESOLVED") {
		t.Errorf("resolved: %s", c.Raw)
	}
	if out := am.post(400, `{"status":"odd","alerts":[]}`); out.Get("path").Str != "/status" {
		t.Errorf("a wrong status: %s", out.Raw)
	}
	gl := hook(t, hs, boss, "gl", room, `,"format":"gitlab"`)
	gl.post(200, `{"object_kind":"merge_request","user":{"name":"Ann"},"project":{"id":1,"path_with_namespace":"g/p","web_url":"https://gl.example.org/g/p"},"object_attributes":{"iid":5,"title":"Fix *it*","action":"open","url":"https://gl.example.org/g/p/5","source_branch":"a","target_branch":"b"}}`)
	if c := last(t, boss, room).Get("content"); !strings.Contains(c.Get("formatted_body").Str, `!5 Fix *it*</a>`) {
		t.Errorf("GitLab: %s", c.Raw)
	}
	ce := hook(t, hs, boss, "ce", room, `,"format":"cloudevents"`)
	a := ce.post(200, `{"text":"binary"}`, "ce-specversion", "1.0", "ce-id", "1", "ce-source", "/s", "ce-type", "t", "Content-Type", "application/json")
	b := ce.post(200, `{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{"text":"binary"}}`, "Content-Type", "application/cloudevents+json")
	if a.Get("event_id").Str == "" || a.Get("event_id").Str != b.Get("event_id").Str {
		t.Errorf("one CloudEvent in two modes: %s and %s", a.Raw, b.Raw)
	}
	if out := ce.post(400, `{"specversion":"1.0","id":"1","type":"t"}`); out.Get("path").Str != "/source" {
		t.Errorf("a CloudEvent without source: %s", out.Raw)
	}
	if out := ce.post(200, `[{"specversion":"1.0","id":"2","source":"/s","type":"t","data":{"text":"two"}},{"specversion":"1.0","id":"3","source":"/s","type":"org.example.made","data":{"a":1}}]`,
		"Content-Type", "application/cloudevents-batch+json"); len(out.Get("events").Array()) != 2 || !strings.Contains(last(t, boss, room).Get("content.body").Str, "org.example.made") {
		t.Errorf("a batch of CloudEvents: %s", out.Raw)
	}
	gf := hook(t, hs, boss, "gf", room, `,"format":"grafana"`)
	status, out := gf.send("", `{"receiver":"moothall","status":"firing","orgId":1,"groupKey":"{}/{}:{}","title":"[FIRING:1] CPU","message":"**Firing**","commonLabels":{"alertname":"CPU"},`+
		`"externalURL":"https://grafana.example.org/","alerts":[{"status":"firing","labels":{"alertname":"CPU","instance":"web1"},"annotations":{"summary":"CPU above 90 %"},`+
		`"startsAt":"2026-01-01T00:00:00Z","panelURL":"https://grafana.example.org/d/1?viewPanel=2","silenceURL":"https://grafana.example.org/silence","valueString":"[ var='A' value=95 ]"}]}`,
		"Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("any:"+gf.secret)))
	if c := last(t, boss, room).Get("content"); status != 200 || !strings.Contains(c.Get("body").Str, "CPU above 90 %") || !strings.Contains(c.Get("formatted_body").Str, `href="https://grafana.example.org/d/1?viewPanel=2"`) {
		t.Errorf("Grafana: %d %s made %s", status, out.Raw, c.Raw)
	}
	// a pipeline is one message that changes
	pipeline := func(state string) string {
		return `{"object_kind":"pipeline","object_attributes":{"id":31,"ref":"main","status":"` + state + `","duration":63},"user":{"name":"Ann"},"project":{"id":1,"path_with_namespace":"g/p","web_url":"https://gl.example.org/g/p"}}`
	}
	running := gl.post(200, pipeline("running")).Get("event_id").Str
	gl.post(200, pipeline("failed"))
	if c := last(t, boss, room).Get("content"); running == "" || c.Get("m\\.relates_to.event_id").Str != running {
		t.Errorf("a pipeline that failed: %s", c.Raw)
	}
	tm := hook(t, hs, boss, "tm", room, `,"template":"{{range .Each \"items\"}}- {{.Get \"name\" | md}}\n{{end}}","thread":"{{.Get \"id\"}}"`)
	tm.post(200, `{"id":7,"items":[{"name":"a_b"},{"name":"c"}]}`)
	if c := last(t, boss, room).Get("content"); !strings.Contains(c.Get("formatted_body").Str, "<li>a_b</li>") {
		t.Errorf("the template made %s", c.Raw)
	}
}

// TestToUser writes to a user, who left once.
func TestToUser(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		boss, bob := admin(t, hs), hs.User("bob")
		m := hook(t, hs, boss, "hr", bob.UserID, "")
		room := id.RoomID(m.post(200, `{"text":"one"}`).Get("room_id").Str)
		if b := last(t, bob, room).Get("content.body").Str; b != "one" {
			t.Errorf("bob reads %q", b)
		}
		bob.Leave(room)
		if again := m.post(200, `{"text":"two"}`).Get("room_id").Str; again != string(room) || last(t, bob, room).Get("content.body").Str != "two" {
			t.Errorf("after bob left, it went to %s", again)
		}
	})
}

// endpoint takes events, or does not.
type endpoint struct {
	mu     sync.Mutex
	status int
	bodies []string
	ids    []string
	wrong  int
	secret string
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body) // a body that ends early is not signed rightly
	e.mu.Lock()
	defer e.mu.Unlock()
	key, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(e.secret, "whsec_"))
	id, ts := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	if r.Header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(sum(string(key), id+"."+ts+"."+string(b))) {
		e.wrong++
	}
	if e.status == 200 {
		e.bodies, e.ids = append(e.bodies, gjson.GetBytes(b, "data.content.body").Str), append(e.ids, id)
	}
	w.WriteHeader(e.status)
}

func (e *endpoint) set(status int) {
	e.mu.Lock()
	e.status = status
	e.mu.Unlock()
}

func (e *endpoint) got() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.bodies)
}

// TestSubscriptions delivers to an endpoint that works, one that refuses and one that is down.
func TestSubscriptions(t *testing.T) {
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		boss := admin(t, hs)
		room, other := boss.CreateRoom("private_chat"), boss.CreateRoom("private_chat")
		ends := map[string]*endpoint{"good": {status: 200}, "down": {status: 503}}
		if hs.Config.Database.URL == "" { // once is enough: it takes a while until an event is laid aside
			ends["picky"] = &endpoint{status: 400}
		}
		for name, e := range ends {
			srv := httptest.NewServer(e)
			t.Cleanup(srv.Close)
			body, err := json.Marshal(map[string]any{"name": name, "url": srv.URL, "rooms": []id.RoomID{room}, "types": []string{"m.room.mess*"}})
			if err != nil {
				t.Fatal(err)
			}
			r := boss.Do(t, "POST", string(body), "/_moothall/admin/v1/hooks/subscriptions")
			if r.Status != 201 {
				t.Fatalf("subscribe: %d %s", r.Status, r.Body)
			}
			e.mu.Lock()
			e.secret = gjson.GetBytes(r.Body, "secret").Str
			e.mu.Unlock()
		}
		boss.Text(other, "elsewhere")
		want := []string{"one", "two", "three"}
		for _, s := range want {
			boss.Text(room, s)
		}
		testkit.Eventually(t, "the good endpoint has all", func() bool { return slices.Equal(ends["good"].got(), want) })
		ends["down"].set(200)
		testkit.Eventually(t, "the endpoint that was down has all, in order", func() bool { return slices.Equal(ends["down"].got(), want) })
		dead := func() int {
			return len(gjson.GetBytes(boss.Do(t, "GET", "", "/_moothall/admin/v1/hooks/subscriptions/picky/dead-letters").Body, "dead_letters").Array())
		}
		if picky := ends["picky"]; picky != nil {
			testkit.Eventually(t, "what is refused again and again is laid aside", func() bool { return dead() >= 1 })
			picky.set(200)
			boss.Must(t, "POST", "{}", "/_moothall/admin/v1/hooks/subscriptions/picky/replay")
			testkit.Eventually(t, "what was laid aside arrives", func() bool { return len(picky.got()) == 3 && dead() == 0 })
		}
		for name, e := range ends {
			if e.wrong != 0 {
				t.Errorf("%s: %d requests were not signed rightly", name, e.wrong)
			}
		}
	})
}

// TestConfigured delivers to an endpoint that stands in the configuration, as long as it stands there.
func TestConfigured(t *testing.T) {
	e := &endpoint{status: 200, secret: "whsec_" + base64.StdEncoding.EncodeToString([]byte("0123456789abcdef01234567"))}
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	const admin1 = "/_moothall/admin/v1/hooks/subscriptions"
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		e.mu.Lock()
		e.bodies = nil
		e.mu.Unlock()
		boss := admin(t, hs)
		room := boss.CreateRoom("private_chat")
		if r := boss.Do(t, "POST", `{"name":"other","url":"https://example.org/"}`, admin1); r.Status != 201 {
			t.Fatalf("subscribe: %d %s", r.Status, r.Body)
		}
		testkit.Eventually(t, "the subscription is there", func() bool { return strings.Contains(string(boss.Do(t, "GET", "", admin1).Body), `"name":"crm"`) })
		boss.Text(room, "one")
		testkit.Eventually(t, "it is delivered", func() bool { return slices.Equal(e.got(), []string{"one"}) })
		if r := boss.Do(t, "DELETE", "", admin1+"/crm"); r.Status != 409 || !strings.Contains(string(r.Body), "configuration") {
			t.Errorf("it is deleted: %d %s", r.Status, r.Body)
		}
		hs.Stop()
		hs.Config.Hooks.Subscriptions = nil
		hs = hstest.StartWith(t, hs.Config)
		boss = boss.On(hs)
		testkit.Eventually(t, "it is gone", func() bool { return !strings.Contains(string(boss.Do(t, "GET", "", admin1).Body), `"name":"crm"`) })
		if list := string(boss.Do(t, "GET", "", admin1).Body); !strings.Contains(list, `"name":"other"`) {
			t.Errorf("what was made by the API went too: %s", list)
		}
		if e.wrong != 0 {
			t.Errorf("%d requests were not signed rightly", e.wrong)
		}
	}, func(c *homeserver.Config) {
		c.Hooks.Subscriptions = []homeserver.HookSubscription{{Name: "crm", URL: srv.URL, Secret: homeserver.Secret(e.secret), Types: []string{"m.room.message"}}}
	})
}

// TestTwoNodes posts to two processes at once.
func TestTwoNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hstest.Start(t, db), hstest.Start(t, db)
	boss := admin(t, a)
	e := &endpoint{status: 200}
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	room := boss.CreateRoom("private_chat")
	m := hook(t, a, boss, "both", room, "")
	r := boss.Do(t, "POST", fmt.Sprintf(`{"name":"out","url":%q,"types":["m.room.message"]}`, srv.URL), "/_moothall/admin/v1/hooks/subscriptions")
	e.mu.Lock()
	e.secret = gjson.GetBytes(r.Body, "secret").Str
	e.mu.Unlock()
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for i := range 20 {
		for _, base := range []string{a.URL, b.URL} {
			wg.Go(func() {
				n := m
				n.base = base
				_, out := n.send("", `{"text":"once"}`, "Authorization", "Bearer "+m.secret, "Idempotency-Key", fmt.Sprint(i))
				mu.Lock()
				seen[out.Get("event_id").Str] = true
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	if len(seen) != 20 || seen[""] {
		t.Errorf("20 posts, each twice, made %d events", len(seen))
	}
	testkit.Eventually(t, "every event went out", func() bool { return len(e.got()) == 20 })
	e.mu.Lock()
	defer e.mu.Unlock()
	if ids := slices.Compact(slices.Sorted(slices.Values(e.ids))); len(ids) != 20 {
		t.Errorf("%d ids of 20 deliveries", len(ids))
	}
}

// TestLimitAcrossNodes uses a hook's whole limit up on one process: the other one has nothing left to give.
func TestLimitAcrossNodes(t *testing.T) {
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hstest.Start(t, db), hstest.Start(t, db)
	boss := admin(t, a)
	m := hook(t, a, boss, "flood", boss.CreateRoom("private_chat"), `,"per_minute":60`)
	flood := func(base string) (taken int) {
		n := m
		n.base = base
		for range 40 {
			if status, _ := n.send("", `{"text":"x"}`, "Authorization", "Bearer "+m.secret); status == 200 {
				taken++
			}
		}
		return taken
	}
	// a minute's worth is 60: half of it at once, and what a slow machine earns meanwhile
	began := time.Now()
	first := flood(a.URL)
	time.Sleep(time.Second)
	second := flood(b.URL)
	if most := 31 + int(time.Since(began).Seconds()) + 5; first < 30 || first+second > most {
		t.Errorf("one process took %d and then the other %d; together they may take %d", first, second, most)
	}
	// so it is with those who prove nothing
	wrong := func(base string) (refused int) {
		n := m
		n.base = base
		for range 35 {
			if status, _ := n.send("", `{"text":"x"}`, "Authorization", "Bearer wrong"); status == 401 {
				refused++
			}
		}
		return refused
	}
	first = wrong(a.URL)
	time.Sleep(time.Second)
	if second = wrong(b.URL); first < 30 || second > 10 {
		t.Errorf("%d wrong secrets were looked at on one process, then %d on the other", first, second)
	}
}

// BenchmarkPost posts from 32 senders at once.
func BenchmarkPost(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchmarkPost(b, hstest.Start(b)) })
	b.Run("postgres", func(b *testing.B) { benchmarkPost(b, hstest.Start(b, hstest.Postgres(storetest.Postgres(b)))) })
}

func benchmarkPost(b *testing.B, hs *hstest.Server) {
	boss := admin(b, hs)
	m := hook(b, hs, boss, "bench", boss.CreateRoom("private_chat"), `,"per_minute":1000000`)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	body := []byte(`{"markdown":"**Build** finished","title":"CI"}`)
	b.SetParallelism(16)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			req, err := http.NewRequest("POST", m.base+"/_moothall/hooks/v1/bench", bytes.NewReader(body))
			if err != nil {
				b.Error(err)
				return
			}
			req.Header.Set("Authorization", "Bearer "+m.secret)
			resp, err := client.Do(req)
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != 200 {
				b.Errorf("answered %d", resp.StatusCode)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "posts/s")
}

// TestRestart ends the server while an endpoint is down: what waits goes out after the start, once, under the same ids.
func TestRestart(t *testing.T) {
	hs := hstest.Start(t)
	boss := admin(t, hs)
	room := boss.CreateRoom("private_chat")
	m := hook(t, hs, boss, "in", room, "")
	e := &endpoint{status: 502}
	srv := httptest.NewServer(e)
	t.Cleanup(srv.Close)
	r := boss.Do(t, "POST", fmt.Sprintf(`{"name":"out","url":%q,"types":["m.room.message"]}`, srv.URL), "/_moothall/admin/v1/hooks/subscriptions")
	e.mu.Lock()
	e.secret = gjson.GetBytes(r.Body, "secret").Str
	e.mu.Unlock()
	for i := range 5 {
		m.post(200, fmt.Sprintf(`{"text":"%d"}`, i))
	}
	root := m.post(200, `{"text":"5","key":"k"}`).Get("event_id").Str
	hs.Stop()
	hs = hstest.StartWith(t, hs.Config)
	e.set(200)
	testkit.Eventually(t, "all arrived, in order", func() bool { return slices.Equal(e.got(), []string{"0", "1", "2", "3", "4", "5"}) })
	m.base = hs.URL
	m.post(200, `{"text":"6","key":"k"}`)
	if c := last(t, boss.On(hs), room).Get("content.m\\.relates_to"); c.Get("event_id").Str != root {
		t.Errorf("after the start, the key stands for %s", c.Raw)
	}
	if e.wrong != 0 {
		t.Errorf("%d requests were not signed rightly", e.wrong)
	}
}
