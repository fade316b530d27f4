package web

import (
	"testing"
	"time"
)

// TestLimiterAcrossProcesses lets one user draw from three processes as fast as they allow, and from each steadily below
// its limit: together they give at most twice what one may give, with a word between them every 200 ms.
func TestLimiterAcrossProcesses(t *testing.T) {
	const perSecond, burst, seconds = 10, 50, 60
	for name, pause := range map[string]time.Duration{"greedy": time.Millisecond, "steady": 110 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			var nodes []*Limiter
			for range 3 {
				l := NewLimiter(map[Rate]Bucket{RateSend: {PerSecond: perSecond, Burst: burst}})
				l.Share()
				nodes = append(nodes, l)
			}
			key := limitKey{rate: RateSend, user: "@a:x"}
			given, told := 0, 0
			for now := time.Duration(0); now < seconds*time.Second; now += time.Millisecond {
				if now%pause == 0 {
					for _, l := range nodes {
						if l.draw(key, now) == 0 {
							given++
						}
					}
				}
				if now%(200*time.Millisecond) == 0 {
					for i, l := range nodes {
						list := l.draws(now)
						told += len(list)
						for j, other := range nodes {
							if j != i {
								other.count(list, now)
							}
						}
					}
				}
			}
			one := perSecond*seconds + burst
			if given > 2*one || given < one/2 {
				t.Errorf("three processes gave %d, one alone gives %d", given, one)
			}
			if told == 0 {
				t.Error("the processes told each other nothing")
			}
			t.Logf("three processes gave %d, one alone gives %d", given, one)
		})
	}
}

// TestQuietUsersAreNotTold has users who do something now and then.
func TestQuietUsersAreNotTold(t *testing.T) {
	l := NewLimiter(map[Rate]Bucket{RateSend: {PerSecond: 10, Burst: 50}})
	l.Share()
	key := limitKey{rate: RateSend, user: "@a:x"}
	for now := time.Duration(0); now < time.Minute; now += 100 * time.Millisecond {
		if now%time.Second == 0 {
			l.draw(key, now)
		}
		if list := l.draws(now); len(list) > 0 {
			t.Fatalf("after %v told of %v", now, list)
		}
	}
	for i := range l.shards {
		if d := l.shards[i].drawn[key]; d.n > 11 {
			t.Errorf("%d draws are remembered", d.n)
		}
	}
}

func TestCountIsBounded(t *testing.T) {
	l := NewLimiter(map[Rate]Bucket{RateSend: {PerSecond: 10, Burst: 50}})
	l.count([]Draws{{Rate: RateSend, User: "@a:x", N: 1 << 60}, {Rate: 99, N: 1}, {Rate: RateRead, N: 1}, {Rate: RateSend, N: -5}}, time.Second)
	if wait := l.draw(limitKey{rate: RateSend, user: "@a:x"}, time.Second); wait <= 0 || wait > 20*time.Second {
		t.Errorf("wait %v", wait)
	}
	if wait := l.draw(limitKey{rate: RateSend}, time.Second); wait != 0 {
		t.Errorf("a negative number took something: %v", wait)
	}
}
