package api_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/moothall/moothall/homeserver/hstest"
)

// errcodes that mean "this request is malformed".
var (
	malformed = []string{"M_BAD_JSON"}
	missing   = []string{"M_BAD_JSON", "M_MISSING_PARAM"}
	wrong     = []string{"M_BAD_JSON", "M_INVALID_PARAM"}
	invalid   = []string{"M_INVALID_PARAM"}
	refusals  = []int{400, 401, 403, 404}
	badOnly   = []int{400}
)

// generate makes the bad requests of the operation: each deviates from the right one in one place.
func (w *walk) generate(right request, f *fixture) []bad {
	out := w.tokens(right)
	out = append(out, w.paths(right, f)...)
	out = append(out, w.queries(right)...)
	if w.spec.JSON {
		out = append(out, w.bodies(right)...)
		out = append(out, w.fields(right)...)
	}
	return out
}

func (w *walk) tokens(right request) []bad {
	if !w.spec.Token {
		return nil
	}
	none, unknown := right, right
	none.token, unknown.token = "", "walker"
	return []bad{
		{name: "no token", request: none, statuses: []int{401}, codes: []string{"M_MISSING_TOKEN"}},
		{name: "unknown token", request: unknown, statuses: []int{401}, codes: []string{"M_UNKNOWN_TOKEN"}},
	}
}

// idParams are the path parameters that name what must exist, with an id nobody has and one that is malformed.
var idParams = map[string][2]string{
	"roomId":        {"!walker0unknown:" + hstest.ServerName, "walker"},
	"roomIdOrAlias": {"#walker0unknown:" + hstest.ServerName, "walker"},
	"roomAlias":     {"#walker0unknown:" + hstest.ServerName, "walker"},
	"eventId":       {"$walker0unknown", "walker"},
	"userId":        {"@walker0unknown:" + hstest.ServerName, "walker"},
	"deviceId":      {"WALKER", "walker/€"},
	"filterId":      {"4711", "walker"},
	"version":       {"4711", "walker"},
	"mediaId":       {"walkerwalkerwalkerwalker", "../walker"},
	"serverName":    {"walker.example.org", "walker server"},
	"kind":          {"walker", ""},
	"ruleId":        {"walker", ".m.walker"},
	"receiptType":   {"m.walker", ""},
}

func (w *walk) paths(right request, f *fixture) []bad {
	var out []bad
	for _, p := range w.spec.Params {
		if p.In != "path" {
			continue
		}
		add := func(name, value string, statuses []int, codes []string) {
			out = append(out, bad{p.Name + ": " + name, right.with(p.Name, value), statuses, codes})
		}
		var strict []int // free names may be anything that has a fitting length
		if id, ok := idParams[p.Name]; ok {
			strict = refusals
			add("unknown", id[0], refusals, nil)
			if id[1] != "" {
				add("malformed", id[1], refusals, nil)
			}
			if others := f.others(p.Name); others != "" {
				add("someone else's", others, refusals, nil)
			}
		}
		add("empty", "", []int{400, 404, 405}, nil)
		add("U+0000", right.path[p.Name]+"\x00", badOnly, invalid)
		add("no UTF-8", right.path[p.Name]+"\xff", badOnly, invalid)
		add("long", right.path[p.Name]+strings.Repeat("x", 3000), strict, nil)
		add("odd", right.path[p.Name]+"/%../\u202e😀 ?#&", strict, nil)
	}
	return out
}

