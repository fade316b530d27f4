package web

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"maunium.net/go/mautrix/id"
)

// Rate names the bucket a route draws from. RateNone is free.
type Rate int8

// The buckets.
const (
	RateNone Rate = iota
	RateRead
	RateSend
	RateCreate
	RateJoin
	RateInvite
	RateLogin
	RateRegister
	RateMedia
	RateUserDirectory
	rateCount
)

// Bucket is the size of one class: requests per second in the long run, and how many may come at once. A rate of 0
// leaves the class unlimited.
type Bucket struct {
	PerSecond float64
	Burst     int
}

// pace is the time between two requests in the long run, and how far ahead of that they may come.
func (b Bucket) pace() (interval, slack time.Duration) {
	interval = max(time.Duration(float64(time.Second)/b.PerSecond), 1)
	return interval, time.Duration(max(b.Burst, 1)-1) * interval
}

const (
	limiterShards  = 16
	limiterEntries = 8192 // per shard: bounds memory to some 12 MB whatever comes in
)

// Limiter holds the buckets of users and addresses. An entry is one time (the generic cell rate algorithm): that at
// which the bucket will be full again, so an entry in the past is the same as none and can be dropped.
type Limiter struct {
	interval [rateCount]time.Duration // between two requests in the long run; 0: unlimited
	slack    [rateCount]time.Duration // how far ahead of now the entry may lie
	start    time.Time
	seed     maphash.Seed
	sharing  atomic.Bool // other processes are told
	shards   [limiterShards]limiterShard
}

type limiterShard struct {
	mu   sync.Mutex
	full map[limitKey]time.Duration // since Limiter.start

	drawn map[limitKey]drawn // what other processes were not told of
}

type limitKey struct {
	rate Rate
	user id.UserID
	ip   netip.Addr
	name string
}

// NewLimiter makes a limiter of the given sizes; classes that are not named are unlimited.
func NewLimiter(sizes map[Rate]Bucket) *Limiter {
	l := &Limiter{start: time.Now(), seed: maphash.MakeSeed()}
	for rate, b := range sizes {
		if rate <= RateNone || rate >= rateCount || b.PerSecond <= 0 {
			continue
		}
		l.interval[rate], l.slack[rate] = b.pace()
	}
	for i := range l.shards {
		l.shards[i].full = map[limitKey]time.Duration{}
	}
	return l
}

// Allow draws from a bucket that the caller names (the account a password is tried for, say). It returns 0, or how long to
// wait. A nil Limiter allows everything.
func (l *Limiter) Allow(rate Rate, name string) time.Duration {
	if l == nil {
		return 0
	}
	return l.draw(limitKey{rate: rate, name: name}, time.Since(l.start))
}

// allowRequest draws for a user, or for an address where there is no user.
func (l *Limiter) allowRequest(rate Rate, who *Identity, ip netip.Addr) time.Duration {
	key := limitKey{rate: rate}
	switch {
	case who != nil && who.Unlimited:
		return 0
	case who != nil:
		key.user = who.UserID
	case ip.Is6():
		// One household or host has a whole /64.
		p, err := ip.Prefix(64)
		if err != nil {
			return 0
		}
		key.ip = p.Addr()
	default:
		key.ip = ip
	}
	now := time.Since(l.start)
	if rate == RateSend && who != nil && who.Sending.PerSecond > 0 && l.interval[rate] != 0 {
		key.name = "own" // not the bucket that was drawn from before there was one
		interval, slack := who.Sending.pace()
		return l.drawAt(key, interval, slack, now, false)
	}
	return l.draw(key, now)
}

func (l *Limiter) draw(key limitKey, now time.Duration) time.Duration {
	return l.drawAt(key, l.interval[key.rate], l.slack[key.rate], now, l.sharing.Load())
}

// drawAt draws from a bucket of a size. What is told to other processes is counted there at the size that the server has for all, so
// buckets of somebody's own are not told of: each process has one of them.
func (l *Limiter) drawAt(key limitKey, interval, slack, now time.Duration, tell bool) time.Duration {
	if interval == 0 {
		return 0
	}
	shard := l.shard(key)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	full, known := shard.full[key]
	full = max(full, now)
	if wait := full - now - slack; wait > 0 {
		return wait
	}
	if !known && len(shard.full) >= limiterEntries {
		shard.makeRoom(now)
	}
	shard.full[key] = full + interval
	if tell {
		shard.note(key, now)
	}
	return 0
}

func (l *Limiter) shard(key limitKey) *limiterShard {
	return &l.shards[maphash.Comparable(l.seed, key)%limiterShards]
}

// makeRoom drops the buckets that are full again and, if none is, some that are not: under a flood of addresses
// forgetting a few is better than growing.
func (s *limiterShard) makeRoom(now time.Duration) {
	for k, full := range s.full {
		if full <= now {
			delete(s.full, k)
		}
	}
	for k := range s.full {
		if len(s.full) <= limiterEntries*3/4 {
			return
		}
		delete(s.full, k)
	}
}
