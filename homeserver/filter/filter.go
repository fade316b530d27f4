// Package filter reads the filters that clients define for /sync, /messages, /context and search, and tells which
// events they let through. It is pure: no store, no clock.
package filter

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// MaxLimit is the most events that a filter can ask for in one go; larger wishes count as this.
const MaxLimit = 1000

// Filter is what POST /user/{userId}/filter defines. It is immutable and safe for concurrent use; the zero value lets
// everything through.
// Spec: client-server API, "Filtering".
type Filter struct {
	Fields      Fields // of each event, what to include
	Federation  bool   // event_format is "federation": events as they travel between servers
	Presence    *EventFilter
	AccountData *EventFilter
	Room        RoomFilter
}

// RoomFilter is the part of a filter for rooms.
type RoomFilter struct {
	IncludeLeave bool // rooms the user has left are wanted too
	Ephemeral    *EventFilter
	State        *EventFilter
	Timeline     *EventFilter
	AccountData  *EventFilter

	rooms roomSet
}

// MatchRoom tells whether the filter lets a room through, before its parts look at single events.
func (f *RoomFilter) MatchRoom(roomID string) bool { return f.rooms.match(roomID) }

// OnlyRooms lists the rooms the filter is limited to; ok is false where it is limited to none in particular.
func (f *RoomFilter) OnlyRooms() (rooms []string, ok bool) { return f.rooms.list() }

// eventFilterJSON is a RoomEventFilter on the wire; an EventFilter uses its first half.
type eventFilterJSON struct {
	Limit      *int64    `json:"limit"`
	Senders    *[]string `json:"senders"`
	NotSenders []string  `json:"not_senders"`
	Types      *[]string `json:"types"`
	NotTypes   []string  `json:"not_types"`

	Rooms                     *[]string `json:"rooms"`
	NotRooms                  []string  `json:"not_rooms"`
	LazyLoadMembers           bool      `json:"lazy_load_members"`
	IncludeRedundantMembers   bool      `json:"include_redundant_members"`
	UnreadThreadNotifications bool      `json:"unread_thread_notifications"`
	ContainsURL               *bool     `json:"contains_url"`
	RelatedBySenders          []string  `json:"related_by_senders"`
	RelatedByRelTypes         []string  `json:"related_by_rel_types"`
	// MSC3874, with which Element Web pages through what is in no thread.
	RelTypes    *[]string `json:"org.matrix.msc3874.rel_types"`
	NotRelTypes []string  `json:"org.matrix.msc3874.not_rel_types"`
}

type filterJSON struct {
	EventFields *[]string        `json:"event_fields"`
	EventFormat *string          `json:"event_format"`
	Presence    *eventFilterJSON `json:"presence"`
	AccountData *eventFilterJSON `json:"account_data"`
	Room        struct {
		Rooms        *[]string        `json:"rooms"`
		NotRooms     []string         `json:"not_rooms"`
		IncludeLeave bool             `json:"include_leave"`
		Ephemeral    *eventFilterJSON `json:"ephemeral"`
		State        *eventFilterJSON `json:"state"`
		Timeline     *eventFilterJSON `json:"timeline"`
		AccountData  *eventFilterJSON `json:"account_data"`
	} `json:"room"`
}

