package upstream

import (
	"fmt"
	"slices"
	"strings"
	"text/template"
	"unicode"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/account"
)

// claims are what a provider says, as templates see it. Numbers are their text, so that a long number stays what it is.
type claims map[string]any

// parseClaims reads a JSON object strictly.
func parseClaims(b []byte) (claims, error) {
	v := jsontext.Value(b)
	if !v.IsValid() || v.Kind() != '{' {
		return nil, fmt.Errorf("this is no JSON object")
	}
	c, _ := plain(gjson.ParseBytes(b)).(map[string]any)
	return c, nil
}

func plain(r gjson.Result) any {
	switch {
	case r.IsObject():
		m := map[string]any{}
		r.ForEach(func(k, v gjson.Result) bool {
			m[k.Str] = plain(v)
			return true
		})
		return m
	case r.IsArray():
		list := []any{}
		for _, v := range r.Array() {
			list = append(list, plain(v))
		}
		return list
	}
	switch r.Type {
	case gjson.String:
		return r.Str
	case gjson.Number:
		return r.Raw
	case gjson.True, gjson.False:
		return r.Bool()
	}
	return nil
}

// texts lists the values of a claim: its name, or a path into it.
func (c claims) texts(path string) []string {
	if path == "" {
		return nil
	}
	v, ok := c[path]
	if !ok {
		b, err := json.Marshal(map[string]any(c))
		if err != nil {
			return nil
		}
		v = plain(gjson.GetBytes(b, path))
	}
	var out []string
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			if s, ok := text(item); ok {
				out = append(out, s)
			}
		}
	default:
		if s, ok := text(v); ok {
			out = append(out, s)
		}
	}
	return out
}

func text(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, v != ""
	case bool:
		return fmt.Sprint(v), true
	}
	return "", false
}

// functions are what templates have beside those of text/template.
var functions = template.FuncMap{
	"lower":     strings.ToLower,
	"upper":     strings.ToUpper,
	"trim":      strings.TrimSpace,
	"replace":   func(old, with, s any) string { return strings.ReplaceAll(asText(s), asText(old), asText(with)) },
	"localpart": func(v any) string { s, _, _ := strings.Cut(asText(v), "@"); return s },
	"domain":    func(v any) string { _, s, _ := strings.Cut(asText(v), "@"); return s },
	"first":     first,
	"slug":      slug,
	"join": func(sep string, v any) string {
		list, _ := v.([]any)
		parts := make([]string, 0, len(list))
		for _, item := range list {
			parts = append(parts, asText(item))
		}
		return strings.Join(parts, sep)
	},
}

func asText(v any) string {
	s, _ := text(first(v))
	return s
}

func first(v any) any {
	if list, ok := v.([]any); ok {
		if len(list) == 0 {
			return nil
		}
		return list[0]
	}
	return v
}

// slug makes a localpart of a name: small letters, and "-" for what cannot stand in one.
func slug(v any) string {
	var b strings.Builder
	for _, c := range strings.ToLower(strings.TrimSpace(asText(v))) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', strings.ContainsRune("._=-/+", c):
			b.WriteRune(c)
		default:
			b.WriteByte('-')
		}
	}
	return strings.Trim(b.String(), "-")
}

// tmpl is a template of one value; nil gives "".
type tmpl struct{ t *template.Template }

func newTemplate(key, text string) (*tmpl, error) {
	if text == "" {
		return nil, nil
	}
	t, err := template.New(key).Funcs(functions).Parse(text)
	if err != nil {
		return nil, problem(key, "is no template: %v", err)
	}
	return &tmpl{t}, nil
}

// value fills the template. What is not there is empty.
func (t *tmpl) value(data map[string]any) (string, error) {
	if t == nil {
		return "", nil
	}
	var b strings.Builder
	if err := t.t.Execute(&b, data); err != nil {
		return "", err
	}
	return strings.TrimSpace(strings.ReplaceAll(b.String(), "<no value>", "")), nil
}

// mapping is a Mapping that is ready.
type mapping struct {
	cfg                                                                Mapping
	subject, localpart, displayName, email, emailVerified, directoryID *tmpl
	attributes                                                         []named
}

type named struct {
	name string
	*tmpl
}

