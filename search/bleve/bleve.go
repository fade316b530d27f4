// Package bleve keeps the search index in files, with Bleve's scorch segments. Documents come ready as tokens, and queries are
// answered by intersecting the bitmaps of the segments: exact counts, and only what is shown is read. What was written last
// waits in memory and is searched there, so that segments are made of many documents. Index works in this process, Process in
// one of its own.
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
	"time"

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
	gens   map[string]*generation
	stop   context.CancelFunc // of the goroutine that empties memory
	done   chan struct{}
	kick   chan struct{} // there is much in memory
}

// New makes an engine over a folder; nothing is opened before Open.
func New(dir string, log *slog.Logger) *Index {
	return &Index{dir: dir, log: log, gens: map[string]*generation{}, kick: make(chan struct{}, 1)}
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
			if x.gens[e.Name()], err = newGeneration(b); err != nil {
				return errors.Join(err, b.Close())
			}
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
	fctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	x.stop, x.done = stop, make(chan struct{})
	go x.flushing(fctx, x.done)
	return nil
}

// Close writes what is in memory and closes all generations.
func (x *Index) Close() error {
	x.mu.Lock()
	stop, done := x.stop, x.done
	x.stop, x.done = nil, nil
	x.mu.Unlock()
	if stop != nil {
		stop()
		<-done
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	var errs []error
	for name, g := range x.gens {
		errs = append(errs, g.flush(), closed(g.b))
		delete(x.gens, name)
	}
	x.open, x.served = false, ""
	return errors.Join(errs...)
}

// flushing writes what has gathered in memory into segments, until ctx ends.
func (x *Index) flushing(ctx context.Context, done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-x.kick:
		case <-tick.C:
		}
		x.mu.RLock()
		due := map[string]*generation{}
		for name, g := range x.gens {
			if g.due() {
				due[name] = g
			}
		}
		x.mu.RUnlock()
		for name := range due {
			if err := x.flush(name); err != nil && !errors.Is(err, search.ErrGone) {
				x.log.Warn("the search index cannot be written, trying again", "error", err)
				select { // a full disk, for one
				case <-ctx.Done():
				case <-time.After(5 * time.Second):
				}
			}
		}
	}
}

// flush writes what a generation has in memory, and mends it where that fails.
func (x *Index) flush(name string) error {
	g, done, err := x.generation(name)
	if err != nil {
		return err
	}
	b := g.b
	err = g.flush()
	done()
	if err != nil {
		x.mend(name, b)
		return fmt.Errorf("write to the search index: %w", err)
	}
	return nil
}

// state is how far a generation is.
func (x *Index) state(name string) (search.State, error) {
	g, done, err := x.generation(name)
	if err != nil {
		return search.State{}, err
	}
	defer done()
	now, _ := g.states()
	return now, nil
}

// generation finds an open generation. done is called when it is not used any more.
func (x *Index) generation(name string) (g *generation, done func(), err error) {
	x.mu.RLock()
	if g = x.gens[name]; g == nil {
		x.mu.RUnlock()
		return nil, nil, fmt.Errorf("%s: %w", name, search.ErrGone)
	}
	return g, x.mu.RUnlock, nil
}

