package appservices_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/store/storetest"
	"github.com/moothall/moothall/homeserver/testkit"
)

// BenchmarkDelivery sends 1,500 events a second for four seconds from 30 users, and reports the time from the send request
// to the end of the request that brings the event to a service that keeps up. The senders share the machine.
func BenchmarkDelivery(b *testing.B) {
	b.Run("sqlite", func(b *testing.B) { benchDelivery(b) })
	b.Run("postgres", func(b *testing.B) { benchDelivery(b, hstest.Postgres(storetest.Postgres(b))) })
}

// sender is somebody in a room of their own with a user of the service. What they are answered is not checked against the
// specification: that costs more than the server does.
type sender struct {
	c    *hstest.Client
	room string
}

func (s *sender) say(client *http.Client, base, txn string) (event string, err error) {
	req, err := http.NewRequest(http.MethodPut, base+"/_matrix/client/v3/rooms/"+url.PathEscape(s.room)+"/send/m.room.message/"+txn,
		strings.NewReader(`{"msgtype":"m.text","body":"a message of the usual length, which goes to a bridge"}`))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+s.c.Token)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("send: %d %s", resp.StatusCode, body)
	}
	return gjson.GetBytes(body, "event_id").Str, err
}

// processorTime is what this process has used: server, senders and service. It does not depend on who else uses the machine.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchDelivery(b *testing.B, options ...hstest.Option) {
	const users, perSecond, seconds = 30, 1500, 4
	irc := newService(b, "irc")
	hs := hstest.Start(b, append(options, registered(b, irc.registration(irc.namespaces())))...)
	ghost := irc.register(b, hs, "irc_ann")
	var senders []sender
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: users}}
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
		var answered []time.Duration // how long the senders waited: a part of the whole
		var wg sync.WaitGroup
		began, cpu := time.Now(), processorTime(b)
		for i, s := range senders {
			wg.Go(func() {
				for n := range perSecond * seconds / users {
					due := began.Add(time.Duration(n*users+i) * time.Second / perSecond)
					time.Sleep(time.Until(due))
					at := time.Now()
					event, err := s.say(client, hs.URL, s.c.Txn())
					if err != nil {
						b.Error(err)
						return
					}
					mu.Lock()
					sent[event] = at
					answered = append(answered, time.Since(at))
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		spent := time.Since(began)
		testkit.Eventually(b, "all events", func() bool {
			irc.mu.Lock()
			defer irc.mu.Unlock()
			n := 0
			for _, x := range irc.txns {
				n += bytes.Count(x.body, []byte("a message of the usual length"))
			}
			return n >= perSecond*seconds
		})
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
		b.ReportMetric((processorTime(b)-cpu).Seconds()/perSecond/seconds*1000, "cpu-s/1000-events")
		slices.Sort(took)
		slices.Sort(answered)
		b.ReportMetric(float64(answered[len(answered)*99/100].Microseconds())/1000, "send-p99-ms")
		if len(took) != perSecond*seconds {
			b.Fatalf("%d of %d events arrived", len(took), perSecond*seconds)
		}
		b.ReportMetric(float64(len(took))/spent.Seconds(), "events/s")
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
		b.ReportMetric(float64(len(took))/float64(len(irc.txns)), "events/txn")
	}
}
