package upstream

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moothall/moothall/homeserver/account"
)

// What a provider speaks.
const (
	TypeOIDC     = "oidc"
	TypeOAuth2   = "oauth2" // OAuth 2.0 whose user information is not OpenID Connect's, described by the configuration
	TypeSAML     = "saml"
	TypeWeCom    = "wecom"    // 企业微信
	TypeDingTalk = "dingtalk" // 钉钉
	TypeFeishu   = "feishu"   // 飞书
)

// Types lists what a provider can speak.
var Types = []string{TypeOIDC, TypeOAuth2, TypeSAML, TypeWeCom, TypeDingTalk, TypeFeishu}

// Config is one identity provider.
type Config struct {
	ID, Type           string
	Name, NameZH       string
	Icon, Brand        string
	ClientID           string
	ClientSecret       string
	ClientAuth         string // basic, post, none
	Scopes             []string
	Issuer             string
	AuthorizeURL       string // instead of what discovery says
	TokenURL           string
	UserInfoURL        string
	KeysURL            string
	EndSessionURL      string
	UserInfo           string   // auto, never
	ACR                []string // asked for at every sign-in
	StepUpACR          []string // asked for where a second factor is owed
	MFA                MFA
	Timeout, ClockSkew time.Duration
	OnLogout           string // soft, end, ignore
	AllowedGroups      []string
	SyncGroups         bool     // the groups that it tells are the company's: rooms and policies follow them
	LinkBy             []string // directory, email
	OnConflict         string   // fail, add, set, replace
	CreateAccounts     bool
	Directory          string // whose immutable ids the mapping's directory_id are
	Mapping            Mapping
	OAuth2             OAuth2
	SAML               SAML
}

// MFA tells which sign-ins at the provider had more than one factor.
type MFA struct {
	ACR    []string `yaml:"acr"`
	AMR    []string `yaml:"amr"`
	Always bool     `yaml:"always"`
}

// Mapping says how what a provider tells becomes an account's. Values are Go templates over the claims; groups is the name
// or the path of a claim.
type Mapping struct {
	Subject        string     `yaml:"subject"`
	Localpart      string     `yaml:"localpart"`
	LocalpartUse   string     `yaml:"localpart_use"`
	DisplayName    string     `yaml:"display_name"`
	DisplayNameUse string     `yaml:"display_name_use"`
	Email          string     `yaml:"email"`
	EmailUse       string     `yaml:"email_use"`
	EmailVerified  string     `yaml:"email_verified"`
	DirectoryID    string     `yaml:"directory_id"`
	Groups         string     `yaml:"groups"`
	Roles          []RoleRule `yaml:"roles"`
	Attributes     []Pair     `yaml:"attributes"`
}

// RoleRule gives a role to the members of a group.
type RoleRule struct {
	Group string `yaml:"group"`
	Role  string `yaml:"role"`
}

// Pair is a name and a template of its value.
type Pair struct {
	Name  string `yaml:"name"`
	Value string `yaml:"value"`
}

// OAuth2 describes the requests by which a provider that is not OpenID Connect's tells who somebody is.
type OAuth2 struct {
	CodeParam  string    `yaml:"code_param"` // how the callback calls the code
	AgentID    string    `yaml:"agent_id"`   // .agent_id in templates
	BaseURL    string    `yaml:"base_url"`   // of a private installation; for the known providers
	Authorize  []Pair    `yaml:"authorize"`  // parameters of authorize_url
	Requests   []Request `yaml:"requests"`
	AnyCompany bool      `yaml:"any_company"` // 钉钉: people of other companies too
}

// Request is one of those requests. Templates see client_id, client_secret, agent_id, code, redirect_uri, code_verifier,
// and the answers of earlier requests by their names.
type Request struct {
	Name    string `yaml:"name"`
	Method  string `yaml:"method"`
	URL     string `yaml:"url"`
	Query   []Pair `yaml:"query"`
	Headers []Pair `yaml:"headers"`
	Form    []Pair `yaml:"form"`
	JSON    []Pair `yaml:"json"`
	// OK is a path whose value must be OKValue, Need one that must be there. Paths are those of github.com/tidwall/gjson.
	OK      string `yaml:"ok"`
	OKValue string `yaml:"ok_value"`
	Need    string `yaml:"need"`
	// Expires is the path of the answer's lifetime in seconds: the answer is the application's own and used for everybody.
	Expires string `yaml:"expires"`
}

