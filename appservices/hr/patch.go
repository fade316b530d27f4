package hr

import (
	"slices"
	"strings"
)

const (
	patchURN = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
	maxOps   = 1000
)

// patch changes a resource by the operations of a PATCH request. Spec: RFC 7644, section 3.5.2.
// Besides what is written there it takes what Entra ID and Okta send: operations in any case, "True" and "False", values
// without a path whose names are paths, and the addition of a value by replacing one that a filter does not find.
func (k *kind) patch(o object, body map[string]any) error {
	ops, ok := fold(body, "Operations").([]any)
	if !ok || len(ops) == 0 {
		return bad(invalidSyntax, "Operations must be a list of operations")
	}
	if len(ops) > maxOps {
		return &scimError{status: 413, detail: "a request may have 1000 operations at most"}
	}
	for _, x := range ops {
		m, ok := x.(map[string]any)
		if !ok {
			return bad(invalidSyntax, "every operation must be an object")
		}
		op, _ := fold(m, "op").(string)
		op = strings.ToLower(op)
		at, hasPath := fold(m, "path").(string)
		value, hasValue := fold(m, "value"), has(m, "value")
		if op != "add" && op != "replace" && op != "remove" {
			return bad(invalidSyntax, "op must be add, replace or remove")
		}
		if op != "remove" && !hasValue {
			return bad(invalidValue, "the operation %s needs a value", op)
		}
		var err error
		switch {
		case hasPath && at != "":
			err = k.patchAt(o, op, at, value)
		case op == "remove":
			err = bad(noTarget, "the operation remove needs a path")
		default:
			err = k.patchAll(o, op, value)
		}
		if err != nil {
			return err
		}
	}
	if name := k.missing(o); name != "" {
		return bad(invalidValue, "%s must be there", name)
	}
	return nil
}

// fold reads a member of an object whatever the case of its name.
func fold(m map[string]any, name string) any {
	for k, v := range m {
		if strings.EqualFold(k, name) {
			return v
		}
	}
	return nil
}

