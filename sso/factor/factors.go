package factor

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-webauthn/webauthn/webauthn"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/page"
	"github.com/moothall/moothall/homeserver/store"
)

// Deps is what factors work with.
type Deps struct {
	Store      *store.Store
	ServerName string
	PublicURL  string
	Logger     *slog.Logger
	Config     Config
	Clock      func() time.Time // nil: time.Now

	// Kit makes the pages; nil: there are none.
	Kit *page.Kit
	// Client sends to the SMS gateway, which the operator has named: it may be inside. nil: http.DefaultClient.
	Client *http.Client
	// MailQueued is told that mail waits in the outbox; nil: no mail can be sent.
	MailQueued func()
	// Roles and Groups tell a user's roles and groups, for policies; nil: nobody has any.
	Roles  func(ctx context.Context, user id.UserID) ([]string, error)
	Groups func(ctx context.Context, user id.UserID) ([]string, error)
	// MayAct tells whether an account may be used; nil: all may. Errors: M_USER_DEACTIVATED, M_USER_LOCKED, M_NOT_FOUND.
	MayAct func(ctx context.Context, user id.UserID) error
}

// Factors are the second factors of all users, and the policies about them.
type Factors struct {
	Deps

	web     *webauthn.WebAuthn // nil: browsers offer no passkeys at the public address
	gateway *gateway           // nil: there is none
	pages   *page.Set
}

// New makes Factors.
func New(d Deps) (*Factors, error) {
	if d.Clock == nil {
		d.Clock = time.Now
	}
	if d.Logger == nil {
		d.Logger = slog.Default()
	}
	if d.Client == nil {
		d.Client = http.DefaultClient
	}
	var err error
	if d.Config, err = d.Config.withDefaults(d.ServerName); err != nil {
		return nil, err
	}
	f := &Factors{Deps: d}
	if f.web, err = newWebAuthn(d.PublicURL, d.Config.Issuer); err != nil {
		return nil, err
	}
	if d.Config.SMS != nil {
		if f.gateway, err = newGateway(d.Config.SMS, d.Client); err != nil {
			return nil, err
		}
	}
	if d.Kit != nil {
		if f.pages, err = d.Kit.Set(pageFiles()); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// Run removes what has expired, until ctx ends.
func (f *Factors) Run(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			now := f.now()
			if err := f.Store.Write(ctx, func(tx *store.Tx) error { return tx.SweepFactors(now) }); err != nil && ctx.Err() == nil {
				f.Logger.Warn("remove expired second factors", "error", err)
			}
		}
	}
}

func (f *Factors) now() int64 { return f.Clock().UnixMilli() }

// From is where a request comes from.
type From struct {
	IP    netip.Addr
	Agent string
	Lang  string // of what is sent
}

// Offered tells whether a kind can be enrolled on this server.
func (f *Factors) Offered(k Kind) bool {
	if !slices.Contains(f.Config.Allow, k) {
		return false
	}
	switch k {
	case WebAuthn:
		return f.web != nil
	case SMS:
		return f.gateway != nil
	case Email:
		return f.MailQueued != nil
	}
	return true
}

// Passkeys tells whether people can sign in by a passkey alone.
func (f *Factors) Passkeys() bool { return f.Offered(WebAuthn) }

// Info is a factor as its owner sees it.
type Info struct {
	ID      string
	Kind    Kind
	Name    string
	To      string // where codes go, for the most part hidden; "" for other kinds
	Created int64  // ms
	Used    int64  // ms; 0: never
	Synced  bool   // a passkey that its owner's cloud keeps on several devices
}

// List tells the active factors of a user and how many recovery codes are left.
func (f *Factors) List(ctx context.Context, user id.UserID) (list []Info, recovery int64, err error) {
	err = f.Store.Read(ctx, func(tx *store.Tx) error {
		list = nil
		factors, err := activeFactors(tx, user)
		if err != nil {
			return err
		}
		for _, x := range factors {
			list = append(list, infoOf(x))
		}
		recovery, err = tx.RecoveryCodes(user)
		return err
	})
	return list, recovery, err
}

