// Package bleve keeps the search index in files of this process, with Bleve's scorch segments. Documents come ready as
// tokens, and queries are answered by intersecting the bitmaps of the segments: exact counts, and only what is shown is read.
package bleve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	bleve "github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/analysis"
	"github.com/blevesearch/bleve/v2/document"
	"github.com/blevesearch/bleve/v2/index/scorch"
	"github.com/blevesearch/bleve/v2/mapping"
	index "github.com/blevesearch/bleve_index_api"

	"github.com/moothall/moothall/search"
)

const (
	servedFile = "served"
	stateKey   = "moothall_state"
)

// Index is a folder with one Bleve index for each generation, and a file that names the served one.
type Index struct {
	dir string
	log *slog.Logger

	mu     sync.RWMutex
	open   bool
	served string
	gens   map[string]bleve.Index
}

// New makes an engine over a folder; nothing is opened before Open.
func New(dir string, log *slog.Logger) *Index {
	return &Index{dir: dir, log: log, gens: map[string]bleve.Index{}}
}

// Name is the engine's name.
func (x *Index) Name() string { return "bleve" }

func config() map[string]interface{} {
	return map[string]interface{}{"bolt_timeout": "3s", "numSnapshotsToKeep": 1}
}

func emptyMapping() *mapping.IndexMappingImpl {
	m := bleve.NewIndexMapping() // documents are built by hand
	m.StoreDynamic, m.IndexDynamic, m.DocValuesDynamic = false, false, false
	return m
}

// Open opens every generation in the folder. What cannot be read is put aside, so that it is built anew.
func (x *Index) Open(ctx context.Context) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.open {
		return nil
	}
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return fmt.Errorf("make the folder of the search index: %w", err)
	}
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		return fmt.Errorf("read the folder of the search index: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), "gen-") || x.gens[e.Name()] != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(x.dir, e.Name())
		b, err := bleve.OpenUsing(path, config())
		switch {
		case err == nil:
			x.gens[e.Name()] = b
		case strings.Contains(err.Error(), "timeout"): // bbolt's lock: another process has it
			return fmt.Errorf("the search index in %s is in use by another process", path)
		default:
			x.log.Warn("the search index cannot be opened and is built anew", "folder", path, "error", err)
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("remove the broken search index: %w", err)
			}
		}
	}
	name, err := os.ReadFile(filepath.Join(x.dir, servedFile))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read which search index is served: %w", err)
	}
	x.served, x.open = strings.TrimSpace(string(name)), true
	return nil
}

// Close closes all generations.
func (x *Index) Close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for name, b := range x.gens {
		errs = append(errs, b.Close())
		delete(x.gens, name)
	}
	x.open, x.served = false, ""
	return errors.Join(errs...)
}

// generation finds an open generation. done is called when it is not used any more.
func (x *Index) generation(name string) (b bleve.Index, done func(), err error) {
	x.mu.RLock()
	if b = x.gens[name]; b == nil {
		x.mu.RUnlock()
		return nil, nil, fmt.Errorf("%s: %w", name, search.ErrGone)
	}
	return b, x.mu.RUnlock, nil
}

// Generations lists the generations of the folder.
func (x *Index) Generations(context.Context) ([]search.Generation, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []search.Generation
	for name, b := range x.gens {
		if _, err := os.Stat(filepath.Join(x.dir, name)); err != nil {
			continue // the folder was removed under us
		}
		raw, err := b.GetInternal([]byte(stateKey))
		if err != nil {
			return nil, fmt.Errorf("read the state of the search index: %w", err)
		}
		state, _ := search.ParseState(raw)
		out = append(out, search.Generation{Name: name, Served: name == x.served, State: state})
	}
	return out, nil
}