// Generations lists the generations of the folder.
func (x *Index) Generations(context.Context) ([]search.Generation, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []search.Generation
	for name, g := range x.gens {
		if _, err := os.Stat(filepath.Join(x.dir, name)); err != nil {
			continue // the folder was removed under us
		}
		state, kept := g.states()
		out = append(out, search.Generation{Name: name, Served: name == x.served, State: state, Kept: kept.Pos})
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
	if x.gens[name], err = newGeneration(b); err != nil {
		return errors.Join(err, b.Close())
	}
	if served {
		return x.serveLocked(name)
	}
	return nil
}

// Serve makes a generation the one that is searched, with all that was written to it on disk.
func (x *Index) Serve(_ context.Context, name string) error {
	if err := x.flush(name); err != nil {
		return err
	}
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
	if g := x.gens[name]; g != nil {
		delete(x.gens, name)
		if err := closed(g.b); err != nil {
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

// fields gives the terms of a document, field by field; valued ones are read back by searches.
func (x *inRAM) fields(add func(field string, valued bool, terms ...string)) {
	d := &x.doc
	add(search.FieldGram, false, x.tokens.Grams...)
	add(search.FieldWord, false, x.tokens.Words...)
	add(fieldRoom, true, roomTerm(d.Room))
	add(fieldSender, true, string(d.Sender))
	add(fieldKind, true, d.Kind)
	add(fieldType, false, d.Type)
	add(fieldFlag, false, flagsOf(d)...)
	add(fieldDay, true, dayTerm(search.Day(d.TS)))
	add(fieldOrder, true, x.order)
}

// bleveDocument is what Bleve makes a document of a segment from.
func bleveDocument(x *inRAM) *document.Document {
	doc := document.NewDocument(x.doc.ID)
	x.fields(func(name string, valued bool, terms ...string) {
		if len(terms) == 0 {
			return
		}
		options := plainField
		if valued {
			options = valuedField
		}
		doc.AddField(document.NewTextFieldCustom(name, nil, nil, options, ready(terms)))
	})
	return doc
}

// Write puts a batch and the new state into a generation, both or neither. They are searched at once, and on disk within a
// minute or two: Generation.Kept tells how far.
func (x *Index) Write(_ context.Context, name string, in *search.Batch, state search.State) error {
	g, done, err := x.generation(name)
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(x.dir, name)); err != nil {
		done()
		return fmt.Errorf("%s: %w", name, search.ErrGone)
	}
	full := g.full()
	done()
	if full { // faster than segments can be written: whoever writes waits
		if err := x.flush(name); err != nil {
			return err
		}
	}
	if g, done, err = x.generation(name); err != nil {
		return err
	}
	defer done()
	if err := g.add(in, state); err != nil {
		return err
	}
	if g.due() {
		select {
		case x.kick <- struct{}{}:
		default:
		}
	}
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

// mend closes a generation whose memory may be damaged and opens it again as it is on disk; what waits to be written still
// does. Where that fails, it is gone, and made anew.
func (x *Index) mend(name string, broken bleve.Index) {
	x.mu.Lock()
	defer x.mu.Unlock()
	g := x.gens[name]
	if g == nil || g.b != broken {
		return // somebody else was quicker
	}
	if err := closed(broken); err != nil {
		x.log.Warn("close a search index that cannot be written", "error", err)
	}
	b, err := bleve.OpenUsing(filepath.Join(x.dir, name), config())
	if err != nil {
		x.log.Warn("the search index cannot be opened again", "error", err)
		delete(x.gens, name)
		return
	}
	g.b = b
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
	if err := x.flush(name); err != nil {
		return err
	}
	for {
		ids, err := x.idsOf(name, room, 2000)
		if err != nil || len(ids) == 0 {
			return err
		}
		g, done, err := x.generation(name)
		if err != nil {
			return err
		}
		b := g.b
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

// idsOf lists documents of a room that are in segments.
func (x *Index) idsOf(name string, room int64, limit int) ([]string, error) {
	g, done, err := x.generation(name)
	if err != nil {
		return nil, err
	}
	defer done()
	snapshot, closeIt, err := snapshotOf(g.b)
	if err != nil {
		return nil, err
	}
	defer closeIt()
	var out []string
	for _, s := range snapshot.Segments() {
		e := &one{source: newSegment(s)}
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
func (x *Index) Size(ctx context.Context) (docs, bytes int64, err error) {
	all, err := x.Search(ctx, &search.Query{Exact: true})
	if err != nil {
		return 0, 0, err
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	err = filepath.WalkDir(filepath.Join(x.dir, x.served), func(_ string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // files come and go while segments are merged
		}
		if info, err := d.Info(); err == nil {
			bytes += info.Size()
		}
		return nil
	})
	return all.Total, bytes, err
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
