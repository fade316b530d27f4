package store_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	alice = id.UserID("@alice:test")
	bob   = id.UserID("@bob:test")
	carol = id.UserID("@carol:test")
	dave  = id.UserID("@dave:test")
	eve   = id.UserID("@eve:test") // not in the rooms at first
)

// client is a device that asks for one thing after the other, of whichever node.
type client struct {
	sim    *sim
	name   string
	user   id.UserID
	device id.DeviceID
	rng    *rand.Rand
	txns   int
	sent   []id.EventID // messages of its own
	in     []*simRoom   // where they were sent
	began  int64        // the log's head before a request that is sent twice; else 0
}

const clientOps = 12

func (c *client) work() {
	for range clientOps {
		time.Sleep(time.Duration(1 + c.rng.Int64N(int64(40*time.Millisecond))))
		r := c.sim.rooms[c.rng.IntN(10)/8] // most of it in one room
		switch n := c.rng.IntN(100); {
		case n < 55:
			c.send(r, true, c.message())
		case n < 65:
			c.twice(r)
		case n < 74:
			c.moveSelf(r)
		case n < 80:
			c.send(r, false, c.state("x.test", fmt.Sprint(c.rng.IntN(3)), fmt.Sprintf(`{"n":%d}`, c.rng.IntN(1000))))
		case n < 87:
			c.moveOther(r)
		case n < 91:
			c.send(r, false, c.state("m.room.power_levels", "", levels(r.version, 50*c.rng.IntN(2), 50*(c.rng.IntN(3)/2))))
		case n < 94:
			c.redact()
		case n < 97:
			c.send(r, true, c.message(), c.message())
		default:
			c.announce()
		}
	}
}

func (c *client) message() room.Draft {
	c.txns++
	return room.Draft{Type: "m.room.message", Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":"%s %d"}`, c.device, c.txns),
		Sender: c.user, Device: c.device, Txn: fmt.Sprintf("send/m.room.message/%d", c.txns)}
}

func (c *client) state(typ, key, content string) room.Draft {
	return room.Draft{Type: typ, StateKey: &key, Content: []byte(content), Sender: c.user}
}

// moveSelf joins or leaves.
func (c *client) moveSelf(r *simRoom) {
	membership := "join"
	if c.user != alice && c.rng.IntN(3) == 0 {
		membership = "leave"
	}
	c.send(r, false, member(c.user, c.user, membership))
}

// moveOther changes the membership of somebody else.
func (c *client) moveOther(r *simRoom) {
	target := []id.UserID{bob, carol, dave, eve}[c.rng.IntN(4)]
	if target == c.user {
		target = eve
	}
	c.send(r, false, member(c.user, target, []string{"ban", "leave", "invite", "ban", "leave"}[c.rng.IntN(5)]))
}

func (c *client) redact() {
	if len(c.sent) == 0 {
		return
	}
	i := c.rng.IntN(len(c.sent))
	c.txns++
	c.send(c.in[i], true, room.Draft{Type: "m.room.redaction", Content: []byte(`{}`), Redacts: c.sent[i], Sender: c.user,
		Device: c.device, Txn: fmt.Sprintf("redact/%d", c.txns)})
}

// announce writes an entry that is no event: the log is not the rooms' alone.
func (c *client) announce() {
	p := c.sim.pick(c.rng)
	ctx, cancel := context.WithTimeout(c.sim.db.WithActor(context.Background(), fmt.Sprintf("%s announce %d", c.name, c.txns)), 30*time.Second)
	defer cancel()
	c.txns++
	// whether it succeeds does not matter: the log's order is checked
	_ = p.store.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.Announce(store.Entry{Kind: store.KindAccountData, User: string(c.user), Key: "x.test"})
		return err
	})
}

// twice sends the same request to two nodes at about the same time.
func (c *client) twice(r *simRoom) {
	d, began := c.message(), c.sim.db.Head()
	var wg sync.WaitGroup
	for range 2 {
		other := *c
		other.rng = rand.New(rand.NewPCG(c.rng.Uint64(), 1))
		other.sent, other.in, other.began = nil, nil, began
		other.name = fmt.Sprintf("%s twice %d", c.name, c.rng.Uint32())
		wg.Go(func() {
			time.Sleep(time.Duration(1 + other.rng.Int64N(int64(5*time.Millisecond))))
			other.send(r, true, d)
		})
	}
	wg.Wait()
}

// send asks until it has a definite answer, where the request can be repeated; else once.
func (c *client) send(r *simRoom, repeat bool, drafts ...room.Draft) {
	q := &request{room: r, drafts: drafts, user: c.user, began: c.sim.db.Head(), start: c.sim.now()}
	if c.began > 0 {
		q.began = c.began
	}
	for try := range 6 {
		c.attempt(q, try)
		if q.err == nil || q.denied || !repeat {
			break
		}
		time.Sleep(time.Duration(1 + c.rng.Int64N(int64(200*time.Millisecond))))
	}
	q.end = c.sim.now()
	if q.err == nil && drafts[0].Type == "m.room.message" {
		c.sent, c.in = append(c.sent, q.ids[0]), append(c.in, r)
	}
	c.sim.mu.Lock()
	defer c.sim.mu.Unlock()
	c.sim.requests = append(c.sim.requests, q)
}