// SAML is a SAML 2.0 identity provider.
type SAML struct {
	MetadataURL  string `yaml:"metadata_url"`
	MetadataFile string `yaml:"metadata_file"`
	EntityID     string `yaml:"entity_id"` // ours; empty: the address of our metadata
	SignRequests bool   `yaml:"sign_requests"`
	NameIDFormat string `yaml:"name_id_format"`
	Encrypted    bool   `yaml:"encrypted"` // assertions are encrypted for us
}

// How an attribute that a provider tells is used.
const (
	UseIgnore  = "ignore"
	UseSuggest = "suggest" // at first sign-in, where the person can choose another
	UseForce   = "force"   // as the provider tells it, at every sign-in
	UseRequire = "require" // as force, and without it nobody signs in
)

var uses = []string{UseIgnore, UseSuggest, UseForce, UseRequire}

// What becomes of somebody whose name is that of an account that is not linked.
const (
	ConflictFail    = "fail"
	ConflictAdd     = "add"     // the account is linked
	ConflictSet     = "set"     // the account is linked if nobody else of the provider is
	ConflictReplace = "replace" // the account is linked, and nobody else of the provider any more
)

// What the end of a session at the provider does.
const (
	LogoutSoft   = "soft" // sessions end, devices and their keys stay
	LogoutEnd    = "end"  // sessions and devices end
	LogoutIgnore = "ignore"
)

// How an account is found that is not linked yet.
const (
	LinkByDirectory = "directory"
	LinkByEmail     = "email"
)

// DefaultTimeout bounds one request to a provider, DefaultClockSkew is by how much clocks may differ.
const (
	DefaultTimeout   = 10 * time.Second
	DefaultClockSkew = time.Minute
)

func or(s *string, v string) {
	if *s == "" {
		*s = v
	}
}

func (c Config) withDefaults() Config {
	or(&c.Type, TypeOIDC)
	or(&c.Name, c.ID)
	or(&c.ClientAuth, "basic")
	or(&c.UserInfo, "auto")
	or(&c.OnConflict, ConflictFail)
	or(&c.OnLogout, LogoutSoft)
	if c.Timeout == 0 {
		c.Timeout = DefaultTimeout
	}
	if c.ClockSkew == 0 {
		c.ClockSkew = DefaultClockSkew
	}
	switch c.Type {
	case TypeOIDC:
		if len(c.Scopes) == 0 {
			c.Scopes = []string{"openid", "profile", "email"}
		}
		or(&c.Mapping.Subject, "{{.sub}}")
		or(&c.Mapping.Localpart, "{{slug (localpart .preferred_username)}}")
		or(&c.Mapping.DisplayName, "{{.name}}")
		or(&c.Mapping.Email, "{{.email}}")
		or(&c.Mapping.EmailVerified, "{{.email_verified}}")
		or(&c.Mapping.Groups, "groups")
	case TypeSAML:
		or(&c.Mapping.Subject, "{{.name_id}}")
		or(&c.Mapping.Groups, "groups")
		or(&c.SAML.NameIDFormat, "unspecified")
	default:
		c.preset()
		or(&c.OAuth2.CodeParam, "code")
	}
	or(&c.Mapping.LocalpartUse, UseRequire)
	or(&c.Mapping.DisplayNameUse, UseSuggest)
	or(&c.Mapping.EmailUse, UseSuggest)
	if len(c.MFA.ACR) == 0 {
		c.MFA.ACR = c.StepUpACR
	}
	if len(c.MFA.AMR) == 0 {
		c.MFA.AMR = []string{"mfa"}
	}
	return c
}

var idPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Problem is what is wrong with a configuration; Key is the path of the value below the provider.
type Problem struct{ Key, Message string }

// Error implements error.
func (p *Problem) Error() string { return p.Key + " " + p.Message }

func problem(key, format string, args ...any) error {
	return &Problem{key, fmt.Sprintf(format, args...)}
}

