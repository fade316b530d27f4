package homeserver_test

import (
	"context"
	"net"
	"os"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// coturnEnv says where a coturn runs, as scripts/partners/coturn prints it.
const coturnEnv = "MOOTHALL_TEST_COTURN"

// TestCoturn takes the credentials that a client gets to a real TURN server, whose own client relays packets with them.
func TestCoturn(t *testing.T) {
	line := os.Getenv(coturnEnv)
	if line == "" {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is not set: ./scripts/test starts coturn", coturnEnv)
		}
		t.Skipf("%s is not set", coturnEnv)
	}
	at := map[string]string{}
	for _, pair := range strings.Fields(line) {
		k, v, _ := strings.Cut(pair, "=")
		at[k] = v
	}
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
