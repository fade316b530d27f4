package bench

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"
)

const text = "The quick brown fox jumps over the lazy dog, 敏捷的棕色狐狸跳过了懒狗。"

func (b *Bench) phaseRegister(ctx context.Context) error {
	return b.measured("register", nil, func(r *recorder) error {
		made := make([]*user, 100)
		err := parallel(ctx, 4, len(made), func(ctx context.Context, i int) error {
			start := time.Now()
			u, err := b.register(ctx, fmt.Sprintf("bench%s-%d", b.run, i))
			r.add(time.Since(start), err)
			made[i] = u
			return err
		})
		if err == nil {
			b.users = made
		}
		return err
	})
}

func (b *Bench) phaseLogin(ctx context.Context) error {
	users, err := b.need(ctx, 50)
	if err != nil {
		return err
	}
	return b.measured("login", nil, func(r *recorder) error {
		return parallel(ctx, 4, len(users), func(ctx context.Context, i int) error {
			start := time.Now()
			_, err := users[i].call(ctx, "POST", "/_matrix/client/v3/login", object("type", "m.login.password",
				"identifier", map[string]string{"type": "m.id.user", "user": users[i].id}, "password", b.password))
			r.add(time.Since(start), err)
			return nil
		})
	})
}

func (b *Bench) phaseRooms(ctx context.Context) error {
	users, err := b.need(ctx, 8)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.Duration)
	defer cancel()
	return b.measured("createRoom, private", nil, func(r *recorder) error {
		var wg sync.WaitGroup
		for _, u := range users {
			wg.Go(func() {
				for ctx.Err() == nil {
					start := time.Now()
					_, err := u.createRoom(ctx, "private_chat")
					r.add(time.Since(start), err)
				}
			})
		}
		wg.Wait()
		return nil
	})
}

func (b *Bench) phaseJoin(ctx context.Context) error {
	users, err := b.need(ctx, b.Members)
	if err != nil {
		return err
	}
	room, err := users[0].createRoom(ctx, "public_chat")
	if err != nil {
		return err
	}
	extra := map[string]float64{}
	return b.measured(fmt.Sprintf("joins into a room up to %d", b.Members), extra, func(r *recorder) error {
		var done atomic.Int64
		times := make([]time.Time, len(users))
		began := time.Now()
		err := parallel(ctx, 16, len(users)-1, func(ctx context.Context, i int) error {
			start := time.Now()
			err := users[i+1].join(ctx, room)
			r.add(time.Since(start), err)
			times[done.Add(1)-1] = time.Now()
			return nil
		})
		n := int(done.Load())
		if tenth := n / 10; tenth > 0 {
			extra["joins per second, first tenth"] = float64(tenth) / times[tenth-1].Sub(began).Seconds()
			extra["joins per second, last tenth"] = float64(tenth) / times[n-1].Sub(times[n-1-tenth]).Seconds()
		}
		return err
	})
}

// senders runs closed-loop senders, each into the rooms it is a member of, for the configured time.
func (b *Bench) senders(ctx context.Context, name string, n int, rooms []string, members [][]*user) error {
	ctx, cancel := context.WithTimeout(ctx, b.Duration)
	defer cancel()
	b.rounds++
	return b.measured(name, nil, func(r *recorder) error {
		var wg sync.WaitGroup
		for i := range n {
			room := i % len(rooms)
			// a copy, so that transaction ids of two senders never meet, nor those of two rounds: what was sent before is not sent
			u := members[room][(i/len(rooms))%len(members[room])].alone()
			u.txn = b.rounds*1_000_000_000_000 + i*1_000_000_000
			wg.Go(func() {
				for ctx.Err() == nil {
					start := time.Now()
					_, err := u.send(ctx, rooms[room], text)
					r.add(time.Since(start), err)
					var limited *statusError
					if errors.As(err, &limited) && limited.status == 429 {
						time.Sleep(max(limited.after, 10*time.Millisecond))
					}
				}
			})
		}
		wg.Wait()
		return nil
	})
}

