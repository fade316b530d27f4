package clientapi_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// emailBody is the body of a requestToken request.
func emailBody(email string, attempt int) string {
	return fmt.Sprintf(`{"client_secret":"s3cret","email":%q,"send_attempt":%d}`, email, attempt)
}

// requestMail asks for a mail and returns the session id.
func requestMail(t *testing.T, c *hstest.Client, what, email string, attempt int) string {
	t.Helper()
	return c.Must(t, "POST", emailBody(email, attempt), "/v3/"+what+"/email/requestToken", []any(nil)...)["sid"].(string)
}

// page fetches or posts the page behind a mail's link; query is "" for a POST of the form.
func page(t *testing.T, hs *hstest.Server, method, query string) (status int, body string) {
	t.Helper()
	target := hs.URL + "/_moothall/email/validate"
	var form io.Reader
	if method == "GET" {
		target += "?" + query
	} else {
		form = strings.NewReader(query)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, target, form)
	if err != nil {
		t.Fatal(err)
	}
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// confirm opens a mail's link and presses the button.
func confirm(t *testing.T, hs *hstest.Server, m hstest.Mail) {
	t.Helper()
	if status, body := page(t, hs, "GET", m.Link()); status != 200 || !strings.Contains(body, m.To) {
		t.Fatalf("the page of the mail %q: %d %s", m.Link(), status, body)
	}
	if status, body := page(t, hs, "POST", m.Link()); status != 200 {
		t.Fatalf("the form of the page: %d %s", status, body)
	}
}

func passwordStage(c *hstest.Client) string {
	return fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.user","user":%q},"password":%q}`, c.UserID, c.Password)
}

// addEmail gives a user an address.
func addEmail(t *testing.T, hs *hstest.Server, box *hstest.Mailbox, c *hstest.Client, email string) {
	t.Helper()
	sid := requestMail(t, c, "account/3pid", email, 1)
	confirm(t, hs, box.Next(t, strings.ToLower(email)))
	c.Must(t, "POST", fmt.Sprintf(`{"client_secret":"s3cret","sid":%q,"auth":%s}`, sid, passwordStage(c)), "/v3/account/3pid/add")
}

func eachWithMail(t *testing.T, fn func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox), options ...hstest.Option) {
	t.Helper()
	var box *hstest.Mailbox
	hstest.Each(t, func(t *testing.T, hs *hstest.Server) { fn(t, hs, box) }, append(options, func(c *homeserver.Config) {
		box = hstest.StartMailbox(t)
		box.Option()(c)
	})...)
}

