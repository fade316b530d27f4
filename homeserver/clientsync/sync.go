// Package clientsync answers GET /sync and what goes with it: receipts, read markers, typing, presence, unread counts
// and notifications. An incremental sync costs what has changed since its token; a long poll holds a watch and little
// else.
package clientsync

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Deps is what a Sync works with. The funcs come from other features.
type Deps struct {
	Store  *store.Store
	Rooms  *room.Rooms
	Data   *account.Data
	Keys   *account.Keys
	Logger *slog.Logger
	Now    func() time.Time // nil: time.Now

	// Rules gives a user's push rules for the events of one room; nil: nothing notifies.
	Rules func(ctx context.Context, user id.UserID, r *room.Room) (Rules, error)
	// PushRules gives the content of a user's account data event m.push_rules; nil: there is none.
	PushRules func(ctx context.Context, user id.UserID) ([]byte, error)
	// Thread gives the root of the thread that an event belongs to by its stored push features, "" for the main
	// timeline; nil: there are no threads.
	Thread func(features []byte) string
	// Bundle gives the bundled aggregations of some events of a room, as a user sees them: a func from an event to the
	// JSON object of unsigned."m.relations", or nil. It is asked only for events that others relate to; nil: none.
	Bundle func(ctx context.Context, user id.UserID, r *room.Room, events []*room.Event) (func(e *room.Event) []byte, error)
	// SessionEnded tells whether the session of a waiting request was ended meanwhile, by the error that a new request
	// would get; nil: it never is.
	SessionEnded func(ctx context.Context, who *web.Identity) error
	// Typing is told who types in a room, by its number, whenever that changes, in this process or another; nil: nobody
	// wants to know.
	Typing func(room int64, users []id.UserID)
	// Presence is told of a user's presence when it changes: the content of m.presence; nil: nobody wants to know.
	Presence func(user id.UserID, content []byte)
}

// Rules is what the push rules of one user say of the events of one room.
type Rules struct {
	// Skips tells by the stored push features that an event notifies the user of nothing, whoever sent it; nil: never.
	Skips func(features []byte) bool
	// Quick decides by the stored push features; decided is false where the event has to be read.
	Quick func(features []byte, sender id.UserID) (v Verdict, decided bool)
	// Full decides by the whole event.
	Full func(e *room.Event) (Verdict, error)
}

// Verdict is what the most important matching rule asks for.
type Verdict struct {
	Notify    bool
	Highlight bool
	Actions   func() ([]byte, error) // the rule's actions as a JSON array; nil where nothing matched
}

// Sync holds what the endpoints share. It is safe for concurrent use.
type Sync struct {
	d        Deps
	marks    *marks
	waker    *waker
	serial   atomic.Int64
	typing   *typing
	presence *presence
	receipts *receipts
	writer   *receiptWriter
	unread   *unreadCounts
	caches   *caches
	cleaner  *cleaner
	facts    *facts

	connections *connections

	listKick  chan struct{}
	listMu    sync.Mutex
	listUsers map[id.UserID]struct{} // whose device lists changed; who shares rooms with them is to be woken

	drainOnce sync.Once
	draining  chan struct{}
}

// New makes a Sync. Run does its work in the background.
func New(d Deps) *Sync {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	s := &Sync{
		d:         d,
		marks:     newMarks(),
		waker:     newWaker(d.Now),
		caches:    newCaches(),
		cleaner:   &cleaner{kick: make(chan struct{}, 1), upto: make(map[deviceKey]int64)},
		listKick:  make(chan struct{}, 1),
		listUsers: make(map[id.UserID]struct{}),
		draining:  make(chan struct{}),
	}
	node := d.Store.Node()
	s.typing = newTyping(node, &s.serial, d.Now)
	s.presence = newPresence(node, &s.serial, d.Now)
	s.receipts = newReceipts(d.Store, s.marks)
	s.writer = newReceiptWriter(d.Store)
	s.unread = newUnreadCounts(s)
	s.facts = newFacts(s)
	s.connections = newConnections(d.Store, d.Now)
	return s
}

