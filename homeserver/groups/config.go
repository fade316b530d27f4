package groups

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"maunium.net/go/mautrix/id"
)

// Config says which groups have which rooms.
type Config struct {
	ServiceAccount     string // localpart of the account that makes the rooms
	ServiceName        string // its display name
	AdditionalCreators []id.UserID
	Spaces             []Space
	Rules              []Rule
}

// Space is a space that stands for no group: everyone in what lies in it is a member.
type Space struct {
	ID     string
	Name   string
	Topic  string
	Alias  string // the part before the colon, "" for none
	Parent string // id of a space of the list, "" for none
}

// What a rule makes, and how people get in.
const (
	MakeRoom   = "room"
	MakeSpace  = "space"
	JoinForce  = "force"
	JoinInvite = "invite"
	// ParentUnit as a Parent is the space of the unit that the group lies in.
	ParentUnit = "unit"
)

// Rule says which groups get a room or space, and what that is like. All conditions that are set must hold.
type Rule struct {
	ID string // never changes: the rooms are found again by it

	Source     string // id of a directory or identity provider, scim; "": any
	Kind       string // group or unit; "": any
	Group      string // the immutable id of one group; "": any
	NameRegexp string // the whole name, case-sensitive; "": any
	DN         string // the group lies at or below this place in the tree; "": anywhere

	Make       string   // room or space; "": room
	Shared     bool     // one room for all groups that the rule matches
	SharedWith string   // id of another rule, whose room this rule's groups are in too
	RoomName   string   // template; "": {{.Name}}
	Topic      string   // template
	Alias      string   // template of the part before the colon; "": none
	Parent     string   // id of a space, "unit", or "" for none
	Root       string   // id of the space of units that have no unit above; "" for none
	PowerLevel int64    // of members; 0: that of everybody
	Join       string   // force or invite; "": force
	KeepExtra  bool     // who is in the room without being in the group stays
	Allow      []string // user ids that stay all the same, with * for any part
	Encrypted  bool
	History    string // shared, invited, joined; "": shared
	Direct     bool   // members of nested groups and of units below are left out
}

// compiled is a rule that was checked.
type compiled struct {
	Rule
	name               *regexp.Regexp
	dn                 []string
	allow              []*regexp.Regexp
	title, topic, link *template.Template
}

// Check finds the first fault of a configuration; path is the key that it is at, such as rules[2].parent.
func (c *Config) Check() (path string, err error) {
	_, path, err = c.compile()
	return path, err
}

func (c *Config) compile() (rules []*compiled, path string, err error) {
	if !plainID(c.ServiceAccount) || strings.ToLower(c.ServiceAccount) != c.ServiceAccount {
		return nil, "service_account", fmt.Errorf("is %q; it must be the name of an account: small letters, digits, - and _", c.ServiceAccount)
	}
	spaces := map[string]bool{}
	for i, s := range c.Spaces {
		at := fmt.Sprintf("spaces[%d]", i)
		switch {
		case !plainID(s.ID) || s.ID == ParentUnit:
			return nil, at + ".id", fmt.Errorf("is %q; it must be a name of letters, digits, - and _, and not %q", s.ID, ParentUnit)
		case spaces[s.ID]:
			return nil, at + ".id", fmt.Errorf("is %q, which another space has", s.ID)
		case s.Name == "":
			return nil, at + ".name", fmt.Errorf("is empty; the space needs a name")
		case s.Parent != "" && !spaces[s.Parent]:
			return nil, at + ".parent", fmt.Errorf("is %q; it must be the id of a space that stands before this one", s.Parent)
		}
		spaces[s.ID] = true
	}
	seen := map[string]*compiled{}
	for i := range c.Rules {
		r := &compiled{Rule: c.Rules[i]}
		field, err := r.compile(spaces, seen)
		if err != nil {
			return nil, fmt.Sprintf("rules[%d].%s", i, field), err
		}
		seen[r.ID] = r
		rules = append(rules, r)
	}
	for i, u := range c.AdditionalCreators {
		if _, _, err := u.Parse(); err != nil {
			return nil, fmt.Sprintf("additional_creators[%d]", i), fmt.Errorf("is %q; it must be a user id such as @it:example.org", u)
		}
	}
	return rules, "", nil
}

func plainID(s string) bool {
	for _, c := range s {
		if c != '-' && c != '_' && (c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c)) {
			return false
		}
	}
	return s != ""
}

func oneOf(value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("is %q; it must be %s", value, strings.Join(allowed, " or "))
}

