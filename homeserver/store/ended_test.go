package store_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestAfterTheEnd: a process that does not follow the log any more, because it shuts down, and still writes for a request does not
// say that it has applied what others wrote before: a sync's token would leave it out.
func TestAfterTheEnd(t *testing.T) {
	cfg := store.Config{URL: storetest.Postgres(t)}
	other := storetest.Open(t, cfg)
	ending, err := store.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ending.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ending.Follow(ctx, nil, nil) }()
	<-ending.Following()
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	write := func(s *store.Store) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if err := s.Write(ctx, func(tx *store.Tx) error {
			_, err := tx.Announce(store.Entry{Kind: store.KindProfile, User: "@alice:test"})
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	before := ending.Applied()
	write(other)
	write(ending)
	if at := ending.Applied(); at != before {
		t.Errorf("it says that it has applied %d; it has not seen what is behind %d", at, before)
	}
	if other.CatchUp(t.Context()) != nil || other.Applied() != before+2 {
		t.Errorf("the other process stands at %d, not at %d", other.Applied(), before+2)
	}
}
