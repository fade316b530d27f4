package hooks

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"text/template"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// node is a JSON value as templates see it: {{.Get "alert.labels.name"}}, {{range .Each "alerts"}}{{.Get "status"}}{{end}}.
// Paths are those of gjson.
type node struct{ v gjson.Result }

// Get is the text of what lies at a path, "" where nothing does.
func (n node) Get(path string) string { return n.v.Get(path).String() }

// Has tells whether something lies at a path.
func (n node) Has(path string) bool { return n.v.Get(path).Exists() }

// Each lists the values of an array.
func (n node) Each(path string) []node {
	var out []node
	for _, v := range n.v.Get(path).Array() {
		out = append(out, node{v})
	}
	return out
}

// Pairs lists the members of an object.
func (n node) Pairs(path string) []pair {
	var out []pair
	n.v.Get(path).ForEach(func(k, v gjson.Result) bool {
		out = append(out, pair{k.String(), node{v}})
		return true
	})
	return out
}

// At is the value at a path.
func (n node) At(path string) node { return node{n.v.Get(path)} }

// String is the value's text.
func (n node) String() string { return n.v.String() }

type pair struct {
	Key   string
	Value node
}

var templateFuncs = template.FuncMap{
	"upper": strings.ToUpper, "lower": strings.ToLower, "trim": strings.TrimSpace, "md": escapeMarkdown,
	"default": func(def, s string) string {
		if s == "" {
			return def
		}
		return s
	},
	"truncate": func(n int, s string) string {
		if r := []rune(s); n >= 0 && len(r) > n {
			return string(r[:n]) + "…"
		}
		return s
	},
	"replace":  func(from, to, s string) string { return strings.ReplaceAll(s, from, to) },
	"contains": func(part, s string) bool { return strings.Contains(s, part) },
	"date": func(layout, s string) (string, error) {
		t, err := time.Parse(time.RFC3339, s)
		if err != nil {
			return s, nil // shown as it came
		}
		return t.Format(layout), nil
	},
}

func parseTemplate(text string) (*template.Template, error) {
	return template.New("hook").Funcs(templateFuncs).Parse(text)
}

var errTooLong = errors.New("the text is too long")

// bounded is a writer that refuses too much.
type bounded struct {
	strings.Builder
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxText {
		return 0, errTooLong
	}
	return b.Builder.Write(p)
}

var _ io.Writer = (*bounded)(nil)

// fill makes text of a body; field names the template in errors.
func fill(field, text string, body []byte) (string, error) {
	if text == "" {
		return "", nil
	}
	t, err := parseTemplate(text)
	if err != nil {
		return "", fmt.Errorf("the template %s: %w", field, err)
	}
	var b bounded
	if err := t.Execute(&b, node{gjson.ParseBytes(body)}); errors.Is(err, errTooLong) {
		return "", mxerr.TooLarge(fmt.Sprintf("the hook's template %s makes more than %d bytes of this", field, maxText))
	} else if err != nil {
		return "", mxerr.BadJSON(fmt.Sprintf("the hook's template %s does not fit: %v", field, err))
	}
	return strings.TrimSpace(b.String()), nil
}

var markdownSpecial = strings.NewReplacer(`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", `\<`, ">", `\>`, "#", `\#`, "|", `\|`, "~", `\~`, "!", `\!`)

// escapeMarkdown makes Markdown that shows a text as it is.
func escapeMarkdown(s string) string { return markdownSpecial.Replace(s) }
