package search_test

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/testkit"
	"github.com/moothall/moothall/search"
	"github.com/moothall/moothall/search/bleve"
	"github.com/moothall/moothall/search/elastic"
)

var update = flag.Bool("update", false, "write the expected hits of the generated queries anew")

func lines(t testing.TB, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []string
	for s := bufio.NewScanner(f); s.Scan(); {
		out = append(out, s.Text())
	}
	return out
}

// engines are all engines that there are, empty.
func engines(t *testing.T, fn func(t *testing.T, x search.Index)) {
	t.Run("bleve", func(t *testing.T) {
		x := bleve.New(t.TempDir(), slog.New(slog.DiscardHandler))
		if err := x.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = x.Close() })
		fn(t, x)
	})
	t.Run("bleve beside", func(t *testing.T) { fn(t, beside(t, t.TempDir(), slog.New(slog.DiscardHandler))) })
	for _, name := range clusters {
		t.Run(name, func(t *testing.T) { fn(t, newElastic(t, cluster(t, name))) })
	}
}

// beside is Bleve in a process of its own.
func beside(t testing.TB, dir string, log *slog.Logger) *bleve.Process {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	x := bleve.NewProcess(program, dir, log)
	if err := x.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func newElastic(t *testing.T, url string) *elastic.Index {
	t.Helper()
	x, err := openCluster(url, prefix())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dropAll(t, x) })
	return x
}

func openCluster(url, prefix string) (*elastic.Index, error) {
	return elastic.New(elastic.Config{URLs: []string{url}, Prefix: prefix, Shards: 2})
}

func dropAll(t testing.TB, x search.Index) {
	gens, err := x.Generations(context.Background())
	if err != nil {
		t.Logf("indices that stay: %v", err)
	}
	for _, g := range gens {
		_ = x.Drop(context.Background(), g.Name)
	}
	_ = x.Close()
}

func prefix() string { return fmt.Sprintf("test-%d-%d", time.Now().UnixNano(), rand.Uint32()) }

// fill writes messages into a new generation, one a minute, and waits until they are found.
func fill(t testing.TB, x search.Index, texts []string) {
	t.Helper()
	if err := x.Create(t.Context(), "gen-1", true, search.State{Format: search.Format}); err != nil {
		t.Fatal(err)
	}
	b := &search.Batch{Version: 1}
	for i, s := range texts {
		b.Docs = append(b.Docs, document(i, s))
	}
	if err := x.Write(t.Context(), "gen-1", b, search.State{Format: search.Format, Pos: 7}); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "the documents are not found", func() bool {
		p, err := x.Search(t.Context(), &search.Query{View: search.ViewUser, Exact: true})
		return err == nil && p.Total == int64(len(texts))
	})
}

const minute = 60_000

func document(i int, text string) search.Doc {
	return search.Doc{
		ID: fmt.Sprintf("$%d", i), NID: int64(i + 1), TS: int64(1_800_000_000_000 + i*minute), Version: int64(i + 1), Room: int64(i%7 + 1),
		Sender: id.UserID(fmt.Sprintf("@u%d:test", i%5)), Kind: search.KindText, Type: "m.room.message", Views: []string{search.ViewUser, search.ViewArchive},
		Texts: []string{text},
	}
}

// numbers are the lines that a term finds: the index gives candidates, the text has the last word.
func numbers(t testing.TB, x search.Index, texts []string, term string) (found []int, candidates int) {
	t.Helper()
	text, err := search.Parse(term)
	if err != nil {
		t.Fatalf("%q: %v", term, err)
	}
	found = []int{}
	q := &search.Query{View: search.ViewUser, Text: text.Expr(), Limit: 30, Oldest: true}
	for {
		p, err := x.Search(t.Context(), q)
		if err != nil {
			t.Fatalf("%q: %v", term, err)
		}
		candidates += len(p.Hits)
		for _, h := range p.Hits {
			if n := int(h.NID - 1); text.Matches(search.FoldAll(texts[n])) {
				found = append(found, n)
			}
		}
		if len(p.Hits) < q.Limit {
			return found, candidates
		}
		q.After = &p.Hits[len(p.Hits)-1].Cursor
	}
}

