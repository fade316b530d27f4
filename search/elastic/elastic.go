// Package elastic keeps the search index in a cluster of Elasticsearch 8 or OpenSearch. It uses only what both have in their
// smallest builds: documents come ready as tokens, so that no analyzer of the cluster is needed, and there are no scripts.
package elastic

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/elastic/elastic-transport-go/v8/elastictransport"
	"github.com/elastic/go-elasticsearch/v8/esapi"

	"github.com/moothall/moothall/search"
)

// Config says where the cluster is.
type Config struct {
	URLs               []string // one or more nodes
	APIKey             string
	Username, Password string
	CA                 []byte // certificates in PEM form that are trusted beside the system's
	Prefix             string // of the names of all indices
	Shards, Replicas   int
}

// Index is the engine. Every generation is an index; the alias with the prefix as its name is the served one.
type Index struct {
	cfg Config
	es  *elastictransport.Client
}

// New makes the engine; nothing is asked of the cluster yet.
func New(cfg Config) (*Index, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	t.ResponseHeaderTimeout = time.Minute
	t.Proxy = nil // the cluster is part of the server
	if len(cfg.CA) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(cfg.CA) {
			return nil, errors.New("the certificates of the search cluster are not in PEM form")
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	var nodes []*url.URL
	for _, s := range cfg.URLs {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("the address of the search cluster: %w", err)
		}
		nodes = append(nodes, u)
	}
	options := []elastictransport.Option{
		elastictransport.WithURLs(nodes...), elastictransport.WithUserAgent("moothall"), elastictransport.WithTransport(portable{t}),
		elastictransport.WithRetry(max(3, len(nodes)), 502, 503, 504),
		elastictransport.WithRetryOnError(func(r *http.Request, _ error) bool { return r.Context().Err() == nil }),
		elastictransport.WithRetryBackoff(func(attempt int) time.Duration { return time.Duration(attempt) * 100 * time.Millisecond }),
	}
	switch {
	case cfg.APIKey != "":
		options = append(options, elastictransport.WithAPIKey(cfg.APIKey))
	case cfg.Username != "":
		options = append(options, elastictransport.WithBasicAuth(cfg.Username, cfg.Password))
	}
	es, err := elastictransport.NewClient(options...)
	if err != nil {
		return nil, fmt.Errorf("the client of the search cluster: %w", err)
	}
	return &Index{cfg: cfg, es: es}, nil
}

// portable makes requests that Elasticsearch and OpenSearch understand alike: plain JSON without a word on versions.
type portable struct{ next http.RoundTripper }

func (p portable) RoundTrip(r *http.Request) (*http.Response, error) {
	for _, h := range []string{"Accept", "Content-Type"} {
		if v := r.Header.Get(h); strings.Contains(v, "elasticsearch") {
			r.Header.Set(h, map[bool]string{true: "application/x-ndjson", false: "application/json"}[strings.Contains(v, "ndjson")])
		}
	}
	r.Header.Del("X-Elastic-Client-Meta")
	return p.next.RoundTrip(r)
}

// Name is the engine's name.
func (x *Index) Name() string { return "elasticsearch" }

// Open does nothing: the cluster is there or not whenever it is asked.
func (x *Index) Open(context.Context) error { return nil }

// Close lets go of idle connections.
func (x *Index) Close() error { return x.es.Close(context.Background()) }

const stateID = "moothall:state"

// failure is an error that the cluster answered with.
type failure struct {
	status int
	kind   string
	text   string
}

func (f *failure) Error() string {
	return fmt.Sprintf("the search cluster answers %d %s: %s", f.status, f.kind, f.text)
}

// Is lets a missing index count as a generation that is gone.
func (f *failure) Is(target error) bool {
	return target == search.ErrGone && (f.kind == "index_not_found_exception" || f.kind == "alias_not_found_exception")
}

// doer is any request of package esapi.
type doer interface {
	Do(ctx context.Context, t esapi.Transport) (*esapi.Response, error)
}

