package hr

import (
	"cmp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/go-json-experiment/json"
)

// filter is a parsed filter expression. Spec: RFC 7644, section 3.4.2.2.
type filter struct {
	op    string // and, or, not, has (value path), or a comparison
	path  path
	value any
	a, b  *filter
}

// path names an attribute: of the core schema or of an extension, or a part of it.
type path struct {
	urn    string // of the extension, "" for the core
	attr   string
	filter *filter // which values of a list
	sub    string
}

const (
	maxFilter = 8192
	maxDepth  = 50
)

// parser reads filters and paths.
type parser struct {
	k     *kind
	s     string
	i     int
	depth int
	typ   string // scimType of its errors
}

func (p *parser) fail(what string) error {
	return bad(p.typ, "%q: at character %d: %s", p.s, p.i+1, what)
}

// parseFilter reads a whole filter.
func (k *kind) parseFilter(s string) (*filter, error) {
	p := &parser{k: k, s: s, typ: invalidFilter}
	if len(s) > maxFilter {
		return nil, bad(invalidFilter, "a filter may have %d characters at most", maxFilter)
	}
	f, err := p.or("")
	if err != nil {
		return nil, err
	}
	p.space()
	if p.i < len(p.s) {
		return nil, p.fail("the end was expected")
	}
	return f, nil
}

// parsePath reads the path of a PATCH operation. Spec: RFC 7644, section 3.5.2.
func (k *kind) parsePath(s string) (path, error) {
	p := &parser{k: k, s: strings.TrimSpace(s), typ: invalidPath}
	if len(s) > maxFilter {
		return path{}, bad(invalidPath, "a path may have %d characters at most", maxFilter)
	}
	if ext := k.extension(p.s); ext != nil {
		return path{urn: ext.ID}, nil
	}
	out, err := p.attrPath("")
	if err != nil {
		return path{}, err
	}
	if p.i < len(p.s) && p.s[p.i] == '[' {
		if out.sub != "" {
			return path{}, p.fail("a filter stands behind the attribute, not behind a part of it")
		}
		p.i++
		if out.filter, err = p.or(out.attr); err != nil {
			return path{}, err
		}
		p.space()
		if !p.take("]") {
			return path{}, p.fail("] is missing")
		}
		if p.take(".") {
			sub := p.k.at(out).sub(p.name())
			if sub == nil {
				return path{}, p.fail(out.attr + " has no such part")
			}
			out.sub = sub.Name
		}
	}
	if p.i < len(p.s) {
		return path{}, p.fail("the end was expected")
	}
	return out, nil
}

func (p *parser) space() {
	for p.i < len(p.s) && p.s[p.i] == ' ' {
		p.i++
	}
}

func (p *parser) take(s string) bool {
	if strings.HasPrefix(p.s[p.i:], s) {
		p.i += len(s)
		return true
	}
	return false
}

// word takes a keyword, which ends where a word ends.
func (p *parser) word(w string) bool {
	p.space()
	rest := p.s[p.i:]
	if len(rest) < len(w) || !strings.EqualFold(rest[:len(w)], w) {
		return false
	}
	if len(rest) > len(w) && rest[len(w)] != ' ' && rest[len(w)] != '(' && rest[len(w)] != ')' && rest[len(w)] != ']' {
		return false
	}
	p.i += len(w)
	return true
}

func (p *parser) or(within string) (*filter, error) {
	if p.depth++; p.depth > maxDepth {
		return nil, p.fail("it is nested too deeply")
	}
	defer func() { p.depth-- }()
	f, err := p.and(within)
	for err == nil && p.word("or") {
		var b *filter
		b, err = p.and(within)
		f = &filter{op: "or", a: f, b: b}
	}
	return f, err
}

func (p *parser) and(within string) (*filter, error) {
	f, err := p.term(within)
	for err == nil && p.word("and") {
		var b *filter
		b, err = p.term(within)
		f = &filter{op: "and", a: f, b: b}
	}
	return f, err
}

