package clientsync

import (
	"container/heap"
	"context"
	"net/http"
	"slices"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	notificationsDefault = 20
	notificationsMost    = 100
	notificationsChunk   = 64     // events read of one room at a time
	notificationsScan    = 10_000 // events looked at for one response
)

// getNotifications handles GET /_matrix/client/v3/notifications: the events of the user's rooms that the push rules
// notify of, newest first. Nothing of it is stored; the rules are asked as they are now.
// Spec: client-server API, "Listing Notifications".
func (s *Sync) getNotifications(w http.ResponseWriter, r *http.Request) error {
	user := web.Requester(r).UserID
	limit, err := web.QueryInt(r, "limit", notificationsDefault, 1, notificationsMost)
	if err != nil {
		return err
	}
	from := room.TokenEnd
	if t := web.QueryString(r, "from"); t != "" {
		if from, err = room.ParseToken(t); err != nil {
			return err
		}
	}
	list := &notificationList{s: s, ctx: r.Context(), user: user, limit: limit, highlights: web.QueryString(r, "only") == "highlight"}
	b, err := list.build(int64(from))
	if err != nil {
		return err
	}
	return web.WriteRaw(w, b)
}

// notificationList goes back through the timelines of all rooms at once.
type notificationList struct {
	s          *Sync
	ctx        context.Context // of the one request
	user       id.UserID
	limit      int
	highlights bool
	ignored    map[id.UserID]struct{}
	rooms      cursors
	looked     int
}

// cursor is the place in one room's timeline.
type cursor struct {
	ur    room.UserRoom
	rules Rules
	read  readUpTo
	began int64       // ord of the user's join: nothing before it notified the user
	next  int64       // no event of the room that is still to come lies behind this ord
	found []candidate // read ahead, newest first
	ready bool        // rules, read and began are loaded
	end   bool
}

type candidate struct {
	ord, nid int64
	features []byte
	sender   id.UserID
}

// cursors is a heap: the room whose next event is the newest comes first.
type cursors []*cursor

func (c cursors) Len() int           { return len(c) }
func (c cursors) Less(i, j int) bool { return c[i].next > c[j].next }
func (c cursors) Swap(i, j int)      { c[i], c[j] = c[j], c[i] }

// Push implements heap.Interface.
func (c *cursors) Push(x any) { *c = append(*c, x.(*cursor)) }

// Pop implements heap.Interface.
func (c *cursors) Pop() any {
	last := (*c)[len(*c)-1]
	*c = (*c)[:len(*c)-1]
	return last
}

func (l *notificationList) build(from int64) ([]byte, error) {
	u, err := l.s.d.Rooms.User(l.ctx, l.user)
	if err != nil {
		return nil, err
	}
	if l.ignored, err = l.s.d.Data.Ignored(l.ctx, l.user); err != nil {
		return nil, err
	}
	for _, ur := range u.Rooms() {
		if ur.Membership == room.MembershipJoin {
			l.rooms = append(l.rooms, &cursor{ur: ur, next: min(from, ur.Room.LastPos())})
		}
	}
	heap.Init(&l.rooms)
	out := []byte(`{"notifications":[`)
	for n := 0; n < l.limit && len(l.rooms) > 0 && l.looked < notificationsScan && l.s.d.Rules != nil; {
		c := l.rooms[0]
		if err := l.fill(c); err != nil {
			return nil, err
		}
		if c.end {
			heap.Pop(&l.rooms)
			continue
		}
		if len(c.found) == 0 || c.found[0].ord < c.next { // not as new as was thought: another room may come first
			if len(c.found) > 0 {
				c.next = c.found[0].ord
			}
			heap.Fix(&l.rooms, 0)
			continue
		}
		x := c.found[0]
		c.found, c.next = c.found[1:], x.ord-1
		heap.Fix(&l.rooms, 0)
		var wrote bool
		if out, wrote, err = l.append(out, c, x, n > 0); err != nil {
			return nil, err
		}
		if wrote {
			n++
		}
	}
	out = append(out, ']')
	if len(l.rooms) > 0 && l.s.d.Rules != nil {
		out = append(out, `,"next_token":"`...)
		out = append(out, room.Token(l.rooms[0].next).String()...)
		out = append(out, '"')
	}
	return append(out, '}'), nil
}

// fill reads ahead in a room; it may find nothing and still not be at the end.
func (l *notificationList) fill(c *cursor) error {
	if len(c.found) > 0 || c.end {
		return nil
	}
	if !c.ready {
		var err error
		if c.rules, err = l.s.d.Rules(l.ctx, l.user, c.ur.Room); err != nil {
			return err
		}
		if c.began, err = l.s.joinedAt(l.ctx, l.user, &c.ur); err != nil {
			return err
		}
		rr, err := l.s.receipts.one(l.ctx, c.ur.Room.NID())
		if err != nil {
			return err
		}
		c.read, c.ready = rr.readBy(l.user), true
	}
	n, oldest := 0, c.next+1
	err := l.s.d.Store.Read(l.ctx, func(tx *store.Tx) error {
		n, c.found = 0, nil
		return tx.ScanTimeline(c.ur.Room.NID(), c.next+1, c.began, notificationsChunk, func(e *store.ScanEvent) error {
			n++
			oldest = e.Ord
			if len(e.Features) == 0 || (c.rules.Skips != nil && c.rules.Skips(e.Features)) {
				return nil
			}
			body, err := e.Body()
			if err != nil {
				return err
			}
			sender := id.UserID(gjson.GetBytes(body, "sender").String())
			if _, skip := l.ignored[sender]; !skip && sender != l.user {
				c.found = append(c.found, candidate{e.Ord, e.NID, slices.Clone(e.Features), sender})
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	l.looked += n
	if len(c.found) == 0 {
		c.end = n < notificationsChunk
		c.next = oldest - 1 // all of them the user's own
	}
	return nil
}

// append writes one event if the rules notify of it.
func (l *notificationList) append(out []byte, c *cursor, x candidate, comma bool) ([]byte, bool, error) {
	v, decided := c.rules.Quick(x.features, x.sender)
	if decided && !v.Notify {
		return out, false, nil
	}
	evs, err := l.s.d.Rooms.EventsByNID(l.ctx, []int64{x.nid})
	if err != nil || len(evs) == 0 || evs[0].RedactedBy != 0 {
		return out, false, err
	}
	e := evs[0]
	if !decided {
		if v, err = c.rules.Full(e); err != nil {
			return out, false, err
		}
	}
	if !v.Notify || (l.highlights && !v.Highlight) {
		return out, false, nil
	}
	actions := []byte(`["notify"]`)
	if v.Actions != nil {
		if actions, err = v.Actions(); err != nil {
			return out, false, err
		}
	}
	thread := ""
	if l.s.d.Thread != nil {
		thread = l.s.d.Thread(x.features)
	}
	if comma {
		out = append(out, ',')
	}
	out = append(out, `{"actions":`...)
	out = append(out, actions...)
	out = append(out, `,"event":`...)
	out = e.AppendClient(out, &room.Viewer{User: l.user, NowMS: l.s.d.Now().UnixMilli(), OmitRoomID: true, Membership: "join"})
	out = append(out, `,"read":`...)
	if x.ord <= c.read.thread(thread) {
		out = append(out, "true"...)
	} else {
		out = append(out, "false"...)
	}
	out = append(out, `,"room_id":`...)
	out = event.AppendCanonicalString(out, string(c.ur.Room.ID()))
	out = append(out, `,"ts":`...)
	out = appendInt(out, e.PDU.OriginServerTS())
	return append(out, '}'), true, nil
}
