package web

import (
	"net/http"
	"net/netip"
	"strings"
)

// ClientIP is the address the request came from. X-Forwarded-For counts only as far as the configured proxies vouch
// for it. The zero Addr means that it is unknown (a Unix socket).
func ClientIP(r *http.Request) netip.Addr {
	if q := stateOf(r); q != nil {
		return q.ip
	}
	return peerIP(r)
}

func peerIP(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// clientIP walks X-Forwarded-For from its end, which the nearest proxy wrote, and stops at the first address that is
// not a trusted proxy: what stands before it could be anybody's invention.
func clientIP(r *http.Request, trusted []netip.Prefix) netip.Addr {
	ip := peerIP(r)
	if len(trusted) == 0 || !contains(trusted, ip) {
		return ip
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		rest := lines[i]
		for rest != "" {
			entry := rest
			if cut := strings.LastIndexByte(rest, ','); cut >= 0 {
				rest, entry = rest[:cut], rest[cut+1:]
			} else {
				rest = ""
			}
			next, ok := forwardedAddr(strings.TrimSpace(entry))
			if !ok {
				return ip
			}
			ip = next
			if !contains(trusted, ip) {
				return ip
			}
		}
	}
	return ip
}

// forwardedAddr reads an address as proxies write it: bare, with a port, or in brackets.
func forwardedAddr(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func contains(prefixes []netip.Prefix, ip netip.Addr) bool {
	for _, p := range prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