// Create makes an empty generation, in the place of what has its name.
func (x *Index) Create(_ context.Context, name string, served bool, state search.State) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.dropLocked(name); err != nil {
		return err
	}
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return err
	}
	b, err := bleve.NewUsing(filepath.Join(x.dir, name), emptyMapping(), scorch.Name, scorch.Name, config())
	if err != nil {
		return fmt.Errorf("make a search index: %w", err)
	}
	if err := b.SetInternal([]byte(stateKey), state.Marshal()); err != nil {
		return errors.Join(err, b.Close())
	}
	x.gens[name] = b
	if served {
		return x.serveLocked(name)
	}
	return nil
}

// Serve makes a generation the one that is searched.
func (x *Index) Serve(_ context.Context, name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.serveLocked(name)
}

func (x *Index) serveLocked(name string) error {
	if x.gens[name] == nil {
		return fmt.Errorf("%s: %w", name, search.ErrGone)
	}
	tmp := filepath.Join(x.dir, servedFile+".new")
	if err := os.WriteFile(tmp, []byte(name+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(x.dir, servedFile)); err != nil {
		return err
	}
	x.served = name
	return nil
}

// Drop removes a generation once no search reads it.
func (x *Index) Drop(_ context.Context, name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.dropLocked(name)
}

func (x *Index) dropLocked(name string) error {
	if b := x.gens[name]; b != nil {
		delete(x.gens, name)
		if err := b.Close(); err != nil {
			x.log.Warn("close a search index", "error", err)
		}
	}
	return os.RemoveAll(filepath.Join(x.dir, name))
}

// The fields of a document beside its tokens.
const (
	fieldRoom   = search.FacetRoom
	fieldSender = search.FacetSender
	fieldKind   = search.FacetKind
	fieldDay    = search.FacetDay
	fieldType   = "type"
	fieldFlag   = "f"    // flags, and views behind a colon
	fieldOrder  = "sort" // time and number, in an order of bytes
)

const (
	plainField  = index.IndexField | index.SkipFreqNorm
	valuedField = plainField | index.DocValues
)

// ready is an analyzer whose work is done already.
type ready []string

func (r ready) Analyze([]byte) analysis.TokenStream {
	out := make(analysis.TokenStream, len(r))
	tokens := make([]analysis.Token, len(r))
	for i, s := range r {
		tokens[i] = analysis.Token{Term: []byte(s), Position: i + 1, Type: analysis.AlphaNumeric}
		out[i] = &tokens[i]
	}
	return out
}

func flagsOf(d *search.Doc) []string {
	out := make([]string, 0, len(d.Views)+len(d.Flags))
	for _, v := range d.Views {
		out = append(out, ":"+v)
	}
	return append(out, d.Flags...)
}

func bleveDocument(d *search.Doc) *document.Document {
	doc := document.NewDocument(d.ID)
	add := func(name string, options index.FieldIndexingOptions, tokens ...string) {
		if len(tokens) > 0 {
			doc.AddField(document.NewTextFieldCustom(name, nil, nil, options, ready(tokens)))
		}
	}
	add(search.FieldGram, plainField, d.Tokens.Grams...)
	add(search.FieldWord, plainField, d.Tokens.Words...)
	add(fieldRoom, valuedField, roomTerm(d.Room))
	add(fieldSender, valuedField, string(d.Sender))
	add(fieldKind, valuedField, d.Kind)
	add(fieldType, plainField, d.Type)
	add(fieldFlag, plainField, flagsOf(d)...)
	add(fieldDay, valuedField, dayTerm(search.Day(d.TS)))
	add(fieldOrder, valuedField, orderTerm(search.Cursor{TS: d.TS, NID: d.NID}))
	return doc
}

// Write puts a batch and the new state into a generation, both or neither, and returns when they are on disk.
func (x *Index) Write(_ context.Context, name string, in *search.Batch, state search.State) error {
	b, done, err := x.generation(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(x.dir, name)); err != nil {
		done()
		return fmt.Errorf("%s: %w", name, search.ErrGone)
	}
	batch := b.NewBatch()
	for _, id := range in.Delete {
		batch.Delete(id)
	}
	for i := range in.Docs {
		if err := batch.IndexAdvanced(bleveDocument(&in.Docs[i])); err != nil {
			done()
			return fmt.Errorf("index %s: %w", in.Docs[i].ID, err)
		}
	}
	batch.SetInternal([]byte(stateKey), state.Marshal())
	if err := apply(b, batch); err != nil {
		done()
		x.mend(name, b)
		return fmt.Errorf("write to the search index: %w", err)
	}
	done()
	return nil
}

// apply writes a batch. After a write that failed, on a full disk for one, what Bleve holds in memory is damaged and the next
// write panics: that is an error like the first.
func apply(b bleve.Index, batch *bleve.Batch) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the library failed: %v", p)
		}
	}()
	return b.Batch(batch)
}

