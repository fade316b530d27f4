package push

import (
	"strconv"
	"unsafe"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"
)

// EventView is an event as rules look at it. Content is the raw JSON object; it must not change while it is looked at.
type EventView struct {
	ID, RoomID, Sender, Type string
	StateKey                 *string
	Thread                   string // as in Features
	OriginServerTS           int64
	Content                  []byte
}

// RoomContext is what the rules of one user need of a room.
type RoomContext struct {
	UserID      string
	RoomID      string
	DisplayName string // the user's in this room; "" if there is none
	MemberCount int64  // joined members
	// SenderLevel and RoomNotifyLevel are the sender's power level and the one that notifications.room asks for (50 by
	// default).
	SenderLevel     int64
	RoomNotifyLevel int64
	// NotifyLevel gives the level of other keys of "notifications"; nil: 50 for all.
	NotifyLevel func(key string) int64
	// Thread is how the user stands to the event's thread; needed where Compiled.NeedsThread.
	Thread ThreadState
}

type op uint8

const (
	opMatch          op = iota // glob on the whole of a string
	opWords                    // glob on words of content.body
	opIs                       // a scalar equals
	opContains                 // an array holds a scalar
	opMentionsUser             // m.mentions.user_ids holds the user
	opStateKeyIsUser           // the state key is the user's id
	opDisplayName
	opMemberCount
	opMayNotify
	opRoom
	opSender
	opThread
)

type topKey uint8

const (
	topContent topKey = iota
	topType
	topSender
	topRoomID
	topStateKey
	topEventID
	topTS
)

// field names the properties of the content of which features know something.
type field uint8

const (
	fieldUnknown field = iota
	fieldBody
	fieldMsgtype
	fieldMembership
	fieldRelType
	fieldRoomMention
	fieldMentions
)

func fieldOf(path []string) field {
	switch {
	case len(path) == 1 && path[0] == "body":
		return fieldBody
	case len(path) == 1 && path[0] == "msgtype":
		return fieldMsgtype
	case len(path) == 1 && path[0] == "membership":
		return fieldMembership
	case len(path) == 2 && path[0] == "m.relates_to" && path[1] == "rel_type":
		return fieldRelType
	case len(path) == 2 && path[0] == "m.mentions" && path[1] == "room":
		return fieldRoomMention
	case len(path) == 2 && path[0] == "m.mentions" && path[1] == "user_ids":
		return fieldMentions
	}
	return fieldUnknown
}

type condition struct {
	op     op
	top    topKey
	field  field
	path   []string // below content
	glob   *Glob
	value  scalar
	text   string // operator, notification key, room or user id
	number int64
	thread ThreadState
}

// scalar is a non-compound value of canonical JSON.
type scalar struct {
	kind   byte // '"', '0', 't', 'f', 'n'
	text   string
	number int64
}

const maxInt = 1<<53 - 1

func parseScalar(v jsontext.Value) (s scalar, ok bool) {
	switch k := v.Kind(); k {
	case '"':
		s.kind = '"'
		return s, json.Unmarshal(v, &s.text) == nil
	case '0':
		n, err := strconv.ParseInt(string(v), 10, 64)
		return scalar{kind: '0', number: n}, err == nil && n >= -maxInt && n <= maxInt
	case 't', 'f', 'n':
		return scalar{kind: byte(k)}, true
	}
	return s, false
}

func (s *scalar) equals(r gjson.Result) bool {
	switch r.Type {
	case gjson.String:
		return s.kind == '"' && r.Str == s.text
	case gjson.Number:
		if s.kind != '0' {
			return false
		}
		n, err := strconv.ParseInt(r.Raw, 10, 64)
		return err == nil && n == s.number
	case gjson.True:
		return s.kind == 't'
	case gjson.False:
		return s.kind == 'f'
	case gjson.Null:
		return s.kind == 'n' && r.Raw != ""
	}
	return false
}

// lookup finds a property of a JSON object. gjson's own paths are not used: names may hold its special characters.
func lookup(content []byte, path []string) gjson.Result {
	if len(content) == 0 {
		return gjson.Result{}
	}
	r := gjson.Parse(unsafe.String(&content[0], len(content))) // no copy: results do not outlive the caller's content
	for _, name := range path {
		if !r.IsObject() {
			return gjson.Result{}
		}
		var next gjson.Result
		r.ForEach(func(k, v gjson.Result) bool {
			if k.Str == name {
				next = v
				return false
			}
			return true
		})
		r = next
	}
	return r
}

// text gives the property as a string, if it is one.
func (c *condition) textOf(ev *EventView) (string, bool) {
	switch c.top {
	case topType:
		return ev.Type, true
	case topSender:
		return ev.Sender, true
	case topRoomID:
		return ev.RoomID, true
	case topEventID:
		return ev.ID, true
	case topStateKey:
		if ev.StateKey == nil {
			return "", false
		}
		return *ev.StateKey, true
	case topContent:
		r := lookup(ev.Content, c.path)
		return r.Str, r.Type == gjson.String
	}
	return "", false
}

// onEvent tells whether the condition holds for the event.
func (c *condition) onEvent(ev *EventView, ctx *RoomContext) bool {
	switch c.op {
	case opMatch:
		s, ok := c.textOf(ev)
		return ok && c.glob.Match(s)
	case opWords:
		s, ok := c.textOf(ev)
		return ok && c.glob.MatchWords(s)
	case opIs:
		if c.top == topContent {
			return c.value.equals(lookup(ev.Content, c.path))
		}
		if c.top == topTS {
			return c.value.kind == '0' && c.value.number == ev.OriginServerTS
		}
		s, ok := c.textOf(ev)
		return ok && c.value.kind == '"' && c.value.text == s
	case opContains, opMentionsUser:
		return c.top == topContent && c.contains(lookup(ev.Content, c.path), ctx)
	case opStateKeyIsUser:
		return ev.StateKey != nil && equalFold(*ev.StateKey, ctx.UserID)
	case opDisplayName:
		s, ok := c.textOf(ev)
		return ok && containsName(s, ctx.DisplayName)
	case opRoom:
		return ev.RoomID == c.text
	case opSender:
		return ev.Sender == c.text
	}
	return c.onRoom(ctx)
}

func (c *condition) contains(r gjson.Result, ctx *RoomContext) (found bool) {
	if !r.IsArray() {
		return false
	}
	r.ForEach(func(_, v gjson.Result) bool {
		if c.op == opMentionsUser {
			found = v.Type == gjson.String && v.Str == ctx.UserID
		} else {
			found = c.value.equals(v)
		}
		return !found
	})
	return found
}

// onRoom tells whether a condition on the room holds.
func (c *condition) onRoom(ctx *RoomContext) bool {
	switch c.op {
	case opMemberCount:
		switch c.text {
		case "<":
			return ctx.MemberCount < c.number
		case ">":
			return ctx.MemberCount > c.number
		case "<=":
			return ctx.MemberCount <= c.number
		case ">=":
			return ctx.MemberCount >= c.number
		}
		return ctx.MemberCount == c.number
	case opMayNotify:
		need := int64(50) // Spec: m.room.power_levels, notifications: 50 where nothing is said
		if c.text == "room" {
			need = ctx.RoomNotifyLevel
		} else if ctx.NotifyLevel != nil {
			need = ctx.NotifyLevel(c.text)
		}
		return ctx.SenderLevel >= need
	case opThread:
		return ctx.Thread == c.thread
	}
	return false
}
