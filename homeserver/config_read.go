package homeserver

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// configReader fills a Config by reflection from YAML's syntax tree and from the environment, and remembers where each
// value came from, so that every complaint can name its place.
type configReader struct {
	file   string
	source map[string]string // path of a value -> "file:line" or a variable's name
}

func newConfigReader(file string) *configReader {
	return &configReader{file: file, source: map[string]string{}}
}

func (d *configReader) at(n ast.Node) string {
	if n != nil && n.GetToken() != nil {
		return fmt.Sprintf("%s:%d", d.file, n.GetToken().Position.Line)
	}
	return d.file
}

// complain is an error about a value, with its place in front. Where nothing set it, the path alone must do.
func (d *configReader) complain(path, format string, args ...any) error {
	msg := path + " " + fmt.Sprintf(format, args...)
	if from := d.source[path]; from != "" {
		return errors.New(from + ": " + msg)
	}
	return errors.New("configuration: " + msg)
}

func (d *configReader) readYAML(b []byte, c *Config) error {
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		var syntax *yaml.SyntaxError
		if errors.As(err, &syntax) && syntax.Token != nil {
			return fmt.Errorf("%s:%d: this is not YAML: %s", d.file, syntax.Token.Position.Line, syntax.Message)
		}
		return fmt.Errorf("%s: this is not YAML: %v", d.file, err)
	}
	if len(f.Docs) > 1 {
		return fmt.Errorf("%s: one document is expected, not %d", d.file, len(f.Docs))
	}
	if len(f.Docs) == 0 || f.Docs[0].Body == nil {
		return nil
	}
	return d.fill(f.Docs[0].Body, reflect.ValueOf(c).Elem(), "")
}

// fill stores a node into a value of the Config.
func (d *configReader) fill(n ast.Node, v reflect.Value, path string) error {
	d.source[path] = d.at(n)
	switch n.(type) {
	case *ast.NullNode, *ast.CommentGroupNode:
		return nil // a key without a value keeps its default
	}
	switch {
	case v.Kind() == reflect.Struct:
		return d.fillStruct(n, v, path)
	case v.Kind() == reflect.Slice:
		return d.fillList(n, v, path)
	}
	text, ok := scalarText(n)
	if !ok {
		return d.complain(path, "must be %s", wantedValue(v))
	}
	if err := setScalar(v, text); err != nil {
		return d.complain(path, "%v", err)
	}
	return nil
}

func (d *configReader) fillStruct(n ast.Node, v reflect.Value, path string) error {
	m, ok := n.(ast.MapNode)
	if !ok {
		if path == "" {
			return fmt.Errorf("%s: keys and values are expected (\"server_name: example.org\")", d.at(n))
		}
		return d.complain(path, "must hold keys: %s", strings.Join(keysOf(v.Type()), ", "))
	}
	for it := m.MapRange(); it.Next(); {
		key := it.Key().GetToken().Value
		field, ok := fieldOf(v, key)
		if !ok {
			return fmt.Errorf("%s: unknown key %q%s", d.at(it.Key()), join(path, key), suggestion(key, keysOf(v.Type())))
		}
		if err := d.fill(it.Value(), field, join(path, key)); err != nil {
			return err
		}
		d.source[join(path, key)] = d.at(it.Key())
	}
	return nil
}

func (d *configReader) fillList(n ast.Node, v reflect.Value, path string) error {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		return d.complain(path, "must be a list (\"- …\" on a line for each)")
	}
	out := reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values))
	for i, item := range list.Values {
		if err := d.fill(item, out.Index(i), index(path, i)); err != nil {
			return err
		}
	}
	v.Set(out)
	return nil
}

// scalarText is a scalar's text as it was written.
func scalarText(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// setScalar reads a value from text; the environment and YAML agree on it.
func setScalar(v reflect.Value, text string) error {
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		return u.UnmarshalText([]byte(text))
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
		return nil
	case reflect.Bool:
		if text == "true" || text == "false" {
			v.SetBool(text == "true")
			return nil
		}
	case reflect.Int:
		if n, err := strconv.Atoi(text); err == nil {
			v.SetInt(int64(n))
			return nil
		}
	case reflect.Float64:
		if f, err := strconv.ParseFloat(text, 64); err == nil && f-f == 0 {
			v.SetFloat(f)
			return nil
		}
	}
	return fmt.Errorf("is %q; it must be %s", text, wantedValue(v))
}

func wantedValue(v reflect.Value) string {
	switch v.Addr().Interface().(type) {
	case *Size:
		return "a size such as \"50 MiB\""
	case *Duration:
		return "a duration such as \"7d\""
	}
	switch v.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return "text"
}

// leaf is one value of the Config that can be set: a scalar or a list of scalars.
type leaf struct {
	path  string
	value reflect.Value
	file  string // for a Secret: what its _file key says
}