// Parse reads a filter definition. Errors are M_NOT_JSON and M_BAD_JSON, which names the field. Null counts as absent.
func Parse(b []byte) (*Filter, error) {
	var in filterJSON
	if err := decode(b, &in); err != nil {
		return nil, err
	}
	out := &Filter{}
	if in.EventFormat != nil {
		switch *in.EventFormat {
		case "client":
		case "federation":
			out.Federation = true
		default:
			return nil, mxerr.BadJSON("'event_format' must be client or federation")
		}
	}
	out.Fields = compileFields(in.EventFields)
	out.Room.IncludeLeave = in.Room.IncludeLeave
	var err error
	if out.Room.rooms, err = newRoomSet("room.", in.Room.Rooms, in.Room.NotRooms); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		in   *eventFilterJSON
		out  **EventFilter
	}{
		{"presence.", in.Presence, &out.Presence},
		{"account_data.", in.AccountData, &out.AccountData},
		{"room.ephemeral.", in.Room.Ephemeral, &out.Room.Ephemeral},
		{"room.state.", in.Room.State, &out.Room.State},
		{"room.timeline.", in.Room.Timeline, &out.Room.Timeline},
		{"room.account_data.", in.Room.AccountData, &out.Room.AccountData},
	} {
		if *part.out, err = compile(part.name, part.in); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// ParseEvents reads a RoomEventFilter, as /messages, /context and search take it.
func ParseEvents(b []byte) (*EventFilter, error) {
	var in eventFilterJSON
	if err := decode(b, &in); err != nil {
		return nil, err
	}
	return compile("", &in)
}

// decode reads one JSON object strictly.
func decode(b []byte, v any) error {
	err := json.Unmarshal(b, v)
	if err == nil {
		if strings.HasPrefix(strings.TrimLeft(string(b), " \t\r\n"), "{") {
			return nil
		}
		return mxerr.BadJSON("a filter must be a JSON object") // null
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		if errors.Is(err, jsontext.ErrDuplicateName) {
			return mxerr.BadJSON("the filter names " + pointer(syntax.JSONPointer) + " twice")
		}
		return mxerr.NotJSON("the filter is not JSON")
	}
	if !jsontext.Value(b).IsValid(jsontext.AllowDuplicateNames(true)) {
		return mxerr.NotJSON("the filter is not JSON") // broken behind the field that was refused
	}
	var wrong *json.SemanticError
	if errors.As(err, &wrong) {
		return mxerr.BadJSON(pointer(wrong.JSONPointer) + " must be " + wanted(wrong.GoType))
	}
	return mxerr.BadJSON("the filter has the wrong shape")
}

func pointer(p jsontext.Pointer) string {
	if p == "" {
		return "a filter"
	}
	var names []string
	for name := range p.Tokens() {
		names = append(names, name)
	}
	return "'" + strings.Join(names, ".") + "'"
}

func wanted(t reflect.Type) string {
	for t != nil && t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t == nil {
		return "of another type"
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int64:
		return "an integer"
	case reflect.Slice:
		return "an array"
	}
	return "an object"
}

// compile checks a part of a filter; nil stays nil and lets everything through.
func compile(name string, in *eventFilterJSON) (*EventFilter, error) {
	if in == nil {
		return nil, nil
	}
	out := &EventFilter{
		LazyLoadMembers:           in.LazyLoadMembers,
		IncludeRedundantMembers:   in.IncludeRedundantMembers,
		UnreadThreadNotifications: in.UnreadThreadNotifications,
		ContainsURL:               in.ContainsURL,
		RelatedBySenders:          in.RelatedBySenders,
		RelatedByRelTypes:         in.RelatedByRelTypes,
	}
	if in.Limit != nil {
		// The specification wants more than 0. Clients send 0 for none in a timeline, and else for "as few as you can",
		// which is 1.
		if *in.Limit < 0 {
			return nil, mxerr.BadJSON("'" + name + "limit' must be greater than 0")
		}
		out.none = *in.Limit == 0
		out.Limit = int(min(max(*in.Limit, 1), MaxLimit))
	}
	for _, list := range []struct {
		field  string
		values []string
	}{
		{"senders", deref(in.Senders)},
		{"not_senders", in.NotSenders},
		{"related_by_senders", in.RelatedBySenders},
	} {
		if err := checkSigil(name+list.field, list.values, '@', "user"); err != nil {
			return nil, err
		}
	}
	var err error
	if out.rooms, err = newRoomSet(name, in.Rooms, in.NotRooms); err != nil {
		return nil, err
	}
	out.senders, out.notSenders = newSet(in.Senders), newSet(&in.NotSenders)
	out.relTypes, out.notRelTypes = newSet(in.RelTypes), newSet(&in.NotRelTypes)
	out.types, out.notTypes = newPatterns(in.Types), newPatterns(&in.NotTypes)
	return out, nil
}

func deref(p *[]string) []string {
	if p == nil {
		return nil
	}
	return *p
}

func checkSigil(field string, values []string, sigil byte, what string) error {
	for _, v := range values {
		if v == "" || v[0] != sigil {
			return mxerr.BadJSON(fmt.Sprintf("'%s' must hold %s ids, which begin with %c", field, what, sigil))
		}
	}
	return nil
}
