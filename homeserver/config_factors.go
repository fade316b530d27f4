package homeserver

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/moothall/moothall/sso/factor"
)

// Factors are what people can prove beside a password.
type Factors struct {
	Kinds        []string   `yaml:"kinds"` // totp, webauthn, sms, email
	Issuer       string     `yaml:"issuer"`
	AppPasswords bool       `yaml:"app_passwords"`
	SMS          SMSGateway `yaml:"sms"`
}

// SMSGateway is a service that sends SMS by one HTTP request. What may hold a key of the service is a Secret.
type SMSGateway struct {
	URL           Secret      `yaml:"url"` // empty: no SMS is sent
	URLFile       string      `yaml:"url_file"`
	Method        string      `yaml:"method"`
	Headers       []SMSHeader `yaml:"headers"`
	Body          Secret      `yaml:"body"`
	BodyFile      string      `yaml:"body_file"`
	Expect        string      `yaml:"expect"`
	TextEN        string      `yaml:"text_en"`
	TextZH        string      `yaml:"text_zh"`
	Countries     []string    `yaml:"countries"`
	PerNumberDay  int         `yaml:"per_number_day"`
	PerAccountDay int         `yaml:"per_account_day"`
	PerAddressDay int         `yaml:"per_address_day"`
	PerDay        int         `yaml:"per_day"`
}

// SMSHeader is a header of the request to the gateway.
type SMSHeader struct {
	Name      string `yaml:"name"`
	Value     Secret `yaml:"value"`
	ValueFile string `yaml:"value_file"`
}

// Policy says who has to prove which second factor. The first one that fits holds.
type Policy struct {
	Name              string   `yaml:"name"`
	Roles             []string `yaml:"roles"`
	Groups            []string `yaml:"groups"`
	Users             []string `yaml:"users"`
	Networks          []string `yaml:"networks"`
	ExceptNetworks    []string `yaml:"except_networks"`
	Ways              []string `yaml:"ways"`
	Require           []string `yaml:"require"`
	IgnoreUpstreamMFA bool     `yaml:"ignore_upstream_mfa"`
	RememberDays      int      `yaml:"remember_days"`
	GraceDays         int      `yaml:"grace_days"`
	AllowAppPasswords bool     `yaml:"allow_app_passwords"`
}

func defaultFactors() Factors {
	return Factors{Kinds: []string{string(factor.TOTP), string(factor.WebAuthn)}, SMS: SMSGateway{Method: "POST"}}
}

func (c *Config) checkFactors(d *configReader) error {
	f := &c.SSO.Factors
	for i, k := range f.Kinds {
		if !slices.Contains(factor.Kinds, factor.Kind(k)) {
			return d.complain("sso.factors.kinds", "has %q; it must be a list of: totp, webauthn, sms, email", k)
		}
		if slices.Contains(f.Kinds[:i], k) {
			return d.complain("sso.factors.kinds", "has %q twice", k)
		}
	}
	if slices.Contains(f.Kinds, string(factor.SMS)) && f.SMS.URL == "" {
		return d.complain("sso.factors.kinds", "has sms, which needs sso.factors.sms.url, the gateway that sends them")
	}
	if slices.Contains(f.Kinds, string(factor.Email)) && c.Email.Server == "" {
		return d.complain("sso.factors.kinds", "has email, which needs email.server")
	}
	if err := f.SMS.check(d); err != nil {
		return err
	}
	for i := range c.SSO.Policies {
		path := index("sso.policies", i)
		if err := c.SSO.Policies[i].check(d, path); err != nil {
			return err
		}
		for _, k := range c.SSO.Policies[i].Require {
			if slices.Contains(factor.Kinds, factor.Kind(k)) && !slices.Contains(c.factorKinds(), factor.Kind(k)) {
				return d.complain(path+".require", "has %q, which sso.factors.kinds does not have: nobody could enrol it", k)
			}
		}
	}
	return nil
}

