package search_test

import (
	"archive/zip"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/search/bleve"
	"github.com/moothall/moothall/search/extract"
)

func TestMain(m *testing.M) {
	extract.Child()
	bleve.Child()
	os.Exit(m.Run())
}

// TestRestart stops a server, takes its index away or parts of it, and starts it again.
func TestRestart(t *testing.T) {
	for name, harm := range map[string]func(dir string) error{
		"nothing":  func(string) error { return nil },
		"wiped":    os.RemoveAll,
		"unserved": func(dir string) error { return os.Remove(filepath.Join(dir, "served")) },
		"damaged": func(dir string) error {
			gens, err := filepath.Glob(filepath.Join(dir, "gen-*", "store", "root.bolt"))
			if err == nil && len(gens) == 0 {
				return os.ErrNotExist
			}
			for _, g := range gens {
				err = os.WriteFile(g, []byte("damaged"), 0o600)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := hstest.Config(t)
			hs := hstest.StartWith(t, cfg)
			alice := hs.User("alice")
			room := alice.CreateRoom("private_chat")
			ready(t, alice)
			var want []string
			for i := range 20 {
				want = append(want, string(alice.Text(room, fmt.Sprintf("badger %d", i))))
			}
			finds(t, alice, "badger", slices.Clone(want)...)
			alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, want[0], alice.Txn())
			want = want[1:]
			hs.Stop()
			if err := harm(filepath.Join(cfg.DataDir, "search")); err != nil {
				t.Fatal(err)
			}
			alice = alice.On(hstest.StartWith(t, cfg))
			ready(t, alice)
			finds(t, alice, "badger", slices.Clone(want)...)
			if n := ask(t, alice, "badger", "", "").Count; n != len(want) {
				t.Errorf("the index counts %d, want %d", n, len(want))
			}
		})
	}
}

// gate is a way to a cluster that can be closed.
func gate(t testing.TB, to string) (address string, closed *atomic.Bool) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	closed = &atomic.Bool{}
	proxy := httputil.NewSingleHostReverseProxy(u)
	proxy.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if closed.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, closed
}

// TestClusterTrouble takes a cluster away while people talk, and wipes it while the server runs.
func TestClusterTrouble(t *testing.T) {
	for _, name := range clusters {
		t.Run(name, func(t *testing.T) {
			direct := cluster(t, name)
			address, closed := gate(t, direct)
			p := prefix()
			x, err := openCluster(direct, p)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { dropAll(t, x) })
			hs := hstest.Start(t, func(c *homeserver.Config) {
				c.Search.Elasticsearch.URLs, c.Search.Elasticsearch.Prefix = []string{address}, p
			})
			alice := hs.User("alice")
			room := alice.CreateRoom("private_chat")
			ready(t, alice)
			var want []string
			say := func(n int) {
				for range n {
					want = append(want, string(alice.Text(room, fmt.Sprintf("marmot %d", len(want)))))
				}
			}
			say(5)
			finds(t, alice, "marmot", slices.Clone(want)...)

			closed.Store(true)
			began := time.Now()
			say(30)
			if d := time.Since(began); d > 15*time.Second {
				t.Errorf("chat waits for search: 30 messages took %v", d)
			}
			r := alice.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"marmot"}}}`, "/v3/search")
			if r.Status != 503 {
				t.Errorf("without the cluster: %d", r.Status)
			}
			closed.Store(false)
			testkit.Eventually(t, "what was said meanwhile is not found", func() bool {
				r := alice.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"marmot","filter":{"limit":100}}}}`, "/v3/search")
				return r.Status == 200 && strings.Count(string(r.Body), `"rank"`) == len(want)
			})

			gens, err := x.Generations(t.Context())
			if err != nil || len(gens) != 1 {
				t.Fatalf("%v %v", gens, err)
			}
			if err := x.Drop(t.Context(), gens[0].Name); err != nil {
				t.Fatal(err)
			}
			say(5)
			testkit.Eventually(t, "after the index was wiped not all is found", func() bool {
				r := alice.Do(t, "POST", `{"search_categories":{"room_events":{"search_term":"marmot","filter":{"limit":100}}}}`, "/v3/search")
				return r.Status == 200 && strings.Count(string(r.Body), `"rank"`) == len(want)
			})
			if n := ask(t, alice, "marmot", "", "").Count; n != len(want) {
				t.Errorf("the index counts %d, want %d", n, len(want))
			}
		})
	}
}

// TestReindex builds a new index while people search and talk: no search fails and nothing is missing at any moment.
func TestReindex(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("private_chat")
		ready(t, alice)
		var want []string
		for i := range 30 {
			want = append(want, string(alice.Text(room, fmt.Sprintf("lynx %d", i))))
		}
		finds(t, alice, "lynx", slices.Clone(want)...)
		done := make(chan error, 1)
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		go func() { done <- homeserver.Reindex(ctx, hs.Config, slog.New(slog.DiscardHandler), &out) }()
		for running := true; running; {
			select {
			case err := <-done:
				if err != nil {
					t.Fatalf("%v\n%s", err, out.String())
				}
				running = false
			case <-time.After(20 * time.Millisecond):
			}
			if n := len(ask(t, alice, "lynx", `"filter":{"limit":100}`, "").Results); n < 30 {
				t.Fatalf("during the rebuilding only %d are found", n)
			}
		}
		if !strings.Contains(out.String(), "done:") {
			t.Errorf("the command says %q", out.String())
		}
		want = append(want, string(alice.Text(room, "lynx afterwards")))
		finds(t, alice, "lynx", want...)
	})
}

