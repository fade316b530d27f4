package clientsync

import (
	"sync"
	"time"

	"github.com/moothall/moothall/homeserver/room"
)

// waker wakes rooms' members later than now: receipts and typing come in swarms, and a wake-up of a large room costs
// as much as a message.
type waker struct {
	now  func() time.Time
	kick chan struct{}

	mu   sync.Mutex
	due  map[int64]time.Time // by room: when to wake
	last map[int64]time.Time // by room: when it was woken last
}

const (
	receiptEvery = 500 * time.Millisecond // at most two wake-ups a second for others' receipts
	typingEvery  = 100 * time.Millisecond
	wakerKept    = 4096 // rooms whose last wake-up is remembered
)

func newWaker(now func() time.Time) *waker {
	return &waker{now: now, kick: make(chan struct{}, 1), due: make(map[int64]time.Time), last: make(map[int64]time.Time)}
}

// schedule asks for a wake-up of a room, which comes at once if the last one is long enough ago.
func (w *waker) schedule(room int64, every time.Duration) {
	w.mu.Lock()
	at := w.now()
	if t := w.last[room].Add(every); t.After(at) {
		at = t
	}
	if t, ok := w.due[room]; !ok || at.Before(t) {
		w.due[room] = at
	}
	w.mu.Unlock()
	nudge(w.kick)
}

// take gives the rooms whose time has come, and when the next ones come.
func (w *waker) take() (rooms []int64, next time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	for room, at := range w.due {
		if at.After(now) {
			if next.IsZero() || at.Before(next) {
				next = at
			}
			continue
		}
		rooms = append(rooms, room)
		delete(w.due, room)
		w.last[room] = now
	}
	if len(w.last) > wakerKept {
		for room, at := range w.last {
			if now.Sub(at) > receiptEvery {
				delete(w.last, room)
			}
		}
	}
	return rooms, next
}

const (
	crowdTurn = 5 * time.Millisecond
	crowdOver = 250 * time.Millisecond // the time over which a room's readers are woken
	crowdAt   = 32                     // as many are woken at once
)

// crowds are readers still to be woken for what does not hurry: all readers of a large room at once would keep messages
// waiting until the last of them has been answered. Owned by runWaker.
type crowds struct {
	waiting []crowd
	last    time.Time
}

type crowd struct {
	users []*room.User
	turn  int // how many are woken each time
}

// add wakes a few readers now; of many it wakes the rest in later steps.
func (c *crowds) add(users []*room.User) {
	if len(users) <= crowdAt {
		for _, u := range users {
			u.Poke()
		}
		return
	}
	c.waiting = append(c.waiting, crowd{users, len(users)/int(crowdOver/crowdTurn) + 1})
}

// step wakes the next ones of each crowd, and tells whether more are left.
func (c *crowds) step(now time.Time) bool {
	if now.Sub(c.last) < crowdTurn {
		return len(c.waiting) > 0
	}
	c.last = now
	left := c.waiting[:0]
	for _, w := range c.waiting {
		n := min(w.turn, len(w.users))
		for _, u := range w.users[:n] {
			u.Poke()
		}
		if w.users = w.users[n:]; len(w.users) > 0 {
			left = append(left, w)
		}
	}
	clear(c.waiting[len(left):])
	c.waiting = left
	return len(left) > 0
}

// nudge sends on a channel of capacity 1 without waiting.
func nudge(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