func TestEmailOfAccount(t *testing.T) {
	eachWithMail(t, func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
		alice, bob := hs.User("alice"), hs.User("bob")
		if on := hstest.At(alice.Must(t, "GET", "", "/v3/capabilities"), "capabilities", "m.3pid_changes", "enabled"); on != true {
			t.Errorf("m.3pid_changes is %v", on)
		}
		sid := requestMail(t, alice, "account/3pid", "Alice@Example.ORG", 1)
		mail := box.Next(t, "alice@example.org")
		if mail.From != "noreply@example.org" || mail.Header.Get("Auto-Submitted") != "auto-generated" || !strings.Contains(mail.Subject, hstest.ServerName) ||
			!strings.Contains(mail.HTML, "/_moothall/email/validate") {
			t.Errorf("the mail: %+v", mail)
		}
		// Asking again with the same number sends nothing; with a higher one the old link ends.
		if again := requestMail(t, alice, "account/3pid", "alice@example.org", 1); again != sid {
			t.Errorf("another session: %s, %s", again, sid)
		}
		if again := requestMail(t, alice, "account/3pid", "alice@example.org", 2); again != sid {
			t.Errorf("another session: %s, %s", again, sid)
		}
		newer := box.Next(t, "alice@example.org")
		if n := len(box.Mails()); n != 0 {
			t.Errorf("%d more mails", n)
		}
		if status, _ := page(t, hs, "GET", mail.Link()); status != 404 {
			t.Errorf("the replaced link answers %d", status)
		}
		add := func(c *hstest.Client, sid, secret, auth string) hstest.Response {
			return c.Do(t, "POST", fmt.Sprintf(`{"client_secret":%q,"sid":%q%s}`, secret, sid, auth), "/v3/account/3pid/add")
		}
		withPassword := `,"auth":` + passwordStage(alice)
		// A GET confirms nothing.
		page(t, hs, "GET", newer.Link())
		if r := add(alice, sid, "s3cret", withPassword); r.Status != 400 || r.Errcode != "M_THREEPID_AUTH_FAILED" {
			t.Errorf("before the link was opened: %d %s", r.Status, r.Body)
		}
		confirm(t, hs, newer)
		confirm(t, hs, newer)
		for name, r := range map[string]hstest.Response{
			"other secret":   add(alice, sid, "other", withPassword),
			"other session":  add(alice, "X", "s3cret", withPassword),
			"broken session": add(alice, "a b", "s3cret", withPassword),
		} {
			if r.Status != 400 || r.Errcode != "M_THREEPID_AUTH_FAILED" {
				t.Errorf("%s: %d %s", name, r.Status, r.Body)
			}
		}
		if r := add(alice, sid, "s3cret", ""); r.Status != 401 || !strings.Contains(string(r.Body), "m.login.password") {
			t.Errorf("without the password: %d %s", r.Status, r.Body)
		}
		if r := add(alice, sid, "s3cret", withPassword); r.Status != 200 {
			t.Errorf("add: %d %s", r.Status, r.Body)
		}
		if r := add(alice, sid, "s3cret", withPassword); r.Errcode != "M_THREEPID_AUTH_FAILED" {
			t.Errorf("add twice: %d %s", r.Status, r.Body)
		}
		list := alice.Must(t, "GET", "", "/v3/account/3pid")
		if hstest.At(list, "threepids", 0, "address") != "alice@example.org" || hstest.At(list, "threepids", 1) != nil {
			t.Errorf("addresses: %v", list)
		}
		if list := bob.Must(t, "GET", "", "/v3/account/3pid"); hstest.At(list, "threepids", 0) != nil {
			t.Errorf("bob's addresses: %v", list)
		}

		// The address belongs to alice: the answer to bob tells nothing, the mail does, and its session is good for nothing.
		taken := requestMail(t, bob, "account/3pid", "ALICE@example.org", 7)
		if m := box.Next(t, "alice@example.org"); m.Link() != "" || !strings.Contains(m.Text, "@alice:"+hstest.ServerName) {
			t.Errorf("the mail for an address in use: %+v", m)
		}
		if r := add(bob, taken, "s3cret", `,"auth":`+passwordStage(bob)); r.Errcode != "M_THREEPID_AUTH_FAILED" {
			t.Errorf("an address in use: %d %s", r.Status, r.Body)
		}

		// Sign-in by the address.
		login := func(address, password string) hstest.Response {
			return hs.Anonymous().Do(t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.thirdparty","medium":"email","address":%q},"password":%q}`, address, password), "/v3/login")
		}
		if r := login("Alice@example.org", alice.Password); r.Status != 200 || !strings.Contains(string(r.Body), `"@alice:test"`) {
			t.Errorf("sign in: %d %s", r.Status, r.Body)
		}
		unknown, wrong := login("nobody@example.org", alice.Password), login("alice@example.org", "wrong")
		if unknown.Status != 403 || unknown.Errcode != "M_FORBIDDEN" || len(unknown.Body) != len(wrong.Body) || wrong.Status != 403 || wrong.Errcode != "M_FORBIDDEN" {
			t.Errorf("unknown address: %d %s; wrong password: %d %s", unknown.Status, unknown.Body, wrong.Status, wrong.Body)
		}

		// Bob cannot take it from alice, she can.
		const body = `{"medium":"email","address":"Alice@Example.org"}`
		for _, c := range []*hstest.Client{bob, alice} {
			if got := c.Must(t, "POST", body, "/v3/account/3pid/delete"); got["id_server_unbind_result"] != "no-support" {
				t.Errorf("delete: %v", got)
			}
			want := 200
			if c == alice {
				want = 403
			}
			if r := login("alice@example.org", alice.Password); r.Status != want {
				t.Errorf("after %s's deletion: %d", c.UserID, r.Status)
			}
		}
	})
}

