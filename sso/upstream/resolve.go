package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/people"
	"github.com/moothall/moothall/homeserver/store"
)

// Resolution is whose an identity is. Exactly one of User, Create and Choose is set.
type Resolution struct {
	User id.UserID // an account that exists
	// Create: an account of this localpart is made. Choose: the person chooses a localpart; Localpart is proposed, "" for
	// none.
	Create, Choose bool
	Localpart      string
	DisplayName    string // proposed
	// DisplayNameFixed: the person cannot choose another one.
	DisplayNameFixed bool

	link    bool // User is to be linked
	replace bool // others of the provider are unlinked
}

// Choice is what a person chose at the first sign-in.
type Choice struct{ Localpart, DisplayName string }

// Resolve finds whose an identity is, and changes nothing. Errors are for people; ReasonOf tells them apart.
func (p *Providers) Resolve(ctx context.Context, i Identity) (Resolution, error) {
	e := p.byID[i.Provider]
	if e == nil {
		return Resolution{}, errUnknownProvider
	}
	r, err := p.resolve(ctx, e, i)
	if err != nil {
		return Resolution{}, err
	}
	if r.User == "" {
		return r, nil
	}
	return r, p.usable(ctx, r.User)
}

func (p *Providers) resolve(ctx context.Context, e *entry, i Identity) (Resolution, error) {
	if g := e.cfg.AllowedGroups; len(g) > 0 && !slices.ContainsFunc(i.Groups, func(s string) bool { return slices.Contains(g, s) }) {
		return Resolution{}, errGroups
	}
	for _, v := range []struct{ use, value, what string }{
		{e.cfg.Mapping.LocalpartUse, i.Localpart, "user name"},
		{e.cfg.Mapping.DisplayNameUse, i.DisplayName, "name"},
		{e.cfg.Mapping.EmailUse, i.Email, "e-mail address"},
	} {
		if v.use == UseRequire && v.value == "" {
			return Resolution{}, errMissing(v.what)
		}
	}
	user, found, err := p.People.Find(ctx, i.Provider, i.Subject)
	if err != nil || found {
		return Resolution{User: user}, err
	}
	if slices.Contains(e.cfg.LinkBy, LinkByDirectory) && i.DirectoryID != "" {
		user, found, err := p.People.Find(ctx, people.DirectorySource(e.cfg.Directory), i.DirectoryID)
		if err != nil || found {
			return Resolution{User: user, link: true}, err
		}
	}
	// Only an address that the provider has verified: any other could be claimed by whoever likes.
	if slices.Contains(e.cfg.LinkBy, LinkByEmail) && i.EmailVerified {
		user, err := p.Accounts.EmailUser(ctx, i.Email)
		if err != nil {
			return Resolution{}, err
		}
		if user != "" {
			return p.conflict(ctx, e, user, true)
		}
	}
	return p.byName(ctx, e, i)
}

// byName decides by the localpart that the provider tells.
func (p *Providers) byName(ctx context.Context, e *entry, i Identity) (Resolution, error) {
	r := Resolution{DisplayName: i.DisplayName, DisplayNameFixed: e.cfg.Mapping.DisplayNameUse == UseForce || e.cfg.Mapping.DisplayNameUse == UseRequire}
	if e.cfg.Mapping.DisplayNameUse == UseIgnore {
		r.DisplayName = ""
	}
	fixed := e.cfg.Mapping.LocalpartUse == UseForce || e.cfg.Mapping.LocalpartUse == UseRequire
	if e.cfg.Mapping.LocalpartUse == UseIgnore || i.Localpart == "" {
		r.Choose = true
		return p.creatable(e, r)
	}
	local, err := p.Accounts.Localpart(i.Localpart)
	if err != nil {
		if fixed {
			return Resolution{}, errNoName
		}
		r.Choose = true
		return p.creatable(e, r)
	}
	r.Localpart = local
	if !fixed {
		r.Choose = true
		return p.creatable(e, r)
	}
	switch err := p.Accounts.Available(ctx, local); {
	case err == nil:
		r.Create = true
		return p.creatable(e, r)
	case mxerr.Is(err, "M_USER_IN_USE"):
		return p.conflict(ctx, e, p.Accounts.UserID(local), false)
	case mxerr.As(err) != nil:
		return Resolution{}, errNoName
	default:
		return Resolution{}, err
	}
}

