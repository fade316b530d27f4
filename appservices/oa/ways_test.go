package oa_test

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/pquerna/otp/hotp"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

var secretForm = regexp.MustCompile(`<code>([A-Z2-7]{32})</code>`)

func code(t *testing.T, secret string, off int64) string {
	t.Helper()
	c, err := hotp.GenerateCode(secret, uint64(time.Now().Unix()/30+off))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestStepUp decides about an amount above the threshold: the page is shown only after a second factor, and the OA system hears
// how the person was known.
func TestStepUp(t *testing.T) {
	f := newOffice(t)
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) {
		bob := hs.User("bob")
		b := newBrowser(t, hs, bob)
		b.get("/account/factors/add?kind=totp")
		b.submit("name", "Phone")
		m := secretForm.FindStringSubmatch(b.page)
		if m == nil {
			t.Fatalf("no secret to enrol: %d %s %s", b.code, b.path, b.page)
		}
		b.submit("code", code(t, m[1], -1)).wants(200, "Recovery codes")

		name := "S-" + t.Name()[len(t.Name())-3:]
		must(t, hs, "POST", "/tasks", fmt.Sprintf(`{"id":%q,"template":"payment","title":"Payment","assignee":"bob","amount":{"value":"12800.50","currency":"CNY"}}`, name))
		link := await(t, bob, "12,800.50 CNY").link(t)
		fresh := newBrowser(t, hs, nil)
		fresh.get(link).wants(200, "username")
		fresh.post("/signin/password", "username", "bob", "password", bob.Password)
		if strings.Contains(fresh.page, "12,800.50") {
			t.Fatalf("a password alone shows the payment: %s", fresh.path)
		}
		fresh.submit("code", code(t, m[1], 0)).wants(200, "12,800.50")
		fresh.post(link, "answer", "approve").wants(200, "Approved by")
		h := heardOf(t, f, name)
		if amr := fmt.Sprint(h["amr"]); h["outcome"] != "approved" || !strings.Contains(amr, "otp") || !strings.Contains(amr, "pwd") {
			t.Errorf("the office heard %v", h)
		}
	}, f.config())
}

var (
	formAction  = regexp.MustCompile(`<form method="post" action="([^"]*)"`)
	hiddenField = regexp.MustCompile(`<input type="hidden" name="([^"]+)" value="([^"]*)"`)
)

// submit fills in the first form of the page.
func (b *browser) submit(values ...string) *browser {
	b.t.Helper()
	action := formAction.FindStringSubmatchIndex(b.page)
	if action == nil {
		b.t.Fatalf("%s: %d, without a form: %s", b.path, b.code, b.page)
	}
	form, _, _ := strings.Cut(b.page[action[0]:], "</form>")
	var all []string
	for _, m := range hiddenField.FindAllStringSubmatch(form, -1) {
		all = append(all, m[1], html.UnescapeString(m[2]))
	}
	return b.post(html.UnescapeString(b.page[action[2]:action[3]]), append(all, values...)...)
}

// heardOf waits until the office has heard of a task.
func heardOf(t *testing.T, f *office, name string) (h map[string]any) {
	t.Helper()
	testkit.Eventually(t, "the office never heard of "+name, func() bool {
		for _, o := range f.outcomes() {
			if o["id"] == name {
				h = o
			}
		}
		return h != nil
	})
	return h
}

