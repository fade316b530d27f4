//go:build unix

package store

import (
	"io"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// indexEnv names the WAL's index to a second process of this test.
const indexEnv = "MOOTHALL_STORE_TEST_INDEX"

// TestIndexStaysLocked looks at the WAL's size, as the care for checkpoints does all the time: another process still sees the lock by which SQLite
// tells that the database is in use (WAL_DMS, the byte 128 of the index). Without it, a command that opens the database
// would cut the index, which this process has mapped, and build it anew.
func TestIndexStaysLocked(t *testing.T) {
	if path := os.Getenv(indexEnv); path != "" {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		l := syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: 128, Len: 1}
		if err := syscall.FcntlFlock(f.Fd(), syscall.F_GETLK, &l); err != nil {
			t.Fatal(err)
		}
		if l.Type == syscall.F_UNLCK {
			t.Error("the database seems to be used by nobody")
		}
		return
	}
	b := ridersBackend(t)
	for range 2 {
		if size, _, err := b.wal(); err != nil || size == 0 {
			t.Fatalf("a WAL of %d bytes, %v", size, err)
		}
	}
	if err := b.checkpoint(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := exec.Command(os.Args[0], "-test.run=^TestIndexStaysLocked$")
	second.Env = append(os.Environ(), indexEnv+"="+b.path+"-shm")
	if out, err := second.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	for range 2 { // the second time there is nothing to close
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}
	if size, _, err := b.wal(); err != nil || size != 0 {
		t.Errorf("of a closed database: a WAL of %d bytes, %v", size, err)
	}
}
