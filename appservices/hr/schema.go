package hr

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"
)

// The schemas. The last one is ours: from when to when somebody's account can be used.
const (
	userURN       = "urn:ietf:params:scim:schemas:core:2.0:User"
	groupURN      = "urn:ietf:params:scim:schemas:core:2.0:Group"
	enterpriseURN = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
	employmentURN = "urn:moothall:params:scim:schemas:extension:employment:2.0:User"
)

// attr defines an attribute. Spec: RFC 7643, section 7.
type attr struct {
	Name        string   `json:"name"`
	Type        string   `json:"type"`
	Multi       bool     `json:"multiValued"`
	Description string   `json:"description"`
	Required    bool     `json:"required"`
	CaseExact   bool     `json:"caseExact"`
	Mutability  string   `json:"mutability"`
	Returned    string   `json:"returned"`
	Uniqueness  string   `json:"uniqueness"`
	Canonical   []string `json:"canonicalValues,omitzero"`
	References  []string `json:"referenceTypes,omitzero"`
	Sub         []*attr  `json:"subAttributes,omitzero"`
}

func (a *attr) sub(name string) *attr { return find(a.Sub, name) }

func find(list []*attr, name string) *attr {
	for _, a := range list {
		if strings.EqualFold(a.Name, name) {
			return a
		}
	}
	return nil
}

func simple(name, typ, description string) *attr {
	return &attr{Name: name, Type: typ, Description: description, Mutability: "readWrite", Returned: "default", Uniqueness: "none"}
}

func str(name, description string) *attr { return simple(name, "string", description) }

func complexAttr(name, description string, sub ...*attr) *attr {
	a := simple(name, "complex", description)
	a.Sub = sub
	return a
}

// plural is a list with the usual sub-attributes. Spec: RFC 7643, section 2.4.
func plural(name, valueType, description string, types ...string) *attr {
	typ := str("type", "What the value is for.")
	typ.Canonical = types
	value := simple("value", valueType, "The value itself.")
	if valueType == "reference" {
		value.References = []string{"external"}
		value.CaseExact = true
	}
	a := complexAttr(name, description, value, str("display", "The value for people to read."), typ,
		simple("primary", "boolean", "Whether it is the preferred one; one is at most."))
	a.Multi = true
	return a
}

func (a *attr) with(change func(a *attr)) *attr {
	change(a)
	return a
}

func readOnly(a *attr) { a.Mutability = "readOnly" }

// commonAttrs are those of every resource. Spec: RFC 7643, section 3.1.
var commonAttrs = []*attr{
	str("id", "").with(readOnly).with(func(a *attr) { a.Returned, a.CaseExact = "always", true }),
	str("externalId", "").with(func(a *attr) { a.CaseExact = true }),
	complexAttr("meta", "", str("resourceType", ""), simple("created", "dateTime", ""), simple("lastModified", "dateTime", ""),
		str("version", ""), str("location", "")).with(readOnly),
	str("schemas", "").with(readOnly).with(func(a *attr) { a.Multi, a.Returned, a.CaseExact = true, "always", true }),
}

// schema is a schema as /Schemas shows it.
type schema struct {
	ID          string  `json:"id"`
	Name        string  `json:"name"`
	Description string  `json:"description"`
	Attributes  []*attr `json:"attributes"`
}

var userSchema = &schema{userURN, "User", "A person", []*attr{
	str("userName", "By what the person is known to the HR system; the account is named after it.").with(func(a *attr) {
		a.Required, a.Uniqueness = true, "server"
	}),
	complexAttr("name", "The parts of the person's name.", str("formatted", "The whole name."), str("familyName", "The family name."),
		str("givenName", "The given name."), str("middleName", "Middle names."), str("honorificPrefix", "Titles before the name."),
		str("honorificSuffix", "What stands behind the name.")),
	str("displayName", "What the person is called in chat."),
	str("nickName", "How the person is called casually."),
	simple("profileUrl", "reference", "A page about the person.").with(func(a *attr) { a.References = []string{"external"} }),
	str("title", "The person's job title."),
	str("userType", "Employee, contractor and the like."),
	str("preferredLanguage", "As in the Accept-Language header."),
	str("locale", "For dates and numbers."),
	str("timezone", "IANA time zone, such as Europe/Berlin."),
	simple("active", "boolean", "Whether the account can be used."),
	plural("emails", "string", "E-mail addresses.", "work", "home", "other"),
	plural("phoneNumbers", "string", "Telephone numbers.", "work", "home", "mobile", "fax", "pager", "other"),
	plural("ims", "string", "Instant messaging addresses."),
	plural("photos", "reference", "Pictures; one given as a data: URI becomes the avatar.", "photo", "thumbnail"),
	complexAttr("addresses", "Postal addresses.", str("formatted", "The whole address."), str("streetAddress", "Street and number."),
		str("locality", "City."), str("region", "State or region."), str("postalCode", "Postal code."), str("country", "ISO 3166-1 code of the country."),
		str("type", "What the address is for.").with(func(a *attr) { a.Canonical = []string{"work", "home", "other"} }),
		simple("primary", "boolean", "Whether it is the preferred one.")).with(func(a *attr) { a.Multi = true }),
	complexAttr("groups", "The groups that the person is in.", str("value", "The group's id.").with(readOnly),
		simple("$ref", "reference", "The group's address.").with(readOnly).with(func(a *attr) { a.References = []string{"Group"} }),
		str("display", "The group's name.").with(readOnly), str("type", "direct.").with(readOnly)).with(readOnly).with(func(a *attr) { a.Multi = true }),
	plural("entitlements", "string", "What the person is entitled to."),
	plural("roles", "string", "Roles of the person in the company."),
}}