func (w *walk) queries(right request) []bad {
	var out []bad
	for _, p := range w.spec.Params {
		if p.In != "query" {
			continue
		}
		add := func(name string, statuses []int, codes []string, values ...string) {
			out = append(out, bad{"?" + p.Name + ": " + name, right.asking(p.Name, values...), statuses, codes})
		}
		if p.Required {
			add("missing", badOnly, []string{"M_MISSING_PARAM", "M_INVALID_PARAM"})
		}
		var strict []int
		switch {
		case len(p.Enum) > 0, slices.Contains(p.Types, "boolean"), slices.Contains(p.Types, "integer"):
			strict = badOnly
		}
		codes := invalid
		if strict == nil {
			codes = nil
		}
		add("a word", strict, codes, "walker")
		add("no text", nil, nil, "%FF")
		add("U+0000", nil, nil, "%00")
		add("broken escape", nil, nil, "%zz")
		add("empty", nil, nil, "")
		add("long", strict, codes, strings.Repeat("x", 3000))
		add("twice", nil, nil, "1", "2")
		if slices.Contains(p.Types, "integer") {
			add("fraction", badOnly, invalid, "1.5")
			add("exponent", badOnly, invalid, "1e3")
			add("negative", nil, nil, "-1")
			add("zero", nil, nil, "0")
			add("huge", nil, nil, strings.Repeat("9", 40))
			add("minus huge", nil, nil, "-"+strings.Repeat("9", 40))
		}
	}
	return append(out, bad{name: "unknown query parameter", request: right.asking("walker", url.QueryEscape("{[]}"))})
}

func (w *walk) bodies(right request) []bad {
	var out []bad
	add := func(name, body string, statuses []int, codes ...string) {
		out = append(out, bad{"body: " + name, right.sending([]byte(body)), statuses, codes})
	}
	// A member in front of those of the right body.
	member := func(m string) string {
		rest := strings.TrimPrefix(string(right.body), "{")
		if rest == "}" {
			return "{" + m + "}"
		}
		return "{" + m + "," + rest
	}
	required := slices.ContainsFunc(w.spec.Fields, func(f hstest.Field) bool { return f.Required && len(f.Path) == 1 })
	if required {
		add("absent", "", badOnly, "M_NOT_JSON")
		add("{}", "{}", badOnly, missing...)
	} else {
		// Where nothing is required, {} is what many clients mean by no body at all.
		add("absent", "", nil)
		add("{}", "{}", nil)
	}
	add("no JSON", "walker=1", badOnly, "M_NOT_JSON")
	add("cut off", string(right.body[:len(right.body)-1]), badOnly, "M_NOT_JSON")
	add("more behind", string(right.body)+"}", badOnly, "M_NOT_JSON")
	add("single quotes", `{'walker':1}`, badOnly, "M_NOT_JSON")
	add("spaces", "  \n", nil)
	for _, v := range []string{"[]", "null", "7", `"walker"`, "true"} {
		add(v, v, badOnly, malformed...)
	}
	add("name twice", member(`"walker":1,"walker":2`), badOnly, "M_BAD_JSON", "M_NOT_JSON")
	add("no UTF-8", member("\"walker\":\"\xff\""), badOnly, "M_NOT_JSON")
	add("half a surrogate", member(`"walker":"\ud800"`), badOnly, "M_NOT_JSON")
	add("U+0000 raw", member("\"walker\":\"\x00\""), badOnly, "M_NOT_JSON")
	add("number out of range", member(`"walker":1e400`), nil)
	add("deep array", member(`"walker":`+strings.Repeat("[", 100_000)+strings.Repeat("]", 100_000)), badOnly, malformed...)
	add("deep object", member(`"walker":`+strings.Repeat(`{"a":`, 100_000)+"1"+strings.Repeat("}", 100_000)), badOnly, malformed...)
	add("deep and cut off", strings.Repeat(`{"a":`, 100_000), badOnly, "M_BAD_JSON", "M_NOT_JSON")
	add("5 MiB", member(`"walker":"`+strings.Repeat("x", 5<<20)+`"`), []int{413}, "M_TOO_LARGE")
	return out
}

