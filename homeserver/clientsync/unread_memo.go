package clientsync

import (
	"cmp"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
)

const (
	unreadKept   = 32   // of the newest unread events are kept one by one
	unreadBundle = 2048 // unread events are summed up together at most
)

// unreadMemo holds the unread events that notify, up to a place in the timeline: the newest one by one, which receipts and
// redactions are mostly about, older ones as sums. Who never reads a busy room costs some hundred bytes then, not all its events.
type unreadMemo struct {
	mu    sync.Mutex
	upto  int64        // ord up to which events were looked at; 0: nothing was
	older []unreadSum  // oldest first
	items []unreadItem // newer than all that is summed up
	work  int          // events read from the database since the memo was saved
	bytes uint32
}

type unreadItem struct {
	ord, nid  int64
	thread    string
	highlight bool
}

// unreadSum stands for unread events that follow each other. What takes away some of them has it counted again.
type unreadSum struct {
	threads []threadSum
	stale   bool // it is to be counted again
}

type threadSum struct {
	thread      string
	first, last int64 // ord of the oldest and of the newest event
	Counts
}

// span gives the places of the oldest and newest event, and how many there are.
func (x *unreadSum) span() (first, last, n int64) {
	for i := range x.threads {
		t := &x.threads[i]
		if i == 0 || t.first < first {
			first = t.first
		}
		last = max(last, t.last)
		n += t.Notifications
	}
	return first, last, n
}

func (x *unreadSum) add(t threadSum) {
	i := slices.IndexFunc(x.threads, func(y threadSum) bool { return y.thread == t.thread })
	if i < 0 {
		x.threads = append(x.threads, t)
		return
	}
	y := &x.threads[i]
	y.first, y.last = min(y.first, t.first), max(y.last, t.last)
	y.Notifications += t.Notifications
	y.Highlights += t.Highlights
}

func sumOf(items []unreadItem) unreadSum {
	var out unreadSum
	for i := range items {
		x := &items[i]
		out.add(threadSum{x.thread, x.ord, x.ord, x.counts()})
	}
	return out
}

func (x *unreadItem) counts() Counts {
	c := Counts{Notifications: 1}
	if x.highlight {
		c.Highlights = 1
	}
	return c
}

// seen takes away what was read. A sum of which a part was read becomes stale.
func (m *unreadMemo) seen(read *readUpTo) {
	m.items = slices.DeleteFunc(m.items, func(x unreadItem) bool { return x.ord <= read.thread(x.thread) })
	for i := range m.older {
		x := &m.older[i]
		x.threads = slices.DeleteFunc(x.threads, func(t threadSum) bool { return t.last <= read.thread(t.thread) })
		x.stale = x.stale || slices.ContainsFunc(x.threads, func(t threadSum) bool { return t.first <= read.thread(t.thread) })
	}
	m.tidy()
}

// redacted takes an event away.
func (m *unreadMemo) redacted(nid, ord int64) {
	m.items = slices.DeleteFunc(m.items, func(x unreadItem) bool { return x.nid == nid })
	for i := range m.older {
		if first, last, _ := m.older[i].span(); first <= ord && ord <= last {
			m.older[i].stale = true
		}
	}
}

func (m *unreadMemo) forget() { m.items, m.older = nil, nil }

func (m *unreadMemo) empty() bool { return len(m.items)+len(m.older) == 0 }

// settle puts new items in order, sums up older ones, and lets the oldest go beyond the most that are counted.
func (m *unreadMemo) settle() {
	slices.SortFunc(m.items, func(a, b unreadItem) int { return cmp.Compare(a.ord, b.ord) })
	if len(m.items) > 2*unreadKept {
		old := m.items[:len(m.items)-unreadKept]
		for chunk := range slices.Chunk(old, unreadKept) {
			m.push(sumOf(chunk))
		}
		m.items = slices.Clone(m.items[len(old):])
	}
	m.tidy()
}

// push appends a sum. Each is at least twice as large as the next, up to a limit, so that there are few.
func (m *unreadMemo) push(x unreadSum) {
	m.older = append(m.older, x)
	for n := len(m.older); n > 1; n = len(m.older) {
		a, b := &m.older[n-2], &m.older[n-1]
		_, _, before := a.span()
		_, _, after := b.span()
		if before >= 2*after || before+after > unreadBundle || a.stale || b.stale {
			return
		}
		for _, t := range b.threads {
			a.add(t)
		}
		m.older = m.older[:n-1]
	}
}