func (g *SMSGateway) check(d *configReader) error {
	const path = "sso.factors.sms"
	if g.URL == "" {
		return nil
	}
	for i, h := range g.Headers {
		if h.Name == "" || h.Value == "" {
			return d.complain(index(path+".headers", i), "needs a name and a value")
		}
	}
	for _, n := range g.Countries {
		if !strings.HasPrefix(n, "+") || len(n) < 2 || strings.Trim(n[1:], "0123456789") != "" {
			return d.complain(path+".countries", "has %q; each must be like \"+86\"", n)
		}
	}
	for key, n := range map[string]int{
		"per_number_day": g.PerNumberDay, "per_account_day": g.PerAccountDay, "per_address_day": g.PerAddressDay, "per_day": g.PerDay,
	} {
		if n < 0 {
			return d.complain(path+"."+key, "is %d; it must be 0 (the default) or more", n)
		}
	}
	if err := g.gateway().Check(); err != nil {
		return d.complain(path+".url", "or what belongs to it cannot be used: %v", err)
	}
	return nil
}

func (g *SMSGateway) gateway() *factor.SMSConfig {
	out := &factor.SMSConfig{
		Method: g.Method, URL: string(g.URL), Body: string(g.Body), Headers: map[string]string{}, Expect: g.Expect,
		TextEN: g.TextEN, TextZH: g.TextZH, Countries: g.Countries,
		PerNumberDay: g.PerNumberDay, PerAccountDay: g.PerAccountDay, PerAddressDay: g.PerAddressDay, PerDay: g.PerDay,
	}
	for _, h := range g.Headers {
		out.Headers[h.Name] = string(h.Value)
	}
	return out
}

func (p *Policy) check(d *configReader, path string) error {
	for key, list := range map[string][]string{"networks": p.Networks, "except_networks": p.ExceptNetworks} {
		if _, err := networks(list); err != nil {
			return d.complain(path+"."+key, "%v", err)
		}
	}
	for _, role := range p.Roles {
		if !slices.Contains([]string{"admin", "security", "auditor", "compliance"}, role) {
			return d.complain(path+".roles", "has %q; it must be a list of: admin, security, auditor, compliance", role)
		}
	}
	r := p.rule()
	if err := r.Check(); err != nil {
		return d.complain(path, "cannot be: %v", err)
	}
	return nil
}

// networks reads a list of networks; a bare address is a network of one.
func networks(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(ip, ip.BitLen()))
			continue
		}
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("has %q; each must be a network such as 10.0.0.0/8 or an address", s)
		}
		out = append(out, n.Masked())
	}
	return out, nil
}

func (p *Policy) rule() factor.Rule {
	r := factor.Rule{
		Name: p.Name, Roles: p.Roles, Groups: p.Groups, Users: p.Users, Ways: p.Ways, Require: p.Require,
		IgnoreUpstream: p.IgnoreUpstreamMFA, RememberDays: p.RememberDays, GraceDays: p.GraceDays, AppPasswords: p.AllowAppPasswords,
	}
	r.Networks, _ = networks(p.Networks) // checked
	r.ExceptNetworks, _ = networks(p.ExceptNetworks)
	return r
}

func (c *Config) factorKinds() []factor.Kind {
	out := []factor.Kind{}
	for _, k := range c.SSO.Factors.Kinds {
		out = append(out, factor.Kind(k))
	}
	return out
}

// FactorConfig is what second factors take from the configuration.
func (c *Config) FactorConfig() factor.Config {
	out := factor.Config{Issuer: c.SSO.Factors.Issuer, Allow: c.factorKinds(), AppPasswords: c.SSO.Factors.AppPasswords}
	if c.SSO.Factors.SMS.URL != "" {
		out.SMS = c.SSO.Factors.SMS.gateway()
	}
	for i := range c.SSO.Policies {
		out.Rules = append(out.Rules, c.SSO.Policies[i].rule())
	}
	return out
}
