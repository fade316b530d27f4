package federation

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"
)

// place is where a server is reached.
type place struct {
	base   string // https://host:port; its host is what the certificate must name
	host   string // the Host header; "": that of base
	dial   string // host:port to connect to in place of that; "": none
	client *http.Client
}

// Times for which it is remembered where a server is. Spec: server-server API, "Resolving server names".
const (
	keepFound   = time.Hour
	keepMissing = 5 * time.Minute
	mostFound   = 1000
)

type foundServer struct {
	at    place
	err   error
	until time.Time
}

// foundServers remembers where servers are.
type foundServers struct {
	mu sync.Mutex
	m  map[string]foundServer
}

func (f *foundServers) get(server string) (foundServer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.m[server]
	return s, ok && time.Now().Before(s.until)
}

func (f *foundServers) put(server string, s foundServer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil || len(f.m) >= mostFound { // users name servers: the memory must end somewhere
		f.m = map[string]foundServer{}
	}
	f.m[server] = s
}

// resolve finds where a server is reached.
func (c *Client) resolve(ctx context.Context, server string) (place, error) {
	if address, ok := c.d.Servers[server]; ok {
		b, err := base(address)
		return place{base: b, client: c.d.Trusted}, err
	}
	if s, ok := c.found.get(server); ok {
		return s.at, s.err
	}
	s := foundServer{until: time.Now().Add(keepFound)}
	s.at, s.err = c.look(ctx, server, true)
	if s.err != nil {
		if ctx.Err() != nil {
			return place{}, s.err
		}
		s.until = time.Now().Add(keepMissing)
	}
	c.found.put(server, s)
	return s.at, s.err
}

// look follows the steps of the specification; delegate tells whether the server may name another one.
func (c *Client) look(ctx context.Context, server string, delegate bool) (place, error) {
	host, port, err := splitServerName(server)
	if err != nil {
		return place{}, err
	}
	usual := place{base: "https://" + host + ":8448", host: host, client: c.d.Client}
	if port != "" {
		return place{base: "https://" + host + ":" + port, client: c.d.Client}, nil
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return usual, nil
	}
	if delegate {
		if next := c.wellKnown(ctx, host); next != "" {
			return c.look(ctx, next, false)
		}
	}
	for _, service := range []string{"matrix-fed", "matrix"} {
		found, err := c.d.LookupSRV(ctx, service, host)
		if err == nil && len(found) > 0 {
			dial := net.JoinHostPort(strings.TrimSuffix(found[0].Target, "."), strconv.Itoa(int(found[0].Port)))
			return place{base: "https://" + host, dial: dial, client: c.d.Client}, nil
		}
	}
	return usual, nil
}

// wellKnown asks a host where its server is; "" where it does not say. Spec: GET /.well-known/matrix/server: whatever is wrong
// with the answer, it goes on as if there were none.
func (c *Client) wellKnown(ctx context.Context, host string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/matrix/server", nil)
	if err != nil {
		return ""
	}
	resp, err := c.d.Client.Do(req)
	if err != nil {
		return ""
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	if err != nil || resp.StatusCode != http.StatusOK || !gjson.ValidBytes(body) {
		return ""
	}
	next := gjson.GetBytes(body, `m\.server`).Str
	if _, _, err := splitServerName(next); err != nil {
		return ""
	}
	return next
}

// splitServerName parts a server name. Spec: appendices, "Server Name".
func splitServerName(server string) (host, port string, err error) {
	host = server
	if i := strings.LastIndexByte(server, ':'); i >= 0 && !strings.HasSuffix(server, "]") {
		host, port = server[:i], server[i+1:]
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return "", "", fmt.Errorf("%q is no server name: its port is wrong", server)
		}
	}
	for i := 0; i < len(host); i++ {
		ch := host[i]
		letter := ch >= 'a' && ch <= 'z' || ch >= 'A' && ch <= 'Z' || ch >= '0' && ch <= '9'
		if !letter && ch != '-' && ch != '.' && (host[0] != '[' || ch != '[' && ch != ']' && ch != ':') {
			return "", "", fmt.Errorf("%q is no server name", server)
		}
	}
	if host == "" || len(server) > 230 {
		return "", "", fmt.Errorf("%q is no server name", server)
	}
	return host, port, nil
}
