package clientsync

import (
	"slices"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// parseSlidingSince reads the since of the to-device extension; what was not given out by this server is
// M_INVALID_PARAM.
func (s *Sync) parseSlidingSince(text string) (int64, error) {
	var t slidingToken
	first, rest, ok := strings.Cut(text, "_")
	if !ok || !parseNumber(first, &t.epoch) || !parseNumber(rest, &t.pos) {
		return 0, mxerr.InvalidParam("'extensions.to_device.since' must be a next_batch of this extension")
	}
	return token{epoch: t.epoch, pos: t.pos, toDevice: t.pos}.cut(s.d.Store.Epochs()).pos, nil
}

// acknowledgeSliding deletes the to-device messages that the client has got.
// Spec: MSC3885.
func (s *Sync) acknowledgeSliding(in *slidingRequest) error {
	x := in.ext.ToDevice
	if x == nil || !x.Enabled || x.Since == nil {
		return nil
	}
	since, err := s.parseSlidingSince(*x.Since)
	if err != nil {
		return err
	}
	since = min(since, s.d.Store.Applied()) // what lies ahead was never given out
	s.acknowledge(&request{user: in.who.UserID, device: in.who.DeviceID, since: token{toDevice: since}})
	return nil
}

func (b *slider) appendExtensions() error {
	x := &b.in.ext
	if x.ToDevice != nil && x.ToDevice.Enabled {
		if err := b.extendToDevice(); err != nil {
			return err
		}
	}
	if x.E2EE != nil && x.E2EE.Enabled {
		if err := b.extendE2EE(); err != nil {
			return err
		}
	}
	if err := b.extendAccountData(); err != nil {
		return err
	}
	if err := b.extendReceipts(); err != nil {
		return err
	}
	if x.Typing.on() {
		b.extendTyping()
	}
	return b.extendThreads()
}

// extendToDevice writes the messages that wait for the device. Its place is not the response's: the client keeps it.
// Spec: MSC3885.
func (b *slider) extendToDevice() error {
	x := b.in.ext.ToDevice
	limit := int64(toDeviceMost)
	if x.Limit != nil {
		limit = min(limit, *x.Limit)
	}
	after := int64(0)
	if x.Since != nil {
		var err error
		if after, err = b.s.parseSlidingSince(*x.Since); err != nil {
			return err
		}
	}
	after = max(min(after, b.upto), b.s.marks.clearedUpTo(b.req.user, b.req.device))
	last := b.upto
	var events []jsontext.Value
	if b.req.device != "" && b.s.marks.toDevice(b.req.user, b.req.device, after) {
		var err error
		if events, last, err = b.s.d.Keys.ToDeviceMessages(b.ctx, b.req.user, b.req.device, after, b.upto, int(limit)); err != nil {
			return err
		}
	}
	b.urgent = b.urgent || len(events) > 0
	b.member("to_device")
	b.b = append(b.b, `{"next_batch":"`...)
	b.b = slidingToken{b.next.epoch, last}.append(b.b)
	b.b = append(b.b, `","events":[`...)
	for _, e := range events {
		b.comma()
		b.b = append(b.b, e...)
	}
	b.b = append(b.b, ']', '}')
	return nil
}

// extendE2EE writes the counts of keys, and whose device lists changed.
// Spec: MSC3884.
func (b *slider) extendE2EE() error {
	if !b.req.initial {
		if err := b.peersSince(); err != nil {
			return err
		}
	}
	b.member("e2ee")
	open := len(b.b)
	if err := b.appendKeyCounts(); err != nil {
		return err
	}
	if len(b.b) == open { // an access token without a device
		b.b = append(b.b, `{"device_one_time_keys_count":{},"device_unused_fallback_key_types":[]`...)
	}
	b.b[open] = '{'
	if err := b.appendDeviceLists(); err != nil {
		return err
	}
	b.b = append(b.b, '}')
	return nil
}

// peersSince notes whom the user came to share rooms with since the client's position, and whether anybody may share none
// any more.
// Spec: client-server API, "Tracking the device list for a user".
func (b *slider) peersSince() error {
	user, err := b.s.d.Rooms.User(b.ctx, b.req.user)
	if err != nil {
		return err
	}
	since := b.req.since.pos
	var rooms []*room.UserRoom
	user.EachRoom(func(r *room.UserRoom) {
		if r.Pos > since || (r.Membership == room.MembershipJoin && r.Room.LastPos() > since) {
			rooms = append(rooms, r)
		}
	})
	for _, ur := range rooms {
		if ur.Membership != room.MembershipJoin {
			b.lists.left = true
			continue
		}
		changes, err := b.s.d.Rooms.StateChanges(b.ctx, ur.Room, since, b.upto)
		if err != nil {
			return err
		}
		for t, nid := range changes {
			if t.Type != memberType {
				continue
			}
			was, is, err := b.joinedSince(nid, since)
			switch {
			case err != nil:
				return err
			case t.StateKey == string(b.req.user) && is && !was:
				for _, u := range ur.Room.Joined() {
					b.lists.join(u)
				}
			case is && !was:
				b.lists.join(id.UserID(t.StateKey))
			case !is:
				b.lists.left = true
			}
		}
	}
	return nil
}

// joinedSince tells whether a user was joined at a position, and is by the last member event.
func (b *slider) joinedSince(nid, since int64) (was, is bool, err error) {
	events, err := b.s.d.Rooms.EventsByNID(b.ctx, []int64{nid})
	if err != nil || len(events) == 0 {
		return true, false, err
	}
	e := events[0]
	is = e.PDU.Membership() == "join"
	for e != nil && e.Ord > since {
		if e, err = b.s.prevOf(b.ctx, e); err != nil {
			return false, false, err
		}
		was = e != nil && e.PDU.Membership() == "join"
	}
	return was, is, nil
}

// covers tells whether an extension is wanted for a room of the window.
func (e *extensionRooms) covers(w *windowRoom) bool {
	if !e.on() {
		return false
	}
	if e.Lists == nil || slices.Contains(*e.Lists, "*") {
		if len(w.lists) > 0 {
			return true
		}
	} else if slices.ContainsFunc(w.lists, func(name string) bool { return slices.Contains(*e.Lists, name) }) {
		return true
	}
	if e.Rooms == nil || slices.Contains(*e.Rooms, "*") {
		return w.subscribed
	}
	return slices.Contains(*e.Rooms, string(w.ur.Room.ID()))
}

// extendAccountData writes the user's account data: what belongs to no room, and that of the window's rooms.
// Spec: MSC3959.
func (b *slider) extendAccountData() error {
	x := b.in.ext.AccountData
	if b.noteAccountData(x); !x.on() {
		return nil
	}
	if b.req.initial {
		if err := b.loadGlobalData(); err != nil {
			return err
		}
	}
	b.member("account_data")
	b.b = append(b.b, `{"global":[`...)
	b.accountEvents(b.accountData[0], nil, "")
	b.b = append(b.b, `],"rooms":{`...)
	later, err := b.laterAccountData(x)
	if err != nil {
		return err
	}
	for i := range b.window {
		w := &b.window[i]
		nid := w.ur.Room.NID()
		list, ok := later[nid]
		if !ok {
			if list = b.accountData[nid]; len(list) == 0 || !x.covers(w) {
				continue
			}
		}
		if len(list) == 0 {
			continue
		}
		b.appendRoomKey(w.ur.Room.ID())
		b.b = append(b.b, '[')
		b.accountEvents(list, nil, w.ur.Room.ID())
		b.b = append(b.b, ']')
	}
	b.b = append(b.b, '}', '}')
	return nil
}

// noteAccountData remembers of rooms for which account data is not told now that the client misses some.
func (b *slider) noteAccountData(x *extensionRooms) {
	for nid := range b.accountData {
		sent := b.conn.rooms[nid]
		if nid == 0 || sent == nil || sent.account != 0 {
			continue
		}
		if w := b.windowOf(nid); w == nil || !x.covers(w) {
			b.edit(nid).account = b.req.since.pos
		}
	}
}

// loadGlobalData reads all account data that belongs to no room.
func (b *slider) loadGlobalData() error {
	var list []store.AccountData
	err := b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.RoomAccountData(b.req.user, 0)
		return err
	})
	if err != nil {
		return err
	}
	if b.s.d.PushRules != nil {
		content, err := b.s.d.PushRules(b.ctx, b.req.user)
		if err != nil {
			return err
		}
		list = append(list, store.AccountData{Type: store.PushRulesType, Body: content})
	}
	b.accountData = map[int64][]store.AccountData{0: list}
	return nil
}

