package clientsync

import (
	"weak"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

const (
	// receiptCrowd is how many users of a room have receipts where it becomes a crowd: there a user's own receipts wait for
	// the wake-up that those of the others wait for (docs/decisions/0300).
	receiptCrowd = 64
	sharedRanges = 4  // ranges of receipts of one room that are kept as JSON
	sharedLeast  = 12 // receipts that are worth it
)

// sharedReceipts are the public receipts from one place of a room's list to its end, as JSON. In a lively room hundreds
// of readers are told of the same ones within a moment; what none of them uses any more goes with the next garbage
// collection.
type sharedReceipts struct {
	first, last *store.Receipt
	n           int
	json        weak.Pointer[receiptJSON]
}

type receiptJSON struct {
	b       []byte
	private bool // the range holds private receipts, which are not in b
}

// appendSince appends one or more events m.receipt, separated by commas, with what changed after a position, as far as
// the user may see it. own tells whether one of the receipts is the user's, some whether there is anything.
func (r *roomReceipts) appendSince(b []byte, user id.UserID, pos int64, ignored map[id.UserID]struct{}) (out []byte, own, some bool) {
	r.mu.RLock()
	from := r.newerThan(pos)
	n := len(r.list) - from
	share := n >= sharedLeast
	for u := range ignored {
		share = share && !changedAfter(r.byUser[string(u)], pos)
	}
	if !share {
		r.mu.RUnlock()
		list, own := r.since(user, pos, ignored)
		return appendReceiptEvents(b, list), own, len(list) > 0
	}
	var private []*store.Receipt // of the user's
	for _, x := range r.byUser[string(user)] {
		if x.Pos <= pos {
			continue
		}
		own = true
		if x.Type == store.ReceiptReadPrivate {
			private = append(private, x)
		}
	}
	rendered := r.render(from)
	r.mu.RUnlock()
	before := len(b)
	b = append(b, rendered.b...)
	if rendered.private && len(private) > 0 {
		sortReceipts(private)
		if len(b) > before {
			b = append(b, ',')
		}
		b = appendReceiptEvents(b, private)
	}
	return b, own, len(b) > before
}

func changedAfter(list []*store.Receipt, pos int64) bool {
	for _, x := range list {
		if x.Pos > pos {
			return true
		}
	}
	return false
}

// render gives the public receipts from a place of the list on. r.mu is held for reading.
func (r *roomReceipts) render(from int) *receiptJSON {
	list := r.list[from:]
	first, last := list[0], list[len(list)-1]
	r.sharing.Lock() // who comes meanwhile wants the same most often
	defer r.sharing.Unlock()
	for i := range r.shared {
		// every change of the list puts another receipt at its end
		if s := &r.shared[i]; s.first == first && s.last == last && s.n == len(list) {
			if j := s.json.Value(); j != nil {
				return j
			}
		}
	}
	j := &receiptJSON{}
	public := make([]*store.Receipt, 0, len(list))
	for _, x := range list {
		if x.Type == store.ReceiptReadPrivate {
			j.private = true
			continue
		}
		public = append(public, x)
	}
	sortReceipts(public)
	j.b = appendReceiptEvents(make([]byte, 0, 64+96*len(public)), public)
	copy(r.shared[1:], r.shared[:])
	r.shared[0] = sharedReceipts{first: first, last: last, n: len(list), json: weak.Make(j)}
	return j
}

// appendReceiptEvents appends as many events m.receipt as the receipts need, separated by commas.
func appendReceiptEvents(b []byte, list []*store.Receipt) []byte {
	for first := true; len(list) > 0; first = false {
		if !first {
			b = append(b, ',')
		}
		b, list = appendReceipts(b, list)
	}
	return b
}
