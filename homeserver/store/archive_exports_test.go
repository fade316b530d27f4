package store_test

import (
	"testing"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/store/storetest"
)

// TestArchiveExports goes through the life of an export: one download at a time, none that is dead stands in the way, and what
// was cancelled is not said to be complete.
func TestArchiveExports(t *testing.T) {
	storetest.Each(t, func(t *testing.T, cfg store.Config) {
		st := storetest.Open(t, cfg)
		write := func(fn func(tx *store.Tx) error) {
			t.Helper()
			if err := st.Write(t.Context(), fn); err != nil {
				t.Fatal(err)
			}
		}
		const who = "@olga:test"
		get := func() (e store.ArchiveExport) {
			t.Helper()
			found := false
			write(func(tx *store.Tx) (err error) {
				e, found, err = tx.ArchiveExport("x", who)
				return err
			})
			if !found {
				t.Fatal("it is not there")
			}
			return e
		}
		begin := func(now, since int64) (run int64, ok bool) {
			t.Helper()
			write(func(tx *store.Tx) (err error) {
				run, ok, err = tx.BeginArchiveExport("x", who, now, since)
				return err
			})
			return run, ok
		}
		see := func(run, entries, now int64) (ok bool) {
			t.Helper()
			write(func(tx *store.Tx) (err error) {
				ok, err = tx.SeeArchiveExport("x", run, entries, 10*entries, now)
				return err
			})
			return ok
		}
		end := func(run, state int64) (ok bool) {
			t.Helper()
			write(func(tx *store.Tx) (err error) {
				ok, err = tx.EndArchiveExport(&store.ArchiveExport{ID: "x", Run: run, State: state, Ended: 900, Entries: 9, Bytes: 90, SHA256: "ab"})
				return err
			})
			return ok
		}
		write(func(tx *store.Tx) error {
			return tx.AddArchiveExport(&store.ArchiveExport{ID: "x", User: who, Reason: "案件 1", Format: "csv", Asked: store.Content(`{"words":"a"}`), About: 7, Created: 100})
		})
		if e := get(); e.State != store.ExportWaiting || e.About != 7 || e.Reason != "案件 1" || string(e.Asked) != `{"words":"a"}` {
			t.Errorf("%+v", e)
		}
		first, ok := begin(200, 170)
		if !ok || !see(first, 3, 210) {
			t.Fatal("it does not begin")
		}
		if _, ok := begin(220, 190); ok {
			t.Error("two downloads at once")
		}
		var n int64
		write(func(tx *store.Tx) (err error) { n, err = tx.RunningArchiveExports(who, 190); return err })
		if e := get(); n != 1 || e.State != store.ExportRunning || e.Entries != 3 || e.Bytes != 30 || e.Began != 200 || e.Seen != 210 {
			t.Errorf("%d, %+v", n, e)
		}
		second, ok := begin(300, 270) // nobody has heard of the first since 210
		if !ok || see(first, 4, 310) || end(first, store.ExportDone) || get().Entries != 0 {
			t.Errorf("a download that is dead stands in the way: %+v", get())
		}
		cancelled := false
		cancel := func() bool {
			write(func(tx *store.Tx) (err error) { cancelled, err = tx.CancelArchiveExport("x", who, 400); return err })
			return cancelled
		}
		if !cancel() || cancel() || see(second, 5, 410) || end(second, store.ExportDone) || get().State != store.ExportCancelled {
			t.Errorf("cancelled: %+v", get())
		}
		if third, ok := begin(500, 470); !ok || !end(third, store.ExportDone) || get().SHA256 != "ab" || cancel() {
			t.Errorf("ended: %+v", get())
		}
		count := func() (n int) {
			write(func(tx *store.Tx) error {
				list, err := tx.ArchiveExports(who, 10)
				n = len(list)
				return err
			})
			return n
		}
		drop := func(before, since int64) {
			write(func(tx *store.Tx) error { return tx.DropArchiveExports(before, since) })
		}
		drop(100, 0)
		if count() != 1 {
			t.Error("it is forgotten too early")
		}
		begin(600, 570)
		drop(1000, 600)
		if count() != 1 {
			t.Error("one that is being sent is forgotten")
		}
		drop(1000, 601)
		if count() != 0 {
			t.Error("it is not forgotten")
		}
	})
}
