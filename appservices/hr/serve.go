package hr

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/web"
)

const (
	base        = "/scim/v2"
	contentType = "application/scim+json"
	listURN     = "urn:ietf:params:scim:api:messages:2.0:ListResponse"
	maxResults  = 1000
	usualCount  = 100
)

// Routes are the endpoints of SCIM and of announcements.
func (h *HR) Routes() []web.Route {
	var out []web.Route
	add := func(pattern string, fn func(w http.ResponseWriter, r *http.Request) error) {
		out = append(out, web.Route{Pattern: pattern, Auth: web.Public, Handler: h.guarded(fn)})
	}
	for _, e := range []struct {
		k *kind
		r resources
	}{{users, h.users()}, {groups, h.groups()}} {
		at := base + e.k.path
		add("GET "+at, func(w http.ResponseWriter, r *http.Request) error { return h.list(w, r, e.k, e.r, fromQuery(r)) })
		add("POST "+at, func(w http.ResponseWriter, r *http.Request) error { return h.create(w, r, e.k, e.r) })
		add("POST "+at+"/.search", func(w http.ResponseWriter, r *http.Request) error { return h.search(w, r, e.k, e.r) })
		add("GET "+at+"/{id}", func(w http.ResponseWriter, r *http.Request) error { return h.get(w, r, e.k, e.r) })
		add("PUT "+at+"/{id}", func(w http.ResponseWriter, r *http.Request) error { return h.put(w, r, e.k, e.r) })
		add("PATCH "+at+"/{id}", func(w http.ResponseWriter, r *http.Request) error { return h.patch(w, r, e.k, e.r) })
		add("DELETE "+at+"/{id}", func(w http.ResponseWriter, r *http.Request) error { return h.delete(w, r, e.r) })
	}
	add("GET "+base+"/ServiceProviderConfig", h.serviceProviderConfig)
	add("GET "+base+"/Schemas", h.schemas)
	add("GET "+base+"/Schemas/{id}", h.schema)
	add("GET "+base+"/ResourceTypes", h.resourceTypes)
	add("GET "+base+"/ResourceTypes/{id}", h.resourceType)
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		for _, at := range []string{"/ServiceProviderConfig", "/Schemas", "/ResourceTypes"} {
			add(method+" "+base+at, func(http.ResponseWriter, *http.Request) error {
				return &scimError{status: http.StatusMethodNotAllowed, detail: "this can only be read"}
			})
		}
	}
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		add(method+" "+base+"/Me", func(http.ResponseWriter, *http.Request) error {
			return &scimError{status: http.StatusNotImplemented, detail: "a token belongs to a system, not to a person"}
		})
		add(method+" "+base+"/{rest...}", func(_ http.ResponseWriter, r *http.Request) error {
			return &scimError{status: http.StatusNotFound, detail: "there is nothing at " + r.URL.Path}
		})
	}
	add("POST "+base+"/.search", func(http.ResponseWriter, *http.Request) error {
		return &scimError{status: http.StatusNotImplemented, detail: "users and groups are searched apart: POST /Users/.search, POST /Groups/.search"}
	})
	add("POST "+announcements, h.announce)
	add("GET "+announcements+"/{id}", h.announcement)
	return out
}

// guarded lets HR systems alone call an endpoint, and puts refusals into the form of SCIM.
func (h *HR) guarded(fn func(w http.ResponseWriter, r *http.Request) error) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		ctx, err := h.authenticate(r)
		if err == nil {
			err = fn(w, r.WithContext(ctx))
		}
		if err == nil {
			return nil
		}
		e := asSCIM(err)
		if e == nil {
			return err
		}
		if e.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", "Bearer")
		}
		if e.after > 0 {
			w.Header().Set("Retry-After", strconv.FormatInt(int64((e.after+time.Second-1)/time.Second), 10))
		}
		return write(w, e.status, e.body())
	}
}

func write(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(status)
	_, err = w.Write(b)
	return err
}

func readObject(r *http.Request) (map[string]any, error) {
	raw, err := web.ReadRawObject(r)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, json.Unmarshal(raw, &out)
}

// resource is one resource as it is stored.
type resource struct {
	id                string
	version           int64
	created, modified int64
	attrs             object
}

func (res *resource) etag() string { return `W/"` + strconv.FormatInt(res.version, 10) + `"` }

// resources is how the resources of a kind are kept.
type resources interface {
	get(ctx context.Context, id string) (*resource, error)
	// list gives the resources that a filter may match, in the order in which they came. All of them: a filter or an order is to be
	// applied to them; else those of the page and the number of all.
	list(ctx context.Context, f *filter, all bool, offset, limit int64, members bool) ([]*resource, int64, error)
	create(ctx context.Context, o object) (*resource, error)
	// write replaces a resource that has a version; 412 if it has another one by now.
	write(ctx context.Context, id string, o object, before int64) (*resource, error)
	// remove deletes a resource that has a version (0: any).
	remove(ctx context.Context, id string, version int64) error
}

