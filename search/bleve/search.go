package bleve

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"

	"github.com/RoaringBitmap/roaring/v2"
	"github.com/blevesearch/bleve/v2/index/scorch"
	index "github.com/blevesearch/bleve_index_api"
	segment "github.com/blevesearch/scorch_segment_api/v2"

	"github.com/moothall/moothall/search"
)

// digits are in the order of their bytes; 0xff, which separates values in segments, is not among them.
const digits = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"

// encode writes the lowest 6*n bits of a number so that greater numbers are greater strings.
func encode(dst []byte, v int64, n int) []byte {
	for i := n - 1; i >= 0; i-- {
		dst = append(dst, digits[v>>(6*i)&63])
	}
	return dst
}

const (
	tsDigits  = 8
	nidDigits = 10
)

func orderTerm(c search.Cursor) string {
	return string(encode(encode(make([]byte, 0, tsDigits+nidDigits), c.TS, tsDigits), c.NID, nidDigits))
}

var values = func() (v [256]int64) {
	for i := range len(digits) {
		v[digits[i]] = int64(i)
	}
	return v
}()

func decode(s string) int64 {
	var v int64
	for i := range len(s) {
		v = v<<6 | values[s[i]]
	}
	return v
}

func readOrder(s string) search.Cursor {
	if len(s) != tsDigits+nidDigits {
		return search.Cursor{}
	}
	return search.Cursor{TS: decode(s[:tsDigits]), NID: decode(s[tsDigits:])}
}

func roomTerm(room int64) string { return strconv.FormatInt(room, 10) }
func dayTerm(day int64) string   { return string(encode(nil, day, 5)) }

// source is where documents lie: a segment, or memory.
type source interface {
	// term gives the documents with a term; the bitmap may be shared and is not to be changed.
	term(field, term string) (*roaring.Bitmap, error)
	// terms lists the terms of a field in order, from <= term < to; "" is no bound.
	terms(field, from, to string) ([]string, error)
	// value reads the value of a field of one document.
	value(doc uint32, field string) (string, error)
	// each gives the values of a field of some documents, in a buffer that is used again.
	each(docs *roaring.Bitmap, field string, fn func(value []byte)) error
	id(doc uint32) (string, error)
	// size gives the number of documents, and of the terms of a field.
	size(field string) (docs, terms uint64, err error)
	live() *roaring.Bitmap   // all documents, but perhaps for hidden ones; the caller may change it
	hidden() *roaring.Bitmap // deleted ones, and those of which there is a newer version elsewhere; nil: none
}

// one is one source for the length of a query.
type one struct{ source }

// inSegment is a segment for the length of a query.
type inSegment struct {
	seg   *scorch.SegmentSnapshot
	gone  *roaring.Bitmap
	dicts map[string]segment.TermDictionary
	state segment.DocVisitState
}

func newSegment(s *scorch.SegmentSnapshot) *inSegment {
	return &inSegment{seg: s, gone: s.Deleted(), dicts: map[string]segment.TermDictionary{}}
}

func (o *inSegment) live() *roaring.Bitmap   { return o.seg.DocNumbersLive() }
func (o *inSegment) hidden() *roaring.Bitmap { return o.gone }
func (o *inSegment) id(doc uint32) (string, error) {
	b, err := o.seg.DocID(uint64(doc))
	return string(b), err
}

func (o *inSegment) size(field string) (docs, terms uint64, err error) {
	d, err := o.dict(field)
	if err != nil {
		return 0, 0, err
	}
	return o.seg.Segment().Count(), uint64(d.Cardinality()), nil
}

func (o *inSegment) dict(field string) (segment.TermDictionary, error) {
	d := o.dicts[field]
	if d == nil {
		var err error
		if d, err = o.seg.Segment().Dictionary(field); err != nil {
			return nil, fmt.Errorf("read the dictionary of %s: %w", field, err)
		}
		o.dicts[field] = d
	}
	return d, nil
}

func (o *inSegment) term(field, term string) (*roaring.Bitmap, error) {
	d, err := o.dict(field)
	if err != nil {
		return nil, err
	}
	list, err := d.PostingsList([]byte(term), nil, nil)
	if err != nil {
		return nil, fmt.Errorf("read postings of %s: %w", field, err)
	}
	it := list.Iterator(false, false, false, nil)
	if opt, ok := it.(segment.OptimizablePostingsIterator); ok {
		if n, hit := opt.DocNum1Hit(); hit {
			return roaring.BitmapOf(uint32(n)), nil
		}
		if b := opt.ActualBitmap(); b != nil {
			return b, nil
		}
	}
	b := roaring.NewBitmap()
	for {
		p, err := it.Next()
		if err != nil {
			return nil, err
		}
		if p == nil {
			return b, nil
		}
		b.Add(uint32(p.Number()))
	}
}