func TestEmailRegistration(t *testing.T) {
	eachWithMail(t, func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
		nobody := hs.Anonymous()
		flows := nobody.Do(t, "POST", `{"username":"carol"}`, "/v3/register")
		if !strings.Contains(string(flows.Body), `"flows":[{"stages":["m.login.email.identity"]}]`) {
			t.Fatalf("flows: %s", flows.Body)
		}
		var challenge struct{ Session string }
		flows.JSON(t, &challenge)
		sid := requestMail(t, nobody, "register", "carol@example.org", 1)
		register := func(user, sid, secret string) hstest.Response {
			return nobody.Do(t, "POST", fmt.Sprintf(`{"username":%q,"password":"correct horse","auth":{"type":"m.login.email.identity","session":%q,"threepid_creds":{"sid":%q,"client_secret":%q}}}`,
				user, challenge.Session, sid, secret), "/v3/register")
		}
		if r := register("carol", sid, "s3cret"); r.Status != 401 || r.Errcode != "M_THREEPID_AUTH_FAILED" {
			t.Errorf("before the link was opened: %d %s", r.Status, r.Body)
		}
		confirm(t, hs, box.Next(t, "carol@example.org"))
		if r := register("carol", sid, "other"); r.Status != 401 {
			t.Errorf("with another secret: %d %s", r.Status, r.Body)
		}
		r := nobody.Do(t, "POST", `{"username":"carol","password":"correct horse","auth":{"type":"m.login.dummy"}}`, "/v3/register")
		if r.Status != 401 {
			t.Errorf("without an address: %d %s", r.Status, r.Body)
		}
		if r := register("carol", sid, "s3cret"); r.Status != 200 {
			t.Fatalf("register: %d %s", r.Status, r.Body)
		}
		r = nobody.Do(t, "POST", `{"type":"m.login.password","medium":"email","address":"carol@example.org","password":"correct horse"}`, "/v3/login")
		if r.Status != 200 {
			t.Errorf("sign in by the address: %d %s", r.Status, r.Body)
		}
		if r := register("dave", sid, "s3cret"); r.Status != 401 {
			t.Errorf("a proof used twice: %d %s", r.Status, r.Body)
		}
		requestMail(t, nobody, "register", "carol@example.org", 2)
		if m := box.Next(t, "carol@example.org"); m.Link() != "" {
			t.Errorf("a link for an address in use: %+v", m)
		}
	}, func(c *homeserver.Config) { c.Registration.RequireEmail = true })
}

