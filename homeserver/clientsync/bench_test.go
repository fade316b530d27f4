package clientsync_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// discard is a response that nobody keeps.
type discard struct {
	header http.Header
	status int
	bytes  int
}

func (d *discard) Header() http.Header  { return d.header }
func (d *discard) WriteHeader(code int) { d.status = code }
func (d *discard) Write(b []byte) (int, error) {
	d.bytes += len(b)
	return len(b), nil
}

// run repeats a request and reports the size of its response.
func (c *client) run(b *testing.B, target string) {
	b.Helper()
	req := httptest.NewRequest("GET", "/_matrix/client"+target, nil)
	req.Header.Set("Authorization", "Bearer "+string(c.user)+"|"+string(c.device))
	w := &discard{header: http.Header{}}
	c.n.mux.ServeHTTP(w, req) // what is loaded once is loaded here
	if w.status != http.StatusOK {
		b.Fatalf("%s: %d", target, w.status)
	}
	w.bytes = 0
	b.ReportAllocs()
	for b.Loop() {
		c.n.mux.ServeHTTP(w, req)
	}
	b.ReportMetric(float64(w.bytes)/float64(b.N), "bytes/response")
}

// manyRooms gives alice rooms of 20 members with 30 messages each.
func manyRooms(b *testing.B, n *node, alice *client, rooms int) []id.RoomID {
	b.Helper()
	v, _ := event.LookupVersion(event.DefaultVersion)
	ctx := context.Background()
	var out []id.RoomID
	for i := range rooms {
		drafts := []room.Draft{
			{Type: "m.room.member", StateKey: key(string(alice.user)), Content: []byte(`{"membership":"join","displayname":"Alice"}`), Sender: alice.user},
			{Type: "m.room.power_levels", StateKey: key(""), Content: []byte(`{}`), Sender: alice.user},
			{Type: "m.room.join_rules", StateKey: key(""), Content: []byte(`{"join_rule":"public"}`), Sender: alice.user},
			{Type: "m.room.name", StateKey: key(""), Content: []byte(fmt.Sprintf(`{"name":"Room %d"}`, i)), Sender: alice.user},
		}
		for u := range 19 {
			user := id.UserID(fmt.Sprintf("@user%d:test", u))
			drafts = append(drafts, room.Draft{Type: "m.room.member", StateKey: key(string(user)), Content: []byte(`{"membership":"join","displayname":"Some User"}`), Sender: user})
		}
		r, err := n.rooms.CreateRoom(ctx, v, alice.user, []byte(`{"room_version":"12"}`), drafts, room.RoomMeta{})
		if err != nil {
			b.Fatal(err)
		}
		drafts = nil
		for m := range 30 {
			drafts = append(drafts, room.Draft{Type: "m.room.message", Sender: id.UserID(fmt.Sprintf("@user%d:test", m%19)), Device: "D",
				Content: []byte(`{"msgtype":"m.text","body":"Some words of an ordinary message, as people write them."}`)})
		}
		if _, err := n.rooms.SendAll(ctx, r, drafts); err != nil {
			b.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func BenchmarkInitial200Rooms(b *testing.B) {
	n := start(b, store.Config{DataDir: b.TempDir()})
	alice := n.client("alice", "A")
	manyRooms(b, n, alice, 200)
	for name, filter := range map[string]string{"all-members": "", "lazy": `?filter={"room":{"state":{"lazy_load_members":true},"timeline":{"limit":20}}}`} {
		b.Run(name, func(b *testing.B) { alice.run(b, "/v3/sync"+filter) })
	}
}

// BenchmarkIncremental is an account in 200 rooms, in one of which there is a new message.
func BenchmarkIncremental(b *testing.B) {
	n := start(b, store.Config{DataDir: b.TempDir()})
	alice, bob := n.client("alice", "A"), n.client("user1", "B")
	rooms := manyRooms(b, n, alice, 200)
	alice.sync()
	b.Run("nothing-new", func(b *testing.B) { alice.run(b, "/v3/sync?since="+alice.since) })
	bob.text(rooms[77], "news")
	b.Run("one-message", func(b *testing.B) { alice.run(b, "/v3/sync?since="+alice.since) })
	lazy := `&filter={"room":{"state":{"lazy_load_members":true},"timeline":{"limit":20}}}`
	b.Run("one-message-lazy", func(b *testing.B) { alice.run(b, "/v3/sync?since="+alice.since+lazy) })
}

// BenchmarkDeliver1000 wakes 1,000 long polls of one room by a message; an operation is one delivered response.
func BenchmarkDeliver1000(b *testing.B) {
	const members = 1000
	n := start(b, store.Config{DataDir: b.TempDir()})
	alice := n.client("alice", "A")
	r := alice.emptyRoom("12")
	var drafts []room.Draft
	for i := range members {
		u := id.UserID(fmt.Sprintf("@user%d:test", i))
		drafts = append(drafts, room.Draft{Type: "m.room.member", StateKey: key(string(u)), Content: []byte(`{"membership":"join"}`), Sender: u})
	}
	if _, err := n.rooms.SendAll(context.Background(), r, drafts); err != nil {
		b.Fatal(err)
	}
	since := alice.sync()["next_batch"].(string)
	ready, woken := make(chan struct{}, members), make(chan string, members)
	for i := range members {
		go func() {
			c := n.client(fmt.Sprintf("user%d", i), "D")
			c.since = since
			for range ready {
				c.n.poll(c, woken)
			}
		}()
	}
	round := func() {
		for range members {
			ready <- struct{}{}
		}
		alice.text(r, "to all")
		for range members {
			<-woken
		}
	}
	round() // what is loaded once is loaded here
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += members {
		round()
	}
	b.StopTimer()
	close(ready)
}

func (n *node) poll(c *client, woken chan<- string) {
	req := httptest.NewRequest("GET", "/_matrix/client/v3/sync?timeout=30000&set_presence=offline&since="+c.since, nil)
	req.Header.Set("Authorization", "Bearer "+string(c.user)+"|"+string(c.device))
	w := httptest.NewRecorder()
	n.mux.ServeHTTP(w, req)
	var next string
	if _, err := fmt.Sscanf(w.Body.String(), `{"next_batch":%q`, &next); err != nil {
		n.t.Error(err)
	}
	c.since = next
	woken <- next
}

// BenchmarkIdlePolls reports what an idle long poll holds, heap and stack, beside what any waiting request holds.
func BenchmarkIdlePolls(b *testing.B) {
	const polls = 2000
	n := start(b, store.Config{DataDir: b.TempDir()})
	n.client("alice", "A").room()
	measure := func(target string, params string) (heap, stack float64) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var wg sync.WaitGroup
		users := make([]*http.Request, polls)
		writers := make([]discard, polls)
		for i := range users {
			c := n.client(fmt.Sprintf("idle%d", i), "D")
			since := c.sync()["next_batch"].(string)
			users[i] = httptest.NewRequestWithContext(ctx, "GET", target+"?since="+since+params, nil)
			users[i].Header.Set("Authorization", "Bearer "+string(c.user)+"|D")
			writers[i].header = http.Header{}
		}
		heap0, stack0 := held()
		for i := range users {
			wg.Go(func() { n.mux.ServeHTTP(&writers[i], users[i]) })
		}
		time.Sleep(time.Second)
		heap1, stack1 := held()
		cancel()
		wg.Wait()
		return (heap1 - heap0) / polls, (stack1 - stack0) / polls
	}
	for b.Loop() {
		measure("/_matrix/client/v3/sync", "&timeout=100") // what is loaded once is loaded here
		heap, stack := measure("/_matrix/client/v3/sync", "&timeout=60000")
		baseHeap, baseStack := measure("/wait", "")
		b.ReportMetric(heap-baseHeap, "heap-bytes/poll")
		b.ReportMetric(stack-baseStack, "stack-bytes/poll")
	}
}

// held is the memory in use after a collection.
func held() (heap, stack float64) {
	for range 4 { // stacks shrink by half with each
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc), float64(m.StackInuse)
}
