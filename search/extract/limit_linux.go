package extract

import (
	"fmt"
	"syscall"
)

// limit bounds what this process may use: memory that it writes to, processor time, and files, of which it needs none.
func limit(memory int64) error {
	for _, l := range []struct {
		what  int
		value uint64
	}{
		{syscall.RLIMIT_DATA, uint64(memory)}, {syscall.RLIMIT_CPU, 120}, {syscall.RLIMIT_FSIZE, 0}, {syscall.RLIMIT_CORE, 0},
	} {
		if err := syscall.Setrlimit(l.what, &syscall.Rlimit{Cur: l.value, Max: l.value}); err != nil {
			return fmt.Errorf("limit the reader of files: %w", err)
		}
	}
	return nil
}
