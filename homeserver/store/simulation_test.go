package store_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// simEffects is what the simulated follower writes: one row for each entry of the log.
const simEffects = `CREATE TABLE sim_effects (pos BIGINT PRIMARY KEY, kind BIGINT NOT NULL)`

// TestSimulation runs schedules of several nodes, clients and faults in virtual time, one for each seed, and checks after each
// that nothing was lost, doubled, skipped or accepted under a stale state.
//
//	SIM_SEEDS=5000 go test -run 'TestSimulation$' ./homeserver/store   seeds 1 to 5000
//	SIM_SEED=17    go test -run 'TestSimulation$' ./homeserver/store   seed 17 alone
func TestSimulation(t *testing.T) {
	template, dir := store.SimTemplate(t, simEffects), t.TempDir()
	first, last := seeds(t)
	for seed := first; seed <= last; seed++ {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			t.Parallel()
			defer func() {
				if t.Failed() {
					t.Logf("replay it by: SIM_SEED=%d go test -run 'TestSimulation$' ./homeserver/store", seed)
				}
			}()
			simulate(t, template, dir, seed)
		})
	}
}

// seeds reads from the environment which seeds to run.
func seeds(t *testing.T) (first, last uint64) {
	t.Helper()
	number := func(name string, otherwise uint64) uint64 {
		s := os.Getenv(name)
		if s == "" {
			return otherwise
		}
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return n
	}
	if one := number("SIM_SEED", 0); one > 0 {
		return one, one
	}
	n := uint64(1000)
	if testing.Short() {
		n = 50
	}
	return 1, number("SIM_SEEDS", n)
}