// do makes a request and reads its JSON answer into out, if there is an out.
func (x *Index) do(ctx context.Context, r doer, out any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	resp, err := r.Do(ctx, x.es)
	if err != nil {
		return fmt.Errorf("ask the search cluster: %w", err)
	}
	defer resp.Body.Close()
	if resp.IsError() {
		return readFailure(resp)
	}
	if out == nil {
		_, err := io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("read the search cluster's answer: %w", err)
	}
	return nil
}

func readFailure(resp *esapi.Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read the search cluster's answer: %w", err)
	}
	f := &failure{status: resp.StatusCode}
	var body struct {
		Error json.RawMessage `json:"error"`
	}
	var reason struct {
		Type   string `json:"type"`
		Reason string `json:"reason"`
	}
	if json.Unmarshal(raw, &body) == nil && json.Unmarshal(body.Error, &reason) == nil {
		f.kind, f.text = reason.Type, reason.Reason
	}
	if len(f.text) > 300 {
		f.text = f.text[:300]
	}
	return f
}

func isStatus(err error, status int) bool {
	var f *failure
	return errors.As(err, &f) && f.status == status
}

// indexOf is the name of a generation's index; aliasOf is the name under which it is written, so that a write never makes
// an index by itself.
func (x *Index) indexOf(generation string) string { return x.cfg.Prefix + "-" + generation }
func (x *Index) aliasOf(generation string) string { return x.cfg.Prefix + "-write-" + generation }

