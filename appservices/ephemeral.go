package appservices

import (
	"context"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// wantsEphemeral tells whether a service asked for ephemeral events.
func (x *Service) wantsEphemeral() bool { return x.Ephemeral || x.PushEphemeral }

// receiptsOf reads the receipts that entries announce, by position.
func (f *following) receiptsOf(ctx context.Context, entries []store.Entry) (map[int64][]*store.Receipt, error) {
	wanted := false
	for _, x := range f.to {
		wanted = wanted || x.wantsEphemeral()
	}
	if !wanted {
		return nil, nil
	}
	var rooms, positions []int64
	for i := range entries {
		if entries[i].Kind == store.KindReceipt {
			rooms, positions = append(rooms, entries[i].Room), append(positions, entries[i].Pos)
		}
	}
	if len(rooms) == 0 {
		return nil, nil
	}
	out := map[int64][]*store.Receipt{}
	err := f.s.Store.ReadOne(ctx, func(tx *store.Tx) error {
		list, err := tx.ReceiptsAt(rooms, positions)
		for _, r := range list {
			out[r.Pos] = append(out[r.Pos], r)
		}
		return err
	})
	return out, err
}

// ephemeralEvent is an event of the list "ephemeral".
type ephemeralEvent struct {
	Type    string    `json:"type"`
	RoomID  id.RoomID `json:"room_id,omitempty"`
	Sender  id.UserID `json:"sender,omitempty"`
	Content any       `json:"content"`
}

type receiptData struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

// receipts gives a room's read receipts to the services that are interested in it; private ones are nobody's business.
func (f *following) receipts(ctx context.Context, b *builder, e *store.Entry, list []*store.Receipt) error {
	if len(list) == 0 {
		return nil
	}
	rm, err := f.s.Rooms.RoomByNID(ctx, e.Room)
	if err != nil {
		return err
	}
	ri, err := f.room(ctx, rm, e.Pos)
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Type != store.ReceiptRead {
			continue
		}
		content := map[string]map[string]map[string]receiptData{r.EventID: {"m.read": {r.User: {r.TS, r.Thread}}}}
		v, err := json.Marshal(ephemeralEvent{Type: "m.receipt", RoomID: rm.ID(), Content: content})
		if err != nil {
			return err
		}
		for i, x := range f.to {
			if x.wantsEphemeral() && ri.wants(i) {
				b.of[i].ephemeral(v)
			}
		}
	}
	return nil
}

// besideLog is what happens beside the log: who types in a room, or how present somebody is.
type besideLog struct {
	room     int64
	typing   []id.UserID
	user     id.UserID
	presence jsontext.Value // content
}

const (
	besideMost  = 1024
	besideEvery = 50 * time.Millisecond
)

// Typing tells of the users who type in a room. It may be lost.
func (s *Services) Typing(nid int64, users []id.UserID) {
	s.putBeside(besideLog{room: nid, typing: users})
}

// Presence tells how present a user is, by the content of the event m.presence. It may be lost.
func (s *Services) Presence(user id.UserID, content []byte) {
	s.putBeside(besideLog{user: user, presence: content})
}

func (s *Services) putBeside(e besideLog) {
	if !s.line.active.Load() {
		return
	}
	select {
	case s.line.beside <- e:
	default:
	}
}

// runBeside gives what happens beside the log to the services that asked for it.
func (s *Services) runBeside(ctx context.Context) error {
	for {
		var list []besideLog
		select {
		case <-ctx.Done():
			return nil
		case e := <-s.line.beside:
			list = append(list, e)
		}
		select { // what changes again within a moment is told of once
		case <-ctx.Done():
			return nil
		case <-time.After(besideEvery):
		}
		for more := true; more; {
			select {
			case e := <-s.line.beside:
				list = append(list, e)
			default:
				more = false
			}
		}
		if err := s.line.follow.beside(ctx, newest(list)); err != nil && ctx.Err() == nil {
			s.Logger.Warn("tell application services who types and who is there", "error", err)
		}
	}
}

// newest keeps the last word on each room and user, in order.
func newest(list []besideLog) []besideLog {
	type key struct {
		room int64
		user id.UserID
	}
	last := map[key]int{}
	for i, e := range list {
		last[key{e.room, e.user}] = i
	}
	out := list[:0]
	for i, e := range list {
		if last[key{e.room, e.user}] == i {
			out = append(out, e)
		}
	}
	return out
}

// beside queues ephemeral events.
func (f *following) beside(ctx context.Context, list []besideLog) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rooms == nil || f.set != f.s.current() {
		if err := f.prepare(ctx, f.s.Store.Applied()+1); err != nil {
			return err
		}
		f.last = 0 // the log goes on from somewhere else: what is known now is looked up again
	}
	b := &builder{at: 1}
	for range f.to {
		b.of = append(b.of, &line{b: b})
	}
	for _, e := range list {
		var err error
		if e.room != 0 {
			err = f.typing(ctx, b, e)
		} else {
			err = f.presence(ctx, b, e)
		}
		if err != nil && !isGone(err) {
			return err
		}
	}
	now := f.s.Now().UnixMilli()
	for i, x := range f.to {
		rows, err := b.of[i].rows(now)
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			continue
		}
		if err := f.s.Store.Write(ctx, func(tx *store.Tx) error { return tx.AppendService(x.ID, rows) }); err != nil {
			return err
		}
		f.s.line.kick(x.ID, false)
	}
	return nil
}

func (f *following) typing(ctx context.Context, b *builder, e besideLog) error {
	rm, err := f.s.Rooms.RoomByNID(ctx, e.room)
	if err != nil {
		return err
	}
	ri, err := f.room(ctx, rm, f.s.Store.Applied()+1)
	if err != nil {
		return err
	}
	users := e.typing
	if users == nil {
		users = []id.UserID{}
	}
	v, err := json.Marshal(ephemeralEvent{Type: "m.typing", RoomID: rm.ID(), Content: map[string]any{"user_ids": users}})
	if err != nil {
		return err
	}
	for i, x := range f.to {
		if x.wantsEphemeral() && ri.wants(i) {
			b.of[i].ephemeral(v)
		}
	}
	return nil
}

func (f *following) presence(ctx context.Context, b *builder, e besideLog) error {
	v, err := json.Marshal(ephemeralEvent{Type: "m.presence", Sender: e.user, Content: e.presence})
	if err != nil {
		return err
	}
	for i, x := range f.to {
		if !x.wantsEphemeral() {
			continue
		}
		concerned := x.Covers(e.user)
		if !concerned {
			if concerned, err = f.shares(ctx, f.s.Store.Applied()+1, i, e.user); err != nil {
				return err
			}
		}
		if concerned {
			b.of[i].ephemeral(v)
		}
	}
	return nil
}
