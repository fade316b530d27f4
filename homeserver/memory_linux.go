package homeserver

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// releaseProgram gives back the memory that the program's own file takes: code and tables that only the start needed. Linux
// maps the file in large pieces and drops none by itself while there is room. What is needed comes back from the page cache.
// It returns the bytes that were mapped.
func releaseProgram() (mapped uintptr) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(maps) {
		// 00400000-01b85000 r-xp 00000000 fd:00 123 /usr/bin/moothall
		f := bytes.Fields(line)
		if len(f) < 6 || string(f[5]) != program || bytes.IndexByte(f[1], 'w') >= 0 {
			continue // what can be written may have been
		}
		from, to, _ := bytes.Cut(f[0], []byte("-"))
		start, err1 := strconv.ParseUint(string(from), 16, 64)
		end, err2 := strconv.ParseUint(string(to), 16, 64)
		if err1 != nil || err2 != nil || end <= start {
			continue
		}
		if madviseUnneeded(uintptr(start), uintptr(end-start)) {
			mapped += uintptr(end - start)
		}
	}
	return mapped
}

func madviseUnneeded(start, length uintptr) bool {
	_, _, e := syscall.Syscall(syscall.SYS_MADVISE, start, length, syscall.MADV_DONTNEED)
	return e == 0
}