// mend closes a generation whose memory may be damaged and opens it again as it is on disk. Where that fails, it is gone, and
// made anew.
func (x *Index) mend(name string, broken bleve.Index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.gens[name] != broken {
		return // somebody else was quicker
	}
	delete(x.gens, name)
	if err := closed(broken); err != nil {
		x.log.Warn("close a search index that cannot be written", "error", err)
	}
	b, err := bleve.OpenUsing(filepath.Join(x.dir, name), config())
	if err != nil {
		x.log.Warn("the search index cannot be opened again", "error", err)
		return
	}
	x.gens[name] = b
}

func closed(b bleve.Index) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the library failed: %v", p)
		}
	}()
	return b.Close()
}

// DeleteRoom removes the documents of a room, some at a time.
func (x *Index) DeleteRoom(ctx context.Context, name string, room int64) error {
	for {
		ids, err := x.idsOf(name, room, 2000)
		if err != nil || len(ids) == 0 {
			return err
		}
		b, done, err := x.generation(name)
		if err != nil {
			return err
		}
		batch := b.NewBatch()
		for _, id := range ids {
			batch.Delete(id)
		}
		err = apply(b, batch)
		done()
		if err != nil {
			x.mend(name, b)
			return fmt.Errorf("remove a room from the search index: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

func (x *Index) idsOf(name string, room int64, limit int) ([]string, error) {
	b, done, err := x.generation(name)
	if err != nil {
		return nil, err
	}
	defer done()
	snapshot, closeIt, err := snapshotOf(b)
	if err != nil {
		return nil, err
	}
	defer closeIt()
	var out []string
	for _, s := range snapshot.Segments() {
		e := newSegment(s)
		hits, err := e.find(&search.Query{Rooms: []int64{room}})
		if err != nil {
			return nil, err
		}
		for it := hits.Iterator(); it.HasNext() && len(out) < limit; {
			id, err := s.DocID(uint64(it.Next()))
			if err != nil {
				return nil, err
			}
			out = append(out, string(id))
		}
	}
	return out, nil
}

// Size counts the documents of the served generation and their bytes on disk.
func (x *Index) Size(context.Context) (docs, bytes int64, err error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	b := x.gens[x.served]
	if b == nil {
		return 0, 0, search.ErrNotServed
	}
	n, err := b.DocCount()
	if err != nil {
		return 0, 0, err
	}
	err = filepath.WalkDir(filepath.Join(x.dir, x.served), func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // files come and go while segments are merged
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return int64(n), bytes, err
}

// snapshotOf gives the index as it is now.
func snapshotOf(b bleve.Index) (*scorch.IndexSnapshot, func(), error) {
	adv, err := b.Advanced()
	if err != nil {
		return nil, nil, err
	}
	r, err := adv.Reader()
	if err != nil {
		return nil, nil, fmt.Errorf("read the search index: %w", err)
	}
	snapshot, ok := r.(*scorch.IndexSnapshot)
	if !ok {
		return nil, nil, errors.Join(fmt.Errorf("the search index is a %T", r), r.Close())
	}
	return snapshot, func() { _ = r.Close() }, nil
}
