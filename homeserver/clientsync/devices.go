package clientsync

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

const toDeviceMost = 100 // messages in one response

// acknowledge notes that a device has got the to-device messages before its token. They are deleted behind the client's
// back.
func (s *Sync) acknowledge(req *request) {
	if req.initial || req.device == "" || !s.marks.uncleared(req.user, req.device, req.since.toDevice) {
		return
	}
	s.marks.clear(req.user, req.device, req.since.toDevice)
	s.cleaner.add(deviceKey{req.user, req.device}, req.since.toDevice)
}

// cleaner deletes to-device messages that were acknowledged.
type cleaner struct {
	kick chan struct{}
	mu   sync.Mutex
	upto map[deviceKey]int64
}

type deviceKey struct {
	user   id.UserID
	device id.DeviceID
}

func (c *cleaner) add(key deviceKey, upto int64) {
	c.mu.Lock()
	c.upto[key] = max(c.upto[key], upto)
	c.mu.Unlock()
	nudge(c.kick)
}

func (c *cleaner) take() map[deviceKey]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.upto
	c.upto = make(map[deviceKey]int64)
	return out
}

// runCleaner deletes what was acknowledged, until ctx ends and nothing is left.
func (s *Sync) runCleaner(ctx context.Context) error {
	for {
		select {
		case <-s.cleaner.kick:
		case <-ctx.Done():
		}
		for key, upto := range s.cleaner.take() {
			if err := s.d.Keys.DeleteToDevice(context.WithoutCancel(ctx), key.user, key.device, upto); err != nil {
				// they are deleted after a restart: nothing of them is delivered again
				s.d.Logger.Warn("delivered to-device messages were not deleted", "user_id", key.user, "device_id", key.device, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(100 * time.Millisecond): // more of them together
		}
	}
}

// toDevice reads the messages that wait for the device, and sets how far the token goes.
// Spec: client-server API, "Send-to-Device messaging".
func (b *builder) toDevice() ([]jsontext.Value, error) {
	req := b.req
	after := max(req.since.toDevice, b.s.marks.clearedUpTo(req.user, req.device))
	if req.device == "" || (!req.initial && !b.s.marks.toDevice(req.user, req.device, after)) {
		return nil, nil
	}
	events, last, err := b.s.d.Keys.ToDeviceMessages(b.ctx, req.user, req.device, after, b.upto, toDeviceMost)
	b.next.toDevice = last
	return events, err
}

func (b *builder) appendToDevice(events []jsontext.Value) {
	if len(events) == 0 {
		return
	}
	b.urgent = true
	b.b = append(b.b, `,"to_device":{"events":[`...)
	for _, e := range events {
		b.comma()
		b.b = append(b.b, e...)
	}
	b.b = append(b.b, ']', '}')
}

// appendKeyCounts writes device_one_time_keys_count and device_unused_fallback_key_types.
// Spec: client-server API, "Extensions to /sync" of end-to-end encryption.
func (b *builder) appendKeyCounts() error {
	if b.req.device == "" {
		return nil
	}
	counts, fallback, err := b.s.d.Keys.OTKCounts(b.ctx, b.req.user, b.req.device)
	if err != nil {
		return err
	}
	b.b = append(b.b, `,"device_one_time_keys_count":{`...)
	for alg, n := range counts {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, alg)
		b.b = append(b.b, ':')
		b.b = appendInt(b.b, int64(n))
	}
	b.b = append(b.b, `},"device_unused_fallback_key_types":[`...)
	for _, alg := range fallback {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, alg)
	}
	b.b = append(b.b, ']')
	return nil
}

// listChanges gathers, while the rooms are written, whose device lists the client has to look at because rooms came to
// be shared or are no longer.
type listChanges struct {
	came map[id.UserID]struct{}
	left bool // somebody left a room of the user's, or the user did
}

func (l *listChanges) join(u id.UserID) {
	if l.came == nil {
		l.came = make(map[id.UserID]struct{})
	}
	l.came[u] = struct{}{}
}

// appendDeviceLists writes device_lists.
// Spec: client-server API, "Tracking the device list for a user".
func (b *builder) appendDeviceLists() error {
	if b.req.initial {
		return nil // the client knows nobody's devices yet
	}
	changed, left, err := b.deviceLists()
	if err != nil {
		return err
	}
	if len(changed)+len(left) == 0 {
		return nil
	}
	b.urgent = true
	b.b = append(b.b, `,"device_lists":{"changed":[`...)
	for _, u := range changed {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, string(u))
	}
	b.b = append(b.b, `],"left":[`...)
	for _, u := range left {
		b.comma()
		b.b = event.AppendCanonicalString(b.b, string(u))
	}
	b.b = append(b.b, ']', '}')
	return nil
}

func (b *builder) deviceLists() (changed, left []id.UserID, err error) {
	me, since := b.req.user, b.req.since.pos
	changed, known := b.s.marks.changedLists(me, since)
	if !known {
		if changed, err = b.s.d.Keys.DeviceListChangedSince(b.ctx, me, since, b.upto); err != nil {
			return nil, nil, err
		}
	}
	if changed, err = b.sharing(changed); err != nil {
		return nil, nil, err
	}
	for u := range b.lists.came {
		changed = append(changed, u)
	}
	if b.lists.left {
		err = b.s.d.Store.Read(b.ctx, func(tx *store.Tx) error {
			var err error
			left, err = tx.LeftDeviceLists(me, since)
			return err
		})
	}
	slices.Sort(changed)
	return slices.Compact(changed), left, err
}

// sharing keeps of some users those who are joined to a room with the user, the user included.
func (b *builder) sharing(users []id.UserID) ([]id.UserID, error) {
	if len(users) == 0 {
		return nil, nil
	}
	if len(users) > 8 {
		shared, err := b.s.d.Rooms.UsersSharingRoom(b.ctx, b.req.user)
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(users, func(u id.UserID) bool { _, ok := shared[u]; return !ok }), nil
	}
	user, err := b.s.d.Rooms.User(b.ctx, b.req.user)
	if err != nil {
		return nil, err
	}
	mine := user.Rooms()
	return slices.DeleteFunc(users, func(u id.UserID) bool {
		return u != b.req.user && !slices.ContainsFunc(mine, func(r room.UserRoom) bool {
			return r.Membership == room.MembershipJoin && r.Room.Membership(u) == room.MembershipJoin
		})
	}), nil
}
