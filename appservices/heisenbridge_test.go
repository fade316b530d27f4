package appservices_test

import (
	"bufio"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/tests/process"
)

// irc is somebody on the IRC server.
type irc struct {
	net.Conn
	mu    sync.Mutex
	lines []string
}

func dialIRC(t *testing.T, port int, nick string) *irc {
	t.Helper()
	var c *irc
	testkit.Eventually(t, "the IRC server", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			return false
		}
		c = &irc{Conn: conn}
		return true
	})
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		for sc := bufio.NewScanner(c); sc.Scan(); {
			if rest, ok := strings.CutPrefix(sc.Text(), "PING "); ok {
				c.say("PONG " + rest)
			}
			c.mu.Lock()
			c.lines = append(c.lines, sc.Text())
			c.mu.Unlock()
		}
	}()
	c.say("NICK " + nick)
	c.say("USER " + nick + " 0 * :" + nick)
	c.await(t, " 001 ")
	return c
}

func (c *irc) say(line string) { _, _ = fmt.Fprintf(c, "%s\r\n", line) } // a lost connection shows where its effect is awaited

func (c *irc) heard(part string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Contains(strings.Join(c.lines, "\n"), part)
}

func (c *irc) await(t *testing.T, part string) {
	t.Helper()
	testkit.Eventually(t, "on IRC: "+part, func() bool { return c.heard(part) })
}

// TestHeisenbridge lets somebody here talk with somebody on IRC through a bridge that nobody here wrote.
func TestHeisenbridge(t *testing.T) {
	command, ngircd := testkit.Partner(t, "MOOTHALL_TEST_HEISENBRIDGE"), testkit.Partner(t, "MOOTHALL_TEST_NGIRCD")
	t.Run("sqlite", func(t *testing.T) { testHeisenbridge(t, command, ngircd) })
	t.Run("postgres", func(t *testing.T) { testHeisenbridge(t, command, ngircd, hstest.Postgres(storetest.Postgres(t))) })
}

func testHeisenbridge(t *testing.T, command, ngircd string, options ...hstest.Option) {
	t.Parallel() // each has an IRC server of its own
	hstestDir := t.TempDir()
	bridge, port := process.FreePort(t), process.FreePort(t)
	file := write(t, hstestDir, "irc.yaml", fmt.Sprintf(`id: heisenbridge
url: http://127.0.0.1:%d
as_token: as-token-heisenbridge
hs_token: hs-token-heisenbridge
sender_localpart: heisenbridge
rate_limited: false
namespaces:
  users:
    - {regex: "@irc_.*", exclusive: true}
  aliases: []
  rooms: []
`, bridge))
	conf := write(t, hstestDir, "ngircd.conf", fmt.Sprintf("[Global]\nName = irc.test.example\nInfo = Test\nListen = 127.0.0.1\nPorts = %d\nMotdPhrase = hi\n[Limits]\nMaxConnectionsIP = 0\n[Options]\nIdent = no\nPAM = no\nDNS = no\n", port))
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	hs := hstest.Start(t, append(options, registered(t, string(text)))...)
	alice := hs.User("alice")
	process.Launch(t, ngircd, "-n", "-f", conf)
	bob := dialIRC(t, port, "bob")
	process.Launch(t, command, "-c", file, "-l", "127.0.0.1", "-p", fmt.Sprint(bridge), "-o", string(alice.UserID), hs.URL)
	bob.say("JOIN #moothall")
	bob.await(t, " 366 ")

	since := ""
	var seen []map[string]any
	t.Cleanup(func() {
		for _, e := range seen {
			if t.Failed() {
				t.Logf("%s %s %s %v", e["room"], e["type"], e["sender"], e["content"])
			}
		}
	})
	look := func(match func(room string, e map[string]any) bool) bool {
		q := "timeout=500"
		if since != "" {
			q += "&since=" + url.QueryEscape(since)
		}
		s := alice.Sync(q)
		since, _ = s["next_batch"].(string)
		joined, _ := hstest.At(s, "rooms", "join").(map[string]any)
		for room, r := range joined {
			for _, part := range []string{"state", "timeline"} {
				list, _ := hstest.At(r, part, "events").([]any)
				for _, e := range list {
					m := e.(map[string]any)
					m["room"] = room
					seen = append(seen, m)
				}
			}
		}
		invites, _ := hstest.At(s, "rooms", "invite").(map[string]any)
		for room := range invites {
			alice.Join(id.RoomID(room))
		}
		for _, e := range seen {
			if match(e["room"].(string), e) {
				return true
			}
		}
		return false
	}
	says := func(text string) func(room string, e map[string]any) bool {
		return func(_ string, e map[string]any) bool {
			body, _ := hstest.At(e, "content", "body").(string)
			return strings.Contains(body, text)
		}
	}
	// the bridge invites its owner into a room where it takes commands
	var control id.RoomID
	testkit.Eventually(t, "the bridge's invitation", func() bool {
		return look(func(room string, e map[string]any) bool {
			control = id.RoomID(room)
			return e["state_key"] == string(alice.UserID) && hstest.At(e, "content", "membership") == "join"
		})
	})
	// The bridge's library handles events side by side: what comes before it knows the room is lost, and commands that come together
	// may overtake each other.
	testkit.Eventually(t, "the network", func() bool {
		alice.Text(control, "ADDNETWORK test")
		return look(says("Network added")) || look(says("Network already exists"))
	})
	alice.Text(control, fmt.Sprintf("ADDSERVER test 127.0.0.1 %d", port))
	testkit.Eventually(t, "the network's server", func() bool { return look(says("Server added")) })
	alice.Text(control, "OPEN test")
	var network id.RoomID
	testkit.Eventually(t, "a room for the network", func() bool {
		return look(func(room string, e map[string]any) bool {
			if room == string(control) || e["sender"] == string(alice.UserID) {
				return false
			}
			network = id.RoomID(room)
			return true
		})
	})
	alice.Text(network, "NICK alice")
	alice.Text(network, "CONNECT")
	testkit.Eventually(t, "connecting", func() bool { return look(says("Connecting to")) })
	testkit.Eventually(t, "alice on IRC", func() bool {
		bob.say("ISON alice")
		time.Sleep(100 * time.Millisecond)
		return bob.heard(" 303 bob :alice")
	})
	alice.Text(network, "JOIN #moothall")
	bob.await(t, "JOIN :#moothall")
	var channel id.RoomID
	testkit.Eventually(t, "a message from IRC", func() bool {
		bob.say("PRIVMSG #moothall :hello from IRC") // the first ones may come before the room is there
		return look(func(room string, e map[string]any) bool {
			body, _ := hstest.At(e, "content", "body").(string)
			if !strings.Contains(body, "hello from IRC") || !strings.HasPrefix(fmt.Sprint(e["sender"]), "@irc_") {
				return false
			}
			channel = id.RoomID(room)
			return true
		})
	})
	alice.Text(channel, "hello from Matrix")
	bob.await(t, "hello from Matrix")
}