var enterpriseSchema = &schema{enterpriseURN, "EnterpriseUser", "An employee", []*attr{
	str("employeeNumber", "The number that the company gave the person."),
	str("costCenter", "Cost centre."),
	str("organization", "Organisation."),
	str("division", "Division."),
	str("department", "Department: who is in one is in its unit, which may have a room or space."),
	complexAttr("manager", "Whom the person reports to.", str("value", "The id of the manager's resource."),
		simple("$ref", "reference", "The address of the manager's resource.").with(func(a *attr) { a.References = []string{"User"} }),
		str("displayName", "The manager's name.").with(readOnly)),
}}

var employmentSchema = &schema{employmentURN, "Employment", "From when to when the account can be used", []*attr{
	simple("startDate", "dateTime", "Before it the account is there, but locked."),
	simple("endDate", "dateTime", "From it on the account is barred."),
}}

var groupSchema = &schema{groupURN, "Group", "A group", []*attr{
	str("displayName", "The group's name.").with(func(a *attr) { a.Required = true }),
	complexAttr("members", "Who is in the group.", str("value", "The member's id.").with(func(a *attr) { a.Mutability = "immutable" }),
		simple("$ref", "reference", "The member's address.").with(func(a *attr) { a.Mutability, a.References = "immutable", []string{"User", "Group"} }),
		str("display", "The member's name.").with(readOnly),
		str("type", "User or Group.").with(func(a *attr) { a.Mutability, a.Canonical = "immutable", []string{"User", "Group"} }),
	).with(func(a *attr) { a.Multi = true }),
}}

// kind is a type of resources.
type kind struct {
	name, path string
	core       *schema
	extensions []*schema
}

var (
	users  = &kind{"User", "/Users", userSchema, []*schema{enterpriseSchema, employmentSchema}}
	groups = &kind{"Group", "/Groups", groupSchema, nil}
)

// attr finds an attribute of the core schema or one that all have.
func (k *kind) attr(name string) *attr {
	if a := find(k.core.Attributes, name); a != nil {
		return a
	}
	return find(commonAttrs, name)
}

func (k *kind) extension(urn string) *schema {
	for _, s := range k.extensions {
		if strings.EqualFold(s.ID, urn) {
			return s
		}
	}
	return nil
}

// object is a resource or a complex value, with attribute names as the schemas write them.
type object = map[string]any

// normal brings a resource as a client wrote it into our form: names in the schemas' case, values of the right type,
// nothing that clients cannot write, nothing that is empty. Attributes that nobody defined are passed over.
func (k *kind) normal(in map[string]any) (object, error) {
	out := object{}
	for name, value := range in {
		if ext := k.extension(name); ext != nil {
			m, ok := value.(map[string]any)
			if !ok {
				if value == nil {
					continue
				}
				return nil, bad(invalidSyntax, "%s must be an object", ext.ID)
			}
			part, err := normalObject(ext.Attributes, m, ext.ID+":")
			if err != nil {
				return nil, err
			}
			if len(part) > 0 {
				out[ext.ID] = part
			}
			continue
		}
		a := k.attr(name)
		if a == nil || a.Mutability == "readOnly" {
			continue
		}
		v, err := normalValue(a, value, a.Name)
		if err != nil {
			return nil, err
		}
		if v != nil {
			out[a.Name] = v
		}
	}
	return out, nil
}

func normalObject(attrs []*attr, in map[string]any, at string) (object, error) {
	out := object{}
	for name, value := range in {
		a := find(attrs, name)
		if a == nil || a.Mutability == "readOnly" {
			continue
		}
		v, err := normalValue(a, value, at+a.Name)
		if err != nil {
			return nil, err
		}
		if v != nil {
			out[a.Name] = v
		}
	}
	return out, nil
}

