package faults_test

import (
	"testing"
	"time"
)

// TestKill kills the process by SIGKILL at random moments while 16 senders write. Afterwards every acknowledged message
// is there once, tokens from before go on, and repeated transaction ids give the first event ids.
func TestKill(t *testing.T) {
	eachDatabase(t, func(t *testing.T, databaseURL string) {
		random := moments(t)
		n := startNode(t, nodeConfig{name: "node", databaseURL: databaseURL})
		senders := registerAll(t, n, "sender", 16)
		alice := register(t, n, "alice")
		room := publicRoom(t, append([]*client{alice}, senders...)...)
		l := newLoad(t, room)
		follower := newReader(t, alice, room, 20)
		follower.load = l
		follower.start()
		idle := newReader(t, alice.login(t, n), room, 10) // asks only after each restart, with a token from before
		var down []time.Duration
		began := time.Now()
		lost, doubled := 0, 0
		for range rounds(t) {
			l.start(senders...)
			time.Sleep(between(random, 100*time.Millisecond, 1200*time.Millisecond))
			killed := time.Now()
			n.kill()
			n.start()
			down = append(down, time.Since(killed))
			time.Sleep(between(random, 50*time.Millisecond, 300*time.Millisecond))
			l.stop()
			l.repeat(random.IntN, 20)
			history := alice.history(t, room, "", "")
			a, b := l.check(history)
			lost, doubled = lost+a, doubled+b
			idle.finish(history)
			if t.Failed() {
				break
			}
		}
		follower.stop()
		follower.finish(alice.history(t, room, "", ""))
		t.Logf("%d rounds in %s: %d acknowledged, %d lost, %d doubled; away for at most %s; the reader had %d limited timelines, %d failed syncs",
			rounds(t), time.Since(began).Round(time.Second), l.count(), lost, doubled, longest(down), follower.limited, follower.failures())
	})
}

func longest(all []time.Duration) time.Duration {
	var out time.Duration
	for _, d := range all {
		out = max(out, d)
	}
	return out.Round(time.Millisecond)
}
