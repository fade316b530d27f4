package homeserver_test

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

var mailedToken = regexp.MustCompile(`token=3D([A-Z]+\.[A-Za-z0-9_-]+)`)

// mailToken reads the link's token out of a mail in quoted-printable.
func mailToken(t *testing.T, mail string) string {
	t.Helper()
	found := mailedToken.FindStringSubmatch(strings.ReplaceAll(strings.ReplaceAll(mail, "=\r\n", ""), "=\n", ""))
	if found == nil {
		t.Fatalf("no link in the mail:\n%s", mail)
	}
	return found[1]
}

// TestRealMailServer resets a password by way of a real mail server.
func TestRealMailServer(t *testing.T) {
	g := hstest.FindGreenMail(t)
	hs := hstest.Start(t, g.Option)
	address := fmt.Sprintf("alice%d@example.org", time.Now().UnixNano())
	alice, nobody := hs.User("alice"), hs.Anonymous()
	press := func(mail string) {
		t.Helper()
		resp, err := http.Post(hs.URL+"/_moothall/email/validate", "application/x-www-form-urlencoded", strings.NewReader("token="+mailToken(t, mail)))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("the page answers %d", resp.StatusCode)
		}
	}
	request := func(what string) string {
		t.Helper()
		body := fmt.Sprintf(`{"client_secret":"s3cret","email":%q,"send_attempt":1}`, address)
		return nobody.Must(t, "POST", body, "/v3/account/"+what+"/email/requestToken", []any(nil)...)["sid"].(string)
	}

	sid := request("3pid")
	mail := g.Wait(t, address, 1)
	for _, want := range []string{"From: =?utf-8?", "noreply@example.org", "Auto-Submitted: auto-generated", "multipart/alternative", "Message-ID: <"} {
		if !strings.Contains(mail, want) {
			t.Errorf("the mail has no %q:\n%s", want, mail)
		}
	}
	press(mail)
	alice.Must(t, "POST", fmt.Sprintf(`{"client_secret":"s3cret","sid":%q,"auth":{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":%q}}`, sid, alice.Password), "/v3/account/3pid/add")

	sid = request("password")
	press(g.Wait(t, address, 2))
	nobody.Must(t, "POST", fmt.Sprintf(`{"new_password":"battery staple","auth":{"type":"m.login.email.identity","threepid_creds":{"sid":%q,"client_secret":"s3cret"}}}`, sid), "/v3/account/password")
	nobody.Must(t, "POST", fmt.Sprintf(`{"type":"m.login.password","identifier":{"type":"m.id.thirdparty","medium":"email","address":%q},"password":"battery staple"}`, address), "/v3/login")
	if n := len(g.Mails(t, address)); n != 2 {
		t.Errorf("%d mails came, want 2", n)
	}
}

// TestMailNeedsTLS shows that a server that is to speak TLS gets nothing without it.
func TestMailNeedsTLS(t *testing.T) {
	box := hstest.StartMailbox(t)
	hs := hstest.Start(t, box.Option(), func(c *homeserver.Config) { c.Email.TLS = "starttls" })
	hs.Anonymous().Must(t, "POST", `{"client_secret":"s","email":"a@example.org","send_attempt":1}`, "/v3/account/password/email/requestToken")
	time.Sleep(300 * time.Millisecond)
	if got := box.Mails(); len(got) != 0 {
		t.Errorf("mail went out in the clear: %+v", got)
	}
}
