package clientsync

import (
	"context"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// builder makes one response. It appends to b; what turns out empty is cut off again.
type builder struct {
	s   *Sync
	ctx context.Context // of the one request that the builder lives in
	req *request
	b   []byte

	upto    int64 // everything announced up to here is in the response
	next    token
	nowMS   int64
	urgent  bool // there is something to tell that should not wait
	ignored map[id.UserID]struct{}
	scratch []byte

	rooms       sections
	accountData map[int64][]store.AccountData // what changed, by room; 0 is global
	lists       listChanges
	newPeers    map[id.UserID]struct{} // whose presence the client is told of because they share a room from now on
}

// sections are the rooms that may be in the response.
type sections struct{ join, invite, knock, leave []room.UserRoom }

// build makes the response.
func (b *builder) build() error {
	s := b.s
	// The serial is read first, the position second: what comes in later is told next time, perhaps again.
	b.next = token{node: s.d.Store.Node(), serial: s.serial.Load()}
	epochs := s.d.Store.Epochs()
	b.next.epoch = epochs[len(epochs)-1].Number
	b.upto = s.d.Store.Applied()
	b.next.pos, b.next.toDevice = b.upto, b.upto
	b.nowMS = s.d.Now().UnixMilli()
	var err error
	if b.ignored, err = s.d.Data.Ignored(b.ctx, b.req.user); err != nil {
		return err
	}
	if err := b.loadAccountData(); err != nil {
		return err
	}
	user, err := s.d.Rooms.User(b.ctx, b.req.user)
	if err != nil {
		return err
	}
	b.choose(user)
	if err := b.prefetch(); err != nil {
		return err
	}
	toDevice, err := b.toDevice() // before the token is written
	if err != nil {
		return err
	}
	b.b = append(b.b, `{"next_batch":"`...)
	b.b = b.next.append(b.b)
	b.b = append(b.b, '"')
	if err := b.appendRooms(); err != nil {
		return err
	}
	if err := b.appendAccountData(); err != nil {
		return err
	}
	b.appendToDevice(toDevice)
	if err := b.appendDeviceLists(); err != nil {
		return err
	}
	if err := b.appendPresence(user); err != nil {
		return err
	}
	if err := b.appendKeyCounts(); err != nil {
		return err
	}
	b.b = append(b.b, '}')
	return nil
}

// choose finds the rooms that have changed since the token, from memory.
func (b *builder) choose(user *room.User) {
	since, s := b.req.since, b.s
	// most syncs find that nobody types differently anywhere
	typing := !b.req.initial && (since.node != s.d.Store.Node() || since.serial < b.next.serial)
	user.EachRoom(func(r *room.UserRoom) {
		moved := r.Pos > since.pos
		switch r.Membership {
		case room.MembershipJoin:
			nid := r.Room.NID()
			changed := b.req.initial || b.req.fullState || moved || r.Room.LastPos() > since.pos || len(b.accountData[nid]) > 0
			if !changed {
				last, _, known := s.marks.receipts(nid, since.pos)
				changed = last > since.pos || !known
			}
			if !changed && typing {
				_, changed = s.typing.since(nid, since.node, since.serial)
			}
			if changed {
				b.rooms.join = append(b.rooms.join, *r)
			}
		case room.MembershipInvite:
			if moved || b.req.initial {
				b.rooms.invite = append(b.rooms.invite, *r)
			}
		case room.MembershipKnock:
			if moved || b.req.initial {
				b.rooms.knock = append(b.rooms.knock, *r)
			}
		case room.MembershipLeave, room.MembershipBan:
			if (!b.req.initial && moved) || (b.req.initial && b.req.filter.Room.IncludeLeave && !r.Forgotten) {
				b.rooms.leave = append(b.rooms.leave, *r)
			}
		}
	})
	f := &b.req.filter.Room
	for _, list := range []*[]room.UserRoom{&b.rooms.join, &b.rooms.invite, &b.rooms.knock, &b.rooms.leave} {
		kept := (*list)[:0]
		for _, r := range *list {
			if f.MatchRoom(string(r.Room.ID())) {
				kept = append(kept, r)
			}
		}
		*list = kept
	}
}

// prefetch loads in a few queries what many rooms would ask for one by one.
func (b *builder) prefetch() error {
	if len(b.rooms.join) < 2 {
		return nil
	}
	nids := make([]int64, len(b.rooms.join))
	for i := range b.rooms.join {
		nids[i] = b.rooms.join[i].Room.NID()
	}
	if _, err := b.s.receipts.of(b.ctx, nids...); err != nil {
		return err
	}
	if err := b.s.unread.prepare(b.ctx, b.req.user, nids); err != nil {
		return err
	}
	if !b.req.initial {
		return nil
	}
	members := make([]int64, len(b.rooms.join))
	for i := range b.rooms.join {
		members[i] = b.rooms.join[i].MemberNID
	}
	evs, err := b.s.d.Rooms.EventsByNID(b.ctx, members)
	if err != nil {
		return err
	}
	return b.s.loadPrev(b.ctx, evs)
}

// section writes a member of an object that disappears if write leaves it empty. open is what stands before, close what
// stands behind.
func (b *builder) section(open, close string, write func() error) error {
	mark := len(b.b)
	b.b = append(b.b, open...)
	start := len(b.b)
	if err := write(); err != nil {
		return err
	}
	if len(b.b) == start {
		b.b = b.b[:mark]
		return nil
	}
	b.b = append(b.b, close...)
	return nil
}

// comma separates members; an object or a list has just begun where its bracket is the last byte.
func (b *builder) comma() {
	switch b.b[len(b.b)-1] {
	case '{', '[':
	default:
		b.b = append(b.b, ',')
	}
}

func (b *builder) appendRooms() error {
	mark := len(b.b)
	b.b = append(b.b, `,"rooms":{`...)
	start := len(b.b)
	for _, part := range []struct {
		name  string
		rooms []room.UserRoom
		write func(r *room.UserRoom) (bool, error)
	}{
		{"join", b.rooms.join, b.joinedRoom},
		{"invite", b.rooms.invite, b.invitedRoom},
		{"knock", b.rooms.knock, b.knockedRoom},
		{"leave", b.rooms.leave, b.leftRoom},
	} {
		if len(part.rooms) == 0 {
			continue
		}
		before := len(b.b)
		b.comma()
		b.b = append(b.b, '"')
		b.b = append(b.b, part.name...)
		b.b = append(b.b, `":{`...)
		any := false
		for i := range part.rooms {
			at := len(b.b)
			b.comma()
			b.b = event.AppendCanonicalString(b.b, string(part.rooms[i].Room.ID()))
			b.b = append(b.b, ':', '{')
			ok, err := part.write(&part.rooms[i])
			if err != nil {
				return err
			}
			if !ok {
				b.b = b.b[:at]
				continue
			}
			any = true
			b.b = append(b.b, '}')
		}
		if !any {
			b.b = b.b[:before]
			continue
		}
		b.b = append(b.b, '}')
	}
	if len(b.b) == start {
		b.b = b.b[:mark]
		return nil
	}
	b.b = append(b.b, '}')
	return nil
}

// stripped is the state that a user who is not in a room may see of it, beside the own member event.
// Spec: client-server API, "Stripped state".
var stripped = [...]string{"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules",
	"m.room.canonical_alias", "m.room.encryption"}

func (b *builder) invitedRoom(r *room.UserRoom) (bool, error) {
	// Spec, "Invite permission": invitations from before are not served either while they are blocked.
	if blocked, err := b.s.d.Data.BlocksInvites(b.ctx, b.req.user); err != nil || blocked {
		return false, err
	}
	return b.strippedRoom(r, "invite_state")
}

func (b *builder) knockedRoom(r *room.UserRoom) (bool, error) {
	return b.strippedRoom(r, "knock_state")
}

func (b *builder) strippedRoom(r *room.UserRoom, name string) (bool, error) {
	evs, err := b.s.d.Rooms.EventsByNID(b.ctx, []int64{r.MemberNID})
	if err != nil || len(evs) == 0 {
		return false, err
	}
	member := evs[0]
	sender := member.PDU.Sender()
	if _, skip := b.ignored[sender]; skip {
		return false, nil // Spec: "Ignoring Users": invites of ignored users are not sent
	}
	b.urgent = true
	b.b = append(b.b, '"')
	b.b = append(b.b, name...)
	b.b = append(b.b, `":{"events":[`...)
	if err := b.appendStripped(r.Room, member); err != nil {
		return false, err
	}
	b.b = append(b.b, ']', '}')
	return true, nil
}

// appendStripped writes the stripped state of a room that the user has the member event of, without being in it.
func (b *builder) appendStripped(r *room.Room, member *room.Event) error {
	for _, t := range stripped {
		e, err := r.StateEvent(b.ctx, t, "")
		if err != nil {
			return err
		}
		if e != nil {
			b.comma()
			b.b = e.AppendStripped(b.b)
		}
	}
	if sender := member.PDU.Sender(); sender != b.req.user {
		e, err := r.MemberEvent(b.ctx, sender)
		if err != nil {
			return err
		}
		if e != nil {
			b.comma()
			b.b = e.AppendStripped(b.b)
		}
	}
	b.comma()
	b.b = member.AppendStripped(b.b)
	return nil
}

// loadAccountData reads what changed of the user's account data.
func (b *builder) loadAccountData() error {
	since := b.req.since.pos
	if b.req.initial {
		since = 0
	} else if !b.s.marks.account(b.req.user, since) {
		return nil
	}
	var list []store.AccountData
	var rules int64
	err := b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
		var err error
		if list, err = tx.AccountDataSince(b.req.user, since, b.upto); err != nil {
			return err
		}
		rules, err = tx.PushRulesChanged(b.req.user)
		return err
	})
	if err != nil {
		return err
	}
	b.accountData = make(map[int64][]store.AccountData, len(list))
	for _, a := range list {
		b.accountData[a.Room] = append(b.accountData[a.Room], a)
	}
	// Spec: "Push Rules: Events": the rules are account data that the server makes
	if (b.req.initial || rules > since) && b.s.d.PushRules != nil {
		content, err := b.s.d.PushRules(b.ctx, b.req.user)
		if err != nil {
			return err
		}
		b.accountData[0] = append(b.accountData[0], store.AccountData{Type: store.PushRulesType, Body: content})
	}
	return nil
}

func (b *builder) appendAccountData() error {
	return b.section(`,"account_data":{"events":[`, `]}`, func() error {
		b.accountEvents(b.accountData[0], b.req.filter.AccountData, "")
		return nil
	})
}

// accountEvents appends account data as events.
func (b *builder) accountEvents(list []store.AccountData, f *filter.EventFilter, roomID id.RoomID) {
	for i := range list {
		a := &list[i]
		if !f.Match(filter.EventMeta{Type: a.Type, RoomID: string(roomID), Content: a.Body}) {
			continue
		}
		b.urgent = true
		b.comma()
		b.b = append(b.b, `{"content":`...)
		b.b = append(b.b, a.Body...)
		b.b = append(b.b, `,"type":`...)
		b.b = event.AppendCanonicalString(b.b, a.Type)
		b.b = append(b.b, '}')
	}
}
