package web

import (
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strings"
)

// maxParams is the most path parameters a pattern may have.
const maxParams = 8

// route is a compiled Route.
type route struct {
	Route
	method string
	path   string
	params []string // names in the order of the path
	cors   bool
}

// node is one segment of the tree of routes. Static segments win over parameters, parameters over the rest of the path.
type node struct {
	static map[string]*node
	param  *node
	leaf   map[string]*route // by method; the path ends here
	rest   map[string]*route // by method; {name...}
}

// parsePattern splits "METHOD /a/{b}" and checks it.
func parsePattern(rt Route) (*route, []string, error) {
	method, path, ok := strings.Cut(rt.Pattern, " ")
	if !ok || method == "" || !strings.HasPrefix(path, "/") {
		return nil, nil, fmt.Errorf("route %q: want \"METHOD /path\"", rt.Pattern)
	}
	if rt.Handler == nil {
		return nil, nil, fmt.Errorf("route %q has no handler", rt.Pattern)
	}
	path = strings.TrimSuffix(path, "{$}")
	segments := strings.Split(path[1:], "/")
	c := &route{Route: rt, method: method, path: path, cors: hasCORS(path)}
	for i, s := range segments {
		last := i == len(segments)-1
		switch {
		case s == "" && !last:
			return nil, nil, fmt.Errorf("route %q has an empty segment", rt.Pattern)
		case strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}"):
			name := s[1 : len(s)-1]
			if base, isRest := strings.CutSuffix(name, "..."); isRest {
				if !last {
					return nil, nil, fmt.Errorf("route %q: {%s} must be the last segment", rt.Pattern, name)
				}
				name = base
			}
			if name == "" {
				return nil, nil, fmt.Errorf("route %q has a parameter without a name", rt.Pattern)
			}
			c.params = append(c.params, name)
		case strings.ContainsAny(s, "{}"):
			return nil, nil, fmt.Errorf("route %q: a parameter must be a whole segment", rt.Pattern)
		}
	}
	if len(c.params) > maxParams {
		return nil, nil, fmt.Errorf("route %q has more than %d parameters", rt.Pattern, maxParams)
	}
	return c, segments, nil
}

// add puts a route into the tree.
func (n *node) add(rt Route) error {
	c, segments, err := parsePattern(rt)
	if err != nil {
		return err
	}
	into := &n.leaf
	for _, s := range segments {
		if strings.HasPrefix(s, "{") {
			if strings.HasSuffix(s, "...}") {
				into = &n.rest
				break
			}
			if n.param == nil {
				n.param = &node{}
			}
			n = n.param
		} else {
			if n.static == nil {
				n.static = map[string]*node{}
			}
			next := n.static[s]
			if next == nil {
				next = &node{}
				n.static[s] = next
			}
			n = next
		}
		into = &n.leaf
	}
	if *into == nil {
		*into = map[string]*route{}
	}
	if other := (*into)[c.method]; other != nil {
		return fmt.Errorf("routes %q and %q are the same", other.Pattern, rt.Pattern)
	}
	(*into)[c.method] = c
	return nil
}

// match is the state of one look-up. It lives on the stack of Mux.ServeHTTP.
type match struct {
	method  string
	escaped bool // segments still have to be decoded
	values  [maxParams]string
	n       int
	route   *route
	allowed map[string]bool // methods of routes with this path, filled only where none fits
}

// find looks a request up. Where RawPath is empty, Path has no encoded slash and can be split as it is; otherwise the
// escaped path is split first and each segment decoded.
func (n *node) find(m *match, u *url.URL) {
	path := u.Path
	if u.RawPath != "" {
		path, m.escaped = u.RawPath, true
	}
	if path == "" || path[0] != '/' {
		return
	}
	if n.walk(m, path[1:], false) || m.allowed != nil {
		return
	}
	// Clients from before version 1.1 of the specification say r0 where v3 stands now, and v1 for media.
	for _, old := range [][2]string{
		{"/_matrix/client/r0/", "_matrix/client/v3/"}, {"/_matrix/media/r0/", "_matrix/media/v3/"}, {"/_matrix/media/v1/", "_matrix/media/v3/"},
	} {
		if rest, ok := strings.CutPrefix(path, old[0]); ok {
			n.walk(m, old[1]+rest, false)
		}
	}
}

// walk descends with the undigested part of the path; done tells that the path has ended.
func (n *node) walk(m *match, path string, done bool) bool {
	if done {
		return m.take(n.leaf)
	}
	raw, rest, more := strings.Cut(path, "/")
	segment, ok := raw, true
	if m.escaped {
		segment, ok = unescape(raw)
	}
	if !ok {
		return false
	}
	if next := n.static[segment]; next != nil && next.walk(m, rest, !more) {
		return true
	}
	if n.param != nil && segment != "" {
		m.values[m.n] = segment
		m.n++
		if n.param.walk(m, rest, !more) {
			return true
		}
		m.n--
	}
	if n.rest != nil {
		whole := path
		if m.escaped {
			if whole, ok = unescape(path); !ok {
				return false
			}
		}
		m.values[m.n] = whole
		m.n++
		if m.take(n.rest) {
			return true
		}
		m.n--
	}
	return false
}

// take chooses by method, and remembers the methods that would have fitted.
func (m *match) take(routes map[string]*route) bool {
	if rt := routes[m.method]; rt != nil {
		m.route = rt
		return true
	}
	if m.method == http.MethodHead {
		if rt := routes[http.MethodGet]; rt != nil {
			m.route = rt
			return true
		}
	}
	if len(routes) > 0 && m.allowed == nil {
		m.allowed = map[string]bool{}
	}
	for method := range routes {
		m.allowed[method] = true
	}
	return false
}

// allowHeader lists the methods of the path for the Allow header of a 405.
func (m *match) allowHeader() string {
	methods := make([]string, 0, len(m.allowed)+1)
	for method := range m.allowed {
		methods = append(methods, method)
	}
	sort.Strings(methods)
	return strings.Join(methods, ", ")
}

func unescape(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, true
	}
	out, err := url.PathUnescape(s)
	return out, err == nil
}
