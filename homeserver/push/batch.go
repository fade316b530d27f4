package push

import (
	"context"
	"sync"
)

// batcher answers questions that come from many goroutines in groups: while one group is asked, the next gathers. The
// goroutine that finds nobody asking asks for all that wait.
type batcher[Q, A any] struct {
	ask func(ctx context.Context, questions []Q) ([]A, error) // one answer for each question

	mu      sync.Mutex
	asking  bool
	waiting []*question[Q, A]
}

type question[Q, A any] struct {
	q    Q
	a    A
	err  error
	done chan struct{}
	lead chan struct{} // closed for the one who is to ask next
}

// batchMost bounds a group, so that its transaction stays short.
const batchMost = 256

// do asks one question and waits for its answer.
func (b *batcher[Q, A]) do(ctx context.Context, q Q) (A, error) {
	me := &question[Q, A]{q: q, done: make(chan struct{}), lead: make(chan struct{})}
	b.mu.Lock()
	b.waiting = append(b.waiting, me)
	if b.asking {
		b.mu.Unlock()
		select {
		case <-me.done:
			return me.a, me.err
		case <-me.lead:
		}
	} else {
		b.asking = true
		b.mu.Unlock()
	}
	b.mu.Lock()
	n := min(len(b.waiting), batchMost)
	group := b.waiting[:n:n]
	b.waiting = b.waiting[n:]
	b.mu.Unlock()
	questions := make([]Q, n)
	for i, g := range group {
		questions[i] = g.q
	}
	// the group is others' too: one caller's end does not break it off
	answers, err := b.ask(context.WithoutCancel(ctx), questions)
	for i, g := range group {
		if g.err = err; err == nil {
			g.a = answers[i]
		}
		close(g.done)
	}
	b.mu.Lock()
	if len(b.waiting) > 0 {
		close(b.waiting[0].lead)
	} else {
		b.asking = false
	}
	b.mu.Unlock()
	<-me.done // the leader stands first in its group
	return me.a, me.err
}