func TestPasswordReset(t *testing.T) {
	eachWithMail(t, func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
		alice := hs.User("alice")
		addEmail(t, hs, box, alice, "alice@example.org")
		nobody := hs.Anonymous()
		reset := func(sid, session, members string) hstest.Response {
			return nobody.Do(t, "POST", fmt.Sprintf(`{"auth":{"type":"m.login.email.identity","session":%q,"threepid_creds":{"sid":%q,"client_secret":"s3cret"}}%s}`, session, sid, members), "/v3/account/password")
		}
		first := nobody.Do(t, "POST", `{"new_password":"battery staple"}`, "/v3/account/password")
		if first.Status != 401 || !strings.Contains(string(first.Body), "m.login.email.identity") {
			t.Fatalf("flows: %d %s", first.Status, first.Body)
		}
		var challenge struct{ Session string }
		first.JSON(t, &challenge)

		// The answers for an address of somebody and of nobody are the same.
		known := nobody.Do(t, "POST", emailBody("alice@example.org", 1), "/v3/account/password/email/requestToken")
		unknown := nobody.Do(t, "POST", emailBody("nobody@example.org", 1), "/v3/account/password/email/requestToken")
		if known.Status != 200 || unknown.Status != 200 || len(known.Body) != len(unknown.Body) {
			t.Errorf("known: %d %s, unknown: %d %s", known.Status, known.Body, unknown.Status, unknown.Body)
		}
		if m := box.Next(t, "nobody@example.org"); m.Link() != "" {
			t.Errorf("a link for an address of nobody: %+v", m)
		}
		var session struct{ SID string }
		known.JSON(t, &session)
		mail := box.Next(t, "alice@example.org")
		if !strings.Contains(mail.Text, "@alice:test") {
			t.Errorf("the mail does not name the account: %+v", mail)
		}
		if r := reset(session.SID, challenge.Session, `,"new_password":"battery staple"`); r.Status != 401 {
			t.Errorf("before the link was opened: %d %s", r.Status, r.Body)
		}
		confirm(t, hs, mail)
		if r := reset(session.SID, challenge.Session, `,"new_password":"short"`); r.Errcode != "M_WEAK_PASSWORD" {
			t.Errorf("weak: %d %s", r.Status, r.Body)
		}
		// The proof is for a password: it adds no address, and registers nobody.
		r := alice.Do(t, "POST", fmt.Sprintf(`{"client_secret":"s3cret","sid":%q,"auth":%s}`, session.SID, passwordStage(alice)), "/v3/account/3pid/add")
		if r.Errcode != "M_THREEPID_AUTH_FAILED" {
			t.Errorf("a proof for something else: %d %s", r.Status, r.Body)
		}
		if r := reset(session.SID, challenge.Session, `,"new_password":"battery staple"`); r.Status != 200 {
			t.Fatalf("reset: %d %s", r.Status, r.Body)
		}
		if r := alice.Do(t, "GET", "", "/v3/account/whoami"); r.Errcode != "M_UNKNOWN_TOKEN" {
			t.Errorf("the old session: %d %s", r.Status, r.Body)
		}
		alice.Password = "battery staple"
		alice.Login()
		if r := reset(session.SID, "", `,"new_password":"another staple"`); r.Status != 401 {
			t.Errorf("a second reset: %d %s", r.Status, r.Body)
		}
		// A deactivated account has no address any more.
		again := alice.Login()
		again.Must(t, "POST", `{"auth":`+passwordStage(again)+`}`, "/v3/account/deactivate")
		requestMail(t, nobody, "account/password", "alice@example.org", 9)
		if m := box.Next(t, "alice@example.org"); m.Link() != "" {
			t.Errorf("a link for a deactivated account: %+v", m)
		}
	})
}

