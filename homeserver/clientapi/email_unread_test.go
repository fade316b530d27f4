package clientapi_test

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

var stopLink = regexp.MustCompile(`https?://[^/\s]+(/_moothall/email/stop\?\S*token=([^&\s]+))`)

// TestUnreadMails sets a pusher of the kind email: unread messages are mailed, many in one mail, and not when all were read.
func TestUnreadMails(t *testing.T) {
	eachWithMail(t, testUnreadMails, func(c *homeserver.Config) { c.Push.MailAfter = homeserver.Duration(700 * time.Millisecond) })
}

func testUnreadMails(t *testing.T, hs *hstest.Server, box *hstest.Mailbox) {
	alice, bob := hs.User("alice"), hs.User("bob")
	const set = "/v3/pushers/set"
	pusher := func(kind, app, address string) string {
		return `{"kind":` + kind + `,"app_id":"` + app + `","pushkey":"` + address + `","app_display_name":"Mail","device_display_name":"Mail","lang":"zh-CN","data":{}}`
	}
	checkAll(t, []refusal{
		{"an address of nobody", alice, "POST", set, nil, pusher(`"email"`, "m.email", "alice@example.org"), 400, "M_THREEPID_NOT_FOUND"},
		{"another app", alice, "POST", set, nil, pusher(`"email"`, "x", "alice@example.org"), 400, "M_INVALID_PARAM"},
	})
	addEmail(t, hs, box, alice, "alice@example.org")
	for len(box.Mails()) > 0 {
		box.Next(t, "alice@example.org")
	}
	alice.Must(t, "POST", pusher(`"email"`, "m.email", "alice@example.org"), set)
	room := bob.CreateRoomWith(`{"preset":"public_chat","name":"Lobby"}`)
	alice.Join(room)
	alice.Must(t, "POST", "{}", "/v3/rooms/%s/receipt/m.read/%s", room, bob.Text(room, "read at once"))
	time.Sleep(1500 * time.Millisecond) // longer than push.mail_after
	if got := box.Mails(); len(got) != 0 {
		t.Errorf("what was read is mailed: %q", got[0].Text)
	}
	bob.Text(room, "one secret")
	bob.Text(room, "two")
	mail := box.Next(t, "alice@example.org")
	if !strings.Contains(mail.Text, "Lobby — @bob:test (2)") || !strings.Contains(mail.Text, "未读") || strings.Contains(mail.Text, "secret") {
		t.Errorf("the mail says %q, %q", mail.Subject, mail.Text)
	}
	link := stopLink.FindStringSubmatch(mail.Text)
	if link == nil || !strings.Contains(mail.Header.Get("List-Unsubscribe"), "/_moothall/email/stop?") {
		t.Fatalf("there is no way to stop the mails: %q", mail.Text)
	}
	get, err := http.Get(hs.URL + link[1])
	if err != nil {
		t.Fatal(err)
	}
	_ = get.Body.Close()
	if n := len(alice.Must(t, "GET", "", "/v3/pushers")["pushers"].([]any)); n != 1 || get.StatusCode != 200 {
		t.Errorf("looking at the page (%d) has changed something: %d pushers", get.StatusCode, n)
	}
	stop := func(token string) {
		resp, err := http.PostForm(hs.URL+"/_moothall/email/stop", url.Values{"token": {token}})
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
	token, err := url.QueryUnescape(link[2])
	if err != nil {
		t.Fatal(err)
	}
	stop(strings.Replace(token, ".", ".x", 1))
	if n := len(alice.Must(t, "GET", "", "/v3/pushers")["pushers"].([]any)); n != 1 {
		t.Error("a forged link stopped the mails")
	}
	stop(token)
	if n := len(alice.Must(t, "GET", "", "/v3/pushers")["pushers"].([]any)); n != 0 {
		t.Error("the mails go on")
	}
}
