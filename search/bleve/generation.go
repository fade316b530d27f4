package bleve

import (
	"fmt"
	"strconv"
	"sync"
	"time"

	bleve "github.com/blevesearch/bleve/v2"
	"github.com/blevesearch/bleve/v2/index/scorch"

	"github.com/moothall/moothall/search"
)

// Every batch that Bleve is given becomes a segment, and segments are merged again and again: with the few messages of a
// moment in each, that costs five times as much as with some thousands. So documents gather in memory first.
const (
	flushDocs   = 2000             // documents from which on memory is written
	flushTokens = 400_000          // their tokens: files have many
	flushAge    = 60 * time.Second // after how long it is written in any case
	fullTimes   = 2                // whoever writes more than so many times as much waits
)

// flushKey is the number of the last memory that was written. It comes with the segment, so that no search sees both.
const flushKey = "moothall_flush"

// generation is one copy of the index: Bleve's segments, and memory over them.
type generation struct {
	b bleve.Index // changed under the lock of Index only

	flushing sync.Mutex
	writing  sync.Mutex
	mu       sync.RWMutex // of what follows, and of what the memories hold
	active   *memory      // what was written last
	frozen   *memory      // what is being written into a segment; nil: nothing
	kept     search.State // what is on disk
	serial   uint64       // of the newest frozen memory
}

func newGeneration(b bleve.Index) (*generation, error) {
	raw, err := b.GetInternal([]byte(stateKey))
	if err != nil {
		return nil, fmt.Errorf("read the state of the search index: %w", err)
	}
	g := &generation{b: b}
	g.kept, _ = search.ParseState(raw)
	if raw, err = b.GetInternal([]byte(flushKey)); err != nil {
		return nil, fmt.Errorf("read the state of the search index: %w", err)
	}
	g.serial = parseSerial(raw)
	g.active = newMemory(g.kept)
	return g, nil
}

func parseSerial(raw []byte) uint64 {
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// states are how far the index is, and how far it is on disk.
func (g *generation) states() (now, kept search.State) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.active.state, g.kept
}

// due tells whether memory is to be written.
func (g *generation) due() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	m := g.active
	return g.frozen != nil || m.size() >= flushDocs || m.tokens >= flushTokens || !m.since.IsZero() && time.Since(m.since) > flushAge
}

// full tells whether memory can take no more.
func (g *generation) full() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.active.size() >= fullTimes*flushDocs || g.active.tokens >= fullTimes*flushTokens
}

// add puts a batch and the new state into memory.
func (g *generation) add(in *search.Batch, state search.State) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	tokens := make([]search.Tokens, len(in.Docs))
	for i := range in.Docs {
		tokens[i] = in.Docs[i].Tokens()
	}
	older, err := g.older(in)
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	m := g.active
	for _, id := range in.Delete {
		m.remove(id, older[id])
	}
	for i := range in.Docs {
		m.add(&in.Docs[i], tokens[i], older[in.Docs[i].ID])
	}
	m.state = state
	if m.since.IsZero() {
		m.since = time.Now()
	}
	return nil
}

// older tells which documents of a batch are there already, below the active memory.
func (g *generation) older(in *search.Batch) (map[string]bool, error) {
	g.mu.RLock()
	frozen := g.frozen // before the snapshot: what is written meanwhile is in one of both
	g.mu.RUnlock()
	snapshot, done, err := snapshotOf(g.b)
	if err != nil {
		return nil, err
	}
	defer done()
	out := map[string]bool{}
	check := func(id string) {
		if frozen != nil && frozen.touched(id) {
			out[id] = true
		}
	}
	for _, id := range in.Delete {
		check(id)
	}
	for i := range in.Docs {
		check(in.Docs[i].ID)
	}
	for _, s := range snapshot.Segments() {
		d, err := s.Segment().Dictionary("_id")
		if err != nil {
			return nil, fmt.Errorf("read the ids of a segment: %w", err)
		}
		look := func(id string) error {
			if out[id] {
				return nil
			}
			there, err := d.Contains([]byte(id))
			if err != nil {
				return fmt.Errorf("look for a document: %w", err)
			}
			if there {
				out[id] = true
			}
			return nil
		}
		for _, id := range in.Delete {
			if err := look(id); err != nil {
				return nil, err
			}
		}
		for i := range in.Docs {
			if err := look(in.Docs[i].ID); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// look lets a search see what is in memory, and gives the segments that belong to it with what memory hides of them.
func (g *generation) look(see func(source) error) (snapshot *scorch.IndexSnapshot, masks []mask, done func(), err error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	snapshot, done, err = snapshotOf(g.b)
	if err != nil {
		return nil, nil, nil, err
	}
	if err = see(g.active.look(nil)); err == nil {
		masks = append(masks, g.active.mask())
		if f := g.frozen; f != nil {
			var raw []byte
			if raw, err = snapshot.GetInternal([]byte(flushKey)); err == nil && parseSerial(raw) < f.serial {
				err = see(f.look(g.active.masked))
				masks = append(masks, f.mask())
			}
		}
	}
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return snapshot, masks, done, nil
}

// flush writes memory into a segment and returns when it is on disk. What could not be written waits for the next time.
func (g *generation) flush() error {
	g.flushing.Lock()
	defer g.flushing.Unlock()
	for {
		g.mu.Lock()
		again := g.frozen != nil // left over from the last time: what came since is to be written, too
		if !again {
			if g.active.since.IsZero() {
				g.mu.Unlock()
				return nil
			}
			g.serial++
			g.frozen = g.active
			g.frozen.serial = g.serial
			g.active = newMemory(g.frozen.state)
		}
		f := g.frozen
		g.mu.Unlock()

		batch := g.b.NewBatch()
		if err := f.write(batch); err != nil {
			return err
		}
		batch.SetInternal([]byte(stateKey), f.state.Marshal())
		batch.SetInternal([]byte(flushKey), strconv.AppendUint(nil, f.serial, 10))
		if err := apply(g.b, batch); err != nil {
			return err
		}
		g.mu.Lock()
		g.frozen, g.kept = nil, f.state
		g.mu.Unlock()
		if !again {
			return nil
		}
	}
}
