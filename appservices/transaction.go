package appservices

import (
	"context"
	"slices"
	"strconv"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	mostEvents = 100     // of a transaction; as many of what is beside the events
	mostBytes  = 2 << 20 // about what a transaction's events have together
)

// payload is a transaction as it waits: events by their numbers, all else as it will be sent.
type payload struct {
	Events    []int64                                               `json:"e,omitempty"`
	Bytes     int                                                   `json:"b,omitempty"` // of the events
	Ephemeral []jsontext.Value                                      `json:"p,omitempty"`
	ToDevice  []jsontext.Value                                      `json:"d,omitempty"`
	Changed   []id.UserID                                           `json:"c,omitempty"`
	Left      []id.UserID                                           `json:"l,omitempty"`
	Counts    map[id.UserID]map[id.DeviceID]map[id.KeyAlgorithm]int `json:"o,omitempty"`
	Fallback  map[id.UserID]map[id.DeviceID][]string                `json:"f,omitempty"`
}

// beside is how much there is beside the events.
func (p *payload) beside() int {
	return len(p.Ephemeral) + len(p.ToDevice) + len(p.Changed) + len(p.Left)
}

func (p *payload) size() int { return len(p.Events) + p.beside() }

func (p *payload) empty() bool { return p.size() == 0 && len(p.Counts) == 0 }

// full tells whether nothing more is to be put into the payload.
func (p *payload) full() bool {
	return len(p.Events) >= mostEvents || p.beside() >= mostEvents || p.Bytes >= mostBytes
}

// join puts the next payload behind this one if they fit together.
func (p *payload) join(next *payload) bool {
	if len(p.Events)+len(next.Events) > mostEvents || p.beside()+next.beside() > mostEvents || p.Bytes+next.Bytes > mostBytes {
		return false
	}
	p.Events = append(p.Events, next.Events...)
	p.Bytes += next.Bytes
	p.Ephemeral = append(p.Ephemeral, next.Ephemeral...)
	p.ToDevice = append(p.ToDevice, next.ToDevice...)
	for _, u := range next.Changed {
		p.change(u)
	}
	for _, u := range next.Left {
		p.leave(u)
	}
	for u, devices := range next.Counts {
		for d, counts := range devices {
			p.setKeys(u, d, counts, next.Fallback[u][d])
		}
	}
	return true
}

func without(list []id.UserID, u id.UserID) []id.UserID {
	return slices.DeleteFunc(list, func(o id.UserID) bool { return o == u })
}

func (p *payload) change(u id.UserID) {
	p.Left = without(p.Left, u)
	if !slices.Contains(p.Changed, u) {
		p.Changed = append(p.Changed, u)
	}
}

func (p *payload) leave(u id.UserID) {
	p.Changed = without(p.Changed, u)
	if !slices.Contains(p.Left, u) {
		p.Left = append(p.Left, u)
	}
}

func (p *payload) setKeys(u id.UserID, d id.DeviceID, counts map[id.KeyAlgorithm]int, fallback []string) {
	if p.Counts == nil {
		p.Counts, p.Fallback = map[id.UserID]map[id.DeviceID]map[id.KeyAlgorithm]int{}, map[id.UserID]map[id.DeviceID][]string{}
	}
	if p.Counts[u] == nil {
		p.Counts[u], p.Fallback[u] = map[id.DeviceID]map[id.KeyAlgorithm]int{}, map[id.DeviceID][]string{}
	}
	if fallback == nil {
		fallback = []string{}
	}
	p.Counts[u][d], p.Fallback[u][d] = counts, fallback
}

// builder gathers what the services hear of.
type builder struct {
	at    int64 // the entry of the log that is looked at
	of    []*line
	moved []movedMessage
}

// movedMessage is a to-device message that goes into a transaction and so waits for the device no longer.
type movedMessage struct {
	service int
	device  store.DeviceID
	pos     int64
}

// line is what one service hears of, in order.
type line struct {
	b    *builder
	from int64 // entries up to here it has heard of
	list []*payload
}

func (f *following) newBuilder() *builder {
	b := &builder{}
	for i := range f.to {
		b.of = append(b.of, &line{b: b, from: f.pos[i]})
	}
	return b
}

// next is the payload that takes what comes; nil where the service has heard of the entry before.
func (l *line) next() *payload {
	if l.b.at <= l.from {
		return nil
	}
	if n := len(l.list); n > 0 && !l.list[n-1].full() {
		return l.list[n-1]
	}
	p := &payload{}
	l.list = append(l.list, p)
	return p
}

func (l *line) event(ev *room.Event) {
	if p := l.next(); p != nil {
		p.Events = append(p.Events, ev.NID)
		p.Bytes += len(ev.PDU.JSON())
	}
}

func (l *line) ephemeral(v jsontext.Value) {
	if p := l.next(); p != nil {
		p.Ephemeral = append(p.Ephemeral, v)
	}
}

