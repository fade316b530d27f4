package push

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"strings"
	"unicode/utf8"
	"unsafe"

	"github.com/tidwall/gjson"
)

// Features are what unread counting needs of an event, so small that they are stored with every event and so complete
// that bodies are read only for users with keyword rules.
//
// How they are used:
//
//   - On send, once per event (not per user): f := FeaturesOf(type, stateKey, content, parentThread); f.AppendBinary(nil) is
//     stored with the event. It is 2 bytes for an ordinary message, 35 in a thread. parentThread gives the stored Thread of the
//     event that this one relates to (reaction, edit), so that such an event counts to the same thread without following
//     relations when read.
//   - On count, per event and user: view := FeatureView{Features: parsed, Sender: …}; actions, decided :=
//     compiled.EvaluateFeatures(&view, &ctx). Only where decided is false, the event is read and compiled.Evaluate(&event, &ctx)
//     asked. With the predefined rules everything is decided but invitations and events that mention more users than features
//     list (32). compiled.NeedsBody() tells beforehand whether there may be more.
//   - Events of which compiled.Skips(FlagsOf(stored)) is true (under the predefined rules, or any that only silence, those whose
//     flags lack FlagCounts) cannot notify the user: a count may leave them out.
//
// Evaluate and EvaluateFeatures agree wherever the latter decides; a property test holds them to it. Both say nothing about
// receipts, threads or ignored users: the counter does.
type Features struct {
	Flags    uint16   // Class in the low four bits, then the Flag… bits
	Mentions []string // m.mentions.user_ids, at most maxMentions of them
	Thread   string   // event id of the root of the thread that the event belongs to; "" is the main timeline
}

// The bits of Features.Flags above the class.
const (
	FlagCounts      uint16 = 1 << (iota + 4) // the predefined rules notify somebody of it
	FlagState                                // has a state key
	FlagEmptyKey                             // …which is empty
	FlagNotice                               // content.msgtype is m.notice
	FlagEdit                                 // m.relates_to.rel_type is m.replace
	FlagInvite                               // content.membership is invite
	FlagBody                                 // content.body is a string: keyword rules may match
	FlagRoomMention                          // m.mentions.room is true
	FlagMentions                             // Mentions is not empty
	FlagMore                                 // more users are mentioned than Mentions lists
	FlagThread                               // Thread is not empty

	classMask uint16 = 15
)

const (
	maxMentions     = 32
	maxMentionBytes = 255
)

// Class says of which type an event is, as far as the predefined rules care.
type Class uint16

// The classes. Their values are stored: new ones come at the end.
const (
	ClassOther Class = iota
	ClassMessage
	ClassEncrypted
	ClassCall
	ClassMember
	ClassReaction
	ClassTombstone
	ClassServerACL
	numClasses
)

func (c Class) typeName() string {
	switch c {
	case ClassMessage:
		return "m.room.message"
	case ClassEncrypted:
		return "m.room.encrypted"
	case ClassCall:
		return "m.call.invite"
	case ClassMember:
		return "m.room.member"
	case ClassReaction:
		return "m.reaction"
	case ClassTombstone:
		return "m.room.tombstone"
	case ClassServerACL:
		return "m.room.server_acl"
	}
	return ""
}

// classOf gives the class of a type. Rules compare types without regard to case, so this does.
func classOf(evType string) Class {
	switch evType {
	case "m.room.message":
		return ClassMessage
	case "m.room.encrypted":
		return ClassEncrypted
	}
	for c := ClassMessage; c < numClasses; c++ {
		if equalFold(evType, c.typeName()) {
			return c
		}
	}
	return ClassOther
}

// Class gives the class of the event.
func (f *Features) Class() Class { return Class(f.Flags & classMask) }

// FeaturesOf computes the features of an event. parentThread may be nil; it is asked for the event that a relation other
// than m.thread points to.
func FeaturesOf(evType string, stateKey *string, content []byte, parentThread func(eventID string) string) Features {
	f := Features{Flags: uint16(classOf(evType))}
	if stateKey != nil {
		f.Flags |= FlagState
		if *stateKey == "" {
			f.Flags |= FlagEmptyKey
		}
	}
	if len(content) == 0 {
		f.setCounts()
		return f
	}
	var seen uint8 // the first of two members of one name counts, as it does for lookup
	first := func(bit uint8) bool {
		was := seen&bit != 0
		seen |= bit
		return !was
	}
	gjson.Parse(unsafe.String(&content[0], len(content))).ForEach(func(k, v gjson.Result) bool {
		switch k.Str {
		case "body":
			if first(1) && v.Type == gjson.String {
				f.Flags |= FlagBody
			}
		case "msgtype":
			if first(2) && v.Type == gjson.String && equalFold(v.Str, "m.notice") {
				f.Flags |= FlagNotice
			}
		case "membership":
			if first(4) && v.Type == gjson.String && equalFold(v.Str, "invite") {
				f.Flags |= FlagInvite
			}
		case "m.mentions":
			if first(8) && v.IsObject() {
				f.mentions(v)
			}
		case "m.relates_to":
			if first(16) && v.IsObject() {
				f.relation(v, parentThread)
			}
		}
		return true
	})
	f.setCounts()
	return f
}

