package oa

import (
	"bytes"
	"fmt"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/go-json-experiment/json"
)

// Config is what an administrator says about OA systems.
type Config struct {
	Language     string        // of what the bot writes: zh or en
	RoomName     string        // of the approvals rooms; "": by the language
	LinkLifetime time.Duration // of the links in cards
	StepUpAge    time.Duration // how long ago the sign-in may be for approvals that need a second factor; 0: any
	Systems      []System
}

// System is one OA system.
type System struct {
	ID        string
	Name      string
	Token     string         // bearer token that it shows
	Signature string         // secret that its requests are signed with; "": they need not be
	Addresses []netip.Prefix // from where it may ask; none: from anywhere
	Callback  Callback
	Poll      Poll
	Templates []Template
}

// Callback is how a system is told of decisions.
type Callback struct {
	URL         string // template; "": it is not told
	Method      string
	Secret      string // signs what it is told; "": unsigned
	Headers     []Header
	Body        string // template; "": JSON as the documentation describes it
	ContentType string
	OK          string        // JSON path in the answer that must be OKValue; "": the status says it all
	OKValue     string        //
	GiveUp      time.Duration // how long to try
	Timeout     time.Duration
}

// Header is a header of a request; its value is a template.
type Header struct{ Name, Value string }

// Poll is how a system is asked for open approvals.
type Poll struct {
	URL     string // template; "": it is not asked
	Method  string
	Headers []Header
	Body    string
	Every   time.Duration
	Items   string // JSON paths: of the list, and within an item
	Paths   Paths
	// Complete: what the answer does not hold any more was decided elsewhere.
	Complete bool
}

// Paths are where things are in an item of a poll's answer.
type Paths struct {
	ID, Title, Summary, Assignee, Applicant, ApplicantName, Amount, Currency, Link, Template string
}

// Template is a kind of approval.
type Template struct {
	ID            string
	Name, NameZH  string
	LowRisk       bool   // reactions and replies may decide
	Threshold     string // amounts above it need a second factor, as do other currencies
	Currency      string // of the threshold
	Fields        []TemplateField
	RequireReason bool // to reject
	Delegate      bool // the assignee may pass it on
	RemindAfter   time.Duration
}

// TemplateField is a field of a template.
type TemplateField struct {
	Key, Label, LabelZH string
	Required            bool
}

// plain is the template of tasks that name none.
var plain = Template{}

func (s *System) template(name string) (*Template, bool) {
	if name == "" {
		return &plain, true
	}
	for i := range s.Templates {
		if s.Templates[i].ID == name {
			return &s.Templates[i], true
		}
	}
	return nil, false
}

// label is what a field is called in a language.
func (f *TemplateField) label(lang string) string {
	switch {
	case lang == "zh" && f.LabelZH != "":
		return f.LabelZH
	case f.Label != "":
		return f.Label
	}
	return f.Key
}

func (t *Template) name(lang string) string {
	switch {
	case lang == "zh" && t.NameZH != "":
		return t.NameZH
	case t.Name != "":
		return t.Name
	}
	return t.ID
}

// exceeds tells whether an amount is above the threshold.
func (t *Template) exceeds(a *Amount) bool {
	if t.Threshold == "" || a == nil {
		return false
	}
	if t.Currency != "" && !strings.EqualFold(a.Currency, t.Currency) {
		return true
	}
	limit, ok := new(big.Rat).SetString(t.Threshold)
	value, ok2 := new(big.Rat).SetString(a.Value)
	return !ok || !ok2 || value.Cmp(limit) > 0
}

// funcs are what templates of requests may use.
var funcs = template.FuncMap{
	"json": func(v any) (string, error) {
		b, err := json.Marshal(v, json.Deterministic(true))
		return string(b), err
	},
	"query": url.QueryEscape,
	"path":  url.PathEscape,
	"pick": func(v, from, to any, more ...any) any { // pick .outcome "approved" 1 "rejected" 2
		pairs := append([]any{from, to}, more...)
		for i := 0; i+1 < len(pairs); i += 2 {
			if fmt.Sprint(v) == fmt.Sprint(pairs[i]) {
				return pairs[i+1]
			}
		}
		return v
	},
}

// ParseTemplate checks a template of a request. Its data are those of the callback's JSON.
func ParseTemplate(text string) (*template.Template, error) {
	return template.New("").Funcs(funcs).Option("missingkey=error").Parse(text)
}