func newMapping(cfg Mapping) (*mapping, error) {
	m := &mapping{cfg: cfg}
	for _, v := range []struct {
		key, text string
		to        **tmpl
	}{
		{"mapping.subject", cfg.Subject, &m.subject},
		{"mapping.localpart", cfg.Localpart, &m.localpart},
		{"mapping.display_name", cfg.DisplayName, &m.displayName},
		{"mapping.email", cfg.Email, &m.email},
		{"mapping.email_verified", cfg.EmailVerified, &m.emailVerified},
		{"mapping.directory_id", cfg.DirectoryID, &m.directoryID},
	} {
		var err error
		if *v.to, err = newTemplate(v.key, v.text); err != nil {
			return nil, err
		}
	}
	var err error
	m.attributes, err = newNamed("mapping.attributes", cfg.Attributes)
	return m, err
}

func newNamed(key string, pairs []Pair) ([]named, error) {
	var out []named
	for i, a := range pairs {
		if a.Name == "" {
			return nil, problem(fmt.Sprintf("%s[%d].name", key, i), "is empty")
		}
		t, err := newTemplate(fmt.Sprintf("%s[%d].value", key, i), a.Value)
		if err != nil {
			return nil, err
		}
		out = append(out, named{a.Name, t})
	}
	return out, nil
}

const maxSubject = 255 // bytes, OpenID Connect Core 1.0, section 2

// identity maps what a provider said.
func (e *entry) identity(a assertion) (Identity, error) {
	i := Identity{
		Provider: e.cfg.ID, ACR: a.acr, AMR: a.amr, SID: a.sid, IDToken: a.idToken, AuthTime: a.authTime,
		Groups: a.claims.texts(e.cfg.Mapping.Groups), Attributes: map[string]string{},
	}
	var verified string
	for _, v := range []struct {
		t  *tmpl
		to *string
	}{
		{e.mapping.subject, &i.Subject}, {e.mapping.localpart, &i.Localpart}, {e.mapping.displayName, &i.DisplayName},
		{e.mapping.email, &i.Email}, {e.mapping.emailVerified, &verified}, {e.mapping.directoryID, &i.DirectoryID},
	} {
		value, err := v.t.value(a.claims)
		if err != nil {
			return Identity{}, fmt.Errorf("map the claims: %w", err)
		}
		*v.to = strings.Map(dropControls, value)
	}
	if i.Subject == "" || len(i.Subject) > maxSubject {
		return Identity{}, errMissing("identity")
	}
	for _, n := range e.mapping.attributes {
		value, err := n.value(a.claims)
		if err != nil {
			return Identity{}, fmt.Errorf("map the claims: %w", err)
		}
		if value != "" {
			i.Attributes[n.name] = value
		}
	}
	if i.Email != "" {
		canonical, err := account.CanonicalEmail(i.Email)
		if err != nil {
			canonical = ""
		}
		i.Email = canonical
	}
	i.EmailVerified = i.Email != "" && verified == "true"
	for _, r := range e.cfg.Mapping.Roles {
		if role := account.Role(r.Role); slices.Contains(i.Groups, r.Group) && !slices.Contains(i.Roles, role) {
			i.Roles = append(i.Roles, role)
		}
	}
	i.MFA = e.cfg.MFA.Always || slices.Contains(e.cfg.MFA.ACR, i.ACR) && i.ACR != "" ||
		slices.ContainsFunc(i.AMR, func(m string) bool { return slices.Contains(e.cfg.MFA.AMR, m) }) || kindsOfProof(i.AMR) > 1
	return i, nil
}

func dropControls(r rune) rune {
	if unicode.IsControl(r) {
		return -1
	}
	return r
}

// kindsOfProof counts knowledge, possession and inherence among authentication methods (RFC 8176).
func kindsOfProof(amr []string) int {
	kinds := map[string]string{
		"pwd": "knows", "pin": "knows", "kba": "knows",
		"otp": "has", "hwk": "has", "swk": "has", "sc": "has", "sms": "has", "tel": "has",
		"fpt": "is", "face": "is", "iris": "is", "retina": "is", "vbm": "is",
	}
	seen := map[string]bool{}
	for _, m := range amr {
		if k := kinds[m]; k != "" {
			seen[k] = true
		}
	}
	return len(seen)
}