// normalValue checks a value; nil means that it is unassigned. Spec: RFC 7643, section 2.5.
func normalValue(a *attr, value any, at string) (any, error) {
	if value == nil {
		return nil, nil
	}
	if !a.Multi {
		return normalSingle(a, value, at)
	}
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	var out []any
	for i, item := range list {
		v, err := normalSingle(a, item, fmt.Sprintf("%s[%d]", at, i))
		if err != nil {
			return nil, err
		}
		if v != nil && !slices.ContainsFunc(out, func(o any) bool { return same(o, v) }) {
			out = append(out, v)
		}
	}
	if len(out) == 0 {
		return nil, nil
	}
	onePrimary(out)
	return out, nil
}

// onePrimary leaves one value primary, the last that says so. Spec: RFC 7644, section 3.5.2.
func onePrimary(list []any) {
	seen := false
	for _, v := range slices.Backward(list) {
		m, ok := v.(object)
		if p, is := m["primary"].(bool); ok && is && p {
			if seen {
				m["primary"] = false
			}
			seen = true
		}
	}
}

const maxText = 4096 // bytes of one text; a picture may have more

func normalSingle(a *attr, value any, at string) (any, error) {
	wrong := func(want string) error { return bad(invalidValue, "%s must be %s", at, want) }
	switch a.Type {
	case "complex":
		switch v := value.(type) {
		case map[string]any:
			m, err := normalObject(a.Sub, v, at+".")
			if err != nil || len(m) == 0 {
				return nil, err
			}
			return m, nil
		case string: // Entra ID writes the manager so
			if a.sub("value") == nil {
				return nil, wrong("an object")
			}
			if v == "" {
				return nil, nil
			}
			return normalSingle(a, map[string]any{"value": v}, at)
		}
		return nil, wrong("an object")
	case "boolean":
		switch v := value.(type) {
		case bool:
			return v, nil
		case string: // Entra ID writes "True" and "False"
			if strings.EqualFold(v, "true") || strings.EqualFold(v, "false") {
				return strings.EqualFold(v, "true"), nil
			}
		}
		return nil, wrong("true or false")
	case "integer":
		if v, ok := value.(float64); ok && v == math.Trunc(v) {
			return v, nil
		}
		return nil, wrong("a whole number")
	}
	s, ok := value.(string)
	switch {
	case !ok:
		return nil, wrong("text")
	case s == "":
		return nil, nil
	case len(s) > maxText && !(a.Type == "reference" && strings.HasPrefix(s, "data:image/")):
		return nil, wrong(fmt.Sprintf("text of at most %d bytes", maxText))
	case strings.ContainsRune(s, 0):
		return nil, wrong("text without the character U+0000")
	case a.Type == "dateTime":
		if _, err := parseTime(s); err != nil {
			return nil, wrong("a date and time such as 2026-03-01T08:00:00Z")
		}
	case a.Type == "reference":
		if _, err := url.Parse(s); err != nil {
			return nil, wrong("an address")
		}
	case a.Type == "binary":
		if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			return nil, wrong("base64")
		}
	}
	return s, nil
}

// parseTime reads an xsd:dateTime; one without a zone is in UTC.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t, err = time.Parse("2006-01-02T15:04:05.999999999", s)
	}
	return t, err
}

func same(a, b any) bool {
	switch x := a.(type) {
	case object:
		y, ok := b.(object)
		if !ok || len(x) != len(y) {
			return false
		}
		for k, v := range x {
			if w, in := y[k]; !in || !same(v, w) {
				return false
			}
		}
		return true
	case []any:
		y, ok := b.([]any)
		return ok && slices.EqualFunc(x, y, same)
	}
	return a == b
}

// missing names a required attribute that a resource has not, "" for none.
func (k *kind) missing(o object) string {
	for _, a := range k.core.Attributes {
		if a.Required && o[a.Name] == nil {
			return a.Name
		}
	}
	return ""
}

// text reads a string at a path of names.
func text(o object, names ...string) string {
	var v any = o
	for _, n := range names {
		m, ok := v.(object)
		if !ok {
			return ""
		}
		v = m[n]
	}
	s, _ := v.(string)
	return s
}

// preferred reads the value of a list that is primary, or of a type, or stands first.
func preferred(o object, name string, types ...string) string {
	list, _ := o[name].([]any)
	best, rank := "", -1
	for _, item := range list {
		m, ok := item.(object)
		if !ok {
			continue
		}
		r := 0
		if p, is := m["primary"].(bool); is && p {
			r = 100
		} else if i := slices.Index(types, strings.ToLower(text(m, "type"))); i >= 0 {
			r = 50 - i
		}
		if v := text(m, "value"); v != "" && r > rank {
			best, rank = v, r
		}
	}
	return best
}

// clone copies a value deeply.
func clone(v any) any {
	switch v := v.(type) {
	case object:
		out := make(object, len(v))
		for k, x := range v {
			out[k] = clone(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = clone(x)
		}
		return out
	}
	return v
}
