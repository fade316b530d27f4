package room

import (
	"context"
	"fmt"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// The keys of KindRoomMeta entries that this package acts on.
const (
	metaForgotten = "forgotten" // User has forgotten the room
	metaBlocked   = "blocked"   // nobody may enter the room
	metaUnblocked = "unblocked"
	metaPurged    = "purged"  // the room is gone
	metaHistory   = "history" // old events of the room are gone
)

const purgeChunk = 200 // rows removed in one transaction

// applyMeta brings what changed beside a room's events into memory.
func (rs *Rooms) applyMeta(e *store.Entry) {
	switch e.Key {
	case metaForgotten:
		if u := rs.known(id.UserID(e.User)); u != nil {
			u.noteForgotten(e.Room)
		}
	case metaBlocked, metaUnblocked:
		if r := rs.lookup(e.Room); r != nil {
			r.mu.Lock()
			if r.hot != nil {
				r.hot.blocked = e.Key == metaBlocked
			}
			r.mu.Unlock()
		}
	case metaPurged:
		rs.evict(e.Room)
	case metaHistory:
		if r := rs.lookup(e.Room); r != nil {
			r.mu.Lock()
			r.hot = nil // loaded again when it is needed
			r.mu.Unlock()
		}
	}
}

// evict takes a room that is gone out of memory.
func (rs *Rooms) evict(nid int64) {
	rs.mu.Lock()
	r := rs.byNID[nid]
	if r != nil {
		delete(rs.byNID, nid)
		delete(rs.byID, r.id)
	}
	active := make([]*activeUser, 0, len(rs.users))
	for _, u := range rs.users {
		if a := u.active.Load(); a != nil {
			active = append(active, a)
		}
	}
	rs.mu.Unlock()
	if r != nil {
		r.mu.Lock()
		r.hot = nil
		r.mu.Unlock()
	}
	for _, a := range active {
		a.mu.Lock()
		delete(a.rooms, nid)
		a.mu.Unlock()
	}
}

// enters tells whether a draft brings somebody nearer to a room.
func (d *Draft) enters() bool {
	if d.Type != "m.room.member" || d.StateKey == nil {
		return false
	}
	switch ParseMembership(gjson.GetBytes(d.Content, "membership").Str) {
	case MembershipJoin, MembershipInvite, MembershipKnock:
		return true
	default:
		return false
	}
}

// errBlocked is what users hear who want to enter a blocked room.
var errBlocked = mxerr.Forbidden("an administrator of this server has blocked this room")

// Block keeps users of this server out of a room, or lets them in again. The room need not be known here.
func (rs *Rooms) Block(ctx context.Context, roomID id.RoomID, by id.UserID, on bool) error {
	return rs.d.Store.Write(ctx, func(tx *store.Tx) error {
		changed, err := tx.BlockRoom(string(roomID), string(by), rs.d.Now().UnixMilli(), on)
		if err != nil || !changed {
			return err
		}
		row, ok, err := tx.RoomByID(string(roomID))
		if err != nil || !ok {
			return err
		}
		key := metaUnblocked
		if on {
			key = metaBlocked
		}
		_, err = tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: row.NID, Key: key})
		return err
	})
}

// Blocked tells who blocked a room; ok is false where nobody did.
func (rs *Rooms) Blocked(ctx context.Context, roomID id.RoomID) (by id.UserID, ok bool, err error) {
	err = rs.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var s string
		s, ok, err = tx.RoomBlocked(string(roomID))
		by = id.UserID(s)
		return err
	})
	return by, ok, err
}

// RemoveMembers makes all local users leave who are joined or invited to a room or knock at it. It returns who left and
// who could not.
func (rs *Rooms) RemoveMembers(ctx context.Context, r *Room) (left, failed []id.UserID, err error) {
	const atOnce = 50
	var users []id.UserID
	for _, m := range []Membership{MembershipJoin, MembershipInvite, MembershipKnock} {
		for _, u := range r.MembersBy(m) {
			if u.Homeserver() == rs.d.ServerName {
				users = append(users, u)
			}
		}
	}
	for len(users) > 0 {
		n := min(len(users), atOnce)
		chunk := users[:n]
		users = users[n:]
		drafts := make([]Draft, 0, n)
		for _, u := range chunk {
			drafts = append(drafts, leaveDraft(u))
		}
		if _, err := rs.SendAll(ctx, r.id, drafts); err == nil {
			left = append(left, chunk...)
			continue
		}
		for i, u := range chunk { // one of them cannot leave: each by itself
			if _, err := rs.Send(ctx, r.id, drafts[i]); err != nil {
				if ctx.Err() != nil {
					return left, failed, ctx.Err()
				}
				rs.d.Logger.Warn("a member cannot leave a room that is deleted", "room_id", r.id, "user_id", u, "error", err)
				failed = append(failed, u)
				continue
			}
			left = append(left, u)
		}
	}
	return left, failed, nil
}

func leaveDraft(u id.UserID) Draft {
	key := string(u)
	return Draft{Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`), Sender: u}
}

// Purge removes a room with all that belongs to it. It may be called again to finish what was interrupted; nid is the
// room's number.
func (rs *Rooms) Purge(ctx context.Context, nid int64) error {
	err := rs.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.LockHead(); err != nil { // commits of other processes are before or after, not across
			return err
		}
		if err := tx.DropRoom(nid); err != nil {
			return err
		}
		_, err := tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: nid, Key: metaPurged})
		return err
	})
	if err != nil {
		return err
	}
	for more := true; more; {
		err := rs.d.Store.Write(ctx, func(tx *store.Tx) (err error) {
			more, err = tx.PurgeRoom(nid, purgeChunk)
			return err
		})
		if err != nil {
			return fmt.Errorf("purge room %d: %w", nid, err)
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// PurgeHistory removes the messages of a room that lie before a place in its timeline. State events stay. removed is told
// after each step how many are gone.
func (rs *Rooms) PurgeHistory(ctx context.Context, r *Room, ord int64, removed func(n int)) error {
	for {
		n := 0
		err := rs.d.Store.Write(ctx, func(tx *store.Tx) (err error) {
			if n, err = tx.PurgeHistory(r.nid, ord, purgeChunk); err != nil || n > 0 {
				return err
			}
			_, err = tx.Announce(store.Entry{Kind: store.KindRoomMeta, Room: r.nid, Key: metaHistory})
			return err
		})
		if err != nil {
			return fmt.Errorf("purge the history of %s: %w", r.id, err)
		}
		if n == 0 {
			return nil
		}
		removed(n)
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// pause lets others write between two steps of long work.
func pause(ctx context.Context) error {
	select {
	case <-time.After(2 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Extremity is a forward extremity of a room: an event that no other follows yet.
type Extremity struct {
	EventID id.EventID
	Depth   int64
}

// Extremities lists the room's forward extremities.
func (r *Room) Extremities() []Extremity {
	h, done := r.view()
	defer done()
	out := make([]Extremity, 0, len(h.ext))
	for _, x := range h.ext {
		out = append(out, Extremity{x.id, x.depth})
	}
	return out
}