func (b *Bench) phaseSmall(ctx context.Context) error {
	rooms, members, err := b.smallRooms(ctx, 50, 20)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 16, 64} {
		if err := b.senders(ctx, fmt.Sprintf("send, %d senders, 50 rooms of 20", n), n, rooms, members); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bench) phaseBig(ctx context.Context) error {
	users, err := b.need(ctx, 100)
	if err != nil {
		return err
	}
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	for _, n := range []int{1, 16, 64} {
		if err := b.senders(ctx, fmt.Sprintf("send, %d senders, one room of 100", n), n, []string{room}, [][]*user{users}); err != nil {
			return err
		}
	}
	return nil
}

// offered sends at a fixed rate for the phase's time, whatever the answers take.
func (b *Bench) offered(ctx context.Context, perSecond int, each func(i int, due time.Time)) {
	ctx, cancel := context.WithTimeout(ctx, b.Duration)
	defer cancel()
	b.steady(ctx, perSecond, each)
}

func (b *Bench) phaseRate(ctx context.Context) error {
	rooms, members, err := b.smallRooms(ctx, 50, 20)
	if err != nil {
		return err
	}
	return b.measured("send at 500/s offered", nil, func(r *recorder) error {
		b.offered(ctx, 500, func(i int, due time.Time) {
			room := i % len(rooms)
			u := members[room][0].alone()
			u.txn = 900_000_000_000 + i
			_, err := u.send(ctx, rooms[room], text)
			r.add(time.Since(due), err)
		})
		return nil
	})
}

// listen keeps a long poll up for each user and calls fn with every message that arrives, until ctx ends.
func (b *Bench) listen(ctx context.Context, users []*user, polls *atomic.Int64, fn func(u *user, body, eventID string)) (wait func(), err error) {
	for _, u := range users {
		if _, err := u.sync(ctx, 0); err != nil {
			return nil, fmt.Errorf("first sync of %s: %w", u.id, err)
		}
	}
	var wg sync.WaitGroup
	for _, u := range users {
		wg.Go(func() {
			for ctx.Err() == nil {
				out, err := u.sync(ctx, 30*time.Second)
				if err != nil {
					if ctx.Err() == nil {
						time.Sleep(100 * time.Millisecond)
					}
					continue
				}
				polls.Add(1)
				gjson.GetBytes(out, "rooms.join").ForEach(func(_, room gjson.Result) bool {
					room.Get("timeline.events").ForEach(func(_, e gjson.Result) bool {
						if e.Get("type").Str == "m.room.message" {
							fn(u, e.Get("content.body").Str, e.Get("event_id").Str)
						}
						return true
					})
					return true
				})
			}
		})
	}
	return wg.Wait, nil
}

// stamped is a message body that carries the time of its PUT.
func stamped(i int) (string, time.Time) {
	now := time.Now()
	return "bench " + strconv.Itoa(i) + " " + strconv.FormatInt(now.UnixNano(), 10), now
}

// sentAt reads the time back; false for other messages.
func sentAt(body string) (time.Time, bool) {
	f := strings.Fields(body)
	if len(f) != 3 || f[0] != "bench" {
		return time.Time{}, false
	}
	n, err := strconv.ParseInt(f[2], 10, 64)
	return time.Unix(0, n), err == nil
}

func (b *Bench) phaseDelivery(ctx context.Context) error {
	users, err := b.need(ctx, 200)
	if err != nil {
		return err
	}
	var rooms []string
	for i := range 10 {
		room, err := b.fill(ctx, users[i*20:(i+1)*20])
		if err != nil {
			return err
		}
		rooms = append(rooms, room)
	}
	var listeners []*user
	for i := range 10 {
		listeners = append(listeners, users[i*20+1:(i+1)*20]...)
	}
	return b.delivered(ctx, "delivery, 10 rooms of 20, 190 polls", listeners, 20, func(i int) {
		u := users[(i%10)*20].alone()
		u.txn = 500_000_000_000 + i
		body, _ := stamped(i)
		if _, err := u.send(ctx, rooms[i%10], body); err != nil {
			b.say("  send: %v", err)
		}
	})
}