func (f *Features) mentions(v gjson.Result) {
	var room, users bool
	v.ForEach(func(k, v gjson.Result) bool {
		switch {
		case k.Str == "room" && !room:
			room = true
			if v.Type == gjson.True {
				f.Flags |= FlagRoomMention
			}
		case k.Str == "user_ids" && !users && v.IsArray():
			users = true
			v.ForEach(func(_, v gjson.Result) bool {
				if v.Type != gjson.String {
					return true
				}
				if len(f.Mentions) == maxMentions || len(v.Str) > maxMentionBytes {
					f.Flags |= FlagMore
					return true
				}
				f.Mentions = append(f.Mentions, strings.Clone(v.Str))
				f.Flags |= FlagMentions
				return true
			})
		case k.Str == "user_ids":
			users = true
		}
		return true
	})
}

// relation reads m.relates_to. Spec: "Threading": an event belongs to a thread by m.thread, or by a relation to an event of it.
func (f *Features) relation(v gjson.Result, parentThread func(string) string) {
	var relType, eventID gjson.Result
	v.ForEach(func(k, v gjson.Result) bool {
		switch {
		case k.Str == "rel_type" && !relType.Exists():
			relType = v
		case k.Str == "event_id" && !eventID.Exists():
			eventID = v
		}
		return true
	})
	if relType.Type != gjson.String {
		return
	}
	if relType.Str == "m.replace" {
		f.Flags |= FlagEdit
	}
	if eventID.Type != gjson.String || eventID.Str == "" || len(eventID.Str) > 255 {
		return
	}
	if relType.Str == "m.thread" {
		f.Thread = strings.Clone(eventID.Str)
	} else if parentThread != nil {
		f.Thread = parentThread(strings.Clone(eventID.Str))
	}
	if f.Thread != "" {
		f.Flags |= FlagThread
	}
}

// setCounts follows the predefined rules in their order; where it depends on the user (is he mentioned? may the sender notify
// the room?) it says yes.
func (f *Features) setCounts() {
	counts := false
	switch c := f.Class(); {
	case f.Flags&FlagNotice != 0:
	case c == ClassMember:
		counts = f.Flags&FlagInvite != 0
	case f.Flags&(FlagMentions|FlagMore|FlagRoomMention) != 0:
		counts = true
	case c == ClassTombstone && f.Flags&FlagEmptyKey != 0:
		counts = true
	case f.Flags&FlagEdit != 0:
	case c == ClassMessage, c == ClassEncrypted, c == ClassCall:
		counts = true
	}
	if counts {
		f.Flags |= FlagCounts
	}
}

// FlagsOf gives the flags of stored features without parsing the rest; none for malformed ones.
func FlagsOf(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.LittleEndian.Uint16(b)
}

// AppendBinary appends the stored form: flags, then the thread and the mentions if there are any.
func (f *Features) AppendBinary(dst []byte) []byte {
	flags := f.Flags &^ (FlagThread | FlagMentions)
	if f.Thread != "" {
		flags |= FlagThread
	}
	if len(f.Mentions) > 0 {
		flags |= FlagMentions
	}
	dst = binary.LittleEndian.AppendUint16(dst, flags)
	if f.Thread != "" {
		dst = appendEventID(dst, f.Thread)
	}
	if len(f.Mentions) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(f.Mentions)))
		for _, m := range f.Mentions {
			dst = append(binary.AppendUvarint(dst, uint64(len(m))), m...)
		}
	}
	return dst
}

// appendEventID stores "$" and 43 characters of URL-safe base64, the form of room versions 4 and later, as a zero and the 32
// bytes of the hash, any other form with its length.
func appendEventID(dst []byte, eventID string) []byte {
	if len(eventID) == 44 && eventID[0] == '$' {
		var hash [33]byte
		if n, err := base64.RawURLEncoding.Strict().Decode(hash[:], []byte(eventID[1:])); err == nil && n == 32 {
			return append(append(dst, 0), hash[:32]...)
		}
	}
	return append(binary.AppendUvarint(dst, uint64(len(eventID))), eventID...)
}

var errFeatures = errors.New("malformed push features")

// ParseFeatures reads the stored form.
func ParseFeatures(b []byte) (f Features, err error) {
	if len(b) < 2 {
		return f, errFeatures
	}
	f.Flags, b = binary.LittleEndian.Uint16(b), b[2:]
	if f.Flags&FlagThread != 0 {
		if len(b) >= 33 && b[0] == 0 {
			f.Thread, b = "$"+base64.RawURLEncoding.EncodeToString(b[1:33]), b[33:]
		} else if f.Thread, b, err = cutString(b); err != nil {
			return Features{}, err
		}
		if f.Thread == "" {
			return Features{}, errFeatures
		}
	}
	if f.Flags&FlagMentions != 0 {
		n, size := binary.Uvarint(b)
		if size <= 0 || n == 0 || n > maxMentions {
			return Features{}, errFeatures
		}
		b = b[size:]
		f.Mentions = make([]string, n)
		for i := range f.Mentions {
			if f.Mentions[i], b, err = cutString(b); err != nil {
				return Features{}, err
			}
		}
	}
	if len(b) > 0 {
		return Features{}, errFeatures
	}
	return f, nil
}

func cutString(b []byte) (s string, rest []byte, err error) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n > uint64(len(b)-size) || n > maxMentionBytes {
		return "", nil, errFeatures
	}
	s = string(b[size : size+int(n)])
	if !utf8.ValidString(s) {
		return "", nil, errFeatures
	}
	return s, b[size+int(n):], nil
}