// TestPurge removes old messages of a room, and then a room, by the admin API: what is gone is not found any more, and is not in
// the index either.
func TestPurge(t *testing.T) {
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice, boss := hs.User("alice"), hs.User("boss")
		if _, _, err := homeserver.SetRole(t.Context(), hs.Config, slog.New(slog.DiscardHandler), "boss", "admin", true); err != nil {
			t.Fatal(err)
		}
		stays, goes := alice.CreateRoom("private_chat"), alice.CreateRoom("private_chat")
		ready(t, alice)
		var old, kept []string
		for i := range 5 {
			old = append(old, string(alice.Text(stays, fmt.Sprintf("wombat old %d", i))))
		}
		mark := alice.Text(stays, "from here on")
		kept = append(kept, string(alice.Text(stays, "wombat new")))
		gone := string(alice.Text(goes, "wombat elsewhere"))
		finds(t, alice, "wombat", append(append(slices.Clone(old), kept...), gone)...)
		boss.Must(t, "DELETE", `{"purge":true,"force_purge":true}`, "/_synapse/admin/v2/rooms/%s", goes)
		boss.Must(t, "POST", fmt.Sprintf(`{"delete_local_events":true,"purge_up_to_event_id":%q}`, mark), "/_synapse/admin/v1/purge_history/%s", stays)
		finds(t, alice, "wombat", kept...)
		testkit.Eventually(t, "the index still has what is gone", func() bool { return ask(t, alice, "wombat", "", "").Count == len(kept) })
	})
}

// TestStatus asks by the command how far the index is, in another process than the one that keeps it.
func TestStatus(t *testing.T) {
	hs := hstest.Start(t)
	status := func() string {
		var out bytes.Buffer
		if err := homeserver.SearchStatus(t.Context(), hs.Config, slog.New(slog.DiscardHandler), &out); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if s := status(); !strings.Contains(s, "there is none yet") {
		t.Errorf("before anything was said: %s", s)
	}
	alice := hs.User("alice")
	room := alice.CreateRoom("private_chat")
	ready(t, alice)
	said := alice.Text(room, "numbat")
	finds(t, alice, "numbat", string(said))
	testkit.Eventually(t, "no status", func() bool {
		s := status()
		return strings.Contains(s, "engine: bleve") && strings.Contains(s, "documents: ") && strings.Contains(s, "behind the log: ") && strings.Contains(s, "older events: complete")
	})
}

// TestFiles finds messages by the texts of their files.
func TestFiles(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, hs *hstest.Server) {
		alice := hs.User("alice")
		room := alice.CreateRoom("private_chat")
		ready(t, alice)
		file := func(name, contentType string, content []byte) string {
			req, err := http.NewRequest("POST", hs.URL+"/_matrix/media/v3/upload?filename="+name, bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", contentType)
			var up struct {
				URI string `json:"content_uri"`
			}
			r := alice.Send(t, req)
			r.JSON(t, &up)
			return string(alice.Event(room, "m.room.message", fmt.Sprintf(`{"msgtype":"m.file","body":%q,"url":%q,"info":{"mimetype":%q}}`, name, up.URI, contentType)))
		}
		var word bytes.Buffer
		z := zip.NewWriter(&word)
		w, err := z.Create("word/document.xml")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, `<w:document xmlns:w="w"><w:p><w:t>鸭嘴兽的生活习性</w:t></w:p></w:document>`)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		doc := file("habits.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document", word.Bytes())
		text := file("notes.txt", "text/plain", []byte("the platypus lays eggs"))
		broken := file("broken.pdf", "application/pdf", []byte("%PDF-1.4 nothing else"))
		finds(t, alice, "生活习性", doc)
		finds(t, alice, "platypus", text)
		finds(t, alice, "broken.pdf", broken)
		finds(t, alice, "notes eggs", text) // one word in the name and one in the file
		alice.Must(t, "PUT", `{}`, "/v3/rooms/%s/redact/%s/%s", room, text, alice.Txn())
		finds(t, alice, "platypus")
	}, func(c *homeserver.Config) { c.Search.Attachments.Program = program })
}

