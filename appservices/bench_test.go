package appservices_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// BenchmarkDelivery sends 1,500 events a second for four seconds from 30 users, and reports the time from the send request
// to the end of the request that brings the event to a service that keeps up. The senders share the machine.
func BenchmarkDelivery(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchDelivery(b) })
	b.Run("postgres", func(b *testing.B) { benchDelivery(b, hstest.Postgres(storetest.Postgres(b))) })
}

func benchDelivery(b *testing.B, options ...hstest.Option) {
	const users, perSecond, seconds = 30, 1500, 4
	irc := newService(b, "irc")
	hs := hstest.Start(b, append(options, registered(b, irc.registration(irc.namespaces())))...)
	ghost := irc.register(b, hs, "irc_ann")
	type sender struct {
		c    *hstest.Client
		room string
	}
	var senders []sender
	for i := range users {
		c := hs.User(fmt.Sprint("user", i))
		room := c.CreateRoom("public_chat")
		ghost.must(b, "POST", "/v3/join/"+url.PathEscape(string(room)), "{}")
		senders = append(senders, sender{c, string(room)})
	}
	for b.Loop() {
		irc.mu.Lock()
		irc.txns = nil
		irc.mu.Unlock()
		var mu sync.Mutex
		sent := map[string]time.Time{}
		var wg sync.WaitGroup
		began := time.Now()
		for i, s := range senders {
			wg.Go(func() {
				for n := range perSecond * seconds / users {
					due := began.Add(time.Duration(n*users+i) * time.Second / perSecond)
					time.Sleep(time.Until(due))
					at := time.Now()
					e := s.c.Must(b, "PUT", `{"msgtype":"m.text","body":"a message of the usual length, which goes to a bridge"}`,
						"/v3/rooms/%s/send/m.room.message/%s", s.room, s.c.Txn())
					mu.Lock()
					sent[e["event_id"].(string)] = at
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		spent := time.Since(began)
		await(b, "all events", func() bool { return len(irc.bodies()) >= perSecond*seconds })
		var took []time.Duration
		for _, x := range irc.txns {
			var body struct {
				Events []struct {
					ID string `json:"event_id"`
				} `json:"events"`
			}
			if err := json.Unmarshal(x.body, &body); err != nil {
				b.Fatal(err)
			}
			for _, e := range body.Events {
				if at, ok := sent[e.ID]; ok {
					took = append(took, x.at.Sub(at))
				}
			}
		}
		slices.Sort(took)
		if len(took) != perSecond*seconds {
			b.Fatalf("%d of %d events arrived", len(took), perSecond*seconds)
		}
		b.ReportMetric(float64(len(took))/spent.Seconds(), "events/s")
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(float64(len(took))/float64(len(irc.txns)), "events/txn")
	}
}
