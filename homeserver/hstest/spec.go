package hstest

import (
	"errors"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/go-json-experiment/json"
	"github.com/goccy/go-yaml"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Spec is the client-server part of the Matrix specification's OpenAPI files, ready to check responses against.
// A nil *Spec checks nothing. It is safe for concurrent use.
type Spec struct {
	routes     map[int][]*specRoute // by number of path segments, the most literal first
	operations []Operation
	requests   map[string]Request // by operation id
	stdError   string             // location of the standard error schema
	uia        string             // location of the schema of user-interactive authentication's 401

	mu       sync.Mutex // guards what follows: schemas are compiled when first needed
	compiler *jsonschema.Compiler
	schemas  map[string]*compiledSchema
}

// Operation is one endpoint of the specification.
type Operation struct {
	Method      string // upper case
	Path        string // full template, e.g. /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}
	File        string // file name under api/client-server
	OperationID string
}

type specRoute struct {
	Operation
	segments  []string
	responses map[int]specResponse
}

// specResponse is what the specification says of one status of one operation.
type specResponse struct {
	types  []string // media types; empty when no content is described
	schema string   // location of the JSON body's schema; "" when there is none
}

type compiledSchema struct {
	schema *jsonschema.Schema
	err    error
}

// Matches nothing that is not on the list: every relaxation needs its reason.
var specAllowed = struct {
	// alternatives names operations whose 200 schema is a oneOf that a right answer can match twice, with the index of
	// the alternative that holds for the request.
	alternatives map[string]func(query url.Values) int
	// statuses names success statuses that are right although the operation does not list them.
	statuses map[int]string
	// bodies names operations with the one body that is right although it is not of the schema.
	bodies map[string]string
}{
	alternatives: map[string]func(url.Values) int{
		// The content of a state event may be any object, so a whole event matches both alternatives. Which of the
		// two is meant is said by ?format=.
		"getRoomStateWithKey": func(q url.Values) int {
			if q.Get("format") == "event" {
				return 1
			}
			return 0
		},
	},
	statuses: map[int]string{
		http.StatusPartialContent: "a range of a media download (RFC 9110), described as 200",
		http.StatusNotModified:    "a conditional request (RFC 9110), without a body",
	},
	bodies: map[string]string{
		// There is no TURN server; see docs/decisions/0150.
		"getTurnServer": "{}",
	},
}

// specs holds what LoadSpec made, by directory: reading the files takes a quarter of a second, which every server that
// a test starts would pay again.
var specs sync.Map // string -> func() (*Spec, error)

// LoadSpec reads the specification's OpenAPI files from dir/api/client-server, once per process and directory. An empty
// dir means $MATRIX_SPEC, else ../shared/matrix-spec beside the repository; where that one is absent the result is a nil
// Spec, which checks nothing.
func LoadSpec(dir string) (*Spec, error) {
	if dir == "" {
		dir = os.Getenv("MATRIX_SPEC")
	}
	if dir == "" {
		root, err := repositoryRoot()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(root, "..", "shared", "matrix-spec")
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	load, _ := specs.LoadOrStore(dir, sync.OnceValues(func() (*Spec, error) { return readSpec(dir) }))
	return load.(func() (*Spec, error))()
}

// repositoryRoot is the nearest folder upwards that holds a go.mod.
func repositoryRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, "go.mod")); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no go.mod at or above %s", dir)
		}
	}
}

func readSpec(dir string) (*Spec, error) {
	folder := filepath.Join(dir, "api", "client-server")
	files, err := filepath.Glob(filepath.Join(folder, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no OpenAPI files in %s: MATRIX_SPEC must name a copy of the Matrix specification's data folder", folder)
	}
	s := &Spec{
		routes:   make(map[int][]*specRoute),
		requests: make(map[string]Request),
		schemas:  make(map[string]*compiledSchema),
		stdError: fileURL(filepath.Join(folder, "definitions", "errors", "error.yaml")),
		uia:      fileURL(filepath.Join(folder, "definitions", "auth_response.yaml")),
		compiler: jsonschema.NewCompiler(),
	}
	s.compiler.DefaultDraft(jsonschema.Draft2020)
	s.compiler.UseLoader(yamlLoader{})
	loader := openapi3.NewLoader()
	loader.IsExternalRefsAllowed = true
	for _, file := range files {
		doc, err := loader.LoadFromFile(file)
		if err != nil {
			return nil, fmt.Errorf("load %s: %w", file, err)
		}
		if err := s.addFile(file, doc); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	for _, routes := range s.routes {
		slices.SortFunc(routes, moreLiteral)
	}
	slices.SortFunc(s.operations, func(a, b Operation) int {
		return strings.Compare(a.Path+" "+a.Method+" "+a.OperationID, b.Path+" "+b.Method+" "+b.OperationID)
	})
	return s, nil
}

func (s *Spec) addFile(file string, doc *openapi3.T) error {
	if len(doc.Servers) == 0 || doc.Servers[0].Variables["basePath"] == nil {
		return errors.New("no server with a basePath")
	}
	base := doc.Servers[0].Variables["basePath"].Default
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			r := &specRoute{
				// Two operations of one path are told apart by a space behind it.
				Operation: Operation{Method: method, Path: base + strings.TrimSpace(path), File: filepath.Base(file), OperationID: op.OperationID},
				responses: make(map[int]specResponse),
			}
			r.segments = strings.Split(base+path, "/")
			for code, ref := range op.Responses.Map() {
				status, err := strconv.Atoi(code)
				if err != nil {
					return fmt.Errorf("%s %s: response %q is no status", method, path, code)
				}
				r.responses[status] = responseOf(file, path, method, code, ref)
			}
			s.routes[len(r.segments)] = append(s.routes[len(r.segments)], r)
			s.operations = append(s.operations, r.Operation)
			s.requests[op.OperationID] = requestOf(item, op)
		}
	}
	return nil
}

