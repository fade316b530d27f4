package room

import (
	"strconv"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
)

// Viewer says for whom and how an event is rendered.
type Viewer struct {
	User            id.UserID
	Device          id.DeviceID
	NowMS           int64                  // for unsigned.age; 0 omits it
	OmitRoomID      bool                   // as /sync does
	Bundle          func(e *Event) []byte  // gives the JSON object of unsigned."m.relations", or nil
	Membership      string                 // unsigned.membership: the viewer's at the time of the event; "" omits it
	PrevContent     []byte                 // unsigned.prev_content, a JSON object; nil omits it
	ReplacesState   id.EventID             // unsigned.replaces_state; "" omits it
	RedactedBecause func(e *Event) *Event  // the redaction of a redacted event, nil where it is not known
	Erased          map[id.UserID]struct{} // of Rooms.Erased
}

// base is the client form of the event up to room_id and unsigned, without its closing brace. It is made once.
func (e *Event) base() []byte {
	if b := e.rendered.Load(); b != nil {
		return *b
	}
	content := e.PDU.Content()
	b := e.appendBase(make([]byte, 0, len(content)+len(e.PDU.ID())+len(e.PDU.Sender())+len(e.PDU.Type())+160), content)
	e.rendered.Store(&b)
	return b
}

func (e *Event) appendBase(b, content []byte) []byte {
	p := e.PDU
	b = append(b, `{"content":`...)
	b = append(b, content...)
	b = append(b, `,"event_id":`...)
	b = event.AppendCanonicalString(b, string(p.ID()))
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, p.OriginServerTS(), 10)
	if r := p.Redacts(); r != "" {
		// room version 11 moved redacts into the content; clients of before still look here
		b = append(b, `,"redacts":`...)
		b = event.AppendCanonicalString(b, string(r))
	}
	b = append(b, `,"sender":`...)
	b = event.AppendCanonicalString(b, string(p.Sender()))
	if k, ok := p.StateKey(); ok {
		b = append(b, `,"state_key":`...)
		b = event.AppendCanonicalString(b, k)
	}
	b = append(b, `,"type":`...)
	return event.AppendCanonicalString(b, p.Type())
}

// TxnID is the transaction id for the unsigned data of the device that sent the event, "" for everyone else.
func (e *Event) TxnID(user id.UserID, device id.DeviceID) string {
	if e.Txn == "" || device == "" || e.Device != device || e.PDU.Sender() != user {
		return ""
	}
	for i := len(e.Txn) - 1; i >= 0; i-- {
		if e.Txn[i] == '/' {
			return e.Txn[i+1:]
		}
	}
	return e.Txn
}

// AppendClient appends the event in the client-server API's form.
func (e *Event) AppendClient(dst []byte, v *Viewer) []byte {
	erased := v.Erases(e)
	if erased {
		dst = e.appendBase(dst, []byte(`{}`))
	} else {
		dst = append(dst, e.base()...)
	}
	if !v.OmitRoomID {
		dst = append(dst, `,"room_id":`...)
		dst = event.AppendCanonicalString(dst, string(e.PDU.RoomID()))
	}
	open := len(dst)
	dst = append(dst, `,"unsigned":{`...)
	start := len(dst)
	if v.NowMS != 0 {
		dst = append(dst, `"age":`...)
		dst = strconv.AppendInt(dst, max(0, v.NowMS-e.PDU.OriginServerTS()), 10)
		dst = append(dst, ',')
	}
	if txn := e.TxnID(v.User, v.Device); txn != "" {
		dst = append(dst, `"transaction_id":`...)
		dst = event.AppendCanonicalString(dst, txn)
		dst = append(dst, ',')
	}
	if v.Membership != "" {
		dst = append(dst, `"membership":"`...)
		dst = append(dst, v.Membership...)
		dst = append(dst, '"', ',')
	}
	if v.PrevContent != nil {
		dst = append(dst, `"prev_content":`...)
		dst = append(dst, v.PrevContent...)
		dst = append(dst, ',')
	}
	if v.ReplacesState != "" {
		dst = append(dst, `"replaces_state":`...)
		dst = event.AppendCanonicalString(dst, string(v.ReplacesState))
		dst = append(dst, ',')
	}
	if e.RedactedBy != 0 && v.RedactedBecause != nil {
		if r := v.RedactedBecause(e); r != nil {
			dst = append(dst, `"redacted_because":`...)
			dst = r.AppendClient(dst, &Viewer{NowMS: v.NowMS, OmitRoomID: v.OmitRoomID})
			dst = append(dst, ',')
		}
	}
	if v.Bundle != nil && !erased {
		if rel := v.Bundle(e); rel != nil {
			dst = append(dst, `"m.relations":`...)
			dst = append(dst, rel...)
			dst = append(dst, ',')
		}
	}
	if len(dst) == start {
		return append(dst[:open], '}')
	}
	dst[len(dst)-1] = '}'
	return append(dst, '}')
}

// AppendStripped appends the event as stripped state: type, state_key, sender and content.
func (e *Event) AppendStripped(dst []byte) []byte {
	p := e.PDU
	dst = append(dst, `{"content":`...)
	dst = append(dst, p.Content()...)
	dst = append(dst, `,"sender":`...)
	dst = event.AppendCanonicalString(dst, string(p.Sender()))
	k, _ := p.StateKey()
	dst = append(dst, `,"state_key":`...)
	dst = event.AppendCanonicalString(dst, k)
	dst = append(dst, `,"type":`...)
	dst = event.AppendCanonicalString(dst, p.Type())
	return append(dst, '}')
}

// relation is what an event says in m.relates_to.
type relation struct {
	relType string
	parent  string
}

// relationOf reads m.relates_to; false where the event relates to nothing that is stored.
func relationOf(p *event.Event) (relation, bool) {
	if _, isState := p.StateKey(); isState {
		return relation{}, false
	}
	rel := gjson.GetBytes(p.Content(), `m\.relates_to`)
	if !rel.IsObject() {
		return relation{}, false
	}
	t, parent := rel.Get("rel_type"), rel.Get("event_id")
	if t.Type != gjson.String || parent.Type != gjson.String || t.Str == "" || parent.Str == "" || len(parent.Str) > 255 || len(t.Str) > 255 {
		return relation{}, false
	}
	return relation{t.Str, parent.Str}, true
}
