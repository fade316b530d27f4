package groups

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// BenchmarkFirstSync puts a company of 5,000 users in 300 groups into rooms, 50,000 memberships in all, while somebody
// else sends messages. GROUP_SIZE changes the average size of a group.
//
//	go test ./homeserver/groups -run - -bench FirstSync -benchtime 1x
func BenchmarkFirstSync(b *testing.B) {
	for _, name := range []string{"sqlite", "postgres"} {
		b.Run(name, func(b *testing.B) {
			for range b.N {
				db := store.Config{DataDir: b.TempDir()}
				if name == "postgres" {
					db.URL = storetest.Postgres(b)
				}
				firstSync(b, db)
			}
		})
	}
}

func firstSync(b *testing.B, db store.Config) {
	w := start(b, db, Config{Rules: []Rule{{ID: "g", Alias: "g-{{.Slug}}"}}}, false)
	if s := os.Getenv("GROUP_PACE"); s != "" {
		_, _ = fmt.Sscan(s, &w.pace.unit, &w.pace.atOnce, &w.pace.stores)
	}
	const users, groups = 5000, 300
	size := 166
	if s := os.Getenv("GROUP_SIZE"); s != "" {
		size, _ = strconv.Atoi(s)
	}
	ids := make([]id.UserID, users)
	var wait sync.WaitGroup
	for part := range 50 {
		wait.Go(func() {
			for i := part * users / 50; i < (part+1)*users/50; i++ {
				u, err := w.accounts.CreateUser(b.Context(), account.NewUser{Localpart: fmt.Sprint("u", i), DisplayName: fmt.Sprint("User ", i)})
				if err != nil {
					b.Error(err)
				}
				ids[i] = u.ID
			}
		})
	}
	wait.Wait()
	var all []Group
	total := 0
	for i := range groups {
		g := Group{ExternalID: fmt.Sprint(i), Name: fmt.Sprint("Group ", i)}
		for k := range size/2 + i*size/groups { // some are three times as large as others
			g.Members = append(g.Members, ids[(i*37+k*13)%users])
		}
		slices.Sort(g.Members)
		g.Members = slices.Compact(g.Members)
		total += len(g.Members)
		all = append(all, g)
	}
	alone := sends(b, w, 5*time.Second, nil)
	stop := make(chan struct{})
	var busy []time.Duration
	wait.Go(func() { busy = sends(b, w, 0, stop) })
	began := time.Now()
	p, err := w.Plan(b.Context(), "corp", all)
	if err != nil {
		b.Fatal(err)
	}
	planned := time.Since(began)
	r, err := w.Apply(b.Context(), p, nil)
	if err != nil || len(r.Errors) > 0 || r.Join != total {
		b.Fatalf("%+v %v", r, err)
	}
	took := time.Since(began)
	close(stop)
	wait.Wait()
	began = time.Now()
	if p, err = w.Plan(b.Context(), "corp", all); err != nil || !p.Empty() {
		b.Fatalf("%s %v", p, err)
	}
	if _, err = w.Apply(b.Context(), p, nil); err != nil {
		b.Fatal(err)
	}
	again := time.Since(began)
	slices.Sort(busy)
	b.ReportMetric(took.Seconds(), "s")
	b.ReportMetric(float64(total)/took.Seconds(), "joins/s")
	b.ReportMetric(planned.Seconds(), "plan-s")
	b.ReportMetric(again.Seconds(), "unchanged-s")
	b.ReportMetric(float64(p99(alone).Microseconds())/1000, "alone-p99-ms")
	b.ReportMetric(float64(busy[len(busy)/2].Microseconds())/1000, "busy-p50-ms")
	b.ReportMetric(float64(busy[len(busy)*95/100].Microseconds())/1000, "busy-p95-ms")
	b.ReportMetric(float64(p99(busy).Microseconds())/1000, "busy-p99-ms")
}

// sends measures how long messages of one user take, twenty a second.
func sends(b *testing.B, w *world, long time.Duration, stop chan struct{}) []time.Duration {
	v, _ := event.LookupVersion(event.DefaultVersion)
	sender := id.UserID("@u0:test")
	roomID, err := w.rooms.CreateRoom(context.Background(), v, sender, []byte(`{"room_version":"12"}`),
		[]room.Draft{member(sender, sender, store.Profile{}, memberContent{Membership: "join"})}, room.RoomMeta{})
	if err != nil {
		b.Error(err)
		return nil
	}
	var out []time.Duration
	end := time.Now().Add(long)
	for {
		select {
		case <-stop:
			return out
		default:
		}
		if stop == nil && time.Now().After(end) {
			return out
		}
		began := time.Now()
		if _, err := w.rooms.Send(context.Background(), roomID, room.Draft{Type: "m.room.message", Sender: sender, Content: []byte(`{"msgtype":"m.text","body":"hi"}`)}); err != nil {
			b.Error(err)
			return out
		}
		out = append(out, time.Since(began))
		time.Sleep(50*time.Millisecond - min(50*time.Millisecond, time.Since(began)))
	}
}

func p99(list []time.Duration) time.Duration {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[len(list)*99/100]
}
