package clientsync

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/store"
)

// receiptCacheBytes bounds the rooms whose receipts are in memory.
const receiptCacheBytes = 64 << 20

// receipts keeps all receipts of active rooms in memory: a receipt in a room of a thousand wakes a thousand long polls,
// which must not ask the database each.
type receipts struct {
	store *store.Store
	marks *marks
	rooms *otter.Cache[int64, *roomReceipts]
	load  sync.Mutex // one load at a time: a thousand pollers want the same room
}

// roomReceipts are all receipts of one room.
type roomReceipts struct {
	mu     sync.RWMutex
	list   []*store.Receipt // by position, oldest change first
	byUser map[string][]*store.Receipt
	bytes  atomic.Uint32

	sharing sync.Mutex
	shared  [sharedRanges]sharedReceipts
}

func newReceipts(s *store.Store, m *marks) *receipts {
	return &receipts{store: s, marks: m, rooms: otter.Must(&otter.Options[int64, *roomReceipts]{
		MaximumWeight: receiptCacheBytes,
		Weigher:       func(_ int64, r *roomReceipts) uint32 { return 200 + r.bytes.Load() },
	})}
}

const receiptBytes = 320 // of one receipt in memory, roughly

func newRoomReceipts(list []*store.Receipt) *roomReceipts {
	r := &roomReceipts{byUser: make(map[string][]*store.Receipt, len(list))}
	r.put(list)
	return r
}

// put takes in changed receipts, which are in the order of their positions.
func (r *roomReceipts) put(changed []*store.Receipt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var replaced map[*store.Receipt]struct{}
	for _, x := range changed {
		mine := r.byUser[x.User]
		i := slices.IndexFunc(mine, func(o *store.Receipt) bool { return o.Type == x.Type && o.Thread == x.Thread })
		switch {
		case i < 0:
			r.byUser[x.User] = append(mine, x)
		case mine[i].Pos >= x.Pos:
			continue // loaded from a snapshot that has this entry
		default:
			if replaced == nil {
				replaced = make(map[*store.Receipt]struct{}, len(changed))
			}
			replaced[mine[i]] = struct{}{}
			mine[i] = x
		}
		r.list = append(r.list, x)
	}
	if replaced != nil {
		r.list = slices.DeleteFunc(r.list, func(x *store.Receipt) bool { _, ok := replaced[x]; return ok })
	}
	r.bytes.Store(uint32(len(r.list) * receiptBytes))
}

