package search

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	liveChunk = 2000            // entries of the log that are indexed at once
	scanChunk = 400             // older events that are indexed at once
	lookEvery = 2 * time.Second // between looks at the engine for what was wiped, and at the database for requests

	// New messages gather before they are indexed together, the longer the more come: every write makes a segment, and to
	// merge many small ones costs more than all the rest that is done for a message. What is sent is found within a second.
	gatherTime = 100 * time.Millisecond
	gatherEach = 2 * time.Millisecond // more for each entry of the last step
	gatherMost = 400 * time.Millisecond
)

// index keeps the engine up to date until ctx ends. Whatever goes wrong, it looks afresh at what there is and goes on from
// there: how far each generation is stands in the engine itself.
func (s *Search) index(ctx context.Context) error {
	wait := pause{}
	for {
		began := time.Now()
		err := s.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > time.Minute {
			wait = pause{}
		}
		if wait.first() && !errors.Is(err, ErrGone) {
			s.d.Log.Warn("the search index cannot be kept up to date, trying again", "engine", s.d.Index.Name(), "error", err)
		}
		if err := wait.sleep(ctx); err != nil {
			return nil
		}
	}
}

// indexer is one stretch of following the log.
type indexer struct {
	s      *Search
	gens   []Generation // those that are written to
	pos    int64        // the log is read up to here
	kept   time.Time    // when the position was saved last
	keptAt int64        // the position that was saved
	looked time.Time
	job    store.SearchRebuild
	took   int // entries of the last step
	told   time.Time
	last   store.SearchStatus // that was told
}

