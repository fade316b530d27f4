package federation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/federation"
)

// internet is a world of hosts behind one listener, with an authority that certifies each name.
type internet struct {
	t     *testing.T
	key   *ecdsa.PrivateKey
	ca    *x509.Certificate
	roots *x509.CertPool
	at    string // where the listener is

	srv   map[string][]*net.SRV // by _service.host
	known map[string]string     // bodies of /.well-known/matrix/server, by host
	certs map[string]string     // the name that the certificate of an address has, where it is not the one asked for

	mu     sync.Mutex
	dialed []string
	asked  []string // "name in TLS, Host header" of the requests that were not for .well-known
}

func newInternet(t *testing.T) *internet {
	t.Helper()
	w := &internet{t: t, roots: x509.NewCertPool()}
	var err error
	if w.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	w.ca = w.certificate(&x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	w.roots.AddCert(w.ca)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	srv.TLS = &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		return &tls.Config{Certificates: []tls.Certificate{w.named(h.ServerName)}, MinVersion: tls.VersionTLS12}, nil
	}}
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError) // one case has a wrong certificate
	srv.StartTLS()
	t.Cleanup(srv.Close)
	w.at = srv.Listener.Addr().String()
	return w
}

func (w *internet) certificate(c *x509.Certificate) *x509.Certificate {
	w.t.Helper()
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := w.ca
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &w.key.PublicKey, w.key)
	if err != nil {
		w.t.Error(err)
		return nil
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		w.t.Error(err)
	}
	return out
}

// named is the certificate that a host shows; without a name in TLS, as for addresses, that of 192.0.2.7.
func (w *internet) named(name string) tls.Certificate {
	c := &x509.Certificate{SerialNumber: big.NewInt(2), DNSNames: []string{name}}
	if other := w.certs[name]; other != "" {
		c.DNSNames = []string{other}
	}
	if name == "" {
		c.DNSNames, c.IPAddresses = nil, []net.IP{net.ParseIP("192.0.2.7")}
	}
	return tls.Certificate{Certificate: [][]byte{w.certificate(c).Raw}, PrivateKey: w.key}
}

func (w *internet) serve(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/.well-known/matrix/server" {
		body, ok := w.known[r.Host]
		if to, moved := strings.CutPrefix(body, "see "); moved {
			http.Redirect(rw, r, to, http.StatusFound)
			return
		}
		if !ok {
			rw.WriteHeader(http.StatusNotFound)
		}
		_, _ = fmt.Fprint(rw, body)
		return
	}
	w.mu.Lock()
	w.asked = append(w.asked, r.TLS.ServerName+", "+r.Host)
	w.mu.Unlock()
	_, _ = fmt.Fprint(rw, `{"ok":true}`)
}

type otherAddress struct{}

// client makes requests in this world.
func (w *internet) client() *federation.Client {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if other, ok := ctx.Value(otherAddress{}).(string); ok {
				addr = other
			}
			w.mu.Lock()
			w.dialed = append(w.dialed, addr)
			w.mu.Unlock()
			return (&net.Dialer{}).DialContext(ctx, network, w.at)
		},
	}
	return federation.New(federation.Deps{
		ServerName: "here.example", Key: event.SigningKey{KeyID: "ed25519:1", Private: key}, Logger: slog.New(slog.DiscardHandler),
		Client: &http.Client{Transport: transport},
		DialAt: func(ctx context.Context, address string) context.Context {
			return context.WithValue(ctx, otherAddress{}, address)
		},
		LookupSRV: func(_ context.Context, service, host string) ([]*net.SRV, error) {
			if found := w.srv[service+"."+host]; found != nil {
				return found, nil
			}
			return nil, errors.New("no such records")
		},
	})
}

