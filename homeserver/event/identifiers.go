package event

import (
	"net/netip"
	"strings"

	"maunium.net/go/mautrix/id"
)

// maxIDLength is the limit, in bytes, of identifiers, event types and state keys.
// Spec: client-server API, "Size limits".
const maxIDLength = 255

// domainOf gives the part behind the first colon of an identifier, "" when there is none.
func domainOf(identifier string) string {
	_, domain, _ := strings.Cut(identifier, ":")
	return domain
}

// ValidUserID tells whether a user id may stand in an event: @localpart:server_name of at most 255 bytes, where the localpart is
// anything but a colon or U+0000. Servers must go on accepting such ids even though they no longer give them out.
// Spec: appendices, "Historical User IDs".
func ValidUserID(u id.UserID) bool {
	s := string(u)
	if len(s) > maxIDLength || !strings.HasPrefix(s, "@") || strings.IndexByte(s, 0) >= 0 {
		return false
	}
	_, domain, ok := strings.Cut(s, ":")
	return ok && ValidServerName(domain)
}

// ValidServerName tells whether a string is a server name: a DNS name, an IPv4 address or an IPv6 address in brackets, and perhaps a
// port. Spec: appendices, "Server Name".
func ValidServerName(name string) bool {
	if name == "" || len(name) > maxIDLength {
		return false
	}
	host, rest := name, ""
	if name[0] == '[' {
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return false
		}
		host, rest = name[1:end], name[end+1:]
		if addr, err := netip.ParseAddr(host); err != nil || !addr.Is6() || addr.Zone() != "" {
			return false
		}
	} else {
		if i := strings.IndexByte(name, ':'); i >= 0 {
			host, rest = name[:i], name[i:]
		}
		if host == "" {
			return false
		}
		for i := range len(host) {
			c := host[i]
			if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '.' {
				return false
			}
		}
	}
	if rest == "" {
		return true
	}
	port := rest[1:]
	if rest[0] != ':' || len(port) < 1 || len(port) > 5 {
		return false
	}
	for i := range len(port) {
		if port[i] < '0' || port[i] > '9' {
			return false
		}
	}
	return true
}

// validRoomID tells whether a room id has the form of the version: !opaque:server_name, or from version 12 on ! and a hash.
// Spec: appendices, "Room IDs".
func (v *Version) validRoomID(r id.RoomID) bool {
	s := string(r)
	if len(s) > maxIDLength || !strings.HasPrefix(s, "!") || strings.IndexByte(s, 0) >= 0 {
		return false
	}
	if v.RoomIDIsCreateHash {
		return validHashID(s)
	}
	_, domain, ok := strings.Cut(s, ":")
	return ok && domain != ""
}

// validEventID tells whether a string may be an event id in prev_events and auth_events. From version 3 on a real one is a hash; a
// made-up one names no event, which whoever looks it up finds out.
func validEventID(e string) bool {
	return len(e) <= maxIDLength && strings.HasPrefix(e, "$") && strings.IndexByte(e, 0) < 0
}

// hashLength is the length of a SHA-256 hash in unpadded base64.
const hashLength = 43

func validHashID(s string) bool {
	if len(s) != 1+hashLength {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
