package hstest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/testkit"
)

// GreenMail is a real mail server.
type GreenMail map[string]string

// FindGreenMail is the GreenMail that scripts/partners/greenmail has started.
func FindGreenMail(t testing.TB) GreenMail {
	t.Helper()
	return testkit.PartnerValues(t, "MOOTHALL_TEST_GREENMAIL")
}

// Option makes a server send its mail there.
func (g GreenMail) Option(c *homeserver.Config) {
	c.Email = homeserver.Email{
		Server: g["smtp"], TLS: "none", Username: g["user"], Password: homeserver.Secret(g["password"]), From: "Moothall 会议厅 <noreply@example.org>",
	}
}

// Mails are the mails to an address, as they came.
func (g GreenMail) Mails(t testing.TB, address string) []string {
	t.Helper()
	resp, err := http.Get(g["api"] + "/user/" + address + "/messages")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil // nothing has come for the address yet: GreenMail does not know it
	}
	var list []struct {
		MimeMessage string `json:"mimeMessage"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	out := make([]string, len(list))
	for i, m := range list {
		out[i] = m.MimeMessage
	}
	return out
}

// Wait returns the n-th mail to an address, as it came.
func (g GreenMail) Wait(t testing.TB, address string, n int) string {
	t.Helper()
	var mail string
	testkit.Eventually(t, fmt.Sprintf("mail %d to %s", n, address), func() bool {
		got := g.Mails(t, address)
		if len(got) >= n {
			mail = got[n-1]
		}
		return len(got) >= n
	})
	return mail
}
