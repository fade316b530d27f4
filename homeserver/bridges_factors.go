package homeserver

import (
	"context"
	"log/slog"
	"net/netip"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso/factor"
)

// newFactors makes the second factors. Accounts ask them whether a password alone will do, and they ask accounts for roles: so
// both sides hold funcs that look into s.
func (s *Server) newFactors() (*factor.Factors, error) {
	client, err := s.cfg.operatorClient()
	if err != nil {
		return nil, err
	}
	d := factor.Deps{
		Store: s.store, ServerName: s.cfg.ServerName, PublicURL: s.cfg.PublicURL, Logger: s.log, Config: s.cfg.FactorConfig(),
		Kit: s.kit, Client: client, Roles: s.factorRoles, Groups: s.factorGroups, MayAct: s.mayAct,
	}
	if s.cfg.Email.Server != "" {
		d.MailQueued = s.outbox.Kick
	}
	return factor.New(d)
}

func (s *Server) factorRoles(ctx context.Context, user id.UserID) ([]string, error) {
	roles, err := s.accounts.Roles(ctx, user)
	out := make([]string, len(roles))
	for i, r := range roles {
		out[i] = string(r)
	}
	return out, err
}

func (s *Server) mayAct(ctx context.Context, user id.UserID) error {
	_, err := s.accounts.Usable(ctx, user)
	return err
}

// factorGate is account.Deps.Gate: it says whether somebody who was proved in a way without pages may go on.
func (s *Server) factorGate(ctx context.Context, user id.UserID, way string, amr []string, ip string) error {
	if way == account.WayAppPassword {
		return nil // which policies have allowed for ways without pages
	}
	return s.factors.Gate(ctx, user, factor.Passed{Way: way, AMR: amr, IP: parseIP(ip)})
}

// appPassword is account.Deps.AppPassword.
func (s *Server) appPassword(ctx context.Context, user id.UserID, password string) (bool, error) {
	return s.factors.AppPassword(ctx, user, password, requestIP(ctx))
}

// requestIP is the client's address of the request that a context belongs to.
func requestIP(ctx context.Context) netip.Addr {
	o, _ := web.OriginOf(ctx)
	return o.IP
}

// factorGroups are the groups of the company that a user is in, by name and by the id in their source.
func (s *Server) factorGroups(ctx context.Context, user id.UserID) ([]string, error) {
	var out []string
	err := s.store.Read(ctx, func(tx *store.Tx) error {
		out = nil
		list, err := tx.CompanyGroupsOf([]id.UserID{user})
		for _, g := range list {
			if !g.Gone {
				out = append(out, g.Name, g.ID)
			}
		}
		return err
	})
	return out, err
}

// ResetFactors takes all second factors from a user who has lost them, from the command line, and returns how many there were.
func ResetFactors(ctx context.Context, cfg Config, log *slog.Logger, name string) (id.UserID, int, error) {
	var user id.UserID
	n := 0
	err := withAccounts(ctx, cfg, log, func(ctx context.Context, a *account.Accounts) error {
		local, err := a.Localpart(name)
		if err != nil {
			return err
		}
		user = a.UserID(local)
		f, err := factor.New(factor.Deps{Store: a.Store, ServerName: cfg.ServerName, PublicURL: cfg.PublicURL, Logger: log, Config: cfg.FactorConfig()})
		if err != nil {
			return err
		}
		n, err = f.Reset(ctx, user)
		return err
	})
	return user, n, err
}

// parseIP is the zero Addr for what is no address.
func parseIP(ip string) netip.Addr {
	a, _ := netip.ParseAddr(ip)
	return a
}
