package store

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
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

// TestRidersShare has riders wait while somebody else holds the writer: who came for himself goes first, without them unless they
// have waited for long; then as many go together as there is time for, and one that fails leaves the others alone.
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
	begin("old", b.ride, 0, failed)
	testkit.Eventually(t, "the first rider waits", func() bool { _, n := b.waits(); return n == 1 })
	time.Sleep(rideWait)
	b.lull.seen()
	begin("rider1", b.ride, 3*rideTime, nil)
	testkit.Eventually(t, "the second rider waits", func() bool { _, n := b.waits(); return n == 2 })
	begin("rider2", b.ride, 0, nil)
	testkit.Eventually(t, "the third rider waits", func() bool { _, n := b.waits(); return n == 3 })
	begin("somebody", b.write, 0, nil)
	testkit.Eventually(t, "somebody waits", func() bool { n, _ := b.waits(); return n == 1 })
	b.writer <- held
	all.Wait()
	if p.in["somebody"] != p.in["old"] {
		t.Error("a rider that had waited for long did not go along")
	}
	if p.in["somebody"] == p.in["rider1"] || p.in["somebody"] == p.in["rider2"] {
		t.Error("a message waited for riders that had just come")
	}
	if p.in["rider1"] == p.in["rider2"] {
		t.Error("more riders went together than there is time for")
	}
	if got := rows(t, b); got != "rider1 rider2 somebody" {
		t.Errorf("written: %s", got)
	}
	for who, err := range errs {
		if (who == "old") != errors.Is(err, failed) || who != "old" && err != nil {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// TestRidersMakeRoom has somebody come while riders are at work: he goes along in their place, with one commit for all.
func TestRidersMakeRoom(t *testing.T) {
	b := ridersBackend(t)
	p := &passengers{in: map[string]*Tx{}}
	var all sync.WaitGroup
	held := <-b.writer
	for i, who := range []string{"rider1", "rider2"} {
		all.Go(func() {
			err := b.ride(t.Context(), func(tx *Tx) error {
				if who == "rider1" {
					all.Go(func() {
						if err := b.write(t.Context(), p.fn("somebody", 0, nil), nil); err != nil {
							t.Error(err)
						}
					})
					for n := 0; n == 0; n, _ = b.waits() { // soon: a transaction does not collect for long
						runtime.Gosched()
					}
				}
				return p.fn(who, 0, nil)(tx)
			}, nil)
			if err != nil {
				t.Error(err)
			}
		})
		testkit.Eventually(t, "a rider waits", func() bool { _, n := b.waits(); return n == i+1 })
	}
	b.writer <- held
	all.Wait()
	if p.in["somebody"] != p.in["rider1"] || p.in["somebody"] == p.in["rider2"] {
		t.Error("who came while a rider was at work did not go along with it, in the place of the next one")
	}
	if got := rows(t, b); got != "rider1 rider2 somebody" {
		t.Errorf("written: %s", got)
	}
}

// TestAnsweredBeforeRiders has a write end while a rider waits: it is answered without doing the rider's work first.
func TestAnsweredBeforeRiders(t *testing.T) {
	b := ridersBackend(t)
	for range 20 {
		answered := make(chan struct{})
		var all sync.WaitGroup
		err := b.write(t.Context(), func(*Tx) error {
			all.Go(func() {
				err := b.ride(t.Context(), func(*Tx) error {
					select {
					case <-answered:
					case <-time.After(10 * time.Second):
						t.Error("the one before is not answered")
					}
					return nil
				}, nil)
				if err != nil {
					t.Error(err)
				}
			})
			for n := 0; n == 0; _, n = b.waits() {
				runtime.Gosched()
			}
			return nil
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		close(answered)
		all.Wait()
	}
}

// TestRidersGoAlone has riders whom nobody takes along: they are written all the same, and wait only where somebody is.
func TestRidersGoAlone(t *testing.T) {
	b := ridersBackend(t)
	p := &passengers{in: map[string]*Tx{}}
	for range 2 {
		b.lull.seen()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := b.ride(ctx, p.fn("rider", 0, nil), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := rows(t, b); got != "rider rider" {
		t.Errorf("written: %s", got)
	}
	now := time.Now()
	for _, c := range []struct {
		what            string
		last, rode      time.Duration // ago
		came            time.Duration
		atLeast, atMost time.Duration
	}{
		{"somebody was just here", 0, time.Hour, 0, rideLull - time.Millisecond, rideLull},
		{"somebody was just here, then riders", time.Millisecond, 0, 0, ridePause - time.Millisecond, ridePause},
		{"riders were just here, then somebody", 0, time.Millisecond, 0, rideLull - time.Millisecond, rideLull},
		{"a lull", rideLull, time.Hour, 0, 0, 0},
		{"it has waited for long", 0, 0, rideWait, 0, 0},
		{"nobody is here", rideAlone + time.Millisecond, 0, 0, 0, 0},
	} {
		l := &lull{last: now.Add(-c.last), rode: now.Add(-c.rode)}
		if got := l.wait(now.Add(-c.came)); got > c.atMost || got < c.atLeast-time.Since(now) {
			t.Errorf("%s: a rider waits %v, want %v to %v", c.what, got, c.atLeast, c.atMost)
		}
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
