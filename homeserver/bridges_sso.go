package homeserver

import (
	"context"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/web"
	"github.com/moothall/moothall/sso"
)

// newSSO makes the sign-in pages and the authorization server.
func (s *Server) newSSO() (*sso.SSO, error) {
	c := &s.cfg
	return sso.New(sso.Deps{
		Store: s.store, Accounts: s.accounts, Profiles: s.profiles, Logger: s.log, Kit: s.kit, Limits: s.limits,
		ServerName: c.ServerName, PublicURL: c.PublicURL, Providers: s.providers, Factors: s.factors, Audit: s.accounts.Audit,
		Passable: func(u account.UIA, stage string) bool { return s.client.Passable(u, stage) },
		Config: sso.Config{
			PasswordLogin: c.SSO.PasswordLogin, RedirectsAllowed: c.SSO.RedirectsAllowed, IdleTimeout: c.SSO.Browser.IdleTimeout.Std(),
			Lifetime: c.SSO.Browser.Lifetime.Std(), BindAddress: c.SSO.Browser.BindAddress, OAuth: c.OAuth.Enabled,
			InsecureClientURIs: c.OAuth.InsecureClientURIs, KeyLifetime: c.OAuth.KeyLifetime.Std(),
		},
	})
}

// clientSSO is sign-in in the browser as the client API needs to know of it.
func (s *Server) clientSSO() *clientapi.SSODeps {
	return &clientapi.SSODeps{
		Providers: func() []clientapi.IdentityProvider {
			var out []clientapi.IdentityProvider
			for _, p := range s.sso.IdentityProviders() {
				out = append(out, clientapi.IdentityProvider(p))
			}
			return out
		},
		OAuth: s.cfg.OAuth.Enabled, Passwords: s.cfg.SSO.PasswordLogin,
		Proofs: func(ctx context.Context, who *web.Identity, operation string) ([]string, error) {
			return s.sso.Proofs(ctx, who.UserID, who.DeviceID, operation)
		},
		ApprovalURL: s.sso.ApprovalURL, LegacyRefresh: s.sso.LegacyRefresh, TokenUsed: s.providers.TokenUsed,
	}
}

// endBrowsers ends sessions on the server's own pages that an identity provider opened.
func (s *Server) endBrowsers(ctx context.Context, browsers []string) error {
	return s.sso.EndBrowsers(ctx, browsers)
}