func (c *client) attempt(q *request, try int) {
	p := c.sim.pick(c.rng)
	ctx := c.sim.db.WithActor(context.Background(), fmt.Sprintf("%s %d.%d", c.name, c.rng.Uint32(), try))
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	q.from = c.sim.db.Head()
	drafts := append([]room.Draft(nil), q.drafts...)
	q.ids, q.err = p.rooms.SendAll(ctx, q.room.id, drafts)
	q.upto = c.sim.db.Head()
	if p.node.Dead() {
		q.ids, q.err = nil, errGone
		return
	}
	e := mxerr.As(q.err)
	q.denied = e != nil && (e.Status == http.StatusForbidden || e.Status == http.StatusNotFound)
	if q.err == nil {
		c.readBack(ctx, p, q)
	}
}

// readBack reads at the node that answered what it has just acknowledged.
func (c *client) readBack(ctx context.Context, p *process, q *request) {
	if c.rng.IntN(4) > 0 {
		return
	}
	r, err := p.rooms.Room(ctx, q.room.id)
	if err != nil {
		return // the database may be away
	}
	missing, err := c.missing(ctx, p, r, q)
	if err != nil || p.node.Dead() || missing == "" {
		return
	}
	// a node that could not read the log meanwhile answers before it shows what was committed; nothing else may
	if profiles[c.sim.weather].Refuse == 0 {
		c.sim.t.Errorf("%s acknowledged %s and does not show it", p.name, missing)
		return
	}
	if p.store.CatchUp(ctx) != nil {
		return
	}
	if missing, err = c.missing(ctx, p, r, q); err == nil && missing != "" && !p.node.Dead() {
		c.sim.t.Errorf("%s acknowledged %s, has caught up and does not show it", p.name, missing)
	}
}

// missing gives an acknowledged event that the node does not show.
func (c *client) missing(ctx context.Context, p *process, r *room.Room, q *request) (id.EventID, error) {
	page, err := p.rooms.Timeline(ctx, r, room.TimelineQuery{From: q.began, Limit: 1000})
	if err != nil {
		return "", err
	}
	shown := map[id.EventID]int{}
	for _, e := range page.Events {
		shown[e.ID()]++
		if shown[e.ID()] > 1 {
			c.sim.t.Errorf("%s shows %s twice", p.name, e.ID())
		}
	}
	for _, x := range q.ids {
		if shown[x] == 0 {
			return x, nil
		}
	}
	return "", nil
}

func (s *sim) now() time.Duration { return time.Duration(time.Now().UnixNano()) }

// walk reads a room as a client does that syncs: from token to token, at whichever node.
type walk struct {
	sim   *sim
	name  string
	rng   *rand.Rand
	room  *simRoom
	first int64
	token int64
	nids  []int64
	state map[event.StateKeyTuple]int64
}

func (w *walk) work() {
	ctx := w.sim.db.WithActor(context.Background(), w.name)
	begun := false
	for n := 0; w.sim.sleep(time.Duration(1 + w.rng.Int64N(int64(60*time.Millisecond)))); n++ {
		p := w.sim.pick(w.rng)
		if !begun {
			begun = w.begin(ctx, p)
			continue
		}
		w.step(ctx, p)
	}
}

// begin takes a first token and the whole state at it.
func (w *walk) begin(ctx context.Context, p *process) bool {
	r, err := p.rooms.Room(ctx, w.room.id)
	if err != nil {
		return false
	}
	token := p.store.Applied()
	state, err := p.rooms.StateAt(ctx, r, token)
	if err != nil {
		return false
	}
	if p.store.Applied() != token {
		return false // the state may be that of a later position where memory answers
	}
	w.first, w.token, w.state = token, token, state
	return true
}

// step reads what is new. A step that meets a fault is taken again from the same token.
func (w *walk) step(ctx context.Context, p *process) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if p.store.WaitApplied(ctx, w.token) != nil {
		return
	}
	upto := p.store.Applied()
	r, err := p.rooms.Room(ctx, w.room.id)
	if err != nil {
		return
	}
	var nids []int64
	q := room.TimelineQuery{From: w.token, To: upto + 1, Limit: 1 + w.rng.IntN(8)}
	for {
		page, err := p.rooms.Timeline(ctx, r, q)
		if err != nil {
			return
		}
		for _, e := range page.Events {
			nids = append(nids, e.NID)
		}
		if !page.More {
			break
		}
		q.From = page.End
	}
	changes, err := p.rooms.StateChanges(ctx, r, w.token, upto)
	if err != nil || p.node.Dead() {
		return
	}
	for t, n := range changes {
		w.state[t] = n
	}
	w.nids = append(w.nids, nids...)
	w.token = upto
}
