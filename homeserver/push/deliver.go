package push

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	perGateway  = 32   // requests at once to one host
	perHost     = 512  // pushers in hand for one host: a slow gateway takes no more
	perProcess  = 2048 // and for all together
	claimTime   = 2 * time.Minute
	turnTime    = 30 * time.Second // how long a pusher waits for its gateway's turn; with claimPushes time limits below claimTime
	claimPushes = 4                // taken at once: their time limits together stay below claimTime
	keepFailing = 100
	giveUpAfter = 24 * time.Hour
	maxAnswer   = 64 << 10
)

// backoff doubles from one second to one hour, with a spread so that the pushers of a gateway that was away do not all
// come back together.
func backoff(failures int64) time.Duration {
	d := time.Hour
	if failures < 12 {
		d = min(d, time.Second<<failures)
	}
	return d/2 + rand.N(d)
}

// gatewayHost is the host of an HTTP pusher's gateway.
func gatewayHost(p *store.Pusher) string {
	d, err := parseData(p.Data)
	if err != nil {
		return ""
	}
	u, err := url.Parse(d.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// kick says that something waits for a pusher. Where the one who found that has taken the right to deliver as well, claimed
// holds it.
type kick struct {
	host    string
	claimed *store.Claimed
	at      time.Time
}

// dispatcher says which pushers to deliver for. Each is in one goroutine at most, each host in perHost.
type dispatcher struct {
	busy   atomic.Int64 // pushers waiting or active
	mu     sync.Mutex
	kicked map[int64]kick
	signal chan struct{}
}

// idle tells whether what is claimed now is delivered soon.
func (d *dispatcher) idle(pushers int) bool { return int(d.busy.Load())+pushers <= 2*perHost }

func (d *dispatcher) kick(pushers map[int64]kick) {
	d.mu.Lock()
	if d.kicked == nil {
		d.kicked = make(map[int64]kick, len(pushers))
	}
	for p, k := range pushers {
		if k.claimed == nil {
			k.claimed, k.at = d.kicked[p].claimed, d.kicked[p].at
		}
		d.kicked[p] = k
	}
	d.mu.Unlock()
	select {
	case d.signal <- struct{}{}:
	default:
	}
}

func (d *dispatcher) take() map[int64]kick {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.kicked
	d.kicked = nil
	return k
}

// gateway is one host's share of the deliveries; owned by deliverAll.
type gateway struct {
	waiting []int64
	active  int
	turns   chan struct{} // holds one for each request under way
}

// deliveries are the pushers in hand of one process; owned by deliverAll.
type deliveries struct {
	p      *Push
	group  errgroup.Group
	done   chan finished
	hosts  map[string]*gateway
	state  map[int64]bool // pushers waiting or active; true: look again when done
	handed map[int64]kick // claimed already, to be started
	active int
}

type finished struct {
	pusher int64
	host   string
}

func (d *deliveries) add(pusher int64, k kick) {
	if k.claimed != nil {
		d.handed[pusher] = k
	}
	if _, ok := d.state[pusher]; ok {
		d.state[pusher] = true
		return
	}
	d.state[pusher] = false
	h := d.hosts[k.host]
	if h == nil {
		h = &gateway{turns: make(chan struct{}, perGateway)}
		d.hosts[k.host] = h
	}
	h.waiting = append(h.waiting, pusher)
}

func (d *deliveries) finish(f finished) {
	d.hosts[f.host].active--
	d.active--
	again := d.state[f.pusher]
	delete(d.state, f.pusher)
	if again {
		d.add(f.pusher, kick{host: f.host})
	}
}

// start begins what may begin.
func (d *deliveries) start(ctx context.Context) {
	for host, h := range d.hosts {
		for h.active < perHost && d.active < perProcess && len(h.waiting) > 0 {
			pusher := h.waiting[0]
			h.waiting = h.waiting[1:]
			h.active++
			d.active++
			d.state[pusher] = false
			k := d.handed[pusher]
			delete(d.handed, pusher)
			if time.Since(k.at) > claimTime/4 {
				k.claimed = nil // it waited so long that it might end before it is used
			}
			d.group.Go(func() error {
				d.p.deliver(ctx, pusher, k.claimed, h.turns)
				d.done <- finished{pusher, host}
				return nil
			})
		}
		if h.active == 0 && len(h.waiting) == 0 {
			delete(d.hosts, host)
		}
	}
	d.p.dispatch.busy.Store(int64(len(d.state)))
}

// giveBack frees the pushers that were claimed and not started.
func (d *deliveries) giveBack(ctx context.Context) {
	for pusher, k := range d.p.dispatch.take() {
		if k.claimed != nil {
			d.handed[pusher] = k
		}
	}
	if len(d.handed) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	err := d.p.Store.Write(ctx, func(tx *store.Tx) error {
		for pusher := range d.handed {
			if err := tx.ReleasePusher(pusher); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		d.p.Log.Warn("release pushers", "pushers", len(d.handed), "error", err)
	}
}

// deliverAll starts deliveries until ctx ends, then waits for those under way.
func (p *Push) deliverAll(ctx context.Context) error {
	d := deliveries{p: p, done: make(chan finished, perProcess), hosts: make(map[string]*gateway),
		state: make(map[int64]bool), handed: make(map[int64]kick)}
	defer func() {
		_ = d.group.Wait() // deliveries return no errors: they log and try again
		d.giveBack(ctx)
	}()
	tick := time.NewTimer(0) // what an earlier process left behind
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.dispatch.signal:
			for pusher, k := range p.dispatch.take() {
				d.add(pusher, k)
			}
		case f := <-d.done:
			d.finish(f)
		case <-tick.C:
			due, err := p.due(ctx)
			if err != nil && ctx.Err() == nil {
				p.Log.Warn("look for notifications that wait", "error", err)
			}
			for i := range due {
				if _, busy := d.state[due[i].ID]; !busy {
					d.add(due[i].ID, kick{host: gatewayHost(&due[i])})
				}
			}
			tick.Reset(p.scanEvery)
		}
		d.start(ctx)
	}
}

func (p *Push) due(ctx context.Context) (out []store.Pusher, err error) {
	err = p.Store.Read(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		out, err = tx.DuePushers(now, 2*perProcess)
		return err
	})
	return out, err
}

// deliver sends all that waits for one pusher. turns bounds the requests to its gateway.
func (p *Push) deliver(ctx context.Context, pusher int64, claimed *store.Claimed, turns chan struct{}) {
	var err error
	if claimed == nil {
		if claimed, err = p.claims.do(ctx, pusher); err != nil || claimed == nil {
			p.warn(ctx, "claim a pusher", pusher, err)
			return
		}
	}
	to, waiting := claimed.Pusher, claimed.Waiting
	// What was sent is noted also when the process stops meanwhile.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTime)
	defer cancel()
	for {
		var sent int64
		var failure error
		if !takeTurn(ctx, turns) {
			err := p.Store.Write(end, func(tx *store.Tx) error { return tx.ReleasePusher(pusher) })
			p.warn(end, "release a pusher", pusher, err)
			return
		}
		for i := range waiting {
			var rejected bool
			if rejected, failure = p.send(ctx, &to, &waiting[i]); failure != nil {
				break
			}
			if rejected {
				<-turns
				p.Log.Info("the push gateway rejected a pusher, it is removed", "user_id", to.User, "app_id", to.AppID)
				err := p.Store.Write(end, func(tx *store.Tx) error { return tx.DeletePusher(to.User, to.AppID, to.Pushkey) })
				p.warn(end, "remove a rejected pusher", pusher, err)
				return
			}
			sent = waiting[i].Pos
		}
		<-turns
		waiting, err = p.settle(end, &to, sent, failure, ctx.Err() != nil)
		if err != nil {
			p.warn(end, "note what was delivered", pusher, err)
			return
		}
		if len(waiting) == 0 {
			return
		}
	}
}

// takeTurn waits for a turn at a gateway; false when there was none in time.
func takeTurn(ctx context.Context, turns chan struct{}) bool {
	late := time.NewTimer(turnTime)
	defer late.Stop()
	select {
	case turns <- struct{}{}:
		return true
	case <-late.C:
	case <-ctx.Done():
	}
	return false
}

// claim takes pushers in one transaction; nil for those that somebody else has or that are not due.
func (p *Push) claim(ctx context.Context, pushers []int64) ([]*store.Claimed, error) {
	var got map[int64]*store.Claimed
	err := p.Store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		got, err = tx.ClaimPushers(pushers, now, now+claimTime.Milliseconds(), now-giveUpAfter.Milliseconds(), claimPushes)
		return err
	})
	out := make([]*store.Claimed, len(pushers))
	for i, id := range pushers {
		out[i] = got[id]
	}
	return out, err
}

