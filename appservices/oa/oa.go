// Package oa lets people decide in chat what an OA system asks them: a card in their approvals room, links to a page behind
// sign-in, reactions and replies where little is at stake. What was decided is told to the OA system until it has heard it.
package oa

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

//go:embed pages
var pageFiles embed.FS

// Visitor is who uses a page.
type Visitor struct {
	User    id.UserID
	AMR     []string
	Session string // name of the browser's session; no secret
}

// Deps is what OA works with.
type Deps struct {
	Store    *store.Store
	Rooms    *room.Rooms
	Accounts *account.Accounts
	Profiles *account.Profiles
	Audit    *audit.Log
	Kit      *page.Kit
	Client   *http.Client // reaches private addresses: OA systems are named by the operator
	Logger   *slog.Logger
	// Service gives the account that owns the approvals rooms and writes in them.
	Service func(ctx context.Context) (id.UserID, error)
	// Signed tells who uses a page, signed in with a second factor and not longer ago than maxAge (0: any) where factor is true; ok
	// is false where the request was answered with a way to sign in.
	Signed     func(w http.ResponseWriter, r *http.Request, factor bool, maxAge time.Duration) (Visitor, bool)
	ServerName string
	PublicURL  string
	Config     Config
	Clock      func() time.Time // nil: time.Now
}

// OA is the bridge.
type OA struct {
	d       Deps
	pages   *page.Set
	systems map[string]*system
	limits  *web.Limiter
	words   *words
	purged  int64 // when old links were forgotten last (ms); of the loop that makes cards

	mu     sync.Mutex
	making map[id.UserID]chan struct{} // rooms in the making
	kicks  map[string]chan struct{}    // wake the loops, by name
}

// system is an OA system at work.
type system struct {
	*System
	token []byte // hash
}

// New makes the bridge.
func New(d Deps) (*OA, error) {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if f := d.Config.Check(); f != nil {
		return nil, f
	}
	files, err := fs.Sub(pageFiles, "pages")
	if err != nil {
		return nil, err
	}
	set, err := d.Kit.Set(files)
	if err != nil {
		return nil, fmt.Errorf("pages of approvals: %w", err)
	}
	o := &OA{
		d: d, pages: set, systems: map[string]*system{}, words: &english, making: map[id.UserID]chan struct{}{},
		kicks: map[string]chan struct{}{loopCards: make(chan struct{}, 1)},
		limits: web.NewLimiter(map[web.Rate]web.Bucket{
			web.RateLogin: {PerSecond: 0.2, Burst: 10},   // wrong tokens and forms of one address
			web.RateSend:  {PerSecond: 500, Burst: 1000}, // requests of one system
		}),
	}
	if d.Config.Language == "zh" {
		o.words = &chinese
	}
	if o.d.Config.RoomName == "" {
		o.d.Config.RoomName = o.words.room
	}
	o.d.PublicURL = strings.TrimSuffix(d.PublicURL, "/")
	for i := range d.Config.Systems {
		s := &d.Config.Systems[i]
		o.systems[s.ID] = &system{System: s, token: hashSecret(s.Token)}
		o.kicks[loopCallbacks+s.ID] = make(chan struct{}, 1)
	}
	return o, nil
}

// Limits are the rate limits, which hold for all processes together.
func (o *OA) Limits() *web.Limiter { return o.limits }

func (o *OA) now() int64 { return o.d.Clock().UnixMilli() }

const (
	loopCards     = "cards"
	loopCallbacks = "callbacks:"
	castTopic     = "oa"
)

// wake tells the loop of a name, on whatever node it runs, that there is work.
func (o *OA) wake(loops ...string) {
	for _, name := range loops {
		o.d.Store.Broadcast(castTopic, name)
	}
}

// OnBroadcast takes what processes tell each other.
func (o *OA) OnBroadcast(topic, payload string) {
	if topic != castTopic {
		return
	}
	if c := o.kicks[payload]; c != nil {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Routes are the API of OA systems, and the pages.
func (o *OA) Routes() []web.Route {
	return append(o.apiRoutes(), o.pageRoutes()...)
}

// lookEvery is how often loops look for work that nobody told them of: another node's word may get lost.
const lookEvery = 10 * time.Second

// Run makes the cards, listens to the answers and tells OA systems. One process does each at a time.
func (o *OA) Run(ctx context.Context) error {
	if len(o.systems) == 0 {
		return nil
	}
	ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.d.Store.RunFollower(ctx, "oa", o.follow) })
	g.Go(func() error { return o.loop(ctx, loopCards, o.cards) })
	for _, s := range o.systems {
		if s.Callback.URL != "" {
			g.Go(func() error {
				return o.loop(ctx, loopCallbacks+s.ID, func(ctx context.Context) (int64, error) { return o.callbacks(ctx, s) })
			})
		}
		if s.Poll.URL != "" {
			g.Go(func() error {
				return o.loop(ctx, "poll:"+s.ID, func(ctx context.Context) (int64, error) {
					o.poll(ctx, s)
					return o.d.Clock().Add(s.Poll.Every).UnixMilli(), nil
				})
			})
		}
	}
	return g.Wait()
}

// loop calls fn on one process at a time: when it is woken, and when fn said that something is due (ms; 0: nothing is).
func (o *OA) loop(ctx context.Context, name string, fn func(ctx context.Context) (int64, error)) error {
	return o.d.Store.RunLeased(ctx, "oa "+name, func(ctx context.Context) error {
		for {
			next, err := fn(ctx)
			if err != nil {
				return err
			}
			wait := lookEvery
			if kick := o.kicks[name]; next > 0 && (kick == nil || time.Duration(next-o.now())*time.Millisecond < wait) {
				wait = max(time.Duration(next-o.now())*time.Millisecond, 10*time.Millisecond)
			}
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
			case <-timer.C:
			case <-o.kicks[name]: // nil for loops that nobody wakes
			}
			timer.Stop()
			if ctx.Err() != nil {
				return nil
			}
		}
	})
}
