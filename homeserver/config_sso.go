package homeserver

import (
	"bytes"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/moothall/moothall/homeserver/page"
)

// Branding is how the server's pages look.
type Branding struct {
	Name       string `yaml:"name"`
	Logo       string `yaml:"logo"` // file
	Accent     string `yaml:"accent"`
	AccentText string `yaml:"accent_text"`
	AccentDark string `yaml:"accent_dark"`
	HelpURL    string `yaml:"help_url"`
	HelpText   string `yaml:"help_text"`
}

// SSO is about signing in in the browser, whoever the identity provider is.
type SSO struct {
	PasswordLogin    bool          `yaml:"password_login"`
	RedirectsAllowed []string      `yaml:"redirects_allowed"`
	Browser          SSOBrowser    `yaml:"browser"`
	Providers        []SSOProvider `yaml:"providers"`
	Factors          Factors       `yaml:"factors"`
	Policies         []Policy      `yaml:"policies"`
}

// SSOBrowser is about the sessions of browsers on the server's own pages.
type SSOBrowser struct {
	IdleTimeout Duration `yaml:"idle_timeout"`
	Lifetime    Duration `yaml:"lifetime"`
	BindAddress string   `yaml:"bind_address"`
}

// OAuth is the OAuth 2.0 authorization server.
type OAuth struct {
	Enabled            bool     `yaml:"enabled"`
	InsecureClientURIs bool     `yaml:"insecure_client_uris"`
	KeyLifetime        Duration `yaml:"key_lifetime"`
}

func defaultSSO() SSO {
	return SSO{PasswordLogin: true, Browser: SSOBrowser{IdleTimeout: Duration(8 * 60 * minute), Lifetime: Duration(7 * day), BindAddress: "off"}, Factors: defaultFactors()}
}

func defaultOAuth() OAuth { return OAuth{Enabled: true, KeyLifetime: Duration(90 * day)} }

// maxLogo bounds the logo: it is part of every page.
const maxLogo = 64 << 10

var (
	colourForm = regexp.MustCompile(`^#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})$`)
	logoTypes  = map[string]string{".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp"}
)

func (c *Config) checkSSO(d *configReader) error {
	for path, colour := range map[string]string{
		"branding.accent": c.Branding.Accent, "branding.accent_text": c.Branding.AccentText, "branding.accent_dark": c.Branding.AccentDark,
	} {
		if colour != "" && !colourForm.MatchString(colour) {
			return d.complain(path, "is %q; it must be a colour such as #0b6b57", colour)
		}
	}
	if _, err := c.Branding.page(); err != nil {
		return d.complain("branding.logo", "%v", err)
	}
	if u := c.Branding.HelpURL; u != "" && !isHTTP(u) && !strings.HasPrefix(u, "mailto:") {
		return d.complain("branding.help_url", "is %q; it must be an address such as https://example.org/help or mailto:it@example.org", u)
	}
	b := c.SSO.Browser
	if b.IdleTimeout.Std() < minute || b.IdleTimeout > b.Lifetime {
		return d.complain("sso.browser.idle_timeout", "must be from \"1m\" to what sso.browser.lifetime is")
	}
	if b.Lifetime.Std() > 365*day {
		return d.complain("sso.browser.lifetime", "must be at most \"365d\"")
	}
	switch b.BindAddress {
	case "off", "network", "exact":
	default:
		return d.complain("sso.browser.bind_address", "is %q; it must be off, network or exact", b.BindAddress)
	}
	for _, allowed := range c.SSO.RedirectsAllowed {
		if u, err := url.Parse(allowed); err != nil || u.Scheme == "" || u.Scheme == "https" && (u.Host == "" || u.Path == "") {
			return d.complain("sso.redirects_allowed", "has %q; each must be the beginning of an address with its first slash, such as https://chat.example.org/", allowed)
		}
	}
	if t := c.OAuth.KeyLifetime.Std(); t < day || t > 3650*day {
		return d.complain("oauth.key_lifetime", "must be from \"1d\" to \"3650d\"")
	}
	return nil
}

// page is the branding as the pages take it; it reads the logo.
func (b Branding) page() (page.Branding, error) {
	out := page.Branding{
		Name: b.Name, Accent: b.Accent, AccentInk: b.AccentText, AccentDark: b.AccentDark, SupportURL: b.HelpURL, SupportText: b.HelpText,
	}
	if b.Logo == "" {
		return out, nil
	}
	dot := strings.LastIndexByte(b.Logo, '.')
	kind, ok := logoTypes[strings.ToLower(b.Logo[max(dot, 0):])]
	if !ok {
		return out, fmt.Errorf("is %q; it must name an .svg, .png, .jpg or .webp file", b.Logo)
	}
	logo, err := os.ReadFile(b.Logo)
	if err != nil {
		return out, fmt.Errorf("cannot be read: %w", err)
	}
	if len(logo) > maxLogo || len(bytes.TrimSpace(logo)) == 0 {
		return out, fmt.Errorf("must be a file of at most %d KiB", maxLogo>>10)
	}
	out.Logo, out.LogoType = logo, kind
	return out, nil
}

// kit makes the kit of all pages.
func (c *Config) kit() (*page.Kit, error) {
	b, err := c.Branding.page()
	if err != nil {
		return nil, fmt.Errorf("branding.logo %w", err)
	}
	return page.New(page.Config{ServerName: c.ServerName, PublicURL: c.PublicURL, Branding: b})
}