func (p *Providers) creatable(e *entry, r Resolution) (Resolution, error) {
	if !e.cfg.CreateAccounts {
		return Resolution{}, errNoAccount
	}
	return r, nil
}

// conflict decides about an account that exists and is not linked. asked: the configuration says to link by what was found.
func (p *Providers) conflict(ctx context.Context, e *entry, user id.UserID, asked bool) (Resolution, error) {
	if err := p.mayLink(ctx, user); err != nil {
		return Resolution{}, err
	}
	r := Resolution{User: user, link: true}
	switch e.cfg.OnConflict {
	case ConflictAdd:
		return r, nil
	case ConflictReplace:
		r.replace = true
		return r, nil
	case ConflictFail:
		if !asked {
			return Resolution{}, errConflict
		}
	}
	links, err := p.People.Links(ctx, user)
	if err != nil {
		return Resolution{}, err
	}
	if slices.ContainsFunc(links, func(l people.Link) bool { return l.Source == e.cfg.ID }) {
		return Resolution{}, errConflict
	}
	return r, nil
}

// mayLink keeps the accounts of bridges and guests, and what was deactivated, from being taken over.
func (p *Providers) mayLink(ctx context.Context, user id.UserID) error {
	u, found, err := p.user(ctx, user)
	switch {
	case err != nil:
		return err
	case !found || u.Deactivated || u.Guest || u.AppService != "":
		return errConflict
	}
	return nil
}

func (p *Providers) usable(ctx context.Context, user id.UserID) error {
	u, found, err := p.user(ctx, user)
	switch {
	case err != nil:
		return err
	case !found:
		return errNoAccount
	case u.Deactivated:
		return errAccountGone
	case u.Locked || u.Disabled != 0:
		return errAccountLocked
	}
	return nil
}

func (p *Providers) user(ctx context.Context, user id.UserID) (u store.User, found bool, err error) {
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		u, found, err = tx.User(user)
		return err
	})
	return u, found, err
}

// Accept does what a Resolution says: it makes the account or links it, brings what the provider forces into it, and
// returns whose it is. Errors beside those of Resolve: M_INVALID_USERNAME, M_USER_IN_USE and M_EXCLUSIVE for a chosen
// localpart.
func (p *Providers) Accept(ctx context.Context, i Identity, r Resolution, c Choice) (id.UserID, error) {
	e := p.byID[i.Provider]
	if e == nil {
		return "", errUnknownProvider
	}
	if r.User == "" {
		return p.create(ctx, e, i, r, c)
	}
	if r.link {
		if r.replace {
			links, err := p.People.Links(ctx, r.User)
			if err != nil {
				return "", err
			}
			for _, l := range links {
				if l.Source == i.Provider && l.ExternalID != i.Subject {
					if err := p.People.Unlink(ctx, l.Source, l.ExternalID); err != nil {
						return "", err
					}
				}
			}
		}
		if err := p.People.Link(ctx, i.Provider, i.Subject, r.User); err != nil {
			return "", err
		}
		p.Logger.Info("account linked", "user_id", r.User, "provider", i.Provider)
	}
	return r.User, p.update(ctx, e, i, r.User)
}