func infoOf(x store.Factor) Info {
	i := Info{ID: x.ID, Kind: Kind(x.Kind), Name: x.Name, Created: x.Created, Used: x.Used}
	switch i.Kind {
	case SMS:
		i.To = hideNumber(string(x.Secret))
	case Email:
		i.To = hideAddress(string(x.Secret))
	case WebAuthn:
		if c, err := credentialOf(x); err == nil {
			i.Synced = c.Flags.BackupEligible
		}
	}
	return i
}

func activeFactors(tx *store.Tx, user id.UserID) ([]store.Factor, error) {
	all, err := tx.Factors(user)
	return slices.DeleteFunc(all, func(x store.Factor) bool { return !x.Active }), err
}

var (
	errWrong     = mxerr.Forbidden("this code is wrong, was used already or has expired")
	errNoFactor  = mxerr.NotFound("there is no such second factor")
	errNotHere   = mxerr.New(http.StatusBadRequest, "M_UNRECOGNIZED", "this kind of second factor is not offered here")
	errTooMany   = mxerr.New(http.StatusBadRequest, "M_LIMIT_EXCEEDED", "this account has as many of these as it may; remove one first")
	errLast      = mxerr.Forbidden("your organisation requires a second factor of this account: add another one before you remove this one")
	errName      = mxerr.InvalidParam("a name must have 1 to 64 characters")
	errNotProved = mxerr.Forbidden("prove a second factor first")
)

// try runs a check of what somebody showed. Tries for one account follow each other, on all nodes, and after a few wrong ones
// the account has to wait: that is what keeps six digits from being guessed. fn may be run again, as transactions may.
func (f *Factors) try(ctx context.Context, user id.UserID, action string, fn func(tx *store.Tx) (ok bool, details map[string]any, err error)) error {
	handle := newHandle()
	var outcome error
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		outcome = nil
		now := f.now()
		u, err := tx.LockFactorUser(user, handle)
		if err != nil {
			return err
		}
		if u.BlockedUntil > now {
			outcome = mxerr.LimitExceeded(time.Duration(u.BlockedUntil-now) * time.Millisecond)
			return f.audit(ctx, tx, user, action, audit.Refused, "M_LIMIT_EXCEEDED", nil)
		}
		ok, details, err := fn(tx)
		if err != nil {
			return err
		}
		if ok {
			if u.Failures > 0 {
				u.Failures, u.BlockedUntil = 0, 0
				if err := tx.UpdateFactorUser(u); err != nil {
					return err
				}
			}
			return f.audit(ctx, tx, user, action, audit.OK, "", details)
		}
		outcome = errWrong
		u.Failures++
		u.BlockedUntil = now + waitAfter(u.Failures).Milliseconds()
		if err := tx.UpdateFactorUser(u); err != nil {
			return err
		}
		return f.audit(ctx, tx, user, action, audit.Refused, "M_FORBIDDEN", details)
	})
	if err != nil {
		return err
	}
	return outcome
}

// waitAfter is how long an account has to wait after so many wrong tries: 1 min, 2 min, 4 min … 1 h.
func waitAfter(failures int64) time.Duration {
	if failures < freeFailures {
		return 0
	}
	wait := firstWait
	for ; failures > freeFailures && wait < longestWait; failures-- {
		wait *= 2
	}
	return min(wait, longestWait)
}

// audit notes an act in its transaction.
func (f *Factors) audit(ctx context.Context, tx *store.Tx, user id.UserID, action string, result audit.Result, reason string, details map[string]any) error {
	e := audit.Entry{Action: action, Target: string(user), Result: result, Reason: reason, Details: details}
	// At sign-in nobody is signed in yet: whoever proves something is the user, and whoever does not is nobody.
	if result == audit.OK && audit.SourceOf(ctx).Actor == "" {
		e.Actor = user
	}
	return audit.Append(ctx, tx, e)
}

