package homeserver

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	rtm "runtime/metrics"
	"syscall"
	"time"
)

const (
	memoryFirst = time.Second // after the start, which makes much that is needed once
	memoryEvery = 20 * time.Second
	memoryLeast = 8 << 20 // bytes that are worth giving back
	memoryQuiet = 0.25    // of one processor: a server that does less has the time to collect its garbage

	// heapFirst is the size of the heap, in bytes, up to which nothing is collected. Go's collector begins when the heap is twice as
	// large as what is alive: a small server under load would collect several times a second, and whoever sends meanwhile waits for a
	// processor.
	heapFirst = 128 << 20
)

// runMemory gives memory back to the system while the server has little to do: Go's collector lets garbage grow to the size of
// what is alive, which for ten thousand clients that only wait is a third of all memory.
func (s *Server) runMemory(ctx context.Context) error {
	if !wait(ctx, memoryFirst) {
		return nil
	}
	tuneCollector(ctx)
	debug.FreeOSMemory()
	releaseProgram()
	tick := time.NewTicker(memoryEvery)
	defer tick.Stop()
	before := processorTime()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		used := processorTime()
		quiet := used-before < time.Duration(memoryQuiet*float64(memoryEvery))
		before = used
		if live, spare := heapUse(); quiet && spare > memoryLeast && spare > live/8 {
			debug.FreeOSMemory()
			releaseProgram()
			before = processorTime() // the collection is no load
		}
	}
}

// tuneCollector sets after each collection when the next one begins, until ctx ends. Who sets GOGC has set it.
func tuneCollector(ctx context.Context) {
	if os.Getenv("GOGC") != "" {
		return
	}
	var again func(int)
	again = func(int) {
		if ctx.Err() == nil {
			live, _ := heapUse()
			debug.SetGCPercent(collectAt(live))
			runtime.AddCleanup(new(collected), again, 0)
		}
	}
	again(0)
}

// collected is what the next collection finds without use.
type collected struct{ _ [16]byte }

// collectAt is by how many percent of what is alive the heap grows before it is collected.
func collectAt(live uint64) int {
	if live == 0 {
		return 100
	}
	return max(100, int(heapFirst*100/live)-100)
}

// wait lets time pass, and tells whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// processorTime is what this process has used; 0 where the system does not tell.
func processorTime() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// heapUse gives the bytes alive at the last collection, and those that a collection now could give back at most.
func heapUse() (live, spare uint64) {
	m := []rtm.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/free:bytes"}}
	rtm.Read(m)
	live = m[0].Value.Uint64()
	spare = m[2].Value.Uint64()
	if objects := m[1].Value.Uint64(); objects > live {
		spare += objects - live
	}
	return live, spare
}
