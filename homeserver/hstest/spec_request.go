package hstest

import (
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"
)

// Request is what the specification says of an operation's request, for tests that generate requests.
type Request struct {
	Token        bool    // an access token is required
	Params       []Param // of path and query
	JSON         bool    // the body is a JSON object
	BodyRequired bool
	Fields       []Field // members of the JSON body, those of nested objects behind their parents
}

// Param is a parameter of an operation.
type Param struct {
	Name     string
	In       string // "path" or "query"
	Required bool
	Types    []string // JSON types; empty when any
	Enum     []string // the values there are; empty when any
}

// Field is a member of a request's body.
type Field struct {
	Path     []string // names from the body down; "*" is any element of an array or any member of an object
	Required bool     // within its parent
	Types    []string // JSON types; empty when any
	Enum     []string // the strings there are; empty when any
}

// String shows the path as a.b.c.
func (f Field) String() string { return strings.Join(f.Path, ".") }

// maxFieldDepth bounds how far nested bodies are described: filters hold filters.
const maxFieldDepth = 4

// Request describes an operation's request; the zero Request for one that is not of this Spec.
func (s *Spec) Request(op Operation) Request {
	if s == nil {
		return Request{}
	}
	return s.requests[op.OperationID]
}

func requestOf(item *openapi3.PathItem, op *openapi3.Operation) Request {
	var out Request
	out.Token = op.Security != nil && len(*op.Security) > 0
	if op.Security != nil {
		for _, way := range *op.Security {
			out.Token = out.Token && len(way) > 0 // {} means that none is fine too
		}
	}
	for _, list := range []openapi3.Parameters{item.Parameters, op.Parameters} {
		for _, ref := range list {
			if p := ref.Value; p.In == "path" || p.In == "query" {
				param := Param{Name: p.Name, In: p.In, Required: p.Required}
				if p.Schema != nil {
					param.Types, param.Enum = typesOf(p.Schema.Value), enumOf(p.Schema.Value)
				}
				out.Params = append(out.Params, param)
			}
		}
	}
	if op.RequestBody == nil {
		return out
	}
	out.BodyRequired = op.RequestBody.Value.Required
	if content := op.RequestBody.Value.Content["application/json"]; content != nil && content.Schema != nil {
		out.JSON = true
		w := fieldWalk{seen: map[string]int{}}
		w.object(content.Schema.Value, nil, false)
		out.Fields = w.fields
	}
	return out
}

// fieldWalk collects the members of a schema.
type fieldWalk struct {
	fields []Field
	seen   map[string]int // index in fields by path: alternatives name members twice
}

// object adds the members of an object; optional holds within one of several alternatives.
func (w *fieldWalk) object(s *openapi3.Schema, at []string, optional bool) {
	if s == nil || len(at) >= maxFieldDepth {
		return
	}
	for _, part := range s.AllOf {
		w.object(part.Value, at, optional)
	}
	for _, part := range slices.Concat(s.AnyOf, s.OneOf) {
		w.object(part.Value, at, true)
	}
	names := make([]string, 0, len(s.Properties))
	for name := range s.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		w.member(s.Properties[name].Value, append(slices.Clone(at), name), !optional && slices.Contains(s.Required, name))
	}
	if more := s.AdditionalProperties.Schema; more != nil && more.Value != nil {
		w.member(more.Value, append(slices.Clone(at), "*"), false)
	}
	if s.Items != nil && s.Items.Value != nil {
		w.member(s.Items.Value, append(slices.Clone(at), "*"), false)
	}
}

func (w *fieldWalk) member(s *openapi3.Schema, path []string, required bool) {
	f := Field{Path: path, Required: required, Types: typesOf(s), Enum: enumOf(s)}
	if i, ok := w.seen[f.String()]; ok {
		old := &w.fields[i]
		old.Required = old.Required || f.Required
		if len(old.Types) > 0 && len(f.Types) > 0 {
			old.Types = append(old.Types, f.Types...)
		} else {
			old.Types = nil
		}
		old.Enum = nil
	} else {
		w.seen[f.String()] = len(w.fields)
		w.fields = append(w.fields, f)
	}
	w.object(s, path, false)
}

// typesOf lists the JSON types that a schema allows, none where it does not say.
func typesOf(s *openapi3.Schema) []string {
	if s == nil {
		return nil
	}
	if s.Type != nil && len(*s.Type) > 0 {
		return slices.Clone([]string(*s.Type))
	}
	for _, part := range s.AllOf {
		if t := typesOf(part.Value); len(t) > 0 {
			return t
		}
	}
	var out []string
	for _, part := range slices.Concat(s.AnyOf, s.OneOf) {
		t := typesOf(part.Value)
		if len(t) == 0 {
			return nil
		}
		out = append(out, t...)
	}
	if len(out) == 0 && len(s.Properties) > 0 {
		return []string{"object"}
	}
	return out
}

func enumOf(s *openapi3.Schema) []string {
	if s == nil {
		return nil
	}
	var out []string
	for _, v := range s.Enum {
		if text, ok := v.(string); ok {
			out = append(out, text)
		}
	}
	return out
}