// simulate runs one seed. All chances come from it; only what becomes ready at one instant runs in the order that Go's
// scheduler gives, so that a replay may differ in details.
func simulate(t *testing.T, template, dir string, seed uint64) {
	synctest.Test(t, func(t *testing.T) {
		db, err := store.OpenSimDB(template, filepath.Join(dir, fmt.Sprintf("%d.db", seed)), seed)
		if err != nil {
			t.Fatal(err)
		}
		s := &sim{t: t, db: db, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), quit: make(chan struct{})}
		s.run()
		if os.Getenv("SIM_SEED") != "" || t.Failed() {
			t.Log(s.history())
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
}

// sim is one schedule.
type sim struct {
	t    *testing.T
	db   *store.SimDB
	seed uint64
	rng  *rand.Rand
	quit chan struct{} // the clients are done

	weather int  // the profile
	calm    bool // no faults: every request must succeed and be quick

	slots []*slot
	rooms []*simRoom

	mu       sync.Mutex
	requests []*request
	walks    []*walk
	began    int // processes started up to now
	lives    []*process
}

// slot is a place where one process runs at a time.
type slot struct {
	mu   sync.Mutex
	proc *process
	skew time.Duration
}

func (s *slot) get() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// process is one life of a node.
type process struct {
	name  string
	store *store.Store
	node  *store.SimNode
	rooms *room.Rooms
	first int64 // applied at its start

	stopRun, stopFollow context.CancelFunc
	running, following  sync.WaitGroup

	mu    sync.Mutex
	heard []store.Entry
}

type simRoom struct {
	id      id.RoomID
	nid     int64
	version *event.Version
}

// request is what a client asked for and what it was told.
type request struct {
	room       *simRoom
	drafts     []room.Draft
	user       id.UserID
	began      int64 // the log's head at the first attempt
	from, upto int64 // the log's head before and after the last attempt
	start, end time.Duration
	ids        []id.EventID
	err        error
	denied     bool
}

// profiles are the kinds of weather.
var profiles = []store.SimFaults{
	{},
	{Refuse: 0.004, Again: 0.02, Slow: 0.01},
	{LostAnswer: 0.06, Again: 0.01},
	{CrashBefore: 0.01, CrashAfter: 0.01},
	{Freeze: 0.02, Slow: 0.02},
	{Slow: 0.15},
	{Refuse: 0.002, Again: 0.01, LostAnswer: 0.02, CrashBefore: 0.004, CrashAfter: 0.004, Freeze: 0.005, Slow: 0.03},
	{Refuse: 0.002, Again: 0.01, LostAnswer: 0.04, CrashBefore: 0.004, CrashAfter: 0.01, Freeze: 0.01, Slow: 0.01},
}

func (s *sim) run() {
	s.weather = s.rng.IntN(len(profiles))
	s.calm = s.weather == 0
	for range 1 + s.rng.IntN(3) {
		s.slots = append(s.slots, &slot{skew: time.Duration(s.rng.Int64N(int64(20*time.Minute))) - 10*time.Minute})
	}
	for i := range s.slots {
		s.start(i)
	}
	s.setUp()
	if s.t.Failed() {
		s.stopAll()
		return
	}
	s.db.SetFaults(profiles[s.weather])
	var clients, others sync.WaitGroup
	for i, c := range []client{{user: alice, device: "A1"}, {user: alice, device: "A2"}, {user: bob, device: "B1"}, {user: carol, device: "C1"},
		{user: carol, device: "C2"}, {user: dave, device: "D1"}, {user: eve, device: "E1"}} {
		c.sim, c.name = s, "client "+string(c.device)
		c.rng = rand.New(rand.NewPCG(s.seed, uint64(100+i)))
		clients.Go(c.work)
	}
	for i := range 2 {
		w := &walk{sim: s, name: fmt.Sprintf("walk %d", i), rng: rand.New(rand.NewPCG(s.seed, uint64(200+i))), room: s.rooms[i%len(s.rooms)]}
		s.walks = append(s.walks, w)
		others.Go(w.work)
	}
	if !s.calm {
		others.Go(func() { s.chaos(rand.New(rand.NewPCG(s.seed, 300))) })
	}
	others.Go(func() { s.notify(rand.New(rand.NewPCG(s.seed, 301))) })
	clients.Wait()
	close(s.quit)
	others.Wait()
	s.settle()
	s.check()
	s.stopAll()
}

// start begins a process's life in a slot.
func (s *sim) start(i int) {
	s.mu.Lock()
	s.began++
	p := &process{name: fmt.Sprintf("node %d.%d", i, s.began)}
	s.mu.Unlock()
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SIM_SEED") != "" {
		log = slog.New(slog.NewTextHandler(s.t.Output(), nil)).With("node", p.name)
	}
	ctx := s.db.WithActor(context.Background(), p.name+" start")
	for tries := 1; ; tries++ {
		var err error
		if p.store, p.node, err = store.OpenSimNode(ctx, s.db, p.name, log); err == nil {
			break
		}
		if tries == 1000 {
			panic(fmt.Sprintf("seed %d: %s cannot start: %v", s.seed, p.name, err))
		}
		time.Sleep(100 * time.Millisecond)
	}
	p.first = p.store.Applied()
	p.rooms = room.New(room.Deps{Store: p.store, ServerName: "test", Logger: log, CacheBytes: 1 << 20,
		Key: event.SigningKey{KeyID: "ed25519:a", Private: ed25519.NewKeyFromSeed(make([]byte, 32))},
		Now: func() time.Time { return time.Now().Add(s.slots[i].skew) }})
	run, stopRun := context.WithCancel(s.db.WithActor(context.Background(), p.name+" commit"))
	follow, stopFollow := context.WithCancel(s.db.WithActor(context.Background(), p.name+" tail"))
	p.stopRun, p.stopFollow = stopRun, stopFollow
	note := store.Listener{Apply: func(entries []store.Entry) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.heard = append(p.heard, entries...)
	}}
	p.following.Go(func() {
		if err := p.store.Follow(follow, []store.Listener{p.rooms.Listener(), note}, nil); err != nil {
			s.t.Errorf("%s: follow: %v", p.name, err)
		}
	})
	p.running.Go(func() {
		if err := p.rooms.Run(run); err != nil {
			s.t.Errorf("%s: run: %v", p.name, err)
		}
	})
	effects := s.db.WithActor(run, p.name+" follower")
	p.running.Go(func() {
		err := p.store.RunFollower(effects, "effects", func(ctx context.Context, entries []store.Entry) error { return effect(ctx, p.store, entries) })
		if err != nil {
			s.t.Errorf("%s: follower: %v", p.name, err)
		}
	})
	s.mu.Lock()
	s.lives = append(s.lives, p)
	s.mu.Unlock()
	s.slots[i].mu.Lock()
	s.slots[i].proc = p
	s.slots[i].mu.Unlock()
}

// effect is the follower's work: what it finds done stays.
func effect(ctx context.Context, st *store.Store, entries []store.Entry) error {
	cols := []store.Col{{Name: "pos", Type: store.Int}, {Name: "kind", Type: store.Int}}
	return st.Write(ctx, func(tx *store.Tx) error {
		return tx.Insert("sim_effects", cols, len(entries), func(i int) []any {
			return []any{entries[i].Pos, int64(entries[i].Kind)}
		}, "ON CONFLICT DO NOTHING")
	})
}

// stop ends a process in order, or what is left of one that crashed.
func (p *process) stop() {
	p.stopRun()
	p.running.Wait()
	p.stopFollow()
	p.following.Wait()
}

func (s *sim) stopAll() {
	for _, sl := range s.slots {
		if p := sl.get(); p != nil {
			p.stop()
		}
	}
}