// toDevice adds a message with the device that it is for.
// Spec: MSC4203, "Sending to-device events to appservices".
func (l *line) toDevice(user id.UserID, device id.DeviceID, body jsontext.Value) {
	p := l.next()
	if p == nil || len(body) < 2 {
		return
	}
	v := append(slices.Clone(body[:len(body)-1]), `,"to_user_id":`...)
	v = event.AppendCanonicalString(v, string(user))
	v = append(v, `,"to_device_id":`...)
	v = event.AppendCanonicalString(v, string(device))
	p.ToDevice = append(p.ToDevice, append(v, '}'))
}

func (l *line) changed(u id.UserID) {
	if p := l.next(); p != nil {
		p.change(u)
	}
}

func (l *line) left(u id.UserID) {
	if p := l.next(); p != nil {
		p.leave(u)
	}
}

func (l *line) keys(u id.UserID, d id.DeviceID, counts map[string]int, fallback []string) {
	p := l.next()
	if p == nil {
		return
	}
	c := make(map[id.KeyAlgorithm]int, len(counts))
	for algorithm, n := range counts {
		c[id.KeyAlgorithm(algorithm)] = n
	}
	p.setKeys(u, d, c, fallback)
}

// rows are the transactions as they are stored.
func (l *line) rows(now int64) ([]store.ServiceTxn, error) {
	var out []store.ServiceTxn
	for _, p := range l.list {
		if p.empty() {
			continue
		}
		body, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		out = append(out, store.ServiceTxn{Created: now, Events: int64(p.size()), Body: body})
	}
	return out, nil
}

// transaction is the body of PUT /_matrix/app/v1/transactions/{txnId}: what has a stable name is sent under it and under
// that of its proposal, by which older bridges know it.
type transaction struct {
	Events []jsontext.Value `json:"events"`

	Ephemeral         []jsontext.Value `json:"ephemeral,omitempty"`
	UnstableEphemeral []jsontext.Value `json:"de.sorunome.msc2409.ephemeral,omitempty"`
	ToDevice          []jsontext.Value `json:"to_device,omitempty"`
	UnstableToDevice  []jsontext.Value `json:"de.sorunome.msc2409.to_device,omitempty"`

	DeviceLists         *deviceLists                                          `json:"device_lists,omitempty"`
	UnstableDeviceLists *deviceLists                                          `json:"org.matrix.msc3202.device_lists,omitempty"`
	Counts              map[id.UserID]map[id.DeviceID]map[id.KeyAlgorithm]int `json:"device_one_time_keys_count,omitempty"`
	UnstableCounts      map[id.UserID]map[id.DeviceID]map[id.KeyAlgorithm]int `json:"org.matrix.msc3202.device_one_time_keys_count,omitempty"`
	Fallback            map[id.UserID]map[id.DeviceID][]string                `json:"device_unused_fallback_key_types,omitempty"`
	UnstableFallback    map[id.UserID]map[id.DeviceID][]string                `json:"org.matrix.msc3202.device_unused_fallback_key_types,omitempty"`
}

type deviceLists struct {
	Changed []id.UserID `json:"changed,omitempty"`
	Left    []id.UserID `json:"left,omitempty"`
}

// render makes the body of a transaction; nil where nothing is left to tell, because rooms were purged.
func (s *Services) render(ctx context.Context, x *Service, p *payload) ([]byte, error) {
	t := transaction{
		Events: []jsontext.Value{}, Ephemeral: p.Ephemeral, ToDevice: p.ToDevice, UnstableToDevice: p.ToDevice,
		Counts: p.Counts, UnstableCounts: p.Counts, Fallback: p.Fallback, UnstableFallback: p.Fallback,
	}
	if x.PushEphemeral {
		t.UnstableEphemeral = p.Ephemeral
	}
	if len(p.Changed)+len(p.Left) > 0 {
		t.DeviceLists = &deviceLists{p.Changed, p.Left}
		t.UnstableDeviceLists = t.DeviceLists
	}
	if len(p.Events) > 0 {
		events, err := s.Rooms.EventsByNID(ctx, p.Events)
		if err != nil {
			return nil, err
		}
		now := s.Now().UnixMilli()
		for _, e := range events {
			if e == nil {
				continue
			}
			v, err := s.renderEvent(ctx, x, e, now)
			if isGone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			t.Events = append(t.Events, v)
		}
	}
	if len(t.Events) == 0 && p.beside() == 0 && len(p.Counts) == 0 {
		return nil, nil
	}
	return json.Marshal(t, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true))
}

// renderEvent is an event as clients get it. Only state and what was redacted have more to tell than themselves.
func (s *Services) renderEvent(ctx context.Context, x *Service, e *room.Event, now int64) (jsontext.Value, error) {
	_, isState := e.PDU.StateKey()
	if !isState && e.RedactedBy == 0 {
		return e.AppendClient(nil, &room.Viewer{NowMS: now}), nil
	}
	rm, err := s.Rooms.RoomByNID(ctx, e.Room)
	if err != nil {
		return nil, err
	}
	return s.Rooms.AppendEvent(ctx, nil, rm, e, &room.Reader{User: x.sender, NowMS: now})
}

// txnID is a transaction's id: the time, of 13 digits, makes it differ from those before a restore of the database. There are
// services that take ids for numbers.
func txnID(t *store.ServiceTxn) string {
	return strconv.FormatInt(t.Created, 10) + strconv.FormatInt(t.Txn, 10)
}