// leaves lists all values in the order of the struct.
func leaves(v reflect.Value, path string) []leaf {
	var out []leaf
	for i := range v.NumField() {
		key := v.Type().Field(i).Tag.Get("yaml")
		f := v.Field(i)
		if key == "-" {
			continue
		}
		p := join(path, key)
		switch {
		case f.Kind() == reflect.Struct:
			out = append(out, leaves(f, p)...)
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
			for j := range f.Len() {
				out = append(out, leaves(f.Index(j), index(p, j))...)
			}
		default:
			l := leaf{path: p, value: f}
			if f.Type() == reflect.TypeFor[Secret]() {
				if file, ok := fieldOf(v, key+"_file"); ok {
					l.file = file.String()
				}
			}
			out = append(out, l)
		}
	}
	return out
}

// envName is the variable of a path: listen[0].tls.key is MOOTHALL_LISTEN_0_TLS_KEY.
func envName(path string) string {
	return "MOOTHALL_" + strings.ToUpper(strings.NewReplacer(".", "_", "[", "_", "]", "").Replace(path))
}

func (d *configReader) readEnvironment(environ []string, c *Config) error {
	env := map[string]string{}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "MOOTHALL_") {
			env[name] = value
		}
	}
	if len(env) == 0 {
		return nil
	}
	growLists(reflect.ValueOf(c).Elem(), "", env)
	for _, l := range leaves(reflect.ValueOf(c).Elem(), "") {
		name := envName(l.path)
		text, ok := env[name]
		if !ok {
			continue
		}
		delete(env, name)
		d.source[l.path] = name
		if l.value.Kind() == reflect.Slice {
			var items []string
			for item := range strings.SplitSeq(text, ",") {
				if item = strings.TrimSpace(item); item != "" {
					items = append(items, item)
				}
			}
			l.value.Set(reflect.ValueOf(items))
			continue
		}
		if err := setScalar(l.value, text); err != nil {
			return d.complain(l.path, "%v", err)
		}
	}
	c.Warnings = append(c.Warnings, unknownVariables(env)...)
	return nil
}

// growLists adds elements to lists of structs where the environment names the next one (MOOTHALL_LISTEN_1_ADDRESS).
func growLists(v reflect.Value, path string, env map[string]string) {
	for i := range v.NumField() {
		key, f := v.Type().Field(i).Tag.Get("yaml"), v.Field(i)
		switch {
		case key == "-":
		case f.Kind() == reflect.Struct:
			growLists(f, join(path, key), env)
		case f.Kind() == reflect.Slice && f.Type().Elem().Kind() == reflect.Struct:
			for named(env, envName(index(join(path, key), f.Len()))+"_") {
				f.Set(reflect.Append(f, reflect.Zero(f.Type().Elem())))
			}
		}
	}
}

func named(env map[string]string, prefix string) bool {
	for name := range env {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// unknownVariables warns of variables that look like ours and name nothing. Those that Kubernetes makes for a service called
// moothall, and those of the tests, are none of ours.
func unknownVariables(env map[string]string) []string {
	var out []string
	for name := range env {
		rest := strings.TrimPrefix(name, "MOOTHALL_")
		if rest == "CONFIG" || rest == "PORT" || strings.HasPrefix(rest, "PORT_") || strings.HasPrefix(rest, "SERVICE_") || strings.HasPrefix(rest, "TEST_") {
			continue
		}
		out = append(out, "the environment variable "+name+" names no setting")
	}
	sort.Strings(out)
	return out
}

func (d *configReader) readSecretFiles(c *Config) error {
	for _, l := range leaves(reflect.ValueOf(c).Elem(), "") {
		if l.file == "" {
			continue
		}
		if l.value.String() != "" {
			return d.complain(l.path, "and %s_file are both set; keep one of them", l.path)
		}
		b, err := os.ReadFile(l.file)
		if err != nil {
			return d.complain(l.path+"_file", "cannot be read: %v", err)
		}
		text := strings.TrimRight(string(b), "\r\n")
		if text == "" {
			return d.complain(l.path+"_file", "names the file %s, which is empty", l.file)
		}
		l.value.SetString(text)
		d.source[l.path] = d.source[l.path+"_file"]
	}
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

func fieldOf(v reflect.Value, key string) (reflect.Value, bool) {
	for i := range v.NumField() {
		if tag := v.Type().Field(i).Tag.Get("yaml"); tag == key && tag != "-" {
			return v.Field(i), true
		}
	}
	return reflect.Value{}, false
}

func keysOf(t reflect.Type) []string {
	var out []string
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("yaml"); key != "-" {
			out = append(out, key)
		}
	}
	return out
}

// suggestion ends a complaint about a key by the nearest one there is, or by all.
func suggestion(key string, known []string) string {
	best, distance := "", 3
	for _, k := range known {
		if n := editDistance(strings.ToLower(key), k); n < distance {
			best, distance = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known here are: " + strings.Join(known, ", ")
}

// editDistance counts the insertions, deletions and changes of one byte between two words.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
