package homeserver

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// programPages is how much memory the program's file takes, code and tables.
func programPages(t *testing.T) (kib int) {
	t.Helper()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range strings.Lines(string(smaps)) {
		if f := strings.Fields(line); len(f) > 1 && strings.Contains(f[0], "-") {
			ours = len(f) > 5 && f[5] == program && !strings.Contains(f[1], "w")
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && ours {
			kib += n
		}
	}
	return kib
}

// TestReleaseProgram gives back the pages of the program's own file, and goes on to run.
func TestReleaseProgram(t *testing.T) {
	before := programPages(t)
	if n := releaseProgram(); n < 1<<20 {
		t.Fatalf("%d bytes were mapped", n)
	}
	if after := programPages(t); after >= before || before == 0 {
		t.Errorf("%d KiB were used before, %d after", before, after)
	}
}