// hydrate loads the receipts that other processes announced.
func (rc *receipts) hydrate(ctx context.Context, entries []store.Entry) error {
	var rooms, positions []int64
	for i := range entries {
		if e := &entries[i]; e.Kind == store.KindReceipt && e.Payload == nil {
			rooms = append(rooms, e.Room)
			positions = append(positions, e.Pos)
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	at := make(map[int64][]*store.Receipt, len(positions))
	err := rc.store.Read(ctx, func(tx *store.Tx) error {
		clear(at)
		list, err := tx.ReceiptsAt(rooms, positions)
		for _, x := range list {
			at[x.Pos] = append(at[x.Pos], x)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range entries {
		if e := &entries[i]; e.Kind == store.KindReceipt && e.Payload == nil {
			e.Payload = at[e.Pos] // those that were replaced meanwhile come with a later entry
		}
	}
	return nil
}

// apply follows the log.
func (rc *receipts) apply(entries []store.Entry) {
	for i := range entries {
		e := &entries[i]
		switch e.Kind {
		case store.KindReset:
			rc.rooms.InvalidateAll()
		case store.KindReceipt:
			list, ok := e.Payload.([]*store.Receipt)
			if r, here := rc.rooms.GetIfPresent(e.Room); here {
				if ok {
					r.put(list)
				} else {
					rc.rooms.Invalidate(e.Room)
				}
			}
		}
	}
}

// of gives the receipts of rooms, loading in one query what is not in memory.
func (rc *receipts) of(ctx context.Context, nids ...int64) (map[int64]*roomReceipts, error) {
	out := make(map[int64]*roomReceipts, len(nids))
	missing := rc.present(nids, out)
	if len(missing) == 0 {
		return out, nil
	}
	rc.load.Lock()
	defer rc.load.Unlock()
	for len(missing) > 0 {
		if missing = rc.present(missing, out); len(missing) == 0 {
			break
		}
		// Entries after this position may or may not be in the snapshot: where one comes for a room while it is read,
		// the room is read again.
		before := rc.store.Applied()
		lists := make(map[int64][]*store.Receipt, len(missing))
		err := rc.store.Read(ctx, func(tx *store.Tx) error {
			clear(lists)
			list, err := tx.RoomReceipts(missing)
			for _, x := range list {
				lists[x.Room] = append(lists[x.Room], x)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, nid := range missing {
			r := newRoomReceipts(lists[nid])
			rc.rooms.Set(nid, r)
			if last, _, _ := rc.marks.receipts(nid, 0); last > before {
				rc.rooms.Invalidate(nid)
				continue
			}
			out[nid] = r
		}
		missing = slices.DeleteFunc(missing, func(nid int64) bool { return out[nid] != nil })
	}
	return out, nil
}

func (rc *receipts) present(nids []int64, out map[int64]*roomReceipts) (missing []int64) {
	for _, nid := range nids {
		if r, ok := rc.rooms.GetIfPresent(nid); ok {
			out[nid] = r
		} else {
			missing = append(missing, nid)
		}
	}
	return missing
}

// one gives the receipts of a room.
func (rc *receipts) one(ctx context.Context, nid int64) (*roomReceipts, error) {
	if r, ok := rc.rooms.GetIfPresent(nid); ok {
		return r, nil
	}
	m, err := rc.of(ctx, nid)
	return m[nid], err
}

// readUpTo is how far a user has read a room.
// Spec: client-server API, "Receiving notifications", "Threaded read receipts".
type readUpTo struct {
	all     int64            // ord of the unthreaded receipts: counts for every thread
	threads map[string]int64 // by thread, "main" for the main timeline
}

// thread is the ord up to which a thread ("" for the main timeline) was read.
func (u *readUpTo) thread(root string) int64 {
	if root == "" {
		root = mainThread
	}
	return max(u.all, u.threads[root])
}

const mainThread = "main"

// readBy gives how far a user has read. Of public and private receipts the more recent one counts.
func (r *roomReceipts) readBy(user id.UserID) readUpTo {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out readUpTo
	for _, x := range r.byUser[string(user)] {
		if x.Thread == "" {
			out.all = max(out.all, x.Ord)
			continue
		}
		if out.threads == nil {
			out.threads = make(map[string]int64, 2)
		}
		out.threads[x.Thread] = max(out.threads[x.Thread], x.Ord)
	}
	return out
}

func receiptTypeName(t int64) string {
	if t == store.ReceiptReadPrivate {
		return "m.read.private"
	}
	return "m.read"
}

// since gives the receipts that changed after a position, as far as the user may see them, grouped by event and type.
// own tells whether one of them is the user's.
func (r *roomReceipts) since(user id.UserID, pos int64, ignored map[id.UserID]struct{}) (list []*store.Receipt, own bool) {
	r.mu.RLock()
	for i := len(r.list) - 1; i >= 0 && r.list[i].Pos > pos; i-- {
		x := r.list[i]
		mine := x.User == string(user)
		own = own || mine
		if x.Type == store.ReceiptReadPrivate && !mine {
			continue // Spec: "Private read receipts"
		}
		if len(ignored) > 0 {
			if _, skip := ignored[id.UserID(x.User)]; skip {
				continue
			}
		}
		list = append(list, x)
	}
	r.mu.RUnlock()
	sortReceipts(list)
	return list, own
}

// newerThan gives where in the list the receipts begin that changed after a position. r.mu is held.
func (r *roomReceipts) newerThan(pos int64) int {
	return sort.Search(len(r.list), func(i int) bool { return r.list[i].Pos > pos })
}

// crowded tells whether so many users read here that their own receipts wait for the room's next wake-up.
func (r *roomReceipts) crowded() bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.byUser) > receiptCrowd
}

// sortReceipts groups receipts by event and type.
func sortReceipts(list []*store.Receipt) {
	slices.SortFunc(list, func(a, b *store.Receipt) int {
		return cmp.Or(cmp.Compare(a.Ord, b.Ord), cmp.Compare(a.Type, b.Type), cmp.Compare(a.Pos, b.Pos))
	})
}

// appendReceipts appends an event m.receipt. Receipts of one user, event and type but different threads do not fit into
// one event: the last of them stands, and the rest is returned for another one.
func appendReceipts(b []byte, list []*store.Receipt) (out []byte, rest []*store.Receipt) {
	b = append(b, `{"content":{`...)
	seen := make(map[string]struct{}, 8)
	for i := 0; i < len(list); {
		if i > 0 {
			b = append(b, ',')
		}
		ord := list[i].Ord
		b = event.AppendCanonicalString(b, list[i].EventID)
		b = append(b, ':', '{')
		for first := true; i < len(list) && list[i].Ord == ord; first = false {
			if !first {
				b = append(b, ',')
			}
			typ := list[i].Type
			b = event.AppendCanonicalString(b, receiptTypeName(typ))
			b = append(b, ':', '{')
			clear(seen)
			for n := 0; i < len(list) && list[i].Ord == ord && list[i].Type == typ; i++ {
				x := list[i]
				if _, twice := seen[x.User]; twice {
					rest = append(rest, x)
					continue
				}
				seen[x.User] = struct{}{}
				if n > 0 {
					b = append(b, ',')
				}
				n++
				b = event.AppendCanonicalString(b, x.User)
				b = appendReceiptData(b, x)
			}
			b = append(b, '}')
		}
		b = append(b, '}')
	}
	return append(b, `},"type":"m.receipt"}`...), rest
}

func appendReceiptData(b []byte, x *store.Receipt) []byte {
	b = append(b, `:{"ts":`...)
	b = appendInt(b, x.TS)
	if x.Thread != "" {
		b = append(b, `,"thread_id":`...)
		b = event.AppendCanonicalString(b, x.Thread)
	}
	return append(b, '}')
}