func (p *parser) term(within string) (*filter, error) {
	start := p.i
	not := p.word("not")
	p.space()
	if p.take("(") {
		f, err := p.or(within)
		if err != nil {
			return nil, err
		}
		p.space()
		if !p.take(")") {
			return nil, p.fail(") is missing")
		}
		if not {
			f = &filter{op: "not", a: f}
		}
		return f, nil
	}
	if not {
		p.i = start // an attribute may be called so
		p.space()
	}
	at, err := p.attrPath(within)
	if err != nil {
		return nil, err
	}
	if within == "" && p.take("[") {
		f, err := p.or(at.attr)
		if err != nil {
			return nil, err
		}
		p.space()
		if !p.take("]") {
			return nil, p.fail("] is missing")
		}
		return &filter{op: "has", path: at, a: f}, nil
	}
	return p.comparison(at)
}

func (p *parser) comparison(at path) (*filter, error) {
	for _, op := range []string{"pr", "eq", "ne", "co", "sw", "ew", "gt", "ge", "lt", "le"} {
		if !p.word(op) {
			continue
		}
		f := &filter{op: op, path: at}
		if op == "pr" {
			return f, nil
		}
		var err error
		f.value, err = p.literal()
		return f, err
	}
	return nil, p.fail("an operator was expected: eq, ne, co, sw, ew, pr, gt, ge, lt or le")
}

// literal reads a JSON value that is no object and no list.
func (p *parser) literal() (any, error) {
	p.space()
	start := p.i
	if p.i < len(p.s) && p.s[p.i] == '"' {
		for p.i++; p.i < len(p.s) && p.s[p.i] != '"'; p.i++ {
			if p.s[p.i] == '\\' {
				p.i++
			}
		}
		if p.i >= len(p.s) {
			return nil, p.fail("a quotation mark is missing")
		}
		p.i++
		var s string
		if err := json.Unmarshal([]byte(p.s[start:p.i]), &s); err != nil {
			return nil, p.fail("that is no text in JSON")
		}
		return s, nil
	}
	for p.i < len(p.s) && !strings.ContainsRune(" )]", rune(p.s[p.i])) {
		p.i++
	}
	word := p.s[start:p.i]
	switch strings.ToLower(word) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	case "null":
		return nil, nil
	}
	n, err := strconv.ParseFloat(word, 64)
	if err != nil || word == "" {
		return nil, p.fail("a value was expected: text in quotation marks, a number, true, false or null")
	}
	return n, nil
}

func (p *parser) name() string {
	start := p.i
	for p.i < len(p.s) {
		c := rune(p.s[p.i])
		if c != '$' && c != '-' && c != '_' && !(c < unicode.MaxASCII && (unicode.IsLetter(c) || unicode.IsDigit(c))) {
			break
		}
		p.i++
	}
	return p.s[start:p.i]
}

// attrPath reads the name of an attribute, with the schema before it and a part behind it. within: the attribute whose
// values a filter in brackets is about.
func (p *parser) attrPath(within string) (path, error) {
	p.space()
	var out path
	attrs := p.k.core.Attributes
	rest := strings.ToLower(p.s[p.i:])
	if strings.HasPrefix(rest, "urn:") {
		known := false
		for _, s := range append([]*schema{p.k.core}, p.k.extensions...) {
			if prefix := strings.ToLower(s.ID) + ":"; strings.HasPrefix(rest, prefix) {
				p.i += len(prefix)
				known = true
				if s != p.k.core {
					out.urn, attrs = s.ID, s.Attributes
				}
			}
		}
		if !known {
			return out, p.fail("no such schema")
		}
	}
	start := p.i
	name := p.name()
	if name == "" {
		return out, p.fail("the name of an attribute was expected")
	}
	var a *attr
	if within != "" {
		if outer := p.findAttr(within); outer != nil {
			a = outer.sub(name)
		}
	} else if a = find(attrs, name); a == nil && out.urn == "" {
		a = find(commonAttrs, name)
	}
	if a == nil {
		p.i = start
		return out, p.fail("there is no attribute " + name)
	}
	out.attr = a.Name
	if within == "" && p.take(".") {
		sub := a.sub(p.name())
		if sub == nil {
			return out, p.fail(a.Name + " has no such part")
		}
		out.sub = sub.Name
	}
	return out, nil
}

func (p *parser) findAttr(name string) *attr {
	if a := p.k.attr(name); a != nil {
		return a
	}
	for _, s := range p.k.extensions {
		if a := find(s.Attributes, name); a != nil {
			return a
		}
	}
	return nil
}

// matches tells whether a resource fulfils a filter.
func (f *filter) matches(k *kind, o object) bool {
	return f.eval(func(at path) ([]any, *attr) { return k.values(o, at) })
}