// TestExpiredLink refuses a link after its time; "todo" gives a new one. A link that was used once does not decide a second time.
func TestExpiredLink(t *testing.T) {
	f := newOffice(t)
	db := storetest.Postgres(t)
	hs := hstest.Start(t, hstest.Postgres(db), f.config())
	ann, bob := hs.User("ann"), hs.User("bob")
	leave(t, hs, "E1", bob, ann)
	card := await(t, bob, "#A1001")
	c, err := pgx.Connect(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Exec(t.Context(), `UPDATE oa_tokens SET expires = $1`, time.Now().Add(-time.Minute).UnixMilli()); err != nil {
		t.Fatal(err)
	}
	_ = c.Close(t.Context())
	b := newBrowser(t, hs, bob)
	b.get(card.link(t)).wants(410, "")
	b.get("/account")
	b.post(card.link(t), "answer", "approve").wants(410, "")
	if s := status(t, hs, "E1"); s != "open" {
		t.Fatalf("an expired link made it %s", s)
	}
	bob.Text(card.room, "todo")
	link := await(t, bob, "待办 1 项").link(t)
	form := b.get(link).wants(200, "年假").csrf()
	b.post(link, "answer", "approve", "csrf", form).wants(200, "Approved by")
	b.post(link, "answer", "approve", "csrf", form).wants(409, "decided before") // a double click
	heardOf(t, f, "E1")
	if n := len(f.outcomes()); n != 1 {
		t.Errorf("the office heard %d times", n)
	}
}

// TestMapping tells an OA system with an API of its own, and reads its answers.
func TestMapping(t *testing.T) {
	type request struct{ method, path, token, contentType, body string }
	var mu sync.Mutex
	var got []request
	answer := `{"code":"SUCCESS"}`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body) // what is missing shows below
		mu.Lock()
		defer mu.Unlock()
		got = append(got, request{r.Method, r.URL.RequestURI(), r.Header.Get("X-App-Token"), r.Header.Get("Content-Type"), string(b)})
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(srv.Close)
	f := newOffice(t)
	hs := hstest.Start(t, f.config(func(c *homeserver.Config) {
		cb := &c.OA.Systems[0].Callback
		cb.URL, cb.Method = srv.URL+"/workflow/{{path .id}}/submit?u={{query .by_name}}", "PUT"
		cb.Headers = []homeserver.OAHeader{{Name: "X-App-Token", Value: "t-{{.system}}"}}
		cb.Body = `{"requestId":{{json .id}},"type":{{json (pick .outcome "approved" "submit" "rejected" "reject" "delegated" "forward")}},"remark":{{json .reason}},"to":{{json .to_name}}}`
		cb.OK, cb.OKValue = "code", "SUCCESS"
	}))
	ann, bob, eve := hs.User("ann"), hs.User("bob"), hs.User("eve")
	leave(t, hs, "a/b 1", bob, ann)
	first := await(t, bob, "#A1001")
	bob.Event(first.room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.text","body":"驳回 太\"久\"了","m.relates_to":{"m.in_reply_to":{"event_id":%q}}}`, first.event))
	last := func(n int) request {
		t.Helper()
		testkit.Eventually(t, fmt.Sprintf("%d requests", n), func() bool { mu.Lock(); defer mu.Unlock(); return len(got) >= n })
		mu.Lock()
		defer mu.Unlock()
		return got[n-1]
	}
	r := last(1)
	if r.method != "PUT" || r.path != "/workflow/a%2Fb%201/submit?u=bob" || r.token != "t-weaver" || r.contentType != "application/json" {
		t.Errorf("asked %+v", r)
	}
	var body map[string]string
	if err := json.Unmarshal([]byte(r.body), &body); err != nil || body["requestId"] != "a/b 1" || body["type"] != "reject" || body["remark"] != `太"久"了` {
		t.Errorf("told %s: %v", r.body, err)
	}
	// it passes on, and is passed on by the OA system, which needs no telling
	leave(t, hs, "M2", bob, ann)
	second := await(t, bob, "#A1002")
	bob.Text(second.room, "转交 #A1002 @eve:test")
	if r := last(2); !strings.Contains(r.body, `"type":"forward"`) || !strings.Contains(r.body, `"to":"eve"`) {
		t.Errorf("told of the delegation %+v", r)
	}
	await(t, eve, "#A1002")
	if code, out := api(t, hs, "POST", "/tasks/M2/delegate", `{"to":"nobody"}`); code != 400 || out["field"] != "to" {
		t.Errorf("to nobody: %d %v", code, out)
	}
	if code, _ := api(t, hs, "POST", "/tasks/M2/delegate", `{"to":"eve"}`); code != 400 {
		t.Errorf("to who has it: %d", code)
	}
	must(t, hs, "POST", "/tasks/M2/delegate", `{"to":"bob"}`)
	await(t, eve, "已转交")
	// what the OA system refuses by its answer, the card shows
	mu.Lock()
	answer = `{"code":"CLOSED","msg":"流程已结束"}`
	mu.Unlock()
	bob.Text(second.room, "同意 #A1002")
	await(t, bob, "流程已结束")
	if out := must(t, hs, "GET", "/tasks/M2", ""); out["status"] != "approved" {
		t.Errorf("refused: %v", out)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 3 {
		t.Errorf("%d requests: %+v", len(got), got)
	}
}

// TestRemindAfter reminds those who do not decide, by itself; nobody is reminded of what is decided.
func TestRemindAfter(t *testing.T) {
	f := newOffice(t)
	hs := hstest.Start(t, f.config(func(c *homeserver.Config) {
		c.OA.Systems[0].Templates[0].RemindAfter = homeserver.Duration(2 * time.Second)
		c.OA.Systems[0].Templates[1].Delegate = false
	}))
	ann, bob := hs.User("ann"), hs.User("bob")
	leave(t, hs, "R1", bob, ann)
	reminder := await(t, bob, "⏰")
	if !strings.Contains(reminder.body, "#A1001") || hstest.At(reminder.raw, "m.mentions", "user_ids", 0) != string(bob.UserID) {
		t.Errorf("reminded by %v", reminder.raw)
	}
	count := func() (n int) {
		for _, m := range messages(bob) {
			if strings.Contains(m.body, "⏰") {
				n++
			}
		}
		return n
	}
	testkit.Eventually(t, "no second reminder", func() bool { return count() >= 2 })
	// the reminder is answered as the card is
	bob.Event(reminder.room, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"✅"}}`, reminder.event))
	testkit.Eventually(t, "approved", func() bool { return status(t, hs, "R1") == "approved" })
	n := count()
	time.Sleep(3 * time.Second)
	if count() != n {
		t.Error("what is decided is reminded of")
	}
	// not every kind may be passed on
	must(t, hs, "POST", "/tasks", `{"id":"R2","template":"payment","title":"Payment","assignee":"bob","amount":{"value":"5","currency":"CNY"}}`)
	card := await(t, bob, "#A1002")
	hs.User("eve")
	bob.Text(card.room, "转交 #A1002 eve")
	await(t, bob, "cannot be passed on")
}