func (m *unreadMemo) tidy() {
	m.older = slices.DeleteFunc(m.older, func(x unreadSum) bool { return len(x.threads) == 0 })
	total := int64(len(m.items))
	for i := len(m.older) - 1; i >= 0; i-- {
		if total >= unreadMost {
			m.older = slices.Delete(m.older, 0, i+1)
			return
		}
		_, _, n := m.older[i].span()
		total += n
	}
}

// size is what the memo takes, in bytes.
func (m *unreadMemo) size() uint32 {
	n := 64 * len(m.items)
	for i := range m.older {
		n += 32 + 64*len(m.older[i].threads)
	}
	return uint32(n)
}

func (m *unreadMemo) sum() Unread {
	var out Unread
	add := func(thread string, n Counts) {
		if thread == "" {
			out.Main = out.Main.plus(n)
			return
		}
		if out.Threads == nil {
			out.Threads = make(map[string]Counts)
		}
		out.Threads[thread] = out.Threads[thread].plus(n)
	}
	for i := range m.older {
		for _, t := range m.older[i].threads {
			add(t.thread, t.Counts)
		}
	}
	for i := range m.items {
		add(m.items[i].thread, m.items[i].counts())
	}
	return out
}

const unreadForm = 2 // of the stored bytes

// encode writes a memo as it is stored: the items, then the sums. Stale sums end it: what is older is counted again.
func (m *unreadMemo) encode() []byte {
	b := []byte{unreadForm}
	b = binary.AppendUvarint(b, uint64(len(m.items)))
	for i := range m.items {
		x := &m.items[i]
		b = binary.AppendVarint(b, x.ord)
		b = binary.AppendVarint(b, x.nid)
		b = binary.AppendUvarint(b, uint64(x.counts().Highlights))
		b = appendText(b, x.thread)
	}
	for i := range m.older {
		b = binary.AppendUvarint(b, uint64(len(m.older[i].threads))<<1|boolBit(m.older[i].stale))
		for _, t := range m.older[i].threads {
			for _, v := range []int64{t.first, t.last, t.Notifications, t.Highlights} {
				b = binary.AppendVarint(b, v)
			}
			b = appendText(b, t.thread)
		}
	}
	return b
}

func boolBit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

var errUnread = errors.New("stored unread counts are damaged")

// unreadReader reads what encode wrote; after a failure everything it gives is empty.
type unreadReader struct {
	b   []byte
	err error
}

func (r *unreadReader) fail() { r.b, r.err = nil, errUnread }

func unreadNumber[T int64 | uint64](r *unreadReader, decode func([]byte) (T, int)) T {
	v, n := decode(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *unreadReader) int() int64 { return unreadNumber(r, binary.Varint) }

func (r *unreadReader) uint() uint64 { return unreadNumber(r, binary.Uvarint) }

// count is a number of things that take at least a byte each.
func (r *unreadReader) count() int {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *unreadReader) text() string {
	n := r.count()
	s := string(r.b[:n])
	r.b = r.b[n:]
	return s
}

func (m *unreadMemo) decode(b []byte) error {
	if len(b) == 0 || b[0] != unreadForm {
		return errUnread
	}
	r := &unreadReader{b: b[1:]}
	for n := r.count(); n > 0 && r.err == nil; n-- {
		x := unreadItem{ord: r.int(), nid: r.int(), highlight: r.uint() == 1}
		x.thread = r.text()
		m.items = append(m.items, x)
	}
	for len(r.b) > 0 {
		head := r.uint()
		x := unreadSum{stale: head&1 == 1}
		for n := head >> 1; n > 0 && r.err == nil; n-- {
			t := threadSum{first: r.int(), last: r.int(), Counts: Counts{r.int(), r.int()}}
			t.thread = r.text()
			x.threads = append(x.threads, t)
		}
		m.older = append(m.older, x)
	}
	if r.err != nil {
		m.forget()
	}
	return r.err
}
