package filter

import (
	"strings"

	"github.com/tidwall/gjson"
)

// Fields are the event_fields of a filter: paths of what to include of each event.
// Spec: appendices, "Dot-separated property paths".
type Fields struct {
	given bool
	root  fieldNode
}

// fieldNode is a name's place in the tree of paths; whole means that everything below it is included.
type fieldNode struct {
	whole bool
	below map[string]*fieldNode
}

func compileFields(paths *[]string) Fields {
	if paths == nil {
		return Fields{}
	}
	f := Fields{given: true}
	for _, path := range *paths {
		n := &f.root
		for _, name := range splitPath(path) {
			next := n.below[name]
			if next == nil {
				next = &fieldNode{}
				if n.below == nil {
					n.below = make(map[string]*fieldNode)
				}
				n.below[name] = next
			}
			n = next
		}
		n.whole = true
	}
	return f
}

// splitPath splits at dots; a backslash takes the special meaning from a dot or a backslash and stands for itself
// before anything else.
func splitPath(path string) []string {
	var out []string
	var name strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			name.WriteByte(path[i])
		case path[i] == '.':
			out = append(out, name.String())
			name.Reset()
		default:
			name.WriteByte(path[i])
		}
	}
	return append(out, name.String())
}

// All tells that events are wanted whole.
func (f *Fields) All() bool { return !f.given }

// Apply returns the event with the wanted fields only. event must be valid JSON; it is not changed.
func (f *Fields) Apply(event []byte) []byte {
	if !f.given {
		return event
	}
	return appendWanted(make([]byte, 0, len(event)), gjson.ParseBytes(event), &f.root)
}

func appendWanted(out []byte, object gjson.Result, n *fieldNode) []byte {
	out = append(out, '{')
	first := true
	object.ForEach(func(key, value gjson.Result) bool {
		child := n.below[key.String()]
		if child == nil || !child.whole && !value.IsObject() {
			return true
		}
		before := len(out)
		if !first {
			out = append(out, ',')
		}
		out = append(out, key.Raw...)
		out = append(out, ':')
		if child.whole {
			out = append(out, value.Raw...)
		} else {
			start := len(out)
			if out = appendWanted(out, value, child); len(out) == start+2 {
				out = out[:before] // nothing of it is wanted
				return true
			}
		}
		first = false
		return true
	})
	return append(out, '}')
}