// laterAccountData reads the account data of those rooms of the window of which the client does not have all up to its
// position.
func (b *slider) laterAccountData(x *extensionRooms) (map[int64][]store.AccountData, error) {
	since := make(map[int64]int64)
	var nids []int64
	for i := range b.window {
		w := &b.window[i]
		nid := w.ur.Room.NID()
		told := int64(-1)
		if sent := b.conn.rooms[nid]; sent != nil {
			told = sent.account
		}
		if told != 0 && x.covers(w) {
			nids = append(nids, nid)
			since[nid] = told
		}
	}
	if len(nids) == 0 {
		return nil, nil
	}
	var list []store.AccountData
	err := b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.RoomsAccountData(b.req.user, nids)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make(map[int64][]store.AccountData, len(nids))
	for _, nid := range nids {
		out[nid] = nil
		b.edit(nid).account = 0
	}
	for _, a := range list {
		if a.Pos > since[a.Room] {
			out[a.Room] = append(out[a.Room], a)
		}
	}
	return out, nil
}

// findReceipts finds the rooms in which receipts changed since the client's position.
func (b *slider) findReceipts() error {
	if b.req.initial || len(b.conn.rooms) == 0 {
		return nil
	}
	since := b.req.since.pos
	rooms, known := b.s.marks.changedReceipts(since)
	if !known {
		nids := make([]int64, 0, len(b.conn.rooms))
		for nid := range b.conn.rooms {
			nids = append(nids, nid)
		}
		err := b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
			var err error
			rooms, err = tx.ReceiptRooms(nids, since)
			return err
		})
		if err != nil {
			return err
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	b.read = make(map[int64]struct{}, len(rooms))
	for _, nid := range rooms {
		b.read[nid] = struct{}{}
	}
	return nil
}

