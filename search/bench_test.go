package search_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/bench"
	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/search/bleve"
)

// BenchmarkIndex writes a corpus into each engine, as many messages as MOOTHALL_BENCH_MESSAGES says (20,000), and then asks as
// users do. One run is enough: go test ./search -run '^$' -bench Index -benchtime 1x
//
// MOOTHALL_BENCH_INDEX names a folder in which Bleve's index stays; what is there already is not written again. Then "inside"
// asks it in this process, for -cpuprofile.
func BenchmarkIndex(b *testing.B) {
	n := int64(20_000)
	if s := os.Getenv("MOOTHALL_BENCH_MESSAGES"); s != "" {
		var err error
		if n, err = strconv.ParseInt(s, 10, 64); err != nil {
			b.Fatal(err)
		}
	}
	dir, log := os.Getenv("MOOTHALL_BENCH_INDEX"), slog.New(slog.DiscardHandler)
	b.Run("bleve", func(b *testing.B) {
		at := dir
		if at == "" {
			at = b.TempDir()
		}
		x := beside(b, at, log)
		write(b, x, n)
		questions(b, x, n)
	})
	b.Run("inside", func(b *testing.B) {
		if dir == "" {
			b.Skip("MOOTHALL_BENCH_INDEX is not set")
		}
		x := bleve.New(dir, log)
		if err := x.Open(b.Context()); err != nil {
			b.Fatal(err)
		}
		questions(b, x, n)
		if err := x.Close(); err != nil {
			b.Fatal(err)
		}
	})
	for _, name := range clusters {
		b.Run(name, func(b *testing.B) {
			x, err := openCluster(cluster(b, name), prefix())
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { dropAll(b, x) })
			write(b, x, n)
			questions(b, x, n)
		})
	}
}

// write writes a corpus, or what is missing of it.
func write(b *testing.B, x search.Index, n int64) {
	b.ReportMetric(0, "ns/op")
	gens, err := x.Generations(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	c := bench.NewCorpus(1)
	state := search.State{Format: search.Format}
	if len(gens) == 1 && gens[0].Served && gens[0].State.Pos <= n {
		state = gens[0].State
		for i := range state.Pos {
			c.Next(i)
		}
	} else if err := x.Create(b.Context(), "gen-1", true, state); err != nil {
		b.Fatal(err)
	}
	there := state.Pos
	began := time.Now()
	for i := there; i < n; {
		batch := &search.Batch{}
		for ; i < n && len(batch.Docs) < 400; i++ {
			m := c.Next(i)
			batch.Docs = append(batch.Docs, search.Doc{
				ID: fmt.Sprintf("$%043d", i), NID: i + 1, TS: m.TS, Version: i + 1, Room: int64(m.Room + 1), Sender: id.UserID(fmt.Sprintf("@u%d:test", m.Sender)),
				Kind: search.KindText, Type: "m.room.message", Views: []string{search.ViewUser, search.ViewArchive},
				Texts: []string{m.Body},
			})
		}
		state.Pos = i
		if err := x.Write(b.Context(), "gen-1", batch, state); err != nil {
			b.Fatal(err)
		}
	}
	if n > there {
		b.ReportMetric(float64(n-there)/time.Since(began).Seconds(), "messages/s")
	}
}

// questions asks as users and officers do.
func questions(b *testing.B, x search.Index, n int64) {
	b.ReportMetric(0, "ns/op")
	testkit.Eventually(b, "not all is there", func() bool {
		p, err := x.Search(b.Context(), &search.Query{View: search.ViewUser, Exact: true})
		return err == nil && p.Total == n
	})
	if _, size, err := x.Size(b.Context()); err == nil {
		b.ReportMetric(float64(size)/float64(n), "bytes/message")
	}
	c := bench.NewCorpus(1)
	r := rand.New(rand.NewPCG(3, 4))
	report(b, "user", 400, func() *search.Query {
		return &search.Query{View: search.ViewUser, Text: term(b, c, r), Rooms: someRooms(c, r), Limit: 20}
	}, x)
	report(b, "officer", 100, func() *search.Query {
		return &search.Query{View: search.ViewArchive, Text: term(b, c, r), Limit: 50, Exact: true, Facets: []search.Facet{
			{Field: search.FacetSender, Size: 20}, {Field: search.FacetRoom, Size: 20}, {Field: search.FacetKind, Size: 10}, {Field: search.FacetDay}}}
	}, x)
}

// someRooms are the rooms of a user: the busy ones, where everybody is, and some others.
func someRooms(c *bench.Corpus, r *rand.Rand) []int64 {
	rooms := []int64{1, 2, 3}
	for range 10 + r.IntN(60) {
		rooms = append(rooms, int64(1+r.IntN(c.Rooms)))
	}
	return rooms
}

// term is what somebody types: frequent and rare words of both languages, parts of words, numbers.
func term(b *testing.B, c *bench.Corpus, r *rand.Rand) search.Expr {
	words := []string{
		c.Chinese(r.IntN(3000)), c.English(r.IntN(3000)), c.Chinese(r.IntN(50)) + " " + c.English(r.IntN(200)), c.English(r.IntN(20)),
		"SO-2025" + strconv.Itoa(r.IntN(10_000)), c.Chinese(r.IntN(100)) + c.Chinese(r.IntN(100)), ".xlsx",
	}
	text, err := search.Parse(words[r.IntN(len(words))])
	if err != nil {
		b.Fatal(err)
	}
	return text.Expr()
}

func report(b *testing.B, who string, n int, make func() *search.Query, x search.Index) {
	var times, work []time.Duration
	for range n {
		q := make()
		began, before := time.Now(), processorTime(b)
		if _, err := x.Search(b.Context(), q); err != nil {
			b.Fatal(err)
		}
		times, work = append(times, time.Since(began)), append(work, processorTime(b)-before)
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[n/2].Microseconds())/1000, who+"-p50-ms")
	b.ReportMetric(float64(times[n*95/100].Microseconds())/1000, who+"-p95-ms")
	if slices.Sort(work); strings.HasSuffix(b.Name(), "inside") { // says something also where others use the processors
		b.ReportMetric(float64(work[n/2].Microseconds())/1000, who+"-cpu-p50-ms")
		b.ReportMetric(float64(work[n*95/100].Microseconds())/1000, who+"-cpu-p95-ms")
	}
}

// processorTime is what this process has used.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
