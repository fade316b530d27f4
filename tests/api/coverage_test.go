package api_test

import (
	"cmp"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
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
	want := coverage(t, spec, hstest.Start(t).Instance.Routes())
	if *update {
		if err := os.WriteFile(coverageFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(coverageFile)
	if err != nil {
		t.Fatal(err)
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

func coverage(t *testing.T, spec *hstest.Spec, routes []web.Route) string {
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
				covered = coveredBy(op, handler, tests[op.OperationID])
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

// coveredBy names the tests of an operation, those of the handler's own package first.
func coveredBy(op hstest.Operation, handler string, files []string) string {
	var out []string
	if _, ok := seeds[op.OperationID]; ok {
		out = append(out, "*walk*")
	}
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
	for _, file := range files[:min(namedTests, len(files))] {
		out = append(out, fmt.Sprintf("[%s](../%s)", filepath.Base(file), file))
	}
	if len(out) == 0 {
		return "—"
	}
	return strings.Join(out, ", ")
}

var (
	verbs   = regexp.MustCompile(`%[a-z]`)
	methods = []string{"GET", "POST", "PUT", "DELETE"}
)

// requestsInTests reads all test files and finds the requests in them: calls, and rows of tables, in which a method
// stands beside a path. The result has files by operation id.
func requestsInTests(t *testing.T, spec *hstest.Spec) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	err := filepath.WalkDir(repository, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == ".git" || entry.Name() == ".cache" || entry.Name() == "data"):
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
		for _, id := range operationsIn(file, spec) {
			if !slices.Contains(out[id], filepath.ToSlash(name)) {
				out[id] = append(out[id], filepath.ToSlash(name))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func operationsIn(file *ast.File, spec *hstest.Spec) []string {
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
			text, ok := literal(part)
			switch {
			case ok && slices.Contains(methods, text):
				method = text
			case ok && method != "" && strings.HasPrefix(text, "/"):
				if op, found := spec.Find(method, requestPath(text)); found {
					out = append(out, op.OperationID)
				}
			}
		}
		return true
	})
	return out
}

// literal is the text of a string literal, or of the literal that a sum begins with.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		return literal(e.X)
	}
	return "", false
}

// requestPath is what hstest makes of a path, with x for each verb.
func requestPath(s string) string {
	if !strings.HasPrefix(s, "/_") && !strings.HasPrefix(s, "/.well-known") {
		s = "/_matrix/client" + s
	}
	return verbs.ReplaceAllString(s, "x")
}
