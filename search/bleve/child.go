package bleve

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"

	"github.com/moothall/moothall/homeserver/child"
	"github.com/moothall/moothall/search"
)

const (
	childEnv = "MOOTHALL_SEARCH_INDEX"

	// Whoever chats goes first; what is left over is plenty, and searches get some of it at all times.
	childNiceness = 10
	childMemory   = 512 << 20 // from here on the garbage collector works harder
	childGC       = 50
	childAtOnce   = 64 // requests under way
)

// Child keeps an index for a Process where this process was started for that, and ends it; else it does nothing. It is among
// the first things in main.
func Child() {
	if os.Getenv(childEnv) == "" {
		return
	}
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // whoever stops the server stops it: the end of the input says so
	child.Batch(childNiceness)
	debug.SetGCPercent(childGC)
	debug.SetMemoryLimit(childMemory)
	runtime.GOMAXPROCS(max(1, runtime.NumCPU()/2))
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := serve(os.Stdin, os.Stdout, log); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serve answers requests until there are no more.
func serve(in io.Reader, out io.Writer, log *slog.Logger) error {
	k := &keeper{log: log, out: out, under: map[uint64]context.CancelFunc{}}
	defer k.close()
	r := bufio.NewReaderSize(in, 64<<10)
	turns := make(chan struct{}, childAtOnce)
	for {
		var q request
		switch err := readFrame(r, &q); {
		case err == io.EOF:
			return nil // the parent has ended, or wants no more
		case err != nil:
			return err
		}
		if q.Op == opCancel {
			k.cancel(q.ID)
			continue
		}
		turns <- struct{}{}
		ctx, cancel := context.WithCancel(context.Background())
		k.begin(q.ID, cancel)
		k.work.Go(func() {
			defer func() { <-turns }()
			a := k.answer(ctx, &q)
			k.cancel(q.ID)
			k.send(a)
		})
	}
}

// keeper is the child's side.
type keeper struct {
	log  *slog.Logger
	work sync.WaitGroup

	mu    sync.Mutex
	index *Index
	under map[uint64]context.CancelFunc

	sending sync.Mutex
	out     io.Writer
}

func (k *keeper) close() {
	k.work.Wait()
	if k.index == nil {
		return
	}
	if err := k.index.Close(); err != nil {
		k.log.Warn("close the search index", "error", err)
	}
}

func (k *keeper) begin(id uint64, cancel context.CancelFunc) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.under[id] = cancel
}

func (k *keeper) cancel(id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if cancel := k.under[id]; cancel != nil {
		cancel()
		delete(k.under, id)
	}
}

func (k *keeper) send(a *response) {
	raw, err := frame(a)
	if err != nil {
		short := &response{ID: a.ID}
		short.fail(err)
		if raw, err = frame(short); err != nil {
			return // it holds nothing that could fail
		}
	}
	k.sending.Lock()
	defer k.sending.Unlock()
	if _, err := k.out.Write(raw); err != nil {
		k.log.Warn("the server does not listen any more", "error", err)
	}
}

// answer does what is asked for. A failure of the library is the failure of one request.
func (k *keeper) answer(ctx context.Context, q *request) (a *response) {
	a = &response{ID: q.ID}
	defer func() {
		if p := recover(); p != nil {
			k.log.Error("the search library failed", "panic", p, "stack", string(debug.Stack()))
			a = &response{ID: q.ID}
			a.fail(fmt.Errorf("the library failed: %v", p))
		}
	}()
	if err := k.do(ctx, q, a); err != nil {
		a.fail(err)
	}
	return a
}

func (k *keeper) do(ctx context.Context, q *request, a *response) (err error) {
	k.mu.Lock()
	if q.Op == opOpen && k.index == nil {
		k.index = New(q.Generation, k.log)
	}
	x := k.index
	k.mu.Unlock()
	if x == nil {
		return search.ErrNotServed
	}
	switch q.Op {
	case opOpen:
		return x.Open(ctx)
	case opSearch:
		a.Page, err = x.Search(ctx, q.Query)
	case opGenerations:
		a.Generations, err = x.Generations(ctx)
	case opCreate:
		err = x.Create(ctx, q.Generation, q.Served, q.State)
	case opWrite:
		state := q.State
		if q.Part {
			if state, err = x.state(q.Generation); err != nil {
				return err
			}
		}
		err = x.Write(ctx, q.Generation, q.Batch, state)
	case opDeleteRoom:
		err = x.DeleteRoom(ctx, q.Generation, q.Room)
	case opServe:
		err = x.Serve(ctx, q.Generation)
	case opDrop:
		err = x.Drop(ctx, q.Generation)
	case opSize:
		a.Docs, a.Bytes, err = x.Size(ctx)
	default:
		err = fmt.Errorf("%q is not known", q.Op)
	}
	return err
}
