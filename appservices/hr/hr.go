// Package hr connects the company's HR system: a SCIM 2.0 server (RFC 7643, 7644) by which people join, move and leave,
// with an account before the first day and without one after the last, and announcements with their readers counted.
package hr

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	companygroups "github.com/moothall/moothall/homeserver/groups"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Source is the name under which package people and package groups know what comes by SCIM.
const Source = "scim"

// Config is what an administrator says about the HR system.
type Config struct {
	Tokens       []Token
	Localpart    string // template; see names
	LinkExisting bool   // people may take accounts that exist already and that no other entry has
	Welcome      bool   // newcomers and their managers get a message
	Departments  bool   // departments are units, which may have rooms and spaces
}

// Token is a secret that the configuration gives to an HR system.
type Token struct {
	ID        string
	Secret    string
	Addresses []netip.Prefix // from where it may be used; none: from anywhere
}

// Deps is what HR works with.
type Deps struct {
	Store      *store.Store
	Rooms      *room.Rooms
	Accounts   *account.Accounts
	Data       *account.Data
	People     *people.People
	Groups     *companygroups.Groups
	Audit      *audit.Log
	ServerName string
	PublicURL  string
	Config     Config
	Logger     *slog.Logger
	Clock      func() time.Time // nil: time.Now
}

// HR is the bridge.
type HR struct {
	d         Deps
	localpart *template.Template
	limits    *web.Limiter
	tokens    []hashedToken
	kick      chan struct{} // wakes Run
}

// names are what the localpart of an account can be made of.
type names struct {
	UserName, UserPart   string // userName; what stands before its @
	Email, EmailPart     string // the preferred address; what stands before its @
	EmployeeNumber       string
	NickName, ExternalID string
}

// ParseLocalpart checks a template of localparts.
func ParseLocalpart(s string) (*template.Template, error) {
	t, err := template.New("localpart").Option("missingkey=error").Parse(s)
	if err == nil {
		err = t.Execute(&bytes.Buffer{}, names{})
	}
	return t, err
}

// New makes the bridge.
func New(d Deps) (*HR, error) {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	t, err := ParseLocalpart(d.Config.Localpart)
	if err != nil {
		return nil, fmt.Errorf("hr.localpart: %w", err)
	}
	h := &HR{d: d, localpart: t, kick: make(chan struct{}, 1)}
	h.limits = web.NewLimiter(map[web.Rate]web.Bucket{
		web.RateLogin: {PerSecond: 0.2, Burst: 10},   // wrong tokens of one address
		web.RateSend:  {PerSecond: 500, Burst: 1000}, // requests of one token
	})
	for _, t := range d.Config.Tokens {
		h.tokens = append(h.tokens, hashedToken{name: t.ID, hash: hashToken(t.Secret), addresses: t.Addresses})
	}
	return h, nil
}

// Limits are the rate limits, which hold for all processes together.
func (h *HR) Limits() *web.Limiter { return h.limits }

func (h *HR) now() int64 { return h.d.Clock().UnixMilli() }

func (h *HR) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

const runEvery = 15 * time.Second

// Run does what is due: accounts open and close at their hour, newcomers are welcomed, announcements go out. One process
// does it at a time.
func (h *HR) Run(ctx context.Context) error {
	return h.d.Store.RunLeased(ctx, "hr", func(ctx context.Context) error {
		ctx = audit.WithSource(ctx, audit.Source{Kind: audit.KindSystem})
		for {
			work, both := errgroup.WithContext(ctx)
			work.Go(func() error { return h.due(both) })
			work.Go(func() error { return h.announceAll(both) })
			if err := work.Wait(); err != nil {
				return err
			}
			wait, err := h.untilDue(ctx)
			if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
				return nil
			case <-h.kick:
			case <-time.After(wait):
			}
		}
	})
}

// untilDue is how long nothing is due for anybody. Other processes may change that, so it is never long.
func (h *HR) untilDue(ctx context.Context) (time.Duration, error) {
	var next int64
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		next, err = tx.NextSCIMUser()
		return err
	})
	wait := runEvery
	if next != 0 {
		wait = min(wait, max(time.Duration(next-h.now())*time.Millisecond, 10*time.Millisecond))
	}
	return wait, err
}

// localpartOf makes the name of an account out of a resource.
func (h *HR) localpartOf(o object) (string, error) {
	email := preferred(o, "emails", "work")
	before := func(s string) string { part, _, _ := strings.Cut(s, "@"); return part }
	n := names{
		UserName: text(o, "userName"), UserPart: before(text(o, "userName")), Email: email, EmailPart: before(email),
		EmployeeNumber: text(o, enterpriseURN, "employeeNumber"), NickName: text(o, "nickName"), ExternalID: text(o, "externalId"),
	}
	var b strings.Builder
	if err := h.localpart.Execute(&b, n); err != nil {
		return "", bad(invalidValue, "no account name can be made of this person: %v", err)
	}
	local := strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.ContainsRune("._=-/+", c):
			return c
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		}
		return '_'
	}, b.String())
	if strings.Trim(local, "_") == "" {
		return "", bad(invalidValue, "no account name can be made of %q: hr.localpart must use another attribute", text(o, "userName"))
	}
	return local, nil
}