// delivered measures from PUT to each reader.
func (b *Bench) delivered(ctx context.Context, name string, listeners []*user, perSecond int, send func(i int)) error {
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var polls atomic.Int64
	var rec atomic.Pointer[recorder]
	wait, err := b.listen(lctx, listeners, &polls, func(_ *user, body, _ string) {
		if at, ok := sentAt(body); ok {
			if r := rec.Load(); r != nil {
				r.add(time.Since(at), nil)
			}
		}
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // all polls are up
	extra := map[string]float64{}
	err = b.measured(name, extra, func(r *recorder) error {
		rec.Store(r)
		polls.Store(0)
		b.offered(ctx, perSecond, func(i int, _ time.Time) { send(i) })
		time.Sleep(500 * time.Millisecond) // the last ones arrive
		extra["responses"] = float64(polls.Load())
		return nil
	})
	res := &b.results[len(b.results)-1]
	if n := extra["responses"]; n > 0 {
		sum := 0.0
		for _, c := range res.CPU {
			sum += c
		}
		extra["CPU ms per response"] = 1000 * sum / n
	}
	stop()
	wait()
	return err
}

func (b *Bench) phaseCrowd(ctx context.Context) error {
	n := min(b.Members, 1000)
	users, err := b.need(ctx, n)
	if err != nil {
		return err
	}
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	return b.delivered(ctx, fmt.Sprintf("delivery, one room of %d, all polling", n), users[1:], 1, func(i int) {
		u := users[0].alone()
		u.txn = 600_000_000_000 + i
		body, _ := stamped(i)
		if _, err := u.send(ctx, room, body); err != nil {
			b.say("  send: %v", err)
		}
	})
}

func (b *Bench) phaseInitial(ctx context.Context) error {
	users, err := b.need(ctx, 20)
	if err != nil {
		return err
	}
	reader, err := b.register(ctx, "bench"+b.run+"-reader")
	if err != nil {
		return err
	}
	b.say("  joining 200 rooms")
	rooms := make([]string, 200)
	err = parallel(ctx, 8, len(rooms), func(ctx context.Context, i int) error {
		u := users[i%len(users)].alone()
		room, err := u.createRoom(ctx, "public_chat")
		if err != nil {
			return err
		}
		rooms[i] = room
		for j := range 15 {
			u.txn = 700_000_000_000 + i*100 + j
			if _, err := u.send(ctx, room, text); err != nil {
				return err
			}
		}
		return reader.join(ctx, room)
	})
	if err != nil {
		return err
	}
	err = b.measured("initial sync of 200 rooms", nil, func(r *recorder) error {
		for range 20 {
			reader.since = ""
			start := time.Now()
			_, err := reader.sync(ctx, 0)
			r.add(time.Since(start), err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return b.measured("incremental sync, nothing new", nil, func(r *recorder) error {
		for range 2000 {
			start := time.Now()
			_, err := reader.sync(ctx, 0)
			r.add(time.Since(start), err)
		}
		return nil
	})
}

func (b *Bench) phaseIdle(ctx context.Context) error {
	select { // a server that was just started gives back what only its start needed
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Second):
	}
	before := measure(b.PIDs, true) // before the accounts: what they leave in caches and as garbage counts too
	accounts := min(b.Idle, 500)
	users, err := b.need(ctx, accounts)
	if err != nil {
		return err
	}
	ictx, stop := context.WithCancel(ctx)
	defer stop()
	extra := map[string]float64{"clients": float64(b.Idle)}
	var wg sync.WaitGroup
	for _, u := range users {
		if _, err := u.sync(ctx, 0); err != nil {
			return err
		}
	}
	var up atomic.Int64
	for i := range b.Idle {
		u := users[i%accounts].alone()
		wg.Go(func() {
			for ictx.Err() == nil {
				up.Add(1)
				if _, err := u.sync(ictx, 5*time.Minute); err != nil && ictx.Err() == nil {
					time.Sleep(time.Second)
				}
			}
		})
		if i%100 == 99 {
			time.Sleep(20 * time.Millisecond)
		}
	}
	time.Sleep(3 * time.Second)
	runtime.GC()
	err = b.measured("idle", extra, func(*recorder) error {
		select {
		case <-ctx.Done():
		case <-time.After(b.Duration):
		}
		return nil
	})
	after := measure(b.PIDs, true)
	for i := range after.memory {
		extra[fmt.Sprintf("KiB per client, pid %d", b.PIDs[i])] = float64(after.memory[i]-before.memory[i]) / 1024 / float64(b.Idle)
	}
	stop()
	wg.Wait()
	return err
}