// matchesItem tells whether a value of a list does.
func (f *filter) matchesItem(a *attr, item any) bool {
	return f.eval(func(at path) ([]any, *attr) {
		m, ok := item.(object)
		if !ok {
			if strings.EqualFold(at.attr, "value") {
				return []any{item}, a
			}
			return nil, nil
		}
		v := m[at.attr]
		if v == nil {
			return nil, a.sub(at.attr)
		}
		return []any{v}, a.sub(at.attr)
	})
}

func (f *filter) eval(values func(path) ([]any, *attr)) bool {
	switch f.op {
	case "and":
		return f.a.eval(values) && f.b.eval(values)
	case "or":
		return f.a.eval(values) || f.b.eval(values)
	case "not":
		return !f.a.eval(values)
	case "has":
		list, a := values(f.path)
		for _, v := range list {
			if a != nil && f.a.matchesItem(a, v) {
				return true
			}
		}
		return false
	}
	list, a := values(f.path)
	switch {
	case f.op == "pr":
		return len(list) > 0
	case len(list) == 0:
		return f.op == "eq" && f.value == nil || f.op == "ne" && f.value != nil
	}
	for _, v := range list {
		if m, ok := v.(object); ok { // a list stands for its values
			v = m["value"]
			if s := a.sub("value"); s != nil && compare(f.op, v, f.value, s) {
				return true
			}
			continue
		}
		if compare(f.op, v, f.value, a) {
			return true
		}
	}
	return false
}

// values are what a resource has at a path, and the attribute that they are of.
func (k *kind) values(o object, at path) ([]any, *attr) {
	a := k.attr(at.attr)
	if at.urn != "" {
		ext := k.extension(at.urn)
		o, _ = o[ext.ID].(object)
		a = find(ext.Attributes, at.attr)
	}
	if a == nil {
		return nil, nil
	}
	v := o[a.Name]
	if v == nil {
		return nil, a
	}
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	if at.sub == "" {
		return list, a
	}
	var out []any
	for _, item := range list {
		if m, ok := item.(object); ok && m[at.sub] != nil {
			out = append(out, m[at.sub])
		}
	}
	return out, a.sub(at.sub)
}

// at is the attribute that a path leads to, its part left aside.
func (k *kind) at(p path) *attr {
	if p.urn == "" {
		return k.attr(p.attr)
	}
	return find(k.extension(p.urn).Attributes, p.attr)
}

// compare compares a stored value with one of a filter.
func compare(op string, have, want any, a *attr) bool {
	switch h := have.(type) {
	case bool:
		w, ok := want.(bool)
		if s, text := want.(string); text { // Entra ID again
			w, ok = strings.EqualFold(s, "true"), true
		}
		return ok && (op == "eq") == (h == w) && (op == "eq" || op == "ne")
	case float64:
		w, ok := want.(float64)
		return ok && ordered(op, cmp.Compare(h, w))
	case string:
		w, ok := want.(string)
		if !ok {
			return op == "ne"
		}
		if a != nil && a.Type == "dateTime" {
			x, err1 := parseTime(h)
			y, err2 := parseTime(w)
			if err1 == nil && err2 == nil {
				return ordered(op, x.Compare(y))
			}
		}
		if a == nil || !a.CaseExact {
			h, w = strings.ToLower(h), strings.ToLower(w)
		}
		switch op {
		case "co":
			return strings.Contains(h, w)
		case "sw":
			return strings.HasPrefix(h, w)
		case "ew":
			return strings.HasSuffix(h, w)
		}
		return ordered(op, strings.Compare(h, w))
	}
	return false
}

func ordered(op string, c int) bool {
	switch op {
	case "eq":
		return c == 0
	case "ne":
		return c != 0
	case "gt":
		return c > 0
	case "ge":
		return c >= 0
	case "lt":
		return c < 0
	case "le":
		return c <= 0
	}
	return false
}

// exact finds what a filter demands of an attribute by eq, so that an index can be used.
func (f *filter) exact(attribute string) (string, bool) {
	switch f.op {
	case "and":
		if s, ok := f.a.exact(attribute); ok {
			return s, true
		}
		return f.b.exact(attribute)
	case "eq":
		s, ok := f.value.(string)
		return s, ok && f.path.urn == "" && f.path.sub == "" && f.path.attr == attribute
	}
	return "", false
}

func formatTime(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }
