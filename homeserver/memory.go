package homeserver

import (
	"context"
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
)

// runMemory gives memory back to the system while the server has little to do: Go's collector lets garbage grow to the size of
// what is alive, which for ten thousand clients that only wait is a third of all memory.
func (s *Server) runMemory(ctx context.Context) error {
	if !wait(ctx, memoryFirst) {
		return nil
	}
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
