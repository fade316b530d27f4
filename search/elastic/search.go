package elastic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strconv"

	"github.com/elastic/go-elasticsearch/v8/esapi"

	"github.com/moothall/moothall/search"
)

// The fields of a document beside its tokens and what is counted.
const (
	fieldType = "type"
	fieldFlag = "f" // flags, and views behind a colon
	fieldTS   = "ts"
	fieldNID  = "nid"
)

type object = map[string]any

func term(field string, value any) object          { return object{"term": object{field: value}} }
func terms[T any](field string, values []T) object { return object{"terms": object{field: values}} }

// expr is an expression in the cluster's language; every word of a user is a value in it, never a part of the language.
func expr(x *search.Expr) object {
	list := func(in []search.Expr) []object {
		out := make([]object, len(in))
		for i := range in {
			out[i] = expr(&in[i])
		}
		return out
	}
	switch {
	case x.Token != "":
		return term(x.Field, x.Token)
	case x.Not != nil:
		return object{"bool": object{"must_not": []object{expr(x.Not)}}}
	case x.Any != nil:
		return object{"bool": object{"should": list(x.Any), "minimum_should_match": 1}}
	case x.All != nil:
		return object{"bool": object{"filter": list(x.All)}}
	}
	return object{"match_all": object{}}
}

// query is a whole query.
func query(q *search.Query) object {
	var must, not []object
	if !q.Text.Empty() {
		must = append(must, expr(&q.Text))
	}
	if q.View != "" {
		must = append(must, term(fieldFlag, ":"+q.View))
	}
	for _, f := range q.Flags {
		must = append(must, term(fieldFlag, f))
	}
	if q.Rooms != nil {
		must = append(must, terms(search.FacetRoom, rooms(q.Rooms)))
	}
	for field, values := range map[string][]string{search.FacetSender: q.Senders, search.FacetKind: q.Kinds, fieldType: q.Types} {
		if len(values) > 0 {
			must = append(must, terms(field, values))
		}
	}
	if q.From != 0 || q.To != 0 {
		bounds := object{}
		if q.From != 0 {
			bounds["gte"] = q.From
		}
		if q.To != 0 {
			bounds["lt"] = q.To
		}
		must = append(must, object{"range": object{fieldTS: bounds}})
	}
	for field, values := range map[string][]string{fieldFlag: q.NotFlags, search.FacetSender: q.NotSenders, search.FacetRoom: rooms(q.NotRooms)} {
		if len(values) > 0 {
			not = append(not, terms(field, values))
		}
	}
	if q.View == "" {
		must = append(must, object{"exists": object{"field": fieldNID}}) // all but the state
	}
	b := object{"filter": must}
	if not != nil {
		b["must_not"] = not
	}
	return object{"bool": b}
}

func rooms(nids []int64) []string {
	out := make([]string, len(nids))
	for i, n := range nids {
		out[i] = strconv.FormatInt(n, 10)
	}
	return out
}

const countUpTo = 10_000

// Search answers a query from the served generation.
func (x *Index) Search(ctx context.Context, q *search.Query) (*search.Page, error) {
	page, err := x.search(ctx, x.cfg.Prefix, q)
	if errors.Is(err, search.ErrGone) {
		return nil, search.ErrNotServed
	}
	return page, err
}

type answer struct {
	Hits struct {
		Total struct {
			Value    int64  `json:"value"`
			Relation string `json:"relation"`
		} `json:"total"`
		Hits []struct {
			ID   string  `json:"_id"`
			Sort []int64 `json:"sort"`
		} `json:"hits"`
	} `json:"hits"`
	Facets map[string]struct {
		Buckets []struct {
			Key   any   `json:"key"`
			Count int64 `json:"doc_count"`
		} `json:"buckets"`
	} `json:"aggregations"`
	Shards struct {
		Failed int `json:"failed"`
	} `json:"_shards"`
	TimedOut bool `json:"timed_out"`
}

func (x *Index) search(ctx context.Context, index string, q *search.Query) (*search.Page, error) {
	order := "desc"
	if q.Oldest {
		order = "asc"
	}
	body := object{"query": query(q), "size": q.Limit, "_source": false, "track_total_hits": countUpTo}
	if q.Limit > 0 {
		body["sort"] = []object{{fieldTS: order}, {fieldNID: order}}
	}
	if q.Exact || len(q.Facets) > 0 {
		body["track_total_hits"] = true
	}
	if q.After != nil {
		body["search_after"] = []int64{q.After.TS, q.After.NID}
	}
	aggs := object{}
	for _, f := range q.Facets {
		size := f.Size
		if size <= 0 || size > 10_000 {
			size = 10_000
		}
		aggs[f.Field] = object{"terms": object{"field": f.Field, "size": size}}
	}
	if len(aggs) > 0 {
		body["aggs"] = aggs
	}
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	var out answer
	partial := false
	if err := x.do(ctx, esapi.SearchRequest{Index: []string{index}, Body: bytes.NewReader(raw), AllowPartialSearchResults: &partial}, &out); err != nil {
		return nil, err
	}
	page := &search.Page{Total: out.Hits.Total.Value, AtLeast: out.Hits.Total.Relation == "gte"}
	for _, h := range out.Hits.Hits {
		if len(h.Sort) == 2 {
			page.Hits = append(page.Hits, search.Hit{ID: h.ID, Cursor: search.Cursor{TS: h.Sort[0], NID: h.Sort[1]}})
		}
	}
	if len(q.Facets) > 0 {
		page.Facets = map[string][]search.Bucket{}
		for _, f := range q.Facets {
			buckets := []search.Bucket{}
			for _, b := range out.Facets[f.Field].Buckets {
				buckets = append(buckets, search.Bucket{Value: keyOf(b.Key), Count: b.Count})
			}
			slices.SortFunc(buckets, search.CompareBuckets(f.Field))
			page.Facets[f.Field] = buckets
		}
	}
	return page, nil
}

func keyOf(key any) string {
	switch k := key.(type) {
	case string:
		return k
	case float64:
		return strconv.FormatInt(int64(k), 10)
	}
	return ""
}
