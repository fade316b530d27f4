package account

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Role is what somebody may do on this server besides using it.
type Role string

// The roles.
const (
	RoleAdmin      Role = "admin"      // system administrator: accounts, rooms, settings
	RoleSecurity   Role = "security"   // security administrator: sign-in, factors, policies
	RoleAuditor    Role = "auditor"    // reads the audit log
	RoleCompliance Role = "compliance" // compliance officer: archive, cases, holds
)

// AllRoles lists the roles.
func AllRoles() []Role { return []Role{RoleAdmin, RoleSecurity, RoleAuditor, RoleCompliance} }

// apart are the roles of which nobody may have two where duties are separated.
var apart = []Role{RoleAdmin, RoleSecurity, RoleAuditor}

const maxCachedRoles = 20_000

// Roles tells what roles a user has. The result is shared: it must not be changed.
func (a *Accounts) Roles(ctx context.Context, user id.UserID) ([]Role, error) {
	return a.roles.get(ctx, user, func(ctx context.Context) ([]Role, error) {
		var out []Role
		err := a.Store.Read(ctx, func(tx *store.Tx) error {
			u, found, err := tx.User(user)
			if err != nil || !found || u.Deactivated {
				return err
			}
			out, err = rolesOf(tx, u)
			return err
		})
		return out, err
	})
}

func rolesOf(tx *store.Tx, u User) ([]Role, error) {
	given, err := tx.Roles(u.ID)
	if err != nil {
		return nil, err
	}
	var out []Role
	if u.Admin {
		out = append(out, RoleAdmin)
	}
	for _, r := range given {
		out = append(out, Role(r))
	}
	return out, nil
}

// HasRole tells whether a user has one of some roles.
func (a *Accounts) HasRole(ctx context.Context, user id.UserID, roles ...Role) (bool, error) {
	have, err := a.Roles(ctx, user)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(roles, func(r Role) bool { return slices.Contains(have, r) }), nil
}

// RequireRole refuses with M_FORBIDDEN who has none of some roles, and notes that in the audit log. what is what was to be
// done, such as "search the archive".
func (a *Accounts) RequireRole(ctx context.Context, user id.UserID, what string, roles ...Role) error {
	ok, err := a.HasRole(ctx, user, roles...)
	if err != nil || ok {
		return err
	}
	err = a.Audit.Refusal(ctx, audit.Entry{
		Source: audit.Source{Actor: user}, Action: "permission.refused", Reason: "M_FORBIDDEN",
		Details: map[string]any{"what": what, "needs": roles},
	})
	if err != nil {
		return err
	}
	return mxerr.Forbidden("your roles on this server do not allow this")
}

// UsersWithRole lists who has a role.
func (a *Accounts) UsersWithRole(ctx context.Context, role Role) ([]id.UserID, error) {
	var out []id.UserID
	err := a.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		out, err = tx.UsersWithRole(string(role))
		return err
	})
	return out, err
}

// SetRole gives a user a role or takes it away. Errors: M_NOT_FOUND, M_INVALID_PARAM for a role that does not exist, and
// M_FORBIDDEN for what separation of duties does not allow.
func (a *Accounts) SetRole(ctx context.Context, user id.UserID, role Role, on bool) error {
	if !slices.Contains(AllRoles(), role) {
		return mxerr.InvalidParam(fmt.Sprintf("there is no role %q; there are admin, security, auditor and compliance", string(role)))
	}
	return a.Store.Write(ctx, func(tx *store.Tx) error { return a.setRole(ctx, tx, user, role, on) })
}

func (a *Accounts) setRole(ctx context.Context, tx *store.Tx, user id.UserID, role Role, on bool) error {
	u, found, err := tx.LockUser(user)
	switch {
	case err != nil:
		return err
	case !found:
		return errNoUser
	case u.Deactivated && on:
		return errDeactivated
	}
	before, err := rolesOf(tx, u)
	if err != nil {
		return err
	}
	if slices.Contains(before, role) == on {
		return nil
	}
	if on {
		if err := a.mayCombine(before, role); err != nil {
			return err
		}
	}
	if role == RoleAdmin {
		_, err = tx.SetUserFlag(user, store.UserAdmin, on)
	} else {
		_, err = tx.SetRole(user, string(role), on, a.now())
	}
	if err != nil {
		return err
	}
	after := slices.DeleteFunc(slices.Clone(before), func(r Role) bool { return r == role })
	if on {
		after = append(after, role)
	}
	if err := audit.Append(ctx, tx, audit.Entry{Action: "user.role", Target: string(user), Before: before, After: after}); err != nil {
		return err
	}
	return announceUser(tx, user)
}

// mayCombine refuses a role beside those that somebody has.
func (a *Accounts) mayCombine(have []Role, role Role) error {
	if !a.Config.SeparationOfDuties || !slices.Contains(apart, role) {
		return nil
	}
	for _, h := range have {
		if slices.Contains(apart, h) {
			return mxerr.New(http.StatusForbidden, "M_FORBIDDEN",
				fmt.Sprintf("duties are separated on this server: whoever has the role %q cannot have %q too", string(h), string(role)))
		}
	}
	return nil
}
