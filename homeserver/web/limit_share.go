package web

import (
	"net/netip"
	"time"

	"maunium.net/go/mautrix/id"
)

// Draws are what one process gave out of one bucket, for the other processes of the server to count: who goes from one
// process to the next finds the same bucket. Nothing of it is stored.
type Draws struct {
	Rate Rate       `json:"r"`
	User id.UserID  `json:"u,omitzero"`
	IP   netip.Addr `json:"i,omitzero"`
	Name string     `json:"n,omitzero"`
	N    int        `json:"d"`
}

// drawn is what this process gave out and has not told of.
type drawn struct {
	n     int
	since time.Duration
}

const (
	tellAfter   = 2 * time.Second  // a use of more than a third of the long-run rate is told after this time
	untoldDrops = 10 * time.Second // a smaller one is forgotten after this
)

// Share makes the limiter remember what it gives out, for Draws to tell.
func (l *Limiter) Share() { l.sharing.Store(true) }

// note remembers a draw. The shard is locked.
func (s *limiterShard) note(key limitKey, now time.Duration) {
	d, known := s.drawn[key]
	if !known {
		if len(s.drawn) >= limiterEntries {
			return // a flood of addresses
		}
		d.since = now
	}
	d.n++
	if s.drawn == nil {
		s.drawn = make(map[limitKey]drawn)
	}
	s.drawn[key] = d
}

// Draws takes what other processes should know: a quarter of a bucket at once, or a use that goes on at more than a third
// of the rate. Most users are never told of.
func (l *Limiter) Draws() []Draws { return l.draws(time.Since(l.start)) }

func (l *Limiter) draws(now time.Duration) (out []Draws) {
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		for key, d := range s.drawn {
			interval := l.interval[key.rate]
			age := now - d.since
			used := time.Duration(d.n) * interval
			switch {
			case 4*used >= l.slack[key.rate]+interval, age >= tellAfter && 3*used >= age:
				out = append(out, Draws{Rate: key.rate, User: key.user, IP: key.ip, Name: key.name, N: d.n})
				delete(s.drawn, key)
			case age > untoldDrops:
				delete(s.drawn, key)
			}
		}
		s.mu.Unlock()
	}
	return out
}

// Count takes in what another process gave out. A bucket may be overdrawn by that; who drew from several processes at once
// waits the longer afterwards.
func (l *Limiter) Count(list []Draws) { l.count(list, time.Since(l.start)) }

func (l *Limiter) count(list []Draws, now time.Duration) {
	for _, d := range list {
		if d.Rate <= RateNone || d.Rate >= rateCount || l.interval[d.Rate] == 0 || d.N <= 0 {
			continue
		}
		key := limitKey{rate: d.Rate, user: d.User, ip: d.IP, name: d.Name}
		interval, slack := l.interval[d.Rate], l.slack[d.Rate]
		s := l.shard(key)
		s.mu.Lock()
		full, known := s.full[key]
		if !known && len(s.full) >= limiterEntries {
			s.makeRoom(now)
		}
		// no more than some buckets: a clock that jumps or a faulty process must not lock anybody out for long
		s.full[key] = min(max(full, now)+time.Duration(min(d.N, 1_000_000))*interval, now+4*(slack+interval))
		s.mu.Unlock()
	}
}
