package clientsync

import (
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// ephemeral writes typing and receipts of a joined room. It tells whether the room belongs into the response for them:
// also a receipt of the user's that the filter keeps out changes the unread counts.
func (b *builder) ephemeral(ur *room.UserRoom) (bool, error) {
	r, f := ur.Room, b.req.filter.Room.Ephemeral
	roomID := string(r.ID())
	mark := len(b.b)
	b.comma()
	b.b = append(b.b, `"ephemeral":{"events":[`...)
	start := len(b.b)
	own, err := b.appendReceipts(r, f)
	if err != nil {
		return false, err
	}
	// who comes into a room is told who types in it, as at an initial sync
	node := b.req.since.node
	if ur.Pos > b.req.since.pos {
		node = ""
	}
	if f.Match(filter.EventMeta{Type: "m.typing", RoomID: roomID}) {
		if users, news := b.s.typing.since(r.NID(), node, b.req.since.serial); news {
			users = slices.DeleteFunc(users, func(u id.UserID) bool { _, skip := b.ignored[u]; return skip })
			b.urgent = true
			b.comma()
			b.b = appendTyping(b.b, users)
		}
	}
	if len(b.b) == start {
		b.b = b.b[:mark]
		return own, nil
	}
	b.b = append(b.b, ']', '}')
	return true, nil
}

// appendReceipts writes the receipts that changed, and tells whether one of them is the user's.
func (b *builder) appendReceipts(r *room.Room, f *filter.EventFilter) (own bool, err error) {
	since := b.req.since.pos
	if b.req.initial {
		since = 0
	}
	last, shown, known := b.s.marks.receipts(r.NID(), since)
	if known && last <= since {
		return false, nil
	}
	rr, err := b.s.receipts.one(b.ctx, r.NID())
	if err != nil {
		return false, err
	}
	mark := len(b.b)
	b.comma()
	start := len(b.b)
	out, own, some := rr.appendSince(b.b, b.req.user, since, b.ignored)
	b.b = out
	if (own && !rr.crowded()) || (some && (!known || shown > since)) {
		b.urgent = true
	}
	if len(b.b) == start || !f.Match(filter.EventMeta{Type: "m.receipt", RoomID: string(r.ID())}) {
		b.b = b.b[:mark]
	}
	return own, nil
}

// appendUnread writes unread_notifications and, where the filter asks for them, unread_thread_notifications.
// Spec: client-server API, "Receiving notifications".
func (b *builder) appendUnread(ur *room.UserRoom) error {
	u, err := b.s.unread.count(b.ctx, b.req.user, ur, b.upto, b.ignored)
	if err != nil {
		return err
	}
	threads := b.req.filter.Room.Timeline.ThreadNotifications()
	sum := u.Total()
	if threads {
		sum = u.Main
	}
	b.comma()
	b.b = append(b.b, `"unread_notifications":`...)
	b.counts(sum)
	if !threads {
		return nil
	}
	b.b = append(b.b, `,"unread_thread_notifications":{`...)
	for root, c := range u.Threads {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, root)
		b.b = append(b.b, ':')
		b.counts(c)
	}
	b.b = append(b.b, '}')
	return nil
}

func (b *builder) counts(c Counts) {
	b.b = append(b.b, `{"highlight_count":`...)
	b.b = appendInt(b.b, c.Highlights)
	b.b = append(b.b, `,"notification_count":`...)
	b.b = appendInt(b.b, c.Notifications)
	b.b = append(b.b, '}')
}