// Routes is the table of the package's endpoints.
func (s *Sync) Routes() []web.Route {
	return append(s.threadRoutes(), []web.Route{
		{Pattern: "GET /_matrix/client/v3/sync", Auth: web.User, Rate: web.RateNone, Handler: s.getSync},
		{Pattern: "POST /_matrix/client/v4/sync", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: s.postSliding4186},
		{Pattern: "POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: s.postSliding3575},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: s.postReceipt},
		{Pattern: "POST /_matrix/client/v3/rooms/{roomId}/read_markers", Auth: web.User, AllowSuspended: true, Rate: web.RateNone, Handler: s.postReadMarkers},
		{Pattern: "PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}", Auth: web.User, Rate: web.RateNone, Handler: s.putTyping},
		{Pattern: "GET /_matrix/client/v3/presence/{userId}/status", Auth: web.User, Rate: web.RateRead, Handler: s.getPresence},
		{Pattern: "PUT /_matrix/client/v3/presence/{userId}/status", Auth: web.User, Rate: web.RateRead, Handler: s.putPresence},
		{Pattern: "GET /_matrix/client/v3/notifications", Auth: web.User, Rate: web.RateRead, Handler: s.getNotifications},
	}...)
}

// Listener follows the log. It stands behind the listener of the rooms.
func (s *Sync) Listener() store.Listener {
	return store.Listener{Hydrate: s.receipts.hydrate, Apply: s.apply, Wake: s.wake}
}

func (s *Sync) apply(entries []store.Entry) {
	s.marks.apply(entries)
	s.receipts.apply(entries)
	s.facts.apply(entries)
	for i := range entries {
		switch e := &entries[i]; e.Kind {
		case store.KindReset:
			s.unread.reset()
		case store.KindEvent:
			if ev, ok := room.EventOf(e); ok {
				s.presence.active(ev.PDU.Sender())
			}
		}
	}
}

// wake wakes whoever waits for what is not an event; the rooms wake for those.
func (s *Sync) wake(entries []store.Entry) {
	for i := range entries {
		e := &entries[i]
		user := id.UserID(e.User)
		switch e.Kind {
		case store.KindAccountData, store.KindToDevice, store.KindSession, store.KindUser:
			s.d.Rooms.Poke(user)
		case store.KindReceipt:
			rr, here := s.receipts.rooms.GetIfPresent(e.Room)
			if rs, ok := e.Payload.([]*store.Receipt); ok && !(here && rr.crowded()) {
				for _, r := range rs {
					s.d.Rooms.Poke(id.UserID(r.User)) // the unread counts of the user's own devices
				}
			}
			s.waker.schedule(e.Room, receiptEvery)
		case store.KindProfile:
			s.presence.rename(user)
		case store.KindDeviceList:
			s.d.Rooms.Poke(user)
			s.listMu.Lock()
			s.listUsers[user] = struct{}{}
			s.listMu.Unlock()
			nudge(s.listKick)
		}
	}
}

// OnBroadcast takes in what other processes send beside the log; it takes the place of store.Follow's broadcast, or is
// called by it with every topic.
func (s *Sync) OnBroadcast(topic, payload string) {
	var err error
	switch topic {
	case topicTyping:
		var nid int64
		var news bool
		if nid, news, err = s.typing.receive(payload); news {
			s.tellTyping(nid)
			s.waker.schedule(nid, typingEvery)
		}
	case topicPresence:
		err = s.presence.receive(payload)
	}
	if err != nil {
		s.d.Logger.Warn("a broadcast cannot be read", "topic", topic, "error", err)
	}
}

// Drain ends all long polls with the response they would have at their time-out, and those that begin later at once.
// It comes before the shutdown of the listeners, which waits for requests under way.
func (s *Sync) Drain() { s.drainOnce.Do(func() { close(s.draining) }) }

// Run writes receipts, wakes and tells other processes, until ctx ends; then it writes what still waits.
func (s *Sync) Run(ctx context.Context) error {
	if err := s.loadStatus(ctx); err != nil {
		return err
	}
	defer s.Drain()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.writer.run(ctx, s.d.Logger) })
	g.Go(func() error { return s.runWaker(ctx) })
	g.Go(func() error { return s.runLists(ctx) })
	g.Go(func() error { return s.runCleaner(ctx) })
	g.Go(func() error { return s.runPresence(ctx) })
	g.Go(func() error { return s.unread.run(ctx) })
	g.Go(func() error { return s.connections.run(ctx, s) })
	return g.Wait()
}

