package homeserver

import (
	"context"
	"net/http"
	"net/netip"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/sso/upstream"
)

// SSOProvider is an identity provider at which people sign in.
type SSOProvider struct {
	ID                   string           `yaml:"id"`
	Type                 string           `yaml:"type"` // oidc, oauth2, saml, wecom, dingtalk, feishu
	Name                 string           `yaml:"name"`
	NameZH               string           `yaml:"name_zh"`
	Icon                 string           `yaml:"icon"`
	Brand                string           `yaml:"brand"`
	Issuer               string           `yaml:"issuer"`
	ClientID             string           `yaml:"client_id"`
	ClientSecret         Secret           `yaml:"client_secret"`
	ClientSecretFile     string           `yaml:"client_secret_file"`
	ClientAuth           string           `yaml:"client_auth"`
	Scopes               []string         `yaml:"scopes"`
	AuthorizeURL         string           `yaml:"authorize_url"`
	TokenURL             string           `yaml:"token_url"`
	UserInfoURL          string           `yaml:"userinfo_url"`
	KeysURL              string           `yaml:"keys_url"`
	EndSessionURL        string           `yaml:"end_session_url"`
	UserInfo             string           `yaml:"userinfo"`
	ACRValues            []string         `yaml:"acr_values"`
	StepUpACRValues      []string         `yaml:"step_up_acr_values"`
	MFA                  upstream.MFA     `yaml:"mfa"`
	Timeout              Duration         `yaml:"timeout"`
	ClockSkew            Duration         `yaml:"clock_skew"`
	OnLogout             string           `yaml:"on_logout"`
	AllowedGroups        []string         `yaml:"allowed_groups"`
	SyncGroups           bool             `yaml:"sync_groups"`
	LinkBy               []string         `yaml:"link_by"`
	OnConflict           string           `yaml:"on_conflict"`
	ExistingAccountsOnly bool             `yaml:"existing_accounts_only"`
	Directory            string           `yaml:"directory"`
	Mapping              upstream.Mapping `yaml:"mapping"`
	OAuth2               upstream.OAuth2  `yaml:"oauth2"`
	SAML                 upstream.SAML    `yaml:"saml"`
}

// upstream is the provider for the package that speaks to it.
func (p *SSOProvider) upstream() upstream.Config {
	return upstream.Config{
		ID: p.ID, Type: p.Type, Name: p.Name, NameZH: p.NameZH, Icon: p.Icon, Brand: p.Brand,
		ClientID: p.ClientID, ClientSecret: string(p.ClientSecret), ClientAuth: p.ClientAuth, Scopes: p.Scopes, Issuer: p.Issuer,
		AuthorizeURL: p.AuthorizeURL, TokenURL: p.TokenURL, UserInfoURL: p.UserInfoURL, KeysURL: p.KeysURL, EndSessionURL: p.EndSessionURL,
		UserInfo: p.UserInfo, ACR: p.ACRValues, StepUpACR: p.StepUpACRValues, MFA: p.MFA,
		Timeout: p.Timeout.Std(), ClockSkew: p.ClockSkew.Std(), OnLogout: p.OnLogout, AllowedGroups: p.AllowedGroups, SyncGroups: p.SyncGroups,
		LinkBy: p.LinkBy, OnConflict: p.OnConflict, CreateAccounts: !p.ExistingAccountsOnly, Directory: p.Directory,
		Mapping: p.Mapping, OAuth2: p.OAuth2, SAML: p.SAML,
	}
}

// checkProviders finds what is wrong with the identity providers.
func (c *Config) checkProviders(d *configReader) error {
	seen := map[string]bool{}
	for i := range c.SSO.Providers {
		p, path := &c.SSO.Providers[i], index("sso.providers", i)
		if seen[p.ID] {
			return d.complain(path+".id", "is %q, which is the id of an earlier one", p.ID)
		}
		seen[p.ID] = true
		if p.Timeout.Std() > minute {
			return d.complain(path+".timeout", "must be at most \"1m\"")
		}
		if p.ClockSkew.Std() > 10*minute {
			return d.complain(path+".clock_skew", "must be at most \"10m\"")
		}
		err := p.upstream().Check()
		if err == nil {
			continue
		}
		if problem := upstream.AsProblem(err); problem != nil {
			at := path + "." + problem.Key
			if d.source[at] == "" { // where nothing was written the provider's own place helps
				d.source[at] = d.source[path]
			}
			return d.complain(at, "%s", problem.Message)
		}
		return d.complain(path, "%v", err)
	}
	return nil
}

// providers makes the identity providers. They are the administrator's choice and may lie in the company's network.
func (c *Config) providers() []upstream.Config {
	out := make([]upstream.Config, 0, len(c.SSO.Providers))
	for i := range c.SSO.Providers {
		out = append(out, c.SSO.Providers[i].upstream())
	}
	return out
}

// operatorClient is the client for servers that the configuration names, such as identity providers, which may be inside: by
// the configured proxy, with the company's own authority.
func (c *Config) operatorClient() (*http.Client, error) {
	out, err := c.outsideClient()
	if err != nil {
		return nil, err
	}
	out.AllowPrivate = allAddresses
	return push.NewClient(out)
}

// allAddresses are private and public ones.
var allAddresses = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// newProviders makes the identity providers; it reaches none of them.
func (s *Server) newProviders() (*upstream.Providers, error) {
	client, err := s.cfg.operatorClient()
	if err != nil {
		return nil, err
	}
	return upstream.New(upstream.Deps{
		Store: s.store, Accounts: s.accounts, Profiles: s.profiles, People: s.people, Logger: s.log, Client: client,
		PublicURL: s.cfg.PublicURL, Providers: s.cfg.providers(),
		EndBrowsers: func(ctx context.Context, browsers []string) error { return s.endBrowsers(ctx, browsers) },
		SetGroups: func(ctx context.Context, provider string, user id.UserID, names []string) error {
			return s.groups.SetMemberships(ctx, provider, user, names)
		},
	})
}
