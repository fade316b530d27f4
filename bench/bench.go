// Package bench is a load generator that speaks only the public client-server API, so that it measures any homeserver.
package bench

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"
)

// Config says what to measure, and where. The addresses must be on this machine's loopback.
type Config struct {
	URLs     []string      // http://127.0.0.1:8008; of several processes of one server each user has one
	PIDs     []int         // processes to watch, with their children: the server, its database
	Phases   []string      // names from Phases; empty: those that need no request
	Duration time.Duration // of each sending phase
	Idle     int           // clients of the idle phase
	Members  int           // of the growing room and of the big one
	Messages int           // of the fill phase
	Disk     string        // folder on the disk whose fsync is timed; empty: the current one
	Progress io.Writer     // what is going on, a line each; nil: silent
}

// Bench is one run.
type Bench struct {
	Config
	http     *http.Client
	run      string // makes names unique
	password string
	results  []Result
	rounds   int // of closed-loop senders up to now

	mu         sync.Mutex
	users      []*user
	registered int // how many accounts this run has made
}

// phase is one measurement.
type phase struct {
	name string
	help string
	fn   func(b *Bench, ctx context.Context) error
	only bool // runs only when it is asked for
}

func phases() []phase {
	return []phase{
		{name: "register", help: "open registration, 4 at once", fn: (*Bench).phaseRegister},
		{name: "login", help: "m.login.password, 4 at once", fn: (*Bench).phaseLogin},
		{name: "rooms", help: "private rooms made, 8 at once", fn: (*Bench).phaseRooms},
		{name: "join", help: "joins into one room that grows, 16 at once", fn: (*Bench).phaseJoin},
		{name: "small", help: "messages into 50 rooms of 20, 1, 16 and 64 senders", fn: (*Bench).phaseSmall},
		{name: "big", help: "messages into one room of 100, 1, 16 and 64 senders", fn: (*Bench).phaseBig},
		{name: "rate", help: "500 messages a second offered, 50 rooms of 20", fn: (*Bench).phaseRate},
		{name: "delivery", help: "10 rooms of 20, 190 long polls, 20 messages a second", fn: (*Bench).phaseDelivery},
		{name: "crowd", help: "one room with all members in a long poll, 1 message a second", fn: (*Bench).phaseCrowd},
		{name: "receipts", help: "one room of 500 where every reader polls, sends receipts and has a pusher, 5 messages a second", fn: (*Bench).phaseReceipts},
		{name: "initial", help: "initial sync of an account in 200 rooms, and incremental ones", fn: (*Bench).phaseInitial},
		{name: "idle", help: "idle long polls", fn: (*Bench).phaseIdle, only: true},
		{name: "fill", help: "a number of messages into 50 rooms of 20, to see what they take on the disk", fn: (*Bench).phaseFill, only: true},
		{name: "signins", help: "what others feel of 200 people who sign in with passwords at once", fn: (*Bench).phaseSignIns, only: true},
		{name: "stuck", help: "what others feel of 200 clients that never read the answer to their sync", fn: (*Bench).phaseStuck, only: true},
		{name: "reconnect", help: "what others feel of 1,000 clients whose connections end and that come back at once", fn: (*Bench).phaseReconnect, only: true},
		{name: "large", help: "what others feel of a lively room of 5,000", fn: (*Bench).phaseLarge, only: true},
		{name: "upgrade", help: "what others feel of the upgrade of a room of 5,000, and pages of messages", fn: (*Bench).phaseUpgrade, only: true},
		{name: "many", help: "what others feel of an account in 5,000 rooms that syncs", fn: (*Bench).phaseMany, only: true},
	}
}

// Phases lists the names of all phases with what they do.
func Phases() [][2]string {
	var out [][2]string
	for _, p := range phases() {
		out = append(out, [2]string{p.name, p.help})
	}
	return out
}

// Run measures, and returns what was measured up to an error.
func Run(ctx context.Context, cfg Config) ([]Result, error) {
	if err := checkURLs(cfg.URLs); err != nil {
		return nil, err
	}
	var suffix [4]byte
	_, _ = rand.Read(suffix[:]) // never fails
	if cfg.Progress == nil {
		cfg.Progress = io.Discard
	}
	b := &Bench{Config: cfg, http: &http.Client{Transport: transport()}, run: hex.EncodeToString(suffix[:]), password: "bench-" + hex.EncodeToString(suffix[:])}
	want := cfg.Phases
	if len(want) == 0 {
		for _, p := range phases() {
			if !p.only {
				want = append(want, p.name)
			}
		}
	}
	known := map[string]bool{}
	for _, p := range phases() {
		known[p.name] = true
	}
	for _, w := range want {
		if !known[w] {
			return nil, fmt.Errorf("there is no phase %q", w)
		}
	}
	if err := b.timeFsync(); err != nil {
		return nil, err
	}
	for _, p := range phases() {
		if !slices.Contains(want, p.name) {
			continue
		}
		b.say("%s: %s", p.name, p.help)
		if err := p.fn(b, ctx); err != nil {
			return b.results, fmt.Errorf("phase %s: %w", p.name, err)
		}
	}
	return b.results, nil
}