func responseOf(file, path, method, code string, ref *openapi3.ResponseRef) specResponse {
	at := pointer("paths", path, strings.ToLower(method), "responses", code)
	if strings.HasPrefix(ref.Ref, "#/") {
		at = strings.TrimPrefix(ref.Ref, "#")
	}
	var out specResponse
	for mediaType, content := range ref.Value.Content {
		out.types = append(out.types, mediaType)
		if mediaType == "application/json" && content.Schema != nil {
			out.schema = fileURL(file) + "#" + (&url.URL{Path: at + pointer("content", mediaType, "schema")}).EscapedPath()
		}
	}
	slices.Sort(out.types)
	return out
}

// pointer is a JSON pointer (RFC 6901).
func pointer(tokens ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, t := range tokens {
		b.WriteString("/" + escape.Replace(t))
	}
	return b.String()
}

func fileURL(file string) string {
	return (&url.URL{Scheme: "file", Path: filepath.ToSlash(file)}).String()
}

// moreLiteral orders routes so that a literal segment wins over a parameter, the leftmost difference first.
func moreLiteral(a, b *specRoute) int {
	for i := range a.segments {
		switch pa, pb := isParam(a.segments[i]), isParam(b.segments[i]); {
		case pa && !pb:
			return 1
		case !pa && pb:
			return -1
		}
	}
	return strings.Compare(a.Path+a.Method, b.Path+b.Method)
}

func isParam(segment string) bool { return strings.HasPrefix(segment, "{") }

// yamlLoader reads the files that schemas refer to.
type yamlLoader struct{}

// Load implements jsonschema.URLLoader.
func (yamlLoader) Load(location string) (any, error) {
	u, err := url.Parse(location)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "file" {
		return nil, fmt.Errorf("%s: only files are read", location)
	}
	b, err := os.ReadFile(filepath.FromSlash(u.Path))
	if err != nil {
		return nil, err
	}
	var doc any
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", u.Path, err)
	}
	return doc, nil
}

// Operations lists every endpoint of the specification, sorted by path and method.
func (s *Spec) Operations() []Operation {
	if s == nil {
		return nil
	}
	return slices.Clone(s.operations)
}

// Find tells which operation a request is for. target is the path as on the request line (escaped), a query may follow.
func (s *Spec) Find(method, target string) (Operation, bool) {
	if s == nil {
		return Operation{}, false
	}
	path, _, _ := strings.Cut(target, "?")
	if r := s.route(method, path); r != nil {
		return r.Operation, true
	}
	return Operation{}, false
}

func (s *Spec) route(method, path string) *specRoute {
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if r := s.match(method, strings.Split(path, "/")); r != nil {
		return r
	}
	// Spec: GET and PUT …/state/{eventType}/{stateKey}: the slash before an empty state key is optional.
	if r := s.match(method, strings.Split(path+"/", "/")); r != nil && strings.HasSuffix(r.Path, "/{stateKey}") {
		return r
	}
	return nil
}

func (s *Spec) match(method string, segments []string) *specRoute {
next:
	for _, r := range s.routes[len(segments)] {
		if r.Method != method {
			continue
		}
		for i, want := range r.segments {
			if isParam(want) {
				if segments[i] == "" && want != "{stateKey}" {
					continue next
				}
			} else if segments[i] != want {
				continue next
			}
		}
		return r
	}
	return nil
}

// schemaAt compiles the schema at a location, once.
func (s *Spec) schemaAt(location string) (*jsonschema.Schema, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.schemas[location]
	if !ok {
		c = &compiledSchema{}
		c.schema, c.err = s.compiler.Compile(location)
		s.schemas[location] = c
	}
	if c.err != nil {
		return nil, fmt.Errorf("compile the specification's schema: %w", c.err)
	}
	return c.schema, nil
}