// TestIndex holds every engine to what all of them promise.
func TestIndex(t *testing.T) {
	engines(t, func(t *testing.T, x search.Index) {
		ctx := t.Context()
		var texts []string
		for i := range 100 {
			texts = append(texts, fmt.Sprintf("common word and number%d", i))
		}
		fill(t, x, texts)
		total := func(q search.Query) int64 {
			t.Helper()
			q.Exact = true
			p, err := x.Search(ctx, &q)
			if err != nil {
				t.Fatal(err)
			}
			return p.Total
		}
		day := int64(1_800_000_000_000)
		for i, tc := range []struct {
			q    search.Query
			want int64
		}{
			{search.Query{View: search.ViewUser}, 100},
			{search.Query{View: "x"}, 0},
			{search.Query{Rooms: []int64{}}, 0},
			{search.Query{Rooms: []int64{1, 2}}, 30},
			{search.Query{NotRooms: []int64{1, 2}}, 70},
			{search.Query{Senders: []string{"@u1:test"}}, 20},
			{search.Query{NotSenders: []string{"@u1:test"}}, 80},
			{search.Query{Kinds: []string{search.KindFile}}, 0},
			{search.Query{Types: []string{"m.room.message"}}, 100},
			{search.Query{Flags: []string{search.FlagRedacted}}, 0},
			{search.Query{NotFlags: []string{search.FlagRedacted}}, 100},
			{search.Query{From: day + 10*minute}, 90},
			{search.Query{To: day + 10*minute}, 10},
			{search.Query{From: day + 10*minute, To: day + 12*minute}, 2},
			{search.Query{Text: search.Expr{Not: &search.Expr{Field: search.FieldGram, Token: "r99"}}}, 99},
		} {
			if got := total(tc.q); got != tc.want {
				t.Errorf("query %d finds %d, want %d", i, got, tc.want)
			}
		}
		for _, oldest := range []bool{true, false} {
			var seen []int64
			q := search.Query{View: search.ViewUser, Limit: 7, Oldest: oldest}
			for {
				p, err := x.Search(ctx, &q)
				if err != nil {
					t.Fatal(err)
				}
				for _, h := range p.Hits {
					seen = append(seen, h.NID)
				}
				if len(p.Hits) < q.Limit {
					break
				}
				q.After = &p.Hits[len(p.Hits)-1].Cursor
			}
			if !oldest {
				slices.Reverse(seen)
			}
			if len(seen) != 100 || !slices.IsSorted(seen) {
				t.Errorf("oldest %v: %v", oldest, seen)
			}
		}
		p, err := x.Search(ctx, &search.Query{View: search.ViewUser, Facets: []search.Facet{{Field: search.FacetSender, Size: 3}, {Field: search.FacetDay}, {Field: search.FacetRoom}, {Field: search.FacetKind}}})
		if err != nil {
			t.Fatal(err)
		}
		if f := p.Facets[search.FacetSender]; len(f) != 3 || f[0] != (search.Bucket{Value: "@u0:test", Count: 20}) {
			t.Errorf("senders %v", f)
		}
		if f := p.Facets[search.FacetDay]; len(f) != 1 || f[0].Value != "20833" || f[0].Count != 100 {
			t.Errorf("days %v", f)
		}
		if f := p.Facets[search.FacetRoom]; len(f) != 7 || f[0] != (search.Bucket{Value: "1", Count: 15}) {
			t.Errorf("rooms %v", f)
		}

		// writing again changes nothing, deleting takes away
		again := &search.Batch{Version: 200, Docs: []search.Doc{document(3, texts[3])}, Delete: []string{"$4", "$unknown"}}
		again.Docs[0].Version = 200
		if err := x.Write(ctx, "gen-1", again, search.State{Format: search.Format, Pos: 8}); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "99 documents", func() bool { return total(search.Query{View: search.ViewUser}) == 99 })
		if err := x.DeleteRoom(ctx, "gen-1", 1); err != nil {
			t.Fatal(err)
		}
		testkit.Eventually(t, "room 1 is gone", func() bool { return total(search.Query{View: search.ViewUser}) == 84 })

		// a second generation takes the place of the first
		if err := x.Create(ctx, "gen-2", false, search.State{Format: search.Format, Pos: 9}); err != nil {
			t.Fatal(err)
		}
		if err := x.Write(ctx, "gen-2", &search.Batch{Docs: []search.Doc{document(500, "another")}}, search.State{Format: search.Format, Pos: 10}); err != nil {
			t.Fatal(err)
		}
		if n := total(search.Query{View: search.ViewUser}); n != 84 {
			t.Errorf("%d before the switch", n)
		}
		if err := x.Serve(ctx, "gen-2"); err != nil {
			t.Fatal(err)
		}
		if n := total(search.Query{View: search.ViewUser}); n != 1 {
			t.Errorf("%d after the switch", n)
		}
		if err := x.Drop(ctx, "gen-1"); err != nil {
			t.Fatal(err)
		}
		gens, err := x.Generations(ctx)
		if err != nil || len(gens) != 1 || !gens[0].Served || gens[0].State.Pos != 10 {
			t.Errorf("generations %v %v", gens, err)
		}
		if docs, _, err := x.Size(ctx); err != nil || docs != 1 {
			t.Errorf("size %d %v", docs, err)
		}
		if err := x.Write(ctx, "gen-1", &search.Batch{}, search.State{Format: search.Format}); err == nil {
			t.Errorf("a generation that is gone takes documents")
		}
	})
}
