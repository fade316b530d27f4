package appservices

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/goccy/go-yaml"
)

// Registration is an application service as its file describes it. Spec: application service API, "Registration"; the
// members with prefixes are those of proposals that bridges use.
type Registration struct {
	ID              string     `yaml:"id"`
	URL             *string    `yaml:"url"`
	ASToken         string     `yaml:"as_token"`
	HSToken         string     `yaml:"hs_token"`
	SenderLocalpart string     `yaml:"sender_localpart"`
	Namespaces      Namespaces `yaml:"namespaces"`
	RateLimited     *bool      `yaml:"rate_limited"`
	Protocols       []string   `yaml:"protocols"`

	Ephemeral        bool `yaml:"receive_ephemeral"`
	PushEphemeral    bool `yaml:"de.sorunome.msc2409.push_ephemeral"`
	DeviceLists      bool `yaml:"org.matrix.msc3202"`
	DeviceManagement bool `yaml:"io.element.msc4190"`
}

// Namespaces are what a service is interested in.
type Namespaces struct {
	Users   []Namespace `yaml:"users"`
	Aliases []Namespace `yaml:"aliases"`
	Rooms   []Namespace `yaml:"rooms"`
}

// Namespace is a set of ids.
type Namespace struct {
	Exclusive bool   `yaml:"exclusive"`
	Regex     string `yaml:"regex"`
	GroupID   string `yaml:"group_id"`
}

// pattern is a compiled namespace: the expression has to match from the beginning of an id.
type pattern struct {
	exclusive bool
	source    string
	re        *regexp.Regexp
}

type patterns []pattern

// match tells whether one of the patterns covers an id.
func (ps patterns) match(s string) bool {
	for _, p := range ps {
		if p.re.MatchString(s) {
			return true
		}
	}
	return false
}

// exclusive tells whether one of the exclusive patterns covers an id.
func (ps patterns) exclusive(s string) bool {
	for _, p := range ps {
		if p.exclusive && p.re.MatchString(s) {
			return true
		}
	}
	return false
}

func compile(kind string, list []Namespace) (patterns, error) {
	out := make(patterns, 0, len(list))
	for i, n := range list {
		if n.Regex == "" {
			return nil, fmt.Errorf("namespaces.%s[%d].regex is missing", kind, i)
		}
		re, err := regexp.Compile("^(?:" + n.Regex + ")")
		if err != nil {
			return nil, fmt.Errorf("namespaces.%s[%d].regex is %q: %w", kind, i, n.Regex, err)
		}
		out = append(out, pattern{n.Exclusive, n.Regex, re})
	}
	return out, nil
}

const (
	minToken   = 8 // characters: shorter ones can be guessed
	maxRegSize = 1 << 20
)

// readRegistration reads a registration file. Errors name the file and what would be right.
func readRegistration(path string) (*Service, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("the registration of an application service: %w", err)
	}
	if info.Size() > maxRegSize {
		return nil, fmt.Errorf("%s is too large for the registration of an application service", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the registration of an application service: %w", err)
	}
	var r Registration
	if err := yaml.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s, err := newService(r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	s.path = path
	return s, nil
}

// Check reads the registration files that the paths name and tells what is wrong, and with which of the paths.
func Check(paths []string) (at int, err error) {
	var all []*Service
	for i, path := range paths {
		for _, f := range stampsOf([]string{path}) {
			x, err := readRegistration(f.path)
			if err != nil {
				return i, err
			}
			all = append(all, x)
		}
		if err := checkAll(all); err != nil {
			return i, err
		}
	}
	return 0, nil
}

// newService checks a registration.
func newService(r Registration) (*Service, error) {
	for _, f := range []struct{ name, value string }{
		{"id", r.ID}, {"as_token", r.ASToken}, {"hs_token", r.HSToken}, {"sender_localpart", r.SenderLocalpart},
	} {
		if f.value == "" {
			return nil, errors.New(f.name + " is missing")
		}
	}
	switch {
	case len(r.ASToken) < minToken || len(r.HSToken) < minToken:
		return nil, fmt.Errorf("as_token and hs_token need %d characters at least: draw them at random", minToken)
	case r.ASToken == r.HSToken:
		return nil, errors.New("as_token and hs_token must not be the same")
	case strings.ContainsAny(r.ID, "/\x00") || len(r.ID) > 255:
		return nil, errors.New("id must have no slash and 255 bytes at most")
	}
	s := &Service{Registration: r}
	if r.URL != nil && *r.URL != "" {
		u, err := url.Parse(*r.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, fmt.Errorf("url is %q; it must be like http://localhost:29317, or null", *r.URL)
		}
		s.url = strings.TrimRight(*r.URL, "/")
	}
	var err error
	if s.users, err = compile("users", r.Namespaces.Users); err != nil {
		return nil, err
	}
	if s.aliases, err = compile("aliases", r.Namespaces.Aliases); err != nil {
		return nil, err
	}
	s.rooms, err = compile("rooms", r.Namespaces.Rooms)
	return s, err
}

// checkAll refuses services that get in each other's way.
func checkAll(services []*Service) error {
	ids, tokens, senders := map[string]*Service{}, map[string]*Service{}, map[string]*Service{}
	claims := map[string]*Service{}
	for _, s := range services {
		if o := ids[s.ID]; o != nil {
			return fmt.Errorf("%s and %s have the same id %q", o.path, s.path, s.ID)
		}
		if o := tokens[s.ASToken]; o != nil {
			return fmt.Errorf("%s and %s have the same as_token", o.path, s.path)
		}
		if o := senders[s.SenderLocalpart]; o != nil {
			return fmt.Errorf("%s and %s have the same sender_localpart %q", o.path, s.path, s.SenderLocalpart)
		}
		ids[s.ID], tokens[s.ASToken], senders[s.SenderLocalpart] = s, s, s
		for kind, ps := range map[string]patterns{"users": s.users, "aliases": s.aliases} {
			for _, p := range ps {
				if !p.exclusive {
					continue
				}
				if o := claims[kind+" "+p.source]; o != nil && o != s {
					return fmt.Errorf("%s and %s both claim the %s %q for themselves alone", o.path, s.path, kind, p.source)
				}
				claims[kind+" "+p.source] = s
			}
		}
	}
	return nil
}