// follow plans what to write to and follows the log; it returns when something has changed or is wrong.
func (s *Search) follow(ctx context.Context) error {
	if err := s.something(ctx); err != nil {
		return err
	}
	ix := &indexer{s: s}
	if err := ix.plan(ctx); err != nil {
		return err
	}
	gens := slices.Clone(ix.gens)
	s.gens.Store(&gens)
	defer s.gens.Store(nil)
	for {
		busy, err := ix.step(ctx)
		if err != nil {
			return err
		}
		if time.Since(ix.looked) > lookEvery {
			same, err := ix.look(ctx)
			if err != nil {
				return err
			}
			if !same {
				return s.follow(ctx) // a request came, or generations went
			}
		}
		if busy {
			continue
		}
		if err := ix.keep(ctx); err != nil {
			return err
		}
		wctx, cancel := context.WithTimeout(ctx, time.Second)
		err = s.d.Store.WaitApplied(wctx, ix.pos+1)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		if err == nil {
			select {
			case <-time.After(min(gatherTime+time.Duration(ix.took)*gatherEach, gatherMost)):
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

// something waits until there is anything that could be indexed: a server that is new needs no engine.
func (s *Search) something(ctx context.Context) error {
	for {
		if some, err := s.anything(ctx); err != nil || some {
			return err
		}
		wctx, cancel := context.WithTimeout(ctx, time.Second)
		err := s.d.Store.WaitApplied(wctx, s.d.Store.Applied()+1)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
}

// anything tells whether there ever was an event.
func (s *Search) anything(ctx context.Context) (bool, error) {
	var newest int64
	err := s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		_, _, newest, err = tx.LogBounds()
		return err
	})
	return newest > 0, err
}

// plan finds out which generations there are and which are needed.
func (ix *indexer) plan(ctx context.Context) error {
	gens, err := ix.s.d.Index.Generations(ctx)
	if err != nil {
		return err
	}
	var oldest, head, newest int64
	err = ix.s.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if oldest, head, newest, err = tx.LogBounds(); err != nil {
			return err
		}
		ix.job, err = tx.SearchRebuild()
		return err
	})
	if err != nil {
		return err
	}
	epochs := ix.s.d.Store.Epochs()
	epoch := epochs[len(epochs)-1].Number
	usable := func(g *Generation) bool {
		return g.State.Format == Format && g.State.Epoch == epoch && g.State.Pos >= oldest-1 && g.State.Pos <= head
	}
	slices.SortFunc(gens, func(a, b Generation) int { return strings.Compare(b.Name, a.Name) })
	var served, next *Generation
	for i := range gens {
		g := &gens[i]
		switch {
		case g.Served:
			served = g
		case next == nil && usable(g):
			next = g
		default:
			if err := ix.s.d.Index.Drop(ctx, g.Name); err != nil {
				return err
			}
		}
	}
	fresh := State{Format: Format, Epoch: epoch, Pos: head, ScanTo: newest}
	wanted := ix.job.Requested > 0 && ix.job.Ended == 0
	switch {
	case served == nil && next != nil:
		if err := ix.s.d.Index.Serve(ctx, next.Name); err != nil {
			return err
		}
		served, next = next, nil
		served.Served = true
	case served == nil:
		served = &Generation{Name: generationName(gens), Served: true, State: fresh, Kept: fresh.Pos}
		if err := ix.s.d.Index.Create(ctx, served.Name, true, fresh); err != nil {
			return err
		}
		ix.s.d.Log.Info("a new search index is being built", "engine", ix.s.d.Index.Name(), "events", newest)
	case next == nil && (wanted || !usable(served)):
		next = &Generation{Name: generationName(gens), State: fresh, Kept: fresh.Pos}
		if err := ix.s.d.Index.Create(ctx, next.Name, false, fresh); err != nil {
			return err
		}
		ix.s.d.Log.Info("the search index is being rebuilt beside the old one", "engine", ix.s.d.Index.Name(), "events", newest)
	}
	ix.pos = head
	for _, g := range []*Generation{served, next} {
		if g == nil || g.Served && !usable(g) {
			continue // what cannot be continued is searched as it is until the new one is there
		}
		ix.gens = append(ix.gens, *g)
		ix.pos = min(ix.pos, g.State.Pos)
	}
	ix.looked = time.Now()
	ix.s.pos.Store(ix.pos)
	return ix.report(ctx, false)
}

// generationName is a name behind all others.
func generationName(gens []Generation) string {
	last := time.Now().UnixMilli()
	for _, g := range gens {
		if n, err := strconv.ParseInt(strings.TrimPrefix(g.Name, "gen-"), 10, 64); err == nil && n >= last {
			last = n + 1
		}
	}
	return fmt.Sprintf("gen-%015d", last)
}

// look tells whether the engine still has what is written to, and whether nothing was asked for meanwhile.
func (ix *indexer) look(ctx context.Context) (bool, error) {
	ix.looked = time.Now()
	gens, err := ix.s.d.Index.Generations(ctx)
	if err != nil {
		return false, err
	}
	for i := range ix.gens {
		g := &ix.gens[i]
		at := slices.IndexFunc(gens, func(x Generation) bool { return x.Name == g.Name })
		if at < 0 || gens[at].Served != g.Served || gens[at].State != g.State {
			return false, nil
		}
		g.Kept = gens[at].Kept
	}
	var job store.SearchRebuild
	err = ix.s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		job, err = tx.SearchRebuild()
		return err
	})
	if err != nil {
		return false, err
	}
	if job.Requested > 0 && job.Ended == 0 && job.Requested != ix.job.Requested {
		return false, nil
	}
	if err := ix.tell(ctx); err != nil {
		return false, err
	}
	return true, ix.report(ctx, false)
}

// tellEvery is the time between notes of how far the index is, for those who ask in another process.
const tellEvery = 10 * time.Second

// tell notes how far the index is, where that has changed.
func (ix *indexer) tell(ctx context.Context) error {
	now := store.SearchStatus{Engine: ix.s.d.Index.Name(), Pos: ix.pos, Docs: ix.last.Docs, Bytes: ix.last.Bytes}
	for _, g := range ix.gens {
		if g.Served || now.ScanTo == 0 {
			now.Scan, now.ScanTo = g.State.Scan, g.State.ScanTo
		}
	}
	if now == ix.last || time.Since(ix.told) < tellEvery {
		return nil
	}
	ix.told = time.Now()
	docs, bytes, err := ix.s.d.Index.Size(ctx)
	if errors.Is(err, ErrNotServed) {
		return nil
	}
	if err != nil {
		return err
	}
	now.Docs, now.Bytes = docs, bytes
	ix.last = now
	now.Updated = ix.told.UnixMilli()
	return ix.s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SaveSearchStatus(now) })
}