// TestNodeGone decides on a node while the OA system is down, and ends that node: the other one brings the outcome, once, and
// mends the card.
func TestNodeGone(t *testing.T) {
	f := newOffice(t)
	db := hstest.Postgres(storetest.Postgres(t))
	a, b := hstest.Start(t, db, f.config()), hstest.Start(t, db, f.config())
	ann, bob := a.User("ann"), a.User("bob")
	f.set(true)
	leave(t, a, "G1", bob, ann)
	card := await(t, bob, "#A1001")
	bob.Event(card.room, "m.reaction", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"✅"}}`, card.event))
	await(t, bob, "OA 系统暂时无法连接")
	a.Stop()
	f.set(false)
	heardOf(t, f, "G1")
	there := bob.On(b)
	testkit.Eventually(t, "the card still waits", func() bool {
		list := messages(there)
		return len(list) > 0 && strings.Contains(list[len(list)-1].body, "已同意") && !strings.Contains(list[len(list)-1].body, "暂时无法连接")
	})
	await(t, ann.On(b), "您的申请")
	// a card made there is answered there
	must(t, b, "POST", "/tasks", fmt.Sprintf(`{"id":"G2","template":"leave","title":"年假","assignee":%q,"fields":[{"key":"days","value":"3"}]}`, bob.UserID))
	second := await(t, there, "#A1002")
	there.Must(t, "PUT", fmt.Sprintf(`{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":"❌"}}`, second.event), "/v3/rooms/%s/send/m.reaction/there", second.room)
	heardOf(t, f, "G2")
	if n := len(f.outcomes()); n != 2 {
		t.Errorf("the office heard %d times of two decisions", n)
	}
}
