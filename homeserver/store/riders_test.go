package store

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moothall/moothall/homeserver/testkit"
)

func ridersBackend(t *testing.T) *sqliteBackend {
	t.Helper()
	b, err := openSQLite(t.Context(), t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.close() })
	err = b.write(t.Context(), func(tx *Tx) error {
		_, err := tx.Exec("CREATE TABLE t (who TEXT)")
		return err
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// passengers notes which transaction each write was in.
type passengers struct {
	mu sync.Mutex
	in map[string]*Tx
}

func (p *passengers) fn(who string, took time.Duration, fail error) func(*Tx) error {
	return func(tx *Tx) error {
		p.mu.Lock()
		p.in[who] = tx
		p.mu.Unlock()
		time.Sleep(took)
		if _, err := tx.Exec("INSERT INTO t (who) VALUES ($1)", who); err != nil {
			return err
		}
		return fail
	}
}

func rows(t *testing.T, b *sqliteBackend) (out string) {
	t.Helper()
	err := b.read(t.Context(), func(tx *Tx) error {
		_, err := tx.Get([]any{&out}, "SELECT coalesce(group_concat(who, ' '), '') FROM (SELECT who FROM t ORDER BY who)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// waits tells how many wait for the writer.
func (b *sqliteBackend) waits() (hurried, riders int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue), len(b.riders)
}

// TestRidersShare has riders wait while somebody else holds the writer: they are in the transaction of who came for himself, behind
// him, as many as there is time for, and one that fails leaves the others alone.
func TestRidersShare(t *testing.T) {
	b := ridersBackend(t)
	p := &passengers{in: map[string]*Tx{}}
	failed := errors.New("refused")
	var all sync.WaitGroup
	errs := map[string]error{}
	var mu sync.Mutex
	begin := func(who string, write func(context.Context, func(*Tx) error, func([]Entry)) error, took time.Duration, fail error) {
		all.Go(func() {
			err := write(t.Context(), p.fn(who, took, fail), nil)
			mu.Lock()
			defer mu.Unlock()
			errs[who] = err
		})
	}
	held := <-b.writer
	begin("rider1", b.ride, 0, failed)
	testkit.Eventually(t, "the first rider waits", func() bool { _, n := b.waits(); return n == 1 })
	begin("rider2", b.ride, 3*rideTime, nil)
	testkit.Eventually(t, "the second rider waits", func() bool { _, n := b.waits(); return n == 2 })
	begin("rider3", b.ride, 0, nil)
	testkit.Eventually(t, "the third rider waits", func() bool { _, n := b.waits(); return n == 3 })
	begin("somebody", b.write, 0, nil)
	testkit.Eventually(t, "somebody waits", func() bool { n, _ := b.waits(); return n == 1 })
	b.writer <- held
	all.Wait()
	if p.in["somebody"] != p.in["rider1"] || p.in["somebody"] != p.in["rider2"] {
		t.Error("the first riders had a transaction of their own")
	}
	if p.in["somebody"] == p.in["rider3"] {
		t.Error("a message waited for more riders than there is time for")
	}
	if got := rows(t, b); got != "rider2 rider3 somebody" {
		t.Errorf("written: %s", got)
	}
	for who, err := range errs {
		if (who == "rider1") != errors.Is(err, failed) || who != "rider1" && err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// TestRidersGoAlone has riders whom nobody takes along: they are written all the same, at once where nobody writes at all.
func TestRidersGoAlone(t *testing.T) {
	b := ridersBackend(t)
	p := &passengers{in: map[string]*Tx{}}
	for _, company := range []time.Time{time.Now(), {}} {
		b.company = company
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.ride(ctx, p.fn("rider", 0, nil), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := rows(t, b); got != "rider rider" {
		t.Errorf("written: %s", got)
	}
	if RideAfter(time.Now()) <= 0 || RideAfter(time.Now().Add(-time.Minute)) != 0 {
		t.Errorf("riders wait %v for somebody who was just here, %v for somebody who left", RideAfter(time.Now()), RideAfter(time.Now().Add(-time.Minute)))
	}
}

// TestRidersArrive has a crowd that writes without a pause: riders are not left behind, and one whose time is over is refused
// without having written.
func TestRidersArrive(t *testing.T) {
	b := ridersBackend(t)
	ctx, cancel := context.WithCancel(t.Context())
	var crowd sync.WaitGroup
	for range 8 {
		crowd.Go(func() {
			for ctx.Err() == nil {
				_ = b.writeFirst(ctx, func(tx *Tx) error { _, err := tx.Exec("DELETE FROM t WHERE who = 'nobody'"); return err }, nil)
			}
		})
	}
	p := &passengers{in: map[string]*Tx{}}
	var riders sync.WaitGroup
	for range 40 {
		riders.Go(func() {
			if err := b.ride(t.Context(), p.fn("r", 2*rideTime, nil), nil); err != nil {
				t.Error(err)
			}
		})
	}
	over, stop := context.WithCancel(t.Context())
	stop()
	if err := b.ride(over, p.fn("late", 0, nil), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a rider whose time is over: %v", err)
	}
	riders.Wait()
	cancel()
	crowd.Wait()
	if got := rows(t, b); got != strings.TrimSpace(strings.Repeat("r ", 40)) {
		t.Errorf("written: %s", got)
	}
}

// TestRides says where the mark of a context counts.
func TestRides(t *testing.T) {
	s := &Store{backend: &sqliteBackend{}}
	ctx := Riding(t.Context())
	if s.Rides(t.Context()) || !s.Rides(ctx) || s.Rides(Hurried(ctx)) || (&Store{backend: &pgBackend{}}).Rides(ctx) {
		t.Error("the mark counts where it does not, or the other way round")
	}
}
