package factor

import (
	"context"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Passed is what is known of a sign-in so far.
type Passed struct {
	Way      string    // password, sso:<provider>, passkey, registration
	AMR      []string  // what was proved here
	Upstream *Upstream // what the company's identity provider says; nil: it was not asked
	IP       netip.Addr
	// Remembered is the token of the browser's cookie, "" if there is none.
	Remembered string
	// Fresh asks for a proof now: a remembered browser does not do.
	Fresh bool
}

// Upstream is what an identity provider says of a sign-in.
type Upstream struct {
	Provider string
	ACR      string
	AMR      []string
	MFA      bool // it counts as several factors, by the provider's configuration
}

// Owed is what is still to be done before a sign-in is complete.
type Owed struct {
	None   bool
	Choose []Kind // one of these must be proved
	Enrol  []Kind // one of these must be enrolled
	// GraceUntil is until when enrolment may be put off; zero: it may not.
	GraceUntil time.Time
	// RememberFor is for how long the browser may be remembered after a proof; 0: it may not.
	RememberFor  time.Duration
	AppPasswords bool   // the user may have passwords for single apps
	Rule         string // name of the policy, "" if none fits

	graceRuns bool
}

// Pages of a sign-in.
const (
	PathFactor  = "/signin/factor"
	PathEnrol   = "/signin/factor/enrol"
	PathPasskey = "/signin/passkey"
)

// Next is the page on which a sign-in goes on; "" if it is complete.
func (o Owed) Next() string {
	switch {
	case o.None:
		return ""
	case len(o.Choose) > 0:
		return PathFactor
	}
	return PathEnrol
}

// MayPass tells whether the sign-in may be completed as it is: nothing is owed, or the grace period runs.
func (o Owed) MayPass() bool { return o.None || (len(o.Choose) == 0 && o.graceRuns) }

// optional holds where no rule fits.
func (f *Factors) optional() *Rule {
	return &Rule{Require: []string{RequireOptional}, RememberDays: 30, AppPasswords: f.Config.AppPasswords}
}

// demands tells whether the rule wants a factor of those who have none.
func (r *Rule) demands() bool { return r.Require[0] != RequireNone && r.Require[0] != RequireOptional }

// rule finds the first policy that fits.
func (f *Factors) rule(ctx context.Context, user id.UserID, p Passed) (*Rule, error) {
	var roles, groups []string
	var err error
	asked := false
	for i := range f.Config.Rules {
		r := &f.Config.Rules[i]
		if !asked && (len(r.Roles) > 0 || len(r.Groups) > 0) {
			asked = true
			if f.Roles != nil {
				if roles, err = f.Roles(ctx, user); err != nil {
					return nil, err
				}
			}
			if f.Groups != nil {
				if groups, err = f.Groups(ctx, user); err != nil {
					return nil, err
				}
			}
		}
		if r.fits(user, p, roles, groups) {
			return r, nil
		}
	}
	return f.optional(), nil
}

func (r *Rule) fits(user id.UserID, p Passed, roles, groups []string) bool {
	ip := p.IP.Unmap()
	within := func(n netip.Prefix) bool { return n.Contains(ip) }
	return overlap(r.Roles, roles) && overlap(r.Groups, groups) &&
		(len(r.users) == 0 || anyFits(r.users, string(user)) || anyFits(r.users, user.Localpart())) &&
		(len(r.Networks) == 0 || slices.ContainsFunc(r.Networks, within)) &&
		!slices.ContainsFunc(r.ExceptNetworks, within) &&
		(len(r.ways) == 0 || anyFits(r.ways, p.Way))
}

// overlap tells whether one of the wanted is among what there is; nothing wanted is always there.
func overlap(wanted, there []string) bool {
	return len(wanted) == 0 || slices.ContainsFunc(wanted, func(w string) bool { return slices.Contains(there, w) })
}

func anyFits(patterns []*regexp.Regexp, s string) bool {
	return slices.ContainsFunc(patterns, func(p *regexp.Regexp) bool { return p.MatchString(s) })
}

// satisfied tells whether what was proved is what the rule wants.
func (r *Rule) satisfied(amr []string, up *Upstream) bool {
	for _, k := range Kinds {
		if slices.Contains(amr, k.AMR()) && accepts(r.Require, k) {
			return true
		}
	}
	general := r.Require[0] == RequireAny || r.Require[0] == RequireOptional
	if general && slices.Contains(amr, AMRRecovery) {
		return true
	}
	if up == nil || r.IgnoreUpstream {
		return false
	}
	if up.cryptographic() && accepts(r.Require, WebAuthn) {
		return true
	}
	return general && up.MFA
}

// cryptographic tells whether the provider says that a key was used that does not leave its holder. Spec: RFC 8176
// ("hwk", "sc", "pop"), OpenID Connect Extended Authentication Profile ("phr", "phrh").
func (u *Upstream) cryptographic() bool {
	for _, m := range u.AMR {
		switch strings.ToLower(m) {
		case "hwk", "sc", "pop", "fido":
			return true
		}
	}
	return u.ACR == "phr" || u.ACR == "phrh"
}

// Owes tells what a user has still to do to complete a sign-in. It begins the grace period of a policy that asks for a
// factor which the user has not.
func (f *Factors) Owes(ctx context.Context, user id.UserID, p Passed) (Owed, error) {
	r, err := f.rule(ctx, user, p)
	if err != nil {
		return Owed{}, err
	}
	o := Owed{Rule: r.Name, RememberFor: time.Duration(r.RememberDays) * day, AppPasswords: r.AppPasswords}
	if r.Require[0] == RequireNone || r.satisfied(p.AMR, p.Upstream) {
		o.None = true
		return o, nil
	}
	var factors []store.Factor
	var recovery int64
	var device store.RememberedDevice
	var remembered bool
	err = f.Store.Read(ctx, func(tx *store.Tx) error {
		if factors, err = activeFactors(tx, user); err != nil {
			return err
		}
		if len(factors) == 0 {
			return nil
		}
		if recovery, err = tx.RecoveryCodes(user); err != nil {
			return err
		}
		if p.Remembered != "" && !p.Fresh && r.RememberDays > 0 {
			device, remembered, err = tx.RememberedDevice(user, store.HashToken(p.Remembered))
		}
		return err
	})
	if err != nil {
		return Owed{}, err
	}
	now := f.now()
	if remembered && device.Expires > now && device.Created+o.RememberFor.Milliseconds() > now && r.satisfied(strings.Fields(device.AMR), nil) {
		o.None = true
		return o, f.touch(ctx, device, p)
	}
	return f.owes(ctx, user, p, r, o, factors, recovery)
}

// owes is Owes for a user whose factors are known and who has not proved what the rule wants.
func (f *Factors) owes(ctx context.Context, user id.UserID, p Passed, r *Rule, o Owed, factors []store.Factor, recovery int64) (Owed, error) {
	var fit, other []Kind
	for _, x := range factors {
		k := Kind(x.Kind)
		switch {
		case accepts(r.Require, k) && !slices.Contains(fit, k):
			fit = append(fit, k)
		case !accepts(r.Require, k) && !slices.Contains(other, k):
			other = append(other, k)
		}
	}
	proved := slices.ContainsFunc(other, func(k Kind) bool { return slices.Contains(p.AMR, k.AMR()) }) || slices.Contains(p.AMR, AMRRecovery)
	switch {
	case len(fit) > 0 && slices.Contains(p.AMR, AMRRecovery):
		// A recovery code does not stand for the kind that the policy asks for: it lets its owner enrol a new one.
		o.Enrol = f.enrollable(r)
		return o, nil
	case len(fit) > 0:
		o.Choose = withRecovery(fit, recovery)
		return o, nil
	case len(other) > 0 && !proved:
		o.Choose = withRecovery(other, recovery) // whoever has any factor proves it before enrolling a better one
		return o, nil
	case !r.demands():
		o.None = true
		return o, nil
	}
	o.Enrol = f.enrollable(r)
	if r.GraceDays == 0 {
		return o, nil
	}
	since, err := f.graceBegan(ctx, user)
	if err != nil {
		return Owed{}, err
	}
	until := time.UnixMilli(since).Add(time.Duration(r.GraceDays) * day)
	if o.graceRuns = until.After(f.Clock()); o.graceRuns {
		o.GraceUntil = until
	}
	return o, nil
}

func withRecovery(kinds []Kind, codes int64) []Kind {
	slices.SortStableFunc(kinds, func(a, b Kind) int { return slices.Index(Kinds, a) - slices.Index(Kinds, b) })
	if codes > 0 {
		kinds = append(kinds, Recovery)
	}
	return kinds
}

// enrollable lists what a user can enrol to satisfy a rule.
func (f *Factors) enrollable(r *Rule) []Kind {
	var out []Kind
	for _, k := range Kinds {
		if f.Offered(k) && accepts(r.Require, k) {
			out = append(out, k)
		}
	}
	return out
}

// graceBegan is when the user was first asked to enrol, which is now if it never was.
func (f *Factors) graceBegan(ctx context.Context, user id.UserID) (int64, error) {
	var u store.FactorUser
	err := f.Store.Read(ctx, func(tx *store.Tx) (err error) {
		u, _, err = tx.FactorUser(user)
		return err
	})
	if err != nil || u.OwedSince != 0 {
		return u.OwedSince, err
	}
	err = f.Store.Write(ctx, func(tx *store.Tx) error {
		if u, err = tx.LockFactorUser(user, newHandle()); err != nil || u.OwedSince != 0 {
			return err
		}
		u.OwedSince = f.now()
		return tx.UpdateFactorUser(u)
	})
	return u.OwedSince, err
}

// errOwes is what clients show where there is no page to prove a second factor on.
var errOwes = mxerr.Forbidden("this account signs in with a second factor: use single sign-on (in the browser) instead of the password")

// errOwesApp is errOwes for an account that may have passwords for single apps.
var errOwesApp = mxerr.Forbidden("this account signs in with a second factor: use single sign-on (in the browser), or an app password that you make on the account page")

// Gate tells whether somebody who was proved in a way that has no pages (m.login.password, the password stage of
// user-interactive authentication) may go on: nil, or 403 M_FORBIDDEN with what to do instead.
func (f *Factors) Gate(ctx context.Context, user id.UserID, p Passed) error {
	o, err := f.Owes(ctx, user, p)
	switch {
	case err != nil:
		return err
	case o.MayPass():
		return nil
	case o.AppPasswords:
		return errOwesApp
	}
	return errOwes
}