// extendReceipts writes receipts. A room that is told as a whole, or with older events, comes with those of its events
// and the user's own.
// Spec: MSC3960.
func (b *slider) extendReceipts() error {
	x := b.in.ext.Receipts
	for nid := range b.read {
		sent := b.conn.rooms[nid]
		if sent == nil || sent.receipts != 0 {
			continue
		}
		if w := b.windowOf(nid); w == nil || !x.covers(w) {
			b.edit(nid).receipts = b.req.since.pos
		}
	}
	if !x.on() {
		return nil
	}
	b.member("receipts")
	b.b = append(b.b, `{"rooms":{`...)
	for i := range b.window {
		if w := &b.window[i]; x.covers(w) && w.ur.Membership == room.MembershipJoin {
			if err := b.roomReceipts(w); err != nil {
				return err
			}
		}
	}
	b.b = append(b.b, '}', '}')
	return nil
}

func (b *slider) roomReceipts(w *windowRoom) error {
	nid := w.ur.Room.NID()
	told, whole := b.told[nid]
	at := int64(-1)
	if sent := b.conn.rooms[nid]; sent != nil && !whole {
		at = sent.receipts
	}
	since, shown := b.req.since.pos, true
	switch {
	case at < 0:
		whole = true
	case at > 0:
		since = at
	default:
		if _, changed := b.read[nid]; !changed {
			return nil
		}
		last, seen, known := b.s.marks.receipts(nid, since)
		shown = !known || seen > since || last <= since
	}
	rr, err := b.s.receipts.one(b.ctx, nid)
	if err != nil {
		return err
	}
	var list []*store.Receipt
	own := false
	if whole {
		list = rr.ofEvents(b.req.user, told.events, b.ignored)
	} else {
		list, own = rr.since(b.req.user, since, b.ignored)
	}
	if at != 0 {
		b.edit(nid).receipts = 0
	}
	if len(list) == 0 {
		return nil
	}
	if (own && !rr.crowded()) || shown {
		b.urgent = true
	}
	// one event has no room for two receipts of a user for the same event: the one that counts for all threads stands
	slices.SortStableFunc(list, func(x, y *store.Receipt) int {
		if x.Ord == y.Ord && x.Type == y.Type && x.User == y.User {
			return len(x.Thread) - len(y.Thread)
		}
		return 0
	})
	b.appendRoomKey(w.ur.Room.ID())
	b.b, _ = appendReceipts(b.b, list)
	return nil
}

// ofEvents gives the receipts for some events, and all of the user's, as far as the user may see them.
func (r *roomReceipts) ofEvents(user id.UserID, events []*room.Event, ignored map[id.UserID]struct{}) []*store.Receipt {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*store.Receipt
	for _, x := range r.list {
		if x.User != string(user) {
			if x.Type == store.ReceiptReadPrivate {
				continue
			}
			if _, skip := ignored[id.UserID(x.User)]; skip {
				continue
			}
			if !slices.ContainsFunc(events, func(e *room.Event) bool { return e.Ord == x.Ord }) {
				continue
			}
		}
		out = append(out, x)
	}
	sortReceipts(out)
	return out
}

// extendTyping writes who types, where that changed, and in rooms that are new to the client where anybody does.
// Spec: MSC3961.
func (b *slider) extendTyping() {
	x := b.in.ext.Typing
	b.member("typing")
	b.b = append(b.b, `{"rooms":{`...)
	node, serial := b.req.since.node, b.req.since.serial
	quiet := !b.req.initial && node == b.s.d.Store.Node() && serial >= b.next.serial
	for i := range b.window {
		w := &b.window[i]
		nid := w.ur.Room.NID()
		from := node
		if sent := b.conn.rooms[nid]; sent == nil || b.toldUpTo(sent) < b.req.since.pos {
			from = ""
		} else if quiet {
			continue
		}
		if w.ur.Membership != room.MembershipJoin || !x.covers(w) {
			continue
		}
		users, news := b.s.typing.since(nid, from, serial)
		if !news {
			continue
		}
		users = slices.DeleteFunc(users, func(u id.UserID) bool { _, skip := b.ignored[u]; return skip })
		b.urgent = true
		b.appendRoomKey(w.ur.Room.ID())
		b.b = appendTyping(b.b, users)
	}
	b.b = append(b.b, '}', '}')
}