func checkURLs(list []string) error {
	if len(list) == 0 {
		return errors.New("the address of a server is needed, such as http://127.0.0.1:8008")
	}
	for _, s := range list {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" {
			return fmt.Errorf("%q is no address of a server, such as http://127.0.0.1:8008", s)
		}
		if h := u.Hostname(); h != "localhost" && h != "127.0.0.1" && h != "::1" {
			return fmt.Errorf("the load goes only to this machine: use 127.0.0.1, not %s", h)
		}
	}
	return nil
}

// timeFsync measures what a commit costs on this disk at least: 4 KiB appended and written through.
func (b *Bench) timeFsync() (err error) {
	f, err := os.CreateTemp(cmp.Or(b.Disk, "."), "moothall-bench-*")
	if err != nil {
		return fmt.Errorf("time the disk's fsync (--disk names another folder): %w", err)
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	block := make([]byte, 4096)
	took := make([]time.Duration, 100)
	for i := range took {
		start := time.Now()
		if _, err := f.Write(block); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		took[i] = time.Since(start)
	}
	res := Result{Phase: "fsync of 4 KiB", Operations: len(took)}
	for _, d := range took {
		res.Seconds += d.Seconds()
	}
	res.PerSecond = float64(len(took)) / res.Seconds
	res.latencies(took)
	b.results = append(b.results, res)
	b.say("fsync of 4 KiB: p50 %.2f ms, p99 %.2f ms", res.P50, res.P99)
	return nil
}

func (b *Bench) say(format string, args ...any) {
	_, _ = fmt.Fprintf(b.Progress, format+"\n", args...) // progress that cannot be shown is no reason to stop
}

// recorder collects a phase's operations.
type recorder struct {
	mu    sync.Mutex
	took  []time.Duration
	errs  int
	first string
}

func (r *recorder) add(d time.Duration, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return // the phase's time was over
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.errs++
		if r.first == "" {
			r.first = err.Error()
		}
		return
	}
	r.took = append(r.took, d)
}

// percentile is in milliseconds.
func (r *recorder) percentile(p float64) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.took)
	return percentile(r.took, p)
}

// measured runs fn as a phase and appends its result.
func (b *Bench) measured(name string, extra map[string]float64, fn func(r *recorder) error) error {
	r := &recorder{}
	before := measure(b.PIDs, false)
	err := fn(r)
	after := measure(b.PIDs, true)
	cpu, own, others := after.since(before)
	r.mu.Lock()
	defer r.mu.Unlock()
	res := Result{Phase: name, Operations: len(r.took), Errors: r.errs, FirstError: r.first, Seconds: after.at.Sub(before.at).Seconds(),
		CPU: cpu, Memory: after.memory, OwnCPU: own, OthersShare: others, Extra: extra}
	res.PerSecond = float64(res.Operations) / res.Seconds
	sum := 0.0
	for _, c := range cpu {
		sum += c
	}
	if res.Operations > 0 {
		res.CPUPer1000 = sum / float64(res.Operations) * 1000
	}
	res.latencies(r.took)
	b.results = append(b.results, res)
	b.say("  %s: %d operations, %.1f/s, p50 %.2f ms, p99 %.2f ms, %d errors", name, res.Operations, res.PerSecond, res.P50, res.P99, res.Errors)
	return err
}

// parallel runs fn for 0..n-1, at most width at once, and stops at the first error.
func parallel(ctx context.Context, width, n int, fn func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	next := make(chan int)
	for range min(width, n) {
		wg.Go(func() {
			for i := range next {
				if err := fn(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	for i := range n {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return context.Cause(ctx)
}

// need makes sure that there are n users.
func (b *Bench) need(ctx context.Context, n int) ([]*user, error) {
	b.mu.Lock()
	have := len(b.users)
	b.mu.Unlock()
	if have < n {
		b.say("  registering %d users", n-have)
		more := make([]*user, n-have)
		err := parallel(ctx, 4, n-have, func(ctx context.Context, i int) error {
			u, err := b.register(ctx, fmt.Sprintf("bench%s-%d", b.run, have+i))
			more[i] = u
			return err
		})
		if err != nil {
			return nil, err
		}
		b.users = append(b.users, more...)
	}
	return b.users[:n], nil
}

// fill makes a public room with these members.
func (b *Bench) fill(ctx context.Context, members []*user) (string, error) {
	room, err := members[0].createRoom(ctx, "public_chat")
	if err != nil {
		return "", err
	}
	return room, parallel(ctx, 16, len(members)-1, func(ctx context.Context, i int) error { return members[i+1].join(ctx, room) })
}

// smallRooms makes n rooms of size members out of n*size/overlap users, and tells who is in each.
func (b *Bench) smallRooms(ctx context.Context, n, size int) ([]string, [][]*user, error) {
	users, err := b.need(ctx, 100)
	if err != nil {
		return nil, nil, err
	}
	rooms, members := make([]string, n), make([][]*user, n)
	b.say("  filling %d rooms of %d", n, size)
	for i := range n {
		for j := range size {
			members[i] = append(members[i], users[(i*7+j)%len(users)])
		}
		if rooms[i], err = b.fill(ctx, members[i]); err != nil {
			return nil, nil, err
		}
	}
	return rooms, members, nil
}
