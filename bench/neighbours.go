package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"
)

// steady sends at a fixed rate until ctx ends; the time of a message runs from when it was due.
func (b *Bench) steady(ctx context.Context, perSecond int, each func(i int, due time.Time)) {
	var wg sync.WaitGroup
	start := time.Now()
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(perSecond))
		select {
		case <-ctx.Done():
			wg.Wait()
			return
		case <-time.After(time.Until(due)):
		}
		wg.Go(func() { each(i, due) })
	}
}

// neighbours measures what others feel of something: 100 messages a second into 10 rooms of 20, first alone, then while
// disturb goes on. prepare, which may be nil, runs between the two.
func (b *Bench) neighbours(ctx context.Context, name string, extra map[string]float64, prepare func() error, disturb func(ctx context.Context) error) error {
	rooms, members, err := b.smallRooms(ctx, 10, 20)
	if err != nil {
		return err
	}
	send := func(ctx context.Context, r *recorder, txn int) {
		b.steady(ctx, 100, func(i int, due time.Time) {
			u := members[i%10][i/10%20].alone()
			u.txn = txn + i
			_, err := u.send(context.WithoutCancel(ctx), rooms[i%10], text)
			r.add(time.Since(due), err)
		})
	}
	if err := b.measured(name+": others before", nil, func(r *recorder) error {
		ctx, cancel := context.WithTimeout(ctx, b.Duration)
		defer cancel()
		send(ctx, r, 910_000_000_000)
		return nil
	}); err != nil {
		return err
	}
	alone := b.results[len(b.results)-1]
	if prepare != nil {
		if err := prepare(); err != nil {
			return err
		}
	}
	err = b.measured(name+": others meanwhile", extra, func(r *recorder) error {
		nctx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() { send(nctx, r, 920_000_000_000) })
		err := disturb(ctx)
		stop()
		wg.Wait()
		return err
	})
	meanwhile := b.results[len(b.results)-1]
	if alone.P99 > 0 {
		extra["p99 meanwhile / before"] = meanwhile.P99 / alone.P99
	}
	for i := range meanwhile.Memory {
		extra[fmt.Sprintf("MiB more, pid %d", b.PIDs[i])] = float64(meanwhile.Memory[i]-alone.Memory[i]) / (1 << 20)
	}
	return err
}

// hold waits for the phase's time.
func (b *Bench) hold(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(b.Duration):
	}
}

// phaseStuck lets clients ask for large answers, again and again on one connection, and read none of them.
func (b *Bench) phaseStuck(ctx context.Context) error {
	users, err := b.need(ctx, 1000)
	if err != nil {
		return err
	}
	if _, err := b.fill(ctx, users); err != nil {
		return err
	}
	const clients, requests = 200, 200
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close() // nothing was read, nothing is lost
		}
	}()
	extra := map[string]float64{"stuck clients": clients}
	return b.neighbours(ctx, "stuck clients", extra, func() error {
		for i := range clients {
			c, err := stuckClient(users[i], requests)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		time.Sleep(5 * time.Second) // the kernel's buffers are full by then
		return nil
	}, func(ctx context.Context) error {
		b.hold(ctx)
		return nil
	})
}

// stuckClient writes requests for whole syncs and reads nothing.
func stuckClient(u *user, requests int) (net.Conn, error) {
	at, err := url.Parse(u.url)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("tcp", at.Host)
	if err != nil {
		return nil, err
	}
	if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	one := "GET /_matrix/client/v3/sync?full_state=true HTTP/1.1\r\nHost: " + at.Host + "\r\nAuthorization: Bearer " + u.token + "\r\n\r\n"
	go func() { // blocks as soon as the server stops to read; ends with the connection
		for range requests {
			if _, err := io.WriteString(c, one); err != nil {
				return
			}
		}
	}()
	return c, nil
}

// cutter dials connections that can all be ended at once.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, network, addr)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close() // some were closed before
	}
	c.conns = nil
}

