package moothall_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/moothall/moothall"

// layers is the house from top to bottom: a unit (a folder with all below it) may import units of lower layers only, so
// neither upwards nor sideways. A package that no unit covers fails the test: it has to be given its place here.
var layers = [][]string{
	{"tests"},
	{"homeserver/hstest"},
	{"cmd/moothall"},
	{"homeserver"},
	{
		"homeserver/clientapi", "homeserver/clientsync", "homeserver/push", "homeserver/media", "homeserver/federation", "homeserver/adminapi", "homeserver/rtc",
		"appservices", "sso", "ldapsync", "search", "compliance", "console",
	},
	{"homeserver/groups", "homeserver/notices"},
	{"homeserver/people"},
	{"homeserver/room", "homeserver/account"},
	{"compliance/audit"}, // what every act is recorded by, below those who act
	{"homeserver/store"},
	{"homeserver/page"},
	{"homeserver/event", "homeserver/web", "homeserver/filter"},
	{"homeserver/mxerr", "homeserver/child", "homeserver/testkit", "bench"}, // bench speaks only the public API: it needs nothing of the house
}

// exact names units that do not cover the folders below them, because those are units of their own.
var exact = []string{"homeserver"}

// only names the units that may import a package or what lies below it; tests in package x_test are free of it.
var only = []struct {
	path, why string
	units     []string
}{
	{module + "/homeserver/hstest", "hstest starts a whole server: tests that use it are external (package x_test)", nil},
	{"database/sql", "all SQL is in store", []string{"homeserver/store"}},
	{"github.com/jackc/pgx", "all SQL is in store", []string{"homeserver/store", "homeserver/hstest"}},
	{"zombiezen.com/go/sqlite", "all SQL is in store", []string{"homeserver/store"}},
	{"modernc.org/sqlite", "all SQL is in store", []string{"homeserver/store"}},
}

// never names what a unit must not import itself; its tests may. A slash at the end stands for everything below.
var never = []struct {
	unit, why string
	paths     []string
}{
	{"homeserver/event", "event is pure: no I/O, no clock of its own", []string{"net", "net/http", "os", "os/", "io/fs", "syscall", "log", "log/", "context"}},
	{"homeserver/mxerr", "mxerr is a value", []string{"net/http/", "os", "log", "log/", "github.com/", "golang.org/"}},
}

// goPackage is what `go list -json` tells of a package.
type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func TestImportDirection(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var packages []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
	if len(packages) < 5 {
		t.Fatalf("go list shows only %d packages", len(packages))
	}
	for _, complaint := range complaints(packages) {
		t.Error(complaint)
	}
}

// complaints tells every import that the house does not allow.
func complaints(packages []goPackage) []string {
	var out []string
	for _, p := range packages {
		if p.ImportPath == module {
			continue // this test
		}
		unit, layer := place(p.ImportPath)
		if unit == "" {
			out = append(out, fmt.Sprintf("%s has no place in the house: give it one in layers", p.ImportPath))
			continue
		}
		for _, imported := range slices.Concat(p.Imports, p.TestImports) {
			why := refusal(unit, layer, imported)
			if why == "" && slices.Contains(p.Imports, imported) {
				why = impurity(unit, imported)
			}
			if why != "" {
				out = append(out, fmt.Sprintf("%s imports %s: %s", p.ImportPath, imported, why))
			}
		}
	}
	return out
}

// refusal tells why a unit may not import a package, or "".
func refusal(unit string, layer int, imported string) string {
	if to, below := place(imported); to != "" && to != unit {
		switch {
		case below == layer:
			return "a sideways import; declare a func or a one-method interface and let homeserver.New pass it in"
		case below < layer && imported != module+"/homeserver/hstest":
			return "an import upwards"
		}
	}
	for _, o := range only {
		if (imported == o.path || strings.HasPrefix(imported, o.path+"/")) && !slices.Contains(o.units, unit) {
			return o.why
		}
	}
	return ""
}

// impurity tells why a unit may not import a package from outside of the house, or "".
func impurity(unit, imported string) string {
	for _, n := range never {
		if n.unit != unit {
			continue
		}
		for _, path := range n.paths {
			if imported == path || (strings.HasSuffix(path, "/") && strings.HasPrefix(imported, path)) {
				return n.why
			}
		}
	}
	return ""
}