// fieldValues are tried for every field.
var fieldValues = []struct{ name, kind, json string }{
	{"null", "null", "null"},
	{"true", "boolean", "true"},
	{"number", "integer", "7"},
	{"-1", "integer", "-1"},
	{"float", "float", "1.5"},
	{"huge", "integer", "9007199254740993"},
	{"out of range", "beyond", "1e400"},
	{"string", "string", `"walker"`},
	{"empty string", "string", `""`},
	{"U+0000", "string", `"a\u0000b"`},
	{"long string", "string", `"` + strings.Repeat("x", 100_000) + `"`},
	{"array", "array", `[]`},
	{"array of everything", "array", `[null,true,7,-1,1.5,"x",[],{}]`},
	{"object", "object", `{}`},
	{"object of everything", "object", `{"a":null,"b":true,"c":7,"d":-1,"e":1.5,"f":"x","g":[],"h":{},"":1}`},
}

func (w *walk) fields(right request) []bad {
	var out []bad
	for _, f := range w.spec.Fields {
		at := w.concrete(f)
		change := func(value any) []byte {
			var body any
			if err := json.Unmarshal(right.body, &body); err != nil {
				w.t.Fatalf("the right body is no JSON: %v: %s", err, right.body)
			}
			b, err := json.Marshal(set(body, at, value))
			if err != nil {
				w.t.Fatal(err)
			}
			return b
		}
		add := func(name string, value any, statuses []int, codes []string) {
			out = append(out, bad{fmt.Sprintf("%s: %s", f, name), right.sending(change(value)), statuses, codes})
		}
		if f.Required {
			add("missing", nil, badOnly, missing)
		}
		// The server understands nothing of what is backed up, so that newer algorithms than the listed one are taken too.
		if len(f.Enum) > 0 && !slices.Contains(f.Types, "array") && fmt.Sprint(f) != "algorithm" {
			add("unknown value", "walker", badOnly, wrong)
		}
		for _, v := range fieldValues {
			statuses, codes := expected(f, v.kind)
			if v.name == "long string" && statuses != nil {
				statuses, codes = []int{400, 413}, []string{"M_BAD_JSON", "M_TOO_LARGE"}
			}
			add(v.name, json.RawMessage(v.json), statuses, codes)
		}
	}
	return out
}

// expected says what a value of this kind may be answered with.
func expected(f hstest.Field, kind string) ([]int, []string) {
	has := func(t string) bool { return slices.Contains(f.Types, t) }
	switch {
	case len(f.Types) == 0, has(kind), kind == "integer" && has("number"), kind == "float" && has("number"):
		return nil, nil
	case kind == "null" && f.Required:
		return badOnly, missing
	case kind == "null":
		return nil, nil // many libraries write null for what is absent
	}
	return badOnly, malformed
}

// step is a place in a body; array says what kind of container it is a place in.
type step struct {
	name  string
	array bool
}

func (w *walk) concrete(f hstest.Field) []step {
	out := make([]step, len(f.Path))
	for i, name := range f.Path {
		out[i].name = name
		for _, parent := range w.spec.Fields {
			if name == "*" && len(parent.Path) == i && slices.Equal(parent.Path, f.Path[:i]) {
				out[i].array = slices.Contains(parent.Types, "array")
			}
		}
	}
	return out
}

// set puts a value at a place, making what leads there; nil removes.
func set(v any, at []step, value any) any {
	if len(at) == 0 {
		return value
	}
	if at[0].array {
		list, _ := v.([]any)
		if len(list) == 0 {
			list = []any{nil}
		}
		list[0] = set(list[0], at[1:], value)
		return list
	}
	object, _ := v.(map[string]any)
	if object == nil {
		object = map[string]any{}
	}
	name := at[0].name
	if name == "*" {
		name = "walker"
		keys := make([]string, 0, len(object))
		for k := range object {
			keys = append(keys, k)
		}
		if slices.Sort(keys); len(keys) > 0 {
			name = keys[0]
		}
	}
	inner := set(object[name], at[1:], value)
	if len(at) == 1 && value == nil {
		delete(object, name)
	} else {
		object[name] = inner
	}
	return object
}
