package clientsync_test

import (
	"bytes"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestParkedPolls waits until the server has taken long polls out of net/http; they answer news, a client that goes away is
// noticed, and a device that is signed out hears of it.
func TestParkedPolls(t *testing.T) {
	t.Parallel()
	hs := hstest.Start(t)
	alice, bob := hs.User("alice"), hs.User("bob")
	r := alice.CreateRoom("public_chat")
	bob.Join(r)
	since, _ := bob.Sync("")["next_batch"].(string)
	phone := bob.Login()
	since, _ = bob.Sync("since=" + since)["next_batch"].(string) // the new device was news
	type answer struct {
		status int
		body   string
	}
	// poll polls until there is a message, or an error
	poll := func(c *hstest.Client, request func() (method, path, body string), next func(m map[string]any)) <-chan answer {
		out := make(chan answer, 1)
		go func() {
			for {
				method, path, body := request()
				req, err := http.NewRequest(method, hs.URL+path, strings.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				x := c.Send(t, req)
				if x.Status != http.StatusOK || bytes.Contains(x.Body, []byte("m.room.message")) {
					out <- answer{x.Status, string(x.Body)}
					return
				}
				var m map[string]any // presence, perhaps
				x.JSON(t, &m)
				next(m)
			}
		}()
		return out
	}
	classic := func(c *hstest.Client) <-chan answer {
		since := since
		return poll(c, func() (string, string, string) {
			return "GET", "/_matrix/client/v3/sync?timeout=60000&set_presence=offline&since=" + since, ""
		}, func(m map[string]any) { since, _ = m["next_batch"].(string) })
	}
	pos := ""
	sliding := poll(alice, func() (string, string, string) {
		return "POST", "/_matrix/client/v4/sync", `{"timeout":60000,"set_presence":"offline","pos":"` + pos + `","lists":{"all":{"ranges":[[0,9]],"timeline_limit":1,"required_state":{}}}}`
	}, func(m map[string]any) { pos, _ = m["pos"].(string) })
	news, ended := classic(bob), classic(phone)
	testkit.Eventually(t, "three polls are parked", func() bool { return parked() == 3 })
	phone.Must(t, "POST", "{}", "/v3/logout")
	if x := <-ended; x.status != http.StatusUnauthorized {
		t.Errorf("the poll of a device that was signed out: %d %s", x.status, x.body)
	}
	event := bob.Text(r, "late")
	for i, ch := range []<-chan answer{sliding, news} {
		if x := <-ch; x.status != http.StatusOK || !strings.Contains(x.body, string(event)) {
			t.Errorf("poll %d does not have the message: %d %s", i, x.status, x.body)
		}
	}
	testkit.Eventually(t, "no poll is parked any more", func() bool { return parked() == 0 })
	bob.Must(t, "GET", "", "/v3/account/whoami")
}

// parked counts the requests that wait outside of net/http in this process.
func parked() int {
	buf := make([]byte, 4<<20)
	return bytes.Count(buf[:runtime.Stack(buf, true)], []byte("web.(*Parked).wait("))
}
