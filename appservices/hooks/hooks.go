// Package hooks lets systems that only speak HTTP take part in chat: named addresses that they post messages to, in a
// form of ours or in those of robots and tools they know already, and subscriptions by which chosen events go out to them.
package hooks

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Config is how hooks behave.
type Config struct {
	BotPrefix     string        // begins the localparts of the accounts that hooks write as
	PerMinute     int           // posts of a hook that names no number of its own
	MaxAttachment int64         // bytes of one attachment
	GiveUp        time.Duration // how long an endpoint may be out of order before events for it are laid aside
	Subscriptions []NewSubscription
}

// File is a file that was kept.
type File struct {
	URI, Type     string
	Size          int64
	Width, Height int
}

// Deps is what hooks work with.
type Deps struct {
	Store      *store.Store
	Rooms      *room.Rooms
	Accounts   *account.Accounts
	Profiles   *account.Profiles
	Audit      *audit.Log
	ServerName string
	PublicURL  string
	Config     Config
	Client     *http.Client // for addresses that others choose: attachments, endpoints
	Logger     *slog.Logger
	// SaveFile keeps an attachment as a user's upload.
	SaveFile func(ctx context.Context, user id.UserID, name, contentType string, b []byte) (File, error)
	// Service is the account that owns rooms of the server's own making.
	Service func(ctx context.Context) (id.UserID, error)
	Clock   func() time.Time // nil: time.Now
}

// Hooks takes in posts and sends events out.
type Hooks struct {
	d     Deps
	wrong *web.Limiter  // requests that prove nothing
	kick  chan struct{} // wakes deliveries
	share atomic.Bool   // other processes hear of what limits gave out

	mu     sync.Mutex
	limits map[int]*web.Limiter // by posts a minute
	bots   map[string]id.UserID // accounts that are there, by hook
	making map[string]*sync.Mutex
}

// New makes Hooks.
func New(d Deps) *Hooks {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	return &Hooks{
		d: d, kick: make(chan struct{}, 1), limits: map[int]*web.Limiter{}, bots: map[string]id.UserID{}, making: map[string]*sync.Mutex{},
		wrong: web.NewLimiter(map[web.Rate]web.Bucket{web.RateLogin: {PerSecond: 0.5, Burst: 30}}),
	}
}

func (h *Hooks) now() int64 { return h.d.Clock().UnixMilli() }

// Run queues events for subscriptions and delivers them, until ctx ends. One process does each at a time.
func (h *Hooks) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem})
	h.keepConfigured(ctx)
	g.Go(func() error { return h.d.Store.RunFollower(ctx, "hooks", h.queue) })
	g.Go(func() error { return h.d.Store.RunLeased(ctx, "hooks", h.deliverAll) })
	return g.Wait()
}

const (
	base      = "/_moothall/hooks/v1/"
	adminBase = "/_moothall/admin/v1/hooks"
)

// Routes are the endpoints of hooks, and those by which administrators manage them.
func (h *Hooks) Routes() []web.Route {
	post := func(pattern string) web.Route {
		return web.Route{Pattern: "POST " + base + pattern, Auth: web.Public, Handler: h.post}
	}
	admin := func(pattern string, rate web.Rate, fn web.Handler) web.Route {
		return web.Route{Pattern: pattern, Auth: web.Admin, Rate: rate, Handler: fn}
	}
	return []web.Route{
		post("{hook}"), post("{hook}/{secret}"),
		admin("GET "+adminBase, web.RateRead, h.getHooks),
		admin("POST "+adminBase, web.RateCreate, h.postHook),
		admin("DELETE "+adminBase+"/{hook}", web.RateSend, h.deleteHook),
		admin("POST "+adminBase+"/{hook}/test", web.RateSend, h.postTest),
		admin("GET "+adminBase+"/subscriptions", web.RateRead, h.getSubscriptions),
		admin("POST "+adminBase+"/subscriptions", web.RateCreate, h.postSubscription),
		admin("DELETE "+adminBase+"/subscriptions/{name}", web.RateSend, h.deleteSubscription),
		admin("POST "+adminBase+"/subscriptions/{name}/pause", web.RateSend, h.postPause(true)),
		admin("POST "+adminBase+"/subscriptions/{name}/resume", web.RateSend, h.postPause(false)),
		admin("GET "+adminBase+"/subscriptions/{name}/dead-letters", web.RateRead, h.getDead),
		admin("POST "+adminBase+"/subscriptions/{name}/replay", web.RateSend, h.postReplay),
	}
}
