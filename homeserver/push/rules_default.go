package push

import (
	"github.com/go-json-experiment/json"
)

// masterRule stands before all rules, also those of users.
const masterRule = ".m.rule.master"

// predefined gives the rules of the specification for one user. Spec: v1.19, "Predefined Rules"; the rules that looked
// for names in bodies are gone since v1.17 (docs/decisions/0130).
func predefined(userID string) (override, underride []Rule) {
	notify := Action{}
	sound := func(s string) Action { return Action{Tweak: "sound", Value: quote(s)} }
	highlight := Action{Tweak: "highlight"}
	match := func(key, pattern string) Condition {
		return Condition{Kind: "event_match", Key: key, Pattern: pattern,
			raw: object("kind", "event_match", "key", key, "pattern", pattern)}
	}
	value := func(kind, key string, value []byte) Condition {
		raw := object("kind", kind, "key", key)
		raw = append(raw[:len(raw)-1], `,"value":`...)
		return Condition{Kind: kind, Key: key, Value: value, raw: append(append(raw, value...), '}')}
	}
	two := Condition{Kind: "room_member_count", Is: "2", raw: object("kind", "room_member_count", "is", "2")}
	mayNotify := Condition{Kind: "sender_notification_permission", Key: "room",
		raw: object("kind", "sender_notification_permission", "key", "room")}
	rule := func(id string, actions []Action, conds ...Condition) Rule {
		if conds == nil {
			conds = []Condition{}
		}
		return Rule{ID: id, Default: true, Enabled: id != masterRule, Actions: actions, Conditions: conds}
	}
	silent := []Action{}
	override = []Rule{
		rule(masterRule, silent),
		rule(".m.rule.suppress_notices", silent, match("content.msgtype", "m.notice")),
		rule(".m.rule.invite_for_me", []Action{notify, sound("default")},
			match("type", "m.room.member"), match("content.membership", "invite"), match("state_key", userID)),
		rule(".m.rule.member_event", silent, match("type", "m.room.member")),
		rule(".m.rule.is_user_mention", []Action{notify, sound("default"), highlight},
			value("event_property_contains", `content.m\.mentions.user_ids`, quote(userID))),
		rule(".m.rule.is_room_mention", []Action{notify, highlight},
			value("event_property_is", `content.m\.mentions.room`, []byte("true")), mayNotify),
		rule(".m.rule.tombstone", []Action{notify, highlight}, match("type", "m.room.tombstone"), match("state_key", "")),
		rule(".m.rule.reaction", silent, match("type", "m.reaction")),
		rule(".m.rule.room.server_acl", silent, match("type", "m.room.server_acl"), match("state_key", "")),
		rule(".m.rule.suppress_edits", silent,
			value("event_property_is", `content.m\.relates_to.rel_type`, []byte(`"m.replace"`))),
	}
	underride = []Rule{
		rule(".m.rule.call", []Action{notify, sound("ring")}, match("type", "m.call.invite")),
		rule(".m.rule.encrypted_room_one_to_one", []Action{notify, sound("default")}, two, match("type", "m.room.encrypted")),
		rule(".m.rule.room_one_to_one", []Action{notify, sound("default")}, two, match("type", "m.room.message")),
		rule(".m.rule.message", []Action{notify}, match("type", "m.room.message")),
		rule(".m.rule.encrypted", []Action{notify}, match("type", "m.room.encrypted")),
	}
	return override, underride
}

// quote is s as a JSON string.
func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		return []byte(`""`) // invalid UTF-8 cannot come here: user ids are checked at the edge
	}
	return b
}

// object renders pairs of names and string values.
func object(pairs ...string) []byte {
	b := []byte{'{'}
	for i := 0; i < len(pairs); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(append(b, quote(pairs[i])...), ':'), quote(pairs[i+1])...)
	}
	return append(b, '}')
}
