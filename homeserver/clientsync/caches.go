package clientsync

import (
	"context"
	"sync"

	"github.com/maypok86/otter/v2"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/filter"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// caches hold what syncs ask for again and again. Each is bounded; none is needed for a right answer.
type caches struct {
	prev    *otter.Cache[int64, int64] // of a state event: the number of the one before at its place, 0 for none
	prevMu  sync.Mutex
	filters *otter.Cache[string, *filter.Filter] // by definition, for clients that send it with each request
	lazy    *otter.Cache[lazyKey, *lazySent]
}

type lazyKey struct {
	user   id.UserID
	device id.DeviceID
	room   int64
}

// lazySent remembers which member events a device was sent, and in the response up to which position: the device has
// them once it comes back with a token from there.
type lazySent struct {
	mu  sync.Mutex
	nid map[int64]int64
}

func newCaches() *caches {
	return &caches{
		prev:    otter.Must(&otter.Options[int64, int64]{MaximumSize: 200_000}),
		filters: otter.Must(&otter.Options[string, *filter.Filter]{MaximumSize: 1000}),
		lazy: otter.Must(&otter.Options[lazyKey, *lazySent]{
			MaximumWeight: 32 << 20,
			Weigher:       func(lazyKey, *lazySent) uint32 { return 1000 },
		}),
	}
}

// loadPrev makes sure that the cache knows what state events replaced.
func (s *Sync) loadPrev(ctx context.Context, events []*room.Event) error {
	missing := s.missingPrev(events)
	if len(missing) == 0 {
		return nil
	}
	// one at a time: a thousand long polls want to know it of the same event
	s.caches.prevMu.Lock()
	defer s.caches.prevMu.Unlock()
	if missing = s.missingPrev(events); len(missing) == 0 {
		return nil
	}
	prev := make(map[int64]int64, len(missing))
	err := s.d.Store.Read(ctx, func(tx *store.Tx) error {
		clear(prev)
		return tx.PrevState(missing, func(nid, p int64) { prev[nid] = p })
	})
	if err != nil {
		return err
	}
	for _, nid := range missing {
		s.caches.prev.Set(nid, prev[nid])
	}
	return nil
}

func (s *Sync) missingPrev(events []*room.Event) (missing []int64) {
	for _, e := range events {
		if _, ok := s.caches.prev.GetIfPresent(e.NID); !ok {
			missing = append(missing, e.NID)
		}
	}
	return missing
}

// prevOf gives the state event that another one replaced, nil where there was none.
func (s *Sync) prevOf(ctx context.Context, e *room.Event) (*room.Event, error) {
	nid, err := s.prevNID(ctx, e)
	if err != nil || nid == 0 {
		return nil, err
	}
	evs, err := s.d.Rooms.EventsByNID(ctx, []int64{nid})
	if err != nil || len(evs) == 0 {
		return nil, err
	}
	return evs[0], nil
}

func (s *Sync) prevNID(ctx context.Context, e *room.Event) (int64, error) {
	nid, ok := s.caches.prev.GetIfPresent(e.NID)
	if ok {
		return nid, nil
	}
	if err := s.loadPrev(ctx, []*room.Event{e}); err != nil {
		return 0, err
	}
	nid, _ = s.caches.prev.GetIfPresent(e.NID)
	return nid, nil
}

// filterOf reads the filter parameter: a definition, or the id of a stored one.
func (s *Sync) filterOf(ctx context.Context, user id.UserID, param string) (*filter.Filter, error) {
	if param == "" || param[0] != '{' || len(param) > 4096 {
		return s.d.Data.Filter(ctx, user, param)
	}
	if f, ok := s.caches.filters.GetIfPresent(param); ok {
		return f, nil
	}
	f, err := s.d.Data.Filter(ctx, user, param)
	if err == nil {
		s.caches.filters.Set(param, f)
	}
	return f, err
}

const lazyKept = 5000 // member events remembered for one device and room

// knows tells whether a device has a member event already, given the position of its token.
func (s *Sync) knows(key lazyKey, nid, since int64) bool {
	l, ok := s.caches.lazy.GetIfPresent(key)
	if !ok {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.nid[nid]
	return ok && at <= since
}

// sent notes that a device is sent a member event in the response up to a position.
func (s *Sync) sent(key lazyKey, nid, upto int64) {
	l, ok := s.caches.lazy.GetIfPresent(key)
	if !ok {
		l = &lazySent{nid: make(map[int64]int64)}
		s.caches.lazy.Set(key, l)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.nid) >= lazyKept {
		clear(l.nid) // members are sent again: more bytes, nothing wrong
	}
	if at, ok := l.nid[nid]; !ok || at > upto {
		l.nid[nid] = upto
	}
}