// step indexes what is new and then some of what is old; busy tells that there may be more.
func (ix *indexer) step(ctx context.Context) (busy bool, err error) {
	var entries []store.Entry
	applied := ix.s.d.Store.Applied()
	if applied > ix.pos {
		err := ix.s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			entries, err = tx.ReadLog(ix.pos, liveChunk)
			return err
		})
		if err != nil {
			return false, err
		}
		if len(entries) == 0 {
			ix.pos = applied // a restored backup left positions out
		}
	}
	ix.took = len(entries)
	if len(entries) > 0 {
		if err := ix.live(ctx, entries); err != nil {
			return false, err
		}
		busy = len(entries) >= liveChunk
	}
	for i := range ix.gens {
		if g := &ix.gens[i]; !g.State.Done() {
			if err := ix.scan(ctx, g); err != nil {
				return false, err
			}
			return true, nil
		}
	}
	return busy, nil
}

// live indexes entries of the log.
func (ix *indexer) live(ctx context.Context, entries []store.Entry) error {
	var nids []int64
	for _, e := range entries {
		switch e.Kind {
		case store.KindEvent:
			nids = append(nids, e.Ref)
		case store.KindRoomMeta:
			if err := ix.roomChanged(ctx, e.Room); err != nil {
				return err
			}
		}
	}
	last := entries[len(entries)-1].Pos
	write := func() error {
		ix.s.write.Lock()
		defer ix.s.write.Unlock()
		batch := &Batch{}
		if len(nids) > 0 {
			var err error
			if batch, err = ix.s.build(ctx, func(tx *store.Tx) ([]*store.Event, error) { return tx.EventsByNID(nids) }); err != nil {
				return err
			}
		}
		for i := range ix.gens {
			g := &ix.gens[i]
			if last <= g.State.Pos {
				continue
			}
			state := g.State
			state.Pos = last
			// a log without messages moves the state now and then only
			if len(batch.Docs)+len(batch.Delete) == 0 && last-g.State.Pos < liveChunk && len(entries) < liveChunk {
				continue
			}
			if err := ix.s.d.Index.Write(ctx, g.Name, batch, state); err != nil {
				return err
			}
			ix.moved(i, state)
		}
		return nil
	}
	if err := write(); err != nil {
		return err
	}
	ix.pos = last
	ix.s.pos.Store(last)
	return ix.keep(ctx)
}

// moved notes the new state of a generation.
func (ix *indexer) moved(i int, state State) {
	ix.gens[i].State = state
	gens := slices.Clone(ix.gens)
	ix.s.gens.Store(&gens)
}

// build makes documents of events in one snapshot of the database, and asks for the texts of files.
func (s *Search) build(ctx context.Context, read func(tx *store.Tx) ([]*store.Event, error)) (*Batch, error) {
	var batch *Batch
	var wanted []store.WantedFile
	err := s.d.Store.Read(ctx, func(tx *store.Tx) error {
		_, head, _, err := tx.LogBounds()
		if err != nil {
			return err
		}
		rows, err := read(tx)
		if err != nil {
			return err
		}
		batch, wanted, err = s.builder.build(ctx, tx, rows, head)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make documents: %w", err)
	}
	if len(wanted) > 0 {
		if err := s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.WantSearchFiles(wanted) }); err != nil {
			return nil, fmt.Errorf("ask for the text of files: %w", err)
		}
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
	return batch, nil
}

// scan indexes a chunk of what was there before the generation was made.
func (ix *indexer) scan(ctx context.Context, g *Generation) error {
	i := slices.IndexFunc(ix.gens, func(x Generation) bool { return x.Name == g.Name })
	state, err := ix.scanChunk(ctx, i)
	if err != nil || !state.Done() {
		return err
	}
	return ix.finished(ctx, i)
}

func (ix *indexer) scanChunk(ctx context.Context, i int) (State, error) {
	ix.s.write.Lock()
	defer ix.s.write.Unlock()
	state := ix.gens[i].State
	var upto int64
	batch, err := ix.s.build(ctx, func(tx *store.Tx) ([]*store.Event, error) {
		rows, err := tx.EventsAfter(state.Scan, state.ScanTo, scanChunk)
		upto = state.ScanTo
		if len(rows) == scanChunk {
			upto = rows[len(rows)-1].NID
		}
		return rows, err
	})
	if err != nil {
		return state, err
	}
	state.Scan = upto
	if err := ix.s.d.Index.Write(ctx, ix.gens[i].Name, batch, state); err != nil {
		return state, err
	}
	ix.moved(i, state)
	return state, nil
}

