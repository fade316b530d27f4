package event

import "slices"

// Redact gives the PDU as it stands after redaction by the rules of the version, as canonical JSON. Signatures and hashes stay, unsigned
// goes. Source: room version pages, "Redactions".
func (v *Version) Redact(pdu []byte) ([]byte, error) {
	js, err := canonicalObject(pdu, v.StrictJSON, "an event")
	if err != nil {
		return nil, err
	}
	return v.appendRedacted(make([]byte, 0, len(js)), js, ""), nil
}

// RedactContent gives the content of an event of a type as it stands after redaction, as canonical JSON.
func (v *Version) RedactContent(eventType string, content []byte) ([]byte, error) {
	js, err := canonicalObject(content, v.StrictJSON, "content")
	if err != nil {
		return nil, err
	}
	return v.appendRedactedContent(make([]byte, 0, len(js)), eventType, js), nil
}

// keepsProperty tells whether a top-level property survives redaction.
func (v *Version) keepsProperty(key []byte) bool {
	switch string(key) {
	case "event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events", "auth_events",
		"origin_server_ts":
		return true
	case "prev_state", "origin", "membership":
		return !v.ModernRedaction
	}
	return false
}

// appendRedacted appends the redacted form of a canonical PDU. The property named without is left out too: the signatures, where the
// bytes are to be signed or hashed.
func (v *Version) appendRedacted(dst, pdu []byte, without string) []byte {
	evType := getString(pdu, "type")
	dst = append(dst, '{')
	for key, value := range members(pdu) {
		if !v.keepsProperty(key) || string(key) == without {
			continue
		}
		dst = append(dst, '"')
		dst = append(dst, key...)
		dst = append(dst, '"', ':')
		if string(key) == "content" && isObject(value) {
			dst = v.appendRedactedContent(dst, evType, value)
		} else {
			dst = append(dst, value...)
		}
		dst = append(dst, ',')
	}
	return closeObject(dst)
}

// closeObject ends an object whose members were each written with a comma behind them.
func closeObject(dst []byte) []byte {
	if dst[len(dst)-1] == ',' {
		dst[len(dst)-1] = '}'
		return dst
	}
	return append(dst, '}')
}

// The content keys that survive redaction, by event type.
var (
	keepMember       = []string{"membership"}
	keepMember9      = []string{"join_authorised_via_users_server", "membership"}
	keepMember11     = []string{"join_authorised_via_users_server", "membership", "third_party_invite"}
	keepCreate       = []string{"creator"}
	keepJoinRules    = []string{"join_rule"}
	keepJoinRules8   = []string{"allow", "join_rule"}
	keepPowerLevels  = []string{"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
	keepPowerLevel11 = []string{"ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default"}
	keepAliases      = []string{"aliases"}
	keepVisibility   = []string{"history_visibility"}
	keepRedaction11  = []string{"redacts"}
)

// keepsContent lists the content keys that survive redaction; all is true for the one type that keeps everything.
func (v *Version) keepsContent(evType string) (keys []string, all bool) {
	switch evType {
	case typeMember:
		switch {
		case v.ModernRedaction:
			return keepMember11, false
		case v.KeepJoinAuthorised:
			return keepMember9, false
		}
		return keepMember, false
	case typeCreate:
		return keepCreate, v.ModernRedaction
	case typeJoinRules:
		if v.Restricted {
			return keepJoinRules8, false
		}
		return keepJoinRules, false
	case typePowerLevels:
		if v.ModernRedaction {
			return keepPowerLevel11, false
		}
		return keepPowerLevels, false
	case typeAliases:
		if v.AliasesAuth {
			return keepAliases, false
		}
	case typeHistoryVisibility:
		return keepVisibility, false
	case typeRedaction:
		if v.ModernRedaction {
			return keepRedaction11, false
		}
	}
	return nil, false
}

// appendRedactedContent appends the redacted form of a canonical content object.
func (v *Version) appendRedactedContent(dst []byte, evType string, content []byte) []byte {
	keep, all := v.keepsContent(evType)
	if all {
		return append(dst, content...)
	}
	if len(keep) == 0 {
		return append(dst, '{', '}')
	}
	dst = append(dst, '{')
	for key, value := range members(content) {
		if !slices.Contains(keep, string(key)) {
			continue
		}
		third := string(key) == "third_party_invite"
		if third && !isObject(value) {
			continue // only its signed property could stay
		}
		dst = append(dst, '"')
		dst = append(dst, key...)
		dst = append(dst, '"', ':')
		if third {
			dst = append(dst, '{')
			if signed := get(value, "signed"); signed != nil {
				dst = append(dst, `"signed":`...)
				dst = append(dst, signed...)
			}
			dst = append(dst, '}')
		} else {
			dst = append(dst, value...)
		}
		dst = append(dst, ',')
	}
	return closeObject(dst)
}