// noteDone notes deliveries in one transaction and gives what is to be sent next to each pusher.
func (p *Push) noteDone(ctx context.Context, done []store.Delivered) ([][]store.Push, error) {
	var more map[int64][]store.Push
	err := p.Store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		more, err = tx.PushesDone(done, now+claimTime.Milliseconds(), claimPushes)
		return err
	})
	out := make([][]store.Push, len(done))
	for i, d := range done {
		out[i] = more[d.Pusher]
	}
	return out, err
}

// settle notes what was sent and gives what is to be sent next.
func (p *Push) settle(ctx context.Context, to *store.Pusher, sent int64, failure error, stopping bool) (waiting []store.Push, err error) {
	if failure == nil && !stopping {
		to.Failures = 0
		return p.dones.do(ctx, store.Delivered{Pusher: to.ID, UpTo: sent, Badge: to.Badge})
	}
	if failure != nil && !stopping {
		p.Log.Info("a notification was not delivered, it is tried again", "user_id", to.User, "app_id", to.AppID,
			"failures", to.Failures+1, "error", failure)
	}
	return nil, p.Store.Write(ctx, func(tx *store.Tx) error {
		now, err := tx.Now()
		if err != nil {
			return err
		}
		if !stopping {
			return tx.PushFailed(to.ID, sent, to.Badge, now+p.backoff(to.Failures).Milliseconds(), keepFailing)
		}
		if _, err := tx.PushesDone([]store.Delivered{{Pusher: to.ID, UpTo: sent, Badge: to.Badge}}, now, claimPushes); err != nil {
			return err
		}
		return tx.ReleasePusher(to.ID)
	})
}

