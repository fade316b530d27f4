package bleve

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2"
	bleve "github.com/blevesearch/bleve/v2"
	segment "github.com/blevesearch/scorch_segment_api/v2"

	"github.com/moothall/moothall/search"
)

// memory holds documents that are in no segment yet. It is changed under the generation's lock, and never once it is frozen.
type memory struct {
	serial uint64
	state  search.State
	since  time.Time // when the first of it came; zero: nothing came
	docs   []*inRAM
	ids    map[string]uint32 // documents that are there
	gone   *roaring.Bitmap   // documents that were replaced or removed since
	posts  map[string]map[string][]uint32
	tokens int

	masked []string        // ids that hide documents of older sources
	hides  map[string]bool // the same, as a set
	cache  *maskCache
}

// inRAM is one document.
type inRAM struct {
	doc    search.Doc
	tokens search.Tokens
	order  string
}

func newMemory(state search.State) *memory {
	return &memory{
		state: state, ids: map[string]uint32{}, gone: roaring.New(), posts: map[string]map[string][]uint32{}, hides: map[string]bool{},
		cache: &maskCache{segments: map[segment.Segment]masked{}},
	}
}

func (m *memory) size() int { return len(m.docs) + len(m.masked) }

// touched tells whether the memory has a document or hides older ones of that id.
func (m *memory) touched(id string) bool {
	_, there := m.ids[id]
	return there || m.hides[id]
}

func (m *memory) add(d *search.Doc, tokens search.Tokens, older bool) {
	m.remove(d.ID, older)
	n := uint32(len(m.docs))
	x := &inRAM{doc: *d, tokens: tokens, order: orderTerm(search.Cursor{TS: d.TS, NID: d.NID})}
	x.doc.Texts = nil // the tokens are all that is needed
	m.docs = append(m.docs, x)
	m.ids[d.ID] = n
	m.tokens += len(tokens.Grams) + len(tokens.Words)
	x.fields(func(field string, _ bool, terms ...string) {
		post := m.posts[field]
		if post == nil {
			post = map[string][]uint32{}
			m.posts[field] = post
		}
		for _, t := range terms {
			post[t] = append(post[t], n)
		}
	})
}

func (m *memory) remove(id string, older bool) {
	if n, ok := m.ids[id]; ok {
		m.gone.Add(n)
		delete(m.ids, id)
	}
	if older && !m.hides[id] {
		m.hides[id] = true
		m.masked = append(m.masked, id)
	}
}

// write puts everything into a batch of Bleve's.
func (m *memory) write(batch *bleve.Batch) error {
	for _, id := range m.masked {
		if _, there := m.ids[id]; !there {
			batch.Delete(id)
		}
	}
	for n, x := range m.docs {
		if m.gone.Contains(uint32(n)) {
			continue
		}
		if err := batch.IndexAdvanced(bleveDocument(x)); err != nil {
			return fmt.Errorf("index %s: %w", x.doc.ID, err)
		}
	}
	return nil
}

// look gives the memory as a source, without documents that newer ones hide.
func (m *memory) look(newer []string) source {
	s := &inMemory{m: m, docs: m.docs, gone: m.gone}
	for _, id := range newer {
		if n, ok := m.ids[id]; ok {
			if s.gone == m.gone {
				s.gone = m.gone.Clone()
			}
			s.gone.Add(n)
		}
	}
	return s
}

// inMemory is a memory for the length of a query. All but id is used under the generation's lock only.
type inMemory struct {
	m    *memory
	docs []*inRAM
	gone *roaring.Bitmap
}

func (s *inMemory) hidden() *roaring.Bitmap { return s.gone }

func (s *inMemory) live() *roaring.Bitmap {
	b := roaring.New()
	b.AddRange(0, uint64(len(s.docs)))
	return b
}

func (s *inMemory) id(doc uint32) (string, error) { return s.docs[doc].doc.ID, nil }

func (s *inMemory) size(field string) (docs, terms uint64, err error) {
	return uint64(len(s.docs)), uint64(len(s.m.posts[field])), nil
}

func (s *inMemory) term(field, term string) (*roaring.Bitmap, error) {
	return roaring.BitmapOf(s.m.posts[field][term]...), nil
}

func (s *inMemory) terms(field, from, to string) ([]string, error) {
	var out []string
	for t := range s.m.posts[field] {
		if t >= from && (to == "" || t < to) {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (s *inMemory) value(doc uint32, field string) (string, error) {
	x := s.docs[doc]
	switch field {
	case fieldOrder:
		return x.order, nil
	case fieldRoom:
		return roomTerm(x.doc.Room), nil
	case fieldSender:
		return string(x.doc.Sender), nil
	case fieldKind:
		return x.doc.Kind, nil
	case fieldDay:
		return dayTerm(search.Day(x.doc.TS)), nil
	}
	return "", errNoValues
}

func (s *inMemory) each(docs *roaring.Bitmap, field string, fn func(value []byte)) error {
	for it := docs.Iterator(); it.HasNext(); {
		v, err := s.value(it.Next(), field)
		if err != nil {
			return err
		}
		fn([]byte(v))
	}
	return nil
}

// mask is what a memory hides of older segments.
type mask struct {
	ids   []string
	cache *maskCache
}

func (m *memory) mask() mask { return mask{m.masked, m.cache} }

// maskCache keeps which documents of which segment a memory hides: ids are only ever added, and segments never change.
type maskCache struct {
	mu       sync.Mutex
	segments map[segment.Segment]masked
}

type masked struct {
	ids  int // how many of the ids were looked up
	docs *roaring.Bitmap
}

// in gives the documents of a segment that are hidden; not to be changed.
func (m mask) in(s segment.Segment) (*roaring.Bitmap, error) {
	if len(m.ids) == 0 {
		return roaring.New(), nil
	}
	m.cache.mu.Lock()
	defer m.cache.mu.Unlock()
	known := m.cache.segments[s]
	if known.docs == nil {
		known.docs = roaring.New()
	}
	if known.ids < len(m.ids) {
		found, err := s.DocNumbers(m.ids[known.ids:])
		if err != nil {
			return nil, fmt.Errorf("look for documents that were replaced: %w", err)
		}
		known = masked{len(m.ids), roaring.Or(known.docs, found)}
		m.cache.segments[s] = known
	}
	return known.docs, nil
}
