package archive_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/compliance/archive"
	"github.com/moothall/moothall/homeserver"
	"github.com/moothall/moothall/homeserver/hstest"
)

// BenchmarkArchive archives messages that wait (MOOTHALL_BENCH_MESSAGES, 2,000 without it), and verifies them.
func BenchmarkArchive(b *testing.B) {
	n, err := strconv.Atoi(os.Getenv("MOOTHALL_BENCH_MESSAGES"))
	if err != nil {
		n = 2000
	}
	const senders = 20
	for range b.N {
		hs := hstest.Start(b)
		alice := hs.User("alice")
		room := alice.CreateRoom("private_chat")
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() {
				for k := range n / senders {
					alice.Text(room, fmt.Sprintf("number %d of %d: everything there is to say about the quotation", k, i))
				}
			})
		}
		wg.Wait()
		hs.Stop()
		err := homeserver.WithArchive(b.Context(), hs.Config, slog.New(slog.DiscardHandler), "verify", func(ctx context.Context, a *archive.Archive) error {
			began := time.Now()
			if err := a.All(ctx); err != nil {
				return err
			}
			written := time.Now()
			r, err := a.Verify(ctx, "")
			if err != nil || len(r.Problems) > 0 {
				return fmt.Errorf("%+v: %w", r, err)
			}
			b.ReportMetric(float64(r.Entries)/written.Sub(began).Seconds(), "archived/s")
			b.ReportMetric(float64(r.Entries)/time.Since(written).Seconds(), "verified/s")
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
}