func (p *Push) warn(ctx context.Context, what string, pusher int64, err error) {
	if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		p.Log.Warn(what, "pusher", pusher, "error", err)
	}
}

// notification is the body of POST /_matrix/push/v1/notify.
type notification struct {
	EventID           string            `json:"event_id,omitzero"`
	RoomID            string            `json:"room_id,omitzero"`
	Type              string            `json:"type,omitzero"`
	Sender            string            `json:"sender,omitzero"`
	SenderDisplayName string            `json:"sender_display_name,omitzero"`
	RoomName          string            `json:"room_name,omitzero"`
	RoomAlias         string            `json:"room_alias,omitzero"`
	UserIsTarget      bool              `json:"user_is_target,omitzero"`
	Prio              string            `json:"prio,omitzero"`
	Content           jsontext.Value    `json:"content,omitzero"`
	Counts            map[string]int64  `json:"counts"`
	Devices           [1]notifiedDevice `json:"devices"`
}

type notifiedDevice struct {
	AppID   string         `json:"app_id"`
	Pushkey string         `json:"pushkey"`
	Since   int64          `json:"pushkey_ts"` // seconds
	Data    jsontext.Value `json:"data"`
	Tweaks  jsontext.Value `json:"tweaks,omitzero"`
}

// send delivers one notification. The pusher's badge becomes what the gateway was told.
func (p *Push) send(ctx context.Context, to *store.Pusher, what *store.Push) (rejected bool, err error) {
	data, err := parseData(to.Data)
	if err != nil {
		return false, fmt.Errorf("data of the pusher: %w", err)
	}
	n := notification{Counts: map[string]int64{}}
	n.Devices[0] = notifiedDevice{AppID: to.AppID, Pushkey: to.Pushkey, Since: to.Updated / 1000}
	if n.Devices[0].Data, err = forwardedData(to.Data); err != nil {
		return false, fmt.Errorf("data of the pusher: %w", err)
	}
	if what.NID != 0 {
		if told, err := p.describe(ctx, &n, to, what, data.Format == eventIDOnly); err != nil || !told {
			return false, err
		}
	}
	var counts Counts
	if p.Unread != nil {
		if counts, err = p.Unread(ctx, to.User); err != nil {
			return false, fmt.Errorf("count unread messages: %w", err)
		}
	}
	if counts.Unread != 0 || what.NID == 0 { // zero is what clears a badge (docs/decisions/0132)
		n.Counts["unread"] = counts.Unread
	}
	if counts.MissedCalls != 0 {
		n.Counts["missed_calls"] = counts.MissedCalls
	}
	if what.NID == 0 && counts.Unread == to.Badge {
		return false, nil
	}
	rejected, err = p.post(ctx, data.URL, to.Pushkey, &n)
	if err == nil {
		to.Badge = counts.Unread
	}
	return rejected, err
}

// describe fills in the event, in the pusher's format. It tells false where there is nothing left to tell of.
func (p *Push) describe(ctx context.Context, n *notification, to *store.Pusher, what *store.Push, idOnly bool) (bool, error) {
	ev, err := p.Event(ctx, what.Room, what.NID)
	if isGone(err) || err == nil && ev == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n.EventID, n.RoomID = ev.ID, ev.RoomID
	n.Prio = "low"
	if what.High {
		n.Prio = "high"
	}
	if idOnly {
		return true, nil
	}
	n.Type, n.Sender, n.Content = ev.Type, ev.Sender, ev.Content
	n.UserIsTarget = ev.Type == "m.room.member" && ev.StateKey != nil && id.UserID(*ev.StateKey) == to.User
	n.Devices[0].Tweaks = what.Tweaks
	room, err := p.Room(ctx, what.Room)
	if isGone(err) || err == nil && room == nil {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	n.SenderDisplayName, n.RoomName, n.RoomAlias = room.DisplayName(id.UserID(ev.Sender)), room.Name(), room.Alias()
	return true, nil
}

// post speaks to the gateway. Spec: push gateway API, POST /_matrix/push/v1/notify.
func (p *Push) post(ctx context.Context, target, pushkey string, n *notification) (rejected bool, err error) {
	body, err := json.Marshal(struct {
		Notification *notification `json:"notification"`
	}{n}, jsontext.AllowInvalidUTF8(true), jsontext.AllowDuplicateNames(true), json.Deterministic(true))
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	client := *p.Client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a POST would become a GET
	resp, err := client.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return false, fmt.Errorf("read the gateway's answer: %w", err)
	}
	if resp.StatusCode/100 != 2 {
		return false, fmt.Errorf("the gateway answered %d", resp.StatusCode)
	}
	var out struct {
		Rejected []string `json:"rejected"`
	}
	if err := json.Unmarshal(answer, &out, jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true)); err != nil {
		return false, fmt.Errorf("the gateway's answer is no JSON object: %w", err)
	}
	return slices.Contains(out.Rejected, pushkey), nil
}