func (o *inSegment) terms(field, from, to string) ([]string, error) {
	d, err := o.dict(field)
	if err != nil {
		return nil, err
	}
	var start, end []byte
	if from != "" {
		start = []byte(from)
	}
	if to != "" {
		end = []byte(to)
	}
	var out []string
	for it := d.AutomatonIterator(nil, start, end); ; {
		e, err := it.Next()
		if err != nil {
			return nil, err
		}
		if e == nil {
			return out, nil
		}
		out = append(out, e.Term)
	}
}

func (o *inSegment) value(doc uint32, field string) (string, error) {
	dv, ok := o.seg.Segment().(segment.DocValueVisitable)
	if !ok {
		return "", errNoValues
	}
	out := ""
	var err error
	o.state, err = dv.VisitDocValues(uint64(doc), []string{field}, func(f string, term []byte) {
		if f == field {
			out = string(term)
		}
	}, o.state)
	return out, err
}

func (o *inSegment) each(docs *roaring.Bitmap, field string, fn func(value []byte)) error {
	dv, ok := o.seg.Segment().(segment.DocValueVisitable)
	if !ok {
		return errNoValues
	}
	visit := index.DocValueVisitor(func(_ string, term []byte) { fn(term) })
	var state segment.DocVisitState
	fields := []string{field}
	for it := docs.Iterator(); it.HasNext(); {
		var err error
		if state, err = dv.VisitDocValues(uint64(it.Next()), fields, visit, state); err != nil {
			return err
		}
	}
	return nil
}

var errNoValues = errors.New("a segment of the search index has no values")

// anyTerm gives the documents with any of some terms.
func (o *one) anyTerm(field string, terms []string) (*roaring.Bitmap, error) {
	list := make([]*roaring.Bitmap, 0, len(terms))
	for _, t := range terms {
		b, err := o.term(field, t)
		if err != nil {
			return nil, err
		}
		if !b.IsEmpty() {
			list = append(list, b)
		}
	}
	return roaring.FastOr(list...), nil
}

// and intersects bitmaps, the smallest first; nil stands for all documents.
func (o *one) and(list []*roaring.Bitmap) *roaring.Bitmap {
	if len(list) == 0 {
		return o.live()
	}
	slices.SortFunc(list, func(a, b *roaring.Bitmap) int { return int(a.GetCardinality()) - int(b.GetCardinality()) })
	out := list[0].Clone()
	for _, b := range list[1:] {
		if out.IsEmpty() {
			break
		}
		out.And(b)
	}
	return out
}

// expr gives the documents that an expression finds.
func (o *one) expr(x *search.Expr) (*roaring.Bitmap, error) {
	switch {
	case x.Token != "":
		return o.term(x.Field, x.Token)
	case x.Not != nil:
		b, err := o.expr(x.Not)
		if err != nil {
			return nil, err
		}
		return roaring.AndNot(o.live(), b), nil
	case x.Any != nil:
		var list []*roaring.Bitmap
		for i := range x.Any {
			b, err := o.expr(&x.Any[i])
			if err != nil {
				return nil, err
			}
			list = append(list, b)
		}
		return roaring.FastOr(list...), nil
	}
	var list []*roaring.Bitmap
	var not []*roaring.Bitmap
	for i := range x.All {
		sub := &x.All[i]
		if sub.Not != nil {
			b, err := o.expr(sub.Not)
			if err != nil {
				return nil, err
			}
			not = append(not, b)
			continue
		}
		b, err := o.expr(sub)
		if err != nil {
			return nil, err
		}
		if b.IsEmpty() {
			return b, nil
		}
		list = append(list, b)
	}
	out := o.and(list)
	for _, b := range not {
		out.AndNot(b)
	}
	return out, nil
}

// find gives the documents of a query, but for the bounds of time within a day and the place to go on from.
func (o *one) find(q *search.Query) (*roaring.Bitmap, error) {
	var list []*roaring.Bitmap
	var err error
	need := func(field string, terms []string) {
		if err == nil && terms != nil {
			var b *roaring.Bitmap
			b, err = o.anyTerm(field, terms)
			list = append(list, b)
		}
	}
	if !q.Text.Empty() {
		var b *roaring.Bitmap
		if b, err = o.expr(&q.Text); err != nil || b.IsEmpty() {
			return b, err
		}
		list = append(list, b)
	}
	if q.View != "" {
		need(fieldFlag, []string{":" + q.View})
	}
	for _, f := range q.Flags {
		need(fieldFlag, []string{f})
	}
	if q.Rooms != nil {
		need(fieldRoom, roomTerms(q.Rooms))
	}
	need(fieldSender, some(q.Senders))
	need(fieldKind, some(q.Kinds))
	need(fieldType, some(q.Types))
	if err == nil && (q.From != 0 || q.To != 0) {
		var b *roaring.Bitmap
		b, err = o.days(q.From, q.To)
		list = append(list, b)
	}
	if err != nil {
		return nil, err
	}
	out := o.and(list)
	for _, x := range []struct {
		field string
		terms []string
	}{{fieldFlag, q.NotFlags}, {fieldRoom, roomTerms(q.NotRooms)}, {fieldSender, q.NotSenders}} {
		if len(x.terms) == 0 || out.IsEmpty() {
			continue
		}
		b, err := o.anyTerm(x.field, x.terms)
		if err != nil {
			return nil, err
		}
		out.AndNot(b)
	}
	if gone := o.hidden(); gone != nil {
		out.AndNot(gone)
	}
	return out, nil
}