func (s *Sync) loadStatus(ctx context.Context) error {
	err := s.d.Store.Read(ctx, func(tx *store.Tx) error {
		return tx.PresenceStatus(func(user, status string) { s.presence.setStatus(id.UserID(user), status) })
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("read status messages: %w", err)
	}
	return nil
}

// runWaker wakes rooms when it is time, and ends typing that nobody renewed.
func (s *Sync) runWaker(ctx context.Context) error {
	var crowds crowds
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.waker.kick:
		case <-timer.C:
		}
		ended, next := s.typing.expire()
		for _, nid := range ended {
			s.tellTyping(nid)
			s.waker.schedule(nid, typingEvery)
		}
		rooms, due := s.waker.take()
		if !due.IsZero() && (next.IsZero() || due.Before(next)) {
			next = due
		}
		for _, nid := range rooms {
			s.marks.show(nid)
			crowds.add(s.d.Rooms.Watching(nid))
		}
		s.castTyping()
		wait := time.Hour
		if !next.IsZero() {
			wait = max(next.Sub(s.d.Now()), time.Millisecond)
		}
		if crowds.step(s.d.Now()) {
			wait = min(wait, crowdTurn)
		}
		timer.Reset(wait)
	}
}

func (s *Sync) castTyping() {
	for _, c := range s.typing.casts() {
		if !s.d.Store.SQLite() {
			s.cast(topicTyping, c)
		}
	}
}

// runLists wakes those who share rooms with users whose device lists changed.
func (s *Sync) runLists(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.listKick:
		}
		s.listMu.Lock()
		users := s.listUsers
		s.listUsers = make(map[id.UserID]struct{})
		s.listMu.Unlock()
		for u := range users {
			others, err := s.d.Rooms.UsersSharingRoom(ctx, u)
			if err != nil {
				if ctx.Err() == nil {
					s.d.Logger.Warn("who shares rooms with a user is not known", "user_id", u, "error", err)
				}
				continue
			}
			for o := range others {
				s.d.Rooms.Poke(o)
			}
		}
	}
}

// runPresence publishes presence.
func (s *Sync) runPresence(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	rest := 0
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if n%5 == 0 {
			s.presence.tick()
		}
		if rest--; rest <= 0 && s.publishPresence(ctx) > presenceCrowd {
			rest = 5
		}
	}
}

// cast sends a value to the other processes; it may be lost.
func (s *Sync) cast(topic string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		s.d.Logger.Error("a broadcast cannot be written", "topic", topic, "error", err)
		return
	}
	s.d.Store.Broadcast(topic, string(b))
}

// readProfiles has changed names and avatars told with presence.
// Spec: client-server API, "Events on Change of Profile Information".
func (s *Sync) readProfiles(ctx context.Context) {
	users := s.presence.takeRenamed()
	if len(users) == 0 {
		return
	}
	var profiles map[id.UserID]store.Profile
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		profiles, err = tx.Profiles(users)
		return err
	})
	if err != nil {
		if ctx.Err() == nil {
			s.d.Logger.Warn("profiles cannot be read; presence does not tell of their change", "error", err)
		}
		return
	}
	for _, u := range users {
		p := profiles[id.UserID(u)]
		b := []byte{}
		for _, f := range []struct {
			name  string
			value *string
		}{{"avatar_url", p.AvatarURL}, {"displayname", p.DisplayName}} {
			if f.value != nil {
				b = append(b, `,"`+f.name+`":`...)
				b = event.AppendCanonicalString(b, *f.value)
			}
		}
		s.presence.setProfile(id.UserID(u), b)
	}
}

// presenceCrowd is how many users may be woken for presence every second; for more it is every five.
const presenceCrowd = 200

// publishPresence puts what changed into the feeds of those who share rooms, and wakes them. It tells how many.
func (s *Sync) publishPresence(ctx context.Context) int {
	s.readProfiles(ctx)
	users, urgent := s.presence.take()
	if !s.d.Store.SQLite() {
		for _, c := range s.presence.casts(users) {
			s.cast(topicPresence, c)
		}
	}
	wake := make(map[id.UserID]struct{})
	for i, u := range users {
		if v, known := s.presence.get(u); known && s.d.Presence != nil {
			s.d.Presence(u, s.appendPresence(nil, v))
		}
		others, err := s.d.Rooms.UsersSharingRoom(ctx, u)
		if err != nil {
			if ctx.Err() == nil {
				s.d.Logger.Warn("who shares rooms with a user is not known", "user_id", u, "error", err)
			}
			continue
		}
		for _, o := range s.presence.publish(u, urgent[i], others) {
			if urgent[i] {
				wake[o] = struct{}{}
			}
		}
	}
	for o := range wake {
		s.d.Rooms.Poke(o)
	}
	return len(wake)
}