// appendPresence writes the presence of those who share rooms with the user.
// Spec: client-server API, "Presence".
func (b *builder) appendPresence(user *room.User) error {
	f := b.req.filter.Presence
	if f.MatchesNothing() || !f.MatchType("m.presence") {
		return nil
	}
	changed, urgent, all := b.s.presence.since(b.req.user, b.req.since.node, b.req.since.serial)
	if all || b.req.initial {
		shared, err := b.s.d.Rooms.UsersSharingRoom(b.ctx, b.req.user)
		if err != nil {
			return err
		}
		changed = b.s.presence.present(shared)
	} else if len(b.newPeers) > 0 {
		changed = append(changed, b.s.presence.present(b.newPeers)...) // in a response that goes out anyway
	}
	if len(changed) == 0 {
		return nil
	}
	slices.Sort(changed)
	return b.section(`,"presence":{"events":[`, `]}`, func() error {
		for _, u := range slices.Compact(changed) {
			if _, skip := b.ignored[u]; skip || !f.MatchSender(string(u)) {
				continue
			}
			v, ok := b.s.presence.get(u)
			if !ok {
				continue
			}
			b.urgent = b.urgent || urgent
			b.comma()
			b.b = append(b.b, `{"content":`...)
			b.b = b.s.appendPresence(b.b, v)
			b.b = append(b.b, `,"sender":`...)
			b.b = event.AppendCanonicalString(b.b, string(u))
			b.b = append(b.b, `,"type":"m.presence"}`...)
		}
		return nil
	})
}

// appendPresence writes what others see of a user.
func (s *Sync) appendPresence(b []byte, v presenceView) []byte {
	b = append(b, `{"presence":"`...)
	b = append(b, v.state.String()...)
	b = append(b, '"')
	if !v.lastActive.IsZero() {
		b = append(b, `,"last_active_ago":`...)
		b = appendInt(b, max(0, s.d.Now().Sub(v.lastActive).Milliseconds()))
	}
	if v.state == online {
		if v.active {
			b = append(b, `,"currently_active":true`...)
		} else {
			b = append(b, `,"currently_active":false`...)
		}
	}
	if v.status != "" {
		b = append(b, `,"status_msg":`...)
		b = event.AppendCanonicalString(b, v.status)
	}
	b = append(b, v.profile...)
	return append(b, '}')
}

// getPresence handles GET /_matrix/client/v3/presence/{userId}/status.
func (s *Sync) getPresence(w http.ResponseWriter, r *http.Request) error {
	who, target := web.Requester(r).UserID, id.UserID(web.PathParam(r, "userId"))
	shares, err := s.d.Rooms.SharesRoom(r.Context(), who, target)
	if err != nil {
		return err
	}
	if !shares {
		return mxerr.Forbidden("you share no room with this user")
	}
	v, _ := s.presence.get(target)
	v.profile = nil // it has an endpoint of its own
	return web.WriteRaw(w, s.appendPresence(nil, v))
}

const statusMost = 1024 // bytes of a status message

// putPresence handles PUT /_matrix/client/v3/presence/{userId}/status.
func (s *Sync) putPresence(w http.ResponseWriter, r *http.Request) error {
	who := web.Requester(r)
	if id.UserID(web.PathParam(r, "userId")) != who.UserID {
		return mxerr.Forbidden("you can set your own presence only")
	}
	body, err := web.ReadJSON[struct {
		Presence *string `json:"presence"`
		Status   *string `json:"status_msg"`
	}](r)
	if err != nil {
		return err
	}
	if body.Presence == nil {
		return mxerr.MissingParam("'presence' is missing")
	}
	state, ok := parsePresence(*body.Presence)
	if !ok {
		return mxerr.InvalidParam("'presence' must be online, unavailable or offline")
	}
	if body.Status != nil {
		if len(*body.Status) > statusMost {
			return mxerr.TooLarge("'status_msg' may have at most 1024 bytes")
		}
		if v, _ := s.presence.get(who.UserID); v.status != *body.Status {
			err := s.d.Store.Write(r.Context(), func(tx *store.Tx) error { return tx.SetPresenceStatus(string(who.UserID), *body.Status) })
			if err != nil {
				return err
			}
		}
	}
	s.presence.set(who.UserID, who.DeviceID, state, body.Status)
	return web.WriteRaw(w, []byte("{}"))
}