// finished puts a generation that is complete into its place.
func (ix *indexer) finished(ctx context.Context, i int) error {
	g := &ix.gens[i]
	if !g.Served {
		if err := ix.s.d.Index.Serve(ctx, g.Name); err != nil {
			return err
		}
		gens, err := ix.s.d.Index.Generations(ctx)
		if err != nil {
			return err
		}
		for _, old := range gens {
			if old.Name != g.Name {
				if err := ix.s.d.Index.Drop(ctx, old.Name); err != nil {
					return err
				}
			}
		}
		g.Served = true
		ix.gens = []Generation{*g}
		ix.moved(0, g.State)
	}
	ix.s.d.Log.Info("the search index is complete", "engine", ix.s.d.Index.Name(), "events", g.State.ScanTo)
	return ix.report(ctx, true)
}

// report writes down how far a rebuilding is that was asked for.
func (ix *indexer) report(ctx context.Context, ended bool) error {
	if ix.job.Requested == 0 || ix.job.Ended > 0 {
		return nil
	}
	now := time.Now().UnixMilli()
	if ix.job.Began == 0 {
		ix.job.Began = now
	}
	if ended {
		ix.job.Done, ix.job.Ended = ix.job.Total, now
	} else {
		for _, g := range ix.gens {
			if !g.State.Done() || !g.Served {
				ix.job.Done, ix.job.Total = g.State.Scan, g.State.ScanTo
			}
		}
	}
	job := ix.job
	return ix.s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.SaveSearchRebuild(job) })
}

// roomChanged removes a room that is gone from the index, and events that are gone from a room that is there.
func (ix *indexer) roomChanged(ctx context.Context, room int64) error {
	there := false
	err := ix.s.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		found, err := tx.ExistingRooms([]int64{room})
		there = found[room]
		return err
	})
	if err != nil {
		return err
	}
	ix.s.write.Lock()
	defer ix.s.write.Unlock()
	for i := range ix.gens {
		if !there {
			err = ix.s.d.Index.DeleteRoom(ctx, ix.gens[i].Name, room)
		} else if ix.gens[i].Served {
			err = ix.prune(ctx, &ix.gens[i], room)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prune removes documents of a room whose events are gone. Old events go first, so the first page without a gap ends it.
func (ix *indexer) prune(ctx context.Context, g *Generation, room int64) error {
	q := &Query{Rooms: []int64{room}, Oldest: true, Limit: 500}
	for {
		page, err := ix.s.d.Index.Search(ctx, q)
		if errors.Is(err, ErrNotServed) {
			return nil
		}
		if err != nil || len(page.Hits) == 0 {
			return err
		}
		nids := make([]int64, len(page.Hits))
		for i, h := range page.Hits {
			nids[i] = h.NID
		}
		var there map[int64]bool
		err = ix.s.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			there, err = tx.ExistingEvents(nids)
			return err
		})
		if err != nil {
			return err
		}
		batch := &Batch{}
		for _, h := range page.Hits {
			if !there[h.NID] {
				batch.Delete = append(batch.Delete, h.ID)
			}
		}
		if len(batch.Delete) == 0 {
			return nil
		}
		if err := ix.s.d.Index.Write(ctx, g.Name, batch, g.State); err != nil {
			return err
		}
		last := page.Hits[len(page.Hits)-1].Cursor
		q.After = &last
	}
}

// keep saves from where the log is needed. That may be behind the index, never before it.
func (ix *indexer) keep(ctx context.Context) error {
	pos := ix.pos
	for _, g := range ix.gens {
		pos = min(pos, g.Kept)
	}
	if time.Since(ix.kept) < time.Second || pos == ix.keptAt {
		return nil
	}
	ix.kept, ix.keptAt = time.Now(), pos
	return ix.s.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.KeepLog(follower, pos) })
}