func TestEmailRefusals(t *testing.T) {
	eachWithMail(t, func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
		alice, nobody := hs.User("alice"), hs.Anonymous()
		for _, what := range []string{"register", "account/3pid", "account/password"} {
			path := "/v3/" + what + "/email/requestToken"
			var rows []refusal
			for name, body := range map[string]string{
				"no secret":         `{"email":"a@example.org","send_attempt":1}`,
				"no email":          `{"client_secret":"s","send_attempt":1}`,
				"no attempt":        `{"client_secret":"s","email":"a@example.org"}`,
				"empty secret":      `{"client_secret":"","email":"a@example.org","send_attempt":1}`,
				"bad secret":        `{"client_secret":"a b","email":"a@example.org","send_attempt":1}`,
				"long secret":       `{"client_secret":"` + strings.Repeat("s", 256) + `","email":"a@example.org","send_attempt":1}`,
				"no address":        emailBody("example.org", 1),
				"no domain":         emailBody("a@", 1),
				"name and address":  emailBody("A <a@example.org>", 1),
				"two addresses":     emailBody("a@example.org, b@example.org", 1),
				"line break":        emailBody("a@example.org\r\nBcc: b@example.org", 1),
				"quoted":            emailBody(`"a b"@example.org`, 1),
				"not ASCII":         emailBody("ä@example.org", 1),
				"long":              emailBody(strings.Repeat("a", 250)+"@example.org", 1),
				"negative attempt":  emailBody("a@example.org", -1),
				"script as next":    `{"client_secret":"s","email":"a@example.org","send_attempt":1,"next_link":"javascript:alert(1)"}`,
				"next with account": `{"client_secret":"s","email":"a@example.org","send_attempt":1,"next_link":"https://bank@evil.example/"}`,
			} {
				code := "M_INVALID_PARAM"
				if strings.HasPrefix(name, "no ") && name != "no address" && name != "no domain" {
					code = "M_MISSING_PARAM"
				}
				rows = append(rows, refusal{what + " " + name, nobody, "POST", path, nil, body, 400, code})
			}
			rows = append(rows,
				refusal{what + " number as email", nobody, "POST", path, nil, `{"client_secret":"s","email":7,"send_attempt":1}`, 400, "M_BAD_JSON"},
				refusal{what + " text as attempt", nobody, "POST", path, nil, `{"client_secret":"s","email":"a@example.org","send_attempt":"1"}`, 400, "M_BAD_JSON"},
				refusal{what + " broken", nobody, "POST", path, nil, `{`, 400, "M_NOT_JSON"},
				refusal{what + " phone", nobody, "POST", "/v3/" + what + "/msisdn/requestToken", nil, `{"client_secret":"s","country":"GB","phone_number":"07700900001","send_attempt":1}`, 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"},
				refusal{what + " broken phone", nobody, "POST", "/v3/" + what + "/msisdn/requestToken", nil, `[]`, 400, "M_BAD_JSON"},
			)
			checkAll(t, rows)
		}
		const identity = `{"client_secret":"s","id_server":"id.example.org","id_access_token":"t","sid":"s"}`
		checkAll(t, []refusal{
			{"add without sid", alice, "POST", "/v3/account/3pid/add", nil, `{"client_secret":"s"}`, 400, "M_MISSING_PARAM"},
			{"add without secret", alice, "POST", "/v3/account/3pid/add", nil, `{"sid":"s"}`, 400, "M_MISSING_PARAM"},
			{"add without token", nobody, "POST", "/v3/account/3pid/add", nil, `{"sid":"s","client_secret":"s"}`, 401, "M_MISSING_TOKEN"},
			{"old add", alice, "POST", "/v3/account/3pid", nil, `{"three_pid_creds":` + identity + `}`, 403, "M_THREEPID_AUTH_FAILED"},
			{"old add of nothing", alice, "POST", "/v3/account/3pid", nil, `{}`, 400, "M_MISSING_PARAM"},
			{"bind", alice, "POST", "/v3/account/3pid/bind", nil, identity, 400, "M_SERVER_NOT_TRUSTED"},
			{"bind nothing", alice, "POST", "/v3/account/3pid/bind", nil, `{}`, 400, "M_MISSING_PARAM"},
			{"unbind", alice, "POST", "/v3/account/3pid/unbind", nil, `{"medium":"email","address":"a@example.org"}`, 200, ""},
			{"unbind nothing", alice, "POST", "/v3/account/3pid/unbind", nil, `{"medium":"email"}`, 400, "M_MISSING_PARAM"},
			{"delete without medium", alice, "POST", "/v3/account/3pid/delete", nil, `{"address":"a@example.org"}`, 400, "M_MISSING_PARAM"},
			{"delete of a strange medium", alice, "POST", "/v3/account/3pid/delete", nil, `{"medium":"fax","address":"1"}`, 400, "M_INVALID_PARAM"},
			{"delete of a number", alice, "POST", "/v3/account/3pid/delete", nil, `{"medium":"email","address":1}`, 400, "M_BAD_JSON"},
			{"sign-in by phone", nobody, "POST", "/v3/login", nil, `{"type":"m.login.password","identifier":{"type":"m.id.phone","country":"GB","phone":"1"},"password":"x"}`, 403, "M_FORBIDDEN"},
			{"sign-in without address", nobody, "POST", "/v3/login", nil, `{"type":"m.login.password","identifier":{"type":"m.id.thirdparty","medium":"email"},"password":"x"}`, 400, "M_MISSING_PARAM"},
			{"reset without creds", nobody, "POST", "/v3/account/password", nil, `{"auth":{"type":"m.login.email.identity"}}`, 400, "M_MISSING_PARAM"},
		})
		for _, query := range []string{"", "token=", "token=x", "token=a.b", "token=%00.%00", "token=" + url.QueryEscape(strings.Repeat("A", 32)+".x")} {
			for _, method := range []string{"GET", "POST"} {
				if status, body := page(t, hs, method, query); status != 404 || !strings.Contains(body, "<html") {
					t.Errorf("%s %q: %d %s", method, query, status, body)
				}
			}
		}

		// An address gets so many mails and no more, whoever asks, known or not.
		for i := range 6 {
			nobody.Must(t, "POST", fmt.Sprintf(`{"client_secret":"s%d","email":"flood@example.org","send_attempt":1}`, i), "/v3/account/password/email/requestToken")
		}
		r := nobody.Do(t, "POST", `{"client_secret":"s9","email":"Flood@example.org","send_attempt":1}`, "/v3/account/3pid/email/requestToken")
		if r.Status != 429 || r.Errcode != "M_LIMIT_EXCEEDED" || r.Header.Get("Retry-After") == "" {
			t.Errorf("the seventh mail: %d %s", r.Status, r.Body)
		}
	})
}