// Generations lists the indices with the prefix.
func (x *Index) Generations(ctx context.Context) ([]search.Generation, error) {
	var list map[string]struct {
		Aliases map[string]any `json:"aliases"`
	}
	err := x.do(ctx, esapi.IndicesGetAliasRequest{Index: []string{x.indexOf("gen-*")}}, &list)
	if isStatus(err, http.StatusNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []search.Generation
	for name, i := range list {
		g := search.Generation{Name: strings.TrimPrefix(name, x.cfg.Prefix+"-")}
		_, g.Served = i.Aliases[x.cfg.Prefix]
		if _, ours := i.Aliases[x.aliasOf(g.Name)]; !ours {
			continue
		}
		var doc struct {
			Source struct {
				State json.RawMessage `json:"state"`
			} `json:"_source"`
		}
		err := x.do(ctx, esapi.GetRequest{Index: name, DocumentID: stateID}, &doc)
		if err != nil && !isStatus(err, http.StatusNotFound) {
			return nil, err
		}
		g.State, _ = search.ParseState(doc.Source.State)
		g.Kept = g.State.Pos
		out = append(out, g)
	}
	return out, nil
}

const (
	refreshServed = "400ms" // what is said is found within a second
	refreshBuilt  = "30s"
)

// Create makes an index.
func (x *Index) Create(ctx context.Context, generation string, served bool, state search.State) error {
	plain := map[string]any{"type": "keyword", "doc_values": false}
	valued := map[string]any{"type": "keyword"}
	aliases := map[string]any{x.aliasOf(generation): map[string]any{}}
	refresh := refreshBuilt
	if served {
		aliases[x.cfg.Prefix], refresh = map[string]any{}, refreshServed
	}
	body := map[string]any{
		"settings": map[string]any{"index": map[string]any{
			"number_of_shards": x.cfg.Shards, "number_of_replicas": x.cfg.Replicas, "refresh_interval": refresh,
		}},
		"aliases": aliases,
		"mappings": map[string]any{
			"dynamic": false,
			"_source": map[string]any{"excludes": []string{search.FieldGram, search.FieldWord}},
			"properties": map[string]any{
				search.FieldGram: plain, search.FieldWord: plain, fieldFlag: plain, fieldType: plain,
				search.FacetRoom: valued, search.FacetSender: valued, search.FacetKind: valued,
				search.FacetDay: map[string]any{"type": "integer"}, fieldTS: map[string]any{"type": "long"}, fieldNID: map[string]any{"type": "long"},
				"state": map[string]any{"type": "object", "enabled": false},
			},
		},
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return err
	}
	if err := x.do(ctx, esapi.IndicesCreateRequest{Index: x.indexOf(generation), Body: bytes.NewReader(raw)}, nil); err != nil {
		return err
	}
	return x.saveState(ctx, generation, state)
}

// saveState writes the state of a generation, after all that it speaks of.
func (x *Index) saveState(ctx context.Context, generation string, state search.State) error {
	alias := true
	return x.do(ctx, esapi.IndexRequest{
		Index: x.aliasOf(generation), DocumentID: stateID, RequireAlias: &alias, Body: strings.NewReader(`{"state":` + string(state.Marshal()) + `}`),
	}, nil)
}

// Serve moves the alias to a generation in one step.
func (x *Index) Serve(ctx context.Context, generation string) error {
	settings := `{"index":{"refresh_interval":"` + refreshServed + `"}}`
	err := x.do(ctx, esapi.IndicesPutSettingsRequest{Index: []string{x.indexOf(generation)}, Body: strings.NewReader(settings)}, nil)
	if err != nil {
		return err
	}
	if err := x.do(ctx, esapi.IndicesRefreshRequest{Index: []string{x.indexOf(generation)}}, nil); err != nil {
		return err
	}
	gens, err := x.Generations(ctx)
	if err != nil {
		return err
	}
	var actions []any
	for _, g := range gens {
		if g.Served && g.Name != generation {
			actions = append(actions, map[string]any{"remove": map[string]any{"index": x.indexOf(g.Name), "alias": x.cfg.Prefix}})
		}
	}
	actions = append(actions, map[string]any{"add": map[string]any{"index": x.indexOf(generation), "alias": x.cfg.Prefix}})
	raw, err := json.Marshal(map[string]any{"actions": actions})
	if err != nil {
		return err
	}
	return x.do(ctx, esapi.IndicesUpdateAliasesRequest{Body: bytes.NewReader(raw)}, nil)
}

// Drop removes an index.
func (x *Index) Drop(ctx context.Context, generation string) error {
	err := x.do(ctx, esapi.IndicesDeleteRequest{Index: []string{x.indexOf(generation)}}, nil)
	if errors.Is(err, search.ErrGone) {
		return nil
	}
	return err
}

// Size counts the documents of the served generation and their bytes.
func (x *Index) Size(ctx context.Context) (docs, size int64, err error) {
	var out struct {
		All struct {
			Primaries struct {
				Docs  struct{ Count int64 }
				Store struct {
					Size int64 `json:"size_in_bytes"`
				}
			}
		} `json:"_all"`
	}
	err = x.do(ctx, esapi.IndicesStatsRequest{Index: []string{x.cfg.Prefix}, Metric: []string{"docs", "store"}}, &out)
	if errors.Is(err, search.ErrGone) {
		err = search.ErrNotServed
	}
	return max(out.All.Primaries.Docs.Count-1, 0), out.All.Primaries.Store.Size, err
}

const maxBulk = 4 << 20 // bytes of one bulk request, roughly

// Write sends documents in bulk and then the new state. A document with a newer version stays.
func (x *Index) Write(ctx context.Context, generation string, b *search.Batch, state search.State) error {
	w := &bulk{x: x, alias: x.aliasOf(generation)}
	version := b.Version
	if version == 0 {
		version = math.MaxInt64 - 1
	}
	for _, id := range b.Delete {
		if err := w.add(ctx, "delete", id, version, nil); err != nil {
			return err
		}
	}
	for i := range b.Docs {
		if err := w.add(ctx, "index", b.Docs[i].ID, b.Docs[i].Version, source(&b.Docs[i])); err != nil {
			return err
		}
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	return x.saveState(ctx, generation, state)
}

// source is a document as the cluster gets it.
func source(d *search.Doc) map[string]any {
	tokens := d.Tokens()
	flags := make([]string, 0, len(d.Views)+len(d.Flags))
	for _, v := range d.Views {
		flags = append(flags, ":"+v)
	}
	return map[string]any{
		search.FieldGram: tokens.Grams, search.FieldWord: tokens.Words, search.FacetRoom: strconv.FormatInt(d.Room, 10),
		search.FacetSender: string(d.Sender), search.FacetKind: d.Kind, search.FacetDay: search.Day(d.TS),
		fieldType: d.Type, fieldFlag: append(flags, d.Flags...), fieldTS: d.TS, fieldNID: d.NID,
	}
}

// bulk is a bulk request that is sent whenever it is large enough.
type bulk struct {
	x     *Index
	alias string
	body  bytes.Buffer
	n     int
}

func (w *bulk) add(ctx context.Context, action, id string, version int64, doc any) error {
	head := map[string]any{action: map[string]any{"_id": id, "version": version, "version_type": "external_gte"}}
	for _, v := range []any{head, doc} {
		if v == nil {
			continue
		}
		raw, err := json.Marshal(v)
		if err != nil {
			return err
		}
		w.body.Write(raw)
		w.body.WriteByte('\n')
	}
	w.n++
	if w.body.Len() < maxBulk {
		return nil
	}
	return w.flush(ctx)
}

// flush sends what is there. A cluster that is busy is asked again, more and more slowly.
func (w *bulk) flush(ctx context.Context) error {
	if w.n == 0 {
		return nil
	}
	wait := 200 * time.Millisecond
	for {
		busy, err := w.send(ctx)
		if err == nil && !busy {
			w.body.Reset()
			w.n = 0
			return nil
		}
		if err != nil && !isStatus(err, http.StatusTooManyRequests) {
			return err
		}
		if wait > 10*time.Second {
			return errors.New("the search cluster is too busy to take documents")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
			wait *= 2
		}
	}
}

// send makes the request once; busy tells that documents are to be sent again.
func (w *bulk) send(ctx context.Context) (busy bool, err error) {
	alias := true
	var out struct {
		Errors bool `json:"errors"`
		Items  []map[string]struct {
			Status int `json:"status"`
			Error  struct {
				Type   string `json:"type"`
				Reason string `json:"reason"`
			} `json:"error"`
		} `json:"items"`
	}
	req := esapi.BulkRequest{
		Index: w.alias, RequireAlias: &alias, Body: bytes.NewReader(w.body.Bytes()),
		FilterPath: []string{"errors", "items.*.status", "items.*.error.type", "items.*.error.reason"},
	}
	if err := w.x.do(ctx, req, &out); err != nil {
		return false, err
	}
	if !out.Errors {
		return false, nil
	}
	for _, item := range out.Items {
		for _, i := range item {
			switch {
			case i.Status < 300, i.Status == http.StatusConflict: // a newer version is there
			case i.Status == http.StatusNotFound && i.Error.Type == "": // nothing to delete
			case i.Status == http.StatusTooManyRequests, i.Status == http.StatusServiceUnavailable:
				busy = true
			default:
				return false, &failure{status: i.Status, kind: i.Error.Type, text: i.Error.Reason}
			}
		}
	}
	return busy, nil
}

// DeleteRoom removes the documents of a room: it asks for their ids and deletes them in bulk.
func (x *Index) DeleteRoom(ctx context.Context, generation string, room int64) error {
	for {
		if err := x.do(ctx, esapi.IndicesRefreshRequest{Index: []string{x.indexOf(generation)}}, nil); err != nil {
			return err
		}
		page, err := x.search(ctx, x.indexOf(generation), &search.Query{Rooms: []int64{room}, Limit: 2000})
		if err != nil || len(page.Hits) == 0 {
			return err
		}
		w := &bulk{x: x, alias: x.aliasOf(generation)}
		for _, h := range page.Hits {
			if err := w.add(ctx, "delete", h.ID, math.MaxInt64-1, nil); err != nil {
				return err
			}
		}
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
}
