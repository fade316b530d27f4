// Package factor is about what people prove beside a password: time-based codes, passkeys, codes by SMS and mail, recovery
// codes; who has to prove which by policy; remembered devices; and passwords for apps that know no second factor.
package factor

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Kind is a kind of second factor.
type Kind string

// The kinds.
const (
	TOTP     Kind = "totp"     // codes of an authenticator app. RFC 6238
	WebAuthn Kind = "webauthn" // passkeys and security keys
	SMS      Kind = "sms"
	Email    Kind = "email"
	Recovery Kind = "recovery" // codes on paper; not enrolled by themselves
)

// Kinds are those that can be enrolled.
var Kinds = []Kind{WebAuthn, TOTP, SMS, Email}

// Authentication methods as sessions name them. Spec: RFC 8176; "rec" and "mail" are ours.
const (
	AMRPassword = "pwd"
	AMROneTime  = "otp"
	AMRKey      = "hwk"
	AMRVerified = "user" // the passkey has verified its user, by PIN or biometrics
	AMRSMS      = "sms"
	AMRMail     = "mail"
	AMRRecovery = "rec"
	AMRMulti    = "mfa" // several factors at the company's identity provider
)

// AMR is the authentication method that a kind proves.
func (k Kind) AMR() string {
	switch k {
	case TOTP:
		return AMROneTime
	case WebAuthn:
		return AMRKey
	case SMS:
		return AMRSMS
	case Email:
		return AMRMail
	case Recovery:
		return AMRRecovery
	}
	return ""
}

// What a policy can ask for beside the kinds.
const (
	RequireNone          = "none"          // no second factor, even of those who have one
	RequireOptional      = "optional"      // a second factor of those who have one
	RequireAny           = "any"           // a second factor of any kind
	RequireCryptographic = "cryptographic" // one that holds a key: a passkey
)

// Config is how second factors behave.
type Config struct {
	// Issuer is how authenticator apps and passkeys call this server; "": its name.
	Issuer string
	// Allow are the kinds that can be enrolled; nil: totp and webauthn.
	Allow []Kind
	// SMS is the gateway that sends SMS; nil: there is none.
	SMS *SMSConfig
	// AppPasswords allows passwords for single apps to those whom no rule concerns.
	AppPasswords bool
	// Rules are the policies: the first one that fits holds. Where none fits, a second factor is asked of those who have one.
	Rules []Rule
}

// Rule is a policy. All of its conditions must hold; one that is empty always does.
type Rule struct {
	Name           string
	Roles          []string // one of these roles
	Groups         []string // a member of one of these groups
	Users          []string // patterns such as "@boss*:example.org" or "svc-*" (a localpart)
	Networks       []netip.Prefix
	ExceptNetworks []netip.Prefix
	Ways           []string // password, sso:<provider>, sso:*, passkey, registration
	// Require is what must be proved: one of none, optional, any, cryptographic or a list of kinds of which one will do.
	Require []string
	// IgnoreUpstream makes a second factor at the company's identity provider not count.
	IgnoreUpstream bool
	RememberDays   int // how long a browser may be remembered; 0: not
	GraceDays      int // how long enrolment may be put off
	AppPasswords   bool

	users []*regexp.Regexp
	ways  []*regexp.Regexp
}

// SMSConfig is a gateway that sends SMS by one HTTP request. URL, Body and the values of Headers are templates; see smsData.
type SMSConfig struct {
	Method, URL, Body string
	Headers           map[string]string
	// Expect is a regular expression that the body of an answer that means success fits; "": the status alone tells.
	Expect string
	// TextEN and TextZH are what the SMS says, with {{.Code}}; "": a text of ours.
	TextEN, TextZH string
	// Countries are the prefixes of numbers that can be enrolled, such as "+86"; nil: all.
	Countries []string
	// PerNumberDay, PerAccountDay, PerAddressDay and PerDay limit how many are sent in a day, to a number, for an account,
	// asked for from an address, and in all. 0: 10, 10, 50, 5000.
	PerNumberDay, PerAccountDay, PerAddressDay, PerDay int
}

const (
	codeLifetime   = 5 * time.Minute
	codeTries      = 5
	codeGap        = time.Minute // between two codes to one place
	enrolLifetime  = 15 * time.Minute
	maxFactors     = 20
	maxDevices     = 10 // remembered ones of an account
	maxApps        = 25
	maxName        = 64 // characters
	freeFailures   = 5  // wrong tries before an account has to wait
	firstWait      = time.Minute
	longestWait    = time.Hour
	recoveryCodes  = 10
	day            = 24 * time.Hour
	mailsPerDay    = 20
	proofFreshness = 10 * time.Minute // how recent a proof must be to change factors
)

func (c Config) withDefaults(serverName string) (Config, error) {
	if c.Issuer == "" {
		c.Issuer = serverName
	}
	if c.Allow == nil {
		c.Allow = []Kind{TOTP, WebAuthn}
	}
	if c.SMS != nil {
		s := *c.SMS
		for n, def := range map[*int]int{&s.PerNumberDay: 10, &s.PerAccountDay: 10, &s.PerAddressDay: 50, &s.PerDay: 5000} {
			if *n == 0 {
				*n = def
			}
		}
		c.SMS = &s
	}
	c.Rules = slices.Clone(c.Rules)
	for i := range c.Rules {
		r := &c.Rules[i]
		if err := r.Check(); err != nil {
			return c, fmt.Errorf("policy %d: %w", i, err)
		}
		if r.Name == "" {
			r.Name = fmt.Sprintf("policy %d", i+1)
		}
		r.users, r.ways = patterns(r.Users), patterns(r.Ways)
	}
	return c, nil
}

// Check tells what is wrong with a rule.
func (r *Rule) Check() error {
	if len(r.Require) == 0 {
		return errors.New("require is missing; it must be none, optional, any, cryptographic or a list of kinds")
	}
	for _, q := range r.Require {
		switch q {
		case RequireNone, RequireOptional, RequireAny, RequireCryptographic:
			if len(r.Require) > 1 {
				return fmt.Errorf("require has %q beside others; it must stand alone", q)
			}
		default:
			if !slices.Contains(Kinds, Kind(q)) {
				return fmt.Errorf("require has %q; it must be none, optional, any, cryptographic, webauthn, totp, sms or email", q)
			}
		}
	}
	if r.RememberDays < 0 || r.RememberDays > 365 {
		return errors.New("remember_days must be from 0 to 365")
	}
	if r.GraceDays < 0 || r.GraceDays > 365 {
		return errors.New("grace_days must be from 0 to 365")
	}
	return nil
}

// Check tells what is wrong with a gateway's settings.
func (s *SMSConfig) Check() error {
	if s.URL == "" {
		return errors.New("url is missing")
	}
	_, err := newGateway(s, nil)
	return err
}

// patterns compiles patterns in which * stands for any text.
func patterns(in []string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, p := range in {
		out = append(out, regexp.MustCompile("(?i)^"+strings.ReplaceAll(regexp.QuoteMeta(p), `\*`, ".*")+"$"))
	}
	return out
}

// accepts tells which kinds a requirement takes.
func accepts(require []string, k Kind) bool {
	switch require[0] {
	case RequireNone, RequireOptional, RequireAny:
		return true
	case RequireCryptographic:
		return k == WebAuthn
	}
	return slices.Contains(require, string(k))
}

// parseTemplate reads a template of the gateway's request.
func parseTemplate(name, text string) (*template.Template, error) {
	return template.New(name).Option("missingkey=error").Funcs(smsFuncs).Parse(text)
}
