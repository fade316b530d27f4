package clientsync

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// TestUnreadMemo compares memos with lists of all that is unread, through new events, receipts, redactions and being stored.
func TestUnreadMemo(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m, read := &unreadMemo{}, readUpTo{threads: map[string]int64{}}
		var all []unreadItem // that are not redacted
		ord := int64(0)
		largest := 0
		for range 60 {
			switch rnd.IntN(5) {
			case 0, 1: // events come, looked at newest first
				var fresh []unreadItem
				for range 1 + rnd.IntN(200) {
					ord += 1 + rnd.Int64N(3)
					x := unreadItem{ord: ord, nid: ord + 1000, highlight: rnd.IntN(10) == 0}
					if rnd.IntN(3) == 0 {
						x.thread = fmt.Sprint("$", rnd.IntN(4))
					}
					fresh = append(fresh, x)
				}
				all = append(all, fresh...)
				slices.Reverse(fresh)
				m.items = append(m.items, fresh...)
				m.upto = ord
				m.settle()
			case 2: // a receipt
				if ord == 0 {
					continue
				}
				at := 1 + rnd.Int64N(ord)
				switch rnd.IntN(3) {
				case 0:
					read.all = max(read.all, at)
				case 1:
					read.threads[mainThread] = max(read.threads[mainThread], at)
				case 2:
					thread := fmt.Sprint("$", rnd.IntN(4))
					read.threads[thread] = max(read.threads[thread], at)
				}
			case 3: // a redaction
				if len(all) > 0 {
					i := rnd.IntN(len(all))
					m.redacted(all[i].nid, all[i].ord)
					all = slices.Delete(all, i, i+1)
				}
			case 4:
				stored := &unreadMemo{upto: m.upto}
				if err := stored.decode(m.encode()); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
				m = stored
			}
			m.seen(&read)
			all = slices.DeleteFunc(all, func(x unreadItem) bool { return x.ord <= read.thread(x.thread) })
			for i := range m.older { // as scan.again does from the database
				if first, last, _ := m.older[i].span(); m.older[i].stale {
					m.older[i] = sumOf(slices.DeleteFunc(slices.Clone(all), func(x unreadItem) bool { return x.ord < first || x.ord > last }))
				}
			}
			m.tidy()
			want := (&unreadMemo{items: all}).sum()
			if got := m.sum(); !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d: %+v, want %+v", seed, got, want)
			}
			largest = max(largest, len(m.items)+len(m.older))
		}
		if largest > 2*unreadKept+40 {
			t.Errorf("seed %d: a memo held %d parts", seed, largest)
		}
	}
}

// TestUnreadMemoIsSmall looks at what somebody costs who never reads a busy room.
func TestUnreadMemoIsSmall(t *testing.T) {
	m := &unreadMemo{}
	for i := range int64(50_000) {
		m.items = append(m.items, unreadItem{ord: i + 1, nid: i + 1})
		m.upto = i + 1
		m.settle()
	}
	if m.size() > 8<<10 {
		t.Errorf("%d bytes", m.size())
	}
	if n := m.sum().Main.Notifications; n < unreadMost || n > unreadMost+2*unreadBundle {
		t.Errorf("%d are counted", n)
	}
}

func FuzzUnreadMemo(f *testing.F) {
	m := &unreadMemo{}
	for i := range int64(200) {
		m.items = append(m.items, unreadItem{ord: i + 1, nid: i + 1, thread: []string{"", "$t"}[i%2]})
	}
	m.settle()
	f.Add(m.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &unreadMemo{}
		if m.decode(b) != nil && !m.empty() {
			t.Error("a damaged row left something")
		}
		m.settle()
		m.sum()
	})
}