// some is nil for an empty list, which does not restrict.
func some(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
}

func roomTerms(rooms []int64) []string {
	out := make([]string, len(rooms))
	for i, r := range rooms {
		out[i] = roomTerm(r)
	}
	return out
}

// days gives the documents of the days that a stretch of time touches.
func (o *one) days(from, to int64) (*roaring.Bitmap, error) {
	first, behind := "", ""
	if from > 0 {
		first = dayTerm(search.Day(from))
	}
	if to > 0 {
		behind = dayTerm(search.Day(to-1) + 1)
	}
	terms, err := o.terms(fieldDay, first, behind)
	if err != nil {
		return nil, err
	}
	return o.anyTerm(fieldDay, terms)
}

// found is a hit before its id is read.
type found struct {
	order string
	doc   uint32
	from  source
}

// best keeps the first hits in the order of a query; the last of them is on top of the heap.
type best struct {
	list   []found
	oldest bool
}

func (h *best) Len() int           { return len(h.list) }
func (h *best) Less(i, j int) bool { return h.before(h.list[j].order, h.list[i].order) }
func (h *best) Swap(i, j int)      { h.list[i], h.list[j] = h.list[j], h.list[i] }
func (h *best) Push(x any)         { h.list = append(h.list, x.(found)) }
func (h *best) Pop() any {
	n := len(h.list) - 1
	x := h.list[n]
	h.list = h.list[:n]
	return x
}

func (h *best) before(a, b string) bool {
	if h.oldest {
		return a < b
	}
	return a > b
}

// take adds a hit if it is among the first limit ones.
func (h *best) take(x found, limit int) {
	if h.Len() < limit {
		heap.Push(h, x)
	} else if h.before(x.order, h.list[0].order) {
		h.list[0] = x
		heap.Fix(h, 0)
	}
}

// fewHits is up to how many hits of a segment are looked at one by one, without going through its days: each may lie in another
// block of values, which is unpacked for it.
const fewHits = 64

// Search answers a query from the served generation.
func (x *Index) Search(ctx context.Context, q *search.Query) (*search.Page, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	g := x.gens[x.served]
	if g == nil {
		return nil, search.ErrNotServed
	}
	a := &answer{q: q, page: &search.Page{}, top: &best{oldest: q.Oldest}, counts: make([]map[string]int64, len(q.Facets))}
	for i := range a.counts {
		a.counts[i] = map[string]int64{}
	}
	snapshot, masks, done, err := g.look(a.take)
	if err != nil {
		return nil, err
	}
	defer done()
	segments := slices.Clone(snapshot.Segments())
	if !q.Oldest {
		slices.Reverse(segments) // the newest first: of the others little is looked at then
	}
	for _, s := range segments {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		o := newSegment(s)
		for _, m := range masks {
			gone, err := m.in(s.Segment())
			if err != nil {
				return nil, err
			}
			if o.gone == nil {
				o.gone = gone
			} else if !gone.IsEmpty() {
				o.gone = roaring.Or(o.gone, gone)
			}
		}
		if err := a.take(o); err != nil {
			return nil, err
		}
	}
	return a.finish()
}

// answer is what a query has found in the sources that were looked through.
type answer struct {
	q      *search.Query
	page   *search.Page
	top    *best
	counts []map[string]int64
}

// take looks through one source.
func (a *answer) take(s source) error {
	o := &one{s}
	hits, err := o.find(a.q)
	if err != nil || hits.IsEmpty() {
		return err
	}
	if a.q.From != 0 || a.q.To != 0 {
		if err := o.cut(hits, a.q.From, a.q.To); err != nil {
			return err
		}
	}
	a.page.Total += int64(hits.GetCardinality())
	if err := o.collect(hits, a.q, a.top); err != nil {
		return err
	}
	for i, f := range a.q.Facets {
		if err := o.count(hits, f.Field, a.counts[i]); err != nil {
			return err
		}
	}
	return nil
}

