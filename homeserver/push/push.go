package push

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Config is the part of the configuration that concerns pushers.
type Config struct {
	// AllowHTTP accepts gateways that are not https, for gateways inside the company's network.
	AllowHTTP bool
	// ThreadSubscriptions adds the rules of MSC4306.
	ThreadSubscriptions bool
}

// Counts is what a user has not read, over all rooms.
type Counts struct {
	Unread      int64
	MissedCalls int64
}

// RoomView is the current state of a room as notifications need it.
type RoomView interface {
	RoomID() id.RoomID
	MemberCount() int64                 // joined members
	Name() string                       // m.room.name, "" without one
	Alias() string                      // the canonical alias, "" without one
	DisplayName(user id.UserID) string  // in this room, "" without one
	PowerLevel(user id.UserID) int64    // of the user
	NotificationLevel(key string) int64 // what m.room.power_levels asks for in "notifications"; 50 by default
}

// Deps is what a Push needs. The funcs are asked by the delivery only; endpoints and rules work without them.
type Deps struct {
	Store  *store.Store
	Log    *slog.Logger
	Client *http.Client // for gateways: made by NewClient
	Config Config

	// Event gives an event of the log; nil (or a 404) where nothing is to be told of it (gone, rejected, soft-failed).
	Event func(ctx context.Context, room, nid int64) (*EventView, error)
	// RoomUsers lists the users of this server that are joined to the room.
	RoomUsers func(ctx context.Context, room int64) ([]id.UserID, error)
	// Room gives the room's state; nil where the room is gone.
	Room func(ctx context.Context, room int64) (RoomView, error)
	// Unread counts what the user has not read. Without it, no counts are sent.
	Unread func(ctx context.Context, user id.UserID) (Counts, error)
	// ReceiptUsers lists the users of this server whose receipts in the room changed at the position of the log or later.
	// Without it, badges are not cleared when messages are read.
	ReceiptUsers func(ctx context.Context, room, pos int64) ([]id.UserID, error)
	// Ignores tells whether the user ignores the sender.
	Ignores func(ctx context.Context, user, sender id.UserID) (bool, error)
	// Emails sends notifications by mail; nil: this server sends no mail.
	Emails *Emails
}

// Push serves push rules and pushers, and delivers notifications in Run.
type Push struct {
	Deps
	defaults *Compiled
	rules    rulesCache
	threads  threadCache
	users    pusherUsers
	dispatch dispatcher
	claims   batcher[int64, *store.Claimed]
	dones    batcher[store.Delivered, []store.Push]

	scanEvery time.Duration                      // between looks for pushers whose time has come
	backoff   func(failures int64) time.Duration // before the next attempt
}

// New makes a Push. It starts nothing.
func New(d Deps) *Push {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	p := &Push{Deps: d, defaults: CompileDefault(), scanEvery: 5 * time.Second, backoff: backoff}
	if d.Config.ThreadSubscriptions {
		p.defaults = Compile(new(Delta).withThreads(anyone))
	}
	p.rules.entries = make(map[id.UserID]*UserRules)
	p.dispatch.signal = make(chan struct{}, 1)
	p.claims.ask = p.claim
	p.dones.ask = p.noteDone
	return p
}

