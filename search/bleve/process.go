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

	"github.com/moothall/moothall/search"
)

const (
	idleAfter   = 5 * time.Minute // without work the process ends; the next request starts it again
	requestTime = 30 * time.Second
	writeTime   = 2 * time.Minute // a write may wait for a segment to be written, and for the disk
	closeTime   = 20 * time.Second
	firstPause  = 250 * time.Millisecond // after the process died; twice as long each time
	longestWait = 30 * time.Second
	goodTime    = time.Minute // a process that lived so long has forgotten the deaths before it
	deathsMost  = 6           // in a row; then the index in the folder is what kills it
)

// Process is an Index in a process of its own, which is this program again at a low priority. Chat does not wait for merges,
// and a failure of the library or a file that is damaged under it ends that process only. It is started when something is
// asked of it, ends when nothing is for some minutes, and is started again when it dies.
type Process struct {
	program, dir string
	log          *slog.Logger
	turns        chan struct{} // requests under way

	starting sync.Mutex // one start at a time

	mu     sync.Mutex
	open   bool
	run    *running // nil: none
	deaths int      // in a row
	next   time.Time
	asleep []search.Generation // what there was when the process was let go; nil: not known
	idle   *time.Timer
	used   time.Time
}

// NewProcess makes an engine over a folder, kept by a process of program, whose main calls Child. Nothing is started before it
// is needed.
func NewProcess(program, dir string, log *slog.Logger) *Process {
	return &Process{program: program, dir: dir, log: log, turns: make(chan struct{}, childAtOnce)}
}

// Name is the engine's name.
func (p *Process) Name() string { return "bleve" }

// Open lets requests come.
func (p *Process) Open(context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open = true
	return nil
}

// Close ends the process, which writes what it has in memory before.
func (p *Process) Close() error {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	r := p.run
	p.open, p.run, p.asleep = false, nil, nil
	if p.idle != nil {
		p.idle.Stop()
	}
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	return r.end(closeTime)
}

// errPaused is what requests get between the death of a process and its next start.
var errPaused = errors.New("the process of the search index ended and is started again in a moment")