// Check tells what in a response is not as the specification has it; nil when all is well. target is the path as on the
// request line (escaped), a query may follow. Bodies that are no JSON are checked for their type only.
func (s *Spec) Check(method, target string, status int, header http.Header, body []byte) error {
	if s == nil || method == http.MethodOptions {
		return nil
	}
	path, rawQuery, _ := strings.Cut(target, "?")
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		query = url.Values{}
	}
	r := s.route(method, path)
	if err := s.check(r, path, query, status, header, body, method == http.MethodHead); err != nil {
		return fmt.Errorf("%s %s answers %d: %w", method, path, status, err)
	}
	return nil
}

func (s *Spec) check(r *specRoute, path string, query url.Values, status int, header http.Header, body []byte, head bool) error {
	if r == nil {
		return s.checkUnknown(path, status, header, body, head)
	}
	want, listed := r.responses[status]
	if _, allowed := specAllowed.statuses[status]; allowed && !listed {
		want, listed = specResponse{types: r.responses[http.StatusOK].types}, true
		if status == http.StatusNotModified {
			return nil
		}
	}
	switch {
	case status >= 400:
		if head {
			return nil
		}
		return s.checkError(want, status, header, body)
	case !listed:
		return fmt.Errorf("%s lists no such status", r.OperationID)
	case len(want.types) == 0 || head:
		return nil
	}
	got, err := mediaType(header)
	if err != nil {
		return err
	}
	if got != "application/json" || want.schema == "" {
		// Downloads are listed as application/octet-stream and come with the type that was uploaded.
		if !slices.Contains(want.types, got) && !slices.Contains(want.types, "application/octet-stream") {
			return fmt.Errorf("content type %q, want one of %q", got, want.types)
		}
		return nil
	}
	if right, ok := specAllowed.bodies[r.OperationID]; ok && status == http.StatusOK && right == string(body) {
		return nil
	}
	location := want.schema
	if alternative := specAllowed.alternatives[r.OperationID]; alternative != nil && status == http.StatusOK {
		location += pointer("oneOf", strconv.Itoa(alternative(query)))
	}
	return s.checkBody(location, body)
}

// checkUnknown is for paths that the specification does not have: unstable ones may answer as they like, stable ones
// may only refuse.
func (s *Spec) checkUnknown(path string, status int, header http.Header, body []byte, head bool) error {
	if !strings.HasPrefix(path, "/_matrix/client/") && !strings.HasPrefix(path, "/_matrix/media/") {
		return nil
	}
	if status >= 400 {
		if head {
			return nil
		}
		return s.checkError(specResponse{}, status, header, body)
	}
	for _, prefix := range []string{"/_matrix/client/v1/", "/_matrix/client/v3/", "/_matrix/media/v1/", "/_matrix/media/v3/"} {
		if strings.HasPrefix(path, prefix) {
			return errors.New("the specification has no such endpoint")
		}
	}
	return nil
}

// checkError checks a failure against the schema that the operation lists for it and against the standard error response.
func (s *Spec) checkError(want specResponse, status int, header http.Header, body []byte) error {
	got, err := mediaType(header)
	if err != nil {
		return err
	}
	if got != "application/json" {
		return fmt.Errorf("content type %q, want application/json for an error", got)
	}
	standard := s.checkStandardError(body)
	if want.schema == "" {
		// Not every operation that uses user-interactive authentication lists its 401.
		if status == http.StatusUnauthorized && standard != nil && s.checkBody(s.uia, body) == nil {
			return nil
		}
		return standard
	}
	listed := s.checkBody(want.schema, body)
	if status == http.StatusUnauthorized {
		// 401 is listed for the stages of user-interactive authentication, which carry flows and may have no
		// errcode; a request without a valid token gets the standard error at the same endpoints.
		if listed == nil || standard == nil {
			return nil
		}
		return listed
	}
	return errors.Join(listed, standard)
}

// checkStandardError is the specification's "standard error response": its schema, and both members as non-empty strings.
func (s *Spec) checkStandardError(body []byte) error {
	if err := s.checkBody(s.stdError, body); err != nil {
		return err
	}
	var e struct {
		Code    string `json:"errcode"`
		Message string `json:"error"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return err
	}
	if e.Code == "" || strings.ToUpper(e.Code) != e.Code {
		return fmt.Errorf("errcode %q is none", e.Code)
	}
	if e.Message == "" {
		return errors.New("no error message for people beside the errcode")
	}
	return nil
}

func (s *Spec) checkBody(location string, body []byte) error {
	schema, err := s.schemaAt(location)
	if err != nil {
		return err
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return fmt.Errorf("body is no strict JSON: %w", err)
	}
	if err := schema.Validate(v); err != nil {
		return err
	}
	return nil
}

func mediaType(header http.Header) (string, error) {
	t, _, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil {
		return "", fmt.Errorf("content type %q: %w", header.Get("Content-Type"), err)
	}
	return t, nil
}
