package homeserver

import (
	"net/netip"

	"github.com/moothall/moothall/appservices/hr"
)

// HR is about the HR system: who it is (SCIM, announcements), and what happens when people come.
type HR struct {
	Tokens       []HRToken `yaml:"tokens"`
	Localpart    string    `yaml:"localpart"`
	LinkExisting bool      `yaml:"link_existing"`
	Welcome      bool      `yaml:"welcome"`
	Departments  bool      `yaml:"departments"`
}

// HRToken is a secret that an HR system shows.
type HRToken struct {
	ID         string   `yaml:"id"`
	Secret     Secret   `yaml:"secret"`
	SecretFile string   `yaml:"secret_file"`
	Addresses  []string `yaml:"addresses"`
}

const minHRSecret = 24 // characters

// HRConfig is the part of package hr.
func (c *Config) HRConfig() hr.Config {
	out := hr.Config{Localpart: c.HR.Localpart, LinkExisting: c.HR.LinkExisting, Welcome: c.HR.Welcome, Departments: c.HR.Departments}
	for _, t := range c.HR.Tokens {
		addresses, _ := Listen{TrustedProxies: t.Addresses}.proxies() // checked before
		out.Tokens = append(out.Tokens, hr.Token{ID: t.ID, Secret: string(t.Secret), Addresses: addresses})
	}
	return out
}

func (c *Config) checkHR(d *configReader) error {
	seen := map[string]bool{}
	for i, t := range c.HR.Tokens {
		path := index("hr.tokens", i)
		switch {
		case t.ID == "" || seen[t.ID]:
			return d.complain(path+".id", "is %q; it must be a name that no other token has", t.ID)
		case len(t.Secret) < minHRSecret:
			return d.complain(path+".secret", "must have at least %d characters, such as: openssl rand -base64 32", minHRSecret)
		}
		seen[t.ID] = true
		var err error
		var networks []netip.Prefix
		if networks, err = (Listen{TrustedProxies: t.Addresses}).proxies(); err != nil || len(networks) != len(t.Addresses) {
			return d.complain(path+".addresses", "%v", err)
		}
	}
	if _, err := hr.ParseLocalpart(c.HR.Localpart); err != nil || c.HR.Localpart == "" {
		return d.complain("hr.localpart", "is no template: %v", err)
	}
	return nil
}