// Rename gives a factor another name.
func (f *Factors) Rename(ctx context.Context, user id.UserID, factorID, name string) error {
	name, err := cleanName(name)
	if err != nil {
		return err
	}
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		x, found, err := tx.Factor(user, factorID)
		if err != nil {
			return err
		}
		if !found || !x.Active {
			return errNoFactor
		}
		x.Name = name
		if err := tx.UpdateFactor(x); err != nil {
			return err
		}
		return f.audit(ctx, tx, user, "factor."+x.Kind+".renamed", audit.OK, "", map[string]any{"factor": x.ID})
	})
}

// Remove takes a factor from a user, who has proved one lately (the caller sees to that). Browsers that were remembered are
// forgotten: what they had proved may have been this one. A factor that a policy asks for is not removed if it is the
// last one; errLast then. With the last factor the recovery codes go.
func (f *Factors) Remove(ctx context.Context, user id.UserID, factorID string, p Passed) error {
	rule, err := f.rule(ctx, user, p)
	if err != nil {
		return err
	}
	return f.Store.Write(ctx, func(tx *store.Tx) error {
		if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
			return err
		}
		factors, err := activeFactors(tx, user)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(factors, func(x store.Factor) bool { return x.ID == factorID })
		if at < 0 {
			return errNoFactor
		}
		x := factors[at]
		factors = slices.Delete(factors, at, at+1)
		if rule.demands() && accepts(rule.Require, Kind(x.Kind)) && !slices.ContainsFunc(factors, func(o store.Factor) bool { return accepts(rule.Require, Kind(o.Kind)) }) {
			return errLast
		}
		if _, err := tx.DeleteFactor(user, factorID); err != nil {
			return err
		}
		if _, err := tx.DeleteRememberedDevice(user, ""); err != nil {
			return err
		}
		if len(factors) == 0 {
			if err := tx.ReplaceRecoveryCodes(user, nil); err != nil {
				return err
			}
		}
		return f.audit(ctx, tx, user, "factor."+x.Kind+".removed", audit.OK, "", map[string]any{"factor": x.ID, "name": x.Name})
	})
}

// Reset takes all factors, recovery codes, remembered browsers and app passwords from a user who has lost them. It is for
// administrators. It returns how many factors there were.
func (f *Factors) Reset(ctx context.Context, user id.UserID) (int, error) {
	n := 0
	err := f.Store.Write(ctx, func(tx *store.Tx) error {
		if exists, err := tx.UserExists(user); err != nil || !exists {
			if err == nil {
				err = mxerr.NotFound("there is no such user on this server")
			}
			return err
		}
		if _, err := tx.LockFactorUser(user, newHandle()); err != nil {
			return err
		}
		factors, err := activeFactors(tx, user)
		if err != nil {
			return err
		}
		n = len(factors)
		if err := tx.DeleteFactors(user); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "factor.reset", Target: string(user), Result: audit.OK, Details: map[string]any{"factors": n}})
	})
	return n, err
}

// newHandle makes a user's name for passkeys: it tells nothing about the user. Spec: WebAuthn 3, section 14.6.1.
func newHandle() []byte { return random(32) }

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

func newID() string { return letters(16) }

// letters makes n random letters and digits that people do not take for each other, 5 bits each.
func letters(n int) string {
	return base32.NewEncoding("abcdefghjkmnpqrstuvwxyz023456789").WithPadding(base32.NoPadding).EncodeToString(random((n*5 + 7) / 8))[:n]
}

// plain brings a code that a person has typed into the form in which it was made.
func plain(code string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c >= '０' && c <= '９':
			return c - '０' + '0' // digits of Chinese keyboards
		case c == 'o' || c == 'O':
			return '0' // no code has the letter
		case c >= 'A' && c <= 'Z':
			return c - 'A' + 'a'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
			return c
		}
		return -1
	}, code)
}

// cleanName checks a name that a person gave to something.
func cleanName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if name == "" || utf8.RuneCountInString(name) > maxName || strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		return "", errName
	}
	return name, nil
}

// cut shortens what a browser says of itself.
func cut(s string, n int) string {
	if len(s) <= n {
		return strings.ToValidUTF8(s, "")
	}
	return strings.ToValidUTF8(s[:n], "")
}