// setUp makes the rooms and lets everybody in.
func (s *sim) setUp() {
	p := s.slots[0].get()
	ctx := s.db.WithActor(context.Background(), "set up")
	// the follower begins at the head that it finds: let it begin before there is anything
	time.Sleep(time.Second)
	for _, version := range []string{"12", "11"} {
		v, ok := event.LookupVersion(version)
		if !ok {
			s.t.Errorf("no room version %s", version)
			return
		}
		empty := ""
		draft := func(typ, key, content string) room.Draft {
			return room.Draft{Type: typ, StateKey: &key, Content: []byte(content), Sender: alice}
		}
		levels := draft("m.room.power_levels", empty, levels(v, 50, 0))
		roomID, err := p.rooms.CreateRoom(ctx, v, alice, []byte(`{"room_version":"`+version+`"}`), []room.Draft{
			draft("m.room.member", string(alice), `{"membership":"join"}`), levels,
			draft("m.room.join_rules", empty, `{"join_rule":"public"}`),
		}, room.RoomMeta{})
		if err != nil {
			s.t.Errorf("create a room of version %s: %v", version, err)
			return
		}
		for _, u := range []id.UserID{bob, carol, dave} {
			if _, err := p.rooms.Send(ctx, roomID, member(u, u, "join")); err != nil {
				s.t.Errorf("%s joins: %v", u, err)
				return
			}
		}
		r, err := p.rooms.Room(ctx, roomID)
		if err != nil {
			s.t.Error(err)
			return
		}
		s.rooms = append(s.rooms, &simRoom{id: roomID, nid: r.NID(), version: v})
	}
}

func levels(v *event.Version, bobs, events int) string {
	users := fmt.Sprintf(`"@bob:test":%d`, bobs)
	if v.ID == "11" {
		users += `,"@alice:test":100`
	}
	return fmt.Sprintf(`{"users":{%s},"events_default":%d,"state_default":50,"redact":50,"ban":50,"kick":50,"invite":0}`, users, events)
}

func member(sender, user id.UserID, membership string) room.Draft {
	k := string(user)
	return room.Draft{Type: "m.room.member", StateKey: &k, Content: []byte(`{"membership":"` + membership + `"}`), Sender: sender}
}

// chaos crashes, stops, freezes and starts processes until the clients are done.
func (s *sim) chaos(rng *rand.Rand) {
	var restarts sync.WaitGroup
	defer restarts.Wait()
	for s.sleep(time.Duration(rng.Int64N(int64(400 * time.Millisecond)))) {
		i := rng.IntN(len(s.slots))
		what, how := rng.IntN(10), time.Duration(rng.Int64N(int64(12*time.Second)))
		pause := time.Duration(rng.Int64N(int64(500 * time.Millisecond)))
		p := s.slots[i].get()
		if p == nil {
			continue
		}
		again := func() {
			s.slots[i].mu.Lock()
			s.slots[i].proc = nil
			s.slots[i].mu.Unlock()
			restarts.Go(func() {
				p.stop()
				time.Sleep(pause)
				s.start(i)
			})
		}
		switch {
		case p.node.Dead():
			again()
		case what == 0:
			p.node.Crash(how%2 == 0)
			again()
		case what == 1:
			again() // as by SIGTERM
		case what == 2:
			p.node.Freeze(how)
		case what == 3:
			p.node.FreezeAtLock(how)
		case what == 4:
			p.node.Freeze(how / 50)
		}
	}
}

// notify tells nodes at random moments that the log may have grown, as PostgreSQL's notifications do.
func (s *sim) notify(rng *rand.Rand) {
	for s.sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond)))) {
		if p := s.slots[rng.IntN(len(s.slots))].get(); p != nil && rng.IntN(3) > 0 {
			p.node.Kick(s.db.Head() * rng.Int64N(2))
		}
	}
}

// sleep waits; false means that the clients are done.
func (s *sim) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.quit:
		return false
	}
}

// pick gives a living process.
func (s *sim) pick(rng *rand.Rand) *process {
	for {
		if p := s.slots[rng.IntN(len(s.slots))].get(); p != nil && (s.calm || rng.IntN(4) == 0 || !p.node.Dead()) {
			return p
		}
		time.Sleep(time.Duration(1 + rng.Int64N(int64(20*time.Millisecond))))
	}
}

// settle ends all faults and lets every node and the follower reach the head.
func (s *sim) settle() {
	s.db.SetFaults(store.SimFaults{})
	for i, sl := range s.slots {
		p := sl.get()
		p.node.Thaw()
		if p.node.Dead() {
			p.stop()
			s.start(i)
		}
	}
	ctx := s.db.WithActor(context.Background(), "settle")
	for _, sl := range s.slots {
		p := sl.get()
		if err := p.store.CatchUp(ctx); err != nil {
			s.t.Errorf("%s cannot catch up: %v", p.name, err)
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		var pos int64
		err := s.db.Look(func(tx *store.Tx) error {
			_, err := tx.Get([]any{&pos}, `SELECT pos FROM followers WHERE name = 'effects'`)
			return err
		})
		if err != nil {
			s.t.Error(err)
			return
		}
		if pos == s.db.Head() {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("the follower stands at %d, the head at %d, a minute after the last fault", pos, s.db.Head())
			return
		}
	}
}

var errGone = errors.New("the connection to the node was lost")