// oracle folds in another way: no table, no clusters.
func oracle(s string) string {
	var b strings.Builder
	for _, r := range norm.NFKD.String(s) {
		switch {
		case r >= 0x300 && r <= 0x36f, r == 0xad, r == 0x200b, r == 0x200d, r == 0xfe0f:
		case unicode.IsSpace(r):
			b.WriteByte(' ')
		default:
			b.WriteRune(unicode.ToLower(r))
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// generated cuts literal stretches out of the corpus: every one must find its line.
func generated(texts []string, n int) []string {
	r := rand.New(rand.NewPCG(7, 11))
	var out []string
	for len(out) < n {
		line := []rune(texts[r.IntN(len(texts))])
		size := 2 + r.IntN(9)
		if len(line) < size {
			continue
		}
		at := r.IntN(len(line) - size + 1)
		s := string(line[at : at+size])
		if strings.ContainsAny(s, "\t\u200b\u00ad") || utf8.RuneCountInString(strings.TrimSpace(search.Fold(s))) < 2 {
			continue
		}
		out = append(out, s)
	}
	return out
}

// TestQueries runs 220 queries with known hits over a Chinese and English corpus on every engine: those of queries.txt were
// written by hand, those of generated.txt are stretches of the corpus whose hits another program text, the oracle, found.
func TestQueries(t *testing.T) {
	texts := lines(t, "testdata/corpus.txt")
	if *update {
		writeGenerated(t, texts)
	}
	type query struct {
		term string
		want []int
	}
	var queries []query
	for _, file := range []string{"testdata/queries.txt", "testdata/generated.txt"} {
		for _, l := range lines(t, file) {
			term, hits, ok := strings.Cut(l, "\t")
			if !ok {
				t.Fatalf("%s: %q", file, l)
			}
			q := query{term, []int{}}
			for _, s := range strings.Fields(hits) {
				n, err := strconv.Atoi(s)
				if err != nil {
					t.Fatal(err)
				}
				q.want = append(q.want, n-1)
			}
			queries = append(queries, q)
		}
	}
	if len(queries) < 200 {
		t.Fatalf("only %d queries", len(queries))
	}
	engines(t, func(t *testing.T, x search.Index) {
		fill(t, x, texts)
		all, wrong := 0, 0
		for _, q := range queries {
			got, candidates := numbers(t, x, texts, q.term)
			if !slices.Equal(got, q.want) {
				t.Errorf("%q finds lines %v, want %v", q.term, plusOne(got), plusOne(q.want))
			}
			all += candidates
			wrong += candidates - len(got)
		}
		t.Logf("%d queries; of %d candidates of the index the texts refused %d", len(queries), all, wrong)
		if wrong*20 > all {
			t.Errorf("the index alone is too coarse")
		}
	})
}

func plusOne(list []int) []int {
	out := []int{}
	for _, n := range list {
		out = append(out, n+1)
	}
	return out
}

func writeGenerated(t *testing.T, texts []string) {
	var b strings.Builder
	for _, term := range generated(texts, 140) {
		fmt.Fprintf(&b, "%s\t", term)
		words := strings.Fields(oracle(term))
		for i, s := range texts {
			folded := oracle(s)
			hit := strings.Contains(folded, oracle(term))
			if !hit && !strings.ContainsAny(term, `"“”「」«»*`) && !slices.ContainsFunc(words, func(w string) bool { return utf8.RuneCountInString(w) < 2 }) {
				hit = !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(folded, w) })
			}
			if hit {
				fmt.Fprintf(&b, " %d", i+1)
			}
		}
		b.WriteByte('\n')
	}
	if err := os.WriteFile("testdata/generated.txt", []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestEveryStretch looks for every stretch of two and three characters of the corpus, and for many longer ones.
func TestEveryStretch(t *testing.T) {
	texts := lines(t, "testdata/corpus.txt")
	x := bleve.New(t.TempDir(), slog.New(slog.DiscardHandler))
	if err := x.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	fill(t, x, texts)
	n := 0
	for i, line := range texts {
		runes := []rune(line)
		for _, size := range []int{2, 3, 7, 15} {
			for at := 0; at+size <= len(runes); at++ {
				s := string(runes[at : at+size])
				seen := utf8.RuneCountInString(strings.TrimSpace(search.Fold(s)))
				if _, err := search.Parse(s); err != nil && seen > 1 {
					t.Errorf("%q: %v", s, err)
				}
				if seen < 2 {
					continue
				}
				n++
				if got, _ := numbers(t, x, texts, s); !slices.Contains(got, i) {
					t.Errorf("%q does not find %q", s, line)
				}
			}
		}
	}
	t.Logf("%d stretches", n)
}
