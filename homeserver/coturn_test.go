package homeserver_test

import (
	"context"
	"net"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// TestCoturn takes the credentials that a client gets to a real TURN server, whose own client relays packets with them.
func TestCoturn(t *testing.T) {
	at := testkit.PartnerValues(t, "MOOTHALL_TEST_COTURN")
	hs := hstest.Start(t, func(c *homeserver.Config) {
		c.TURN.URIs = []string{"turn:" + at["address"] + "?transport=udp"}
		c.TURN.SharedSecret = homeserver.Secret(at["secret"])
	})
	got := hs.User("alice").Must(t, "GET", "", "/v3/voip/turnServer")
	uri, _ := hstest.At(got, "uris", 0).(string)
	address, _, _ := strings.Cut(strings.TrimPrefix(uri, "turn:"), "?")
	username, _ := got["username"].(string)
	password, _ := got["password"].(string)
	if !strings.HasSuffix(username, ":@alice:test") || password == "" {
		t.Fatalf("the credentials are %v", got)
	}
	if out := relay(t, address, username, password); !strings.Contains(out, "Total lost packets 0 ") {
		t.Errorf("nothing was relayed:\n%s", out)
	}
	if out := relay(t, address, strings.Replace(username, "alice", "bob", 1), password); !strings.Contains(out, "Cannot complete Allocation") {
		t.Errorf("another's credentials were taken:\n%s", out)
	}
}

// relay has two clients allocate relays and send packets to each other.
func relay(t *testing.T, address, username, password string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	// The exit code says nothing of what went wrong, so what is printed counts.
	out, _ := osexec.CommandContext(ctx, "turnutils_uclient", "-y", "-c", "-n", "2", "-m", "2", "-u", username, "-w", password, "-p", port, host).CombinedOutput()
	return string(out)
}
