package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tidwall/gjson"
)

// gateway is a push gateway that notes when each event came in for each device.
type gateway struct {
	url    string
	server *http.Server

	mu  sync.Mutex
	got map[string][]time.Time // by event id
}

func startGateway() (*gateway, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	g := &gateway{url: "http://" + l.Addr().String() + "/_matrix/push/v1/notify", got: map[string][]time.Time{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /_matrix/push/v1/notify", func(w http.ResponseWriter, r *http.Request) {
		now := time.Now()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if id := gjson.GetBytes(b, "notification.event_id").Str; id != "" {
			g.mu.Lock()
			g.got[id] = append(g.got[id], now)
			g.mu.Unlock()
		}
		_, _ = io.WriteString(w, `{"rejected":[]}`) // a server that hangs up shows in its own numbers
	})
	g.server = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = g.server.Serve(l) }() // ends with Close
	return g, nil
}

// phaseReceipts measures a lively room: every reader polls, acknowledges each message and has a pusher.
func (b *Bench) phaseReceipts(ctx context.Context) error {
	const size, perSecond = 500, 5
	users, err := b.need(ctx, 200+size)
	if err != nil {
		return err
	}
	users = users[200:] // those before have ten thousands of unread messages from other phases, whose count is what would be measured
	room, err := b.fill(ctx, users)
	if err != nil {
		return err
	}
	g, err := startGateway()
	if err != nil {
		return err
	}
	defer func() { _ = g.server.Close() }()
	err = parallel(ctx, 8, size-1, func(ctx context.Context, i int) error {
		_, err := users[i+1].call(ctx, "POST", "/_matrix/client/v3/pushers/set", object("kind", "http", "app_id", "bench", "pushkey", users[i+1].id,
			"app_display_name", "bench", "device_display_name", "bench", "lang", "en", "append", true, "data", map[string]string{"url": g.url, "format": "event_id_only"}))
		return err
	})
	if err != nil {
		return fmt.Errorf("set pushers (the server must allow gateways on this machine): %w", err)
	}
	lctx, stop := context.WithCancel(ctx)
	defer stop()
	var polls, receipts, receiptErrors atomic.Int64
	wait, err := b.listen(lctx, users[1:], &polls, func(u *user, _, eventID string) {
		if err := u.receipt(lctx, room, eventID); err == nil {
			receipts.Add(1)
		} else if lctx.Err() == nil {
			receiptErrors.Add(1)
		}
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Second)
	extra := map[string]float64{}
	var mu sync.Mutex
	started := map[string]time.Time{}
	err = b.measured("send, room of 500, receipts and pushers", extra, func(r *recorder) error {
		b.offered(ctx, perSecond, func(i int, _ time.Time) {
			u := users[0].alone()
			u.txn = 800_000_000_000 + i
			start := time.Now()
			id, err := u.send(ctx, room, text)
			r.add(time.Since(start), err)
			mu.Lock()
			started[id] = start
			mu.Unlock()
		})
		time.Sleep(2 * time.Second) // the last pushes arrive
		return nil
	})
	stop()
	wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	var pushed []time.Duration
	for id, start := range started {
		for _, at := range g.got[id] {
			pushed = append(pushed, at.Sub(start))
		}
	}
	slices.Sort(pushed)
	extra["pushes"] = float64(len(pushed))
	extra["push p50 ms"] = percentile(pushed, 0.5)
	extra["push p99 ms"] = percentile(pushed, 0.99)
	extra["receipts"] = float64(receipts.Load())
	extra["receipt errors"] = float64(receiptErrors.Load())
	return err
}
