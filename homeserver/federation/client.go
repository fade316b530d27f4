// Package federation is what this server asks of others. Today these are the policy servers of rooms; it answers nobody yet.
package federation

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
)

const (
	askTime     = 10 * time.Second // for one request
	answerBytes = 64 << 10         // of an answer that are read
)

// Deps is what a Client works with.
type Deps struct {
	ServerName string
	Key        event.SigningKey
	Logger     *slog.Logger
	Client     *http.Client // for servers that users name: it reaches public addresses only
	Trusted    *http.Client // for those that the configuration names
	// DialAt makes a request of Client connect to another address than its URL's.
	DialAt func(ctx context.Context, address string) context.Context
	// LookupSRV finds the SRV records of a service over TCP; nil: those of the system's resolver.
	LookupSRV func(ctx context.Context, service, host string) ([]*net.SRV, error)
	// Servers gives the base URL of servers that are not looked for.
	Servers map[string]string
}

// Client makes requests to other servers in the name of this one. It is safe for concurrent use.
type Client struct {
	d     Deps
	found foundServers
}

// New makes a Client.
func New(d Deps) *Client {
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.LookupSRV == nil {
		d.LookupSRV = func(ctx context.Context, service, host string) ([]*net.SRV, error) {
			_, found, err := net.DefaultResolver.LookupSRV(ctx, service, "tcp", host)
			return found, err
		}
	}
	return &Client{d: d}
}

// Sign asks a policy server to sign an event and gives the signatures object it answers with. What the server refuses is an
// error with its words; M_UNKNOWN with 504 says that it could not be asked.
// Spec: server-server API, POST /_matrix/policy/v1/sign.
func (c *Client) Sign(ctx context.Context, server string, pdu []byte) ([]byte, error) {
	status, body, err := c.post(ctx, server, "/_matrix/policy/v1/sign", pdu)
	if err != nil {
		c.d.Logger.Info("a policy server cannot be asked", "server", server, "error", err)
		return nil, mxerr.New(http.StatusGatewayTimeout, "M_UNKNOWN", "the policy server of this room, "+server+", cannot be reached: nothing can be sent for now")
	}
	if status == http.StatusOK {
		return body, nil
	}
	code, text := gjson.GetBytes(body, "errcode"), gjson.GetBytes(body, "error")
	if status < 400 || code.Type != gjson.String || !gjson.ValidBytes(body) {
		c.d.Logger.Info("a policy server gives a strange answer", "server", server, "status", status)
		return nil, mxerr.New(http.StatusGatewayTimeout, "M_UNKNOWN", "the policy server of this room, "+server+", gives a strange answer: nothing can be sent for now")
	}
	// Spec: "that error SHOULD be provided to the client verbatim". A 401 is about this server, not about the client's token.
	if status == http.StatusUnauthorized {
		status = http.StatusForbidden
	}
	refused := mxerr.New(status, code.Str, text.String())
	if wait := gjson.GetBytes(body, "retry_after_ms"); wait.Type == gjson.Number {
		refused = refused.With("retry_after_ms", wait.Int())
	}
	return nil, refused
}

// post sends a signed request. Spec: server-server API, "Request Authentication".
func (c *Client) post(ctx context.Context, server, path string, content []byte) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	to, err := c.resolve(ctx, server)
	if err != nil {
		return 0, nil, err
	}
	if to.dial != "" {
		ctx = c.d.DialAt(ctx, to.dial)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.base+path, bytes.NewReader(content))
	if err != nil {
		return 0, nil, err
	}
	auth, err := c.authorization(server, req.Method, path, content)
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", auth)
	req.Header.Set("Content-Type", "application/json")
	req.Host = to.host
	resp, err := to.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytes))
	return resp.StatusCode, body, err
}

// authorization is the header that proves who asks.
func (c *Client) authorization(destination, method, uri string, content []byte) (string, error) {
	unsigned, err := json.Marshal(map[string]any{
		"method": method, "uri": uri, "origin": c.d.ServerName, "destination": destination, "content": jsontext.Value(content),
	})
	if err != nil {
		return "", err
	}
	signed, err := event.SignJSON(unsigned, c.d.ServerName, c.d.Key)
	if err != nil {
		return "", err
	}
	var out struct {
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := json.Unmarshal(signed, &out); err != nil {
		return "", err
	}
	return fmt.Sprintf(`X-Matrix origin="%s",destination="%s",key="%s",sig="%s"`,
		c.d.ServerName, destination, c.d.Key.KeyID, out.Signatures[c.d.ServerName][c.d.Key.KeyID]), nil
}

// base reads a URL of the configuration.
func base(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q is no URL", address)
	}
	return u.Scheme + "://" + u.Host, nil
}
