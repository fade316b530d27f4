package api_test

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/moothall/moothall/homeserver/clientapi"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/web"
)

var update = flag.Bool("update", false, "write docs/spec-coverage.md anew")

const (
	repository   = "../.."
	coverageFile = repository + "/docs/spec-coverage.md"
	namedTests   = 2 // test files named per operation; more would only make the table wide
)

// TestPromisedRoutes finds every route that the versions in GET /versions promise.
func TestPromisedRoutes(t *testing.T) {
	have := served(hstest.Start(t))
	promised := clientapi.PromisedRoutes()
	if len(promised) < 50 {
		t.Errorf("only %d routes are promised", len(promised))
	}
	for _, pattern := range promised {
		if !have[strings.TrimSuffix(pattern, "{$}")] {
			t.Errorf("GET /versions promises %s, which is not served", pattern)
		}
	}
}

// TestCoverage compares docs/spec-coverage.md with what it would be made of: the specification's operations, the table
// of routes and the tests.
func TestCoverage(t *testing.T) {
	spec := specification(t)
	got, err := os.ReadFile(coverageFile)
	if err != nil && !(*update && errors.Is(err, fs.ErrNotExist)) {
		t.Fatal(err)
	}
	want := coverage(t, spec, hstest.Start(t).Instance.Routes(), string(got))
	if *update {
		if err := os.WriteFile(coverageFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(got) == want {
		return
	}
	old, lines := strings.Split(string(got), "\n"), strings.Split(want, "\n")
	for _, line := range lines {
		if !slices.Contains(old, line) {
			t.Errorf("docs/spec-coverage.md lacks: %s", line)
		}
	}
	t.Error("docs/spec-coverage.md is not up to date: go test ./tests/api -run TestCoverage -update")
}

// coverage makes the page. Test files that the page names already stay named while they call the operation, so that it
// changes little when tests are added.
func coverage(t *testing.T, spec *hstest.Spec, routes []web.Route, page string) string {
	t.Helper()
	handlers := map[string]string{}
	for _, rt := range routes {
		handlers[strings.TrimSuffix(rt.Pattern, "{$}")] = handlerName(rt.Handler)
	}
	tests := requestsInTests(t, spec)
	byFile := map[string][]hstest.Operation{}
	count, answered := 0, 0
	ofSpec := map[string]bool{}
	for _, op := range spec.Operations() {
		byFile[op.File] = append(byFile[op.File], op)
		ofSpec[op.Method+" "+op.Path] = true
		count++
		if handlers[op.Method+" "+op.Path] != "" {
			answered++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Coverage of the client-server API

Made by `+"`go test ./tests/api -run TestCoverage -update`"+` from the OpenAPI files of the Matrix specification v1.19, the server's table of
routes and the tests; the same test fails when this page is out of date. **%d of %d operations are answered**; the others get
404 `+"`M_UNRECOGNIZED`"+`. *walk* stands for the test that sends every operation a right request and its bad variants
([walk_table_test.go](../tests/api/walk_table_test.go)); beside it stand test files that call the operation.
`, answered, count)
	files := make([]string, 0, len(byFile))
	for file := range byFile {
		files = append(files, file)
	}
	slices.Sort(files)
	for _, file := range files {
		fmt.Fprintf(&b, "\n## %s\n\n| Operation | Method and path | Handler | Tests |\n|---|---|---|---|\n", strings.TrimSuffix(file, ".yaml"))
		for _, op := range byFile[file] {
			handler := cmp.Or(handlers[op.Method+" "+op.Path], "—")
			covered := "—"
			if handler != "—" {
				covered = coveredBy(op, handler, tests[op.OperationID], namedFor(op, page))
			}
			fmt.Fprintf(&b, "| %s | `%s %s` | %s | %s |\n", op.OperationID, op.Method, op.Path, handler, covered)
		}
	}
	b.WriteString("\n## Beyond the specification\n\n| Method and path | Handler |\n|---|---|\n")
	var more []string
	for pattern, handler := range handlers {
		if !ofSpec[pattern] {
			more = append(more, fmt.Sprintf("| `%s` | %s |\n", pattern, handler))
		}
	}
	slices.Sort(more)
	b.WriteString(strings.Join(more, ""))
	return b.String()
}

// handlerName is package and method: clientapi.send.
func handlerName(h web.Handler) string {
	name := runtime.FuncForPC(reflect.ValueOf(h).Pointer()).Name()
	name = strings.TrimSuffix(name[strings.LastIndex(name, "/")+1:], "-fm")
	return regexp.MustCompile(`\(\*?\w+\)\.`).ReplaceAllString(name, "")
}

// namedFor lists the test files that the page names for an operation.
func namedFor(op hstest.Operation, page string) []string {
	_, row, _ := strings.Cut(page, "| "+op.OperationID+" |")
	row, _, _ = strings.Cut(row, "\n")
	var out []string
	for _, m := range links.FindAllStringSubmatch(row, -1) {
		out = append(out, m[1])
	}
	return out
}

// coveredBy names the tests of an operation: those named so far, else those of the handler's own package first.
func coveredBy(op hstest.Operation, handler string, files, named []string) string {
	own := "/" + handler[:strings.Index(handler, ".")] + "/"
	slices.SortFunc(files, func(a, b string) int {
		if x, y := strings.Contains(a, own), strings.Contains(b, own); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	chosen := slices.DeleteFunc(named, func(file string) bool { return !slices.Contains(files, file) })
	if len(chosen) == 0 {
		chosen = files[:min(namedTests, len(files))]
	}
	var out []string
	if _, ok := seeds[op.OperationID]; ok {
		out = append(out, "*walk*")
	}
	for _, file := range chosen {
		out = append(out, fmt.Sprintf("[%s](../%s)", filepath.Base(file), file))
	}
	if len(out) == 0 {
		return "—"
	}
	return strings.Join(out, ", ")
}

var (
	links   = regexp.MustCompile(`\]\(\.\./([^)]*)\)`)
	verbs   = regexp.MustCompile(`%[a-z]`)
	methods = []string{"GET", "POST", "PUT", "DELETE"}
)

// requestsInTests reads all test files and finds the requests in them: calls, and rows of tables, in which a method
// stands before a path. The result has files by operation id.
func requestsInTests(t *testing.T, spec *hstest.Spec) map[string][]string {
	t.Helper()
	type source struct {
		name string
		file *ast.File
	}
	var sources []source
	shared := map[string]map[string][]string{} // by folder: its constants
	err := filepath.WalkDir(repository, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{"node_modules", ".git", ".cache", "data"}, entry.Name()):
			return fs.SkipDir
		case entry.IsDir() || !strings.HasSuffix(path, "_test.go") || strings.HasPrefix(entry.Name(), "walk_"):
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(repository, path)
		if err != nil {
			return err
		}
		sources = append(sources, source{filepath.ToSlash(name), file})
		dir := filepath.Dir(name)
		if shared[dir] == nil {
			shared[dir] = map[string][]string{}
		}
		for _, d := range file.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				stringsOf(g, shared[dir])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][]string{}
	for _, src := range sources {
		names := map[string][]string{}
		maps.Copy(names, shared[filepath.Dir(src.name)])
		stringsOf(src.file, names)
		for _, id := range operationsIn(src.file, names, spec) {
			if !slices.Contains(out[id], src.name) {
				out[id] = append(out[id], src.name)
			}
		}
	}
	return out
}

func operationsIn(file *ast.File, names map[string][]string, spec *hstest.Spec) []string {
	var out []string
	ast.Inspect(file, func(n ast.Node) bool {
		var parts []ast.Expr
		switch n := n.(type) {
		case *ast.CallExpr:
			parts = n.Args
		case *ast.CompositeLit:
			parts = n.Elts
		}
		method := ""
		for _, part := range parts {
			for _, text := range texts(part, names) {
				if slices.Contains(methods, text) {
					method = text
				} else if method != "" && strings.HasPrefix(text, "/") {
					out = append(out, operationOf(spec, method, verbs.ReplaceAllString(text, "x"))...)
				}
			}
		}
		return true
	})
	return out
}

// operationOf finds the operation of a path, which tests may begin behind a part that all their paths share.
func operationOf(spec *hstest.Spec, method, path string) []string {
	for _, prefix := range []string{"", "/_matrix/client", "/_matrix/client/v3"} {
		if op, found := spec.Find(method, prefix+path); found {
			return []string{op.OperationID}
		}
	}
	return nil
}

// stringsOf adds the texts that constants and variables are given, by name.
func stringsOf(in ast.Node, out map[string][]string) {
	add := func(name string, value ast.Expr) {
		for _, text := range texts(value, out) {
			if !slices.Contains(out[name], text) {
				out[name] = append(out[name], text)
			}
		}
	}
	ast.Inspect(in, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ValueSpec:
			for i := range min(len(n.Names), len(n.Values)) {
				add(n.Names[i].Name, n.Values[i])
			}
		case *ast.AssignStmt:
			for i := range min(len(n.Lhs), len(n.Rhs)) {
				if name, ok := n.Lhs[i].(*ast.Ident); ok && n.Tok == token.DEFINE {
					add(name.Name, n.Rhs[i])
				}
			}
		}
		return true
	})
}

// texts gives what a string expression can be; x stands for what is not known.
func texts(e ast.Expr, names map[string][]string) []string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil && e.Kind == token.STRING {
			return []string{s}
		}
	case *ast.Ident:
		return names[e.Name]
	case *ast.CallExpr:
		if f, ok := e.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Sprintf" && len(e.Args) > 0 {
			return texts(e.Args[0], names)
		}
	case *ast.BinaryExpr:
		left, right := texts(e.X, names), texts(e.Y, names)
		if len(left) == 0 {
			return nil
		}
		if len(right) == 0 {
			right = []string{"x"}
		}
		var out []string
		for _, l := range left {
			for _, r := range right {
				out = append(out, l+r)
			}
		}
		return out
	}
	return nil
}
