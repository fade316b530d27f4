package ldapsync

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
)

// maxSignIns is how many passwords a directory checks at a time for us.
const maxSignIns = 32

var (
	errWrong       = mxerr.Forbidden("the username or password is wrong")
	errUnreachable = mxerr.Unavailable("the company's directory cannot be reached at the moment: try again soon")
	errGone        = mxerr.New(http.StatusUnauthorized, "M_USER_LOCKED", "this account is disabled in the company's directory").With("soft_logout", true)
)

// signInErrors are what people are told whose password the directory does not take for another reason than that it is wrong.
var signInErrors = map[refusal]error{
	refusedExpired:        mxerr.Forbidden("your password has expired: change it where you sign in to the company's network").With(account.ReasonField, "password_expired"),
	refusedMustChange:     mxerr.Forbidden("your password must be changed first: sign in to the company's network to do so").With(account.ReasonField, "password_must_change"),
	refusedLockedOut:      mxerr.Forbidden("there were too many wrong passwords: your account is locked in the company's directory for a while").With(account.ReasonField, "locked_out"),
	refusedHours:          mxerr.Forbidden("the company's directory does not let you sign in at this time or from here").With(account.ReasonField, "not_now"),
	refusedDisabled:       errGone,
	refusedAccountExpired: errGone,
}

