package groups

import (
	"context"
	"iter"
	"slices"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// difference tells who is new in a list and who is out.
func difference(old, now []id.UserID) (add, remove []id.UserID) {
	in := make(map[id.UserID]bool, len(old))
	for _, u := range old {
		in[u] = false
	}
	for _, u := range now {
		if kept, was := in[u]; !was {
			add = append(add, u)
			in[u] = true
		} else if !kept {
			in[u] = true
		}
	}
	for _, u := range old {
		if !in[u] {
			remove = append(remove, u)
		}
	}
	return add, remove
}

// sameGroup compares what groups have beside their members.
func sameGroup(a, b *Group) bool {
	kind := b.Kind
	if kind == "" {
		kind = KindGroup
	}
	return a.Kind == kind && a.Name == b.Name && a.DN == b.DN && a.ParentID == b.ParentID && a.Gone == b.Gone &&
		slices.Equal(slices.Sorted(slices.Values(a.Nested)), slices.Compact(slices.Sorted(slices.Values(b.Nested))))
}

// chunks cuts a list into pieces.
func chunks[T any](list []T, size int) iter.Seq[[]T] { return slices.Chunk(list, size) }

// yieldMin and yieldMax bound a pause of Yield.
const (
	yieldMin = 12 * time.Millisecond
	yieldMax = 40 * time.Millisecond
)

// Yield waits after a piece of work that nobody waits for, twice as long as that took (12 to 40 ms): whoever chats comes first, and
// a server that is busy is left alone the more. Work whose writes ride has waited for them already.
func Yield(ctx context.Context, s *store.Store, took time.Duration) {
	if s.Rides(ctx) {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(min(max(2*took, yieldMin), yieldMax)):
	}
}