func expand(text string, data any) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := ParseTemplate(text)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, data)
	return b.String(), err
}

// Fault is what is wrong with a Config, and where.
type Fault struct{ Path, Problem string }

// Error implements error.
func (f *Fault) Error() string { return "oa." + f.Path + " " + f.Problem }

const minSecret = 24 // characters

// Check finds the first thing that cannot be.
func (c *Config) Check() *Fault {
	fault := func(path, format string, args ...any) *Fault { return &Fault{path, fmt.Sprintf(format, args...)} }
	switch {
	case c.Language != "zh" && c.Language != "en":
		return fault("language", "is %q; it must be zh or en", c.Language)
	case c.LinkLifetime < time.Minute:
		return fault("link_lifetime", "must be a minute at least")
	}
	var seen []string
	for i := range c.Systems {
		s := &c.Systems[i]
		at := fmt.Sprintf("systems[%d]", i)
		switch {
		case s.ID == "" || slices.Contains(seen, s.ID) || strings.ContainsAny(s.ID, "/ \x00"):
			return fault(at+".id", "is %q; it must be a name that no other system has, without / and spaces", s.ID)
		case len(s.Token) < minSecret:
			return fault(at+".token", "must have at least %d characters, such as: openssl rand -base64 32", minSecret)
		case s.Signature != "" && len(s.Signature) < minSecret:
			return fault(at+".signature", "must have at least %d characters", minSecret)
		}
		seen = append(seen, s.ID)
		if f := s.checkRequests(at, fault); f != nil {
			return f
		}
		if f := s.checkTemplates(at, fault); f != nil {
			return f
		}
	}
	return nil
}

func (s *System) checkRequests(at string, fault func(path, format string, args ...any) *Fault) *Fault {
	type text struct{ path, value string }
	texts := []text{{"callback.url", s.Callback.URL}, {"callback.body", s.Callback.Body}, {"poll.url", s.Poll.URL}, {"poll.body", s.Poll.Body}}
	for i, h := range s.Callback.Headers {
		texts = append(texts, text{fmt.Sprintf("callback.headers[%d].value", i), h.Value})
	}
	for i, h := range s.Poll.Headers {
		texts = append(texts, text{fmt.Sprintf("poll.headers[%d].value", i), h.Value})
	}
	for _, t := range texts {
		if _, err := ParseTemplate(t.value); err != nil {
			return fault(at+"."+t.path, "is no template: %v", err)
		}
	}
	for path, u := range map[string]string{"callback.url": s.Callback.URL, "poll.url": s.Poll.URL} {
		if u != "" && !strings.HasPrefix(u, "https://") && !strings.HasPrefix(u, "http://") {
			return fault(at+"."+path, "is %q; it must begin with https:// or http://", u)
		}
	}
	switch p := s.Poll; {
	case p.URL == "":
	case p.Every < 5*time.Second:
		return fault(at+".poll.every", "must be 5s at least")
	case p.Paths.ID == "" || p.Paths.Title == "" || p.Paths.Assignee == "":
		return fault(at+".poll", "needs the JSON paths id, title and assignee")
	}
	if s.Callback.URL != "" && (s.Callback.GiveUp <= 0 || s.Callback.Timeout <= 0) {
		return fault(at+".callback", "needs give_up and timeout above zero")
	}
	return nil
}

func (s *System) checkTemplates(at string, fault func(path, format string, args ...any) *Fault) *Fault {
	seen := map[string]bool{}
	for i, t := range s.Templates {
		at := fmt.Sprintf("%s.templates[%d]", at, i)
		if t.ID == "" || seen[t.ID] {
			return fault(at+".id", "is %q; it must be a name that no other template of the system has", t.ID)
		}
		seen[t.ID] = true
		if t.Threshold != "" && !decimal.MatchString(t.Threshold) {
			return fault(at+".threshold", "is %q; it must be a number such as 10000", t.Threshold)
		}
		keys := map[string]bool{}
		for j, f := range t.Fields {
			if f.Key == "" || keys[f.Key] {
				return fault(fmt.Sprintf("%s.fields[%d].key", at, j), "is %q; it must be a name that no other field has", f.Key)
			}
			keys[f.Key] = true
		}
	}
	return nil
}
