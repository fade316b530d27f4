package clientsync

import (
	"context"
	"math"
	"net/http"
	"strconv"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// threadRoutes are the endpoints of thread subscriptions (MSC4306, MSC4308), which no version of the specification has yet.
func (s *Sync) threadRoutes() []web.Route {
	const one = "/_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{threadRootId}/subscription"
	return []web.Route{
		{Pattern: "GET " + one, Auth: web.NoGuest, Rate: web.RateRead, Handler: s.getThreadSubscription},
		{Pattern: "PUT " + one, Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateRead, Handler: s.putThreadSubscription},
		{Pattern: "DELETE " + one, Auth: web.NoGuest, AllowSuspended: true, Rate: web.RateRead, Handler: s.deleteThreadSubscription},
		{Pattern: "GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.listThreadSubscriptions},
	}
}

const (
	threadsDefault = 100
	threadsMost    = 1000
)

// threadOfPath finds the room and the thread's root that the path names, as far as the requester may see them.
func (s *Sync) threadOfPath(r *http.Request) (*room.Room, *room.Event, error) {
	ctx, user := r.Context(), web.Requester(r).UserID
	notHere := mxerr.NotFound("there is no such thread, or you may not see it")
	rm, err := s.d.Rooms.Room(ctx, id.RoomID(web.PathParam(r, "roomId")))
	if err != nil {
		if mxerr.Is(err, "M_NOT_FOUND") {
			err = notHere
		}
		return nil, nil, err
	}
	if rm.Membership(user) != room.MembershipJoin {
		return nil, nil, notHere
	}
	root, err := s.visibleTo(ctx, rm, user, id.EventID(web.PathParam(r, "threadRootId")))
	if err == nil && root == nil {
		err = notHere
	}
	return rm, root, err
}

// visibleTo reads an event of a room; nil where there is none that the user may see.
func (s *Sync) visibleTo(ctx context.Context, rm *room.Room, user id.UserID, eventID id.EventID) (*room.Event, error) {
	e, err := s.d.Rooms.EventByID(ctx, eventID)
	if err != nil || e == nil || e.Room != rm.NID() || e.Status != store.StatusAccepted {
		return nil, err
	}
	v, err := s.d.Rooms.Visibility(ctx, rm, user)
	if err != nil || !v.Allows(e.Ord) {
		return nil, err
	}
	return e, nil
}

// getThreadSubscription handles GET …/thread/{threadRootId}/subscription.
func (s *Sync) getThreadSubscription(w http.ResponseWriter, r *http.Request) error {
	rm, root, err := s.threadOfPath(r)
	if err != nil {
		return err
	}
	var t store.ThreadSubscription
	err = s.d.Store.ReadOne(r.Context(), func(tx *store.Tx) (err error) {
		t, _, err = tx.ThreadSubscription(web.Requester(r).UserID, rm.NID(), root.ID())
		return err
	})
	if err != nil {
		return err
	}
	if !t.Subscribed {
		return mxerr.NotFound("you have not subscribed to this thread")
	}
	return web.WriteJSON(w, map[string]bool{"automatic": t.Automatic})
}

// putThreadSubscription handles PUT …/thread/{threadRootId}/subscription. With "automatic", the event that is the reason, it
// changes nothing for who has subscribed already, and is refused where the user has unsubscribed since that event.
func (s *Sync) putThreadSubscription(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadJSON[struct {
		Automatic *id.EventID `json:"automatic"`
	}](r)
	if err != nil {
		return err
	}
	rm, root, err := s.threadOfPath(r)
	if err != nil {
		return err
	}
	user, cause := web.Requester(r).UserID, int64(0)
	if req.Automatic != nil {
		e, err := s.visibleTo(r.Context(), rm, user, *req.Automatic)
		if err != nil {
			return err
		}
		if !inThread(e, root.ID()) {
			return mxerr.New(http.StatusBadRequest, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "the event is not in this thread")
		}
		cause = e.Ord
	}
	err = s.d.Store.Write(r.Context(), func(tx *store.Tx) error {
		t, _, err := tx.ThreadSubscription(user, rm.NID(), root.ID())
		if err != nil {
			return err
		}
		switch automatic := req.Automatic != nil; {
		case t.Subscribed && (automatic || !t.Automatic):
			return nil
		case automatic && cause <= t.Ended:
			return mxerr.New(http.StatusConflict, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "you have unsubscribed since that event")
		default:
			t.Subscribed, t.Automatic = true, automatic
			return tx.SetThreadSubscription(user, t)
		}
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// inThread tells whether there is an event and it replies in the thread of a root.
func inThread(e *room.Event, root id.EventID) bool {
	if e == nil {
		return false
	}
	kind, parent := e.RelatesTo()
	return kind == "m.thread" && parent == root
}

// deleteThreadSubscription handles DELETE …/thread/{threadRootId}/subscription.
func (s *Sync) deleteThreadSubscription(w http.ResponseWriter, r *http.Request) error {
	rm, root, err := s.threadOfPath(r)
	if err != nil {
		return err
	}
	user := web.Requester(r).UserID
	err = s.d.Store.Write(r.Context(), func(tx *store.Tx) error {
		t, _, err := tx.ThreadSubscription(user, rm.NID(), root.ID())
		if err != nil || !t.Subscribed {
			return err
		}
		t.Subscribed, t.Automatic = false, false
		return tx.SetThreadSubscription(user, t)
	})
	if err != nil {
		return err
	}
	return web.WriteJSON(w, struct{}{})
}

// threadSubscriptions are subscriptions as clients get them, by room and root.
type threadSubscriptions struct {
	Subscribed   byThread[threadSubscribed]   `json:"subscribed,omitempty"`
	Unsubscribed byThread[threadUnsubscribed] `json:"unsubscribed,omitempty"`
	PrevBatch    string                       `json:"prev_batch,omitempty"` // in sliding sync
	End          string                       `json:"end,omitempty"`        // in pages
}

// byThread holds something for threads, by room and root.
type byThread[T any] map[id.RoomID]map[id.EventID]T

func (m *byThread[T]) put(t store.ThreadSubscription, what T) {
	if *m == nil {
		*m = byThread[T]{}
	}
	if (*m)[t.RoomID] == nil {
		(*m)[t.RoomID] = map[id.EventID]T{}
	}
	(*m)[t.RoomID][t.Root] = what
}

type threadSubscribed struct {
	Automatic bool  `json:"automatic"`
	Bump      int64 `json:"bump_stamp"`
}

type threadUnsubscribed struct {
	Bump int64 `json:"bump_stamp"`
}

// threadPage reads the latest subscriptions between two positions, and a token to go on from where there are more.
func (s *Sync) threadPage(ctx context.Context, user id.UserID, after, before int64, ended bool, limit int) (out threadSubscriptions, more string, err error) {
	var list []store.ThreadSubscription
	err = s.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		list, err = tx.ThreadSubscriptions(user, after, before, ended, limit+1)
		return err
	})
	if err != nil {
		return out, "", err
	}
	if len(list) > limit {
		list = list[:limit]
		more = strconv.FormatInt(list[limit-1].Pos, 10)
	}
	for _, t := range list {
		if t.Subscribed {
			out.Subscribed.put(t, threadSubscribed{t.Automatic, t.Pos})
		} else {
			out.Unsubscribed.put(t, threadUnsubscribed{t.Pos})
		}
	}
	return out, more, nil
}

// listThreadSubscriptions handles GET …/thread_subscriptions, which brings what was too much for sliding sync.
func (s *Sync) listThreadSubscriptions(w http.ResponseWriter, r *http.Request) error {
	if d := web.QueryString(r, "dir"); d != "b" {
		return mxerr.InvalidParam("query parameter 'dir' must be b")
	}
	limit, err := web.QueryInt(r, "limit", threadsDefault, 1, threadsMost)
	if err != nil {
		return err
	}
	after, before := int64(0), int64(math.MaxInt64)
	for name, to := range map[string]*int64{"from": &before, "to": &after} {
		text := web.QueryString(r, name)
		if text == "" {
			continue
		}
		if *to, err = strconv.ParseInt(text, 10, 64); err != nil || *to < 0 {
			return mxerr.InvalidParam("query parameter '" + name + "' must be a token from an earlier response")
		}
	}
	out, more, err := s.threadPage(r.Context(), web.Requester(r).UserID, after, before, true, limit)
	if err != nil {
		return err
	}
	out.End = more
	return web.WriteJSON(w, out)
}

// extendThreads writes the subscriptions that have changed since the last response, at first those that stand (MSC4308).
func (b *slider) extendThreads() error {
	x := b.in.ext.Threads
	if x == nil || !x.Enabled {
		return nil
	}
	limit, after := int64(threadsDefault), int64(0)
	if x.Limit != nil {
		limit = min(*x.Limit, threadsMost)
	}
	if !b.req.initial {
		if after = b.req.since.pos; !b.s.marks.account(b.req.user, after) {
			return nil
		}
	}
	out, more, err := b.s.threadPage(b.ctx, b.req.user, after, b.upto+1, !b.req.initial, int(limit))
	if err != nil || len(out.Subscribed)+len(out.Unsubscribed) == 0 {
		return err
	}
	out.PrevBatch = more
	b.urgent = true
	b.member(store.ThreadSubscriptionsKey)
	text, err := json.Marshal(out, json.Deterministic(true))
	b.b = append(b.b, text...)
	return err
}