// Routes is the table of the module's endpoints. Spec: client-server API, "Push Notifications".
func (p *Push) Routes() []web.Route {
	const rules = "/_matrix/client/v3/pushrules"
	const rule = rules + "/global/{kind}/{ruleId}"
	return []web.Route{
		{Pattern: "GET " + rules, Auth: web.User, Rate: web.RateRead, Handler: p.getRules},
		{Pattern: "GET " + rules + "/", Auth: web.User, Rate: web.RateRead, Handler: p.getRules},
		{Pattern: "GET " + rules + "/global", Auth: web.User, Rate: web.RateRead, Handler: p.getGlobal},
		{Pattern: "GET " + rules + "/global/", Auth: web.User, Rate: web.RateRead, Handler: p.getGlobal},
		{Pattern: "GET " + rule, Auth: web.User, Rate: web.RateRead, Handler: p.getRule},
		{Pattern: "PUT " + rule, Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: p.putRule},
		{Pattern: "DELETE " + rule, Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: p.deleteRule},
		{Pattern: "GET " + rule + "/enabled", Auth: web.User, Rate: web.RateRead, Handler: p.getEnabled},
		{Pattern: "PUT " + rule + "/enabled", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: p.putEnabled},
		{Pattern: "GET " + rule + "/actions", Auth: web.User, Rate: web.RateRead, Handler: p.getActions},
		{Pattern: "PUT " + rule + "/actions", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: p.putActions},
		{Pattern: "GET /_matrix/client/v3/pushers", Auth: web.User, Rate: web.RateRead, Handler: p.getPushers},
		{Pattern: "POST /_matrix/client/v3/pushers/set", Auth: web.User, AllowSuspended: true, Rate: web.RateSend, Handler: p.setPusher},
	}
}

// Listener keeps the caches true; it belongs to the listeners given to store.Follow.
func (p *Push) Listener() store.Listener {
	return store.Listener{Apply: func(entries []store.Entry) {
		for i := range entries {
			switch e := &entries[i]; {
			case e.Kind == store.KindReset:
				p.rules.clear()
				p.threads.clear()
				p.users.forget()
			case e.Kind == store.KindAccountData && e.Key == store.PushRulesType:
				p.rules.drop(id.UserID(e.User))
			case e.Kind == store.KindAccountData && e.Key == store.ThreadSubscriptionsKey:
				p.threads.drop(e.Room)
			case e.Kind == store.KindPusher:
				p.users.changed(e.User)
			}
		}
	}}
}

// UserRules are the rules of one user, ready for use.
type UserRules struct {
	Compiled *Compiled
	Pos      int64 // log position of their last change, 0 for none
	delta    *Delta
	user     id.UserID
	threads  bool // with the rules of MSC4306
}

// Ruleset gives the rules in full.
func (u *UserRules) Ruleset() *Ruleset {
	if u.threads {
		return u.delta.withThreads(string(u.user))
	}
	return u.delta.Ruleset(string(u.user))
}

// Rules gives the user's rules, from memory where they were used before.
func (p *Push) Rules(ctx context.Context, user id.UserID) (*UserRules, error) {
	u, seen := p.rules.get(user)
	if u != nil {
		return u, nil
	}
	u = &UserRules{user: user, Compiled: p.defaults, threads: p.Config.ThreadSubscriptions}
	err := p.Store.Read(ctx, func(tx *store.Tx) error {
		b, pos, err := tx.PushRules(user)
		if err != nil {
			return err
		}
		u.Pos = pos
		u.delta, err = ParseDelta(b)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !u.delta.Empty() {
		u.Compiled = Compile(u.Ruleset())
	}
	p.rules.put(user, u, seen)
	return u, nil
}

// AccountData gives the content of the user's m.push_rules and the log position of its last change (0: never changed), for
// /sync and GET account_data.
func (p *Push) AccountData(ctx context.Context, user id.UserID) (content []byte, pos int64, err error) {
	u, err := p.Rules(ctx, user)
	if err != nil {
		return nil, 0, err
	}
	content, err = u.Ruleset().JSON()
	return content, u.Pos, err
}

// rulesCache holds the rules of users. Its version tells a reader whether what it read meanwhile may have changed.
type rulesCache struct {
	mu      sync.Mutex
	version int64
	entries map[id.UserID]*UserRules
}

const maxCachedRules = 50_000

func (c *rulesCache) get(user id.UserID) (u *UserRules, version int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[user], c.version
}

func (c *rulesCache) put(user id.UserID, u *UserRules, version int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.version != version {
		return
	}
	if len(c.entries) >= maxCachedRules {
		for other := range c.entries {
			delete(c.entries, other) // any one: maps are walked in random order
			break
		}
	}
	c.entries[user] = u
}

func (c *rulesCache) drop(user id.UserID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	delete(c.entries, user)
}

func (c *rulesCache) clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.version++
	clear(c.entries)
}
