package room

import (
	"context"
	"fmt"
	"sync"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
)

// erasures are the users who wanted to be erased when their account ended: few, and all in memory.
type erasures struct {
	mu    sync.RWMutex
	known map[id.UserID]struct{} // nil: to be read
	gen   int                    // grows when what was read is no longer true
}

// note drops what is known when a user is erased or no longer.
func (x *erasures) note(e *store.Entry) {
	if e.Kind == store.KindReset || e.Kind == store.KindUser && e.Key == store.KeyErased {
		x.mu.Lock()
		x.known = nil
		x.gen++
		x.mu.Unlock()
	}
}

// Erased gives the users whose messages only those get to read who were in the room when they were sent. It must not be
// changed. Spec: client-server API, POST /account/deactivate, "erase".
func (rs *Rooms) Erased(ctx context.Context) (map[id.UserID]struct{}, error) {
	x := &rs.erased
	x.mu.RLock()
	known, gen := x.known, x.gen
	x.mu.RUnlock()
	if known != nil {
		return known, nil
	}
	var users map[id.UserID]struct{}
	err := rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		users = map[id.UserID]struct{}{}
		return tx.ErasedUsers(func(user string) { users[id.UserID(user)] = struct{}{} })
	})
	if err != nil {
		return nil, fmt.Errorf("read who is erased: %w", err)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.gen == gen {
		x.known = users
	}
	return users, nil
}

// Erases tells whether the viewer gets the event without its content. State stays: rooms need their names and members.
func (v *Viewer) Erases(e *Event) bool {
	if len(v.Erased) == 0 || v.Membership == MembershipJoin.String() {
		return false
	}
	if _, isState := e.PDU.StateKey(); isState || e.PDU.Type() == "m.room.redaction" {
		return false
	}
	_, erased := v.Erased[e.PDU.Sender()]
	return erased
}