// Check tells what is wrong with a configuration, as *Problem.
func (c Config) Check() error {
	c = c.withDefaults()
	if !idPattern.MatchString(c.ID) {
		return problem("id", "is %q; it must be a short name of small letters, digits, . _ and -, which stands in addresses", c.ID)
	}
	if !slices.Contains(Types, c.Type) {
		return problem("type", "is %q; it must be one of: %s", c.Type, strings.Join(Types, ", "))
	}
	for _, v := range []struct {
		key, value string
		known      []string
	}{
		{"client_auth", c.ClientAuth, []string{"basic", "post", "none"}},
		{"userinfo", c.UserInfo, []string{"auto", "never"}},
		{"on_conflict", c.OnConflict, []string{ConflictFail, ConflictAdd, ConflictSet, ConflictReplace}},
		{"on_logout", c.OnLogout, []string{LogoutSoft, LogoutEnd, LogoutIgnore}},
		{"mapping.localpart_use", c.Mapping.LocalpartUse, uses},
		{"mapping.display_name_use", c.Mapping.DisplayNameUse, uses},
		{"mapping.email_use", c.Mapping.EmailUse, uses},
	} {
		if !slices.Contains(v.known, v.value) {
			return problem(v.key, "is %q; it must be one of: %s", v.value, strings.Join(v.known, ", "))
		}
	}
	for _, by := range c.LinkBy {
		if by != LinkByDirectory && by != LinkByEmail {
			return problem("link_by", "has %q; it must be a list of: directory, email", by)
		}
	}
	if slices.Contains(c.LinkBy, LinkByDirectory) && (c.Directory == "" || c.Mapping.DirectoryID == "") {
		return problem("link_by", "has directory; that needs directory and mapping.directory_id")
	}
	for i, r := range c.Mapping.Roles {
		if r.Group == "" || !slices.Contains(account.AllRoles(), account.Role(r.Role)) {
			return problem(fmt.Sprintf("mapping.roles[%d]", i), "needs a group and a role that exists")
		}
	}
	if c.SyncGroups && c.Mapping.Groups == "" {
		return problem("sync_groups", "needs mapping.groups")
	}
	if _, err := newMapping(c.Mapping); err != nil {
		return err
	}
	return c.checkProtocol()
}

func (c *Config) checkProtocol() error {
	addresses := map[string]string{
		"issuer": c.Issuer, "authorize_url": c.AuthorizeURL, "token_url": c.TokenURL, "userinfo_url": c.UserInfoURL,
		"keys_url": c.KeysURL, "end_session_url": c.EndSessionURL, "saml.metadata_url": c.SAML.MetadataURL, "oauth2.base_url": c.OAuth2.BaseURL,
	}
	for key, value := range addresses {
		if value != "" && !isHTTP(value) {
			return problem(key, "is %q; it must be an address such as https://id.example.org", value)
		}
	}
	if c.Type != TypeSAML && c.ClientID == "" {
		return problem("client_id", "is empty; the identity provider gives it when this server is registered there")
	}
	switch c.Type {
	case TypeOIDC:
		if c.Issuer == "" {
			return problem("issuer", "is empty; it must be the provider's issuer, such as https://id.example.org/realms/company")
		}
		if c.ClientSecret == "" && c.ClientAuth != "none" {
			return problem("client_secret", "is empty; without one, client_auth must be none")
		}
		if !slices.Contains(c.Scopes, "openid") {
			return problem("scopes", "must have openid")
		}
	case TypeSAML:
		if (c.SAML.MetadataURL == "") == (c.SAML.MetadataFile == "") {
			return problem("saml.metadata_url", "or saml.metadata_file must say where the provider's metadata is, one of them")
		}
	default:
		if c.AuthorizeURL == "" {
			return problem("authorize_url", "is empty; it must be the provider's page to sign in")
		}
		if len(c.OAuth2.Requests) == 0 {
			return problem("oauth2.requests", "is empty; at least one request must tell who signs in")
		}
		_, err := compileOAuth2(*c)
		return err
	}
	return nil
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" && u.Fragment == "" && u.User == nil
}

// AsProblem is the *Problem in an error's chain, or nil.
func AsProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	return nil
}