// phaseReconnect ends the connections of 1,000 clients in a long poll, as a balancer's restart does, and sends a message
// that all of them are to get.
func (b *Bench) phaseReconnect(ctx context.Context) error {
	const n = 1000
	users, err := b.need(ctx, n)
	if err != nil {
		return err
	}
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	var line cutter
	tr := transport()
	tr.DialContext = line.dial
	own := &http.Client{Transport: tr}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var got sync.Map // by event id: *atomic.Int64
	var wg sync.WaitGroup
	for _, x := range users[1:] {
		u := x.alone()
		u.via = own
		if _, err := u.sync(ctx, 0); err != nil {
			return err
		}
		wg.Go(func() {
			for lctx.Err() == nil {
				out, err := u.sync(lctx, 30*time.Second)
				if err != nil {
					continue // and come back at once
				}
				gjson.GetBytes(out, "rooms.join."+gjson.Escape(room)+".timeline.events").ForEach(func(_, e gjson.Result) bool {
					seen, _ := got.LoadOrStore(e.Get("content.body").Str, new(atomic.Int64))
					seen.(*atomic.Int64).Add(1)
					return true
				})
			}
		})
	}
	extra := map[string]float64{"clients": n - 1}
	rounds := 0
	err = b.neighbours(ctx, "reconnects", extra, nil, func(ctx context.Context) error {
		slowest := time.Duration(0)
		for end := time.Now().Add(b.Duration); time.Now().Before(end) && ctx.Err() == nil; rounds++ {
			line.cut()
			body := fmt.Sprintf("round %d of %s", rounds, b.run)
			start := time.Now()
			u := users[0].alone()
			u.txn = 930_000_000_000 + rounds
			if _, err := u.send(ctx, room, body); err != nil {
				return err
			}
			seen, _ := got.LoadOrStore(body, new(atomic.Int64))
			for seen.(*atomic.Int64).Load() < n-1 {
				if time.Since(start) > 30*time.Second {
					return fmt.Errorf("only %d of %d clients came back within 30 s", seen.(*atomic.Int64).Load(), n-1)
				}
				time.Sleep(2 * time.Millisecond)
			}
			slowest = max(slowest, time.Since(start))
			time.Sleep(time.Second)
		}
		extra["rounds"] = float64(rounds)
		extra["slowest ms until all had the message"] = float64(slowest.Milliseconds())
		return nil
	})
	stop()
	line.cut()
	wg.Wait()
	return err
}

// phaseLarge has a room of 5,000 with 500 long polls, 5 messages a second, and members that sync for the first time.
func (b *Bench) phaseLarge(ctx context.Context) error {
	const members, polling, perSecond = 5000, 500, 5
	users, err := b.need(ctx, members)
	if err != nil {
		return err
	}
	b.say("  filling a room of %d", members)
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var polls atomic.Int64
	wait, err := b.listen(lctx, users[1000:1000+polling], &polls, func(*user, string, string) {})
	if err != nil {
		return err
	}
	extra := map[string]float64{"members": members, "long polls": polling}
	err = b.neighbours(ctx, "a room of 5,000", extra, nil, func(ctx context.Context) error {
		first, sends := &recorder{}, &recorder{}
		var wg sync.WaitGroup
		dctx, cancel := context.WithTimeout(ctx, b.Duration)
		defer cancel()
		wg.Go(func() {
			for i := 2000; dctx.Err() == nil; i++ {
				start := time.Now()
				_, err := users[i%members].alone().sync(dctx, 0)
				first.add(time.Since(start), err)
				time.Sleep(200 * time.Millisecond)
			}
		})
		b.steady(dctx, perSecond, func(i int, due time.Time) {
			u := users[0].alone()
			u.txn = 940_000_000_000 + i
			_, err := u.send(ctx, room, text)
			sends.add(time.Since(due), err)
		})
		wg.Wait()
		extra["send p99 ms"] = sends.percentile(0.99)
		extra["initial sync p99 ms"] = first.percentile(0.99)
		extra["errors in the room"] = float64(first.errs + sends.errs)
		return nil
	})
	stop()
	wait()
	return err
}

