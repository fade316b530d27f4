// Package room is the only writer of room events: hot rooms in memory, the committer in front of the log, and the
// reads of timelines and state.
package room

// Rooms holds the hot rooms and commits events.
type Rooms struct{}