func has(m map[string]any, name string) bool {
	for k := range m {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

// patchAll applies a value without a path: its members' names are paths.
func (k *kind) patchAll(o object, op string, value any) error {
	m, ok := value.(map[string]any)
	if !ok {
		return bad(invalidValue, "without a path the value must be an object")
	}
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if strings.EqualFold(name, "schemas") {
			continue
		}
		if a := k.attr(name); a != nil && a.Mutability == "readOnly" {
			continue // what a client read and sends back
		}
		if ext := k.extension(name); ext != nil {
			part, ok := m[name].(map[string]any)
			if !ok {
				return bad(invalidValue, "%s must be an object", ext.ID)
			}
			for sub, v := range part {
				if strings.EqualFold(sub, "schemas") {
					continue // which some clients write there too
				}
				if err := k.patchAt(o, op, ext.ID+":"+sub, v); err != nil {
					return err
				}
			}
			continue
		}
		if err := k.patchAt(o, op, name, m[name]); err != nil {
			return err
		}
	}
	return nil
}

func (k *kind) patchAt(o object, op, at string, value any) error {
	p, err := k.parsePath(at)
	if err != nil {
		return err
	}
	if p.attr == "" { // a whole extension
		if op == "remove" {
			delete(o, p.urn)
			return nil
		}
		return k.patchAll(o, op, map[string]any{p.urn: value})
	}
	a := k.at(p)
	if a.Mutability == "readOnly" || p.sub != "" && a.sub(p.sub).Mutability == "readOnly" {
		return bad(mutability, "%s cannot be written", at)
	}
	in := o
	if p.urn != "" {
		in, _ = o[p.urn].(object)
		if in == nil {
			in = object{}
		}
		defer func() {
			if len(in) > 0 {
				o[p.urn] = in
			} else {
				delete(o, p.urn)
			}
		}()
	}
	switch {
	case p.filter != nil:
		return patchItems(in, a, op, p, value, at)
	case p.sub != "":
		return patchSub(in, a, op, p, value, at)
	}
	return patchAttr(in, a, op, value, at)
}

// patchAttr changes a whole attribute.
func patchAttr(in object, a *attr, op string, value any, at string) error {
	if op == "remove" {
		if a.Required {
			return bad(mutability, "%s is required", a.Name)
		}
		if list, ok := in[a.Name].([]any); ok && value != nil { // Okta and Entra ID: only these values
			v, err := normalValue(a, value, at)
			if err != nil {
				return err
			}
			gone, _ := v.([]any)
			setList(in, a.Name, slices.DeleteFunc(slices.Clone(list), func(x any) bool {
				return slices.ContainsFunc(gone, func(y any) bool { return sameItem(x, y) })
			}))
			return nil
		}
		delete(in, a.Name)
		return nil
	}
	v, err := normalValue(a, value, at)
	if err != nil {
		return err
	}
	if v == nil {
		if a.Required {
			return bad(invalidValue, "%s is required", a.Name)
		}
		if op == "replace" {
			delete(in, a.Name)
		}
		return nil
	}
	switch {
	case a.Multi && op == "add":
		list, _ := in[a.Name].([]any)
		setList(in, a.Name, addItems(list, v.([]any)))
	case a.Type == "complex" && !a.Multi:
		old, _ := in[a.Name].(object)
		in[a.Name] = merge(old, v.(object))
	default:
		in[a.Name] = v
	}
	return nil
}

func merge(old, now object) object {
	out := object{}
	for k, v := range old {
		out[k] = v
	}
	for k, v := range now {
		out[k] = v
	}
	return out
}

// sameItem tells whether a list has a value already: complex ones are told apart by their value where they have one.
func sameItem(a, b any) bool {
	x, ok1 := a.(object)
	y, ok2 := b.(object)
	if ok1 && ok2 && x["value"] != nil && y["value"] != nil {
		if x["type"] != nil && y["type"] != nil && !same(x["type"], y["type"]) {
			return false
		}
		return same(x["value"], y["value"])
	}
	return same(a, b)
}

func addItems(list, more []any) []any {
	out := slices.Clone(list)
	for _, v := range more {
		i := slices.IndexFunc(out, func(x any) bool { return sameItem(x, v) })
		if i < 0 {
			out = append(out, v)
			continue
		}
		if x, ok := out[i].(object); ok {
			if y, ok := v.(object); ok {
				out = append(slices.Delete(out, i, i+1), merge(x, y)) // the last primary one is the one
			}
		}
	}
	onePrimary(out)
	return out
}

func setList(in object, name string, list []any) {
	if len(list) == 0 {
		delete(in, name)
		return
	}
	in[name] = list
}

// patchSub changes a part of a complex attribute: of each value where it is a list.
func patchSub(in object, a *attr, op string, p path, value any, at string) error {
	sub := a.sub(p.sub)
	var v any
	if op != "remove" {
		var err error
		if v, err = normalValue(sub, value, at); err != nil {
			return err
		}
	}
	if !a.Multi {
		m, _ := in[a.Name].(object)
		m = merge(m, nil)
		setSub(m, sub.Name, v)
		if len(m) == 0 {
			delete(in, a.Name)
		} else {
			in[a.Name] = m
		}
		return nil
	}
	list, _ := in[a.Name].([]any)
	if len(list) == 0 && v != nil {
		list = []any{object{}}
	}
	out := slices.Clone(list)
	for i, item := range out {
		if m, ok := item.(object); ok {
			m = merge(m, nil)
			setSub(m, sub.Name, v)
			out[i] = m
		}
	}
	setList(in, a.Name, slices.DeleteFunc(out, empty))
	return nil
}

func empty(v any) bool {
	m, ok := v.(object)
	return ok && len(m) == 0
}

func setSub(m object, name string, v any) {
	if v == nil {
		delete(m, name)
	} else {
		m[name] = v
	}
}

// patchItems changes those values of a list that a filter finds.
func patchItems(in object, a *attr, op string, p path, value any, at string) error {
	if !a.Multi {
		return bad(invalidPath, "%s is no list: no filter can choose among its values", a.Name)
	}
	var v any
	var err error
	if op != "remove" {
		if p.sub != "" {
			v, err = normalValue(a.sub(p.sub), value, at)
		} else {
			if list, ok := value.([]any); ok && len(list) == 1 {
				value = list[0]
			}
			v, err = normalSingle(a, value, at)
		}
		if err != nil {
			return err
		}
	}
	list, _ := in[a.Name].([]any)
	out := make([]any, 0, len(list))
	found := false
	for _, item := range list {
		if !p.filter.matchesItem(a, item) {
			out = append(out, item)
			continue
		}
		found = true
		switch {
		case op == "remove" && p.sub == "":
			continue
		case p.sub != "":
			m, _ := item.(object)
			m = merge(m, nil)
			setSub(m, p.sub, v)
			item = m
		case v == nil:
			continue
		default:
			old, _ := item.(object)
			if now, ok := v.(object); ok {
				item = merge(old, now)
			} else {
				item = v
			}
		}
		if !empty(item) {
			out = append(out, item)
		}
	}
	if !found && op != "remove" && v != nil {
		m := object{}
		if !p.filter.describe(a, m) {
			return bad(noTarget, "%s finds no value", at)
		}
		if p.sub != "" {
			m[p.sub] = v
		} else if now, ok := v.(object); ok {
			m = merge(m, now)
		}
		out = append(out, m)
	}
	onePrimary(out)
	setList(in, a.Name, out)
	return nil
}

// describe fills in what a value must have to be found by a filter; false where the filter does not say so plainly.
func (f *filter) describe(a *attr, m object) bool {
	switch f.op {
	case "and":
		return f.a.describe(a, m) && f.b.describe(a, m)
	case "eq":
		sub := a.sub(f.path.attr)
		if sub == nil || f.value == nil {
			return false
		}
		v, err := normalValue(sub, f.value, f.path.attr)
		if err != nil || v == nil {
			return false
		}
		m[sub.Name] = v
		return true
	}
	return false
}