// show is a resource as a client asked for it.
func (h *HR) show(k *kind, res *resource, q query) object {
	o := clone(res.attrs).(object)
	schemas := []any{k.core.ID}
	for _, e := range k.extensions {
		if o[e.ID] != nil {
			schemas = append(schemas, e.ID)
		}
	}
	o = k.project(o, q)
	o["schemas"], o["id"] = schemas, res.id
	if q.wants("meta", "default") {
		o["meta"] = object{
			"resourceType": k.name, "created": formatTime(res.created), "lastModified": formatTime(res.modified),
			"location": h.location(k, res.id), "version": res.etag(),
		}
	}
	return o
}

func (h *HR) location(k *kind, resourceID string) string {
	return h.d.PublicURL + base + k.path + "/" + resourceID
}

func (h *HR) answer(w http.ResponseWriter, r *http.Request, k *kind, status int, res *resource) error {
	w.Header().Set("ETag", res.etag())
	w.Header().Set("Location", h.location(k, res.id))
	return write(w, status, h.show(k, res, fromQuery(r)))
}

func (h *HR) get(w http.ResponseWriter, r *http.Request, k *kind, rs resources) error {
	res, err := rs.get(r.Context(), web.PathParam(r, "id"))
	if err != nil {
		return err
	}
	if match := r.Header.Get("If-None-Match"); match != "" && matchesTag(match, res) {
		w.Header().Set("ETag", res.etag())
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	return h.answer(w, r, k, http.StatusOK, res)
}

func matchesTag(header string, res *resource) bool {
	for tag := range strings.SplitSeq(header, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == strings.TrimPrefix(res.etag(), "W/") {
			return true
		}
	}
	return false
}

func (h *HR) create(w http.ResponseWriter, r *http.Request, k *kind, rs resources) error {
	in, err := readObject(r)
	if err != nil {
		return err
	}
	o, err := k.complete(in)
	if err != nil {
		return err
	}
	res, err := rs.create(r.Context(), o)
	if err != nil {
		return err
	}
	return h.answer(w, r, k, http.StatusCreated, res)
}

// complete checks a whole resource.
func (k *kind) complete(in map[string]any) (object, error) {
	schemas, _ := fold(in, "schemas").([]any)
	for _, s := range schemas {
		if urn, ok := s.(string); !ok || !strings.EqualFold(urn, k.core.ID) && k.extension(urn) == nil && strings.HasPrefix(strings.ToLower(urn), "urn:ietf:params:scim:schemas:core:") {
			return nil, bad(invalidSyntax, "a %s is not of the schema %v", k.name, s)
		}
	}
	o, err := k.normal(in)
	if err != nil {
		return nil, err
	}
	if name := k.missing(o); name != "" {
		return nil, bad(invalidValue, "%s is required", name)
	}
	return o, nil
}

const changeTries = 6

// change writes a resource on top of what is there. A change that comes between is built upon, unless the client named
// the version that it knows. Spec: RFC 7644, section 3.14.
func (h *HR) change(w http.ResponseWriter, r *http.Request, k *kind, rs resources, fn func(now object) (object, error)) error {
	ctx, resourceID, match := r.Context(), web.PathParam(r, "id"), r.Header.Get("If-Match")
	for try := 1; ; try++ {
		res, err := rs.get(ctx, resourceID)
		if err != nil {
			return err
		}
		if match != "" && !matchesTag(match, res) {
			return stale()
		}
		o, err := fn(clone(res.attrs).(object))
		if err != nil {
			return err
		}
		if same(o, res.attrs) {
			return h.answer(w, r, k, http.StatusOK, res)
		}
		res, err = rs.write(ctx, resourceID, o, res.version)
		if e := asSCIM(err); e != nil && e.status == http.StatusPreconditionFailed && match == "" && try < changeTries {
			continue
		}
		if err != nil {
			return err
		}
		return h.answer(w, r, k, http.StatusOK, res)
	}
}

func (h *HR) put(w http.ResponseWriter, r *http.Request, k *kind, rs resources) error {
	in, err := readObject(r)
	if err != nil {
		return err
	}
	o, err := k.complete(in)
	if err != nil {
		return err
	}
	return h.change(w, r, k, rs, func(now object) (object, error) {
		// what clients cannot write stays
		for _, a := range k.core.Attributes {
			if v := now[a.Name]; v != nil && a.Mutability == "readOnly" {
				o[a.Name] = v
			}
		}
		return o, nil
	})
}

func (h *HR) patch(w http.ResponseWriter, r *http.Request, k *kind, rs resources) error {
	in, err := readObject(r)
	if err != nil {
		return err
	}
	list, _ := fold(in, "schemas").([]any)
	if !slices.ContainsFunc(list, func(v any) bool { s, ok := v.(string); return ok && strings.EqualFold(s, patchURN) }) {
		return bad(invalidSyntax, "schemas must hold %s", patchURN)
	}
	return h.change(w, r, k, rs, func(now object) (object, error) { return now, k.patch(now, in) })
}

func (h *HR) delete(w http.ResponseWriter, r *http.Request, rs resources) error {
	version := int64(0)
	if match := r.Header.Get("If-Match"); match != "" {
		res, err := rs.get(r.Context(), web.PathParam(r, "id"))
		if err != nil {
			return err
		}
		if !matchesTag(match, res) {
			return stale()
		}
		version = res.version
	}
	if err := rs.remove(r.Context(), web.PathParam(r, "id"), version); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// query is what a client wants to see.
type query struct {
	attributes, excluded []string
	filter               string
	sortBy               string
	descending           bool
	start, count         int64
	err                  error
}

func fromQuery(r *http.Request) query {
	v := r.URL.Query()
	q := query{filter: v.Get("filter"), sortBy: v.Get("sortBy"), descending: strings.EqualFold(v.Get("sortOrder"), "descending"), start: 1, count: usualCount}
	q.attributes, q.excluded = split(v["attributes"]), split(v["excludedAttributes"])
	for name, into := range map[string]*int64{"startIndex": &q.start, "count": &q.count} {
		if s := v.Get(name); s != "" {
			n, err := strconv.ParseInt(s, 10, 32)
			if err != nil {
				q.err = bad(invalidValue, "%s must be a whole number", name)
			}
			*into = n
		}
	}
	return q.bounded()
}

func (q query) bounded() query {
	q.start = max(q.start, 1)
	q.count = min(max(q.count, 0), maxResults)
	return q
}

func split(lists []string) []string {
	var out []string
	for _, l := range lists {
		for s := range strings.SplitSeq(l, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

// search handles POST …/.search. Spec: RFC 7644, section 3.4.3.
func (h *HR) search(w http.ResponseWriter, r *http.Request, k *kind, rs resources) error {
	in, err := readObject(r)
	if err != nil {
		return err
	}
	names := func(name string) []string {
		list, _ := fold(in, name).([]any)
		var out []string
		for _, v := range list {
			out = append(out, fmt.Sprint(v))
		}
		return split(out)
	}
	q := query{start: 1, count: usualCount, attributes: names("attributes"), excluded: names("excludedAttributes")}
	q.filter, _ = fold(in, "filter").(string)
	q.sortBy, _ = fold(in, "sortBy").(string)
	order, _ := fold(in, "sortOrder").(string)
	q.descending = strings.EqualFold(order, "descending")
	if n, ok := fold(in, "startIndex").(float64); ok {
		q.start = int64(n)
	}
	if n, ok := fold(in, "count").(float64); ok {
		q.count = int64(n)
	}
	return h.list(w, r, k, rs, q.bounded())
}

func (h *HR) list(w http.ResponseWriter, r *http.Request, k *kind, rs resources, q query) error {
	if q.err != nil {
		return q.err
	}
	var f *filter
	var order path
	var err error
	if q.filter != "" {
		if f, err = k.parseFilter(q.filter); err != nil {
			return err
		}
	}
	if q.sortBy != "" {
		if order, err = k.parsePath(q.sortBy); err != nil || order.attr == "" {
			return bad(invalidPath, "sortBy must name an attribute")
		}
	}
	all := f != nil || q.sortBy != ""
	members := q.wants("members", "default") || f != nil
	list, total, err := rs.list(r.Context(), f, all, q.start-1, q.count, members)
	if err != nil {
		return err
	}
	if all {
		if f != nil {
			list = slices.DeleteFunc(list, func(res *resource) bool { return !f.matches(k, h.whole(k, res)) })
		}
		if q.sortBy != "" {
			h.sort(k, list, order, q.descending)
		}
		total = int64(len(list))
		list = list[min(q.start-1, total):min(q.start-1+q.count, total)]
	}
	out := make([]object, len(list))
	for i, res := range list {
		out[i] = h.show(k, res, q)
	}
	return write(w, http.StatusOK, object{
		"schemas": []string{listURN}, "totalResults": total, "startIndex": q.start, "itemsPerPage": len(out), "Resources": out,
	})
}

// whole is a resource with all that filters can ask for.
func (h *HR) whole(k *kind, res *resource) object {
	o := make(object, len(res.attrs)+2)
	maps.Copy(o, res.attrs)
	o["id"] = res.id
	o["meta"] = object{
		"resourceType": k.name, "created": formatTime(res.created), "lastModified": formatTime(res.modified),
		"location": h.location(k, res.id), "version": res.etag(),
	}
	return o
}

// sort orders by the first value of an attribute; who has none comes last. Spec: RFC 7644, section 3.4.2.3.
func (h *HR) sort(k *kind, list []*resource, by path, descending bool) {
	key := func(res *resource) (string, bool) {
		values, a := k.values(h.whole(k, res), by)
		if len(values) == 0 {
			return "", false
		}
		v := values[0]
		if m, ok := v.(object); ok {
			v = m["value"]
		}
		s := fmt.Sprint(v)
		if a == nil || !a.CaseExact {
			s = strings.ToLower(s)
		}
		return s, true
	}
	slices.SortStableFunc(list, func(x, y *resource) int {
		a, hasA := key(x)
		b, hasB := key(y)
		c := strings.Compare(a, b)
		switch {
		case hasA != hasB && hasA:
			c = -1
		case hasA != hasB:
			c = 1
		}
		if descending {
			c = -c
		}
		return c
	})
}

// wants tells whether a top-level attribute is to be shown.
func (q query) wants(name, returned string) bool {
	switch {
	case returned == "always":
		return true
	case returned == "never":
		return false
	case len(q.attributes) > 0:
		return slices.ContainsFunc(q.attributes, func(s string) bool { return strings.EqualFold(first(s), name) })
	case slices.ContainsFunc(q.excluded, func(s string) bool { return strings.EqualFold(s, name) }):
		return false
	}
	return returned != "request"
}

// first is an attribute's name without the part behind it and without the core schema before it.
func first(s string) string {
	for _, urn := range []string{userURN, groupURN} {
		if len(s) > len(urn) && strings.EqualFold(s[:len(urn)+1], urn+":") {
			s = s[len(urn)+1:]
		}
	}
	if strings.HasPrefix(strings.ToLower(s), "urn:") {
		return s
	}
	name, _, _ := strings.Cut(s, ".")
	return name
}

// project leaves those attributes that a client wants. Spec: RFC 7644, section 3.9.
func (k *kind) project(o object, q query) object {
	if len(q.attributes) == 0 && len(q.excluded) == 0 {
		return o
	}
	out := object{}
	for name, v := range o {
		if ext := k.extension(name); ext != nil {
			if part, ok := v.(object); ok {
				if p := projectExtension(ext, part, q); len(p) > 0 {
					out[name] = p
				}
			}
			continue
		}
		a := k.attr(name)
		if a == nil || !q.wants(name, a.Returned) {
			continue
		}
		out[name] = projectParts(a, v, q)
	}
	return out
}

func projectExtension(ext *schema, part object, q query) object {
	listed := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(s string) bool {
			return strings.EqualFold(s, ext.ID) || strings.EqualFold(s, ext.ID+":"+name) ||
				len(s) > len(ext.ID)+len(name)+1 && strings.EqualFold(s[:len(ext.ID)+len(name)+2], ext.ID+":"+name+".")
		})
	}
	out := object{}
	for name, v := range part {
		if len(q.attributes) > 0 && !listed(q.attributes, name) || len(q.attributes) == 0 && listed(q.excluded, name) {
			continue
		}
		out[name] = v
	}
	return out
}

// projectParts leaves parts of a complex attribute where the client named parts.
func projectParts(a *attr, v any, q query) any {
	if a.Type != "complex" {
		return v
	}
	parts := func(list []string) (out []string) {
		for _, s := range list {
			if name, sub, ok := strings.Cut(strings.TrimPrefix(s, userURN+":"), "."); ok && strings.EqualFold(name, a.Name) {
				out = append(out, strings.ToLower(sub))
			}
		}
		return out
	}
	keep, drop := parts(q.attributes), parts(q.excluded)
	whole := slices.ContainsFunc(q.attributes, func(s string) bool { return strings.EqualFold(strings.TrimPrefix(s, userURN+":"), a.Name) })
	if len(keep) == 0 && len(drop) == 0 || whole {
		return v
	}
	one := func(v any) any {
		m, ok := v.(object)
		if !ok {
			return v
		}
		out := object{}
		for name, x := range m {
			if len(keep) > 0 && !slices.Contains(keep, strings.ToLower(name)) || slices.Contains(drop, strings.ToLower(name)) {
				continue
			}
			out[name] = x
		}
		return out
	}
	if list, ok := v.([]any); ok {
		out := make([]any, len(list))
		for i, x := range list {
			out[i] = one(x)
		}
		return out
	}
	return one(v)
}