// CheckPassword checks the password of somebody whom a directory knows. u is the account that the name is that of, nil
// where there is none. handled false means that no directory has a say: the server's own password counts. The account is
// made at the first sign-in if no synchronisation has made it yet. Errors: M_FORBIDDEN, told apart by a text and the
// member org.moothall.reason; M_USER_LOCKED for who is disabled; 503 where the directory cannot be asked.
func (s *Sync) CheckPassword(ctx context.Context, name string, u *account.User, password string) (user id.UserID, handled bool, err error) {
	var linked *people.Link
	if u != nil {
		if u.Deactivated || u.AppService != "" {
			return "", false, nil
		}
		links, err := s.People.Links(ctx, u.ID)
		if err != nil {
			return "", true, err
		}
		for i := range links {
			if d := s.bySource(links[i].Source); d != nil && d.cfg.Users.SignIn {
				linked = &links[i]
			}
		}
		if linked == nil && u.Password != nil {
			return "", false, nil // such as an administrator for the day when the directory is away
		}
	}
	if password == "" || len(password) > 1024 || strings.ContainsRune(password, 0) {
		// A bind without a password always succeeds: it proves nothing. RFC 4513, 5.1.2.
		return "", true, errWrong
	}
	typed := name
	if full, ok := strings.CutPrefix(name, "@"); ok {
		local, ours := strings.CutSuffix(full, ":"+s.Accounts.ServerName)
		if !ours {
			return "", false, nil
		}
		if linked != nil {
			return s.signInAs(ctx, *linked, password)
		}
		typed = local
	}
	if _, after, ok := strings.Cut(typed, `\`); ok {
		typed = after // CORP\name
	}
	var last error
	for _, d := range s.dirs {
		if !d.cfg.Users.SignIn {
			continue
		}
		user, err := d.signIn(ctx, typed, password)
		var away *unreachable
		switch {
		case err == nil:
			return user, true, nil
		case errors.Is(err, errUnknownName):
			last = orError(last, errWrong)
		case errors.As(err, &away):
			d.Logger.Warn("a password cannot be checked", "directory", d.cfg.ID, "error", err)
			last = errUnreachable
		default:
			return "", true, err // this directory knows the name
		}
	}
	if linked != nil && (last == nil || errors.Is(last, errWrong)) {
		return s.signInAs(ctx, *linked, password) // the account's name is an older one of the person
	}
	if u == nil && last != nil && !errors.Is(last, errUnreachable) {
		return "", false, nil // nobody's name: the answer takes as long as any other
	}
	return "", last != nil, last
}

func orError(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (s *Sync) bySource(source string) *directory {
	for _, d := range s.dirs {
		if d.source == source {
			return d
		}
	}
	return nil
}

// PasswordElsewhere tells whether a user's password is kept by a directory, so that it cannot be changed here.
func (s *Sync) PasswordElsewhere(ctx context.Context, user id.UserID) (bool, error) {
	if len(s.dirs) == 0 {
		return false, nil
	}
	links, err := s.People.Links(ctx, user)
	for _, l := range links {
		if d := s.bySource(l.Source); d != nil && d.cfg.Users.SignIn {
			return true, err
		}
	}
	return false, err
}

// errUnknownName says that a directory has no entry for a name.
var errUnknownName = errors.New("the directory has no such user")

// signInAs checks the password of the person whom an account is linked to, whatever they are called now.
func (s *Sync) signInAs(ctx context.Context, link people.Link, password string) (id.UserID, bool, error) {
	d := s.bySource(link.Source)
	user, err := d.signInBy(ctx, d.mapper.idFilter(link.ExternalID), password)
	var away *unreachable
	switch {
	case errors.As(err, &away):
		d.Logger.Warn("a password cannot be checked", "directory", d.cfg.ID, "error", err)
		err = errUnreachable
	case errors.Is(err, errUnknownName):
		err = errWrong
	}
	return user, true, err
}

func (d *directory) signIn(ctx context.Context, typed, password string) (id.UserID, error) {
	if d.cfg.Users.DirectBind != "" {
		return d.signInDirectly(ctx, typed, password)
	}
	return d.signInBy(ctx, loginFilter(d.cfg.Users.Login, typed), password)
}

// slot bounds the sign-ins under way, and the time of each.
func (d *directory) slot(ctx context.Context) (context.Context, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, 3*d.cfg.Timeout)
	select {
	case d.signIns <- struct{}{}:
		return ctx, func() { <-d.signIns; cancel() }, nil
	case <-ctx.Done():
		cancel()
		return nil, nil, &unreachable{fmt.Errorf("too many sign-ins wait for the directory: %w", ctx.Err())}
	}
}

// signInBy looks for the entry, then binds as it.
func (d *directory) signInBy(ctx context.Context, filter, password string) (id.UserID, error) {
	ctx, release, err := d.slot(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	conn, server, done, err := d.dialer.service(ctx)
	if err != nil {
		return "", away(err)
	}
	defer done()
	raw, err := d.lookup(conn, filter)
	if err != nil {
		if errors.Is(err, errUnknownName) {
			// as long as it would take with an entry
			_ = conn.Bind(fmt.Sprintf("cn=nobody-%s,%s", newRunID(), d.cfg.Users.Base), password)
		}
		return "", err
	}
	if err := d.bindAs(conn, server, raw.DN, password); err != nil {
		if errors.Is(err, signInErrors[refusedLockedOut]) && d.mapper.disabled(raw) != "" {
			return "", errGone // locked for good, by an administrator
		}
		return "", err
	}
	return d.accept(ctx, raw)
}

// signInDirectly binds by a name made of what was typed, then looks for the entry as the person.
func (d *directory) signInDirectly(ctx context.Context, typed, password string) (id.UserID, error) {
	ctx, release, err := d.slot(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	conn, server, done, err := d.dialer.open(ctx)
	if err != nil {
		return "", away(err)
	}
	defer done()
	bindName := typed
	switch template := d.cfg.Users.DirectBind; {
	case strings.Contains(template, "=") && !strings.HasPrefix(template, loginPlace+"@"): // a DN
		bindName = strings.ReplaceAll(template, loginPlace, ldap.EscapeDN(typed))
	case !strings.Contains(typed, "@"):
		bindName = strings.ReplaceAll(template, loginPlace, typed)
	}
	if err := d.bindAs(conn, server, bindName, password); err != nil {
		if errors.Is(err, errWrong) {
			return "", errUnknownName // another directory may know the name
		}
		return "", err
	}
	raw, err := d.lookup(conn, loginFilter(d.cfg.Users.Login, typed))
	if err != nil {
		return "", err
	}
	return d.accept(ctx, raw)
}

// away marks that a directory could not be asked: what hinders the service's own account says nothing of a password.
func away(err error) error {
	var u *unreachable
	if errors.As(err, &u) {
		return err
	}
	return &unreachable{err}
}

// lookup finds the one entry of a filter.
func (d *directory) lookup(conn *ldap.Conn, filter string) (*ldap.Entry, error) {
	res, err := conn.Search(&ldap.SearchRequest{
		BaseDN: d.cfg.Users.Base, Scope: ldap.ScopeWholeSubtree, SizeLimit: 2, TimeLimit: int(d.cfg.Timeout / time.Second),
		Filter: "(&" + d.cfg.Users.Filter + filter + ")", Attributes: d.mapper.userAttributes(),
	})
	if err != nil && !ldap.IsErrorWithCode(err, ldap.LDAPResultSizeLimitExceeded) {
		if ldap.IsErrorWithCode(err, ldap.LDAPResultNoSuchObject) {
			return nil, errUnknownName
		}
		return nil, away(explainSearch(d.cfg.Users.Base, err))
	}
	switch len(res.Entries) {
	case 0:
		return nil, errUnknownName
	case 1:
		return res.Entries[0], nil
	}
	d.Logger.Warn("a sign-in name is that of several entries", "directory", d.cfg.ID, "first", res.Entries[0].DN, "second", res.Entries[1].DN)
	return nil, errWrong
}

// bindAs proves a password.
func (d *directory) bindAs(conn *ldap.Conn, server, name, password string) error {
	res, err := conn.SimpleBind(ldap.NewSimpleBindRequest(name, password, []ldap.Control{ldap.NewControlBeheraPasswordPolicy()}))
	why := refusedOther
	if res != nil {
		if c, ok := ldap.FindControl(res.Controls, ldap.ControlTypeBeheraPasswordPolicy).(*ldap.ControlBeheraPasswordPolicy); ok {
			why = policyRefusal(c)
		}
	}
	if err == nil && why == refusedOther {
		return nil
	}
	if why == refusedOther {
		why = reason(err)
	}
	if refused := signInErrors[why]; refused != nil {
		return refused
	}
	if why == refusedPassword {
		return errWrong
	}
	return away(fmt.Errorf("%s: bind as %s: %w", server, name, explainBind(err)))
}

// policyRefusal reads the answer of a password policy (draft-behera-ldap-password-policy, 6.2).
func policyRefusal(c *ldap.ControlBeheraPasswordPolicy) refusal {
	switch c.Error {
	case 0:
		return refusedExpired
	case 1:
		return refusedLockedOut
	case 2:
		return refusedMustChange
	}
	return refusedOther
}

// accept finds the account of an entry whose password was proved, or makes it.
func (d *directory) accept(ctx context.Context, raw *ldap.Entry) (id.UserID, error) {
	e := d.mapper.user(raw)
	if e.id == "" {
		return "", away(fmt.Errorf("the attribute %s of %s cannot be read", d.cfg.Users.ID, e.dn))
	}
	if e.why != "" {
		return "", errGone
	}
	link, linked, err := d.People.Get(ctx, d.source, e.id)
	if err != nil {
		return "", err
	}
	if linked && link.Active {
		return link.User, nil
	}
	if !linked && e.localpartErr != nil {
		d.Logger.Warn("somebody cannot sign in", "directory", d.cfg.ID, "entry", e.dn, "error", e.localpartErr)
		return "", mxerr.Forbidden("your entry in the company's directory lacks what an account needs: ask your administrator")
	}
	if e.manager != "" {
		e.person.Manager = firstRDN(e.manager)
	}
	user, _, err := d.People.Upsert(ctx, e.person)
	if refused := mxerr.As(err); refused != nil {
		d.Logger.Warn("somebody cannot sign in", "directory", d.cfg.ID, "entry", e.dn, "error", refused.Message)
		return "", mxerr.Forbidden("your account cannot be made (" + refused.Message + "): ask your administrator")
	}
	return user, err
}
