package homeserver

import (
	"runtime"
	"runtime/debug"
	"testing"
)

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