// compile checks a rule; field is where it is wrong.
func (r *compiled) compile(spaces map[string]bool, seen map[string]*compiled) (field string, err error) {
	if !plainID(r.ID) {
		return "id", fmt.Errorf("is %q; it must be a name of letters, digits, - and _ that stays the same for ever", r.ID)
	}
	if seen[r.ID] != nil {
		return "id", fmt.Errorf("is %q, which another rule has", r.ID)
	}
	for _, f := range []struct {
		field string
		value *string
		std   string
		among []string
	}{
		{"make", &r.Make, MakeRoom, []string{MakeRoom, MakeSpace}},
		{"join", &r.Join, JoinForce, []string{JoinForce, JoinInvite}},
		{"history", &r.History, "shared", []string{"shared", "invited", "joined"}},
		{"kind", &r.Kind, "", []string{"", KindGroup, KindUnit}},
	} {
		if *f.value == "" {
			*f.value = f.std
		}
		if err := oneOf(*f.value, f.among...); err != nil {
			return f.field, err
		}
	}
	if r.NameRegexp != "" {
		if r.name, err = regexp.Compile(`^(?:` + r.NameRegexp + `)$`); err != nil {
			return "name_regexp", fmt.Errorf("is no regular expression: %w", err)
		}
	}
	r.dn = splitDN(r.DN)
	if r.Parent != "" && r.Parent != ParentUnit && !spaces[r.Parent] {
		return "parent", fmt.Errorf("is %q; it must be %q or the id of a space", r.Parent, ParentUnit)
	}
	if r.Root != "" && !spaces[r.Root] {
		return "root", fmt.Errorf("is %q; it must be the id of a space", r.Root)
	}
	if r.PowerLevel < -100 || r.PowerLevel > 99 {
		return "power_level", fmt.Errorf("is %d; it must be from -100 to 99", r.PowerLevel)
	}
	if r.SharedWith != "" && (seen[r.SharedWith] == nil || !seen[r.SharedWith].Shared) {
		return "shared_with", fmt.Errorf("is %q; it must be the id of a rule that stands before this one and has shared: true", r.SharedWith)
	}
	for i, pattern := range r.Allow {
		quoted := strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`)
		re, err := regexp.Compile(`^` + quoted + `$`)
		if err != nil || !strings.HasPrefix(pattern, "@") {
			return fmt.Sprintf("allow[%d]", i), fmt.Errorf("is %q; it must be a user id, where * stands for any part", pattern)
		}
		r.allow = append(r.allow, re)
	}
	return r.templates()
}

func (r *compiled) templates() (field string, err error) {
	title := r.RoomName
	if title == "" {
		title = "{{.Name}}"
	}
	for _, f := range []struct {
		field, text string
		into        **template.Template
	}{{"room_name", title, &r.title}, {"topic", r.Topic, &r.topic}, {"alias", r.Alias, &r.link}} {
		if f.text == "" {
			continue
		}
		t, err := template.New(f.field).Option("missingkey=error").Parse(f.text)
		if err == nil {
			err = t.Execute(&bytes.Buffer{}, facts{Match: make([]string, 100)})
		}
		if err != nil {
			return f.field, fmt.Errorf("is no template: %w", err)
		}
		*f.into = t
	}
	return "", nil
}

// facts are what templates can use.
type facts struct {
	Name, Slug, ID, Source, DN, Kind string
	Match                            []string // of name_regexp: the whole, then its groups
}

func (r *compiled) factsOf(g *Group) facts {
	f := facts{Name: g.Name, Slug: slug(g.Name), ID: g.ExternalID, Source: g.Source, DN: g.DN, Kind: g.Kind}
	if r.name != nil {
		f.Match = r.name.FindStringSubmatch(g.Name)
	}
	return f
}

func render(t *template.Template, f facts, limit int) (string, error) {
	if t == nil {
		return "", nil
	}
	var b strings.Builder
	if err := t.Execute(&b, f); err != nil {
		return "", err
	}
	return cut(strings.TrimSpace(b.String()), limit), nil
}

// cut shortens to a number of bytes, between characters.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xC0 == 0x80 {
		limit--
	}
	return s[:limit]
}

// slug makes the part of an alias out of a name: small letters and digits of any script, the rest is a dash.
func slug(s string) string {
	var b strings.Builder
	dash := false
	for _, c := range strings.ToLower(s) {
		if unicode.IsLetter(c) || unicode.IsDigit(c) || c == '.' || c == '_' {
			if dash && b.Len() > 0 {
				b.WriteByte('-')
			}
			dash = false
			b.WriteRune(c)
			continue
		}
		dash = true
	}
	return b.String()
}

// splitDN cuts a distinguished name into its parts, in a form that can be compared.
func splitDN(dn string) []string {
	if strings.TrimSpace(dn) == "" {
		return nil
	}
	var out []string
	var part strings.Builder
	escaped := false
	for _, c := range dn {
		switch {
		case escaped:
			part.WriteRune(c)
			escaped = false
		case c == '\\':
			part.WriteRune(c)
			escaped = true
		case c == ',':
			out = append(out, foldRDN(part.String()))
			part.Reset()
		default:
			part.WriteRune(c)
		}
	}
	return append(out, foldRDN(part.String()))
}

func foldRDN(s string) string {
	name, value, _ := strings.Cut(s, "=")
	return strings.ToLower(strings.TrimSpace(name)) + "=" + strings.ToLower(strings.TrimSpace(value))
}

// matches tells whether a group falls under the rule.
func (r *compiled) matches(g *Group) bool {
	switch {
	case r.Source != "" && r.Source != g.Source,
		r.Kind != "" && r.Kind != g.Kind,
		r.Group != "" && r.Group != g.ExternalID,
		r.name != nil && !r.name.MatchString(g.Name):
		return false
	}
	if r.dn == nil {
		return true
	}
	dn := splitDN(g.DN)
	return len(dn) >= len(r.dn) && slices.Equal(dn[len(dn)-len(r.dn):], r.dn)
}

// allows tells whether somebody may stay without being in the group.
func (r *compiled) allows(u id.UserID) bool {
	return slices.ContainsFunc(r.allow, func(re *regexp.Regexp) bool { return re.MatchString(string(u)) })
}
