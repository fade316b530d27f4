//go:build !linux

package homeserver

// releaseProgram gives back the memory of the program's own file where the system has a way for that.
func releaseProgram() uintptr { return 0 }