// finish gives the page.
func (a *answer) finish() (*search.Page, error) {
	top := a.top
	sort.Slice(top.list, func(i, j int) bool { return top.before(top.list[i].order, top.list[j].order) })
	for _, f := range top.list {
		id, err := f.from.id(f.doc)
		if err != nil {
			return nil, err
		}
		a.page.Hits = append(a.page.Hits, search.Hit{ID: id, Cursor: readOrder(f.order)})
	}
	if len(a.q.Facets) > 0 {
		a.page.Facets = map[string][]search.Bucket{}
		for i, f := range a.q.Facets {
			a.page.Facets[f.Field] = buckets(f, a.counts[i])
		}
	}
	return a.page, nil
}

// cut takes hits away that lie outside of a stretch of time, on its first and last day.
func (o *one) cut(hits *roaring.Bitmap, from, to int64) error {
	for _, edge := range []int64{from, to - 1} {
		if edge <= 0 || edge == from && from%(24*3600*1000) == 0 || edge == to-1 && to%(24*3600*1000) == 0 {
			continue
		}
		day, err := o.term(fieldDay, dayTerm(search.Day(edge)))
		if err != nil {
			return err
		}
		for it := roaring.And(hits, day).Iterator(); it.HasNext(); {
			doc := it.Next()
			s, err := o.value(doc, fieldOrder)
			if err != nil {
				return err
			}
			if ts := readOrder(s).TS; ts < from || to != 0 && ts >= to {
				hits.Remove(doc)
			}
		}
	}
	return nil
}

// collect finds the segment's first hits. Where there are many it goes through the days, so that only hits of the days
// that are shown are looked at.
func (o *one) collect(hits *roaring.Bitmap, q *search.Query, top *best) error {
	if q.Limit <= 0 || hits.IsEmpty() {
		return nil
	}
	after := ""
	if q.After != nil {
		after = orderTerm(search.Cursor{TS: search.ClampTS(q.After.TS), NID: q.After.NID})
	}
	look := func(docs *roaring.Bitmap) error {
		for it := docs.Iterator(); it.HasNext(); {
			doc := it.Next()
			order, err := o.value(doc, fieldOrder)
			if err != nil {
				return err
			}
			if after == "" || top.before(after, order) {
				top.take(found{order, doc, o.source}, q.Limit)
			}
		}
		return nil
	}
	if hits.GetCardinality() <= fewHits {
		return look(hits)
	}
	from, to := "", ""
	if q.After != nil {
		if day := search.Day(search.ClampTS(q.After.TS)); q.Oldest {
			from = dayTerm(day)
		} else {
			to = dayTerm(day + 1)
		}
	}
	days, err := o.terms(fieldDay, from, to)
	if err != nil {
		return err
	}
	if !q.Oldest {
		slices.Reverse(days)
	}
	for _, day := range days {
		if top.Len() == q.Limit {
			last := dayTerm(search.Day(readOrder(top.list[0].order).TS))
			if day != last && !top.before(day, last) {
				return nil // all that follows is behind what is shown
			}
		}
		b, err := o.term(fieldDay, day)
		if err != nil {
			return err
		}
		if err := look(roaring.And(hits, b)); err != nil {
			return err
		}
	}
	return nil
}

// count adds up the values of a field.
func (o *one) count(hits *roaring.Bitmap, field string, counts map[string]int64) error {
	if hits.IsEmpty() {
		return nil
	}
	docs, size, err := o.size(field)
	if err != nil {
		return err
	}
	// To read a value of a hit costs about as much as to look at twelve documents of a term's, and a term as much as 20 values.
	if hits.GetCardinality() < docs/12+20*size && field != fieldDay && field != fieldKind {
		return o.each(hits, field, func(value []byte) { counts[string(value)]++ })
	}
	terms, err := o.terms(field, "", "")
	if err != nil {
		return err
	}
	for _, t := range terms {
		b, err := o.term(field, t)
		if err != nil {
			return err
		}
		if n := hits.AndCardinality(b); n > 0 {
			counts[t] += int64(n)
		}
	}
	return nil
}

// buckets orders the counts of a facet: days by time, all else by number.
func buckets(f search.Facet, counts map[string]int64) []search.Bucket {
	out := make([]search.Bucket, 0, len(counts))
	for v, n := range counts {
		if f.Field == fieldDay {
			v = strconv.FormatInt(decode(v), 10)
		}
		out = append(out, search.Bucket{Value: v, Count: n})
	}
	slices.SortFunc(out, search.CompareBuckets(f.Field))
	if f.Size > 0 && len(out) > f.Size {
		out = out[:f.Size]
	}
	return out
}
