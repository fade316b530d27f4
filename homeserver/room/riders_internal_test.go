package room

import (
	"testing"
	"time"
)

// TestRidersInTheQueue: what nobody waits for goes along with what somebody waits for, a little at a time, and without anybody
// when nobody comes.
func TestRidersInTheQueue(t *testing.T) {
	wait, due := time.Duration(0), false
	q := &committerQueue{wake: make(chan struct{}, 1), rideIn: func(time.Time) (time.Duration, bool) { return wait, due }}
	put := func(rides bool, events int) *unit {
		t.Helper()
		u := &unit{rides: rides, drafts: make([]Draft, events)}
		if err := q.put(u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	take := func(what string, want ...*unit) {
		t.Helper()
		got := q.take(batchMax)
		if len(got) != len(want) {
			t.Fatalf("%s: %d units, want %d", what, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: another unit at %d", what, i)
			}
		}
	}
	awake := func(what string) {
		t.Helper()
		select {
		case <-q.wake:
		case <-time.After(time.Minute):
			t.Fatalf("%s: the committer is not woken", what)
		}
	}

	message := put(false, 1)
	awake("a message")
	take("a message", message)
	wait = time.Hour // somebody is here all the time
	first, second, large := put(true, 4), put(true, 4), put(true, 100)
	take("riders alone")
	if n := q.waiting(); n != 3 {
		t.Errorf("%d wait, want 3", n)
	}
	message = put(false, 1)
	take("a message beside riders that may wait", message)
	message = put(false, 1)
	wait, due = 0, true
	take("a message and riders that have waited for long", message, first, second)
	take("riders whom nobody took along", large)
	take("nobody")

	due = false
	alone := put(true, 1)
	awake("a rider where nobody is")
	take("a rider where nobody is", alone)

	wait = 20 * time.Millisecond
	later := put(true, 1)
	awake("a rider that is to wait")
	take("a rider that is to wait")
	awake("a rider that has waited")
	wait = 0
	take("a rider that has waited", later)

	wait = time.Hour
	last := put(true, 1)
	q.ended = true
	take("the end", last)
	if err := q.put(&unit{rides: true}); err == nil {
		t.Error("a rider is taken behind the end")
	}
}