// TestDiscovery finds servers in each of the ways that the specification has, and speaks with them under the right name.
// Spec: server-server API, "Resolving server names".
func TestDiscovery(t *testing.T) {
	w := newInternet(t)
	w.known = map[string]string{
		"port.example":      `{"m.server":"matrix.port.example:443"}`,
		"name.example":      `{"m.server":"matrix.name.example"}`,
		"records.example":   `{"m.server":"matrix.records.example"}`,
		"address.example":   `{"m.server":"192.0.2.7"}`,
		"moved.example":     "see https://www.moved.example/.well-known/matrix/server",
		"www.moved.example": `{"m.server":"matrix.moved.example:8443"}`,
		"chain.example":     `{"m.server":"port.example"}`,
		"broken.example":    `{"m.server":`,
		"strange.example":   `{"m.server":"no name/at all"}`,
		"number.example":    `{"m.server":7}`,
	}
	w.srv = map[string][]*net.SRV{
		"matrix-fed.matrix.records.example": {{Target: "a.hosting.example.", Port: 8444}},
		"matrix-fed.srv.example":            {{Target: "b.hosting.example.", Port: 8445}},
		"matrix.srv.example":                {{Target: "wrong.example.", Port: 1}},
		"matrix.old.example":                {{Target: "c.hosting.example.", Port: 8446}},
		"matrix-fed.broken.example":         {{Target: "d.hosting.example.", Port: 8447}},
	}
	w.certs = map[string]string{"forged.example": "another.example"}
	for _, tc := range []struct {
		server string
		dialed string // the address of the request itself
		asked  string
	}{
		{"192.0.2.7", "192.0.2.7:8448", ", 192.0.2.7"},
		{"192.0.2.7:8449", "192.0.2.7:8449", ", 192.0.2.7:8449"},
		{"exact.example:8450", "exact.example:8450", "exact.example, exact.example:8450"},
		{"port.example", "matrix.port.example:443", "matrix.port.example, matrix.port.example:443"},
		{"name.example", "matrix.name.example:8448", "matrix.name.example, matrix.name.example"},
		{"records.example", "a.hosting.example:8444", "matrix.records.example, matrix.records.example"},
		{"address.example", "192.0.2.7:8448", ", 192.0.2.7"},
		{"moved.example", "matrix.moved.example:8443", "matrix.moved.example, matrix.moved.example:8443"},
		{"chain.example", "port.example:8448", "port.example, port.example"}, // who was named is not asked again
		{"srv.example", "b.hosting.example:8445", "srv.example, srv.example"},
		{"old.example", "c.hosting.example:8446", "old.example, old.example"},
		{"plain.example", "plain.example:8448", "plain.example, plain.example"},
		{"broken.example", "d.hosting.example:8447", "broken.example, broken.example"},
		{"strange.example", "strange.example:8448", "strange.example, strange.example"},
		{"number.example", "number.example:8448", "number.example, number.example"},
		{"forged.example", "forged.example:8448", ""},
		{"no name", "", ""},
	} {
		t.Run(tc.server, func(t *testing.T) {
			w.mu.Lock()
			w.dialed, w.asked = nil, nil
			w.mu.Unlock()
			_, err := w.client().Sign(t.Context(), tc.server, []byte(`{}`))
			w.mu.Lock()
			defer w.mu.Unlock()
			if (err == nil) != (tc.asked != "") {
				t.Errorf("the answer is %v", err)
			}
			last := ""
			if len(w.dialed) > 0 {
				last = w.dialed[len(w.dialed)-1]
			}
			if last != tc.dialed {
				t.Errorf("it went to %v, not %s", w.dialed, tc.dialed)
			}
			if tc.asked != "" && !slices.Equal(w.asked, []string{tc.asked}) {
				t.Errorf("it asked %q, not %q", w.asked, tc.asked)
			}
		})
	}
}

// TestDiscoveryIsRemembered asks for the place of a server once.
func TestDiscoveryIsRemembered(t *testing.T) {
	w := newInternet(t)
	w.known = map[string]string{"port.example": `{"m.server":"matrix.port.example:443"}`}
	c := w.client()
	for range 3 {
		if _, err := c.Sign(t.Context(), "port.example", []byte(`{}`)); err != nil {
			t.Fatal(err)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if want := []string{"port.example:443", "matrix.port.example:443", "matrix.port.example:443", "matrix.port.example:443"}; !slices.Equal(w.dialed, want) {
		t.Errorf("it went to %v", w.dialed)
	}
}