// phaseMany has an account in 5,000 rooms that syncs, in all ways.
func (b *Bench) phaseMany(ctx context.Context) error {
	const n = 5000
	users, err := b.need(ctx, 100)
	if err != nil {
		return err
	}
	reader, err := b.register(ctx, "bench"+b.run+"-many")
	if err != nil {
		return err
	}
	b.say("  joining %d rooms", n)
	err = parallel(ctx, 16, n, func(ctx context.Context, i int) error {
		room, err := users[i%len(users)].alone().createRoom(ctx, "public_chat")
		if err != nil {
			return err
		}
		return reader.alone().join(ctx, room)
	})
	if err != nil {
		return err
	}
	extra := map[string]float64{"rooms": n}
	return b.neighbours(ctx, "an account in 5,000 rooms", extra, nil, func(ctx context.Context) error {
		const sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
		list := object("lists", map[string]any{"all": map[string]any{"ranges": [][]int{{0, 19}}, "timeline_limit": 1,
			"required_state": [][]string{{"m.room.name", ""}, {"m.room.avatar", ""}}}})
		whole, next, first, again := &recorder{}, &recorder{}, &recorder{}, &recorder{}
		for end := time.Now().Add(b.Duration); time.Now().Before(end) && ctx.Err() == nil; {
			u := reader.alone()
			start := time.Now()
			_, err := u.sync(ctx, 0)
			whole.add(time.Since(start), err)
			for range 20 {
				start = time.Now()
				_, err = u.sync(ctx, 0)
				next.add(time.Since(start), err)
			}
			start = time.Now()
			out, err := u.call(ctx, "POST", sliding, list)
			first.add(time.Since(start), err)
			if pos := gjson.GetBytes(out, "pos").Str; pos != "" {
				start = time.Now()
				_, err = u.call(ctx, "POST", sliding+"?timeout=0&pos="+url.QueryEscape(pos), list)
				again.add(time.Since(start), err)
			}
		}
		for what, r := range map[string]*recorder{"initial sync": whole, "incremental sync": next, "sliding sync, first": first, "sliding sync, next": again} {
			extra[what+" p50 ms"] = r.percentile(0.5)
			extra[what+" slowest ms"] = r.percentile(1)
			if r.first != "" {
				b.say("  %s: %s", what, r.first)
			}
		}
		return nil
	})
}

// phaseUpgrade reads pages of 100 messages in a room of 5,000, replaces the room by a new one, and has its members follow.
func (b *Bench) phaseUpgrade(ctx context.Context) error {
	const members, page, reads = 5000, 100, 200
	users, err := b.need(ctx, members)
	if err != nil {
		return err
	}
	b.say("  filling a room of %d", members)
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	pages := &recorder{}
	extra := map[string]float64{"members": members}
	return b.neighbours(ctx, "the upgrade of a room of 5,000", extra, func() error {
		for range page {
			if _, err := users[1].send(ctx, room, text); err != nil {
				return err
			}
		}
		for range reads {
			start := time.Now()
			out, err := users[1].call(ctx, "GET", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/messages?dir=b&limit=100", nil)
			pages.add(time.Since(start), err)
			if n := gjson.GetBytes(out, "chunk.#").Int(); err == nil && n != page {
				return fmt.Errorf("a page has %d events", n)
			}
		}
		extra["100 messages p50 ms"], extra["100 messages p99 ms"] = pages.percentile(0.5), pages.percentile(0.99)
		return nil
	}, func(ctx context.Context) error {
		start := time.Now()
		out, err := users[0].call(ctx, "POST", "/_matrix/client/v3/rooms/"+url.PathEscape(room)+"/upgrade", object("new_version", "12"))
		if err != nil {
			return err
		}
		extra["upgrade ms"] = float64(time.Since(start).Microseconds()) / 1000
		next := gjson.GetBytes(out, "replacement_room").Str
		err = parallel(ctx, 8, members-1, func(ctx context.Context, i int) error { return users[i+1].alone().join(ctx, next) })
		extra["s until all have followed"] = time.Since(start).Seconds()
		return err
	})
}

// phaseFill sends a number of messages; what they take on the disk is for the caller to see.
func (b *Bench) phaseFill(ctx context.Context) error {
	rooms, members, err := b.smallRooms(ctx, 50, 20)
	if err != nil {
		return err
	}
	return b.measured(fmt.Sprintf("%d messages", b.Messages), nil, func(r *recorder) error {
		return parallel(ctx, 16, b.Messages, func(ctx context.Context, i int) error {
			u := members[i%50][i/50%20].alone()
			u.txn = 950_000_000_000 + i
			start := time.Now()
			_, err := u.send(ctx, rooms[i%50], text)
			r.add(time.Since(start), err)
			return err
		})
	})
}