// place is the unit that an import path of this module belongs to, and its layer; "" for paths of others. A unit inside
// of another's folder goes first.
func place(path string) (unit string, layer int) {
	rest, ours := strings.CutPrefix(path, module+"/")
	if !ours {
		return "", 0
	}
	for i, units := range layers {
		for _, u := range units {
			if len(u) > len(unit) && (rest == u || (strings.HasPrefix(rest, u+"/") && !slices.Contains(exact, u))) {
				unit, layer = u, i
			}
		}
	}
	return unit, layer
}

// TestImportRules shows that the rules catch what they are for.
func TestImportRules(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		where    string // "", "test" or "xtest"
		want     string // part of the complaint; empty when the import is allowed
	}{
		{"cmd/moothall", "homeserver", "", ""},
		{"homeserver", "homeserver/clientapi", "", ""},
		{"homeserver", "search", "", ""},
		{"homeserver/clientapi", "homeserver/room", "", ""},
		{"homeserver/clientapi", "homeserver/mxerr", "", ""},
		{"homeserver/room", "homeserver/store", "", ""},
		{"homeserver/store", "homeserver/store/migrations", "", ""},
		{"appservices/oa", "appservices", "", ""},
		{"homeserver/hstest", "homeserver", "", ""},
		{"homeserver/account", "compliance/audit", "", ""},
		{"compliance/archive", "compliance/audit", "", ""},
		{"compliance/audit", "compliance/archive", "", "upwards"},

		{"homeserver/clientapi", "homeserver/clientsync", "", "sideways"},
		{"homeserver/clientsync", "homeserver/push", "", "sideways"},
		{"search", "compliance", "", "sideways"},
		{"appservices/oa", "homeserver/media", "", "sideways"},
		{"homeserver/room", "homeserver/account", "", "sideways"},
		{"homeserver/event", "homeserver/web", "", "sideways"},
		{"homeserver/clientapi", "homeserver/clientsync", "test", "sideways"},
		{"homeserver/clientapi", "homeserver/clientsync", "xtest", ""},

		{"homeserver/store", "homeserver/room", "", "upwards"},
		{"homeserver/mxerr", "homeserver/event", "", "upwards"},
		{"homeserver/event", "homeserver/store", "", "upwards"},
		{"homeserver/clientapi", "homeserver", "", "upwards"},
		{"homeserver", "cmd/moothall", "", "upwards"},

		{"homeserver/clientapi", "homeserver/hstest", "", "external"},
		{"homeserver/clientapi", "homeserver/hstest", "test", "external"},
		{"homeserver/clientapi", "homeserver/hstest", "xtest", ""},
		{"cmd/moothall", "homeserver/hstest", "", "external"},

		{"homeserver/util", "homeserver/mxerr", "", "no place"},
		{"homeserver/room", "!github.com/jackc/pgx/v5", "", "all SQL"},
		{"homeserver/room", "!zombiezen.com/go/sqlite/sqlitex", "", "all SQL"},
		{"homeserver/store", "!github.com/jackc/pgx/v5", "", ""},
		{"homeserver/event", "!net/http", "", "pure"},
		{"homeserver/event", "!os", "", "pure"},
		{"homeserver/event", "!os", "test", ""},
		{"homeserver/event", "!net/netip", "", ""},
		{"homeserver/event", "!log/slog", "", "pure"},
		{"homeserver/mxerr", "!net/http", "", ""},
		{"homeserver/event", "!github.com/tidwall/gjson", "", ""},
	} {
		t.Run(tc.from+" to "+tc.to+" "+tc.where, func(t *testing.T) {
			to, foreign := strings.CutPrefix(tc.to, "!")
			if !foreign {
				to = module + "/" + to
			}
			p := goPackage{ImportPath: module + "/" + tc.from}
			switch tc.where {
			case "test":
				p.TestImports = []string{to}
			case "xtest":
				p.XTestImports = []string{to}
			default:
				p.Imports = []string{to}
			}
			got := strings.Join(complaints([]goPackage{p}), "; ")
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}
