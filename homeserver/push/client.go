package push

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// ClientConfig says how this server reaches services outside.
type ClientConfig struct {
	// Proxy is the address of the proxy, http(s)://host:port; empty: HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment.
	Proxy string
	// RootCAs are the certificates to trust; nil: the system's.
	RootCAs *x509.CertPool
	// AllowPrivate lists address ranges that may be reached although they are private.
	AllowPrivate []netip.Prefix
	// Timeout bounds a whole exchange; 0 means 15 s.
	Timeout time.Duration
}

// ErrPrivateAddress is in the chain of the error of a request to an address that is not public.
var ErrPrivateAddress = errors.New("the address is not a public one")

// NewClient makes a client for URLs that users choose (push gateways, previews). It connects to public addresses only: the
// address is checked when the connection is made, so that neither a name that resolves differently the second time nor a
// redirect gets around it. With a proxy the connection goes to that; there the target is checked as far as it resolves here.
func NewClient(cfg ClientConfig) (*http.Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	proxy := http.ProxyFromEnvironment
	if cfg.Proxy != "" {
		u, err := url.Parse(cfg.Proxy)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("the proxy %q is no URL with a host", cfg.Proxy)
		}
		proxy = http.ProxyURL(u)
	}
	g := guard{allow: cfg.AllowPrivate, proxy: proxy}
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	guarded := *dialer
	guarded.Control = g.control
	g.next = &http.Transport{
		Proxy: proxy,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if other, ok := ctx.Value(dialAt{}).(string); ok {
				addr = other
			}
			if ctx.Value(viaProxy{}) != nil {
				return dialer.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		},
		TLSClientConfig:        &tls.Config{RootCAs: cfg.RootCAs, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           512,
		MaxIdleConnsPerHost:    64,
		IdleConnTimeout:        90 * time.Second,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  cfg.Timeout,
		MaxResponseHeaderBytes: 64 << 10,
	}
	return &http.Client{Transport: &g, Timeout: cfg.Timeout}, nil
}

// dialAt marks the context of a request that goes to another address than its URL's.
type dialAt struct{}

// DialAt makes requests of NewClient's clients connect to this host and port, whatever the URL says; the certificate must be
// that of the URL's host. It is for servers that are found by SRV records, and does nothing behind a proxy.
func DialAt(ctx context.Context, address string) context.Context {
	return context.WithValue(ctx, dialAt{}, address)
}

// viaProxy marks the context of a request that goes to a proxy.
type viaProxy struct{}

// guard is the RoundTripper that keeps requests off private addresses.
type guard struct {
	allow []netip.Prefix
	proxy func(*http.Request) (*url.URL, error)
	next  http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "http" && r.URL.Scheme != "https" {
		return nil, fmt.Errorf("scheme %q is not supported", r.URL.Scheme)
	}
	u, err := g.proxy(r)
	if err != nil {
		return nil, err
	}
	if u == nil {
		return g.next.RoundTrip(r)
	}
	host := r.URL.Hostname()
	if addrs, err := net.DefaultResolver.LookupNetIP(r.Context(), "ip", host); err == nil {
		for _, a := range addrs {
			if !g.allowed(a) {
				return nil, fmt.Errorf("%s: %w", host, ErrPrivateAddress)
			}
		}
	}
	return g.next.RoundTrip(r.WithContext(context.WithValue(r.Context(), viaProxy{}, true)))
}

// control runs when a socket is about to connect, with the address that was resolved.
func (g *guard) control(_, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !g.allowed(ap.Addr()) {
		return fmt.Errorf("%s: %w", ap.Addr(), ErrPrivateAddress)
	}
	return nil
}

// allowed tells whether the address is public or explicitly allowed.
func (g *guard) allowed(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range g.allow {
		if p.Contains(a) {
			return true
		}
	}
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || !a.IsValid() {
		return false
	}
	for _, p := range [...]netip.Prefix{ // RFC 6890 and successors
		netip.PrefixFrom(netip.AddrFrom4([4]byte{0}), 8),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 0}), 24),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2}), 24),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 88, 99}), 24),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18}), 15),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100}), 24),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113}), 24),
		netip.PrefixFrom(netip.AddrFrom4([4]byte{240}), 4),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0xc0}), 10), // site-local
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x01}), 64),          // discard
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01}), 23), // Teredo and others
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8}), 32),
		netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x20, 1: 0x02}), 16), // 6to4
		netip.PrefixFrom(netip.AddrFrom16([16]byte{}), 96),                 // IPv4-compatible
	} {
		if p.Contains(a) {
			return false
		}
	}
	if b := a.As16(); a.Is6() && netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0x00, 1: 0x64, 2: 0xff, 3: 0x9b}), 96).Contains(a) {
		return g.allowed(netip.AddrFrom4([4]byte(b[12:16]))) // NAT64: what it leads to
	}
	return true
}