// process gives the process that runs, or starts one.
func (p *Process) process(ctx context.Context) (*running, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	r, open, next := p.run, p.open, p.next
	p.mu.Unlock()
	switch {
	case !open:
		return nil, errors.New("the search index is closed")
	case r != nil && !r.gone():
		return r, nil
	case time.Now().Before(next):
		return nil, errPaused
	}
	r, err := start(p.program, p.log, p.died)
	if err == nil {
		var a *response
		if a, err = r.ask(ctx, &request{Op: opOpen, Generation: p.dir}, requestTime); err == nil {
			err = a.err()
		}
		if err != nil {
			r.kill()
		}
	}
	if err != nil {
		if ctx.Err() == nil {
			p.pause()
		}
		return nil, fmt.Errorf("start the process of the search index: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.run, p.asleep, p.used = r, nil, time.Now()
	if p.idle != nil {
		p.idle.Stop()
	}
	p.idle = time.AfterFunc(idleAfter, p.sleep)
	return r, nil
}

// pause puts the next start off and tells how many processes have died in a row.
func (p *Process) pause() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaths++
	p.next = time.Now().Add(min(firstPause<<min(p.deaths-1, 10), longestWait))
	return p.deaths
}

// died is called when a process has ended that nobody wanted to end.
func (p *Process) died(r *running, why string) {
	p.mu.Lock()
	if p.run == r {
		p.run = nil
	}
	if time.Since(r.began) > goodTime {
		p.deaths = 0
	}
	p.mu.Unlock()
	n := p.pause()
	p.log.Warn("the process of the search index ended, it is started again", "reason", why, "in_a_row", n)
	if n < deathsMost {
		return
	}
	// The log of the server has everything, the index only what was made of it.
	p.log.Error("the search index cannot be used and is built anew", "folder", p.dir)
	gens, _ := filepath.Glob(filepath.Join(p.dir, "gen-*"))
	for _, g := range gens {
		if err := os.RemoveAll(g); err != nil {
			p.log.Error("remove the search index", "error", err)
		}
	}
	p.mu.Lock()
	p.deaths = 0
	p.mu.Unlock()
}

// sleep ends the process when nothing was asked of it for a while.
func (p *Process) sleep() {
	p.starting.Lock()
	defer p.starting.Unlock()
	p.mu.Lock()
	r, left := p.run, idleAfter-time.Since(p.used)
	if r == nil || !p.open {
		p.mu.Unlock()
		return
	}
	if left > 0 || r.busy() {
		p.idle.Reset(max(left, time.Second))
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	a, err := r.ask(context.Background(), &request{Op: opGenerations}, requestTime)
	if err != nil || a.err() != nil {
		return // it died, which is told of elsewhere
	}
	for i := range a.Generations {
		a.Generations[i].Kept = a.Generations[i].State.Pos // all is written before it ends
	}
	p.mu.Lock()
	p.run, p.asleep = nil, a.Generations
	if p.asleep == nil {
		p.asleep = []search.Generation{}
	}
	p.mu.Unlock()
	if err := r.end(closeTime); err != nil {
		p.log.Warn("the process of the search index did not end well", "error", err)
		p.mu.Lock()
		p.asleep = nil // what it has kept is asked of the next one
		p.mu.Unlock()
	}
}

// ask asks the process. What is only looked at does not keep it awake.
func (p *Process) ask(ctx context.Context, q *request, within time.Duration) (*response, error) {
	select {
	case p.turns <- struct{}{}:
		defer func() { <-p.turns }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r, err := p.process(ctx)
	if err != nil {
		return nil, err
	}
	if q.Op != opGenerations && q.Op != opSize {
		p.mu.Lock()
		p.used = time.Now()
		p.mu.Unlock()
	}
	a, err := r.ask(ctx, q, within)
	if err != nil {
		return nil, err
	}
	return a, a.err()
}

// empty tells that there is no process and no index it could be asked about.
func (p *Process) empty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.run != nil {
		return false
	}
	gens, err := filepath.Glob(filepath.Join(p.dir, "gen-*"))
	return err == nil && len(gens) == 0
}

// Search asks the served generation.
func (p *Process) Search(ctx context.Context, q *search.Query) (*search.Page, error) {
	if p.empty() {
		return nil, search.ErrNotServed
	}
	a, err := p.ask(ctx, &request{Op: opSearch, Query: q}, requestTime)
	if err != nil {
		return nil, err
	}
	return a.Page, nil
}

// Generations lists what is there.
func (p *Process) Generations(ctx context.Context) ([]search.Generation, error) {
	if p.empty() {
		return nil, nil
	}
	p.mu.Lock()
	asleep := p.asleep
	p.mu.Unlock()
	if asleep != nil {
		var out []search.Generation
		for _, g := range asleep {
			if _, err := os.Stat(filepath.Join(p.dir, g.Name)); err == nil {
				out = append(out, g)
			}
		}
		return out, nil
	}
	a, err := p.ask(ctx, &request{Op: opGenerations}, requestTime)
	if err != nil {
		return nil, err
	}
	return a.Generations, nil
}

// Create makes an empty generation.
func (p *Process) Create(ctx context.Context, name string, served bool, state search.State) error {
	_, err := p.ask(ctx, &request{Op: opCreate, Generation: name, Served: served, State: state}, writeTime)
	return err
}

// Write puts documents into a generation, and its state. What is too long for one message goes in several; the state comes
// with the last of them.
func (p *Process) Write(ctx context.Context, generation string, b *search.Batch, state search.State) error {
	rest := *b
	for {
		part := rest
		n, size := 0, 0
		for n < len(rest.Docs) && size < maxWrite {
			for _, t := range rest.Docs[n].Texts {
				size += len(t)
			}
			n++
		}
		part.Docs, rest.Docs = rest.Docs[:n], rest.Docs[n:]
		rest.Delete = nil
		last := len(rest.Docs) == 0
		if _, err := p.ask(ctx, &request{Op: opWrite, Generation: generation, Batch: &part, State: state, Part: !last}, writeTime); err != nil || last {
			return err
		}
	}
}

// DeleteRoom removes the documents of a room.
func (p *Process) DeleteRoom(ctx context.Context, generation string, room int64) error {
	_, err := p.ask(ctx, &request{Op: opDeleteRoom, Generation: generation, Room: room}, writeTime)
	return err
}

// Serve makes a generation the one that is searched.
func (p *Process) Serve(ctx context.Context, generation string) error {
	_, err := p.ask(ctx, &request{Op: opServe, Generation: generation}, writeTime)
	return err
}

// Drop removes a generation.
func (p *Process) Drop(ctx context.Context, generation string) error {
	if strings.ContainsAny(generation, `/\`) {
		return fmt.Errorf("%q is no name of a generation", generation)
	}
	_, err := p.ask(ctx, &request{Op: opDrop, Generation: generation}, writeTime)
	return err
}

// Size is the number of documents of the served generation and their bytes on disk.
func (p *Process) Size(ctx context.Context) (docs, bytes int64, err error) {
	if p.empty() {
		return 0, 0, search.ErrNotServed
	}
	a, err := p.ask(ctx, &request{Op: opSize}, requestTime)
	if err != nil {
		return 0, 0, err
	}
	return a.Docs, a.Bytes, nil
}
