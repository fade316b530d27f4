package homeserver

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/moothall/moothall/homeserver/testkit"
)

// TestCollector sees that a small heap is let grow, that a large one is collected when it has doubled, and that this is set anew
// with each collection.
func TestCollector(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{{0, 100}, {8 << 20, 1500}, {32 << 20, 300}, {64 << 20, 100}, {1 << 30, 100}} {
		if got := collectAt(c.live); got != c.want {
			t.Errorf("%d MiB alive: grows by %d %%, want %d", c.live>>20, got, c.want)
		}
	}
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	ctx, cancel := context.WithCancel(t.Context())
	tuneCollector(ctx)
	percent := func() int {
		n := debug.SetGCPercent(100)
		debug.SetGCPercent(n)
		return n
	}
	small := percent()
	keep := make([]byte, heapFirst)
	runtime.GC()
	testkit.Eventually(t, "a large heap is collected when it has doubled", func() bool { return percent() == 100 })
	runtime.KeepAlive(keep)
	keep = nil
	runtime.GC()
	testkit.Eventually(t, "a small heap is let grow again", func() bool { return percent() > (small+100)/2 })
	cancel()
}

// TestHeapUse makes garbage and sees that it is counted as spare, and gone after a collection.
func TestHeapUse(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	debug.FreeOSMemory()
	_, before := heapUse()
	var keep []byte
	for range 64 {
		keep = make([]byte, 1<<20)
	}
	runtime.KeepAlive(keep)
	if _, spare := heapUse(); spare < before+32<<20 {
		t.Errorf("64 MiB of garbage count as %d KiB more", (int64(spare)-int64(before))>>10)
	}
	debug.FreeOSMemory()
	if _, spare := heapUse(); spare > before+16<<20 {
		t.Errorf("after the collection %d MiB are left", spare>>20)
	}
	if processorTime() == 0 {
		t.Error("no processor time")
	}
}