func TestMailDelivery(t *testing.T) {
	eachWithMail(t, func(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
		alice := hs.User("alice")
		box.FailNext(1)
		requestMail(t, alice, "account/3pid", "later@example.org", 1)
		if m := box.Next(t, "later@example.org"); m.Link() == "" { // tried again after a few seconds
			t.Errorf("the mail: %+v", m)
		}
		requestMail(t, alice, "account/3pid", "refused@example.org", 1) // logged and given up; the server goes on
		req, err := http.NewRequestWithContext(t.Context(), "POST", hs.URL+"/_matrix/client/v3/account/3pid/email/requestToken",
			strings.NewReader(`{"client_secret":"s","email":"zh@example.org","send_attempt":1,"next_link":"https://app.example.org/done?a=b"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Accept-Language", "zh-CN,zh;q=0.9,en;q=0.8")
		if r := alice.Send(t, req); r.Status != 200 {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
		m := box.Next(t, "zh@example.org")
		if !strings.Contains(m.Subject, "确认") || !strings.Contains(m.Text, "链接一小时内有效") || !strings.Contains(m.Link(), "lang=zh") {
			t.Errorf("the Chinese mail: %+v", m)
		}
		if _, body := page(t, hs, "GET", m.Link()); !strings.Contains(body, "确认您的电子邮件地址") {
			t.Errorf("the Chinese page: %s", body)
		}
		if _, body := page(t, hs, "POST", m.Link()); !strings.Contains(body, `href="https://app.example.org/done?a=b"`) || !strings.Contains(body, ">app.example.org<") {
			t.Errorf("the page after it: %s", body)
		}
	})
}

func TestNoEmail(t *testing.T) {
	hs := hstest.Start(t)
	alice, nobody := hs.User("alice"), hs.Anonymous()
	if on := hstest.At(alice.Must(t, "GET", "", "/v3/capabilities"), "capabilities", "m.3pid_changes", "enabled"); on != false {
		t.Errorf("m.3pid_changes is %v", on)
	}
	checkAll(t, []refusal{
		{"register", nobody, "POST", "/v3/register/email/requestToken", nil, emailBody("a@example.org", 1), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"},
		{"add", alice, "POST", "/v3/account/3pid/email/requestToken", nil, emailBody("a@example.org", 1), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"},
		{"password", nobody, "POST", "/v3/account/password/email/requestToken", nil, emailBody("a@example.org", 1), 400, "M_THREEPID_MEDIUM_NOT_SUPPORTED"},
		{"reset", nobody, "POST", "/v3/account/password", nil, `{"new_password":"battery staple"}`, 401, "M_MISSING_TOKEN"},
	})
	closed := hstest.Start(t, func(c *homeserver.Config) { c.Registration.Mode = "closed" })
	checkAll(t, []refusal{
		{"closed", closed.Anonymous(), "POST", "/v3/register/email/requestToken", nil, emailBody("a@example.org", 1), 403, "M_FORBIDDEN"},
	})
}