func (p *Providers) create(ctx context.Context, e *entry, i Identity, r Resolution, c Choice) (id.UserID, error) {
	n := account.NewUser{Localpart: r.Localpart, DisplayName: r.DisplayName}
	if r.Choose {
		n.Localpart = c.Localpart
	}
	if !r.DisplayNameFixed && c.DisplayName != "" {
		n.DisplayName = c.DisplayName
	}
	now := p.Clock().UnixMilli()
	n.With = func(tx *store.Tx, user id.UserID) error {
		linked, err := tx.InsertExternalID(store.ExternalID{Source: i.Provider, ID: i.Subject, User: user, Created: now, Active: true})
		if err != nil {
			return err
		}
		if !linked {
			return errReplayed // another window of the same person was quicker
		}
		err = audit.Append(ctx, tx, audit.Entry{
			Source: audit.Source{Actor: user}, Action: people.ActionPrefix + ".created", Target: string(user),
			Details: map[string]any{"source": i.Provider, "external_id": i.Subject},
		})
		if err != nil {
			return err
		}
		if e.cfg.Mapping.EmailUse == UseIgnore || !i.EmailVerified {
			return nil
		}
		_, err = tx.InsertThreepid(store.Threepid{Medium: store.MediumEmail, Address: i.Email, User: user, Validated: now, Added: now})
		return err
	}
	u, err := p.Accounts.CreateUser(ctx, n)
	if err != nil {
		return "", err
	}
	return u.ID, errors.Join(p.roles(ctx, e, i, u.ID), p.groups(ctx, e, i, u.ID))
}

// update brings what the provider forces into an account.
func (p *Providers) update(ctx context.Context, e *entry, i Identity, user id.UserID) error {
	forced := func(use string) bool { return use == UseForce || use == UseRequire }
	if forced(e.cfg.Mapping.DisplayNameUse) && i.DisplayName != "" && p.Profiles != nil {
		profile, err := p.Profiles.Get(ctx, user)
		if err != nil && mxerr.As(err) == nil {
			return err
		}
		if profile.DisplayName != i.DisplayName {
			value, err := json.Marshal(i.DisplayName)
			if err != nil {
				return err
			}
			if err := p.Profiles.Set(ctx, user, "displayname", value); err != nil {
				return fmt.Errorf("set the display name of %s: %w", user, err)
			}
		}
	}
	if forced(e.cfg.Mapping.EmailUse) && i.EmailVerified {
		now := p.Clock().UnixMilli()
		err := p.Store.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.InsertThreepid(store.Threepid{Medium: store.MediumEmail, Address: i.Email, User: user, Validated: now, Added: now})
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := p.groups(ctx, e, i, user); err != nil {
		return err
	}
	return p.roles(ctx, e, i, user)
}

// maxGroups and maxGroupName bound what a provider's groups may take of the database.
const (
	maxGroups    = 500
	maxGroupName = 255 // bytes
)

// groups brings a user into the groups that the provider tells, and out of those that it does not.
func (p *Providers) groups(ctx context.Context, e *entry, i Identity, user id.UserID) error {
	if !e.cfg.SyncGroups || p.SetGroups == nil {
		return nil
	}
	names := make([]string, 0, len(i.Groups))
	for _, name := range i.Groups {
		name = strings.Map(dropControls, name)
		if name != "" && len(name) <= maxGroupName && utf8.ValidString(name) && len(names) < maxGroups {
			names = append(names, name)
		}
	}
	if len(names) < len(i.Groups) {
		p.Logger.Warn("groups at the identity provider are too many or have impossible names", "provider", e.cfg.ID, "user_id", user, "told", len(i.Groups), "taken", len(names))
	}
	return p.SetGroups(ctx, e.cfg.ID, user, names)
}

// roles gives and takes the roles that the mapping names: the provider decides on those, and on no others.
func (p *Providers) roles(ctx context.Context, e *entry, i Identity, user id.UserID) error {
	if len(e.cfg.Mapping.Roles) == 0 {
		return nil
	}
	have, err := p.Accounts.Roles(ctx, user)
	if err != nil {
		return err
	}
	decided := map[account.Role]bool{}
	for _, r := range e.cfg.Mapping.Roles {
		role := account.Role(r.Role)
		decided[role] = slices.Contains(i.Roles, role)
	}
	// What is taken away goes first: roles may exclude each other.
	for _, on := range []bool{false, true} {
		for role, want := range decided {
			if want == on && slices.Contains(have, role) != want {
				if err := p.Accounts.SetRole(ctx, user, role, want); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
